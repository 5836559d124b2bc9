"""Collects everything the report says, from the CSVs."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from ..analysis import own_code
from ..analysis.age import older_methods, older_revisions
from ..analysis.results import MissingStudy, Results, Study
from ..claims import CLAIMS, DISPUTED, Evidence, decide
from ..measure.revisions import lock_hash
from ..table import columns, store
from ..workload.config import names
from . import agreement, endtoend, ranking, tables
from . import headline as report_headline
from . import portability as report_portability
from .texts import claim_texts, say

PAPER = CLAIMS.parent
FIRST_FIGURE, FIELD_FIGURE = "throughput", "headline"
STUDIES = (
    "throughput",
    "headline",
    "native",
    "skew",
    "experts",
    "stages",
    "traffic",
    "decode",
    "fusion",
    "heights",
    "energy",
)
"""The studies in the order in which the report names them; others of conf/study/ follow."""
NO_STUDY = ("adhoc", "smoke")
"""What a user asked, and what a machine without a GPU can show: the report leaves them out."""


def make_context(results: Path, figures: Path, device: str) -> dict[str, Any]:
    """Everything that the templates print."""
    studies = load_studies(results, device)
    frames = {name: study.rows for name, study in studies.items()}
    throughput = frames.get("throughput", pd.DataFrame())
    headline, native = (frames.get(name, pd.DataFrame()) for name in ("headline", "native"))
    tests, portability = load_outcomes(results)
    evidence = Evidence(device, frames, tests, portability, own_code.speedups(device))
    findings, disputed = ([claim_texts(finding) for finding in decide(evidence, path)] for path in (CLAIMS, DISPUTED))
    older = older_methods(frames) + older_revisions(frames)
    records = {name: study.record for name, study in studies.items()}
    return {
        "device": device,
        "verdicts": Counter(finding.verdict for finding in findings),
        "fastest": {} if throughput.empty else tables.winners(throughput),
        "findings": findings,
        "disputed": disputed,
        "figures": find_figures(
            figures / device, [FIRST_FIGURE, FIELD_FIGURE, *(f.figure for f in [*findings, *disputed])]
        ),
        "first_figure": FIRST_FIGURE,
        "field_figure": FIELD_FIGURE,
        "field_sentences": report_headline.field_sentences(headline),
        "field": report_headline.field_tables(headline),
        "native_sentence": report_headline.native_sentence(native),
        "native": report_headline.native_tables(native),
        "ratios": tables.ratio_tables(throughput),
        "ranking": ranking.ranking_tables({"throughput": throughput, "headline": headline}),
        "endtoend": endtoend.endtoend_tables(frames.get("endtoend", pd.DataFrame())),
        "portability": report_portability.matrix_table(portability),
        "tests": report_portability.outcomes_table(tests),
        "agreement": agreement.sentences(device, {name: frames[name] for name in agreement.STUDIES if name in frames}),
        "provenance": tables.provenance_table(frames, {study for entry in older for study in entry.studies}),
        "older_rows": older_rows(frames),
        "missing": tables.missing_table(frames),
        "timing": [(fact["study"], _timing_texts(fact)) for fact in tables.timing_facts(frames, records)],
        "disagreements": tables.disagreements(store.read_table(PAPER / "a100_latency.csv")),
        "hazards": hazards((PAPER / "README.md").read_text(encoding="utf-8")),
    }


def load_studies(results: Path, device: str) -> dict[str, Study]:
    """The current run of every study of conf/study/ that the device has one of."""
    source, studies = Results(results, device), {}
    for name in dict.fromkeys([*STUDIES, *(name for name in names("study") if name not in NO_STUDY)]):
        with contextlib.suppress(MissingStudy):
            studies[name] = source.study(name)
    return studies


def load_outcomes(results: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Outcomes of the tests by where they ran, and results/portability.csv; each empty if there is none."""
    tests = {path.stem.removeprefix("tests-"): store.read_json(path) for path in sorted(results.glob("tests-*.json"))}
    portability = results / "portability.csv"
    if not portability.exists():
        return tests, pd.DataFrame()
    return tests, store.read_table(portability, columns.PORTABILITY_COLUMNS)


def older_rows(frames: Mapping[str, pd.DataFrame]) -> str:
    """The paragraph on the rows that the code has left behind, by name, and the lock of the code."""
    return say(
        "age.j2", "older_rows", methods=older_methods(frames), revisions=older_revisions(frames), lock=lock_hash()
    )  # fmt: skip


def _timing_texts(fact: dict[str, Any]) -> list[str]:
    texts = [say("timing.j2", macro, fact=fact) for macro in ("latencies", "rates", "drift")]
    return [text for text in texts if text]


def find_figures(folder: Path, cited: Iterable[str]) -> list[dict[str, Any]]:
    """name, path and caption of every figure drawn into a folder: the cited ones first, in their order.

    A picture of plots/draw.py carries what its rows say and the studies that it was drawn from; others are left out.
    """
    captions = {path.stem: _caption(path) for path in sorted(folder.glob("*.png"))}
    drawn = {name: caption for name, caption in captions.items() if caption}
    order = dict.fromkeys([*(name for name in cited if name in drawn), *drawn])
    return [{"name": name, "path": folder / f"{name}.png", "caption": drawn[name]} for name in order]


def _caption(path: Path) -> str:
    with Image.open(path) as picture:
        info = picture.info
    title, studies = info.get("Description") or info.get("Title"), info.get("Source")
    return f"{title}. {path.parent.name}, from {studies.replace(', ', '.csv, ')}.csv" if title and studies else ""


def hazards(readme: str) -> list[str]:
    """The list under the heading Hazards."""
    section = readme.split("## Hazards", 1)[1].split("\n## ", 1)[0]
    return [" ".join(item.split()) for item in re.findall(r"^- (.+(?:\n  .+)*)", section, re.MULTILINE)]
