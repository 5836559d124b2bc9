"""A SYNTHETIC results folder, for tests of plots and report: made-up latencies from a formula, never measured.

    python tests/make_results.py /tmp/results      writes /tmp/results/fixture-gpu/

Its device is called `fixture-gpu`, so that nothing drawn from it passes for a measurement.
"""

from __future__ import annotations

import csv
import json
import sys
import zlib
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.table.columns import (
    ENERGY_COLUMNS,
    ROW_COLUMNS,
    STAGE_COLUMNS,
    TRAFFIC_COLUMNS,
    validate,
)
from tritonmoe_bench.experiments.targets import matrix
from tritonmoe_bench.experiments.targets.gpus import TARGETS
from tritonmoe_bench.experiments.workload import config
from tritonmoe_bench.experiments.workload.case import Case

DEVICE = "fixture-gpu"
STAMP = "2026-01-02T03:04:05Z"
TOKENS = (1, 4, 8, 16, 32, 64, 128, 256, 512)
LIMIT_TB_S = 4.5
MATRIX_TFLOPS = {"bf16": 780.0, "fp16": 765.0}
ENVIRONMENT = {
    "device": DEVICE, "device_uuid": "SYNTHETIC-0000", "driver": "000.00", "torch": "0.0.0+synthetic",
    "triton": "0.0.0", "git_commit": "0" * 40, "git_dirty": False,
}  # fmt: skip
HOST_SYNC = "the host waits for the expert counts, which a CUDA graph cannot hold (synthetic)"

SYSTEMS = {
    # name: (share of the limit's bandwidth, us of a graph replay or None if it syncs, us of an eager call,
    #        us per active expert, factor per doubling of tokens over 64, version)
    "stream": (1.0, 2.0, 8.0, 0.0, 1.0, "0.1.0"),
    "torch_loop": (0.70, None, 250.0, 55.0, 1.05, "0.0.0+synthetic"),
    "torch_grouped_mm": (0.72, 45.0, 210.0, 0.1, 1.08, "0.0.0+synthetic"),
    "torch_grouped_mm_compiled": (0.74, 30.0, 120.0, 0.1, 1.06, "0.0.0+synthetic"),
    "paper_unfused": (0.70, None, 190.0, 0.3, 1.16, "0.1.0"),
    "paper_fused": (0.80, None, 150.0, 0.3, 1.12, "0.1.0"),
    "paper_fused_graph": (0.80, 24.0, 110.0, 0.1, 1.12, "0.1.0"),
    "fast": (0.90, 20.0, 100.0, 0.05, 1.04, "0.1.0"),
    "megablocks_sparse": (0.66, None, 420.0, 0.4, 1.07, "0.10.0"),
    "megablocks_grouped_cublas": (0.60, None, 260.0, 14.0, 1.04, "0.10.0"),
    "megablocks_grouped_cutlass": (0.74, None, 300.0, 0.2, 1.05, "0.10.0"),
    "vllm": (0.91, 26.0, 90.0, 0.1, 1.05, "0.0.0+synthetic"),
}
VARIANTS = {
    # as SYSTEMS: ablations, which only the studies that name them have
    "fastvariant_output_centric": (0.95, 14.0, 90.0, 0.0, 1.0, "0.1.0"),
    "fastvariant_expert_centric": (0.90, 21.0, 100.0, 0.05, 1.04, "0.1.0"),
    "fastvariant_gather": (0.90, 20.0, 100.0, 0.05, 1.04, "0.1.0"),
    "fastvariant_permute": (0.895, 23.0, 105.0, 0.05, 1.05, "0.1.0"),
    "fastvariant_dynamic": (0.90, 20.0, 100.0, 0.05, 1.04, "0.1.0"),
    "fastvariant_fixed16": (0.90, 20.0, 100.0, 0.05, 1.04, "0.1.0"),
    "fastvariant_fixed64": (0.90, 20.0, 100.0, 0.05, 1.04, "0.1.0"),
    "fastvariant_fixed128": (0.90, 20.0, 100.0, 0.05, 1.04, "0.1.0"),
}
HEADLINE_SYSTEMS = (
    "stream",
    "torch_grouped_mm",
    "paper_fused_graph",
    "fast",
    "megablocks_sparse",
    "megablocks_grouped_cutlass",
    "vllm",
)
HEADLINE_MODELS = ("mixtral", "qwen2_paper", "deepseek_v3", "qwen3_30b_a3b")
COUNTED_SYSTEMS = {
    # name: (bytes over the compulsory ones at few tokens, growth per doubling of tokens over 128)
    "stream": (1.0, 1.0),
    "paper_unfused": (1.09, 1.30),
    "paper_fused": (1.03, 1.31),
    "paper_fused_graph": (1.03, 1.31),
    "fast": (1.0, 1.01),
    "torch_grouped_mm": (1.07, 1.10),
    "megablocks_sparse": (1.12, 1.15),
    "megablocks_grouped_cutlass": (1.05, 1.12),
    "vllm": (1.01, 1.06),
}
EXPERT_SYSTEMS = tuple(name for name in SYSTEMS if name not in ("torch_loop", "torch_grouped_mm_compiled", "vllm"))
DECODE_SYSTEMS = ("stream", "fastvariant_output_centric", "fastvariant_expert_centric", "fast")
FUSION_SYSTEMS = ("stream", "fastvariant_gather", "fastvariant_permute", "fast")
HEIGHT_SYSTEMS = ("stream", "fastvariant_dynamic", *(name for name in VARIANTS if "_fixed" in name))
SKEW_SYSTEMS = tuple(name for name in EXPERT_SYSTEMS if name != "paper_unfused")


