"""The columns of every CSV, and what a row may hold. Units stand in the names. Imports neither torch nor triton.

A row that is not `ok` carries no timing, and a timed row carries a finite positive one: `validate` refuses the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..implementation.contract import Status

STATUSES = tuple(status.value for status in Status)
TIMING_METHODS = ("chain", "flush", "none")

CASE_COLUMNS = (
    "model", "num_experts", "top_k", "hidden_dim", "ffn_dim", "tokens", "skew", "seed", "dtype", "gating", "quant",
    "case_hash",
)  # fmt: skip
IMPLEMENTATION_COLUMNS = (
    "implementation",
    "implementation_version",
    "revision",
    "method_revision",
    "activations",
    "config",
)
TIMING_COLUMNS = ("p50_us", "p20_us", "p80_us", "samples", "tokens_per_s")
UNSTATED = {"quant": "none", "activations": "a16"}
"""What a row means that was written before there were these columns."""
ENVIRONMENT_COLUMNS = (
    "device", "device_uuid", "driver", "torch", "triton", "git_commit", "git_dirty", "sm_clock_mhz", "timestamp_utc",
)  # fmt: skip

ROW_COLUMNS = (
    "run_id", "study", *CASE_COLUMNS, *IMPLEMENTATION_COLUMNS,
    "launch", "timing_method", "status", "reason", *TIMING_COLUMNS,
    "active_experts", "max_expert_load", "min_bytes", "flops", "stream_us", "limit_us",
    "rel_error", "torch_rel_error", "workspace_bytes", "kernel_launches", "host_syncs", *ENVIRONMENT_COLUMNS,
)  # fmt: skip
"""results/<device>/<study>.csv: one row per case, implementation and launch mode."""

STAGE_COLUMNS = (
    "run_id", "study", *CASE_COLUMNS, *IMPLEMENTATION_COLUMNS, "stage",
    "launch", "timing_method", "status", "reason", "p50_us", "p20_us", "p80_us", "samples",
    "min_bytes", "flops", "active_experts", "max_expert_load", *ENVIRONMENT_COLUMNS,
)  # fmt: skip
"""results/<device>/stages.csv: one row per case, implementation, launch mode and stage of its pipeline."""

TRAFFIC_COLUMNS = (
    "run_id", "study", *CASE_COLUMNS, *IMPLEMENTATION_COLUMNS, "stage", "tensor", "method", "status", "reason",
    "read_bytes", "write_bytes", "unique_read_bytes", "unique_write_bytes", "l2_bytes",
    "min_bytes", "flops", "active_experts", *ENVIRONMENT_COLUMNS,
)  # fmt: skip
"""results/<device>/traffic.csv: bytes per stage and tensor, stage `total` for the whole forward. Of the methods model
and interpreter, read and write count every access that a kernel issues, and the unique columns each address once. Of
the method counters, read and write are what passes between DRAM and L2, and l2_bytes what passes the L2, both ways. A
method that cannot tell leaves a column empty."""

ENERGY_COLUMNS = (
    "run_id", "study", *CASE_COLUMNS, *IMPLEMENTATION_COLUMNS,
    "launch", "timing_method", "status", "reason", "p50_us", "p20_us", "p80_us", "samples",
    "power_w", "energy_mj", "settled_clock_mhz", "power_limit_w",
    "active_experts", "max_expert_load", "min_bytes", "flops", *ENVIRONMENT_COLUMNS,
)  # fmt: skip
"""results/<device>/energy.csv: one row per case, implementation and launch mode. power_w: mean power while forwards ran
back to back; energy_mj: of one forward; settled_clock_mhz: SM clock under that load; power_limit_w: the card's."""

TUNE_COLUMNS = (
    "run_id", "study", *CASE_COLUMNS, *IMPLEMENTATION_COLUMNS, "stage", "round",
    "launch", "timing_method", "status", "reason", "p50_us", "p20_us", "p80_us", "samples", "routings", "gain",
    "rel_error", "torch_rel_error", *ENVIRONMENT_COLUMNS,
)  # fmt: skip
"""results/<device>/tune.csv: one row per case, tile of a stage, and round. stage `forward`: whole tiles, timed in
turns, a round each; stage `choice`: what went into the tuned table, with its gain, the time of the heuristic over that
of the fastest rival. routings: how many routings of the case, with consecutive seeds, one sample runs through."""

