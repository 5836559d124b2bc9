"""Every wrong argument ends before any launch, with a message that names it and what is allowed."""

import re
import subprocess
import sys

import pytest
import torch
import triton

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.kernels import Gating, GemmTile, Tiles, default_tiles, paper_moe
from tritonmoe_bench.kernels.checks import check_expert_size
from tritonmoe_bench.kernels.paper.fused_gate_up import fused_gate_up
from tritonmoe_bench.kernels.paper.grouped_gemm import grouped_gemm
from tritonmoe_bench.kernels.paper.permute import permute, unpermute_combine
from tritonmoe_bench.kernels.paper.router import router, score_topk
from tritonmoe_bench.kernels.paper.schedule import schedule_on_gpu, schedule_on_host
from tritonmoe_bench.kernels.paper.silu_mul import silu_mul

TOKENS, EXPERTS, TOP_K, HIDDEN, FFN = 4, 6, 2, 32, 16
SLOTS = TOKENS * TOP_K
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def no_launch(monkeypatch):
    """A kernel that starts in spite of a wrong argument fails the test."""

    def refuse(*_, **__):
        raise AssertionError("a kernel was launched")

    kernel_type = type(sys.modules["tritonmoe_bench.kernels.paper.permute"]._permute_kernel)
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
    "no tokens": (
        {"x": lambda d: zeros(0, HIDDEN, device=d)}, ValueError, "x must have shape [tokens, hidden], got [0, 32]"),
    "x by columns": (
        {"x": lambda d: transposed(TOKENS, HIDDEN, device=d)},
        ValueError, "x must have stride 1 in its last dimension, got strides (1, 4): call .contiguous()"),
    "too many slots": (
        {"x": lambda d: zeros(65537, HIDDEN, device=d)}, ValueError, "at most 131072 slots, 8192 tokens of top-16"),
    "router in another dtype": (
        {"router_weight": lambda d: zeros(EXPERTS, HIDDEN, dtype=FP16, device=d)},
        TypeError, "router_weight must be torch.bfloat16, got torch.float16"),
    "router of another hidden size": (
        {"router_weight": lambda d: zeros(EXPERTS, 31, device=d)},
        ValueError, "router_weight must have shape [num_experts, 32], got [6, 31]"),
    "too many experts": (
        {"router_weight": lambda d: zeros(513, HIDDEN, device=d)}, ValueError, "num_experts=513: allowed are 1 to 512"),
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


def test_top_k_over_sixteen(device):
    with pytest.raises(ValueError, match="top_k=17: allowed are 1 to 16 for 64 experts"):
        score_topk(zeros(2, 64, device=device), 17, Gating())


