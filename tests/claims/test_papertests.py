"""The authors' own tests of their code: how they are run and recorded, and what the claims make of that."""

import json
import sys

import pandas as pd
import pytest
from claim_rows import grid

from tritonmoe_bench.baselines.install import trees
from tritonmoe_bench.experiments import papertests
from tritonmoe_bench.experiments.claims import Evidence, Outcomes, decide
from tritonmoe_bench.experiments.reporting import context
from tritonmoe_bench.experiments.reporting.portability import outcomes_table
from tritonmoe_bench.experiments.reporting.texts import claim_texts
from tritonmoe_bench.experiments.table import outcomes
from tritonmoe_bench.experiments.table.outcomes import AUTHORS

TESTS = """
import pytest, triton_kernels

class TestAll:
    @pytest.mark.parametrize("n", [1, 2])
    def test_passes(self, n): assert triton_kernels.HERE
    def test_fails(self): assert False
    def test_skips(self): pytest.skip("why")

@pytest.fixture
def broken(): raise ValueError
def test_errors(broken): pass
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of made-up code with tests, as if on a GPU."""
    (tmp_path / "triton_kernels" / "moe").mkdir(parents=True)
    (tmp_path / "triton_kernels" / "__init__.py").write_text("HERE = True\n", encoding="utf-8")
    (tmp_path / "tests").mkdir()
    (tmp_path / papertests.TESTS).write_text(TESTS, encoding="utf-8")
    monkeypatch.setenv("TRITONMOE_TRITONMOE_PATH", str(tmp_path))
    monkeypatch.setattr(outcomes, "where", lambda: "some-gpu")
    return tmp_path


def test_they_are_recorded_whatever_becomes_of_them(checkout, tmp_path, capsys):
    results = tmp_path / "results"
    results.mkdir()
    assert papertests.main([f"results={results}"]) == 0
    told = json.loads((results / "paper-tests-some-gpu.json").read_text(encoding="utf-8"))
    assert {name: told[name] for name in ("passed", "failed", "skipped", "where", "checkout")} == {
        "passed": 2, "failed": 2, "skipped": 1, "where": "some-gpu", "checkout": "checkout",
    }  # fmt: skip
    failed = [name.rpartition("::")[2] for name in told["failures"]]
    assert sorted(failed) == ["test_errors", "test_fails"]
    assert "2 passed, 2 failed, 1 skipped on some-gpu" in capsys.readouterr().out
    assert not list(checkout.glob("**/.pytest_cache"))
    assert context.load_outcomes(results).authors.tests == {"some-gpu": {"paper_grid": told}}


@pytest.mark.parametrize(
    ("lacking", "line"),
    [
        ("gpu", "the paper's tests run on a GPU alone, and there is none here"),
        ("checkout", "no checkout of the paper's code with tests/test_moe_dispatch.py: "),
        ("tests", "pytest did not run the tests to their end: code 5, "),
        ("a package", "pytest did not run the tests to their end: code 2, "),
        ("pytest", "pytest did not run the tests to their end: code 1, "),
    ],
)
def test_what_is_lacking_is_one_line(lacking, line, checkout, tmp_path, monkeypatch, capsys):
    if lacking == "gpu":
        monkeypatch.setattr(outcomes, "where", lambda: outcomes.INTERPRETER)
    elif lacking == "checkout":
        monkeypatch.delenv("TRITONMOE_TRITONMOE_PATH")
        monkeypatch.setattr(trees, "FOLDER", tmp_path / "nowhere")
    elif lacking == "pytest":
        (tmp_path / "python").write_text("#!/bin/sh\necho No module named pytest >&2\nexit 1\n", encoding="utf-8")
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    else:
        text = "" if lacking == "tests" else "import no_such_package\n" + TESTS
        (checkout / papertests.TESTS).write_text(text, encoding="utf-8")
    assert papertests.main([f"results={tmp_path}"]) == 1
    assert f"error: {line}" in capsys.readouterr().err
    assert not list(tmp_path.glob("paper-tests*"))


def test_they_decide_the_claims_on_the_authors_code():
    matrix = pd.DataFrame({"kernel": "k", "target": ["sm_80", "gfx942", "gfx942"], "status": ["ok", "ok", "spills"]})
    authors = Outcomes({"nvidia-h200": grid(160, 2)}, matrix, AUTHORS)
    found = {f.claim.id: f for f in decide(Evidence("gpu", outcomes=Outcomes(authors=authors)))}
    tests, portable = (claim_texts(found[name]) for name in ("correctness", "portability"))
    assert (tests.verdict.value, tests.own_verdict.value) == ("undecided", "does not hold")
    assert (tests.own_ratios, tests.own_rows) == ("160 of 162 on nvidia-h200", "paper-tests-nvidia-h200.json")
    assert (portable.verdict.value, portable.own_verdict.value) == ("undecided", "holds in part")
    assert portable.own_ratios == "all of 1 ok for A100, 1 of 2 ok for MI300X"
    assert portable.own_code == "**holds in part** (not run on A100 or MI300X)"
    assert portable.own_rows == "portability_authors.csv: 3 of 3 rows"


def test_the_report_has_a_column_for_them():
    table = outcomes_table({"interpreter": grid(162)}, {"nvidia-h200": grid(161, 1)})
    assert table.rows == [
        ["interpreter", "162 passed", "not recorded", "not recorded"],
        ["nvidia-h200", "not recorded", "not recorded", "161 passed, 1 failed"],
    ]
