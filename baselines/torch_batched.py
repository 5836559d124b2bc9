"""`torch_batched_mm`: PyTorch, a copy of its expert's weights for every slot, and one batched GEMM over all slots."""

from __future__ import annotations

from tritonmoe_bench.experiments.implementation.contract import OK, Case, Check, Forward, Implementation, Weights


class TorchBatchedMm(Implementation):
    name = "torch_batched_mm"
    family = "pytorch"
    source = "torch.bmm, as transformers decodes"
    needs_gpu = False
    experts_implementation = "batched_mm"

    def version(self) -> str:
        from importlib.metadata import version

        return version("torch")

    def check(self, case: Case) -> Check:
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch
        from torch.nn.functional import silu

        from tritonmoe_bench.experiments.workload.reference import route

        router, gate_up, down = weights.router(), weights.gate_up(), weights.down()
        bias = weights.correction_bias()

        def forward(x: torch.Tensor) -> torch.Tensor:
            scores, experts = route(x @ router.T, case.top_k, case.gate, bias)
            chosen = experts.flatten()
            rows = x.repeat_interleave(case.top_k, 0).unsqueeze(2)
            gate, up = torch.bmm(gate_up[chosen], rows).chunk(2, 1)
            out = torch.bmm(down[chosen], silu(gate) * up)
            return torch.bmm(scores.to(x.dtype).unsqueeze(1), out.view(-1, case.top_k, x.shape[1])).squeeze(1)

        return forward
