"""plots/draw.py as it is run: as a file, from the CSVs alone."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import pyplot
from PIL import Image

from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.plots import draw
from tritonmoe_bench.plots.parts import files, registry

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TORCH = """
import runpy, sys
sys.argv = ["draw.py", *sys.argv[1:]]
try:
    runpy.run_path("plots/draw.py", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", sorted({"torch", "triton"} & set(sys.modules)))
"""


def test_as_a_file_figures_are_written_without_torch_or_triton(fixture_results, tmp_path):
    # conftest.py draws every figure with torch out of reach; here are one of lines, one of cells and one of bars.
    names = ("throughput", "ranking", "stages")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, f"results={fixture_results}", f"out={tmp_path}", "dpi=50",
         f"only=[{','.join(names)}]"],
        cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"
    for name in names:
        for ending in ("png", "pdf"):
            path = tmp_path / "fixture-gpu" / f"{name}.{ending}"
            assert path.stat().st_size > 5000, path
            assert str(path) in done.stdout


def test_what_cannot_be_drawn_is_skipped_in_one_line(fixture_results, tmp_path, capsys):
    (tmp_path / "results" / "fixture-gpu").mkdir(parents=True)
    shutil.copy(fixture_results / "fixture-gpu" / "energy.csv", tmp_path / "results" / "fixture-gpu")
    arguments = [f"results={tmp_path / 'results'}", f"out={tmp_path / 'out'}", "dpi=50"]
    assert draw.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    skipped = [line for line in lines if "skipped" in line]
    assert len(skipped) == len(registry.figures()) - 1
    assert any(line.startswith("skew: ") and "study=skew" in line for line in skipped)
    assert sorted(path.name for path in (tmp_path / "out" / "fixture-gpu").iterdir()) == [
        "energy.pdf", "energy.png",
    ]  # fmt: skip


def test_nothing_to_draw_is_an_error(tmp_path, capsys):
    assert draw.main([f"results={tmp_path}", f"out={tmp_path / 'out'}"]) == 1
    assert "study=... makes one" in capsys.readouterr().err
    (tmp_path / "some-gpu").mkdir()
    for device, told in (("none", "no results of device none; there are: some-gpu"), ("some-gpu", "nothing could be")):
        assert draw.main([f"results={tmp_path}", f"out={tmp_path / 'out'}", f"device={device}"]) == 1
        assert f"error: {told}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert draw.main([f"results={tmp_path / 'typo'}", "device=some-gpu"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'typo'} is no folder of results\n"


def test_the_same_rows_in_any_order_give_the_same_files(fixture_results, tmp_path, capsys):
    # Of lines, cells, bars, stems and bytes. What every figure shows of shuffled rows is in test_committed_figures.py.
    drawn = ("throughput", "ranking", "stages", "served", "traffic")
    shuffled = tmp_path / "shuffled"
    shutil.copytree(fixture_results, shuffled)
    for path in shuffled.glob("*/*.csv"):
        pd.read_csv(path, dtype="string").sample(frac=1, random_state=5).to_csv(path, index=False)
    for folder, rows in (("first", fixture_results), ("second", shuffled)):
        asked = [f"results={rows}", f"out={tmp_path / folder}", "dpi=50", f"only=[{','.join(drawn)}]"]
        assert draw.main(asked) == 0
    capsys.readouterr()
    first, second = (tmp_path / folder / "fixture-gpu" for folder in ("first", "second"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(f"{name}.{ending}" for name in drawn for ending in ("png", "pdf"))
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_png_has_a_palette_a_size_for_the_web_and_what_the_report_reads(fixture_results):
    for name in ("ranking", "skew"):  # of all, those with the most on them
        picture = registry.figures()[name]
        figure = picture.draw(Results(fixture_results, "fixture-gpu"))
        with Image.open(io.BytesIO(files.png(figure, picture, 0))) as png:
            assert png.mode == "P"
            assert png.info["Description"] == " ".join(figure.get_suptitle().split())
            assert png.info["Title"] == picture.title
            assert png.info["Source"] == ", ".join(picture.studies)
            kept = png.convert("RGB").getcolors(png.width * png.height)
        assert (255, 255, 255) in [color for _, color in kept]
        assert len(kept) <= files.COLORS
        assert len(files.png(figure, picture, 300)) <= files.MOST_BYTES
        pyplot.close(figure)


GOOD = "energy"
WHOLE = {"NAME": "'mine'", "TITLE": "''", "STUDIES": "('experts',)", "draw": "lambda results: results.no_such_thing"}


@pytest.fixture
def add_figure(tmp_path, monkeypatch):
    """Adds a module to the figures, with these in place of parts of WHOLE; none of a value None."""

    def add(module, **changes):
        folder = tmp_path / "figures"
        folder.mkdir(exist_ok=True)
        parts = {name: value for name, value in (WHOLE | changes).items() if value is not None}
        (folder / f"{module}.py").write_text(
            "".join(f"{name} = {value}\n" for name, value in parts.items()), encoding="utf-8"
        )
        package = sys.modules["tritonmoe_bench.plots"]
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        registry.scan.cache_clear()

    yield add
    monkeypatch.undo()
    registry.scan.cache_clear()


def drawn(results, out, *names):
    return draw.main([f"results={results}", f"out={out}", "dpi=50", f"only=[{','.join([GOOD, *names])}]"])


def test_no_figure_is_broken():
    assert registry.broken() == []


@pytest.mark.parametrize(
    ("module", "changes", "fault"),
    [
        ("nameless", {"NAME": None}, "a figure lacks NAME"),
        ("bare", {"TITLE": None, "draw": None}, "a figure lacks TITLE, draw"),
        ("twin", {"NAME": f"'{GOOD}'"}, f"plots/{GOOD}.py is called {GOOD} too: rename one of them"),
        ("typo", {"STUDIES": "('expert',)"}, "STUDIES has expert: allowed are adhoc, "),
        ("raising", {"NAME": "1 / 0"}, "ZeroDivisionError: division by zero"),
        ("lacking", {"NAME": "__import__('no_such_package')"}, "has no package no_such_package, which "),
    ],
)
def test_a_faulty_figure_is_named_and_the_others_are_drawn(
    module, changes, fault, add_figure, fixture_results, tmp_path, capsys
):
    add_figure(module, **changes)
    assert drawn(fixture_results, tmp_path / "out") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"error: plots/{module}.py: ")
    assert fault in lines[-1]
    assert (len(lines) > 1) == (module == "raising")  # the traceback, where it helps
    assert (tmp_path / "out" / "fixture-gpu" / f"{GOOD}.png").exists()


def test_a_draw_that_raises_shows_its_traceback_and_the_others_are_drawn(add_figure, fixture_results, tmp_path, capsys):
    add_figure("breaks")
    assert drawn(fixture_results, tmp_path / "out", "mine") == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert str(tmp_path / "figures" / "breaks.py") in error
    assert error.splitlines()[-1].startswith("error: plots/breaks.py: not drawn: AttributeError: ")
    assert (tmp_path / "out" / "fixture-gpu" / f"{GOOD}.png").exists()


def test_a_damaged_csv_costs_its_own_figures_and_is_named_in_one_line(fixture_results, tmp_path, capsys):
    shutil.copytree(fixture_results, tmp_path / "results")
    path = tmp_path / "results" / "fixture-gpu" / "skew.json"
    path.write_text("{", encoding="utf-8")
    assert drawn(tmp_path / "results", tmp_path / "out", "skew") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: plots/skew.py: not drawn: {path}: no JSON")
    assert (tmp_path / "out" / "fixture-gpu" / f"{GOOD}.png").exists()


def test_a_figure_that_cannot_be_written_is_one_line(fixture_results, tmp_path):
    command = [sys.executable, str(ROOT / "plots" / "draw.py"), f"results={fixture_results}", f"only={GOOD}"]
    (tmp_path / "file").write_text("", encoding="utf-8")
    picture = tmp_path / "full" / "fixture-gpu" / f"{GOOD}.png"
    picture.parent.mkdir(parents=True)
    picture.symlink_to("/dev/full")
    for out, path, why in (
        (tmp_path / "file", tmp_path / "file" / "fixture-gpu", "Not a directory"),
        (tmp_path / "full", picture, "No space left on device"),
    ):
        done = subprocess.run([*command, f"out={out}"], capture_output=True, encoding="utf-8", errors="replace")
        assert done.returncode == 1
        assert done.stderr == f"error: cannot write {path}: {why}\n"
