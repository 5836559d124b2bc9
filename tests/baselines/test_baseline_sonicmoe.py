"""The adapter of SonicMoE over a STUB of its layer, and the tool that unpacks its wheels and Humming's."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest
import tiny_layer
import torch
from tiny_layer import case, stub_modules

from tritonmoe_bench.baselines import humming, sonicmoe
from tritonmoe_bench.baselines.install import trees
from tritonmoe_bench.experiments.workload.weights import Weights

TOOL = Path(__file__).resolve().parents[2] / "baselines" / "builds" / "offline" / "unpack.py"


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch, tmp_path):
    """No .peers, and no answer kept from another test."""
    monkeypatch.setattr(trees, "FOLDER", tmp_path / ".peers")
    monkeypatch.setenv("PYTHONPATH", "here")
    sonicmoe._problem.cache_clear()
    yield
    sonicmoe._problem.cache_clear()


@pytest.fixture
def stub(monkeypatch):
    """A STUB of sonicmoe 0.1.2.post1 in PyTorch, on a Hopper GPU."""
    (module,) = stub_modules(monkeypatch, "sonicmoe.functional")

    def layer(x, router_w, w1, b1, w2, b2, top_k, stream_id, activation_type, is_inference_mode_enabled=False,
              is_softmax_over_topk=True, norm_topk_probs=False, concat_layout=False):  # fmt: skip
        experts, hidden = router_w.shape
        assert (b1, b2, activation_type, is_inference_mode_enabled, concat_layout) == (
            None,
            None,
            "swiglu",
            True,
            False,
        )
        assert w1.shape[1:] == (hidden, experts)
        assert w1.stride(1) == w2.stride(1) == 1
        logits = (x @ router_w.T).float()
        chosen = logits.topk(top_k, dim=-1)
        scores = chosen.values.softmax(-1) if is_softmax_over_topk else logits.softmax(-1).gather(1, chosen.indices)
        y = torch.zeros(x.shape, dtype=torch.float32)
        for token in range(x.shape[0]):
            for score, expert in zip(scores[token], chosen.indices[token]):
                both = w1[:, :, expert].float() @ x[token].float()
                held = (torch.nn.functional.silu(both[0::2]) * both[1::2]).to(x.dtype)
                y[token] += score * (w2[:, :, expert].float() @ held.float())
        return y.to(x.dtype), logits, None

    module.moe_TC_softmax_topk_layer = layer
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


@pytest.mark.parametrize("fields", [{}, {"gating": "softmax_renorm", "dtype": "fp16"}, {"tokens": 1}], ids=str)
def test_the_layer_over_the_stub_is_the_reference(stub, fields):
    point = case(**fields)
    weights = Weights(point, "cpu")
    with torch.inference_mode():
        error, torch_error = tiny_layer.errors(sonicmoe.Sonicmoe().build(point, weights), point, weights)
    assert error <= 1.5 * torch_error
    assert os.environ["PYTHONPATH"].endswith("here")


def test_what_it_cannot_do(stub, monkeypatch):
    adapter = sonicmoe.Sonicmoe()
    assert adapter.check(case()).status.value == "ok"
    assert "gating=sigmoid" in adapter.check(case(gating="sigmoid")).reason
    assert "num_experts=12" in adapter.check(case(num_experts=12)).reason
    assert "ffn_dim=36" in adapter.check(case(ffn_dim=36)).reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    sonicmoe._problem.cache_clear()
    assert "compute capability 8.0" in adapter.check(case()).reason


def test_unavailable_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "sonicmoe", None)
    check = sonicmoe.Sonicmoe().check(case())
    assert check.status.value == "unavailable"
    assert check.reason.endswith(": python baselines/builds/offline/unpack.py sonicmoe")


def test_wheels_are_unpacked_where_the_adapters_look(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(TOOL.parent)
    tool = tiny_layer.load(TOOL)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    inside = {"humming-kernels": ["humming/__init__.py", "humming/testing/a.py", "humming/_native/x86/run"],
              "sonic-moe": ["sonicmoe/__init__.py"], "cuda-bindings": ["cuda/a.so", "cuda/a.cpp"],
              "nvidia-cutlass-dsl-libs-base": ["nvidia_cutlass_dsl/python_packages/cutlass/a.py"]}  # fmt: skip
    for system in tool.SYSTEMS.values():
        for name, version in system.wheels.items():
            path = f"{name.replace('-', '_')}-{version}"
            with zipfile.ZipFile(wheels / f"{path}-py3-none-any.whl", "w") as wheel:
                wheel.writestr(
                    f"{path}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
                )
                wheel.writestr(
                    f"{path}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
                )
                for file in inside.get(name, []):
                    wheel.writestr(file, "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    assert Path(__file__).resolve().parents[2] / ".peers" == tool.DEFAULT_OUT
    assert tool.main(["--out", str(trees.FOLDER)]) == 0
    made = {str(path.relative_to(trees.FOLDER)) for path in trees.FOLDER.rglob("*") if path.is_file()}
    assert {"sonicmoe/cuda/a.so", "humming/humming/_native/x86/run"} <= made
    assert not made & {"sonicmoe/cuda/a.cpp", "humming/humming/testing/a.py"}
    assert (trees.FOLDER / "humming/humming/_native/x86/run").stat().st_mode & 0o111
    assert sonicmoe.Sonicmoe().version() == "0.1.2.post1 (quack-kernels 0.3.11)"
    folder = trees.FOLDER / "sonicmoe"
    assert sonicmoe.Sonicmoe().search_path() == [folder, folder / "nvidia_cutlass_dsl" / "python_packages"]
    assert trees.record(folder)["cuda_bindings"] == "13.0.3"
    assert [trees.folder("humming"), trees.record(trees.folder("humming"))["humming_kernels"]] == [
        humming.Humming().search_path()[0], humming.VERSION,
    ]  # fmt: skip
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert tool.main(["humming", "--out", str(trees.FOLDER)]) == 1
    assert "unpack: humming: pip cannot download humming-kernels==0.1.19" in capsys.readouterr().err
