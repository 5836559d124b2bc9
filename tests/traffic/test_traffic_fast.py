"""The closed form of the traffic of `fast` against counts in the interpreter, and against figures made by hand."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from modelled import ACTIVATIONS, METADATA, WEIGHTS

from tritonmoe_bench.experiments.traffic import rows as traffic
from tritonmoe_bench.experiments.traffic.launches import LAUNCHES, matched
from tritonmoe_bench.experiments.traffic.model_fast import chosen_tiles, fast_traffic, row_blocks
from tritonmoe_bench.experiments.traffic.model_paper import Bytes, total
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.routing import draw_routing
from tritonmoe_bench.kernels.fast.blocks import launch_routing
from tritonmoe_bench.kernels.fast.tile_types import (
    HEIGHTS,
    FastTile,
    FastTiles,
    FewTile,
    FewTiles,
    JoinedTile,
    JoinedTiles,
)
from tritonmoe_bench.kernels.gating import Gating
from tritonmoe_bench.kernels.paper.tiles import GROUP_M

interpreted = pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="counts in the interpreter")


def tiled(block_m, block_n=64, swap=False, bulk=False, dynamic=True):
    gate_up = FastTile(block_n, 64, 4, 2, 64 if bulk else 32, 2, swap, swap, bulk)
    return FastTiles(block_m, gate_up, FastTile(2 * block_n, 64, 4, 2, 64, 2, swap, swap, bulk), dynamic)


FEW = FewTiles(FewTile(32, 64, 4), FewTile(16, 128, 4))
TINY = Case("tiny", 8, 2, 128, 256, tokens=40)
MIXTRAL = Case("mixtral", 8, 2, 4096, 14336, tokens=512)
DEEPSEEK = Case("deepseek_v3", 256, 8, 7168, 2048, tokens=512)
COUNTED = {
    "few_one_token": (Case("tiny", 8, 2, 128, 256, tokens=1), FEW),
    "few_that_share_an_expert": (Case("odd", 3, 2, 72, 90, tokens=5, skew=3.0), FEW),
    "few_fp16_nothing_divides": (Case("odd", 5, 3, 100, 77, tokens=2, dtype="fp16"), FEW),
    "one_token": (Case("tiny", 8, 2, 128, 256, tokens=1), tiled(16)),
    "two_tokens_two_experts_a_program": (Case("odd", 130, 2, 136, 64, tokens=2), tiled(64)),
    "split_logits": (Case("odd", 8, 2, 1100, 64, tokens=5), tiled(64, 128)),
    "split_logits_of_many": (Case("odd", 40, 1, 640, 32, tokens=70, skew=0.5), tiled(32)),
    "tails": (Case("odd", 4, 4, 64, 96, tokens=70, skew=1.0), tiled(160, swap=True)),
    "side_by_side": (Case("odd", 3, 2, 64, 64, tokens=125, skew=2.0), tiled(16)),
    "more_than_a_group": (Case("odd", 2, 1, 64, 64, tokens=310, skew=8.0), tiled(16)),
    "torch_logits": (Case("odd", 6, 2, 72, 88, tokens=130, skew=1.5, dtype="fp16"), tiled(192, swap=True)),
    "bulk": (Case("odd", 5, 1, 72, 88, tokens=40, skew=1.0), tiled(64, swap=True, bulk=True)),
    "bulk_and_idle_experts": (Case("odd", 6, 1, 72, 88, tokens=3), tiled(16, bulk=True)),
    "fixed_height": (Case("odd", 4, 2, 100, 35, tokens=40, skew=0.7), tiled(32, dynamic=False)),
    "one_grid": (Case("odd", 6, 2, 100, 88, tokens=40, skew=0.7), replace(tiled(16), one_grid=True)),
    "one_grid_side_by_side": (
        Case("odd", 3, 2, 64, 64, tokens=125, skew=2.0, dtype="fp16"),
        replace(tiled(16, swap=True), one_grid=True),
    ),
    "own_gating": (Case("odd", 64, 8, 136, 40, tokens=40, gating="deepseek_v3"), tiled(64)),
}


FP8 = {
    "tails": (Case("odd", 4, 2, 256, 384, tokens=70, skew=1.0, quant="fp8_block"), 160),
    "one_token": (Case("tiny", 8, 2, 128, 256, tokens=1, quant="fp8_block"), 16),
    "torch_logits": (Case("odd", 6, 2, 384, 128, tokens=130, skew=1.5, quant="fp8_block"), 64),
}


def fp8_tiled(block_m, block_n=128, step=128, one_grid=False):
    tile = FastTile(block_n, step, 4, 1, step, 1, True, True)
    return FastTiles(block_m, tile, FastTile(64, step, 4, 1, step, 1, True, True), one_grid=one_grid)


@interpreted
@pytest.mark.parametrize(
    ("activations", "block_n", "step", "one_grid"),
    [("a8", 128, 128, False), ("a8", 128, 256, False), ("a8", 128, 128, True), ("a16", 64, 256, False)],
)
@pytest.mark.parametrize("name", FP8)
def test_model_of_fp8_weights_agrees_with_the_count_to_the_byte(name, activations, block_n, step, one_grid):
    case, block_m = FP8[name]
    tiles = fp8_tiled(block_m, block_n, step, one_grid)
    modelled = fast_traffic(case, draw_routing(case).counts, tiles, on_gpu=False, activations=activations)
    assert modelled == traffic.counted_traffic(case, "fast", tiles, activations)
    assert (("quantize", "rows") in modelled) == (activations == "a8")


@interpreted
@pytest.mark.parametrize("tiles", [FEW, FewTiles(FewTile(8, 512, 2), FewTile(8, 256, 2)),
                                   FewTiles(FewTile(8, 128, 2, 3), FewTile(8, 128, 2))], ids=str)  # fmt: skip
@pytest.mark.parametrize("tokens", [1, 3])
def test_model_of_fp8_weights_agrees_on_the_output_centric_path(tokens, tiles):
    case = Case("tiny", 4, 2, 384, 256, tokens=tokens, quant="fp8_block")
    modelled = fast_traffic(case, draw_routing(case).counts, tiles, on_gpu=False)
    assert modelled == traffic.counted_traffic(case, "fast", tiles)


JOINED = {
    "none": JoinedTiles(JoinedTile(32, 64, 2), JoinedTile(64, 128, 2)),
    "none split": JoinedTiles(JoinedTile(32, 64, 2), JoinedTile(64, 32, 2), splits=3),
    "fp8_block": JoinedTiles(JoinedTile(128, 128, 2), JoinedTile(64, 256, 2)),
    "mxfp4": JoinedTiles(JoinedTile(64, 128, 2), JoinedTile(128, 256, 2)),
    "int4": JoinedTiles(JoinedTile(32, 256, 2), JoinedTile(128, 128, 2)),
}


@interpreted
@pytest.mark.parametrize("kind", JOINED)
@pytest.mark.parametrize(("experts", "top_k", "tokens", "dtype"), [(16, 3, 5, "bf16"), (5, 2, 20, "fp16")])
def test_model_of_the_joined_path_agrees_with_the_count_to_the_byte(kind, experts, top_k, tokens, dtype):
    """By slot, of which there are fewer than experts, and by expert."""
    quant = kind.split()[0]
    shape = (160, 96) if quant == "none" else (288, 96) if quant == "mxfp4" else (256, 384)
    case = Case("odd", experts, top_k, *shape, tokens=tokens, skew=1.0, quant=quant, dtype=dtype)
    modelled = fast_traffic(case, draw_routing(case).counts, JOINED[kind], on_gpu=False)
    counted = traffic.counted_traffic(case, "fast", JOINED[kind])
    differing = {key for key in {*modelled, *counted} if modelled.get(key) != counted.get(key)}
    assert not differing, {key: (modelled.get(key), counted.get(key)) for key in differing}


def test_fp8_weights_by_hand():
    # Experts 0 and 2 have 65 and 7 slots, in 2 + 1 blocks; every weight row of a block loads its own scale.
    case = Case("hand", 4, 1, 128, 256, tokens=72, quant="fp8_block")
    table = fast_traffic(case, [65, 0, 7, 0], fp8_tiled(64))
    row, one = 128 + 4, 256 * 128
    assert table["quantize", "x"] == Bytes(read=72 * 256, unique_read=72 * 256)
    assert table["quantize", "rows"] == Bytes(write=72 * row, unique_write=72 * row)
    assert table["gate_up", "rows"] == Bytes(read=2 * 72 * row, unique_read=72 * row)
    assert table["gate_up", "intermediate"] == Bytes(write=72 * 2 * row, unique_write=72 * 2 * row)
    assert table["down", "down_weights"] == Bytes(read=3 * (one + 128 * 2 * 4), unique_read=2 * (one + 2 * 4))


@pytest.mark.parametrize("tokens", [1, 32, 512])
def test_compulsory_bytes_of_fp8_weights(tokens):
    case = Case("deepseek_v3", 256, 8, 7168, 2048, tokens=tokens, quant="fp8_block")
    routing = draw_routing(case)
    table = fast_traffic(case, routing.counts, chosen_tiles(case))
    ends = 2 * tokens * case.hidden_dim * 2
    assert total(table, WEIGHTS).unique_read + ends == case.min_bytes(routing.active_experts)
    assert all(seen.read >= seen.unique_read and seen.write >= seen.unique_write for seen in table.values())


W4 = {
    "one_token": (Case("tiny", 8, 2, 128, 256, tokens=1, quant="mxfp4"), 16),
    "no_whole_blocks": (Case("odd", 4, 2, 288, 96, tokens=70, skew=1.0, quant="mxfp4"), 64),
    "rows_that_cannot_be_prepared": (Case("odd", 3, 1, 160, 36 * 8, tokens=9, quant="mxfp4"), 16),
    "int4": (Case("odd", 4, 2, 256, 384, tokens=70, skew=1.0, quant="int4"), 64),
    "int4_fp16_torch_logits": (Case("odd", 6, 2, 384, 128, tokens=130, skew=1.5, dtype="fp16", quant="int4"), 16),
    "groups_of_32": (Case("odd", 3, 2, 160, 192, tokens=40, quant="int4_g32"), 32),
}


def w4_tiled(block_m, block_n=64, steps=(128, 128)):
    """steps: of blocks of many rows, and of few."""
    tile = FastTile(block_n, steps[0], 4, 1, steps[1], 1, True, True)
    return FastTiles(block_m, tile, FastTile(2 * block_n, steps[0], 4, 1, steps[1], 1, True, True))


@interpreted
@pytest.mark.parametrize("steps", [(128, 128), (256, 256), (256, 128)])
@pytest.mark.parametrize("name", W4)
def test_model_of_weights_of_four_bits_agrees_with_the_count_to_the_byte(name, steps):
    case, block_m = W4[name]
    tiles = w4_tiled(block_m, steps=steps)
    modelled = fast_traffic(case, draw_routing(case).counts, tiles, on_gpu=False)
    counted = traffic.counted_traffic(case, "fast", tiles)
    differing = {key for key in {*modelled, *counted} if modelled.get(key) != counted.get(key)}
    assert not differing, {key: (modelled.get(key), counted.get(key)) for key in differing}


@interpreted
@pytest.mark.parametrize(
    "tiles",
    [FewTiles(FewTile(16, 128, 4), FewTile(32, 256, 4)), FewTiles(FewTile(8, 512, 4), FewTile(8, 2048, 16))],
    ids=str,
)
@pytest.mark.parametrize("quant", ["mxfp4", "int4", "int4_g32"])
def test_model_of_weights_of_four_bits_agrees_on_the_output_centric_path(quant, tiles):
    for shape in ((4, 2, 256, 128), (4, 2, 384, 256)) if quant == "int4" else ((4, 2, 288, 96), (3, 1, 160, 352)):
        case = Case("odd", *shape, tokens=2, skew=1.0, quant=quant)
        modelled = fast_traffic(case, draw_routing(case).counts, tiles, on_gpu=False)
        counted = traffic.counted_traffic(case, "fast", tiles)
        differing = {key for key in {*modelled, *counted} if modelled.get(key) != counted.get(key)}
        assert not differing, {key: (modelled.get(key), counted.get(key)) for key in differing}


def test_weights_of_four_bits_by_hand():
    # Experts 0 and 2 have 65 and 7 slots, in 2 + 1 blocks. Of 288 columns of x, 384 are kept; so are their scales.
    case = Case("hand", 4, 1, 288, 256, tokens=72, quant="mxfp4")
    table = fast_traffic(case, [65, 0, 7, 0], w4_tiled(64))
    row, inward, back = 384 * 2, 256 * (288 // 2 + 384 // 32), 288 * (256 // 2 + 256 // 32)
    assert table["reorder", "x"] == Bytes(read=72 * 288 * 2, unique_read=72 * 288 * 2)
    assert table["reorder", "rows"] == Bytes(write=72 * row, unique_write=72 * row)
    assert table["gate_up", "rows"] == Bytes(read=4 * 72 * row, unique_read=72 * row)
    assert table["gate_up", "gate_up_weights"] == Bytes(read=3 * 2 * inward, unique_read=2 * 2 * inward)
    assert table["down", "down_weights"] == Bytes(read=3 * back, unique_read=2 * back)
    # int4 has a scale of 16 bits per 128 columns, which is there twice in prepared weights.
    case = Case("hand", 4, 1, 256, 384, tokens=72, quant="int4")
    table = fast_traffic(case, [65, 0, 7, 0], w4_tiled(64))
    assert table["down", "down_weights"].unique_read == 2 * 256 * (384 // 2 + 2 * 384 // 64)


@pytest.mark.parametrize("shape", [(384, 8, 7168, 2048, "int4_g32"), (32, 4, 3072, 2944, "mxfp4")], ids=str)
@pytest.mark.parametrize("tokens", [1, 32, 512])
def test_compulsory_bytes_of_weights_of_four_bits(shape, tokens):
    experts, top_k, hidden, ffn, quant = shape
    case = Case("made_up", experts, top_k, hidden, ffn, tokens=tokens, quant=quant)
    routing = draw_routing(case)
    table = fast_traffic(case, routing.counts, chosen_tiles(case))
    ends = 2 * tokens * case.hidden_dim * 2
    assert total(table, WEIGHTS).unique_read + ends == case.min_bytes(routing.active_experts)


def test_formats_without_a_closed_form_say_so(monkeypatch):
    monkeypatch.setattr(traffic, "MODELLED_FORMATS", ("none", "fp8_block"))
    case = Case("tiny", 8, 2, 128, 256, tokens=8, quant="mxfp4")
    (row,) = traffic.traffic_rows(case, "fast", "model")
    assert row["status"] == "unsupported"
    assert row["reason"] == "the closed form knows weights of none, fp8_block; study=counters measures any format"


@interpreted
@pytest.mark.parametrize("name", COUNTED)
def test_model_agrees_with_the_count_to_the_byte(name):
    case, tiles = COUNTED[name]
    modelled = fast_traffic(case, draw_routing(case).counts, tiles, on_gpu=False)
    counted = traffic.counted_traffic(case, "fast", tiles)
    differing = {key for key in {*modelled, *counted} if modelled.get(key) != counted.get(key)}
    assert not differing, {key: (modelled.get(key), counted.get(key)) for key in differing}


@interpreted
@pytest.mark.parametrize("block_m", HEIGHTS)
def test_row_blocks_are_those_of_the_schedule(block_m):
    experts = torch.tensor([0] * (block_m + 1) + [2] * 7 + [3] * block_m + [5] * (GROUP_M * 16 + 1))
    logits = torch.nn.functional.one_hot(experts, 6).float()[None]
    table = launch_routing(logits, 1, Gating(), None, block_m).table
    used = table[:, table[2] > 0]
    blocks = row_blocks(torch.bincount(experts, minlength=6).numpy(), block_m)
    assert [(block.expert, block.rows, block.neighbours) for block in blocks] == [
        (int(expert), int(rows), int(neighbours)) for expert, _, rows, _, neighbours in used.T
    ]


def test_by_hand():
    # Experts 0 and 2 of 4 have 65 and 7 slots, in 2 + 1 blocks: the first two of them on one weight tile.
    case = Case("hand", 4, 1, 128, 256, tokens=72)
    tiles = FastTiles(64, FastTile(64, 64, 4, 1, 64, 1), FastTile(128, 64, 4, 1, 64, 1))
    table = fast_traffic(case, [65, 0, 7, 0], tiles)
    rows, one = 72 * 128 * 2, 256 * 128 * 2
    assert table["gate_up", "x"] == Bytes(read=4 * rows, unique_read=rows)
    assert table["gate_up", "gate_up_weights"] == Bytes(read=3 * 2 * one, unique_read=2 * 2 * one)
    assert table["down", "down_weights"] == Bytes(read=3 * one, unique_read=2 * one)
    assert table["down", "expert_out"] == Bytes(write=rows, unique_write=rows)
    assert table["combine", "output"] == Bytes(write=rows, unique_write=rows)
    # Room for 4 + 1 blocks of 5 entries; 4 columns look them up, two blocks find their neighbours by 2 more; the order.
    assert table["gate_up", "schedule"] == Bytes(read=4 * (4 * (25 + 2 * 2) + 4 * 72), unique_read=4 * (25 + 72))
    few = fast_traffic(case, [65, 0, 7, 0], FEW)
    assert few["gate_up", "gate_up_weights"] == Bytes(read=72 * 2 * one, unique_read=2 * 2 * one)
    assert few["down", "output"] == Bytes(write=rows, unique_write=rows)
    assert not {tensor for _, tensor in few} & {"schedule", "expert_out"}


@pytest.mark.parametrize(("tokens", "on_gpu", "programs"), [(32, True, 16), (33, True, 2), (32, False, 1)])
def test_each_program_of_the_combine_reads_the_weights(tokens, on_gpu, programs):
    case = Case("hand", 4, 1, 2048, 256, tokens=tokens)
    tiles = FastTiles(64, FastTile(64, 64, 4, 1, 64, 1), FastTile(128, 64, 4, 1, 64, 1))
    table = fast_traffic(case, [tokens, 0, 0, 0], tiles, on_gpu=on_gpu)
    assert table["combine", "topk_scores"] == Bytes(read=programs * 4 * tokens, unique_read=4 * tokens)


@pytest.mark.parametrize("tokens", [1, 8, 512, 4096])
@pytest.mark.parametrize("shape", [MIXTRAL, DEEPSEEK], ids=str)
def test_the_ends_and_active_weights_are_the_compulsory_bytes(shape, tokens):
    case = Case(shape.model, shape.num_experts, shape.top_k, shape.hidden_dim, shape.ffn_dim, tokens)
    routing = draw_routing(case)
    table = fast_traffic(case, routing.counts, chosen_tiles(case))
    ends = table["router", "x"].unique_read + sum(seen.unique_write for (_, name), seen in table.items()
                                                  if name == "output")  # fmt: skip
    assert total(table, WEIGHTS).unique_read + ends == case.min_bytes(routing.active_experts)
    assert {tensor for _, tensor in table} <= {*WEIGHTS, *ACTIVATIONS, *METADATA}
    assert all(seen.read >= seen.unique_read and seen.write >= seen.unique_write for seen in table.values())


def test_a_taller_block_reads_the_weights_less_often():
    counts = draw_routing(MIXTRAL).counts
    issued = [total(fast_traffic(MIXTRAL, counts, tiled(block_m)), WEIGHTS).read for block_m in (16, 64, 192)]
    assert issued == sorted(issued, reverse=True)
    fused = traffic.modelled_traffic(MIXTRAL, "paper_fused", counts, traffic.TILES)
    chosen = traffic.modelled_traffic(MIXTRAL, "fast", counts, chosen_tiles(MIXTRAL))
    assert total(chosen, WEIGHTS).read < total(fused, WEIGHTS).read


def test_a_token_or_two_take_the_output_centric_path():
    assert isinstance(chosen_tiles(Case("mixtral", 8, 2, 4096, 14336, tokens=1)), FewTiles)
    assert isinstance(chosen_tiles(MIXTRAL), FastTiles)


def test_counts_must_be_the_cases():
    with pytest.raises(ValueError, match="8 numbers of slots that sum to 80"):
        fast_traffic(TINY, np.array([79, 0, 0, 0, 0, 0, 0, 0]), FEW)


@interpreted
@pytest.mark.parametrize("tokens", [1, 40])
def test_both_methods_give_the_same_rows_on_the_tiny_shape(tokens):
    case = Case("tiny", 8, 2, 128, 256, tokens=tokens)
    model, counted = (
        sorted(({**row, "method": ""} for row in traffic.traffic_rows(case, "fast", method)),
               key=lambda row: (row["stage"], row["tensor"]))
        for method in ("model", "interpreter")
    )  # fmt: skip
    assert model == counted
    assert {row["config"] for row in model} == {str(chosen_tiles(case))}
    assert all(row["status"] == "ok" for row in model)


def test_every_sequence_of_launches_is_told_apart():
    sequences = LAUNCHES["fast"]
    names = {tuple(known.kernel for known in sequence) for sequence in sequences}
    assert len(names) == len(sequences) == 33
    for sequence in sequences:
        launched = ["nvjet_gemm", *(known.kernel for known in sequence), "copy"]
        assert matched("fast", launched) == sequence
        assert matched("fast", launched[:-2]) is None
    assert matched("vllm", ["_top_k_kernel"]) is None
