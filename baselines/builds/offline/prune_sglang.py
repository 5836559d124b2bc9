"""Makes, from the wheels of SGLang and its kernels, a folder that holds its fused MoE and what that needs.

    python baselines/builds/offline/prune_sglang.py [--wheels FOLDER] [--arch 9.0] [--out .peers/sglang]

SGLang's own wheels are 640 MB and need 150 packages; this takes 16 MB, torch, triton and numpy, and so serves where
nothing can be fetched. The files are theirs, unchanged; a module that is not here is answered for by name (absent.py),
and fails when it is used. The compiled library loses its symbol table and the machine code of other GPUs (fatbin.py).
The CUDA sources are compiled by SGLang itself when they are first used, which needs nvcc and ninja; without them
SGLang's precompiled activation, its Triton quantisation and PyTorch's GEMM serve. Where there is network,
`pip install sglang==0.5.17` does.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from fatbin import FatbinError
from importable import add_to
from wheels import PruneError, download, library, size_of, write

VERSIONS = {"sglang": "0.5.17", "sglang_kernel": "0.4.5", "apache_tvm_ffi": "0.1.11", "msgspec": "0.22.0"}
"""Of the wheels, by the name that their files begin with: the newest SGLang for torch 2.11, and what it pins."""
HERE = Path(__file__).resolve().parent
DEFAULT_OUT = HERE.parents[2] / ".peers" / "sglang"
PLATFORMS = tuple(f"manylinux{tag}_x86_64" for tag in ("_2_34", "_2_28", "_2_24", "_2_17", "2014"))
RUNNER = "sglang/srt/layers/moe/moe_runner"
FILES = (
    "sglang/kernel_api_logging.py", "sglang/utils.py",
    "sglang/kernels/__init__.py", "sglang/kernels/fused_op.py", "sglang/kernels/registry.py",
    "sglang/kernels/selector.py", "sglang/kernels/spec.py", "sglang/kernels/ops/__init__.py",
    "sglang/kernels/ops/moe/fused_moe_triton_kernels.py", "sglang/kernels/ops/moe/moe_fused_gate.py",
    "sglang/kernels/ops/moe/moe_route_radix.py", "sglang/kernels/ops/activation/activation.py",
    "sglang/kernels/ops/gemm/dsv3_router_gemm.py",
    *(f"sglang/kernels/ops/quantization/{name}.py"
      for name in ("fp8_kernel", "fp8_utils", "per_tensor_quant_fp8", "per_token_group_quant")),
    "sglang/kernels/jit/__init__.py", "sglang/kernels/jit/csrc/elementwise/activation.cuh",
    "sglang/kernels/jit/csrc/gemm/dsv3_router_gemm.cuh", "sglang/kernels/jit/csrc/gemm/per_token_group_quant.cuh",
    "sglang/srt/environ.py", "sglang/srt/runtime_context.py", "sglang/srt/arg_groups/arg_utils.py",
    "sglang/srt/utils/__init__.py", "sglang/srt/utils/common.py", "sglang/srt/utils/custom_op.py",
    "sglang/srt/utils/patch_torch.py",
    "sglang/srt/batch_invariant_ops/__init__.py", "sglang/srt/batch_invariant_ops/batch_invariant_ops.py",
    "sglang/srt/distributed/device_communicators/pynccl_allocator.py",
    "sglang/srt/layers/deep_gemm_wrapper/configurer.py", "sglang/srt/layers/dp_attention.py",
    "sglang/srt/layers/moe/__init__.py", "sglang/srt/layers/moe/utils.py",
    f"{RUNNER}/__init__.py", f"{RUNNER}/base.py",
    f"{RUNNER}/triton_utils/__init__.py", f"{RUNNER}/triton_utils/fused_moe.py",
    f"{RUNNER}/triton_utils/fused_moe_triton_config.py", f"{RUNNER}/triton_utils/moe_align_block_size.py",
)  # fmt: skip
PATTERNS = {
    "sglang": re.compile(
        rf"sglang/kernels/ops/\w+/__init__\.py|sglang/kernels/jit/(utils|include)/.*|{RUNNER}/triton_utils/configs/triton_.*"
    ),
    "sglang_kernel": re.compile(r"sgl_kernel/[\w/]+\.py"),
    "apache_tvm_ffi": re.compile(
        r"tvm_ffi/(\w+\.py|core\.abi3\.so|lib/libtvm_ffi\w*\.so|(cpp|dataclasses|utils|stub|include)/.*)|.*\.dist-info/.*"
    ),
    "msgspec": re.compile(r"msgspec/\w+(\.py|\.[\w-]+\.so)"),
}
"""What is kept of each wheel, beside FILES; every METADATA is."""
ABSENT = ("sglang", "orjson", "psutil", "pybase64", "requests", "PIL", "starlette", "torchvision", "IPython",
          "pydantic", "tqdm")  # fmt: skip
"""Packages whose missing modules are answered for: modules that are kept import them, and do not use them here."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheels", type=Path, help="folder with the wheels (default: pip downloads them)")
    parser.add_argument("--arch", default="9.0", help="compute capability to keep code for, or 'all' (default: 9.0)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to make (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            wheels = find(options.wheels or fetch(Path(folder)))
            size = prune(wheels, options.out, options.arch)
    except (PruneError, FatbinError) as error:
        print(f"prune_sglang: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {size / 2**20:.1f} MiB, SGLang {VERSIONS['sglang']} for compute capability {options.arch}")
    return 0


def fetch(folder: Path) -> Path:
    """The folder, with all wheels downloaded into it."""
    system = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    system += [word for platform in PLATFORMS for word in ("--platform", platform)]
    for name, version in VERSIONS.items():
        download(f"{name}=={version}", folder, *system, instead="give a folder of wheels by --wheels")
    return folder


def find(folder: Path) -> dict[str, Path]:
    """The wheel of each name in VERSIONS. Raises PruneError for one that is not there in that version."""
    found = {}
    for name, version in VERSIONS.items():
        wheels = sorted(folder.glob(f"{name}-{version}-*.whl"))
        if not wheels:
            raise PruneError(f"no {name}-{version}-*.whl in {folder}, the version whose layout this tool knows")
        found[name] = wheels[0]
    return found


def prune(wheels: dict[str, Path], out: Path, arch: str) -> int:
    """Replaces the folder `out`; its size in bytes."""
    shutil.rmtree(out, ignore_errors=True)
    for name, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.namelist():
                if not entry.endswith("/") and _kept(name, entry):
                    write(out / entry, archive.read(entry))
                elif name == "sglang_kernel" and entry in libraries(arch):
                    write(out / entry, library(archive.read(entry), arch))
    add_to(out, "sglang", ABSENT)
    (out / "BUILD.json").write_text(json.dumps({**VERSIONS, "arch": arch}) + "\n", encoding="utf-8")
    missing = [file for file in (*FILES, *libraries(arch)) if not (out / file).is_file()]
    if missing:
        raise PruneError(f"the wheels lack {', '.join(missing)}")
    return size_of(out)


def libraries(arch: str) -> tuple[str, ...]:
    """The compiled library that sgl_kernel loads on a GPU of `arch`: one serves 9.0, another all else."""
    hopper, others = "sgl_kernel/sm90/common_ops.abi3.so", "sgl_kernel/sm100/common_ops.abi3.so"
    return {"9.0": (hopper,), "all": (hopper, others)}.get(arch, (others,))


def _kept(name: str, entry: str) -> bool:
    return entry in FILES or entry.endswith(".dist-info/METADATA") or bool(PATTERNS[name].fullmatch(entry))


if __name__ == "__main__":
    sys.exit(main())
