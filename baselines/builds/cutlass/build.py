"""Compiles grouped_gemm.cu with CUTLASS's headers into .peers/cutlass, one library per element type, for Hopper.

    python baselines/builds/cutlass/build.py [--wheel FILE | --cutlass FOLDER] [--nvcc PATH] [--out .peers/cutlass]

The headers come out of the wheel nvidia-cutlass, which pip downloads unless one is given, or out of a checkout of
CUTLASS. Needs nvcc 12 or later and a C++17 compiler; no GPU, no particular Python or torch. Takes minutes. Run again
with the same source, headers and nvcc, it does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "grouped_gemm.cu"
DEFAULT_OUT = HERE.parents[2] / ".peers" / "cutlass"
PACKAGE, VERSION = "nvidia-cutlass", "4.2.0.0"
IN_WHEEL = "cutlass_library/source/include/"
ELEMENTS = {"bf16": "bfloat16_t", "fp16": "half_t"}
ARCH = "sm_90a"
"""The kernels are Hopper's: WGMMA exists nowhere else."""
# With -arch, nvcc 13 compiles all once more, for compute_90.
FLAGS = ("-shared", "-Xcompiler", "-fPIC", "-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr",
         f"-gencode=arch=compute_90a,code={ARCH}")  # fmt: skip


class BuildError(Exception):
    """Why nothing can be built, and what to do."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    headers = parser.add_mutually_exclusive_group()
    headers.add_argument("--wheel", type=Path, help=f"wheel of {PACKAGE} (default: pip downloads {VERSION})")
    headers.add_argument("--cutlass", type=Path, help="checkout of CUTLASS 3.5 or later, instead of the wheel")
    parser.add_argument("--nvcc", default="nvcc", help="compiler (default: %(default)s on PATH)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to build into (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            include = _headers(options, Path(scratch))
            record = _record(include, options.nvcc)
            if _kept(options.out) == record:
                print(f"{options.out} is up to date: {_words(record)}")
                return 0
            build(include, options.nvcc, options.out, record)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"built {options.out}: {_words(record)}")
    return 0


def build(include: Path, nvcc: str, out: Path, record: dict[str, str]) -> None:
    """Replaces the folder `out` when every library has been made."""
    made = out.with_name(out.name + ".partial")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for name, element in ELEMENTS.items():
        command = [nvcc, *FLAGS, f"-DELEMENT={element}", f"-I{include}", str(SOURCE), "-o", str(made / f"{name}.so")]
        print(" ".join(command), flush=True)
        if subprocess.run(command).returncode:
            raise BuildError(f"nvcc did not compile {SOURCE.name} for {name}: its messages stand above")
    (made / "BUILD.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    made.rename(out)


def _headers(options: argparse.Namespace, scratch: Path) -> Path:
    """The folder that holds cutlass/cutlass.h."""
    if options.cutlass:
        include = options.cutlass / "include"
    else:
        include = scratch / IN_WHEEL
        with zipfile.ZipFile(options.wheel or _download(scratch)) as wheel:
            wheel.extractall(scratch, [name for name in wheel.namelist() if name.startswith(IN_WHEEL)])
    if not (include / "cutlass" / "cutlass.h").exists():
        raise BuildError(f"{options.cutlass or options.wheel or PACKAGE} has no CUTLASS headers")
    return include


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(folder),
               f"{PACKAGE}=={VERSION}"]  # fmt: skip
    if subprocess.run(command).returncode:
        raise BuildError(f"pip did not download {PACKAGE}=={VERSION}: give --wheel or --cutlass")
    return next(folder.glob("*.whl"))


def _record(include: Path, nvcc: str) -> dict[str, str]:
    """What the libraries are made of."""
    try:
        said = subprocess.run(
            [nvcc, "--version"], capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{nvcc} does not run ({error}): CUDA 12 or later is needed, see --nvcc") from error
    release = re.search(r"release ([\d.]+)", said)
    text = (include / "cutlass" / "version.h").read_text(encoding="utf-8")
    parts = [re.search(rf"define CUTLASS_{part} (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return {
        "cutlass": ".".join(part.group(1) if part else "?" for part in parts),
        "nvcc": release.group(1) if release else "?",
        "arch": ARCH,
        "source": hashlib.sha256(SOURCE.read_bytes()).hexdigest(),
    }


def _kept(out: Path) -> dict[str, str]:
    record = out / "BUILD.json"
    return json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}


def _words(record: dict[str, str]) -> str:
    return f"CUTLASS {record['cutlass']}, nvcc {record['nvcc']}, {record['arch']}"


if __name__ == "__main__":
    raise SystemExit(main())
