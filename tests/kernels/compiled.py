"""What has been compiled already: hashes of launches that run on their target, so that a test compiles what is new.

python tests/kernels/compiled.py     compiles everything, and records it in tests/fixtures/committed/compiled.json

What becomes of a launch follows from the source of its kernel with all that it calls, its constants, types and options,
the target, the version of Triton, and the checks of experiments/targets. A hash holds all of that.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import triton

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.targets import matrix
from tritonmoe_bench.experiments.targets.gpus import TARGETS

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "committed" / "compiled.json"
CHECKS = ("compile.py", "gpus.py")
AGAIN = 64
"""One of so many launches is compiled every time, recorded or not."""
KEPT = ("kernel", "matrix_instruction", "pipelined")
"""What the test asks of a row beside its status."""


def code(launch: dict[str, Any]) -> str:
    """The hash of a recorded launch."""
    checks = "".join((ROOT / "experiments" / "targets" / name).read_text(encoding="utf-8") for name in CHECKS)
    options = json.loads(launch["specialization"])["options"]
    plain = {name: value for name, value in options.items() if "/" not in json.dumps(value)}  # without paths
    parts = [triton.__version__, checks, launch["target"], launch["source"], launch["arguments"], plain]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def recorded() -> dict[str, list[str]]:
    """By hash, the columns `KEPT` of the row."""
    return json.loads(FIXTURE.read_text(encoding="utf-8"))


def rows(target: str) -> list[dict[str, Any]]:
    """The rows of a target's launches: those that are recorded as they are, the others and one of `AGAIN` compiled."""
    known = recorded()
    launches = {code(launch): launch for launch in matrix.record(target, brief=True)}
    new = [launch for name, launch in launches.items() if name not in known or int(name, 16) % AGAIN == 0]
    taken = [dict(zip(KEPT, known[name])) for name in launches if name in known]
    return matrix.compile_all(new, jobs=1) + [{"status": "ok", **row} for row in taken]


def main() -> None:
    """Compiles the launches of every target that are not recorded, two at a time, and records those that run."""
    known, found, failed = recorded() if FIXTURE.exists() else {}, {}, []
    for target in TARGETS:
        launches = {code(launch): launch for launch in matrix.record(target, brief=True)}
        new = {name: launch for name, launch in launches.items() if name not in known}
        made = dict(zip(new, matrix.compile_all(new.values(), jobs=2)))
        found |= {name: known[name] for name in launches if name in known}
        found |= {name: [row[column] for column in KEPT] for name, row in made.items() if row["status"] == "ok"}
        failed += [row for row in made.values() if row["status"] != "ok"]
        print(f"{target}: {len(launches)} launches, {len(new)} compiled", flush=True)
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    FIXTURE.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    print(f"wrote {FIXTURE}: {len(found)} launches")
    print(matrix.summary(failed))


if __name__ == "__main__":
    main()
