"""Compiles one kernel each of FlashInfer (mono_moe) and MAGMA (sgemm_vbatched) into .peers, without the rest of them.

    python baselines/builds/checkouts/kernels.py [NAME ...] [--nvcc PATH] [--out .peers]

FlashInfer's sources come out of its wheel, which pip downloads; MAGMA's are cloned. Each is compiled behind a C
interface of ours (the .cu files beside this one); standins/ has headers in the place of those that would need all of a
system. Needs nvcc 12 or later; no GPU, no particular Python or torch. Takes a minute. The settings of pip, git and the
compilers hold, as in build.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from build import DEFAULT_OUT, BuildError, Source, clone, run

HERE = Path(__file__).resolve().parent
STANDINS = HERE / "standins"
FLAGS = ("-shared", "-Xcompiler", "-fPIC", "-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr")
FLASHINFER = "0.7.4"
MAGMA = Source("icl-utk-edu/magma", "c64e52ab893601dc89d6e92d675307875325c231", "magmablas")
MONO_MOE = "flashinfer/data/csrc/fused_moe/monomoe/"
CUTLASS = "flashinfer/data/cutlass/include/"


@dataclass(frozen=True)
class Kernel:
    """source: our file; arch: compute capability, as in "90a"; flags: those of the system's own build; sources: puts
    the system's files into a folder and returns (folders of headers, what they are, for BUILD.json)."""

    source: Path
    arch: str
    flags: tuple[str, ...]
    sources: Callable[[Path], tuple[list[Path], dict[str, str]]]


def flashinfer(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The kernel's sources and CUTLASS's headers. Raises BuildError."""
    out_of_wheel(folder, (MONO_MOE, CUTLASS))
    headers = [folder / MONO_MOE, folder / MONO_MOE / "src", folder / CUTLASS]
    return headers, {"flashinfer": FLASHINFER}


def out_of_wheel(folder: Path, parts: tuple[str, ...]) -> None:
    """Puts what lies under `parts` in FlashInfer's wheel, which pip downloads, into a folder. Raises BuildError."""
    run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "--dest", str(folder),
         f"flashinfer-python=={FLASHINFER}"], folder, os.environ)  # fmt: skip
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(parts)])


def magma(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The folder of its GPU kernels. Raises BuildError."""
    clone(MAGMA, folder / "magma")
    types = (folder / "magma" / "include" / "magma_types.h").read_text(encoding="utf-8")
    parts = [re.search(rf"define MAGMA_VERSION_{part} (\d+)", types) for part in ("MAJOR", "MINOR", "MICRO")]
    version = ".".join(part.group(1) if part else "?" for part in parts)
    return [folder / "magma" / MAGMA.package], {"magma": version, "commit": MAGMA.commit}


KERNELS = {
    "flashinfer": Kernel(
        HERE / "mono_moe.cu", "90a", ("-use_fast_math", "-DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED"), flashinfer
    ),
    "magma": Kernel(HERE / "sgemm_vbatched.cu", "90", (), magma),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all of {', '.join(KERNELS)})")
    parser.add_argument("--nvcc", default="nvcc", help="compiler (default: %(default)s on PATH)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to make them in (default: %(default)s)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in KERNELS]
    if unknown:
        parser.error(f"no kernel of {', '.join(unknown)}: there are {', '.join(KERNELS)}")
    failed = []
    for name in options.names or KERNELS:
        try:
            record = make(KERNELS[name], options.out / name, options.nvcc)
            print(f"{options.out / name}: {' '.join(f'{key} {value}' for key, value in record.items())}", flush=True)
        except BuildError as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def make(kernel: Kernel, out: Path, nvcc: str) -> dict[str, str]:
    """Replaces the folder `out`; what its BUILD.json says. Raises BuildError."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        release = release_of(nvcc)
        headers, facts = kernel.sources(scratch)
        library = scratch / f"{kernel.source.stem}.so"
        includes = [f"-I{folder}" for folder in (STANDINS, *headers)]
        # With -arch, nvcc 13 compiles for compute_90 as well, which has no fp8 WGMMA.
        arch = f"-gencode=arch=compute_{kernel.arch},code=sm_{kernel.arch}"
        run([nvcc, *FLAGS, *kernel.flags, arch, *includes, str(kernel.source), "-o", str(library)], scratch, os.environ)
        record = {**facts, "nvcc": release, "arch": f"sm_{kernel.arch}",
                  "source": hashlib.sha256(kernel.source.read_bytes()).hexdigest()[:16]}  # fmt: skip
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        shutil.copy(library, out)
    (out / "BUILD.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return record


def release_of(nvcc: str) -> str:
    """As in "13.0". Raises BuildError if it does not run."""
    release = re.search(r"release ([\d.]+)", run([nvcc, "--version"], HERE, os.environ))
    return release.group(1) if release else "?"


if __name__ == "__main__":
    sys.exit(main())
