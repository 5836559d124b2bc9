"""Measures a forward stage by stage."""

from __future__ import annotations

from typing import Any

import torch

from ..implementation.contract import Implementation
from ..workload.case import Case
from ..workload.routing import activations, draw_routing
from .bench import Bench
from .timing import time_calls


def measure_stages(
    implementation: Implementation, case: Case, launches: list[str], bench: Bench
) -> list[dict[str, Any]]:
    """One row a stage and launch mode. A stage that runs for less than the L2 needs to turn over is flushed before."""
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
                    "stage": stage,
                    "launch": launch,
                    "timing_method": "none",
                    "status": "ok",
                    "reason": "",
                }
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
