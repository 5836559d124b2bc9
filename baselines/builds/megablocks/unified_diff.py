"""Applies unified diffs with no `patch` program, and more strictly: every hunk must fit at its very line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")


@dataclass
class Hunk:
    """`old` lines from line `start` on (counted from 1) become `new`."""

    start: int
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


@dataclass
class FilePatch:
    path: str
    hunks: list[Hunk] = field(default_factory=list)


def parse_patch(text: str) -> tuple[str, list[FilePatch]]:
    """(the words before the first file, the files) of a unified diff. Raises ValueError for what is not one."""
    lines = text.splitlines()
    first = next((index for index, line in enumerate(lines) if line.startswith("--- ")), None)
    if first is None:
        raise ValueError("no line that starts with '--- '")
    files: list[FilePatch] = []
    index = first
    while index < len(lines):
        if not lines[index].startswith("--- ") or not lines[index + 1].startswith("+++ b/"):
            raise ValueError(f"line {index + 1}: expected '--- a/...' and '+++ b/...', got {lines[index]!r}")
        files.append(FilePatch(lines[index + 1].removeprefix("+++ b/").split("\t")[0]))
        index += 2
        while index < len(lines) and (header := HUNK.match(lines[index])):
            hunk, old, new = Hunk(int(header[1])), int(header[2] or 1), int(header[3] or 1)
            index += 1
            while len(hunk.old) < old or len(hunk.new) < new:
                mark, content = (lines[index][:1], lines[index][1:]) if index < len(lines) else ("", "")
                if mark not in (" ", "-", "+"):
                    raise ValueError(f"line {index + 1}: a hunk ends too early")
                if mark != "+":
                    hunk.old.append(content)
                if mark != "-":
                    hunk.new.append(content)
                index += 1
            files[-1].hunks.append(hunk)
        if not files[-1].hunks:
            raise ValueError(f"no hunk for {files[-1].path}")
    return "\n".join(lines[:first]).strip(), files


def apply_patch(text: str, root: Path) -> None:
    """Applies a patch to the files under `root`, all or nothing. Raises ValueError if it does not fit."""
    changed: dict[Path, str] = {}
    for file in parse_patch(text)[1]:
        path = root / file.path
        if not path.is_file():
            raise ValueError(f"there is no file {file.path}")
        lines = path.read_text(encoding="utf-8").splitlines()
        for hunk in reversed(file.hunks):
            begin, end = hunk.start - 1, hunk.start - 1 + len(hunk.old)
            if lines[begin:end] != hunk.old:
                raise ValueError(f"{file.path}, line {hunk.start}: the text is another one")
            lines[begin:end] = hunk.new
        changed[path] = "\n".join(lines) + "\n"
    for path, content in changed.items():
        path.write_text(content, encoding="utf-8")
