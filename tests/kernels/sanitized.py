"""Forwards of `fast` over the shapes of study=granular, each with narrower matrices, for NVIDIA's compute-sanitizer.

    compute-sanitizer --tool memcheck python tests/kernels/sanitized.py [FIRST EVERY]

runs them all, or that many layers apart from the first on. Weights are made on the CPU, so that few kernels but those
of `fast` run under a tool that slows them down a hundredfold.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

import torch

from tritonmoe_bench.experiments.implementation.registry import implementations
from tritonmoe_bench.experiments.sweeping.plan import make_plan
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.config import SweepConfig, load
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import fast_moe, tiled
from tritonmoe_bench.kernels.formats import Packed

HIDDEN, FFN = 512, 128
"""Instead of the model's own: at least as many columns as the most experts."""
TOKENS = (1, 8, 128)
PACKED = {"gpt_oss_20b": "mxfp4", "qwen3_30b_a3b": "int4", "kimi_k2": "int4_g32", "qwen3_5_35b_a3b": "fp8_block"}
"""A format for each of these models, beside 16 bits."""


def cases() -> list[Case]:
    """The study's strongest skew, its shapes at three batch sizes in 16 bits, and some of them packed."""
    study = make_plan(SweepConfig(study=load("study", "granular")), list(implementations())).cases
    skew = max(case.skew for case in study)
    small = [replace(case, hidden_dim=HIDDEN, ffn_dim=FFN) for case in study if case.skew == skew]
    plain = [case for case in small if case.quant == "none" and case.tokens in TOKENS]
    return [*plain, *(replace(case, quant=PACKED[case.model]) for case in plain if case.model in PACKED)]


def layer(case: Case, device: str, in_tiles: bool) -> tuple[Any, ...]:
    """Arguments of `fast_moe`; in_tiles: with weights that are `tiled`."""
    made = Weights(case, torch.device("cpu"))
    experts: list[Any] = [made.gate_up(), made.down()] if case.quant == "none" else [
        made.packed_gate_up(), made.packed_down()
    ]  # fmt: skip
    if in_tiles:
        experts = [tiled(one) for one in experts]
    x = activations(case, draw_routing(case), torch.device("cpu"))
    return (x.to(device), made.router().to(device), *(moved(one, device) for one in experts), case.top_k, case.gate)


def moved(experts: torch.Tensor | Packed, device: str) -> torch.Tensor | Packed:
    if isinstance(experts, torch.Tensor):
        return experts.to(device)
    return type(experts)(*(getattr(experts, field.name).to(device) for field in fields(experts))).prepared()


def run(device: str, chosen: list[Case]) -> Iterator[tuple[Case, torch.Tensor]]:
    """Each case and its output, the second one over the same memory; in 16 bits once more, over tiled weights."""
    for case in chosen:
        for in_tiles in (False, True) if case.quant == "none" else (False,):
            arguments = layer(case, device, in_tiles)
            fast_moe(*arguments)
            yield case, fast_moe(*arguments)


if __name__ == "__main__":
    first, every = (int(word) for word in sys.argv[1:] or (0, 1))
    for case, y in run("cuda", cases()[first::every]):
        assert torch.isfinite(y).all(), case
        print(case, flush=True)
