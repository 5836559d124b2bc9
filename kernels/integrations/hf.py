"""Models of transformers (5.0 and later) with their experts computed by `fast`.

    from tritonmoe_bench.kernels.integrations import hf
    hf.register()
    model = AutoModelForCausalLM.from_pretrained(..., experts_implementation="tritonmoe_fast")

What `fast` cannot compute is left to transformers' own `grouped_mm`, with one warning that says why. Weights are taken
where they lie, with one exception: experts whose matrices are transposed or whose gate and up columns alternate, as
those of gpt-oss, are laid out anew once. That takes as much memory again as the experts' weights, for as long as the
model lives, unless `prepare(model, release=True)` gives up transformers' own; weights that are changed, moved or loaded
afterwards are laid out again. A model that is compiled keeps the weights that it was compiled with.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..checks import DTYPES, MAX_EXPERTS, MAX_TOP_K, interprets
from ..fast.layer import fast_experts
from ..formats import Packed
from ..formats.fp8_block import BLOCK, Fp8Block
from ..gradient import needs_gradient
from .gates import Gate, gate_of

NAME = "tritonmoe_fast"
KEPT = "_tritonmoe_fast"
"""The attribute of an experts module that holds what was found out about it."""
Experts = Callable[..., torch.Tensor]


@dataclass
class Found:
    """What was found out about an experts module.

    gate: what its gate computes; refusal: why `fast` cannot stand for it, empty if it can; source: the tensors that
    `laid_out` was made from, each by place and version; laid_out: gate_up, down and their biases as `fast` takes them,
    where the module has them otherwise; released: whether the module has its own matrices no longer.
    """

    gate: Gate | None
    refusal: str
    source: tuple[tuple[int, int], ...] = ()
    laid_out: tuple[torch.Tensor | Packed | None, ...] = ()
    released: bool = False


def register() -> None:
    """Makes `experts_implementation="tritonmoe_fast"` known to transformers, for 16-bit and for fp8 checkpoints.

    Raises ImportError where transformers is missing or has no interface for experts.
    """
    try:
        from transformers.integrations import finegrained_fp8, moe
    except ImportError as error:
        raise ImportError(
            f"transformers 5.0 or later is needed: pip install 'tritonmoe-bench[transformers]' ({error})"
        ) from None
    moe.ExpertsInterface.register(NAME, experts_forward(moe.grouped_mm_experts_forward))
    if hasattr(finegrained_fp8, "FP8ExpertsInterface"):
        fallback = finegrained_fp8.fp8_grouped_mm_experts_forward
        finegrained_fp8.FP8ExpertsInterface.register(NAME, experts_forward(fallback))


def prepare(model: torch.nn.Module, release: bool = False) -> None:
    """Looks at all experts of a model now rather than at their first forward, which `torch.compile(fullgraph=True)`
    needs, and lays out anew what has to be.

    release: matrices that were laid out anew are given up, layer by layer, so that the model takes the memory of one
    layout and not of two. It then runs with these experts alone, and can be neither saved nor moved.
    """
    for module in model.modules():
        if hasattr(module, "_apply_gate") and hasattr(module, "down_proj"):
            found = getattr(module, KEPT, None) or _look_at(module)
            laid_out = _laid_out(module, found)
            if release and laid_out and laid_out is found.laid_out and not _is_fp8(module):
                _release(module, found)


def experts_forward(fallback: Experts) -> Experts:
    """The forward of an experts module in transformers' interface; fallback: another one, for what `fast` cannot do."""

    def forward(
        self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """y [tokens, hidden] of hidden_states [tokens, hidden], top_k_index and top_k_weights [tokens, top_k]."""
        found = getattr(self, KEPT, None) or _look_at(self)
        reason = found.refusal or _refusal(self, hidden_states, top_k_index, top_k_weights)
        if reason:
            _tell(f"{type(self).__name__}: {reason}: its experts are left to grouped_mm")
            return fallback(self, hidden_states, top_k_index, top_k_weights)
        gate_up, down, gate_up_bias, down_bias = _laid_out(self, found)
        with _on_its_device(hidden_states):
            return fast_experts(
                hidden_states, gate_up, down, top_k_index, top_k_weights,
                activation=found.gate.activation, gate_up_bias=gate_up_bias, down_bias=down_bias,
            )  # fmt: skip

    return forward


@torch._dynamo.disable(reason="call tritonmoe_bench.kernels.integrations.hf.prepare(model) before it is compiled")
def _look_at(module: Any) -> Found:
    """Finds out about a module, and keeps it there."""
    found = Found(None, _unfit(module))
    if not found.refusal:
        found.gate = gate_of(module)
        if found.gate is None:
            found.refusal = "its activation is none of fast's"
    setattr(module, KEPT, found)
    return found


def _unfit(module: Any) -> str:
    """Why `fast` cannot stand for a module whatever it is called with; empty if it can."""
    if not getattr(module, "has_gate", True):
        return "its experts have no gate"
    if getattr(module, "has_post_expert_norm", False):
        return "it normalises what each expert gives"
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(module, name, None)
        if type(weight) not in (torch.nn.Parameter, torch.Tensor) or getattr(module, name).dim() != 3:
            return f"{name} is no plain tensor [experts, rows, columns]"
    if module.down_proj.shape[0] > MAX_EXPERTS:
        return f"it has more than {MAX_EXPERTS} experts"
    return _unfit_fp8(module) if _is_fp8(module) else ""


def _is_fp8(module: Any) -> bool:
    return hasattr(module, "down_proj_scale_inv") and module.down_proj.dtype == torch.float8_e4m3fn


def _unfit_fp8(module: Any) -> str:
    if getattr(module, "activation_scheme", "dynamic") != "dynamic":
        return "its activations are quantised by fixed scales"
    if tuple(module.block_size or ()) != (BLOCK, BLOCK):
        return f"its scales are not of blocks of {BLOCK} x {BLOCK}"
    ffn, hidden = module.down_proj.shape[2], module.down_proj.shape[1]
    return "" if ffn % BLOCK == 0 == hidden % BLOCK else f"its matrices are no multiples of {BLOCK}"


def _refusal(module: Any, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> str:
    """Why `fast` cannot take this call; empty if it can."""
    if needs_gradient(x, weights, module.down_proj):
        return "a gradient is asked for (torch.no_grad() or torch.inference_mode() asks for none)"
    if x.dtype not in DTYPES:
        return f"its input is {x.dtype}, and fast takes 16 bits"
    if not _is_fp8(module) and module.down_proj.dtype != x.dtype:
        return f"its weights are {module.down_proj.dtype}, its input {x.dtype}"
    if not (x.is_cuda or (x.device.type == "cpu" and interprets())):
        return f"it is on {x.device}, and fast needs a GPU"
    return f"a token has more than {MAX_TOP_K} experts" if ids.shape[-1] > MAX_TOP_K else ""


def _laid_out(module: Any, found: Found) -> tuple[Any, ...]:
    """gate_up, down, gate_up_bias and down_bias of a module as `fast` takes them, made anew only if they changed."""
    if found.gate is None:
        return ()
    tensors = module.gate_up_proj, module.down_proj, *_biases(module)
    scales = (module.gate_up_proj_scale_inv, module.down_proj_scale_inv) if _is_fp8(module) else ()
    if not scales and not found.gate.interleaved and not getattr(module, "is_transposed", False):
        return tensors
    if found.released or (torch.compiler.is_compiling() and found.laid_out):
        return found.laid_out
    source = tuple((tensor.data_ptr(), tensor._version) for tensor in (*tensors, *scales) if tensor is not None)
    if source != found.source:
        found.laid_out = ()  # the old ones first, to have their memory for the new ones
        if scales:
            found.laid_out = (*map(Fp8Block.from_checkpoint, tensors[:2], scales), *tensors[2:])
        else:
            found.laid_out = _lay_out(module, found.gate, *tensors)
        found.source = source
    return found.laid_out


def _release(module: Any, found: Found) -> None:
    """Leaves shapes without memory in the place of the matrices: what computes with them raises."""
    found.released = True
    for name in ("gate_up_proj", "down_proj"):
        setattr(module, name, torch.nn.Parameter(getattr(module, name).to("meta"), requires_grad=False))


def _biases(module: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (module.gate_up_proj_bias, module.down_proj_bias) if getattr(module, "has_bias", False) else (None, None)


@torch._dynamo.disable(reason="call tritonmoe_bench.kernels.integrations.hf.prepare(model) before it is compiled")
@torch.no_grad()
def _lay_out(module: Any, gate: Gate, gate_up, down, gate_up_bias, down_bias) -> tuple[torch.Tensor | None, ...]:
    """Copies with rows where the module has columns, and all gate rows before all up rows."""
    if getattr(module, "is_transposed", False):
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    if gate.interleaved:
        gate_up, gate_up_bias = _parted(gate_up), None if gate_up_bias is None else _parted(gate_up_bias)
    made = gate_up.contiguous(), down.contiguous(), gate_up_bias, down_bias
    for tensor in made:
        if tensor is not None:  # so that a compiled model reads them in place instead of copying them each time
            torch._dynamo.mark_static_address(tensor)
    return made


def _parted(rows: torch.Tensor) -> torch.Tensor:
    """[experts, 2 * ffn, ...] with the even rows first."""
    return torch.cat([rows[:, ::2], rows[:, 1::2]], 1)


def _on_its_device(x: torch.Tensor) -> AbstractContextManager:
    """A model spread over several GPUs runs each layer on its own, whichever is the current one."""
    if x.is_cuda and not torch.compiler.is_compiling() and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


@torch.compiler.assume_constant_result
def _tell(text: str) -> bool:
    """Warns, once for each text, also while a graph is traced."""
    if text not in _told:
        _told.add(text)
        warnings.warn(text, stacklevel=3)
    return True


_told: set[str] = set()
