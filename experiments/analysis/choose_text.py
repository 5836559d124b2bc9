"""What `choose` prints of one point: the runs that hold it, the fastest system of each, and the runners-up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tritonmoe_bench import ROOT

from ..table.errors import error_text
from .age import commits_since
from .compare import timed
from .headline import SHAKY
from .names import LIMIT, family_of, in_order
from .noise import APART

PEERS = "serving"
"""The family of systems that a run is the better the more it holds of."""


def shape_text(shape: Sequence[Any]) -> str:
    model, experts, top_k, hidden, ffn = shape
    return f"{model} ({experts} experts, top-{top_k}, {hidden} x {ffn})"


def listed(values: Iterable[object]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def point_text(rows: pd.DataFrame, paths: dict[str, Path]) -> list[str]:
    """The lines on one point. rows: of all runs that hold it; paths: of their CSVs, by study."""
    lines: list[str] = []
    told: set[str] = set()
    for group in _runs(rows):
        systems = _systems(group)
        if set(systems["implementation"]) - told:
            where = f"{_short_path(paths[str(group['study'].iloc[0])])}, run {group['run_id'].iloc[0]}"
            lines += ["", *_run_text(group, systems, told, where)]
            told |= set(systems["implementation"])
    if not told:
        lines += ["", "No system was timed here."]
    untimed = rows[~rows["implementation"].isin({*told, LIMIT})]
    return [*lines, *(["", "Not timed at this point:", *_reasons(untimed)] if len(untimed) else [])]


def fastest_text(rows: pd.DataFrame) -> str:
    """The fastest system of the run that answers for a point, and its latency."""
    systems = next((_systems(group) for group in _runs(rows)), rows.head(0))
    if systems.empty:
        return "unknown"
    alone = ", timed alone" if len(systems) == 1 else ""
    return f"{systems.iloc[0]['implementation']} ({systems.iloc[0]['p50_us']:.1f} µs{alone})"


def _runs(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each run that has a system here: comparisons first, of these those with the most
    of the peers, of these the newest."""
    groups = [group for _, group in rows.groupby("study") if (group["implementation"] != LIMIT).any()]
    return sorted(groups, key=lambda group: (*_peers(group), str(group["timestamp_utc"].max())), reverse=True)


def _peers(rows: pd.DataFrame) -> tuple[bool, int]:
    names = _systems(rows)["implementation"]
    return len(names) > 1, sum(family_of(str(name)) == PEERS for name in names)


