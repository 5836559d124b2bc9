"""The figures of memory traffic: that they show the numbers of the rows, and where those rows come from."""

import shutil

import pandas as pd
import pytest
from matplotlib import pyplot

from tritonmoe_bench.experiments.analysis import compare, traffic_load
from tritonmoe_bench.experiments.analysis import results as data
from tritonmoe_bench.experiments.analysis import traffic as traffic_data
from tritonmoe_bench.experiments.traffic.measure import Traffic
from tritonmoe_bench.plots import roofline, traffic, traffic_over_compulsory, traffic_saving, traffic_where
from tritonmoe_bench.plots.parts import style

BYTES = ["read_bytes", "write_bytes", "unique_read_bytes", "unique_write_bytes"]


@pytest.fixture
def results(fixture_results, tmp_path):
    root = tmp_path / "results"
    shutil.copytree(fixture_results, root)
    yield data.Results(root, "fixture-gpu")
    pyplot.close("all")


def change(results, study, edit):
    path = results.path(study)
    frame = edit(pd.read_csv(path, dtype={"case_hash": "string"}))
    path.parent.mkdir(exist_ok=True)
    frame.to_csv(path, index=False)


def printed(figure):
    return " ".join(" ".join(text.get_text() for text in figure.texts).split())


def line_of(panel, name):
    return next(line for line in panel.lines if line.get_label() == style.look(name).label)


@pytest.fixture
def with_fast(results):
    """`results` with a model of fast on Mixtral, which moves half of what the fused pipeline does."""

    def add(frame):
        own = frame[
            (frame["method"] == "model") & (frame["implementation"] == "paper_fused") & (frame["model"] == "mixtral")
        ]
        own = own.assign(implementation="fast", **{name: own[name] / 2 for name in BYTES})
        return pd.concat([frame, own])

    change(results, "traffic", add)
    return results


def test_each_bar_states_its_change_from_the_unfused_pipeline(with_fast):
    rows = with_fast.study("traffic").rows
    mixtral = rows[(rows["model"] == "mixtral") & (rows["tokens"] == 512) & (rows["stage"] == "total")]
    panels = traffic.draw(with_fast).axes
    columns = sum(bool(panel.get_title()) for panel in panels)
    for row, (method, names) in enumerate((("counters", BYTES[:2]), ("model", BYTES[:2]), ("model", BYTES[2:]))):
        moved = mixtral[mixtral["method"] == method].set_index("implementation")[names].sum(axis=1)
        stated = [traffic.change(1 - moved[name] / moved["paper_unfused"]) for name in ("paper_fused", "fast")]
        panel = panels[row * columns]
        assert [text.get_text() for text in panel.texts] == stated
        tops = {}
        for bar in panel.patches:
            tops[round(bar.get_x(), 3)] = bar.get_y() + bar.get_height()
        unfused, fused, fast = tops.values()
        assert fused / unfused == pytest.approx(moved["paper_fused"] / moved["paper_unfused"])
        assert fast / unfused == pytest.approx(moved["fast"] / moved["paper_unfused"])


def test_a_pipeline_without_bytes_is_no_empty_bar(results):
    """The fixture has no model of fast."""
    panels = traffic.draw(results).axes
    columns = sum(bool(panel.get_title()) for panel in panels)
    assert panels[columns].texts[-1].get_text() == "none"


@pytest.mark.parametrize(
    ("saved", "words"),
    [(0.047, "\N{MINUS SIGN}4.7"), (0.5449, "\N{MINUS SIGN}54"), (-0.33, "+33"), (-0.02, "+2.0")],
)
def test_changes_in_words(saved, words):
    assert traffic.change(saved) == words


def test_without_counters_the_figure_has_no_row_of_them(results):
    with_counters = len(traffic.draw(results).axes)
    change(results, "traffic", lambda frame: frame[frame["method"] != "counters"])
    figure = traffic.draw(results)
    assert len(figure.axes) == with_counters * 3 // 4
    assert not any("DRAM" in panel.get_ylabel() for panel in figure.axes)


def test_counters_alone_are_drawn(results):
    change(results, "traffic", lambda frame: frame[frame["method"] == "counters"])
    panels = traffic.draw(results).axes
    assert panels[0].texts[0].get_text().startswith("\N{MINUS SIGN}")
    assert panels[3].texts[0].get_text() == "not counted"


