"""The paper's own 162 correctness cases: one test of ours for each row of results/paper/test_grid.csv.

What a row asserts follows from its name and its numbers. The dtype is the paper's, fp16. Tokens, experts and top_k are
the row's, and so is hidden_dim where the row or, for routing and permuting, its model gives one. Expert GEMMs run with
hidden and ffn sizes scaled down to 128, for the rows of a real model to 1/32 of its own: the interpreter has two cores.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from paper_grid import experts, permuting, routing  # noqa: F401  (they register their checks)
from paper_grid.rows import CHECKS, read_rows

ROWS = read_rows()


@pytest.mark.paper_grid
@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_paper_grid(row, device):
    CHECKS[row.case](replace(row, device=device))


def test_the_grid_is_the_paper_s():
    assert len(ROWS) == 162
    assert len({row.id for row in ROWS}) == 162
    assert {row.case for row in ROWS} == set(CHECKS)
