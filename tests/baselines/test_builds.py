"""What the build tools make lies where the adapters look for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_layer import load

from tritonmoe_bench.baselines import cutlass_grouped, fastmoe, megablocks, scattermoe, tritonmoe, tutel
from tritonmoe_bench.baselines.install import trees

BUILDS = Path(__file__).resolve().parents[2] / "baselines" / "builds"


@pytest.mark.parametrize(
    ("script", "folder"),
    [
        ("megablocks/build.py", megablocks.FOLDER),
        ("cutlass/build.py", cutlass_grouped.FOLDER),
        ("checkouts/build.py", trees.FOLDER),
        ("checkouts/kernels.py", trees.FOLDER),
        ("offline/prune_vllm.py", trees.FOLDER),
        ("offline/prune_sglang.py", trees.folder("sglang")),
        ("offline/prune_deepspeed.py", trees.folder("deepspeed")),
        ("offline/prune_deep_gemm.py", trees.folder("deep_gemm")),
    ],
)
def test_a_build_lands_where_its_adapter_looks(script, folder, monkeypatch):
    path = BUILDS / script
    monkeypatch.syspath_prepend(path.parent)  # as when it is run as a file
    monkeypatch.delitem(sys.modules, "build", raising=False)  # which several folders have
    assert folder == load(path).DEFAULT_OUT


def test_the_checkouts_are_those_of_the_adapters(monkeypatch):
    path = BUILDS / "checkouts" / "build.py"
    monkeypatch.syspath_prepend(path.parent)
    sources = load(path).SOURCES
    checkouts = [module.CHECKOUT for module in (scattermoe, tritonmoe, tutel, fastmoe)]
    assert {name: source.repository for name, source in sources.items()} == {c.name: c.repository for c in checkouts}
    assert all(c.package.split("/")[0] == sources[c.name].package for c in checkouts)


@pytest.fixture
def build(monkeypatch):
    """checkouts/build.py, as when it is run as a file."""
    path = BUILDS / "checkouts" / "build.py"
    monkeypatch.syspath_prepend(path.parent)
    return load(path)


def published(monkeypatch, tmp_path, files):
    """The commit of a repository with these files, of text by path, which github.com/some/thing stands for."""
    origin = tmp_path / "origin"
    for name, text in files.items():
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        (origin / name).write_text(text, encoding="utf-8")
    git = ["git", "-C", str(origin), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{origin}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/some/thing")
    return head.stdout.strip()


def test_a_checkout_is_made_at_its_commit_alone(build, monkeypatch, tmp_path):
    files = {
        "package/__init__.py": "this = 1\n",
        "tests/test_it.py": "",
        "tests/test_other.py": "",
        "reference/a.py": "",
    }
    commit = published(monkeypatch, tmp_path, files)
    out = tmp_path / "peers" / "thing"
    build.make(
        build.Source("some/thing", commit, "package", beside=("tests/test_it.py", "reference")), out, "python", "9.0"
    )
    made = sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())
    assert made == ["BUILD.json", "package/__init__.py", "reference/a.py", "tests/test_it.py"]
    build.make(build.Source("some/thing", commit, "package"), out, "python", "9.0")
    made = sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())
    assert made == ["BUILD.json", "package/__init__.py"]
    assert json.loads((out / "BUILD.json").read_text(encoding="utf-8")) == {"commit": commit}
    with pytest.raises(build.BuildError, match="git fetch"):
        build.make(build.Source("some/thing", "f" * 40, "package"), out, "python", "9.0")
    assert made == sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("library", "linked", "refusal"),
    [
        ("thing_kernel.so", "libc10.so libc10_cuda.so", ""),
        ("thing_kernel.so", "libc10.so", r"without CUDA[\s\S]*no nccl\.h"),
        ("other.so", "libc10_cuda.so", r"no thing_kernel\*\.so was built[\s\S]*no nccl\.h"),
    ],
)
def test_a_library_without_cuda_is_refused(build, monkeypatch, tmp_path, library, linked, refusal):
    setup = f'from pathlib import Path\nPath("{library}").write_text("{linked}")\nprint("no nccl.h")\n'
    commit = published(monkeypatch, tmp_path, {"package/__init__.py": "", "setup.py": setup})
    monkeypatch.setattr(build.shutil, "which", lambda name: None)  # no `strip`, which takes no such library
    source = build.Source("some/thing", commit, "package", library="thing_kernel")
    out = tmp_path / "peers" / "thing"
    out.mkdir(parents=True)
    (out / "older").touch()
    if refusal:
        with pytest.raises(build.BuildError, match=refusal):
            build.make(source, out, sys.executable, "9.0")
        assert [path.name for path in out.iterdir()] == ["older"]
    else:
        build.make(source, out, sys.executable, "9.0")
        assert (out / library).read_text(encoding="utf-8") == linked
        assert not (out / "older").exists()
