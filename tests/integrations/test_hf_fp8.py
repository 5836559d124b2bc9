"""fp8 experts of transformers, which have a registry of their own."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import transformers

from tritonmoe_bench.experiments.workload.reference import relative_error
from tritonmoe_bench.kernels.formats.fp8_block import Fp8Block
from tritonmoe_bench.kernels.integrations import hf

hf.register()
finegrained_fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
EXPERTS, HIDDEN, FFN = 4, 256, 128


def module(device, **options):
    """transformers' fp8 experts, as it puts them in the place of a model's, with random weights."""
    config = SimpleNamespace(hidden_size=HIDDEN, num_experts=EXPERTS, moe_intermediate_size=FFN, hidden_act="silu",
                             _experts_implementation=hf.NAME)  # fmt: skip
    kind = type("Fp8", (finegrained_fp8.FP8Experts,), {})
    kind = finegrained_fp8.use_experts_implementation(kind, experts_interface=finegrained_fp8.ALL_FP8_EXPERTS_FUNCTIONS)
    made = kind(config, **({"block_size": (128, 128)} | options)).to(device)
    generator = torch.Generator().manual_seed(0)
    for name in ("gate_up_proj", "down_proj"):
        shape = getattr(made, name).shape
        packed = Fp8Block.pack(torch.randn(shape, generator=generator) * shape[2] ** -0.5)
        getattr(made, name).data.copy_(packed.values)
        getattr(made, f"{name}_scale_inv").data.copy_(packed.scales)
    return made.requires_grad_(False)


def unpacked(made):
    return [Fp8Block(getattr(made, name).cpu(), getattr(made, f"{name}_scale_inv").cpu().float()).unpack()
            for name in ("gate_up_proj", "down_proj")]  # fmt: skip


def exact(made, x, ids, weights):
    """The experts in float32 over what their weights say."""
    gate_up, down = unpacked(made)
    y = torch.zeros(x.shape)
    for token, (chosen, factors) in enumerate(zip(ids.tolist(), weights.tolist())):
        for expert, factor in zip(chosen, factors):
            gate, up = (gate_up[expert] @ x[token].float().cpu()).chunk(2)
            y[token] += factor * (down[expert] @ (torch.nn.functional.silu(gate) * up))
    return y


@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
def test_fp8_experts_are_computed_from_their_own_weights(scale_fmt, device):
    made = module(device, scale_fmt=scale_fmt)
    x = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1)).to(device, torch.float16)
    ids, weights = torch.tensor([[0, 3], [1, 2], [3, 1]], device=device), torch.full((3, 2), 0.5, device=device)
    y = made(x, ids, weights)
    assert (
        relative_error(y.float().cpu(), exact(made, x, ids, weights)) < 0.06
    )  # activations of 8 bits, where it has them
    kept = getattr(made, hf.KEPT).laid_out
    assert kept[0].values.data_ptr() == made.gate_up_proj.data_ptr()  # no copy of the values
    made(x, ids, weights)
    assert getattr(made, hf.KEPT).laid_out is kept
    made.down_proj_scale_inv.data = made.down_proj_scale_inv.data.clone()
    made(x, ids, weights)
    assert getattr(made, hf.KEPT).laid_out is not kept


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"activation_scheme": "static"}, "its activations are quantised by fixed scales"),
        ({"block_size": (64, 64)}, "its scales are not of blocks of 128 x 128"),
    ],
)
def test_other_fp8_experts_are_left_to_transformers(options, reason):
    kind = finegrained_fp8.FP8Experts
    config = SimpleNamespace(hidden_size=HIDDEN, num_experts=EXPERTS, moe_intermediate_size=FFN, hidden_act="silu")
    made = kind(config, **({"block_size": (128, 128)} | options))
    assert hf._look_at(made).refusal == reason


def test_it_is_registered_for_fp8_too():
    assert hf.NAME in finegrained_fp8.ALL_FP8_EXPERTS_FUNCTIONS
    assert (
        transformers.integrations.moe.ALL_EXPERTS_FUNCTIONS[hf.NAME]
        is not (finegrained_fp8.ALL_FP8_EXPERTS_FUNCTIONS[hf.NAME])
    )
