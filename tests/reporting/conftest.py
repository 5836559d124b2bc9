"""The report from a results folder of made-up rows."""

from __future__ import annotations

from pathlib import Path

import make_results
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tritonmoe_bench.experiments.reporting import render

DEVICE = make_results.DEVICE
FIGURES = ("throughput", "headline", "skew")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with results/, plots/figures/ and README.md, and the report in it."""
    root = tmp_path_factory.mktemp("checkout")
    make_results.make_results(root / "results")
    figures = root / "plots" / "figures" / DEVICE
    figures.mkdir(parents=True)
    for name in FIGURES:
        facts = PngInfo()  # as plots/draw.py writes them
        facts.add_text("Title", f"Title of {name}")
        facts.add_text("Description", f"What {name} says")
        facts.add_text("Source", "throughput")
        Image.new("RGB", (40, 20), "white").save(figures / f"{name}.png", pnginfo=facts)
    (root / "README.md").write_text(f"# Title\n\n{render.BEGIN}\nold\n{render.END}\n\nkept\n", encoding="utf-8")
    render.write_report(root / "results", figures.parent, DEVICE, root / "README.md")
    return root
