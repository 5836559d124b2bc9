"""Checks shared by the public entry points: they raise before any launch, naming what was wrong and what is allowed."""

from __future__ import annotations

import torch
import triton

DTYPES = (torch.float16, torch.bfloat16)
"""Element types of activations and weights."""
ROUTER_DTYPES = DTYPES
"""Element types of the router's weight."""
LOGIT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INDEX_DTYPES = (torch.int32, torch.int64)
MAX_TOP_K = 32
MAX_EXPERTS = 1024
MAX_SLOTS = 8192 * MAX_TOP_K


def check_tensor(
    name: str, tensor: object, shape: tuple[int | str, ...], dtypes: tuple[torch.dtype, ...], like: torch.Tensor | None
) -> torch.Tensor:
    """`tensor`, if it fits. In `shape` a number must be met and a word names a dimension of any positive size.

    like: a tensor whose device `tensor` must share, None for the first one, whose device must be able to run kernels.
    Raises TypeError for what is no tensor or has another dtype; ValueError for another rank, size, device or a last
    dimension that is not contiguous.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        allowed = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must be {allowed}, got {tensor.dtype}: convert it with .to()")
    actual = tensor.shape
    if len(actual) != len(shape) or not all(
        size == want if isinstance(want, int) else size > 0 for size, want in zip(actual, shape)
    ):
        empty = ": no size may be 0" if 0 in actual else ""
        raise ValueError(f"{name} must have shape [{', '.join(map(str, shape))}], got {list(actual)}{empty}")
    if tensor.stride(-1) != 1 and actual[-1] > 1:
        raise ValueError(
            f"{name} must have stride 1 in its last dimension, got strides {tensor.stride()}: call .contiguous()"
        )
    if like is None:
        _check_device(name, tensor)
    elif tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, the other tensors are on {like.device}: move it there")
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
    2 * ffn, hidden], down [num_experts, hidden, ffn], all of one dtype and device, and top_k of the experts.

    Raises TypeError or ValueError.
    """
    x = check_tensor("x", x, ("tokens", "hidden"), DTYPES, None)
    tokens, hidden = x.shape
    if (tokens - 1) * x.stride(0) >= 2**31:
        raise ValueError(f"x has rows {x.stride(0)} elements apart, too far for 32-bit offsets: call .contiguous()")
    router_weight = check_tensor("router_weight", router_weight, ("num_experts", hidden), (x.dtype,), x)
    num_experts = check_num_experts(router_weight.shape[0])
    down = check_tensor("down", down, (num_experts, hidden, "ffn"), (x.dtype,), x)
    gate_up = check_tensor("gate_up", gate_up, (num_experts, 2 * down.shape[2], hidden), (x.dtype,), x)
    check_expert_size("gate_up", gate_up)
    check_expert_size("down", down)
    slots = tokens * check_top_k(top_k, num_experts)
    if slots > MAX_SLOTS:
        raise ValueError(f"{tokens} tokens of top_k={top_k}: at most {MAX_SLOTS} slots, 8192 tokens of top-{MAX_TOP_K}")


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


def _check_device(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        current = torch.cuda.current_device()
        if tensor.get_device() != current:
            raise ValueError(
                f"{name} is on {tensor.device}, but the current device is cuda:{current}: "
                f"call inside torch.cuda.device({tensor.get_device()})"
            )
    elif not (tensor.device.type == "cpu" and triton.knobs.runtime.interpret):
        raise ValueError(
            f"{name} is on {tensor.device}: move it to a GPU, or for CPU tensors set TRITON_INTERPRET=1 before triton "
            "is imported"
        )
    elif tensor.dtype == torch.bfloat16 and not _interprets_bfloat16():
        raise TypeError(
            f"{name} is bfloat16 on the CPU, on whose bits Triton's interpreter computes as they are: take float16, or "
            "call tritonmoe_bench.experiments.interpreter.repair.install() first"
        )


def _interprets_bfloat16() -> bool:
    """Whether the interpreter of this process has been repaired, as experiments/interpreter/repair.py does."""
    from triton.runtime.interpreter import InterpreterBuilder

    return hasattr(InterpreterBuilder, "computes_bf16")
