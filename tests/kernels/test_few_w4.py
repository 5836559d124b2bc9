"""The output-centric path over weights of four bits: every number, whole layers, and which layers take it."""

import pytest
import torch
import triton
import triton.language as tl
from fast_cases import SMALL_FEW

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import moe_forward, relative_error
from tritonmoe_bench.experiments.workload.routing import TORCH_DTYPE, activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import Activation, fast_moe
from tritonmoe_bench.kernels.fast.choose_packed import format_tiles
from tritonmoe_bench.kernels.fast.epilogue import Epilogue
from tritonmoe_bench.kernels.fast.experts import Experts
from tritonmoe_bench.kernels.fast.few_w4_parts import UNIT, _column, launch_planes
from tritonmoe_bench.kernels.fast.forward import forward
from tritonmoe_bench.kernels.fast.route import Chosen
from tritonmoe_bench.kernels.fast.tile_types import FastTiles, FewTile, FewTiles
from tritonmoe_bench.kernels.formats.int4 import Int4, Int4Group32
from tritonmoe_bench.kernels.formats.mxfp4 import Mxfp4
from tritonmoe_bench.kernels.target import Target

QUANTS = pytest.mark.parametrize("quant", ["mxfp4", "int4", "int4_g32"])
TILES = FewTiles(FewTile(16, 256, 2), FewTile(32, 512, 4))


@triton.jit
def _column_kernel(words, out, MXFP4: tl.constexpr, N: tl.constexpr):
    n = tl.arange(0, N)
    word = tl.load(words + n)
    for i in tl.static_range(8):
        tl.store(out + n * 8 + i, _column(word, i, MXFP4))


@pytest.mark.parametrize("kind", [Mxfp4, Int4], ids=lambda kind: kind.name)
def test_every_code_in_every_column(kind, device):
    """Sixteen words, of which each column holds each code once."""
    codes = (torch.arange(16)[:, None] + 2 * torch.arange(8)[None, :]) % 16
    values = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    words = kind.arranged(values.contiguous().view(torch.int32)).flatten().to(device)
    out = torch.empty((16, 8), dtype=torch.float32, device=device)
    _column_kernel[(1,)](words, out, kind is Mxfp4, 16)
    if kind is Mxfp4:
        table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
        expected = torch.cat([table, -table])[codes] * 2.0**-126
    else:
        place = torch.tensor([0, 4, 8, 12, 16, 20, 16, 20], dtype=torch.float64)
        expected = codes.double() * 2.0 ** (place - 149)
    assert torch.equal(out.double().cpu(), expected)


@pytest.mark.parametrize("kind", [Mxfp4, Int4Group32], ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [128, 288])
def test_planes_of_activations(kind, columns, device):
    x = torch.randn(3, columns + 8, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)[:, :columns]
    weights = kind.pack(torch.zeros(1, 16, columns)).prepared()
    planes = launch_planes(x, weights)
    exact = torch.nn.functional.pad(x, (0, -columns % 128)).double().unflatten(1, (-1, 8)).transpose(1, 2)
    # From the host: a GPU's 2.0 ** place is not exact.
    powers = [62] * 8 if kind is Mxfp4 else [85 - place for place in (0, 4, 8, 12, 16, 20, 16, 20)]
    factor = torch.tensor([2.0**power for power in powers], dtype=torch.float64, device=device)
    assert torch.equal(planes[:, :8].double(), exact * factor[:, None])
    if kind is not Mxfp4:
        torch.testing.assert_close(planes[:, 8].double() * UNIT.value, 8 * exact.sum(1), rtol=1e-5, atol=1e-5)


def layer(device, tokens, quant, dtype="bf16", **changes):
    case = Case("t", tokens=tokens, dtype=dtype, quant=quant, **{
        "num_experts": 8, "top_k": 2, "hidden_dim": 256, "ffn_dim": 128, **changes,
    })  # fmt: skip
    made = Weights(case, device)
    parts = made.packed_gate_up().prepared(), made.packed_down().prepared()
    return case, made, activations(case, draw_routing(case), device), parts


def check(y, case, made, x):
    """At most PyTorch's own error in 16 bits, as all sums are float32."""
    arguments = (x, made.router(), made.expert, case.top_k, case.gate)
    exact = moe_forward(*arguments)
    assert y.dtype == x.dtype
    assert relative_error(y, exact) <= relative_error(moe_forward(*arguments, dtype=TORCH_DTYPE[case.dtype]), exact)


