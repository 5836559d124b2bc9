"""Kernels of others, which tune themselves and read their schedule on the host, are recorded and compiled too."""

import pytest

from tritonmoe_bench.baselines.install import trees
from tritonmoe_bench.experiments import portability
from tritonmoe_bench.experiments.table import columns, store

MOE = """
import torch, triton
import triton.language as tl

@triton.autotune([triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 48}), triton.Config({"BLOCK": 128})], key=["N"])
@triton.jit
def _copy_kernel(x, y, N, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < N), mask=at < N)

def fused_moe_forward(hidden_states, router_weight, w_gate, w_up, w_down, num_experts, top_k, gating="softmax"):
    offsets = torch.zeros(num_experts + 1, dtype=torch.int64, device=hidden_states.device)
    offsets[1:] = 1
    rows = [e for e in range(num_experts) if offsets[e].item() < offsets[e + 1].item()]
    blocks = torch.tensor(rows, dtype=torch.int64, device=offsets.device)
    y = torch.empty_like(hidden_states)
    assert w_gate.shape == w_up.shape == (num_experts, w_down.shape[2], hidden_states.shape[1])
    if len(blocks):
        _copy_kernel[lambda meta: (triton.cdiv(y.numel(), meta["BLOCK"]),)](hidden_states, y, y.numel())
    return y, None, None

def moe_router(hidden_states, router_weight, top_k, gating="softmax", router_bias=None): ...
def permute_tokens(hidden_states, top_k_indices, num_experts): ...
def expert_ffn_triton(permuted_tokens, w_gate, w_up, w_down, expert_offsets, num_experts): ...
def unpermute_tokens(expert_outputs, top_k_weights, restore_idx, num_tokens, top_k): ...
"""
"""A STUB of the paper's code, which copies x."""


@pytest.mark.slow
def test_each_configuration_of_a_kernel_that_tunes_itself_is_compiled(tmp_path, monkeypatch, capsys):
    package = tmp_path / "authors" / "triton_kernels" / "moe"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text(MOE, encoding="utf-8")
    monkeypatch.setenv("TRITONMOE_TRITONMOE_PATH", str(tmp_path / "authors"))
    monkeypatch.setitem(portability.CODE, "authors", (("tritonmoe",), portability.AUTHORS))
    out = tmp_path / "p.csv"
    keys = ["code=authors", "targets=[gfx942]", "brief=true", f"out={out}"]
    assert portability.main(keys) == 0  # what others' code cannot do is a finding
    rows = store.read_table(out, columns.PORTABILITY_COLUMNS)
    assert set(rows["kernel"]) == {"copy"}
    assert set(rows["implementations"]) == {"tritonmoe"}
    statuses = {config.split()[0]: set(of["status"]) for config, of in rows.groupby("config")}
    assert statuses == {"BLOCK=64": {"ok"}, "BLOCK=48": {"does_not_compile"}, "BLOCK=128": {"ok"}}
    assert "does_not_compile: copy on gfx942" in capsys.readouterr().out


def test_without_the_checkout_a_line_says_how_it_comes(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TRITONMOE_TRITONMOE_PATH", raising=False)
    monkeypatch.setattr(trees, "FOLDER", tmp_path)
    assert portability.main(["code=authors"]) == 1
    assert "error: code=authors: tritonmoe is not here, `make checkouts` brings it" in capsys.readouterr().err


def test_whose_code_is_one_of_two(capsys):
    assert portability.main(["code=theirs"]) == 1
    assert capsys.readouterr().err == "error: code=theirs: allowed are here, authors\n"


def test_a_checkout_with_another_interface_is_one_line(tmp_path, monkeypatch, capsys):
    package = tmp_path / "triton_kernels" / "moe"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        MOE.replace("num_experts, top_k, gating", "experts, top_k, gating"), encoding="utf-8"
    )
    monkeypatch.setenv("TRITONMOE_TRITONMOE_PATH", str(tmp_path))
    assert portability.main(["code=authors", "targets=[sm_90]"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: tritonmoe is not here: this triton_kernels has another fused_moe_forward than ")
