"""Four-bit weights in kernels: every number bit by bit, the order of columns, and `fast_moe` over whole layers."""

import pytest
import torch
import triton
import triton.language as tl

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import moe_forward, relative_error
from tritonmoe_bench.experiments.workload.routing import TORCH_DTYPE, activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import fast_moe
from tritonmoe_bench.kernels.fast.tile_types import FastTile, FastTiles
from tritonmoe_bench.kernels.fast.w4 import (
    UNIT,
    constants,
    launch_permute,
    natural,
    operands,
    padded,
    place_of,
    unpack_words,
)
from tritonmoe_bench.kernels.formats.int4 import Int4, Int4Group32
from tritonmoe_bench.kernels.formats.mxfp4 import Mxfp4

KINDS = pytest.mark.parametrize("kind", [Mxfp4, Int4, Int4Group32], ids=lambda kind: kind.name)
QUANTS = pytest.mark.parametrize("quant", ["mxfp4", "int4", "int4_g32"])
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@triton.jit
def _unpack_kernel(
    words, scales, out,
    ROWS: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, PREPARED: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, ROWS)[:, None]
    word = tl.arange(0, K // 8)[None, :]
    group = tl.arange(0, K // GROUP)[None, :]
    if PREPARED:
        tile = tl.load(words + row // 8 * K + row % 8 * 16 + word // 16 * 128 + word % 16)
        own: tl.constexpr = 128 // GROUP
        scale = tl.load(scales + row // 8 * (K // GROUP * 8) + row % 8 * own + group // own * (own * 8) + group % own)
    else:
        tile = tl.load(words + row * (K // 8) + word)
        scale = tl.load(scales + row * (K // GROUP) + group)
    numbers = unpack_words(tile, scale, out.dtype.element_ty, scale.dtype == tl.uint8, PREPARED, PTX)
    tl.store(out + row * K + tl.arange(0, K)[None, :], numbers)


@triton.jit
def _natural_kernel(out, back, N: tl.constexpr):
    place = tl.arange(0, N)
    tl.store(out + place, natural(place))
    tl.store(back + place, place_of(natural(place)))


def order(device, columns):
    """The column at each place."""
    out = torch.empty(triton.next_power_of_2(columns), dtype=torch.int32, device=device)
    back = torch.empty_like(out)
    _natural_kernel[(1,)](out, back, N=len(out))
    assert torch.equal(back, torch.arange(len(out), dtype=torch.int32, device=device))
    return out[:columns].long()


def every_code(kind, device, columns=256, rows=64):
    """Every byte of values with scales over the range that trained weights have, and far beyond."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 256, (1, rows, columns // 2), generator=generator, dtype=torch.uint8)
    shape = (1, rows, columns // kind.group)
    if kind is Mxfp4:
        scales = torch.randint(113, 140, shape, generator=generator, dtype=torch.uint8)
    else:
        scales = (torch.rand(shape, generator=generator) + 0.5) * 10.0 ** torch.randint(-3, 2, shape)
    return kind(values.to(device), scales.to(device))


PREPARED = pytest.mark.parametrize("prepared", [True, False])


@KINDS
@DTYPES
@PREPARED
def test_every_number_is_unpacked_exactly(device, kind, dtype, prepared):
    packed = every_code(kind, device)
    if kind is not Mxfp4:
        packed = kind(packed.values, packed.scales.to(dtype))
    packed = packed.prepared() if prepared else packed
    out = torch.empty((64, 256), dtype=dtype, device=device)
    _unpack_kernel[(1,)](*operands(packed), out, ROWS=64, K=256, **constants(packed))
    unit = UNIT.value if dtype == torch.bfloat16 else 1.0
    expected = packed.unpack(dtype)[0][:, order(device, 256)]
    assert torch.equal(out.float() * unit, expected.float())


@PREPARED
def test_scales_of_mxfp4_over_all_that_bfloat16_reaches(device, prepared):
    packed = every_code(Mxfp4, device)
    steps = torch.arange(64 * 8, device=device).view(1, 64, 8) % 120 + 40
    packed = Mxfp4(packed.values, steps.to(torch.uint8))  # 2^-87 to 2^32
    packed = packed.prepared() if prepared else packed
    out = torch.empty((64, 256), dtype=torch.bfloat16, device=device)
    _unpack_kernel[(1,)](*operands(packed), out, ROWS=64, K=256, **constants(packed))
    assert torch.equal(out.double() * UNIT.value, packed.unpack()[0][:, order(device, 256)].double())


def test_the_order_renames_the_columns_of_a_block(device):
    columns = order(device, 512)
    assert torch.equal(columns.view(4, 128).sort(dim=1).values.flatten(), torch.arange(512, device=device))
    # Each run of 8 places has two columns of each of the four groups of 32: those that one thread holds.
    assert torch.equal(columns[:8] // 32, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3], device=device))


@DTYPES
@pytest.mark.parametrize(("tokens", "columns"), [(1, 128), (3, 352), (5, 32)])
def test_activations_are_put_into_the_order(device, dtype, tokens, columns):
    wide = torch.randn(tokens, columns + 64, generator=torch.Generator().manual_seed(columns)).to(device, dtype)
    x = wide[:, :columns]
    expected = torch.nn.functional.pad(x, (0, padded(columns) - columns))[:, order(device, padded(columns))]
    assert torch.equal(launch_permute(x), expected)


def layer(device, tokens, quant, dtype="bf16", prepared=True, **changes):
    fields = {"model": "t", "num_experts": 8, "top_k": 2, "hidden_dim": 256, "ffn_dim": 128, **changes}
    case = Case(tokens=tokens, dtype=dtype, quant=quant, **fields)
    made = Weights(case, device)
    parts = (made.packed_gate_up(), made.packed_down())
    gate_up, down = (part.prepared() for part in parts) if prepared else parts
    return (
        case,
        made,
        activations(case, draw_routing(case), device),
        (made.router(), gate_up, down, case.top_k, case.gate),
    )


def check(y, case, made, x):
    """At most 1.5 x PyTorch's own error in 16 bits."""
    arguments = (x, made.router(), made.expert, case.top_k, case.gate)
    exact = moe_forward(*arguments)
    own = relative_error(moe_forward(*arguments, dtype=TORCH_DTYPE[case.dtype]), exact)
    assert y.dtype == x.dtype
    assert relative_error(y, exact) <= 1.5 * own


@QUANTS
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("tokens", [1, 7, 130])
def test_the_layer_is_right(device, quant, dtype, tokens):
    case, made, x, arguments = layer(device, tokens, quant, dtype, skew=1.2)
    check(fast_moe(x, *arguments), case, made, x)


@pytest.mark.parametrize(("hidden", "ffn"), [(32, 32), (288, 96), (160, 352), (128, 416)])
@pytest.mark.parametrize("quant", ["mxfp4", "int4_g32"])
@PREPARED
def test_part_blocks(device, quant, hidden, ffn, prepared):
    case, made, x, arguments = layer(device, 5, quant, prepared=prepared, hidden_dim=hidden, ffn_dim=ffn)
    check(fast_moe(x, *arguments), case, made, x)


def test_an_odd_number_of_large_groups(device):
    for prepared in (True, False):
        case, made, x, arguments = layer(device, 5, "int4", prepared=prepared, hidden_dim=384)
        check(fast_moe(x, *arguments), case, made, x)


@QUANTS
@pytest.mark.parametrize("block_m", [16, 64, 128, 160])
@pytest.mark.parametrize("swap", [True, False])
def test_every_height_of_tile(device, quant, block_m, swap):
    case, made, x, arguments = layer(device, 150, quant, num_experts=2, top_k=1, skew=1.0)
    tile = FastTile(64, 256, 8, 2, 128, 2, swap=swap, small_swap=swap)
    check(fast_moe(x, *arguments, tiles=FastTiles(block_m, tile, tile)), case, made, x)


def test_prepared_weights_are_the_same_numbers(device):
    for kind, columns in ((Mxfp4, 288), (Int4Group32, 96), (Int4, 384)):
        plain = kind.pack(torch.randn(2, 48, columns, generator=torch.Generator().manual_seed(0)))
        packed = plain.prepared()
        assert packed.is_prepared
        assert packed.shape == plain.shape
        assert torch.equal(packed.unpack(), plain.unpack())
        assert torch.equal(packed[1].unpack(), plain[1].unpack())
        assert torch.equal(packed.checkpoint().values, plain.values)
        assert packed.prepared() is packed


def test_rows_that_are_not_prepared_stay_as_they_are(device):
    plain = Mxfp4.pack(torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(0)))
    assert plain.prepared() is plain


@QUANTS
def test_a_second_call_is_bitwise_the_same(device, quant):
    _, _, x, arguments = layer(device, 33, quant)
    assert torch.equal(fast_moe(x, *arguments), fast_moe(x, *arguments))


@QUANTS
def test_a_compiled_layer_gives_the_eager_numbers(device, quant):
    torch.compiler.reset()
    _, _, x, arguments = layer(device, 5, quant, hidden_dim=384)
    compiled = torch.compile(lambda x: fast_moe(x, *arguments), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), fast_moe(x, *arguments))
    torch.compiler.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@QUANTS
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_cuda_graph_holds_it(device, quant, tokens):
    _, _, x, arguments = layer(device, tokens, quant)
    expected = fast_moe(x, *arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fast_moe(x, *arguments)
    y.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, expected)


def test_steps_must_be_whole_blocks(device):
    _, _, x, arguments = layer(device, 3, "int4")
    tile = FastTile(64, 128, 4, 2, 64, 2)
    with pytest.raises(ValueError, match="FastTiles over int4 need steps of whole 128 columns, got 64"):
        fast_moe(x, *arguments, tiles=FastTiles(16, tile, tile))


def test_what_it_refuses(device):
    _, _, x, (router, gate_up, down, top_k, gating) = layer(device, 3, "mxfp4")
    with pytest.raises(TypeError, match="gate_up is packed as int4_g32 and down as mxfp4: both must be the same"):
        fast_moe(x, router, Int4Group32.pack(gate_up.unpack()), down, top_k, gating)
    apart = Mxfp4(gate_up.values.transpose(0, 1).contiguous().transpose(0, 1), gate_up.scales)
    with pytest.raises(
        ValueError, match=r"gate_up does not lie in memory as prepared\(\) left it: do not copy its parts"
    ):
        fast_moe(x, router, apart, down, top_k, gating)
    gate_up = gate_up.checkpoint()
    with pytest.raises(ValueError, match=r"gate_up.scales must have shape \[8, 256, 8\], got \[8, 256, 7\]"):
        fast_moe(x, router, Mxfp4(gate_up.values, gate_up.scales[:, :, :7].contiguous()), down, top_k, gating)
    memory = torch.zeros(8 * 256 * 128 + 1, dtype=torch.uint8, device=device)
    inside = memory[1:].view(8, 256, 128)
    with pytest.raises(ValueError, match=r"gate_up\.values begins inside a word of its memory: copy it"):
        fast_moe(x, router, Mxfp4(inside, gate_up.scales), down, top_k, gating)
