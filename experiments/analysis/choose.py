"""The answer of `choose`: the fastest system for a shape and batch size, from the committed rows of one device."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from tritonmoe_bench import ROOT
from tritonmoe_bench.kernels.gating import GATINGS

from ..workload.arguments import PlanError, key
from ..workload.case import DTYPE_NAMES, DTYPES, MAX_TOKENS, QUANTS, Case
from ..workload.config import load_model, model_names
from ..workload.layer import LAYERS
from ..workload.shards import shard, uncut
from .choose_rows import SHAPE, layer_runs, neighbours, points_for, timed_systems, usual_systems
from .choose_text import fastest_text, listed, point_text, shape_text
from .names import LIMIT, models_in_order
from .results import MissingStudy, default_device

POINT = ["tokens", "skew", "dtype", "gating", "quant", "layer"]
"""What a question and a sweep ask for beside the shape."""
ANY_MODEL = "tiny"
"""The model of which a sweep has another name and other sizes where conf/model has none of that name."""

NEAREST = 3
"""How many measured shapes are named where the one that is asked for was not measured."""


def measured_shards() -> list[str]:
    """The shards of layers that were timed on the GPU that is taken where none is named, by label."""
    try:
        rows = pd.concat(layer_runs(ROOT / "results", default_device(ROOT / "results")).values())
    except (MissingStudy, PlanError):
        return ["none yet"]
    labels = [label for label in models_in_order(rows["model"]) if " " in label]
    return labels or ["none yet, so that any of them is answered by the command that measures it"]


@dataclass
class Question:
    """What is asked. num_experts, top_k and ffn_dim of 0 stand for the model's own."""

    model: str = key("", "a shape: the label of measured rows, or one of", model_names)
    tokens: int = key(0, f"batch size, 1 to {MAX_TOKENS}; the next ones on both sides where it was not measured")
    skew: float = key(0.0, "Zipf exponent of the experts' popularity, 0 is uniform; the nearest measured is taken")
    dtype: str = key("bf16", "one of", [*DTYPES, *DTYPE_NAMES])
    gating: str = key("softmax", "one of", GATINGS)
    quant: str = key("none", "how the experts' weights are packed, one of", [*QUANTS, "native (as published)"])
    layer: str = key("plain", "native is the model's own layer, with its own gating, one of", LAYERS)
    num_experts: int = key(0, "as measured under the model's name; 0 is the model's own")
    top_k: int = key(0, "as measured under the model's name; 0 is the model's own")
    ffn_dim: int = key(0, "as measured under the model's name; 0 is the model's own")
    tp: int = key(1, "tensor-parallel shard: one of so many equal slices of ffn_dim")
    ep: int = key(1, "expert-parallel shard: one of so many equal groups of experts; measured shards", measured_shards)
    device: str = key("", "folder of a GPU in results; by default the one with the most studies")
    results: Path = key(ROOT / "results", "folder of the CSVs")


def answer(question: Question) -> str:
    """The text of the answer. Raises PlanError where nothing was measured, naming what was, and what measures it."""
    if not question.model:
        raise PlanError(f"model=... is needed, one of {', '.join(model_names())}")
    if question.tokens < 1:
        raise PlanError("tokens=... is needed, at least 1")
    question = replace(
        question, dtype=DTYPE_NAMES.get(question.dtype, question.dtype), quant=_format(question.model, question.quant)
    )
    results = question.results
    device = question.device or default_device(results)
    runs = layer_runs(results, device)
    rows = pd.concat(runs.values())
    usual = usual_systems(rows)
    shape = _shape(question, rows[SHAPE].drop_duplicates())
    rows = _of_shape(rows, shape, question, device)
    for name in ("layer", "dtype", *["gating"] * (question.layer == "plain"), "quant"):
        measured = sorted(rows[name].unique())
        rows = rows[rows[name] == getattr(question, name)]
        if rows.empty:
            others = " or ".join(f"{name}={value}" for value in measured)
            raise PlanError(
                f"{name}={getattr(question, name)}: not measured for this shape; ask for {others}, which was measured; "
                f"{_measures(question, shape)}"
            )
    return _text(question, shape, device, rows, usual, {study: results / device / f"{study}.csv" for study in runs})


def _format(model: str, quant: str) -> str:
    """The weight format that is asked for; `native` is the one that a model is published in. Raises PlanError."""
    if quant != "native":
        return quant
    if model not in model_names():
        raise PlanError(f"quant=native: model={model} is no name of conf/model; allowed are {', '.join(QUANTS)}")
    return load_model(model).native_quant


