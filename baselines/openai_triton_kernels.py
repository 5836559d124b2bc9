"""OpenAI's triton_kernels: routing, then `matmul_ogs` twice, with gather, scatter and the activation inside the GEMMs.

vLLM's wheel ships it. Its own SwiGLU is the clamped one of gpt-oss; for another layer the adapter gives it SiLU x up
as a fused activation (baselines/parts/silu_mul.py). Both need gate and up columns interleaved. It chooses its tiles
itself. Activations have 16 bits. Weights of 16 bits have their reduced dimension last, as in its own bf16 benchmark;
those in mxfp4 lie as it swizzles them for the GPU, and their GEMMs are not split along the sum on Hopper: both as vLLM
has it. A shared expert is PyTorch's (baselines/parts/shared_expert.py), in 16 bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonmoe_bench.experiments.implementation.contract import (
    OK,
    Case,
    Check,
    Forward,
    Weights,
    unavailable,
    unsupported,
)
from tritonmoe_bench.kernels.gating import Gating

from .install import trees, vllm_tree
from .install.installed import first_line, installed_version
from .parts.conversions import Conversions
from .parts.in_build import ConfiguredInBuild, run_once

if TYPE_CHECKING:
    import torch

SCALE_WARPS = 8
"""Warps that the swizzled scales are laid out for, and that the GEMMs then run with; vLLM's choice."""
TILE = ("block_m", "block_n", "block_k", "num_warps", "num_stages", "split_k", "is_persistent")
"""Fields of triton_kernels' OptFlags that a row states."""


class OpenaiTritonKernels(ConfiguredInBuild):
    name = "openai_triton_kernels"
    family = "triton_kernels"
    source = f"PyPI vllm {vllm_tree.VERSION}, vllm/third_party/triton_kernels"
    quants = ("none", "mxfp4")
    facts = ("activation", "router_bias", "float32_router", "expert_bias", "shared_ffn")

    def __init__(self) -> None:
        super().__init__()
        self._operands = Conversions(_operands)

    def version(self) -> str:
        if trees.search_path("triton_kernels"):
            return trees.record(trees.folder("triton_kernels"))["triton_kernels"]
        return installed_version("triton_kernels") or _version_in_vllm()

    def search_path(self) -> list[Path]:
        return trees.search_path("triton_kernels") or _inside_vllm()

    def check(self, case: Case) -> Check:
        problem = _problem()
        if problem:
            return unavailable(problem)
        if case.gate not in (Gating(), Gating(renormalize=True)):
            return unsupported(f"gating={case.gating}: triton_kernels routes by softmax, over all experts or over the "
                               "chosen ones")  # fmt: skip
        if case.facts.shared_ffn and case.quant != "none":
            return unsupported(f"quant={case.quant}: the shared expert is run in 16 bits alone, by PyTorch's GEMMs")
        if case.top_k & (case.top_k - 1):
            return unsupported(f"top_k={case.top_k}: its top-k kernel needs a power of two")
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch
        from triton_kernels import matmul_ogs as module
        from triton_kernels.matmul_ogs import FnSpecs, FusedActivation, PrecisionConfig, matmul_ogs
        from triton_kernels.matmul_ogs_details import opt_flags
        from triton_kernels.routing import routing

        from .parts.interleaved import interleaved_bias
        from .parts.shared_expert import adds_shared

        router, router_bias = weights.router(), weights.router_bias()
        (gate_up, gate_up_scale), (down, down_scale) = self._operands(weights)
        top_k, before_top_k = case.top_k, not case.gate.renormalize
        # Its biases are float32.
        biases = [None if bias is None else bias.float() for bias in (interleaved_bias(weights), weights.down_bias())]
        activation, add_shared = FusedActivation(*_activation(case, FnSpecs), 2), adds_shared(case, weights)
        opt_flags.reset_opt_flags_constraints()
        if case.quant == "mxfp4" and torch.cuda.get_device_capability()[0] == 9:
            opt_flags.update_opt_flags_constraints({"split_k": 1})

        def forward(x: torch.Tensor) -> torch.Tensor:
            logits = torch.nn.functional.linear(x.to(router.dtype), router, router_bias)
            data, gather, scatter = routing(logits, top_k, sm_first=before_top_k)
            hidden = matmul_ogs(x, gate_up, biases[0], data, gather_indx=gather, fused_activation=activation,
                                precision_config=PrecisionConfig(weight_scale=gate_up_scale))  # fmt: skip
            y = matmul_ogs(hidden, down, biases[1], data, scatter_indx=scatter, gammas=data.gate_scal,
                           precision_config=PrecisionConfig(weight_scale=down_scale))  # fmt: skip
            return add_shared(x, y)

        with _recorded(module, "make_opt_flags") as chosen:
            run_once(forward, case, weights)
        gate_up_flags, down_flags = map(_words, chosen)
        self.configured(case, f"gate_up:{gate_up_flags} down:{down_flags}")
        return forward


