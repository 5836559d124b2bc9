"""Text is UTF-8 whatever the locale, and names are text whatever they look like."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tritonmoe_bench.experiments.measure.measurement import kinds
from tritonmoe_bench.experiments.table import store

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("baselines", "conf", "experiments", "kernels", "plots", "tests")
MODE = {"open": 1, "fdopen": 1, "TemporaryFile": 0, "NamedTemporaryFile": 0}
"""Where each of these takes its mode."""


def opened_by_the_locale(tree: ast.AST) -> list[int]:
    """Lines of the calls that read or write text in the encoding of the locale."""
    lines = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in named:
            continue
        if name in ("read_text", "write_text") or isinstance(named.get("text"), ast.Constant):
            lines.append(call.lineno)
        if name in MODE:
            method = name == "open" and isinstance(call.func, ast.Attribute)
            place = 0 if method else MODE[name]
            mode = named.get("mode", call.args[place] if len(call.args) > place else None)
            text = mode.value if isinstance(mode, ast.Constant) else None
            if isinstance(text, str) and "b" not in text and set(text) <= set("rwax+t"):
                lines.append(call.lineno)
            if mode is None and name in ("open", "fdopen") and not method:
                lines.append(call.lineno)
    return lines


@pytest.mark.parametrize(
    "code",
    ["path.read_text()", "open(path)", "open(path, 'w')", "path.open('a')", "run(c, text=True)", "TemporaryFile('w+')"],
)
def test_the_search_finds(code):
    assert opened_by_the_locale(ast.parse(code)) == [1]


@pytest.mark.parametrize("code", ["open(path, 'rb')", "Image.open(path)", "path.read_text(encoding='utf-8')"])
def test_the_search_leaves(code):
    assert opened_by_the_locale(ast.parse(code)) == []


def test_every_text_file_and_pipe_names_its_encoding():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    found = {path: opened_by_the_locale(ast.parse(path.read_text(encoding="utf-8"))) for path in files}
    assert {str(path.relative_to(ROOT)): lines for path, lines in found.items() if lines} == {}


@pytest.fixture
def latin(tmp_path) -> dict[str, str]:
    """An environment whose locale is not UTF-8."""
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / "de_DE")], capture_output=True
    )
    if not made or not (tmp_path / "de_DE").is_dir():
        pytest.skip("this machine cannot make a locale")
    return {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": "de_DE", "PYTHONUTF8": "0"}


def command(file, *arguments, environment):
    return subprocess.run([sys.executable, str(ROOT / file), *arguments], capture_output=True, env=environment)


def test_choose_answers_under_a_locale_that_is_not_utf_8(latin):
    encoding = subprocess.run(
        [sys.executable, "-c", "import locale; print(locale.getpreferredencoding(False))"],
        capture_output=True,
        encoding="ascii",
        env=latin,
    )
    assert encoding.stdout.strip() == "ISO-8859-1"
    done = command("experiments/choose.py", "model=mixtral", "tokens=32", environment=latin)
    assert done.returncode == 0, done.stderr
    assert " µs, " in done.stdout.decode("iso-8859-1")


def test_a_report_is_written_whole_under_a_locale_that_is_not_utf_8(latin, tmp_path):
    written = []
    for name, environment in (("latin", latin), ("usual", os.environ)):
        folder = tmp_path / name / "results"
        for study in ("headline", "fusion"):
            for ending in ("csv", "json"):
                (folder / "nvidia-h200").mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / "results" / "nvidia-h200" / f"{study}.{ending}", folder / "nvidia-h200")
        arguments = [f"results={folder}", f"readme={tmp_path / name}/README.md"]
        done = command("experiments/report.py", *arguments, environment=environment)
        assert done.returncode == 0, done.stderr
        written.append((folder / "REPORT.md").read_text(encoding="utf-8"))
    assert written[0] == written[1]
    assert "–" in written[0]
    assert len(written[0]) > 20000


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path):
    file = tmp_path / "REPORT.md"
    store.write_whole(file, "before")
    with pytest.raises(UnicodeEncodeError):
        store.write_whole(file, "half \udc80")
    assert file.read_text(encoding="utf-8") == "before"


@pytest.mark.parametrize("name", ["4.5", "NA", "007", "null", "1e3", "true"])
def test_a_model_may_have_any_name(name, tmp_path):
    assert "layer" in kinds()  # which makes its columns known to the store, as each command does
    rows = pd.read_csv(ROOT / "results" / "nvidia-h200" / "headline.csv", dtype="string")
    rows = rows[rows["model"] == "mixtral"].assign(model=name)
    folder = tmp_path / "results" / "nvidia-h200"
    folder.mkdir(parents=True)
    rows.to_csv(folder / "headline.csv", index=False)
    assert set(store.read(folder / "headline.csv")["model"]) == {name}
    if name in ("4.5", "NA", "007"):
        done = command(
            "plots/draw.py", f"results={tmp_path}/results", f"out={tmp_path}/figures", "only=headline", "dpi=40",
            environment=os.environ,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer = command(
            "experiments/choose.py", f"results={tmp_path}/results", f"model={name}", "tokens=32", environment=os.environ
        )
        assert answer.stdout.decode().startswith(f"{name} (8 experts, top-2"), answer.stderr
