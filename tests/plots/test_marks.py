"""What a figure may not leave out: latencies below the limit, further models, further batch sizes."""

from pathlib import Path

import pandas as pd
import pytest
from matplotlib import pyplot

from tritonmoe_bench.experiments.analysis.results import Results, Study
from tritonmoe_bench.experiments.sweeping.overrides import planned_job
from tritonmoe_bench.plots.parts import caption, layout, registry, style

BELOW = (
    "‼ Some latencies lie below the measured limit (either the limit was timed too long there, or work was left out):"
)


@pytest.fixture
def changed(fixture_results, tmp_path):
    """A results folder with one study, as `edit` makes it of the synthetic rows."""

    def change(study, edit):
        folder = tmp_path / "fixture-gpu"
        folder.mkdir()
        rows = pd.read_csv(fixture_results / "fixture-gpu" / f"{study}.csv", dtype="string")
        edit(rows).to_csv(folder / f"{study}.csv", index=False)
        return Results(tmp_path, "fixture-gpu")

    return change


def drawn(name, results):
    figure = registry.figures()[name].draw(results)
    pyplot.close(figure)
    return figure, " ".join(" ".join(text.get_text() for text in figure.texts).split())


def too_fast(rows):
    """`fast` at 60 % of the limit on Mixtral at 32 tokens in bf16."""
    here = (rows["implementation"] == "fast") & (rows["model"] == "mixtral") & (rows["tokens"] == "32")
    here &= (rows["dtype"] == "bf16") & (rows["launch"] == "graph")
    for name in ("p50_us", "p20_us", "p80_us"):
        rows.loc[here, name] = (0.6 * rows.loc[here, "limit_us"].astype(float)).astype(str)
    return rows


def test_a_share_above_the_limit_is_inside_of_its_panel_and_marked(changed):
    figure, printed = drawn("throughput", changed("throughput", too_fast))
    panel = figure.axes[0]
    marks = [text for text in panel.texts if text.get_text() == "‼"]
    assert [(mark.xy[0], round(mark.xy[1], 3)) for mark in marks] == [(32, 1.667)]
    assert panel.get_ylim()[1] > 1.667
    assert f"{BELOW} fast (Mixtral-8x7B)." in printed


def test_the_ranking_marks_what_lies_below_the_limit(changed):
    figure, printed = drawn("ranking", changed("headline", too_fast))
    framed = [text.get_text() for axes in figure.axes for text in axes.texts if text.get_bbox_patch()]
    assert framed == ["1.00"]
    assert "framed: below the measured limit" in printed
    assert f"{BELOW} fast (Mixtral-8x7B)." in printed


def test_a_figure_without_the_limit_marks_nothing(changed):
    _, printed = drawn("headline", changed("headline", too_fast))
    assert "‼" not in printed


def test_without_such_a_latency_nothing_is_marked(fixture_results):
    for study in ("throughput", "headline", "stages", "traffic"):
        assert caption.below_text(Results(fixture_results, "fixture-gpu").study(study).rows) == ""


def test_a_caption_says_at_how_many_points_and_of_which_models_a_system_was_not_run():
    plan = planned_job(["study=granular"]).plan
    cases = [(name, case) for name in plan.implementations for case in plan.cases_of(name) if case.quant == "none"]
    pairs = [(case.case_hash, name, case.model) for name, case in cases]
    rows = pd.DataFrame(pairs, columns=["case_hash", "implementation", "model"])
    left = rows[(rows["implementation"] != "sglang") | (rows["model"] != "kimi_k2")]
    points = rows[rows["implementation"] == "sglang"]
    missing = (points["model"] == "kimi_k2").sum()
    words = caption.lacking_text(Study("granular", Path(), left, {}))
    assert words == f"Not run yet: SGLang at {missing} of {len(points)} points (Kimi-K2) in 16 bits."
    assert caption.lacking_text(Study("granular", Path(), rows, {})) == ""


def test_more_models_than_looks_are_all_drawn(changed):
    def more(rows):
        first = rows[rows["model"] == "mixtral"]
        others = [first.assign(model=f"other_{index}", case_hash=first["case_hash"] + str(index)) for index in range(4)]
        return pd.concat([rows, *others])

    figure, _ = drawn("traffic", changed("traffic", more))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {f"other_{index}" for index in range(4)} <= set(labels)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert len(lines) == len(labels) - 1  # the other entry is every other system


def test_stages_of_two_batch_sizes_are_two_bars(changed):
    def twice(rows):
        small = rows.assign(tokens="32", case_hash=rows["case_hash"] + "s", p50_us=rows["p50_us"].astype(float) / 2)
        return pd.concat([rows, small.astype("string")])

    figure, _ = drawn("stages", changed("stages", twice))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[2:4] == [f"unfused, {tokens} tokens (eager)" for tokens in (32, 512)]
    assert len(labels) == 2 + 3 * 2


def test_points_may_come_one_by_one():
    axes = pyplot.figure().subplots()
    look = style.look("vllm")
    layout.plot_line(axes, look, iter([1.0, 2.0]), iter([3.0, 4.0]))
    layout.plot_line(axes, look, iter([1.0, 2.0]), iter([3.0, 4.0]), iter([True, False]))
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 2], [1, 2], [1, 2], [2], [1]]
    pyplot.close(axes.figure)
