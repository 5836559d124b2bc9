"""The output-centric path of `fast`: few tokens, no schedule, no combine."""

from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
from fast_cases import SMALL_FEW, Spy, make_tiles
from moe_cases import assert_accurate, make_layer, random

from tritonmoe_bench.baselines.parts.router import UP_TO
from tritonmoe_bench.kernels.fast import choose, few_down, few_gate_up, logits, routing, tuned
from tritonmoe_bench.kernels.fast import layer as fast
from tritonmoe_bench.kernels.fast.choose import choose_tiles, few_tiles, few_tokens
from tritonmoe_bench.kernels.fast.choose_packed import format_tiles
from tritonmoe_bench.kernels.fast.few_down import launch_few_down
from tritonmoe_bench.kernels.fast.few_gate_up import launch_few_gate_up
from tritonmoe_bench.kernels.fast.few_parts import LONGEST, unrolled
from tritonmoe_bench.kernels.fast.tile_types import FewTile, FewTiles
from tritonmoe_bench.kernels.formats import formats
from tritonmoe_bench.kernels.formats.fp8_block import Fp8Block
from tritonmoe_bench.kernels.gating import GATINGS
from tritonmoe_bench.kernels.target import Target

SHAPES = {
    "one_of_everything": {"tokens": 1, "experts": 1, "top_k": 1, "hidden": 1, "ffn": 1},
    "nothing_divides": {"tokens": 3, "experts": 5, "top_k": 3, "hidden": 77, "ffn": 35},
    "less_than_a_tile": {"tokens": 2, "experts": 4, "top_k": 2, "hidden": 9, "ffn": 5},
    "all_divide": {"tokens": 2, "experts": 8, "top_k": 2, "hidden": 128, "ffn": 64},
    "only_columns_divide": {"tokens": 2, "experts": 8, "top_k": 2, "hidden": 80, "ffn": 40},
    "only_steps_of_gate_up_divide": {"tokens": 2, "experts": 2, "top_k": 2, "hidden": 64, "ffn": 35},
    "only_steps_of_down_divide": {"tokens": 2, "experts": 2, "top_k": 2, "hidden": 72, "ffn": 64},
    "top_16_of_many": {"tokens": 1, "experts": 150, "top_k": 16, "hidden": 152, "ffn": 16},
    "all_experts": {"tokens": 3, "experts": 4, "top_k": 4, "hidden": 40, "ffn": 24},
}


@pytest.mark.parametrize(("shape", "dtype"), list(zip(SHAPES, cycle(["bf16", "fp16"]))))
def test_shapes(shape, dtype, device):
    make_layer(device, **SHAPES[shape], dtype=dtype).assert_fast_right(tiles=SMALL_FEW)


@pytest.mark.parametrize("stages", [2, 3, 8])
@pytest.mark.parametrize("shape", ["nothing_divides", "all_divide", "top_16_of_many"])
def test_shapes_with_steps_on_their_way(shape, stages, device):
    tiles = (replace(tile, stages=stages) for tile in (SMALL_FEW.gate_up, SMALL_FEW.down))
    make_layer(device, **SHAPES[shape]).assert_fast_right(tiles=FewTiles(*tiles))


def test_a_loop_holds_whole_slots_one_by_one():
    several, weights = FewTile(4, 512, 4, 4), torch.empty(0)
    whole = [unrolled(steps, slots, several, weights) for steps, slots in ((4, 8), (4, 9), (5, 8))]
    assert whole == [32, 36, 40]
    assert unrolled(5, 16, several, weights) == 20  # four of the slots
    assert unrolled(14, 4, several, weights) == 28
    assert unrolled(LONGEST + 1, 2, several, weights) == 1
    assert unrolled(4, 8, replace(several, stages=1), weights) == 1
    assert unrolled(5, 8, several, Fp8Block(weights, weights)) == 20


