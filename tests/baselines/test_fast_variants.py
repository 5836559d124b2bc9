"""The ablations of `fast`: each makes the layer, forces what its name says, and runs only where it is named."""

from dataclasses import replace

import pytest
import torch

from tritonmoe_bench.baselines import fast_variants
from tritonmoe_bench.baselines.fast import Fast
from tritonmoe_bench.baselines.parts import own
from tritonmoe_bench.experiments.implementation import registry
from tritonmoe_bench.experiments.implementation.contract import Status
from tritonmoe_bench.experiments.sweeping.plan import make_plan
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.config import VARIANT, GridConfig, PlanError, StudyConfig, SweepConfig
from tritonmoe_bench.experiments.workload.reference import moe_forward, relative_error
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import target
from tritonmoe_bench.kernels.fast import choose, forward, gemm, known
from tritonmoe_bench.kernels.fast.choose import choose_tiles, row_block_tiles
from tritonmoe_bench.kernels.fast.tile_types import FastTile, FastTiles, FewTile, FewTiles, JoinedTile, JoinedTiles
from tritonmoe_bench.kernels.target import Target

NAMES = {
    "output_centric", "joined", "expert_centric", "gather", "permute", "dynamic", "fixed16", "fixed32", "fixed64",
    "fixed128",
}  # fmt: skip
VARIANTS = {name: item for name, item in registry.implementations().items() if name.startswith(VARIANT)}
H200 = Target(227 * 1024, 9)


def case(tokens, **changes) -> Case:
    shape = {"model": "small", "num_experts": 4, "top_k": 2, "hidden_dim": 32, "ffn_dim": 16, "skew": 1.2}
    return Case(tokens=tokens, **(shape | changes))


@pytest.fixture
def h200(monkeypatch):
    """Tiles are chosen as on an H200, which is not there."""

    class Properties:
        name = "NVIDIA H200"
        shared_memory_per_block_optin, shared_memory_per_block = H200.shared_memory_bytes, 48 * 1024

    monkeypatch.setattr(own, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(choose, "target_of", lambda device: H200)
    monkeypatch.setattr(target, "target_of", lambda device: H200)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: Properties.name)


def test_all_are_found_and_belong_to_a_family_of_their_own():
    assert {name.removeprefix(VARIANT) for name in VARIANTS} == NAMES
    assert {variant.family for variant in VARIANTS.values()} == {"fastvariant"}


@pytest.mark.parametrize("tokens", [2, 70])
@pytest.mark.parametrize("name", VARIANTS)
def test_each_makes_the_layer(name, tokens, device, monkeypatch):
    small = FewTiles(FewTile(16, 32, 2), FewTile(32, 16, 2))  # fewer programs, for the interpreter
    monkeypatch.setattr(choose, "few_tiles", lambda *_: small)
    point = case(tokens, gating="sigmoid_renorm")
    variant = VARIANTS[name]
    if variant.check(point).status is not Status.OK:
        assert (name.removeprefix(VARIANT) in ("output_centric", "joined"), tokens) == (True, 70)
        return
    weights = Weights(point, device)
    x = activations(point, draw_routing(point), device)
    arguments = (x, weights.router(), weights.expert, point.top_k, point.gate)
    exact, own = moe_forward(*arguments), moe_forward(*arguments, dtype=x.dtype)
    assert relative_error(variant.build(point, weights)(x), exact) <= 1.5 * relative_error(own, exact) + 1e-6


def test_gather_and_permute_run_the_gemms_on_the_same_tiles(device, monkeypatch):
    seen = []

    class Spy:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def launch(*arguments, **constants):
                order = arguments[4].tolist()
                seen.append((grid, order == sorted(order), constants.pop("TOP_K", None), constants))
                return self.kernel[grid](*arguments, **constants, **({"TOP_K": seen[-1][2]} if seen[-1][2] else {}))

            return launch

    for name in ("_gate_up_kernel", "_down_kernel"):
        monkeypatch.setattr(gemm, name, Spy(getattr(gemm, name)))
    point = case(9)
    weights = Weights(point, device)
    x = activations(point, draw_routing(point), device)
    y = VARIANTS["fastvariant_gather"].build(point, weights)(x)
    permuted = VARIANTS["fastvariant_permute"].build(point, weights)(x)
    assert torch.equal(y, permuted)
    (up, down), (up_permuted, down_permuted) = seen[:2], seen[2:]
    assert up[0] == up_permuted[0]
    assert up[3] == up_permuted[3]
    assert down[0] == down_permuted[0]
    assert down[3] == down_permuted[3]
    assert [entry[1] for entry in seen] == [False, False, True, False]
    assert (up[2], up_permuted[2]) == (2, 1)


def test_the_forced_path_is_taken(device, monkeypatch):
    paths = []
    for name in ("launch_few", "launch_gate_up"):
        real = getattr(forward, name)
        monkeypatch.setattr(forward, name, lambda *a, name=name, real=real: paths.append(name) or real(*a))
    point = case(1, ffn_dim=8)
    weights = Weights(point, device)
    x = activations(point, draw_routing(point), device)
    for name in ("output_centric", "expert_centric"):
        VARIANTS[VARIANT + name].build(point, weights)(x)
    assert paths == ["launch_few", "launch_gate_up"]


