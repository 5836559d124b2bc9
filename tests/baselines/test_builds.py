"""What the build tools make lies where the adapters look for it."""

from pathlib import Path

import pytest
from tiny_layer import load

from tritonmoe_bench.baselines import cutlass_grouped, megablocks
from tritonmoe_bench.baselines.install import trees

BUILDS = Path(__file__).resolve().parents[2] / "baselines" / "builds"


@pytest.mark.parametrize(
    ("script", "folder"),
    [
        ("megablocks/build.py", megablocks.FOLDER),
        ("cutlass/build.py", cutlass_grouped.FOLDER),
        ("offline/prune_vllm.py", trees.FOLDER),
        ("offline/prune_sglang.py", trees.folder("sglang")),
        ("offline/prune_deepspeed.py", trees.folder("deepspeed")),
        ("offline/prune_deep_gemm.py", trees.folder("deep_gemm")),
    ],
)
def test_a_build_lands_where_its_adapter_looks(script, folder, monkeypatch):
    path = BUILDS / script
    monkeypatch.syspath_prepend(path.parent)  # as when it is run as a file
    assert folder == load(path).DEFAULT_OUT
