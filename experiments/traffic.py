"""Traffic rows of a case: from the closed form for any shape, or counted in Triton's interpreter for a small one.

Both describe the paper's pipelines with the same GEMM tiles, under the same names of stages and tensors. The passes
over rows take wider tiles in the interpreter, which shows in how often `schedule` is read from hidden_dim 1024 up.
Of any other system that the interpreter can run, it counts each Triton kernel and argument under their own names.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..kernels import paper_moe
from ..kernels.checks import check_top_k
from ..kernels.router import check_gating
from ..kernels.tiles import BLOCK_M, BY_SHARED_MEMORY, Tiles
from .case import Case
from .counting import LaunchTraffic, count_bytes
from .traffic_model import PIPELINES, Bytes, Table, pipeline_traffic, total
from .workload import Weights, activations, draw_routing

METHODS = ("model", "interpreter")
TILES = BY_SHARED_MEMORY[0][1]
"""Those of an H100, H200 or B200."""
MAX_TILE_STEPS = 20_000
"""Steps of all tiles of a forward that the interpreter is asked for: about a millisecond each."""


class Known(NamedTuple):
    """A launch of a pipeline: its kernel, its stage, and the tensor that each of its arguments is."""

    kernel: str
    stage: str
    tensors: dict[str, str]


_BLOCKS = {"block_expert": "schedule", "block_row": "schedule", "offsets": "schedule"}
_SCORE = Known(
    "_score_topk_kernel", "router", {"logits": "logits", "weights": "topk_scores", "experts": "topk_experts"}
)
_SORT = Known("_sort_slots_kernel", "permute", {"experts": "topk_experts", "order": "schedule", "offsets": "schedule"})
_LIST = Known("_list_blocks_kernel", "permute", _BLOCKS)
_PERMUTE = Known(
    "_permute_kernel", "permute", {"x": "x", "order": "schedule", "rows": "permuted", "row_of_slot": "schedule"}
)
_GATE_UP = Known(
    "_fused_gate_up_kernel", "gate_up",
    {"rows": "permuted", "gate_up": "gate_up_weights", "hidden": "intermediate", **_BLOCKS},
)  # fmt: skip
_SILU_MUL = Known("_silu_mul_kernel", "silu_mul", {"gate": "gate", "up": "up", "hidden": "intermediate"})
_COMBINE = Known(
    "_unpermute_combine_kernel", "unpermute_combine",
    {"expert_out": "expert_out", "row_of_slot": "schedule", "weights": "topk_scores", "y": "output"},
)  # fmt: skip


def _grouped_gemm(stage: str, rows: str, out: str) -> Known:
    return Known("_grouped_gemm_kernel", stage, {"rows": rows, "weights": f"{stage}_weights", "out": out, **_BLOCKS})


_DOWN = _grouped_gemm("down", "intermediate", "expert_out")
LAUNCHES: dict[str, tuple[Known, ...]] = {
    "paper_fused": (_SCORE, _PERMUTE, _GATE_UP, _DOWN, _COMBINE),
    "paper_fused_graph": (_SCORE, _SORT, _LIST, _PERMUTE, _GATE_UP, _DOWN, _COMBINE),
    "paper_unfused": (
        _SCORE, _PERMUTE, _grouped_gemm("gate", "permuted", "gate"), _grouped_gemm("up", "permuted", "up"),
        _SILU_MUL, _DOWN, _COMBINE,
    ),
}  # fmt: skip
"""The Triton launches of each pipeline, in order."""


def traffic_rows(case: Case, implementation: str, method: str, tiles: Tiles = TILES) -> list[dict[str, Any]]:
    """Rows for results/<device>/traffic.csv: one a stage and tensor, then stage `total`, tensor `all`.

    method: ``model`` for any shape; ``interpreter`` runs the pipeline, for which TRITON_INTERPRET=1 must be set and the
    shape be small. Where there is no figure, one row of stage `total` says so by its status and reason. The caller
    adds run, version and environment. Raises ValueError for another method.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: allowed are {', '.join(METHODS)}")
    routing = draw_routing(case)
    common = {
        **asdict(case), "case_hash": case.case_hash, "implementation": implementation, "method": method,
        "config": _config(implementation, tiles),
        "active_experts": routing.active_experts,
    }  # fmt: skip
    problem = _problem(case, implementation, method, tiles)
    if problem:
        status, reason = problem
        return [{**common, "stage": "total", "tensor": "all", "status": status, "reason": reason}]
    if method == "model":
        table = pipeline_traffic(implementation, case, routing.counts, tiles)
    elif implementation in PIPELINES:
        table = counted_traffic(case, implementation, tiles)
    else:
        table = counted_launches(case, implementation)
        if not table:
            reason = "launches no Triton kernel, and the interpreter sees no other"
            return [{**common, "stage": "total", "tensor": "all", "status": "unsupported", "reason": reason}]
    return [
        {
            **common, "stage": stage, "tensor": tensor, "status": "ok", "reason": "",
            "read_bytes": seen.read, "write_bytes": seen.write,
            "unique_read_bytes": seen.unique_read, "unique_write_bytes": seen.unique_write,
        }
        for (stage, tensor), seen in [*table.items(), (("total", "all"), total(table))]
    ]  # fmt: skip


