"""Every figure after a sweep of few systems, models or batch sizes: it is drawn, or says in a line what it lacks."""

import shutil

import matplotlib
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results
from tritonmoe_bench.plots import draw
from tritonmoe_bench.plots.parts import registry

matplotlib.use("Agg")
OURS = ("fast", "fastvariant", "paper", "stream")


def failed(rows):
    """Every row an error, without a number."""
    numbers = [name for name in rows if name.endswith(("_us", "_bytes", "_per_s", "_error", "_mj", "_w", "_mhz"))]
    return rows.assign(status="error", reason="it broke", **dict.fromkeys(numbers, pd.NA))


FEW = {
    "only fast and the limit": lambda rows: rows[rows["implementation"].isin(["fast", "stream"])],
    "only fast": lambda rows: rows[rows["implementation"] == "fast"],
    "only the limit": lambda rows: rows[rows["implementation"] == "stream"],
    "only a peer": lambda rows: rows[rows["implementation"] == "megablocks_sparse"],
    "only what others wrote": lambda rows: rows[~rows["implementation"].str.startswith(OURS)],
    "no limit": lambda rows: rows[rows["implementation"] != "stream"].assign(
        **{name: pd.NA for name in ("limit_us", "stream_us") if name in rows}
    ),
    "one case": lambda rows: rows[rows["case_hash"] == rows["case_hash"].iloc[0]],
    "one row": lambda rows: rows.head(1),
    "all failed": failed,
}


@pytest.fixture(scope="module")
def few(fixture_results, tmp_path_factory):
    """The synthetic results with some of the rows of each study; a study of which none is left has no CSV."""
    made = {}

    def make(which):
        if which not in made:
            folder = tmp_path_factory.mktemp("few") / "results"
            shutil.copytree(fixture_results, folder)
            for path in (folder / "fixture-gpu").glob("*.csv"):
                rows = FEW[which](pd.read_csv(path, dtype="string"))
                rows.to_csv(path, index=False) if len(rows) else path.unlink()
            made[which] = Results(folder, "fixture-gpu")
        return made[which]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(registry.figures()))
@pytest.mark.parametrize("which", FEW)
def test_a_figure_of_few_rows_is_drawn_or_says_what_it_lacks(which, name, few):
    figure, lack = None, ""
    try:
        figure = registry.figures()[name].draw(few(which))
    except MissingStudy as error:
        lack = str(error)
    if figure is None:
        assert "python experiments/sweep.py" in lack
    else:
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        pyplot.close(figure)
        assert figure.axes


def test_figures_that_need_another_system_are_skipped_with_a_line(few, tmp_path, capsys):
    arguments = [f"results={few('only fast and the limit').root}", f"out={tmp_path}", "dpi=50"]
    assert draw.main([*arguments, "only=[paper_ratios,headline,throughput]"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    skipped = [line for line in told.out.splitlines() if "skipped" in line]
    assert [line.split(":")[0] for line in skipped] == ["headline", "paper_ratios"]
    assert all("has no " in line and "python experiments/sweep.py study=" in line for line in skipped)