def make_results(folder: Path) -> Path:
    """Writes `folder`/fixture-gpu/{throughput,headline,skew,experts,decode,fusion,heights,energy,stages,traffic}.csv.

    With their JSON. Returns that folder.
    """
    out = folder / DEVICE
    out.mkdir(parents=True, exist_ok=True)
    for study, cases, systems in (
        ("throughput", throughput_cases(), tuple(SYSTEMS)),
        ("headline", headline_cases(), HEADLINE_SYSTEMS),
        ("skew", skew_cases(), SKEW_SYSTEMS),
        ("experts", expert_cases(), EXPERT_SYSTEMS),
        ("decode", decode_cases(), DECODE_SYSTEMS),
        ("fusion", fusion_cases(), FUSION_SYSTEMS),
        ("heights", height_cases(), HEIGHT_SYSTEMS),
    ):
        rows = [row for case in cases for name in systems for row in layer_rows(study, case, name)]
        _write(out, study, rows, ROW_COLUMNS, systems)
    rows = [row for case in energy_cases() for name in HEADLINE_SYSTEMS for row in energy_rows(case, name)]
    _write(out, "energy", rows, ENERGY_COLUMNS, HEADLINE_SYSTEMS)
    pipelines = ("paper_unfused", "paper_fused", "paper_fused_graph")
    cases = [_model(name, 512, dtype) for name in ("mixtral", "deepseek_v3") for dtype in ("fp16", "bf16")]
    rows = [row for case in cases for name in pipelines for row in stage_rows(case, name)]
    _write(out, "stages", rows, STAGE_COLUMNS, pipelines)
    cases = [_model(name, tokens) for name in ("mixtral", "qwen2_paper", "deepseek_v3") for tokens in (32, 512, 4096)]
    traffic = [row for case in cases for name in pipelines[:2] for row in traffic_rows(case, name, "model")]
    traffic += [
        row for name in pipelines[:2] for method in ("model", "interpreter")
        for row in traffic_rows(_model("tiny", 32), name, method)
    ]  # fmt: skip
    traffic += [row for case in counted_cases() for name in COUNTED_SYSTEMS for row in counter_rows(case, name)]
    _write(out, "traffic", traffic, TRAFFIC_COLUMNS, ())
    matrix.write(folder / "portability.csv", portability_rows())
    return out


def throughput_cases() -> list[Case]:
    models = {"bf16": ("mixtral", "qwen2_paper", "deepseek_v3", "mixtral_8x22b", "qwen3_30b_a3b"),
              "fp16": ("mixtral", "qwen2_paper", "deepseek_v3")}  # fmt: skip
    return [_model(name, tokens, dtype) for dtype, names in models.items() for name in names for tokens in TOKENS]


