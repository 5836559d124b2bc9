"""The adapter of ScatterMoE over a stub of the API that it calls, and where a checkout is looked for."""

import subprocess
import sys

import pytest
import torch
from tiny_layer import case, error_of, stub_modules

from tritonmoe_bench.baselines import scattermoe as adapters
from tritonmoe_bench.baselines.install import trees
from tritonmoe_bench.experiments import checkout


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITONMOE_SCATTERMOE_PATH", raising=False)
    monkeypatch.setattr(trees, "FOLDER", tmp_path / "peers")
    adapters._problem.cache_clear()
    yield
    adapters._problem.cache_clear()


@pytest.fixture
def stub(monkeypatch):
    """A STUB of scattermoe.parallel_experts.parallel_linear, of the commit 2d15f319, in PyTorch; it notes the calls."""
    calls: list[tuple] = []

    def parallel_linear(inputs, expert_weights, k, sorted_expert_idxs, sorted_scattered_idxs, expert_offsets,
                        expert_biases=None, gates=None, grouped_in=False, grouped_out=False):  # fmt: skip
        calls.append((tuple(expert_weights.shape), expert_weights.stride(1), k, grouped_in, grouped_out))
        assert torch.equal(sorted_expert_idxs, sorted_expert_idxs.sort().values)
        rows = inputs if grouped_in else inputs[sorted_scattered_idxs // k]
        out = torch.stack([row.float() @ expert_weights[e].float() for row, e in zip(rows, sorted_expert_idxs)])
        out = out.to(inputs.dtype)
        if not grouped_out:
            out = torch.empty_like(out).index_copy_(0, sorted_scattered_idxs, out)
        if gates is not None:
            assert gates.dtype == inputs.dtype
            out = (gates.unsqueeze(1) @ out.view(*gates.shape, -1)).squeeze(1)
        return out

    (module,) = stub_modules(monkeypatch, "scattermoe.parallel_experts")
    module.parallel_linear = parallel_linear
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return calls


def test_unavailable_says_why_and_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scattermoe", None)
    check = adapters.Scattermoe().check(case())
    assert check.status.value == "unavailable"
    assert check.reason.endswith(
        ": git clone https://github.com/shawntan/scattermoe scattermoe && "
        "export TRITONMOE_SCATTERMOE_PATH=$PWD/scattermoe"
    )
    monkeypatch.setenv("TRITONMOE_SCATTERMOE_PATH", str(tmp_path))
    adapters._problem.cache_clear()
    assert f"TRITONMOE_SCATTERMOE_PATH={tmp_path} holds no scattermoe/" in adapters.Scattermoe().check(case()).reason


def test_another_api_is_unavailable(stub):
    sys.modules["scattermoe.parallel_experts"].parallel_linear = lambda inputs, expert_weights, k, padded_block_idxs: 0
    check = adapters.Scattermoe().check(case())
    assert check.status.value == "unavailable"
    assert "another parallel_linear" in check.reason


@pytest.mark.parametrize("gating", ["softmax", "softmax_renorm", "sigmoid", "deepseek_v3", "kimi_k2"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_layouts_and_flags(stub, gating, dtype):
    adapter, point = adapters.Scattermoe(), case(num_experts=32, top_k=4, gating=gating, dtype=dtype)
    assert adapter.check(point).status.value == "ok"
    assert error_of(adapter, point) < 0.01
    assert stub[-2:] == [((32, 64, 96), 1, 4, False, True), ((32, 48, 64), 1, 1, True, False)]


def test_a_checkout_is_found(monkeypatch, tmp_path):
    assert adapters.Scattermoe().search_path() == []
    (tmp_path / "scattermoe").mkdir()
    monkeypatch.setenv("TRITONMOE_SCATTERMOE_PATH", str(tmp_path))
    assert adapters.Scattermoe().search_path() == [tmp_path.resolve()]


def committed(folder) -> str:
    """Makes the folder a repository with all that is in it; the commit."""
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    return checkout.git(folder, "rev-parse", "HEAD")


@pytest.mark.parametrize("history", ["its own", "none", "of a repository around it"])
def test_the_version_is_the_commit_of_the_checkout_itself(history, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "README").touch()
    if history == "of a repository around it":
        committed(tmp_path)
    folder = tmp_path / "clone"
    (folder / "scattermoe").mkdir(parents=True)
    (folder / "scattermoe" / "mlp.py").touch()
    commit = committed(folder) if history == "its own" else ""
    monkeypatch.setenv("TRITONMOE_SCATTERMOE_PATH", str(folder))
    assert adapters.Scattermoe().version() == (f"commit {commit[:12]}" if commit else "checkout")
