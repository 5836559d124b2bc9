"""transformers' own models with their experts computed by `fast`: logits, generation, compilation, and what is left to
transformers."""

import copy
import re
import subprocess
import sys
import warnings

import pytest
import torch
from tiny_models import FAMILIES, model, tokens, transformers

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.checkout import program_environment
from tritonmoe_bench.experiments.workload.reference import relative_error
from tritonmoe_bench.kernels.integrations import hf

hf.register()
pytestmark = pytest.mark.filterwarnings("error:.*left to grouped_mm")


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """Each test is told of a fallback anew."""
    monkeypatch.setattr(hf, "_told", set())


def logits(made, implementation, ids):
    made.set_experts_implementation(implementation)
    with torch.inference_mode():
        return made(ids).logits.float()


def generated(made, implementation, **options):
    """Token ids of two greedy generations on a GPU."""
    made.set_experts_implementation(implementation)
    return made.generate(tokens(2, 3, "cuda"), max_new_tokens=12, do_sample=False, **options)


def assert_same_choices(made, given, wanted):
    """Token by token the same; a compiler rounds all of a model elsewhere, so a row may go on otherwise from where two
    tokens are as near to each other as 16 bits err."""
    ids = wanted[:, :-1]
    own, exact = logits(made, "eager", ids), logits(copy.deepcopy(made).float(), "eager", ids)
    for row in range(len(wanted)):
        differ = (given[row] != wanted[row]).nonzero()
        if len(differ):
            at = int(differ[0])
            scores = exact[row, at - 1]
            assert scores[wanted[row, at]] - scores[given[row, at]] <= 2 * (own - exact)[row, at - 1].abs().max()
    assert (given == wanted).float().mean() > 0.8


def experts(made):
    """The first experts module of a model."""
    return next(module for module in made.modules() if hasattr(module, "_apply_gate"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_as_right_as_those_of_eager_experts(family, device):
    made = model(family, torch.float16, device)
    ids = tokens(2, 4, device)
    own, ours = logits(made, "eager", ids), logits(made, hf.NAME, ids)
    exact = logits(copy.deepcopy(made).float(), "eager", ids)
    assert relative_error(ours, exact) <= 2 * relative_error(own, exact)
    assert relative_error(own, exact) < 0.004
    assert not torch.equal(ours, own)  # another kernel has computed them


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_gives_the_same_tokens(family, device):
    made = model(family, torch.float16, device)
    ids = tokens(1, 3, device)

    def generated(implementation):
        made.set_experts_implementation(implementation)
        return made.generate(ids, max_new_tokens=4, do_sample=False)

    assert torch.equal(generated(hf.NAME), generated("eager"))
    assert made.config._experts_implementation == "eager"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_experts_skip_those_of_other_devices(family, dtype, device):
    module = experts(model(family, dtype, device, num_hidden_layers=1))
    module._is_expert_parallel = True  # without it, late versions take no ids of other devices
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2)).to(device, dtype)
    ids = torch.tensor([[0, 3], [1, 2], [3, module.num_experts], [2, 0], [module.num_experts, 1]], device=device)
    weights = torch.rand(5, 2, generator=torch.Generator().manual_seed(3)).to(device)
    weights[ids == module.num_experts] = 0  # as transformers' expert parallelism has it
    outputs = {}
    for name in (hf.NAME, "batched_mm"):
        module.config._experts_implementation = name
        with torch.no_grad():
            outputs[name] = module(x, ids, weights)
    assert outputs[hf.NAME].dtype == dtype
    torch.testing.assert_close(outputs[hf.NAME], outputs["batched_mm"], atol=0.04, rtol=0.04)


def test_gpt_oss_is_laid_out_once_and_again_when_its_weights_change(device):
    module = experts(model("gpt_oss", torch.float16, device, num_hidden_layers=1))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2)).to(device, torch.float16)
    ids, weights = torch.tensor([[0, 1], [2, 3], [1, 2]], device=device), torch.ones(3, 2, device=device) / 2

    def both():
        outputs = []
        for name in (hf.NAME, "eager"):
            module.config._experts_implementation = name
            with torch.no_grad():
                outputs.append(module(x, ids, weights))
        torch.testing.assert_close(*outputs, atol=0.02, rtol=0.02)
        return getattr(module, hf.KEPT).laid_out, outputs[0]

    first, before = both()
    assert first[0].shape == (4, 96, 64)
    assert first[1].shape == (4, 64, 48)
    assert both()[0] is first
    with torch.no_grad():
        module.gate_up_proj.mul_(1.5)
    second, after = both()
    assert second is not first
    assert not torch.equal(before, after)
    module.down_proj_bias = torch.nn.Parameter(module.down_proj_bias.detach() + 1)
    assert both()[0] is not second
    assert hf.KEPT not in str(list(module.state_dict()))


def test_a_model_can_give_up_the_layout_of_transformers(device):
    made = model("gpt_oss", torch.float16, device)
    ids = tokens(1, 3, device)
    wanted = logits(made, hf.NAME, ids)
    hf.prepare(made, release=True)
    held = experts(made)
    assert {held.gate_up_proj.device.type, held.down_proj.device.type} == {"meta"}
    assert held.gate_up_proj_bias.device.type == torch.device(device).type
    assert torch.equal(logits(made, hf.NAME, ids), wanted)
    hf.prepare(made, release=True)
    assert torch.equal(logits(made, hf.NAME, ids), wanted)
    plain, left = model("olmoe", torch.float16, device), model("gpt_oss", torch.float16, device)
    for module in left.modules():
        if hasattr(module, "_apply_gate"):
            module._apply_gate = torch.nn.functional.relu
    for other in (plain, left):  # taken where it lies, and left to transformers
        hf.prepare(other, release=True)
        assert experts(other).down_proj.device.type == torch.device(device).type


