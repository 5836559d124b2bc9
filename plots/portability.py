"""Kernels x targets: for each pair whether every configuration compiles, fits, does not spill, and what it runs on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results
from tritonmoe_bench.experiments.targets.gpus import TARGETS

from .parts import layout, style

NAME = "portability"
TITLE = "Every kernel compiled for every target, with no GPU"
STUDIES = ("portability",)
ROW_IN = 0.31
MATRIX, PLAIN, FAILED, ABSENT = "#a6cbe3", "#f1f1f1", "#f5b183", "#ffffff"
SHORT = {"wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05", "mma.sync": "mma.sync", "v_mfma": "mfma"}
"""Matrix instructions, each GPU's largest first."""
FAILURES = {
    "does_not_compile": "do not compile", "too_much_shared": "do not fit", "spills": "spill",
    "misses_matrix_unit": "miss the matrix units",
}  # fmt: skip
GROUPS = {"paper": "paper", "fast": "fast", "both": "both", "stream": "limit"}
"""By which pipelines a kernel is launched, in the order of rows."""


def draw(results: Results) -> Figure:
    path = results.root / "portability.csv"
    if not path.exists():
        raise MissingStudy(f"{path} is missing: python experiments/portability.py makes it")
    rows = pd.read_csv(path, keep_default_na=False)
    notes = path.with_suffix(".json")
    record = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    targets = [target for target in TARGETS if target in set(rows["target"])]
    kernels = _in_order(rows)
    figure, (panel,) = layout.sheet(1, 1, ROW_IN * (len(kernels) + 1), TITLE)
    for y, kernel in enumerate(kernels):
        for x, target in enumerate(targets):
            _cell(panel, x, y, rows[(rows["kernel"] == kernel) & (rows["target"] == target)])
    labels = record.get("labels", {})
    limits = record.get("shared_bytes", {})
    panel.set_xticks(range(len(targets)), [_heading(target, labels, limits) for target in targets])
    panel.set_yticks(range(len(kernels)), [f"{_group(rows, kernel)}: {kernel}" for kernel in kernels])
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    panel.grid(False)
    panel.set_xlim(-0.5, len(targets) - 0.5)
    panel.set_ylim(len(kernels) - 0.5, -0.5)
    handles = [
        Patch(facecolor=MATRIX, label="all fit, none spills; on matrix units"),
        Patch(facecolor=PLAIN, label="the same, no matrix product in it"),
    ]
    if (rows["status"] != "ok").any():
        handles.append(Patch(facecolor=FAILED, hatch="////", edgecolor="white", label="some fail, how many of all"))
    return layout.finish(figure, handles, _caption(rows, record, path))


def _cell(panel: Axes, x: int, y: int, rows: pd.DataFrame) -> None:
    """Matrix instructions or what fails; under them configurations, and their most shared memory and registers."""
    failed = rows[rows["status"] != "ok"]
    instructions = sorted({part for text in rows["matrix_instruction"] for part in str(text).split("+") if part})
    color = ABSENT if rows.empty else FAILED if len(failed) else MATRIX if instructions else PLAIN
    hatch = "////" if len(failed) else None
    panel.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=color, edgecolor="white", lw=0, hatch=hatch))
    if rows.empty:
        panel.text(x, y, "not launched there", ha="center", va="center", color="#777777")
        return
    first = "+".join(SHORT[name] for name in SHORT if name in instructions)
    if len(failed):
        counts = failed["status"].value_counts()
        first = "; ".join(f"{counts[status]} {text}" for status, text in FAILURES.items() if status in counts)
    shared, registers = (pd.to_numeric(rows[name]).max() for name in ("shared_bytes", "registers"))
    second = f"{len(rows)}"
    if pd.notna(shared):
        second += f"; {shared / 1024:.0f} KiB; {registers:.0f}"
    box: dict[str, Any] = {"boxstyle": "square,pad=0.05", "facecolor": color, "edgecolor": "none"}
    panel.text(
        x, y, f"{first}\n{second}".strip(), ha="center", va="center", color=style.INK, linespacing=1.15, bbox=box
    )


def _in_order(rows: pd.DataFrame) -> list[str]:
    """Kernels by the pipelines that launch them, those with matrix products first."""
    order = list(GROUPS.values())
    on_matrix = set(rows.loc[rows["matrix_instruction"] != "", "kernel"])
    return sorted(set(rows["kernel"]), key=lambda name: (order.index(_group(rows, name)), name not in on_matrix, name))


def _group(rows: pd.DataFrame, kernel: str) -> str:
    users = {name for text in rows.loc[rows["kernel"] == kernel, "implementations"] for name in text.split("+")}
    families = {name.split("_")[0].removesuffix("variant") for name in users}
    return GROUPS["both" if len(families) > 1 else families.pop()]


def _heading(target: str, labels: dict[str, str], limits: dict[str, int]) -> str:
    limit = f"\n{limits[target] // 1024} KiB" if target in limits else ""
    return f"{labels.get(target, target)}\n{target}{limit}"


def _caption(rows: pd.DataFrame, record: dict[str, Any], path: Path) -> str:
    notes = (
        f"{len(rows)} launches that the pipelines do at the shapes of conf/model from 1 to 8192 tokens, with the tiles "
        "that they choose on each target; compiled by Triton, and read back from the assembly. In each cell: matrix "
        "instructions; number of configurations; most shared memory of a program; most registers of a thread. Under "
        "each target: what a program may take."
    )
    if not record:
        return notes
    return (
        f"{notes}\nTriton {record['triton']}, commit {str(record['git_commit'])[:7]}"
        f"{' with uncommitted changes' if record['git_dirty'] is True else ''}; {record['timestamp_utc'][:10]} (UTC); "
        f"{path.name}."
    )
