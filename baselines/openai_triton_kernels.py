"""OpenAI's triton_kernels: routing, then `matmul_ogs` twice, with gather, scatter and the activation inside the GEMMs.

vLLM's wheel ships it. Its own SwiGLU is the clamped one of gpt-oss, so the adapter gives it SiLU x up as a fused
activation (baselines/parts/silu_mul.py), which needs gate and up columns interleaved. It chooses its tiles itself.
Weights and activations have 16 bits, and the weights' reduced dimension lies last, as in its own bf16 benchmark.
"""

from __future__ import annotations

import functools
import weakref
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
from .parts.in_build import ConfiguredInBuild, run_once

if TYPE_CHECKING:
    import torch

TILE = ("block_m", "block_n", "block_k", "num_warps", "num_stages", "split_k", "is_persistent")
"""Fields of triton_kernels' OptFlags that a row states."""


class OpenaiTritonKernels(ConfiguredInBuild):
    name = "openai_triton_kernels"
    family = "triton_kernels"
    source = f"PyPI vllm {vllm_tree.VERSION}, vllm/third_party/triton_kernels"

    def __init__(self) -> None:
        super().__init__()
        self._gate_up: weakref.WeakKeyDictionary[Weights, torch.Tensor] = weakref.WeakKeyDictionary()

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
        if case.top_k & (case.top_k - 1):
            return unsupported(f"top_k={case.top_k}: its top-k kernel needs a power of two")
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch
        from triton_kernels import matmul_ogs as module
        from triton_kernels.matmul_ogs import FnSpecs, FusedActivation, PrecisionConfig, matmul_ogs
        from triton_kernels.routing import routing

        from .parts.silu_mul import silu_mul

        router = weights.router()
        gate_up = self._interleaved(case, weights).transpose(1, 2)  # [E, hidden, 2 * ffn]
        down = weights.down("nk").transpose(1, 2)  # [E, ffn, hidden]
        top_k, before_top_k = case.top_k, not case.gate.renormalize
        activation = FusedActivation(FnSpecs("silu_mul", silu_mul, ()), (), 2)
        precision = PrecisionConfig()

        def forward(x: torch.Tensor) -> torch.Tensor:
            logits = torch.nn.functional.linear(x, router)
            data, gather, scatter = routing(logits, top_k, sm_first=before_top_k)
            hidden = matmul_ogs(x, gate_up, None, data, gather_indx=gather, precision_config=precision,
                                fused_activation=activation)  # fmt: skip
            return matmul_ogs(hidden, down, None, data, scatter_indx=scatter, precision_config=precision,
                              gammas=data.gate_scal)  # fmt: skip

        with _recorded(module, "make_opt_flags") as chosen:
            run_once(forward, case, weights)
        gate_up_flags, down_flags = map(_words, chosen)
        self.configured(case, f"gate_up:{gate_up_flags} down:{down_flags}")
        return forward

    def _interleaved(self, case: Case, weights: Weights) -> torch.Tensor:
        """[num_experts, 2 * ffn, hidden], rows gate 0, up 0, gate 1, ...; made once a weight set, expert by expert."""
        import torch

        if weights not in self._gate_up:
            shape = (case.num_experts, case.ffn_dim, 2, case.hidden_dim)
            pairs = torch.empty(shape, dtype=weights.dtype, device=weights.device)
            for index in range(case.num_experts):
                gate, up, _ = weights.expert(index)
                pairs[index, :, 0].copy_(gate)
                pairs[index, :, 1].copy_(up)
            self._gate_up[weights] = pairs.flatten(1, 2)
        return self._gate_up[weights]


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
