"""Launching a kernel for the second time: without what Triton's own launch computes anew in every call.

Triton binds the arguments of a launch, specialises each, and puts all of that and the options into a string, before it
finds the compiled kernel: more host time than the launch itself. Here it is found by what Triton specialises on (see
`_specialised`) and by the constants, and is launched as Triton documents it, `compiled[grid](*every_argument)`.
"""

from __future__ import annotations

from typing import Any

import torch
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction

_TENSORS = (torch.Tensor, torch.nn.Parameter)
_held: dict[int, tuple[Any, dict[Any, tuple[CompiledKernel, list[str]]]]] = {}
"""By the identity of a kernel: the kernel, which thereby outlives the entry, and what has been compiled of it."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: torch.Tensor | int | float | None, **constants: Any) -> None:
    """`kernel[grid](*arguments, **constants)`, for less of the host's time from the second call on.

    arguments: the first parameters of the kernel, none of them a constexpr. constants: all other parameters, and
    options of the launch; each is compared by its value, so that a number which often changes belongs to `arguments`.

    Triton launches by itself what is new, in the interpreter and on AMD everything, and all arguments of other types,
    such as tensor descriptors.
    """
    grid = (*grid, 1, 1)[:3]
    ordinary = not isinstance(kernel, JITFunction) or kernel.pre_run_hooks or torch.version.hip
    specialised = None if ordinary else _specialised(arguments)
    if specialised is None:
        kernel[grid](*arguments, **constants)
        return
    # A compiled kernel belongs to a device. The knobs change what is compiled.
    how = torch.cuda.current_device(), knobs.runtime.debug, knobs.compilation.instrumentation_mode
    key = how, specialised, tuple(constants), tuple(constants.values())
    held = _held.setdefault(id(kernel), (kernel, {}))[1]
    if key in held:
        compiled, names = held[key]
        compiled[grid](*arguments, *[constants[name] for name in names])
        return
    compiled = kernel[grid](*arguments, **constants)
    if isinstance(compiled, CompiledKernel):
        held[key] = compiled, kernel.arg_names[len(arguments) :]


def _specialised(arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """What Triton may compile arguments for, one by one; None if one is of a type that is left to Triton.

    Of a tensor its dtype and whether it begins at whole 16 bytes, of an int whether it is 1, whether 16 divides it and
    whether it has 32 bits. Triton asks for no more, and for less of parameters that it is told not to specialise.
    """
    found: list[Any] = []
    for value in arguments:
        kind = type(value)
        if kind in _TENSORS:
            found.append((value.dtype, value.data_ptr() % 16 == 0))
        elif value is None or kind is float:
            found.append(kind)
        elif kind is int and -(2**63) <= value < 2**63:
            found.append(1 if value == 1 else (value % 16 == 0, -(2**31) <= value < 2**31))
        else:
            return None
    return tuple(found)
