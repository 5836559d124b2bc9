"""`stages`: the latency of each stage of a forward by itself."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..implementation.contract import Implementation
from ..table import columns
from ..table.columns import FORWARD_KEY, Column
from ..workload.case import Case
from .measurement import Measurement, Rows, by_point

if TYPE_CHECKING:
    from .bench import Bench


class Stages(Measurement):
    """results/<device>/stages.csv: one row per case, system, launch mode and stage of its pipeline."""

    kind = "stages"
    key = (*FORWARD_KEY, "stage")
    blank = MappingProxyType({"timing_method": "none", "stage": "all"})
    columns = (
        *columns.RUN, *columns.CASE, *columns.IMPLEMENTATION,
        Column("stage", str, "Stage of the pipeline; `all` in a row without a result."),
        columns.LAUNCH, columns.TIMING_METHOD, *columns.STATUS, *columns.LATENCY, columns.MIN_BYTES, columns.FLOPS,
        columns.ACTIVE_EXPERTS, columns.MAX_EXPERT_LOAD, *columns.ENVIRONMENT,
    )  # fmt: skip

    def measure(self, implementation: Implementation, case: Case, modes: list[str], bench: Bench) -> Rows:
        """One row per stage and launch mode."""
        return measure_stages(implementation, case, modes, bench)

    def closing_table(self, rows: pd.DataFrame) -> str:
        timed = rows[rows["p50_us"].notna()] if len(rows) else rows
        if timed.empty:
            return ""
        return by_point(timed, "p50_us", columns="stage", also=["implementation", "launch"]).round(1).to_string()


def measure_stages(implementation: Implementation, case: Case, launches: list[str], bench: Bench) -> Rows:
    """A stage that runs for less than the L2 needs to turn over is flushed before."""
    import torch

    from ..workload.routing import activations, draw_routing
    from .timing import time_calls

    routing = draw_routing(case)
    x = activations(case, routing, bench.device)
    weights = bench.weights(case, 1)[0]
    rows = []
    with torch.inference_mode():
        stages = implementation.stages(case, weights, x)
        if not stages:
            raise ValueError(f"{implementation.name} does not offer its stages one by one")
        for stage, call in stages:
            for launch in launches:
                row: dict[str, Any] = {
                    "stage": stage, "launch": launch, "timing_method": "none", "status": "ok", "reason": "",
                }  # fmt: skip
                if launch == "graph" and implementation.host_sync:
                    row |= {"status": "unsupported", "reason": implementation.host_sync}
                elif bench.timed:
                    timing = time_calls([call], launch, bench.settings, flush=stage != "expert_ffn")
                    row |= {
                        "timing_method": timing.method, "p50_us": timing.p50_us, "p20_us": timing.p20_us,
                        "p80_us": timing.p80_us, "samples": timing.samples,
                    }  # fmt: skip
                else:
                    call()
                rows.append(row | {"config": implementation.config(case)})
    return rows
