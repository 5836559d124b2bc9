"""A system that nobody has heard of, in one new file: it is listed, run, tabled and drawn, with no other change."""

from __future__ import annotations

import colorsys
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import made_up
import make_results
import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb

from tritonmoe_bench.experiments.analysis import choose, compare
from tritonmoe_bench.experiments.analysis.names import SYSTEMS
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.implementation import registry
from tritonmoe_bench.experiments.reporting import render
from tritonmoe_bench.experiments.sweeping import summary
from tritonmoe_bench.experiments.sweeping.plan import make_plan
from tritonmoe_bench.experiments.table import store
from tritonmoe_bench.experiments.workload.arguments import read
from tritonmoe_bench.experiments.workload.config import GridConfig, StudyConfig, SweepConfig
from tritonmoe_bench.plots.parts import registry as figures
from tritonmoe_bench.plots.parts import style
from tritonmoe_bench.plots.throughput import share_of_limit

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parents[2]
NAME = "lightning_moe"
ADAPTER = f'''
from tritonmoe_bench.experiments.implementation.contract import OK, Case, Check, Forward, Implementation, Weights


class Lightning(Implementation):
    name = "{NAME}"
    family = "serving"
    source = "tests"
    needs_gpu = False

    def version(self):
        return "9.8.7"

    def check(self, case: Case) -> Check:
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        from tritonmoe_bench.experiments.workload.reference import moe_forward

        return lambda x: moe_forward(x, weights.router(), weights.expert, case.top_k, case.gate, None, x.dtype)
'''
FAULTS = {
    # file: (what stands instead of what in the adapter, the name, the reason)
    "no_method": ("    def check(self", "    def checks(self", "no_method", "Lightning lacks check()"),
    "no_family": ("    family", "    kin", "no_family", "Lightning lacks family"),
    "no_name": ("    name", "    title", "no_name", "Lightning lacks a name of its own"),
    "no_package": ("\nfrom", "\nimport made_up_package\nfrom", "no_package",
                   "No module named 'made_up_package'; if it is spelt right, import it inside check"),
    "misspelt": ("OK, Case, Check, Forward, Implementation,", "OK, Case, Check, Forward, Implementaton,", "misspelt",
                 "did you mean Implementation? an adapter begins with `from tritonmoe_bench.experiments."),
    "misplaced": ("experiments.implementation.contract", "experiment.contract", "misplaced",
                  "No module named 'tritonmoe_bench.experiment'; an adapter begins with `from tritonmoe_bench."),
    "exits": ("\n\nclass", "\nraise SystemExit(3)\nclass", "exits", "it ends the process: SystemExit: 3"),
    "hangs": ("\n\nclass", "\nimport time; time.sleep(600)\nclass", "hangs", "TimeoutError: no end after 3 s"),
    "init_exits": ("    needs_gpu", "    __init__ = lambda self: exit(4)\n    needs_gpu", "init_exits", "Exit: 4"),
    "syntax": ("family = ", "family : = ", "syntax", "SyntaxError: invalid syntax"),
    "init": ("    needs_gpu", "    __init__ = lambda self: [][0]\n    needs_gpu", "init", "IndexError: list index"),
    "twin_of_ours": (NAME, "vllm", "vllm", "Vllm has the name vllm, and so has Lightning in"),
}  # fmt: skip
RAISING = {
    "raises": ('return "9.8.7"', "raise OSError('gone')", "OSError: gone"),
    "true": ("return OK", "return True", "TypeError: check() returned True: allowed are OK"),
    "quits": ("return OK", "raise SystemExit('bye')", "it ends the process: SystemExit: bye"),
    "stalls": ("return OK", "__import__('time').sleep(600)", "TimeoutError: no end after 5 s"),
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "lightning.py").write_text(ADAPTER, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """The made-up results with rows of the new system in every study, and its family in the records."""
    root = tmp_path_factory.mktemp("results")
    folder = make_results.make_results(root)
    made_up.SYSTEMS[NAME] = (0.85, 22.0, 95.0, 0.1, 1.05, "9.8.7")
    for study, cases in (
        ("throughput", "throughput_cases"), ("headline", "headline_cases"), ("skew", "skew_cases"),
        ("experts", "expert_cases"),
    ):  # fmt: skip
        found = [row for case in getattr(made_up, cases)() for row in make_results.layer_rows(study, case, NAME)]
        store.Store(folder / f"{study}.csv", make_results.COLUMNS["layer"]).append(found)
        notes = folder / f"{study}.json"
        notes.write_text(
            json.dumps(json.loads(notes.read_text(encoding="utf-8")) | {"families": {NAME: "serving"}}),
            encoding="utf-8",
        )
    return Results(root, folder.name)


def test_it_is_listed_planned_and_run_and_its_family_recorded(adapters, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITONMOE_ADAPTERS", str(adapters))
    registry.adapters.cache_clear()
    try:
        assert re.search(rf"^{NAME} +9\.8\.7 +serving +can run here$", summary.implementations_text(), re.MULTILINE)
        study = StudyConfig(name="adhoc", grids=[GridConfig(models=["tiny"], tokens=[1])])
        assert NAME in make_plan(SweepConfig(study=study), list(registry.implementations())).implementations
    finally:
        registry.adapters.cache_clear()
    command = [
        sys.executable, str(ROOT / "experiments" / "sweep.py"), "model=tiny", "tokens=1", "modes=[eager]",
        f"implementations=[{NAME}]", f"results={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=os.environ, timeout=240)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*/adhoc.csv")
    rows = store.read(path).set_index("implementation")
    assert rows.loc[NAME, "status"] == "ok"
    assert rows.loc[NAME, "implementation_version"] == "9.8.7"
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["families"] == {
        "stream": "limit",
        NAME: "serving",
    }


@pytest.fixture
def faulty(tmp_path, monkeypatch) -> Path:
    """A folder with a sound adapter and one of each fault."""
    (tmp_path / "lightning.py").write_text(ADAPTER, encoding="utf-8")
    for file, (old, new, *_) in (FAULTS | RAISING).items():
        (tmp_path / f"{file}.py").write_text(ADAPTER.replace(old, new).replace(NAME, file), encoding="utf-8")
    monkeypatch.setenv("TRITONMOE_ADAPTERS", str(tmp_path))
    monkeypatch.setattr(registry, "IMPORT_LIMIT_S", 3.0)
    monkeypatch.setattr(summary, "ASK_LIMIT_S", 5.0)
    registry.adapters.cache_clear()
    yield tmp_path
    registry.adapters.cache_clear()


def test_a_faulty_file_costs_its_own_adapter_alone_and_is_listed_with_the_reason(faulty):
    lines = summary.implementations_text().splitlines()
    listed = {line.split()[0] for line in lines if not line.startswith("broken: ")}
    told = [line for line in lines if line.startswith("broken: ")]
    assert {NAME, "stream", "fast", "vllm_tuned"} <= listed
    assert not listed & {"vllm", *FAULTS, *RAISING}
    assert len(told) == len(FAULTS) + len(RAISING)
    for file, (*_, reason) in (FAULTS | RAISING).items():
        [line] = [line for line in told if f"/{file}.py" in line]
        assert reason in line
    assert NAME in registry.implementations()


def test_a_broken_adapter_asked_for_by_name_is_one_line_with_file_and_reason(faulty):
    for file, (_, _, name, reason) in FAULTS.items():
        with pytest.raises(ValueError, match=re.escape(reason)) as error:
            registry.get(name)
        assert f"{faulty / file}.py" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=f"implementation 'nowhere': allowed are .*{NAME}"):
        registry.get("nowhere")


def test_two_files_with_one_name_are_both_named(faulty):
    with pytest.raises(ValueError, match=r"baselines/vllm\.py: Vllm has the name vllm, .* in .*twin_of_ours\.py"):
        registry.get("vllm")


def test_a_folder_of_adapters_that_is_none_is_told(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("TRITONMOE_ADAPTERS", f"{tmp_path}/nowhere:{tmp_path}/empty")
    registry.adapters.cache_clear()
    try:
        told = [fault for _, fault in registry.broken()]
        assert f"TRITONMOE_ADAPTERS: {tmp_path}/nowhere is no folder" in told
        assert f"TRITONMOE_ADAPTERS: {tmp_path}/empty has no *.py file" in told
        assert "fast" in registry.implementations()
    finally:
        registry.adapters.cache_clear()


def test_a_system_is_found_without_waiting_for_one_that_hangs(faulty):
    began = time.monotonic()
    assert registry.get(NAME).version() == "9.8.7"
    assert registry.get("fast").name == "fast"
    assert time.monotonic() - began < 3


def test_other_commands_run_with_the_good_ones(faulty):
    for slow in ("hangs", "stalls"):  # a process of its own has its own limit, which is longer
        (faulty / f"{slow}.py").unlink()
    command = [sys.executable, str(ROOT / "experiments" / "sweep.py"), "model=tiny", "tokens=1", "dry_run=true"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=os.environ)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("  implementations: ")]
    assert {NAME, "stream", "fast"} <= set(line.removeprefix("  implementations: ").split(", "))
    assert not set(line.split(", ")) & set(FAULTS)
    done = subprocess.run(
        [*command, "implementations=[no_method]"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: implementations=no_method: [^\n]+no_method\.py: [^\n]+\n", done.stderr)


def test_what_is_broken_is_told_by_a_sweep_and_ends_a_strict_one(faulty):
    (faulty / "hangs.py").unlink()
    command = [sys.executable, str(ROOT / "experiments" / "sweep.py"), "model=tiny", "tokens=1", "dry_run=true"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=os.environ)
    assert done.stdout.count("note: left out, as it is broken: ") == len(FAULTS) - 1
    done = subprocess.run(
        [*command, "strict=true"], capture_output=True, encoding="utf-8", errors="replace", env=os.environ
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: strict=true: [^\n]+\n", done.stderr)


def test_no_adapter_of_the_project_is_broken():
    assert registry.broken() == []


def test_it_stands_in_the_tables_of_the_report_and_in_the_answer_of_choose(results, tmp_path):
    for path in render.write_report(results.root, tmp_path / "figures", results.device, tmp_path / "no.md"):
        text = path.read_text(encoding="utf-8")
        section = text[text.rindex("Study throughput") :]
        assert re.search(rf"\b{NAME}\b", section), path
    answer = choose.answer(read(choose.Question, ["model=mixtral", "tokens=32", f"results={results.root}"]))
    assert re.search(rf"^ *{NAME} +9\.8\.7 ", answer, re.MULTILINE)


def test_it_is_drawn_in_the_hue_of_its_family(results):
    figure = figures.figures()["ranking"].draw(results)
    (handle,) = [one for legend in figure.legends for one in legend.legend_handles if one.get_label() == NAME]
    (line,) = [line for axes in figure.axes for line in axes.lines if line.get_label() == NAME]
    pyplot.close(figure)
    assert line.get_color() == handle.get_color() == style.look(NAME).color
    assert style.look(NAME).family == "serving"
    family = {colour for look in map(style.look, SYSTEMS) if look.family == "serving" for colour in [look.color]}
    assert handle.get_color() not in family
    hues = [colorsys.rgb_to_hls(*to_rgb(colour))[0] for colour in (style.look("vllm").color, handle.get_color())]
    assert abs(hues[0] - hues[1]) < 0.02
    listed = {(look.marker, look.linestyle) for look in map(style.look, SYSTEMS)}
    assert (style.look(NAME).marker, style.look(NAME).linestyle) not in listed


@pytest.mark.parametrize("name", ["throughput", "skew"])
def test_it_is_a_line_of_the_figures_across_systems(results, name):
    """Thin, as it is one of many; and it may be the best serving engine somewhere."""
    study = results.study(name).rows
    mine = share_of_limit(compare.timed(compare.plain(study[study["implementation"] == NAME]), "best"))
    figure = figures.figures()[name].draw(results)
    pyplot.close(figure)
    drawn = [list(line.get_ydata()) for axes in figure.axes for line in axes.lines if line.get_color() == style.GREY]
    key, across = (["model"], "tokens") if name == "throughput" else (["num_experts", "tokens"], "skew")
    expected = [list(rows.sort_values(across)["share"]) for _, rows in mine.groupby(key)]
    assert any(values in drawn for values in expected)


def test_it_is_ranked_on_the_map(results):
    figure = figures.figures()["ranking"].draw(results)
    pyplot.close(figure)
    assert NAME in [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_thirty_systems_look_different():
    names = [f"new_system_{index}" for index in range(6)]
    looks = [style.look(name) for name in [*SYSTEMS, *names]]
    assert len({look.color for look in looks}) == len(looks)
    combined = {(look.marker, look.linestyle) for look in looks}
    assert len(combined) == len(looks)


def test_a_run_before_families_were_recorded_goes_by_the_name():
    assert style.look("vllm_next").family == "serving"
    assert style.look("paper_next").family == "paper"
    assert style.look("unheard_of").family == "unheard"


def test_the_map_holds_the_ratios_of_the_rows(results):
    rows = pd.read_csv(results.path("headline"))
    picture = figures.figures()["ranking"].draw(results)
    panel = picture.axes[0]
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels[0] == style.look("stream").label
    best = rows[rows["status"] == "ok"].groupby(["case_hash", "model", "tokens", "implementation"])["p50_us"].min()
    best = best.unstack()
    ratios = best.div(best.drop(columns="stream").min(axis=1), axis=0)
    ratios = np.exp(np.log(ratios).groupby(["model", "tokens"]).mean())  # over the skews
    for name in ("fast", NAME, "megablocks_sparse"):
        row = labels.index(style.look(name).label)
        printed = sorted(float(text.get_text()) for text in panel.texts if text.get_position()[1] == row
                         and re.fullmatch(r"[\d.]+", text.get_text()))  # fmt: skip
        assert printed == pytest.approx(sorted(ratios[name].dropna()), abs=0.006, rel=0.05)
    picture.draw_without_rendering()
    edge, renderer = picture.bbox, picture.canvas.get_renderer()
    for text in [*panel.texts, *panel.get_yticklabels(), *picture.texts]:
        box = text.get_window_extent(renderer)
        assert edge.x0 <= box.x0 < box.x1 <= edge.x1, text
        assert edge.y0 <= box.y0 < box.y1 <= edge.y1, text
        assert text.get_fontsize() >= (style.SMALL_PT if ".csv, run " in text.get_text() else style.FONT_PT)
    pyplot.close(picture)
