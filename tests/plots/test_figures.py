"""Every figure, drawn from the synthetic results: what is on it, and that it can be read."""

import pandas as pd
import pytest
from matplotlib.text import Text

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis import headline as headline_data
from tritonmoe_bench.experiments.analysis.names import SYSTEMS
from tritonmoe_bench.experiments.analysis.published import ratios
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.plots.parts import against_field, registry, style

PER_SYSTEM = ("throughput", "limit_share", "latency_vs_skew", "latency_vs_experts")
UNITS = {
    "throughput": ["tokens", "throughput (tokens/s)"],
    "limit_share": ["tokens", "limit / latency (%)"],
    "ratio_to_megablocks": ["tokens", "ratio, eager / eager", "ratio, best / best"],
    "fused_vs_unfused": ["tokens", "unfused / fused (ratio)"],
    "latency_vs_skew": ["Zipf exponent (0: uniform)", "latency (µs)"],
    "latency_vs_experts": ["experts (top-k)", "latency (µs)"],
    "skew_map": ["Zipf exponent"],
    "stage_breakdown": ["latency (µs)", "share of the stages' sum (%)"],
    "headline": ["tokens", "latency of system / of fast (ratio)"],
    "quant": ["tokens", "latency of system / of fast (ratio)"],
    "decode": ["tokens", "expert- / output-centric\nlatency (ratio)", "relative error\nagainst float32"],
    "fusion": ["tokens", "permuted / fused latency (ratio)"],
    "dynamic_heights": ["Zipf exponent", "over 16 rows for all", "over the best\nsingle height"],
    "energy": ["tokens", "energy over\nthat of stream", "power (W)", "SM clock (MHz)"],
    "accuracy": ["relative error (10⁻³)"],
    "traffic": ["traffic (GB)", "traffic (MB)"],
    "traffic_saving": ["tokens", "traffic saved (%)"],
    "traffic_over_compulsory": ["tokens", "DRAM bytes / compulsory bytes (ratio)"],
    "traffic_where": ["ffn size / hidden size (ratio)", "bytes saved, of all (%)", "bytes saved, of activations (%)"],
    "roofline": ["operations / DRAM byte (FLOP/B)", "rate of operations (TFLOP/s)"],
}
LAID_OUT = (*UNITS, "portability")


@pytest.fixture(scope="module")
def results(fixture_results):
    return Results(fixture_results, "fixture-gpu")


def texts(figure):
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def legend_labels(figure):
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


def test_every_figure_of_the_issue_is_there(drawn):
    assert set(UNITS) <= set(drawn)


@pytest.mark.parametrize("name", UNITS)
def test_axes_are_labelled_with_units(drawn, name):
    labels = [axis.get_label_text() for axes in drawn[name].axes for axis in (axes.xaxis, axes.yaxis)]
    for label in UNITS[name]:
        assert any(label in found for found in labels), (label, labels)


@pytest.mark.parametrize("name", UNITS)
def test_caption_says_where_with_what_and_when(drawn, results, name):
    row = results.study(registry.figures()[name].studies[0]).rows.iloc[0]
    printed = " ".join(" ".join(text.get_text() for text in drawn[name].texts).split())
    for fact in (row["device"], f"torch {row['torch']}", row["git_commit"][:7], row["timestamp_utc"][:10]):
        assert str(fact) in printed
    assert f"run {row['run_id']}" in printed.replace("- ", "-")


@pytest.mark.parametrize("name", LAID_OUT)
def test_text_is_large_enough_and_inside_the_figure(drawn, name):
    figure = drawn[name]
    renderer = figure.canvas.get_renderer()
    edge = figure.bbox
    # Matplotlib keeps tick labels beyond the limits of their axis, and does not draw them.
    ticks = {id(label) for axes in figure.axes for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]}
    for text in texts(figure):
        box = text.get_window_extent(renderer)
        if id(text) not in ticks:
            assert box.x0 >= edge.x0, text
            assert box.x1 <= edge.x1, text
            assert box.y0 >= edge.y0, text
            assert box.y1 <= edge.y1, text
        assert text.get_fontsize() >= style.FONT_PT


@pytest.mark.parametrize("name", LAID_OUT)
def test_legend_and_caption_lie_under_the_panels(drawn, name):
    figure = drawn[name]
    renderer = figure.canvas.get_renderer()
    lowest = min(axes.get_tightbbox(renderer).y0 for axes in figure.axes if axes.get_visible())
    note = max(text.get_window_extent(renderer).y1 for text in figure.texts if text is not figure._suptitle)
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert box.y1 <= lowest + 1
        assert box.y0 >= note - 1


@pytest.mark.parametrize("name", PER_SYSTEM)
def test_all_systems_are_in_the_legend(drawn, results, name):
    rows = results.study(registry.figures()[name].studies[0]).rows
    assert {style.look(system).label for system in rows["implementation"]} <= legend_labels(drawn[name])


@pytest.mark.parametrize("name", PER_SYSTEM)
def test_a_system_looks_the_same_everywhere(drawn, name):
    looks = {look.label: look for look in map(style.look, SYSTEMS)}
    handles = {handle.get_label(): handle for legend in drawn[name].legends for handle in legend.legend_handles}
    for label in set(handles) & set(looks):
        assert handles[label].get_color() == looks[label].color
        assert handles[label].get_marker() == looks[label].marker


def test_lines_carry_the_numbers_of_the_csv(drawn, results):
    rows = compare.timed(results.study("throughput").rows, "best")
    rows = rows[(rows["model"] == "mixtral") & (rows["dtype"] == "bf16") & (rows["implementation"] == "paper_fused")]
    panel = drawn["throughput"].axes[0]
    assert panel.get_title() == "Mixtral-8x7B, bf16"
    line = next(line for line in panel.lines if line.get_label() == style.look("paper_fused").label)
    assert list(line.get_ydata()) == list(rows.sort_values("tokens")["tokens_per_s"])


