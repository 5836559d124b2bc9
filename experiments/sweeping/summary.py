"""What a sweep prints: the plan before it, the table after it, and the list of implementations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..implementation.contract import Check, Implementation, unavailable
from ..table import store
from ..table.columns import KEYS
from ..workload.case import Case
from .plan import Plan

ASK_LIMIT_S = 180.0
"""The longest that a system may take to say whether it runs here: it may import itself for that."""


def plan_text(plan: Plan) -> str:
    """What a plan will do, how long and in how much memory, in a few lines."""
    models = dict.fromkeys(case.model for case in plan.cases)
    lines = [
        f"study {plan.study}: {len(plan.cases)} points x {len(plan.implementations)} implementations "
        f"x {len(plan.modes)} modes ({', '.join(plan.modes)}) = {plan.results} results",
        f"  models: {', '.join(models)}",
        f"  tokens: {_list(case.tokens for case in plan.cases)}; "
        f"experts: {_list(case.num_experts for case in plan.cases)}; "
        f"skew: {_list(case.skew for case in plan.cases)}; dtype: {_list(case.dtype for case in plan.cases)}",
        f"  implementations: {', '.join(plan.implementations)}",
        f"  on a GPU: up to {max(plan.minutes(), 1):.0f} minutes, {plan.gpu_bytes() / 1e9:.1f} GB of its memory",
    ]
    return "\n".join(lines)


def whole_text(plans: Sequence[Plan]) -> str:
    """How long several plans take one after another, in one line."""
    return f"all {len(plans)} sweeps, on a GPU: up to {max(sum(plan.minutes() for plan in plans), 1):.0f} minutes"


def sweep_rows(path: Path, plan: Plan) -> pd.DataFrame:
    """What the current run holds of a plan's points."""
    frame = store.read(path, KEYS[plan.kind])
    frame = frame[frame["run_id"] == frame["run_id"].iloc[-1]]
    frame = frame[frame["case_hash"].isin({case.case_hash for case in plan.cases})]
    return frame[frame["implementation"].isin(plan.implementations)]


def closing_table(path: Path, plan: Plan) -> str:
    """For each point: latency of each system at its best, its share of the measured limit, its ratio to Megablocks."""
    frame = sweep_rows(path, plan)
    counts = frame.groupby("status").size()
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    text = ""
    ok = frame[frame["status"] == "ok"]
    if plan.kind == "traffic":
        totals = ok[ok["stage"] == "total"]
        moved = (totals["read_bytes"] + totals["write_bytes"]) / 1e6
        text = totals.assign(megabytes=moved).pivot_table(
            index=["model", "dtype", "tokens", "method"], columns="implementation", values="megabytes", sort=False
        ).round(2).to_string() + "\nMB by one forward: issued (model, interpreter) or in DRAM (counters)\n"  # fmt: skip
        ok = ok.iloc[:0]
    else:
        ok = ok[ok["p50_us"].notna()]
    if plan.kind == "stages" and len(ok):
        text = ok.pivot_table(index=["model", "dtype", "implementation", "launch"], columns="stage",
                              values="p50_us", sort=False).round(1).to_string() + "\n"  # fmt: skip
    elif plan.kind == "energy" and len(ok):
        text = _energy_table(ok) + "\n"
    elif len(ok):
        text = _layer_table(ok) + "\n"
    problems = frame[~frame["status"].isin(["ok"])].groupby(["implementation", "status", "reason"], dropna=False).size()
    notes = [
        f"  {name}: {count} x {status}: {reason}" for name, status, reason, count in problems.reset_index().to_numpy()
    ]
    if frame["status"].isin(["error", "timeout"]).any():
        notes.append("rows of error and timeout stay as they are: force=true runs them again, with all others")
    return "\n".join([f"{text}{len(frame)} rows in {path}: {statuses}", *notes])


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


def _layer_table(ok: pd.DataFrame) -> str:
    best = ok.sort_values("p50_us").drop_duplicates(["case_hash", "implementation"])
    point = ["model", "num_experts", "top_k", "dtype", "skew", "tokens"]
    latency = best.pivot_table(index=point, columns="implementation", values="p50_us", sort=False)
    limit = best.groupby(point, sort=False)["limit_us"].first()
    megablocks = latency[[name for name in latency if str(name).startswith("megablocks")]].min(axis=1)

    def cell(value: float, share: float, ratio: float) -> str:
        if pd.isna(value):
            return "-"
        parts = [f"{value:.0f}", f"{share:.0f}%" if pd.notna(share) else "", f"{ratio:.2f}x" if pd.notna(ratio) else ""]
        return " ".join(filter(None, parts))

    columns = {}
    for name in latency:
        shares, ratios = 100 * limit / latency[name], megablocks / latency[name]
        columns[name] = [cell(*values) for values in zip(latency[name], shares, ratios)]
    cells = pd.DataFrame(columns, index=latency.index)
    order = sorted(latency, key=lambda name: latency[name].median())
    note = "best launch mode: latency in us, share of the measured limit, speed over the best Megablocks path"
    return f"{cells[order].to_string()}\n{note}"


def _energy_table(ok: pd.DataFrame) -> str:
    best = ok.sort_values("p50_us").drop_duplicates(["case_hash", "implementation"])
    cells = best.assign(cell=[
        f"{energy:.0f} mJ {power:.0f} W {clock:.0f} MHz"
        for energy, power, clock in zip(best["energy_mj"], best["power_w"], best["settled_clock_mhz"])
    ])  # fmt: skip
    table = cells.pivot_table(index=["model", "dtype", "skew", "tokens"], columns="implementation", values="cell",
                              aggfunc="first", sort=False)  # fmt: skip
    return f"{table.to_string()}\nfaster launch mode: energy of one forward, mean power, SM clock that settled"


def _list(values) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(set(values)))
