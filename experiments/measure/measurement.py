"""What a sweep can measure: the base of every kind of measurement, and how they are found.

To add a kind, put one file into a room of experiments/ that defines a subclass of `Measurement` with all of its class
attributes (experiments/table/kind.py says what they are) and methods. Studies then name its `kind`. The file imports
torch inside `measure` only, so that rows can be read on a machine without it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from ..implementation.contract import Implementation
from ..table.columns import RETIRED, names
from ..table.kind import Kind
from ..workload.case import Case

if TYPE_CHECKING:
    from .bench import Bench

LAUNCHES = ("graph", "eager")
INTERPRETER_FLOPS = 2e8
"""The largest forward that Triton's interpreter is asked to run."""
ROOMS = Path(__file__).resolve().parents[1]
CLASS_LINE = re.compile(r"^class (?P<name>\w+)\((Kind|Measurement)(, ABC)?\):", re.MULTILINE)
"""The line by which the file of a kind is found: to import every file would load torch."""

POINT = (
    "model", "num_experts", "top_k", "hidden_dim", "ffn_dim", "seed", "dtype", "gating", "quant", "routing", "layer",
    "skew",
    "tokens",
)  # fmt: skip
"""What tells the cases of a closing table apart, in its order."""
SHOWN = ("model", "num_experts", "top_k", "dtype", "skew", "tokens")
"""What is printed of it even where all cases agree."""

Rows = list[dict[str, Any]]


class Measurement(Kind, ABC):
    """One kind of measurement: its table (`Kind`), how it is measured, forecast, and summed up.

    modes: by what each point is measured, launch modes or methods of counting; counts_memory: whether a row tells all
    the memory that the process takes, so that nothing else may lie beside.
    """

    modes: ClassVar[tuple[str, ...]] = LAUNCHES
    counts_memory: ClassVar[bool] = False

    @abstractmethod
    def measure(self, implementation: Implementation, case: Case, modes: list[str], bench: Bench) -> Rows:
        """The rows of one system on one case, in a worker process: at least one row per mode.

        They hold what only the measurement knows; run, case, system and environment are added to them. Raises
        IncorrectOutput for a wrong output; whatever is raised becomes a row per mode.
        """

    @abstractmethod
    def closing_table(self, rows: pd.DataFrame) -> str:
        """What a sweep prints at its end of its rows with status ok; empty if they hold nothing to print."""

    def ahead(
        self, implementation: str, cases: Sequence[Case], modes: list[str], job: dict[str, Any],
        begin: Callable[[Case], None],
    ) -> tuple[dict[str, Rows], list[str]]:  # fmt: skip
        """(rows by case_hash of what is measured before this process takes GPU memory, the modes that are left).

        job: the worker's; begin: is called as each case begins.
        """
        return {}, modes

    def planned_config(self, implementation: Implementation, case: Case) -> str | None:
        """The config that a row would state now, if it is known: a row with another one is measured again."""
        return implementation.planned_config(case)

    def seconds(self, results: int, points: int, systems: int, modes: Sequence[str]) -> float:
        """The forecast of GPU time beyond the starts of processes and the set-up of each layer, in s.

        results: points times modes; points: pairs of a case and a system; systems: how many.
        """
        return 0.05 * points + 0.22 * results

    def gpu_bytes(self, case: Case) -> int:
        """Device memory that a case takes, in bytes: the layer's weights and room for activations."""
        return case.weight_bytes + case.slots * (4 * case.ffn_dim + 4 * case.hidden_dim) * 2

    def needs_gpu(self, modes: Sequence[str]) -> bool:
        """Whether a GPU, where there is one, takes part in these modes."""
        return True

    def refusal(self, cases: Sequence[Case], modes: Sequence[str]) -> str:
        """Why a machine without a GPU cannot run these cases, and what it can; empty if it can."""
        case = max(cases, key=lambda case: case.flops)
        if case.flops <= INTERPRETER_FLOPS:
            return ""
        most = int(INTERPRETER_FLOPS * case.tokens / case.flops)
        return (
            "no NVIDIA GPU here: Triton's interpreter, which times nothing, takes "
            + (f"{case.model} up to tokens={most}" if most else "model=tiny or study=smoke")
            + f", not {case.model} at tokens={case.tokens}; dry_run=true works for any sweep"
        )


def by_point(
    rows: pd.DataFrame, value: str, *, columns: str = "implementation", also: Sequence[str] = ()
) -> pd.DataFrame:
    """A table of one column of the rows: a line per case (and value of `also`), a column per value of `columns`.

    No two cases share a line: what they differ in stands in the index. They stand in the order of the rows' labels.
    """
    rows = rows.sort_index()
    index = [name for name in POINT if name in SHOWN or rows[name].nunique() > 1]
    return rows.pivot_table(index=[*index, *also], columns=columns, values=value, aggfunc="first", sort=False)


@functools.cache
def kinds() -> dict[str, Kind]:
    """Every kind of row by name. Raises ValueError if two have one name."""
    found: dict[str, Kind] = {}
    for path in sorted(ROOMS.glob("*/*.py")):
        for line in CLASS_LINE.finditer(path.read_text(encoding="utf-8")):
            module = importlib.import_module(f"{__package__.rpartition('.')[0]}.{path.parent.name}.{path.stem}")
            made = getattr(module, line["name"])
            if inspect.isabstract(made):
                continue
            if made.kind in found:
                raise ValueError(f"{path} has the kind {made.kind}, and so has another file")
            found[made.kind] = made()
    return dict(sorted(found.items(), key=lambda entry: (entry[0] != "layer", entry[0])))


def kind_of(header: Sequence[str]) -> Kind:
    """The kind of the rows of a CSV, by its columns: the one with the fewest more, as older files lack some."""
    held = set(header) - set(RETIRED)
    fitting = [kind for kind in kinds().values() if held <= set(names(kind.columns)) and set(kind.key) <= held]
    return min(fitting, key=lambda kind: len(kind.columns), default=kinds()["layer"])


def measurements() -> dict[str, Measurement]:
    """Every kind that a sweep can measure, by name."""
    return {name: kind for name, kind in kinds().items() if isinstance(kind, Measurement)}
