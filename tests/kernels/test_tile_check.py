"""Every tile that is chosen, tuned or tried passes the check of tiles against the format of the weights; and what a
tile may be at all. Nothing is launched here; test_fast_errors.py has the calls that the check refuses."""

import itertools
from dataclasses import replace

import pytest
import torch

from tritonmoe_bench.experiments.tuning.plan import heuristic_of
from tritonmoe_bench.experiments.tuning.space import MUCH_SHARED, candidates, heights, whole
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.config import load_model, model_names
from tritonmoe_bench.kernels.fast import choose, tuned
from tritonmoe_bench.kernels.fast.choose import choose_tiles, heuristic_tiles, invariant_tiles, row_block_tiles
from tritonmoe_bench.kernels.fast.choose_packed import W4_JOINED, default_activations, format_tiles, scheduled_tiles
from tritonmoe_bench.kernels.fast.tile_check import check_format
from tritonmoe_bench.kernels.fast.tile_types import FastTile, FastTiles, FewTile, FewTiles, JoinedTile, JoinedTiles
from tritonmoe_bench.kernels.fast.tiled import TILE
from tritonmoe_bench.kernels.formats import formats
from tritonmoe_bench.kernels.formats.fp8_block import Fp8Block
from tritonmoe_bench.kernels.target import INTERPRETER, Target

