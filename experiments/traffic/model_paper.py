"""Closed-form memory traffic of the paper's pipelines, per stage and tensor, from shape, tiles and expert counts.

Two figures for each: `issued`, every access that a kernel makes, tile by tile; and `unique`, each address once a
launch, which the stage must move at least. Both agree to the byte with what the interpreter counts, for every tensor
of every Triton kernel (tests/traffic/test_traffic.py). Of PyTorch's part, the router GEMM counts each operand once,
and the sort and copies that make the host's schedule, some 30 bytes a slot, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from tritonmoe_bench.kernels.paper import permute as row_passes
from tritonmoe_bench.kernels.paper.schedule import listed_per_program, max_blocks
from tritonmoe_bench.kernels.paper.tiles import BLOCK_M, GemmTile, Tiles
from tritonmoe_bench.kernels.weighting import weighted_by_down

from ..workload.case import BYTES_PER_ELEMENT, Case
from ..workload.routing import TORCH_DTYPE

PIPELINES: dict[str, dict] = {
    "paper_fused": {"fused": True, "schedule": "host"},
    "paper_fused_graph": {"fused": True, "schedule": "gpu"},
    "paper_unfused": {"fused": False, "schedule": "host"},
}
"""Implementations that are modelled, and the arguments of `kernels.paper_moe` that make each."""

INDEX_BYTES = 4
"""Of the tensor `schedule`: order, row_of_slot, offsets, block_expert and block_row; of `fast`, order and its table."""
SORTED_BYTES = {"host": 8, "gpu": 4}
"""An index of `order`: PyTorch sorts into int64, our kernel into int32."""


@dataclass(frozen=True)
class Bytes:
    """Bytes that one tensor sees in one stage: issued (read, write) and, each address once a launch, unique."""

    read: int = 0
    write: int = 0
    unique_read: int = 0
    unique_write: int = 0

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(*(a + b for a, b in zip(astuple(self), astuple(other))))


Table = dict[tuple[str, str], Bytes]
"""By (stage, tensor)."""
Entry = tuple[str, str, Bytes]
"""(stage, tensor, bytes)."""


def reads(unique: int, times: int = 1) -> Bytes:
    return Bytes(read=unique * times, unique_read=unique)


def writes(unique: int) -> Bytes:
    return Bytes(write=unique, unique_write=unique)


def tabulated(entries: Iterable[Entry]) -> Table:
    """The sums of entries of the same stage and tensor."""
    table: Table = {}
    for stage, tensor, seen in entries:
        table[stage, tensor] = table.get((stage, tensor), Bytes()) + seen
    return table


def check_counts(case: Case, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """The slots of each expert, [num_experts]. Raises ValueError if they cannot be the case's."""
    counts = np.asarray(counts)
    if counts.shape != (case.num_experts,) or counts.min() < 0 or int(counts.sum()) != case.slots:
        raise ValueError(f"counts must be {case.num_experts} numbers of slots that sum to {case.slots}")
    return counts


def pipeline_traffic(
    implementation: str, case: Case, counts: Sequence[int] | np.ndarray, tiles: Tiles, on_gpu: bool = True
) -> Table:
    """Traffic of one forward of a pipeline of `PIPELINES`.

    counts: slots of each expert, [num_experts], as `draw_routing` gives them; tiles: of the grouped GEMMs; on_gpu: the
    passes over rows take other tiles in the interpreter.
    Raises ValueError for counts that are not the case's, KeyError for a pipeline without a model.
    """
    return _Pipeline(case, check_counts(case, counts), tiles, on_gpu, **PIPELINES[implementation]).table()


def total(table: Table, tensors: Sequence[str] | None = None) -> Bytes:
    """Sum over stages of the named tensors, or of all. An address that several stages touch counts in each."""
    return sum((seen for (_, tensor), seen in table.items() if tensors is None or tensor in tensors), Bytes())


