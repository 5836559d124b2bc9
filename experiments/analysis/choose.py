"""The answer of `choose`: the fastest system for a shape and batch size, from the committed rows of one device."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from tritonmoe_bench import ROOT
from tritonmoe_bench.kernels.gating import GATINGS

from ..table import store
from ..table.columns import FORWARD_KEY
from ..table.current import newest, read_run
from ..table.errors import error_text
from ..workload.arguments import PlanError, key
from ..workload.case import DTYPE_NAMES, DTYPES, MAX_TOKENS, QUANTS, Case
from ..workload.config import VARIANT, load_model, model_names
from ..workload.layer import LAYERS
from ..workload.recorded import DRAWN
from ..workload.shards import shard
from .compare import ordered, timed
from .headline import SHAKY
from .names import LIMIT, in_order, models_in_order
from .noise import APART, measured
from .results import KINDS, NOT_DEVICES, MissingStudy, newest_device

SHAPE = ["model", "num_experts", "top_k", "hidden_dim", "ffn_dim"]
WHOLE = [*SHAPE[1:], "tokens"]


NEAREST = 3
"""How many measured shapes are named where the one that is asked for was not measured."""


def measured_shards() -> list[str]:
    """The shards of layers that were timed on the GPU with the newest rows, by label."""
    try:
        rows = pd.concat(layer_runs(ROOT / "results", newest_device(ROOT / "results")).values())
    except (MissingStudy, PlanError):
        return ["none yet"]
    labels = [label for label in models_in_order(rows["model"]) if " " in label]
    return labels or ["none yet, so that any of them is answered by the command that measures it"]


@dataclass
class Question:
    """What is asked. num_experts, top_k and ffn_dim of 0 stand for the model's own."""

    model: str = key("", "a shape: the label of measured rows, or one of", model_names)
    tokens: int = key(0, f"batch size, 1 to {MAX_TOKENS}; the nearest that was measured is taken")
    skew: float = key(0.0, "Zipf exponent of the experts' popularity, 0 is uniform; the nearest measured is taken")
    dtype: str = key("bf16", "one of", [*DTYPES, *DTYPE_NAMES])
    gating: str = key("softmax", "one of", GATINGS)
    quant: str = key("none", "how the experts' weights are packed, one of", QUANTS)
    layer: str = key("plain", "native is the model's own layer, with its own gating, one of", LAYERS)
    num_experts: int = key(0, "as measured under the model's name; 0 is the model's own")
    top_k: int = key(0, "as measured under the model's name; 0 is the model's own")
    ffn_dim: int = key(0, "as measured under the model's name; 0 is the model's own")
    tp: int = key(1, "tensor-parallel shard: one of so many equal slices of ffn_dim")
    ep: int = key(1, "expert-parallel shard: one of so many equal groups of experts; measured shards", measured_shards)
    device: str = key("", "folder of a GPU in results; by default the one with the newest rows")
    results: Path = key(ROOT / "results", "folder of the CSVs")


def answer(question: Question) -> str:
    """The text of the answer. Raises PlanError where nothing was measured, naming what was, and what measures it."""
    if not question.model:
        raise PlanError(f"model=... is needed, one of {', '.join(model_names())}")
    if question.tokens < 1:
        raise PlanError("tokens=... is needed, at least 1")
    question = replace(question, dtype=DTYPE_NAMES.get(question.dtype, question.dtype))
    results = question.results
    device = question.device or newest_device(results)
    runs = layer_runs(results, device)
    rows = pd.concat(runs.values())
    shape = _shape(question, rows[SHAPE].drop_duplicates())
    rows = _of_shape(rows, shape, question, device)
    for name in ("layer", "dtype", *["gating"] * (question.layer == "plain"), "quant"):
        measured = sorted(rows[name].unique())
        rows = rows[rows[name] == getattr(question, name)]
        if rows.empty:
            raise PlanError(
                f"{name}={getattr(question, name)}: not measured for this shape; measured: {', '.join(measured)}; "
                f"{_measures(question)}"
            )
    return _text(question, device, rows, {study: results / device / f"{study}.csv" for study in runs})


