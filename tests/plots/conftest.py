"""The synthetic results folder, made once."""

import runpy
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
MAKE = Path(__file__).resolve().parents[1] / "fixtures" / "make_results.py"


@pytest.fixture(scope="session")
def fixture_results(tmp_path_factory) -> Path:
    """A results folder with the device `fixture-gpu`; read only."""
    folder = tmp_path_factory.mktemp("results")
    runpy.run_path(str(MAKE))["make_results"](folder)
    return folder