def _systems(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the systems in their best launch mode, fastest first; the limit is none."""
    best = timed(rows, "best")
    return best[best["implementation"] != LIMIT]


def _run_text(rows: pd.DataFrame, systems: pd.DataFrame, told: set[str], where: str) -> list[str]:
    """A run that has systems not `told` before: its fastest system, the measured limit, and a table of these."""
    best = systems.iloc[0]
    same = systems.loc[systems["p20_us"] <= best["p80_us"] * best[APART], "implementation"].tolist()[1:]
    new = systems[~systems["implementation"].isin(told)]
    lines = [
        f"{_heading(systems, len(new), bool(told))} {best['p50_us']:.1f} µs, "
        + ("in a CUDA graph" if best["launch"] == "graph" else "launched eagerly")
        + (f"; the same within the noise: {', '.join(same)}" if same else ""),
        f"From {where}, case {best['case_hash']}, {best['timestamp_utc']}, torch {best['torch']}, "
        f"triton {best['triton']}, {best['implementation']} {_version(best)}, commit {str(best['git_commit'])[:10]}"
        f"{_age(str(best['git_commit']))}",
    ]
    if pd.notna(best["limit_us"]):
        lines.append(_limit_text(best))
    shown = systems[systems["implementation"].isin({best["implementation"], *new["implementation"]})]
    lines += ["", pd.DataFrame([_line(row, best) for _, row in shown.iterrows()]).to_string(index=False)]
    if (shown["limit_us"] / shown["p50_us"]).max() >= 1.005:
        lines += _shaky_text(rows, best["limit_us"])
    refused = rows[(rows["launch"] == "graph") & (rows["status"] != "ok")]
    refused = refused[refused["implementation"].isin(new.loc[new["launch"] == "eager", "implementation"])]
    return [*lines, *(["", "In no CUDA graph:", *_reasons(refused)] if len(refused) else [])]


def _heading(systems: pd.DataFrame, new: int, further: bool) -> str:
    """What stands in front of the latency of the fastest of a run, `new` of whose systems were not shown before."""
    name = systems["implementation"].iloc[0]
    if len(systems) == 1:
        return f"A further system, timed alone in another run: {name}," if further else (
            f"Only {name} was timed in this run: nothing to compare with;"
        )  # fmt: skip
    if further:
        return f"Further systems, of another run: {new} of its {len(systems)}; the fastest there: {name},"
    return f"Fastest of {len(systems)}: {name},"


def _version(row: pd.Series) -> str:
    return "" if pd.isna(row["implementation_version"]) else str(row["implementation_version"])


def _age(commit: str) -> str:
    """How many commits on kernels and measurement are younger; empty where git does not know."""
    count = commits_since(commit)
    return "" if count is None else f", {count} commit{'' if count == 1 else 's'} on kernels and measurement ago"


def _limit_text(row: pd.Series) -> str:
    read = f"{int(row['active_experts'])} active experts' weights"
    if row["stream_us"] < row["limit_us"]:
        return (
            f"Limit {row['limit_us']:.1f} µs: the arithmetic at the matrix rate of that run, longer than the "
            f"{row['stream_us']:.1f} µs in which stream reads the {read}"
        )
    return f"Limit {row['limit_us']:.1f} µs: stream, which reads the {read} in that run and does nothing else"


def _shaky_text(rows: pd.DataFrame, limit_us: float) -> list[str]:
    """One line where the row of stream that is the limit varied, which is how a share of it can be above 100 %."""
    limit = rows[(rows["implementation"] == LIMIT) & (rows["p50_us"] == limit_us)]
    return [
        "A share above 100 %: the limit is measured too, and varied by "
        f"{100 * (p80 / p20 - 1):.0f} % while it was timed ({p20:.1f}–{p80:.1f} µs)"
        for p20, p80 in zip(limit["p20_us"], limit["p80_us"])
        if p80 > SHAKY * p20
    ][:1]


def _line(row: pd.Series, best: pd.Series) -> dict[str, str]:
    """One line of the table; the ratio is the latency over the fastest one's, with what p20 to p80 of both, and two
    processes, leave; ≈ where that is no difference."""
    low = row["p20_us"] / best["p80_us"] / best[APART]
    high = row["p80_us"] / best["p20_us"] * best[APART]
    ratio = row["p50_us"] / best["p50_us"]
    shown = "1" if row["implementation"] == best["implementation"] else (
        f"≈{ratio:.2f}" if low <= 1 <= high else f"{ratio:.2f} ({low:.2f}–{high:.2f})"
    )  # fmt: skip
    return {
        "system": row["implementation"],
        "version": _version(row),
        "µs": f"{row['p50_us']:.1f}",
        "p20–p80": f"{row['p20_us']:.1f}–{row['p80_us']:.1f}",
        "x the fastest": shown,
        "error, x PyTorch's": error_text(row),
        "of the limit": "" if pd.isna(row["limit_us"]) else f"{100 * row['limit_us'] / row['p50_us']:.0f} %",
        "launch": row["launch"],
        "workspace": "" if pd.isna(row["workspace_bytes"]) else f"{row['workspace_bytes'] / 2**20:.1f} MiB",
        "host syncs": "" if pd.isna(row["host_syncs"]) else f"{row['host_syncs']:.0f}",
        "kernels": "" if pd.isna(row["kernel_launches"]) else f"{row['kernel_launches']:.0f}",
    }


def _reasons(rows: pd.DataFrame) -> list[str]:
    """One line a system: status and reason, of the eager launch where both failed."""
    rows = rows.sort_values("launch", kind="stable").drop_duplicates("implementation").set_index("implementation")
    return [f"  {name}: {rows.at[name, 'status']!s}: {rows.at[name, 'reason']!s}" for name in in_order(rows.index)]


def _short_path(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