def layer_runs(results: Path, device: str) -> dict[str, pd.DataFrame]:
    """The current run of each study of a device that timed whole layers. Raises PlanError that names the devices."""
    runs = _layer_runs(results / device)
    if not runs:
        folders = [path for path in results.glob("*") if path.is_dir() and path.name not in NOT_DEVICES]
        known = ", ".join(sorted(path.name for path in folders if _layer_runs(path))) or "none"
        raise PlanError(f"device={device}: no latencies under {results}; there are folders with some for: {known}")
    return runs


def _layer_runs(folder: Path) -> dict[str, pd.DataFrame]:
    runs, apart = {}, measured(folder)
    for path in map(newest, sorted(folder.glob("*.csv"))):
        if {*FORWARD_KEY, "p50_us", "limit_us"} <= set(store.header(path)):
            rows = ordered(read_run(path, KINDS["layer"])[0]).assign(**{APART: apart})
            rows = rows[~rows["implementation"].str.startswith(VARIANT) & (rows["routing"] == DRAWN)]
            if rows.loc[rows["implementation"] != "stream", "p50_us"].notna().any():
                # An empty cell makes pandas read its whole column as floats.
                runs[path.stem] = rows.dropna(subset=WHOLE).astype(dict.fromkeys(WHOLE, int))
    return runs


def nearest(measured: pd.Series, tokens: int) -> int:
    """The measured token count nearest to `tokens` by ratio, the larger of two equally near."""
    return int(min(sorted(measured.unique(), reverse=True), key=lambda value: abs(math.log(value / tokens))))


def nearest_skew(measured: pd.Series, skew: float) -> float:
    """The measured skew nearest to `skew`, the larger of two equally near."""
    return float(min(sorted(measured.unique(), reverse=True), key=lambda value: abs(value - skew)))


