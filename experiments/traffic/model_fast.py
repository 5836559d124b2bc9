"""Closed-form memory traffic of `fast`, per stage and tensor, from shape, tiles and expert counts.

As in model_paper.py, issued and unique bytes of every Triton kernel agree to the byte with what the interpreter
counts (tests/traffic/test_traffic_fast.py). The order of the programs does not matter to either. Beyond
`SPLIT_TOKENS`, the router GEMM is PyTorch's, and counts each operand once. Weights and activations count with their
scales, as operands.py has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import triton

from tritonmoe_bench.kernels.fast import choose, tuned
from tritonmoe_bench.kernels.fast.choose_packed import choose_packed_tiles, format_tiles
from tritonmoe_bench.kernels.fast.forward import combine_tile
from tritonmoe_bench.kernels.fast.logits import FEW_TOKENS, SPLIT_TOKENS, TALL, experts_of_program, pieces
from tritonmoe_bench.kernels.fast.routing import lanes, tokens_of_program
from tritonmoe_bench.kernels.fast.tile_types import AnyTiles, FastTile, FastTiles, FewTiles, JoinedTiles
from tritonmoe_bench.kernels.formats import formats
from tritonmoe_bench.kernels.paper.schedule import max_blocks
from tritonmoe_bench.kernels.paper.tiles import GROUP_M
from tritonmoe_bench.kernels.weighting import weighted_by_down

from ..workload.case import BYTES_PER_ELEMENT, Case
from ..workload.routing import TORCH_DTYPE
from .model_few import FLOAT_BYTES, few, few_w4
from .model_paper import INDEX_BYTES, Bytes, Entry, Table, check_counts, reads, tabulated, writes
from .operands import MODELLED_TARGET, Operands, operands_of, target

NAME = "fast"
TABLE_LINES = 5
"""Of the table of row blocks: expert, first row, rows, first neighbour, neighbours."""
MODELLED_GPU = "nvidia-h200"
"""Where there is no GPU, the tuned tiles are those of this one."""


def chosen_tiles(case: Case) -> AnyTiles:
    """The tiles that `fast` takes on this machine's GPU, or on an H200 if there is none."""
    shape = (case.num_experts, case.top_k, case.hidden_dim, case.ffn_dim)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    if device is not None and case.quant != "none":
        return choose_packed_tiles(device, formats()[case.quant], shape, case.tokens)
    if device is not None:
        return choose.choose_tiles(device, *shape, case.tokens)
    table = tuned.load(tuned.FOLDER / f"{MODELLED_GPU}.json")
    found = tuned.nearest(table.get((case.quant, *shape), {}), case.tokens)
    if case.quant != "none":
        return found or format_tiles(formats()[case.quant], target(), shape, case.tokens, None)
    return found or choose.heuristic_tiles(MODELLED_TARGET, *shape, case.tokens)


@dataclass(frozen=True)
class RowBlock:
    """A row block of the schedule. neighbours: how many blocks, itself too, run side by side on one weight tile."""

    expert: int
    rows: int
    neighbours: int


