"""`torch_grouped_mm`, eager and compiled: PyTorch's own grouped GEMM (CUTLASS inside) over rows sorted by expert."""

from __future__ import annotations

from tritonmoe_bench.experiments.implementation.contract import (
    NEEDS,
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
    unavailable,
    unsupported,
)

from .parts.shapes import WHOLE_16_BYTES, divisible


class TorchGroupedMm(Implementation):
    name = "torch_grouped_mm"
    family = "pytorch"
    source = "torch.nn.functional.grouped_mm"
    facts = tuple(NEEDS)
    experts_implementation = "grouped_mm"

    def version(self) -> str:
        from importlib.metadata import version

        return version("torch")

    def check(self, case: Case) -> Check:
        import torch

        if not hasattr(torch.nn.functional, "grouped_mm"):
            return unavailable(f"torch {torch.__version__} has no grouped_mm: pip install 'torch>=2.11'")
        if case.dtype != "bf16":
            return unsupported(
                "PyTorch's grouped kernel takes bf16 only; for fp16 it loops over GEMMs and waits for the host"
            )
        return divisible(case, WHOLE_16_BYTES, "grouped_mm needs rows of whole 16 bytes")

    def build(self, case: Case, weights: Weights) -> Forward:
        return self._forward(case, weights)

    def _forward(self, case: Case, weights: Weights) -> Forward:
        import torch
        from torch.nn.functional import grouped_mm

        from tritonmoe_bench.experiments.workload.reference import activate, route_rows

        from .parts.shared_expert import adds_shared

        facts, add_shared = case.facts, adds_shared(case, weights)
        router, biases = weights.router(), (weights.correction_bias(), weights.router_bias())
        gate_up_bias, down_bias = weights.gate_up_bias(), weights.down_bias()
        gate_up, down = weights.gate_up().transpose(1, 2), weights.down().transpose(1, 2)
        top_k, ffn_dim, gating, num_experts = case.top_k, case.ffn_dim, case.gate, case.num_experts
        every_expert = torch.arange(num_experts, device=router.device)

        def forward(x: torch.Tensor) -> torch.Tensor:
            scores, experts = route_rows(x, router, top_k, gating, *biases)
            order = experts.flatten().argsort(stable=True)
            by_expert = experts.flatten()[order]
            ends = torch.searchsorted(by_expert, every_expert, right=True).to(torch.int32)
            rows = x[order // top_k]
            if facts.weights_on_input:
                rows = rows * scores.flatten()[order].to(x.dtype).unsqueeze(1)
                scores = torch.ones_like(scores)
            both = grouped_mm(rows, gate_up, offs=ends)
            both = both if gate_up_bias is None else both + gate_up_bias[by_expert]
            out = grouped_mm(activate(both[:, :ffn_dim], both[:, ffn_dim:], facts.activation), down, offs=ends)
            out = out if down_bias is None else out + down_bias[by_expert]
            # Back in slot order, the k rows of a token lie together: no scattered addition is needed.
            slots = torch.empty_like(out).index_copy_(0, order, out)
            y = torch.bmm(scores.to(x.dtype).unsqueeze(1), slots.view(-1, top_k, x.shape[1])).squeeze(1)
            return add_shared(x, y)

        return forward


class TorchGroupedMmCompiled(TorchGroupedMm):
    """The same forward under torch.compile: one compiled graph a shape for all batch sizes, one more for one token."""

    name = "torch_grouped_mm_compiled"
    source = "torch.compile of torch.nn.functional.grouped_mm"
    experts_implementation = ""  # generate compiles a decode step itself, whatever its experts

    def __init__(self) -> None:
        self._shape: tuple = ()

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch

        shape = (case.weights_key, case.top_k, case.gating, case.layer)
        if shape != self._shape:
            # Else the next shape would turn the weights' own dimensions into run-time values, and slower kernels.
            torch._dynamo.reset()
            self._shape = shape
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        compiled = torch.compile(self._forward(case, weights))

        def forward(x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.maybe_mark_dynamic(x, 0)
            return compiled(x)

        return forward
