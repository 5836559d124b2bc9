"""e4m3 in kernels, bit by bit against PyTorch's own type."""

import pytest
import torch
import triton
import triton.language as tl

from tritonmoe_bench.experiments.workload.reference import quantize_fp8
from tritonmoe_bench.kernels.fast.e4m3 import launch_quantize_rows, unpack_e4m3


@triton.jit
def _unpack_kernel(raw, out, N: tl.constexpr):
    place = tl.arange(0, N)
    tl.store(out + place, unpack_e4m3(tl.load(raw + place), out.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("as_bits", [False, True])
def test_every_number_is_unpacked_exactly(device, dtype, as_bits):
    numbers = torch.arange(256, dtype=torch.uint8, device=device)
    numbers = torch.where((numbers & 0x7F) == 0x7F, 0, numbers).to(torch.uint8)  # no NaN
    out = torch.empty(256, dtype=dtype, device=device)
    _unpack_kernel[(1,)](numbers if as_bits else numbers.view(torch.float8_e4m3fn), out, N=256)
    expected = numbers.view(torch.float8_e4m3fn).float()
    assert torch.equal(out.float(), expected)
    assert torch.equal(torch.signbit(out), torch.signbit(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "columns"), [(1, 128), (5, 384), (33, 256)])
def test_rows_are_quantized_by_groups(device, dtype, tokens, columns):
    generator = torch.Generator().manual_seed(tokens)
    x = (10 * torch.randn(tokens, columns, generator=generator)).to(device, dtype)
    x[0, :128] = 0
    values, scales = launch_quantize_rows(x)
    groups = x.float().unflatten(1, (-1, 128))
    torch.testing.assert_close(scales, groups.abs().amax(-1).clamp(min=1e-12) / 448, rtol=2e-7, atol=0)
    held = values.float().unflatten(1, (-1, 128)) * scales[..., None]
    # A quotient on the border of two numbers may go either way: the scales differ in their last bit.
    apart = (held.flatten(1) - quantize_fp8(x.float())).abs()
    assert float((apart / quantize_fp8(x.float()).abs().clamp(min=1e-3)).max()) < 0.13
    assert float((apart > 1e-5).float().mean()) < 0.01


def test_rows_may_be_apart(device):
    wide = torch.randn(4, 512, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)
    values, scales = launch_quantize_rows(wide[:, :256])
    again, same = launch_quantize_rows(wide[:, :256].contiguous())
    assert torch.equal(values.view(torch.uint8), again.view(torch.uint8))
    assert torch.equal(scales, same)
