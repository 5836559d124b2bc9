"""Traffic rows of a case: from the closed form for any shape, or counted in Triton's interpreter for a small one.

Both describe the paper's pipelines and `fast` with the same GEMM tiles, those of an H200 where there is no GPU, under
the same names of stages and tensors. The passes over rows take wider tiles in the interpreter, which shows in how often
`schedule` is read from hidden_dim 1024 up. Of any other system that the interpreter can run, it counts each Triton
kernel and argument under their own names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tritonmoe_bench.kernels import fast_moe, paper_moe
from tritonmoe_bench.kernels.checks import check_top_k
from tritonmoe_bench.kernels.fast.tile_types import AnyTiles as FastAnyTiles
from tritonmoe_bench.kernels.fast.tile_types import FewTiles, JoinedTiles
from tritonmoe_bench.kernels.paper.router import check_gating
from tritonmoe_bench.kernels.paper.schedule import max_blocks
from tritonmoe_bench.kernels.paper.tiles import BLOCK_M, BY_SHARED_MEMORY, Tiles

from ..interpreter.counting import Traffic, count_bytes
from ..workload.case import Case
from ..workload.routing import activations, draw_routing
from ..workload.weights import Weights
from .launches import matched
from .model_fast import NAME as FAST
from .model_fast import chosen_tiles, fast_traffic
from .model_paper import PIPELINES, Bytes, Table, pipeline_traffic, tabulated, total
from .operands import MODELLED_FORMATS, operands_of

AnyTiles: TypeAlias = "Tiles | FastAnyTiles"

METHODS = ("model", "interpreter")
MODELLED = (*PIPELINES, FAST)
"""Implementations that have a closed form, and names of stages and tensors that the interpreter's counts go by."""
TILES = BY_SHARED_MEMORY[0][1]
"""Those of an H100, H200 or B200."""
MAX_TILE_STEPS = 20_000
"""Steps of all tiles of a forward that the interpreter is asked for: about a millisecond each."""


def traffic_rows(case: Case, implementation: str, method: str, tiles: AnyTiles | None = None) -> list[dict[str, Any]]:
    """Rows for results/<device>/traffic.csv: one a stage and tensor, then stage `total`, tensor `all`.

    method: ``model`` for any shape; ``interpreter`` runs the pipeline, for which TRITON_INTERPRET=1 must be set and the
    shape be small. tiles: of the pipelines that have a model; by default `tiles_of`. Where there is no figure, one row
    of stage `total` says so by its status and reason. The caller adds run, version and environment. Raises ValueError
    for another method.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: allowed are {', '.join(METHODS)}")
    routing = draw_routing(case)
    tiles = tiles or tiles_of(case, implementation)
    common = {
        **case.cells, "case_hash": case.case_hash, "implementation": implementation, "method": method,
        "config": config_of(case, implementation, tiles),
        "active_experts": routing.active_experts,
    }  # fmt: skip
    problem = _problem(case, implementation, method, tiles)
    if problem:
        status, reason = problem
        return [{**common, "stage": "total", "tensor": "all", "status": status, "reason": reason}]
    if method == "model":
        table = modelled_traffic(case, implementation, routing.counts, tiles)
    elif implementation in MODELLED and not case.facts.needs:
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


def tiles_of(case: Case, implementation: str) -> AnyTiles:
    """The tiles that a pipeline is counted with; of a system without a model, the paper's, as a measure of its size."""
    return chosen_tiles(case) if implementation == FAST else TILES


def modelled_traffic(
    case: Case, implementation: str, counts: Sequence[int] | np.ndarray, tiles: AnyTiles, on_gpu: bool = True
) -> Table:
    """Traffic of one forward of a pipeline of `MODELLED` in closed form; see its own model for arguments and errors."""
    if isinstance(tiles, Tiles):
        return pipeline_traffic(implementation, case, counts, tiles, on_gpu)
    return fast_traffic(case, counts, tiles, on_gpu)


def counted_traffic(case: Case, implementation: str, tiles: AnyTiles, multiplied: str | None = None) -> Table:
    """Traffic of one forward in the interpreter, counted, under the model's names.

    multiplied: ``a8`` or ``a16``, what packed weights are multiplied with; None: as in the model. Where the router GEMM
    is PyTorch's, the operands that it is called with count once.
    Raises RuntimeError if the interpreter is off, or if the pipeline launches other kernels than `LAUNCHES` has.
    """
    routing, weights = draw_routing(case), Weights(case, "cpu")
    packed = case.quant != "none"
    gate_up = weights.packed_gate_up().prepared() if packed else weights.gate_up()
    down = weights.packed_down().prepared() if packed else weights.down()
    x, router = activations(case, routing, "cpu"), weights.router()
    with torch.inference_mode(), _RouterGemm() as gemm, count_bytes() as counter:
        if isinstance(tiles, Tiles):
            assert isinstance(gate_up, torch.Tensor)
            assert isinstance(down, torch.Tensor)
            paper_moe(x, router, gate_up, down, case.top_k, case.gate, tiles=tiles, **PIPELINES[implementation])
        else:
            bits = "a8" if operands_of(case, tiles, multiplied).a8 else "a16"
            fast_moe(x, router, gate_up, down, case.top_k, case.gate,
                     correction_bias=weights.correction_bias(), activations=bits, tiles=tiles)  # fmt: skip
    launched = [launch.kernel for launch in counter.launches]
    sequence = matched(implementation, launched)
    if sequence is None or len(sequence) != len(launched):
        raise RuntimeError(
            f"{implementation} launched {', '.join(launched)}: experiments/traffic/launches.py has no such sequence"
        )
    counted = [
        (known.stage, known.tensors[argument], _bytes(seen))
        for known, launch in zip(sequence, counter.launches)
        for argument, seen in launch.arguments.items()
        if seen.read_bytes or seen.write_bytes
    ]
    return tabulated([*((stage, tensor, seen) for (stage, tensor), seen in gemm.table.items()), *counted])


