"""What only one vendor has, on both sides of its switch, by whole forwards in Triton's interpreter: programmatic
dependent launch, and bulk copies of the weights."""

from dataclasses import replace

import pytest
import torch
from fast_cases import SMALL_FEW, SMALL_JOINED, make_tiles
from moe_cases import make_layer

from tritonmoe_bench.kernels import pdl
from tritonmoe_bench.kernels.target import INTERPRETER, Target

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is on one side of the switch; see test_fast_gpu"
)
PATHS = {"tiles": make_tiles(64, swap=True), "few": SMALL_FEW, "joined": SMALL_JOINED}


@pytest.fixture
def events(monkeypatch):
    """What programs ask of the GPU's queue, in their order, where the interpreter has no such instructions."""
    told = []
    for name in ("gdc_wait", "gdc_launch_dependents"):
        monkeypatch.setattr(pdl.cuda, name, lambda name=name, _semantic=None: told.append(name))
    return told


def forward(monkeypatch, target, path, device):
    monkeypatch.setattr(pdl, "target_of", lambda device: target)
    layer = make_layer(device, tokens=9, experts=6, top_k=2, hidden=72, ffn=40)
    return layer.assert_fast_right(tiles=PATHS[path])


@pytest.mark.parametrize("path", PATHS)
def test_with_dependent_launch_every_program_waits_and_then_releases(path, device, events, monkeypatch):
    without = forward(monkeypatch, INTERPRETER, path, device)
    assert not events
    with_it = forward(monkeypatch, Target(0, 9), path, device)
    assert events[::2] == ["gdc_wait"] * (len(events) // 2)
    assert events[1::2] == ["gdc_launch_dependents"] * (len(events) // 2)
    assert len(events) >= 20
    assert torch.equal(with_it, without)


@pytest.mark.parametrize("swap", [False, True], ids=["rows_left", "weights_left"])
def test_bulk_copies_and_pointers_give_the_same(swap, device):
    layer = make_layer(device, tokens=40, experts=6, top_k=2, hidden=72, ffn=40)
    by_bulk = make_tiles(64, swap, bulk=True)
    gate_up, down = (replace(tile, bulk=False) for tile in (by_bulk.gate_up, by_bulk.down))
    by_pointers = replace(by_bulk, gate_up=gate_up, down=down)
    assert torch.equal(layer.assert_fast_right(tiles=by_bulk), layer.assert_fast_right(tiles=by_pointers))
