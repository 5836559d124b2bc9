"""The stages of `fast` one by one, as `make tune` runs, checks and compiles them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tritonmoe_bench.kernels.fast.blocks import Blocks, launch_routing
from tritonmoe_bench.kernels.fast.experts import Experts
from tritonmoe_bench.kernels.fast.few_down import launch_few_down
from tritonmoe_bench.kernels.fast.few_gate_up import launch_few_gate_up
from tritonmoe_bench.kernels.fast.few_w4_down import launch_few_down_w4
from tritonmoe_bench.kernels.fast.few_w4_gate_up import launch_few_gate_up_w4
from tritonmoe_bench.kernels.fast.few_w4_parts import launch_planes
from tritonmoe_bench.kernels.fast.gemm import launch_down, launch_gate_up
from tritonmoe_bench.kernels.fast.logits import launch_logits
from tritonmoe_bench.kernels.fast.packed import launch_packed_down, launch_packed_gate_up, quantized
from tritonmoe_bench.kernels.fast.routing import launch_top_k
from tritonmoe_bench.kernels.fast.tile_types import AnyTiles, FastTile, FastTiles, FewTile, FewTiles
from tritonmoe_bench.kernels.fast.w4 import launch_permute
from tritonmoe_bench.kernels.formats import Packed
from tritonmoe_bench.kernels.formats.four_bits import FourBits

from ..workload.case import Case
from ..workload.reference import moe_forward, route
from ..workload.routing import Routing, activations, draw_routing
from ..workload.weights import Weights
from .space import Candidate

Quantize = Callable[[torch.Tensor], torch.Tensor]

MIN_ROUTINGS, MAX_ROUTINGS = 2, 16
"""How many routings one sample runs through: at least two, so that no tile is chosen for the blocks of one draw, and
more until the weights are cold."""
MAX_LAYERS = 4
"""How many sets of weights the routings take turns on: with one set, skewed routings would find their hot experts in
the L2 cache."""


@dataclass
class Layer:
    """A layer's weights: router [experts, hidden], gate_up [experts, 2 * ffn, hidden], down [experts, hidden, ffn],
    both packed or both not."""

    router: torch.Tensor
    gate_up: torch.Tensor | Packed
    down: torch.Tensor | Packed

    def expert(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gate, up and down of an expert, unpacked."""
        gate, up = _matrix(self.gate_up, index).chunk(2)
        return gate, up, _matrix(self.down, index)

    @property
    def experts(self) -> Experts:
        return Experts(self.gate_up, self.down)


