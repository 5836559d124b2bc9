"""What the figures read: one run at a time, one device, every missing point, and systems that nobody listed."""

import shutil

import pandas as pd
import pytest
from matplotlib import pyplot

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results, default_device
from tritonmoe_bench.plots.parts import registry, style


@pytest.fixture
def results(fixture_results, tmp_path):
    """A copy of the synthetic results that a test may change."""
    shutil.copytree(fixture_results, tmp_path / "results")
    return Results(tmp_path / "results", "fixture-gpu")


def change(results, study, edit):
    """Rewrites a CSV as `edit` makes it of its frame."""
    frame = pd.read_csv(results.path(study), dtype="string")
    edit(frame).to_csv(results.path(study), index=False)


def test_two_runs_are_not_mixed(results):
    def older(frame):
        old = frame[(frame["tokens"] == "32") & (frame["status"] == "ok")]
        return pd.concat([frame, old.assign(run_id="OLD", timestamp_utc="2020-01-01T00:00:00Z", p50_us="1.0")])

    before = results.study("throughput").rows
    change(results, "throughput", older)
    after = results.study("throughput").rows
    assert set(after["run_id"]) == {"SYNTHETIC-throughput"}
    assert len(after) == len(before)
    assert (after["p50_us"] != 1.0).all()


def test_ratios_stay_inside_a_run(results):
    rows = results.study("throughput").rows
    other = rows.assign(run_id="OTHER", p50_us=rows["p50_us"] * 100)
    mixed = pd.concat(
        [rows[rows["implementation"] == "paper_fused"], other[other["implementation"] == "paper_unfused"]]
    )
    assert compare.ratios(mixed, "paper_fused", ["paper_unfused"], "eager").empty
    assert len(compare.ratios(rows, "paper_fused", ["paper_unfused"], "eager"))


def test_an_unlisted_system_appears_by_itself(results):
    def add(frame):
        return pd.concat([frame, frame[frame["implementation"] == "vllm"].assign(implementation="brand_new")])

    change(results, "headline", add)
    figure = registry.figures()["ranking"].draw(results)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    lines = [line for line in figure.axes[1].lines if line.get_label() == "brand_new"]
    pyplot.close(figure)
    assert "brand_new" in labels
    assert [line.get_color() for line in lines] == [style.look("brand_new").color]


def test_the_look_of_an_unlisted_system_is_its_own():
    looks = [style.look(f"system_{index}") for index in range(6)]
    assert style.look("system_0") == looks[0]
    assert len({(look.color, look.marker, str(look.linestyle)) for look in looks}) == len(looks)
    assert names.in_order(["zzz", "torch_loop", "aaa", "stream"]) == ["stream", "torch_loop", "aaa", "zzz"]


def test_listed_systems_are_told_apart_without_colour():
    looks = [look for name, look in ((name, style.look(name)) for name in names.SYSTEMS)]
    assert len({look.color for look in looks}) == len(looks)
    assert len({(look.marker, str(look.linestyle)) for look in looks}) == len(looks)


def test_best_launch_mode_is_the_faster_one(results):
    rows = results.study("throughput").rows
    best = compare.timed(rows, "best").set_index(["case_hash", "implementation"])["p50_us"]
    every = rows[rows["status"] == "ok"].groupby(["case_hash", "implementation"])["p50_us"].min()
    pd.testing.assert_series_equal(best.sort_index(), every.sort_index())


def test_missing_points_have_status_and_reason(results):
    rows = results.study("throughput").rows
    missing = compare.missing(rows)
    done = compare.timed(rows, "best")
    assert len(missing) + len(done) == rows["case_hash"].nunique() * rows["implementation"].nunique()
    assert set(missing["status"]) == {"unsupported", "oom", "error", "incorrect", "timeout"}
    # A system that only lacks the graph has its eager time, and is not missing.
    assert "paper_fused" not in set(missing["implementation"])
    assert "paper_fused" in set(compare.missing(rows, "graph")["implementation"])


def test_a_point_without_a_row_is_missing(results):
    rows = results.study("throughput").rows
    gone = rows[rows["implementation"] == "paper_fused"].iloc[0]["case_hash"]
    cut = rows[~((rows["case_hash"] == gone) & (rows["implementation"] == "paper_fused"))]
    missing = compare.missing(cut)
    assert missing.loc[missing["implementation"] == "paper_fused", "status"].tolist() == ["not run"]


def test_a_missing_csv_names_the_study_that_makes_it(results):
    results.path("skew").unlink()
    with pytest.raises(MissingStudy, match="study=skew"):
        registry.figures()["skew"].draw(results)


def test_the_device_with_the_most_studies_is_taken_but_never_the_interpreter_before_a_gpu(results):
    root = results.root
    shutil.copytree(root / "fixture-gpu", root / "interpreter")
    shutil.copytree(root / "fixture-gpu", root / "newer-gpu")
    (root / "paper").mkdir()
    change(Results(root, "newer-gpu"), "skew", lambda frame: frame.assign(timestamp_utc="2026-02-02T00:00:00Z"))
    change(Results(root, "interpreter"), "skew", lambda frame: frame.assign(timestamp_utc="2027-02-02T00:00:00Z"))
    assert default_device(root) == "newer-gpu"
    (root / "newer-gpu" / "decode.csv").unlink()  # a part of a measurement takes no other one's place
    assert default_device(root) == "fixture-gpu"
    shutil.rmtree(root / "newer-gpu")
    assert default_device(root) == "fixture-gpu"
    shutil.rmtree(root / "fixture-gpu")
    assert default_device(root) == "interpreter"
    shutil.rmtree(root / "interpreter")
    with pytest.raises(MissingStudy):
        default_device(root)


def test_counted_bytes_of_the_interpreter_serve_every_device(results):
    (results.root / "interpreter").mkdir()
    shutil.move(results.root / "fixture-gpu" / "traffic.csv", results.root / "interpreter" / "traffic.csv")
    assert len(results.study("traffic").rows)
    with pytest.raises(MissingStudy):
        Results(results.root, "no-such-gpu").study("throughput")


@pytest.mark.parametrize("name", sorted(registry.figures()))
def test_a_study_in_which_nothing_ran_has_no_figure_but_a_line(results, name):
    """Every system but the limit failed."""

    def fail(frame):
        failed = frame["implementation"] != "stream"
        numbers = [column for column in frame if column.endswith(("_us", "_bytes", "_per_s", "samples"))]
        frame.loc[failed, numbers] = pd.NA
        return frame.assign(
            status=frame["status"].where(~failed, "error"), reason=frame["reason"].where(~failed, "it broke")
        )

    picture = registry.figures()[name]
    for study in (study for study in picture.studies if results.path(study).exists()):
        change(results, study, fail)
    with pytest.raises(MissingStudy, match="study="):
        picture.draw(results)