def test_accountings_are_of_their_own_methods():
    row = {"case_hash": "c", "implementation": "paper_fused", "stage": "total", "tensor": "all", "status": "ok"}
    sizes = {"read_bytes": 6.0, "write_bytes": 1.0, "unique_read_bytes": 3.0, "unique_write_bytes": 1.0}
    counted = pd.DataFrame([row | sizes | {"method": "counters", "unique_read_bytes": None}])
    modelled = pd.DataFrame([row | sizes | {"method": "model"}])
    assert traffic_data.grouped(counted, "dram").to_dict() == {"all": 7.0}
    assert traffic_data.grouped(modelled, "issued").to_dict() == {"all": 7.0}
    assert traffic_data.grouped(modelled, "unique").to_dict() == {"all": 4.0}
    for rows, accounting in ((counted, "issued"), (counted, "unique"), (modelled, "dram"), (modelled, "activations")):
        assert traffic_data.grouped(rows, accounting).empty


def test_what_needs_no_gpu_comes_from_the_interpreters_rows(results):
    """A device with counters alone, and the other methods in the interpreter's folder."""
    whole = traffic_load.load(results).rows
    device, interpreter = results.path("traffic"), results.root / "interpreter" / "traffic.csv"
    interpreter.parent.mkdir()
    frame = pd.read_csv(device, dtype=str)
    frame[frame["method"] != "counters"].assign(run_id="OTHER").to_csv(interpreter, index=False)
    frame = frame[frame["method"] == "counters"]
    tiny = pd.read_csv(interpreter, dtype=str)
    tiny = tiny[(tiny["method"] == "interpreter") & (tiny["stage"] == "total")]
    off = tiny.assign(run_id="SYNTHETIC-traffic", status="unavailable", reason="it is off", read_bytes="")
    pd.concat([frame, off]).to_csv(device, index=False)
    loaded = traffic_load.load(results)
    assert [study.rows["run_id"].iloc[0] for study in loaded.studies] == ["SYNTHETIC-traffic", "OTHER"]
    key = list(Traffic.key)
    assert not loaded.rows.duplicated(key).any()
    assert set(map(tuple, loaded.rows[key].astype(str).values)) == set(map(tuple, whole[key].astype(str).values))
    assert (loaded.rows["status"] == "ok").sum() == (whole["status"] == "ok").sum()
    caption = printed(traffic.draw(results))
    assert "SYNTHETIC-traffic" in caption.replace("- ", "-")
    assert "run OTHER" in caption


def test_over_compulsory_shows_every_counted_system_and_marks_the_others(results):
    rows = results.study("traffic").rows
    figure = traffic_over_compulsory.draw(results)
    panel = figure.axes[0]
    fast = rows[(rows["method"] == "counters") & (rows["stage"] == "total") & (rows["model"] == "mixtral")
                & (rows["implementation"] == "fast")].sort_values("tokens")  # fmt: skip
    expected = (fast["read_bytes"] + fast["write_bytes"]) / fast["min_bytes"]
    assert list(line_of(panel, "fast").get_ydata()) == pytest.approx(list(expected))
    assert "ERR_NVGPUCTRPERM" in printed(figure)
    every = traffic_data.totals(rows[rows["implementation"] == "fast"])
    assert f"it is at most {every.loc[every['tokens'].between(8, 512), 'over'].max():.3f}" in printed(figure)
    assert len([line for line in panel.lines if line.get_marker() == "x"]) == 2


def test_a_point_that_the_study_leaves_out_is_named_and_takes_no_room(results):
    drawn = traffic_over_compulsory.draw(results)

    def leave_out(frame):
        return frame[
            ~((frame["method"] == "counters") & (frame["implementation"] == "vllm") & (frame["tokens"] == 512))
        ]

    marks, height = [len(panel.lines) for panel in drawn.axes], drawn.axes[0].get_ylim()
    change(results, "traffic", leave_out)
    again = traffic_over_compulsory.draw(results)
    assert [len(panel.lines) for panel in again.axes] == marks
    assert again.axes[0].get_ylim() == height
    rows = results.study("traffic").rows
    left_out = rows[(rows["method"] == "counters") & (rows["tokens"] == 512)]["case_hash"].nunique()
    assert f"vLLM: not run at {left_out} points ({traffic_data.LEFT_OUT})" in printed(again)


