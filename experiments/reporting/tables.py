"""The report's tables beside the claims: ratios, provenance, method and what is missing. Plain text cells."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ..analysis import age, published
from ..analysis.compare import fastest_first, panels, ratios, span, timed
from ..analysis.names import GPU_SCHEDULE, LIMIT, MEGABLOCKS, PAPER, in_order, model_label
from ..analysis.noise import spread
from ..table.limits import BELOW_MARK
from .again import minutes_of
from .texts import NOISE_MARK, OLDER_MARK


@dataclass(frozen=True)
class Table:
    """A table of plain text: its title, its header and its rows; text: the places of columns that hold no numbers."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    text: Container[int] = ()


def ratio_table(frame: pd.DataFrame) -> Table:
    """Throughput of the paper's pipeline over each Megablocks path, by model, dtype and batch size.

    Eager against eager and best launch mode against best; where the latter says nothing new it is left out.
    """
    kinds = [(PAPER, "eager"), (PAPER, "best"), (GPU_SCHEDULE, "best")]
    pairs: dict[tuple[str, str], dict[tuple[str, str], Any]] = {
        (system, launch): {
            (str(row.case_hash), str(row.other)): row for row in ratios(frame, system, MEGABLOCKS, launch).itertuples()
        }
        for system, launch in kinds
    }
    known = published.ratios("vs_megablocks", "megablocks", "triton_fused").set_index(["model", "tokens"])["ratio"]
    if all(float(str(pairs[kinds[1]][key].p50_us)) == float(str(row.p50_us)) for key, row in pairs[kinds[0]].items()):
        kinds.pop(1)
    columns = [(path, *kind) for path in MEGABLOCKS for kind in kinds]
    header = ["model", "tokens", "dtype", "published"]
    header += [f"{system} / {path.removeprefix('megablocks_')}, {launch}" for path, system, launch in columns]
    table = Table("", header, text=(0, 2))
    for model, dtype, gating in panels(frame):
        rows = frame[(frame["model"] == model) & (frame["dtype"] == dtype) & (frame["gating"] == gating)]
        for case in rows.drop_duplicates("case_hash").sort_values(["tokens", "case_hash"]).itertuples():
            cells = [
                _ratio_cell(pairs[system, launch].get((str(case.case_hash), path)), rows, str(case.case_hash), path)
                for path, system, launch in columns
            ]
            ratio = known.get((model, case.tokens))
            shown = "" if ratio is None else f"{ratio:.2f}"
            table.rows.append([model_label(model), str(case.tokens), dtype, shown, *cells])
    return table


def winners(frame: pd.DataFrame) -> dict[str, int]:
    """At how many points of the study each system is the fastest, each in its best launch mode; most points first."""
    rows = timed(frame, "best")
    rows = fastest_first(rows[rows["implementation"] != LIMIT]).drop_duplicates("case_hash")
    return dict(_counts(rows["implementation"]))


def provenance_table(frames: Mapping[str, pd.DataFrame], older: Container[str] = ()) -> Table:
    """One row for each study: its run, when, on which cards, with what software and commit.

    older: studies with rows that the code has left behind, whose number of rows is marked.
    """
    table = Table(
        "Runs",
        [
            "study",
            "run",
            "rows",
            "measured (UTC)",
            "minutes",
            "cards",
            "driver",
            "torch",
            "triton",
            "SM clock, MHz",
            "commit",
            "age",
        ],
        text=(0, 1, 3, 6, 7, 8, 9, 10),
    )
    for study, frame in frames.items():
        dirty = frame["git_dirty"].astype(str).str.lower().eq("true").any()
        times = frame["timestamp_utc"].astype(str)
        rows = f"{len(frame)} {OLDER_MARK}" if study in older else str(len(frame))
        clocks = frame["sm_clock_mhz"].dropna() if "sm_clock_mhz" in frame else pd.Series(dtype=float)
        frame = frame.sort_values("timestamp_utc", kind="stable")
        table.rows.append([
            study, str(frame["run_id"].iloc[0]), rows, f"{times.min()} to {times.max()}", f"{minutes_of(frame):.1f}",
            str(frame["device_uuid"].dropna().nunique()), _distinct(frame["driver"]), _distinct(frame["torch"]),
            _distinct(frame["triton"]), span(clocks, 0) if len(clocks) else "-",
            _distinct(frame["git_commit"].astype("string").str[:10]) + (" with changes" if dirty else ""),
            _age_text(study, frame),
        ])  # fmt: skip
    return table


