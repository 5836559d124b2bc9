"""A stranger who has read one row of the README's "Add something" can add that thing.

Each row is followed literally, in one copy of the checkout: the file that it names is written, and the thing is then
listed, run, counted or drawn by the commands as they are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
COPIED = (".src", "baselines", "conf", "experiments", "kernels", "plots")
NAME = "stranger"
FILES = {
    "a system (baseline)": f"""
from tritonmoe_bench.experiments.implementation.contract import OK, Case, Check, Forward, Implementation, Weights


class Stranger(Implementation):
    name = "{NAME}"
    family = "research"
    source = "tests"
    needs_gpu = False

    def version(self) -> str:
        return "9.8.7"

    def check(self, case: Case) -> Check:
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        from tritonmoe_bench.experiments.workload.reference import moe_forward
        from tritonmoe_bench.kernels.stranger import launch_copy

        arguments = weights.router(), weights.expert, case.top_k, case.gate
        return lambda x: launch_copy(moe_forward(x, *arguments, dtype=x.dtype))
""",
    "a kernel": """
import torch
import triton
import triton.language as tl


@triton.jit
def _copy_kernel(x, y, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.load(x + offsets, mask=offsets < size), mask=offsets < size)


def launch_copy(x):
    y = torch.empty_like(x)
    _copy_kernel[(triton.cdiv(x.numel(), 128),)](x, y, x.numel(), BLOCK=128)
    return y
""",
    "a weight format": f"""
import torch

from .packed import Packed


class Whole(Packed):
    name = "{NAME}"
    bits = 16

    @classmethod
    def pack(cls, weights):
        return cls(weights.to(torch.bfloat16), torch.ones(()))

    def unpack(self, dtype=torch.float32):
        return self.values.to(dtype)

    @classmethod
    def scale_bytes(cls, rows, columns):
        return 0

    @property
    def shape(self):
        return tuple(self.values.shape)
""",
    "a model": f"name: {NAME}\nnum_experts: 4\ntop_k: 2\nhidden_dim: 64\nffn_dim: 32\nnative_gating: softmax\n",
    "a study": f"""
name: {NAME}
grids:
  - models: [{NAME}]
    tokens: [3]
    dtype: [bf16]
implementations: [{NAME}]
modes: [eager]
""",
    "a kind of measurement": f"""
from __future__ import annotations

import time
from types import MappingProxyType

from ..table import columns
from ..table.columns import Column
from .measurement import Measurement


class Stranger(Measurement):
    '''results/<device>/<study>.csv: how long the host takes to build a system.'''

    kind = "{NAME}"
    modes = ("once", "twice")
    mode_column = "repeats"
    key = ("case_hash", "implementation", "repeats")
    blank = MappingProxyType({{}})
    columns = (
        *columns.RUN, *columns.CASE, *columns.IMPLEMENTATION,
        Column("repeats", str, "How often it was built."), *columns.STATUS,
        Column("build_s", float, "Time of a build, in s.", positive=True), *columns.ENVIRONMENT,
    )

    def measure(self, implementation, case, modes, bench):
        weights = bench.weights(case, 1)[0]
        rows = []
        for mode in modes:
            start = time.perf_counter()
            for _ in range(self.modes.index(mode) + 1):
                implementation.build(case, weights)
            rows.append({{"repeats": mode, "status": "ok", "reason": "", "build_s": time.perf_counter() - start}})
        return rows

    def seconds(self, results, points, systems, modes):
        return 3600.0 * results

    def closing_table(self, rows):
        return f"built {{len(rows)}} times"
""",
    "a figure": f"""
from matplotlib.figure import Figure

NAME = "{NAME}"
TITLE = "Experts of each row"
STUDIES = ("{NAME}",)


def draw(results):
    rows = results.study("{NAME}").rows
    figure = Figure()
    figure.subplots().plot(rows["num_experts"])
    return figure
""",
    "a claim": (
        f"""
from .evidence import Evidence
from .finding import Finding, Verdict, rule


@rule("{NAME}")
def stranger(evidence: Evidence, figures) -> Finding:
    experts = int(evidence.study("{NAME}")["num_experts"].max())
    return Finding(Verdict.of(experts == figures["experts"], False), {{"experts": experts}})
""",
        """
{% macro rule() %}The claim holds if the layer has {{ figures.experts }} experts.{% endmacro %}
{% macro measured() %}{{ experts }} experts{% endmacro %}
{% macro sentence() %}A layer of {{ experts }} experts was run.{% endmacro %}
""",
    ),
    "a section of the report": (
        """
TITLE, ORDER = "A stranger's section", 40


def content(material):
    return {"rows": len(material.rows("stranger"))}
""",
        "It has {{ rows }} rows of {{ device }}.",
    ),
    "a command": """
from __future__ import annotations

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench.experiments.workload.config import model_names

if __name__ == "__main__":
    print(*model_names())
""",
}
"""What is written into each file that the row names, by the first cell of the row of the README."""
CLAIM = f"""
- id: {NAME}
  source: a stranger
  claim: the layer has four experts
  figures: {{experts: 4}}
  decided_by: one row of the study {NAME}
"""


def rows() -> dict[str, str]:
    """The README's table "Add something": what is to be added, and what its row says."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Add something")[1].split("\n## ")[0]
    found = dict(re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE))
    return {thing: row for thing, row in found.items() if thing not in ("to add", "---")}


def places(thing: str) -> list[str]:
    """The new files that the row names."""
    return [place.replace("<name>", NAME) for place in re.findall(r"`([\w/]+<name>\.\w+)`", rows()[thing])]


