"""The drawn figures as the report shows them: what plots/draw.py wrote into a PNG, beside its path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Drawn:
    """name: of the file; caption: what its rows say; title: what it shows; source: device and CSVs."""

    name: str
    path: Path
    title: str
    caption: str
    source: str


def drawn(folder: Path) -> dict[str, Drawn]:
    """Every figure of a device's folder by name; a picture that plots/draw.py did not write is left out."""
    found = {path.stem: _read(path) for path in sorted(folder.glob("*.png"))}
    return {name: picture for name, picture in found.items() if picture}


def _read(path: Path) -> Drawn | None:
    with Image.open(path) as picture:
        info = picture.info
    title, studies = info.get("Title"), info.get("Source")
    if not title or not studies:
        return None
    source = f"{path.parent.name}, from {studies.replace(', ', '.csv, ')}.csv"
    return Drawn(path.stem, path, title, info.get("Description") or title, source)
