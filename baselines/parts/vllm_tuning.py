"""Tunes the tile of vLLM's fused_moe_kernel for one shape and batch size, and remembers it in a file.

The space is that of vLLM's own tuner, benchmarks/kernels/benchmark_moe.py: BLOCK_SIZE_M 16-256, N 32-256, K 64-256,
GROUP_SIZE_M 1-64, 4 or 8 warps, 2-5 stages: 1920 tiles. Timing all of them takes hours, so the search has two rounds:
first the block, with as many stages as fit up to 4; then, for the best blocks, the rest. As in vLLM's tuner, one tile
serves both GEMMs, routing is uniform, and forwards are timed in a CUDA graph. Threads compile the kernels of a round.

With fp8_block weights the kernel cuts BLOCK_SIZE_K down to the 128 columns of a scale. What the search saves there it
spends on both counts of warps in the first round.
"""

from __future__ import annotations

import fcntl
import json
import os
import time as clock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonmoe_bench import ROOT

from ..install.vllm_tree import version
from .compiling import in_threads
from .serving import Tile

if TYPE_CHECKING:
    import torch

    from tritonmoe_bench.experiments.implementation.contract import Case, Forward, Weights

BLOCK_M = (16, 32, 64, 128, 256)
BLOCK_N = (32, 64, 128, 256)
BLOCK_K = {"none": (64, 128, 256), "fp8_block": (128,)}
GROUP_M = (1, 16, 32, 64)
WARPS = (4, 8)
STAGES = (2, 3, 4, 5)
OPERAND_BYTES = {"none": 2, "fp8_block": 1}
SHARED_BYTES = 227 * 1024
"""Shared memory of one program on Hopper, in bytes. A tile that another GPU cannot hold drops out when it runs."""
KEPT = 2
"""Blocks of the first round whose stages, warps and groups are tried in the second."""
MOST_S = 45.0
"""Seconds after which a search tries no further tile: it takes 10 to 15, unless others compile beside it."""
VARIABLE = "TRITONMOE_VLLM_TUNED"

_memory: dict[Path, dict[str, dict[str, Tile]]] = {}


