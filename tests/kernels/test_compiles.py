"""Every kernel, with its default tiles, compiled for every target: matrix instructions, no spills, shared memory."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MATRIX_INSTRUCTION = {
    "sm_80": "mma.sync",
    "sm_90": "wgmma.mma_async",
    "sm_100": "tcgen05.mma",
    "gfx942": "v_mfma",
    "gfx950": "v_mfma",
}
SHARED_BYTES = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64, "gfx950": 160}
"""What one program may take, in KiB."""
PROCESSES = 2
GEMMS = ("fused_gate_up", "gate_up", "down")
OTHERS = {"score_topk", "sort_slots", "list_blocks", "permute", "unpermute_combine", "silu_mul"}
FAST_GEMMS = {"_gate_up_kernel", "_down_kernel"}
FAST_OTHERS = {
    "_logits_kernel", "_top_k_kernel", "_route_small_kernel", "_sort_slots_kernel", "_list_blocks_kernel",
    "_combine_kernel",
}  # fmt: skip
WITHOUT_PDL = {"_sort_slots_kernel"}
"""Launched by `fast`, but shared with the paper's pipelines, whose launches do not overlap."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def probed(request, tmp_path_factory):
    """(probe, target) -> the JSON lines, to come, of what the tests that are selected ask for."""

    def probe(name, target):
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
        command = [sys.executable, str(HERE / name), target]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(PROCESSES) as pool:
        selected = [item for item in request.session.items if item.path == request.path]
        asked = [(item.function.probe, item.callspec.params["target"]) for item in selected]
        yield {(name, target): pool.submit(probe, name, target) for name, target in asked}
        pool.shutdown(cancel_futures=True)


def compiled_by(probe):
    """The test runs once a target, on what `probe` prints for it."""

    def mark(test):
        test.probe = probe
        return pytest.mark.parametrize("target", MATRIX_INSTRUCTION)(test)

    return mark


@compiled_by("compile_fast.py")
def test_fast(target, probed):
    found = probed["compile_fast.py", target].result()
    assert {line["kernel"] for line in found} == FAST_GEMMS | FAST_OTHERS
    assert {line["dtype"] for line in found} == {"torch.bfloat16", "torch.float16"}
    reached = set()
    for line in found:
        # Rows of no whole 16 bytes are loaded two bytes at a time, with more addresses than there are registers.
        assert line["spills"] == 0 or line["size"][0] % 8, line
        assert line["shared_bytes"] <= SHARED_BYTES[target] * 1024, line
        assert line["waits"] == (target in ("sm_90", "sm_100") and line["kernel"] not in WITHOUT_PDL), line
        # Tiles of 16 rows are too low for the larger instructions.
        allowed = {"mma.sync", MATRIX_INSTRUCTION[target]} if target.startswith("sm") else {MATRIX_INSTRUCTION[target]}
        instructions = set(line["matrix_instructions"])
        assert instructions <= allowed, line
        assert bool(instructions) == (line["kernel"] in FAST_GEMMS), line
        reached |= {line["kernel"]} if MATRIX_INSTRUCTION[target] in instructions else set()
    assert reached == FAST_GEMMS


@compiled_by("compile_probe.py")
def test_default_tiles(target, probed):
    found = probed["compile_probe.py", target].result()
    ragged = {f"{name}_ragged" for name in GEMMS}
    assert {line["kernel"] for line in found if line["dtype"] == "bf16"} == {*GEMMS} | ragged | OTHERS
    assert {line["kernel"] for line in found if line["dtype"] == "fp16"} == {*GEMMS}
    for line in found:
        assert line["spills"] == 0, line
        assert line["shared_bytes"] <= SHARED_BYTES[target] * 1024, line
        assert line["matrix_instructions"] == ([] if line["kernel"] in OTHERS else [MATRIX_INSTRUCTION[target]]), line
