"""The check of tiles that a caller gives, before any launch: for the call, and for the format of its weights."""

from __future__ import annotations

import torch

from ..formats import Packed
from ..formats.four_bits import BLOCK, ROWS, FourBits
from ..formats.fp8_block import Fp8Block
from ..formats.int4 import Int4
from ..target import target_of
from .e4m3 import GROUP
from .experts import Experts
from .few_parts import APART, SCALED_APART
from .packed import activations_of, few_fit
from .route import Chosen, Router, joinable
from .tile_types import JOINED_TOKENS, AnyTiles, FastTiles, FewTiles, JoinedTiles, steps_of
from .tiled import TILE


def check_tiles(tiles: object, x: torch.Tensor, route: Router | Chosen, experts: Experts, invariant: bool) -> None:
    """Raises TypeError for what are no tiles, ValueError for tiles that this call cannot be run with; x: [..., hidden],
    which is checked already, as route and experts are."""
    if tiles is None:
        return
    if not isinstance(tiles, FastTiles | FewTiles | JoinedTiles):
        raise TypeError(f"tiles must be FastTiles, FewTiles or JoinedTiles, got {type(tiles).__name__}")
    hidden = x.shape[-1]
    tokens = x.numel() // hidden
    if isinstance(tiles, FewTiles):
        if tokens * route.top_k * max(hidden, experts.ffn) >= 2**31:
            raise ValueError(f"{tokens} tokens are too many for FewTiles: their offsets have 32 bits")
        if experts.packed and not few_fit(experts):
            raise ValueError("FewTiles over weights of four bits take them as prepared() gives them: call it on both")
    if isinstance(tiles, FastTiles) and tiles.one_grid and target_of(x.device).is_amd:
        raise ValueError("one_grid needs a GPU of NVIDIA's, which starts the programs of a grid in their order")
    if invariant and (not isinstance(tiles, FastTiles) or tiles.dynamic):
        raise ValueError("invariant=True takes one tile for all blocks: FastTiles with dynamic=False, or none")
    if isinstance(tiles, JoinedTiles):
        _check_joined(tiles, x, route, experts, tokens)
    if isinstance(experts.gate_up, Packed):
        # The output-centric path takes 16 bits wherever the caller leaves them open.
        left_open = isinstance(tiles, FewTiles) and experts.activations is None
        bits = "a16" if left_open else activations_of(x, experts)
        check_format(tiles, type(experts.gate_up), bits)
        if isinstance(tiles, FastTiles) and isinstance(experts.gate_up, Int4) and bits == "a8":
            _check_whole(tiles, experts.ffn, hidden)
    else:
        check_format(tiles, None, in_tiles=experts.in_tiles)


def _check_joined(tiles: JoinedTiles, x: torch.Tensor, route: Router | Chosen, experts: Experts, tokens: int) -> None:
    if target_of(x.device).is_amd:
        raise ValueError("JoinedTiles need a GPU of NVIDIA's, which starts the programs of a grid in their order")
    if tokens > JOINED_TOKENS:
        raise ValueError(f"JoinedTiles take up to {JOINED_TOKENS} tokens, got {tokens}")
    whole = TILE if experts.in_tiles else 1
    if tiles.splits > 1 and (experts.packed or experts.ffn % (tiles.splits * whole)):
        parts = f"equal parts{' of whole tiles' if experts.in_tiles else ''} alone"
        raise ValueError(f"JoinedTiles split sums of 16-bit weights into {parts}, got splits={tiles.splits}")
    if not joinable(route, experts):
        raise ValueError("JoinedTiles cannot weight the input of a token that may be given an expert twice")


def _check_whole(tiles: FastTiles, ffn: int, hidden: int) -> None:
    """The zero points of int4 are summed for whole tiles of weight rows, inside of the weights or not."""
    for name, rows, tile in (("gate_up", ffn, tiles.gate_up), ("down", hidden, tiles.down)):
        if rows % tile.block_n:
            raise ValueError(
                f"FastTiles over int4 with activations='a8' need columns that divide {rows} in {name}, "
                f"got {tile.block_n}"
            )


