"""A kernel's second launch is what Triton would have launched, whatever changed in between."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from moe_cases import make_layer

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.kernels.integers import cdiv, next_power_of_2

PROGRAM = Path(__file__).with_name("launch_process.py")


def test_it_launches_what_triton_does():
    environment = checkout.program_environment(TRITON_INTERPRET="0")
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" launches agree\n")


def views(x: torch.Tensor) -> list[torch.Tensor]:
    """The same rows at other places: at whole 16 bytes and not, with strides that 16 divides and not."""
    tokens, hidden = x.shape
    made = []
    for begin, width in ((0, hidden), (1, hidden + 16), (8, hidden + 16), (3, hidden + 5), (16, 2 * hidden)):
        room = torch.full((tokens, begin + width), torch.nan, dtype=x.dtype, device=x.device)
        made.append(room[:, begin : begin + hidden].copy_(x))
    return made


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_views_of_every_alignment_in_turn(tokens, device):
    layer = make_layer(device, tokens=tokens, experts=6, top_k=2, hidden=64, ffn=48)
    every = views(layer.x)
    outputs = []
    for x in every * 3:
        layer.x = x
        outputs.append(layer.assert_fast_right())
    for i, y in enumerate(outputs):  # another alignment may sum in another order, the same one may not
        assert torch.equal(y, outputs[i % len(every)])


def test_dtypes_and_sizes_in_turn(device):
    layers = [
        make_layer(device, tokens=tokens, experts=experts, top_k=2, hidden=hidden, ffn=48, dtype=dtype)
        for tokens, experts, hidden, dtype in (
            (3, 6, 64, "fp16"),
            (3, 6, 64, "bf16"),
            (3, 7, 72, "fp16"),
            (1, 6, 64, "fp16"),
        )
    ]
    first = [layer.assert_fast_right() for layer in layers]
    for layer, y in zip(layers, first):
        assert torch.equal(layer.fast(), y)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="about two GPUs")
def test_devices_in_turn():
    """What is compiled and checked belongs to the GPU that launches."""
    layers = [make_layer(f"cuda:{i}", tokens=5, experts=6, top_k=2, hidden=64, ffn=48) for i in range(2)]
    for _ in range(2):
        for i, layer in enumerate(layers):
            with torch.cuda.device(i):
                layer.assert_fast_right()
            with torch.cuda.device(1 - i), pytest.raises(ValueError, match="but the current device is"):
                layer.fast()


def test_whole_numbers():
    for number in range(1, 300):
        assert next_power_of_2(number) >= number > next_power_of_2(number) // 2
        assert next_power_of_2(number).bit_count() == 1
        for by in (1, 2, 7, 128):
            assert cdiv(number, by) * by >= number > (cdiv(number, by) - 1) * by
