"""The columns that the CSVs share, as objects, and what a row may hold. Imports neither torch nor triton.

A kind of row (experiments/table/kind.py) puts its table together from these and from columns of its own. How a column
is read, which cells are refused and what results/README.md says of it all follow from the object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..implementation.contract import Status

STATUSES = tuple(status.value for status in Status)
NEEDED = ("run_id", "case_hash", "implementation", "status", "timestamp_utc")
"""Columns that every row of a study has, of any kind and age."""
RETIRED = ("code_hash",)
"""Columns of older versions of this project: their cells are passed over."""


@dataclass(frozen=True)
class Column:
    """A column of a CSV.

    name: with the unit in it; type: ``str``, ``int`` for whole numbers, ``float`` for any number; text: what it holds,
    for whoever reads the CSV; least: the smallest number allowed; positive: whether only numbers above 0 are; unstated:
    what a row means that was written before there was this column.
    """

    name: str
    type: type
    text: str
    least: float | None = None
    positive: bool = False
    unstated: str = ""


RUN = (
    Column("run_id", str, "One sweep on one kind of GPU and software. Form ratios inside a run only."),
    Column("study", str, "File of conf/study/."),
)
CASE = (
    Column("model", str, "Label of the shape; `tp8` or `ep8` behind it marks a shard."),
    Column("num_experts", int, "Experts of the layer.", positive=True),
    Column("top_k", int, "Experts of each token.", positive=True),
    Column("hidden_dim", int, "Width of x and y.", positive=True),
    Column("ffn_dim", int, "Width of the intermediate activation.", positive=True),
    Column("tokens", int, "Rows of x.", positive=True),
    Column("skew", float, "Zipf exponent of the expert popularity; 0 is uniform.", least=0),
    Column("seed", int, "Seed of routing, activations and weights.", least=0),
    Column("dtype", str, "bf16 or fp16."),
    Column("gating", str, "Scoring of the router, a name of kernels/gating.py."),
    Column("quant", str, "Format of the experts' weights; none for those of the dtype.", unstated="none"),
    Column(
        "routing",
        str,
        "`drawn` from skew and seed, or file, layer and digest of the recording that it comes from.",
        unstated="drawn",
    ),
    Column(
        "layer",
        str,
        "`plain`, softmax gating and SwiGLU experts, or `native`, the model's own layer (conf/model).",
        unstated="plain",
    ),
    Column("case_hash", str, "Hash of the case: the columns from `model` to `layer`, and what its native layer has."),
)
IMPLEMENTATION = (
    Column("implementation", str, "The system that was measured, by the name of its adapter."),
    Column("implementation_version", str, "Version of the system, empty if it is not installed."),
    Column("revision", float, "Revision of the adapter, and of our kernels behind it.", least=0),
    Column("method_revision", str, "Versions of the method that the row depends on, and the timing settings."),
    Column("activations", str, "Bits of the activations in the experts' GEMMs: a16 or a8.", unstated="a16"),
    Column("config", str, "Tiles, backend or table that the system chose for the case."),
)
LAUNCH = Column("launch", str, "How the forward was launched: `graph` (a CUDA graph) or `eager`.")
TIMING_METHOD = Column(
    "timing_method",
    str,
    "`chain`, `flush` (L2 emptied before each forward), `loop` (steps of a generation), or `none`.",
)
STATUS = (
    Column("status", str, f"One of {', '.join(STATUSES)}; only ok carries numbers."),
    Column("reason", str, "Why the status is not ok."),
)
LATENCY = (
    Column("p50_us", float, "Median latency of one forward, or one stage, in us.", positive=True),
    Column("p20_us", float, "20th percentile of the latency, in us.", positive=True),
    Column("p80_us", float, "80th percentile of the latency, in us.", positive=True),
    Column("samples", float, "Samples behind the percentiles.", positive=True),
)
TOKENS_PER_S = Column("tokens_per_s", float, "Tokens over the median latency.", positive=True)
ACTIVE_EXPERTS = Column("active_experts", float, "Experts that got a token in the routing of the case.", positive=True)
MAX_EXPERT_LOAD = Column("max_expert_load", float, "Tokens of the busiest expert.", positive=True)
MIN_BYTES = Column(
    "min_bytes", float, "Compulsory traffic: active experts' weights, router, x and y, each once.", positive=True
)
FLOPS = Column("flops", float, "Floating-point operations of the router and expert GEMMs.", positive=True)
STREAM_US = Column(
    "stream_us",
    float,
    "p50_us of `stream` for this case in this run. When rows are read it is scaled to the card of the row, by the "
    "fixed read that each process times; the CSV holds it as it was when the row was written.",
    positive=True,
)
LIMIT_US = Column(
    "limit_us",
    float,
    "The measured limit: the larger of stream_us and flops over the run's matrix rate.",
    positive=True,
)
ERRORS = (
    Column("rel_error", float, "Relative error of the output against the float32 reference.", least=0),
    Column(
        "torch_rel_error",
        float,
        "The same error of PyTorch's own computation with as many bits.",
        least=0,
    ),
)
ENVIRONMENT = (
    Column("device", str, "Kind of GPU; `interpreter` without one."),
    Column("device_uuid", str, "The card, empty where the driver does not tell."),
    Column("driver", str, "Version of the NVIDIA driver."),
    Column("torch", str, "Version of PyTorch."),
    Column("triton", str, "Version of Triton."),
    Column("git_commit", str, "Commit of this project."),
    Column("git_dirty", str, "Whether its sources differed from the commit."),
    Column("sm_clock_mhz", float, "SM clock when the case ended, empty where the driver does not tell.", least=0),
    Column("timestamp_utc", str, "When the row was written."),
)

TIMINGS = (*(column.name for column in LATENCY), TOKENS_PER_S.name)
"""What only a row with status ok carries."""

FORWARD_KEY = ("case_hash", "implementation", "launch")
"""The key of a table with one row per case, implementation and launch mode."""

PORTABILITY = (
    Column("kernel", str, "Kernel that was compiled."),
    Column("config", str, "Its configuration."),
    Column("dtype", str, "bf16 or fp16."),
    Column("target", str, "Architecture that it was compiled for."),
    Column("status", str, "ok, does_not_compile, too_much_shared, spills, overwrites_operand or misses_matrix_unit."),
    Column("matrix_instruction", str, "Matrix instructions in the machine code."),
    Column("pipelined", str, "How loads run ahead."),
    Column("registers", float, "Registers of a thread.", least=0),
    Column("spills", float, "Bytes of local memory of a thread.", least=0),
    Column("shared_bytes", float, "Shared memory of a program, in bytes.", least=0),
    Column("reason", str, "Why the status is not ok."),
    Column("implementations", str, 'Systems that launch it, joined by "+".'),
    Column("case", str, "A case at which they do."),
)
"""results/portability.csv: one row per kernel, configuration and target."""
PORTABILITY_COLUMNS = tuple(column.name for column in PORTABILITY)
PORTABILITY_STATUSES = (
    "ok", "does_not_compile", "too_much_shared", "spills", "overwrites_operand", "misses_matrix_unit"
)  # fmt: skip

_declared: dict[str, Column] = {}


def declare(columns: Iterable[Column]) -> None:
    """Makes columns known to readers of any table. Raises ValueError for a name of two types."""
    for column in columns:
        if _declared.setdefault(column.name, column).type is not column.type:
            raise ValueError(f"column {column.name} is {_declared[column.name].type.__name__} in another table")


def declared() -> dict[str, Column]:
    """Every column of every kind of table that has been imported, by name."""
    return _declared


def names(columns: Iterable[Column]) -> tuple[str, ...]:
    return tuple(column.name for column in columns)


def cell(value: Any) -> str:
    """How a value stands in a CSV: on one line, and empty if it is not known."""
    return "" if value is None else " ".join(str(value).splitlines())


def validate(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> None:
    """Raises ValueError if one of the rows may stand in no CSV with these columns."""
    known = {column.name: column for column in columns}
    unknown = sorted({name for row in rows for name in row if name not in known})
    if unknown:
        raise ValueError(f"row has unknown columns {unknown}")
    cells = pd.DataFrame([[cell(row.get(name)) for name in known] for row in rows], columns=list(known), dtype=object)
    found = faults(cells, known)
    for fault in found[found != ""]:
        raise ValueError(fault)


def faults(cells: pd.DataFrame, columns: Mapping[str, Column]) -> pd.Series:
    """Why no CSV may hold a row, empty for a row that it may: the one check of what is written and of what is read.

    cells: text, as it stands in a CSV; columns: by name, those that `cells` may have.
    """
    found = pd.Series("", index=cells.index, dtype=object)

    def tell(wrong: pd.Series, text: str) -> None:
        """text: of each row that is wrong and has no fault yet, with its cells in braces by column."""
        for index in wrong.index[wrong & (found == "")] if wrong.any() else ():
            found[index] = text.format_map(cells.loc[index])

    for name in NEEDED:
        tell(cells[name] == "", f"it has no {name}")
    tell(~cells["status"].isin(STATUSES), f"status={{status}}: allowed are {', '.join(STATUSES)}")
    for column in (columns[str(name)] for name in cells if columns[str(name)].type is not str):
        _tell_numbers(column, cells[column.name], tell)
    failed = cells["status"] != "ok"
    for name in TIMINGS:
        if name in cells:
            tell(failed & (cells[name] != ""), "a row with status {status} carries timings: " + name)
    if "reason" in cells:
        tell(failed & (cells["reason"] == ""), "a row with status {status} needs a reason")
    return found


def _tell_numbers(column: Column, cells: pd.Series, tell: Callable[[pd.Series, str], None]) -> None:
    given = cells != ""
    if not given.any():
        return
    numbers = pd.to_numeric(cells.where(given), errors="coerce")
    what = f"{column.name}={{{column.name}}}"
    if column.type is int:
        tell(given & ~cells.astype(str).str.fullmatch(r"[+-]?\d+"), f"{what} is no whole number")
    tell(given & numbers.isna(), f"{what} is no number")
    tell(numbers.abs() == float("inf"), f"{what}: leave out what is not known")
    if column.positive:
        tell(numbers <= 0, f"{what}: must be above 0")
    if column.least is not None:
        tell(numbers < column.least, f"{what}: must be at least {column.least:g}")
