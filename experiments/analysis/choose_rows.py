"""The rows that answer a question of `choose`: of one device, at the point that is asked for or the nearest to it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..table import store
from ..table.columns import FORWARD_KEY
from ..table.current import newest, read_run
from ..workload.arguments import PlanError
from ..workload.config import VARIANT, systems
from ..workload.recorded import DRAWN
from . import noise
from .choose_text import PEERS
from .compare import ordered
from .headline import peers
from .names import FAST
from .results import KINDS, NOT_DEVICES

SHAPE = ["model", "num_experts", "top_k", "hidden_dim", "ffn_dim"]
WHOLE = [*SHAPE[1:], "tokens"]
BEYOND = 2
"""So many times beyond the batch sizes with usual systems, these still answer for one that was not measured."""


def layer_runs(results: Path, device: str) -> dict[str, pd.DataFrame]:
    """The current run of each study of a device that timed whole layers. Raises PlanError that names the devices."""
    runs = _layer_runs(results / device)
    if not runs:
        folders = [path for path in results.glob("*") if path.is_dir() and path.name not in NOT_DEVICES]
        known = ", ".join(sorted(path.name for path in folders if _layer_runs(path))) or "none"
        raise PlanError(f"device={device}: no latencies under {results}; there are folders with some for: {known}")
    return runs


def _layer_runs(folder: Path) -> dict[str, pd.DataFrame]:
    runs, apart = {}, noise.measured(folder)
    for path in map(newest, sorted(folder.glob("*.csv"))):
        if {*FORWARD_KEY, "p50_us", "limit_us"} <= set(store.header(path)):
            rows = apart.of(ordered(read_run(path, KINDS["layer"])[0]))
            rows = rows[~rows["implementation"].str.startswith(VARIANT) & (rows["routing"] == DRAWN)]
            if rows.loc[rows["implementation"] != "stream", "p50_us"].notna().any():
                # An empty cell makes pandas read its whole column as floats.
                runs[path.stem] = rows.dropna(subset=WHOLE).astype(dict.fromkeys(WHOLE, int))
    return runs


def usual_systems(rows: pd.DataFrame) -> list[str]:
    """`fast` and the set `serving` of conf/systems.yaml, as far as they were timed anywhere in the rows."""
    timed = timed_systems(rows)
    return [name for name in (FAST, *systems()[PEERS]) if name in timed]


def timed_systems(rows: pd.DataFrame) -> set[str]:
    """The implementations that have a latency in the rows."""
    return set(rows.loc[rows["p50_us"].notna(), "implementation"])


def points_for(
    tokens: int, skew: float, rows: pd.DataFrame, usual: list[str]
) -> tuple[dict[int, pd.DataFrame], pd.DataFrame]:
    """By batch size, the rows that answer: of the point that is asked for, else of the nearest tokens and of these the
    nearest skew; and the rows that they were taken from."""
    asked = rows[(rows["tokens"] == tokens) & (rows["skew"] == skew)]
    if len(asked):
        return {tokens: asked}, asked
    rows = _comparable(rows, tokens, usual)
    points = {near: rows[rows["tokens"] == near] for near in neighbours(rows["tokens"], tokens)}
    return {near: point[point["skew"] == nearest_skew(point["skew"], skew)] for near, point in points.items()}, rows


def _comparable(rows: pd.DataFrame, tokens: int, usual: list[str]) -> pd.DataFrame:
    """The rows of the points that may answer for another one: those with two usual systems or more if `tokens` is not
    far beyond them all, else those with a system that others wrote, else all."""
    point = [rows["tokens"], rows["skew"]]
    timed = rows["implementation"].where(rows["p50_us"].notna())
    several = rows[timed.where(timed.isin(usual)).groupby(point).transform("nunique") >= 2]
    if len(several) and several["tokens"].min() <= BEYOND * tokens and tokens <= BEYOND * several["tokens"].max():
        return several
    compared = rows[timed.isin(peers(rows)).groupby(point).transform("any")]
    return rows if compared.empty else compared


def neighbours(measured: pd.Series, tokens: int) -> list[int]:
    """The measured token counts that answer for `tokens`: itself, else those next to it below and above, one alone
    beyond them all."""
    counts = sorted(map(int, measured.unique()))
    if tokens in counts:
        return [tokens]
    return [*[count for count in counts if count < tokens][-1:], *[count for count in counts if count > tokens][:1]]


def nearest_skew(measured: pd.Series, skew: float) -> float:
    """The measured skew nearest to `skew`, the larger of two equally near."""
    return float(min(sorted(measured.unique(), reverse=True), key=lambda value: abs(value - skew)))
