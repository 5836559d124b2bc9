"""The forward of `fast` against the one reference: shapes, gatings, every height of tile, every kind of routing."""

import pytest
import torch
from moe_cases import assert_accurate, make_layer, random

from tritonmoe_bench.kernels import fast, fast_schedule
from tritonmoe_bench.kernels.fast import FEW_TOKENS, fast_moe
from tritonmoe_bench.kernels.fast_schedule import SMALL_SLOTS, launch_routing
from tritonmoe_bench.kernels.fast_tiles import FastTile, FastTiles
from tritonmoe_bench.kernels.gating import GATINGS, Gating
from tritonmoe_bench.kernels.tiles import GROUP_M

SHAPES = {
    "one_token": {"tokens": 1, "experts": 8, "top_k": 2, "hidden": 128, "ffn": 256},
    "one_expert": {"tokens": 3, "experts": 1, "top_k": 1, "hidden": 77, "ffn": 35},
    "one_of_everything": {"tokens": 1, "experts": 1, "top_k": 1, "hidden": 1, "ffn": 1},
    "every_expert": {"tokens": 17, "experts": 5, "top_k": 5, "hidden": 40, "ffn": 24},
    "odd": {"tokens": 17, "experts": 5, "top_k": 3, "hidden": 727, "ffn": 577},
    "top_8": {"tokens": 7, "experts": 60, "top_k": 8, "hidden": 77, "ffn": 35},
    "top_16_of_16": {"tokens": 3, "experts": 16, "top_k": 16, "hidden": 48, "ffn": 16},
    "sixty_experts": {"tokens": 33, "experts": 60, "top_k": 4, "hidden": 180, "ffn": 88},
    "many_experts": {"tokens": 9, "experts": 256, "top_k": 8, "hidden": 256, "ffn": 32},
    "odd_number_of_many_experts": {"tokens": 5, "experts": 131, "top_k": 7, "hidden": 136, "ffn": 16},
    "skewed": {"tokens": 150, "experts": 16, "top_k": 2, "hidden": 64, "ffn": 64, "skew": 2.0},
}
GRID = {"experts": 32, "top_k": 4, "hidden": 77, "ffn": 35}
LAST_SMALL = SMALL_SLOTS // GRID["top_k"]
TILES = {
    "16": FastTiles(FastTile(16, 32, 64, 4, 2, 64, 2), FastTile(16, 64, 32, 4, 2, 32, 2)),
    "64": FastTiles(FastTile(64, 32, 64, 4, 2, 32, 3), FastTile(64, 64, 32, 4, 2, 64, 2)),
    "128": FastTiles(FastTile(128, 64, 32, 8, 2, 32, 2), FastTile(128, 64, 64, 8, 3, 32, 2)),
    "16_bulk": FastTiles(FastTile(16, 32, 64, 4, 2, 64, 2, bulk=True), FastTile(16, 64, 32, 4, 2, 32, 2, bulk=True)),
    "128_bulk": FastTiles(FastTile(128, 64, 32, 8, 2, 32, 2, bulk=True), FastTile(128, 64, 64, 8, 3, 64, 3, bulk=True)),
}
LOADS = [0, 5, 16, 17, 64, 65, 0, 128, 300, 1]
"""Rows of each expert: both sides of every height of tile, and empty ones."""
HEIGHTS = {16: {1, 5, 16}, 64: {17, 64, 44}, 128: {65, 128}}
"""Rows of the blocks of at most 128 rows that LOADS makes, by the height of the tile that must serve them."""


def tiles_for(name: str) -> FastTiles:
    """The tiles of that name, or a skip where the GPU has no bulk copies."""
    if name.endswith("bulk") and torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("bulk copies need compute capability 9")
    return TILES[name]


def one_expert_each(loads: list[int]) -> torch.Tensor:
    """Logits [tokens, experts] that send loads[e] tokens to expert e, in no order."""
    expert = torch.repeat_interleave(torch.arange(len(loads)), torch.tensor(loads))
    expert = expert[torch.randperm(len(expert), generator=torch.Generator().manual_seed(0))]
    return torch.nn.functional.one_hot(expert, len(loads)) * 4.0


class Spy:
    """A kernel that writes its name down when it is launched."""

    def __init__(self, kernel, names):
        self.kernel, self.names = kernel, names

    def __getitem__(self, grid):
        self.names.append(self.kernel.fn.__name__)
        return self.kernel[grid]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, dtype, device):
    make_layer(device, **SHAPES[shape], dtype=dtype).assert_fast_right()


@pytest.mark.parametrize("tokens", [1, 2, 5, FEW_TOKENS, FEW_TOKENS + 1, LAST_SMALL, LAST_SMALL + 1, 70])
def test_both_sides_of_every_choice_by_tokens(tokens, dtype, device, monkeypatch):
    """Logits by our own kernel or by PyTorch, routing by one program or by three launches."""
    assert LAST_SMALL > FEW_TOKENS
    names = []
    for module, kernel in ((fast, "_logits_kernel"), (fast_schedule, "_route_small_kernel")):
        monkeypatch.setattr(module, kernel, Spy(getattr(module, kernel), names))
    make_layer(device, **GRID, tokens=tokens, dtype=dtype).assert_fast_right()
    expected = ["_logits_kernel"] * (tokens <= FEW_TOKENS) + ["_route_small_kernel"] * (tokens <= LAST_SMALL)
    assert names == expected


