"""Every wrong argument of `fast_moe` ends before any launch, with a message that names it and what is allowed."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fast_cases import SMALL_FEW

from tritonmoe_bench.kernels import checks, launch
from tritonmoe_bench.kernels.fast import known
from tritonmoe_bench.kernels.fast.forward import _combine_kernel
from tritonmoe_bench.kernels.fast.layer import fast_moe
from tritonmoe_bench.kernels.fast.tile_types import FastTile, FastTiles, FewTile, FewTiles, JoinedTile, JoinedTiles
from tritonmoe_bench.kernels.formats import formats
from tritonmoe_bench.kernels.gating import Gating
from tritonmoe_bench.kernels.target import target_of

TOKENS, EXPERTS, TOP_K, HIDDEN, FFN = 4, 8, 2, 32, 16
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
GROUPS = Gating("sigmoid", groups=4, top_groups=2)
BIAS = Gating("sigmoid", correction_bias=True)


@pytest.fixture(autouse=True)
def no_launch(monkeypatch):
    """A kernel that starts in spite of a wrong argument fails the test."""

    def refuse(*_, **__):
        raise AssertionError("a kernel was launched")

    kernel_type = type(_combine_kernel)
    monkeypatch.setattr(kernel_type, "__getitem__", lambda self, grid: refuse)
    monkeypatch.setattr(launch, "_held", {})


def zeros(*shape, dtype=BF16):
    return lambda device: torch.zeros(shape, dtype=dtype, device=device)


def by_columns(*shape):
    """The shape that is asked for, with the strides of its transpose."""
    return lambda device: torch.zeros(*shape[:-2], shape[-1], shape[-2], dtype=BF16, device=device).transpose(-1, -2)


def with_gaps(*shape):
    return lambda device: torch.zeros(*shape[:-1], shape[-1] + 8, dtype=BF16, device=device)[..., : shape[-1]]


def layer(num_experts=EXPERTS):
    return {
        "x": zeros(TOKENS, HIDDEN),
        "router_weight": zeros(num_experts, HIDDEN),
        "gate_up": zeros(num_experts, 2 * FFN, HIDDEN),
        "down": zeros(num_experts, HIDDEN, FFN),
        "top_k": TOP_K,
    }


def call(device, **arguments):
    return fast_moe(**{name: value(device) if callable(value) else value for name, value in arguments.items()})


ERRORS = {
    "x is no tensor": ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
    "x in float32": (
        {"x": zeros(TOKENS, HIDDEN, dtype=FP32)},
        TypeError, "x must be torch.float16 or torch.bfloat16, got torch.float32"),
    "x of no hidden": (
        {"x": zeros(TOKENS, 0)}, ValueError, "x must have shape [..., hidden], got [4, 0]: hidden may not be 0"),
    "x nowhere": (
        {"x": lambda device: torch.zeros(TOKENS, HIDDEN, dtype=BF16, device="meta")},
        ValueError, "x is on meta: move it to a GPU"),
    "router in another dtype": (
        {"router_weight": zeros(EXPERTS, HIDDEN, dtype=FP16)},
        TypeError, "router_weight must be torch.bfloat16 or torch.float32, got torch.float16"),
    "router of another hidden size": (
        {"router_weight": zeros(EXPERTS, 31)},
        ValueError, "router_weight must have shape [num_experts, 32], got [8, 31]"),
    "router with gaps": (
        {"router_weight": with_gaps(EXPERTS, HIDDEN)},
        ValueError, "router_weight must be contiguous, got strides (40, 1)"),
    "too many experts": (
        {"router_weight": zeros(1025, HIDDEN)}, ValueError, "num_experts=1025: allowed are 1 to 1024"),
    "down of other experts": (
        {"down": zeros(5, HIDDEN, FFN)}, ValueError, "down must have shape [8, 32, ffn], got [5, 32, 16]"),
    "down of no ffn": (
        {"down": zeros(EXPERTS, HIDDEN, 0)}, ValueError, "down must have shape [8, 32, ffn], got [8, 32, 0]"),
    "down by columns": (
        {"down": by_columns(EXPERTS, HIDDEN, FFN)}, ValueError, "down must have stride 1 in its last dimension"),
    "down with gaps": ({"down": with_gaps(EXPERTS, HIDDEN, FFN)}, ValueError, "down must be contiguous, got strides"),
    "gate_up not stacked": (
        {"gate_up": zeros(EXPERTS, FFN, HIDDEN)}, ValueError, "gate_up must have shape [8, 32, 32], got [8, 16, 32]"),
    "gate_up transposed": (
        {"gate_up": zeros(EXPERTS, HIDDEN, 3 * FFN), "down": zeros(EXPERTS, HIDDEN, 3 * FFN // 2)},
        ValueError, "got [8, 32, 48]: it is transposed, pass gate_up.transpose(1, 2).contiguous()"),
    "down transposed": (
        {"down": zeros(EXPERTS, FFN, HIDDEN)},
        ValueError, "down must have shape [8, 32, ffn], got [8, 16, 32]: it is transposed, pass down.transpose(1, 2)"),
    "router transposed": (
        {"router_weight": zeros(HIDDEN, EXPERTS)},
        ValueError, "got [32, 8]: it is transposed, pass router_weight.transpose(0, 1).contiguous()"),
    "gate_up with gaps": (
        {"gate_up": with_gaps(EXPERTS, 2 * FFN, HIDDEN)}, ValueError, "gate_up must be contiguous, got strides"),
    "gate_up elsewhere": (
        {"gate_up": lambda device: torch.zeros(EXPERTS, 2 * FFN, HIDDEN, dtype=BF16, device="meta")},
        ValueError, "gate_up is on meta, the other tensors are on"),
    "top_k of zero": ({"top_k": 0}, ValueError, "top_k=0: allowed are 1 to 8 for 8 experts"),
    "top_k over the experts": ({"top_k": 9}, ValueError, "top_k=9: allowed are 1 to 8 for 8 experts"),
    "top_k over its limit": (layer(64) | {"top_k": 33}, ValueError, "top_k=33: allowed are 1 to 32 for 64 experts"),
    "top_k of a half": ({"top_k": 1.5}, TypeError, "top_k must be an int, got float"),
    "top_k of True": ({"top_k": True}, TypeError, "top_k must be an int, got bool"),
    "tiles by name": ({"tiles": "x"}, TypeError, "tiles must be FastTiles, FewTiles or JoinedTiles, got str"),
    "gating by name": ({"gating": "softmax"}, TypeError, "gating must be a Gating, got str"),
    "no bias where the gating has one": (
        {"gating": BIAS}, ValueError, "correction_bias must be given exactly when the gating has one"),
    "a bias where the gating has none": (
        {"correction_bias": zeros(EXPERTS, dtype=FP32)},
        ValueError, "correction_bias must be given exactly when the gating has one"),
    "bias in bfloat16": (
        {"gating": BIAS, "correction_bias": zeros(EXPERTS)},
        TypeError, "correction_bias must be torch.float32, got torch.bfloat16"),
    "bias of other experts": (
        {"gating": BIAS, "correction_bias": zeros(7, dtype=FP32)},
        ValueError, "correction_bias must have shape [8], got [7]"),
    "groups of different sizes": (
        layer(10) | {"gating": GROUPS},
        ValueError, "10 experts in 4 groups: groups must have the same size, two experts or more"),
    "more groups than experts": (
        {"gating": Gating("sigmoid", groups=16)}, ValueError, "8 experts in 16 groups: groups must have the same size"),
    "groups of one": (
        {"gating": Gating("sigmoid", groups=8, top_groups=4)},
        ValueError, "8 experts in 8 groups: groups must have the same size, two experts or more"),
    "top_k over the groups": (
        {"gating": GROUPS, "top_k": 5}, ValueError, "top_k=5 does not fit into 2 groups of 2 experts"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", ERRORS)
def test_fast_moe(wrong, device):
    changes, error, message = ERRORS[wrong]
    with pytest.raises(error, match=re.escape(message)):
        call(device, **layer() | changes)


@pytest.mark.parametrize("wrong", ERRORS)
def test_after_a_call_that_was_right(wrong, device, monkeypatch):
    """Nothing wrong passes for a call that has been checked."""
    monkeypatch.setattr(known, "_current_device", lambda x: 0)
    monkeypatch.setattr(known, "_tiles", {})
    with pytest.raises(AssertionError, match="a kernel was launched"):
        call(device, **layer())
    assert len(known._tiles) == 1
    test_fast_moe(wrong, device)


@pytest.mark.parametrize(
    "changes",
    [{}, layer(16) | {"gating": GROUPS}, {"x": with_gaps(TOKENS, HIDDEN)}],
    ids=["plain", "groups", "gaps"],
)
def test_right_arguments_reach_a_kernel(changes, device):
    with pytest.raises(AssertionError, match="a kernel was launched"):
        call(device, **layer() | changes)


@pytest.mark.parametrize("tokens", [1, 5, 129])
def test_every_path_starts_with_a_launch_or_a_product(tokens, device):
    """What the tests of errors rely on: nothing runs before the first launch, whichever kernel that is."""
    with pytest.raises(AssertionError, match="a kernel was launched"):
        call(device, **layer() | {"x": zeros(tokens, HIDDEN)})


def scheduled(**changes):
    """Tiles of the path with a schedule, that all formats have, but for the changes of gate and up."""
    good = FastTile(128, 128, 4, 2, 128, 2, swap=True, small_swap=True)
    one_grid = changes.pop("one_grid", False)
    return FastTiles(16, replace(good, **changes), good, one_grid=one_grid)


def few(**changes):
    good = FewTile(16, 128, 4)
    return FewTiles(replace(good, **changes), good)


def joined(**changes):
    good = JoinedTile(128, 128, 2)
    return JoinedTiles(replace(good, **changes), good)


def of_down(tiles):
    return replace(tiles, gate_up=tiles.down, down=tiles.gate_up)


TILES = [
    ("fp8_block", "a8", scheduled(block_n=32),
     "FastTiles over fp8_block with activations='a8' need gate and up of 128 columns, got 32"),
    ("fp8_block", "a8", scheduled(block_n=64), "need gate and up of 128 columns, got 64"),
    ("fp8_block", "a8", scheduled(block_n=256), "need gate and up of 128 columns, got 256"),
    ("fp8_block", "a8", scheduled(block_n=64, one_grid=True), "need gate and up of 128 columns, got 64"),
    ("fp8_block", None, scheduled(small_k=64), "FastTiles over fp8_block need steps of whole 128 columns, got 64"),
    ("fp8_block", None, of_down(scheduled(small_k=64)), "need steps of whole 128 columns, got 64"),
    ("fp8_block", "a16", scheduled(bulk=True), "bulk is for weights of 16 bits, got fp8_block"),
    ("fp8_block", "a16", of_down(scheduled(bulk=True)), "bulk is for weights of 16 bits, got fp8_block"),
    ("fp8_block", None, few(block_n=256), "FewTiles over fp8_block need 128 rows at the most in gate_up, got 256"),
    ("fp8_block", None, of_down(few(block_n=256)), "need 128 rows at the most in down, got 256"),
    ("fp8_block", None, few(step=8), "FewTiles over fp8_block need steps of 16 columns or more, got 8"),
    ("fp8_block", "a8", few(), "FewTiles multiply with activations='a16' alone"),
    ("fp8_block", "a8", joined(block_n=64), "JoinedTiles over fp8_block with activations='a8' need gate and up of 128"),
    ("mxfp4", "a16", scheduled(bulk=True), "bulk is for weights of 16 bits, got mxfp4"),
    ("mxfp4", "a8", few(), "FewTiles multiply with activations='a16' alone"),
    ("mxfp4", "a8", joined(), "JoinedTiles over mxfp4 multiply with activations='a16' alone"),
    ("mxfp4", None, few(stages=2), "FewTiles over mxfp4 need rows in eights and steps of whole 128 columns, one in"),
    ("mxfp4", None, of_down(few(block_n=4)), "FewTiles over mxfp4 need rows in eights and steps of whole 128 columns"),
    ("int4", "a16", scheduled(block_n=256), "FastTiles over int4 need gate and up of 128 columns at the most, got 256"),
    ("int4", None, scheduled(small_k=64), "FastTiles over int4 need steps of whole 128 columns, got 64"),
    ("int4", None, scheduled(one_grid=True), "one_grid is for weights of 16 bits and fp8_block, got int4"),
    ("int4", "a8", scheduled(num_warps=16), "tiles for int4 with 8-bit activations have weights on the left, 512 rows"),
    ("int4", "a8", scheduled(block_n=512),
     "FastTiles over int4 with activations='a8' need columns that divide 256 in gate_up, got 512"),
    ("int4", "a8", of_down(scheduled(block_n=512)), "need columns that divide 256 in down, got 512"),
    ("int4", None, few(step=64), "FewTiles over int4 need rows in eights and steps of whole 128 columns"),
    ("int4", None, few(block_n=256), "FewTiles over int4 need 128 rows at the most in gate_up, got 256"),
    ("int4_g32", None, joined(block_n=256), "JoinedTiles over int4_g32 need gate and up of 128 columns at the most"),
    ("none", None, of_down(few(step=4)), "FewTiles need steps of 8 columns or more in down, got 4"),
]  # fmt: skip
RIGHT = [
    ("fp8_block", "a8", scheduled()),
    ("fp8_block", "a8", scheduled(small_k=256, one_grid=True)),
    ("fp8_block", "a8", of_down(scheduled(block_n=256))),
    ("fp8_block", "a16", scheduled(block_n=64)),
    ("fp8_block", "a16", few(block_n=128, step=64)),
    ("fp8_block", None, few()),
    ("fp8_block", "a8", joined()),
    ("mxfp4", "a16", few(block_n=128)),
    ("int4", None, of_down(few(block_n=256))),
    ("int4", "a16", of_down(scheduled(block_n=256))),
    ("int4", "a8", scheduled()),
    ("int4", "a8", scheduled(block_n=256)),
    ("int4_g32", None, replace(scheduled(small_k=64), block_m=256, dynamic=False)),
    ("none", None, few(block_n=256)),
    ("none", None, joined(step=32)),
    ("none", None, scheduled(bulk=True)),
]
"""Also tiles whose step of low blocks does not fit, but is not used, as all blocks have one height."""


def packed_call(quant, activations, tiles, device):
    if device == "cuda" and activations == "a8" and target_of(torch.device("cuda")).nvidia_major != 9:
        pytest.skip("8-bit activations of all formats need a Hopper GPU")
    if device == "cuda" and target_of(torch.device("cuda")).is_amd:
        pytest.skip("the paths of both GEMMs in a grid need a GPU of NVIDIA's")
    hidden, ffn = 256, 256
    weights = [torch.ones(EXPERTS, rows, columns, dtype=BF16) for rows, columns in ((2 * ffn, hidden), (hidden, ffn))]
    if quant == "none":
        weights = [part.to(device) for part in weights]
    else:
        kind = formats()[quant]
        packed = [kind.pack(part).prepared() for part in weights]
        weights = [part.from_raw(part.raw().to(device), part.scales.to(device)) for part in packed]
    changes = {"x": zeros(TOKENS, hidden), "router_weight": zeros(EXPERTS, hidden)}
    gate_up, down = weights
    changes |= {"gate_up": gate_up, "down": down, "tiles": tiles, "activations": activations}
    call(device, **layer() | changes)


@pytest.mark.parametrize(("quant", "activations", "tiles", "message"), TILES)
def test_tiles_that_the_format_of_the_weights_does_not_have(quant, activations, tiles, message, device):
    with pytest.raises(ValueError, match=re.escape(message)):
        packed_call(quant, activations, tiles, device)


@pytest.mark.parametrize(("quant", "activations", "tiles"), RIGHT)
def test_tiles_that_it_has(quant, activations, tiles, device):
    with pytest.raises(AssertionError, match="a kernel was launched"):
        packed_call(quant, activations, tiles, device)


def empty(*shape):
    """A tensor without memory, of any size."""
    return lambda device: torch.empty(shape, dtype=BF16, device="meta")


HUGE = {
    "many tokens of a wide layer, by few": (
        {"x": empty(8192, HIDDEN), "router_weight": empty(16, HIDDEN), "gate_up": empty(16, 2 * 2**14, HIDDEN),
         "down": empty(16, HIDDEN, 2**14), "top_k": 16, "tiles": SMALL_FEW},
        "8192 tokens are too many for FewTiles"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", HUGE)
def test_what_offsets_do_not_reach(wrong, monkeypatch):
    monkeypatch.setattr(checks, "_check_device", lambda name, tensor: None)
    changes, message = HUGE[wrong]
    memoryless = {name: empty(*value("meta").shape) for name, value in layer().items() if callable(value)}
    with pytest.raises(ValueError, match=message):
        call("meta", **layer() | memoryless | changes)


def test_bfloat16_in_an_interpreter_that_cannot_compute_it(monkeypatch, device):
    if device != "cpu":
        pytest.skip("a GPU can")
    from triton.runtime.interpreter import InterpreterBuilder

    monkeypatch.delattr(InterpreterBuilder, "computes_bf16")
    with pytest.raises(TypeError, match=r"take float16, or repair it by `from .* import repair; repair.install\(\)`"):
        call(device, **layer())


@pytest.mark.parametrize("set_late", [True, False])
def test_cpu_tensors_without_the_interpreter(set_late, monkeypatch):
    monkeypatch.setattr(checks, "interprets", lambda: False)
    monkeypatch.setattr(checks.triton, "knobs", SimpleNamespace(runtime=SimpleNamespace(interpret=set_late)))
    told = "set TRITON_INTERPRET=1 before triton is imported"
    told += ", which it was when you set it: restart Python" if set_late else "$"
    with pytest.raises(ValueError, match=f"x is on cpu: move it to a GPU, or for CPU tensors {told}"):
        call("cpu", **layer())


@pytest.mark.parametrize("block_m", [0, 8, 40, 129, 512])
def test_a_height_that_no_tile_has(block_m):
    tile = FastTile(64, 64, 4, 2, 64, 2)
    with pytest.raises(ValueError, match=f"block_m={block_m}: allowed are 16, 32, 48, 64, 96, 128, 144, 160, 192, 256"):
        FastTiles(block_m, tile, tile)


def test_a_tile_keeps_its_own_rules():
    with pytest.raises(ValueError, match="bulk needs small_k equal to block_k=64, got 128"):
        FastTile(64, 64, 4, 2, 128, 2, bulk=True)
    with pytest.raises(ValueError, match="bulk tiles need weight rows of whole 16 bytes, got 20 elements"):
        FastTile(64, 64, 4, 2, 64, 2, bulk=True).operand(torch.zeros(2, 8, 20, dtype=torch.float16))
    rows_of_16_bytes = torch.zeros(2, 8, 24, dtype=torch.float16)
    assert list(FastTile(64, 64, 4, 2, 64, 2, bulk=True).operand(rows_of_16_bytes).shape) == [2, 8, 24]
    weights = torch.zeros(2, 8, 20)
    assert FastTile(64, 64, 4, 2, 128, 2).operand(weights) is weights
