"""The three Megablocks adapters and the tool that builds them; what was built runs in processes of its own."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny_layer
import torch

from tritonmoe_bench.baselines import megablocks
from tritonmoe_bench.baselines.install import trees
from tritonmoe_bench.experiments.workload.case import Case

ROOT = Path(__file__).resolve().parents[2]
PROCESS = Path(__file__).with_name("megablocks_process.py")
FOLDER = ROOT / "baselines" / "builds" / "megablocks"
PATCHES = sorted((FOLDER / "patches").glob("*.patch"))
ADAPTERS = (megablocks.MegablocksSparse(), megablocks.MegablocksGroupedCublas(), megablocks.MegablocksGroupedCutlass())
SPARSE, CUBLAS, CUTLASS = ADAPTERS
RECORD = {"packages": {"megablocks": "0.10.0"}, "python": "3.9", "torch": "2.0.0+cu99", "arch": "8.0;9.0+PTX"}
build = tiny_layer.load(FOLDER / "build.py")
case = partial(tiny_layer.case, hidden_dim=128, ffn_dim=256)


@pytest.fixture
def installed(monkeypatch):
    """As if Megablocks could be imported here."""
    monkeypatch.setattr(megablocks, "_problem", lambda mlp_impl, backend: "")


@pytest.fixture
def built(monkeypatch, tmp_path):
    """A .megablocks that was built for another Python and torch."""
    for name in ("common", "grouped_cublas", "grouped_cutlass"):
        (tmp_path / name).mkdir()
    (tmp_path / "BUILD.json").write_text(json.dumps(RECORD), encoding="utf-8")
    monkeypatch.setattr(megablocks, "FOLDER", tmp_path)
    return tmp_path


# The adapters, with nothing built.


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_unavailable_says_why_and_what_to_type(adapter, monkeypatch, tmp_path):
    monkeypatch.setattr(megablocks, "FOLDER", tmp_path)
    monkeypatch.setitem(sys.modules, "stk", None)
    megablocks._problem.cache_clear()
    check = adapter.check(case())
    megablocks._problem.cache_clear()
    assert check.status.value == "unavailable"
    assert check.reason == "ModuleNotFoundError: import of stk halted; None in sys.modules: make megablocks"
    assert adapter.search_path() == []


def test_unavailable_names_the_python_it_was_built_for(built, monkeypatch):
    monkeypatch.setitem(sys.modules, "stk", None)
    megablocks._problem.cache_clear()
    reason = SPARSE.check(case()).reason
    megablocks._problem.cache_clear()
    assert f"(built for Python 3.9, torch 2.0.0+cu99; this is {sys.version_info[0]}.{sys.version_info[1]}, " in reason


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_gating_is_softmax_before_top_k(adapter):
    assert adapter.check(case()).status.value == "ok"
    assert adapter.check(case(gating="softmax_renorm")).status.value == "ok"
    for gating in ("sigmoid", "sigmoid_renorm", "kimi_k2"):
        check = adapter.check(case(gating=gating))
        assert check.status.value == "unsupported"
        assert f"gating={gating}" in check.reason


@pytest.mark.usefixtures("installed")
def test_dtypes_and_shapes():
    assert SPARSE.check(case(dtype="fp16")).status.value == "ok"
    for adapter in (CUBLAS, CUTLASS):
        check = adapter.check(case(dtype="fp16"))
        assert (check.status.value, "bf16 only" in check.reason) == ("unsupported", True)
    for fields in ({"ffn_dim": 192}, {"hidden_dim": 2880}):
        check = SPARSE.check(case(**fields))
        assert (check.status.value, "multiples of 128" in check.reason) == ("unsupported", True)
        assert CUTLASS.check(case(**fields)).status.value == "ok"
    assert CUTLASS.check(case(ffn_dim=260)).status.value == "unsupported"
    assert CUBLAS.check(case(ffn_dim=260)).status.value == "ok"
    assert "int16" in SPARSE.check(case(num_experts=128, ffn_dim=128 * 256)).reason


@pytest.mark.usefixtures("built")
def test_search_path_and_version():
    assert [folder.name for folder in SPARSE.search_path()] == ["common"]
    assert [folder.name for folder in CUTLASS.search_path()] == ["grouped_cutlass", "common"]
    assert CUBLAS.version() == "0.10.0"


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(("capability", "serves"), [((9, 0), True), ((8, 9), True), ((10, 0), False), ((7, 5), False)])
def test_machine_code_serves_its_own_generation(capability, serves):
    assert (trees.wrong_gpu(megablocks.FOLDER, capability, "make") == "") is serves


def test_backend_is_told_by_its_kernels(tmp_path):
    library = tmp_path / "grouped_gemm_backend.so"
    library.write_bytes(b"\x7fELF _ZN7cutlass4gemm6kernel11GemmGroupedI")
    assert megablocks.grouped_gemm_kind(library) == "cutlass"
    library.write_bytes(b"\x7fELF cublasGemmEx")
    assert megablocks.grouped_gemm_kind(library) == "cublas"


# The build tool.


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.stem)
def test_patch_says_why_and_belongs_to_a_package(path):
    why = path.read_text(encoding="utf-8").split("\n--- ")[0]
    assert why.startswith("Why: ")
    assert len(why.split()) > 20
    assert any(path.name.startswith(f"{name}-{version}-") for name, version in build.VERSIONS.items())


DIFF = "Why: a test\n\n--- a/one.txt\n+++ b/one.txt\n@@ -1,4 +1,5 @@\n one\n two\n-three\n+drei\n+vier\n five\n"


@pytest.mark.parametrize("inside_of_a_repository", [False, True])
def test_patch_applies_or_is_an_error(inside_of_a_repository, tmp_path):
    if inside_of_a_repository:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    patch, source = tmp_path / "one.patch", tmp_path / "package-1.0"
    source.mkdir()
    file = source / "one.txt"
    patch.write_text(DIFF, encoding="utf-8")
    file.write_text("one\ntwo\nthree\nfive\n", encoding="utf-8")
    build.apply_patch(patch, source)
    assert file.read_text(encoding="utf-8") == "one\ntwo\ndrei\nvier\nfive\n"
    with pytest.raises(build.BuildError, match=r"one\.patch does not apply to package-1\.0: .*one\.txt"):
        build.apply_patch(patch, source)
    file.unlink()
    with pytest.raises(build.BuildError, match=r"one\.txt: No such file"):
        build.apply_patch(patch, source)


@pytest.mark.parametrize("text", ["Why: nothing\n", DIFF.split("@@")[0]])
def test_what_is_no_diff_is_an_error(text, tmp_path):
    (tmp_path / "no.patch").write_text(text, encoding="utf-8")
    with pytest.raises(build.BuildError, match=r"no\.patch does not apply"):
        build.apply_patch(tmp_path / "no.patch", tmp_path)


def test_no_git_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="cannot run git, which applies the patches"):
        build.apply_patch(tmp_path / "one.patch", tmp_path)


def fake_nvcc(folder: Path, release: str) -> Path:
    """A CUDA toolkit whose nvcc only says its release."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.88'\n", encoding="utf-8")
    nvcc.chmod(0o755)
    return folder


