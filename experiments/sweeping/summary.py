"""What a sweep prints: the plan before it, the table after it, and the list of implementations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..implementation.contract import Check, Implementation, unavailable
from ..table.current import read_run
from ..workload.case import Case
from .plan import Plan

ASK_LIMIT_S = 180.0
"""The longest that a system may take to say whether it runs here: it may import itself for that."""
FAILURES = ("incorrect", "oom", "error", "timeout")
"""Statuses of what was tried and gave no result."""


def plan_text(plan: Plan) -> str:
    """What a plan will do, how long and in how much memory, in a few lines."""
    models = dict.fromkeys(case.model for case in plan.cases)
    lines = [
        f"study {plan.study}: {len(plan.cases)} points x {len(plan.implementations)} implementations "
        f"x {len(plan.modes)} modes ({', '.join(plan.modes)}) = {plan.results} results",
        f"  models: {', '.join(models)}",
        f"  tokens: {_list(case.tokens for case in plan.cases)}; "
        f"experts: {_list(case.num_experts for case in plan.cases)}; "
        f"skew: {_list(case.skew for case in plan.cases)}; dtype: {_list(case.dtype for case in plan.cases)}; "
        f"format: {_list(case.quant for case in plan.cases)}; layer: {_list(case.layer for case in plan.cases)}",
        f"  implementations: {', '.join(plan.implementations)}",
        f"  on a GPU: up to {max(plan.minutes(), 1):.0f} minutes, {plan.gpu_bytes() / 1e9:.1f} GB of its memory",
    ]
    return "\n".join(lines)


def whole_text(plans: Sequence[Plan]) -> str:
    """How long several plans take one after another, in one line."""
    return f"all {len(plans)} sweeps, on a GPU: up to {max(sum(plan.minutes() for plan in plans), 1):.0f} minutes"


def sweep_rows(path: Path, plan: Plan) -> pd.DataFrame:
    """What the current run holds of a plan's points, measured with the plan's timing."""
    rows, _ = read_run(path, plan.measurement)
    if rows.empty:
        return rows
    rows = rows[rows["case_hash"].isin({case.case_hash for case in plan.cases})]
    return rows[rows["implementation"].isin(plan.implementations) & (rows["method_revision"] == plan.method_revision)]


def closing_table(path: Path, plan: Plan) -> str:
    """What the kind of measurement says of the rows of a plan, how many there are, and what has failed, and why."""
    rows = sweep_rows(path, plan)
    if rows.empty:
        return f"no rows in {path}"
    table = plan.measurement.closing_table(rows[rows["status"] == "ok"])
    statuses = ", ".join(f"{count} {status}" for status, count in rows.groupby("status").size().items())
    told = ["implementation", "status", "reason"]
    failed = rows[rows["status"] != "ok"].groupby(told, dropna=False, sort=False).size().reset_index(name="count")
    lines = [table] if table else []
    lines.append(f"{len(rows)} rows in {path}: {statuses}")
    lines += [
        f"  {row['implementation']}: {row['count']} x {row['status']}: {row['reason']}"
        for row in failed.to_dict("records")
    ]
    if rows["status"].isin(FAILURES).any():
        lines.append("what failed stays as it is: retry=true measures it again, force=true everything")
    return "\n".join(lines)


def implementations_text() -> str:
    """Every implementation, its version, and whether it can run here, with the reason if not; then what is broken."""
    import functools
    import inspect
    import sys

    import torch

    from ..implementation.registry import AdapterFault, attempt, broken, implementations, short

    has_gpu = torch.cuda.is_available()
    lines, faults = [], list(dict.fromkeys(fault for _, fault in broken()))
    for name, implementation in implementations().items():
        folders: list[str] = []
        try:
            folders = [str(folder) for folder in implementation.search_path()]
            sys.path[:0] = folders
            lines.append(attempt(functools.partial(_state, implementation, has_gpu), ASK_LIMIT_S))
        except AdapterFault as fault:
            faults.append(f"{short(Path(inspect.getfile(type(implementation))))}: {name}: {fault}")
        del sys.path[: len(folders)]
        # Two systems may call their packages the same; in a sweep each has a process of its own.
        for module in [module for module, loaded in sys.modules.items() if _lies_in(loaded, folders)]:
            del sys.modules[module]
    return "\n".join([*lines, *(f"broken: {fault}" for fault in faults)])


def _state(implementation: Implementation, has_gpu: bool) -> str:
    """A line of the list: name, version, family, and whether it can run here."""
    check = implementation.check(Case("tiny", 8, 2, 128, 256, 1))
    if not isinstance(check, Check):
        raise TypeError(f"check() returned {check!r}: allowed are OK, unavailable(...) and unsupported(...)")
    if check.status.value == "ok" and implementation.needs_gpu and not has_gpu:
        check = unavailable("needs an NVIDIA GPU")
    state = "can run here" if check.status.value == "ok" else f"{check.status.value}: {check.reason}"
    version = implementation.version() or "-"
    return f"{implementation.name:28} {version:10} {implementation.family:12} {state}"


def _lies_in(module: object, folders: list[str]) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and any(Path(folder) in Path(file).parents for folder in folders)


def _list(values) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(set(values)))