STEP_ERRORS = {
    "logits of whole numbers": (
        lambda d: score_topk(zeros(2, 8, dtype=torch.int32, device=d), 2, Gating()),
        TypeError, "logits must be torch.float16 or torch.bfloat16 or torch.float32, got torch.int32"),
    "logits for grouped experts": (
        lambda d: score_topk(zeros(2, 8, device=d), 2, Gating("sigmoid", groups=2, top_groups=2)),
        ValueError, "no expert groups"),
    "router with a bias": (
        lambda d: router(zeros(2, 8, device=d), zeros(4, 8, device=d), 2, Gating(), zeros(4, dtype=FP32, device=d)),
        ValueError, "no correction bias"),
    "router of too large a top_k": (
        lambda d: router(zeros(2, 8, device=d), zeros(4, 8, device=d), 5, Gating()),
        ValueError, "top_k=5: allowed are 1 to 4 for 4 experts"),
    "experts of 64 bits": (
        lambda d: schedule_on_gpu(zeros(2, 2, dtype=torch.int64, device=d), 4),
        TypeError, "experts must be torch.int32, got torch.int64"),
    "experts in one dimension": (
        lambda d: schedule_on_host(zeros(4, dtype=torch.int32, device=d), 4),
        ValueError, "experts must have shape [tokens, top_k], got [4]"),
    "experts that lie apart": (
        lambda d: schedule_on_gpu(zeros(4, 4, dtype=torch.int32, device=d)[:, :2], 4),
        ValueError, "experts must be contiguous, got strides (4, 1)"),
    "too many slots": (
        lambda d: schedule_on_gpu(zeros(8193, 16, dtype=torch.int32, device=d), 16),
        ValueError, "experts holds 131088 slots: at most 131072"),
    "number of experts by name": (
        lambda d: schedule_on_gpu(zeros(2, 2, dtype=torch.int32, device=d), "4"),
        TypeError, "num_experts must be an int, got str"),
    "no experts": (
        lambda d: schedule_on_gpu(zeros(2, 2, dtype=torch.int32, device=d), 0),
        ValueError, "num_experts=0: allowed are 1 to 512"),
    "order of another length": (
        lambda d: permute(zeros(2, 8, device=d), zeros(3, dtype=torch.int32, device=d), 2),
        ValueError, "order must have shape [4], got [3]"),
    "order of floats": (
        lambda d: permute(zeros(2, 8, device=d), zeros(4, device=d), 2),
        TypeError, "order must be torch.int32 or torch.int64, got torch.bfloat16"),
    "outputs that lie apart": (
        lambda d: unpermute_combine(
            zeros(4, 8, device=d)[:, :6], zeros(4, dtype=torch.int32, device=d), zeros(2, 2, dtype=FP32, device=d)),
        ValueError, "expert_out must be contiguous"),
    "too few weights": (
        lambda d: unpermute_combine(
            zeros(4, 8, device=d), zeros(4, dtype=torch.int32, device=d), zeros(1, 2, dtype=FP32, device=d)),
        ValueError, "weights [1, 2] must hold one weight for each of the 4 slots"),
    "weights in 16 bits": (
        lambda d: unpermute_combine(
            zeros(4, 8, device=d), zeros(4, dtype=torch.int32, device=d), zeros(2, 2, device=d)),
        TypeError, "weights must be torch.float32, got torch.bfloat16"),
    "gate and up of two shapes": (
        lambda d: silu_mul(zeros(2, 8, device=d), zeros(2, 9, device=d)),
        ValueError, "up must have shape [2, 8], got [2, 9]"),
    "a gate that lies apart": (
        lambda d: silu_mul(zeros(2, 9, device=d)[:, :8], zeros(2, 8, device=d)),
        ValueError, "gate must be contiguous"),
    "no schedule": (
        lambda d: grouped_gemm(zeros(SLOTS, HIDDEN, device=d), zeros(EXPERTS, FFN, HIDDEN, device=d), None),
        TypeError, "schedule must be a Schedule, got NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", STEP_ERRORS)
def test_single_steps(wrong, device):
    call, error, message = STEP_ERRORS[wrong]
    with pytest.raises(error, match=re.escape(message)):
        call(device)


GEMM_ERRORS = {
    "weights of another k": (
        grouped_gemm,
        (EXPERTS, FFN, 31),
        SLOTS,
        "weights must have shape [6, n, 32], got [6, 16, 31]",
    ),
    "weights of other experts": (grouped_gemm, (5, FFN, HIDDEN), SLOTS, "weights must have shape [6, n, 32]"),
    "rows of another batch": (grouped_gemm, (EXPERTS, FFN, HIDDEN), 7, "schedule.order must have shape [7], got [8]"),
    "an odd stack": (fused_gate_up, (EXPERTS, 15, HIDDEN), SLOTS, "gate_up must hold as many gate as up rows, got 15"),
    "a stack of another k": (fused_gate_up, (EXPERTS, 16, 31), SLOTS, "gate_up must have shape [6, 2 * ffn, 32]"),
}


@pytest.mark.parametrize("wrong", GEMM_ERRORS)
def test_grouped_gemms(wrong, device):
    gemm, shape, num_rows, message = GEMM_ERRORS[wrong]
    schedule = schedule_on_host(torch.zeros(TOKENS, TOP_K, dtype=torch.int32, device=device), EXPERTS)
    with pytest.raises(ValueError, match=re.escape(message)):
        gemm(zeros(num_rows, HIDDEN, device=device), zeros(*shape, device=device), schedule)


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


def test_cpu_tensors_without_the_interpreter(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="x is on cpu: move it to a GPU, or for CPU tensors set TRITON_INTERPRET=1"):
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
