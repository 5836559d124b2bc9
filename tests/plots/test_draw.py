"""plots/draw.py as it is run: as a file, from the CSVs alone."""

import shutil
import subprocess
import sys
from pathlib import Path

from tritonmoe_bench.plots import draw, registry

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
    names = ("latency_vs_experts", "portability", "stage_breakdown")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "--results", str(fixture_results), "--out", str(tmp_path), "--dpi", "50",
         "--only", *names],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"
    for name in names:
        for ending in ("png", "pdf"):
            path = tmp_path / "fixture-gpu" / f"{name}.{ending}"
            assert path.stat().st_size > 8000, path
            assert str(path) in done.stdout


def test_what_cannot_be_drawn_is_skipped_in_one_line(fixture_results, tmp_path, capsys):
    (tmp_path / "results" / "fixture-gpu").mkdir(parents=True)
    shutil.copy(fixture_results / "fixture-gpu" / "experts.csv", tmp_path / "results" / "fixture-gpu")
    arguments = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "out"), "--dpi", "50"]
    assert draw.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    skipped = [line for line in lines if "skipped" in line]
    assert len(skipped) == len(registry.figures()) - 1
    assert any(line.startswith("skew_map: ") and "study=skew" in line for line in skipped)
    assert sorted(path.name for path in (tmp_path / "out" / "fixture-gpu").iterdir()) == [
        "latency_vs_experts.pdf", "latency_vs_experts.png",
    ]  # fmt: skip


def test_nothing_to_draw_is_an_error(tmp_path, capsys):
    assert draw.main(["--results", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "nothing to draw" in capsys.readouterr().err
    assert draw.main(["--results", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "none"]) == 1
    assert "nothing could be drawn" in capsys.readouterr().err


def test_the_same_csvs_give_the_same_files(fixture_results, tmp_path):
    for folder in ("first", "second"):
        arguments = ["--results", str(fixture_results), "--out", str(tmp_path / folder), "--dpi", "50"]
        assert draw.main([*arguments, "--only", "latency_vs_experts"]) == 0
    for ending in ("png", "pdf"):
        first, second = (
            tmp_path / folder / "fixture-gpu" / f"latency_vs_experts.{ending}" for folder in ("first", "second")
        )
        assert first.read_bytes() == second.read_bytes()
