"""Recorded routing: which experts a model chose, as an .npz that `experiments/record_routing.py` writes.

Its arrays are `ids`, int32 [layers, tokens, top_k], a token's experts with the largest weight first; `layers`, int32
[layers], which layers of the model they are; `num_experts`, one number; `about`, one line of text on where it comes
from; and, where they were recorded, `weights`, float32 [layers, tokens, top_k]. Tokens stand in the order in which the
model ran them: those of one decode step, one per sequence, follow each other.

A case names one layer of a file by `<file>:<layer>:<digest>`. The digest is of the file's content, so that no row
carries a name whose routing has changed since.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tritonmoe_bench import ROOT

DRAWN = "drawn"
"""The routing of a case that comes from no file, but from its skew and seed."""
FOLDER = ROOT / "conf" / "recorded"
DIGEST_LENGTH = 12


@dataclass(frozen=True)
class Recorded:
    """One recording.

    ids: int32 [layers, tokens, top_k]; layers: int32 [layers], their places in the model; weights: float32 as ids, or
    None; about: where it comes from. Raises ValueError, in one line, for arrays that cannot be.
    """

    ids: np.ndarray
    layers: np.ndarray
    num_experts: int
    about: str = ""
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        ids = self.ids
        if ids.ndim != 3 or not np.issubdtype(ids.dtype, np.integer) or 0 in ids.shape:
            raise ValueError(f"ids must be whole numbers [layers, tokens, top_k], got {ids.dtype} {list(ids.shape)}")
        if self.layers.shape != ids.shape[:1] or len(set(self.layers.tolist())) != len(ids):
            raise ValueError(f"layers must be {len(ids)} different numbers, got {self.layers.tolist()}")
        if ids.min() < 0 or ids.max() >= self.num_experts:
            raise ValueError(f"ids lie in {ids.min()}..{ids.max()}: allowed are 0..{self.num_experts - 1}")
        ranked = np.sort(ids, axis=2)
        if (ranked[:, :, 1:] == ranked[:, :, :-1]).any():
            raise ValueError("ids name an expert twice for one token")
        if self.weights is not None and (
            self.weights.shape != ids.shape or not np.isfinite(self.weights).all() or self.weights.min() < 0
        ):
            raise ValueError(f"weights must be numbers of at least 0, {list(ids.shape)} like ids")

    def write(self, path: Path) -> None:
        """Writes the file. Raises OSError."""
        extra = {} if self.weights is None else {"weights": self.weights.astype(np.float32)}
        np.savez_compressed(
            path, allow_pickle=False, ids=self.ids.astype(np.int32), layers=self.layers.astype(np.int32),
            num_experts=np.int64(self.num_experts), about=np.array(self.about), **extra,
        )  # fmt: skip


def read(path: Path) -> Recorded:
    """The recording in a file. Raises ValueError, in one line, for a file that is none."""
    return _parsed(path, _content(path))


def spelled_out(name: str) -> list[str]:
    """`<file>`, `<file>:<layer>` or the whole name, as the whole names of the layers meant, all of a file's by default.

    file: a path that ends in .npz, or the name of a file of conf/recorded/ without it. Raises ValueError for a file
    that is not there or not a recording, and for a layer or a digest that it does not have.
    """
    if name == DRAWN:
        return [name]
    file, layer, digest = _parts(name)
    path = _path(file)
    content = _content(path)
    held = _parsed(path, content).layers.tolist()
    own = _digest(content)
    if digest and digest != own:
        raise ValueError(f"routing={name}: the file has changed, its digest is {own} now")
    if layer and int(layer) not in held:
        raise ValueError(f"routing={name}: recorded layers are {', '.join(map(str, held))}")
    if path.parent != FOLDER:
        file = str(path.absolute())
    return [f"{file}:{number}:{own}" for number in held if layer in ("", str(number))]


def chosen(name: str, num_experts: int, top_k: int, tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(ids int64 [tokens, top_k], weights as ids or None) of a layer by its whole name: consecutive tokens, the first
    ones for seed 0, those after them for seed 1, and so on, from the start again where the file ends.

    Raises ValueError as `spelled_out`, and for a recording of other experts, another top_k or fewer tokens.
    """
    (whole,) = spelled_out(name)
    file, layer, _ = _parts(whole)
    recorded = read(_path(file))
    _, held, own_top_k = recorded.ids.shape
    if (recorded.num_experts, own_top_k) != (num_experts, top_k):
        raise ValueError(
            f"routing={name}: recorded of {recorded.num_experts} experts and top_k={own_top_k}, the layer has "
            f"{num_experts} and {top_k}"
        )
    if tokens > held:
        raise ValueError(f"routing={name}: {held} tokens were recorded, not tokens={tokens}")
    first = seed * tokens % (held - tokens + 1)
    place = recorded.layers.tolist().index(int(layer)), slice(first, first + tokens)
    weights = None if recorded.weights is None else recorded.weights[place]
    return recorded.ids[place].astype(np.int64), weights


def names() -> list[str]:
    """The recordings of conf/recorded/."""
    return sorted(path.stem for path in FOLDER.glob("*.npz"))


def _parts(name: str) -> tuple[str, str, str]:
    file, layer, digest = (*name.split(":"), "", "")[:3]
    if name.count(":") > 2 or not (layer == "" or layer.isdecimal()):
        raise ValueError(f"routing={name}: give <file> or <file>:<layer>, or {DRAWN}")
    return file, layer, digest


def _path(file: str) -> Path:
    return Path(file).expanduser() if file.endswith(".npz") else FOLDER / f"{file}.npz"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"routing: cannot read {path} ({error.strerror}); allowed are {DRAWN}, {', '.join(names())}, or the path "
            "of an .npz of experiments/record_routing.py"
        ) from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, content: bytes) -> Recorded:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            one = int(file["num_experts"]), str(file["about"])
            return Recorded(file["ids"], file["layers"], *one, file.get("weights"))
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"routing: {path} is no recording: {' '.join(str(error).split())}") from None
