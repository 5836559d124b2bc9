"""The paper's forward: a whole Mixture-of-Experts layer, in the stages in which the paper counts its time.

router -> permute -> expert_ffn -> unpermute_combine. Fused: gate, up and SiLU are one kernel; unfused: three. The
block schedule is built on the host as in the paper, once for each direction, or once on the GPU, with the same tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..checks import MAX_SLOTS, check_layer
from ..chunks import in_chunks
from ..gating import Gating
from ..gradient import inference_only
from ..weighting import weighted_by_down
from .fused_gate_up import launch_fused_gate_up
from .grouped_gemm import launch_grouped_gemm
from .permute import launch_permute, launch_unpermute_combine
from .router import check_gating, launch_router
from .schedule import Schedule, launch_schedule, list_blocks_on_host, sort_slots
from .silu_mul import launch_silu_mul
from .tiles import Tiles, device_tiles

SCHEDULES = ("host", "gpu")


@dataclass(frozen=True)
class _Layer:
    router_weight: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    top_k: int
    gating: Gating
    fused: bool
    schedule: str
    tiles: Tiles


def _route(layer: _Layer, x: torch.Tensor) -> tuple:
    weights, experts = launch_router(x, layer.router_weight, layer.top_k, layer.gating)
    return x, experts, weights


def _permute(layer: _Layer, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> tuple:
    num_experts = layer.down.shape[0]
    if layer.schedule == "gpu":
        schedule = launch_schedule(experts, num_experts)
        order, offsets = schedule.order, schedule.offsets
    else:
        schedule = None
        order, offsets = sort_slots(experts, num_experts)
    rows, row_of_slot = launch_permute(x, order, layer.top_k)
    return rows, order, offsets, schedule, row_of_slot, weights


def _expert_ffn(
    layer: _Layer,
    rows: torch.Tensor,
    order: torch.Tensor,
    offsets: torch.Tensor,
    schedule: Schedule | None,
    row_of_slot: torch.Tensor,
    weights: torch.Tensor,
) -> tuple:
    def blocks() -> Schedule:
        return schedule or Schedule(order, offsets, *list_blocks_on_host(offsets))

    tiles, ffn = layer.tiles, layer.down.shape[2]
    inward = blocks()
    if layer.fused:
        hidden = launch_fused_gate_up(rows, layer.gate_up, inward, tiles.fused)
    else:
        gate = launch_grouped_gemm(rows, layer.gate_up[:, :ffn], inward, tiles.gate_up)
        up = launch_grouped_gemm(rows, layer.gate_up[:, ffn:], inward, tiles.gate_up)
        hidden = launch_silu_mul(gate, up)
    scores = weights if weighted_by_down(hidden.dtype) else None
    return launch_grouped_gemm(hidden, layer.down, blocks(), tiles.down, scores), row_of_slot, weights


def _unpermute_combine(
    layer: _Layer, expert_out: torch.Tensor, row_of_slot: torch.Tensor, weights: torch.Tensor
) -> tuple:
    left = None if weighted_by_down(expert_out.dtype) else weights
    return (launch_unpermute_combine(expert_out, row_of_slot, layer.top_k, left),)


_STAGES: tuple[tuple[str, Callable[..., tuple]], ...] = (
    ("router", _route),
    ("permute", _permute),
    ("expert_ffn", _expert_ffn),
    ("unpermute_combine", _unpermute_combine),
)
"""Each stage takes the layer and what the stage before it returned."""


def paper_moe(
    x: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    gating: Gating | None = None,
    *,
    fused: bool = True,
    schedule: str = "host",
    correction_bias: torch.Tensor | None = None,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """y [tokens, hidden] = sum over the k experts of weight * down(silu(gate x) * up x), in the dtype of x.

    x: float16 or bfloat16 [tokens, hidden], any number of tokens, in chunks above 8192 tokens of top-32; router_weight:
    [num_experts, hidden], also float32; gate_up: [num_experts, 2 * ffn, hidden], gate rows then up rows; down:
    [num_experts, hidden, ffn], all in the dtype and on the device of x. gating: `Gating()`, plain softmax, by default.
    fused: one kernel for gate, up and SiLU. schedule: ``host`` waits for the GPU twice, as the paper does; ``gpu``
    never waits, and a CUDA graph can hold it. tiles: default by the device's shared memory.
    Inference only: where an input requires a gradient, a backward pass through y raises RuntimeError.
    Raises TypeError or ValueError, before any launch, for another dtype, device, shape, stride, top_k or schedule and
    for a gating that this family does not have.
    """
    rest = (top_k, gating, fused, schedule, correction_bias, tiles)
    return inference_only(_forward, x, router_weight, gate_up, down, *rest)


def _forward(x, router_weight, gate_up, down, top_k, *rest) -> torch.Tensor:
    layer = _layer(x, router_weight, gate_up, down, top_k, *rest)

    def run(rows: torch.Tensor) -> torch.Tensor:
        value: tuple = (rows,)
        for _, stage in _STAGES:
            value = stage(layer, *value)
        return value[0]

    return in_chunks(run, x, top_k)


def paper_stages(
    x: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    gating: Gating | None = None,
    *,
    fused: bool = True,
    schedule: str = "host",
    correction_bias: torch.Tensor | None = None,
    tiles: Tiles | None = None,
) -> list[tuple[str, Callable[[], tuple]]]:
    """The stages of `paper_moe`, (name, thunk) in order, each thunk running just what the forward runs in that stage.

    Runs the forward once to prepare the inputs of every stage, and keeps them alive. The last thunk returns (y,).
    Arguments and errors as `paper_moe`, and ValueError for a batch of no tokens or of more than one chunk.
    """
    value: tuple = (x,)
    layer = _layer(x, router_weight, gate_up, down, top_k, gating, fused, schedule, correction_bias, tiles)
    if not 0 < x.shape[0] * top_k <= MAX_SLOTS:
        raise ValueError(f"x has {x.shape[0]} tokens: allowed are 1 to {MAX_SLOTS // top_k} of top_k={top_k}")
    stages: list[tuple[str, Callable[[], tuple]]] = []
    for name, stage in _STAGES:
        stages.append((name, functools.partial(stage, layer, *value)))
        value = stage(layer, *value)
    return stages


def _layer(x, router_weight, gate_up, down, top_k, gating, fused, schedule, correction_bias, tiles) -> _Layer:
    gating = Gating() if gating is None else gating
    check_layer(x, router_weight, gate_up, down, top_k)
    check_gating(gating, correction_bias)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: allowed are {', '.join(SCHEDULES)}")
    if tiles is not None and not isinstance(tiles, Tiles):
        raise TypeError(f"tiles must be a Tiles, got {type(tiles).__name__}")
    return _Layer(router_weight, gate_up, down, top_k, gating, fused, schedule, tiles or device_tiles(x.device))
