"""Records what candidates of `make tune` would launch on a target, without a GPU: one line of JSON per candidate.

    python -m tritonmoe_bench.experiments.tuning.record sm_90 < points.json

stdin: a list of points, each a case, candidates, and block heights (`encode`). Each line has the `candidate`, as its
place in the list of its point, or null for what all forwards of the point launch, and the `launches`, as
targets/record.py records them and targets/compile.py takes them.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch._subclasses import fake_tensor

from tritonmoe_bench.kernels.fast.layer import fast_moe
from tritonmoe_bench.kernels.fast.tile_types import FastTile, FewTile
from tritonmoe_bench.kernels.target import target_of

from ..targets.device import Blank, pretend
from ..targets.gpus import TARGETS
from ..targets.record import record
from ..workload.case import Case
from .layer import Batch, layer_of_weights, stage_call
from .plan import heuristic_of
from .space import FEW_GEMMS, Candidate


def encode(case: Case, candidates: Sequence[Candidate], block_ms: Sequence[int]) -> dict[str, Any]:
    """A point as `decode` reads it. block_ms: the heights that routing is recorded for."""
    return {
        "case": asdict(case), "candidates": [asdict(candidate) for candidate in candidates], "block_ms": list(block_ms),
    }  # fmt: skip


def decode(point: dict[str, Any]) -> tuple[Case, list[Candidate]]:
    candidates = []
    for entry in point["candidates"]:
        kind = FewTile if entry["stage"] in FEW_GEMMS else FastTile
        candidates.append(Candidate(entry["stage"], entry["block_m"], kind(**entry["tile"])))
    return Case(**point["case"]), candidates


def recorded(points: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What each line says, in the order of the points."""
    launches: list[dict[str, Any]] = []
    record(launches)
    with fake_tensor.FakeTensorMode():
        for number, point in enumerate(points):
            case, candidates = decode(point)
            batch = _blank_batch(case)
            yield from _line(number, None, case, launches, lambda b=batch, p=point: _shared_launches(b, p["block_ms"]))
            for place, candidate in enumerate(candidates):
                call = stage_call(candidate, batch)
                launches.clear()
                yield from _line(number, place, case, launches, call)


def _line(number: int, place: int | None, case: Case, launches: list[dict[str, Any]], run: Any) -> Iterator[dict]:
    run()
    about = {"dtype": case.dtype, "case": str(case), "implementations": ["fast"]}
    yield {"point": number, "candidate": place, "launches": [launch | about for launch in launches]}
    launches.clear()


def _shared_launches(batch: Batch, block_ms: Sequence[int]) -> None:
    """A whole forward, and the routing for every height of blocks."""
    case, layer = batch.case, batch.layer
    tiles = heuristic_of(case, target_of(batch.x.device))
    fast_moe(batch.x, layer.router, layer.gate_up, layer.down, case.top_k, case.gate, tiles=tiles)
    for block_m in block_ms:
        batch.blocks(block_m)


def _blank_batch(case: Case) -> Batch:
    weights = Blank(case)
    return Batch(
        case,
        layer_of_weights(weights),
        weights.empty(case.tokens, case.hidden_dim),
        weights.empty(case.slots, case.ffn_dim),
    )


def main() -> None:
    warnings.simplefilter("ignore", UserWarning)  # a tensor without storage has no address
    target = sys.argv[1]
    pretend(TARGETS[target])
    torch.set_grad_enabled(False)
    for line in recorded(json.load(sys.stdin)):
        line["launches"] = [{"target": target, **launch} for launch in line["launches"]]
        print(json.dumps(line))


if __name__ == "__main__":
    main()
