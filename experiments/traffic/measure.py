"""`traffic`: bytes that a forward moves, by the traffic model, in Triton's interpreter, or by hardware counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..implementation.contract import Implementation
from ..measure.measurement import INTERPRETER_FLOPS, Measurement, Rows, by_point
from ..table import columns
from ..table.columns import Column
from ..table.provenance import INTERPRETER
from ..workload.case import Case

if TYPE_CHECKING:
    from ..measure.bench import Bench

COUNTERS = "counters"
"""The method that asks the hardware, through Nsight Compute."""


class Traffic(Measurement):
    """results/<device>/traffic.csv: bytes per stage and tensor, stage `total` for the whole forward.

    A method that cannot tell leaves a column empty.
    """

    kind = "traffic"
    modes = ("model", "interpreter", COUNTERS)
    mode_column = "method"
    key = ("case_hash", "implementation", "stage", "tensor", "method")
    blank = MappingProxyType({"stage": "total", "tensor": "all"})
    depends = ("workload", "traffic")
    timed = False
    columns = (
        *columns.RUN, *columns.CASE, *columns.IMPLEMENTATION,
        Column("stage", str, "Stage of the pipeline, or kernel; `total` for the whole forward."),
        Column("tensor", str, "Tensor that was read or written; `all` where tensors are not told apart."),
        Column("method", str, "`model`, `interpreter` (issued accesses) or `counters` (traffic of DRAM)."),
        *columns.STATUS,
        Column("read_bytes", float, "Bytes read: every access issued, or from DRAM into L2 (counters).", least=0),
        Column("write_bytes", float, "Bytes written: every access issued, or from L2 into DRAM (counters).", least=0),
        Column("unique_read_bytes", float, "Bytes read, each address once per stage.", least=0),
        Column("unique_write_bytes", float, "Bytes written, each address once per stage.", least=0),
        Column("l2_bytes", float, "Bytes through the L2, both ways, by counters.", least=0),
        columns.MIN_BYTES, columns.FLOPS, columns.ACTIVE_EXPERTS, *columns.ENVIRONMENT,
    )  # fmt: skip

    def measure(self, implementation: Implementation, case: Case, modes: list[str], bench: Bench) -> Rows:
        """Rows of counted bytes by each method but `counters`."""
        return measure_traffic(implementation, case, modes, bench)

    def ahead(
        self, implementation: str, cases: Sequence[Case], modes: list[str], job: dict[str, Any],
        begin: Callable[[Case], None],
    ) -> tuple[dict[str, Rows], list[str]]:  # fmt: skip
        """Counts by hardware: all cases in one go, before the worker takes GPU memory."""
        from .counters import ncu

        if COUNTERS not in modes:
            return {}, modes
        left = [mode for mode in modes if mode != COUNTERS]
        if job["environment"]["device"] == INTERPRETER:
            row = self.failed(COUNTERS, "unavailable", "needs an NVIDIA GPU, and this machine has none")
            return {case.case_hash: [row] for case in cases}, left
        return ncu.profile(implementation, cases, job, begin), left

    def planned_config(self, implementation: Implementation, case: Case) -> str | None:
        """Without a GPU, the tiles that the models count, which are not those that this machine would choose."""
        import torch

        from .rows import config_of

        counted = None if torch.cuda.is_available() else config_of(case, implementation.name)
        return counted or super().planned_config(implementation, case)

    def complete(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The last row of each forward."""
        return rows[rows["stage"] == "total"]

    def seconds(self, results: int, points: int, systems: int, modes: Sequence[str]) -> float:
        """Under the profiler a start takes longer, and it halts at every kernel."""
        profiled = 12 * systems + 1.2 * points if COUNTERS in modes else 0.0
        return super().seconds(results, points, systems, modes) + profiled

    def needs_gpu(self, modes: Sequence[str]) -> bool:
        return COUNTERS in modes

    def refusal(self, cases: Sequence[Case], modes: Sequence[str]) -> str:
        if COUNTERS not in modes:
            return ""
        return f"no NVIDIA GPU here, which modes={COUNTERS} needs: study=traffic counts bytes without one"

    def closing_table(self, rows: pd.DataFrame) -> str:
        totals = self.complete(rows) if len(rows) else rows
        if totals.empty:
            return ""
        moved = totals.assign(megabytes=(totals["read_bytes"] + totals["write_bytes"]) / 1e6)
        table = by_point(moved, "megabytes", also=["method"])
        note = "MB by one forward: issued (model, interpreter) or in DRAM (counters)"
        return f"{table.round(2).to_string()}\n{note}"


def measure_traffic(implementation: Implementation, case: Case, methods: list[str], bench: Bench) -> Rows:
    from .rows import traffic_rows

    rows: Rows = []
    for method in methods:
        if method == "interpreter" and case.flops > INTERPRETER_FLOPS:
            rows.append(Traffic().failed(method, "unsupported", "too large for Triton's interpreter"))
        else:
            rows += traffic_rows(case, implementation.name, method)
    return rows
