"""The map of the rooms says what the linter holds, in the same order, and every room is on it."""

import re
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and up read pyproject.toml")
ROOT = Path(__file__).resolve().parents[2]
MAP = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")


def layers() -> list[set[str]]:
    """The rooms of the linter, the one that imports nobody first; rooms of one set do not import each other."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    [rooms] = [contract for contract in contracts if contract.get("containers") == ["tritonmoe_bench.experiments"]]
    return [set(layer.split(" | ")) for layer in reversed(rooms["layers"])]


def test_the_map_has_the_rooms_of_the_linter_in_its_order():
    rows = re.findall(r"^\| (`.+?) \|", MAP, re.MULTILINE)
    assert [{name.removesuffix(".py") for name in re.findall(r"`(.+?)`", row)} for row in rows] == layers()


def test_every_room_has_its_layer():
    folder = ROOT / "experiments"
    rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
    rooms |= {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert rooms == set().union(*layers())
