"""The tool that makes .peers/deep_gemm out of wheels."""

import json
import zipfile
from pathlib import Path

import pytest
from tiny_layer import load

BUILD = Path(__file__).resolve().parents[2] / "baselines" / "builds" / "offline"
HEADERS = "deep_gemm/include/"


@pytest.fixture
def prune(monkeypatch):
    monkeypatch.syspath_prepend(str(BUILD))
    return load(BUILD / "prune_deep_gemm.py")


def wheels(folder: Path, prune, without: str = "") -> Path:
    """Wheels with the kept kernels, a chain of headers that they include, and files that nothing needs."""
    contents = {
        "sgl_deep_gemm": {
            **dict.fromkeys(prune.KERNELS, "#include <deep_gemm/common/one.cuh>\n#include <cuda.h>\n"),
            f"{HEADERS}deep_gemm/common/one.cuh": '#if 0\n#  include "two.cuh"\n#endif\n// #include <unused.h>\n',
            f"{HEADERS}deep_gemm/common/two.cuh": "#include <cutlass/../cute/three.h>\n",
            f"{HEADERS}cute/three.h": "#include <deep_gemm/common/one.cuh>\n",
            f"{HEADERS}unused.h": "",
            f"{HEADERS}deep_gemm/impls/sm100_bf16_gemm.cuh": "",
            "deep_gemm/__init__.py": "", "deep_gemm/utils/layout.py": "", "deep_gemm/_C.so": "",
            "sgl_deep_gemm.dist-info/METADATA": "",
        },
        "apache_tvm_ffi": {
            "tvm_ffi/__init__.py": "", "tvm_ffi/core.abi3.so": "", "tvm_ffi/lib/libtvm_ffi.so": "",
            "tvm_ffi/3rdparty/dlpack/dlpack.h": "",
        },
    }  # fmt: skip
    for name, version in prune.VERSIONS.items():
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
            for file, text in contents[name].items():
                if file != without:
                    archive.writestr(file, text)
    return folder


def test_what_the_kernels_include_is_kept_and_nothing_else(prune, tmp_path, capsys):
    out = tmp_path / "out"
    assert prune.main(["--wheels", str(wheels(tmp_path, prune)), "--out", str(out)]) == 0
    assert "DeepGEMM 0.1.5.post1" in capsys.readouterr().out
    kept = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    headers = {f"{HEADERS}{name}" for name in ("deep_gemm/common/one.cuh", "deep_gemm/common/two.cuh", "cute/three.h")}
    assert kept == {
        *prune.KERNELS, *headers, "deep_gemm/__init__.py", "deep_gemm/utils/layout.py", "deep_gemm/_C.so",
        "sgl_deep_gemm.dist-info/METADATA", "tvm_ffi/__init__.py", "tvm_ffi/core.abi3.so", "tvm_ffi/lib/libtvm_ffi.so",
        "BUILD.json",
    }  # fmt: skip
    assert json.loads((out / "BUILD.json").read_text(encoding="utf-8")) == prune.VERSIONS


def test_wheels_that_are_not_there_or_lack_a_kernel_are_refused(prune, tmp_path, capsys):
    assert prune.main(["--wheels", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "no sgl_deep_gemm-0.1.5.post1-*.whl" in capsys.readouterr().err
    folder = wheels(tmp_path, prune, without=prune.KERNELS[0])
    assert prune.main(["--wheels", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert f"lacks {prune.KERNELS[0]}" in capsys.readouterr().err
