"""Measures one implementation on one case: checks its output first, then launches, memory and time.

Runs inside a worker process. Returns dictionaries with the columns of experiments/table/store.py that it knows.
"""

from __future__ import annotations

from typing import Any

import torch

from ..implementation.contract import Implementation
from ..workload.case import Case
from ..workload.routing import activations, draw_routing
from .bench import Bench, _bind, _gate
from .resources import count_launches, workspace_bytes
from .timing import time_calls, weight_sets


def measure_layer(
    implementation: Implementation, case: Case, launches: list[str], bench: Bench
) -> list[dict[str, Any]]:
    """One row a launch mode for the whole forward."""
    routing = draw_routing(case)
    x = activations(case, routing, bench.device)
    count = 1
    if bench.timed:
        active_bytes = routing.active_experts * case.expert_bytes
        count = weight_sets(active_bytes, bench.l2_bytes, case.weight_bytes, bench.settings)
    sets = bench.weights(case, max(count, 1))
    forwards = [implementation.build(case, weights) for weights in sets]
    shared: dict[str, Any] = {}
    verify = None
    with torch.inference_mode():
        if implementation.computes_layer:
            reference, torch_error = bench.reference(case, x, sets[0])
            verify = _gate(reference, torch_error)
            shared["rel_error"] = verify(forwards[0](x))
            shared["torch_rel_error"] = torch_error
        if bench.timed:
            shared["workspace_bytes"] = workspace_bytes(lambda: forwards[0](x))
            shared["kernel_launches"], shared["host_syncs"] = count_launches(lambda: forwards[0](x))
        rows = []
        for launch in launches:
            row = {"launch": launch, "timing_method": "none", "status": "ok", "reason": "", **shared}
            if launch == "graph" and (not bench.timed or implementation.host_sync):
                reason = implementation.host_sync or "a CUDA graph needs an NVIDIA GPU"
                row = {"launch": launch, "timing_method": "none", "status": "unsupported", "reason": reason}
            elif bench.timed:
                calls = [_bind(forward, x) for forward in forwards]
                timing = time_calls(calls, launch, bench.settings, flush=count == 0, verify=verify)
                row |= {
                    "timing_method": timing.method, "p50_us": timing.p50_us, "p20_us": timing.p20_us,
                    "p80_us": timing.p80_us, "samples": timing.samples,
                    "tokens_per_s": 1e6 * case.tokens / timing.p50_us,
                }  # fmt: skip
            rows.append(row | {"config": implementation.config(case)})
    return rows
