"""Routing recorded from a model that generates: the ids that its routers chose, and the command around it."""

import numpy as np
import pytest
import torch
from tiny_models import model, tokens

from tritonmoe_bench.experiments import record_routing
from tritonmoe_bench.experiments.sweeping.plan import make_plan
from tritonmoe_bench.experiments.workload import recorded
from tritonmoe_bench.experiments.workload.config import SweepConfig, load, load_model
from tritonmoe_bench.experiments.workload.whole import experts_of


def taken(made, inputs, **options):
    torch.manual_seed(0)
    arguments = {"layers": [0, 1], "steps": 3, "phase": "decode", "weights": True, "about": "tiny"} | options
    return record_routing.record(made, inputs, **arguments)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen2_moe"])
def test_what_the_routers_chose_is_recorded_step_by_step(family):
    made = model(family, torch.float32, "cpu")
    seen = {layer: [] for layer in (0, 1)}
    for layer, module in experts_of(made).items():
        module.register_forward_pre_hook(lambda _, args, layer=layer: seen[layer].append(args[1:3]))
    held = taken(made, {"input_ids": tokens(4, 5, "cpu")})
    assert held.ids.shape == (2, 3 * 4, made.config.num_experts_per_tok)
    for layer in (0, 1):
        prompt, *decode = seen[layer]
        assert prompt[0].shape[0] == 4 * 5
        for step, (ids, weights) in enumerate(decode):
            own, factors = held.ids[layer, 4 * step : 4 * step + 4], held.weights[layer, 4 * step : 4 * step + 4]
            assert (np.sort(own) == np.sort(ids.numpy())).all()
            assert (np.diff(factors) <= 0).all()
            assert np.allclose(factors, np.sort(weights.float().numpy())[:, ::-1])
    assert all(len(module._forward_pre_hooks) == 1 for module in experts_of(made).values())  # its own are gone


def test_the_prompt_is_recorded_without_its_padding():
    made = model("mixtral", torch.float32, "cpu")
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    held = taken(made, {"input_ids": tokens(2, 4, "cpu"), "attention_mask": mask}, phase="prompt", weights=False)
    assert held.ids.shape == (2, 6, 2)
    assert held.weights is None


def test_the_command_writes_a_file_that_a_sweep_runs(tmp_path, capsys):
    out = tmp_path / "tiny.npz"
    arguments = ["model=tiny", "random=true", "sequences=4", "steps=2", "device=cpu", f"out={out}"]
    assert record_routing.main(arguments) == 0
    assert "2 layers (0, 1), 8 tokens, top-2 of 8 experts" in capsys.readouterr().out
    assert recorded.read(out).about.startswith("tiny, random weights")
    config = SweepConfig(model=load_model("tiny"), study=load("study", "adhoc"), tokens=4, routing=str(out))
    assert len(make_plan(config, ["fast"]).cases) == 2
    before = out.read_bytes()
    assert record_routing.main(arguments) == 0
    assert out.read_bytes() == before  # the same model, prompts and samples


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model=... is needed"),
        (["model=tiny", "random=true", "phase=both"], "phase=both: allowed are decode, prompt"),
        (["model=tiny", "random=true", "steps=0"], "steps=0: must be at least 1"),
        (["model=small", "random=true"], "model=small: whole models are "),
        (["model=tiny", "random=true", "layers=7", "device=cpu"], "layers=[7]: layers with experts are 0, 1"),
        (["model=/no/such", "device=cpu"], "model=/no/such: transformers cannot load it"),
        (["model=tiny", "random=true", "prompts=/no/such.txt"], "prompts=/no/such.txt: a model of random weights"),
        (["model=/no/such", "prompts=/no/such.txt"], "prompts=/no/such.txt: cannot be read"),
    ],
)
def test_what_cannot_be_recorded_is_one_line(arguments, message, capsys):
    assert record_routing.main(arguments) == 1
    [line] = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert line.startswith(f"error: {message}")
