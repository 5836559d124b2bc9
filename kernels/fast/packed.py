"""`fast` over packed weights: the same routing and paths, with the expert GEMMs of the weights' format.

The router reads x as it is. Then, where the GPU has fp8 units, x is quantised for weights in fp8_block; for weights of
four bits its columns are put into the order in which they are multiplied, and quantised if the caller asks for it.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..checks import MAX_SLOTS, check_contiguous, check_tensor
from ..formats import Packed
from ..formats.four_bits import FourBits
from ..formats.fp8_block import Fp8Block
from ..formats.int4 import Int4
from ..formats.mxfp4 import Mxfp4
from ..target import INTERPRETER, target_of
from .blocks import Blocks
from .choose import may_join
from .choose_packed import W4_JOINED, choose_packed_tiles, default_activations, format_tiles, scheduled_tiles
from .e4m3 import GROUP, launch_quantize_rows
from .experts import Experts
from .gemm_fp8 import launch_down_fp8, launch_gate_up_fp8
from .gemm_w4 import launch_down_w4, launch_gate_up_w4
from .tile_types import (
    AnyTiles,
    FastTiles,
    FewTiles,
)
from .w4 import launch_permute, operands
from .w4a8 import launch_quantize_w4

SUPPORTED = (Fp8Block, Mxfp4, Int4)


def quantized(x: torch.Tensor, experts: Experts) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(rows, scales) of x as the experts' format multiplies them; no scales for 16 bits."""
    if isinstance(experts.gate_up, FourBits):
        a8 = activations_of(x, experts) == "a8"
        return launch_quantize_w4(x, experts.gate_up) if a8 else (launch_permute(x), None)
    return launch_quantize_rows(x) if activations_of(x, experts) == "a8" else (x, None)


