"""Inference only, said where it matters: a backward pass that would need a gradient of ours raises."""

from __future__ import annotations

from collections.abc import Callable

import torch

NO_GRADIENT = (
    "the kernels of tritonmoe_bench compute no gradients: call them under torch.no_grad() or torch.inference_mode(), "
    "or on tensors that require none"
)


class _Inference(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run: Callable[..., torch.Tensor], *arguments: object) -> torch.Tensor:
        return run(*arguments)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor) -> None:
        raise RuntimeError(NO_GRADIENT)


def inference_only(run: Callable[..., torch.Tensor], *arguments: object) -> torch.Tensor:
    """`run(*arguments)`. If an argument requires a gradient, so does the output: a backward pass through it raises."""
    if needs_gradient(*arguments):
        return _Inference.apply(run, *arguments)
    return run(*arguments)


def needs_gradient(*arguments: object) -> bool:
    """Whether a gradient would be asked for of one of the arguments."""
    return torch.is_grad_enabled() and any(getattr(value, "requires_grad", False) for value in arguments)


@torch.library.custom_op("tritonmoe::no_gradient", mutates_args=(), schema="(Tensor grad, Tensor like) -> Tensor")
def _no_gradient_op(grad: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    raise RuntimeError(NO_GRADIENT)


@_no_gradient_op.register_fake
def _(grad: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(like)


def register_no_gradient(operator: torch.library.CustomOpDef) -> None:
    """The same for an operator: its backward pass can be traced, and raises when it runs."""

    def setup(ctx, inputs, output) -> None:
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, torch.Tensor)))
        ctx.are_tensors = [isinstance(value, torch.Tensor) for value in inputs]

    def backward(ctx, grad):
        saved = iter(ctx.saved_tensors)
        tensors = [next(saved) if is_tensor else None for is_tensor in ctx.are_tensors]
        needed = zip(tensors, ctx.needs_input_grad)
        return tuple(_no_gradient_op(grad, like) if needs else None for like, needs in needed)

    operator.register_autograd(backward, setup_context=setup)
