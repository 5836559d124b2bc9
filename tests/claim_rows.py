"""Made-up rows that the claims' rules are decided by, and what they and their templates then say."""

from __future__ import annotations

import itertools

import pandas as pd

from tritonmoe_bench.experiments.claims import Evidence, Outcomes, decide
from tritonmoe_bench.experiments.reporting.texts import claim_texts

PATHS = ("megablocks_sparse", "megablocks_grouped_cublas", "megablocks_grouped_cutlass")
MODELS = ("mixtral", "deepseek_v3", "qwen2_paper")
NOISE = 0.01


def row(implementation, p50=None, *, study="throughput", model="mixtral", tokens=32, launch="eager", **other):
    values = {
        "run_id": "run", "study": study, "model": model, "num_experts": 8, "top_k": 2, "tokens": tokens, "skew": 0.0,
        "dtype": "fp16", "gating": "softmax", "layer": "plain", "routing": "drawn", "implementation": implementation,
        "activations": "a16", "launch": launch, "status": "ok", "reason": "", "active_experts": 8, "limit_us": 50.0,
        "kernel_launches": None, "workspace_bytes": None, "rel_error": None, "torch_rel_error": None,
        "timestamp_utc": "2026-01-01T00:00:00Z", **other,
    }  # fmt: skip
    keys = ("run_id", "model", "num_experts", "tokens", "skew", "dtype")
    values["case_hash"] = "-".join(str(values[key]) for key in keys[1:])
    if p50 is not None:
        values |= {"p50_us": p50, "p20_us": p50 * (1 - NOISE), "p80_us": p50 * (1 + NOISE)}
    return values


def frame(rows):
    columns = dict.fromkeys(name for values in [row("x", 1.0), *rows] for name in values)
    return pd.DataFrame(rows).reindex(columns=list(columns))


def finding(claim, rows=(), own_code=None, **outcomes):
    """The finding on one claim from rows of one or more studies, and what `Outcomes` holds."""
    rows = list(rows)
    studies = dict.fromkeys(values["study"] for values in rows)
    frames = {study: frame([values for values in rows if values["study"] == study]) for study in studies}
    earlier = {} if own_code is None else {"own_code": own_code}
    evidence = Evidence("gpu", frames, Outcomes(**outcomes), **earlier)
    return next(f for f in decide(evidence) if f.claim.id == claim)


def verdict(claim, rows=(), **given):
    return finding(claim, rows, **given).verdict.value


def texts(claim, rows=(), **given):
    return claim_texts(finding(claim, rows, **given))


def against_megablocks(ratio_of, models=MODELS, tokens=(32, 512)):
    """Rows of paper_fused at 100 us and of every Megablocks path at `ratio_of(path, model, tokens)` times that."""
    rows = []
    for model, count in itertools.product(models, tokens):
        rows.append(row("paper_fused", 100.0, model=model, tokens=count))
        rows += [row(path, 100.0 * ratio_of(path, model, count), model=model, tokens=count) for path in PATHS]
    return rows


def traffic(implementation, weights, activations, model="mixtral", tokens=32):
    parts = {"gate_up": {"gate_weights": weights, "gate": activations}, "total": {"all": weights + activations}}
    return [
        row(implementation, study="traffic", model=model, tokens=tokens) | {
            "stage": stage, "tensor": tensor, "method": "model", "read_bytes": size, "write_bytes": 0,
            "unique_read_bytes": size, "unique_write_bytes": 0,
        }
        for stage, tensors in parts.items() for tensor, size in tensors.items()
    ]  # fmt: skip


def counted(implementation, moved, model="mixtral", tokens=32):
    return row(implementation, study="traffic", model=model, tokens=tokens) | {
        "stage": "total", "tensor": "all", "method": "counters", "read_bytes": moved, "write_bytes": 1,
    }  # fmt: skip


def over_skew(ratio_of, experts=(8, 64), skews=(0.0, 2.0)):
    rows = []
    for count, skew in itertools.product(experts, skews):
        rows.append(row("paper_fused", 100.0, study="skew", num_experts=count, skew=skew))
        rows.append(row("megablocks_sparse", 100.0 * ratio_of(count, skew), study="skew", num_experts=count, skew=skew))
    return rows


def assigned(fixed, megablocks, experts=(8, 64, 128), skews=(0.0, 2.0), papers=125.0):
    """Rows of both studies: dynamic heights and fast at 100 us, fixed heights (16 rows 3 times as slow, 128 rows half
    as fast again as 64), the paper's tiles, and two Megablocks paths, the slower one twice as slow."""
    heights, skew = [], []
    for count, exponent in itertools.product(experts, skews):
        point = {"study": "heights", "num_experts": count, "skew": exponent, "launch": "graph"}
        heights.append(row("fastvariant_dynamic", 100.0, **point))
        for rows, times in ((16, 3.0), (64, 1.0), (128, 1.5)):
            heights.append(row(f"fastvariant_fixed{rows}", 100.0 * times * fixed(count, exponent), **point))
        point |= {"study": "skew", "launch": "eager"}
        skew.append(row("fast", 100.0, **point))
        skew.append(row("paper_fused_graph", papers, **point))
        skew.append(row("megablocks_sparse", 200.0 * megablocks(count, exponent), **point))
        skew.append(row("megablocks_grouped_cutlass", 100.0 * megablocks(count, exponent), **point))
    return [*heights, *skew]


def decoded(speedup, share=0.6, error=1.5, models=("qwen3_30b_a3b", "mixtral"), tokens=(1, 32)):
    """Rows of both paths, the expert-centric one at 100 us and an error of 0.003, and of stream."""
    rows = []
    for model, count in itertools.product(models, tokens):
        point = {"study": "decode", "model": model, "tokens": count, "launch": "graph", "torch_rel_error": 0.004}
        output_us = 100.0 / speedup(model, count)
        rows.append(row("fastvariant_expert_centric", 100.0, rel_error=0.003, **point))
        rows.append(row("fastvariant_output_centric", output_us, rel_error=0.003 / error, **point))
        rows.append(row("stream", output_us * share, **point))
    return rows


def small(times, otherwise):
    """The speed-up of one token, and of more."""
    return lambda model, tokens: times if tokens == 1 else otherwise


def fused(ratio, again=1.0, config="tiles", tokens=(1, 32)):
    rows = []
    for count in tokens:
        point = {"study": "fusion", "tokens": count, "launch": "graph"}
        rows.append(row("fastvariant_gather", 100.0, **point) | {"config": "tiles"})
        rows.append(row("fastvariant_permute", 100.0 * ratio(count), **point) | {"config": "permuted tiles"})
        rows.append(row("fast", 100.0 * again, **point) | {"config": config})
    return rows


def grid(passed, failed=0):
    return {"paper_grid": {"passed": passed, "failed": failed, "skipped": 0}}
