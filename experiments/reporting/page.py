"""The report as one HTML page, made from its Markdown, that needs nothing else: style and pictures are inside."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

from .texts import environment

CLAIMS_TABLE = "claim"
"""The first head of the table of claims, whose rows become blocks on a narrow screen."""


def to_html(markdown: str, base: Path) -> str:
    """The page of a Markdown text; `base` is the folder that its links to pictures start from."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = parser.parse(markdown)
    _headings(tokens)
    _pictures(tokens, base)
    _tables(tokens)
    title = next(_text(tokens, at) for at, token in enumerate(tokens) if token.tag == "h1")
    sections = [(token.attrs["id"], _text(tokens, at)) for at, token in enumerate(tokens) if "id" in token.attrs]
    body = parser.renderer.render(tokens, parser.options, {})
    return environment().get_template("page.html.j2").render(title=title, sections=sections, body=body)


def _text(tokens: Sequence[Token], at: int) -> str:
    """What stands in the heading or cell that opens at a place."""
    return tokens[at + 1].content


def _headings(tokens: Sequence[Token]) -> None:
    """Each heading of a section gets the id that GitHub would give it."""
    for at, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            words = re.sub(r"[^\w\s-]", "", _text(tokens, at).lower())
            token.attrs["id"] = re.sub(r"\s", "-", words)


def _pictures(tokens: Sequence[Token], base: Path) -> None:
    """The files of pictures go into their addresses."""
    for token in (child for parent in tokens for child in parent.children or []):
        if token.type == "image":
            token.attrs["src"] = f"data:image/png;base64,{_base64(base / str(token.attrs['src']))}"


def _base64(path: Path) -> str:
    """A picture in few colours, a third of its size: plots keep their look."""
    packed = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def _tables(tokens: list[Token]) -> None:
    """Each table may scroll on its own; that of the claims has row heads, the name of its column in each cell, and the
    colour of each verdict."""
    heads: list[str] = []
    for at, token in enumerate(tokens):
        if token.type == "thead_open":
            heads = []
        elif token.type == "th_open":
            heads.append(_text(tokens, at))
        elif token.type == "tr_open":
            place = -1
        elif token.type == "td_open":
            place += 1
            if heads[0] == CLAIMS_TABLE:
                _claim_cell(tokens, at, place, heads[place])
    for at in reversed([at for at, token in enumerate(tokens) if token.type in ("table_open", "table_close")]):
        table = tokens[at]
        if table.type == "table_close":
            tokens.insert(at + 1, Token("html_block", "", 0, content="</div>\n"))
            continue
        claims = _text(tokens, next(i for i in range(at, len(tokens)) if tokens[i].type == "th_open")) == CLAIMS_TABLE
        tokens.insert(at, Token("html_block", "", 0, content=f'<div class="{"claims" if claims else "wide"}">\n'))


def _claim_cell(tokens: Sequence[Token], at: int, place: int, head: str) -> None:
    cell = tokens[at]
    if place == 0:
        close = next(token for token in tokens[at:] if token.type == "td_close")
        cell.tag = close.tag = "th"
        cell.attrs["scope"] = "row"
        return
    cell.attrs["data-label"] = head
    for token in tokens[at + 1].children or []:
        if token.type == "strong_open":
            verdict = _text(tokens, at).split("**")[1]
            token.attrs["class"] = "verdict " + verdict.replace(" ", "_")