Operands = tuple[tuple[Any, Any], tuple[Any, Any]]
"""(weights, scales or None) of gate and up [E, hidden, 2 * ffn] and of down [E, ffn, hidden]."""


def _operands(weights: Weights) -> Operands:
    return _interleaved(weights) if weights.case.quant == "none" else _swizzled(weights)


def _interleaved(weights: Weights) -> Operands:
    """16-bit weights, gate and up in turns."""
    from .parts.interleaved import interleaved_gate_up

    return (interleaved_gate_up(weights).transpose(1, 2), None), (weights.down("nk").transpose(1, 2), None)


def _swizzled(weights: Weights) -> Operands:
    """mxfp4 weights and scales in triton_kernels' own layouts for this GPU, gate and up in turns."""
    import torch
    from triton_kernels.tensor import FP4, convert_layout, wrap_torch_tensor
    from triton_kernels.tensor_details.layout import (
        make_default_matmul_mxfp4_w_layout,
        make_default_matmul_mxfp4_w_scale_layout,
    )

    def in_turns(both: torch.Tensor) -> torch.Tensor:
        return torch.stack(both.chunk(2, dim=1), dim=2).flatten(1, 2)

    def swizzled(values: torch.Tensor, scales: torch.Tensor) -> tuple[Any, Any]:
        value_layout, value_options = make_default_matmul_mxfp4_w_layout(mx_axis=1)
        scale_layout, scale_options = make_default_matmul_mxfp4_w_scale_layout(mx_axis=1, num_warps=SCALE_WARPS)
        wrapped = wrap_torch_tensor(values.transpose(1, 2), dtype=FP4)
        return (convert_layout(wrapped, value_layout, **value_options),
                convert_layout(wrap_torch_tensor(scales.transpose(1, 2)), scale_layout, **scale_options))  # fmt: skip

    gate_up, down = weights.packed_gate_up(), weights.packed_down()
    return swizzled(in_turns(gate_up.values), in_turns(gate_up.scales)), swizzled(down.values, down.scales)


def _activation(case: Case, specs: Callable[..., Any]) -> tuple[Any, tuple[float, ...]]:
    """The function that is fused into the gate and up GEMM, as its `FnSpecs`, and its arguments."""
    if case.facts.activation == "silu":
        from .parts.silu_mul import silu_mul

        return specs("silu_mul", silu_mul, ()), ()
    from triton_kernels.swiglu import swiglu_fn

    from tritonmoe_bench.experiments.workload.reference import SWIGLU_ALPHA, SWIGLU_LIMIT

    return specs("swiglu", swiglu_fn, ("alpha", "limit")), (SWIGLU_ALPHA, SWIGLU_LIMIT)


@contextmanager
def _recorded(module: Any, name: str) -> Iterator[list[Any]]:
    """Inside, what `module.name` returns is also put into the list."""
    returned: list[Any] = []
    original: Callable[..., Any] = getattr(module, name)

    def recording(*arguments: Any, **options: Any) -> Any:
        returned.append(original(*arguments, **options))
        return returned[-1]

    setattr(module, name, recording)
    try:
        yield returned
    finally:
        setattr(module, name, original)


def _words(flags: Any) -> str:
    return ",".join(f"{name}={int(getattr(flags, name))}" for name in TILE)


def _inside_vllm() -> list[Path]:
    """The folder of an installed vllm that holds triton_kernels, unless a triton_kernels is installed by itself."""
    from importlib.util import find_spec

    if find_spec("triton_kernels") is not None:
        return []
    vllm = find_spec("vllm")
    folders = [Path(folder) / "third_party" for folder in (vllm.submodule_search_locations or [])] if vllm else []
    return [folder for folder in folders if (folder / "triton_kernels").is_dir()]


def _version_in_vllm() -> str:
    version = installed_version("vllm")
    return f"of vllm {version}" if version else ""


@functools.cache
def _problem() -> str:
    """Why it cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    try:
        from triton_kernels.matmul_ogs import FusedActivation, matmul_ogs  # noqa: F401
        from triton_kernels.routing import routing  # noqa: F401
    except Exception as error:  # another package of that name, or one for another Triton, fails in ways of its own
        return f"{first_line(error)}: {vllm_tree.INSTALL}"
    if not torch.cuda.is_available():
        return "triton_kernels need an NVIDIA GPU"
    return ""
