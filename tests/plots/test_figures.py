"""Every figure, drawn from the synthetic results: what is on it, and what its sentence says."""

import shutil

import pandas as pd
import pytest
from figure_parts import UNITS, legend_labels, line_of, printed
from matplotlib import pyplot

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis import headline as headline_data
from tritonmoe_bench.experiments.analysis.published import ratios
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.plots import formats, ranking, throughput
from tritonmoe_bench.plots.parts import layout, lead, maps, registry, style


@pytest.fixture(scope="module")
def results(fixture_results):
    return Results(fixture_results, "fixture-gpu")


@pytest.mark.parametrize("name", UNITS)
def test_the_source_says_which_rows_were_drawn(drawn, results, name):
    row = results.study(registry.figures()[name].studies[0]).rows.iloc[0]
    for fact in (row["device"], f"{row['study']}.csv", row["git_commit"][:7], f"run {row['run_id']}"):
        assert str(fact) in printed(drawn[name]).replace("- ", "-")


LARGER = ("p50_us", "p20_us", "p80_us", "read_bytes", "unique_read_bytes", "energy_mj", "rel_error")


def changed(rows):
    """The rows of `fast`, the paper's fused pipeline and the expert FFN with larger numbers, by another factor each."""
    rows = rows.copy()
    parts = {"fast": 1.3, "paper_fused": 1.17, "paper_fused_graph": 1.21}
    for column in (name for name in LARGER if name in rows):
        factor = rows["implementation"].map(
            lambda name: parts.get(name, 1.4 if name in ("fastvariant_dynamic", "fastvariant_gather") else 1.0)
        )
        if "stage" in rows:
            factor = factor.where(rows["stage"] != "expert_ffn", 3.0)
        rows[column] = rows[column] * factor
    return rows


@pytest.fixture(scope="module")
def other_results(fixture_results, tmp_path_factory):
    root = tmp_path_factory.mktemp("changed") / "results"
    shutil.copytree(fixture_results, root)
    for path in (root / "fixture-gpu").glob("*.csv"):
        changed(pd.read_csv(path)).to_csv(path, index=False)
    return Results(root, "fixture-gpu")


@pytest.mark.parametrize("name", UNITS)
def test_the_sentence_above_a_figure_is_made_of_its_rows(drawn, other_results, name):
    figure = registry.figures()[name].draw(other_results)
    pyplot.close(figure)
    sentences = ["".join(each.get_suptitle().split()) for each in (drawn[name], figure)]
    assert sentences[0] != sentences[1]


def test_lines_are_shares_of_the_limit_and_every_system_is_drawn(drawn, results):
    best = throughput.share_of_limit(compare.timed(compare.plain(results.study("throughput").rows), "best"))
    best = best[best["model"] == "mixtral"]
    panel = drawn["throughput"].axes[0]
    assert panel.get_title() == "Mixtral-8x7B"
    for name, label in (("fast", "fast"), ("paper_fused", "the paper's pipeline, rewritten")):
        mine = best[best["implementation"] == name].sort_values("tokens")
        assert list(line_of(panel, label).get_ydata()) == list(mine["share"])
    serving = best[best["implementation"].isin(["vllm", "vllm_tuned", "sglang", "openai_triton_kernels"])]
    assert list(line_of(panel, "best serving engine").get_ydata()) == list(serving.groupby("tokens")["share"].max())
    thin = [line for line in panel.lines if line.get_color() == style.GREY]
    assert len(thin) == best["implementation"].nunique()


def test_the_rates_over_a_panel_are_those_at_the_limit(drawn, results):
    rows = results.study("throughput").rows
    rows = rows[(rows["model"] == "mixtral") & (rows["dtype"] == "bf16") & rows["limit_us"].notna()]
    first = rows[rows["tokens"] == rows["tokens"].min()].iloc[0]
    rate = layout.short(float(f"{first['tokens'] / first['limit_us'] * 1e6:.2g}"))
    assert rate in [text.get_text() for text in drawn["throughput"].axes[0].texts]


def test_the_papers_own_code_comes_first_where_it_has_rows(fixture_results, tmp_path):
    root = tmp_path / "results"
    shutil.copytree(fixture_results, root)
    rows = pd.read_csv(root / "fixture-gpu" / "throughput.csv")
    own = rows[rows["implementation"] == "paper_fused"].assign(implementation="tritonmoe")
    unfused = own.assign(implementation="tritonmoe_unfused", p50_us=1.25 * own["p50_us"])
    for study in ("throughput", "paper_code"):
        table = pd.concat([rows, own, unfused]).assign(study=study)
        table.to_csv(root / "fixture-gpu" / f"{study}.csv", index=False)
    for name, sentence in (("throughput", "the paper's code reaches"), ("paper_ratios", "The paper's own code runs")):
        figure = registry.figures()[name].draw(Results(root, "fixture-gpu"))
        pyplot.close(figure)
        assert sentence in " ".join(figure.get_suptitle().split())
        assert "the paper's own code" in legend_labels(figure)
    assert "fused at 1.25 times unfused" in " ".join(figure.get_suptitle().split())
    assert "paper_code.csv" in printed(figure)


