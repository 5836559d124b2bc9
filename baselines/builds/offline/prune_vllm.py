"""Makes, from vLLM's wheel, a folder that holds its fused MoE and the triton_kernels that it ships, and little else.

    python baselines/builds/offline/prune_vllm.py [--version 0.33.0] [--wheel FILE] [--arch 9.0] [--out .peers]

vLLM's wheel is 340 MB and needs 150 packages; this takes 43 MB, torch, triton and a handful of small packages, and so
serves where nothing can be fetched. The code is vLLM's own: modules that the fused MoE does not run are left out, an
import of one becomes a name that fails when it is used (left_out.py), and the two compiled libraries lose their symbol
tables and the machine code of other GPUs (fatbin.py). Marlin has PTX alone for Hopper, which is compiled here where
CUDA's tools are there (assemble.py; 6 minutes). 0.33.0 is made for torch 2.14, which pip would install with it; its
libraries take no symbol that torch 2.11 lacks, and so such a tree runs there too.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fatbin import FatbinError
from wheels import PruneError, download, library, size_of, write

HERE = Path(__file__).resolve().parent
DEFAULT_OUT = HERE.parents[2] / ".peers"
PLATFORM = ("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_31_x86_64", "--python-version", "3.12")
MOE = "vllm/model_executor/layers/fused_moe"
MODULES = (
    "vllm/__init__.py", "vllm/_version.py", "vllm/version.py", "vllm/envs.py", "vllm/logger.py", "vllm/scalar_type.py",
    "vllm/_custom_ops.py", "vllm/_aiter_ops.py",
    "vllm/logging_utils/", "vllm/triton_utils/", "vllm/plugins/__init__.py",
    "vllm/platforms/__init__.py", "vllm/platforms/interface.py", "vllm/platforms/cuda.py",
    "vllm/third_party/__init__.py", "vllm/third_party/pynvml.py",
    "vllm/utils/__init__.py", "vllm/utils/math_utils.py", "vllm/utils/torch_utils.py", "vllm/utils/import_utils.py",
    "vllm/utils/deep_gemm.py", "vllm/utils/platform_utils.py",
    "vllm/distributed/__init__.py", "vllm/distributed/parallel_state.py",
    "vllm/model_executor/__init__.py", "vllm/model_executor/layers/__init__.py",
    *(f"vllm/model_executor/layers/quantization/utils/{name}.py"
      for name in ("fp8_utils", "marlin_utils", "marlin_utils_fp4", "marlin_utils_fp8", "marlin_utils_test",
                   "ocp_mx_utils", "quant_utils")),
    f"{MOE}/__init__.py", f"{MOE}/activation.py", f"{MOE}/config.py", f"{MOE}/fused_moe.py",
    f"{MOE}/modular_kernel.py", f"{MOE}/moe_align_block_size.py", f"{MOE}/moe_fused_mul_sum.py",
    f"{MOE}/topk_weight_and_reduce.py",
    f"{MOE}/utils.py", f"{MOE}/experts/__init__.py", f"{MOE}/experts/marlin_moe.py",
    f"{MOE}/router/__init__.py", f"{MOE}/router/fused_topk_router.py",
)  # fmt: skip
"""Files, and folders with a slash at the end, of which every module is kept."""
TABLES = f"{MOE}/configs/"
LIBRARY = "vllm/_C_stable_libtorch.abi3.so"


@dataclass(frozen=True)
class Layout:
    """What one version has in its own way. moe_library: the library of the MoE's operators; modules: further ones."""

    moe_library: str
    modules: tuple[str, ...] = ()


LAYOUTS = {
    "0.22.1": Layout("vllm/_moe_C.abi3.so"),
    "0.33.0": Layout("vllm/_moe_C_stable_libtorch.abi3.so", ("vllm/forward_context.py", "vllm/utils/torch_version.py")),
}
"""By version; the libraries of both take no symbol that torch 2.11 lacks."""
VERSION = "0.33.0"
TRITON_KERNELS = "vllm/third_party/triton_kernels/"
TRITON_KERNELS_VERSION = "3.5.1"
"""The tag of Triton's repository whose files the wheels of both versions hold; they do not say it themselves."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--version", choices=LAYOUTS, default=VERSION, help="of vLLM (default: %(default)s)")
    parser.add_argument("--wheel", type=Path, help="wheel of that version (default: pip downloads it)")
    parser.add_argument("--arch", default="9.0", help="compute capability to keep code for, or 'all' (default: 9.0)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to make (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            wheel = options.wheel or fetch(options.version, Path(folder))
            size = prune(wheel, options.version, options.out, options.arch)
    except (PruneError, FatbinError) as error:
        print(f"prune_vllm: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {size / 2**20:.1f} MiB, vLLM {options.version} for compute capability {options.arch}")
    return 0


def fetch(version: str, folder: Path) -> Path:
    """vLLM's wheel, downloaded into the folder."""
    download(f"vllm=={version}", folder, "--only-binary=:all:", *PLATFORM, instead="give a wheel by --wheel")
    return next(folder.glob("vllm-*.whl"))


