"""Packs the results of one GPU into a file to send: rows and provenance, without host names and paths.

    python experiments/contribute.py
    python experiments/contribute.py device=nvidia-a100 out=nvidia-a100.zip

results/README.md says where it goes and what becomes of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.analysis.results import find_device
from tritonmoe_bench.experiments.reporting.contribution import pack
from tritonmoe_bench.experiments.workload.arguments import command, key


@dataclass
class ContributeConfig:
    """The keys of a contribution."""

    device: str = key("", "folder of a GPU in results; by default the one with the most studies")
    results: Path = key(ROOT / "results", "folder of the CSVs")
    out: Path = key(Path(), "the file; by default <device>.zip in the folder where this is started")


def contribute(config: ContributeConfig) -> None:
    """Writes the file and says where to send it."""
    device = find_device(config.results, config.device or None)
    out = config.out if config.out.name else Path(f"{device}.zip")
    files, removed = pack(config.results / device, out)
    print(f"wrote {out}: {files} files of {device}; {removed} host names and paths taken out")
    print("Attach it to a new issue of this project; results/README.md says what follows.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Packs, or says how to ask; returns the exit status."""
    return command(ContributeConfig, __doc__, contribute, arguments)


if __name__ == "__main__":
    sys.exit(main())