@pytest.mark.parametrize("gating", GATINGS)
def test_gatings(gating, device):
    layer = make_layer(device, tokens=2, experts=16, top_k=6, hidden=72, ffn=40, gating=gating)
    layer.assert_fast_right(tiles=SMALL_FEW)


@pytest.mark.parametrize(("hidden", "ffn"), [(1024, 512), (128, 1024), (520, 72)])
def test_the_tiles_that_shapes_get(hidden, ffn, device):
    """Steps of 512 and 1024, both where they divide the shape and where they do not."""
    layer = make_layer(device, tokens=1, experts=2, top_k=1, hidden=hidden, ffn=ffn)
    layer.assert_fast_right(tiles=few_tiles(1, hidden, ffn, 1))


@pytest.mark.parametrize(
    ("shape", "tokens", "tiles"),
    [
        ((8, 2048, 768), 1, "few gate_up=1x512/s2/w1 down=8x256/s6/w4"),
        ((8, 2048, 384), 1, "few gate_up=1x512/s2/w1 down=8x256/s8/w4"),
        ((8, 2048, 192), 1, "few gate_up=1x2048/w4 down=8x256/s8/w4"),
        ((8, 2048, 192), 2, "few gate_up=1x512/s2/w1 down=8x256/s6/w4"),
        ((8, 7168, 256), 1, "few gate_up=1x2048/s2/w4 down=8x256/s6/w4"),
    ],
)
def test_programs_that_all_run_at_once_have_more_on_their_way(shape, tokens, tiles):
    assert str(few_tiles(*shape, tokens)) == tiles


def choose_untuned(monkeypatch, major: int) -> None:
    """From here on `choose_tiles` chooses for a GPU of that compute capability, of which no table is known."""
    monkeypatch.setattr(choose, "target_of", lambda device: Target(227 * 1024, major))
    monkeypatch.setattr(choose, "tuned_tiles", lambda *_: None)


@pytest.mark.parametrize(
    ("shape", "most"),
    [
        ((8, 2, 4096, 14336), 1),
        ((32, 4, 2880, 2880), 2),
        ((64, 4, 3584, 2560), 2),
        ((256, 8, 7168, 2048), 1),
        ((128, 8, 4096, 1536), 2),
        ((64, 8, 2048, 1024), 3),
        ((256, 8, 2048, 512), 4),
    ],
)
def test_choice_takes_it_for_a_few_tokens(shape, most, monkeypatch):
    """Where there is no joined path."""
    cuda = torch.device("cuda", 0)
    choose_untuned(monkeypatch, 10)
    for tokens in range(1, 6):
        assert isinstance(choose_tiles(cuda, *shape, tokens), FewTiles) == (tokens <= most)


def test_no_choice_takes_it_beyond_the_tokens_that_have_revisions_of_their_own():
    most = max(UP_TO)
    tables = [tuned.load(path) for path in Path(tuned.__file__).parent.glob("*.json")]
    assert tables
    for entries in (entries for table in tables for entries in table.values()):
        assert all(tokens <= most for tokens, tiles in entries.items() if isinstance(tiles, FewTiles))
    for num_experts in (8, 32, 64, 128, 256, 512):
        for hidden, ffn in ((512, 128), (2048, 512), (4096, 1536), (7168, 2048)):
            assert few_tokens(num_experts, hidden, ffn) <= most
            for kind in formats().values():
                tiles = format_tiles(kind, Target(227 * 1024, 9), (num_experts, 8, hidden, ffn), most + 1, None)
                assert not isinstance(tiles, FewTiles)


def test_choice_does_not_take_it_in_the_interpreter():
    assert not isinstance(choose_tiles(torch.device("cpu"), 8, 2, 4096, 14336, 1), FewTiles)


@pytest.mark.parametrize("major", [0, 8, 9, 10])
def test_choice_takes_long_steps_only_where_the_compiler_has_registers(major, monkeypatch):
    choose_untuned(monkeypatch, major)
    tiles = choose_tiles(torch.device("cuda", 0), 8, 2, 4096, 14336, 1)
    assert isinstance(tiles, FewTiles)
    assert tiles.down.step == (1024 if major < 10 else 512)


