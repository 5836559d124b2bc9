"""How other systems are handed our packed weights: the codes and scales that Marlin and Humming get mean the same."""

import pytest
import torch

from tritonmoe_bench.baselines.parts import humming_gemm, marlin
from tritonmoe_bench.experiments.workload.reference import quantize_fp8
from tritonmoe_bench.kernels.formats import formats

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FORMATS = ("fp8_block", "mxfp4", "int4", "int4_g32")
ROWS, COLUMNS = 256, 384


@pytest.fixture(params=FORMATS)
def packed(request):
    weights = torch.randn(2, ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    return formats()[request.param].pack(weights)


def numbers(name, codes):
    """What codes, uint8, stand for."""
    if name == "fp8_block":
        return codes.view(torch.float8_e4m3fn).float()
    if name == "mxfp4":
        return torch.tensor([*E2M1, *(-one for one in E2M1)])[codes.long()]
    return codes.float() - 8


def scaled(name, codes, scales):
    return numbers(name, codes) * scales.float().repeat_interleave(codes.shape[-1] // scales.shape[-1], -1)


def test_marlin_codes_and_scales_are_the_weights(packed):
    for index in range(2):
        one = packed[index]
        made = scaled(packed.name, marlin._codes(one), marlin._by_row(one, torch.float32))
        assert torch.equal(made, packed.unpack()[index])


def test_humming_values_and_scales_are_the_weights(packed):
    raw = humming_gemm._values(packed).view(torch.uint8)
    codes = raw if packed.bits == 8 else torch.stack([raw & 0xF, raw >> 4], dim=-1).flatten(-2)
    assert torch.equal(scaled(packed.name, codes, humming_gemm._scales(packed, torch.float32)), packed.unpack())


@pytest.mark.parametrize("name", ["mxfp4", "int4_g32"])
def test_humming_rows_are_padded_with_zeros(name):
    packed = formats()[name].pack(torch.randn(1, 96, COLUMNS))
    values, scales = humming_gemm._values(packed), humming_gemm._scales(packed, torch.bfloat16)
    assert values.shape == (1, 128, COLUMNS // 8)
    assert scales.shape == (1, 128, COLUMNS // 32)
    assert not values[:, 96:].any()
    assert values.data_ptr() != packed.values.data_ptr()
    if name == "mxfp4":  # 2 to the power of 0, so that the padding is 0 times 1
        assert bool((scales[:, 96:].float() == 1).all())


@pytest.mark.parametrize("columns", [256, 2880, 100])
def test_activations_of_8_bits_of_any_width(columns):
    x = torch.randn(4, columns, generator=torch.Generator().manual_seed(1))
    held = quantize_fp8(x)
    assert held.shape == x.shape
    for start in range(0, columns, 128):
        group = slice(start, min(start + 128, columns))
        largest = x[:, group].abs().amax(1, keepdim=True)
        assert bool(((held[:, group] - x[:, group]).abs() <= largest / 16).all())
