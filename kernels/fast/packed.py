"""`fast` over packed weights: the same routing and schedule, with the expert GEMMs of the weights' format.

The router reads x as it is. Then, where the GPU has fp8 units, x is quantised for weights in fp8_block.
"""

from __future__ import annotations

import torch

from ..checks import DTYPES, check_contiguous, check_router_weight, check_tensor, check_top_k
from ..chunks import in_chunks
from ..formats import Packed
from ..formats.fp8_block import Fp8Block
from ..gating import Gating
from ..target import INTERPRETER, Target, target_of
from .blocks import launch_routing
from .choose import few_tiles
from .e4m3 import launch_quantize_rows
from .few import launch_few
from .forward import check_gating, launch_combine
from .gemm_fp8 import launch_down_fp8, launch_gate_up_fp8
from .logits import launch_logits
from .tile_types import FastTile, FastTiles, FewTiles

SUPPORTED = (Fp8Block,)
FEW_ROWS = 4
"""Up to so many rows an expert on average, all blocks have 16: the tiles of taller ones would hardly be met."""


def forward_packed(
    x: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up: torch.Tensor | Packed,
    down: torch.Tensor | Packed,
    top_k: int,
    gating: Gating | None,
    correction_bias: torch.Tensor | None,
    tiles: FastTiles | FewTiles | None,
    activations: str | None,
) -> torch.Tensor:
    """`fast_moe` of packed weights, with its arguments. Raises TypeError or ValueError, before any launch."""
    gating = Gating() if gating is None else gating
    _check(x, router_weight, gate_up, down, top_k, gating, correction_bias, activations)
    assert isinstance(gate_up, Fp8Block)
    assert isinstance(down, Fp8Block)
    activations = activations or default_activations(target_of(x.device))

    def run(rows: torch.Tensor) -> torch.Tensor:
        return _forward(rows, router_weight, gate_up, down, top_k, gating, correction_bias, tiles, activations)

    return in_chunks(run, x, top_k)


def _forward(x, router_weight, gate_up, down, top_k, gating, correction_bias, tiles, activations) -> torch.Tensor:
    """What `forward_packed` does with a batch that the kernels take at once, once it is checked."""
    tiles = tiles or fp8_tiles(target_of(x.device), *_layer(down, top_k), x.shape[0], activations)
    if isinstance(tiles, FewTiles):
        return launch_few(x, launch_logits(x, router_weight), gate_up, down, top_k, gating, correction_bias, tiles)
    rows, scales = launch_quantize_rows(x) if activations == "a8" else (x, None)
    blocks = launch_routing(launch_logits(x, router_weight), top_k, gating, correction_bias, tiles.block_m)
    inner, inner_scales = launch_gate_up_fp8(rows, scales, gate_up, blocks, top_k, tiles)
    out = launch_down_fp8(inner, inner_scales, down, blocks, x.dtype, tiles)
    return launch_combine(out, blocks.weights)


def default_activations(target: Target) -> str:
    """``a8`` where the GPU multiplies e4m3, else ``a16``."""
    return "a8" if target.has_fp8 else "a16"


def fp8_tiles(
    target: Target, num_experts: int, top_k: int, hidden_dim: int, ffn_dim: int, tokens: int, activations: str
) -> FastTiles | FewTiles:
    """The tiles for fp8_block, by the mean load of an expert. A step is always a block of 128 columns, and with 8-bit
    activations a column of gate and up is one too, so that down finds one scale per row and step. One token takes the
    output-centric path with 16-bit activations alone: it unpacks each weight, which the fp8 units need not."""
    if tokens == 1 and activations == "a16":
        return few_tiles(hidden_dim, ffn_dim, target.nvidia_major < 10)
    block_m = 16 if tokens * top_k <= FEW_ROWS * num_experts else 64
    if target == INTERPRETER:
        tile = FastTile(128, 128, 4, 1, 128, 1)
        return FastTiles(64, tile, tile)
    if activations == "a8":
        if target.nvidia_major >= 10:  # taller tiles spill there; so do more loads in flight, with Triton 3.6
            return FastTiles(16, _swapped(128, 8, 3), _swapped(128, 4, 4))
        return FastTiles(block_m, _swapped(128, 8, 4), _swapped(128, 4, 4))
    if target.nvidia_major >= 9:
        return FastTiles(block_m, _swapped(64, 4, 4), _swapped(64, 4, 4))
    stages = 3 if target.nvidia_major else 2
    return FastTiles(64, FastTile(64, 128, 4, stages, 128, stages), FastTile(64, 128, 4, stages, 128, stages))


def _layer(down: Packed, top_k: int) -> tuple[int, int, int, int]:
    """(num_experts, top_k, hidden, ffn)."""
    num_experts, hidden, ffn = down.shape
    return num_experts, top_k, hidden, ffn


def _swapped(block_n: int, num_warps: int, stages: int) -> FastTile:
    return FastTile(block_n, 128, num_warps, stages, 128, stages, swap=True, small_swap=True)


def _kind(weights: object) -> str:
    return weights.name if isinstance(weights, Packed) else type(weights).__name__


def _check(x, router_weight, gate_up, down, top_k, gating, correction_bias, activations) -> None:
    check_tensor("x", x, ("tokens", "hidden"), DTYPES, None)
    for name, packed in (("gate_up", gate_up), ("down", down)):
        if not isinstance(packed, SUPPORTED):
            allowed = ", ".join(kind.name for kind in SUPPORTED)
            raise TypeError(f"{name} must be packed as {allowed}, got {_kind(packed)}")
    if type(gate_up) is not type(down):
        raise TypeError(f"gate_up is packed as {gate_up.name} and down as {down.name}: both must be the same")
    hidden = x.shape[1]
    check_contiguous("router_weight", check_router_weight(router_weight, x))
    num_experts = router_weight.shape[0]
    check_top_k(top_k, num_experts)
    ffn = down.shape[2]
    for name, packed, shape in (("gate_up", gate_up, (2 * ffn, hidden)), ("down", down, (hidden, ffn))):
        if packed.shape != (num_experts, *shape):
            raise ValueError(f"{name} must have shape {[num_experts, *shape]}, got {list(packed.shape)}")
        packed.check(ffn if name == "gate_up" else hidden, shape[1])  # gate and up share no block
        for part in (packed.values, packed.scales):
            if part.device != x.device:
                raise ValueError(f"{name} is on {part.device}, x is on {x.device}: move it there")
            check_contiguous(name, part)
    if activations not in (None, "a8", "a16"):
        raise ValueError(f"activations={activations!r}: allowed are 'a8' and 'a16'")
    if activations == "a8" and not (target_of(x.device).has_fp8 or target_of(x.device) == INTERPRETER):
        raise ValueError("activations='a8' needs a GPU with fp8 units: take 'a16'")
    check_gating(gating, correction_bias, num_experts, top_k, x)