def test_both_kernels_alone(dtype, device):
    """hidden holds the weighted activations, rounded once to x's dtype; down rounds its sums, and nothing before."""
    tokens, top_k, num_experts, width, ffn = 3, 2, 5, 77, 35
    x = random(tokens, width, dtype=dtype, device=device)
    gate_up = random(num_experts, 2 * ffn, width, dtype=dtype, device=device, seed=1, scale=width**-0.5)
    down = random(num_experts, width, ffn, dtype=dtype, device=device, seed=2, scale=ffn**-0.5)
    experts = torch.tensor([[4, 0], [1, 4], [2, 3]], dtype=torch.int32, device=device)
    weights = torch.tensor([[0.75, 0.25], [2.5, 0.0], [0.125, 0.5]], device=device)
    hidden = launch_few_gate_up(x, gate_up, experts, weights, SMALL_FEW.gate_up)
    gate, up = torch.einsum("tk,tjnk->tjn", x.double(), gate_up.double()[experts.long()]).chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up * weights[..., None].double()
    assert hidden.dtype == x.dtype
    eps = torch.finfo(x.dtype).eps
    torch.testing.assert_close(hidden.view(tokens, top_k, ffn).double(), expected, rtol=0.51 * eps + 2e-5, atol=1e-6)
    y = launch_few_down(hidden, down, experts, weights, torch.empty_like(x), SMALL_FEW.down)
    inner = hidden.view(tokens, top_k, ffn).double()
    exact = torch.einsum("tjn,tjhn->th", inner, down.double()[experts.long()])
    # Half a unit in the last place of the result, and what float32 adds to it.
    assert y.dtype == x.dtype
    assert ((y.double() - exact).abs() <= 0.51 * eps * exact.abs() + 1e-5).all()


def test_agrees_with_the_path_of_tiles(device):
    layer = make_layer(device, tokens=4, experts=6, top_k=3, hidden=77, ffn=35, dtype="fp16")
    few, tiled = layer.fast(tiles=SMALL_FEW), layer.fast(tiles=make_tiles(16))
    exact = layer.reference(torch.float32)
    # It rounds twice where the other rounds three times.
    assert_accurate(few, exact, tiled, 1.25)


def test_launches_four_kernels(device, monkeypatch):
    names = []
    for module in (logits, routing, few_gate_up, few_down, fast):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Spy(getattr(module, name), names))
    make_layer(device, tokens=2, experts=4, top_k=2, hidden=40, ffn=24).fast(tiles=SMALL_FEW)
    assert names == ["_few_logits_kernel", "_top_k_kernel", "_few_gate_up_kernel", "_few_down_kernel"]


def test_x_may_have_rows_that_lie_apart(device):
    layer = make_layer(device, tokens=3, experts=4, top_k=2, hidden=32, ffn=16)
    y = layer.fast(tiles=SMALL_FEW)
    layer.x = torch.nn.functional.pad(layer.x, (0, 8))[:, :32]
    assert torch.equal(layer.fast(tiles=SMALL_FEW), y)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_a_token_that_is_no_number_leaves_the_others_right(scoring, device):
    layer = make_layer(device, tokens=3, experts=5, top_k=3, hidden=77, ffn=35, gating=scoring)
    exact, own = layer.reference(torch.float32), layer.reference(layer.x.dtype)
    layer.x[1] = float("nan")
    y = layer.fast(tiles=SMALL_FEW)
    assert y[1].isnan().all()
    assert_accurate(y[[0, 2]], exact[[0, 2]], own[[0, 2]], 1.5)


def test_a_forward_is_the_same_every_time(dtype, device):
    layer = make_layer(device, tokens=3, experts=6, top_k=3, hidden=77, ffn=35, dtype=dtype)
    assert torch.equal(layer.fast(tiles=SMALL_FEW), layer.fast(tiles=SMALL_FEW))