def test_published_points_and_band_are_on_the_ratios(drawn):
    figure = drawn["paper_ratios"]
    for panel, points in (
        (figure.axes[0], ratios("vs_megablocks", "megablocks", "triton_fused")),
        (figure.axes[3], ratios("pipeline", "triton_unfused", "triton_fused")),
    ):
        points = points[(points["model"] == "mixtral") & (points["tokens"] <= 512)]
        [stars] = [line for line in panel.lines if line.get_marker() == "*"]
        assert list(stars.get_ydata()) == list(points["ratio"])
    assert "the paper's claim" in legend_labels(figure)


def test_the_headline_prints_each_lead_and_counts_them(drawn, results):
    rows = results.study("headline").rows
    best = headline_data.against_best(rows, headline_data.peers(rows))
    assert {"stream", "fast", "paper_fused_graph"}.isdisjoint(headline_data.peers(rows))
    for panel, model in zip(drawn["headline"].axes, ("mixtral", "qwen2_paper", "deepseek_v3", "qwen3_30b_a3b")):
        here = best[best["model"] == model]
        ties = (here["low"] <= 1) & (here["high"] >= 1)
        numbers = ["≈" * tie + lead.percent(100 * (ratio - 1)) for ratio, tie in zip(here["ratio"], ties)]
        assert sorted(text.get_text() for text in panel.texts) == sorted(numbers)
        marks = [line.get_ydata()[0] for line in panel.lines if line.get_marker() not in ("None", "")]
        assert sorted(marks) == pytest.approx(sorted(100 * (here["ratio"] - 1)))
    product = 1.0
    for ratio in best["ratio"]:
        product *= ratio
    sentence = " ".join(drawn["headline"].get_suptitle().split())
    ahead = (best["low"] > 1).sum()
    assert f"at {ahead} of {len(best)} points, by {100 * (product ** (1 / len(best)) - 1):.0f} %" in sentence
    same = ((best["low"] <= 1) & (best["high"] >= 1)).sum()
    assert (f"{same} are ties" in sentence) == bool(same)
    peers = {f"against {style.look(name).label}" for name in best["other"]}
    assert {label for label in legend_labels(drawn["headline"]) if label.startswith("against ")} == peers


def test_packed_weights_have_panels_of_their_own(drawn, results):
    rows = results.study("quant").rows
    rows = rows[rows["quant"] == "fp8_block"]
    best = headline_data.against_best(rows, headline_data.peers(rows))
    panel = drawn["served"].axes[0]
    assert panel.get_title() == "DeepSeek-V3, fp8_block"
    assert len(panel.texts) == len(best)


def test_each_format_has_its_lines_and_the_sentence_says_what_it_buys(drawn, results):
    rows = results.study("quant").rows
    best = formats.lines_of(rows[rows["skew"] == 0])
    [panel] = drawn["formats"].axes
    for quant in ("none", "fp8_block"):
        for kind, *_ in formats.KINDS:
            points = best[(best["quant"] == quant) & (best["kind"] == kind)].sort_values("tokens")
            assert list(line_of(panel, f"{quant} {kind}").get_ydata()) == pytest.approx(list(points["p50_us"]))
    ratios = formats.gains(best)["fp8_block"]
    title = drawn["formats"].get_suptitle().replace("\n", " ")
    assert (
        title
        == f"The fastest system in fp8_block runs at {compare.span(ratios)} times the speed of the fastest in 16 bits"
    )
    assert "fp8_block: " in printed(drawn["formats"])


def test_the_line_of_ours_is_the_faster_of_both_activations_and_the_errors_name_it(results):
    rows = results.study("quant").rows
    rows = rows[(rows["quant"] == "fp8_block") & (rows["skew"] == 0)]
    own = rows[rows["implementation"] == "fast"]
    few, many = own["tokens"].min(), own["tokens"].max()
    factor = own["tokens"].map({few: 2.0, many: 0.5}).astype(float).fillna(2.0)
    eight = own.assign(implementation="fast_a8", activations="a8", p50_us=own["p50_us"] * factor)
    both = formats.lines_of(pd.concat([rows, eight]))
    ours = both[both["kind"] == "fast"].set_index("tokens")
    assert ours["implementation"].loc[[few, many]].tolist() == ["fast", "fast_a8"]
    assert len(ours) == own["tokens"].nunique()
    assert any(words.startswith("fast, 8-bit activations ") for words in formats.errors(both)["fp8_block"])