def headline_cases() -> list[Case]:
    return [
        replace(_model(name, tokens), skew=skew)
        for name in HEADLINE_MODELS
        for tokens in (1, 8, 32, 128, 512)
        for skew in (0.0, 1.2)
    ]


def skew_cases() -> list[Case]:
    return [
        replace(_model("qwen2_paper", tokens), num_experts=experts, top_k=4, skew=skew)
        for experts in (8, 16, 32, 64, 128, 256)
        for tokens in (32, 128, 512)
        for skew in (0.0, 0.4, 0.8, 1.2, 1.6, 2.0)
    ]


def expert_cases() -> list[Case]:
    return [
        replace(_model("qwen2_paper", tokens), num_experts=16 * k, top_k=k, ffn_dim=10240 // k)
        for k in (1, 2, 4, 8, 16)
        for tokens in (32, 128, 512)
    ]


def decode_cases() -> list[Case]:
    return [_model(name, tokens) for name in HEADLINE_MODELS for tokens in (1, 2, 4, 8, 16, 32, 64)]


def fusion_cases() -> list[Case]:
    return [_model(name, tokens) for name in HEADLINE_MODELS for tokens in (1, 8, 32, 128, 512)]


def height_cases() -> list[Case]:
    return [
        replace(_model(name, tokens), skew=skew)
        for name in HEADLINE_MODELS
        for tokens in (32, 128, 512)
        for skew in (0.0, 0.6, 1.2, 2.0)
    ]


def energy_cases() -> list[Case]:
    return [_model(name, tokens) for name in ("mixtral", "deepseek_v3") for tokens in (1, 32, 512)]


def counted_cases() -> list[Case]:
    small = [
        _model(name, tokens) for name in ("mixtral", "qwen2_paper", "deepseek_v3") for tokens in (1, 8, 32, 128, 512)
    ]
    return [*small, _model("mixtral", 4096), _model("deepseek_v3", 4096)]


def layer_rows(study: str, case: Case, implementation: str) -> Iterable[dict[str, Any]]:
    """One row a launch mode."""
    active, load = _routing(case)
    stream_us = _latency("stream", case, active, load, "graph")
    for launch in config.LAUNCHES:
        row = _identity(study, case, implementation) | {
            "launch": launch, "timing_method": "none", "active_experts": active, "max_expert_load": load,
            "min_bytes": case.min_bytes(active), "flops": case.flops, "stream_us": stream_us,
            "limit_us": max(stream_us, case.flops / MATRIX_TFLOPS[case.dtype] / 1e6),
        }  # fmt: skip
        status, reason = _trouble(study, case, implementation, launch)
        row |= {"status": status, "reason": reason}
        if status == "ok":
            p50 = _latency(implementation, case, active, load, launch)
            row |= {
                "timing_method": "chain", "p50_us": p50, "p20_us": p50 * 0.995, "p80_us": p50 * 1.006, "samples": 30,
                "tokens_per_s": case.tokens / p50 * 1e6, "rel_error": _error(case, implementation),
                "torch_rel_error": _error(case, "torch"),
                "workspace_bytes": case.slots * (2 * case.hidden_dim + case.ffn_dim) * 2,
                "kernel_launches": {"paper_fused": 5, "paper_unfused": 7}.get(implementation, 9),
                "host_syncs": int(_system(implementation)[1] is None), "sm_clock_mhz": 1980,
            }  # fmt: skip
        yield row


def energy_rows(case: Case, implementation: str) -> Iterable[dict[str, Any]]:
    """One row a launch mode: power by the share of the limit's bandwidth."""
    columns = set(ENERGY_COLUMNS)
    for row in layer_rows("energy", case, implementation):
        kept = {name: value for name, value in row.items() if name in columns}
        if row["status"] == "ok":
            power = 300.0 + 400.0 * row["stream_us"] / row["p50_us"]
            kept |= {
                "power_w": power, "energy_mj": power * row["p50_us"] / 1e3, "settled_clock_mhz": 1980 - power / 2,
                "power_limit_w": 700.0,
            }  # fmt: skip
        yield kept


def stage_rows(case: Case, implementation: str) -> Iterable[dict[str, Any]]:
    """router, permute, expert_ffn and unpermute_combine of one pipeline, timed eagerly."""
    active, load = _routing(case)
    slots_bytes = case.slots * case.hidden_dim * 2
    fused = implementation != "paper_unfused"
    times = {
        "router": 9.0 + case.num_experts * 0.05,
        "permute": 7.0 + 2 * slots_bytes / 2.5e6,
        "expert_ffn": active * case.expert_bytes / (LIMIT_TB_S * (0.72 if fused else 0.6)) / 1e6,
        "unpermute_combine": 5.0 + 1.5 * slots_bytes / 2.5e6,
    }
    for stage, p50 in times.items():
        p50 *= 1 + 0.02 * _noise(case, implementation, stage)
        yield _identity("stages", case, implementation) | {
            "stage": stage, "launch": "eager", "timing_method": "flush", "status": "ok", "reason": "", "p50_us": p50,
            "p20_us": p50 * 0.99, "p80_us": p50 * 1.01, "samples": 30, "active_experts": active,
            "max_expert_load": load, "min_bytes": case.min_bytes(active), "flops": case.flops, "sm_clock_mhz": 1980,
        }  # fmt: skip


def traffic_rows(case: Case, implementation: str, method: str) -> Iterable[dict[str, Any]]:
    """Bytes of each stage and tensor, and of the whole forward."""
    active, _ = _routing(case)
    wide, narrow = case.slots * case.hidden_dim * 2, case.slots * case.ffn_dim * 2
    ends, matrix = case.tokens * case.hidden_dim * 2, active * case.hidden_dim * case.ffn_dim * 2
    router, logits = case.num_experts * case.hidden_dim * 2, case.tokens * case.num_experts * 4
    # stage: {tensor: (unique read, unique write, times that each byte read is asked for)}
    stages = {
        "router": {"x": (ends, 0, 1), "router_weight": (router, 0, 1), "logits": (logits, logits, 1)},
        "permute": {"x": (ends, 0, case.top_k), "permuted": (0, wide, 1)},
    }
    tiles = max(1, case.ffn_dim // 128)
    again = max(1, case.slots // active // 64)
    if implementation == "paper_fused":
        stages["gate_up"] = {"permuted": (wide, 0, tiles), "gate_up_weights": (2 * matrix, 0, again),
                             "intermediate": (0, narrow, 1)}  # fmt: skip
    else:
        stages["gate"] = {"permuted": (wide, 0, tiles), "gate_weights": (matrix, 0, again), "gate": (0, narrow, 1)}
        stages["up"] = {"permuted": (wide, 0, tiles), "up_weights": (matrix, 0, again), "up": (0, narrow, 1)}
        stages["silu_mul"] = {"gate": (narrow, 0, 1), "up": (narrow, 0, 1), "intermediate": (0, narrow, 1)}
    stages["down"] = {"intermediate": (narrow, 0, max(1, case.hidden_dim // 128)), "down_weights": (matrix, 0, again),
                      "expert_out": (0, wide, 1)}  # fmt: skip
    stages["unpermute_combine"] = {"expert_out": (wide, 0, 1), "output": (0, ends, 1)}
    total = np.zeros(4, dtype=int)
    for stage, tensors in stages.items():
        for tensor, (read, write, times) in tensors.items():
            counts = np.array([read * times, write, read, write])
            total += counts
            yield _traffic_row(case, implementation, method, stage, tensor, counts, active)
    yield _traffic_row(case, implementation, method, "total", "all", total, active)


def counter_rows(case: Case, implementation: str) -> Iterable[dict[str, Any]]:
    """DRAM and L2 bytes of one forward: of two kernels and in total, or one row with its reason."""
    active, _ = _routing(case)
    base = _identity("traffic", case, implementation) | {
        "tensor": "all", "method": "counters", "status": "ok", "reason": "", "active_experts": active,
        "min_bytes": case.min_bytes(active), "flops": case.flops, "sm_clock_mhz": 1980,
    }  # fmt: skip
    if implementation.startswith("megablocks") and case.tokens == 4096:
        reason = "Nsight Compute: ERR_NVGPUCTRPERM - no permission to read the counters (synthetic)"
        yield base | {"stage": "total", "status": "unavailable", "reason": reason}
        return
    over, growth = COUNTED_SYSTEMS[implementation]
    over *= growth ** max(0.0, np.log2(case.tokens / 128))
    moved = int(case.min_bytes(active) * over)
    for stage, share in {"01 route": 0.01, "02 experts": 0.99, "total": 1.0}.items():
        read, write = int(0.98 * share * moved), int(0.02 * share * moved)
        yield base | {"stage": stage, "read_bytes": read, "write_bytes": write, "l2_bytes": 3 * (read + write)}


def _traffic_row(
    case: Case, implementation: str, method: str, stage: str, tensor: str, counts: np.ndarray, active: int
) -> dict[str, Any]:
    names = ("read_bytes", "write_bytes", "unique_read_bytes", "unique_write_bytes")
    return _identity("traffic", case, implementation) | {
        "stage": stage, "tensor": tensor, "method": method, "status": "ok", "reason": "", "active_experts": active,
        "min_bytes": case.min_bytes(active), "flops": case.flops,
        **{name: int(value) for name, value in zip(names, counts)},
    }  # fmt: skip


def _identity(study: str, case: Case, implementation: str) -> dict[str, Any]:
    return {
        "run_id": f"SYNTHETIC-{study}", "study": study, **asdict(case), "case_hash": case.case_hash,
        "implementation": implementation, "implementation_version": _system(implementation)[-1],
        "revision": 1, "method_revision": "workload1+latency2+default", "config": "synthetic", **ENVIRONMENT,
        "timestamp_utc": STAMP,
    }  # fmt: skip


def _model(name: str, tokens: int, dtype: str = "bf16") -> Case:
    shape = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    sizes = {key: shape[key] for key in ("num_experts", "top_k", "hidden_dim", "ffn_dim")}
    return Case(model=name, tokens=tokens, dtype=dtype, **sizes)


def _routing(case: Case) -> tuple[int, int]:
    """(active experts, largest load) of a Zipf draw without replacement."""
    rng = np.random.default_rng([case.num_experts, case.top_k, case.tokens])
    log_p = -case.skew * np.log(np.arange(1, case.num_experts + 1))
    logits = log_p + rng.gumbel(size=(case.tokens, case.num_experts))
    counts = np.bincount(np.argsort(-logits, axis=1)[:, : case.top_k].ravel(), minlength=case.num_experts)
    return int((counts > 0).sum()), int(counts.max())


def _latency(implementation: str, case: Case, active: int, load: int, launch: str) -> float:
    """us of a made-up system: bytes at a share of the limit, a fixed cost, a cost per expert, growth with load."""
    share, graph_us, eager_us, expert_us, growth, _ = _system(implementation)
    stream_us = active * case.expert_bytes / LIMIT_TB_S / 1e6
    fixed = eager_us if launch == "eager" or graph_us is None else graph_us
    grown = growth ** max(0.0, np.log2(case.tokens / 64))
    imbalance = 1.0
    if implementation.startswith("paper"):
        imbalance = 1 + 0.06 * case.skew * np.log2(case.num_experts / 8) * min(1.0, load / 64)
    if implementation == "fastvariant_output_centric":
        imbalance = (case.slots / active) ** 0.6
    elif "_fixed" in implementation:
        height = int(implementation.removeprefix("fastvariant_fixed"))
        imbalance = 1 + 0.02 * np.log2(height) * (active * height > 2 * case.slots) + 0.03 * (load // height)
    p50 = stream_us / share * grown * imbalance + fixed + expert_us * active
    return round(float(p50 * (1 + 0.01 * _noise(case, implementation, launch))), 3)


def _system(name: str) -> tuple:
    return VARIANTS[name] if name in VARIANTS else SYSTEMS[name]


def _error(case: Case, implementation: str) -> float | None:
    """Relative error of a made-up system: what the dtype leaves, and a little by system and case; of a limit, none."""
    if implementation == "stream":
        return None
    own = {"torch": 1.0, "fastvariant_output_centric": 0.71, "torch_loop": 1.0}.get(implementation, 0.95)
    return {"bf16": 0.0043, "fp16": 0.00054}[case.dtype] * own * (1 + 0.03 * _noise(case, implementation, "error"))


def _trouble(study: str, case: Case, implementation: str, launch: str) -> tuple[str, str]:
    """(status, reason): each status of the schema occurs."""
    if implementation == "megablocks_grouped_cutlass" and study == "skew":
        return "unavailable", "grouped_gemm's CUTLASS build is not installed: make megablocks (synthetic)"
    if implementation.startswith("megablocks_grouped") and case.dtype == "fp16":
        return "unsupported", "grouped_gemm multiplies bf16 only (synthetic)"
    if implementation.startswith("torch_grouped_mm") and case.dtype == "fp16":
        return "unsupported", "grouped_mm takes bf16 only (synthetic)"
    if launch == "graph" and _system(implementation)[1] is None:
        return "unsupported", HOST_SYNC
    if implementation == "megablocks_sparse" and case.model == "deepseek_v3" and case.tokens == 512:
        return "oom", "CUDA out of memory: 24.00 GiB asked for (synthetic)"
    if implementation.startswith("megablocks") and case.num_experts == 256 and case.skew == 2.0 and case.tokens == 512:
        return "error", "CUDA error: an illegal memory access was encountered (synthetic)"
    if implementation == "megablocks_grouped_cublas" and case.model == "qwen3_30b_a3b" and case.tokens == 4:
        return "error", "CUBLAS_STATUS_EXECUTION_FAILED (synthetic)"
    if implementation == "torch_grouped_mm_compiled" and case.model == "mixtral_8x22b" and case.tokens == 16:
        return "incorrect", "rel_error 0.31 exceeds 2 x 0.0043 (synthetic)"
    if implementation == "torch_loop" and case.model == "deepseek_v3" and case.tokens == 256:
        return "timeout", "no result within 300 s (synthetic)"
    return "ok", ""


def portability_rows() -> list[dict[str, Any]]:
    """Three kernels on every target, one of which spills on one."""
    rows = []
    for target in TARGETS:
        for kernel, user, instruction in (
            ("grouped_gemm", "paper_fused", "mma.sync"),
            ("down", "fast", "mma.sync"),
            ("top_k", "fast", ""),
        ):
            spills = 16 * (kernel == "top_k" and target == "sm_100")
            rows.append({
                "kernel": kernel, "config": "BLOCK_M=64 (synthetic)", "dtype": "bf16", "target": target,
                "status": "spills" if spills else "ok", "matrix_instruction": instruction, "registers": 128,
                "spills": spills, "shared_bytes": 65536, "reason": "16 bytes (synthetic)" if spills else "",
                "implementations": user, "case": "synthetic",
            })  # fmt: skip
    return rows


def _noise(*key: object) -> float:
    """Standard normal, the same for the same key everywhere."""
    return float(np.random.default_rng(zlib.crc32(repr(key).encode())).standard_normal())


def _write(out: Path, study: str, rows: list[dict[str, Any]], columns: tuple[str, ...], systems: Iterable[str]) -> None:
    for row in rows:
        validate(row, columns)
    with open(out / f"{study}.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    record = {
        "run_id": f"SYNTHETIC-{study}", "study": study, **ENVIRONMENT, "cuda": "0.0", "python": "0.0.0",
        "started_utc": STAMP, "finished_utc": STAMP, "matrix_tflops": MATRIX_TFLOPS, "l2_bytes": 50 * 2**20,
        "memory_bytes": 140 * 10**9,
        "processes": [
            {"implementation": name, "stream_before_us": 100.0, "stream_after_us": 100.4,
             "sm_clock_before_mhz": 1980, "sm_clock_after_mhz": 1965}
            for name in systems
        ],
    }  # fmt: skip
    (out / f"{study}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(make_results(Path(sys.argv[1])))