def _age_text(study: str, frame: pd.DataFrame) -> str:
    """As in "3–5 commits old", counting those after which a number may differ."""
    ages = age.commits_of([f"{study}.csv"], {study: frame})
    return "-" if ages is None else "–".join(map(str, sorted(set(ages)))) + " commits old"


def missing_table(frames: Mapping[str, pd.DataFrame]) -> Table:
    """Rows without a timing, counted by study, system, status and reason."""
    header = ["study", "system", "launch", "status", "rows", "reason"]
    table = Table("Not measured", header, text=(0, 1, 2, 3, 5))
    for study, frame in frames.items():
        rows = frame[frame["status"] != "ok"]
        launch = rows["launch"] if "launch" in rows else pd.Series("-", index=rows.index)
        rows = rows.assign(launch=launch.fillna("-"), reason=rows["reason"].fillna(""))
        places = {name: place for place, name in enumerate(in_order(rows["implementation"]))}
        groups = [(tuple(map(str, key)), group) for key, group in rows.groupby(["implementation", "status", "reason"])]
        for (system, status, reason), group in sorted(groups, key=lambda item: (places[item[0][0]], *item[0][1:])):
            modes = ", ".join(sorted(group["launch"].unique()))
            table.rows.append([study, system, modes, status, str(len(group)), reason])
    return table


def timing_facts(frames: Mapping[str, pd.DataFrame], records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How the rows of each study were timed, in numbers, from the rows and the runs' own records.

    rows, by launch mode and timing method; samples; noise: p20 to p80 in per cent of the median, in the middle case;
    rates: matrix rate in TFLOP/s by dtype; and, where the run has it, drift of `stream` in a process and its difference
    between processes, in per cent, with their number and the number of cards.
    """
    facts = []
    for study, frame in frames.items():
        if "p50_us" not in frame or not frame["p50_us"].notna().any():
            continue
        rows, record = frame[frame["p50_us"].notna()], records.get(study, {})
        processes = record.get("processes", [])
        drifts = [
            abs(process["stream_after_us"] / process["stream_before_us"] - 1)
            for process in processes
            if process.get("stream_before_us") and process.get("stream_after_us")
        ]
        facts.append({
            "study": study, "rows": len(rows), "samples": rows["samples"],
            "launches": _counts(rows["launch"]), "methods": _counts(rows["timing_method"]),
            "noise": 100 * ((rows["p80_us"] - rows["p20_us"]) / rows["p50_us"]).median(),
            "rates": record.get("matrix_tflops", {}), "drifts": drifts, "cards": rows["device_uuid"].nunique(),
            "apart": 100 * (spread(record) - 1),
        })  # fmt: skip
    return facts


def _counts(values: pd.Series) -> list[tuple[str, int]]:
    """Each value and how often it occurs, the most frequent first."""
    counts = [(str(name), int(count)) for name, count in values.value_counts().items()]
    return sorted(counts, key=lambda item: (-item[1], item[0]))


def disagreements(latency: pd.DataFrame) -> Table:
    """Latencies that the paper's own tables give twice, where they differ by more than their rounding suggests."""
    header = ["model", "tokens", "system", *sorted(latency["table"].unique()), "ratio"]
    table = Table("Published twice", header, text=(0, 2))
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


def ratio_text(pair: Any) -> str:
    """A ratio of `compare`, marked where it is 1 within the noise."""
    return f"{NOISE_MARK if pair.low <= 1 <= pair.high else ''}{pair.ratio:.2f}"


def share_text(row: Any) -> str:
    """The share of the measured limit that a row's latency reaches, marked where the latency is `below` it."""
    return f"{BELOW_MARK if row.below else ''}{100 * row.limit_us / row.p50_us:.0f} %"


def latency_text(p50_us: float) -> str:
    """A latency in µs to three or more digits."""
    return f"{p50_us:.{1 if p50_us < 100 else 0}f}"


def _ratio_cell(pair: Any, rows: pd.DataFrame, case_hash: str, path: str) -> str:
    if pair is not None:
        return ratio_text(pair)
    own = rows[(rows["case_hash"] == case_hash) & (rows["implementation"] == path)]
    statuses = own.loc[own["launch"] == "eager", "status"]
    status = statuses.iloc[0] if len(statuses) else "no row"
    return str(status) if status != "ok" else "-"


def _distinct(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(values.dropna().astype(str))) or "-"
