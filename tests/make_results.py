"""A SYNTHETIC results folder, for tests of plots and report: made-up latencies from a formula, never measured.

    python tests/make_results.py /tmp/results      writes /tmp/results/fixture-gpu/

Its device is called `fixture-gpu`, so that nothing drawn from it passes for a measurement.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import made_up
import numpy as np

from tritonmoe_bench.experiments.measure.measurement import LAUNCHES, kinds
from tritonmoe_bench.experiments.table.columns import Column, names, validate
from tritonmoe_bench.experiments.targets import matrix
from tritonmoe_bench.experiments.targets.gpus import TARGETS
from tritonmoe_bench.experiments.workload.case import Case

DEVICE = "fixture-gpu"
COLUMNS = {name: kind.columns for name, kind in kinds().items()}
STAMP = "2026-01-02T03:04:05Z"
MATRIX_TFLOPS = {"bf16": 780.0, "fp16": 765.0}
ENVIRONMENT = {
    "device": DEVICE, "device_uuid": "SYNTHETIC-0000", "driver": "000.00", "torch": "0.0.0+synthetic",
    "triton": "0.0.0", "git_commit": "0" * 40, "git_dirty": False,
}  # fmt: skip


def make_results(folder: Path) -> Path:
    """Writes a CSV for each study, with its JSON, into `folder`/fixture-gpu. Returns that folder."""
    out = folder / DEVICE
    out.mkdir(parents=True, exist_ok=True)
    for study, cases, systems in (
        ("throughput", made_up.throughput_cases(), tuple(made_up.SYSTEMS)),
        ("headline", made_up.headline_cases(), made_up.HEADLINE_SYSTEMS),
        ("quant", made_up.quant_cases(), made_up.QUANT_SYSTEMS),
        ("granular", made_up.granular_cases(), made_up.GRANULAR_SYSTEMS),
        ("native", made_up.native_cases(), made_up.NATIVE_SYSTEMS),
        ("skew", made_up.skew_cases(), made_up.SKEW_SYSTEMS),
        ("experts", made_up.expert_cases(), made_up.EXPERT_SYSTEMS),
        ("decode", made_up.decode_cases(), made_up.DECODE_SYSTEMS),
        ("fusion", made_up.fusion_cases(), made_up.FUSION_SYSTEMS),
        ("heights", made_up.height_cases(), made_up.HEIGHT_SYSTEMS),
    ):
        rows = [row for case in cases for name in systems for row in layer_rows(study, case, name)]
        _write(out, study, rows, COLUMNS["layer"], systems)
    rows = [
        row for case in made_up.energy_cases() for name in made_up.HEADLINE_SYSTEMS for row in energy_rows(case, name)
    ]
    _write(out, "energy", rows, COLUMNS["energy"], made_up.HEADLINE_SYSTEMS)
    rows = [
        row for case in made_up.endtoend_cases() for name in made_up.ENDTOEND_SYSTEMS for row in step_rows(case, name)
    ]
    _write(out, "endtoend", rows, COLUMNS["endtoend"], made_up.ENDTOEND_SYSTEMS)
    pipelines = ("paper_unfused", "paper_fused", "paper_fused_graph")
    cases = [made_up.model(name, 512, dtype) for name in ("mixtral", "deepseek_v3") for dtype in ("fp16", "bf16")]
    rows = [row for case in cases for name in pipelines for row in stage_rows(case, name)]
    _write(out, "stages", rows, COLUMNS["stages"], pipelines)
    cases = [
        made_up.model(name, tokens) for name in ("mixtral", "qwen2_paper", "deepseek_v3") for tokens in (32, 512, 4096)
    ]
    traffic = [row for case in cases for name in pipelines[:2] for row in traffic_rows(case, name, "model")]
    traffic += [
        row for name in pipelines[:2] for method in ("model", "interpreter")
        for row in traffic_rows(made_up.model("tiny", 32), name, method)
    ]  # fmt: skip
    traffic += [
        row for case in made_up.counted_cases() for name in made_up.COUNTED_SYSTEMS for row in counter_rows(case, name)
    ]
    _write(out, "traffic", traffic, COLUMNS["traffic"], ())
    matrix.write(folder / "portability.csv", portability_rows())
    return out


def layer_rows(study: str, case: Case, implementation: str) -> Iterable[dict[str, Any]]:
    """One row a launch mode."""
    active, load = made_up.routing(case)
    stream_us = made_up.latency("stream", case, active, load, "graph")
    for launch in LAUNCHES:
        row = _identity(study, case, implementation) | {
            "launch": launch, "timing_method": "none", "active_experts": active, "max_expert_load": load,
            "min_bytes": case.min_bytes(active), "flops": case.flops, "stream_us": stream_us,
            "limit_us": max(stream_us, case.flops / MATRIX_TFLOPS[case.dtype] / 1e6),
        }  # fmt: skip
        status, reason = made_up.trouble(study, case, implementation, launch)
        row |= {"status": status, "reason": reason}
        if status == "ok":
            p50 = made_up.latency(implementation, case, active, load, launch)
            row |= {
                "timing_method": "chain", "p50_us": p50, "p20_us": p50 * 0.995, "p80_us": p50 * 1.006, "samples": 30,
                "tokens_per_s": case.tokens / p50 * 1e6, "rel_error": made_up.error(case, implementation),
                "torch_rel_error": made_up.error(case, "torch"),
                "workspace_bytes": case.slots * (2 * case.hidden_dim + case.ffn_dim) * 2,
                "kernel_launches": {"paper_fused": 5, "paper_unfused": 7}.get(implementation, 9),
                "host_syncs": int(made_up.system(implementation)[1] is None), "sm_clock_mhz": 1980,
            }  # fmt: skip
        yield row


def energy_rows(case: Case, implementation: str) -> Iterable[dict[str, Any]]:
    """One row a launch mode: power by the share of the limit's bandwidth."""
    columns = set(names(COLUMNS["energy"]))
    for row in layer_rows("energy", case, implementation):
        kept = {name: value for name, value in row.items() if name in columns}
        if row["status"] == "ok":
            power = 300.0 + 400.0 * row["stream_us"] / row["p50_us"]
            kept |= {
                "power_w": power, "energy_mj": power * row["p50_us"] / 1e3, "settled_clock_mhz": 1980 - power / 2,
                "power_limit_w": 700.0,
            }  # fmt: skip
        yield kept


