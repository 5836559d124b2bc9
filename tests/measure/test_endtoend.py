"""Whole models: their configs, the rows of a decode step, the check of its experts, and the loop around it."""

import contextlib
import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from tritonmoe_bench.baselines.fast import Fast
from tritonmoe_bench.baselines.stream import Stream
from tritonmoe_bench.baselines.torch_batched import TorchBatchedMm
from tritonmoe_bench.baselines.torch_loop import TorchLoop
from tritonmoe_bench.experiments.measure import decoding, endtoend
from tritonmoe_bench.experiments.measure.endtoend import EndToEnd
from tritonmoe_bench.experiments.measure.gate import IncorrectOutput
from tritonmoe_bench.experiments.table import columns
from tritonmoe_bench.experiments.workload import whole
from tritonmoe_bench.experiments.workload.arguments import PlanError
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.config import load_model
from tritonmoe_bench.experiments.workload.settings import TimingSettings

CASE = Case("tiny", 8, 2, 128, 256, tokens=2)
BENCH = SimpleNamespace(timed=False, settings=TimingSettings(), device=torch.device("cpu"))
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is missing: pip install 'tritonmoe-bench[transformers]'",
)


@pytest.mark.parametrize("name", whole.whole_names())
def test_a_whole_model_has_the_experts_of_its_layer(name):
    config, layer = whole.load_whole(name).config, load_model(name)
    experts = config.get("num_local_experts", config.get("num_experts"))
    ffn = config.get("moe_intermediate_size", config["intermediate_size"])
    assert (experts, config["num_experts_per_tok"], config["hidden_size"], ffn) == (
        layer.num_experts, layer.top_k, layer.hidden_dim, layer.ffn_dim,
    )  # fmt: skip


def test_memory_is_nearly_that_of_all_parameters():
    case = Case("qwen3_30b_a3b", 128, 8, 2048, 768, tokens=1)
    assert EndToEnd().gpu_bytes(case) == pytest.approx(2 * 30.53e9, rel=0.05)  # without attention's


@needs_transformers
@pytest.mark.parametrize("implementation", [TorchLoop(), TorchBatchedMm(), Fast()])
def test_rows_without_a_gpu_hold_the_check_and_no_time(implementation):
    graph, eager = EndToEnd().measure(implementation, CASE, ["graph", "eager"], BENCH)
    assert graph["status"] == "unsupported"
    assert eager["status"] == "ok"
    assert eager["rel_error"] <= 2 * eager["torch_rel_error"]
    assert eager["config"] == f"experts_implementation={implementation.experts_implementation}"
    assert "p50_us" not in eager
    identity = {"run_id": "r", "case_hash": CASE.case_hash, "implementation": "i", "timestamp_utc": "now"}
    columns.validate([row | identity for row in (graph, eager)], EndToEnd.columns)


@needs_transformers
def test_wrong_experts_get_no_time(monkeypatch):
    monkeypatch.setattr(endtoend, "errors", lambda module, arguments: (float("nan"), 0.004))
    with pytest.raises(IncorrectOutput, match="the experts are nan off"):
        EndToEnd().measure(TorchBatchedMm(), CASE, ["eager"], BENCH)


@needs_transformers
def test_an_error_is_that_of_the_experts_that_are_set():
    model = whole.build(whole.load_whole("tiny"), torch.bfloat16, "cpu", 0)
    model.set_experts_implementation(endtoend.known_to_transformers("grouped_mm"))
    assert model.config._experts_implementation == endtoend.KEPT_GROUPED
    experts = whole.experts_of(model)
    inputs = endtoend.inputs_of(model, experts, CASE)
    assert [tuple(x.shape) for x, _, _ in inputs] == [(2, 128)] * 2
    with torch.inference_mode():
        error, own = endtoend.errors(experts[1], inputs[1])
        assert 0 < error < 0.02
        assert 0 < own < 0.02
        model.set_experts_implementation("eager")
        assert endtoend.errors(experts[1], inputs[1]) == (own, own)


