"""What the tests of the adapters share: a tiny layer, its error on the CPU, stubs of packages, and the build tools."""

import importlib.util
import sys
from itertools import accumulate
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import moe_forward, relative_error
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights

ON_THE_CPU = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="its stub computes on the CPU, kernels on the GPU that is there",
)
TINY = {"model": "tiny", "num_experts": 8, "top_k": 2, "hidden_dim": 64, "ffn_dim": 48, "tokens": 5}
VARIED = [
    {"dtype": "bf16"},
    {"dtype": "fp16", "tokens": 33, "gating": "softmax_renorm"},
    {"tokens": 1, "num_experts": 16, "top_k": 4},
    {"tokens": 40, "skew": 2.0, "gating": "sigmoid"},
]
"""What forwards by expert are tried on: dtypes, batch sizes, numbers of experts, gatings and skews."""

NATIVE = [
    {"router_bias": True},
    {"float32_router": True},
    {"expert_bias": True},
    {"activation": "gpt_oss", "expert_bias": True, "router_bias": True},
    {"shared_ffn": 48},
    {"shared_ffn": 80, "shared_gate": True, "float32_router": True},
    {"shared_ffn": 144, "shared_gate": True},
    {"shared_ffn": 48, "shared_gate": True, "weights_on_input": True},
    {"weights_on_input": True},
]
"""Facts of native layers that systems are tried on."""


def case(**fields) -> Case:
    """The tiny layer, but for these fields."""
    return Case(**{**TINY, **fields})


def native(facts, **fields) -> Case:
    """The tiny layer with these facts of a native one, and renormalised softmax."""
    return case(**{"model": "t", "gating": "softmax_renorm", "layer": "native", "facts": facts, **fields})


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """What a system's own kernel of that name computes."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def errors(forward, point: Case, weights: Weights) -> tuple[float, float]:
    """Errors, against the float32 reference, of the forward and of PyTorch's own 16-bit computation."""
    x = activations(point, draw_routing(point), "cpu")
    arguments = (x, weights.router(), weights.expert, point.top_k, point.gate, weights.correction_bias())
    parts = weights.parts()
    exact = moe_forward(*arguments, parts=parts)
    y = forward(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    return relative_error(y, exact), relative_error(moe_forward(*arguments, dtype=x.dtype, parts=parts), exact)


def error_of(adapter, point: Case) -> float:
    """Error of the adapter's forward, built and called in inference mode."""
    weights = Weights(point, "cpu")
    with torch.inference_mode():
        return errors(adapter.build(point, weights), point, weights)[0]


def stub_modules(monkeypatch, *names: str) -> list[ModuleType]:
    """Empty modules of these dotted names; the packages above them are made too, and have them as attributes."""
    made: dict[str, ModuleType] = {}
    for dotted in names:
        for name in accumulate(dotted.split("."), "{}.{}".format):
            if name not in made:
                made[name] = ModuleType(name)
                monkeypatch.setitem(sys.modules, name, made[name])
                package, _, child = name.rpartition(".")
                if package:
                    setattr(made[package], child, made[name])
    return [made[name] for name in names]


def load(path: Path) -> ModuleType:
    """A file of a build tool, which is no part of the package; the tool's other files then import it by its name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
