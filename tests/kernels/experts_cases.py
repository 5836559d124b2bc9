"""Routing done outside, with its layer and its reference, for the tests of `fast_experts`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from moe_cases import assert_accurate, random

from tritonmoe_bench.kernels import Activation, fast_experts


@dataclass
class Routed:
    """A layer and the slots of its tokens. options: further arguments of `fast_experts`."""

    x: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def but(self, **changes) -> Routed:
        return replace(self, **changes)

    def having(self, **options) -> Routed:
        return replace(self, options=self.options | options)

    def forward(self, **options) -> torch.Tensor:
        return fast_experts(self.x, self.gate_up, self.down, self.ids, self.weights, **(self.options | options))

    def local_ids(self) -> torch.Tensor:
        """int64 [tokens, top_k], -1 where a slot has no expert here."""
        ids, held = self.ids.reshape(-1, self.ids.shape[-1]).long(), self.down.shape[0]
        expert_map = self.options.get("expert_map")
        if expert_map is not None:
            known = (ids >= 0) & (ids < len(expert_map))
            ids = torch.where(known, expert_map.long()[ids.clamp(0, len(expert_map) - 1)], -1)
        return torch.where((ids >= 0) & (ids < held), ids, -1)

    def reference(self, dtype: torch.dtype, quantize: Callable = lambda rows: rows) -> torch.Tensor:
        """By PyTorch, expert by expert, each step rounded to `dtype`; weights_on_input scales x itself.

        quantize: what rows become before they are multiplied with weights.
        """
        ids, rows = self.local_ids(), quantize(self.x.reshape(-1, self.x.shape[-1]).to(dtype))
        weights = self.weights.reshape(ids.shape).to(torch.float32)
        activation = Activation.of(self.options.get("activation", "silu"))
        biases = [self.options.get(name) for name in ("gate_up_bias", "down_bias")]
        y = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
        for expert in range(self.down.shape[0]):
            token, position = (ids == expert).nonzero(as_tuple=True)
            weight, on_input = weights[token, position][:, None], self.options.get("weights_on_input", False)
            own = rows[token] * weight.to(dtype) if on_input else rows[token]
            both = own @ self.gate_up[expert].to(dtype).T
            both = both if biases[0] is None else both + biases[0][expert].to(dtype)
            out = quantize(activated(*both.chunk(2, 1), activation)) @ self.down[expert].to(dtype).T
            out = out if biases[1] is None else out + biases[1][expert].to(dtype)
            y.index_add_(0, token, out.float() if on_input else weight * out.float())
        return y.to(dtype).view(self.x.shape)

    def assert_right(self, **options) -> torch.Tensor:
        y = self.forward(**options)
        assert (y.shape, y.dtype, y.device) == (self.x.shape, self.x.dtype, self.x.device)
        assert_accurate(y, self.reference(torch.float32), self.reference(self.x.dtype), 1.5)
        return y


def activated(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """What `Activation` says, by PyTorch, in the dtype of gate."""
    if activation.limit is not None:
        gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
    if activation.function == "gelu_tanh":
        return torch.nn.functional.gelu(gate, approximate="tanh") * (up + activation.shift)
    return gate * torch.sigmoid(activation.alpha * gate) * (up + activation.shift)


def draw_ids(tokens: int, experts: int, top_k: int, seed: int = 0, hot: int = 0) -> torch.Tensor:
    """int64 [tokens, top_k], distinct in a row; the first `hot` tokens all choose the first experts."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(tokens, experts, generator=generator).argsort(1)[:, :top_k]
    ids[:hot] = torch.arange(top_k)
    return ids


def make_routed(
    device, *, tokens, experts, top_k, hidden, ffn, dtype="bf16", ids=None, seed=0, biases=False, size=1.0, **options
) -> Routed:
    """Of random numbers; ids: [tokens, top_k], drawn if None; biases: float32 ones; size: of gate and up products."""
    if ids is None:
        ids = draw_ids(tokens, experts, top_k, seed)
    if biases:
        options["gate_up_bias"] = random(experts, 2 * ffn, dtype=dtype, device=device, seed=seed + 5).float()
        options["down_bias"] = random(experts, hidden, dtype=dtype, device=device, seed=seed + 6).float()
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed + 4)) + 0.1
    return Routed(
        random(tokens, hidden, dtype=dtype, device=device, seed=seed + 1),
        random(experts, 2 * ffn, hidden, dtype=dtype, device=device, seed=seed + 2, scale=size * hidden**-0.5),
        random(experts, hidden, ffn, dtype=dtype, device=device, seed=seed + 3, scale=ffn**-0.5),
        ids.to(device), weights.to(device), options,
    )  # fmt: skip
