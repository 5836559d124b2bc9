"""`torch_loop`: PyTorch, one expert after another on the rows that chose it, as Hugging Face's model code does."""

from __future__ import annotations

from tritonmoe_bench.experiments.implementation.contract import (
    NEEDS,
    OK,
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
)


class TorchLoop(Implementation):
    name = "torch_loop"
    family = "pytorch"
    source = "torch"
    host_sync = "the loop over experts runs on the host and waits for the list of active experts and their rows"
    needs_gpu = False
    facts = tuple(NEEDS)
    experts_implementation = "eager"

    def version(self) -> str:
        from importlib.metadata import version

        return version("torch")

    def check(self, case: Case) -> Check:
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        from tritonmoe_bench.experiments.workload.reference import moe_forward

        router, gate_up, down = weights.router(), weights.gate_up(), weights.down()
        gate, up = gate_up[:, : case.ffn_dim], gate_up[:, case.ffn_dim :]
        bias, parts = weights.correction_bias(), weights.parts()

        def expert(index):
            return gate[index], up[index], down[index]

        return lambda x: moe_forward(x, router, expert, case.top_k, case.gate, bias, x.dtype, parts=parts)
