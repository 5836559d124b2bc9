"""Collects what the report says, from the CSVs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pandas as pd

from ..analysis import own_code
from ..analysis.results import MissingStudy, Results, Study, devices
from ..claims import CLAIMS, DISPUTED, Evidence, Outcomes, decide
from ..table import columns, store
from ..table.outcomes import AUTHORS, HERE
from ..table.provenance import INTERPRETER
from ..workload.config import names
from .section import Material
from .texts import ClaimTexts, claim_texts

STUDIES = (
    "throughput", "headline", "native", "skew", "experts", "stages", "traffic", "decode", "fusion", "heights", "energy",
)  # fmt: skip
"""The studies in the order in which the report names them; others of conf/study/ follow."""
NO_STUDY = ("adhoc", "smoke")
"""What a user asked, and what a machine without a GPU can show: the report leaves them out."""


def make_material(results: Path, figures: Path, device: str) -> Material:
    """Everything that the sections need; `device` is the GPU that decides."""
    outcomes = load_outcomes(results)

    def decided(gpu: str, frames: dict[str, pd.DataFrame], path: Path = CLAIMS) -> list[ClaimTexts]:
        evidence = Evidence(gpu, frames, outcomes, own_code.speedups(gpu))
        return [claim_texts(finding) for finding in decide(evidence, path)]

    studies = load_studies(results, device)
    frames = {name: study.rows for name, study in studies.items()}
    others = {}
    for gpu in devices(results):
        if gpu not in (device, INTERPRETER) and any((results / gpu).glob("*.csv")):
            others[gpu] = {name: study.rows for name, study in load_studies(results, gpu).items()}
    return Material(
        results=results, figures=figures, device=device, studies=studies, others=others, outcomes=outcomes,
        claims=decided(device, frames), disputed=decided(device, frames, DISPUTED),
        other_claims={gpu: decided(gpu, rows) for gpu, rows in others.items()},
    )  # fmt: skip


def load_studies(results: Path, device: str) -> dict[str, Study]:
    """The current run of every study of conf/study/ that the device has one of."""
    source, studies = Results(results, device), {}
    for name in dict.fromkeys([*STUDIES, *(name for name in names("study") if name not in NO_STUDY)]):
        with contextlib.suppress(MissingStudy):
            studies[name] = source.study(name)
    return studies


def load_outcomes(results: Path) -> Outcomes:
    """Outcomes of tests and compilers, here and of the authors' code; each empty if there is none."""
    tests = {place: store.read_json(path) for place, path in HERE.places(results).items()}
    theirs = {place: {"paper_grid": store.read_json(path)} for place, path in AUTHORS.places(results).items()}
    authors = Outcomes(theirs, _matrix(results / AUTHORS.portability), AUTHORS)
    return Outcomes(tests, _matrix(results / HERE.portability), authors=authors)


def _matrix(path: Path) -> pd.DataFrame:
    return store.read_table(path, columns.PORTABILITY_COLUMNS) if path.exists() else pd.DataFrame()
