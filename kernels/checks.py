"""Checks shared by the public entry points: they raise before any launch, naming what was wrong and what is allowed."""

from __future__ import annotations

import torch
import triton

from .pdl import wait_for_previous

DTYPES = (torch.float16, torch.bfloat16)
"""Element types of activations and weights."""
MAX_TOP_K = 32
MAX_EXPERTS = 1024
MAX_SLOTS = 8192 * MAX_TOP_K
"""Token-expert pairs that the kernels take at once; `chunks` cuts larger batches."""


def check_tensor(
    name: str, tensor: object, shape: tuple[int | str, ...], dtypes: tuple[torch.dtype, ...], like: torch.Tensor | None
) -> torch.Tensor:
    """`tensor`, if it fits. In `shape` a number must be met and a word names a dimension of any positive size, but
    there may be no `tokens`.

    like: a tensor whose device `tensor` must share, None for the first one, whose device must be able to run kernels.
    Raises TypeError for what is no tensor or has another dtype; ValueError for another rank, size, device or a last
    dimension that is not contiguous.
    """
    tensor = _check_type(name, tensor, dtypes)
    actual = tensor.shape
    if len(actual) != len(shape) or not all(
        size == want if isinstance(want, int) else size > 0 or want == "tokens" for size, want in zip(actual, shape)
    ):
        hint = ": no size may be 0" if 0 in actual[-2:] else _transposed(name, actual, shape)
        raise ValueError(f"{name} must have shape [{', '.join(map(str, shape))}], got {list(actual)}{hint}")
    if tensor.stride(-1) != 1 and actual[-1] > 1:
        raise ValueError(
            f"{name} must have stride 1 in its last dimension, got strides {tensor.stride()}: call .contiguous()"
        )
    _check_place(name, tensor, like)
    return tensor


def check_rows(
    name: str, tensor: object, dtypes: tuple[torch.dtype, ...], like: torch.Tensor | None = None
) -> torch.Tensor:
    """As `check_tensor` for a tensor [..., hidden] of any leading dimensions and strides."""
    tensor = _check_type(name, tensor, dtypes)
    if not tensor.dim() or not tensor.shape[-1]:
        raise ValueError(f"{name} must have shape [..., hidden], got {list(tensor.shape)}: hidden may not be 0")
    _check_place(name, tensor, like)
    return tensor


def check_contiguous(name: str, tensor: torch.Tensor) -> None:
    """Raises ValueError if rows do not follow each other without gaps."""
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}: call .contiguous()")


def check_expert_size(name: str, weights: torch.Tensor) -> None:
    """Raises ValueError if one expert's matrix is larger than the 32-bit offsets inside of an expert reach."""
    if weights.shape[1] * weights.stride(1) >= 2**31:
        raise ValueError(f"{name}: an expert of {list(weights.shape[1:])} elements is too large, allowed are 2**31 - 1")


def check_layer(x: object, router_weight: object, gate_up: object, down: object, top_k: object) -> None:
    """Checks what every forward takes: x [tokens, hidden], router_weight [num_experts, hidden], gate_up [num_experts,
    2 * ffn, hidden], down [num_experts, hidden, ffn], all of one dtype and device, and top_k of the experts. The
    router's weight may also be float32.

    Raises TypeError or ValueError.
    """
    x = check_tensor("x", x, ("tokens", "hidden"), DTYPES, None)
    hidden = x.shape[1]
    num_experts = check_router_weight(router_weight, x).shape[0]
    down = check_tensor("down", down, (num_experts, hidden, "ffn"), (x.dtype,), x)
    gate_up = check_tensor("gate_up", gate_up, (num_experts, 2 * down.shape[2], hidden), (x.dtype,), x)
    check_expert_size("gate_up", gate_up)
    check_expert_size("down", down)
    check_top_k(top_k, num_experts)


def check_router_weight(router_weight: object, x: torch.Tensor) -> torch.Tensor:
    """`router_weight` [num_experts, hidden], in the dtype of x or float32. Raises TypeError or ValueError."""
    dtypes = (x.dtype, torch.float32)
    router_weight = check_tensor("router_weight", router_weight, ("num_experts", x.shape[-1]), dtypes, x)
    check_num_experts(router_weight.shape[0])
    return router_weight


def check_top_k(top_k: object, num_experts: int) -> int:
    """`top_k`, if that many experts can be chosen. Raises TypeError for no int, ValueError for one out of range."""
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise TypeError(f"top_k must be an int, got {type(top_k).__name__}")
    most = min(num_experts, MAX_TOP_K)
    if not 1 <= top_k <= most:
        raise ValueError(f"top_k={top_k}: allowed are 1 to {most} for {num_experts} experts")
    return top_k


def check_num_experts(num_experts: object) -> int:
    """`num_experts`, if kernels can route among that many. Raises TypeError or ValueError."""
    if isinstance(num_experts, bool) or not isinstance(num_experts, int):
        raise TypeError(f"num_experts must be an int, got {type(num_experts).__name__}")
    if not 1 <= num_experts <= MAX_EXPERTS:
        raise ValueError(f"num_experts={num_experts}: allowed are 1 to {MAX_EXPERTS}")
    return num_experts


def _check_type(name: str, tensor: object, dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        allowed = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must be {allowed}, got {tensor.dtype}: convert it with .to()")
    return tensor


def _check_place(name: str, tensor: torch.Tensor, like: torch.Tensor | None) -> None:
    if like is None:
        _check_device(name, tensor)
    elif tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, the other tensors are on {like.device}: move it there")


def _transposed(name: str, actual: torch.Size, shape: tuple[int | str, ...]) -> str:
    """What to do about a tensor whose last two dimensions are those of the transpose of `shape`."""
    turned = (*actual[:-2], *reversed(actual[-2:]))
    fits = len(actual) == len(shape) and all(isinstance(want, str) or size == want for size, want in zip(turned, shape))
    axes = f"{len(shape) - 2}, {len(shape) - 1}"
    return f": it is transposed, pass {name}.transpose({axes}).contiguous()" if fits and len(shape) > 1 else ""


def _check_device(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        current = torch.cuda.current_device()
        if tensor.get_device() != current:
            raise ValueError(
                f"{name} is on {tensor.device}, but the current device is cuda:{current}: "
                f"call inside torch.cuda.device({tensor.get_device()})"
            )
    elif not (tensor.device.type == "cpu" and interprets()):
        late = tensor.device.type == "cpu" and triton.knobs.runtime.interpret
        raise ValueError(
            f"{name} is on {tensor.device}: move it to a GPU, or for CPU tensors set TRITON_INTERPRET=1 before triton "
            f"is imported{', which it was when you set it: restart Python' if late else ''}"
        )
    elif tensor.dtype == torch.bfloat16 and not _interprets_bfloat16():
        raise TypeError(
            f"{name} is bfloat16 on the CPU, which Triton's interpreter computes wrongly: take float16, or repair it "
            "by `from tritonmoe_bench.experiments.interpreter import repair; repair.install()`"
        )


def interprets() -> bool:
    """Whether this process interprets kernels: what TRITON_INTERPRET said when triton and ours were imported."""
    return not any(isinstance(function, triton.JITFunction) for function in (triton.language.cdiv, wait_for_previous))


def _interprets_bfloat16() -> bool:
    """Whether the interpreter of this process has been repaired, as experiments/interpreter/repair.py does."""
    from triton.runtime.interpreter import InterpreterBuilder

    return hasattr(InterpreterBuilder, "computes_bf16")
