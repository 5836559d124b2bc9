"""The report: decides every claim from results/, writes REPORT.md and report.html there, and the README's block.

    python experiments/report.py
    python experiments/report.py --device nvidia-h200 --results results --figures plots/figures

Every number in it comes from a CSV or a JSON of results/; the texts stand in experiments/templates/. Needs neither
torch nor a GPU, and no network, neither to be made nor to be read.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import os
import re
import runpy
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

if not __package__:
    runpy.run_path(str(Path(__file__).resolve().parent / "checkout.py"))

import jinja2
import pandas as pd
from PIL import Image

from tritonmoe_bench.experiments import (
    agreement,
    report_headline,
    report_portability,
    report_ranking,
    report_tables,
    schema,
)
from tritonmoe_bench.experiments.claims import CLAIMS, Evidence, Finding, Verdict, decide, rules_text
from tritonmoe_bench.plots import registry
from tritonmoe_bench.plots.data import MissingStudy, Results, Study, devices, find_device

ROOT = Path(__file__).resolve().parents[1]
PAPER = CLAIMS.parent
TEMPLATES = Path(__file__).resolve().parent / "templates"
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
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


def write_report(results: Path, figures: Path, device: str, readme: Path) -> list[Path]:
    """Writes the report into `results` and the block into `readme`; returns what was written."""
    context = make_context(results, figures, device)
    markdown, html = results / "REPORT.md", results / "report.html"
    _write(markdown, render("report.md.j2", context | {"base": results}))
    _write(html, render("report.html.j2", context))
    written = [markdown, html]
    if readme.exists() and replace_block(readme, render("readme.md.j2", context | {"base": readme.parent})):
        written.append(readme)
    return written


def _write(path: Path, text: str) -> None:
    with schema.writing(path):
        path.write_text(text)


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
        "ratios": report_tables.ratio_tables(throughput),
        "ranking": report_ranking.ranking_tables({"throughput": throughput, "headline": headline}),
        "portability": report_portability.matrix_table(portability),
        "tests": report_portability.outcomes_table(tests),
        "agreement": agreement.sentences(device, {name: frames[name] for name in agreement.STUDIES if name in frames}),
        "provenance": report_tables.provenance_table(frames),
        "missing": report_tables.missing_table(frames),
        "method": list(METHOD),
        "timing_facts": report_tables.timing_facts(frames, {name: study.record for name, study in studies.items()}),
        "disagreements": report_tables.disagreements(schema.read_table(PAPER / "a100_latency.csv")),
        "hazards": hazards((PAPER / "README.md").read_text()),
        "mark": report_tables.NOISE_MARK,
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
    tests = {path.stem.removeprefix("tests-"): schema.read_json(path) for path in results.glob("tests-*.json")}
    portability = results / "portability.csv"
    if not portability.exists():
        return tests, pd.DataFrame()
    return tests, schema.read_table(portability, schema.PORTABILITY_COLUMNS)


def summary(device: str, findings: list[Finding], throughput: pd.DataFrame) -> list[str]:
    """Sentences: how many claims have which verdict, the first claim's own, and which systems are the fastest."""
    counts = Counter(finding.verdict for finding in findings)
    verdicts = ", ".join(f"{verdict.counted(counts[verdict])}" for verdict in Verdict if counts[verdict])
    sentences = [f"Of {len(findings)} published claims, on {device}: {verdicts}."]
    if not throughput.empty:
        sentences += [findings[0].sentence, report_tables.fastest(throughput)]
    return sentences


def render(template: str, context: Mapping[str, Any]) -> str:
    """A template of experiments/templates/, HTML escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: ".html" in (name or ""),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    environment.filters["relative"] = lambda path, base: Path(os.path.relpath(path, base)).as_posix()
    environment.filters["base64"] = _picture_base64
    environment.filters["code"] = lambda text: re.sub(
        r"`([^`]+)`", r"<code>\1</code>", str(jinja2.utils.markupsafe.escape(text))
    )
    return environment.get_template(template).render(context)


def find_figures(folder: Path, cited: Iterable[str]) -> list[dict[str, Any]]:
    """name, path and caption of every figure drawn into a folder: the cited ones first, in their order."""
    pictures = {name: picture for name, picture in registry.figures().items() if (folder / f"{name}.png").exists()}
    order = dict.fromkeys([*(name for name in cited if name in pictures), *pictures])
    return [
        {
            "name": name,
            "path": folder / f"{name}.png",
            "caption": f"{pictures[name].title}. {folder.name}, from {', '.join(pictures[name].studies)}.csv",
        }
        for name in order
    ]


def _picture_base64(path: Path) -> str:
    """A picture in few colours, a third of its size: plots keep their look."""
    packed = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def hazards(readme: str) -> list[str]:
    """The list under the heading Hazards."""
    section = readme.split("## Hazards", 1)[1].split("\n## ", 1)[0]
    return [" ".join(item.split()) for item in re.findall(r"^- (.+(?:\n  .+)*)", section, re.MULTILINE)]


def replace_block(readme: Path, block: str) -> bool:
    """Puts `block` between the markers of a file; false, and nothing changed, if it does not have both, in order."""
    text = readme.read_text()
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        return False
    _write(readme, text[: begin + len(BEGIN)] + "\n" + block.strip() + "\n" + text[end:])
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the CSVs, and of the report")
    parser.add_argument("--figures", type=Path, default=ROOT / "plots" / "figures", help="folder of the figures")
    parser.add_argument("--device", default=None, help="folder name of the GPU; default: the one with the newest rows")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file with the claims markers")
    arguments = parser.parse_args()
    some = arguments.device is not None or devices(arguments.results)
    device = find_device(arguments.results, arguments.device) if some else "no device"
    for path in write_report(arguments.results, arguments.figures, device, arguments.readme):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
