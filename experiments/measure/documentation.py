"""results/README.md: what every column of every CSV holds, from the columns themselves.

python -m tritonmoe_bench.experiments.measure.documentation      # writes it
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from tritonmoe_bench import ROOT

from ..table.columns import PORTABILITY, Column
from ..table.store import write_whole
from .measurement import kinds

FILE = ROOT / "results" / "README.md"
HEAD = """# The columns of the CSVs

This file is made from the code: `python -m tritonmoe_bench.experiments.measure.documentation` writes it.

A study leaves `<device>/<study>.csv`, one row per measurement, and beside it a JSON with the software and the clocks
of its run. Units are in the names. A cell is empty where nothing is known. A run of other software than the first one
of a device has a folder of its own, `<device>/with-.../`. `paper/` holds published numbers, `reference/` an earlier
measurement that was made apart from this code. `tests-<where>.json` says how many tests passed, in the interpreter or
on a GPU, and `paper-tests-<where>.json` how many of those that the paper's authors publish, on their code.

`<device>/archive/` keeps the runs that newer ones have taken the place of, `<study>-<run>.csv.gz` with its JSON, some
20 times smaller; `pandas.read_csv` reads them, and no command does. Kept are the last runs of a study before the
current one (rows that were measured again within a run are in the history of git alone), every tile that `make tune`
timed for the committed table, and the two runs that show what spreading a sweep over two cards saves. What is older is
in the history of git.

A run may have been measured in several parts, on more than one card: `git_commit`, `device_uuid` and `timestamp_utc`
say which row belongs to which, and the report's table of runs lists them. Cards differ by some per cent in reading
memory: each process times one fixed read, the JSON has it, and comparisons are corrected by it. In
`nvidia-h200/throughput.csv` the rows of `qwen2_paper` at commit f47be6b are those of the archived run
20261128T200657Z-786b, put under the current `run_id` by hand.

## Recorded routing

`routing=<file>` has a sweep take its routing from a recording, which has a point for each of its layers. The files of
`conf/recorded/` show the format and are of random weights: they say nothing about trained models. Real ones are
welcome, and this records one:

    python experiments/record_routing.py model=<checkpoint> prompts=<a prompt a line> sequences=64 out=<model>.npz

`experiments/workload/recorded.py` says what the file holds: expert ids, and no text. Send it with a pull request that
puts it into `conf/recorded/`, smaller than 100 kB, and says what the prompts were; steps=8 and four layers of top-8 are
well below that.

## Rows of another GPU

An A100, a B200 or an MI300X joins as a folder of its own. On it, `make reproduce` (or `make studies`) writes
`results/<device>/`; report, figures and `choose` find the folder by themselves: the report has its rows in every
table with a column GPU, its verdicts beside the others', and its figures below the same ones; a section says whether
the order of the systems carries over. The device with the most studies is the one that decides; `device=...` asks for
another. `make contribute` packs the folder into `<device>.zip`: rows, provenance and how tests went there, without host
names, user names and paths. Attach that file to a new issue of this project. It is unpacked into `results/`, report and
figures are made anew, and the numbers of the README are recorded in a commit of their own. Rows are taken as they are,
never averaged with others; ratios are formed inside one study's table of one GPU.
"""
TYPES = {str: "text", int: "whole number", float: "number"}


def text() -> str:
    """The whole file."""
    parts = [HEAD]
    for name, kind in kinds().items():
        parts.append(f"## Rows of the kind `{name}`\n\n{inspect.cleandoc(type(kind).__doc__ or '')}\n")
        parts.append(f"One row per run and {', '.join(f'`{column}`' for column in kind.key)}.\n")
        parts.append(_table(kind.columns))
    parts.append("## portability.csv, portability_authors.csv\n\nOne row per kernel, configuration and target.\n")
    parts.append(_table(PORTABILITY))
    return "\n".join(parts)


def _table(columns: Iterable[Column]) -> str:
    rows = [f"| `{column.name}` | {TYPES[column.type]} | {column.text} |" for column in columns]
    return "\n".join(["| column | type | what it holds |", "| --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    write_whole(FILE, text())
    print(f"wrote {FILE}")
