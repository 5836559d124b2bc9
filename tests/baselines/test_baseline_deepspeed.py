"""The adapter of DeepSpeed over a stub of the API that it calls, the tool that prunes it, and DeepSpeed's own code."""

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_layer import TINY, case, errors, load, stub_modules
from torch import nn

from tritonmoe_bench.baselines import deepspeed_moe as adapters
from tritonmoe_bench.baselines.install import trees
from tritonmoe_bench.experiments.workload.reference import route
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels.gating import Gating

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "baselines" / "builds" / "offline"
GATINGS = ["softmax", "softmax_renorm", "sigmoid", "sigmoid_renorm", "deepseek_v3", "kimi_k2"]


def forget() -> None:
    adapters._problem.cache_clear()
    adapters._deepspeed.cache_clear()


@pytest.fixture(autouse=True)
def nothing_built(monkeypatch, tmp_path):
    """No .peers, and no answer kept from another test."""
    monkeypatch.setattr(trees, "FOLDER", tmp_path / ".peers")
    forget()
    yield
    forget()


@dataclass
class Spec:
    """A STUB of MoELayerSpec: the fields that it has no default for, and three more."""

    moe_module_name: str
    model_family: str
    router_name: str
    experts_name: str
    expert_storage: str
    expert_w1_name: str
    expert_w2_name: str
    expert_w3_name: str
    num_experts: int
    top_k: int
    hidden_size: int
    ffn_hidden_size: int
    score_func: str
    score_apply: str
    route_norm: bool
    gate_bias: bool
    return_router_logits: bool
    router_logits_capture_target: str
    router_logits_capture_index: None
    router_logits_capture_layer_name: None
    has_shared_experts: bool
    shared_experts_name: str
    route_scale: float = 1.0
    num_expert_groups: int | None = None
    num_limited_groups: int | None = None


@dataclass
class Config:
    """A STUB of AutoEPConfig."""

    use_grouped_mm: bool
    gate_up_impl: str
    combine_impl: str


class Layer(nn.Module):
    """A STUB of AutoEPMoELayer of DeepSpeed 0.19.8, in PyTorch; it copies the weights of the layer that it replaces."""

    made: Config

    def __init__(self, spec, source_module, ep_size, ep_rank, config):
        super().__init__()
        assert (ep_size, ep_rank) == (1, 0)
        Layer.made, self.spec = config, spec
        self.router, self.experts = nn.Module(), nn.Module()
        self.router.gate = nn.Linear(spec.hidden_size, spec.num_experts, bias=False)
        self.router.e_score_correction_bias = None
        experts = getattr(source_module, spec.experts_name)
        for name, theirs in (("w1", spec.expert_w1_name), ("w2", spec.expert_w2_name), ("w3", spec.expert_w3_name)):
            setattr(self.experts, name, nn.Parameter(getattr(experts, theirs).clone()))
        self.register_buffer("tokens_per_expert", torch.zeros(spec.num_experts), persistent=False)

    def forward(self, hidden_states):
        assert hidden_states.shape[0] == 1
        x = hidden_states[0]
        bias = self.router.e_score_correction_bias
        groups = (self.spec.num_expert_groups or 1, self.spec.num_limited_groups or 1)
        gating = Gating(self.spec.score_func, self.spec.route_norm, *groups, bias is not None, self.spec.route_scale)
        scores, chosen = route(self.router.gate(x), self.spec.top_k, gating, bias)
        y = torch.zeros_like(x, dtype=torch.float32)
        w1, w2, w3 = (getattr(self.experts, name).float() for name in ("w1", "w2", "w3"))
        for token, row in enumerate(x.float()):
            for score, expert in zip(scores[token], chosen[token]):
                hidden = torch.nn.functional.silu(w1[expert] @ row) * (w3[expert] @ row)
                y[token] += score * (w2[expert] @ hidden)
        return y.to(x.dtype).unsqueeze(0)


@pytest.fixture
def stub(monkeypatch):
    names = ("deepspeed.module_inject.auto_ep_config", "deepspeed.module_inject.auto_ep_layer")
    config, layer = stub_modules(monkeypatch, *names)
    config.AutoEPConfig, config.MoELayerSpec, layer.AutoEPMoELayer = Config, Spec, Layer
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_unavailable_says_why_and_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    check = adapters.DeepspeedMoe().check(case())
    assert check.status.value == "unavailable"
    assert check.reason.endswith(": pip install deepspeed==0.19.8")
    assert adapters.DeepspeedMoe().search_path() == []


