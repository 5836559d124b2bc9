"""Makes, from the wheels of DeepGEMM and of the library it binds by, a folder that holds its grouped GEMMs for Hopper.

    python baselines/builds/offline/prune_deep_gemm.py [--wheels FOLDER] [--out .peers/deep_gemm]

DeepGEMM compiles its kernels by nvcc when they are first used, from headers that it ships with CUTLASS's: 40 MB
unpacked, of which these kernels include 5. The files are theirs, unchanged. Where there is network,
`pip install sgl-deep-gemm==0.1.5.post1` does as well.
"""

from __future__ import annotations

import argparse
import json
import posixpath
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from wheels import PruneError, download, size_of, write

VERSIONS = {"sgl_deep_gemm": "0.1.5.post1", "apache_tvm_ffi": "0.1.11"}
"""Of the wheels, by the name that their files begin with; the second is what the first pins."""
DEFAULT_OUT = Path(__file__).resolve().parents[3] / ".peers" / "deep_gemm"
PLATFORMS = tuple(f"manylinux{tag}_x86_64" for tag in ("_2_28", "_2_24", "_2_17", "2014"))
HEADERS = "deep_gemm/include"
KERNELS = tuple(
    f"{HEADERS}/deep_gemm/impls/{name}.cuh" for name in ("sm90_fp8_gemm_1d2d", "sm90_bf16_gemm", "smxx_layout")
)
"""What DeepGEMM compiles for its grouped GEMMs on Hopper; whatever these include is kept too."""
PATTERNS = {
    "sgl_deep_gemm": re.compile(r"deep_gemm/(\w+/)?\w+\.py|deep_gemm/(_C\.so|VERSION)|.*\.dist-info/METADATA"),
    "apache_tvm_ffi": re.compile(
        r"tvm_ffi/(\w+\.py|core\.abi3\.so|lib/libtvm_ffi\w*\.so|(cpp|dataclasses|utils)/\w+\.py)|.*\.dist-info/\w+"
    ),
}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheels", type=Path, help="folder with the wheels (default: pip downloads them)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to make (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            size = prune(options.wheels or fetch(Path(folder)), options.out)
    except PruneError as error:
        print(f"prune_deep_gemm: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {size / 2**20:.1f} MiB, DeepGEMM {VERSIONS['sgl_deep_gemm']}")
    return 0


def fetch(folder: Path) -> Path:
    """The folder, with both wheels downloaded into it."""
    system = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    system += [word for platform in PLATFORMS for word in ("--platform", platform)]
    for name, version in VERSIONS.items():
        download(f"{name}=={version}", folder, *system, instead="give a folder of wheels by --wheels")
    return folder


def prune(wheels: Path, out: Path) -> int:
    """Replaces the folder `out`; its size in bytes."""
    shutil.rmtree(out, ignore_errors=True)
    for name, version in VERSIONS.items():
        wheel = next(iter(sorted(wheels.glob(f"{name}-{version}-*.whl"))), None)
        if wheel is None:
            raise PruneError(f"no {name}-{version}-*.whl in {wheels}, the version whose layout this tool knows")
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            kept = {entry for entry in names if PATTERNS[name].fullmatch(entry)}
            if name == "sgl_deep_gemm":
                missing = [kernel for kernel in KERNELS if kernel not in names]
                if missing:
                    raise PruneError(f"{wheel.name} lacks {', '.join(missing)}")
                kept |= included(archive, names)
            for entry in kept:
                write(out / entry, archive.read(entry))
    (out / "BUILD.json").write_text(json.dumps(VERSIONS) + "\n", encoding="utf-8")
    return size_of(out)


def included(archive: zipfile.ZipFile, names: set[str]) -> set[str]:
    """KERNELS and every file of the wheel that they include, under whatever condition."""
    kept: set[str] = set()
    left = list(KERNELS)
    while left:
        file = left.pop()
        if file in kept:
            continue
        kept.add(file)
        for header in INCLUDE.findall(archive.read(file).decode(errors="replace")):
            places = (posixpath.normpath(f"{folder}/{header}") for folder in (HEADERS, posixpath.dirname(file)))
            left += [place for place in places if place in names][:1]
    return kept


if __name__ == "__main__":
    sys.exit(main())