def check_format(tiles: AnyTiles, kind: type[Packed] | None, activations: str = "a16", in_tiles: bool = False) -> None:
    """Raises ValueError for tiles that weights of a format cannot be read with.

    kind: of packed weights, None for 16 bits, which in_tiles are `tiled`; activations: ``a8`` or ``a16``, what packed
    weights are multiplied with.
    """
    if in_tiles and any(step % TILE for step in steps_of(tiles)):
        raise ValueError(f"tiled weights take tiles whose steps are whole {TILE} columns, got {tiles}")
    if isinstance(tiles, FewTiles):
        _check_few(tiles, kind, activations)
    elif kind is not None:
        if isinstance(tiles, FastTiles):
            _check_scheduled(tiles, kind, activations)
        _check_columns(tiles, kind, activations)


def _check_few(tiles: FewTiles, kind: type[Packed] | None, activations: str) -> None:
    if kind is None:
        if tiles.down.step < APART.value:
            raise ValueError(f"FewTiles need steps of {APART.value} columns or more in down, got {tiles.down.step}")
        return
    if activations == "a8":
        raise ValueError("FewTiles multiply with activations='a16' alone")
    for name, tile in (("gate_up", tiles.gate_up), ("down", tiles.down)):
        if kind is Fp8Block:
            if tile.step < SCALED_APART.value:
                least = SCALED_APART.value
                raise ValueError(f"FewTiles over {kind.name} need steps of {least} columns or more, got {tile.step}")
        elif tile.block_n % ROWS or tile.step % BLOCK or tile.stages > 1:
            wanted = f"rows in eights and steps of whole {BLOCK} columns, one in flight"
            raise ValueError(f"FewTiles over {kind.name} need {wanted}, got {tile}")
        # A program reads the scales of one row of blocks; of four bits it writes at most a block of columns for down.
        if tile.block_n > BLOCK and (kind is Fp8Block or name == "gate_up"):
            raise ValueError(f"FewTiles over {kind.name} need {BLOCK} rows at the most in {name}, got {tile.block_n}")


def _check_scheduled(tiles: FastTiles, kind: type[Packed], activations: str) -> None:
    if tiles.one_grid and issubclass(kind, FourBits):
        raise ValueError(f"one_grid is for weights of 16 bits and fp8_block, got {kind.name}")
    for tile, width in ((tiles.gate_up, 2 * tiles.gate_up.block_n), (tiles.down, tiles.down.block_n)):
        if tile.bulk:
            raise ValueError(f"bulk is for weights of 16 bits, got {kind.name}")
        if activations == "a16" or kind is Fp8Block:
            continue
        least = 32 * tile.num_warps
        # Else a thread does not have whole words of the left operand where they are unpacked (NOTES.md, Traps).
        if width < least or any(step > BLOCK or not swap for _, _, step, _, swap in tiles.ladder(tile)):
            raise ValueError(
                f"tiles for {kind.name} with 8-bit activations have weights on the left, {least} rows of them or more "
                f"for {tile.num_warps} warps, and steps of {BLOCK} columns, got {width} rows in {tile}"
            )


def _check_columns(tiles: FastTiles | JoinedTiles, kind: type[Packed], activations: str) -> None:
    """What both paths of the matrix units ask of tiles for packed weights."""
    name = f"{type(tiles).__name__} over {kind.name}"
    if isinstance(tiles, JoinedTiles):
        needed = "a8" if kind is Fp8Block else "a16"
        if activations != needed:
            raise ValueError(f"{name} multiply with activations={needed!r} alone")
    for step in steps_of(tiles):
        if step % GROUP:
            raise ValueError(f"{name} need steps of whole {GROUP} columns, got {step}")
    columns = tiles.gate_up.block_n
    if kind is Fp8Block and activations == "a8" and columns != GROUP:
        # A column of gate and up is what down finds one scale per row for.
        raise ValueError(f"{name} with activations='a8' need gate and up of {GROUP} columns, got {columns}")
    if issubclass(kind, FourBits) and activations == "a16" and columns > BLOCK:
        raise ValueError(f"{name} need gate and up of {BLOCK} columns at the most, got {columns}")
