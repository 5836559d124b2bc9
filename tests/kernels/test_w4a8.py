"""Weights of four bits with 8-bit activations: every number, the order of columns, whole layers, what is refused."""

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import moe_forward, quantize_fp8, relative_error
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import fast_moe
from tritonmoe_bench.kernels.fast.blocks import Blocks, launch_place
from tritonmoe_bench.kernels.fast.gemm_w4 import launch_down_w4
from tritonmoe_bench.kernels.fast.tile_types import FastTile, FastTiles
from tritonmoe_bench.kernels.fast.w4 import padded
from tritonmoe_bench.kernels.fast.w4a8 import HIGHEST, LOWEST, SUMS, launch_quantize_w4, natural_a8
from tritonmoe_bench.kernels.formats.int4 import Int4, Int4Group32
from tritonmoe_bench.kernels.formats.mxfp4 import Mxfp4
from tritonmoe_bench.kernels.target import target_of

HOPPER = not torch.cuda.is_available() or target_of(torch.device("cuda")).nvidia_major == 9
pytestmark = pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
KINDS = pytest.mark.parametrize("kind", [Mxfp4, Int4], ids=lambda kind: kind.name)
QUANTS = pytest.mark.parametrize("quant", ["mxfp4", "int4"])


@triton.jit
def _order_kernel(out, N: tl.constexpr):
    place = tl.arange(0, N)
    tl.store(out + place, natural_a8(place))


def order(device, columns):
    """The column at each place."""
    out = torch.empty(triton.next_power_of_2(columns), dtype=torch.int32, device=device)
    _order_kernel[(1,)](out, N=len(out))
    return out[:columns].long()


