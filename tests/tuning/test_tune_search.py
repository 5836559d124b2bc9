"""The search of `make tune` under a stand-in for the clock, and the tiles that it tries on any GPU."""

import itertools

import pytest
from tune_cases import BETTER, DOWN, FOUND, GATE_UP, HEURISTIC, MODELS, SKEWS, FakeTimer, clock, tile

from tritonmoe_bench.experiments.tuning import search as tune_search
from tritonmoe_bench.experiments.tuning.plan import heuristic_of
from tritonmoe_bench.experiments.tuning.search import Choice, finalists, search
from tritonmoe_bench.experiments.tuning.space import Candidate, candidates, parts
from tritonmoe_bench.experiments.workload.case import QUANTS, Case
from tritonmoe_bench.kernels.fast.choose import heuristic_tiles
from tritonmoe_bench.kernels.fast.tile_types import FastTile, FastTiles, FewTile, FewTiles
from tritonmoe_bench.kernels.target import Target

TARGETS = {"H200": Target(227 * 1024, 9), "A100": Target(163 * 1024, 8), "RTX 4090": Target(99 * 1024, 8)}


def test_the_fastest_of_each_stage_is_chosen_with_its_gain():
    choice = search(FOUND, HEURISTIC, FakeTimer(clock(gate_up1=80, down1=70)), SKEWS)
    assert choice == Choice(BETTER, pytest.approx(200 / 150))


def test_the_geometric_mean_over_the_skews_decides():
    """gate_up1 is the fastest at one skew, gate_up2 over both."""
    timer = FakeTimer(
        clock(gate_up1=80, gate_up2=90), lambda what, skew, turn: 1.4 if (what, skew) == (GATE_UP[1], 1.2) else 1.0
    )
    assert search(FOUND, HEURISTIC, timer, SKEWS).tiles.gate_up == GATE_UP[2].tile
    assert search(FOUND, HEURISTIC, timer, SKEWS[:1]).tiles.gate_up == GATE_UP[1].tile


@pytest.mark.parametrize(("us", "wins"), [(99.7, False), (99.6, False), (99.0, True)])
def test_the_heuristic_stays_inside_of_the_margin(us, wins):
    choice = search(FOUND, HEURISTIC, FakeTimer(clock(gate_up1=us, down1=us)), SKEWS)
    assert (choice.tiles is not None) == wins
    assert choice.gain == pytest.approx(100 / us)


@pytest.mark.parametrize(("slow_rounds", "stays"), [(1, False), (3, True)])
def test_the_median_of_the_rounds_decides(slow_rounds, stays):
    def change(what, skew, turn):
        return 1.2 if what not in (HEURISTIC, *FOUND) and turn < slow_rounds else 1.0

    choice = search(FOUND, HEURISTIC, FakeTimer(clock(gate_up1=90, down1=90), change), SKEWS)
    assert (choice.tiles is None) == stays
    assert (choice.gain < tune_search.MARGIN) == stays


def test_a_drift_of_the_clock_favours_none():
    calls = itertools.count()
    choice = search(FOUND, HEURISTIC, FakeTimer(clock(), lambda *_: 1.01 ** next(calls)), SKEWS)
    assert choice.tiles is None


@pytest.mark.parametrize("skew", SKEWS)
def test_a_tile_that_is_wrong_at_one_skew_is_never_kept(skew):
    timer = FakeTimer(
        clock(gate_up1=50, down1=50), lambda what, at, turn: None if (what, at) == (GATE_UP[1], skew) else 1.0
    )
    choice = search(FOUND, HEURISTIC, timer, SKEWS)
    assert choice.tiles.down == DOWN[1].tile
    assert choice.tiles.gate_up != GATE_UP[1].tile
    assert all(tiles.gate_up != GATE_UP[1].tile for tiles, _, _ in timer.forwards)


@pytest.mark.parametrize("turn", range(tune_search.ROUNDS))
def test_a_forward_that_is_wrong_in_any_round_is_never_kept(turn):
    timer = FakeTimer(
        clock(gate_up1=50, down1=50), lambda what, skew, now: None if (what, now) == (BETTER, turn) else 1.0
    )
    choice = search(FOUND, HEURISTIC, timer, SKEWS)
    assert choice.tiles not in (None, BETTER)
    assert not [call for call in timer.forwards if call[0] == BETTER and call[2] > turn]


def test_a_heuristic_that_does_not_run_leaves_the_fastest_that_does():
    timer = FakeTimer(clock(gate_up1=80, down1=80), lambda what, *_: None if what == HEURISTIC else 1.0)
    assert search(FOUND, HEURISTIC, timer, SKEWS) == Choice(BETTER, None)


def test_nothing_is_chosen_where_nothing_runs():
    assert search(FOUND, HEURISTIC, FakeTimer(clock(), lambda *_: None), SKEWS) is None


