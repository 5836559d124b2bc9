"""The router's logits of `fast`: one row a program, split sums, PyTorch's GEMM, and both sides of each choice."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import triton
from fast_cases import Spy
from moe_cases import random

from tritonmoe_bench.kernels import cublas
from tritonmoe_bench.kernels.fast import logits as fast_logits
from tritonmoe_bench.kernels.fast.logits import (
    FEW_TOKENS,
    MANY_EXPERTS,
    MAX_PARTS,
    NARROW,
    NARROW_TOKENS,
    PIECE,
    SPLIT_TOKENS,
    STEP,
    WIDE_TOKENS,
    launch_logits,
)

SHAPES = [
    (1, 5, 77),
    (1, 1, 1),
    (FEW_TOKENS, 131, 77),  # one expert a program
    (3, 2, 5000),  # more than one step
    (2, 128, 64),
    (FEW_TOKENS + 1, 5, 77),
    (FEW_TOKENS + 1, 1, 1),
    (17, 40, PIECE),
    (33, 16, PIECE + 1),
    (70, 33, 1500),
    (SPLIT_TOKENS, 8, 1100),
    (8, 8, MAX_PARTS * PIECE + 900),
    (WIDE_TOKENS, MANY_EXPERTS + 3, 1500),
    (WIDE_TOKENS + 1, MANY_EXPERTS + 3, 1500),
    (WIDE_TOKENS + 1, 16, 1100),
    (300, 260, 2100),
    (SPLIT_TOKENS + 1, 5, 77),
    (200, 60, 700),
]


def inputs(tokens, experts, hidden, dtype, device):
    """x and a router with every weight, where that of a layer has one an expert, so that all systems route alike."""
    x = random(tokens, hidden, dtype=dtype, device=device)
    return x, random(experts, hidden, dtype=dtype, device=device, seed=1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_sum_of_the_parts(shape, dtype, device):
    x, router = inputs(*shape, dtype, device)
    logits = launch_logits(x, router)
    assert logits.dtype == torch.float32
    assert logits.shape[1:] == shape[:2]
    # Exact products, summed in float32 in some order; far more than that would be a rounding to 16 bits.
    expected = x.double() @ router.double().T
    torch.testing.assert_close(logits.double().sum(0), expected, rtol=1e-5, atol=4e-6 * shape[2] ** 0.5)


@pytest.mark.parametrize("shape", [*SHAPES, (40, 260, 7168 // 4)], ids=str)
def test_a_float32_router_is_not_rounded(shape, dtype, device):
    x, _ = inputs(*shape, dtype, device)
    generator = torch.Generator().manual_seed(2)
    router = torch.randn(shape[1], shape[2], generator=generator).to(device)
    logits = launch_logits(x, router).double().sum(0)
    torch.testing.assert_close(logits, x.double() @ router.double().T, rtol=1e-5, atol=4e-6 * shape[2] ** 0.5)


@pytest.mark.parametrize("tokens", [1, FEW_TOKENS + 1, SPLIT_TOKENS, SPLIT_TOKENS + 1, 1000])
def test_a_float32_router_asks_no_product_of_pytorch(tokens, device, monkeypatch):
    x, router = inputs(tokens, 5, 72, "bf16", device)

    def refuse(*_, **__):
        raise AssertionError("a product of PyTorch's was asked for")

    for name in ("mm", "matmul"):
        monkeypatch.setattr(torch, name, refuse)
    monkeypatch.setattr(torch.Tensor, "__matmul__", refuse)
    assert launch_logits(x, router.float()).shape[1:] == (tokens, 5)
    if tokens > SPLIT_TOKENS:
        with pytest.raises(AssertionError, match="a product of PyTorch's"):
            launch_logits(x, router)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="TF32 needs a GPU")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("tokens", [SPLIT_TOKENS, SPLIT_TOKENS + 1, 8192])
def test_no_precision_of_pytorch_s_changes_a_float32_router(tokens, precision, dtype, device):
    x, router = inputs(tokens, 160, 5120, dtype, device)
    router = router.float() * 1.0001
    before = torch.get_float32_matmul_precision()
    expected = launch_logits(x, router)
    torch.set_float32_matmul_precision(precision)
    try:
        logits = launch_logits(x, router)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(logits, expected)
    exact = x.double() @ router.double().T
    torch.testing.assert_close(logits.double().sum(0), exact, rtol=1e-5, atol=4e-6 * 5120**0.5)


@pytest.mark.parametrize("of_router", ["own", "float32"])
@pytest.mark.parametrize("tokens", [SPLIT_TOKENS + 1, 1000])
def test_logits_of_many_tokens_where_cublas_may_not_be_called(tokens, of_router, dtype, device, monkeypatch):
    monkeypatch.setattr(fast_logits, "may_call", lambda device: False)
    x, router = inputs(tokens, 40, 700, dtype, device)
    router = router.float() * 1.0001 if of_router == "float32" else router
    logits = launch_logits(x, router)
    assert logits.shape == (1, tokens, 40)
    torch.testing.assert_close(logits[0].double(), x.double() @ router.double().T, rtol=1e-5, atol=1.1e-4)


def test_cublas_may_be_called_in_a_capture_once_it_was_outside_of_one(monkeypatch):
    """Of each device and thread."""
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    devices = [torch.device("cuda", 6), torch.device("cuda", 7)]
    with ThreadPoolExecutor(1) as fresh:
        assert [fresh.submit(cublas.may_call, device).result() for device in devices] == [False, False]
        capturing = False
        assert fresh.submit(cublas.may_call, devices[0]).result()
        capturing = True
        assert [fresh.submit(cublas.may_call, device).result() for device in devices] == [True, False]
    with ThreadPoolExecutor(1) as other:
        assert not other.submit(cublas.may_call, devices[0]).result()
    assert cublas.may_call(torch.device("cpu"))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (FEW_TOKENS, ["_few_logits_kernel"]),
        (FEW_TOKENS + 1, ["_split_logits_kernel"]),
        (SPLIT_TOKENS, ["_split_logits_kernel"]),
        (SPLIT_TOKENS + 1, []),
    ],
)
def test_both_sides_of_every_choice_by_tokens(tokens, expected, device, monkeypatch):
    names = []
    for name in ("_few_logits_kernel", "_split_logits_kernel"):
        monkeypatch.setattr(fast_logits, name, Spy(getattr(fast_logits, name), names))
    launch_logits(*inputs(tokens, 4, 40, "bf16", device))
    assert names == expected


@pytest.mark.parametrize(("whole", "more", "parts"), [(0, 64, 1), (1, 0, 1), (1, 1, 2), (4, 0, 4), (40, 0, 0)])
@pytest.mark.parametrize(
    ("tokens", "experts", "piece", "step"),
    [
        (FEW_TOKENS + 1, 4, PIECE // NARROW, STEP),
        (NARROW_TOKENS + 1, 4, PIECE, 2 * STEP),
        (WIDE_TOKENS + 1, 4, PIECE, STEP),
        (WIDE_TOKENS + 1, MANY_EXPERTS + 3, 2 * PIECE, STEP),
    ],
)
def test_each_part_sums_its_own_piece(whole, more, parts, tokens, experts, piece, step, device):
    """Of the hidden dimension as so many of the least pieces and some more; parts: 0 for as many as there may be."""
    hidden, parts = whole * piece + more, parts or MAX_PARTS
    # Small integers, whose sums are exact in float32, in any order and however a matrix unit rounds.
    x, router = (part.round().clamp(-8, 8) for part in inputs(tokens, experts, hidden, "fp16", device))
    logits = launch_logits(x, router)
    assert logits.shape[0] == parts
    span = triton.cdiv(triton.cdiv(hidden, parts), step) * step
    for part, sums in enumerate(logits):
        columns = slice(part * span, min((part + 1) * span, hidden))
        expected = x[:, columns].double() @ router[:, columns].double().T
        assert torch.equal(sums.double(), expected)


@pytest.mark.parametrize("tokens", [FEW_TOKENS, FEW_TOKENS + 1, SPLIT_TOKENS + 1])
def test_x_may_have_rows_that_lie_apart(tokens, device):
    x, router = inputs(tokens, 5, 72, "bf16", device)
    apart = torch.nn.functional.pad(x, (0, 24), value=float("nan"))[:, :72]
    # PyTorch may take another GEMM, with another order of sums, for another stride.
    torch.testing.assert_close(
        launch_logits(apart, router), launch_logits(x, router), rtol=1e-6 * (tokens > SPLIT_TOKENS), atol=1e-5
    )


@pytest.mark.parametrize("tokens", [FEW_TOKENS, 20, SPLIT_TOKENS + 1])
def test_a_token_that_is_no_number_stays_alone(tokens, device):
    x, router = inputs(tokens, 5, 600, "bf16", device)
    x[2, 7] = float("nan")
    x[1, 7] = float("inf")
    logits = launch_logits(x, router).sum(0)
    assert logits[2].isnan().all()
    assert torch.equal(logits[1].isposinf(), router[:, 7] > 0)
    assert logits[[row for row in range(tokens) if row not in (1, 2)]].isfinite().all()