@dataclass(frozen=True)
class _Pipeline:
    case: Case
    counts: np.ndarray
    tiles: Tiles
    on_gpu: bool
    fused: bool
    schedule: str

    @property
    def blocks(self) -> int:
        """Row blocks that hold a slot."""
        return int((-(-self.counts // BLOCK_M)).sum())

    @property
    def listed(self) -> int:
        """Row blocks of the schedule; those that are not needed start programs that end at once."""
        return self.blocks if self.schedule == "host" else max_blocks(self.case.slots, self.case.num_experts)

    @property
    def active(self) -> int:
        return int((self.counts > 0).sum())

    @property
    def down_weights(self) -> bool:
        return weighted_by_down(TORCH_DTYPE[self.case.dtype])

    def table(self) -> Table:
        case, hidden, ffn = self.case, self.case.hidden_dim, self.case.ffn_dim
        entries = [*self._router(), *(self._gpu_schedule() if self.schedule == "gpu" else ()), *self._permute()]
        if self.fused:
            entries += self._gemm("gate_up", "permuted", "gate_up_weights", "intermediate", hidden, ffn,
                                  self.tiles.fused, products=2)  # fmt: skip
        else:
            for part in ("gate", "up"):
                entries += self._gemm(part, "permuted", f"{part}_weights", part, hidden, ffn, self.tiles.gate_up)
            buffer = case.slots * ffn * BYTES_PER_ELEMENT
            entries += [("silu_mul", "gate", reads(buffer)), ("silu_mul", "up", reads(buffer)),
                        ("silu_mul", "intermediate", writes(buffer))]  # fmt: skip
        entries += self._gemm("down", "intermediate", "down_weights", "expert_out", ffn, hidden, self.tiles.down)
        if self.down_weights:
            columns = -(-hidden // self.tiles.down.block_n)
            entries += [("down", "schedule", reads(case.slots * SORTED_BYTES[self.schedule], columns)),
                        ("down", "topk_scores", reads(case.slots * 4, columns))]  # fmt: skip
        entries += self._unpermute_combine()
        return tabulated(entries)

    def _router(self) -> list[Entry]:
        case = self.case
        logits = case.tokens * case.num_experts * BYTES_PER_ELEMENT
        return [
            ("router", "x", reads(case.tokens * case.hidden_dim * BYTES_PER_ELEMENT)),
            ("router", "router_weight", reads(case.num_experts * case.hidden_dim * BYTES_PER_ELEMENT)),
            ("router", "logits", writes(logits) + reads(logits)),
            ("router", "topk_scores", writes(case.slots * 4)),
            ("router", "topk_experts", writes(case.slots * INDEX_BYTES)),
        ]

    def _gpu_schedule(self) -> list[Entry]:
        case = self.case
        offsets = (case.num_experts + 1) * INDEX_BYTES
        programs = -(-self.listed // listed_per_program(case.num_experts))
        # A program of the list reads the first and the last row of every expert.
        bounds = Bytes(read=programs * 2 * case.num_experts * INDEX_BYTES, unique_read=offsets)
        return [
            # Each expert's program reads all slots twice: to count those of lower experts, and to place its own.
            ("permute", "topk_experts", reads(case.slots * INDEX_BYTES, 2 * case.num_experts)),
            ("permute", "schedule", writes(case.slots * SORTED_BYTES["gpu"]) + writes(offsets)),
            ("permute", "schedule", bounds + writes(2 * self.listed * INDEX_BYTES)),
        ]

    def _permute(self) -> list[Entry]:
        case, columns = self.case, self._columns(self.case.slots)
        permuted = case.slots * case.hidden_dim * BYTES_PER_ELEMENT
        x = Bytes(read=permuted, unique_read=case.tokens * case.hidden_dim * BYTES_PER_ELEMENT)
        return [
            ("permute", "schedule", reads(case.slots * SORTED_BYTES[self.schedule], columns)),
            ("permute", "schedule", writes(case.slots * INDEX_BYTES)),
            ("permute", "x", x),
            ("permute", "permuted", writes(permuted)),
        ]

    def _gemm(
        self, stage: str, rows: str, weights: str, out: str, k: int, n: int, tile: GemmTile, products: int = 1
    ) -> list[Entry]:
        """One grouped GEMM: every column of tiles reads the rows again, every row block the expert's weights."""
        slots, columns = self.case.slots, -(-n // tile.block_n)
        expert = products * n * k * BYTES_PER_ELEMENT
        active = np.flatnonzero(self.counts)
        bounds = Bytes(read=2 * INDEX_BYTES * self.blocks * columns,
                       unique_read=INDEX_BYTES * len(np.union1d(active, active + 1)))  # fmt: skip
        return [
            (stage, rows, reads(slots * k * BYTES_PER_ELEMENT, columns)),
            (stage, weights, Bytes(read=self.blocks * expert, unique_read=self.active * expert)),
            (stage, out, writes(slots * n * BYTES_PER_ELEMENT)),
            (stage, "schedule", reads(2 * INDEX_BYTES * self.listed, columns) + bounds),
        ]

    def _unpermute_combine(self) -> list[Entry]:
        case, columns = self.case, self._columns(self.case.tokens)
        weights: list[Entry] = [("unpermute_combine", "topk_scores", reads(case.slots * 4, columns))]
        return [
            *([] if self.down_weights else weights),
            ("unpermute_combine", "schedule", reads(case.slots * INDEX_BYTES, columns)),
            ("unpermute_combine", "expert_out", reads(case.slots * case.hidden_dim * BYTES_PER_ELEMENT)),
            ("unpermute_combine", "output", writes(case.tokens * case.hidden_dim * BYTES_PER_ELEMENT)),
        ]

    def _columns(self, rows: int) -> int:
        """Programs side by side over the hidden dimension in a pass over rows."""
        _, width = row_passes._block(rows, self.case.hidden_dim, self.on_gpu)
        return -(-self.case.hidden_dim // width)