def changed(**attributes):
    def change(module, call):
        for name, value in attributes.items():
            setattr(module, name, value)

    return change


def in_dtype(dtype, *names):
    def change(module, call):
        for name in names:
            call[name] = call[name].to(dtype)

    return change


def wide(module, call):
    module.to(torch.float32)
    call["x"] = call["x"].float()


def with_gradient(module, call):
    call["x"].requires_grad_()


REFUSALS = [
    (wide, "its input is torch.float32, and fast takes 16 bits"),
    (in_dtype(torch.bfloat16, "x"), "its weights are torch.float16, its input torch.bfloat16"),
    (with_gradient, r"a gradient is asked for \(torch.no_grad\(\)"),
    (changed(act_fn=torch.nn.ReLU()), "its activation is none of fast's"),
    (changed(act_fn=torch.nn.GELU()), "its activation is none of fast's"),
    (
        changed(has_post_expert_norm=True, post_expert_norm=torch.nn.RMSNorm(64)),
        "it normalises what each expert gives",
    ),
]


@pytest.mark.parametrize(("change", "reason"), REFUSALS)
def test_what_fast_cannot_do_is_left_to_grouped_mm_and_said_once(change, reason, device):
    module = experts(model("mixtral", torch.float16, device, num_hidden_layers=1)).requires_grad_(False)
    call = {
        "x": torch.randn(2, 64, dtype=torch.float16, device=device),
        "ids": torch.tensor([[0, 1], [2, 3]], device=device),
        "weights": torch.ones(2, 2, device=device),
    }
    change(module, call)
    module.config._experts_implementation = "grouped_mm"
    wanted = module(*call.values())
    module.config._experts_implementation = hf.NAME
    with pytest.warns(UserWarning, match=f"^MixtralExperts: {reason}.*: its experts are left to grouped_mm"):
        given = module(*call.values())
    assert torch.equal(given, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(*call.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"has_gate": False}, "its experts have no gate"),
        ({"gate_up_proj": torch.zeros(4, 4)}, "gate_up_proj is no plain tensor"),
        ({"down_proj": None}, "down_proj is no plain tensor"),
        ({"down_proj": torch.zeros(1025, 2, 1)}, "it has more than 1024 experts"),
    ],
)
def test_modules_that_fast_cannot_stand_for(change, reason):
    module = experts(model("mixtral", torch.float16, "cpu", num_hidden_layers=1))
    for name, value in change.items():
        if name in module._parameters:
            del module._parameters[name]
        setattr(module, name, value)
    assert reason in hf._look_at(module).refusal


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_a_prepared_model_compiles_into_one_graph(family, device):
    made = model(family, torch.float16, device, num_hidden_layers=1)
    ids = tokens(1, 3, device)
    wanted = logits(made, hf.NAME, ids)
    for module in made.modules():
        module.__dict__.pop(hf.KEPT, None)
    hf.prepare(made)
    torch.compiler.reset()
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, use_cache=False).logits.float(), wanted, atol=0.01, rtol=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_static_cache_on_a_gpu(family):
    made = model(family, torch.float16, "cuda")
    wanted = generated(made, "eager")
    assert torch.equal(generated(made, hf.NAME), wanted)
    assert torch.equal(generated(made, hf.NAME, cache_implementation="static", disable_compile=True), wanted)
    assert not hasattr(made, "_compiled_call")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_compiled_on_a_gpu(family):
    """transformers compiles the decode step over a static cache, and puts it into a CUDA graph: some 20 s each."""
    made = model(family, torch.float16, "cuda")
    wanted = generated(made, "eager")
    torch.compiler.reset()
    assert_same_choices(made, generated(made, hf.NAME, cache_implementation="static"), wanted)
    assert hasattr(made, "_compiled_call")  # else it would have been the plain forward


def test_transformers_is_imported_when_it_is_registered_and_its_lack_is_one_line():
    code = (
        "import sys; from tritonmoe_bench.kernels.integrations import hf\n"
        "assert 'transformers' not in sys.modules\n"
        "sys.modules['transformers'] = None\n"
        "try: hf.register()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", errors="replace",
                          env=program_environment())  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("transformers 5.0 or later is needed: pip install 'tritonmoe-bench[transformers]'")


def test_what_the_readme_says_runs_a_checkpoint(tmp_path, device):
    """Written with AutoModelForCausalLM as it is imported, from a folder instead of a name."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "integrations" in code]
    made = model("olmoe", torch.float16, "cpu")
    made.save_pretrained(tmp_path)
    names = {"AutoModelForCausalLM": transformers.AutoModelForCausalLM, "name": tmp_path,
             "input_ids": tokens(1, 2, device)}  # fmt: skip
    code = re.sub("(?m)^  ", "", code).replace('"cuda"', repr(device))
    exec(code.replace(", cache_", ", max_new_tokens=2, disable_compile=True, cache_"), names)
    assert names["model"].config._experts_implementation == hf.NAME
    assert names["model"].dtype == torch.float16
