"""Words for numbers: every sentence of the README's block, the report and the figures' captions is a template's.

A template is a file of templates/, Markdown with Jinja in it; a macro of it says one thing. `say` gives a macro's text.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from ..analysis.compare import span
from ..analysis.names import model_label
from ..analysis.traffic import ACCOUNTINGS
from ..claims import Finding, Verdict
from ..claims.finding import OwnCode
from ..table.limits import BELOW_MARK

TEMPLATES = Path(__file__).resolve().parent / "templates"
NOISE_MARK = "≈"
"""Before a number that is the same as its neighbour within the noise."""
OLDER_MARK = "†"
"""Behind the number of rows of a run some of which were measured by an older method or revision."""


@dataclass(frozen=True)
class ClaimTexts:
    """What the report prints of one finding.

    title: the claim in a few words; claimed, brief: what is published and measured, in as few; miss: on which side the
    points miss it; own_code, own_ratios, own_rows, own_verdict: what the paper's own code does, by which rows; rule:
    how the verdict is reached; threads: links to where it is disputed; points: as in "3 of 4"; files: of both codes.
    What does not apply is empty.
    """

    id: str
    claim: str
    source: str
    verdict: Verdict
    points: str
    title: str
    claimed: str
    brief: str
    miss: str
    own_code: str
    own_ratios: str
    own_rows: str
    own_verdict: Verdict | None
    measured: str
    sentence: str
    files: tuple[str, ...]
    rows: str
    rule: str
    threads: str
    figure: str


def claim_texts(finding: Finding) -> ClaimTexts:
    """The texts of a finding, from templates/claims/<claim id>.j2. Raises jinja2.TemplateNotFound if there is none."""
    claim, own_sources = finding.claim, finding.own_code.sources if finding.own_code else ()
    template, numbers = f"claims/{claim.id}.j2", {"figures": claim.figures, **claim.constants}
    if finding.lack:
        measured = brief = "-"
        sentence, miss = say("claims.j2", "lack", reason=finding.lack, would=claim.decided_by), ""
    else:
        told = {**numbers, **finding.numbers}
        measured, sentence = (say(template, name, **told) for name in ("measured", "sentence"))
        brief, miss = say_if(template, "brief", measured, **told), say_if(template, "miss", "", **told)
    return ClaimTexts(
        id=claim.id, claim=claim.claim, source=claim.source, verdict=finding.verdict,
        points=f"{finding.held[0]} of {finding.held[1]}" if finding.held else "", measured=measured, sentence=sentence,
        title=say_if(template, "title", claim.id), claimed=say_if(template, "claimed", claim.claim, **numbers),
        brief=brief, miss=miss,
        own_code=_own_code(template, finding.own_code, numbers) if finding.own_code else "",
        own_ratios=_own_ratios(template, finding.own_code, numbers) if finding.own_code else "",
        own_rows=say("claims.j2", "decided_by", sources=own_sources) if own_sources else "",
        own_verdict=finding.own_code.verdict if finding.own_code else None,
        files=tuple(dict.fromkeys(source.file for source in (*finding.sources, *own_sources))),
        rows=say("claims.j2", "decided_by", sources=finding.sources), rule=say(template, "rule", **numbers),
        threads=say("claims.j2", "stated_in", threads=claim.threads), figure=claim.figure,
    )  # fmt: skip


def _own_code(template: str, own: OwnCode, numbers: Mapping[str, Any]) -> str:
    """Its verdict, and what stands behind that in brackets: at how many points, else what the claim's template says."""
    miss = say_if(template, "miss", "", **numbers, **own.numbers) if own.numbers and not own.points[1] else ""
    return say("claims.j2", "own_code", own=own, miss=miss)


def _own_ratios(template: str, own: OwnCode, numbers: Mapping[str, Any]) -> str:
    """As the claim's template tells it of rows of that code, where it has its own macro for it."""
    ratios = say("claims.j2", "own_ratios", own=own)
    return say_if(template, "own", ratios, **numbers, **own.numbers) if own.numbers else ratios


def say(template: str, macro: str, **numbers: Any) -> str:
    """The text of a macro of a template, in one line; the macro sees the numbers by their names."""
    module = environment().get_template(template).make_module(numbers)
    return " ".join(str(getattr(module, macro)()).split())


def say_if(template: str, macro: str, otherwise: str, **numbers: Any) -> str:
    """As `say`, or `otherwise` where the template has no such macro."""
    module = environment().get_template(template).make_module(numbers)
    return say(template, macro, **numbers) if hasattr(module, macro) else otherwise


@functools.cache
def environment() -> jinja2.Environment:
    """Of all templates; a name that a template uses and nobody gives is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # Markdown; `cell` escapes what a table's cell may hold
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {
        "cell": cell, "span": span, "band": _band, "tokens": _tokens, "accounting": ACCOUNTINGS.__getitem__,
        "model": model_label,
        "relative": lambda path, base: Path(os.path.relpath(path, base)).as_posix(),
    }  # fmt: skip
    made.globals |= {"NOISE_MARK": NOISE_MARK, "BELOW_MARK": BELOW_MARK, "OLDER_MARK": OLDER_MARK, "Verdict": Verdict}
    return made


def cell(text: object) -> str:
    """A text as the cell of a Markdown table: in one line, and nothing in it is markup or HTML."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*|\[\]~])", r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"(?<![^\W_])_+|_+(?![^\W_])", lambda run: r"\_" * len(run[0]), line)  # not those inside of a name


def _band(figures: Any) -> str:
    return f"{figures['low']:.2f}–{figures['high']:.2f}"


def _tokens(counts: pd.Series) -> str:
    least, most = counts.min(), counts.max()
    return f"{least} tokens" if least == most else f"{least} to {most} tokens"