def counted_launches(case: Case, implementation: str) -> Table:
    """Traffic of one forward of any implementation in the interpreter, by (launch, argument); empty if it has none.

    Launches are numbered in order, as in `02 moe_kernel`. A router GEMM of PyTorch's is left out, as is all that is no
    Triton kernel.
    """
    from ..implementation import registry

    weights = Weights(case, "cpu")
    x = activations(case, draw_routing(case), "cpu")
    forward = registry.get(implementation).build(case, weights)
    with torch.inference_mode(), count_bytes() as counter:
        forward(x)
    return {
        (f"{order:02d} {launch.kernel}", argument): _bytes(seen)
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
        if func in (torch.ops.aten.mm.default, torch.ops.aten.matmul.default):
            for tensor, name in zip(args, ("x", "router_weight")):
                self.table["router", name] = Bytes(read=tensor.nbytes, unique_read=tensor.nbytes)
            self.table["router", "logits"] = Bytes(write=out.nbytes, unique_write=out.nbytes)
        return out


def _bytes(seen: Traffic) -> Bytes:
    return Bytes(seen.read_bytes, seen.write_bytes, seen.unique_read_bytes, seen.unique_write_bytes)


def config_of(case: Case, implementation: str, tiles: AnyTiles | None = None) -> str:
    """The tiles that the figures are for, by default `tiles_of`, in the words of the adapters in baselines; empty for
    systems that have none here."""
    tiles = tiles or tiles_of(case, implementation)
    if not isinstance(tiles, Tiles):
        return str(tiles)
    if implementation not in PIPELINES:
        return ""
    pipeline = PIPELINES[implementation]
    inward = f"gate_up_silu={tiles.fused}" if pipeline["fused"] else f"gate={tiles.gate_up} up={tiles.gate_up}"
    return f"{inward} down={tiles.down} schedule={pipeline['schedule']}"


def _problem(case: Case, implementation: str, method: str, tiles: AnyTiles) -> tuple[str, str] | None:
    """(status, reason) of a row that can have no figure."""
    if method == "model" and case.facts.needs:
        return "unsupported", "the closed form is of the plain layer; study=counters measures any layer"
    if implementation == FAST and case.quant not in MODELLED_FORMATS:
        measured = "; study=counters measures any format" if method == "model" else ""
        return "unsupported", f"the closed form knows weights of {', '.join(MODELLED_FORMATS)}{measured}"
    if implementation in PIPELINES:
        try:
            check_gating(case.gate)
            check_top_k(case.top_k, case.num_experts)
        except ValueError as error:
            return "unsupported", str(error)
    elif method == "model" and implementation not in MODELLED:
        return "unsupported", f"the closed form knows {', '.join(MODELLED)}; study=counters measures any system"
    if method == "interpreter":
        from ..implementation import registry
        from ..interpreter import repair

        if registry.get(implementation).needs_gpu:
            return "unsupported", f"{implementation} needs an NVIDIA GPU; study=counters measures it there"
        try:
            repair.require()
        except RuntimeError as error:
            return "unavailable", str(error)
        steps = _tile_steps(case, tiles)
        if steps > MAX_TILE_STEPS:
            return (
                "unsupported",
                f"about {steps} steps of tiles are too many for the interpreter: at most {MAX_TILE_STEPS}",
            )
    return None


def _tile_steps(case: Case, tiles: AnyTiles) -> int:
    """Steps of the tiles of gate, up and down, about: each expert's last row block counted as full."""
    hidden, ffn = case.hidden_dim, case.ffn_dim
    if isinstance(tiles, FewTiles | JoinedTiles):
        inward = 2 * _steps(ffn, tiles.gate_up.block_n, hidden, tiles.gate_up.step)
        return case.slots * (inward + _steps(hidden, tiles.down.block_n, ffn, tiles.down.step))
    block_m = BLOCK_M if isinstance(tiles, Tiles) else tiles.block_m
    first = tiles.fused if isinstance(tiles, Tiles) else tiles.gate_up
    inward = _steps(ffn, first.block_n, hidden, first.block_k)
    back = _steps(hidden, tiles.down.block_n, ffn, tiles.down.block_k)
    return max_blocks(case.slots, case.num_experts, block_m) * (2 * inward + back)


def _steps(n: int, block_n: int, k: int, block_k: int) -> int:
    return -(-n // block_n) * -(-k // block_k)
