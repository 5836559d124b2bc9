"""The synthetic results folder and every figure of it, made once."""

import sys
from pathlib import Path

import matplotlib
import pytest
from make_results import make_results
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.plots.parts import registry

matplotlib.use("Agg")


@pytest.fixture(scope="session")
def fixture_results(tmp_path_factory) -> Path:
    """A results folder with the device `fixture-gpu`; read only."""
    folder = tmp_path_factory.mktemp("results")
    make_results(folder)
    return folder


@pytest.fixture(scope="session")
def drawn(fixture_results):
    """Every figure of the synthetic results by name, laid out; read only. Torch and triton cannot be imported there."""
    results = Results(fixture_results, "fixture-gpu")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torch", "triton"):
            patch.setitem(sys.modules, name, None)
        figures = {}
        for name, picture in registry.figures().items():
            figures[name] = picture.draw(results)
            pyplot.close(figures[name])
    for figure in figures.values():
        FigureCanvasAgg(figure)  # its own, which no other test can close
        figure.draw_without_rendering()
    return figures