def test_no_nvcc_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"no nvcc \(looked in CUDA_HOME\): install the CUDA 13\.0 toolkit"):
        build.cuda_toolkit("13.0")


def test_wrong_cuda_major_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path, "12.4")))
    with pytest.raises(build.BuildError, match=r"is CUDA 12\.4, but torch was built for CUDA 13\.0"):
        build.cuda_toolkit("13.0")
    assert build.cuda_toolkit("12.8") == tmp_path


def test_missing_headers_come_from_pip_packages_or_are_an_error(monkeypatch, tmp_path):
    monkeypatch.delenv("CPLUS_INCLUDE_PATH", raising=False)
    toolkit, pip = tmp_path / "toolkit", tmp_path / "nvidia"
    (toolkit / "include").mkdir(parents=True)
    pip.mkdir()
    with pytest.raises(build.BuildError, match=r"cublas_v2\.h, cusparse\.h, cusolverDn\.h neither in"):
        build.compiler_environment(toolkit, [str(pip)], "9.0")
    for name in build.HEADERS:
        (pip / name).touch()
    assert build.compiler_environment(toolkit, [str(pip)], "9.0")["CPLUS_INCLUDE_PATH"] == str(pip)


def test_torch_without_cuda_or_no_python_is_one_line(tmp_path, capsys):
    assert build.main(["--python", str(tmp_path / "python"), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"megablocks: cannot run {tmp_path / 'python'}: No such file or directory\n"
    if torch.version.cuda is None:
        assert build.main(["--out", str(tmp_path)]) == 1
        assert "is a build without CUDA" in capsys.readouterr().err


def test_same_build_again_does_nothing(monkeypatch, tmp_path, capsys):
    facts = {"python": "3.12", "executable": "/x/python", "torch": "2.11.0+cu130", "cuda": "13.0", "arch": None}
    monkeypatch.setattr(build, "probe", lambda python: {**facts, "includes": []})
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    with pytest.raises(build.BuildError, match="no nvcc"):
        build.build("python", "9.0", tmp_path)
    for name in build.FOLDERS:
        (tmp_path / name).mkdir()
    patches = {path.name: build.hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in PATCHES}
    record = {"packages": build.VERSIONS, "python": "3.12", "torch": "2.11.0+cu130", "cuda": "13.0", "arch": "9.0",
              "patches": patches}  # fmt: skip
    (tmp_path / "BUILD.json").write_text(json.dumps(record), encoding="utf-8")
    build.build("python", "9.0", tmp_path)
    assert "is up to date" in capsys.readouterr().out
    with pytest.raises(build.BuildError, match="no nvcc"):
        build.build("python", "8.0", tmp_path)


# What was built, if it was built for this Python and torch.

RECORD_HERE = trees.record(megablocks.FOLDER)
HERE = (f"{sys.version_info[0]}.{sys.version_info[1]}", torch.__version__)
needs_build = pytest.mark.skipif(
    not RECORD_HERE or (RECORD_HERE["python"], RECORD_HERE["torch"]) != HERE,
    reason="Megablocks is not built for this Python and torch: make megablocks",
)


def in_process(action: str, adapter, point: Case) -> dict:
    fields = {name: getattr(point, name) for name in point.__dataclass_fields__}
    answer = subprocess.run(
        [sys.executable, str(PROCESS), action, adapter.name, json.dumps(fields)],
        capture_output=True, encoding="utf-8", errors="replace",
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET" or action != "compile"},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout.splitlines()[-1])


@needs_build
@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_built_extensions_import(adapter):
    assert in_process("check", adapter, case()) == {"status": "ok", "reason": "", "version": "0.10.0"}


POINTS = [
    (SPARSE, case()),
    (SPARSE, case(dtype="fp16", gating="softmax_renorm", hidden_dim=256, ffn_dim=128, skew=2.0)),
    (SPARSE, case(dtype="fp16", num_experts=1, top_k=1, tokens=130)),
    (SPARSE, case(num_experts=300, hidden_dim=384, ffn_dim=128, top_k=4, tokens=3)),
    (CUBLAS, case()),
    (CUTLASS, case(gating="softmax_renorm", hidden_dim=200, ffn_dim=72, tokens=1)),
]
"""The one with 300 experts has more column blocks than an int16 times 128 can address."""


@needs_build
@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "point"), POINTS, ids=[f"{a.name}-{p.num_experts}-{p.dtype}" for a, p in POINTS])
def test_forward_agrees_with_the_reference(adapter, point):
    found = in_process("forward", adapter, point)
    assert found["shape"] == [point.tokens, point.hidden_dim]
    assert found["dtype"] == {"bf16": "torch.bfloat16", "fp16": "torch.float16"}[point.dtype]
    assert found["held"] == ["('down', 'kn')", "('gate', 'nk')", "('up', 'nk')", "router"]
    assert found["error"] <= 1.5 * found["torch_error"]


@needs_build
@pytest.mark.slow
def test_offsets_beyond_two_to_the_31():
    found = in_process("offsets", SPARSE, case())
    assert found["sdd"] < 1e-3
    assert found["dsd"] < 1e-3


@needs_build
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_kernels_compile_for_sm_90(dtype):
    found = in_process("compile", SPARSE, case(dtype=dtype, hidden_dim=3584))
    assert found["sdd"] == found["dsd"] == {"shared": 65536, "wgmma": True}
    assert not any(found[name]["wgmma"] for name in ("row_indices", "gather", "scatter"))
