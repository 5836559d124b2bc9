"""Builds Megablocks, stanford-stk and grouped_gemm from their PyPI sources for one Python, torch and CUDA.

    python baselines/builds/megablocks/build.py [--python PATH] [--arch 9.0] [--out .megablocks]

Neither a GPU nor a change to the interpreter's own packages is needed: the result is three folders for sys.path,
`common` (megablocks, stk), `grouped_cublas` and `grouped_cutlass` (grouped_gemm, built twice), and BUILD.json, which
says what they were built for. Run again with the same versions and patches, it does nothing.
pip's own settings hold, so PIP_NO_INDEX and PIP_FIND_LINKS build from a folder of sources.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATCHES = HERE / "patches"
DEFAULT_OUT = HERE.parents[2] / ".megablocks"
VERSIONS = {"stanford-stk": "0.7.1", "megablocks": "0.10.0", "grouped_gemm": "0.3.0"}
DEFAULT_ARCH = "9.0"
HEADERS = ("cublas_v2.h", "cusparse.h", "cusolverDn.h")
"""What torch's own headers include; a small CUDA toolkit lacks them, and then NVIDIA's pip packages have them."""


class BuildError(Exception):
    """Why nothing can be built, and what to do."""


@dataclass(frozen=True)
class Part:
    """One package compiled into one folder; `environment` are the options of its setup.py."""

    folder: str
    package: str
    environment: dict[str, str] = field(default_factory=dict)


PARTS = (
    Part("common", "stanford-stk"),
    Part("common", "megablocks"),
    Part("grouped_cublas", "grouped_gemm", {"GROUPED_GEMM_CUTLASS": "0"}),
    Part("grouped_cutlass", "grouped_gemm", {"GROUPED_GEMM_CUTLASS": "1"}),
)
FOLDERS = tuple(dict.fromkeys(part.folder for part in PARTS))

PROBE = """
import importlib.util, json, pathlib, sys
needed = ("torch", "triton", "numpy", "pip", "setuptools", "wheel", "packaging")
facts = {"python": "%d.%d" % sys.version_info[:2], "executable": sys.executable, "includes": [],
         "missing": [name for name in needed if importlib.util.find_spec(name) is None]}
if "torch" not in facts["missing"]:
    import torch
    facts |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    facts["arch"] = "%d.%d" % torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    site = pathlib.Path(torch.__file__).parents[1]
    facts["includes"] = sorted(str(folder) for folder in site.glob("nvidia/*/include"))
