"""What the field disputes: statements about other projects' kernels that public threads contradict each other on.

Each compares two groups of systems, the fastest of one with the fastest of the other, point by point.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import NoEvidence, compare, fastest_first, ratios, sources, timed, to_best
from ..analysis.names import LIMIT
from .evidence import Evidence, rows_of
from .finding import DISPUTED, Finding, Verdict, rule

TRITON = ("vllm", "vllm_tuned", "sglang")
"""Serving systems whose expert GEMMs are one Triton kernel."""
CUTLASS = ("cutlass_grouped", "torch_grouped_mm", "torch_grouped_mm_compiled", "megablocks_grouped_cutlass",
           "flashinfer_cutlass")  # fmt: skip
HOPPER = ("h100", "h200", "h20")
MONO_MOE, BESIDE = "flashinfer_mono", "flashinfer_cutlass"
"""FlashInfer's one launch, and the path of its own that it is claimed against."""
KIMI, KIMI_FORMATS = "kimi_k2", ("int4_g32", "fp8_block")
MONO_MOE_SHAPE = "256 experts, ffn 512, hidden 2048, as Qwen3.5-35B-A3B has"


@rule("triton-over-cutlass-bf16", figure="headline", among=DISPUTED, triton=TRITON, cutlass=CUTLASS)
def triton_over_cutlass(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("headline")
    if not any(name in evidence.device for name in HOPPER):
        raise NoEvidence(f"The claim is about Hopper, and {evidence.device} is none", sources(frame, 0))
    pairs = _groups(frame[frame["dtype"] == "bf16"], {"Triton": TRITON, "CUTLASS": CUTLASS})
    return _faster(frame, pairs, pairs["low"] > 1)


@rule("deep-gemm-above-ffn", figure="formats", among=DISPUTED, triton=TRITON)
def deep_gemm_above_ffn(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("quant")
    rows = frame[frame["quant"] == "fp8_block"]
    pairs = _groups(rows, {"DeepGEMM": ("deep_gemm",), "Triton": TRITON})
    wide = pairs["ffn_dim"] > figures["ffn"]
    finding = _faster(frame, pairs, (wide & (pairs["low"] > 1)) | (~wide & (pairs["high"] < 1)))
    return Finding(finding.verdict, {**finding.numbers, "narrow": int((~wide).sum())}, finding.sources, finding.held)


@rule("w4a8-slower-than-w4a16", figure="formats", among=DISPUTED)
def w4a8_slower(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("quant")
    pairs = compare(frame, "humming_a8", ["humming"], "best")
    return _faster(frame, pairs, pairs["high"] < 1)


@rule("int4-slower-than-fp8", figure="formats", among=DISPUTED, model=KIMI)
def int4_slower(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("quant")
    rows = frame[(frame["model"] == KIMI) & (frame["implementation"] != LIMIT)]
    int4, fp8 = (rows[rows["quant"] == name] for name in KIMI_FORMATS)
    point = {"int4": _fastest(int4, set(int4["implementation"])), "fp8": _fastest(fp8, set(fp8["implementation"]))}
    pairs = _compared({name: best.assign(case_hash=_same_point(best)) for name, best in point.items()})
    return _faster(frame, pairs, pairs["high"] < 1)


@rule("mono-moe-decode", among=DISPUTED, shape=MONO_MOE_SHAPE)
def mono_moe(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    """Where FlashInfer's CUTLASS path has no row, what mono_moe is compared with decides nothing."""
    lack, frame = "FlashInfer's CUTLASS path has no row on its shape", evidence.study("quant")
    rows = frame[frame["quant"] == "fp8_block"]
    pairs = ratios(rows[rows["tokens"] == figures["tokens"]], MONO_MOE, [BESIDE], "best")
    if not pairs.empty:
        held = pairs["high"] >= figures["speedup"]
        verdict = Verdict.of(held.all(), (pairs["low"] > 1).any())
        numbers = {"pairs": pairs, "less": int(((pairs["low"] > 1) & ~held).sum())}
        return Finding(verdict, numbers, sources(frame, rows_of(pairs)), (int(held.sum()), len(pairs)))
    others = set(rows["implementation"]) - {MONO_MOE, LIMIT}
    pairs = to_best(ratios(rows, MONO_MOE, others, "best"))
    for best in pairs[pairs["tokens"] == figures["tokens"]].itertuples():
        lack += f"; over the fastest of those here, {best.other}, mono_moe is {best.ratio:.2f}x as fast at one token"
    raise NoEvidence(lack, sources(frame, rows_of(pairs)), tried=not pairs.empty)


def _faster(frame: pd.DataFrame, pairs: pd.DataFrame, held: pd.Series) -> Finding:
    """By the points at which the claim holds; and how often the first side is faster, slower, or the same."""
    faster, slower = int((pairs["low"] > 1).sum()), int((pairs["high"] < 1).sum())
    numbers = {"pairs": pairs, "faster": faster, "slower": slower, "same": len(pairs) - faster - slower}
    verdict = Verdict.of(held.all(), held.any())
    return Finding(verdict, numbers, sources(frame, rows_of(pairs)), (int(held.sum()), len(pairs)))


def _groups(frame: pd.DataFrame, groups: Mapping[str, Collection[str]]) -> pd.DataFrame:
    """`compare` of the fastest of the first group of systems with the fastest of the second, at each case."""
    return _compared({name: _fastest(frame, systems) for name, systems in groups.items()})


def _compared(sides: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """`compare` of two tables of one row a case, each standing for one side; with `system` and `other_system` added."""
    one, other = sides
    rows = pd.concat(
        [best.assign(system=best["implementation"], implementation=name) for name, best in sides.items()],
        ignore_index=True,
    )
    pairs = compare(rows, one, [other], "best")
    names = sides[other].set_index(["run_id", "case_hash"])["implementation"].rename("other_system")
    return pairs.join(names, on=["run_id", "case_hash"])


def _fastest(frame: pd.DataFrame, systems: Collection[str]) -> pd.DataFrame:
    """The row of the fastest of the systems at each case, each in its best launch mode."""
    rows = timed(frame[frame["implementation"].isin(list(systems))], "best")
    return fastest_first(rows).drop_duplicates(["run_id", "case_hash"])


def _same_point(rows: pd.DataFrame) -> pd.Series:
    """What two formats of one layer have in common at a point, as a name."""
    return rows["tokens"].astype(str) + " tokens, skew " + rows["skew"].astype(str)
