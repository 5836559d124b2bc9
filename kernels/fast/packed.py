"""`fast` over packed weights: the same routing and paths, with the expert GEMMs of the weights' format.

The router reads x as it is. Then, where the GPU has fp8 units, x is quantised for weights in fp8_block; for weights of
four bits its columns are put into the order in which they are multiplied, and quantised if the caller asks for it.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..checks import MAX_SLOTS, check_contiguous
from ..formats import Packed
from ..formats.four_bits import FourBits
from ..formats.fp8_block import Fp8Block
from ..formats.int4 import Int4
from ..formats.mxfp4 import Mxfp4
from ..target import INTERPRETER, MORE_WARPS, Target, target_of
from .blocks import Blocks
from .choose import FEW_SMALL, FEW_WEIGHTS, LONG, few_tiles, few_tokens, may_join, tiled
from .e4m3 import launch_quantize_rows
from .experts import Experts
from .gemm_fp8 import launch_down_fp8, launch_gate_up_fp8
from .gemm_w4 import launch_down_w4, launch_gate_up_w4
from .tile_types import (
    JOINED_TOKENS,
    AnyTiles,
    FastTile,
    FastTiles,
    FewTile,
    FewTiles,
    JoinedTile,
    JoinedTiles,
)
from .tuned import tuned_tiles
from .w4 import launch_permute, operands
from .w4a8 import launch_quantize_w4

SUPPORTED = (Fp8Block, Mxfp4, Int4)
SMALL = 2**24
"""The most weights of an expert's matrix for which one token takes the output-centric path on a GPU with fp8 units."""
FP8_JOINED = JoinedTiles(JoinedTile(128, 128, 3), JoinedTile(128, 128, 3))
W4_JOINED = JoinedTiles(JoinedTile(64, 128, 4), JoinedTile(128, 128, 4))
W4_JOINED_TOKENS = 16
"""The most tokens of the joined path over four bits: for more a tile would have 32 rows, and lose."""
FEW_ROWS = 4
"""Up to so many rows an expert on average, all blocks have 16: the tiles of taller ones would hardly be met."""


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


def scheduled_tiles(
    kind: type[Packed] | None, target: Target, shape: tuple[int, int, int, int], tokens: int
) -> FastTiles:
    """The tiles of the path with a schedule, for a layer that cannot take the one it would get. kind: of its weights,
    None for 16 bits."""
    if kind is None:
        return tiled(target, *shape, tokens)
    if kind is Fp8Block:
        return fp8_scheduled(target, *shape, tokens, None)
    return w4_tiles(target, tokens * shape[1] / shape[0])


def few_fit(experts: Experts) -> bool:
    """Whether the output-centric path can read the weights."""
    return all(part.is_prepared for part in (experts.gate_up, experts.down) if isinstance(part, FourBits))


def choose_packed_tiles(
    device: torch.device,
    kind: type[Packed],
    shape: tuple[int, int, int, int],
    tokens: int,
    activations: str | None = None,
) -> AnyTiles:
    """The measured tiles for this device, layer, format and batch where there are such, else `format_tiles`.

    A table is for activations that the caller leaves open. Raises ValueError if the device's table cannot be read.
    """
    found = None if device.type == "cpu" or activations else tuned_tiles(device, shape, tokens, kind.name)
    return found or format_tiles(kind, target_of(device), shape, tokens, activations)


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


def default_activations(kind: type[Packed], target: Target) -> str:
    """``a8`` for fp8_block where the GPU multiplies e4m3, else ``a16``."""
    return "a8" if kind is Fp8Block and target.has_fp8 else "a16"


def format_tiles(
    kind: type[Packed], target: Target, shape: tuple[int, int, int, int], tokens: int, activations: str | None
) -> AnyTiles:
    """The tiles for a format. shape: (num_experts, top_k, hidden_dim, ffn_dim); activations: as in `fp8_tiles`."""
    if kind is Fp8Block:
        return fp8_tiles(target, *shape, tokens, activations)
    num_experts, top_k, hidden_dim, ffn_dim = shape
    if activations == "a8":
        return w4_a8_tiles(kind, target, tokens * top_k / num_experts)
    joins = may_join(target, tokens) and tokens <= W4_JOINED_TOKENS
    few = 2 if hidden_dim * ffn_dim <= FEW_WEIGHTS else 1
    if kind is Int4 and hidden_dim * ffn_dim <= FEW_SMALL and not joins:
        few = 4
    if tokens <= few and target.nvidia_major and hidden_dim % 16 == 0 and ffn_dim % 8 == 0:
        return _w4_few(kind, target, tokens * hidden_dim, tokens * top_k * ffn_dim)
    if joins:
        return W4_JOINED
    return w4_tiles(target, tokens * top_k / num_experts)


