"""Collects everything the report says, from the CSVs."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from ..analysis.results import MissingStudy, Results, Study
from ..claims import CLAIMS, Evidence, Finding, Verdict, decide, rules_text
from ..table import columns, store
from . import agreement, ranking, tables
from . import headline as report_headline
from . import portability as report_portability

PAPER = CLAIMS.parent
FIRST_FIGURE, FIELD_FIGURE = "ratio_to_megablocks", "headline"
TITLE = "The TritonMoE paper, reproduced claim by claim"
STUDIES = ("throughput", "headline", "skew", "experts", "stages", "traffic", "decode", "fusion", "heights", "energy")
METHOD = (
    "A row is a whole MoE layer: router, scoring and top-k, dispatch, expert GEMMs, weighted combine. Before a system "
    "is timed its output is checked against one float32 reference; a wrong one is a row with status `incorrect` and no "
    "timing.",
    "Weights are cold. `chain`: one replay holds several forwards over different weights, together larger than the L2 "
    "cache. `flush`: the L2 is flushed before each single forward. The method stands in the row.",
    "`graph` is a CUDA graph, `eager` a plain call. A system that waits for the host cannot be in a graph; its eager "
    "time stands. The best launch mode of a system is the one with the smaller median.",
    "The limit is measured in the same run: the time in which `stream` reads the bytes of the active experts' weights "
    "and does nothing else, or the arithmetic at the measured matrix rate, whichever is longer.",
    "Ratios are formed inside one run only, the newest of each study.",
)
"""How rows come about, in words: experiments/measure.py, timing.py and run.py. Numbers come from the rows."""


def make_context(results: Path, figures: Path, device: str) -> dict[str, Any]:
    """Everything that the templates print."""
    studies = load_studies(results, device)
    frames = {name: study.rows for name, study in studies.items()}
    throughput = frames.get("throughput", pd.DataFrame())
    headline = frames.get("headline", pd.DataFrame())
    tests, portability = load_outcomes(results)
    findings = decide(Evidence(device, frames, tests, portability))
    drawn = find_figures(figures / device, [FIRST_FIGURE, FIELD_FIGURE, *(finding.figure for finding in findings)])
    return {
        "title": TITLE,
        "device": device,
        "summary": summary(device, findings, throughput),
        "findings": findings,
        "rules": rules_text(),
        "figures": drawn,
        "figure_names": {figure["name"] for figure in drawn},
        "first_figure": next((figure for figure in drawn if figure["name"] == FIRST_FIGURE), None),
        "field_figure": next((figure for figure in drawn if figure["name"] == FIELD_FIGURE), None),
        "field_sentences": report_headline.field_sentences(headline),
        "field": report_headline.field_tables(headline),
        "ratios": tables.ratio_tables(throughput),
        "ranking": ranking.ranking_tables({"throughput": throughput, "headline": headline}),
        "portability": report_portability.matrix_table(portability),
        "tests": report_portability.outcomes_table(tests),
        "agreement": agreement.sentences(device, {name: frames[name] for name in agreement.STUDIES if name in frames}),
        "provenance": tables.provenance_table(frames),
        "missing": tables.missing_table(frames),
        "method": list(METHOD),
        "timing_facts": tables.timing_facts(frames, {name: study.record for name, study in studies.items()}),
        "disagreements": tables.disagreements(store.read_table(PAPER / "a100_latency.csv")),
        "hazards": hazards((PAPER / "README.md").read_text(encoding="utf-8")),
        "mark": tables.NOISE_MARK,
    }


def load_studies(results: Path, device: str) -> dict[str, Study]:
    """The current run of every study of the device that has one."""
    source, found = Results(results, device), {}
    for name in STUDIES:
        with contextlib.suppress(MissingStudy):
            found[name] = source.study(name)
    return found


def load_outcomes(results: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Outcomes of the tests by where they ran, and results/portability.csv; each empty if there is none."""
    tests = {path.stem.removeprefix("tests-"): store.read_json(path) for path in results.glob("tests-*.json")}
    portability = results / "portability.csv"
    if not portability.exists():
        return tests, pd.DataFrame()
    return tests, store.read_table(portability, columns.PORTABILITY_COLUMNS)


def summary(device: str, findings: list[Finding], throughput: pd.DataFrame) -> list[str]:
    """Sentences: how many claims have which verdict, the first claim's own, and which systems are the fastest."""
    counts = Counter(finding.verdict for finding in findings)
    verdicts = ", ".join(f"{verdict.counted(counts[verdict])}" for verdict in Verdict if counts[verdict])
    sentences = [f"Of {len(findings)} published claims, on {device}: {verdicts}."]
    if not throughput.empty:
        sentences += [findings[0].sentence, tables.fastest(throughput)]
    return sentences


def find_figures(folder: Path, cited: Iterable[str]) -> list[dict[str, Any]]:
    """name, path and caption of every figure drawn into a folder: the cited ones first, in their order.

    A picture of plots/draw.py carries its title and the studies that it was drawn from; others are left out.
    """
    captions = {path.stem: _caption(path) for path in sorted(folder.glob("*.png"))}
    drawn = {name: caption for name, caption in captions.items() if caption}
    order = dict.fromkeys([*(name for name in cited if name in drawn), *drawn])
    return [{"name": name, "path": folder / f"{name}.png", "caption": drawn[name]} for name in order]


def _caption(path: Path) -> str:
    with Image.open(path) as picture:
        title, studies = picture.info.get("Title"), picture.info.get("Source")
    return f"{title}. {path.parent.name}, from {studies}.csv" if title and studies else ""


def hazards(readme: str) -> list[str]:
    """The list under the heading Hazards."""
    section = readme.split("## Hazards", 1)[1].split("\n## ", 1)[0]
    return [" ".join(item.split()) for item in re.findall(r"^- (.+(?:\n  .+)*)", section, re.MULTILINE)]