@pytest.mark.parametrize("gating", GATINGS)
def test_weights_gating_and_options(stub, gating):
    adapter, point = adapters.DeepspeedMoe(), case(num_experts=32, top_k=4, gating=gating)
    assert adapter.check(point).status.value == "ok"
    weights = Weights(point, "cpu")
    assert errors(adapter.build(point, weights), point, weights)[0] < 0.01
    assert Layer.made == Config(use_grouped_mm=True, gate_up_impl="separate", combine_impl="fused_weighted_sum")


def test_weights_are_not_copied(stub):
    point = case()
    weights = Weights(point, "cpu")
    layer = adapters.make_layer(point, weights, use_grouped_mm=True, combine_impl="fused_weighted_sum")
    assert layer.experts.w1.data_ptr() == weights.gate("nk").data_ptr()
    assert layer.experts.w2.data_ptr() == weights.down("nk").data_ptr()
    assert layer.experts.w3.data_ptr() == weights.up("nk").data_ptr()


def test_a_layer_of_another_make_is_an_error(stub, monkeypatch):
    point = case()
    monkeypatch.setattr(adapters, "_model_layer", lambda case: _other_layer(case.num_experts))
    with pytest.raises(ValueError, match="wants w1 as"):
        adapters.DeepspeedMoe().build(point, Weights(point, "cpu"))


def _other_layer(num_experts: int) -> nn.Module:
    source = nn.Module()
    source.experts = nn.Module()
    for name in ("gate_proj", "up_proj", "down_proj"):
        source.experts.register_parameter(name, nn.Parameter(torch.empty(num_experts, 3, 5)))
    return source


@pytest.mark.parametrize(("fields", "word"), [({"dtype": "fp16"}, "bf16 only"), ({"ffn_dim": 44}, "multiples of 8")])
def test_unsupported(stub, fields, word):
    check = adapters.DeepspeedMoe().check(case(**fields))
    assert check.status.value == "unsupported"
    assert word in check.reason


# The tool that makes .peers/deepspeed.


@pytest.fixture
def prune(monkeypatch):
    monkeypatch.syspath_prepend(str(BUILD))
    return load(BUILD / "prune_deepspeed.py")


def sdist(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            content = b"from deepspeed.gone import NAME\n"
            info = tarfile.TarInfo(f"deepspeed-0.19.8/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_pruned_tree_holds_what_is_listed(prune, tmp_path):
    kept = ["deepspeed/ops/triton_ops/swiglu_triton.py", *prune.FILES]
    file = sdist(tmp_path / "d.tar.gz", ["PKG-INFO", "deepspeed/__init__.py", "csrc/a.cu", *kept])
    out = tmp_path / ".peers" / "deepspeed"
    assert prune.main(["--sdist", str(file), "--out", str(out)]) == 0
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {*kept, "BUILD.json", *(f"pruned_deepspeed/{n}.py" for n in ("__init__", "absent", "left_out"))}
    assert adapters.DeepspeedMoe().search_path() == [out]
    assert adapters.DeepspeedMoe().version() == "0.19.8"


def test_another_version_or_a_missing_file_is_refused(prune, tmp_path, capsys):
    for names, words in ((["README"], "is not DeepSpeed 0.19.8"), (["PKG-INFO"], "lacks deepspeed/moe")):
        file = sdist(tmp_path / "d.tar.gz", names)
        assert prune.main(["--sdist", str(file), "--out", str(tmp_path / "out")]) == 1
        assert words in capsys.readouterr().err


# DeepSpeed's own Python code, where the tree is there: its reference path, which runs with no GPU.

PEERS = ROOT / ".peers" / "deepspeed"
OWN_CODE = """
import json, sys
sys.path.insert(0, sys.argv[1] + "/.src")
import torch
from tritonmoe_bench.baselines import deepspeed_moe as adapters
from tritonmoe_bench.experiments.workload.reference import moe_forward, relative_error
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
sys.path[:0] = [str(folder) for folder in adapters.DeepspeedMoe().search_path()]
errors = []
for fields in json.loads(sys.argv[2]):
    case = Case(**fields)
    weights, x = Weights(case, "cpu"), activations(case, draw_routing(case), "cpu")
    expected = moe_forward(x, weights.router(), weights.expert, case.top_k, case.gate, weights.correction_bias())
    layer = adapters.make_layer(case, weights, use_grouped_mm=False, combine_impl="weighted_sum")
    with torch.inference_mode():
        errors.append(relative_error(layer(x.unsqueeze(0)).squeeze(0), expected))
print(json.dumps(errors))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not PEERS.is_dir(), reason="no .peers/deepspeed: python baselines/builds/offline/prune_deepspeed.py"
)
def test_over_deepspeeds_own_python_code():
    cases = [{**TINY, "num_experts": 32, "top_k": 4, "gating": gating} for gating in GATINGS]
    command = [sys.executable, "-c", OWN_CODE, str(ROOT), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == len(GATINGS)
    assert max(errors) < 0.008