def _w4_few(kind: type[Packed], target: Target, outputs: int, neurons: int) -> FewTiles:
    """For a token or two of weights that can be prepared: as few rows a program as let all programs run at once, and
    for which there are registers. Down, which has so many fewer rows, takes 16 warps on Hopper, else a step ahead with
    8."""
    hopper = target.nvidia_major == 9
    widest = 32 if hopper and kind is not Mxfp4 else 16
    gate_up = FewTile(8 if neurons <= 800 * 8 else 16 if neurons <= 800 * 16 else widest, 512, 4)
    if hopper and outputs <= 264 * 16:
        return FewTiles(gate_up, FewTile(8 if outputs <= 264 * 8 else 16, 2048, 16))
    return FewTiles(gate_up, FewTile(16 if hopper else 8, 1024, 8))


def w4_tiles(target: Target, load: float) -> FastTiles:
    """The tiles for four bits, by the mean load of an expert: the taller a tile, the fewer programs a multiprocessor
    holds at once, and blocks of taller tiles than most need slow all of them down."""
    if target == INTERPRETER:
        tile = FastTile(128, 256, 4, 1, 256, 1, swap=True, small_swap=True)
        return FastTiles(64, tile, tile)
    block_m = 16 if load <= 8 else 32 if load <= 24 else 48
    if target.is_amd:
        return FastTiles(block_m if load <= 64 else 64, _swapped(64, 4, 2), _swapped(64, 4, 2))
    if target.nvidia_major != 9:  # mma.sync and tcgen05.mma leave fewer registers to what is unpacked
        down = _swapped(128, 4 if target.nvidia_major >= 10 else 8, 3)  # Triton 3.9 spills there with 8 warps
        return FastTiles(min(block_m, 32), _swapped(64, 8, 3), down)
    if load > 48:
        return FastTiles(96, _swapped(64, 4, 3), _swapped(128, 4, 3))
    return FastTiles(block_m, _swapped(64, 4, 4), _swapped(128, 4, 4))


def w4_a8_tiles(kind: type[Packed], target: Target, load: float) -> FastTiles:
    """The tiles for four bits with 8-bit activations, by the mean load of an expert. int4, whose products are scaled
    apart, has no registers for the tallest."""
    if target == INTERPRETER:
        tile = FastTile(128, 128, 4, 1, 128, 1, swap=True, small_swap=True)
        return FastTiles(64, tile, tile)
    block_m = 16 if load <= 8 else 32 if load <= 24 else 48 if load <= 48 or kind is Int4 else 96
    return FastTiles(block_m, _swapped(64, 4, 4), _swapped(128, 4, 4))


def fp8_tiles(
    target: Target, num_experts: int, top_k: int, hidden_dim: int, ffn_dim: int, tokens: int, activations: str | None
) -> AnyTiles:
    """The tiles for fp8_block.

    activations: None where the caller leaves them open. Then a few tokens take the output-centric path with 16-bit
    activations, as they do wherever 8 bits are not to be had: unpacking costs less there than the launches.
    """
    native = default_activations(Fp8Block, target) == "a8"
    small = native and hidden_dim * ffn_dim <= SMALL
    if activations == "a16" or (activations is None and (small or not native)):
        if small and tokens <= _fp8_few_tokens(num_experts, hidden_dim, ffn_dim):
            return _fp8_few(hidden_dim, ffn_dim, tokens)
        if not small and tokens <= few_tokens(num_experts, hidden_dim, ffn_dim):
            plain = few_tiles(hidden_dim, ffn_dim, target.nvidia_major < 10)  # the scales take a part of its registers
            return replace(plain, down=replace(plain.down, block_n=4, stages=4))
    if activations != "a16" and tokens <= _fp8_joined_tokens(target, hidden_dim * ffn_dim):
        return FP8_JOINED
    return fp8_scheduled(target, num_experts, top_k, hidden_dim, ffn_dim, tokens, activations)


