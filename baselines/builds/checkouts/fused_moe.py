"""Compiles FlashInfer's cutlass_fused_moe for Hopper, for bf16 and fp8_block alone, into .peers/flashinfer_cutlass.

    python baselines/builds/checkouts/fused_moe.py [--nvcc PATH] [--jobs N] [--out .peers/flashinfer_cutlass]

The sources come out of FlashInfer's wheel, which pip downloads. Its own module for Hopper has 220 files of generated
kernels and 28 others; the C interface in fused_moe.cu needs 13 and 10 of them, and fused_moe_gemms.cu in the place of
two more leaves out what no SwiGLU layer runs. FlashInfer's generator writes the 13. A file of those takes nvcc 70 to
125 seconds and 5 to 7.5 GB, all files together 25 minutes on one core. No GPU, no particular Python or torch is needed.
Where the CUDA toolkit is a small one, CPATH names the headers of NVIDIA's pip packages (cuBLAS, cuRAND). Kernels for
fp8_block are compiled when they are first used, from the headers deep_gemm/ beside the library.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import build
from build import BuildError, run

from kernels import FLASHINFER, HERE, STANDINS, out_of_wheel, release_of

DEFAULT_OUT = build.DEFAULT_OUT / "flashinfer_cutlass"
LIBRARY = "fused_moe.so"
ARCH = "90a"
DATA = "flashinfer/data"
GENERATOR = "flashinfer/jit/gemm/cutlass"
BACKEND = f"{DATA}/csrc/fused_moe/cutlass_backend"
TRT = f"{DATA}/csrc/nv_internal"
KERNELS = f"{TRT}/tensorrt_llm/kernels/cutlass_kernels"
HEADERS = f"{TRT}/tensorrt_llm/deep_gemm"
PARTS = tuple(f"{part}/" for part in (
    TRT, BACKEND, f"{DATA}/include", f"{DATA}/cutlass", f"{DATA}/cccl", f"{DATA}/spdlog", GENERATOR))  # fmt: skip
INCLUDES = (
    BACKEND, f"{KERNELS}/moe_gemm", TRT, f"{TRT}/include", f"{TRT}/tensorrt_llm/cutlass_extensions/include",
    f"{KERNELS}/include", KERNELS, f"{DATA}/cccl/cub", f"{DATA}/cccl/libcudacxx/include", f"{DATA}/cccl/thrust",
    f"{DATA}/include", f"{DATA}/cutlass/include", f"{DATA}/cutlass/tools/util/include", f"{DATA}/spdlog/include",
)  # fmt: skip
OURS = ("fused_moe.cu", "fused_moe_gemms.cu")
THEIRS = (
    f"{KERNELS}/fp8_blockscale_gemm/fp8_blockscale_gemm.cu",
    f"{KERNELS}/moe_gemm/moe_gemm_tma_warp_specialized_input.cu",
    f"{KERNELS}/cutlass_heuristic.cpp",
    f"{TRT}/tensorrt_llm/kernels/preQuantScaleKernel.cu",
    f"{TRT}/tensorrt_llm/kernels/lora/lora.cpp",
    *(f"{TRT}/cpp/common/{name}" for name in (
        "envUtils.cpp", "logger.cpp", "stringUtils.cpp", "tllmException.cpp", "memoryUtils.cu")),
)  # fmt: skip
FLAGS = (
    "-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler", "-fPIC", "--expt-relaxed-constexpr",
    "-static-global-template-stub=false", "-use_fast_math", "-Xfatbin=-compress-all", "--compress-mode=size",
    "-DFLASHINFER_ENABLE_F16", "-DFLASHINFER_ENABLE_BF16", "-DFLASHINFER_ENABLE_FP8_E4M3",
    "-DFLASHINFER_ENABLE_FP8_E5M2", f"-gencode=arch=compute_{ARCH},code=sm_{ARCH}",
    "-DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED", "-DFLASHINFER_ENABLE_FP8_E8M0", "-DFLASHINFER_ENABLE_FP4_E2M1",
    "-DCOMPILE_HOPPER_TMA_GEMMS", "-DCOMPILE_HOPPER_TMA_GROUPED_GEMMS", "-DENABLE_BF16", "-DENABLE_FP8",
    "-DENABLE_FP8_BLOCK_SCALE", "-DUSING_OSS_CUTLASS_MOE_GEMM", "-DCUTLASS_ENABLE_GDC_FOR_SM90=1",
)  # fmt: skip
"""Those of FlashInfer's module for Hopper, without ENABLE_FP4."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nvcc", default="nvcc", help="compiler, of CUDA 12.8 or later (default: %(default)s on PATH)")
    parser.add_argument("--jobs", type=int, default=2, help="files at once, at 7 GB each (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to make (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        record = make(options.out, options.nvcc, options.jobs)
    except BuildError as error:
        print(f"fused_moe: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {' '.join(f'{key} {value}' for key, value in record.items())}")
    return 0


def make(out: Path, nvcc: str, jobs: int) -> dict[str, str]:
    """Replaces the folder `out`; what its BUILD.json says. Raises BuildError."""
    release = release_of(nvcc)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        out_of_wheel(scratch, PARTS)
        sources = [*(HERE / name for name in OURS), *generated(scratch), *(scratch / name for name in THEIRS)]
        includes = [f"-I{folder}" for folder in (STANDINS, *(scratch / name for name in INCLUDES))]

        def compiled(source: Path) -> Path:
            target = scratch / f"{source.stem}.o"
            run([nvcc, *FLAGS, *includes, "-c", str(source), "-o", str(target)], scratch, os.environ)
            print(f"compiled {source.name}", flush=True)
            return target

        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(compiled, sources))
        library = scratch / LIBRARY
        run([nvcc, "-shared", *map(str, objects), "-o", str(library)], scratch, os.environ)
        if strip := shutil.which("strip"):
            run([strip, "--strip-unneeded", str(library)], scratch, os.environ)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(scratch / HEADERS, out / Path(HEADERS).name)
        shutil.copy(library, out)
    ours = b"".join((HERE / name).read_bytes() for name in OURS)
    record = {"flashinfer": FLASHINFER, "nvcc": release, "arch": f"sm_{ARCH}",
              "source": hashlib.sha256(ours).hexdigest()[:16]}  # fmt: skip
    (out / "BUILD.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return record


def generated(scratch: Path) -> list[Path]:
    """Has FlashInfer's generator write its files of kernels, of the operations for bf16 and SwiGLU alone."""
    package = ModuleType("flashinfer_generator")  # FlashInfer itself would want all that it depends on
    package.__path__ = [str(scratch / GENERATOR)]
    sys.modules[package.__name__] = package
    generator: Any = importlib.import_module(f"{package.__name__}.generate_kernels")
    bf16, silu = generator.DataType.bf16, generator.TrtLlm_EpilogueTag.epilogue_op_silu
    hopper = [one for one in generator.generate_sm90_grouped_gemm_operations(True)
              if (one.act_type, one.weight_type) == (bf16, bf16)]  # fmt: skip
    ampere = [one for one in generator.generate_sm80_fused_grouped_gemm_operations()
              if (one.dtype, one.epi_tag) == (bf16, silu)]  # fmt: skip
    generator.generate_sm90_operations = lambda enabled: hopper
    generator.generate_sm80_operations = lambda enabled: ampere
    generator.generate_gemm_operations(str(scratch / "generated"), "90;90-real")
    return sorted((scratch / "generated").rglob("*.cu"))


if __name__ == "__main__":
    sys.exit(main())