@pytest.mark.parametrize("tokens", [1, 32, 512])
@pytest.mark.parametrize("model", [(8, 2, 4096, 14336), (64, 4, 3584, 2560), (256, 8, 7168, 2048), (128, 8, 2048, 768)])
def test_on_an_h200_only_what_is_named_differs(model, tokens, h200):
    experts, top_k, hidden, ffn = model
    point = Case("m", experts, top_k, hidden, ffn, tokens)
    device = torch.device("cuda", 0)
    own = choose_tiles(device, *model, tokens)
    if isinstance(own, FewTiles | JoinedTiles):
        path = "output_centric" if isinstance(own, FewTiles) else "joined"
        assert VARIANTS[VARIANT + path].tiles(point) == own
        own = row_block_tiles(H200, *model, tokens)
    own = replace(own, one_grid=False)
    for name in ("expert_centric", "gather", "permute", "dynamic"):
        assert VARIANTS[VARIANT + name].tiles(point) == own
    assert isinstance(VARIANTS[VARIANT + "output_centric"].tiles(point), FewTiles)
    for height in (16, 32, 64, 128):
        fixed = VARIANTS[f"{VARIANT}fixed{height}"].tiles(point)
        assert (fixed.block_m, fixed.dynamic) == (height, False)
        for tile, dynamic, matrices in ((fixed.gate_up, own.gate_up, 2), (fixed.down, own.down, 1)):
            assert (tile.block_n, tile.block_k, tile.num_warps, tile.swap, tile.bulk) == (
                dynamic.block_n, dynamic.block_k, dynamic.num_warps, dynamic.swap, dynamic.bulk,
            )  # fmt: skip
            step = tile.small_k if height <= 32 else tile.block_k
            stages = tile.small_stages if height <= 32 else tile.stages
            assert stages * step * (height + matrices * tile.block_n) * 2 < H200.shared_memory_bytes


def test_fewer_loads_are_in_flight_only_where_they_do_not_fit(h200):
    tile = FastTile(64, 128, 4, 4, 128, 4, swap=True)
    assert fast_variants._fitting(tile, 64, 2) == tile
    assert fast_variants._fitting(tile, 128, 2).stages == 3
    assert fast_variants._fitting(FastTile(64, 64, 4, 4, 64, 4), 128, 2).stages == 4


def test_a_study_runs_them_only_where_it_names_them():
    known = list(registry.implementations())

    def planned(of_study=(), given=None):
        grid = GridConfig(models=["tiny"], tokens=[1])
        study = StudyConfig(name="adhoc", grids=[grid], implementations=list(of_study))
        return make_plan(SweepConfig(study=study, implementations=given), known).implementations

    assert set(known) - set(planned()) == set(VARIANTS)
    assert planned([VARIANT + "gather"]) == ["stream", VARIANT + "gather"]
    assert planned([], given=VARIANT + "dynamic") == ["stream", VARIANT + "dynamic"]
    with pytest.raises(PlanError, match="fastvariant_dynamic"):
        planned(["fastvariant_nothing"])


def test_config_tells_them_apart():
    point = case(3)
    configs = {name: variant.config(point) for name, variant in VARIANTS.items()}
    assert configs["fastvariant_fixed16"] != configs["fastvariant_fixed64"]
    assert configs["fastvariant_dynamic"].startswith("m64 gate_up=")
    if not torch.cuda.is_available():
        assert configs["fastvariant_dynamic"] == str(FastTiles(64, choose.INTERPRETER.gate_up, choose.INTERPRETER.down))
    assert configs["fastvariant_fixed64"].startswith("m64 fixed ")
    assert configs["fastvariant_permute"] == f"permuted {configs['fastvariant_gather']}"


SMALL = FastTile(32, 32, 4, 2, 32, 2)
STAGES = {
    "tiles": (FastTiles(16, SMALL, SMALL), ["router", "schedule", "expert_ffn", "unpermute_combine"]),
    "few": (FewTiles(FewTile(16, 32, 2), FewTile(32, 16, 2)), ["router", "expert_ffn"]),
    "joined": (
        JoinedTiles(JoinedTile(16, 32, 2), JoinedTile(32, 16, 2)), ["router", "expert_ffn", "unpermute_combine"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("path", STAGES)
@pytest.mark.parametrize("gating", ["softmax", "deepseek_v3"])
def test_stages_of_fast_end_in_its_output(path, gating, device, monkeypatch):
    small, names = STAGES[path]
    monkeypatch.setattr(choose, "choose_tiles", lambda *_: small)
    monkeypatch.setattr(forward, "choose_tiles", lambda *_: small)
    monkeypatch.setattr(known, "_tiles", {})  # on a GPU a layer keeps the tiles of its first call
    point = case(9, gating=gating, num_experts=16)
    weights = Weights(point, device)
    x = activations(point, draw_routing(point), device)
    stages = Fast().stages(point, weights, x)
    assert [name for name, _ in stages] == names
    for _ in range(2):  # what it counts with is used up
        stages[names.index("expert_ffn")][1]()
    assert torch.equal(stages[-1][1](), Fast().build(point, weights)(x))
