"""The figures of decode, fusion, heights and energy, and that of errors: they show the numbers of the CSVs."""

import shutil

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis import results as data
from tritonmoe_bench.experiments.analysis.decode import EXPERT, OUTPUT, crossing
from tritonmoe_bench.experiments.analysis.names import model_label
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.claims.fusion import process_noise
from tritonmoe_bench.plots import endtoend, energy, granular
from tritonmoe_bench.plots.parts import registry

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


def printed(figure):
    return " ".join(" ".join(text.get_text() for text in figure.texts).split())


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


def lines_of(panel):
    """The lines of models, in their order."""
    return [line for line in panel.lines if line.get_marker() not in ("None", "")]


def test_decode_shows_the_ratio_of_each_model_and_its_crossings(drawn, results):
    table, rows = latencies(results, "decode"), results.study("decode").rows
    panel = drawn["ablations"].axes[0]
    for line, model in zip(lines_of(panel), MODELS, strict=True):
        here = table.loc[model]
        np.testing.assert_allclose(line.get_ydata(), (here[EXPERT] / here[OUTPUT]).to_numpy())
    found = [
        crossing(compare.ratios(rows[rows["model"] == model], OUTPUT, [EXPERT], "best")) for model in MODELS
    ]  # fmt: skip
    crossings = sorted(tokens for tokens in found if tokens is not None)
    assert f"below {crossings[0]:.1f}–{crossings[-1]:.1f} tokens" in printed(drawn["ablations"])


def test_fusion_shows_each_ratio_and_how_far_two_processes_differ(drawn, results):
    table = latencies(results, "fusion")
    noise, repeats = process_noise(results.study("fusion").rows)
    ratio = table["fast"] / table["fastvariant_gather"]
    assert repeats == len(ratio)
    assert noise == pytest.approx(np.exp(np.abs(np.log(ratio)).max()))
    for line, model in zip(lines_of(drawn["ablations"].axes[1]), MODELS, strict=True):
        here = table.loc[model]
        np.testing.assert_allclose(line.get_ydata(), here["fastvariant_permute"] / here["fastvariant_gather"])
    assert f"with the gather fused differ by up to {100 * (noise - 1):.1f} %" in printed(drawn["ablations"])


def test_heights_are_means_over_the_batch_sizes_with_their_range(drawn, results):
    table = latencies(results, "heights")
    fixed = [f"fastvariant_fixed{height}" for height in (16, 64, 128)]
    ratios = table[fixed].div(table["fastvariant_dynamic"], axis=0).assign(best=lambda wide: wide.min(axis=1))
    for panel, column in zip(drawn["ablations"].axes[2:], (fixed[1], "best"), strict=True):
        for line, bars, model in zip(lines_of(panel), panel.collections, MODELS, strict=True):
            here = ratios.loc[model, column].unstack("skew")
            np.testing.assert_allclose(line.get_ydata(), np.exp(np.log(here).mean()))
            spans = [segment[:, 1] for segment in bars.get_segments()]
            np.testing.assert_allclose(spans, np.stack([here.min(), here.max()], axis=1))


@pytest.mark.parametrize("left", [("decode",), ("fusion", "heights")])
def test_ablations_of_the_studies_that_there_are(results, left, tmp_path):
    (tmp_path / "fixture-gpu").mkdir()
    for study in left:
        shutil.copy(results.path(study), tmp_path / "fixture-gpu")
    figure = registry.figures()["ablations"].draw(Results(tmp_path, "fixture-gpu"))
    pyplot.close(figure)
    assert len(figure.axes) == {1: 1, 2: 3}[len(left)]
    assert all(f"{study}.csv" in printed(figure) for study in left)


