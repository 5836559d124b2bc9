"""Draws every figure from the CSVs, on any machine: no GPU, no torch, no triton.

    python plots/draw.py [--results results] [--out plots/figures] [--device nvidia-h200] [--only throughput ...]

Writes <out>/<device>/<figure>.png and .pdf. A figure whose CSV is not there is skipped, with the study that makes it.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    runpy.run_path(str(ROOT / "experiments" / "checkout.py"))

import matplotlib  # noqa: E402

from tritonmoe_bench.plots import data, layout, registry  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 if nothing could be drawn."""
    parser = argparse.ArgumentParser(description="Draws the figures from the CSVs.")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "plots" / "figures")
    parser.add_argument("--device", help="a folder of results; by default the one with the newest rows")
    parser.add_argument("--only", nargs="+", choices=sorted(registry.figures()), metavar="FIGURE", help="%(choices)s")
    parser.add_argument("--dpi", type=int, default=layout.DPI)
    chosen = parser.parse_args(arguments)
    matplotlib.use("Agg")
    try:
        device = chosen.device or data.newest_device(chosen.results)
    except data.MissingStudy as lack:
        print(f"nothing to draw: {lack}", file=sys.stderr)
        return 1
    written = draw_all(data.Results(chosen.results, device), chosen.out / device, chosen.only, chosen.dpi)
    if not written:
        print(f"nothing could be drawn from {chosen.results / device}", file=sys.stderr)
    return 0 if written else 1


def draw_all(results: data.Results, out: Path, only: Sequence[str] | None = None, dpi: int = layout.DPI) -> list[Path]:
    """Draws into `out` the figures that have their CSVs; returns the files, and prints them as they are written."""
    from matplotlib import pyplot

    written = []
    for name, picture in registry.figures().items():
        if only and name not in only:
            continue
        try:
            figure = picture.draw(results)
        except data.MissingStudy as lack:
            print(f"{name}: skipped, {lack}")
            continue
        out.mkdir(parents=True, exist_ok=True)
        # Without dates in the files, the same CSVs give the same files.
        for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            path = out / f"{name}.{ending}"
            figure.savefig(path, dpi=dpi, metadata=metadata)
            written.append(path)
            print(path)
        pyplot.close(figure)
    return written


if __name__ == "__main__":
    sys.exit(main())