print(json.dumps(facts))
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter to build for (default: this one)")
    parser.add_argument("--arch", help=f"compute capability, as in '8.0' or '9.0;10.0' (default: the GPU's, else "
                                       f"{DEFAULT_ARCH})")  # fmt: skip
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to build into (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        build(options.python, options.arch, options.out.resolve())
    except BuildError as error:
        print(f"megablocks: {error}", file=sys.stderr)
        return 1
    return 0


def build(python: str, arch: str | None, out: Path) -> None:
    """Builds into `out`, unless its BUILD.json already says the same. Raises BuildError."""
    facts = probe(python)
    record = {
        "packages": VERSIONS,
        "python": facts["python"],
        "torch": facts["torch"],
        "cuda": facts["cuda"],
        "arch": arch or facts["arch"] or DEFAULT_ARCH,
        "patches": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in patch_files()},
    }
    if is_built(out, record):
        print(f"megablocks: {out} is up to date: {describe(record)}")
        return
    toolkit = cuda_toolkit(facts["cuda"])
    environment = compiler_environment(toolkit, facts["includes"], record["arch"])
    # The interpreter's own ninja, without which torch compiles one file after the other.
    environment["PATH"] = os.pathsep.join([str(Path(facts["executable"]).parent), environment.get("PATH", "")])
    print(f"megablocks: building for {describe(record)} with {toolkit}/bin/nvcc into {out}")
    print(f"megablocks: {len(record['patches'])} patches; 6 to 8 minutes on 2 cores; log in {out / 'build.log'}")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, open(out / "build.log", "w", encoding="utf-8") as log:
        stage = Path(scratch) / "stage"
        sources = {name: fetch(python, name, Path(scratch), environment, log) for name in VERSIONS}
        for part in PARTS:
            print(f"megablocks: {part.package} {VERSIONS[part.package]} -> {part.folder}", flush=True)
            # A copy for each part: two builds of one package must not share objects.
            source = shutil.copytree(sources[part.package], Path(scratch) / part.folder / part.package)
            run([python, "-m", "pip", "install", "--verbose", "--no-deps", "--no-build-isolation", "--no-cache-dir",
                 "--disable-pip-version-check", "--target", str(stage / part.folder), str(source)],
                {**environment, **part.environment}, log)  # fmt: skip
        slim(stage)
        verify(python, stage, environment, log)
        for folder in FOLDERS:
            shutil.rmtree(out / folder, ignore_errors=True)
            shutil.move(stage / folder, out / folder)
    (out / "BUILD.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"megablocks: done, {size / 2**20:.1f} MiB")


def describe(record: dict) -> str:
    return f"Python {record['python']}, torch {record['torch']}, CUDA {record['cuda']}, arch {record['arch']}"


def is_built(out: Path, record: dict) -> bool:
    path = out / "BUILD.json"
    return (path.exists() and json.loads(path.read_text(encoding="utf-8")) == record
            and all((out / folder).is_dir() for folder in FOLDERS))  # fmt: skip


def patch_files() -> list[Path]:
    return sorted(PATCHES.glob("*.patch"))


def probe(python: str) -> dict:
    """Versions of the interpreter, of its torch and of that torch's CUDA. Raises BuildError if one is not there."""
    try:
        answer = subprocess.run(
            [python, "-c", PROBE], capture_output=True, encoding="utf-8", errors="replace", check=True
        )
    except OSError as error:
        raise BuildError(f"cannot run {python}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{python} fails: {error.stderr.strip().splitlines()[-1]}") from error
    facts = json.loads(answer.stdout)
    if "torch" in facts and not facts["cuda"]:
        raise BuildError(f"torch {facts['torch']} of {python} is a build without CUDA: Megablocks needs one with CUDA")
    if facts["missing"]:
        raise BuildError(f"{python} lacks {', '.join(facts['missing'])}: pip install {' '.join(facts['missing'])}")
    return facts


def cuda_toolkit(cuda: str) -> Path:
    """Folder of the CUDA toolkit, by CUDA_HOME or nvcc on PATH. Raises BuildError if its major is not `cuda`'s."""
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).is_file():
        raise BuildError(f"no nvcc (looked in {'CUDA_HOME' if home else 'PATH and /usr/local/cuda'}): install the CUDA "
                         f"{cuda} toolkit, which this torch was built for, or set CUDA_HOME")  # fmt: skip
    answer = subprocess.run([nvcc, "--version"], capture_output=True, encoding="utf-8", errors="replace").stdout
    release = re.search(r"release (\d+)\.(\d+)", answer)
    if release is None:
        raise BuildError(f"{nvcc} --version names no release")
    if release[1] != cuda.split(".")[0]:
        raise BuildError(f"{nvcc} is CUDA {release[1]}.{release[2]}, but torch was built for CUDA {cuda}: put an nvcc "
                         f"of CUDA {cuda.split('.')[0]} on PATH or set CUDA_HOME")  # fmt: skip
    # nvcc on PATH may be a wrapper elsewhere, so nvcc itself is asked where its toolkit lies.
    dry = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, encoding="utf-8", errors="replace"
    ).stderr
    top = re.search(r"^#\$ TOP=(.+)$", dry, re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parents[1]


def compiler_environment(toolkit: Path, includes: list[str], arch: str) -> dict[str, str]:
    """Environment of the compilers. Raises BuildError if a header that torch includes is nowhere."""
    environment = {**os.environ, "CUDA_HOME": str(toolkit), "TORCH_CUDA_ARCH_LIST": arch}
    missing = [name for name in HEADERS if not (toolkit / "include" / name).exists()]
    nowhere = [name for name in missing if not any(Path(folder, name).exists() for folder in includes)]
    if nowhere:
        raise BuildError(f"{', '.join(nowhere)} neither in {toolkit}/include nor in torch's nvidia packages: install "
                         "the whole CUDA toolkit")  # fmt: skip
    if missing:
        # Searched after every -I and -isystem, so that the toolkit's own headers win where it has them.
        known = [environment["CPLUS_INCLUDE_PATH"]] if environment.get("CPLUS_INCLUDE_PATH") else []
        environment["CPLUS_INCLUDE_PATH"] = os.pathsep.join([*known, *includes])
    return environment


def fetch(python: str, package: str, folder: Path, environment: dict[str, str], log) -> Path:
    """Downloads, unpacks and patches one source distribution; returns its folder. Raises BuildError."""
    target = folder / "sdist" / package
    requirement = f"{package}=={VERSIONS[package]}"
    run([python, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
         "--disable-pip-version-check", "--dest", str(target), requirement], environment, log)  # fmt: skip
    archive = next(target.glob("*.tar.gz"))
    with tarfile.open(archive) as sdist:
        sdist.extractall(target, filter="data")
    source = next(path for path in target.iterdir() if path.is_dir())
    for patch in patch_files():
        if patch.name.startswith(f"{package}-{VERSIONS[package]}-"):
            apply_patch(patch, source)
    return source


def apply_patch(patch: Path, source: Path) -> None:
    """Applies all of a patch to the files under `source`, or nothing. Raises BuildError if it does not fit."""
    # Inside of a repository git would silently skip files that the repository does not hold.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(source.resolve().parent)}
    command = ["git", "apply", "--whitespace=nowarn", str(patch)]
    try:
        done = subprocess.run(
            command, cwd=source, env=environment, capture_output=True, encoding="utf-8", errors="replace"
        )
    except OSError as error:
        raise BuildError(f"cannot run git, which applies the patches: {error.strerror}; install git") from error
    if done.returncode:
        said = "; ".join(done.stderr.splitlines())
        raise BuildError(f"{patch.name} does not apply to {source.name}: {said}")


def slim(stage: Path) -> None:
    """Leaves out symbols, bytecode, tests and benchmarks: the folders travel to the machine with the GPU."""
    for pattern in ("*_test.py", "*_benchmark.py"):
        for path in list(stage.rglob(pattern)):
            path.unlink()
    for path in list(stage.rglob("__pycache__")):
        shutil.rmtree(path)
    if strip := shutil.which("strip"):
        for path in stage.rglob("*.so"):
            subprocess.run([strip, "-s", str(path)], check=True)


def verify(python: str, stage: Path, environment: dict[str, str], log) -> None:
    """Imports all that was built, from where it was built: a clash of ABIs shows here. Raises BuildError."""
    for grouped in ("grouped_cublas", "grouped_cutlass"):
        path = os.pathsep.join([str(stage / grouped), str(stage / "common")])
        code = "import grouped_gemm, megablocks, stk; from megablocks import grouped_gemm_util as g; assert g.ops"
        run([python, "-B", "-c", code], {**environment, "PYTHONPATH": path}, log)


def run(command: list[str], environment: dict[str, str], log) -> None:
    """Runs one step with its output in the log. Raises BuildError with the log's end."""
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    if subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode:
        log.flush()
        tail = "\n".join(Path(log.name).read_text(errors="replace", encoding="utf-8").splitlines()[-30:])
        raise BuildError(f"a step failed; the end of {log.name}:\n{tail}")


if __name__ == "__main__":
    sys.exit(main())