KIB = 1024
TARGETS = {
    "A100": Target(163 * KIB, 8),
    "H200": Target(227 * KIB, 9),
    "B200": Target(227 * KIB, 10),
    "RTX 5090": Target(99 * KIB, 12),
    "MI300X": Target(64 * KIB, 0),
    "MI350X": Target(160 * KIB, 0),
    "interpreter": INTERPRETER,
}
TOKENS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 128, 256, 512, 2048, 8192)
MODELS = [load_model(name) for name in model_names()]
SHAPES = sorted(
    (model.num_experts, model.top_k, model.hidden_dim, model.ffn_dim // parts)
    for model, parts in itertools.product(MODELS, (1, 2, 4, 8))
    if parts == 1 or model.ffn_dim % (parts * TILE) == 0
)
"""Whole layers, and one GPU's share of them."""
KINDS = {"none": None, **formats()}


def bits(kind, target, asked, tiles):
    """What a call multiplies with by these tiles."""
    if kind is None or (asked is None and isinstance(tiles, FewTiles)):
        return "a16"
    return asked or default_activations(kind, target)


def holds(kind, hidden, ffn):
    try:
        kind.check(ffn, hidden)
        kind.check(hidden, ffn)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_all_that_is_chosen_for_weights_of_16_bits(target, monkeypatch):
    found = {
        tiles
        for shape, tokens in itertools.product(SHAPES, TOKENS)
        for tiles in (heuristic_tiles(target, *shape, tokens), row_block_tiles(target, *shape, tokens))
    }
    for tiles in found:
        check_format(tiles, None)
    monkeypatch.setattr(choose, "target_of", lambda device: target)
    monkeypatch.setattr(choose, "tuned_tiles", lambda *_: None)
    device = torch.device("cpu" if target == INTERPRETER else "cuda")
    whole_tiles = [shape for shape in SHAPES if shape[2] % TILE == 0 and shape[3] % TILE == 0]
    for shape in whole_tiles:
        check_format(invariant_tiles(device, shape), None, in_tiles=True)
        for tokens in TOKENS:
            check_format(choose_tiles(device, *shape, tokens, in_tiles=True), None, in_tiles=True)


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("kind", formats().values(), ids=list(formats()))
def test_all_that_is_chosen_for_packed_weights(kind, target):
    four_bits_a8 = target in (INTERPRETER, TARGETS["H200"]) and kind.name in ("mxfp4", "int4")
    a8 = target.has_fp8 or target == INTERPRETER if kind is Fp8Block else four_bits_a8
    found = set()
    for shape in (shape for shape in SHAPES if holds(kind, *shape[2:])):
        for tokens, asked in itertools.product(TOKENS, (None, "a16", *(["a8"] if a8 else []))):
            tiles = format_tiles(kind, target, shape, tokens, asked)
            found.add((tiles, bits(kind, target, asked, tiles)))
            if isinstance(tiles, FewTiles) and kind is not Fp8Block:
                found.add((W4_JOINED, "a16"))
            if asked is None:
                scheduled = scheduled_tiles(kind, target, shape, tokens)
                found.add((scheduled, bits(kind, target, None, scheduled)))
    assert found
    for tiles, activations in found:
        check_format(tiles, kind, activations)


@pytest.mark.parametrize("file", sorted(tuned.FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_all_of_the_tuned_tables(file):
    assert file.stem == "nvidia-h200", "add the target of this GPU"
    for (quant, *_), entries in tuned.load(file).items():
        for tiles in filter(None, entries.values()):
            check_format(tiles, KINDS[quant], bits(KINDS[quant], TARGETS["H200"], None, tiles))


@pytest.mark.parametrize("target", [TARGETS["A100"], TARGETS["H200"]], ids=["A100", "H200"])
@pytest.mark.parametrize("quant", KINDS)
def test_all_that_tuning_tries(quant, target):
    kind = KINDS[quant]
    tried = set()
    for shape in (shape for shape in SHAPES if kind is None or holds(kind, *shape[2:])):
        for tokens in TOKENS:
            case = Case("any", *shape, tokens=tokens, quant=quant)
            heuristic = heuristic_of(case, target)
            for shared in (target.shared_memory_bytes, MUCH_SHARED):
                found = candidates(case, heuristic, shared, target.has_bulk_copies)
                for block_m in (0, *heights(found)):
                    mine = [one for one in found if one.block_m == block_m]
                    of = [[one for one in mine if one.stage.endswith(stage)] for stage in ("gate_up", "down")]
                    tried |= {whole(*pair, one_grid=kind is None) for pair in itertools.product(*of)}
    assert tried
    for tiles in tried:
        check_format(tiles, kind, bits(kind, target, None, tiles))


FAST = FastTile(64, 64, 4, 2, 64, 2)
FEW = FewTile(8, 512, 4)
JOINED = JoinedTile(64, 128, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(FAST, block_n=48), "block_n=48: a power of two is needed"),
        (lambda: replace(FAST, block_k=96), "block_k=96: a power of two is needed"),
        (lambda: replace(FAST, small_k=0), "small_k=0: a whole number above 0 is needed"),
        (lambda: replace(FAST, num_warps=3), "num_warps=3: a power of two is needed"),
        (lambda: replace(FAST, stages=0), "stages=0: a whole number above 0 is needed"),
        (lambda: replace(FAST, stages=2.0), "stages=2.0: a whole number above 0 is needed"),
        (lambda: replace(FAST, swap=1), "swap=1: true or false is needed"),
        (lambda: replace(FEW, block_n=-8), "block_n=-8: a whole number above 0 is needed"),
        (lambda: replace(FEW, step=500), "step=500: a power of two is needed"),
        (lambda: replace(FEW, stages=0), "stages=0: a whole number above 0 is needed"),
        (lambda: replace(JOINED, step=100), "step=100: a power of two is needed"),
        (lambda: JoinedTiles(JOINED, JOINED, splits=0), "splits=0: a whole number above 0 is needed"),
        (lambda: JoinedTiles(JOINED, JOINED, splits=-1), "splits=-1: a whole number above 0 is needed"),
        (lambda: JoinedTiles(JOINED, JOINED, num_warps=6), "num_warps=6: a power of two is needed"),
        (lambda: FastTiles(64, FAST, FAST, dynamic=None), "dynamic=None: true or false is needed"),
        (lambda: FastTiles(64.0, FAST, FAST), "block_m=64.0: a whole number above 0 is needed"),
    ],
)
def test_numbers_that_no_tile_has(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
