"""The stages of `fast` one by one, as `make tune` runs, checks and compiles them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tritonmoe_bench.kernels.fast.blocks import Blocks, launch_routing
from tritonmoe_bench.kernels.fast.few import launch_few_down, launch_few_gate_up
from tritonmoe_bench.kernels.fast.gemm import launch_down, launch_gate_up
from tritonmoe_bench.kernels.fast.logits import launch_logits
from tritonmoe_bench.kernels.fast.routing import launch_top_k
from tritonmoe_bench.kernels.fast.tile_types import FastTile, FastTiles, FewTile

from ..workload.case import Case
from ..workload.reference import route
from ..workload.routing import Routing, activations, draw_routing
from ..workload.weights import Weights
from .space import Candidate

MIN_ROUTINGS, MAX_ROUTINGS = 2, 16
"""How many routings one sample runs through: at least two, so that no tile is chosen for the blocks of one draw, and
more until the weights are cold."""
MAX_LAYERS = 4
"""How many sets of weights the routings take turns on: with one set, skewed routings would find their hot experts in
the L2 cache."""


@dataclass
class Layer:
    """A layer's weights: router [experts, hidden], gate_up [experts, 2 * ffn, hidden], down [experts, hidden, ffn]."""

    router: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass
class Batch:
    """What the stages of one forward read: x [tokens, hidden], hidden [N, ffn] in the dtype of x, N = tokens * top_k.

    `hidden` stands for what gate_up gives, in expert order, and on the output-centric path in slot order.
    """

    case: Case
    layer: Layer
    x: torch.Tensor
    hidden: torch.Tensor
    _made: dict[Any, Any] = field(default_factory=dict)

    def blocks(self, block_m: int) -> Blocks:
        return self._once(
            block_m, lambda: launch_routing(self._logits(), self.case.top_k, self.case.gate, None, block_m)
        )

    def top_k(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(experts int32, weights float32), each [tokens, top_k]."""
        return self._once("top_k", lambda: launch_top_k(self._logits(), self.case.top_k, self.case.gate, None))

    def _logits(self) -> torch.Tensor:
        return self._once("logits", lambda: launch_logits(self.x, self.layer.router))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def stage_call(candidate: Candidate, batch: Batch) -> Callable[[], torch.Tensor]:
    """Launches the stage of a candidate; what comes before it has run when this returns."""
    layer, tile, top_k = batch.layer, candidate.tile, batch.case.top_k
    if isinstance(tile, FewTile):
        experts, weights = batch.top_k()
        if candidate.stage == "few_gate_up":
            return lambda: launch_few_gate_up(batch.x, layer.gate_up, experts, weights, tile)
        hidden = batch.hidden.float()
        y = torch.empty_like(batch.x)
        return lambda: launch_few_down(hidden, layer.down, experts, weights, y, tile)
    assert isinstance(tile, FastTile)
    blocks, tiles = batch.blocks(candidate.block_m), FastTiles(candidate.block_m, tile, tile)
    if candidate.stage == "gate_up":
        return lambda: launch_gate_up(batch.x, layer.gate_up, blocks, top_k, tiles)
    return lambda: launch_down(batch.hidden, layer.down, blocks, tiles)


def stage_reference(stage: str, batch: Batch, routing: Routing, dtype: torch.dtype) -> torch.Tensor:
    """What a stage must give, by PyTorch, computed in `dtype`."""
    case, layer, device = batch.case, batch.layer, batch.x.device
    weights, experts = route(torch.from_numpy(routing.logits).to(device), case.top_k, case.gate)
    expert_of_slot = experts.flatten()
    order = expert_of_slot.argsort(stable=True)
    in_slot_order = batch.hidden.to(dtype)
    if stage == "down":
        in_slot_order = torch.empty_like(in_slot_order).index_copy_(0, order, in_slot_order)
    first = stage in ("gate_up", "few_gate_up")
    out = torch.empty((case.slots, case.ffn_dim if first else case.hidden_dim), dtype=dtype, device=device)
    for expert in expert_of_slot.unique().tolist():
        own = torch.where(expert_of_slot == expert)[0]
        if first:
            rows = batch.x[own // case.top_k].to(dtype)
            gate, up = (part.to(dtype) for part in layer.gate_up[expert].chunk(2))
            out[own] = torch.nn.functional.silu(rows @ gate.T) * (rows @ up.T)
        else:
            out[own] = in_slot_order[own] @ layer.down[expert].to(dtype).T
    if stage == "gate_up":
        return out[order]
    if stage == "few_gate_up":
        return out * weights.flatten().to(dtype)[:, None]
    return out if stage == "down" else out.view(case.tokens, case.top_k, -1).sum(1)


def make_layers(case: Case, device: torch.device, memory_bytes: float) -> list[Layer]:
    """Independent weights of the layer: as many sets as fit into `memory_bytes`, from 1 to `MAX_LAYERS`."""
    count = max(1, min(MAX_LAYERS, int(memory_bytes / case.weight_bytes)))
    every = [Weights(case, device, index) for index in range(count)]
    return [Layer(weights.router(), weights.gate_up(), weights.down()) for weights in every]


def draw_batches(case: Case, layers: Sequence[Layer], cold_bytes: float) -> tuple[list[Routing], list[Batch]]:
    """Batches of a case with consecutive seeds, so many that even `down` reads `cold_bytes` of weights in all of them,
    up to `MAX_ROUTINGS`; each reads the next of the layers."""
    routings: list[Routing] = []
    batches: list[Batch] = []
    read = 0.0
    device = layers[0].router.device
    while len(batches) < MIN_ROUTINGS or (read < cold_bytes and len(batches) < MAX_ROUTINGS):
        drawn = replace(case, seed=case.seed + len(batches))
        routing = draw_routing(drawn)
        x = activations(drawn, routing, device)
        generator = torch.Generator(device).manual_seed(drawn.seed)
        hidden = torch.randn(case.slots, case.ffn_dim, device=device, generator=generator).mul_(0.5).to(x.dtype)
        routings.append(routing)
        batches.append(Batch(drawn, layers[len(batches) % len(layers)], x, hidden))
        read += routing.active_experts * case.expert_bytes / 3
    return routings, batches
