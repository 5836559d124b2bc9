"""The one reference: a Mixture-of-Experts layer in plain PyTorch, for checks, tests and tolerances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tritonmoe_bench.kernels.gating import LEAST_SUM, Gating

from .layer import PLAIN_LAYER, Layer

Matrices = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Gate, up and down of one expert, or their biases."""
Expert = Callable[[int], Matrices]
SWIGLU_LIMIT, SWIGLU_ALPHA = 7.0, 1.702
"""Of the clamped SwiGLU: `swiglu_limit` in the config.json of gpt-oss, and `alpha` of its experts' code."""


@dataclass(frozen=True)
class Parts:
    """What a native layer has beside router and experts, as tensors.

    router_bias: [num_experts]; expert_bias(e): biases of gate [ffn], up [ffn] and down [hidden]; shared: gate
    [shared_ffn, hidden], up and down of the shared expert; shared_router: [1, hidden]. None for what there is not.
    """

    facts: Layer = PLAIN_LAYER
    router_bias: torch.Tensor | None = None
    expert_bias: Callable[[int], Matrices] | None = None
    shared: Matrices | None = None
    shared_router: torch.Tensor | None = None


PLAIN_PARTS = Parts()


def route(
    logits: torch.Tensor, top_k: int, gating: Gating, correction_bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights float32 [tokens, top_k] and experts int64 [tokens, top_k], best first, of logits [tokens, num_experts].

    Ties go to the lower expert index, and to the lower group. Group-limited selection as in DeepSeek-V3 (arXiv
    2412.19437, section 2.1.2).
    """
    logits = logits.float()
    scores = torch.softmax(logits, dim=-1) if gating.scoring == "softmax" else torch.sigmoid(logits)
    # Softmax keeps the order of the logits, where distinct logits can round to equal scores.
    choice = logits if gating.scoring == "softmax" and not gating.correction_bias else scores
    if gating.correction_bias:
        if correction_bias is None:
            raise ValueError("this gating selects by score + correction_bias: give correction_bias, [num_experts]")
        choice = scores + correction_bias
    if gating.groups > 1:
        grouped = choice.unflatten(-1, (gating.groups, -1))
        strength = grouped.topk(2, dim=-1).values.sum(-1)
        best = strength.sort(dim=-1, descending=True, stable=True).indices[..., : gating.top_groups]
        allowed = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=logits.device).scatter_(-1, best, True)
        choice = grouped.masked_fill(~allowed.unsqueeze(-1), float("-inf")).flatten(-2)
    experts = choice.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    weights = scores.gather(-1, experts)
    if gating.renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + LEAST_SUM)
    return weights * gating.scale, experts


def activate(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """What an expert makes of its gate and up, both [rows, ffn]; activation: a name of `ACTIVATIONS`."""
    if activation == "silu":
        return torch.nn.functional.silu(gate) * up
    gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
    return (up + 1) * gate * torch.sigmoid(SWIGLU_ALPHA * gate)


def route_rows(
    x: torch.Tensor, router: torch.Tensor, top_k: int, gating: Gating,
    correction_bias: torch.Tensor | None = None, router_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """`route` of the logits of x [tokens, hidden], computed in the dtype of the router, which has a bias or none."""
    return route(torch.nn.functional.linear(x.to(router.dtype), router, router_bias), top_k, gating, correction_bias)


def moe_forward(
    x: torch.Tensor,
    router: torch.Tensor,
    expert: Expert,
    top_k: int,
    gating: Gating,
    correction_bias: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: Callable[[torch.Tensor], torch.Tensor] | None = None,
    parts: Parts = PLAIN_PARTS,
) -> torch.Tensor:
    """y [tokens, hidden] = sum over the k experts of weight * down(silu(gate x) * up x), computed in `dtype`.

    x [tokens, hidden]; router [num_experts, hidden]; expert(e) gives gate [ffn, hidden], up [ffn, hidden] and
    down [hidden, ffn]. With `dtype` float32 this is the oracle; with the dtype of x it is what PyTorch itself makes of
    the layer in 16 bits, whose error sets the tolerance for every other system. quantize: applied to the rows that
    enter an expert's GEMMs, x and the intermediate alike, but not to what the router reads. parts: what a native layer
    has beside that, the plain one by default.
    """
    x, facts = x.to(dtype), parts.facts
    router = router if facts.float32_router else router.to(dtype)
    router_bias = None if parts.router_bias is None else parts.router_bias.to(router.dtype)
    weights, experts = route_rows(x, router, top_k, gating, correction_bias, router_bias)

    def compute(rows: torch.Tensor, matrices: Matrices, biases: Matrices | None = None) -> torch.Tensor:
        gate, up, down = (part.to(dtype) for part in matrices)
        of_gate, of_up, of_down = (None, None, None) if biases is None else (part.to(dtype) for part in biases)
        linear, rounded = torch.nn.functional.linear, quantize or (lambda rows: rows)
        rows = rounded(rows)
        hidden = activate(linear(rows, gate, of_gate), linear(rows, up, of_up), facts.activation)
        return linear(rounded(hidden), down, of_down)

    y = torch.zeros_like(x)
    for index in experts.unique().tolist():
        tokens, position = torch.where(experts == index)
        biases = None if parts.expert_bias is None else parts.expert_bias(index)
        share = weights[tokens, position].unsqueeze(1).to(dtype)
        if facts.weights_on_input:
            y.index_add_(0, tokens, compute(x[tokens] * share, expert(index), biases))
        else:
            y.index_add_(0, tokens, compute(x[tokens], expert(index), biases) * share)
    if parts.shared is not None:
        out = compute(x, parts.shared)
        y += out if parts.shared_router is None else torch.sigmoid(x @ parts.shared_router.to(dtype).T) * out
    return y


def quantize_fp8(rows: torch.Tensor) -> torch.Tensor:
    """The rows [n, columns] as e4m3 holds them with one scale per row and 128 columns, in their own dtype.

    It is what systems with 8-bit activations (W8A8) compute with; the last group may have fewer columns.
    """
    columns = rows.shape[-1]
    groups = torch.nn.functional.pad(rows.float(), (0, -columns % 128)).unflatten(-1, (-1, 128))
    scales = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448.0
    rounded = (groups / scales).to(torch.float8_e4m3fn).float() * scales
    return rounded.flatten(-2)[..., :columns].to(rows.dtype)


def relative_error(y: torch.Tensor, reference: torch.Tensor) -> float:
    """||y - reference|| / ||reference|| (Frobenius); NaN or infinite if anything in y is not finite."""
    reference = reference.double()
    return float(torch.linalg.vector_norm(y.double() - reference) / torch.linalg.vector_norm(reference))
