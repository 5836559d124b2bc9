"""Compares `launch` with Triton's own launch, with no GPU: a compiler that does nothing tells what it was asked for.

Run by test_launch.py in a process of its own, as Triton's interpreter and its compiler do not live in one.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction

from tritonmoe_bench.kernels import launch as launching
from tritonmoe_bench.kernels.launch import launch

DEVICE = [0]
RAN: list[Any] = []


class Driver:
    """As much of a GPU's driver as a launch asks for."""

    def get_current_device(self) -> int:
        return DEVICE[0]

    def get_current_stream(self, device: int) -> int:
        return 7

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Compiled(CompiledKernel):
    """A kernel whose launch is noted in `RAN` and does nothing."""

    function = packed_metadata = None

    def __init__(self, asked_for: Any):
        self.asked_for = asked_for

    def _init_handles(self) -> None:
        pass

    def launch_metadata(self, grid: Any, stream: int, *arguments: Any) -> None:
        return None

    @property
    def run(self) -> Any:  # type: ignore[override]
        def note(x: int, y: int, z: int, stream: int, *rest: Any) -> None:
            RAN.append((self.asked_for, (x, y, z), stream, [id(value) for value in rest[5:]]))

        return note


COMPILED: list[str] = []


def pretend_to_compile(self, key, signature, device, constexprs, options, attrs, warmup):
    COMPILED.append(self.__name__)
    asked_for = self.__name__, device, str(signature), str(constexprs), str(attrs), str(options)
    self.device_caches[device][0][key] = compiled = Compiled(asked_for)
    return compiled


@triton.jit(do_not_specialize=["often"])
def plain_kernel(x, y, number, often, scale, SIZE: tl.constexpr, FLAG: tl.constexpr, LADDER: tl.constexpr):
    pass


@triton.jit
def other_kernel(x, y, number, often, scale, SIZE: tl.constexpr, FLAG: tl.constexpr, LADDER: tl.constexpr):
    pass


def main() -> None:
    triton.runtime.driver.set_active(Driver())
    torch.cuda.current_device = lambda: DEVICE[0]
    JITFunction._do_compile = pretend_to_compile
    memory = torch.zeros(256, dtype=torch.float16)
    tensors = [memory, memory[1:], memory[8:], memory.float(), torch.nn.Parameter(memory, False), None]
    tensors += [memory[4:], memory.view(torch.uint8)[1:], memory.view(torch.bfloat16)]
    ints = [0, 1, 2, 15, 16, 17, 48, -1, -16, 2**31 - 1, 2**31, 2**31 + 16, -(2**31), -(2**31) - 1, 2**40, 2**63, None]
    calls = [(x, memory, 16, 1, 1.0) for x in tensors] + [(memory, y, 3, 2, 0.5) for y in tensors]
    calls += [(memory, None, number, often, 1.0) for number, often in itertools.product(ints, ints)]
    calls += [(memory, None, 2, 2, scale) for scale in (0.0, 1.0, 2.5, 1, 16, True, None)]
    constants = [
        {"SIZE": size, "FLAG": flag, "LADDER": ladder, **options}
        for size, flag, ladder in ((8, True, None), (16, True, ((1, 2), (3, 4))), (16, False, ((1, 2), (3, 5))))
        for options in ({}, {"num_warps": 8}, {"num_warps": 8, "launch_pdl": True}, {"maxnreg": 64})
    ]
    compared = 0
    for device, kernel in itertools.product((0, 1), (plain_kernel, other_kernel)):
        DEVICE[0] = device
        for number, (arguments, fixed) in enumerate(itertools.product(calls, constants)):
            grid = [(5,), (5, 6), (5, 6, 7)][number % 3]
            kernel[grid](*arguments, **fixed)
            backwards = dict(reversed(fixed.items()))
            for names in (fixed, fixed, backwards):
                launch(kernel, grid, *arguments, **names)
            ran = RAN[-4:]
            assert len(RAN) == 4 * (compared + 1)
            assert all(one == ran[0] for one in ran), (arguments, fixed, ran)
            compared += 1
    before = len(COMPILED)
    hooked: list[Any] = []
    plain_kernel.add_pre_run_hook(lambda *arguments, **_: hooked.append(arguments))
    launch(plain_kernel, (1,), *calls[0], **constants[0])
    assert len(hooked) == 1, "a hook of the kernel was passed over"
    plain_kernel.pre_run_hooks.clear()
    triton.knobs.runtime.debug = True
    launch(plain_kernel, (1,), *calls[0], **constants[0])
    assert len(COMPILED) == before + 1, "a kernel without the checks of debug mode was launched"
    assert "debug=True" in RAN[-1][0][-1]
    entries = len(launching._held)
    assert 100 < entries < compared, entries
    for often in range(100, 1000):
        launch(plain_kernel, (1,), *calls[0][:3], often, 1.0, **constants[0])
    assert len(launching._held) <= entries + 4, "an entry for every number"
    sys.stdout.write(f"{compared} launches agree\n")


if __name__ == "__main__":
    main()
