"""Closed-form memory traffic of the output-centric path of `fast`, which a few tokens take."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tritonmoe_bench.kernels.fast.tile_types import FewTile, FewTiles
from tritonmoe_bench.kernels.formats.four_bits import BLOCK, ROWS

from ..workload.case import BYTES_PER_ELEMENT, Case
from .model_paper import INDEX_BYTES, Bytes, Entry, reads, writes
from .operands import Operands

FLOAT_BYTES = 4
THREADS = 32
"""That share a block of prepared weights of four bits."""


def few(case: Case, counts: np.ndarray, tiles: FewTiles, held: Operands) -> Iterable[Entry]:
    """The output-centric path: a slot, or a token, and a few outputs a program; no schedule and no combine."""
    hidden, ffn, slots = case.hidden_dim, case.ffn_dim, case.slots
    active = int((counts > 0).sum())

    def programs(n: int, tile: FewTile) -> int:
        return -(-n // tile.block_n)

    inward, back = programs(ffn, tiles.gate_up), programs(hidden, tiles.down)
    gate_up = Bytes(read=slots * 2 * held.issued_by_few(ffn, hidden, 2, tiles.gate_up),
                    unique_read=active * 2 * held.matrix(ffn, hidden, 2, tiles.gate_up.step))  # fmt: skip
    down = Bytes(read=slots * held.issued_by_few(hidden, ffn, 1, tiles.down),
                 unique_read=active * held.matrix(hidden, ffn, 1, tiles.down.step))  # fmt: skip
    x = case.tokens * hidden * BYTES_PER_ELEMENT
    plain = case.quant == "none"
    intermediate = slots * ffn * (BYTES_PER_ELEMENT if plain else FLOAT_BYTES)
    return [
        ("gate_up", "topk_experts", reads(slots * INDEX_BYTES, inward)),
        ("gate_up", "topk_scores", reads(slots * FLOAT_BYTES, inward)),
        ("gate_up", "x", reads(x, case.top_k * inward)),
        ("gate_up", "gate_up_weights", gate_up),
        ("gate_up", "intermediate", writes(intermediate)),
        # A program looks its expert up for every step.
        ("down", "topk_experts", reads(slots * INDEX_BYTES, back * -(-ffn // tiles.down.step))),
        ("down", "down_weights", down),
        # In 16 bits each row of a tile loads it for itself.
        ("down", "intermediate", reads(intermediate, back * (tiles.down.block_n if plain else 1))),
        ("down", "output", writes(x)),
    ]


def few_w4(case: Case, counts: np.ndarray, tiles: FewTiles, held: Operands) -> Iterable[Entry]:
    """As `few`, over prepared weights of four bits: activations are planes, which each of the eight weight rows that
    lie together loads for itself."""
    hidden, ffn, slots = case.hidden_dim, case.ffn_dim, case.slots
    active = int((counts > 0).sum())
    # Programs write what fills up the last block of the intermediate too, in eights of rows.
    inward = -(-held.columns(ffn) // tiles.gate_up.block_n)
    back = -(-hidden // tiles.down.block_n)
    # Each of the four threads of a row loads its own scale.
    gate_up, down = (
        Bytes(read=slots * n * held.whole_row(k, BLOCK // 4), unique_read=active * n * held.whole_row(k))
        for n, k in ((2 * ffn, hidden), (hidden, ffn))
    )
    x, intermediate = (rows * held.planes(columns) for rows, columns in ((case.tokens, hidden), (slots, ffn)))
    blocks = slots * held.columns(ffn) // BLOCK
    return [
        ("reorder", "x", reads(case.tokens * hidden * BYTES_PER_ELEMENT)),
        ("reorder", "rows", writes(x)),
        ("gate_up", "topk_experts", reads(slots * INDEX_BYTES, inward)),
        ("gate_up", "topk_scores", reads(slots * FLOAT_BYTES, inward)),
        ("gate_up", "rows", reads(x, case.top_k * inward * ROWS)),
        ("gate_up", "gate_up_weights", gate_up),
        ("gate_up", "intermediate", writes(intermediate)),
        # Every thread looks the expert of its block up.
        ("down", "topk_experts", Bytes(read=blocks * THREADS * back * INDEX_BYTES, unique_read=slots * INDEX_BYTES)),
        ("down", "down_weights", down),
        ("down", "intermediate", reads(intermediate, back * ROWS)),
        ("down", "output", writes(case.tokens * hidden * BYTES_PER_ELEMENT)),
    ]