def test_saving_by_counters_and_by_model_stand_in_panels_of_their_own(results):
    figure = traffic_saving.draw(results)
    rows = results.study("traffic").rows
    total = rows[(rows["stage"] == "total") & (rows["model"] == "mixtral")]
    for panel, method, names in (
        (figure.axes[0], "counters", ["read_bytes", "write_bytes"]),
        (figure.axes[2], "model", ["unique_read_bytes", "unique_write_bytes"]),
    ):
        moved = total[total["method"] == method].set_index(["tokens", "implementation"])[names].sum(axis=1).unstack()
        expected = (1 - moved["paper_fused"] / moved["paper_unfused"]).dropna()
        assert list(panel.lines[0].get_xdata()) == list(expected.index)
        assert list(panel.lines[0].get_ydata()) == pytest.approx(list(expected))


@pytest.mark.parametrize("weights", [True, False])
def test_the_closed_form_of_the_map_is_that_of_the_model(weights):
    from modelled import saving

    from tritonmoe_bench.experiments.traffic.rows import TILES
    from tritonmoe_bench.experiments.workload.case import Case

    case = Case("mixtral", 8, 2, 4096, 14336, tokens=4096)
    even = [case.slots // 8] * 8
    modelled = saving(case, even, TILES, "unique" if weights else "activations")
    assert traffic_where.possible_saving(even[0] / 4096, 3.5, 2, weights) == pytest.approx(modelled, abs=2e-4)


def test_tokens_needed_solve_the_closed_form():
    shape = pd.Series({"hidden_dim": 4096, "ffn_dim": 14336, "num_experts": 8, "top_k": 2})
    tokens = traffic_where.tokens_needed(0.35, shape)
    assert traffic_where.possible_saving(tokens * 2 / 8 / 4096, 3.5, 2) == pytest.approx(0.35)
    narrow = pd.Series({"hidden_dim": 7168, "ffn_dim": 2048, "num_experts": 256, "top_k": 8})
    assert traffic_where.tokens_needed(0.35, narrow) == float("inf")
    assert traffic_where.possible_saving(1e9, 2048 / 7168, 8) < 0.35


def test_roofline_places_a_system_by_its_bytes_and_its_time(results):
    rows, headline = results.study("traffic").rows, results.study("headline")
    counted = rows[(rows["method"] == "counters") & (rows["stage"] == "total") & (rows["implementation"] == "vllm")
                   & (rows["model"] == "mixtral")].set_index("case_hash")  # fmt: skip
    times = compare.timed(headline.rows, "best")
    times = times[times["implementation"] == "vllm"].set_index("case_hash")["p50_us"]
    line = line_of(roofline.draw(results).axes[0], "vllm")
    points = dict(zip(line.get_xdata(), line.get_ydata()))
    shared = counted.index.intersection(times.index)
    assert len(points) == len(shared) == 5
    for case in shared:
        flops = counted.loc[case, "flops"]
        intensity = flops / (counted.loc[case, "read_bytes"] + counted.loc[case, "write_bytes"])
        assert points[intensity] == pytest.approx(flops / times[case] / 1e6)


def test_roofline_names_every_system_that_has_no_point(results):
    def drop(frame):
        return frame[~((frame["implementation"] == "vllm") & (frame["tokens"] == 8))]

    change(results, "traffic", drop)
    change(results, "headline", lambda frame: frame[frame["implementation"] != "torch_grouped_mm"])
    figure = roofline.draw(results)
    assert len(line_of(figure.axes[0], "vllm").get_xdata()) == 4
    caption = printed(figure)
    assert f"({traffic_data.LEFT_OUT})" in caption
    assert "timed at no point of the headline study" in caption
    assert "PyTorch grouped_mm" in caption.split("missing:")[1]


def test_the_roofs_are_those_of_the_run(results):
    stream = compare.timed(results.study("headline").rows, "best")
    stream = stream[stream["implementation"] == "stream"]
    best = max(
        row.active_experts * 3 * row.hidden_dim * row.ffn_dim * 2 / row.p50_us / 1e6 for row in stream.itertuples()
    )
    roof = roofline.draw(results).axes[0].lines[0]
    assert roof.get_ydata()[0] / roof.get_xdata()[0] == pytest.approx(best)
    assert max(roof.get_ydata()) == results.study("headline").record["matrix_tflops"]["bf16"]
    assert f"{best:.2f} TB/s" in printed(roofline.draw(results))


def test_without_measured_roofs_there_is_no_roofline(results):
    results.path("headline").with_suffix(".json").unlink()
    with pytest.raises(data.MissingStudy, match="study=headline"):
        roofline.draw(results)
