"""The one reference: a Mixture-of-Experts layer in plain PyTorch, for checks, tests and tolerances."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tritonmoe_bench.kernels.gating import LEAST_SUM, Gating

Expert = Callable[[int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


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


def moe_forward(
    x: torch.Tensor,
    router: torch.Tensor,
    expert: Expert,
    top_k: int,
    gating: Gating,
    correction_bias: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """y [tokens, hidden] = sum over the k experts of weight * down(silu(gate x) * up x), computed in `dtype`.

    x [tokens, hidden]; router [num_experts, hidden]; expert(e) gives gate [ffn, hidden], up [ffn, hidden] and
    down [hidden, ffn]. With `dtype` float32 this is the oracle; with the dtype of x it is what PyTorch itself makes of
    the layer in 16 bits, whose error sets the tolerance for every other system. quantize: applied to the rows that
    enter an expert's GEMMs, x and the intermediate alike, but not to what the router reads.
    """
    x = x.to(dtype)
    weights, experts = route(x @ router.to(dtype).T, top_k, gating, correction_bias)
    y = torch.zeros_like(x)
    for index in experts.unique().tolist():
        tokens, position = torch.where(experts == index)
        gate, up, down = (part.to(dtype) for part in expert(index))
        rows = x[tokens] if quantize is None else quantize(x[tokens])
        hidden = torch.nn.functional.silu(rows @ gate.T) * (rows @ up.T)
        hidden = hidden if quantize is None else quantize(hidden)
        y.index_add_(0, tokens, (hidden @ down.T) * weights[tokens, position].unsqueeze(1).to(dtype))
    return y


def quantize_fp8(rows: torch.Tensor) -> torch.Tensor:
    """The rows [n, columns] as e4m3 holds them with one scale per row and 128 columns, in their own dtype.

    It is what systems with 8-bit activations (W8A8) compute with; columns must be a multiple of 128.
    """
    groups = rows.float().unflatten(-1, (-1, 128))
    scales = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448.0
    return ((groups / scales).to(torch.float8_e4m3fn).float() * scales).flatten(-2).to(rows.dtype)


def relative_error(y: torch.Tensor, reference: torch.Tensor) -> float:
    """||y - reference|| / ||reference|| (Frobenius); NaN or infinite if anything in y is not finite."""
    reference = reference.double()
    return float(torch.linalg.vector_norm(y.double() - reference) / torch.linalg.vector_norm(reference))