@KINDS
def test_every_number_is_unpacked_exactly(device, kind):
    """Rows with one number each, 448 for a scale of 1, give the weights themselves."""
    values = torch.randint(0, 256, (1, 128, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    shape = (1, 128, 128 // kind.group)
    if kind is Mxfp4:
        # From 2^-15 to 2^1; the interpreter loses the last bits of e5m2 numbers that are below its exponents.
        lowest = LOWEST.value if device == "cuda" else LOWEST.value + 2
        scales = (torch.arange(128 * 4).view(shape) % (HIGHEST.value + 1 - lowest) + lowest).to(torch.uint8)
    else:
        scales = torch.ones(shape, dtype=torch.bfloat16)
    packed = kind(values.to(device), scales.to(device)).prepared()
    rows = launch_quantize_w4(448 * torch.eye(128, device=device), packed)
    experts = torch.zeros((128, 1), dtype=torch.int32, device=device)
    weights = torch.ones((128, 1), device=device)
    tile = FastTile(128, 128, 4, 2, 128, 2, swap=True, small_swap=True)
    for block_m in (16, 48, 64):
        tiles = FastTiles(block_m, tile, tile)
        out = launch_down_w4(*rows, packed, Blocks(weights, *launch_place(experts, 1, block_m)), torch.bfloat16, tiles)
        assert torch.equal(out.float(), 448 * packed.unpack()[0].T)


def test_the_order_renames_the_columns_of_a_block(device):
    columns = order(device, 512)
    assert torch.equal(columns.view(4, 128).sort(dim=1).values.flatten(), torch.arange(512, device=device))
    # Each run of 4 places has columns of one word, and of the four runs that make 16 each is of another thread.
    assert torch.equal(columns[:16] // 8, torch.tensor([0, 4, 8, 12], device=device).repeat_interleave(4))


@KINDS
@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (3, 352), (5, 32)])
def test_rows_are_quantised_in_the_order(device, kind, rows, columns):
    wide = torch.randn(rows, columns + 64, generator=torch.Generator().manual_seed(columns)).to(device, torch.bfloat16)
    x = wide[:, :columns]
    weights = kind(*(torch.empty(0, device=device),) * 2)
    values, scales = launch_quantize_w4(x, weights)
    whole = torch.nn.functional.pad(x.float(), (0, padded(columns) - columns))[:, order(device, padded(columns))]
    expected = whole.abs().amax(1) / 448
    torch.testing.assert_close(scales[:, 0], expected, rtol=2e-7, atol=0)
    assert torch.equal(values, (whole / scales[:, :1]).to(torch.float8_e4m3fn))
    if kind is Int4:
        sums = values.float().view(rows, -1, 128).sum(2)
        torch.testing.assert_close(scales[:, SUMS.value :][:, : sums.shape[1]], sums, rtol=1e-6, atol=1e-3)
    else:
        assert scales.shape == (rows, 1)


def layer(device, tokens, quant, dtype="bf16", **changes):
    fields = {"model": "t", "num_experts": 8, "top_k": 2, "hidden_dim": 256, "ffn_dim": 128, **changes}
    case = Case(tokens=tokens, dtype=dtype, quant=quant, **fields)
    made = Weights(case, device)
    packed = made.packed_gate_up().prepared(), made.packed_down().prepared()
    return case, made, activations(case, draw_routing(case), device), (made.router(), *packed, case.top_k, case.gate)


def check(y, case, made, x):
    """At most 1.2 x the error of the emulation, which has a scale for each 128 columns of a row. It rounds otherwise:
    only the errors of many tokens are alike."""
    arguments = (x, made.router(), made.expert, case.top_k, case.gate)
    exact = moe_forward(*arguments)
    own = relative_error(moe_forward(*arguments, quantize=quantize_fp8), exact)
    assert y.dtype == x.dtype
    assert relative_error(y, exact) <= 1.2 * own


@QUANTS
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("tokens", [60, 130])
def test_the_layer_is_right(device, quant, dtype, tokens):
    case, made, x, arguments = layer(device, tokens, quant, dtype, skew=1.2)
    check(fast_moe(x, *arguments, activations="a8"), case, made, x)


@QUANTS
def test_a_token_alone(device, quant):
    _, _, x, arguments = layer(device, 130, quant)
    together = fast_moe(x, *arguments, activations="a8")
    torch.testing.assert_close(fast_moe(x[:1], *arguments, activations="a8"), together[:1], rtol=0.02, atol=0.01)


@pytest.mark.parametrize(("quant", "hidden", "ffn"), [("mxfp4", 288, 96), ("mxfp4", 160, 352), ("int4", 384, 128)])
def test_part_blocks(device, quant, hidden, ffn):
    case, made, x, arguments = layer(device, 60, quant, hidden_dim=hidden, ffn_dim=ffn)
    check(fast_moe(x, *arguments, activations="a8"), case, made, x)


@QUANTS
@pytest.mark.parametrize("block_m", [16, 48, 64, 96])
def test_every_height_of_tile(device, quant, block_m):
    case, made, x, arguments = layer(device, 150, quant, num_experts=2, top_k=1, skew=1.0)
    tile = FastTile(128, 128, 4, 2, 128, 2, swap=True, small_swap=True)
    check(fast_moe(x, *arguments, activations="a8", tiles=FastTiles(block_m, tile, tile)), case, made, x)


@QUANTS
def test_a_second_call_is_bitwise_the_same(device, quant):
    _, _, x, arguments = layer(device, 33, quant)
    y = fast_moe(x, *arguments, activations="a8")
    assert torch.equal(y, fast_moe(x, *arguments, activations="a8"))


def test_what_it_refuses(device):
    _, _, x, (router, gate_up, down, top_k, gating) = layer(device, 3, "mxfp4")
    with pytest.raises(ValueError, match=r"activations='a8' takes weights of four bits as prepared\(\) gives them"):
        fast_moe(x, router, gate_up.checkpoint(), down.checkpoint(), top_k, gating, activations="a8")
    good = FastTile(64, 128, 4, 2, 128, 2, swap=True, small_swap=True)
    for bad in (replace(good, small_k=256), replace(good, small_swap=False), replace(good, num_warps=8)):
        with pytest.raises(ValueError, match="tiles for mxfp4 with 8-bit activations have weights on the left, "):
            fast_moe(x, router, gate_up, down, top_k, gating, activations="a8", tiles=FastTiles(16, bad, good))
    grouped = [Int4Group32.pack(part.unpack()).prepared() for part in (gate_up, down)]
    with pytest.raises(ValueError, match="activations='a8': weights in int4_g32 are multiplied with 'a16' alone"):
        fast_moe(x, router, *grouped, top_k, gating, activations="a8")
