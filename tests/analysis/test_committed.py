"""What a reproduction says about its rows and the committed ones."""

from __future__ import annotations

import pandas as pd
import pytest

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.experiments.analysis import committed


@pytest.fixture(scope="module")
def traffic() -> pd.DataFrame:
    return committed.rows("traffic")


def test_the_same_rows_agree(traffic):
    assert committed.compare("traffic", traffic, traffic.sample(frac=1, random_state=0)) == [
        f"traffic: {len(traffic)} of {len(traffic)} committed rows have the same status and bytes here"
    ]


def test_a_byte_a_lost_row_and_a_new_row_are_told(traffic):
    here = traffic.copy()
    counted = here.index[here["method"] == "interpreter"]
    here.loc[counted[0], "read_bytes"] += 1
    here.loc[counted[0], "revision"] = 7
    here = here.drop(counted[1])
    new = traffic.iloc[[0]].assign(implementation="mine")
    first, *others = committed.compare("traffic", pd.concat([here, new]), traffic)
    total = len(traffic)
    assert first == (
        f"traffic: {total - 2} of {total} committed rows have the same status and bytes here, and 1 rows are new"
    )
    before = traffic.loc[counted[0]]
    assert any(
        f"read_bytes {int(before['read_bytes']) + 1}, committed {int(before['read_bytes'])}" in line for line in others
    )
    assert any("revision 7, committed " in line for line in others)
    assert any(line.endswith(": there is no such row here") for line in others)
    assert len(others) == 2
    assert all(line.startswith(f"  {before['model']} ") for line in others)


def test_a_status_that_changed_is_told_and_few_rows_are_shown():
    rows = committed.rows("smoke")
    lines = committed.compare("smoke", rows.assign(status="incorrect"), rows)
    assert lines[0].startswith(f"smoke: 0 of {len(rows)} committed rows")
    assert len(lines) == 1 + committed.SHOWN
    assert "status incorrect, committed " in lines[1]


def test_the_program_compares_with_the_commit_or_says_that_there_is_none(monkeypatch, capsys):
    text = (committed.ROOT / "results" / "interpreter" / "smoke.csv").read_text(encoding="utf-8")
    monkeypatch.setattr(checkout, "git", lambda folder, *arguments: text.strip() if "smoke" in arguments[-1] else None)
    committed.main()
    _, smoke, traffic = capsys.readouterr().out.splitlines()
    assert smoke.startswith("  smoke: ")
    assert smoke.split()[1] == smoke.split()[3]
    assert traffic == "  traffic: this copy has no commit of its own to compare with"
