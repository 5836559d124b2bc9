"""Clones ScatterMoE, TritonMoE, Tutel and FastMoE, which no package index has, into .peers at the commits known here.

    python baselines/builds/checkouts/build.py [NAME ...] [--python PATH] [--arch 9.0] [--out .peers]

Each folder holds the package, without a history, and BUILD.json with the commit; that of the paper's code also its
tests. Tutel and FastMoE are compiled for the interpreter's torch (2 to 6 minutes each on two cores); no GPU is needed.
The settings of git and of the compilers hold: url.<base>.insteadOf clones from elsewhere, and where the CUDA toolkit is
a small one, CPATH and LIBRARY_PATH name the headers and libraries of NVIDIA's pip packages.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

DEFAULT_OUT = Path(__file__).resolve().parents[3] / ".peers"
DEFAULT_ARCH = "9.0"
LINKED = b"libc10_cuda"
"""What an extension of PyTorch's names in its list of libraries if it was compiled with CUDA."""


class BuildError(Exception):
    """Why a checkout cannot be made, and what to do."""


@dataclass(frozen=True)
class Source:
    """A repository on GitHub. package: the folder of it that is imported; library: the start of its compiled library's
    name, empty if it has none; environment: options of its setup.py; needs: packages that it imports, without theirs;
    beside: further files and folders of it that are kept.
    """

    repository: str
    commit: str
    package: str
    library: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


SOURCES = {
    "scattermoe": Source("shawntan/scattermoe", "47b5e1502e5a10e82c8e5945d761b877849871e7", "scattermoe"),
    "tritonmoe": Source(
        "bassrehab/triton-kernels", "7f19abd04e526076e2917defa67e6a67cb04c629", "triton_kernels",
        beside=("tests/test_moe_dispatch.py", "reference"),
    ),
    "tutel": Source(
        "microsoft/tutel", "82af7aad9fc3ec981395ba97e7242a480984a55e", "tutel", library="tutel_custom_kernel"
    ),
    "fastmoe": Source(
        "laekov/fastmoe", "ee3c5615a5588c65273a512de82f19ca287e1bdf", "fmoe", library="fmoe_cuda",
        environment=(("USE_NCCL", "0"),), needs=("dm-tree",),
    ),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all of {', '.join(SOURCES)})")
    parser.add_argument("--python", default=sys.executable, help="interpreter to build for (default: this one)")
    parser.add_argument("--arch", default=DEFAULT_ARCH, help="compute capability to compile for (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to make them in (default: %(default)s)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in SOURCES]
    if unknown:
        parser.error(f"no checkout is called {', '.join(unknown)}: there are {', '.join(SOURCES)}")
    failed = []
    for name in options.names or SOURCES:
        try:
            make(SOURCES[name], options.out / name, options.python, options.arch)
            print(f"{options.out / name}: {SOURCES[name].repository} at {SOURCES[name].commit[:12]}", flush=True)
        except BuildError as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def make(source: Source, out: Path, python: str, arch: str) -> None:
    """Replaces the folder `out`. Raises BuildError."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        clone(source, tree)
        if source.library:
            # In place: the library lies beside the package, as it does after a user's own build.
            settings = {**os.environ, "TORCH_CUDA_ARCH_LIST": arch, **dict(source.environment)}
            said = run([python, "setup.py", "build_ext", "--inplace"], tree, settings)
            libraries = list(tree.glob(f"{source.library}*.so"))
            if not libraries:
                raise BuildError(f"no {source.library}*.so was built:\n" + ending(said))
            # Where Tutel's setup.py fails with CUDA, it compiles for CPUs, and that ends well.
            if not any(LINKED in path.read_bytes() for path in libraries):
                raise BuildError("compiled without CUDA; the end of what its setup.py says:\n" + ending(said))
        shutil.rmtree(out, ignore_errors=True)
        for name in (source.package, *source.beside):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            if (tree / name).is_dir():
                shutil.copytree(tree / name, out / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(tree / name, out / name)
        for library in tree.glob(f"{source.library}*.so") if source.library else ():
            shutil.copy(library, out)
            if strip := shutil.which("strip"):
                subprocess.run([strip, "-s", str(out / library.name)], check=True)
        for package in source.needs:
            run([python, "-m", "pip", "install", "-q", "--no-deps", "--target", str(out), package], tree, os.environ)
    built = {"arch": arch} if source.library else {}
    (out / "BUILD.json").write_text(json.dumps({"commit": source.commit, **built}) + "\n", encoding="utf-8")


def clone(source: Source, tree: Path) -> None:
    """The files of the commit, without a history, in a new folder. Raises BuildError."""
    tree.mkdir()
    run(["git", "init", "-q"], tree, os.environ)
    run(["git", "fetch", "-q", "--depth", "1", f"https://github.com/{source.repository}", source.commit], tree,
        os.environ)  # fmt: skip
    run(["git", "checkout", "-q", "FETCH_HEAD"], tree, os.environ)


def run(command: list[str], folder: Path, environment: os._Environ[str] | dict[str, str]) -> str:
    """One step; what it says. Raises BuildError with the end of that."""
    try:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              encoding="utf-8", errors="replace")  # fmt: skip
    except OSError as error:
        raise BuildError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)} fails:\n" + ending(done.stdout))
    return done.stdout


def ending(said: str) -> str:
    """The last lines of what a step says."""
    return "\n".join(said.splitlines()[-20:])


if __name__ == "__main__":
    sys.exit(main())
