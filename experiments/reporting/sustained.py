"""What `fast` takes under a load that lasts, beside the bursts of the headline study, by the rows of the energy study.

Forwards run back to back there for over a second, so that clocks settle under the card's power limit. The two studies
are of different processes: what a latency rises by holds the noise of both. Systems are compared inside one study.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import plain, timed
from ..analysis.headline import against_best, peers, standing, timed_peers
from ..analysis.names import FAST, model_label
from .tables import Table, latency_text, ratio_text

HEADER = [
    "model", "tokens", "skew", f"{FAST} in a burst, µs", "under load, µs", "more", "SM clock, MHz",
    f"{FAST} / best peer in a burst", "under load", "best peer under load",
]  # fmt: skip


def numbers(frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """`most`: the point at which `fast` takes the most longer under load, a row of `points`; `standing`: against the
    best peer under load, or None; `others`: the labels of the peers there; `older`: whether the rows under load are of
    an older revision of `fast` than the bursts. Empty where no point is in both studies. frames: of studies, by name.
    """
    both = points(frames)
    if both.empty:
        return {}
    rows = plain(frames["energy"])
    most = both.sort_values("more", kind="stable").iloc[-1].to_dict()
    burst, load = (_own(frames[name])["revision"].max() for name in ("headline", "energy"))
    return {
        "most": most, "standing": standing(against_best(rows, peers(rows))), "others": timed_peers(rows),
        "older": bool(load < burst),
    }  # fmt: skip


def points(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The points of `fast` in both studies: rows of the energy study with `burst_us` and `more`, latency over burst."""
    if not {"headline", "energy"} <= set(frames):
        return pd.DataFrame()
    burst, load = (_own(frames[name]) for name in ("headline", "energy"))
    both = load.merge(burst[["case_hash", "p50_us"]].rename(columns={"p50_us": "burst_us"}), on="case_hash")
    both = both.sort_values(["model", "skew", "tokens", "case_hash"], kind="stable").reset_index(drop=True)
    return both.assign(more=both["p50_us"] / both["burst_us"])


def _own(frame: pd.DataFrame) -> pd.DataFrame:
    rows = timed(plain(frame), "best")
    return rows[rows["implementation"] == FAST]


def table(frames: Mapping[str, pd.DataFrame]) -> Table | None:
    """A row for each of `points`; None without any."""
    both = points(frames)
    if both.empty:
        return None
    leads = {
        name: {row.case_hash: row for row in against_best(rows, peers(rows)).itertuples()}
        for name, rows in ((name, plain(frames[name])) for name in ("headline", "energy"))
    }
    made = Table("", HEADER, text=(0, len(HEADER) - 1))
    for row in both.to_dict("records"):
        burst, load = (leads[name].get(row["case_hash"]) for name in ("headline", "energy"))
        clock = row["settled_clock_mhz"]
        made.rows.append([
            model_label(row["model"]), str(row["tokens"]), f"{row['skew']:g}", latency_text(row["burst_us"]),
            latency_text(row["p50_us"]), f"{100 * (row['more'] - 1):+.1f} %", "-" if pd.isna(clock) else f"{clock:.0f}",
            *("-" if lead is None else ratio_text(lead) for lead in (burst, load)),
            "-" if load is None else str(load.other),
        ])  # fmt: skip
    return made
