"""The rules of the claims: each is decided both ways by a few made-up rows."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import yaml

from tritonmoe_bench.experiments.analysis.compare import NoEvidence, compare, current_run
from tritonmoe_bench.experiments.claims import CLAIMS, Evidence, Verdict, decide
from tritonmoe_bench.plots.parts import registry

PATHS = ("megablocks_sparse", "megablocks_grouped_cublas", "megablocks_grouped_cutlass")
MODELS = ("mixtral", "deepseek_v3", "qwen2_paper")
NOISE = 0.01


def row(implementation, p50=None, *, study="throughput", model="mixtral", tokens=32, launch="eager", **other):
    values = {
        "run_id": "run", "study": study, "model": model, "num_experts": 8, "top_k": 2, "tokens": tokens, "skew": 0.0,
        "dtype": "fp16", "gating": "softmax", "implementation": implementation, "launch": launch, "status": "ok",
        "reason": "", "active_experts": 8, "limit_us": 50.0, "kernel_launches": None, "workspace_bytes": None,
        "rel_error": None, "torch_rel_error": None,
        "timestamp_utc": "2026-01-01T00:00:00Z", **other,
    }  # fmt: skip
    keys = ("run_id", "model", "num_experts", "tokens", "skew", "dtype")
    values["case_hash"] = "-".join(str(values[key]) for key in keys[1:])
    if p50 is not None:
        values |= {"p50_us": p50, "p20_us": p50 * (1 - NOISE), "p80_us": p50 * (1 + NOISE)}
    return values


def frame(rows):
    return pd.DataFrame(rows).reindex(columns=[*row("x", 1.0)])


def finding(claim, rows=(), **evidence):
    frames = {study: frame(list(of)) for study, of in itertools.groupby(rows, key=lambda values: values["study"])}
    return next(f for f in decide(Evidence("gpu", frames, **evidence)) if f.id == claim)


def verdict(claim, rows=(), **evidence):
    return finding(claim, rows, **evidence).verdict.value


def against_megablocks(ratio_of, models=MODELS, tokens=(32, 512)):
    """Rows of paper_fused at 100 us and of every Megablocks path at `ratio_of(path, model, tokens)` times that."""
    rows = []
    for model, count in itertools.product(models, tokens):
        rows.append(row("paper_fused", 100.0, model=model, tokens=count))
        rows += [row(path, 100.0 * ratio_of(path, model, count), model=model, tokens=count) for path in PATHS]
    return rows


@pytest.mark.parametrize(
    ("ratio_of", "expected"),
    [
        (lambda *_: 1.0, "holds"),
        (lambda *_: 1.32, "holds"),  # inside the band within the noise
        (lambda *_: 0.5, "does not hold"),
        (lambda *_: 3.0, "holds in part"),
        (lambda path, *_: 0.5 if path == "megablocks_sparse" else 1.0, "holds in part"),
    ],
)
def test_throughput_vs_megablocks(ratio_of, expected):
    assert verdict("throughput-vs-megablocks", against_megablocks(ratio_of)) == expected


def test_throughput_needs_all_three_models_and_counts_no_larger_batch():
    found = finding("throughput-vs-megablocks", against_megablocks(lambda *_: 1.0, models=MODELS[:2]))
    assert found.verdict is Verdict.IN_PART
    assert "no point for qwen2_paper" in found.sentence
    larger = against_megablocks(lambda *_: 0.5, tokens=(2048,))
    assert verdict("throughput-vs-megablocks", against_megablocks(lambda *_: 1.0) + larger) == "holds"


def test_a_verdict_says_at_how_many_points_the_claim_holds_as_published():
    found = finding("throughput-vs-megablocks", against_megablocks(lambda path, *_: 3.0 if "cutlass" in path else 1.0))
    assert (found.verdict, found.points) == (Verdict.IN_PART, "12 of 18")
    assert "schedule built on the GPU" not in found.sentence  # nothing ran in a graph


def test_the_schedule_on_the_gpu_is_compared_too():
    rows = against_megablocks(lambda *_: 1.0)
    rows += [row("paper_fused_graph", 50.0, model=model, tokens=32, launch="graph") for model in MODELS]
    sentence = finding("throughput-vs-megablocks", rows).sentence
    assert sentence.endswith("with the schedule built on the GPU and each system in its best launch mode it is 2.00.")


def test_the_numbers_of_a_finding_are_those_of_the_rows():
    ratios = dict(zip(PATHS, (0.5, 1.0, 2.0)))
    found = finding("throughput-vs-megablocks", against_megablocks(lambda path, *_: ratios[path]))
    assert "18 ratios" in found.sentence
    assert "6 lie inside 0.89–1.31 within their noise, 6 above and 6 below" in found.sentence
    assert "megablocks_sparse: 0.50" in found.measured
    assert found.rows == "throughput.csv: 24 of 24 rows"


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({32: 1.31, 128: 1.24, 512: 0.89}, "holds"),
        ({32: 1.30, 128: 1.5, 512: 0.9}, "holds"),
        ({32: 1.31, 128: 1.24, 512: 0.5}, "holds in part"),
        ({32: 1.31, 128: 1.24}, "holds in part"),
        ({32: 1.0, 128: 1.0, 512: 0.5}, "does not hold"),
    ],
)
def test_mixtral_32_tokens(ratios, expected):
    rows = against_megablocks(lambda path, model, tokens: ratios[tokens], ["mixtral"], list(ratios))
    rows += against_megablocks(lambda *_: 0.1, ["deepseek_v3"])
    assert verdict("mixtral-32-tokens", rows) == expected


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ((1.2, 1.7), "holds"),
        ((1.2, 2.5), "holds in part"),
        ((1.2, 1.01), "holds in part"),
        ((1.01, 0.8), "does not hold"),
    ],
)
def test_fused_over_unfused(speedups, expected):
    rows = []
    for tokens, speedup in enumerate(speedups, start=1):
        rows += [row("paper_fused", 100.0, tokens=tokens), row("paper_unfused", 100.0 * speedup, tokens=tokens)]
    assert verdict("fused-over-unfused", rows) == expected


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((5, 7, 24), "holds"), ((5, 7, 100), "holds"), ((6, 7, 24), "holds in part"), ((6, 8, 23), "does not hold")],
)
def test_launches(counts, expected):
    names = ("paper_fused", "paper_unfused", "torch_loop")
    rows = [row(name, 1.0, kernel_launches=count) for name, count in zip(names, counts)]
    assert verdict("launches", rows) == expected


@pytest.mark.parametrize(
    ("sizes", "expected"), [((10, 20, 30), "holds"), ((10, 20, 5), "holds in part"), ((10, 10, 5), "does not hold")]
)
def test_workspace(sizes, expected):
    names = ("paper_fused", "megablocks_sparse", "megablocks_grouped_cublas")
    rows = [row(name, 1.0, workspace_bytes=size) for name, size in zip(names, sizes)]
    assert verdict("workspace", rows) == expected


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


@pytest.mark.parametrize(
    ("fused", "unfused", "expected"),
    [
        ((60, 4), (90, 10), "holds"),
        ((90, 6), (90, 10), "holds in part"),  # 40 % of the activations, 4 % of all
        ((90, 9), (90, 10), "does not hold"),
    ],
)
def test_memory_traffic(fused, unfused, expected):
    rows = pd.DataFrame(traffic("paper_fused", *fused) + traffic("paper_unfused", *unfused))
    found = {f.id: f for f in decide(Evidence("gpu", {"traffic": rows}))}["memory-traffic"]
    assert found.verdict.value == expected


@pytest.mark.parametrize(
    ("fused", "modelled", "expected"),
    [
        (59, (90, 9), "holds"),  # the counters decide, and the model says 1 %
        (95, (60, 4), "holds in part"),
        (95, (90, 9), "does not hold"),
    ],
)
def test_memory_traffic_is_decided_by_the_counters_where_they_were_read(fused, modelled, expected):
    rows = [counted("paper_fused", fused), counted("paper_unfused", 99)]
    rows += traffic("paper_fused", *modelled) + traffic("paper_unfused", 90, 10)
    found = {f.id: f for f in decide(Evidence("gpu", {"traffic": pd.DataFrame(rows)}))}["memory-traffic"]
    assert found.verdict.value == expected
    assert f"counters on the paper's models: {100 - fused - 1} % of what DRAM moves" in found.measured


def test_memory_traffic_says_where_it_is_reached_and_where_not():
    rows = []
    for tokens, gate in ((32, 6), (512, 7), (4096, 2)):
        rows += traffic("paper_fused", 90, gate, tokens=tokens) + traffic("paper_unfused", 90, 10, tokens=tokens)
    found = {f.id: f for f in decide(Evidence("gpu", {"traffic": pd.DataFrame(rows)}))}["memory-traffic"]
    assert "0 of 3 points counting every access issued (the most: 8 % on mixtral, tokens=4096)" in found.sentence
    assert (
        "2 of 3 points counting each address once a stage, without weights (mixtral, tokens=32 to 4096)"
        in found.sentence
    )


def test_memory_traffic_is_not_decided_by_another_shape():
    rows = pd.DataFrame(traffic("paper_fused", 1, 1, "tiny") + traffic("paper_unfused", 9, 9, "tiny"))
    assert {f.id: f for f in decide(Evidence("gpu", {"traffic": rows}))}["memory-traffic"].verdict is Verdict.UNDECIDED


def over_skew(ratio_of, experts=(8, 64), skews=(0.0, 2.0)):
    rows = []
    for count, skew in itertools.product(experts, skews):
        rows.append(row("paper_fused", 100.0, study="skew", num_experts=count, skew=skew))
        rows.append(row("megablocks_sparse", 100.0 * ratio_of(count, skew), study="skew", num_experts=count, skew=skew))
    return rows


@pytest.mark.parametrize(
    ("ratio_of", "expected"),
    [
        (lambda experts, skew: 0.8 if experts >= 64 and skew > 1 else 1.2, "holds"),
        (lambda experts, skew: 0.8 if experts > 64 and skew > 1 else 1.2, "holds in part"),
        (lambda experts, skew: 1.2 if experts >= 64 and skew > 1 else 0.8, "does not hold"),
        (lambda *_: 0.99, "does not hold"),  # inside the noise
    ],
)
def test_skew_regime(ratio_of, expected):
    assert verdict("skew-regime", over_skew(ratio_of, experts=(8, 64, 128))) == expected


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


@pytest.mark.parametrize(
    ("fixed", "megablocks", "expected"),
    [
        (lambda *_: 1.2, lambda *_: 1.1, "holds"),
        (lambda *_: 1.2, lambda *_: 0.99, "holds"),  # behind Megablocks inside the noise only
        (lambda experts, skew: 1.2 if experts >= 64 and skew > 1 else 0.5, lambda *_: 1.1, "holds"),
        (lambda experts, skew: 1.2 if experts > 64 else 0.8, lambda *_: 1.1, "holds in part"),
        (lambda *_: 1.2, lambda experts, _: 1.1 if experts > 64 else 0.8, "holds in part"),
        (lambda *_: 1.2, lambda *_: 0.8, "does not hold"),
        (lambda *_: 1.01, lambda *_: 1.1, "does not hold"),  # faster than the fixed tiles inside the noise only
        (lambda experts, skew: 0.8 if experts >= 64 and skew > 1 else 1.2, lambda *_: 1.1, "does not hold"),
    ],
)
def test_dynamic_assignment(fixed, megablocks, expected):
    assert verdict("dynamic-assignment", assigned(fixed, megablocks)) == expected


def test_dynamic_assignment_says_what_there_is_to_repair():
    found = finding("dynamic-assignment", assigned(lambda experts, _: experts / 80, lambda *_: 1.1))
    assert "faster than 64 rows for all at 1 of 2 points and slower at 1, 0.80–1.60 times" in found.sentence
    assert "the best single height is 64 rows at 2, and" in found.sentence
    assert "not behind the fastest Megablocks path at 2 of 2" in found.sentence
    assert "the paper's tiles are behind it at 2 of 2 there" in found.sentence
    assert found.rows == "heights.csv: 4 of 24 rows; skew.csv: 4 of 24 rows"


def test_dynamic_assignment_holds_in_part_where_there_is_nothing_to_repair():
    found = finding("dynamic-assignment", assigned(lambda *_: 1.2, lambda *_: 1.1, papers=105.0))
    assert (found.verdict, found.points) == (Verdict.IN_PART, "0 of 2")
    assert found.sentence.endswith("the paper's tiles are behind it at 0 of 2 there: nothing to repair.")


def test_dynamic_assignment_waits_for_its_regime_and_for_both_studies():
    rows = assigned(lambda *_: 1.2, lambda *_: 1.1)
    for kept in (
        [r for r in rows if r["num_experts"] == 8],
        [r for r in rows if r["implementation"] != "fast"],
        [r for r in rows if r["implementation"] != "fastvariant_fixed64"],
        [r for r in rows if r["study"] == "heights"],
        [r for r in rows if r["study"] == "skew"],
    ):
        assert verdict("dynamic-assignment", kept) == "undecided"


def test_both_claims_mean_the_same_regime():
    figures = {claim["id"]: claim["figures"] for claim in yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))}
    assert figures["skew-regime"]["experts_from"] == figures["dynamic-assignment"]["experts_from"]


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


@pytest.mark.parametrize(
    ("speedup", "share", "expected"),
    [
        (lambda *_: 1.9, 0.6, "holds"),
        (lambda *_: 1.82, 0.6, "holds"),  # inside the noise
        (lambda *_: 1.9, 0.5, "holds in part"),
        (small(1.9, 1.2), 0.9, "holds in part"),
        (small(1.1, 0.3), 0.9, "holds in part"),
        (lambda *_: 1.01, 0.9, "does not hold"),  # faster inside the noise only
        (lambda *_: 0.5, 0.9, "does not hold"),
        (lambda model, _: 1.9 if model == "mixtral" else 0.5, 0.9, "holds in part"),
    ],
)
def test_warp_decode_throughput(speedup, share, expected):
    assert verdict("warp-decode-throughput", decoded(speedup, share)) == expected


def test_warp_decode_says_where_the_paths_cross():
    found = finding("warp-decode-throughput", decoded(small(2.0, 0.5), tokens=(1, 16)))
    assert "mixtral at about 4.0 tokens, qwen3_30b_a3b at about 4.0 tokens" in found.sentence
    assert "faster than the expert-centric one at 2 of 4 points, slower at 2" in found.sentence
    assert "ahead up to 1 token." in found.sentence
    assert "not timed" in found.measured
    found = finding("warp-decode-throughput", decoded(lambda *_: 2.0))
    assert "nowhere, always ahead" in found.sentence
    assert "speed-up 2.00 at 60 % of the read limit" in found.measured


@pytest.mark.parametrize(
    ("error", "expected"), [(1.4, "holds"), (1.5, "holds"), (1.2, "holds in part"), (0.9, "does not hold")]
)
def test_warp_decode_accuracy(error, expected):
    assert verdict("warp-decode-accuracy", decoded(lambda *_: 1.0, error=error + 1e-9)) == expected


def test_warp_decode_accuracy_compares_the_errors_of_each_point():
    rows = decoded(lambda *_: 1.0, error=1.5, models=("mixtral",)) + decoded(
        lambda *_: 1.0, error=0.5, models=("qwen2",)
    )
    found = finding("warp-decode-accuracy", rows)
    assert found.verdict is Verdict.IN_PART
    assert "closer to the float32 reference at 2 of 4 points, 1.4 times or more at 2" in found.sentence
    assert found.measured == "mixtral: 1.50; qwen2: 0.50"


def fused(ratio, again=1.0, config="tiles", tokens=(1, 32)):
    rows = []
    for count in tokens:
        point = {"study": "fusion", "tokens": count, "launch": "graph"}
        rows.append(row("fastvariant_gather", 100.0, **point) | {"config": "tiles"})
        rows.append(row("fastvariant_permute", 100.0 * ratio(count), **point) | {"config": "permuted tiles"})
        rows.append(row("fast", 100.0 * again, **point) | {"config": config})
    return rows


@pytest.mark.parametrize(
    ("ratio", "again", "config", "expected"),
    [
        (lambda _: 1.0, 1.0, "tiles", "holds"),
        (lambda _: 1.015, 1.0, "tiles", "holds"),  # inside p20 to p80
        (lambda _: 1.05, 1.0, "tiles", "does not hold"),
        (lambda _: 0.95, 1.0, "tiles", "does not hold"),
        (lambda _: 1.05, 1.06, "tiles", "holds"),  # two processes differ by more
        (lambda _: 1.05, 1.06, "others", "does not hold"),  # but not with other tiles
        (lambda tokens: 1.0 if tokens == 1 else 1.2, 1.0, "tiles", "holds in part"),
    ],
)
def test_fused_routing_neutral(ratio, again, config, expected):
    rows = pd.DataFrame(fused(ratio, again, config))
    found = {f.id: f for f in decide(Evidence("gpu", {"fusion": rows}))}["fused-routing-neutral"]
    assert found.verdict.value == expected


def test_fused_routing_says_how_far_two_processes_differ():
    rows = pd.DataFrame(fused(lambda tokens: 1.2, again=0.95))
    found = {f.id: f for f in decide(Evidence("gpu", {"fusion": rows}))}["fused-routing-neutral"]
    assert "faster at 2 and slower at 0" in found.sentence
    assert "differ by: 5.3 % over 2 points" in found.sentence
    alone = rows[rows["implementation"] != "fast"]
    found = {f.id: f for f in decide(Evidence("gpu", {"fusion": alone}))}["fused-routing-neutral"]
    assert "differ by: not measured" in found.sentence


@pytest.mark.parametrize(
    ("ratio_of", "expected"),
    [
        (lambda experts, skew: 1 + skew, "holds"),
        (lambda experts, skew: 1 + skew if experts == 8 else 1.0, "holds in part"),
        (lambda experts, skew: 3 - skew, "does not hold"),
    ],
)
def test_imbalance_gain(ratio_of, expected):
    assert verdict("imbalance-gain", over_skew(ratio_of)) == expected


@pytest.mark.parametrize(
    ("latencies", "active", "expected"),
    [
        ((100, 150), (8, 8), "holds"),
        ((100, 150), (8, 4), "holds in part"),
        ((100, 101), (8, 8), "does not hold"),
        ((100, 101), (8, 4), "does not hold"),
    ],
)
def test_routing_distribution_matters(latencies, active, expected):
    rows = [
        row("paper_fused", latency, study="skew", skew=skew, active_experts=count)
        for latency, skew, count in zip(latencies, (0.0, 2.0), active)
    ]
    rows += [row("stream", 1.0 + skew, study="skew", skew=skew) for skew in (0.0, 2.0)]
    assert verdict("routing-distribution-matters", rows) == expected


def grid(passed, failed=0):
    return {"paper_grid": {"passed": passed, "failed": failed, "skipped": 0}}


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        ({"nvidia-a100": grid(162), "amd-mi300x": grid(162)}, "holds"),
        ({"interpreter": grid(162), "nvidia-h200": grid(162)}, "holds in part"),
        ({"interpreter": grid(162), "nvidia-h200": grid(161, 1)}, "does not hold"),
        ({"interpreter": grid(100)}, "undecided"),
        ({"interpreter": {"ours": {"passed": 1, "failed": 0}}}, "undecided"),
    ],
)
def test_correctness(tests, expected):
    assert verdict("correctness", tests=tests) == expected


@pytest.mark.parametrize(
    ("statuses", "tests", "expected"),
    [
        (("ok", "ok"), {"nvidia-a100": grid(162), "amd-mi300x": grid(162)}, "holds"),
        (("ok", "ok"), {"interpreter": grid(162)}, "holds in part"),
        (("ok", "error"), {}, "does not hold"),
    ],
)
def test_portability(statuses, tests, expected):
    table = pd.DataFrame({"kernel": "k", "target": ["sm_80", "gfx942"], "status": statuses})
    assert verdict("portability", portability=table, tests=tests) == expected


def test_without_results_every_claim_is_undecided_and_says_what_would_decide_it():
    claims = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
    findings = decide(Evidence("gpu"))
    assert [f.id for f in findings] == [claim["id"] for claim in claims]
    for found, claim in zip(findings, claims):
        assert found.verdict is Verdict.UNDECIDED, found
        assert claim["decided_by"] in found.sentence


def test_what_was_tried_and_cannot_run_here_is_not_testable():
    rows = [row("paper_fused", 1.0)]
    rows += [row(path, status="unavailable", reason="make megablocks") for path in PATHS]
    found = finding("throughput-vs-megablocks", rows)
    assert found.verdict is Verdict.NOT_TESTABLE
    assert "unavailable (make megablocks)" in found.sentence


def test_runs_are_not_mixed():
    old = row("megablocks_sparse", 500.0, run_id="old")
    rows = frame([old | {"timestamp_utc": "2025-01-01T00:00:00Z"}, row("paper_fused", 100.0)])
    with pytest.raises(NoEvidence):
        compare(rows, "paper_fused", PATHS, "eager")
    assert set(current_run(rows)["implementation"]) == {"paper_fused"}


def test_launch_modes_are_not_mixed_and_the_best_one_is_found():
    rows = frame([
        row("paper_fused", 100.0), row("paper_fused", 50.0, launch="graph"), row("megablocks_sparse", 200.0),
    ])  # fmt: skip
    assert compare(rows, "paper_fused", PATHS, "eager")["ratio"].tolist() == [2.0]
    assert compare(rows, "paper_fused", PATHS, "best")["ratio"].tolist() == [4.0]


@pytest.mark.parametrize("change", ["lacks a rule", "lacks a claim", "twice"])
def test_claims_and_rules_must_match(tmp_path, change):
    claims = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
    if change == "lacks a rule":
        claims.append(claims[0] | {"id": "brand-new"})
    elif change == "lacks a claim":
        del claims[0]
    else:
        claims.append(claims[0])
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(claims), encoding="utf-8")
    with pytest.raises(ValueError, match=r"brand-new|throughput-vs-megablocks"):
        decide(Evidence("gpu"), path)


def test_every_figure_that_a_rule_names_exists():
    named = {found.figure for found in decide(Evidence("gpu"))} - {""}
    assert named
    assert named <= set(registry.figures())
