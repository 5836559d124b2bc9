"""Kinds of measurement: found by themselves, and told by the columns of a CSV."""

import subprocess
import sys

import pytest

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.experiments.measure.measurement import kind_of, kinds, measurements
from tritonmoe_bench.experiments.table import store
from tritonmoe_bench.experiments.table.columns import names


def test_every_kind_is_found_and_tune_is_none_that_a_sweep_runs():
    assert list(kinds()) == ["layer", "endtoend", "energy", "stages", "trace", "traffic", "tune"]
    assert list(measurements()) == ["layer", "endtoend", "energy", "stages", "trace", "traffic"]


def test_kinds_are_found_without_torch():
    code = (
        "import sys; sys.modules.update(torch=None, triton=None)\n"
        "from tritonmoe_bench.experiments.measure.measurement import kinds; print(*kinds())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=checkout.program_environment(), capture_output=True, encoding="utf-8"
    )
    assert done.stdout.split() == list(kinds()), done.stderr


@pytest.mark.parametrize("kind", kinds())
def test_the_columns_of_a_csv_tell_its_kind(kind):
    columns = names(kinds()[kind].columns)
    assert kind_of(columns).kind == kind
    older = [name for name in columns if name not in ("quant", "activations", "samples")]
    assert kind_of([*older, "code_hash"]).kind == kind


@pytest.mark.parametrize("kind", kinds())
def test_a_failed_row_of_every_kind_may_stand_in_its_csv(kind, tmp_path):
    made = kinds()[kind]
    row = {"run_id": "r", "case_hash": "c", "implementation": "i", "timestamp_utc": "t", "study": "s"}
    row |= made.failed("graph", "error", "it broke\nbadly")
    store.Store(tmp_path / "a.csv", made.columns, made.key).append([row])
    frame = store.read(tmp_path / "a.csv", made.key)
    assert frame["reason"].tolist() == ["it broke badly"]
    assert frame[made.mode_column].tolist() == ["graph"]
    assert len(made.complete(frame)) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "nvidia-h200").glob("*.csv")), ids=lambda path: path.stem)
def test_committed_studies_are_of_their_kind(path):
    kind = path.stem if path.stem in kinds() else "layer"
    assert kind_of(store.header(path)).kind == kind
