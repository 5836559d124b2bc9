"""The rows of results/paper/test_grid.csv, and the register of what each of their cases asserts."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from moe_cases import rounded_logits

from tritonmoe_bench.experiments.workload.reference import route
from tritonmoe_bench.kernels.gating import Gating

GRID = Path(__file__).resolve().parents[3] / "results" / "paper" / "test_grid.csv"
MODELS = {
    "mixtral-8x7b": (8, 2, 4096, 14336),
    "mixtral-8x22b": (8, 2, 6144, 16384),
    "qwen2-moe-57b": (64, 4, 3584, 2560),
    "deepseek-v3": (256, 8, 7168, 2048),
}
"""experts, top_k, hidden, ffn. The paper calls a top-4 layer Qwen2-MoE-57B."""
LARGE = "deepseek-v3"
"""The model whose expert count the rows named `large` mean; they name none."""
SOFTMAX, SIGMOID = Gating(), Gating("sigmoid", renormalize=True)


@dataclass(frozen=True)
class Row:
    """A row of the grid; numbers that it leaves open take the values that most rows of its kind have."""

    group: str
    case: str
    model: str
    tokens: int
    experts: int
    top_k: int
    hidden: int
    ffn: int
    id: str
    device: str = "cpu"


def read_rows() -> list[Row]:
    rows = []
    with open(GRID, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            model = line["model_name"] or (LARGE if line["case"].startswith("large") else "")
            experts, top_k, hidden, ffn = MODELS[model] if model else (8, 2, 128, 128)
            given = [line[name] for name in ("model_name", "num_tokens", "num_experts", "top_k", "hidden_dim")]
            rows.append(
                Row(
                    line["group"], line["case"], model, int(line["num_tokens"] or 64),
                    int(line["num_experts"] or experts), int(line["top_k"] or top_k), int(line["hidden_dim"] or hidden),
                    ffn, "-".join([line["group"], line["case"], *filter(None, given)]),
                )
            )  # fmt: skip
    return rows


CHECKS: dict[str, Callable[[Row], None]] = {}


def check(function: Callable[[Row], None]) -> Callable[[Row], None]:
    """Registers a function as what the rows with its name as their case assert."""
    CHECKS[function.__name__] = function
    return function


def logits_of(row: Row) -> torch.Tensor:
    return rounded_logits(row.tokens, row.experts).to(row.device)


def routed_experts(row: Row) -> torch.Tensor:
    return route(logits_of(row), row.top_k, SOFTMAX)[1].to(torch.int32)