def test_every_row_is_followed_here():
    assert list(rows()) == list(FILES)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the checkout with everything in it that the rows ask for."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "figures", ".?*", "*.egg-info")
        shutil.copytree(ROOT / folder, root / folder, symlinks=True, ignore=ignored)
    for file in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, root)
    shutil.copytree(ROOT / "results" / "paper", root / "results" / "paper")
    for thing, written in FILES.items():
        texts = (written,) if isinstance(written, str) else written
        for place, text in zip(places(thing), texts, strict=True):
            assert (root / place).parent.is_dir(), f"the row of {thing} names a folder that is not there"
            (root / place).write_text(text.lstrip(), encoding="utf-8")
    assert "an entry in `results/paper/claims.yaml`" in rows()["a claim"]
    with (root / "results" / "paper" / "claims.yaml").open("a", encoding="utf-8") as claims:
        claims.write(CLAIM)
    return root


@pytest.fixture(scope="module")
def swept(copy) -> pd.DataFrame:
    """The rows of the new study, by system."""
    python(copy, "experiments/sweep.py", f"study={NAME}", "strict=true")
    [path] = (copy / "results").glob(f"*/{NAME}.csv")
    return pd.read_csv(path).set_index("implementation")


def python(root: Path, *arguments: str, status: int = 0) -> str:
    """What Python prints that runs in the copy, as somebody who stands in it would start it."""
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, encoding="utf-8", errors="replace", cwd=root, env=settings
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_a_system_is_listed_and_run(copy, swept):
    assert re.search(
        rf"^{NAME} +9\.8\.7 +research +can run here$", python(copy, "experiments/sweep.py", "list=true"), re.M
    )
    assert swept.loc[NAME, "status"] == "ok"
    assert swept.loc[NAME, "implementation_version"] == "9.8.7"


def test_a_model_and_a_study_are_run(swept):
    assert dict(swept.loc[NAME, ["model", "num_experts", "tokens"]]) == {"model": NAME, "num_experts": 4, "tokens": 3}


def test_a_kernel_runs_and_is_locked(copy, swept):
    assert swept.loc[NAME, "status"] == "ok"  # its output came out of the kernel
    lock = ["-c", "import sys; sys.path.insert(0, '.src'); sys.argv = ['revisions', *sys.argv[1:]]; "
                  "from tritonmoe_bench.experiments.measure.revisions import main; sys.exit(main())"]  # fmt: skip
    asked = python(copy, *lock, status=1)
    assert "kernels/_copy_kernel is new" in asked
    assert f"revisions: {NAME} is 1, the lock has None" in asked
    python(copy, *lock, "--record")  # what `make revisions` does
    assert "nothing that decides a number has changed" in python(copy, *lock)


def test_a_kind_of_measurement_is_planned_run_and_read(copy):
    arguments = ["model=tiny", "tokens=[1,2]", f"study.kind={NAME}", "study.name=builds", f"implementations=[{NAME}]"]
    planned = python(copy, "experiments/sweep.py", *arguments, "dry_run=true")
    assert "2 modes (once, twice) = 4 results" in planned
    assert "up to 240 minutes" in planned
    assert "built 4 times" in python(copy, "experiments/sweep.py", *arguments)
    [path] = (copy / "results").glob("*/builds.csv")
    rows = pd.read_csv(path)
    assert (rows["build_s"] > 0).all()
    assert rows["method_revision"].str.startswith("workload1+latency").all()
    assert python(copy, "experiments/sweep.py", *arguments).count("built 4 times") == 1  # nothing was measured again
    assert pd.read_csv(path).equals(rows)
    newest = "from tritonmoe_bench.experiments.analysis.results import default_device; from pathlib import Path; "
    code = f"import sys; sys.path.insert(0, '.src'); {newest}print(default_device(Path('results')))"
    assert python(copy, "-c", code).strip() == path.parent.name
    text = "import sys; sys.path.insert(0, '.src'); from tritonmoe_bench.experiments.measure import documentation; "
    assert "| `build_s` | number | Time of a build, in s. |" in python(copy, "-c", text + "print(documentation.text())")


def test_a_weight_format_is_found(copy):
    code = (
        "import sys; sys.path.insert(0, '.src'); from tritonmoe_bench.kernels.formats import formats; print(*formats())"
    )
    assert NAME in python(copy, "-c", code).split()


def test_a_figure_is_drawn(copy, swept):
    python(copy, "plots/draw.py")
    assert [path.suffix for path in sorted((copy / "plots" / "figures").rglob(f"{NAME}.*"))] == [".pdf", ".png"]


def test_a_claim_is_decided(copy, swept):
    python(copy, "experiments/report.py")
    report = (copy / "results" / "REPORT.md").read_text(encoding="utf-8")
    assert "A layer of 4 experts was run." in report
    assert "The claim holds if the layer has 4 experts." in report
    assert re.search(
        rf"^\| \[{NAME}\]\(#claim-{NAME}\) \| the layer has four experts \| 4 experts \| .*\*\*holds\*\*", report, re.M
    )


def test_a_section_of_the_report_is_shown(copy, swept):
    python(copy, "experiments/report.py")
    report = (copy / "results" / "REPORT.md").read_text(encoding="utf-8")
    assert re.search(r"## A stranger's section\n\nIt has [1-9]\d* rows of \w+", report)


def test_a_command_runs(copy):
    assert NAME in python(copy, f"experiments/{NAME}.py").split()
    assert "in the first layer of `[tool.importlinter]` in `pyproject.toml`" in rows()["a command"]
    text = (copy / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'"(\w+ \| )*sweep( \| \w+)*",', text), "where the linter has the commands"
