"""Makes, from Humming's wheel, a folder that holds it: the wheel unpacked, without its tests.

    python baselines/builds/offline/unpack_humming.py [--wheel FILE] [--out .peers/humming]

Humming compiles its kernels when they are first used, from headers of its own. Where there is network,
`pip install humming-kernels==0.1.19` does as well.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from wheels import PruneError, download, size_of, write

VERSION = "0.1.19"
DEFAULT_OUT = Path(__file__).resolve().parents[3] / ".peers" / "humming"
PLATFORM = ("--only-binary=:all:", "--platform", "manylinux_2_28_x86_64", "--python-version", "3.12")
LEFT_OUT = "humming/testing/"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheel", type=Path, help=f"wheel of humming-kernels {VERSION} (default: pip downloads it)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to make (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            size = unpack(options.wheel or fetch(Path(folder)), options.out)
    except PruneError as error:
        print(f"unpack_humming: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {size / 2**20:.1f} MiB, Humming {VERSION}")
    return 0


def fetch(folder: Path) -> Path:
    """The wheel, downloaded into the folder."""
    download(f"humming-kernels=={VERSION}", folder, *PLATFORM, instead="give a wheel by --wheel")
    return next(folder.glob("humming_kernels-*.whl"))


def unpack(wheel: Path, out: Path) -> int:
    """Replaces the folder `out`; its size in bytes."""
    with zipfile.ZipFile(wheel) as archive:
        if f"humming_kernels-{VERSION}.dist-info/METADATA" not in archive.namelist():
            raise PruneError(f"{wheel.name} is not Humming {VERSION}, the version that the adapter knows")
        shutil.rmtree(out, ignore_errors=True)
        for name in archive.namelist():
            if not name.endswith("/") and not name.startswith(LEFT_OUT):
                write(out / name, archive.read(name))
                (out / name).chmod(0o755 if "/_native/" in name else 0o644)
    (out / "BUILD.json").write_text(json.dumps({"humming_kernels": VERSION}) + "\n", encoding="utf-8")
    return size_of(out)


if __name__ == "__main__":
    sys.exit(main())