PORTABILITY_STATUSES = ("ok", "does_not_compile", "too_much_shared", "spills", "misses_matrix_unit")
PORTABILITY_COLUMNS = (
    "kernel", "config", "dtype", "target", "status", "matrix_instruction", "pipelined", "registers", "spills",
    "shared_bytes", "reason", "implementations", "case",
)  # fmt: skip
"""results/portability.csv: one row per kernel, configuration and target. registers: a thread's; spills: bytes a thread
of local memory; shared_bytes: a program's; pipelined: how loads run ahead; implementations: those that launch it,
joined by "+"; case: one at which they do."""

NAMES = (
    "study", "model", "dtype", "gating", "quant", "activations", "implementation", "stage", "tensor", "launch",
    "method", "device",
)  # fmt: skip
"""Columns of names. A name is text whatever it looks like: 4.5, 007 and NA are models."""
TEXT_COLUMNS = (
    "case_hash", "method_revision", "run_id", "implementation_version", "reason", "config", "git_commit", "torch",
    "triton", "driver",
)  # fmt: skip
"""Columns that a reader must not take for numbers."""

ROW_KEY = ("case_hash", "implementation", "launch")
STAGE_KEY = (*ROW_KEY, "stage")
TUNE_KEY = ("case_hash", "implementation", "stage", "config", "round")
TRAFFIC_KEY = ("case_hash", "implementation", "stage", "tensor", "method")

COLUMNS = {
    "layer": ROW_COLUMNS, "stages": STAGE_COLUMNS, "traffic": TRAFFIC_COLUMNS, "tune": TUNE_COLUMNS,
    "energy": ENERGY_COLUMNS,
}  # fmt: skip
KNOWN = {name for columns in COLUMNS.values() for name in columns}
NEEDED = ("run_id", "case_hash", "implementation", "status", "timestamp_utc")
"""Columns that a CSV of any kind and age has."""
WORDS = {
    *TEXT_COLUMNS, *NAMES, "timing_method", "status", "device_uuid", "git_dirty", "timestamp_utc",
}  # fmt: skip
WHOLE_NUMBERS = {"num_experts", "top_k", "hidden_dim", "ffn_dim", "tokens", "seed"}
"""What is in neither is a number of any kind."""
KEYS = {"layer": ROW_KEY, "stages": STAGE_KEY, "traffic": TRAFFIC_KEY, "tune": TUNE_KEY, "energy": ROW_KEY}
MODE_COLUMN = {"layer": "launch", "stages": "launch", "traffic": "method", "energy": "launch"}
"""By kind of study: its columns, its key, and the column that holds the mode of measuring."""


def failed(kind: str, mode: str, status: str, reason: str) -> dict[str, Any]:
    """What tells, in a row of that kind, that a point gave no result, and why; the reason in one line."""
    row = {MODE_COLUMN[kind]: mode, "status": status, "reason": " ".join(reason.split())[:300]}
    if kind == "traffic":
        return row | {"stage": "total", "tensor": "all"}
    return row | {"timing_method": "none"} | ({"stage": "all"} if kind == "stages" else {})


def validate(row: Mapping[str, Any], columns: tuple[str, ...] = ROW_COLUMNS) -> None:
    """Raises ValueError for a row that no CSV may hold."""
    unknown = set(row) - set(columns)
    missing = {"run_id", "case_hash", "implementation", "status"} - set(row)
    if unknown or missing:
        raise ValueError(f"row has unknown columns {sorted(unknown)} and lacks {sorted(missing)}")
    if row["status"] not in STATUSES:
        raise ValueError(f"status={row['status']!r}: allowed are {', '.join(STATUSES)}")
    if row["status"] != "ok":
        timed = [name for name in TIMING_COLUMNS if row.get(name) not in (None, "")]
        if timed:
            raise ValueError(f"a row with status {row['status']} carries timings: {timed}")
        if not row.get("reason"):
            raise ValueError(f"a row with status {row['status']} needs a reason")
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value}: leave out what is not known")
    if "p50_us" in row and row["p50_us"] not in (None, "") and not row["p50_us"] > 0:
        raise ValueError(f"p50_us={row['p50_us']}: a latency is positive")
