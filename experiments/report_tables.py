"""The report's tables beside the claims: ratios, ranking, provenance, method and what is missing. Plain text cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from .claims.evidence import NoEvidence, compare, span, timed
from .claims.speed import MEGABLOCKS, PAPER

PUBLISHED_MODEL = {"mixtral": "mixtral-8x7b", "qwen2_paper": "qwen2-moe-57b", "deepseek_v3": "deepseek-v3"}
"""Names of the paper's tables, by ours."""
NOISE_MARK = "≈"


@dataclass(frozen=True)
class Table:
    """A table of text: its title, its header, its rows, and a note under it."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""


def ratio_tables(frame: pd.DataFrame, published: pd.DataFrame) -> list[Table]:
    """One table a model: throughput of the paper's pipeline over each Megablocks path, by dtype and batch size."""
    if frame.empty:
        return []
    pairs = {}
    for launch in ("eager", "best"):
        try:
            found = compare(frame, PAPER, MEGABLOCKS, launch)
        except NoEvidence:
            continue
        pairs[launch] = {(row.case_hash, row.peer): row for row in found.itertuples()}
    header = ["dtype", "tokens", "published", *(f"{path.removeprefix('megablocks_')}, {launch}" for path in MEGABLOCKS
                                                for launch in ("eager", "best"))]  # fmt: skip
    tables = []
    for model, rows in frame.groupby("model", sort=False):
        cases = rows.drop_duplicates("case_hash").sort_values(["dtype", "tokens"], ascending=[False, True])
        body = [
            [case.dtype, str(case.tokens), _published_ratio(published, str(model), case.tokens)]
            + [
                _ratio_cell(pairs.get(launch, {}).get((case.case_hash, path)), rows, case.case_hash, path)
                for path in MEGABLOCKS
                for launch in ("eager", "best")
            ]
            for case in cases.itertuples()
        ]
        tables.append(Table(str(model), header, body))
    return tables


def ranking_tables(frame: pd.DataFrame) -> list[Table]:
    """One table a model: at each dtype and batch size the systems from fastest to slowest, best launch mode."""
    if frame.empty:
        return []
    rows = timed(frame, "best")
    rows = rows[rows["implementation"] != "stream"].sort_values("p50_us")
    tables = []
    for model, of_model in rows.groupby("model", sort=False):
        places = int(of_model.groupby("case_hash").size().max())
        body = []
        for (_, tokens), group in of_model.groupby(["dtype", "tokens"]):
            cells = [_system_cell(row, before) for row, before in _with_previous(group)]
            body.append([group["dtype"].iloc[0], str(tokens), *cells, *[""] * (places - len(cells))])
        tables.append(Table(str(model), ["dtype", "tokens", *map(str, range(1, places + 1))], body))
    return tables


def provenance_table(frames: Mapping[str, pd.DataFrame]) -> Table:
    """One row a study: its run, when, on which cards, with what software and commit."""
    table = Table("Runs", ["study", "run", "rows", "measured (UTC)", "cards", "driver", "torch", "triton", "SM clock, MHz", "commit"])
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
                f"({len(drift)} processes)."
            )
    return facts


def disagreements(published: pd.DataFrame) -> Table:
    """Latencies that the paper's own tables give twice, where they differ by more than their rounding suggests."""
    table = Table("Published twice", ["model", "tokens", "system", *sorted(published["table"].unique()), "ratio"])
    wide = published.pivot_table(index=["model", "tokens", "implementation"], columns="table", values="latency_ms").dropna()
    for key, row in wide.iterrows():
        model, tokens, system = key  # type: ignore[misc]
        ratio = row.max() / row.min()
        if ratio > 1.05:
            table.rows.append([model, str(tokens), system, *(f"{row[name]:.2f} ms" for name in sorted(row.index)), f"{ratio:.2f}"])
    return table


def _published_ratio(published: pd.DataFrame, model: str, tokens: int) -> str:
    rows = published[(published["table"] == "vs_megablocks") & (published["model"] == PUBLISHED_MODEL.get(model))]
    latency = rows[rows["tokens"] == tokens].set_index("implementation")["latency_ms"]
    if not {"megablocks", "triton_fused"} <= set(latency.index):
        return ""
    return f"{latency['megablocks'] / latency['triton_fused']:.2f}"


def _ratio_cell(pair: Any, rows: pd.DataFrame, case_hash: str, path: str) -> str:
    if pair is not None:
        mark = NOISE_MARK if pair.low <= 1 <= pair.high else ""
        return f"{mark}{pair.ratio:.2f}"
    own = rows[(rows["case_hash"] == case_hash) & (rows["implementation"] == path)]
    statuses = own.loc[own["launch"] == "eager", "status"]
    status = statuses.iloc[0] if len(statuses) else "no row"
    return str(status) if status != "ok" else "-"


def _with_previous(group: pd.DataFrame) -> list[tuple[Any, Any]]:
    rows = list(group.itertuples())
    return list(zip(rows, [None, *rows]))


def _system_cell(row: Any, before: Any) -> str:
    mark = f"{NOISE_MARK} " if before is not None and row.p20_us <= before.p80_us else ""
    share = f", {100 * row.limit_us / row.p50_us:.0f} %" if pd.notna(row.limit_us) else ""
    digits = 1 if row.p50_us < 100 else 0
    return f"{mark}{row.implementation} {row.p50_us:.{digits}f} µs ({row.launch}{share})"


def _distinct(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(values.dropna().astype(str))) or "-"
