"""One GPU's folder of results as a file that can be given away: no host name, no user name and no path in it."""

from __future__ import annotations

import getpass
import re
import socket
import zipfile
from pathlib import Path

from ..table import store
from ..table.outcomes import AUTHORS, HERE

ENDINGS = (".csv", ".json")
LEFT_OUT = ("archive",)
STAMP = (1980, 1, 1, 0, 0, 0)
"""The same rows give the same file."""
PATH = re.compile(r"(?<![\w.:/])(?:/[\w.+@~-]+){2,}/?|\b[A-Za-z]:\\\\?[^\s\"',;]+|~/[^\s\"',;]+")


def pack(device: Path, out: Path) -> tuple[int, int]:
    """Writes `out`, a zip of the rows and provenance in a device's folder, older runs left out, and of how tests went
    there, which lies beside it; returns how many files, and how many host names, user names and paths were taken out.
    Raises store.Damaged for a file that is no text, FileNotFoundError where there is none."""
    paths = [
        path for path in sorted(device.rglob("*"))
        if path.suffix in ENDINGS and not set(LEFT_OUT) & set(path.relative_to(device).parts)
    ]  # fmt: skip
    beside = [device.parent / files.of_tests(device.name) for files in (HERE, AUTHORS)]
    paths += [path for path in beside if paths and path.exists()]
    if not paths:
        raise FileNotFoundError(f"{device} has no rows to send")
    taken = 0
    with store.writing(out), zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            text, removed = scrubbed(path.read_text(encoding="utf-8"))
            taken += removed
            name = path.relative_to(device.parent).as_posix()
            archive.writestr(zipfile.ZipInfo(name, STAMP), text, zipfile.ZIP_DEFLATED)
    return len(paths), taken


def scrubbed(text: str) -> tuple[str, int]:
    """The text without absolute paths, of which the last part stays, and without this machine's host and user name; and
    how many there were."""
    text, paths = PATH.subn(lambda found: ".../" + re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)
    removed = paths
    for name in {socket.gethostname(), socket.gethostname().partition(".")[0], getpass.getuser()}:
        if len(name) > 2 and name not in ("root", "user", "localhost"):
            text, count = re.subn(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "...", text)
            removed += count
    return text, removed