def test_what_is_slow_at_one_skew_is_not_timed_at_the_next_but_the_heuristic_is():
    timer = FakeTimer(clock(gate_up0=300, gate_up2=200))
    search(FOUND, HEURISTIC, timer, SKEWS)
    assert (GATE_UP[2], 0.0) in timer.stages
    assert (GATE_UP[2], 1.2) not in timer.stages
    assert (GATE_UP[0], 1.2) in timer.stages


def test_heights_are_chosen_for_both_stages_together():
    """down is slow at the height that suits gate_up best."""
    times = {
        Candidate("gate_up", 64, tile(0)): [100.0], Candidate("down", 64, tile(0)): [100.0],
        Candidate("gate_up", 160, tile(1)): [60.0], Candidate("down", 160, tile(1)): [190.0],
        Candidate("gate_up", 192, tile(2)): [90.0], Candidate("down", 192, tile(2)): [90.0],
    }  # fmt: skip
    assert [tiles.block_m for tiles in finalists(times, BETTER)] == [192, 64, 160]
    assert [tiles.block_m for tiles in finalists(times, HEURISTIC)] == [192, 160], "it is no rival of itself"


def test_finals_hold_both_paths_and_few_of_a_height():
    times = {
        Candidate(stage, block_m, tile(number)): [10.0 + number]
        for stage, block_m, number in itertools.product(("gate_up", "down"), (64, 160, 192), range(3))
    }
    times |= {Candidate(stage, 0, FewTile(4, 512, 2)): [500.0] for stage in ("few_gate_up", "few_down")}
    found = finalists(times, HEURISTIC)
    assert len(found) == tune_search.FINALISTS
    assert sum(isinstance(tiles, FewTiles) for tiles in found) == 1
    heights = [tiles.block_m for tiles in found if isinstance(tiles, FastTiles)]
    assert max(map(heights.count, heights)) == tune_search.OF_A_HEIGHT


def tried(target, model, tokens):
    case = Case(model, *MODELS[model], tokens=tokens)
    heuristic = heuristic_tiles(target, *MODELS[model], tokens)
    return heuristic, candidates(case, heuristic, target.shared_memory_bytes, target.has_bulk_copies)


@pytest.mark.parametrize("tokens", [1, 2, 4, 32, 128, 512, 8192])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gpu", TARGETS)
def test_what_is_tried_on_any_gpu(gpu, model, tokens):
    heuristic, found = tried(TARGETS[gpu], model, tokens)
    assert set(parts(heuristic)) <= set(found)
    assert len({(candidate.stage, str(candidate)) for candidate in found}) == len(found), "rows are told apart by these"
    heights = {stage: {c.block_m for c in found if c.stage == stage} for stage in ("gate_up", "down")}
    assert heights["gate_up"] == heights["down"], "a tile of one stage that no tile of the other goes with"
    assert heights["gate_up"]
    assert any(c.stage == "few_down" for c in found) == (tokens <= 4)
    bulk = [c for c in found if isinstance(c.tile, FastTile) and c.tile.bulk]
    sizes = {"gate_up": MODELS[model][2], "down": MODELS[model][3]}
    assert not [c for c in bulk if gpu != "H200" or sizes[c.stage] % 8]
    assert len(parts(heuristic)) < len(found) <= 120


def test_the_taller_blocks_are_tried_where_experts_have_many_rows():
    assert {c.block_m for c in tried(TARGETS["H200"], "mixtral", 512)[1]} == {128, 144, 160, 192}
    assert {c.block_m for c in tried(TARGETS["H200"], "mixtral", 8)[1]} == {16, 64}


def test_a_gpu_of_little_memory_gets_tiles_that_fit():
    """Weights and rows in flight, at the least height, by what the tile declares."""
    for model, tokens in itertools.product(MODELS, (8, 512)):
        for candidate in tried(TARGETS["RTX 4090"], model, tokens)[1]:
            matrices = 2 if candidate.stage == "gate_up" else 1
            tiles = candidate.tile
            needed = 2 * tiles.block_k * max(tiles.stages - 1, 1) * (matrices * tiles.block_n + 16)
            assert needed <= TARGETS["RTX 4090"].shared_memory_bytes, str(candidate)


@pytest.mark.parametrize("quant", [name for name in QUANTS if name != "none"])
@pytest.mark.parametrize("tokens", [1, 8, 128, 512, 4096])
def test_packed_weights_have_tiles_of_their_own(quant, tokens):
    case = Case("qwen3_30b_a3b", *MODELS["qwen3_30b_a3b"], tokens=tokens, quant=quant)
    target = Target(227 * 1024, 9)
    heuristic = heuristic_of(case, target)
    found = candidates(case, heuristic, target.shared_memory_bytes, True)
    assert set(parts(heuristic)) <= set(found)
    assert len(found) == len(set(found))
    tiled = [candidate for candidate in found if candidate.block_m]
    assert {candidate.stage for candidate in tiled} == {"gate_up", "down"}
    assert all(candidate.tile.small_k % 128 == 0 and candidate.tile.swap for candidate in tiled)
    assert any(candidate.block_m == 0 for candidate in found) == isinstance(heuristic, FewTiles)
