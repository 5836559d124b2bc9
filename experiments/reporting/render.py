"""Renders the report and the README's generated block."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from ..table import store
from .context import make_context

TEMPLATES = Path(__file__).resolve().parent / "templates"
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"


def write_report(results: Path, figures: Path, device: str, readme: Path) -> list[Path]:
    """Writes the report into `results` and the block into `readme`; returns what was written."""
    context = make_context(results, figures, device)
    markdown, html = results / "REPORT.md", results / "report.html"
    store.write_whole(markdown, render("report.md.j2", context | {"base": results}))
    store.write_whole(html, render("report.html.j2", context))
    written = [markdown, html]
    if readme.exists() and replace_block(readme, render("readme.md.j2", context | {"base": readme.parent})):
        written.append(readme)
    return written


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


def _picture_base64(path: Path) -> str:
    """A picture in few colours, a third of its size: plots keep their look."""
    packed = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def replace_block(readme: Path, block: str) -> bool:
    """Puts `block` between the markers of a file; false, and nothing changed, if it does not have both, in order."""
    text = readme.read_text(encoding="utf-8")
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        return False
    store.write_whole(readme, text[: begin + len(BEGIN)] + "\n" + block.strip() + "\n" + text[end:])
    return True