def _shape(question: Question, shapes: pd.DataFrame) -> tuple[str, int, int, int, int]:
    """The shape that is asked for: of a model of conf/model/, or of the label of measured rows. Raises PlanError."""
    if question.model in model_names():
        own = load_model(question.model)
        experts, top_k = question.num_experts or own.num_experts, question.top_k or own.top_k
        ffn = question.ffn_dim or own.ffn_dim
        hidden = own.hidden_dim
        _check_case(question, (own.name, experts, top_k, hidden, ffn))
        label, experts, ffn = shard(own.name, experts, top_k, ffn, question.tp, question.ep)
        shape = (label, experts, top_k, hidden, ffn)
    else:
        known = shapes[shapes["model"] == question.model]
        if known.empty:
            labels = list(dict.fromkeys([*model_names(), *shapes["model"]]))
            close = difflib.get_close_matches(question.model, labels, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise PlanError(f"model={question.model}: {hint}allowed are {', '.join(labels)}")
        if question.tp > 1 or question.ep > 1:
            raise PlanError(f"model={question.model}: a label of measured rows, which tp=... and ep=... cannot cut")
        for name in ("num_experts", "top_k", "ffn_dim"):
            asked, measured = getattr(question, name), sorted(known[name].unique())
            known = known[known[name] == asked] if asked else known
            if known.empty:
                raise PlanError(f"{name}={asked}: not measured of {question.model}; measured: {_listed(measured)}")
        shape = next(known.itertuples(index=False, name=None))
    _check_case(question, shape)
    return shape


def _check_case(asked: Question, shape: tuple[str, int, int, int, int]) -> None:
    """Raises PlanError for what no sweep could measure."""
    try:
        Case(*shape, asked.tokens, asked.skew, 0, asked.dtype, asked.gating, asked.quant, layer=asked.layer)
    except ValueError as error:
        raise PlanError(str(error)) from None


def _of_shape(rows: pd.DataFrame, shape: Sequence[Any], question: Question, device: str) -> pd.DataFrame:
    """The rows of a shape. Raises PlanError that names the measured shapes nearest to it."""
    own = rows[(rows[SHAPE] == list(shape)).all(axis=1)]
    if own.empty:
        shapes = list(rows[SHAPE].drop_duplicates().itertuples(index=False, name=None))
        shapes.sort(key=lambda other: sum(abs(math.log(a / b)) for a, b in zip(other[1:], shape[1:])))
        what = "no shard of the shape " if question.tp > 1 or question.ep > 1 else ""
        raise PlanError(
            f"{what}{_shape_text(shape)} was {'' if what else 'not '}measured on {device}; nearest of the "
            f"{len(shapes)} measured shapes: {', '.join(map(_shape_text, shapes[:NEAREST]))}; {_measures(question)}"
        )
    return own


def _measures(question: Question) -> str:
    return f"on that GPU `{_sweep(question)}` measures it"


def _sweep(question: Question) -> str:
    """The command that measures what is asked: its defaults are a question's own."""
    names = ["model", "num_experts", "top_k", "ffn_dim", "tp", "ep", "tokens", "skew", "dtype", "gating", "quant",
             "layer"]  # fmt: skip
    asked = [name for name in names if getattr(question, name) != getattr(Question, name)]
    keys = [f"model.{name}" if name in SHAPE[1:] else name for name in asked]
    values = [f"{key}={getattr(question, name)}" for key, name in zip(keys, asked)]
    return f"python experiments/sweep.py {' '.join(values)}"


def _shape_text(shape: Sequence[Any]) -> str:
    model, experts, top_k, hidden, ffn = shape
    return f"{model} ({experts} experts, top-{top_k}, {hidden} x {ffn})"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _text(question: Question, device: str, rows: pd.DataFrame, paths: dict[str, Path]) -> str:
    skews = sorted(rows["skew"].unique())
    skew = nearest_skew(rows["skew"], question.skew)
    rows = rows[rows["skew"] == skew]
    measured = sorted(rows["tokens"].unique())
    tokens = nearest(rows["tokens"], question.tokens)
    rows = rows[rows["tokens"] == tokens]
    packed = f", {question.quant}" if question.quant != "none" else ""
    packed += ", the model's own layer" if question.layer == "native" else ""
    lines = [f"{_shape_text(next(rows[SHAPE].itertuples(index=False)))}, {tokens} tokens, skew {skew:g}, "
             f"{question.dtype}, {rows['gating'].iloc[0]}{packed}, on {device}"]  # fmt: skip
    if tokens != question.tokens:
        apart = max(tokens / question.tokens, question.tokens / tokens)
        lines.append(
            f"{question.tokens} tokens were not measured: this is the nearest, a factor of "
            f"{apart:.{2 if apart < 10 else 0}f} away; measured are {_listed(measured)}"
        )
    if skew != question.skew:
        lines.append(
            f"Skew {question.skew:g} was not measured: this is the nearest; measured are {_listed(map(float, skews))}"
        )
    if len(lines) > 1:
        lines.append(f"On that GPU `{_sweep(question)}` measures what is asked")
    groups = [group for _, group in rows.groupby("study") if (group["implementation"] != LIMIT).any()]
    groups.sort(key=lambda group: (-len(_systems(group)), str(group["study"].iloc[0])))
    told: set[str] = set()
    for group in groups:
        systems = _systems(group)
        # A system by itself is no comparison, unless it is all that there is.
        if len(systems) > 1 or set(systems["implementation"]) - told:
            where = f"{_short_path(paths[str(group['study'].iloc[0])])}, run {group['run_id'].iloc[0]}"
            lines += ["", *_run_text(group, systems, told, where)]
            told |= set(systems["implementation"])
    if not told:
        lines += ["", "No system was timed here."]
    untimed = rows[~rows["implementation"].isin({*told, LIMIT})]
    if len(untimed):
        lines += ["", "Not timed at this point:", *_reasons(untimed)]
    return "\n".join(lines)


def _systems(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the systems in their best launch mode, fastest first; the limit is none."""
    best = timed(rows, "best")
    return best[best["implementation"] != LIMIT].sort_values("p50_us")


def _run_text(rows: pd.DataFrame, systems: pd.DataFrame, told: set[str], where: str) -> list[str]:
    """One run: its fastest system, the measured limit, and a table of it and of the systems not `told` before."""
    best = systems.iloc[0]
    same = systems.loc[systems["p20_us"] <= best["p80_us"] * best[APART], "implementation"].tolist()[1:]
    lines = [
        f"Fastest of {len(systems)}: {best['implementation']}, {best['p50_us']:.1f} µs, "
        + ("in a CUDA graph" if best["launch"] == "graph" else "launched eagerly")
        + (f"; the same within the noise: {', '.join(same)}" if same else ""),
        f"From {where}, case {best['case_hash']}, {best['timestamp_utc']}, torch {best['torch']}, "
        f"triton {best['triton']}, commit {str(best['git_commit'])[:10]}",
    ]
    new = systems[~systems["implementation"].isin(told)]
    if told and new.empty:
        return lines
    if pd.notna(best["limit_us"]):
        lines.append(_limit_text(best))
    shown = systems[systems["implementation"].isin({best["implementation"], *new["implementation"]})]
    lines += ["", pd.DataFrame([_line(row, best) for _, row in shown.iterrows()]).to_string(index=False)]
    if (shown["limit_us"] / shown["p50_us"]).max() >= 1.005:
        lines += _shaky_text(rows, best["limit_us"])
    refused = rows[(rows["launch"] == "graph") & (rows["status"] != "ok")]
    refused = refused[refused["implementation"].isin(new.loc[new["launch"] == "eager", "implementation"])]
    return [*lines, *(["", "In no CUDA graph:", *_reasons(refused)] if len(refused) else [])]


def _limit_text(row: pd.Series) -> str:
    read = f"{int(row['active_experts'])} active experts' weights"
    if row["stream_us"] < row["limit_us"]:
        return (
            f"Limit {row['limit_us']:.1f} µs: the arithmetic at the matrix rate of that run, longer than the "
            f"{row['stream_us']:.1f} µs in which stream reads the {read}"
        )
    return f"Limit {row['limit_us']:.1f} µs: stream, which reads the {read} in that run and does nothing else"


def _shaky_text(rows: pd.DataFrame, limit_us: float) -> list[str]:
    """One line where the row of stream that is the limit varied, which is how a share of it can be above 100 %."""
    limit = rows[(rows["implementation"] == LIMIT) & (rows["p50_us"] == limit_us)]
    return [
        "A share above 100 %: the limit is measured too, and varied by "
        f"{100 * (p80 / p20 - 1):.0f} % while it was timed ({p20:.1f}–{p80:.1f} µs)"
        for p20, p80 in zip(limit["p20_us"], limit["p80_us"])
        if p80 > SHAKY * p20
    ][:1]


def _line(row: pd.Series, best: pd.Series) -> dict[str, str]:
    """One line of the table; the ratio is the latency over the fastest one's, with what p20 to p80 of both, and two
    processes, leave."""
    low = row["p20_us"] / best["p80_us"] / best[APART]
    high = row["p80_us"] / best["p20_us"] * best[APART]
    ratio = "1" if row["implementation"] == best["implementation"] else (
        "same" if low <= 1 <= high else f"{row['p50_us'] / best['p50_us']:.2f} ({low:.2f}–{high:.2f})"
    )  # fmt: skip
    return {
        "system": row["implementation"],
        "version": "" if pd.isna(row["implementation_version"]) else str(row["implementation_version"]),
        "µs": f"{row['p50_us']:.1f}",
        "p20–p80": f"{row['p20_us']:.1f}–{row['p80_us']:.1f}",
        "x the fastest": ratio,
        "error, x PyTorch's": error_text(row),
        "of the limit": "" if pd.isna(row["limit_us"]) else f"{100 * row['limit_us'] / row['p50_us']:.0f} %",
        "launch": row["launch"],
        "workspace": "" if pd.isna(row["workspace_bytes"]) else f"{row['workspace_bytes'] / 2**20:.1f} MiB",
        "host syncs": "" if pd.isna(row["host_syncs"]) else f"{row['host_syncs']:.0f}",
        "kernels": "" if pd.isna(row["kernel_launches"]) else f"{row['kernel_launches']:.0f}",
    }


def _reasons(rows: pd.DataFrame) -> list[str]:
    """One line a system: status and reason, of the eager launch where both failed."""
    rows = rows.sort_values("launch", kind="stable").drop_duplicates("implementation").set_index("implementation")
    return [f"  {name}: {rows.at[name, 'status']!s}: {rows.at[name, 'reason']!s}" for name in in_order(rows.index)]


def _short_path(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