def step_rows(case: Case, implementation: str) -> Iterable[dict[str, Any]]:
    """One row a launch mode: 24 layers of experts, and 2 ms of all else."""
    columns = set(names(COLUMNS["endtoend"]))
    for row in layer_rows("endtoend", case, implementation):
        kept = {name: value for name, value in row.items() if name in columns}
        if row["status"] == "ok":
            experts = 24 * row["p50_us"]
            step = experts + (2000.0 if row["launch"] == "graph" else 20000.0)
            kept |= {
                "timing_method": "loop",
                "p50_us": step, "p20_us": step * 0.99, "p80_us": step * 1.01, "tokens_per_s": case.tokens / step * 1e6,
                "experts_us": experts, "experts_share": experts / step, "peak_bytes": 2 * case.weight_bytes,
                "model_bytes": case.weight_bytes, "transformers": "0.0.0",
            }  # fmt: skip
        yield kept


def stage_rows(case: Case, implementation: str) -> Iterable[dict[str, Any]]:
    """router, permute, expert_ffn and unpermute_combine of one pipeline, timed eagerly."""
    active, load = made_up.routing(case)
    slots_bytes = case.slots * case.hidden_dim * 2
    fused = implementation != "paper_unfused"
    times = {
        "router": 9.0 + case.num_experts * 0.05,
        "permute": 7.0 + 2 * slots_bytes / 2.5e6,
        "expert_ffn": active * case.expert_bytes / (made_up.LIMIT_TB_S * (0.72 if fused else 0.6)) / 1e6,
        "unpermute_combine": 5.0 + 1.5 * slots_bytes / 2.5e6,
    }
    for stage, p50 in times.items():
        p50 *= 1 + 0.02 * made_up.noise(case, implementation, stage)
        yield _identity("stages", case, implementation) | {
            "stage": stage, "launch": "eager", "timing_method": "flush", "status": "ok", "reason": "", "p50_us": p50,
            "p20_us": p50 * 0.99, "p80_us": p50 * 1.01, "samples": 30, "active_experts": active,
            "max_expert_load": load, "min_bytes": case.min_bytes(active), "flops": case.flops, "sm_clock_mhz": 1980,
        }  # fmt: skip


def traffic_rows(case: Case, implementation: str, method: str) -> Iterable[dict[str, Any]]:
    """Bytes of each stage and tensor, and of the whole forward."""
    active, _ = made_up.routing(case)
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
    active, _ = made_up.routing(case)
    base = _identity("traffic", case, implementation) | {
        "tensor": "all", "method": "counters", "status": "ok", "reason": "", "active_experts": active,
        "min_bytes": case.min_bytes(active), "flops": case.flops, "sm_clock_mhz": 1980,
    }  # fmt: skip
    if implementation.startswith("megablocks") and case.tokens == 4096:
        reason = "Nsight Compute: ERR_NVGPUCTRPERM - no permission to read the counters (synthetic)"
        yield base | {"stage": "total", "status": "unavailable", "reason": reason}
        return
    over, growth = made_up.COUNTED_SYSTEMS[implementation]
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
        "run_id": f"SYNTHETIC-{study}", "study": study, **case.cells, "case_hash": case.case_hash,
        "implementation": implementation, "implementation_version": made_up.system(implementation)[-1],
        "revision": 1, "method_revision": "workload1+latency2+default", "config": "synthetic", **ENVIRONMENT,
        "timestamp_utc": STAMP,
    }  # fmt: skip


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


def _write(
    out: Path, study: str, rows: list[dict[str, Any]], columns: tuple[Column, ...], systems: Iterable[str]
) -> None:
    validate(rows, columns)
    with open(out / f"{study}.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, names(columns), lineterminator="\n")
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
