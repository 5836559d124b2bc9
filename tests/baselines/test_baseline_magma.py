"""`magma_vbatched`: a row with its reason for every case, and nothing that runs."""

import pytest

from tritonmoe_bench.baselines.magma_vbatched import MagmaVbatched
from tritonmoe_bench.experiments.implementation.contract import Status
from tritonmoe_bench.experiments.workload.case import Case


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_it_is_unsupported_with_the_reason_and_never_runs(dtype):
    case, adapter = Case("tiny", 8, 2, 128, 256, 1, dtype=dtype), MagmaVbatched()
    check = adapter.check(case)
    assert check.status is Status.UNSUPPORTED
    assert f"no variable-size batched GEMM in {dtype}" in check.reason
    assert adapter.version() == ""
    with pytest.raises(NotImplementedError, match="MAGMA"):
        adapter.build(case, weights=None)
