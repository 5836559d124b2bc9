"""Layers and tolerances that the kernel tests share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import moe_forward, relative_error
from tritonmoe_bench.experiments.workload.routing import TORCH_DTYPE, activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import paper_moe
from tritonmoe_bench.kernels.fast.layer import fast_moe

FORMS = {
    "unfused": {"fused": False, "schedule": "host"},
    "fused": {"fused": True, "schedule": "host"},
    "fused_gpu": {"fused": True, "schedule": "gpu"},
}
"""The pipelines, as arguments of `paper_moe`."""


@dataclass
class Layer:
    """A case with its tensors; `logits`, if given, replaces the routing that the case would draw."""

    case: Case
    x: torch.Tensor
    weights: Weights

    @property
    def parameters(self) -> tuple:
        return self.weights.router(), self.weights.gate_up(), self.weights.down(), self.case.top_k, self.case.gate

    def expert(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gate_up, ffn = self.weights.gate_up(), self.case.ffn_dim
        return gate_up[index, :ffn], gate_up[index, ffn:], self.weights.down()[index]

    def forward(self, **form) -> torch.Tensor:
        return paper_moe(self.x, *self.parameters, **form)

    def fast(self, **options) -> torch.Tensor:
        return fast_moe(self.x, *self.parameters, correction_bias=self.weights.correction_bias(), **options)

    def reference(self, dtype: torch.dtype) -> torch.Tensor:
        case, bias = self.case, self.weights.correction_bias()
        return moe_forward(self.x, self.weights.router(), self.expert, case.top_k, case.gate, bias, dtype)

    def assert_right(self, **form) -> torch.Tensor:
        return self._assert_right(self.forward(**form), 2)

    def assert_fast_right(self, **options) -> torch.Tensor:
        return self._assert_right(self.fast(**options), 1.5)

    def _assert_right(self, y: torch.Tensor, times: float) -> torch.Tensor:
        assert y.dtype == self.x.dtype
        assert_accurate(y, self.reference(torch.float32), self.reference(self.x.dtype), times)
        return y


def make_layer(device, *, tokens, experts, top_k, hidden, ffn, dtype="bf16", gating="softmax", skew=0.0, logits=None):
    """A layer on `device`; logits [tokens, experts], exact in the dtype, fix the routing by hand."""
    case = Case("test", experts, top_k, hidden, ffn, tokens, skew=skew, dtype=dtype, gating=gating)
    x = activations(case, draw_routing(case), device)
    if logits is not None:
        x[:, :experts] = logits.to(x)
    return Layer(case, x, Weights(case, device))


def rounded_logits(tokens: int, experts: int, seed: int = 0) -> torch.Tensor:
    """float32 [tokens, experts] within +-6, on a grid coarse enough that sigmoid scores tie only where logits do."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(tokens, experts, generator=generator) * 1.5).clamp(-6, 6).to(torch.float16).float()


def random(*shape: int, dtype: str, device: str, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(device=device, dtype=TORCH_DTYPE[dtype])


def assert_accurate(y: torch.Tensor, exact: torch.Tensor, own: torch.Tensor, times: float = 2) -> None:
    """y is at most `times` as far from `exact` (float32) as PyTorch's computation `own` in the dtype of y.

    Two computations in 16 bits that round in different places differ from the truth by independent errors of the same
    size, so PyTorch's own error says what the dtype allows for this shape and data, where a fixed tolerance would be
    too loose for one shape and too tight for another. The floors are far under one rounding; they only serve where
    PyTorch happens to make no error at all. The second test sees a single wrong element that the norm would hide: of
    two such errors the largest is rarely three times the other's.
    """
    assert y.shape == exact.shape
    assert relative_error(y, exact) <= times * relative_error(own, exact) + 1e-6
    largest = float((y.double() - exact.double()).abs().max())
    allowed = float((own.double() - exact.double()).abs().max())
    assert largest <= 3 * allowed + torch.finfo(y.dtype).eps * float(exact.abs().max()) / 8