def test_what_is_beyond_the_reading_is_drawn_for_fast_and_the_best_other(drawn, results):
    rows = results.study("granular").rows
    panels = drawn["granular"].axes
    titles = ["Qwen3-30B-A3B", "Qwen3.5-35B-A3B", "Qwen3.5-35B-A3B, fp8_block"]
    assert [panel.get_title() for panel in panels] == titles
    timed = compare.timed(rows, "best")
    here = timed[(timed["model"] == "qwen3_30b_a3b") & (timed["skew"] == 2.0)]
    for label, systems in (("fast", ["fast"]), ("best other system", ["torch_grouped_mm", "vllm"])):
        least = here[here["implementation"].isin(systems)].groupby("tokens")[["p50_us", "stream_us"]].min()
        _, skewed = [line for line in panels[0].lines if line.get_label() == label]
        assert list(skewed.get_ydata()) == pytest.approx(list(least["p50_us"] - least["stream_us"]))
    points = granular.beyond(compare.plain(rows, formats=True))
    assert len(points) == 2 * rows["case_hash"].nunique()
    sentence = " ".join(drawn["granular"].get_suptitle().split())
    for kind, median in granular.medians(points).items():  # the made-up rows have no tiled weights
        assert f"{median:.0f} µs with {'the ' * (kind != 'fast')}{kind}" in sentence


def test_medians_beyond_the_reading_are_over_the_cases_that_both_have():
    points = pd.DataFrame({
        "case_hash": ["a", "a", "b"], "kind": ["fast", "best other system", "fast"], "beyond": [4.0, 9.0, 100.0],
    })  # fmt: skip
    assert granular.medians(points) == {"fast": 4.0, "best other system": 9.0}
    assert granular.medians(points.iloc[2:]) == {"fast": 100.0}


def test_power_starts_at_nothing_and_energy_is_over_that_of_stream(drawn, results):
    rows = energy.over_stream(compare.timed(compare.plain(results.study("energy").rows), "best"))
    models = rows["model"].nunique()
    above, below = drawn["energy"].axes[:models], drawn["energy"].axes[models:]
    assert below[0].get_ylim()[0] == 0
    here = rows[(rows["model"] == "mixtral") & (rows["skew"] == 0) & (rows["implementation"] == "fast")]
    for panel, column in ((above[0], "over_stream"), (below[0], "power_w")):
        line = next(line for line in panel.lines if line.get_label() == "fast")
        assert list(line.get_ydata()) == list(here.sort_values("tokens")[column])
    assert above[0].get_title() == model_label("mixtral")


def test_a_step_of_a_whole_model_and_the_experts_in_it(drawn, results):
    rows = compare.timed(results.study("endtoend").rows, "best")
    steps, shares = drawn["endtoend"].axes[:2], drawn["endtoend"].axes[2:]
    assert [panel.get_title() for panel in steps] == [model_label("qwen3_30b_a3b"), model_label("olmoe_1b_7b")]
    here = rows[(rows["model"] == "olmoe_1b_7b") & (rows["implementation"] == "fast")].sort_values("tokens")
    for panel, values in ((steps[1], here["p50_us"] / 1e3), (shares[1], 100 * here["experts_share"])):
        line = next(line for line in panel.lines if line.get_label() == "fast")
        assert list(line.get_ydata()) == list(values)
    assert shares[0].get_ylim()[0] == 0
    assert "left out" not in printed(drawn["endtoend"])


def test_experts_that_took_longer_than_the_step_are_no_share_of_it(results, tmp_path):
    rows = pd.read_csv(results.path("endtoend"), dtype="string")
    here = (rows["model"] == "olmoe_1b_7b") & (rows["implementation"] == "fast") & (rows["tokens"] == "32")
    rows.loc[here & (rows["status"] == "ok"), "experts_share"] = "1.46"
    (tmp_path / "fixture-gpu").mkdir()
    rows.to_csv(tmp_path / "fixture-gpu" / "endtoend.csv", index=False)
    figure = endtoend.draw(Results(tmp_path, "fixture-gpu"))
    line = next(line for line in figure.axes[3].lines if line.get_label() == "fast")
    assert 32 not in line.get_xdata()
    assert "left out: fast at batch 32 on OLMoE-1B-7B (146 %, " in printed(figure)


def test_heights_without_a_fixed_one_name_the_study(results, tmp_path):
    rows = pd.read_csv(results.path("heights"), dtype="string")
    (tmp_path / "fixture-gpu").mkdir()
    rows[rows["implementation"] == "stream"].to_csv(tmp_path / "fixture-gpu" / "heights.csv", index=False)
    with pytest.raises(data.MissingStudy, match="study=decode"):
        registry.figures()["ablations"].draw(Results(tmp_path, "fixture-gpu"))
