"""Makes, from the wheels of a system, a folder that holds it: the wheels unpacked, without what no layer needs.

    python baselines/builds/offline/unpack.py [NAME ...] [--out .peers]

NAME is humming or sonicmoe (default: both). Both compile their kernels when they are first used. Humming's wheel may be
installed by pip as well. SonicMoE's asks for torch 2.9.1 at most, which pip would install: with torch 2.11 it runs from
such a folder alone, with the compiler that it asks for (CuTe DSL, 180 MB of libraries) beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from wheels import PruneError, download, size_of, write

DEFAULT_OUT = Path(__file__).resolve().parents[3] / ".peers"
PLATFORM = ("--only-binary=:all:", "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_24_x86_64",
            "--platform", "manylinux_2_17_x86_64", "--python-version", "3.12")  # fmt: skip
PROGRAMS = "/_native/"
"""Humming runs what lies there as programs."""


@dataclass(frozen=True)
class System:
    """wheels: versions by distribution; folders, endings: of files that no layer needs."""

    wheels: dict[str, str]
    folders: tuple[str, ...]
    endings: tuple[str, ...] = ()

    def needs(self, name: str) -> bool:
        return not name.endswith(("/", *self.endings)) and not name.startswith(self.folders)


SYSTEMS = {
    "humming": System({"humming-kernels": "0.1.19"}, ("humming/testing/",)),
    "sonicmoe": System(
        {
            "sonic-moe": "0.1.2.post1", "quack-kernels": "0.3.11", "nvidia-cutlass-dsl-libs-base": "4.4.2",
            "apache-tvm-ffi": "0.1.11", "torch-c-dlpack-ext": "0.1.5", "cuda-bindings": "13.0.3", "einops": "0.8.2",
        },
        ("nvidia_cutlass_dsl/include/", "tvm_ffi/include/", "tvm_ffi/3rdparty/"),
        (".a", ".cpp", ".pyx", ".pxd"),
    ),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all of {', '.join(SYSTEMS)})")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to make them in (default: %(default)s)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in SYSTEMS]
    if unknown:
        parser.error(f"no system is called {', '.join(unknown)}: there are {', '.join(SYSTEMS)}")
    for name in options.names or SYSTEMS:
        try:
            size = unpack(SYSTEMS[name], options.out / name)
        except PruneError as error:
            print(f"unpack: {name}: {error}", file=sys.stderr)
            return 1
        print(f"{options.out / name}: {size / 2**20:.1f} MiB")
    return 0


def unpack(system: System, out: Path) -> int:
    """Replaces the folder `out`; its size in bytes. Raises PruneError."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, version in system.wheels.items():
            download(f"{name}=={version}", folder, *PLATFORM, instead="name a folder of wheels by PIP_FIND_LINKS")
        shutil.rmtree(out, ignore_errors=True)
        for path in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(path) as archive:
                for name in filter(system.needs, archive.namelist()):
                    write(out / name, archive.read(name))
                    (out / name).chmod(0o755 if PROGRAMS in name else 0o644)
    record = {name.replace("-", "_"): version for name, version in system.wheels.items()}
    (out / "BUILD.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return size_of(out)


if __name__ == "__main__":
    sys.exit(main())