def test_missing_points_are_marked_and_their_reasons_printed(drawn, results):
    missing = compare.missing(results.study("throughput").rows)
    crosses = sum(line.get_marker() == "x" for axes in drawn["throughput"].axes for line in axes.lines)
    assert crosses == len(missing.groupby(["model", "dtype", "implementation"]))
    printed = " ".join(" ".join(text.get_text() for text in drawn["throughput"].texts).split())
    for status, reason in missing[["status", "reason"]].drop_duplicates().itertuples(index=False):
        assert f"{status} at" in printed
        assert reason in printed


def test_marks_of_missing_points_lie_under_all_data(drawn):
    for panel in drawn["throughput"].axes:
        marked = [line.get_ydata()[0] for line in panel.lines if line.get_marker() == "x"]
        values = [y for line in panel.lines if line.get_transform() == panel.transData for y in line.get_ydata()]
        bottom = min(panel.transAxes.inverted().transform(panel.transData.transform((1, y)))[1] for y in values)
        assert all(height < bottom for height in marked)


def test_map_prints_each_ratio_and_hatches_what_is_missing(drawn, results):
    rows = results.study("skew").rows
    pairs = compare.to_best(compare.ratios(rows, "paper_fused", compare.family(rows, "megablocks"), "eager"))
    pairs = pairs[pairs["tokens"] == 512]
    panel = drawn["skew_map"].axes[5]
    printed = sorted(text.get_text() for text in panel.texts)
    assert printed == sorted(f"{ratio:.2f}" for ratio in pairs["ratio"])
    cells = rows.loc[rows["tokens"] == 512, "case_hash"].nunique()
    hatched = [patch for patch in panel.patches if patch.get_hatch()]
    assert len(printed) + len(hatched) == cells
    assert hatched


def test_published_points_and_band_are_on_the_ratio_figure(drawn):
    points = ratios("vs_megablocks", "megablocks", "triton_fused")
    points = points[(points["model"] == "mixtral") & (points["tokens"] <= 512)]
    stars = [line for line in drawn["ratio_to_megablocks"].axes[0].lines if line.get_marker() == "*"]
    assert list(stars[0].get_ydata()) == list(points["ratio"])
    assert "the paper's claim" in legend_labels(drawn["ratio_to_megablocks"])


def test_eager_and_best_ratios_differ(drawn):
    eager, best = (drawn["ratio_to_megablocks"].axes[index] for index in (0, 5))
    assert eager.get_ylabel() != best.get_ylabel()
    assert [list(line.get_ydata()) for line in eager.lines] != [list(line.get_ydata()) for line in best.lines]


def test_headline_rings_the_best_peer_and_states_the_geometric_mean(drawn, results):
    rows = results.study("headline").rows
    best = headline_data.against_best(rows, headline_data.peers(rows))
    assert {"stream", "fast", "paper_fused_graph"}.isdisjoint(headline_data.peers(rows))
    here = best[(best["model"] == "mixtral") & (best["skew"] == 0)].sort_values("tokens")
    panel = drawn["headline"].axes[0]
    rings = [line for line in panel.lines if line.get_fillstyle() and line.get_markersize() == against_field.RING["ms"]]
    assert [list(line.get_ydata()) for line in rings] == [list(here["ratio"])]
    assert [text.get_text() for text in panel.texts if "." in text.get_text()] == [f"{r:.2f}" for r in here["ratio"]]
    printed = " ".join(" ".join(text.get_text() for text in drawn["headline"].texts).split())
    product = 1.0
    for ratio in best["ratio"]:
        product *= ratio
    assert f"fast runs at {product ** (1 / len(best)):.2f}x the speed" in printed
    assert f"At {len(best)} points" in printed


def test_packed_weights_have_panels_of_their_own(drawn, results):
    rows = results.study("quant").rows
    rows = rows[rows["quant"] == "fp8_block"]
    best = headline_data.against_best(rows, headline_data.peers(rows))
    panels = drawn["quant"].axes
    assert [panel.get_title().splitlines()[1] for panel in panels] == [
        "uniform routing, fp8_block", "Zipf 1.2, fp8_block",
    ]  # fmt: skip
    for panel, skew in zip(panels, (0.0, 1.2)):
        here = best[best["skew"] == skew].sort_values("tokens")
        rings = [line for line in panel.lines if line.get_markersize() == against_field.RING["ms"]]
        assert [list(line.get_ydata()) for line in rings] == [list(here["ratio"])]


def test_stages_stand_beside_the_published_ones(drawn, results):
    panel = drawn["stage_breakdown"].axes[0]
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels[:2] == ["A100: unfused, fp16", "A100: fused, fp16"]
    assert len(labels) == 2 + 3 * 2  # three pipelines, two dtypes
    widths = sum(bar.get_width() for bar in panel.patches if round(bar.get_y() + bar.get_height() / 2) == 0)
    assert widths == pytest.approx(1)


def test_portability_says_what_fails_where(drawn, results):
    rows = pd.read_csv(results.root / "portability.csv", keep_default_na=False)
    panel = drawn["portability"].axes[0]
    assert len(panel.get_xticklabels()) == rows["target"].nunique()
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "paper: grouped_gemm", "fast: down", "fast: top_k",
    ]  # fmt: skip
    printed = [text.get_text() for text in panel.texts]
    assert len(printed) == len(rows)
    assert [text for text in printed if "spill" in text] == ["1 spill\n1; 64 KiB; 128"]
    assert sum(bool(patch.get_hatch()) for patch in panel.patches) == (rows["status"] != "ok").sum()
