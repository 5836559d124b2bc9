"""No change of the code changes what the figures show of the committed rows.

When rows were measured again: `python tests/plots/figure_data.py`, and look at the figures that differ.
"""

import json
import shutil

import figure_data
import pandas as pd
import pytest
from matplotlib import pyplot

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results
from tritonmoe_bench.plots.parts import files, registry

pytestmark = pytest.mark.slow
RECORDED = json.loads(figure_data.FIXTURE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory):
    """The committed results with the rows of each CSV in another order."""
    root = tmp_path_factory.mktemp("shuffled") / "results"
    shutil.copytree(ROOT / "results", root)
    for path in [*root.glob("nvidia-h200/*.csv"), *root.glob("interpreter/*.csv"), root / "portability.csv"]:
        pd.read_csv(path, dtype="string").sample(frac=1, random_state=7).to_csv(path, index=False)
    return root


def test_every_figure_that_has_rows_is_recorded():
    for name in set(registry.figures()) - set(RECORDED):
        with pytest.raises(MissingStudy):
            registry.figures()[name].draw(Results(ROOT / "results", "nvidia-h200"))
    assert set(RECORDED) <= set(registry.figures())


def test_what_is_committed_is_drawn_small_and_nothing_else():
    """What a study has no rows for yet, no figure shows."""
    drawn = {path.stem: path for path in (ROOT / "plots" / "figures" / "nvidia-h200").glob("*.png")}
    assert set(drawn) <= set(registry.figures())
    for path in drawn.values():
        assert path.stat().st_size <= files.MOST_BYTES, path
        assert path.with_suffix(".pdf").exists()


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_the_committed_rows_give_the_recorded_figure(name, shuffled):
    """Drawn from shuffled rows, so that their order changes nothing either."""
    figure = registry.figures()[name].draw(Results(shuffled, "nvidia-h200"))
    digest = figure_data.digest(figure)
    pyplot.close(figure)
    assert digest == RECORDED[name]