def counted_traffic(case: Case, implementation: str, tiles: Tiles = TILES) -> Table:
    """Traffic of one forward in the interpreter, counted, under the model's names.

    The router GEMM is PyTorch's: the operands that it is called with count once.
    Raises RuntimeError if the interpreter is off, or if the pipeline launches other kernels than `LAUNCHES` has.
    """
    routing, weights = draw_routing(case), Weights(case, "cpu")
    arguments = activations(case, routing, "cpu"), weights.router(), weights.gate_up(), weights.down()
    with torch.inference_mode(), _RouterGemm() as gemm, count_bytes() as counter:
        paper_moe(*arguments, case.top_k, case.gate, tiles=tiles, **PIPELINES[implementation])
    table = dict(gemm.table)
    for known, launch in zip(_matched(implementation, counter.launches), counter.launches):
        for argument, seen in launch.arguments.items():
            key = known.stage, known.tensors[argument]
            counted = Bytes(seen.read_bytes, seen.write_bytes, seen.unique_read_bytes, seen.unique_write_bytes)
            table[key] = table.get(key, Bytes()) + counted
    return table


def counted_launches(case: Case, implementation: str) -> Table:
    """Traffic of one forward of any implementation in the interpreter, by (launch, argument); empty if it has none.

    Launches are numbered in order, as in `02 moe_kernel`. A router GEMM of PyTorch's is left out, as is all that is no
    Triton kernel.
    """
    from . import registry

    weights = Weights(case, "cpu")
    x = activations(case, draw_routing(case), "cpu")
    forward = registry.get(implementation).build(case, weights)
    with torch.inference_mode(), count_bytes() as counter:
        forward(x)
    return {
        (f"{order:02d} {launch.kernel}", argument): Bytes(
            seen.read_bytes, seen.write_bytes, seen.unique_read_bytes, seen.unique_write_bytes
        )
        for order, launch in enumerate(counter.launches, start=1)
        for argument, seen in launch.arguments.items()
    }


class _RouterGemm(TorchDispatchMode):
    """Notes the operands of the one matrix product that PyTorch runs in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Table = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            for tensor, name in zip(args, ("x", "router_weight")):
                self.table["router", name] = Bytes(read=tensor.nbytes, unique_read=tensor.nbytes)
            self.table["router", "logits"] = Bytes(write=out.nbytes, unique_write=out.nbytes)
        return out


def _matched(implementation: str, launches: list[LaunchTraffic]) -> tuple[Known, ...]:
    known = LAUNCHES[implementation]
    expected, launched = [launch.kernel for launch in known], [launch.kernel for launch in launches]
    if expected != launched:
        raise RuntimeError(f"{implementation} launched {launched}, but its traffic is named for {expected}")
    return known


def _config(implementation: str, tiles: Tiles) -> str:
    """The tiles that the figures are for, in the words of the adapters in experiments/pipelines."""
    if implementation not in PIPELINES:
        return ""
    pipeline = PIPELINES[implementation]
    inward = f"gate_up_silu={tiles.fused}" if pipeline["fused"] else f"gate={tiles.gate_up} up={tiles.gate_up}"
    return f"{inward} down={tiles.down} schedule={pipeline['schedule']}"


def _problem(case: Case, implementation: str, method: str, tiles: Tiles) -> tuple[str, str] | None:
    """(status, reason) of a row that can have no figure."""
    if implementation in PIPELINES:
        try:
            check_gating(case.gate)
            check_top_k(case.top_k, case.num_experts)
        except ValueError as error:
            return "unsupported", str(error)
    elif method == "model":
        return "unsupported", f"the closed form knows {', '.join(PIPELINES)}; study=counters measures any system"
    if method == "interpreter":
        from . import interpreter, registry

        if registry.get(implementation).needs_gpu:
            return "unsupported", f"{implementation} needs an NVIDIA GPU; study=counters measures it there"
        try:
            interpreter.require()
        except RuntimeError as error:
            return "unavailable", str(error)
        steps = _tile_steps(case, tiles)
        if steps > MAX_TILE_STEPS:
            return (
                "unsupported",
                f"about {steps} steps of tiles are too many for the interpreter: at most {MAX_TILE_STEPS}",
            )
    return None


def _tile_steps(case: Case, tiles: Tiles) -> int:
    """Steps of the tiles of gate, up and down, about: each expert's last row block counted as full."""
    blocks = min(case.num_experts, case.slots) + case.slots // BLOCK_M
    inward = -(-case.ffn_dim // tiles.fused.block_n) * -(-case.hidden_dim // tiles.fused.block_k)
    back = -(-case.hidden_dim // tiles.down.block_n) * -(-case.ffn_dim // tiles.down.block_k)
    return blocks * (2 * inward + back)
