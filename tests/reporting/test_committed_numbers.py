"""No change of the code changes a number that README and report give of the committed rows.

When rows were measured again: `make report && python tests/reporting/committed_numbers.py`, and read the difference.
"""

import shutil

import committed_numbers
import pandas as pd
import pytest

from tritonmoe_bench import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recorded():
    return committed_numbers.FIXTURE.read_text(encoding="utf-8").splitlines()


def test_the_committed_readme_and_report_give_the_recorded_numbers(recorded):
    assert committed_numbers.of_checkout(ROOT) == recorded


def test_the_committed_rows_give_the_recorded_numbers_and_in_another_order_the_same_text(recorded, tmp_path):
    block, report = committed_numbers.rendered(ROOT / "results", ROOT)
    assert committed_numbers.lines(block, "README") + committed_numbers.lines(report, "REPORT") == recorded

    shutil.copytree(ROOT / "results", tmp_path / "results")
    for path in (tmp_path / "results").glob("*/*.csv"):
        if path.parent.name not in ("paper", "reference"):
            pd.read_csv(path, dtype="string").sample(frac=1, random_state=7).to_csv(path, index=False)
    portability = tmp_path / "results" / "portability.csv"
    pd.read_csv(portability, dtype="string").sample(frac=1, random_state=7).to_csv(portability, index=False)
    assert committed_numbers.rendered(tmp_path / "results", ROOT) == (block, report)


def test_the_page_leaves_room_for_a_second_gpu():
    assert (ROOT / "results" / "report.html").stat().st_size < 1_450_000


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Over 40 points it is 1.11 (1.00–1.65).", "REPORT > S: 1.00 1.11 1.65 40"),
        (
            "At 40 points it runs at 1.11x (1.00x to 1.65x), bf16, Qwen3-30B-A3B on an H200.",
            "REPORT > S: 1.00 1.11 1.65 40",
        ),
        ("| a | b |\n| --- | ---: |\n| 32 | vllm_tuned ≈12.5 |", "REPORT > S > 32 | vllm_tuned 12.5"),
        ("- skew: 12 rows", "REPORT > S > skew: 12"),
    ],
)
def test_numbers_are_found_whatever_the_words(text, numbers):
    assert committed_numbers.lines(f"## S\n\n{text}\n", "REPORT") == [numbers]
