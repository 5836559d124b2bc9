"""Packing and unpacking of weight formats, bit by bit against slow references and other people's number types."""

import ml_dtypes
import numpy as np
import pytest
import torch

from tritonmoe_bench.kernels.formats import formats
from tritonmoe_bench.kernels.formats.fp8_block import Fp8Block
from tritonmoe_bench.kernels.formats.int4 import Int4, Int4Group32
from tritonmoe_bench.kernels.formats.mxfp4 import MAGNITUDES, Mxfp4

FORMATS = pytest.mark.parametrize("kind", formats().values(), ids=formats())


def weights(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_formats_are_found():
    assert formats() == {"fp8_block": Fp8Block, "int4": Int4, "int4_g32": Int4Group32, "mxfp4": Mxfp4}


@pytest.mark.parametrize("kind", [Fp8Block, Mxfp4])
def test_packed_again_they_stay_as_they_are(kind):
    """Not so for int4, whose largest number above zero is less than its scale allows for."""
    once = kind.pack(weights(2, 128, 256))
    again = kind.pack(once.unpack())
    assert torch.equal(again.unpack(), once.unpack())


@FORMATS
def test_shape_and_bytes(kind):
    packed = kind.pack(weights(3, 256, 384))
    assert packed.shape == (3, 256, 384) == tuple(packed.unpack().shape)
    assert packed.nbytes == 3 * kind.matrix_bytes(256, 384)
    assert packed[1].shape == (1, 256, 384)
    assert torch.equal(packed[1].unpack(), packed.unpack()[1:2])


@FORMATS
@pytest.mark.parametrize("scale", [1.0, 1e-4, 3e4, 0.0])
def test_the_error_is_that_of_the_format(kind, scale):
    dense = scale * weights(1, 128, 256)
    error = (kind.pack(dense).unpack() - dense).abs()
    steps = {"fp8_block": 2**-4, "mxfp4": 0.5 / 4}.get(kind.name, 0.5 / 7.5 + 2**-8)
    # The half step of the widest interval, over the largest number near it; a clipped group of mxfp4 loses 2 of 8.
    assert float(error.max()) <= (2 if kind.name == "mxfp4" else 1) * steps * float(dense.abs().max()) + 1e-30


@pytest.mark.parametrize(("rows", "columns"), [(64, 128), (128, 192)])
def test_fp8_refuses_part_blocks(rows, columns):
    with pytest.raises(ValueError, match=r"fp8_block takes (rows|columns) in whole groups of 128: got"):
        Fp8Block.pack(weights(1, rows, columns))


@pytest.mark.parametrize(("kind", "columns"), [(Mxfp4, 48), (Int4, 96)])
def test_groups_must_be_whole(kind, columns):
    with pytest.raises(ValueError, match=f"{kind.name} takes columns in whole groups of"):
        kind.pack(weights(1, 16, columns))


def test_fp8_bit_by_bit():
    packed = Fp8Block.pack(weights(2, 256, 256))
    values = packed.values.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    for expert in range(2):
        for row in range(0, 256, 37):
            for column in range(0, 256, 41):
                scale = packed.scales[expert, row // 128, column // 128].numpy()
                assert packed.unpack()[expert, row, column].numpy() == values[expert, row, column] * scale
    dense = weights(2, 256, 256).numpy()
    for expert, row, column in ((0, 0, 0), (1, 1, 0)):
        block = dense[expert, 128 * row : 128 * row + 128, 128 * column : 128 * column + 128]
        scale = np.abs(block).max() / np.float32(448)
        assert packed.scales[expert, row, column].numpy() == scale
        expected = (block / scale).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        found = packed.values.view(torch.uint8)[expert, 128 * row : 128 * row + 128, 128 * column : 128 * column + 128]
        assert np.array_equal(found.numpy(), expected)


def test_mxfp4_bit_by_bit():
    dense = weights(1, 4, 64)
    packed = Mxfp4.pack(dense)
    scales = packed.scales.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    for row in range(4):
        for group in range(2):
            block = dense[0, row, 32 * group : 32 * group + 32].numpy()
            scale = 2.0 ** (np.floor(np.log2(np.abs(block).max())) - 2)
            assert scales[0, row, group] == scale
            expected = (block / scale).astype(ml_dtypes.float4_e2m1fn)
            found = packed.unpack()[0, row, 32 * group : 32 * group + 32].numpy() / scale
            assert np.array_equal(found, expected.astype(np.float32))
            codes = packed.values[0, row, 16 * group : 16 * group + 16].numpy()
            assert np.array_equal(codes & 0xF, expected.view(np.uint8)[0::2])
            assert np.array_equal(codes >> 4, expected.view(np.uint8)[1::2])


def test_mxfp4_knows_every_number():
    numbers = torch.tensor([[[*MAGNITUDES, *(-number for number in MAGNITUDES)] * 2]])
    packed = Mxfp4.pack(numbers)
    assert packed.scales.item() == 127
    assert torch.equal(packed.unpack(), numbers)
    assert packed.values[0, 0, :8].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]


def test_mxfp4_of_a_checkpoint():
    packed = Mxfp4.pack(weights(2, 6, 64))
    blocks, scales = packed.values.reshape(2, 6, 2, 16), packed.scales
    assert torch.equal(Mxfp4.from_checkpoint(blocks, scales).unpack(), packed.unpack())
    both = Mxfp4.from_checkpoint(blocks, scales, interleaved=True).unpack()
    dense = packed.unpack()
    assert torch.equal(both, torch.cat([dense[:, 0::2], dense[:, 1::2]], dim=1))


def test_fp8_of_a_checkpoint():
    packed = Fp8Block.pack(weights(2, 128, 256))
    again = Fp8Block.from_checkpoint(packed.values, packed.scales)
    assert torch.equal(again.unpack(), packed.unpack())
    with pytest.raises(ValueError, match=r"weight_scale_inv must have shape \[2, 1, 2\], got \[2, 2, 1\]"):
        Fp8Block.from_checkpoint(packed.values, packed.scales.transpose(1, 2))
    with pytest.raises(TypeError, match="weight must be"):
        Fp8Block.from_checkpoint(packed.values.float(), packed.scales)


@pytest.mark.parametrize(("kind", "group"), [(Int4, 128), (Int4Group32, 32)])
def test_int4_bit_by_bit(kind, group):
    dense = weights(1, 3, 256).bfloat16()
    packed = kind.pack(dense)
    assert packed.scales.shape == (1, 3, 256 // group)
    assert packed.scales.dtype == torch.bfloat16
    for row in range(3):
        for column in range(256):
            part = dense[0, row, column // group * group : (column // group + 1) * group].float()
            scale = (part.abs().max() / 7.5).bfloat16().float()
            code = int(torch.clamp(torch.round(dense[0, row, column].float() / scale), -8, 7)) + 8
            byte = int(packed.values[0, row, column // 2])
            assert (byte >> 4 if column % 2 else byte & 0xF) == code
            assert packed.unpack()[0, row, column] == (code - 8) * scale


def test_int4_of_a_gptq_checkpoint():
    packed = Int4.pack(weights(2, 5, 256).half())
    low, high = packed.values & 0xF, packed.values >> 4
    codes = torch.stack([low, high], -1).reshape(2, 5, 256).transpose(1, 2).reshape(2, 32, 8, 5).to(torch.int64)
    words = sum(codes[:, :, at] << (4 * at) for at in range(8))
    qweight = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    again = Int4.from_gptq(qweight, packed.scales.transpose(1, 2))
    assert torch.equal(again.unpack(), packed.unpack())
    with pytest.raises(ValueError, match="int4_g32 has a scale per 32 columns, these tensors one per 128"):
        Int4Group32.from_gptq(qweight, packed.scales.transpose(1, 2))
