"""Reads what Nsight Compute prints with `--csv --page raw`: the bytes of every kernel that it profiled."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass

METRICS = {
    "read_bytes": "dram__bytes_read.sum",
    "write_bytes": "dram__bytes_write.sum",
    "l2_bytes": "lts__t_bytes.sum",
}
"""By column of traffic.csv, the counter: DRAM to L2, L2 to DRAM, and all that passes the L2's tag stage."""
UNITS = {"": 1, "byte": 1, "kbyte": 1e3, "mbyte": 1e6, "gbyte": 1e9}
ABSENT = ("", "n/a", "nan")
NAME_LENGTH = 60


@dataclass(frozen=True)
class Kernel:
    """A profiled launch: short name, grid, and its counters by the columns of `METRICS`, None where there is none."""

    name: str
    grid: tuple[int, ...]
    counts: dict[str, int | None]


@dataclass(frozen=True)
class Export:
    """kernels: in order of launch; passes: the most replays that a kernel needed, 0 if the log does not tell;
    complaints: what Nsight Compute printed as an error, then as a warning."""

    kernels: list[Kernel]
    passes: int
    complaints: list[str]


def read_export(text: str) -> Export:
    """The export in `text`, which may hold Nsight Compute's messages and the program's own output as well.

    Raises ValueError for a table that lacks a counter or has it in a unit that is no number of bytes.
    """
    lines = text.splitlines()
    passes = [int(found) for found in re.findall(r"^==PROF== Profiling .* - (\d+) pass", text, re.MULTILINE)]
    complaints = [
        line.removeprefix(f"=={kind}==").strip()
        for kind in ("ERROR", "WARNING")
        for line in lines
        if line.startswith(f"=={kind}==")
    ]
    start = next((at for at, line in enumerate(lines) if line.startswith('"ID",')), len(lines))
    table = csv.DictReader(line for line in lines[start:] if line.startswith('"'))
    return Export(_kernels(table), max(passes, default=0), complaints)


def _kernels(table: csv.DictReader) -> list[Kernel]:
    lacking = [metric for metric in METRICS.values() if metric not in (table.fieldnames or METRICS.values())]
    if lacking:
        raise ValueError(f"the export of Nsight Compute has no column {', '.join(lacking)}")
    units = dict.fromkeys(METRICS.values(), "byte")
    kernels = []
    for row in table:
        if not row["ID"]:  # the row of units, under the names
            units = {metric: row[metric] for metric in METRICS.values()}
            continue
        counts = {column: _bytes(row[metric], units[metric]) for column, metric in METRICS.items()}
        grid = tuple(int(part) for part in re.findall(r"\d+", row["Grid Size"]))
        kernels.append(Kernel(short_name(row["Kernel Name"]), grid, counts))
    return kernels


def _bytes(cell: str, unit: str) -> int | None:
    if cell.strip().lower() in ABSENT:
        return None
    if unit.lower() not in UNITS:
        raise ValueError(f"the export of Nsight Compute has a counter of bytes in {unit!r}")
    return round(float(cell.replace(",", "")) * UNITS[unit.lower()])


def short_name(name: str) -> str:
    """The function's own name: no return type, namespaces, template arguments or parameters."""
    name = name.strip().removeprefix("void ").replace("(anonymous namespace)::", "").replace("<unnamed>::", "")
    return re.split(r"[<(]", name, maxsplit=1)[0].strip().split("::")[-1][:NAME_LENGTH]


def by_case(kernels: Iterable[Kernel], marker: str) -> dict[int, list[Kernel]]:
    """The kernels of each case, by its index: a launch of `marker` goes before them, on a grid of index + 1 programs.

    Raises ValueError for a kernel before any marker, or for a case that comes twice.
    """
    groups: dict[int, list[Kernel]] = {}
    current: list[Kernel] | None = None
    for kernel in kernels:
        if kernel.name == marker:
            index = kernel.grid[0] - 1
            if index in groups:
                raise ValueError(f"the export of Nsight Compute has case {index} twice")
            current = groups[index] = []
        elif current is None:
            raise ValueError(f"the export of Nsight Compute has {kernel.name} before the first case")
        else:
            current.append(kernel)
    return groups