def first_round(tokens: int, num_experts: int, top_k: int, quant: str = "none") -> list[Tile]:
    """Blocks worth a try: a height that holds an active expert's mean rows, or twice that; every width and depth."""
    slots = tokens * top_k
    rows = -(-slots // min(slots, num_experts))
    heights = [height for height in BLOCK_M if height >= rows][:2] or [BLOCK_M[-1]]
    tiles = []
    for m in heights:
        for n in BLOCK_N:
            for k in BLOCK_K[quant]:
                stages = max((s for s in STAGES[:3] if shared_bytes(m, n, k, s, quant) <= SHARED_BYTES), default=0)
                usual = 8 if m * n >= 128 * 128 else 4
                if stages:
                    tiles += [_tile(m, n, k, 1, w, stages) for w in ((usual,) if quant == "none" else WARPS)]
    return tiles


def second_round(tile: Tile, quant: str = "none") -> list[Tile]:
    """`tile` with other stages, other warps, or other groups: one thing changed at a time."""
    m, n, k = (tile[f"BLOCK_SIZE_{axis}"] for axis in "MNK")
    others = [{**tile, "num_stages": s} for s in STAGES if shared_bytes(m, n, k, s, quant) <= SHARED_BYTES]
    others += [{**tile, "num_warps": warps} for warps in WARPS]
    others += [{**tile, "GROUP_SIZE_M": group} for group in GROUP_M]
    return [other for other in others if other != tile]


def shared_bytes(m: int, n: int, k: int, stages: int, quant: str = "none") -> int:
    """Bytes of shared memory for a tile. Triton keeps one buffer per stage from 64 rows on, below one less."""
    return OPERAND_BYTES[quant] * k * (m + n) * (stages if m >= 64 else stages - 1)


def tune(case: Case, weights: Weights, make: Callable[[Tile], Forward], others: list[Tile]) -> Tile:
    """The fastest tile for the case's shape and tokens. `make` gives the forward with a tile; `others` are tiles to try
    in the first round besides those of the space."""
    import torch

    from tritonmoe_bench.experiments.workload.routing import activations, draw_routing

    uniform = replace(case, skew=0.0)
    x = activations(uniform, draw_routing(uniform), weights.device)
    times: list[tuple[float, Tile]] = []

    end = clock.monotonic() + MOST_S

    def time(tiles: list[Tile]) -> None:
        calls = [(tile, make(tile)) for tile in tiles]
        with compile_only():
            for _, call in calls:
                call(x)
        for tile, call in calls:
            if clock.monotonic() < end or all(us == float("inf") for us, _ in times):
                times.append((time_us(call, x), tile))
        times.sort(key=lambda timed: timed[0])

    with torch.inference_mode():
        time([*first_round(case.tokens, case.num_experts, case.top_k, case.quant), *others])
        time([other for _, tile in times[:KEPT] for other in second_round(tile, case.quant)])
    best_us, best = times[0]
    if best_us == float("inf"):
        raise RuntimeError(f"none of {len(times)} tiles of vLLM's kernel runs on this GPU")
    return best


def time_us(call: Forward, x: torch.Tensor) -> float:
    """Latency in a CUDA graph, in us; infinite for a tile that this GPU cannot hold or ptxas cannot compile."""
    from triton.runtime.errors import OutOfResources, PTXASError

    from tritonmoe_bench.experiments.measure.timing import TimingSettings, time_calls

    settings = TimingSettings(samples=6, min_samples=4, budget_ms=10.0)
    try:
        return time_calls([lambda: call(x)], "graph", settings).p50_us
    except (OutOfResources, PTXASError):
        return float("inf")


@contextmanager
def compile_only() -> Iterator[None]:
    """Inside, vLLM's kernel is compiled, by a pool of threads, where it would be launched. Leaving waits for all."""
    from vllm.model_executor.layers.fused_moe import fused_moe

    kernel = fused_moe.fused_moe_kernel
    fused_moe.fused_moe_kernel = _Warmup(kernel)
    try:
        with in_threads():
            yield
    finally:
        fused_moe.fused_moe_kernel = kernel


class _Warmup:
    """Stands for a kernel: `kernel[grid](...)` compiles what it would launch."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return lambda *arguments, **options: self._kernel.warmup(*arguments, grid=grid, **options)


def known(case: Case) -> Tile | None:
    """The tile that was tuned before for the shape, tokens and this GPU, if any."""
    return _tiles(path()).get(_shape(case), {}).get(str(case.tokens))


def remember(case: Case, tile: Tile) -> None:
    """Keeps the tile for this process, and in the file for later ones, beside what others have written meanwhile."""
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _memory.pop(file, None)
        tiles = _tiles(file)
        tiles.setdefault(_shape(case), {})[str(case.tokens)] = tile
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"vllm": version(), "tiles": tiles}, indent=1) + "\n", encoding="utf-8")
        partial.replace(file)


def path() -> Path:
    """The file of tuned tiles: TRITONMOE_VLLM_TUNED, else baselines/tuned/vllm_<device>.json."""
    import torch

    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    device = torch.cuda.get_device_name().lower().replace(" ", "-") if torch.cuda.is_available() else "none"
    return ROOT / "baselines" / "tuned" / f"vllm_{device}.json"


def _tiles(file: Path) -> dict[str, dict[str, Tile]]:
    """Tiles by shape and tokens; those of another version of vLLM are left aside."""
    if file not in _memory:
        read = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        _memory[file] = read["tiles"] if read.get("vllm") == version() else {}
    return _memory[file]


def _shape(case: Case) -> str:
    quant = "" if case.quant == "none" else f",quant={case.quant}"
    return f"E={case.num_experts},N={case.ffn_dim},K={case.hidden_dim},top_k={case.top_k}{quant}"


def _tile(m: int, n: int, k: int, group: int, warps: int, stages: int) -> Tile:
    return {"BLOCK_SIZE_M": m, "BLOCK_SIZE_N": n, "BLOCK_SIZE_K": k, "GROUP_SIZE_M": group,
            "num_warps": warps, "num_stages": stages}  # fmt: skip
