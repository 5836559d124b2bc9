"""Draws every figure from the CSVs, on any machine: no GPU, no torch, no triton.

    python plots/draw.py [--results results] [--out plots/figures] [--device nvidia-h200] [--only throughput ...]

Writes <out>/<device>/<figure>.png and .pdf. A figure whose CSV is not there is skipped, with the study that makes it;
one that is faulty is told, the others are drawn, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "experiments")
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

import matplotlib

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results, find_device
from tritonmoe_bench.experiments.checkout import one_line
from tritonmoe_bench.experiments.table import store
from tritonmoe_bench.plots.parts import layout, registry


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 if nothing could be drawn, or a figure is faulty."""
    parser = argparse.ArgumentParser(description="Draws the figures from the CSVs.")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "plots" / "figures")
    parser.add_argument("--device", help="a folder of results; by default the one with the newest rows")
    parser.add_argument("--only", nargs="+", choices=sorted(registry.figures()), metavar="FIGURE", help="%(choices)s")
    parser.add_argument("--dpi", type=int, default=layout.DPI)
    for fault in registry.broken():
        print(f"error: {fault}", file=sys.stderr)
    chosen = parser.parse_args(arguments)
    matplotlib.use("Agg")
    try:
        device = find_device(chosen.results, chosen.device)
    except MissingStudy as lack:
        print(f"error: {lack}", file=sys.stderr)
        return 1
    written, faulty = draw_all(Results(chosen.results, device), chosen.out / device, chosen.only, chosen.dpi)
    if not written:
        print(f"error: nothing could be drawn from {chosen.results / device}", file=sys.stderr)
    return 0 if written and not faulty and not registry.broken() else 1


def draw_all(
    results: Results, out: Path, only: Sequence[str] | None = None, dpi: int = layout.DPI
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
            # Without dates in the files, the same CSVs give the same files.
            caption = {"Title": picture.title, "Source": ", ".join(picture.studies)}  # the report reads it
            for ending, metadata in (("png", {"Software": None, **caption}), ("pdf", {"CreationDate": None})):
                path = out / f"{name}.{ending}"
                with store.writing(path):
                    figure.savefig(path, dpi=dpi, metadata=metadata)
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