@pytest.mark.parametrize(
    ("implementation", "changes", "reason"),
    [
        (Stream(), {}, "transformers has no experts implementation of it"),
        (Fast(), {"model": "mixtral_8x22b"}, "conf/whole has no mixtral_8x22b, it has "),
        (Fast(), {"skew": 1.2}, "the model has 16-bit weights and routes by itself"),
    ],
)
def test_what_cannot_be_run_says_why(implementation, changes, reason):
    [row] = EndToEnd().measure(implementation, replace(CASE, **changes), ["eager"], BENCH)
    assert row["status"] == "unsupported"
    assert row["reason"].startswith(reason)


def test_a_generation_ends_when_it_has_enough_steps_or_has_taken_long(monkeypatch):
    class Mark:
        def __init__(self, enable_timing):
            pass

        def record(self):
            pass

    monkeypatch.setattr(torch.cuda, "Event", Mark)
    now = [0.0]
    monkeypatch.setattr(decoding, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    ids = torch.zeros(2, 1, dtype=torch.long)

    def made(seconds):
        steps = decoding.Steps(TimingSettings(samples=12, min_samples=4), True)
        count = 0
        while not steps(ids, None).all():
            now[0] += seconds
            count += 1
        return count - decoding.UNTIMED

    assert made(0.001) == 12
    assert made(10.0) == 4


class FakeGraph:
    """Captures nothing; a replay runs nothing."""

    def replay(self):
        pass


def test_what_a_cache_counts_in_python_is_counted_at_each_replay(monkeypatch):
    """transformers makes the mask of a sliding window from it."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", contextlib.nullcontext)
    layer = SimpleNamespace(count=3, width=8, is_sliding=True, max_cache_len=6, ready=True)

    def model(past_key_values, x):
        past_key_values.layers[0].count += 1
        return x + 1

    graphed, cache = decoding.Graphed(model), SimpleNamespace(layers=[layer])
    for wanted in (4, 5, 6):
        graphed(cache, x=torch.zeros(2))
        assert (layer.count, layer.width, layer.ready) == (wanted, 8, True)
    with pytest.raises(RuntimeError, match=r"a sliding window of 6 is full: take fewer timing\.samples"):
        graphed(cache, x=torch.zeros(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@needs_transformers
@pytest.mark.parametrize("name", ["tiny", "gpt_oss_20b"])
@pytest.mark.parametrize("experts", ["tritonmoe_fast", "batched_mm"])
def test_a_decode_step_in_a_graph_makes_the_tokens_of_the_plain_one(name, experts):
    narrow = {"num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 64,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip
    model = whole.build(whole.load_whole(name), torch.float16, "cuda", 0, narrow)
    for parameter in model.parameters():
        parameter.normal_(0, 0.1)  # so that no two tokens are nearly alike
    model.set_experts_implementation(endtoend.known_to_transformers(experts))

    class Kept(decoding.Steps):
        def __call__(self, input_ids, scores, **options):
            self.ids = input_ids.clone()
            return super().__call__(input_ids, scores, **options)

    made = []
    for launch in ("eager", "graph"):
        steps = Kept(TimingSettings(samples=24, min_samples=24), True)
        decoding.generate(model, 3, launch, steps, 0)
        made.append(steps.ids)
    assert made[0].shape[1] > 24
    assert torch.equal(*made)


def test_the_closing_table_shows_steps_and_shares():
    point = {"model": "tiny", "implementation": "fast", "launch": "graph", "p50_us": 2500.0, "experts_share": 0.4,
             "num_experts": 8, "top_k": 2, "dtype": "bf16", "skew": 0.0}  # fmt: skip
    empty = dict.fromkeys(columns.names(EndToEnd.columns), "")
    rows = pd.DataFrame([empty | point | {"tokens": tokens, "case_hash": str(tokens)} for tokens in (1, 8)])
    assert EndToEnd().closing_table(rows).count("2.50 40%") == 2
    assert EndToEnd().closing_table(rows.assign(p50_us=None)) == ""


def test_a_whole_model_that_is_not_there_names_all():
    with pytest.raises(PlanError, match=r"model=small: whole models are .*qwen3_30b_a3b"):
        whole.load_whole("small")
