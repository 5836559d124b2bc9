"""How fast the memory of each card of a run is: rows of one run may be of several cards, which differ by some per cent.

Each process of a sweep times one fixed read. Where two rows of a point are of two cards, their latencies are compared
after dividing each by what that read took on its card, and so are a latency and its limit: a layer of few tokens is
memory traffic, nearly all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import pandas as pd

CARD_US = "card_us"
"""The column that `with_cards` adds: the fixed read in us on the card of a row, NaN where no process tells it."""


def with_cards(rows: pd.DataFrame, record: Mapping[str, Any]) -> pd.DataFrame:
    """The rows with `CARD_US`. record: the JSON of their run."""
    if rows.empty or "device_uuid" not in rows:
        return rows
    return rows.assign(**{CARD_US: rows["device_uuid"].map(reads(rows, record)).astype(float)})


def reads(rows: pd.DataFrame, record: Mapping[str, Any]) -> dict[str, float]:
    """The fixed read in us by card: the median over its processes, those of which it is sure if there are such."""
    found: dict[bool, dict[str, list[float]]] = {True: {}, False: {}}
    for card, us, sure in processes(rows, record):
        if card:
            found[sure].setdefault(card, []).append(us)
    return {card: median(values) for card, values in (found[False] | found[True]).items()}


def processes(rows: pd.DataFrame, record: Mapping[str, Any]) -> list[tuple[str, float, bool]]:
    """(card, the shorter of its two fixed reads in us, whether the card is sure) of each process of a run.

    A process names its card. Those of older runs do not: there the processes of a system are taken for those of its
    cards in order of time, which is sure where there are as many; of more processes the last ones, and the card of the
    others, whose rows are gone or which shared one, is the empty text.
    """
    found, untold = [], dict[str, list[float]]()
    for process in record.get("processes", []):
        if before := process.get("stream_before_us"):
            us = min(before, process.get("stream_after_us") or before)
            if card := process.get("device_uuid"):
                found.append((card, us, True))
            else:
                untold.setdefault(process.get("implementation", ""), []).append(us)
    ordered: dict[str, list[str]] = {}
    if untold and {"implementation", "device_uuid", "timestamp_utc"} <= set(rows):
        others = rows.loc[~rows["device_uuid"].isin([card for card, _, _ in found])]
        last = others.groupby(["implementation", "device_uuid"])["timestamp_utc"].max().sort_values(kind="stable")
        for implementation, card in last.index:
            ordered.setdefault(implementation, []).append(card)
    for implementation, times in untold.items():
        cards = ordered.get(implementation, [])[-len(times) :]
        unknown = len(times) - len(cards)
        found += [("", us, False) for us in times[:unknown]]
        found += [(card, us, not unknown) for card, us in zip(cards, times[unknown:])]
    return found


def slower(rows: pd.DataFrame, other: str = "_other") -> pd.Series:
    """By what factor the card of each row is slower than that of the row beside it, whose columns end in `other`; 1
    where one of them is not known."""
    if CARD_US not in rows or CARD_US + other not in rows:
        return pd.Series(1.0, index=rows.index)
    return (rows[CARD_US] / rows[CARD_US + other]).fillna(1.0)


def as_of_one_card(rows: pd.DataFrame) -> pd.Series:
    """p50_us of each row as if its card were as fast as the median one of the rows; as it is where the card is not
    known."""
    if CARD_US not in rows:
        return rows["p50_us"]
    return rows["p50_us"] * (rows[CARD_US].median() / rows[CARD_US]).fillna(1.0)
