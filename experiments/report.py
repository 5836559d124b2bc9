"""Decides every claim from the CSVs, writes REPORT.md and report.html beside them, and the README's block of claims.

    python experiments/report.py
    python experiments/report.py device=nvidia-h200 results=results figures=plots/figures

Every number comes from a CSV or a JSON of results/; the texts stand in experiments/reporting/templates/. Needs no
torch, no GPU and no network, neither to be made nor to be read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.analysis.results import devices, find_device
from tritonmoe_bench.experiments.reporting.render import write_report
from tritonmoe_bench.experiments.workload.arguments import command, key


@dataclass
class ReportConfig:
    """The keys of a report."""

    device: str = key("", "folder of a GPU in results; by default the one with the most studies")
    results: Path = key(ROOT / "results", "folder of the CSVs, and of the report")
    figures: Path = key(ROOT / "plots" / "figures", "folder of the figures")
    readme: Path = key(ROOT / "README.md", "file with the markers of the claims")


def report(config: ReportConfig) -> None:
    """Writes the report and prints what was written."""
    some = config.device or devices(config.results)
    device = find_device(config.results, config.device or None) if some else "no device"
    for path in write_report(config.results, config.figures, device, config.readme):
        print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the report, or says how to ask; returns the exit status."""
    return command(ReportConfig, __doc__, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
