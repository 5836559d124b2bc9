"""The report: decides every claim from results/, writes REPORT.md and report.html there, and the README's block.

    python experiments/report.py
    python experiments/report.py --device nvidia-h200 --results results --figures plots/figures

Every number in it comes from a CSV or a JSON of results/; the texts stand in experiments/reporting/templates/. Needs no
torch, no GPU and no network, neither to be made nor to be read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.analysis.results import devices, find_device
from tritonmoe_bench.experiments.reporting.render import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the CSVs, and of the report")
    parser.add_argument("--figures", type=Path, default=ROOT / "plots" / "figures", help="folder of the figures")
    parser.add_argument("--device", default=None, help="folder name of the GPU; default: the one with the newest rows")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file with the claims markers")
    arguments = parser.parse_args()
    some = arguments.device is not None or devices(arguments.results)
    device = find_device(arguments.results, arguments.device) if some else "no device"
    for path in write_report(arguments.results, arguments.figures, device, arguments.readme):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
