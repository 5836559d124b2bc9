"""`layer`: the latency of whole forwards, checked first, with their launches and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from ..implementation.contract import Implementation
from ..table import columns
from ..table.columns import Column
from ..table.errors import error_text
from ..table.limits import BELOW_MARK, LIMIT, below_limit
from ..workload.case import Case
from .measurement import Measurement, Rows, by_point

if TYPE_CHECKING:
    from .bench import Bench


class Layer(Measurement):
    """results/<device>/<study>.csv: one row per case, system and launch mode."""

    kind = "layer"
    limited = True
    columns = (
        *columns.RUN, *columns.CASE, *columns.IMPLEMENTATION, columns.LAUNCH, columns.TIMING_METHOD, *columns.STATUS,
        *columns.LATENCY, columns.TOKENS_PER_S, columns.ACTIVE_EXPERTS, columns.MAX_EXPERT_LOAD, columns.MIN_BYTES,
        columns.FLOPS, columns.STREAM_US, columns.LIMIT_US, *columns.ERRORS,
        Column("workspace_bytes", float, "Device memory that one forward takes, output included.", least=0),
        Column("kernel_launches", float, "Kernels of one forward, without copies and fills.", least=0),
        Column("host_syncs", float, "Times that the host waits for the GPU in one forward."),
        *columns.ENVIRONMENT,
    )  # fmt: skip

    def measure(self, implementation: Implementation, case: Case, modes: list[str], bench: Bench) -> Rows:
        """One row per launch mode for the whole forward."""
        return measure_layer(implementation, case, modes, bench)

    def closing_table(self, rows: pd.DataFrame) -> str:
        """Per point: latency of each system at its best, its share of the limit, its ratio to Megablocks; without
        latencies, how right each system is."""
        timed = rows[rows["p50_us"].notna()] if len(rows) else rows
        return _latencies(timed) if len(timed) else _errors(rows) if len(rows) else ""


def measure_layer(implementation: Implementation, case: Case, launches: list[str], bench: Bench) -> Rows:
    import torch

    from .bench import prepare
    from .resources import count_launches, workspace_bytes
    from .timing import time_calls

    shared: dict[str, Any] = {}
    ready = prepare(implementation, case, bench)
    forward, x, gate = ready.forwards[0], ready.x, ready.gate
    with torch.inference_mode():
        if gate is not None:
            shared["rel_error"] = gate.check(forward(x))
            shared["torch_rel_error"] = gate.torch_error
        if bench.timed:
            shared["workspace_bytes"] = workspace_bytes(lambda: forward(x))
            shared["kernel_launches"], shared["host_syncs"] = count_launches(lambda: forward(x))
        elif gate is not None:
            gate.check_again(lambda: forward(x))
        rows = []
        for launch in launches:
            row = {"launch": launch, "timing_method": "none", "status": "ok", "reason": "", **shared}
            if launch == "graph" and (not bench.timed or implementation.host_sync):
                reason = implementation.host_sync or "a CUDA graph needs an NVIDIA GPU"
                row = {"launch": launch, "timing_method": "none", "status": "unsupported", "reason": reason}
            elif bench.timed:
                timing = time_calls(ready.calls, launch, bench.settings, flush=ready.flush, **ready.checks)
                row |= {
                    "timing_method": timing.method, "p50_us": timing.p50_us, "p20_us": timing.p20_us,
                    "p80_us": timing.p80_us, "samples": timing.samples,
                    "tokens_per_s": 1e6 * case.tokens / timing.p50_us,
                }  # fmt: skip
            rows.append(row | {"config": implementation.config(case)})
    return rows


def _latencies(timed: pd.DataFrame) -> str:
    best = timed.sort_values("p50_us").drop_duplicates(["case_hash", "implementation"])
    megablocks = best[best["implementation"].str.startswith("megablocks")].groupby("case_hash")["p50_us"].min()
    best = best.assign(
        share=100 * best["limit_us"] / best["p50_us"],
        ratio=best["case_hash"].map(megablocks) / best["p50_us"],
        below=below_limit(best),
    )
    cells = best.assign(cell=best.apply(_cell, axis=1))
    table = by_point(cells, "cell")
    order = best.groupby("implementation")["p50_us"].median().sort_values(kind="stable").index
    lines = [
        table[list(order)].fillna("-").to_string(),
        "best launch mode: latency in us, share of the measured limit, speed over the best Megablocks path",
        "largest error over PyTorch's own with the same bits: " + ", ".join(_largest_errors(best, order)),
    ]
    if best["below"].any():
        lines.append(
            f"{BELOW_MARK}: faster than the measured limit: the system leaves something out, or the limit is wrong"
        )
    return "\n".join(lines)


def _largest_errors(best: pd.DataFrame, systems: pd.Index) -> list[str]:
    """`fast 1.02 a8` of each system whose output was checked, at the case where it is furthest from the reference."""
    known = best.assign(over=best["rel_error"] / best["torch_rel_error"]).dropna(subset="over")
    worst = known.sort_values("over").drop_duplicates("implementation", keep="last").set_index("implementation")
    return [f"{name} {error_text(worst.loc[name])}" for name in systems if name in worst.index]


def _cell(row: pd.Series) -> str:
    share = f"{row['share']:.0f}%{BELOW_MARK * row['below']}" if pd.notna(row["share"]) else ""
    ratio = f"{row['ratio']:.2f}x" if pd.notna(row["ratio"]) else ""
    return " ".join(filter(None, [f"{row['p50_us']:.0f}", share, ratio]))


def _errors(rows: pd.DataFrame) -> str:
    """A line per system that was run and not timed."""
    lines: list[str] = []
    for name, group in rows.groupby("implementation", sort=False):
        points, worst = group["case_hash"].nunique(), group["rel_error"].max()
        if name == LIMIT or pd.isna(worst):
            lines.append(f"  {name}: ran at {points} points; its output is not the layer's")
        else:
            plain = group.loc[group["rel_error"] == worst, "torch_rel_error"].iloc[0]
            lines.append(f"  {name}: right at {points} points, error at most {worst:.2g} (PyTorch's own {plain:.2g})")
    return "\n".join(["not timed, checked against the float32 reference:", *lines])