def prune(wheel: Path, version: str, out: Path, arch: str) -> int:
    """Replaces the folders `vllm` and `triton_kernels` of `out`; their size in bytes."""
    layout = LAYOUTS[version]
    modules, libraries = (*MODULES, *layout.modules), (layout.moe_library, LIBRARY)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next((name for name in names if name.endswith(".dist-info/METADATA")), "")
        if info != f"vllm-{version}.dist-info/METADATA":
            raise PruneError(f"{wheel.name} is not vLLM {version}: this tool knows the layouts of {', '.join(LAYOUTS)}")
        for name in ("vllm", "triton_kernels"):
            shutil.rmtree(out / name, ignore_errors=True)
        sources = [name for name in names if name in modules or _in_folder(name, modules)]
        kept = {_module(name) for name in (*sources, *libraries)}
        for name in sources:
            text = archive.read(name).decode()
            write(out / "vllm" / name, leave_out(text, _module(name), name.endswith("__init__.py"), kept).encode())
        for name in names:
            if name == info or (name.startswith(TABLES) and name.endswith(".json")):
                write(out / "vllm" / name, archive.read(name))
            elif name.startswith(TRITON_KERNELS) and name.endswith(".py"):
                write(out / "triton_kernels" / name.removeprefix("vllm/third_party/"), archive.read(name))
        for name in libraries:
            write(out / "vllm" / name, library(archive.read(name), arch, with_ptx=name == layout.moe_library))
    shutil.copy(HERE / "left_out.py", out / "vllm" / "vllm" / "_left_out.py")
    record = {"vllm": version, "triton_kernels": TRITON_KERNELS_VERSION, "arch": arch}
    for name in ("vllm", "triton_kernels"):
        (out / name / "BUILD.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return size_of(out / "vllm") + size_of(out / "triton_kernels")


def leave_out(source: str, module: str, is_package: bool, kept: set[str]) -> str:
    """`source` with each import, outside of functions, of a module of vLLM that is not in `kept` made a LeftOut.

    What stands under `if TYPE_CHECKING:` never runs and stays.
    """
    lines = source.splitlines()
    package = module if is_package else module.rpartition(".")[0]
    replaced = False
    for node in reversed(list(_top_level_imports(ast.parse(source).body))):
        names = _left_out(node, package, kept)
        if names is None:
            continue
        indent = " " * node.col_offset
        new = [f"{indent}{bound} = _LeftOut({name!r})" for bound, name in names] or [f"{indent}pass"]
        lines[node.lineno - 1 : node.end_lineno] = new
        replaced = True
    if replaced:
        lines.insert(_after_future(source), "from vllm._left_out import LeftOut as _LeftOut")
    return "\n".join(lines) + "\n"


def _top_level_imports(body: list[ast.stmt]):
    """Imports that run when the module is imported, in order."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                yield from _top_level_imports(node.orelse)
                continue
            for part in ("body", "handlers", "orelse", "finalbody"):
                for child in getattr(node, part, []):
                    yield from _top_level_imports(child.body if isinstance(child, ast.ExceptHandler) else [child])


def _left_out(node: ast.Import | ast.ImportFrom, package: str, kept: set[str]) -> list[tuple[str, str]] | None:
    """(bound name, what it was) for every name of the import, or None if it stays. All of a statement stays or goes."""
    if isinstance(node, ast.Import):
        gone = [alias for alias in node.names if _of_vllm(alias.name) and alias.name not in kept]
        return [(alias.asname, alias.name) for alias in gone if alias.asname] if gone else None
    base = node.module or ""
    if node.level:
        base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *([base] if base else [])])
    if not _of_vllm(base) or base in kept:
        return None
    return [(alias.asname or alias.name, f"{base}.{alias.name}") for alias in node.names if alias.name != "*"]


def _of_vllm(name: str) -> bool:
    return name == "vllm" or name.startswith("vllm.")


def _after_future(source: str) -> int:
    """Line index after the docstring and `from __future__` imports."""
    line = 0
    for node in ast.parse(source).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            break
        line = node.end_lineno or 0
    return line


def _in_folder(name: str, folders: tuple[str, ...]) -> bool:
    return name.endswith(".py") and any(name.startswith(folder) for folder in folders if folder.endswith("/"))


def _module(name: str) -> str:
    """Dotted name of a source file or a compiled library."""
    return name.removesuffix(".py").removesuffix(".abi3.so").replace("/", ".").removesuffix(".__init__")


if __name__ == "__main__":
    sys.exit(main())