def test_native_layers_have_a_map_with_a_line_a_model(drawn, results):
    rows = results.study("native").rows
    assert set(rows["layer"]) == {"native"}
    best = headline_data.against_best(rows, headline_data.peers(rows))
    panels = [panel for panel in drawn["served"].axes if panel.images]
    lines = [label.get_text() for panel in panels for label in reversed(panel.get_yticklabels())]
    assert lines == ["Mixtral-8x7B", "gpt-oss-20b", "Qwen3-Next-80B-A3B"]
    cells = sorted(text.get_text() for panel in panels for text in panel.texts)
    ties = (best["low"] <= 1) & (best["high"] >= 1)
    assert cells == sorted(f"{'≈' * tie}{ratio:.2f}" for ratio, tie in zip(best["ratio"], ties))
    assert ("the same within the noise" in legend_labels(drawn["served"])) == bool(ties.any())
    assert "on the layers that models run" in " ".join(drawn["served"].get_suptitle().split())
    assert "each model's own layer" in printed(drawn["served"])


def test_the_ranking_has_a_cell_a_system_and_point_and_its_profile(drawn, results):
    rows = compare.plain(results.study("headline").rows)
    best = headline_data.relative(rows)
    table, names = ranking.cells(best), ranking.ranked(best)
    above, below = drawn["ranking"].axes
    assert [label.get_text() for label in above.get_yticklabels()] == [style.look(name).label for name in names]
    numbers = [text.get_text() for text in above.texts if text.get_text()[0].isdigit()]
    assert len(numbers) == len(table)
    shares = ranking.profile(rows, best)
    vllm = best[best["implementation"] == "vllm"]
    assert ranking.within(shares["vllm"], 1.1) == (vllm["ratio"] <= 1.1).sum() / rows["case_hash"].nunique()
    step = line_of(below, "vLLM")
    assert max(step.get_ydata()) == ranking.within(shares["vllm"], ranking.REACH)
    assert len([line for line in below.lines if len(line.get_xdata()) > 1]) == len(shares)


def test_map_prints_each_ratio(drawn, results):
    rows = compare.plain(results.study("skew").rows)
    pairs = compare.ratios(rows, "paper_fused", ["megablocks_sparse"], "eager")
    for panel, batch in zip(drawn["skew"].axes, sorted(rows["tokens"].unique())):
        here = pairs[pairs["tokens"] == batch]
        cells = rows.loc[rows["tokens"] == batch, "case_hash"].nunique()
        found = [text.get_text() for text in panel.texts]
        assert sorted(text.lstrip("≈") for text in found if text != "–") == sorted(
            f"{ratio:.2f}" for ratio in here["ratio"]
        )
        assert len(found) == cells
    sides = {label[:7] for label in legend_labels(drawn["skew"]) if label.startswith(("above 1", "below 1"))}
    expected = (("above 1", (pairs["low"] > 1).any()), ("below 1", (pairs["high"] < 1).any()))
    assert sides == {side for side, there in expected if there}


def test_a_map_frames_what_is_behind_beyond_the_noise_and_marks_ties():
    grid = pd.DataFrame({"case_hash": ["a", "b", "c", "d"], "model": "m", "tokens": [1, 2, 4, 8]})
    ratios = pd.DataFrame({
        "case_hash": ["a", "b", "c"], "ratio": [1.2, 0.98, 0.9], "low": [1.1, 0.95, 0.85], "high": [1.3, 1.01, 0.95],
    })  # fmt: skip
    figure, panel = pyplot.subplots()
    maps.draw_ratios(panel, grid, ratios, "model", "tokens")
    pyplot.close(figure)
    assert [text.get_text() for text in panel.texts] == ["1.20", "≈0.98", "0.90", "–"]
    corners = {(x, y) for line in panel.lines for x, y in zip(line.get_xdata(), line.get_ydata())}
    assert corners == {(x, y) for x in (1.5, 2.5) for y in (-0.5, 0.5)}
    labels = [handle.get_label() for handle in maps.legend(ratios, "ours", "theirs")]
    assert labels == [
        "above 1: ours is faster", "below 1, framed: theirs is faster", "the same within the noise",
    ]  # fmt: skip
    assert [handle.get_label() for handle in maps.legend(ratios.head(1), "ours", "theirs")] == labels[:1]


def test_stages_stand_beside_the_published_ones(drawn, results):
    panel = drawn["stages"].axes[0]
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels[:2] == ["A100: unfused", "A100: fused"]
    assert len(labels) == 2 + 3
    bars = {
        place: [bar for bar in panel.patches if round(bar.get_y() + bar.get_height() / 2) == place] for place in (0, 2)
    }
    for place in bars:
        assert sum(bar.get_width() for bar in bars[place]) == pytest.approx(1)
    assert bars[0][0].get_alpha() == 1
    assert bars[2][0].get_alpha() < 1  # launched by the host
