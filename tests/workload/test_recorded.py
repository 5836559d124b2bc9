"""Recorded routing: the file, its names, and the cases that take their routing from it."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from tritonmoe_bench.experiments.sweeping.plan import make_plan
from tritonmoe_bench.experiments.workload import recorded
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.config import ModelConfig, PlanError, SweepConfig, load, load_model
from tritonmoe_bench.experiments.workload.recorded import Recorded
from tritonmoe_bench.experiments.workload.reference import route
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights

EXPERTS, TOP_K, TOKENS = 8, 2, 24


def recording(weighted=False, **changes):
    rng = np.random.default_rng(0)
    ids = np.stack([[rng.permutation(EXPERTS)[:TOP_K] for _ in range(TOKENS)] for _ in range(3)])
    weights = np.sort(rng.random(ids.shape), axis=2)[:, :, ::-1] / 2 if weighted else None
    return Recorded(**{"ids": ids, "layers": np.array([0, 5, 9]), "num_experts": EXPERTS, "about": "made up",
                       "weights": weights} | changes)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    recording().write(tmp_path / "made.npz")
    return tmp_path / "made.npz"


def case(name, **changes):
    return Case(**{"model": "t", "num_experts": EXPERTS, "top_k": TOP_K, "hidden_dim": 64, "ffn_dim": 32, "tokens": 6,
                   "routing": name} | changes)  # fmt: skip


def plan(**changes):
    keys = {"model": load_model("tiny"), "tokens": [4], "study": load("study", "adhoc")}
    return make_plan(SweepConfig(**keys | changes), ["fast"])


@pytest.mark.parametrize("weighted", [False, True])
def test_a_file_gives_back_what_was_written(tmp_path, weighted):
    written = recording(weighted)
    written.write(tmp_path / "r.npz")
    read = recorded.read(tmp_path / "r.npz")
    assert (read.ids == written.ids).all()
    assert read.ids.dtype == np.int32
    assert (read.layers == written.layers).all()
    assert (read.num_experts, read.about) == (EXPERTS, "made up")
    assert (read.weights is not None) == weighted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.zeros((2, 3), np.int32)}, "ids must be whole numbers"),
        ({"ids": np.zeros((3, 2, 1), np.float32)}, "ids must be whole numbers"),
        ({"layers": np.array([0, 5])}, "layers must be 3 different numbers"),
        ({"layers": np.array([0, 5, 5])}, "layers must be 3 different numbers"),
        ({"num_experts": 7}, r"ids lie in 0\.\.7: allowed are 0\.\.6"),
        ({"ids": np.zeros((3, 4, 2), np.int32)}, "an expert twice"),
        ({"weights": np.full((3, TOKENS, TOP_K), -1.0)}, "weights must be numbers of at least 0"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        recording(**changes)


def test_a_name_is_spelled_out_to_layers_with_a_digest(path):
    names = recorded.spelled_out(str(path))
    assert [name.split(":")[1] for name in names] == ["0", "5", "9"]
    assert recorded.spelled_out(f"{path}:5") == [names[1]]
    assert recorded.spelled_out(names[1]) == [names[1]]
    assert recorded.spelled_out("drawn") == ["drawn"]
    for wrong, message in (
        (f"{path}:7", "recorded layers are 0, 5, 9"),
        (f"{path}:x", "give <file> or <file>:<layer>"),
        ("no_such", "cannot read .*no_such.npz .*allowed are drawn, "),
    ):
        with pytest.raises(ValueError, match=message):
            recorded.spelled_out(wrong)
    recording(about="other").write(path)
    with pytest.raises(ValueError, match="the file has changed"):
        recorded.spelled_out(names[1])
    path.write_text("no recording", encoding="utf-8")
    with pytest.raises(ValueError, match="is no recording"):
        recorded.spelled_out(str(path))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gating", ["softmax", "softmax_renorm", "sigmoid"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_any_router_finds_the_recorded_experts(tmp_path, weighted, gating, dtype):
    written = recording(weighted)
    written.write(tmp_path / "r.npz")
    name = recorded.spelled_out(f"{tmp_path / 'r.npz'}:5")[0]
    for seed in (0, 1):
        one = case(name, gating=gating, dtype=dtype, seed=seed)
        routing = draw_routing(one)
        logits = activations(one, routing, "cpu") @ Weights(one, "cpu").router().T
        given = written.ids[1, 6 * seed : 6 * seed + 6]
        weights, found = route(logits, TOP_K, one.gate)
        assert (np.sort(found.numpy()) == np.sort(given)).all()
        assert (routing.counts == np.bincount(given.ravel(), minlength=EXPERTS)).all()
        assert (np.sort(routing.experts) == np.sort(given)).all()
    if weighted and gating == "softmax_renorm":
        own = torch.from_numpy(np.take_along_axis(written.weights[1, 6:12], np.argsort(given), 1))
        close = torch.gather(weights, 1, torch.from_numpy(np.argsort(found.numpy()))).float()
        torch.testing.assert_close(close, (own / own.sum(1, keepdim=True)).float(), atol=0.02, rtol=0.05)


def test_drawn_routing_keeps_its_hash_and_each_layer_has_its_own(path):
    old = {name: value for name, value in asdict(case("drawn")).items() if name != "routing"}
    assert case("drawn").case_hash == Case(**old).case_hash == "709cd4e82a33324e"
    names = ["drawn", *recorded.spelled_out(str(path))]
    assert len({case(name).case_hash for name in names}) == 4


def test_a_recording_that_does_not_fit_is_one_clear_line(path):
    for changes, message in (
        ({"num_experts": 16}, "recorded of 8 experts and top_k=2, the layer has 16 and 2"),
        ({"top_k": 3}, "the layer has 8 and 3"),
        ({"tokens": 25}, "24 tokens were recorded, not tokens=25"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_routing(case(f"{path}:0", **changes))
    with pytest.raises(ValueError, match="leave skew at 0"):
        case(f"{path}:0", skew=1.2)


def test_a_sweep_runs_every_layer_of_a_file_beside_drawn_routing(path):
    cases = plan(tokens=[1, 4], routing=["drawn", str(path)]).cases
    assert len(cases) == 2 * 4
    assert {case.routing for case in cases} == {"drawn", *recorded.spelled_out(str(path))}
    for changes, message in (
        ({"routing": str(path), "skew": 1.2}, "leave skew at 0"),
        ({"routing": f"{path}:3"}, "recorded layers are 0, 5, 9"),
        ({"routing": str(path), "tokens": 25}, "24 tokens were recorded"),
        ({"routing": str(path), "model": load_model("mixtral_8x22b"), "ep": 2}, "recorded of 8 experts and top_k=2"),
    ):
        with pytest.raises(PlanError, match=message):
            plan(**changes)


@pytest.mark.parametrize("name", recorded.names())
def test_every_committed_recording_is_small_and_can_be_swept(name):
    file = recorded.FOLDER / f"{name}.npz"
    assert file.stat().st_size < 100_000
    held = recorded.read(file)
    assert held.about
    assert len(held.layers) > 1
    assert [case.routing for case in plan(model=_like(held), tokens=32, routing=name).cases] == [
        f"{name}:{layer}:{recorded.spelled_out(name)[0].rpartition(':')[2]}" for layer in held.layers
    ]


def _like(held):
    """A layer that a recording fits."""
    return ModelConfig("like", held.num_experts, held.ids.shape[2], 256, 64)