def _shape(question: Question, shapes: pd.DataFrame) -> tuple[str, int, int, int, int]:
    """The shape that is asked for: of a model of conf/model/, or of the label of measured rows. Raises PlanError."""
    if question.model in model_names():
        own = load_model(question.model)
        experts, top_k = question.num_experts or own.num_experts, question.top_k or own.top_k
        ffn = question.ffn_dim or own.ffn_dim
        hidden = own.hidden_dim
        _check_case(question, (own.name, experts, top_k, hidden, ffn))
        try:
            label, experts, ffn = shard(own.name, experts, top_k, ffn, question.tp, question.ep)
        except PlanError as error:
            own_shapes = [
                other for other in shapes.itertuples(index=False, name=None) if uncut(other[0])[0] == own.name
            ]
            raise PlanError(f"{error}; measured of it: {', '.join(map(shape_text, own_shapes)) or 'none'}") from None
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
                raise PlanError(f"{name}={asked}: not measured of {question.model}; measured: {listed(measured)}")
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
        shapes.sort(
            key=lambda other: (
                uncut(other[0])[0] != uncut(shape[0])[0],
                sum(abs(math.log(a / b)) for a, b in zip(other[1:], shape[1:])),
            )
        )
        what = "no shard of the shape " if question.tp > 1 or question.ep > 1 else ""
        raise PlanError(
            f"{what}{shape_text(shape)} was {'' if what else 'not '}measured on {device}; nearest of the "
            f"{len(shapes)} measured shapes: {', '.join(map(shape_text, shapes[:NEAREST]))}; "
            f"{_measures(question, shape)}"
        )
    return own


def _measures(question: Question, shape: Sequence[Any]) -> str:
    return f"on that GPU `{_sweep(question, shape)}` measures it"


def _sweep(question: Question, shape: Sequence[Any]) -> str:
    """The command that measures what is asked: its defaults are a question's own."""
    label, experts, top_k, hidden, ffn = shape
    name, tp, ep = uncut(label)
    known = name in model_names()
    own = load_model(name if known else ANY_MODEL)
    words = [f"model={own.name}", *([] if known else [f"model.name={name}"])]
    whole = {"num_experts": experts * ep, "top_k": top_k, "hidden_dim": hidden, "ffn_dim": ffn * tp}
    words += [f"model.{size}={value}" for size, value in whole.items() if value != getattr(own, size)]
    asked = {"tp": tp, "ep": ep} | {name: getattr(question, name) for name in POINT}
    words += [f"{name}={value}" for name, value in asked.items() if value != getattr(Question, name)]
    return f"python experiments/sweep.py {' '.join(words)}"


def _text(
    question: Question, shape: Sequence[Any], device: str, rows: pd.DataFrame, usual: list[str], paths: dict[str, Path]
) -> str:
    """What is asked and what was measured instead, then what was measured at each batch size that answers."""
    points, taken = points_for(question.tokens, question.skew, rows, usual)
    skews = {tokens: float(point["skew"].iloc[0]) for tokens, point in points.items()}
    packed = f", {question.quant}" if question.quant != "none" else ""
    packed += ", the model's own layer" if question.layer == "native" else ""
    tokens = next(iter(points)) if len(points) == 1 else question.tokens
    lines = [f"{shape_text(shape)}, {tokens} tokens, "
             f"skew {' and '.join(f'{skew:g}' for skew in dict.fromkeys(skews.values()))}, "
             f"{question.dtype}, {rows['gating'].iloc[0]}{packed}, on {device}"]  # fmt: skip
    if question.tokens not in points:
        how, others = _measured(question.tokens, rows["tokens"], taken["tokens"])
        nearest = list(points) == neighbours(rows["tokens"], question.tokens)
        lines.append(f"{question.tokens} tokens were {how}: {_instead(points, question.tokens, nearest)}; {others}")
    if set(skews.values()) != {question.skew}:
        at = [each[each["tokens"].isin(points)]["skew"] for each in (rows, taken)]
        how, others = _measured(question.skew, *at)
        where = " at these tokens" if question.skew in set(rows["skew"]) - set(at[0]) else ""
        lines.append(f"Skew {question.skew:g} was {how}{where}: this is the nearest; {others}")
    if len(lines) > 1:
        lines.append(f"On that GPU `{_sweep(question, shape)}` measures what is asked")
    for measured, point in points.items():
        if len(points) > 1:
            skew = f", skew {skews[measured]:g}" if len(set(skews.values())) > 1 else ""
            lines += ["", f"At {measured} tokens{skew}:"]
        lines += [*_untimed(point, usual), *point_text(point, paths)]
    return "\n".join(lines)


def _measured(asked: float, measured: pd.Series, taken: pd.Series) -> tuple[str, str]:
    """How a value was measured that does not answer, and the values that were measured, or with more systems."""
    if asked in set(measured):
        return "measured with fewer systems", f"measured with more are {listed(sorted(taken.unique().tolist()))}"
    return "not measured", f"measured are {listed(sorted(measured.unique().tolist()))}"


def _untimed(point: pd.DataFrame, usual: list[str]) -> list[str]:
    """One line where systems were compared without some of the usual ones."""
    timed = timed_systems(point) - {LIMIT}
    missing = [name for name in usual if name not in timed]
    return [f"Of the usual systems, not timed here: {', '.join(missing)}"] if missing and len(timed) > 1 else []


def _instead(points: dict[int, pd.DataFrame], asked: int, nearest: bool) -> str:
    if len(points) == 1:
        (tokens,) = points
        apart = max(tokens / asked, asked / tokens)
        which = "" if nearest else " with more systems"
        return f"this is the nearest{which}, a factor of {apart:.{2 if apart < 10 else 0}f} away"
    found = [f"{fastest_text(point)} at {tokens}" for tokens, point in points.items()]
    return f"the fastest next to them is {' and '.join(found)}"
