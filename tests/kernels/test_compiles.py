"""Every kernel, with its default tiles, compiled for every target: matrix instructions, no spills, shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).with_name("compile_probe.py")
MATRIX_INSTRUCTION = {
    "sm_80": ["mma.sync"],
    "sm_90": ["wgmma.mma_async"],
    "sm_100": ["tcgen05.mma"],
    "gfx942": ["v_mfma"],
    "gfx950": ["v_mfma"],
}
SHARED_BYTES = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64, "gfx950": 160}
"""What one program may take, in KiB."""
GEMMS = ("fused_gate_up", "gate_up", "down")
OTHERS = {"score_topk", "sort_slots", "list_blocks", "permute", "unpermute_combine", "silu_mul"}


@pytest.mark.slow
@pytest.mark.parametrize("target", MATRIX_INSTRUCTION)
def test_default_tiles(target, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(PROBE), target], capture_output=True, text=True, check=False,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    ragged = {f"{name}_ragged" for name in GEMMS}
    assert {line["kernel"] for line in found if line["dtype"] == "bf16"} == {*GEMMS} | ragged | OTHERS
    assert {line["kernel"] for line in found if line["dtype"] == "fp16"} == {*GEMMS}
    for line in found:
        assert line["spills"] == 0, line
        assert line["shared_bytes"] <= SHARED_BYTES[target] * 1024, line
        assert line["matrix_instructions"] == ([] if line["kernel"] in OTHERS else MATRIX_INSTRUCTION[target]), line
