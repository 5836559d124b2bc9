"""The figures of the studies decode, fusion and heights, and that of errors: they show the numbers of the CSVs."""

import numpy as np
import pandas as pd
import pytest

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis import results as data
from tritonmoe_bench.experiments.analysis.decode import EXPERT, OUTPUT, crossing, errors
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.claims.fusion import process_noise
from tritonmoe_bench.plots import accuracy
from tritonmoe_bench.plots.parts import registry, style

MODELS = ["mixtral", "qwen2_paper", "deepseek_v3", "qwen3_30b_a3b"]


@pytest.fixture(scope="module")
def results(fixture_results):
    return Results(fixture_results, "fixture-gpu")


def latencies(results, study):
    """p50_us by (model, tokens, skew), a column a system."""
    rows = results.study(study).rows
    timed = rows[(rows["status"] == "ok") & rows["p50_us"].notna()]
    return timed.groupby(["model", "tokens", "skew", "implementation"])["p50_us"].min().unstack()


def pairs(tokens, ratios):
    return pd.DataFrame({"tokens": tokens, "ratio": ratios})


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([2.0, 0.5, 0.25], 2.0),  # halfway between 1 and 4, log to log
        ([2.0, 1.0, 0.5], 4.0),
        ([2.0, 1.5, 1.1], None),
        ([0.9, 0.8, 0.7], None),
        ([0.9, 2.0, 0.5], 8.0),
    ],
)
def test_crossing(ratios, expected):
    found = crossing(pairs([1, 4, 16], ratios))
    assert found == (None if expected is None else pytest.approx(expected))


def test_crossing_does_not_depend_on_the_order_of_rows():
    assert crossing(pairs([16, 1, 4], [0.25, 2.0, 0.5])) == pytest.approx(2)


def test_decode_shows_the_ratio_its_crossing_and_both_errors(drawn, results):
    table, rows = latencies(results, "decode"), results.study("decode").rows
    found = errors(rows)
    for column, model in enumerate(MODELS):
        above, below = drawn["decode"].axes[column], drawn["decode"].axes[column + len(MODELS)]
        assert above.get_title() == names.model_label(model)
        here = table.loc[model]
        ratio = (here[EXPERT] / here[OUTPUT]).to_numpy()
        line = next(line for line in above.lines if len(line.get_xdata()) == len(ratio))
        np.testing.assert_allclose(line.get_ydata(), ratio)
        (diamond,) = [line for line in above.lines if line.get_marker() == "D"]
        assert diamond.get_xdata()[0] == pytest.approx(
            crossing(compare.ratios(rows[rows["model"] == model], OUTPUT, [EXPERT], "best"))
        )
        mine = found[found["model"] == model]
        drawn_errors = [list(line.get_ydata()) for line in below.lines]
        assert drawn_errors == [list(mine[name]) for name in ("output", "expert", "plain")]


def test_fusion_prints_each_ratio_over_the_band_of_two_processes(drawn, results):
    table = latencies(results, "fusion")
    noise, repeats = process_noise(results.study("fusion").rows)
    ratio = table["fast"] / table["fastvariant_gather"]
    assert repeats == len(ratio)
    assert noise == pytest.approx(np.exp(np.abs(np.log(ratio)).max()))
    for panel, model in zip(drawn["fusion"].axes, MODELS):
        here = table.loc[model]
        expected = [f"{value:.2f}" for value in here["fastvariant_permute"] / here["fastvariant_gather"]]
        assert [text.get_text() for text in panel.texts] == expected
    printed = " ".join(" ".join(text.get_text() for text in drawn["fusion"].texts).split())
    assert f"{100 * (noise - 1):.1f} % over {repeats} points" in printed


def test_heights_map_holds_every_ratio_and_the_best_height(drawn, results):
    table = latencies(results, "heights")
    fixed = [f"fastvariant_fixed{height}" for height in (16, 64, 128)]
    ratios = table[fixed].div(table["fastvariant_dynamic"], axis=0).assign(best=lambda wide: wide.min(axis=1))
    figure = drawn["dynamic_heights"]
    assert len(figure.axes) == 4 * 3
    for index, panel in enumerate(figure.axes):
        row, column = divmod(index, 3)
        here = ratios.xs((32, 128, 512)[column], level="tokens")[[*fixed, "best"][row]]
        assert sorted(text.get_text() for text in panel.texts) == sorted(f"{value:.2f}" for value in here)
    lowest = figure.axes[0].get_yticklabels()[0].get_text()
    assert lowest == "Mixtral-8x7B\n8 experts"
    printed = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert printed[(3, 0)] == f"{ratios.loc[('mixtral', 32, 2.0), fixed[0]]:.2f}"


def test_accuracy_has_the_median_of_every_system_in_each_dtype(drawn, results):
    rows = pd.concat([results.study(name).rows for name in ("headline", "throughput")])
    known = accuracy.errors(rows)
    labels = [label.get_text() for label in drawn["accuracy"].axes[0].get_yticklabels()]
    assert labels == [style.look(name).label for name in compare.systems(rows) if name != "stream"]
    for panel, dtype in zip(drawn["accuracy"].axes, ("bf16", "fp16")):
        assert panel.get_title() == dtype
        for name in ("fast", "paper_fused", "megablocks_sparse"):
            mine = known[(known["dtype"] == dtype) & (known["implementation"] == name)]
            (point,) = [line for line in panel.lines if line.get_label() == style.look(name).label]
            assert point.get_xdata()[0] == pytest.approx(mine["rel_error"].median())
            place = labels.index(style.look(name).label)
            told = [text.get_text() for text in panel.texts if text.get_position()[1] == place]
            assert told == [f"{(mine['rel_error'] / mine['torch_rel_error']).median():.2f} x"]
    no_fp16 = labels.index(style.look("torch_grouped_mm").label)
    assert "no point" in [
        text.get_text() for text in drawn["accuracy"].axes[1].texts if text.get_position()[1] == no_fp16
    ]


def test_heights_without_a_fixed_one_name_the_study(results, tmp_path):
    rows = pd.read_csv(results.path("heights"), dtype="string")
    (tmp_path / "fixture-gpu").mkdir()
    rows[rows["implementation"] == "stream"].to_csv(tmp_path / "fixture-gpu" / "heights.csv", index=False)
    with pytest.raises(data.MissingStudy, match="study=heights"):
        registry.figures()["dynamic_heights"].draw(Results(tmp_path, "fixture-gpu"))