@QUANTS
@pytest.mark.parametrize(("dtype", "tokens"), [("bf16", 1), ("bf16", 3), ("fp16", 2)])
def test_the_layer_is_right(device, quant, dtype, tokens):
    case, made, x, parts = layer(device, tokens, quant, dtype, skew=1.2)
    check(fast_moe(x, made.router(), *parts, case.top_k, case.gate, tiles=TILES), case, made, x)


@pytest.mark.parametrize("tiles", [TILES, FewTiles(FewTile(8, 512, 4), FewTile(16, 2048, 16))], ids=str)
@pytest.mark.parametrize("quant", ["mxfp4", "int4_g32"])
@pytest.mark.parametrize(("hidden", "ffn"), [(32, 32), (288, 96), (160, 352), (128, 416)])
def test_part_blocks(device, quant, hidden, ffn, tiles):
    case, made, x, parts = layer(device, 2, quant, hidden_dim=hidden, ffn_dim=ffn)
    check(fast_moe(x, made.router(), *parts, case.top_k, case.gate, tiles=tiles), case, made, x)


@QUANTS
def test_it_agrees_with_the_path_of_tiles_with_all_that_experts_may_have(device, quant):
    """Biases, a clamped activation, weights on the input, and slots without an expert here."""
    _, _, x, parts = layer(device, 3, quant)
    generator = torch.Generator().manual_seed(5)
    biases = (torch.randn(8, n, generator=generator).to(device, x.dtype) for n in (256, 256))
    ids = torch.tensor([[0, 5], [9, 3], [7, -1]], dtype=torch.int32, device=device)
    weights = torch.rand(3, 2, generator=generator).to(device)
    options = dict(zip(("gate_up_bias", "down_bias"), biases), activation=Activation("silu", 1.702, 1.0, 7.0))
    for on_input in (False, True):
        epilogue = Epilogue(**options, weights_on_input=on_input)
        chosen = Chosen.outside(ids, weights, 8, None)
        few, tiled = (forward(x, chosen, Experts(*parts, epilogue), tiles) for tiles in (TILES, None))
        assert relative_error(few, tiled.float()) < 8e-3


@QUANTS
def test_a_second_call_is_bitwise_the_same(device, quant):
    case, made, x, parts = layer(device, 2, quant)
    first, second = (fast_moe(x, made.router(), *parts, case.top_k, case.gate, tiles=TILES) for _ in range(2))
    assert torch.equal(first, second)


def test_a_token_that_is_no_number_leaves_the_others_right(device):
    case, made, x, parts = layer(device, 3, "int4")
    whole = fast_moe(x, made.router(), *parts, case.top_k, case.gate, tiles=TILES)
    x[1] = float("nan")
    y = fast_moe(x, made.router(), *parts, case.top_k, case.gate, tiles=TILES)
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2]], whole[[0, 2]])


def test_what_it_refuses(device):
    case, made, x, (gate_up, down) = layer(device, 1, "int4")
    with pytest.raises(ValueError, match="FewTiles over weights of four bits take them as prepared\\(\\) gives them"):
        fast_moe(x, made.router(), gate_up, down.checkpoint(), case.top_k, case.gate, tiles=TILES)
    with pytest.raises(
        ValueError,
        match="FewTiles over int4 need rows in eights and steps of whole 128 columns, one in flight, got 8x64/w4",
    ):
        fast_moe(x, made.router(), gate_up, down, case.top_k, case.gate, tiles=SMALL_FEW)


@QUANTS
def test_one_token_takes_it_where_weights_can_be_prepared(quant):
    kind = {"mxfp4": Mxfp4, "int4": Int4, "int4_g32": Int4Group32}[quant]
    hopper, amd = Target(227 * 1024, 9), Target(64 * 1024, 0)
    for shape in ((384, 8, 7168, 2048), (128, 4, 2880, 2880), (128, 8, 2048, 768)):
        assert isinstance(format_tiles(kind, hopper, shape, 1, None), FewTiles)
        assert not isinstance(format_tiles(kind, hopper, shape, 8, None), FewTiles)
        assert isinstance(format_tiles(kind, amd, shape, 1, None), FastTiles)
    assert not isinstance(format_tiles(kind, hopper, (8, 2, 264, 128), 1, None), FewTiles)