def _matrix(weights: torch.Tensor | Packed, index: int) -> torch.Tensor:
    return weights[index] if isinstance(weights, torch.Tensor) else weights[index].unpack()[0]


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

    def rows(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(rows, scales) of x, as packed weights are multiplied with them."""
        return self._once("rows", lambda: quantized(self.x, self.layer.experts))

    def hidden_rows(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `rows`, of hidden."""
        return self._once("hidden", lambda: quantized(self.hidden, self.layer.experts))

    def top_k(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(experts int32, weights float32), each [tokens, top_k]."""
        return self._once("top_k", lambda: launch_top_k(self._logits(), self.case.top_k, self.case.gate, None))

    def _logits(self) -> torch.Tensor:
        return self._once("logits", lambda: launch_logits(self.x, self.layer.router))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def stage_call(candidate: Candidate, batch: Batch) -> Callable[[], Any]:
    """Launches the stage of a candidate; what comes before it has run when this returns."""
    layer, tile, top_k = batch.layer, candidate.tile, batch.case.top_k
    gate_up: Any = layer.gate_up
    down: Any = layer.down
    if isinstance(tile, FewTile):
        experts, weights = batch.top_k()
        if isinstance(gate_up, FourBits):
            if candidate.stage == "few_gate_up":
                planes = launch_planes(batch.x, gate_up)
                return lambda: launch_few_gate_up_w4(planes, gate_up, experts, weights, tile)
            planes, y = launch_planes(batch.hidden, gate_up), torch.empty_like(batch.x)
            return lambda: launch_few_down_w4(planes, down, experts, weights, y, tile)
        if candidate.stage == "few_gate_up":
            return lambda: launch_few_gate_up(batch.x, gate_up, experts, weights, tile)
        hidden = batch.hidden if isinstance(down, torch.Tensor) else batch.hidden.float()
        y = torch.empty_like(batch.x)
        return lambda: launch_few_down(hidden, down, experts, weights, y, tile)
    assert isinstance(tile, FastTile)
    blocks, tiles = batch.blocks(candidate.block_m), FastTiles(candidate.block_m, tile, tile)
    if not layer.experts.packed:
        if candidate.stage == "gate_up":
            return lambda: launch_gate_up(batch.x, gate_up, blocks, top_k, tiles)
        return lambda: launch_down(batch.hidden, down, blocks, tiles)
    if candidate.stage == "gate_up":
        rows = batch.rows()
        return lambda: launch_packed_gate_up(*rows, layer.experts, blocks, top_k, tiles)
    rows = batch.hidden_rows()
    return lambda: launch_packed_down(*rows, layer.experts, blocks, batch.x.dtype, tiles)


def plain(stage: str, batch: Batch, output: Any) -> Any:
    """The output of a stage as `stage_reference` has it: not quantised, and its columns in their own order."""
    layer = batch.layer
    if stage == "few_gate_up" and isinstance(layer.gate_up, FourBits):
        factors = launch_planes(torch.ones_like(batch.hidden[:1]), layer.gate_up)
        return (output[:, :8] / factors[:, :8]).transpose(1, 2).flatten(1)[:, : batch.case.ffn_dim]
    if stage != "gate_up" or not layer.experts.packed:
        return output
    values, scales = output
    if scales is not None:
        return values.float() * scales.repeat_interleave(values.shape[1] // scales.shape[1], 1)
    if not isinstance(layer.gate_up, FourBits):
        return values
    numbers = torch.arange(1, batch.case.ffn_dim + 1, dtype=torch.float32, device=values.device)
    places = launch_permute(numbers[None])[0].long()  # 0 where a place holds no column
    kept = places > 0
    return torch.empty_like(values[:, : batch.case.ffn_dim]).index_copy_(1, places[kept] - 1, values[:, kept])


def activation_bits(batch: Batch, tile: FastTile | FewTile | AnyTiles) -> str:
    """``a8`` where a tile multiplies the weights of the layer with rows of 8 bits, else ``a16``."""
    if isinstance(tile, (FewTile, FewTiles)) or not batch.layer.experts.packed:
        return "a16"
    return "a16" if batch.rows()[1] is None else "a8"


def stage_reference(
    stage: str,
    batch: Batch,
    routing: Routing,
    dtype: torch.dtype = torch.float32,
    quantize: Quantize = lambda rows: rows,
) -> torch.Tensor:
    """What a stage must give, by PyTorch, computed in `dtype`; quantize: what becomes of all that enters a GEMM."""
    case, layer, device = batch.case, batch.layer, batch.x.device
    weights, experts = route(torch.from_numpy(routing.logits).to(device), case.top_k, case.gate)
    expert_of_slot = experts.flatten()
    order = expert_of_slot.argsort(stable=True)
    in_slot_order = quantize(batch.hidden.to(dtype))
    if stage == "down":
        in_slot_order = torch.empty_like(in_slot_order).index_copy_(0, order, in_slot_order)
    first = stage in ("gate_up", "few_gate_up")
    out = torch.empty((case.slots, case.ffn_dim if first else case.hidden_dim), dtype=dtype, device=device)
    for expert in expert_of_slot.unique().tolist():
        own = torch.where(expert_of_slot == expert)[0]
        if first:
            rows = quantize(batch.x[own // case.top_k].to(dtype))
            gate, up, _ = (part.to(dtype) for part in layer.expert(expert))
            out[own] = torch.nn.functional.silu(rows @ gate.T) * (rows @ up.T)
        else:
            out[own] = in_slot_order[own] @ layer.expert(expert)[2].to(dtype).T
    if stage == "gate_up":
        return quantize(out[order])
    if stage == "few_gate_up":
        return out * weights.flatten().to(dtype)[:, None]
    return out if stage == "down" else out.view(case.tokens, case.top_k, -1).sum(1)


def forward_reference(
    batch: Batch, dtype: torch.dtype = torch.float32, quantize: Quantize = lambda rows: rows
) -> torch.Tensor:
    """As `stage_reference`, of a whole forward."""
    case, layer = batch.case, batch.layer
    return moe_forward(batch.x, layer.router, layer.expert, case.top_k, case.gate, dtype=dtype, quantize=quantize)


def layer_of_weights(weights: Any) -> Layer:
    """The layer of `Weights`, or of the like without storage, as `fast` reads it fastest."""
    if weights.case.quant == "none":
        return Layer(weights.router(), weights.gate_up(), weights.down())
    return Layer(weights.router(), weights.packed_gate_up().prepared(), weights.packed_down().prepared())


def make_layers(case: Case, device: torch.device, memory_bytes: float) -> list[Layer]:
    """Independent weights of the layer: as many sets as fit into `memory_bytes`, from 1 to `MAX_LAYERS`."""
    count = max(1, min(MAX_LAYERS, int(memory_bytes / case.weight_bytes)))
    return [layer_of_weights(Weights(case, device, index)) for index in range(count)]


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
