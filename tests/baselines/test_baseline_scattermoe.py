"""The adapter of ScatterMoE over a stub of the API that it calls, and where a checkout is looked for."""

import subprocess
import sys

import pytest
import torch
from tiny_layer import case, error_of, stub_modules

from tritonmoe_bench.baselines import scattermoe as adapters
from tritonmoe_bench.baselines.install import checkouts


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch):
    monkeypatch.delenv("TRITONMOE_SCATTERMOE_PATH", raising=False)
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


def test_a_checkout_is_found_with_its_commit(monkeypatch, tmp_path):
    (tmp_path / "scattermoe").mkdir()
    (tmp_path / "scattermoe" / "mlp.py").touch()
    monkeypatch.setenv("TRITONMOE_SCATTERMOE_PATH", str(tmp_path))
    assert adapters.Scattermoe().search_path() == [tmp_path.resolve()]
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, encoding="utf-8", errors="replace"
    ).stdout
    assert adapters.Scattermoe().version() == f"commit {head[:12]}"


def test_an_archive_without_git_still_has_a_version(monkeypatch, tmp_path):
    (tmp_path / "scattermoe").mkdir()
    monkeypatch.setenv("TRITONMOE_SCATTERMOE_PATH", str(tmp_path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert adapters.Scattermoe().version() == "checkout"
    monkeypatch.delenv("TRITONMOE_SCATTERMOE_PATH")
    assert checkouts.search_path("scattermoe", "scattermoe") == []
