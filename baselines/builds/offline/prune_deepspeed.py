"""Makes, from DeepSpeed's source distribution, a folder that holds its expert-parallel MoE layer and little else.

    python baselines/builds/offline/prune_deepspeed.py [--sdist FILE] [--out .peers/deepspeed]

DeepSpeed needs a dozen packages, and its set-up looks for a compiler; its MoE layer is Python and Triton. The files are
DeepSpeed's own, unchanged; a module that is not here is answered for by name (absent.py), and fails when it is used.
Where there is network, `pip install deepspeed==0.19.8` does as well.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from importable import add_to
from wheels import PruneError, download, size_of, write

VERSION = "0.19.8"
DEFAULT_OUT = Path(__file__).resolve().parents[3] / ".peers" / "deepspeed"
FILES = (
    "deepspeed/moe/__init__.py", "deepspeed/moe/ep_count.py", "deepspeed/moe/ep_experts.py",
    "deepspeed/moe/ep_kernels.py", "deepspeed/moe/ep_repack.py", "deepspeed/moe/ep_router.py",
    "deepspeed/moe/fused_expert_layout.py",
    "deepspeed/module_inject/auto_ep_layer.py", "deepspeed/module_inject/auto_ep_config.py",
    "deepspeed/module_inject/auto_ep_comm.py", "deepspeed/module_inject/auto_ep_folding.py",
    "deepspeed/checkpoint/affine.py", "deepspeed/checkpoint/autoep_affine.py", "deepspeed/checkpoint/constants.py",
    "deepspeed/accelerator/__init__.py", "deepspeed/accelerator/real_accelerator.py",
    "deepspeed/accelerator/abstract_accelerator.py", "deepspeed/accelerator/cuda_accelerator.py",
    "deepspeed/runtime/zero/__init__.py", "deepspeed/runtime/zero/utils.py",
    "deepspeed/utils/__init__.py", "deepspeed/utils/logging.py", "deepspeed/utils/nvtx.py",
    "deepspeed/utils/torch.py",
)  # fmt: skip
FOLDERS = re.compile(r"deepspeed/(ops/triton_ops|module_inject/auto_ep_presets)/\w+\.py")
ABSENT = ("deepspeed", "psutil", "pydantic", "hjson", "cpuinfo", "tqdm")
"""Packages whose missing modules are answered for: files that are kept import them, and do not use them here."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sdist", type=Path, help=f"deepspeed-{VERSION}.tar.gz (default: pip downloads it)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to make (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            size = prune(options.sdist or fetch(Path(folder)), options.out)
    except PruneError as error:
        print(f"prune_deepspeed: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {size / 2**10:.0f} KiB, DeepSpeed {VERSION}")
    return 0


def fetch(folder: Path) -> Path:
    """The source distribution, downloaded into the folder; its set-up needs torch."""
    options = ("--no-binary=:all:", "--no-build-isolation")
    download(f"deepspeed=={VERSION}", folder, *options, instead="give its sdist by --sdist")
    return next(folder.glob("deepspeed-*.tar.gz"))


def prune(sdist: Path, out: Path) -> int:
    """Replaces the folder `out`; its size in bytes."""
    top = f"deepspeed-{VERSION}/"
    shutil.rmtree(out, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        if f"{top}PKG-INFO" not in archive.getnames():
            raise PruneError(f"{sdist.name} is not DeepSpeed {VERSION}, the version whose layout this tool knows")
        for member in archive.getmembers():
            name = member.name.removeprefix(top)
            content = archive.extractfile(member) if name in FILES or FOLDERS.fullmatch(name) else None
            if content is not None:
                write(out / name, content.read())
    missing = [file for file in FILES if not (out / file).is_file()]
    if missing:
        raise PruneError(f"{sdist.name} lacks {', '.join(missing)}")
    add_to(out, "deepspeed", ABSENT)
    (out / "BUILD.json").write_text(json.dumps({"deepspeed": VERSION}) + "\n", encoding="utf-8")
    return size_of(out)


if __name__ == "__main__":
    sys.exit(main())
