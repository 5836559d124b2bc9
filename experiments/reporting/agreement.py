"""Whether systems stand in the order of an earlier, separate measurement: results/reference/h200_peers.csv, skew 0.

Orders are compared pair by pair inside each measurement; no latency of one is divided by one of the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..analysis.compare import timed
from ..analysis.names import LIMIT
from ..analysis.own_code import OUR_MODELS, REFERENCE, REFERENCE_DEVICE
from .texts import say

STUDIES = ("headline", "throughput")
POINT = ["model", "tokens"]
SHAPE = [*POINT, "num_experts", "top_k", "hidden_dim", "ffn_dim", "dtype", "skew"]
OUR_SYSTEMS = {
    "megablocks_0.10_grouped_cublas": "megablocks_grouped_cublas",
    "megablocks_0.10_grouped_cutlass": "megablocks_grouped_cutlass",
    "megablocks_0.10_sparse": "megablocks_sparse",
    "openai_triton_kernels_3.5.1": "openai_triton_kernels",
    "scattermoe": "scattermoe",
    "torch_grouped_mm": "torch_grouped_mm",
    "torch_grouped_mm_compiled": "torch_grouped_mm_compiled",
    "torch_loop": "torch_loop",
    "tritonmoe_paper_code": "tritonmoe",
    "tritonmoe_paper_code_unfused": "tritonmoe_unfused",
    "vllm_triton_0.22.1": "vllm",
}
"""Names there and here."""


def load_reference(path: Path = REFERENCE) -> pd.DataFrame:
    """Rows at skew 0 under the names of this project, with `p50_us` of the faster launch mode."""
    rows = pd.read_csv(path)
    rows = rows[(rows["skew"] == 0) & rows["implementation"].isin(list(OUR_SYSTEMS))]
    return rows.assign(
        implementation=rows["implementation"].map(OUR_SYSTEMS), model=rows["model"].map(OUR_MODELS),
        p50_us=rows[["graph_us", "eager_us"]].min(axis=1),
    )  # fmt: skip


def pairs(reference: pd.DataFrame, frame: pd.DataFrame, noise: Mapping[bool, float]) -> pd.DataFrame:
    """One row for each point and pair of systems in both: first, second, there and here (latency of second / of first,
    each inside its measurement), eager (whether a side is fastest without a CUDA graph here), verdict.

    verdict: `same order`, `within noise` or `other order`. Within the noise is what p20 to p80 here leave open, or a
    ratio there that is no further from 1 than a factor of exp(noise[eager]).
    """
    own = timed(frame, "best")
    own = own[own["implementation"] != LIMIT].merge(reference[SHAPE].drop_duplicates(), on=SHAPE)
    there = {key: group.set_index("implementation")["p50_us"] for key, group in reference.groupby(POINT)}
    rows = []
    for key, group in own[(own["gating"] == "softmax") & (own["layer"] == "plain")].groupby(POINT):
        here, other = group.set_index("implementation"), there[key]
        for first, second in itertools.combinations(sorted(set(here.index) & set(other.index)), 2):
            a, b = here.loc[first], here.loc[second]
            ratio_there, ratio_here = other[second] / other[first], b["p50_us"] / a["p50_us"]
            tie = b["p20_us"] <= a["p80_us"] and a["p20_us"] <= b["p80_us"]
            eager = "eager" in {a["launch"], b["launch"]}
            order = "same order" if (ratio_there > 1) == (ratio_here > 1) else "other order"
            if order == "other order" and (tie or abs(np.log(ratio_there)) <= noise[eager]):
                order = "within noise"
            rows.append((*key, first, second, ratio_there, ratio_here, eager, order))
    return pd.DataFrame(rows, columns=[*POINT, "first", "second", "there", "here", "eager", "verdict"])


def run_to_run(frames: Mapping[str, pd.DataFrame]) -> dict[bool, float]:
    """How far the ratio of two systems moves between two runs of this harness: the 90th percentile of |ln| of that, by
    whether a side is fastest without a CUDA graph, where it depends on the host.

    The reference has no spread of its own; this stands for it. 0 where two runs share no pair.
    """
    if len(frames) < 2:
        return {False: 0.0, True: 0.0}
    rows = [timed(frame, "best") for frame in frames.values()]
    one, two = (table[table["implementation"] != LIMIT] for table in rows[:2])
    shared = one.merge(two, on=["case_hash", "implementation"], suffixes=("", "_two"))
    shared["change"] = np.log(shared["p50_us"] / shared["p50_us_two"])
    shared["eager"] = shared["launch"] == "eager"
    shared = shared[["case_hash", "implementation", "change", "eager"]]
    moved = shared.merge(shared, on="case_hash", suffixes=("", "_two"))
    moved = moved[moved["implementation"] < moved["implementation_two"]]
    size = (moved["change"] - moved["change_two"]).abs()
    eager = moved["eager"] | moved["eager_two"]
    return {side: float(size[eager == side].quantile(0.9)) if (eager == side).any() else 0.0 for side in (False, True)}


def sentences(device: str, frames: Mapping[str, pd.DataFrame]) -> list[str]:
    """The comparison of each study in words; empty for another GPU, and where no pair of systems is in both."""
    if device != REFERENCE_DEVICE:
        return []
    reference, noise = load_reference(), run_to_run(frames)
    tables = {study: pairs(reference, frame, noise) for study, frame in frames.items()}
    known = {study: table for study, table in tables.items() if len(table)}
    return [say("agreement.j2", "study", name=study, **numbers(table, noise)) for study, table in known.items()]


def numbers(table: pd.DataFrame, noise: Mapping[bool, float]) -> dict[str, Any]:
    """What the template says of the rows of `pairs`: how many there are by verdict, and the noise in per cent."""
    counts = table["verdict"].value_counts()
    others = table[table["verdict"] == "other order"]
    return {
        "pairs": len(table), "same": counts.get("same order", 0), "tied": counts.get("within noise", 0),
        "others": others, "waiting": int(others["eager"].sum()), "graph_noise": 100 * np.expm1(noise[False]),
        "eager_noise": 100 * np.expm1(noise[True]),
    }  # fmt: skip
