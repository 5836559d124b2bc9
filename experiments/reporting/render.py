"""Renders the report and the README's generated block. The report is Markdown; the HTML page is made from that text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..table import store
from .context import make_material
from .section import Material, make_sections
from .sections import answer
from .texts import environment

BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"


def write_report(results: Path, figures: Path, device: str, readme: Path) -> list[Path]:
    """Writes the report into `results` and the block into `readme`; returns what was written.

    The HTML page comes last, so that a missing markdown-it-py (ModuleNotFoundError) costs that alone.
    """
    material = make_material(results, figures, device)
    markdown, html = results / "REPORT.md", results / "report.html"
    text = report_text(material, results)
    store.write_whole(markdown, text)
    written = [markdown]
    if readme.exists() and replace_block(readme, readme_text(material, readme.parent)):
        written.append(readme)
    from .page import to_html

    store.write_whole(html, to_html(text, results))
    return [*written, html]


def report_text(material: Material, base: Path) -> str:
    """The report as Markdown, with links from the folder `base`."""
    return render("report.md.j2", {"sections": make_sections(material, base)})


def readme_text(material: Material, base: Path) -> str:
    """The README's block, with links from the folder `base`."""
    links = {"base": base, "claims_page": "results/REPORT.md", "reference": "results/reference/README.md"}
    return render("readme.md.j2", {"device": material.device, **answer.content(material), **links})


def render(template: str, context: Mapping[str, Any]) -> str:
    """A whole template of templates/ as Markdown."""
    text = environment().get_template(template).render(context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def replace_block(readme: Path, block: str) -> bool:
    """Puts `block` between the markers of a file; false, and nothing changed, if it does not have both, in order."""
    text = readme.read_text(encoding="utf-8")
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        return False
    store.write_whole(readme, text[: begin + len(BEGIN)] + "\n" + block.strip() + "\n" + text[end:])
    return True