def row_blocks(counts: Sequence[int] | np.ndarray, block_m: int) -> list[RowBlock]:
    """The blocks that hold a row, in the order of the table: what `_place_kernel` makes of expert counts."""
    blocks = []
    for expert, count in enumerate(map(int, counts)):
        own = -(-count // block_m)
        height = -(-count // max(own, 1))
        for number in range(own):
            group = number // GROUP_M * GROUP_M
            blocks.append(RowBlock(expert, min(count - number * height, height), min(own - group, GROUP_M)))
    return blocks


def fast_traffic(
    case: Case,
    counts: Sequence[int] | np.ndarray,
    tiles: AnyTiles,
    on_gpu: bool = True,
    activations: str | None = None,
) -> Table:
    """Traffic of one forward of `fast` with these tiles.

    counts: slots of each expert, [num_experts], as `draw_routing` gives them; on_gpu: some launches are cut otherwise
    in the interpreter, where PyTorch's router GEMM takes float32 too; activations: as in `operands_of`. Raises
    ValueError for counts that are not the case's.
    """
    counts, held = check_counts(case, counts), operands_of(case, tiles, activations)
    if isinstance(tiles, FewTiles):
        experts = (few_w4 if held.four_bits else few)(case, counts, tiles, held)
    elif isinstance(tiles, JoinedTiles):
        experts = [*_rows(case, held), *_joined(case, counts, tiles, held, on_gpu)]
    else:
        experts = [*_rows(case, held), *_blocks(case, counts, tiles, held, on_gpu)]
    joined = isinstance(tiles, JoinedTiles)
    return tabulated([*_logits(case, on_gpu), *_top_k(case, on_gpu, joined), *experts])


def _rows(case: Case, held: Operands) -> list[Entry]:
    """x as the experts take it, where that is of 8 bits or of another order."""
    if not held.before:
        return []
    return [
        (held.before, "x", reads(case.tokens * case.hidden_dim * BYTES_PER_ELEMENT)),
        (held.before, held.rows, writes(case.tokens * held.row(case.hidden_dim))),
    ]


def _logits(case: Case, on_gpu: bool) -> list[Entry]:
    tokens, num_experts = case.tokens, case.num_experts
    x, weight = (rows * case.hidden_dim * BYTES_PER_ELEMENT for rows in (tokens, num_experts))
    logits = tokens * num_experts * FLOAT_BYTES
    if tokens > SPLIT_TOKENS:
        wider = 1 if on_gpu else FLOAT_BYTES // BYTES_PER_ELEMENT
        x_reads, weight_reads = reads(x * wider), reads(weight * wider)
    elif tokens <= FEW_TOKENS:
        x_reads, weight_reads = reads(x, num_experts), reads(weight)
    else:
        token_programs = -(-tokens // TALL)
        expert_programs = -(-num_experts // experts_of_program(tokens, num_experts))
        x_reads, weight_reads = reads(x, expert_programs), reads(weight, token_programs)
    return [
        ("router", "x", x_reads),
        ("router", "router_weight", weight_reads),
        ("router", "logits", writes(logits * _parts(case))),
    ]


def _parts(case: Case) -> int:
    """Pieces of the hidden dimension that the logits come in."""
    return pieces(case.tokens, case.hidden_dim, case.num_experts)[0] if FEW_TOKENS < case.tokens <= SPLIT_TOKENS else 1


def _top_k(case: Case, on_gpu: bool, joined: bool) -> list[Entry]:
    padded = lanes(case.num_experts, case.gate.groups)
    logits = _parts(case) * case.tokens * case.num_experts * FLOAT_BYTES
    block_t = min(triton.next_power_of_2(case.tokens), tokens_of_program(padded, on_gpu))
    entries: list[Entry] = [
        ("router", "logits", reads(logits)),
        ("router", "topk_scores", writes(case.slots * FLOAT_BYTES)),
        ("router", "topk_experts", writes(case.slots * INDEX_BYTES)),
    ]
    if joined:
        entries.append(("router", "schedule", writes(case.slots * INDEX_BYTES)))
    if case.gate.correction_bias:
        entries.append(("router", "correction_bias", reads(case.num_experts * FLOAT_BYTES, -(-case.tokens // block_t))))
    return entries


def _blocks(case: Case, counts: np.ndarray, tiles: FastTiles, held: Operands, on_gpu: bool) -> list[Entry]:
    """The path with a schedule."""
    hidden, ffn, slots = case.hidden_dim, case.ffn_dim, case.slots
    listed = max_blocks(slots, case.num_experts, tiles.block_m)
    blocks = row_blocks(counts, tiles.block_m)
    table = TABLE_LINES * listed * INDEX_BYTES
    intermediate, out = slots * held.row(ffn), slots * hidden * BYTES_PER_ELEMENT
    gate_up = _Gemm(tiles, tiles.gate_up, ffn, hidden, 2, blocks, listed, held, held.columns(ffn))
    down = _Gemm(tiles, tiles.down, hidden, ffn, 1, blocks, listed, held, hidden)
    inward, outward = ("experts", "experts") if tiles.one_grid else ("gate_up", "down")
    schedules = [(inward, "schedule", gate_up.schedule(case)), (outward, "schedule", down.schedule(case))]
    arrivals = 0
    if tiles.one_grid:
        # A program of gate and up counts itself, one of down looks; and what both read of the schedule is the same.
        arrivals, counted = (len(blocks) * times * INDEX_BYTES for times in (1, gate_up.columns + down.columns))
        again = replace(down.schedule(case), unique_read=0)
        both = gate_up.schedule(case) + again + Bytes(counted, counted, arrivals, arrivals)
        schedules = [(inward, "schedule", both)]
    return [
        # Each expert's program reads all slots twice: to count those of lower experts and its own, and to place these.
        ("schedule", "topk_experts", reads(slots * INDEX_BYTES, 2 * case.num_experts)),
        ("schedule", "schedule", writes(slots * INDEX_BYTES) + writes(table) + writes(arrivals)),
        (inward, held.rows, Bytes(read=gate_up.columns * slots * held.row(hidden),
                                  unique_read=case.tokens * held.row(hidden))),
        (inward, "gate_up_weights", gate_up.weights()),
        (inward, "intermediate", writes(intermediate)),
        (outward, "intermediate", reads(intermediate, down.columns)),
        (outward, "down_weights", down.weights()),
        *schedules,
        (outward, "expert_out", writes(out)),
        *_combine(case, outward, down.columns, on_gpu),
    ]  # fmt: skip


def _combine(case: Case, stage: str, columns: int, on_gpu: bool, outputs: int = BYTES_PER_ELEMENT) -> list[Entry]:
    """The sum over the slots of a token, and the weights, which down multiplies by in float16. stage: down's; columns:
    of its tiles; outputs: bytes of each of its outputs, of all parts of a sum."""
    hidden, scores = case.hidden_dim, case.slots * FLOAT_BYTES
    if not weighted_by_down(TORCH_DTYPE[case.dtype]):
        stage, columns = "combine", -(-hidden // combine_tile(case.tokens, hidden, on_gpu)[0])
    return [
        (stage, "topk_scores", reads(scores, columns)),
        ("combine", "expert_out", reads(case.slots * hidden * outputs)),
        ("combine", "output", writes(case.tokens * hidden * BYTES_PER_ELEMENT)),
    ]


def _joined(case: Case, counts: np.ndarray, tiles: JoinedTiles, held: Operands, on_gpu: bool) -> list[Entry]:
    """The joined path: a program an expert, or a slot, and a column of tiles, in one launch for both GEMMs."""
    hidden, ffn, slots = case.hidden_dim, case.ffn_dim, case.slots
    active, by_expert = int((counts > 0).sum()), slots > case.num_experts
    inward, back = -(-held.columns(ffn) // tiles.gate_up.block_n), -(-hidden // tiles.down.block_n)
    outputs = FLOAT_BYTES * tiles.splits if tiles.splits > 1 else BYTES_PER_ELEMENT
    places = case.num_experts if by_expert else slots
    # A program reads all choices, and that of its own slot.
    choices = (slots + (0 if by_expert else 1)) * places * (inward + back * tiles.splits) * INDEX_BYTES
    # One of gate and up counts itself; one of down looks until all have, in the interpreter once.
    counted = (active * (inward + back * tiles.splits)) * INDEX_BYTES
    gate_up, down = (
        Bytes(
            read=active * m * held.issued(n, k, m, tile.step), unique_read=active * m * held.matrix(n, k, m, tile.step)
        )
        for n, k, m, tile in ((ffn, hidden, 2, tiles.gate_up), (hidden, ffn, 1, tiles.down))
    )
    x, intermediate, out = slots * held.row(hidden), slots * held.row(ffn), slots * hidden * outputs
    stage = "experts"
    return [
        (stage, "topk_experts", Bytes(read=choices, unique_read=slots * INDEX_BYTES)),
        (stage, "schedule", Bytes(counted, counted, active * INDEX_BYTES, active * INDEX_BYTES)),
        (stage, held.rows, Bytes(read=inward * x, unique_read=case.tokens * held.row(hidden))),
        (stage, "gate_up_weights", gate_up),
        (stage, "intermediate", writes(intermediate) + reads(intermediate, back)),
        (stage, "down_weights", down),
        (stage, "expert_out", writes(out)),
        *_combine(case, stage, back * tiles.splits, on_gpu, outputs),
    ]


@dataclass(frozen=True)
class _Gemm:
    """A grouped GEMM: a program a block and a column of tiles, in `matrices` weight matrices [n, k] an expert."""

    tiles: FastTiles
    tile: FastTile
    n: int
    k: int
    matrices: int
    blocks: list[RowBlock]
    listed: int
    held: Operands
    outputs: int
    """Columns that are written."""

    @property
    def columns(self) -> int:
        return -(-self.outputs // self.tile.block_n)

    def schedule(self, case: Case) -> Bytes:
        """Every listed block, one without rows too, looks its column up in the table."""
        shared = sum(block.neighbours > 1 for block in self.blocks)
        table = Bytes(read=(TABLE_LINES * self.listed + 2 * shared) * self.columns * INDEX_BYTES,
                      unique_read=TABLE_LINES * self.listed * INDEX_BYTES)  # fmt: skip
        return table + reads(case.slots * INDEX_BYTES, self.columns)

    def weights(self) -> Bytes:
        issued, unique = 0, dict[int, int]()
        for block in self.blocks:
            matrix = self.n, self.k, self.matrices, self._step(block)
            issued += self.matrices * self.held.issued(*matrix)
            unique[block.expert] = max(unique.get(block.expert, 0), self.matrices * self.held.matrix(*matrix))
        return Bytes(read=issued, unique_read=sum(unique.values()))

    def _step(self, block: RowBlock) -> int:
        """Columns that the tile of a block reads at a time."""
        ladder = self.tiles.ladder(self.tile)
        return next((rung[2] for rung in ladder if block.rows <= rung[0] + rung[1]), ladder[-1][2])
