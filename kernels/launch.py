"""Launching a kernel for the second time: without what Triton's own launch computes anew in every call.

Triton binds the arguments of a launch, specialises each, and puts all of that and the options into a string, before it
finds the compiled kernel: more host time than the launch itself. Here it is found by what Triton specialises on (see
`_specialised`) and by the constants, and is launched as Triton documents it, `compiled[grid](*every_argument)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction

_TYPES = (Tensor, Parameter, int, float, type(None))
"""Types of arguments of which it is known what Triton specialises on."""
_held: dict[Any, tuple[Any, CompiledKernel, list[Any]]] = {}
"""By launch: its kernel, which thereby outlives its entry, what is compiled of it, and its constants in their order."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """`kernel[grid](*arguments, **constants)`, for less of the host's time from the second call on.

    arguments: the first parameters of the kernel, none of them a constexpr: tensors, numbers, None. constants: all
    other parameters, and options of the launch; each is compared by its value, so that a number which often changes
    belongs to `arguments`.

    Triton launches by itself what is new, in the interpreter and on AMD everything, and what has arguments of other
    types, such as tensor descriptors.
    """
    grid = (*grid, 1, 1)[:3]
    if not isinstance(kernel, JITFunction) or kernel.pre_run_hooks or torch.version.hip:
        kernel[grid](*arguments, **constants)
        return
    # A compiled kernel belongs to a device, and the knobs change what is compiled. All in one expression: its time is
    # that of every launch.
    key = (
        id(kernel), torch.cuda.current_device(), knobs.runtime.debug, knobs.compilation.instrumentation_mode,
        *[
            (value.dtype, value.data_ptr() & 15)
            if (kind := type(value)) is Tensor or kind is Parameter
            else _specialised(value)
            for value in arguments
        ],
        *constants, *constants.values(),
    )  # fmt: skip
    found = _held.get(key)
    if found is not None:
        _, compiled, values = found
        compiled[grid](*arguments, *values)
        return
    compiled = kernel[grid](*arguments, **constants)
    if isinstance(compiled, CompiledKernel) and all(type(value) in _TYPES for value in arguments):
        _held[key] = kernel, compiled, [constants[name] for name in kernel.arg_names[len(arguments) :]]


def _specialised(value: Any) -> Any:
    """What Triton may compile an argument for that is no tensor: its type, and of an int whether it is 1, whether 16
    divides it, and its bits. Of a tensor it is the dtype, and whether it begins at whole 16 bytes.

    Triton asks for no more, and for less of parameters that it is told not to specialise.
    """
    if type(value) is not int:
        return type(value)
    return 1 if value == 1 else (value % 16 == 0, -(2**31) <= value < 2**31, value < 2**63)
