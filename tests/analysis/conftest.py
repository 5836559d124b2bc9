"""A folder of made-up results, for what is asked of rows."""

from __future__ import annotations

from pathlib import Path

import make_results
import pytest


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    make_results.make_results(folder)
    return folder
