"""Compiles every kernel that `fast` launches on a target, with the tiles it would choose there, and prints JSON lines.

Forwards run on tensors without storage under a driver without a GPU, so signature, constants, options and tiles are
those of a launch on the target. Run as a file, in a process of its own for each target. Argument: a key of TARGETS.
"""

from __future__ import annotations

import itertools
import json
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

from compile_probe import TARGETS, resources  # binds tritonmoe_bench, so it comes first

import torch  # isort: skip
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.jit import JITFunction

from tritonmoe_bench.kernels.fast import FEW_TOKENS, fast_moe
from tritonmoe_bench.kernels.fast_tiles import FastTiles, choose_tiles
from tritonmoe_bench.kernels.gating import GATINGS, Gating

CAPABILITY = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0), "gfx942": (9, 4), "gfx950": (9, 5)}
"""As torch.cuda.get_device_capability answers, which for AMD too is a pair of numbers."""
MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304, "gfx950": 256}
SHAPES = [(8, 2, 4096, 14336), (64, 4, 3584, 2560), (256, 8, 7168, 2048), (128, 8, 2048, 768), (60, 4, 2888, 1416)]
"""(experts, top_k, hidden, ffn) to ask for tiles: the models of the benchmark, and one that no tile divides."""
EVERY_TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 8192]
EXPERTS, TOP_K, MANY_TOKENS = 64, 4, 512
EVEN, RAGGED, ODD = (4096, 2560), (2888, 1416), (2887, 1415)
"""(hidden, ffn) that the tiles divide; of whole 16 bytes, but divided by no tile; of no whole 16 bytes."""


class Driver:
    """What Triton asks of a driver to compile, and nothing of what it asks to launch."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def pretend(name: str) -> None:
    """Makes this process believe that its GPU is the target. Nothing takes it back."""
    target, shared_bytes = TARGETS[name]
    major, minor = CAPABILITY[name]
    properties: Any = types.SimpleNamespace(
        name=name, major=major, minor=minor, multi_processor_count=MULTIPROCESSORS[name], warp_size=target.warp_size,
        shared_memory_per_block=min(shared_bytes, 64 * 1024), shared_memory_per_block_optin=shared_bytes,
    )  # fmt: skip
    torch.cuda.get_device_capability = lambda device=None: (major, minor)
    torch.cuda.get_device_properties = lambda device=None: properties
    torch.cuda.get_device_name = lambda device=None: name
    torch.cuda.current_device = lambda: 0
    if target.backend == "hip":
        torch.version.hip = "6.4"
    triton.runtime.driver.set_active(Driver(target))


def record(launched: list[tuple[str, Any]]) -> None:
    """From now on a launch compiles its kernel, adds (name, compiled kernel) to `launched`, and launches nothing."""
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launched.append((self.fn.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

    JITFunction.run = compile_only


def forward(dtype: torch.dtype, tokens: int, gating: Gating, tiles: FastTiles, size: tuple[int, int]) -> None:
    hidden, ffn = size

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    fast_moe(
        empty(tokens, hidden), empty(EXPERTS, hidden), empty(EXPERTS, 2 * ffn, hidden), empty(EXPERTS, hidden, ffn),
        TOP_K, gating, correction_bias=empty(EXPERTS, dtype=torch.float32) if gating.correction_bias else None,
        tiles=tiles,
    )  # fmt: skip


def chosen_tiles() -> dict[FastTiles, list[tuple[int, int]]]:
    """All tiles that `choose_tiles` returns here, from one token to many, and the sizes to compile them for."""
    device = torch.device("cuda", 0)
    chosen: dict[FastTiles, list[tuple[int, int]]] = {}
    for tokens, shape in itertools.product(EVERY_TOKENS, SHAPES):
        chosen.setdefault(choose_tiles(device, *shape, tokens), [EVEN, RAGGED])
    for tokens in EVERY_TOKENS:
        chosen.setdefault(choose_tiles(device, EXPERTS, TOP_K, *ODD, tokens), [ODD])
    return chosen


def forwards() -> Iterator[tuple[torch.dtype, int, Gating, FastTiles, tuple[int, int]]]:
    """Arguments of `forward`: all tiles for many tokens; then, for one of them, what else changes a kernel."""
    for tiles, sizes in chosen_tiles().items():
        for size in sizes:
            yield torch.bfloat16, MANY_TOKENS, GATINGS["softmax"], tiles, size
    yield torch.float16, FEW_TOKENS, GATINGS["softmax"], tiles, EVEN
    for tokens in (FEW_TOKENS, MANY_TOKENS):
        yield torch.bfloat16, tokens, GATINGS["deepseek_v3"], tiles, EVEN


def main(name: str) -> None:
    target = TARGETS[name][0]
    pretend(name)
    launched: list[tuple[str, Any]] = []
    record(launched)
    printed: set[str] = set()
    warnings.simplefilter("ignore", UserWarning)  # a tensor without storage has no address
    with FakeTensorMode():
        for dtype, tokens, gating, tiles, size in forwards():
            forward(dtype, tokens, gating, tiles, size)
            case = {"target": name, "dtype": str(dtype), "tiles": f"{tiles.gate_up} {tiles.down}", "size": size}
            for kernel, compiled in launched:
                if compiled.hash not in printed:
                    printed.add(compiled.hash)
                    waits = "griddepcontrol.wait" in compiled.asm.get("ptx", "")
                    found = {"kernel": kernel, "waits": waits, **resources(compiled, target)}
                    print(json.dumps(case | found), flush=True)
            launched.clear()


if __name__ == "__main__":
    main(sys.argv[1])