def launch_packed_gate_up(
    rows: torch.Tensor,
    scales: torch.Tensor | None,
    experts: Experts,
    blocks: Blocks,
    top_k: int,
    tiles: FastTiles,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What down takes, [N, ffn] in expert order: (values, scales) as `quantized` gives them; rows, scales: of x."""
    if isinstance(experts.gate_up, FourBits):
        hidden = launch_gate_up_w4(rows, scales, experts.gate_up, blocks, top_k, tiles, experts.epilogue)
        return (hidden, None) if scales is None else launch_quantize_w4(hidden, experts.gate_up)
    assert isinstance(experts.gate_up, Fp8Block)
    return launch_gate_up_fp8(rows, scales, experts.gate_up, blocks, top_k, tiles, experts.epilogue)


def launch_packed_down(
    hidden: torch.Tensor,
    scales: torch.Tensor | None,
    experts: Experts,
    blocks: Blocks,
    dtype: torch.dtype,
    tiles: FastTiles,
) -> torch.Tensor:
    """out [N, hidden] in slot order, of that dtype; hidden, scales: of `launch_packed_gate_up`."""
    if isinstance(experts.down, FourBits):
        return launch_down_w4(hidden, scales, experts.down, blocks, dtype, tiles, experts.epilogue)
    assert isinstance(experts.down, Fp8Block)
    return launch_down_fp8(hidden, scales, experts.down, blocks, dtype, tiles, experts.epilogue)


def packed_tiles(x: torch.Tensor, experts: Experts, shape: tuple[int, int, int, int]) -> AnyTiles:
    """The tiles of a layer for x. shape: (num_experts, top_k, hidden_dim, ffn_dim)."""
    tiles = choose_packed_tiles(x.device, _format(experts), shape, x.shape[0], experts.activations)
    if isinstance(tiles, FewTiles) and not few_fit(experts):
        target, tokens = target_of(x.device), x.shape[0]
        return W4_JOINED if may_join(target, tokens) else scheduled_tiles(_format(experts), target, shape, tokens)
    return tiles


def few_fit(experts: Experts) -> bool:
    """Whether the output-centric path can read the weights."""
    return all(part.is_prepared for part in (experts.gate_up, experts.down) if isinstance(part, FourBits))


def invariant_packed_tiles(x: torch.Tensor, experts: Experts, shape: tuple[int, int, int, int]) -> FastTiles:
    """One tile for all blocks of a layer in any batch: that of the largest ones."""
    tiles = format_tiles(_format(experts), target_of(x.device), shape, MAX_SLOTS, activations_of(x, experts))
    assert isinstance(tiles, FastTiles)
    return replace(tiles, dynamic=False)


def _format(experts: Experts) -> type[Packed]:
    assert isinstance(experts.gate_up, Packed)
    return type(experts.gate_up)


def activations_of(x: torch.Tensor, experts: Experts) -> str:
    """``a8`` or ``a16``, what packed weights are multiplied with."""
    return experts.activations or default_activations(_format(experts), target_of(x.device))


def _kind(weights: object) -> str:
    return weights.name if isinstance(weights, Packed) else type(weights).__name__


def check_packed(x: torch.Tensor, experts: Experts, num_experts: int) -> None:
    """Raises TypeError or ValueError for packed weights that do not fit x [..., hidden] or each other."""
    gate_up, down, activations = experts.gate_up, experts.down, experts.activations
    for name, packed in (("gate_up", gate_up), ("down", down)):
        if not isinstance(packed, SUPPORTED):
            allowed = ", ".join(kind.name for kind in SUPPORTED)
            raise TypeError(f"{name} must be packed as {allowed}, got {_kind(packed)}")
    if type(gate_up) is not type(down):
        raise TypeError(f"gate_up is packed as {_kind(gate_up)} and down as {_kind(down)}: both must be the same")
    hidden, ffn = x.shape[-1], down.shape[2]
    for name, packed, shape in (("gate_up", gate_up, (2 * ffn, hidden)), ("down", down, (hidden, ffn))):
        assert isinstance(packed, Packed)
        if packed.shape != (num_experts, *shape):
            raise ValueError(f"{name} must have shape {[num_experts, *shape]}, got {list(packed.shape)}")
        packed.check(ffn if name == "gate_up" else hidden, shape[1])  # gate and up share no block
        for part in (packed.values, packed.scales):
            if part.device != x.device:
                raise ValueError(f"{name} is on {part.device}, x is on {x.device}: move it there")
            if not (isinstance(packed, FourBits) and packed.is_prepared):
                check_contiguous(name, part)
        if isinstance(packed, FourBits):
            _check_words(name, packed)
        else:
            _check_blocks(name, packed, x)
    if activations not in (None, "a8", "a16"):
        raise ValueError(f"activations={activations!r}: allowed are 'a8' and 'a16'")
    if activations == "a8" and isinstance(gate_up, FourBits) and isinstance(down, FourBits):
        _check_a8(x, gate_up, down)
    elif activations == "a8" and not (target_of(x.device).has_fp8 or target_of(x.device) == INTERPRETER):
        raise ValueError("activations='a8' needs a GPU with fp8 units: take 'a16'")


def _check_a8(x: torch.Tensor, gate_up: FourBits, down: FourBits) -> None:
    if type(gate_up) not in (Mxfp4, Int4):
        raise ValueError(f"activations='a8': weights in {gate_up.name} are multiplied with 'a16' alone")
    if not (gate_up.is_prepared and down.is_prepared):
        raise ValueError("activations='a8' takes weights of four bits as prepared() gives them: call it on both")
    if target_of(x.device).nvidia_major != 9 and target_of(x.device) != INTERPRETER:
        raise ValueError("activations='a8' over weights of four bits needs a Hopper GPU: take 'a16'")


def _check_blocks(name: str, packed: Packed, x: torch.Tensor) -> None:
    experts, rows, columns = packed.shape
    check_tensor(f"{name}.values", packed.values, packed.shape, (torch.float8_e4m3fn,), x)
    check_tensor(f"{name}.scales", packed.scales, (experts, rows // GROUP, columns // GROUP), (torch.float32,), x)


def _check_words(name: str, packed: FourBits) -> None:
    experts, rows, columns = packed.shape
    groups = columns // (packed.least if packed.is_prepared else packed.group)
    if packed.values.storage_offset() * packed.values.element_size() % 4:
        raise ValueError(f"{name}.values begins inside a word of its memory: copy it")
    wanted = (experts, rows // 8, 8 * groups) if packed.is_prepared else (experts, rows, groups)
    if tuple(packed.scales.shape) != wanted:
        raise ValueError(f"{name}.scales must have shape {list(wanted)}, got {list(packed.scales.shape)}")
    if packed.is_prepared:
        for part, whole in zip((packed.values, packed.scales), operands(packed)):
            if part.stride() != whole.stride():
                raise ValueError(f"{name} does not lie in memory as prepared() left it: do not copy its parts")
