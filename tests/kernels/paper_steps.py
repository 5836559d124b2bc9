"""Single steps of the paper's forward, with the tiles that a device gets by default."""

from __future__ import annotations

import torch

from tritonmoe_bench.kernels.paper.fused_gate_up import launch_fused_gate_up
from tritonmoe_bench.kernels.paper.grouped_gemm import launch_grouped_gemm
from tritonmoe_bench.kernels.paper.schedule import Schedule, launch_schedule, list_blocks_on_host, sort_slots
from tritonmoe_bench.kernels.paper.tiles import device_tiles


def schedule_on_host(experts: torch.Tensor, num_experts: int) -> Schedule:
    order, offsets = sort_slots(experts, num_experts)
    return Schedule(order, offsets, *list_blocks_on_host(offsets))


BUILDERS = {"host": schedule_on_host, "gpu": launch_schedule}


def grouped_gemm(rows, weights, schedule, tile=None, scores=None) -> torch.Tensor:
    return launch_grouped_gemm(rows, weights, schedule, tile or device_tiles(rows.device).down, scores)


def fused_gate_up(rows, gate_up, schedule, tile=None) -> torch.Tensor:
    return launch_fused_gate_up(rows, gate_up, schedule, tile or device_tiles(rows.device).fused)
