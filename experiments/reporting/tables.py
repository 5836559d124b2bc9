"""The report's tables beside the claims: ratios, provenance, method and what is missing. Plain text cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ..analysis import published
from ..analysis.compare import panels, ratios, span, timed
from ..analysis.names import model_label
from ..analysis.results import LIMIT
from ..claims.speed import MEGABLOCKS, PAPER

GPU_SCHEDULE = "paper_fused_graph"
NOISE_MARK = "≈"


@dataclass(frozen=True)
class Table:
    """A table of text: its title, its header, its rows, and a note under it."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""


def ratio_tables(frame: pd.DataFrame) -> list[Table]:
    """One table a model: throughput of the paper's pipeline over each Megablocks path, by dtype and batch size.

    Eager against eager and best launch mode against best; where the latter says nothing new it is left out.
    """
    if frame.empty:
        return []
    kinds = [(PAPER, "eager"), (PAPER, "best"), (GPU_SCHEDULE, "best")]
    pairs: dict[tuple[str, str], dict[tuple[str, str], Any]] = {
        kind: {
            (str(row.case_hash), str(row.peer)): row for row in ratios(frame, kind[0], MEGABLOCKS, kind[1]).itertuples()
        }
        for kind in kinds
    }
    known = published.ratios("vs_megablocks", "megablocks", "triton_fused").set_index(["model", "tokens"])["ratio"]
    if all(float(str(pairs[kinds[1]][key].p50_us)) == float(str(row.p50_us)) for key, row in pairs[kinds[0]].items()):
        kinds.pop(1)
    columns = [(path, *kind) for path in MEGABLOCKS for kind in kinds]
    header = ["tokens", "published"]
    header += [f"{system} / {path.removeprefix('megablocks_')}, {launch}" for path, system, launch in columns]
    tables = []
    for model, dtype, gating in panels(frame):
        rows = frame[(frame["model"] == model) & (frame["dtype"] == dtype) & (frame["gating"] == gating)]
        body = []
        for case in rows.drop_duplicates("case_hash").sort_values("tokens").itertuples():
            cells = [
                _ratio_cell(pairs[system, launch].get((str(case.case_hash), path)), rows, str(case.case_hash), path)
                for path, system, launch in columns
            ]
            ratio = known.get((model, case.tokens))
            body.append([str(case.tokens), "" if ratio is None else f"{ratio:.2f}", *cells])
        tables.append(Table(f"{model_label(model)}, {dtype}, {gating}", header, body))
    return tables


def fastest(frame: pd.DataFrame) -> str:
    """Which systems are the fastest, and at how many points of the study, each in its best launch mode."""
    rows = timed(frame, "best")
    rows = rows[rows["implementation"] != LIMIT]
    if rows.empty:
        return "No system was timed."
    winners = rows.loc[rows.groupby("case_hash")["p50_us"].idxmin(), "implementation"].value_counts()
    counted = ", ".join(f"{name} at {count}" for name, count in winners.items())
    return f"Of {winners.sum()} points of the study throughput, the fastest system is {counted}."


def provenance_table(frames: Mapping[str, pd.DataFrame]) -> Table:
    """One row a study: its run, when, on which cards, with what software and commit."""
    table = Table(
        "Runs",
        ["study", "run", "rows", "measured (UTC)", "cards", "driver", "torch", "triton", "SM clock, MHz", "commit"],
    )
    for study, frame in frames.items():
        dirty = frame["git_dirty"].astype(str).str.lower().eq("true").any()
        times = frame["timestamp_utc"].astype(str)
        clocks = frame["sm_clock_mhz"].dropna() if "sm_clock_mhz" in frame else pd.Series(dtype=float)
        table.rows.append([
            study, str(frame["run_id"].iloc[0]), str(len(frame)), f"{times.min()} to {times.max()}",
            str(frame["device_uuid"].dropna().nunique()), _distinct(frame["driver"]), _distinct(frame["torch"]),
            _distinct(frame["triton"]), span(clocks, 0) if len(clocks) else "-",
            _distinct(frame["git_commit"].astype("string").str[:10]) + (" with changes" if dirty else ""),
        ])  # fmt: skip
    return table


