"""Every kernel that the pipelines launch, compiled for every target: matrix instructions, no spills, shared memory.

What tests/fixtures/committed/compiled.json has is as it was when it was compiled (tests/kernels/compiled.py).
"""

import compiled
import pytest

from tritonmoe_bench.experiments.targets import matrix
from tritonmoe_bench.experiments.targets.gpus import TARGETS

MATRIX_INSTRUCTION = {
    "sm_80": "mma.sync",
    "sm_90": "wgmma.mma_async",
    "sm_100": "tcgen05.mma",
    "gfx942": "v_mfma",
    "gfx950": "v_mfma",
}
GEMMS = {"gate_up", "down", "fused_gate_up", "grouped_gemm"}


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_default_runs_on_every_target(target, tmp_path, monkeypatch):
    # What an earlier run compiled would hide that the compiler fails now.
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    rows = compiled.rows(target)
    failed = [row for row in rows if row["status"] != "ok"]
    assert not failed, matrix.summary(failed)

    used = {part for row in rows for part in row["matrix_instruction"].split("+")} - {""}
    # Tiles of 16 rows are too low for the larger instructions of NVIDIA's.
    lower = {"mma.sync"} if target.startswith("sm") else set()
    assert MATRIX_INSTRUCTION[target] in used
    assert used <= {MATRIX_INSTRUCTION[target]} | lower
    assert {row["kernel"] for row in rows if row["pipelined"]} >= GEMMS


def test_a_launch_has_another_hash_with_another_source_constant_or_check(monkeypatch):
    launch = {
        "target": "sm_90", "source": "a", "arguments": {"BLOCK": ("constexpr", 16, None)},
        "specialization": '{"options": {"num_warps": 4, "extern_libs": [["libdevice", "/somewhere/libdevice.bc"]]}}',
    }  # fmt: skip
    elsewhere = launch | {"specialization": launch["specialization"].replace("somewhere", "elsewhere")}
    assert compiled.code(elsewhere) == compiled.code(launch)
    others = [
        launch | {"source": "b"}, launch | {"target": "sm_80"},
        launch | {"arguments": {"BLOCK": ("constexpr", 32, None)}},
        launch | {"specialization": launch["specialization"].replace("4", "8")},
    ]  # fmt: skip
    hashes = {compiled.code(launch), *map(compiled.code, others)}
    monkeypatch.setattr(compiled, "CHECKS", ("compile.py",))
    assert len(hashes | {compiled.code(launch)}) == 6
