"""Tuned tables: tiles of `fast` that were measured to be the fastest, by GPU, layer and number of tokens.

One file a GPU, <device>.json in this folder, with the device's name as in results/; experiments/tune.py writes them. A
table is {layer: {tokens: tiles}} with a layer (quant, num_experts, top_k, hidden_dim, ffn_dim), and None where the
heuristic of choose.py or choose_packed.py was measured to be as good. quant: a weight format, ``none`` for 16 bits.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ...formats import formats
from ..tile_types import FastTile, FastTiles, FewTile, FewTiles

Shape: TypeAlias = "tuple[int, int, int, int]"
Layer: TypeAlias = "tuple[str, int, int, int, int]"
Tiles: TypeAlias = "FastTiles | FewTiles"
Table: TypeAlias = "dict[Layer, dict[int, Tiles | None]]"

FOLDER = Path(__file__).parent
SHAPE = ("num_experts", "top_k", "hidden_dim", "ffn_dim")
NONE = "none"
"""The format of weights in 16 bits."""
HEURISTIC = "heuristic"
REACH = 2
"""An entry serves down to its tokens divided by this: beyond, the load of an expert is another."""
_KINDS = {kind.__name__: kind for kind in (FastTiles, FewTiles)}
_TILES = {"FastTiles": FastTile, "FewTiles": FewTile}


def tuned_tiles(device: torch.device, shape: Shape, tokens: int, quant: str = NONE) -> Tiles | None:
    """The tiles measured for so many tokens, or for the next larger number, up to `REACH` times as many; else None.

    Raises ValueError if the device's table cannot be read.
    """
    return nearest(_table_of(device).get((quant, *shape), {}), tokens)


def nearest(entries: dict[int, Tiles | None], tokens: int) -> Tiles | None:
    """The entry of the least number of tokens that is not below `tokens`, None if that is out of `REACH`."""
    measured = min((count for count in entries if count >= tokens), default=None)
    return None if measured is None or measured > REACH * tokens else entries[measured]


def slug(device: str) -> str:
    """File name of a device: 'NVIDIA H200' is nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def load(path: Path) -> Table:
    """The table of a file, empty if there is none. Raises ValueError, naming file and entry, if it is not a table."""
    if not path.exists():
        return {}
    where = str(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        _only(document, "table", {"shapes"})
        table: Table = {}
        for entry in document["shapes"]:
            _only(entry, "shape", {"quant", *SHAPE, "tokens"})
            where = f"{path}, shape {[entry[name] for name in ('quant', *SHAPE)]}"
            if entry["quant"] not in (NONE, *formats()):
                raise ValueError(f"quant={entry['quant']!r}: one of {', '.join((NONE, *formats()))} is needed")
            layer = (entry["quant"], *(_count(entry, name) for name in SHAPE))
            if layer in table:
                raise ValueError("the shape stands twice")
            table[layer] = {}
            if not isinstance(entry["tokens"], dict):
                raise ValueError("tokens must be an object")
            for tokens, tiles in entry["tokens"].items():
                where = f"{path}, shape {list(layer)}, tokens {tokens}"
                if not re.fullmatch(r"[1-9][0-9]*", tokens):
                    raise ValueError("tokens must be a whole number above 0")
                table[layer][int(tokens)] = _decode(tiles)
        return table
    except (ValueError, OSError) as error:
        raise ValueError(f"{where}: {error}; mend it, or delete the file and run `make tune`") from None


def save(path: Path, table: Table) -> None:
    """Writes a table, layers and tokens in order, at once: nobody reads half of it."""
    shapes = [
        dict(zip(("quant", *SHAPE), layer))
        | {"tokens": {str(tokens): _encode(entries[tokens]) for tokens in sorted(entries)}}
        for layer, entries in sorted(table.items())
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"shapes": shapes}, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def table_path(device: torch.device) -> Path:
    """Where the table of a GPU is, or would be."""
    return FOLDER / f"{slug(torch.cuda.get_device_properties(device).name)}.json"


@functools.cache
def _table_of(device: torch.device) -> Table:
    if not torch.cuda.is_available():
        return {}  # a device that is only talked about: nothing is known of it
    return load(table_path(device))


def _encode(tiles: Tiles | None) -> Any:
    return HEURISTIC if tiles is None else {"kind": type(tiles).__name__, **asdict(tiles)}


def _decode(value: Any) -> Tiles | None:
    if value == HEURISTIC:
        return None
    if not isinstance(value, dict) or value.get("kind") not in _KINDS:
        raise ValueError(f"tiles must be {HEURISTIC!r} or have a kind, one of {', '.join(_KINDS)}")
    kind, tile = _KINDS[value["kind"]], _TILES[value["kind"]]
    _only(value, value["kind"], {"kind", *(field.name for field in fields(kind))})
    parts = {name: _decode_tile(tile, value[name]) for name in ("gate_up", "down")}
    if kind is FewTiles:
        return FewTiles(**parts)
    return FastTiles(**{name: value[name] for name in ("block_m", "dynamic", "one_grid")}, **parts)


def _decode_tile(kind: type[FastTile] | type[FewTile], value: Any) -> Any:
    _only(value, kind.__name__, {field.name for field in fields(kind)})
    return kind(**value)


def _only(value: Any, what: str, names: set[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object")
    for found, word in ((set(value) - names, "unknown"), (names - set(value), "missing")):
        if found:
            raise ValueError(f"{what} has {word} keys {', '.join(sorted(found))}")


def _count(value: dict[str, Any], name: str) -> int:
    number = value[name]
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name}={number!r}: a whole number above 0 is needed")
    return number