def missing_table(frames: Mapping[str, pd.DataFrame]) -> Table:
    """Rows without a timing, counted by study, system, status and reason."""
    table = Table("Not measured", ["study", "system", "launch", "status", "rows", "reason"])
    for study, frame in frames.items():
        rows = frame[frame["status"] != "ok"]
        launch = rows["launch"] if "launch" in rows else pd.Series("-", index=rows.index)
        counted = rows.assign(launch=launch.fillna("-"), reason=rows["reason"].fillna("")).groupby(
            ["implementation", "status", "reason"], sort=False
        )
        for (system, status, reason), group in counted:
            modes = ", ".join(sorted(group["launch"].unique()))
            table.rows.append([study, str(system), modes, str(status), str(len(group)), str(reason)])
    return table


def timing_facts(frames: Mapping[str, pd.DataFrame], records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences on how the rows were timed, from the rows and the runs' own records."""
    facts = []
    for study, frame in frames.items():
        if "p50_us" not in frame or not frame["p50_us"].notna().any():
            continue
        rows = frame[frame["p50_us"].notna()]
        noise = 100 * ((rows["p80_us"] - rows["p20_us"]) / rows["p50_us"]).median()
        methods = ", ".join(f"{count} {name}" for name, count in rows["timing_method"].value_counts().items())
        launches = ", ".join(f"{count} {name}" for name, count in rows["launch"].value_counts().items())
        facts.append(
            f"{study}: {len(rows)} latencies ({launches}; {methods}), {span(rows['samples'], 0)} samples each; "
            f"p20 to p80 spans {noise:.1f} % of the median in the middle case."
        )
        rates = records.get(study, {}).get("matrix_tflops", {})
        if rates:
            measured = ", ".join(f"{rate:.0f} TFLOP/s in {dtype}" for dtype, rate in rates.items())
            facts.append(f"{study}: matrix rate measured in the run: {measured}.")
        drift = [
            abs(process["stream_after_us"] / process["stream_before_us"] - 1)
            for process in records.get(study, {}).get("processes", [])
            if process.get("stream_before_us") and process.get("stream_after_us")
        ]
        if drift:
            facts.append(
                f"{study}: stream drifted by at most {100 * max(drift):.1f} % from start to end of a process "
                f"({len(drift)} processes), and its time differs by {_apart(records[study]['processes'])} between "
                f"processes ({_cards(rows['device_uuid'].nunique())}): by that much a ratio of two systems may be off."
            )
    return facts


def _apart(processes: Sequence[Mapping[str, Any]]) -> str:
    """How far the slowest process's read of the same bytes lies above the fastest one's, in per cent."""
    reads = [process["stream_before_us"] for process in processes if process.get("stream_before_us")]
    return f"{100 * (max(reads) / min(reads) - 1):.1f} %"


def _cards(count: int) -> str:
    return "one card" if count == 1 else f"{count} cards"


def disagreements(latency: pd.DataFrame) -> Table:
    """Latencies that the paper's own tables give twice, where they differ by more than their rounding suggests."""
    table = Table("Published twice", ["model", "tokens", "system", *sorted(latency["table"].unique()), "ratio"])
    wide = latency.pivot_table(
        index=["model", "tokens", "implementation"], columns="table", values="latency_ms"
    ).dropna()
    for key, row in wide.iterrows():
        model, tokens, system = (str(part) for part in (key if isinstance(key, tuple) else (key,)))
        ratio = row.max() / row.min()
        if ratio > 1.05:
            table.rows.append(
                [model, tokens, system, *(f"{row[name]:.2f} ms" for name in sorted(row.index)), f"{ratio:.2f}"]
            )
    return table


def latency_text(p50_us: float) -> str:
    """A latency in µs to three or more digits."""
    return f"{p50_us:.{1 if p50_us < 100 else 0}f}"


def _ratio_cell(pair: Any, rows: pd.DataFrame, case_hash: str, path: str) -> str:
    if pair is not None:
        mark = NOISE_MARK if pair.low <= 1 <= pair.high else ""
        return f"{mark}{pair.ratio:.2f}"
    own = rows[(rows["case_hash"] == case_hash) & (rows["implementation"] == path)]
    statuses = own.loc[own["launch"] == "eager", "status"]
    status = statuses.iloc[0] if len(statuses) else "no row"
    return str(status) if status != "ok" else "-"


def _distinct(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(values.dropna().astype(str))) or "-"
