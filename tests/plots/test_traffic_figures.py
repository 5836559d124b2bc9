"""The figures of memory traffic: that they show the numbers of the rows, and where those rows come from."""

import shutil

import pandas as pd
import pytest
from matplotlib import pyplot

from tritonmoe_bench.experiments.analysis import results as data
from tritonmoe_bench.experiments.analysis import traffic as traffic_data
from tritonmoe_bench.experiments.analysis import traffic_load
from tritonmoe_bench.experiments.traffic.measure import Traffic
from tritonmoe_bench.plots import traffic, traffic_accountings

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


def bytes_of(rows, names):
    """Bytes by tokens, a column a pipeline, of the rows of whole forwards of Mixtral."""
    rows = rows[(rows["stage"] == "total") & (rows["model"] == "mixtral")]
    return rows.set_index(["tokens", "implementation"])[names].sum(axis=1).unstack()


def test_what_fusing_saves_is_that_of_the_counters(results):
    rows = results.study("traffic").rows
    moved = bytes_of(rows[rows["method"] == "counters"], BYTES[:2])
    expected = (1 - moved["paper_fused"] / moved["paper_unfused"]).dropna()
    figure = traffic.draw(results)
    line = figure.axes[0].lines[0]
    assert list(line.get_xdata()) == list(expected.index)
    assert list(line.get_ydata()) == pytest.approx(list(100 * expected))
    every = traffic_data.savings(rows[rows["method"] == "counters"])
    early = every.loc[every["tokens"] <= 512, "saving"].max()
    assert f"at most {100 * early:.0f} % of DRAM traffic" in " ".join(figure.get_suptitle().split())
    assert [text.get_text() for text in figure.axes[0].texts] == ["claimed: 35 %"]


def test_a_saving_as_claimed_is_told(results):
    def less(frame):
        fused = frame["implementation"] == "paper_fused"
        return frame.assign(**{name: frame[name].where(~fused, frame[name] / 2) for name in BYTES[:2]})

    change(results, "traffic", less)
    assert "Fusing saves up to 5" in traffic.draw(results).get_suptitle()


def test_the_papers_own_code_is_the_pair_where_it_was_counted(results):
    def own(frame):
        both = frame[frame["implementation"].isin(["paper_fused", "paper_unfused"]) & (frame["method"] == "counters")]
        names = {"paper_fused": "tritonmoe", "paper_unfused": "tritonmoe_unfused"}
        return pd.concat([frame, both.assign(implementation=both["implementation"].map(names))])

    assert traffic.draw(results).get_suptitle().startswith("Fusing ")
    change(results, "traffic", own)
    assert traffic.draw(results).get_suptitle().startswith("In the paper's own code fusing ")


def test_all_bytes_stand_over_the_compulsory_ones(results):
    rows = results.study("traffic").rows
    rows = rows[(rows["method"] == "counters") & (rows["stage"] == "total") & (rows["model"] == "mixtral")]
    panel = traffic.draw(results).axes[1]
    drawn = [list(line.get_ydata()) for line in panel.lines]
    for name in ("fast", "paper_fused", "vllm"):
        mine = rows[rows["implementation"] == name].sort_values("tokens")
        assert list((mine["read_bytes"] + mine["write_bytes"]) / mine["min_bytes"]) in drawn
    assert panel.get_ylim()[0] == 0


def test_without_counters_there_is_no_figure_of_them(results):
    change(results, "traffic", lambda frame: frame[frame["method"] != "counters"])
    with pytest.raises(data.MissingStudy, match="study=counters"):
        traffic.draw(results)
    assert traffic_accountings.draw(results).axes


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
    caption = printed(traffic_accountings.draw(results))
    assert "run OTHER" in caption


def test_other_ways_of_counting_stand_in_panels_of_their_own(results):
    figure = traffic_accountings.draw(results)
    rows = results.study("traffic").rows
    rows = rows[rows["method"] == "model"]
    for panel, names in ((figure.axes[0], BYTES[:2]), (figure.axes[1], BYTES[2:])):
        moved = bytes_of(rows, names)
        expected = (1 - moved["paper_fused"] / moved["paper_unfused"]).dropna()
        assert list(panel.lines[0].get_xdata()) == list(expected.index)
        assert list(panel.lines[0].get_ydata()) == pytest.approx(list(100 * expected))


def test_bars_are_the_bytes_of_each_pipeline(results):
    rows = results.study("traffic").rows
    moved = bytes_of(rows[rows["method"] == "model"], BYTES[2:]).loc[512]
    panel = traffic_accountings.draw(results).axes[3]
    ends = {}
    for bar in panel.patches:
        ends[round(bar.get_y(), 3)] = bar.get_x() + bar.get_width()
    assert [label.get_text() for label in panel.get_yticklabels()] == ["unfused", "fused"]  # no model of fast
    assert list(ends.values()) == pytest.approx([moved["paper_unfused"] / 1e9, moved["paper_fused"] / 1e9])


def test_the_tokens_that_a_saving_needs_are_those_of_the_model():
    from modelled import saving

    from tritonmoe_bench.experiments.traffic.rows import TILES
    from tritonmoe_bench.experiments.workload.case import Case

    case = Case("mixtral", 8, 2, 4096, 14336, tokens=4096)
    modelled = saving(case, [case.slots // 8] * 8, TILES, "unique")
    shape = pd.Series({"hidden_dim": 4096, "ffn_dim": 14336, "num_experts": 8, "top_k": 2})
    assert traffic_data.tokens_needed(modelled, shape) == pytest.approx(4096, rel=2e-3)
    narrow = pd.Series({"hidden_dim": 7168, "ffn_dim": 2048, "num_experts": 256, "top_k": 8})
    assert traffic_data.tokens_needed(0.35, narrow) == float("inf")
