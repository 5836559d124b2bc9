"""The tool that makes .peers/sglang out of wheels."""

import json
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
from tiny_layer import load

BUILD = Path(__file__).resolve().parents[2] / "baselines" / "builds" / "offline"


@pytest.fixture
def prune(monkeypatch):
    monkeypatch.syspath_prepend(str(BUILD))
    return load(BUILD / "prune_sglang.py")


def wheels(folder: Path, prune: types.ModuleType, without: str = "") -> Path:
    """Wheels that hold the kept files with an import of something left out, and a file that is not kept."""
    for name, version in prune.VERSIONS.items():
        with zipfile.ZipFile(folder / f"{name}-{version}-cp312-none-any.whl", "w") as archive:
            archive.writestr(f"{name}-{version}.dist-info/METADATA", name)
            if name == "sglang":
                for file in prune.FILES:
                    if file != without:
                        archive.writestr(file, "import zmq_of_the_test\nfrom sglang.srt.gone.module import NAME\n")
                archive.writestr("sglang/srt/server_args.py", "")
                archive.writestr("sglang/kernels/ops/moe/__init__.py", "")
            if name == "sglang_kernel":
                archive.writestr("sgl_kernel/__init__.py", "")
                for library in prune.libraries("all"):
                    archive.writestr(library, "library")
    return folder


def test_pruned_tree_holds_what_is_listed_unchanged(prune, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(prune, "library", lambda data, arch: data + arch.encode())
    out = tmp_path / "out"
    assert prune.main(["--wheels", str(wheels(tmp_path, prune)), "--out", str(out)]) == 0
    assert "SGLang 0.5.17 for compute capability 9.0" in capsys.readouterr().out
    assert (out / "sglang/srt/environ.py").read_text(encoding="utf-8").startswith("import zmq_of_the_test")
    assert not (out / "sglang/srt/server_args.py").exists()
    assert (out / "sglang/kernels/ops/moe/__init__.py").exists()
    assert (out / "sgl_kernel/sm90/common_ops.abi3.so").read_bytes() == b"library9.0"
    assert not (out / "sgl_kernel/sm100").exists()
    assert json.loads((out / "BUILD.json").read_text(encoding="utf-8"))["sglang_kernel"] == "0.4.5"
    assert prune.libraries("8.0") == ("sgl_kernel/sm100/common_ops.abi3.so",)


def test_what_is_left_out_imports_inside_and_only_inside(prune, monkeypatch, tmp_path):
    monkeypatch.setattr(prune, "library", lambda data, arch: data)
    monkeypatch.setattr(prune, "ABSENT", ("sglang", "zmq_of_the_test"))
    assert prune.main(["--wheels", str(wheels(tmp_path, prune)), "--out", str(tmp_path / "out")]) == 0
    code = """
import importlib.util, sys
import pruned_sglang
with pruned_sglang.importable():
    from sglang.srt import environ
assert environ.NAME is not None
try:
    environ.NAME()
except ImportError as error:
    assert "sglang.srt.gone.module.NAME" in str(error)
else:
    raise SystemExit("a name that was left out could be used")
assert importlib.util.find_spec("zmq_of_the_test") is None
assert "sglang.srt.gone.module" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, encoding="utf-8", errors="replace"
    )
    assert done.returncode == 0, done.stderr


def test_wheels_that_are_not_there_or_lack_a_file_are_refused(prune, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(prune, "library", lambda data, arch: data)
    assert prune.main(["--wheels", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "no sglang-0.5.17-*.whl" in capsys.readouterr().err
    folder = wheels(tmp_path, prune, without="sglang/srt/environ.py")
    assert prune.main(["--wheels", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "the wheels lack sglang/srt/environ.py" in capsys.readouterr().err
