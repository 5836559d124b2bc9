"""Draws every figure from the CSVs, on any machine: no GPU, no torch, no triton.

    python plots/draw.py
    python plots/draw.py device=nvidia-h200 only=[throughput,headline] out=plots/figures

Writes <out>/<device>/<figure>.png and .pdf. A figure whose CSV is not there is skipped, with the study that makes it;
one that is faulty is told, the others are drawn, and the exit status is 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "experiments")
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

import matplotlib

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results, find_device
from tritonmoe_bench.experiments.checkout import one_line
from tritonmoe_bench.experiments.table import store
from tritonmoe_bench.experiments.workload.arguments import PlanError, command, key
from tritonmoe_bench.plots.parts import files, registry


@dataclass
class DrawConfig:
    """The keys of the figures."""

    device: str = key("", "folder of a GPU in results; by default the one with the most studies")
    only: list[str] = key([], "figures to draw, one or a list; by default all of", lambda: sorted(registry.figures()))
    results: Path = key(ROOT / "results", "folder of the CSVs")
    out: Path = key(ROOT / "plots" / "figures", "folder; figures go to <out>/<device>")
    dpi: int = key(0, "dots per inch of the PNG files; 0: those of each figure")


def draw_asked(config: DrawConfig) -> int:
    """Draws what can be drawn; returns the exit status: 1 if nothing could be drawn, or a figure is faulty."""
    for fault in registry.broken():
        print(f"error: {fault}", file=sys.stderr)
    for name in config.only:
        if name not in registry.figures():
            raise PlanError(f"only={name}: allowed are {', '.join(sorted(registry.figures()))}")
    matplotlib.use("Agg")
    device = find_device(config.results, config.device or None)
    written, faulty = draw_all(Results(config.results, device), config.out / device, config.only, config.dpi)
    if not written:
        print(f"error: nothing could be drawn from {config.results / device}", file=sys.stderr)
    return 0 if written and not faulty and not registry.broken() else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws, or says how to ask; returns the exit status."""
    return command(DrawConfig, __doc__, draw_asked, arguments)


def draw_all(
    results: Results, out: Path, only: Sequence[str] | None = None, dpi: int = 0
) -> tuple[list[Path], list[str]]:
    """Draws into `out` the figures that have their CSVs; returns the files, which it prints as they are written, and
    the names of the figures that are faulty."""
    from matplotlib import pyplot

    written, faulty = [], []
    for name, picture in registry.figures().items():
        if only and name not in only:
            continue
        try:
            figure = picture.draw(results)
            out.mkdir(parents=True, exist_ok=True)
            for path, contents in ((out / f"{name}.png", files.png), (out / f"{name}.pdf", files.pdf)):
                made = contents(figure, picture, dpi)
                with store.writing(path):
                    path.write_bytes(made)
                written.append(path)
                print(path)
        except MissingStudy as lack:
            print(f"{name}: skipped, {lack}")
        except Exception as error:
            if isinstance(error, OSError) and one_line(error):
                raise  # no figure can be written
            print(f"error: {picture.file}: not drawn: {registry.described(error)}", file=sys.stderr)
            faulty.append(name)
        pyplot.close("all")
    return written, faulty


if __name__ == "__main__":
    sys.exit(main())
