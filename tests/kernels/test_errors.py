"""Every wrong argument ends before any launch, with a message that names it and what is allowed."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.kernels import Gating, GemmTile, Tiles, checks, default_tiles, paper_moe
from tritonmoe_bench.kernels.checks import check_expert_size
from tritonmoe_bench.kernels.paper.permute import _permute_kernel

TOKENS, EXPERTS, TOP_K, HIDDEN, FFN = 4, 6, 2, 32, 16
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def no_launch(monkeypatch):
    """A kernel that starts in spite of a wrong argument fails the test."""

    def refuse(*_, **__):
        raise AssertionError("a kernel was launched")

    kernel_type = type(_permute_kernel)
    monkeypatch.setattr(kernel_type, "__getitem__", lambda self, grid: refuse)


def zeros(*shape, dtype=BF16, device="cpu"):
    return torch.zeros(*shape, dtype=dtype, device=device)


def transposed(*shape, **options):
    """The shape that is asked for, with the strides of its transpose."""
    return zeros(*shape[:-2], shape[-1], shape[-2], **options).transpose(-1, -2)


def moe_arguments(device, **changes):
    layer = {
        "x": zeros(TOKENS, HIDDEN, device=device),
        "router_weight": zeros(EXPERTS, HIDDEN, device=device),
        "gate_up": zeros(EXPERTS, 2 * FFN, HIDDEN, device=device),
        "down": zeros(EXPERTS, HIDDEN, FFN, device=device),
        "top_k": TOP_K,
    }
    return layer | {name: change(device) if callable(change) else change for name, change in changes.items()}


MOE_ERRORS = {
    "x is no tensor": ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
    "x in float32": (
        {"x": lambda d: zeros(TOKENS, HIDDEN, dtype=FP32, device=d)},
        TypeError, "x must be torch.float16 or torch.bfloat16, got torch.float32"),
    "x of three dimensions": (
        {"x": lambda d: zeros(1, TOKENS, HIDDEN, device=d)},
        ValueError, "x must have shape [tokens, hidden], got [1, 4, 32]"),
    "x by columns": (
        {"x": lambda d: transposed(TOKENS, HIDDEN, device=d)},
        ValueError, "x must have stride 1 in its last dimension, got strides (1, 4): call .contiguous()"),
    "router in another dtype": (
        {"router_weight": lambda d: zeros(EXPERTS, HIDDEN, dtype=FP16, device=d)},
        TypeError, "router_weight must be torch.bfloat16 or torch.float32, got torch.float16"),
    "router of another hidden size": (
        {"router_weight": lambda d: zeros(EXPERTS, 31, device=d)},
        ValueError, "router_weight must have shape [num_experts, 32], got [6, 31]"),
    "too many experts": (
        {"router_weight": lambda d: zeros(1025, HIDDEN, device=d)},
        ValueError, "num_experts=1025: allowed are 1 to 1024"),
    "down of other experts": (
        {"down": lambda d: zeros(5, HIDDEN, FFN, device=d)},
        ValueError, "down must have shape [6, 32, ffn], got [5, 32, 16]"),
    "down by columns": (
        {"down": lambda d: transposed(EXPERTS, HIDDEN, FFN, device=d)},
        ValueError, "down must have stride 1 in its last dimension"),
    "gate_up not stacked": (
        {"gate_up": lambda d: zeros(EXPERTS, FFN, HIDDEN, device=d)},
        ValueError, "gate_up must have shape [6, 32, 32], got [6, 16, 32]"),
    "gate_up elsewhere": (
        {"gate_up": zeros(EXPERTS, 2 * FFN, HIDDEN, device="meta")},
        ValueError, "gate_up is on meta, the other tensors are on"),
    "x nowhere": ({"x": zeros(TOKENS, HIDDEN, device="meta")}, ValueError, "x is on meta: move it to a GPU"),
    "top_k of zero": ({"top_k": 0}, ValueError, "top_k=0: allowed are 1 to 6 for 6 experts"),
    "top_k over the experts": ({"top_k": 7}, ValueError, "top_k=7: allowed are 1 to 6 for 6 experts"),
    "top_k of a half": ({"top_k": 1.5}, TypeError, "top_k must be an int, got float"),
    "top_k of True": ({"top_k": True}, TypeError, "top_k must be an int, got bool"),
    "gating by name": ({"gating": "softmax"}, TypeError, "gating must be a Gating, got str"),
    "gating with groups": (
        {"gating": Gating("sigmoid", groups=2, top_groups=1)},
        ValueError, "no expert groups and no correction bias: allowed are softmax or sigmoid scoring"),
    "gating with a bias": ({"gating": Gating("sigmoid", correction_bias=True)}, ValueError, "no correction bias"),
    "a bias": ({"correction_bias": lambda d: zeros(EXPERTS, dtype=FP32, device=d)}, ValueError, "no correction bias"),
    "another schedule": ({"schedule": "tpu"}, ValueError, "schedule='tpu': allowed are host, gpu"),
    "tiles by number": ({"tiles": 64}, TypeError, "tiles must be a Tiles, got int"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", MOE_ERRORS)
def test_paper_moe(wrong, device):
    changes, error, message = MOE_ERRORS[wrong]
    with pytest.raises(error, match=re.escape(message)):
        paper_moe(**moe_arguments(device, **changes))


def test_an_expert_beyond_32_bit_offsets():
    check_expert_size("down", zeros(2, 2**16, 2**15 - 1, device="meta"))
    with pytest.raises(ValueError, match=re.escape("down: an expert of [65536, 32768] elements is too large")):
        check_expert_size("down", zeros(2, 2**16, 2**15, device="meta"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((48, 64, 4, 2), "block_n=48: must be a power of two"),
        ((64, 8, 4, 2), "block_k=8: must be a power of two, and a block at least 16"),
        ((64, 64, 3, 2), "num_warps=3: must be a power of two"),
        ((64, 64, 4, 0), "num_stages=0: must be a positive int"),
        ((64, 64.0, 4, 2), "block_k=64.0: must be a positive int"),
    ],
)
def test_tiles(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        GemmTile(*arguments)


def test_a_gpu_with_too_little_shared_memory():
    with pytest.raises(ValueError, match="16384 bytes of shared memory a program: the smallest tiles are made for"):
        default_tiles(16384)


@pytest.mark.parametrize("kibibytes", [227, 163, 160, 99, 64])
def test_default_tiles_exist_for_every_size_of_shared_memory(kibibytes):
    assert isinstance(default_tiles(kibibytes * 1024), Tiles)


@pytest.mark.parametrize("set_late", [True, False])
def test_cpu_tensors_without_the_interpreter(set_late, monkeypatch):
    monkeypatch.setattr(checks, "interprets", lambda: False)
    monkeypatch.setattr(checks.triton, "knobs", SimpleNamespace(runtime=SimpleNamespace(interpret=set_late)))
    told = "set TRITON_INTERPRET=1 before triton is imported"
    told += ", which it was when you set it: restart Python" if set_late else "$"
    with pytest.raises(ValueError, match=f"x is on cpu: move it to a GPU, or for CPU tensors {told}"):
        paper_moe(**moe_arguments("cpu"))


def test_the_kernels_import_with_no_gpu_and_load_torch_only_when_asked():
    code = (
        "import sys\n"
        "import tritonmoe_bench.kernels as kernels\n"
        "assert kernels.Gating().scoring == 'softmax'\n"
        "assert not {'torch', 'triton'} & set(sys.modules), 'loaded too early'\n"
        "assert all(getattr(kernels, name) for name in kernels.__all__)\n"
        "try: kernels.paper_mo\n"
        "except AttributeError as error: assert 'paper_mo' in str(error)\n"
        "else: raise AssertionError('no error for a name that is not there')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=checkout.program_environment())