def fp8_scheduled(
    target: Target, num_experts: int, top_k: int, hidden_dim: int, ffn_dim: int, tokens: int, activations: str | None
) -> FastTiles:
    """The tiles of the path with a schedule for fp8_block, by the mean load of an expert. With 8-bit activations a
    column of gate and up is a block of 128, for which down finds one scale per row."""
    slots = tokens * top_k
    block_m = 16 if slots <= FEW_ROWS * num_experts else 64
    if target == INTERPRETER:
        tile = FastTile(128, 256, 4, 1, 256, 1)
        return FastTiles(64, tile, tile)
    if (activations or default_activations(Fp8Block, target)) == "a8":
        if target.nvidia_major >= 10:  # taller tiles spill there; so do more loads in flight, with Triton 3.6
            return FastTiles(16, _swapped(128, 8, 3), _swapped(128, 4, 4))
        return FastTiles(block_m, _a8_gate_up(hidden_dim, block_m), _a8_down(ffn_dim, block_m))
    if target.nvidia_major >= 9:
        return FastTiles(block_m, _swapped(64, 4, 4), _swapped(64, 4, 4))
    stages = 3 if target.nvidia_major else 2
    return FastTiles(64, FastTile(64, 128, 4, stages, 128, stages), FastTile(64, 128, 4, stages, 128, stages))


def _fp8_few_tokens(num_experts: int, hidden_dim: int, ffn_dim: int) -> int:
    """As `few_tokens`: more of them, as the other paths quantise x in a launch of its own."""
    small = hidden_dim * ffn_dim <= FEW_SMALL
    if num_experts >= 128 and hidden_dim * ffn_dim <= FEW_WEIGHTS:
        return 4
    return 4 if small and num_experts >= 64 else few_tokens(num_experts, hidden_dim, ffn_dim)


def _fp8_joined_tokens(target: Target, weights: int) -> int:
    """The most tokens of the joined path, by the weights of a matrix."""
    if not may_join(target, 1) or weights > FEW_WEIGHTS:
        return 0
    return JOINED_TOKENS if weights <= FEW_SMALL else 8


def _fp8_few(hidden_dim: int, ffn_dim: int, tokens: int) -> FewTiles:
    """gate and up through registers; down of short sums in one step at one token, in short steps at many."""
    short = FewTile(8, 512, 8 if MORE_WARPS else 4)
    gate_up = short if hidden_dim <= 2048 else FewTile(8, 1024, 4)
    if tokens > 2 and ffn_dim <= 1024:
        return FewTiles(gate_up, FewTile(16, 256, 4, 4))
    if ffn_dim <= 512:
        return FewTiles(gate_up, replace(short, stages=4))
    # Of so many steps that a loop holds a part of them, 16 rows spill with some compilers.
    rows, step = 16 if ffn_dim <= 2048 else 8, 1024 if ffn_dim <= 1024 and tokens == 1 else 512
    return FewTiles(gate_up, FewTile(rows, step, 8, 4))


def _a8_gate_up(hidden_dim: int, block_m: int) -> FastTile:
    """In low blocks, two blocks of columns a step: neighbours in memory are read together. Taller ones need eight warps
    for their registers."""
    if block_m > 16:
        return _swapped(128, 8, 4 if hidden_dim >= LONG else 5)
    return _swapped(128, 4, 3, 256)


def _a8_down(ffn_dim: int, block_m: int) -> FastTile:
    """Short sums with all of it, or nearly, in flight."""
    if block_m > 16:
        return _swapped(128, 4, 4)
    if ffn_dim < 1024:
        return _swapped(128, 4, 2, 256)
    return _swapped(128, 8, 5) if ffn_dim < 2048 else _swapped(128, 4, 3, 256)


def _swapped(block_n: int, num_warps: int, stages: int, step: int = 128) -> FastTile:
    return FastTile(block_n, step, num_warps, stages, step, stages, swap=True, small_swap=True)


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