@pytest.mark.parametrize("shape", [(1, 5, 77), (FEW_TOKENS, 131, 77), (FEW_TOKENS + 1, 5, 77), (3, 2, 5000)], ids=str)
def test_logits_of_a_router_with_every_weight(shape, dtype, device):
    """The router of a layer above has one weight an expert, so that all systems route alike."""
    tokens, experts, hidden = shape
    x = random(tokens, hidden, dtype=dtype, device=device)
    router = random(experts, hidden, dtype=dtype, device=device, seed=1)
    logits = fast._logits(x, router)
    assert logits.dtype == torch.float32
    # Exact products, summed in float32 in some order; far more than that would be a rounding to 16 bits.
    torch.testing.assert_close(logits.double(), x.double() @ router.double().T, rtol=1e-5, atol=1e-6 * hidden**0.5 * 4)


@pytest.mark.parametrize("tokens", [6, 40])
@pytest.mark.parametrize("gating", GATINGS)
def test_gatings(gating, tokens, dtype, device):
    make_layer(
        device, tokens=tokens, experts=32, top_k=6, hidden=72, ffn=40, dtype=dtype, gating=gating
    ).assert_fast_right()


@pytest.mark.parametrize("name", TILES)
def test_every_height_of_tile_in_one_forward(name, dtype, device):
    tiles = tiles_for(name)
    logits = one_expert_each(LOADS)
    layer = make_layer(
        device, tokens=len(logits), experts=len(LOADS), top_k=1, hidden=136, ffn=88, dtype=dtype, logits=logits
    )
    rows = set(launch_routing(logits.to(device), 1, Gating(), None, tiles.block_m).table[2].tolist()) - {0}
    if tiles.block_m == 128:
        assert rows == HEIGHTS[16] | HEIGHTS[64] | HEIGHTS[128]
    elif tiles.block_m == 64:
        assert rows == {1, 5, 16, 17, 64, 44}
    else:
        assert max(rows) == 16
        assert max(LOADS) > GROUP_M * 16
    layer.assert_fast_right(tiles=tiles)


@pytest.mark.parametrize("name", TILES)
def test_tiles_on_a_shape_that_all_divide(name, dtype, device):
    layer = make_layer(device, tokens=90, experts=5, top_k=2, hidden=192, ffn=128, dtype=dtype, skew=1.2)
    layer.assert_fast_right(tiles=tiles_for(name))


@pytest.mark.parametrize("name", ["16", "64", "128"])
def test_tiles_on_a_shape_that_none_divides(name, dtype, device):
    layer = make_layer(device, tokens=90, experts=5, top_k=2, hidden=77, ffn=35, dtype=dtype, skew=1.2)
    layer.assert_fast_right(tiles=TILES[name])


@pytest.mark.parametrize("tokens", [7, 130])
@pytest.mark.parametrize("name", TILES)
def test_all_tokens_on_the_last_expert(name, tokens, dtype, device):
    logits = one_expert_each([0] * 7 + [tokens])
    layer = make_layer(device, tokens=tokens, experts=8, top_k=1, hidden=64, ffn=48, dtype=dtype, logits=logits)
    layer.assert_fast_right(tiles=tiles_for(name))


@pytest.mark.parametrize("tokens", [7, 70])
def test_equal_logits_send_every_token_to_the_first_experts(tokens, dtype, device):
    layer = make_layer(
        device, tokens=tokens, experts=8, top_k=2, hidden=64, ffn=48, dtype=dtype, logits=torch.zeros(tokens, 8)
    )
    layer.assert_fast_right()


@pytest.mark.parametrize("tokens", [3, 20, 90])
def test_a_forward_is_the_same_every_time(tokens, dtype, device):
    layer = make_layer(device, **GRID, tokens=tokens, dtype=dtype)
    assert torch.equal(layer.fast(), layer.fast())


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("tokens", [7, 60])
def test_a_token_that_is_no_number_leaves_the_others_right(tokens, scoring, dtype, device):
    layer = make_layer(device, tokens=tokens, experts=5, top_k=3, hidden=77, ffn=35, dtype=dtype, gating=scoring)
    exact, own = layer.reference(torch.float32), layer.reference(layer.x.dtype)
    layer.x[4] = float("nan")
    y = layer.fast()
    others = torch.arange(tokens, device=device) != 4
    assert y[4].isnan().all()
    assert_accurate(y[others], exact[others], own[others], 1.5)


def test_gating_is_plain_softmax_if_none_is_given(device):
    layer = make_layer(device, tokens=4, experts=4, top_k=2, hidden=32, ffn=16)
    arguments = layer.x, layer.weights.router(), layer.weights.gate_up(), layer.weights.down(), 2
    assert torch.equal(fast_moe(*arguments), fast_moe(*arguments, Gating()))


@pytest.mark.parametrize("tokens", [6, 50])
def test_x_may_have_rows_that_lie_apart(tokens, device):
    layer = make_layer(device, tokens=tokens, experts=4, top_k=2, hidden=32, ffn=16)
    y = layer.fast()
    layer.x = torch.nn.functional.pad(layer.x, (0, 8))[:, :32]
    assert torch.equal(layer.fast(), y)


@pytest.mark.parametrize("tokens", [3, 60])
def test_the_host_is_never_asked(tokens, device, monkeypatch):
    def refuse(*_):
        raise AssertionError("the host was asked for what the GPU decides")

    layer = make_layer(device, **GRID, tokens=tokens)
    for name in ("item", "tolist", "cpu", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    layer.fast()
