"""The report as one HTML page, made from its Markdown; style, script and pictures are inside."""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

from .texts import environment

CLAIMED = "claimed"
"""A head of the tables of claims, whose rows become blocks on a narrow screen."""


SHOWN = 0.7
"""Width of a picture on the page over its own, where there is room: its letters are then of the text's size."""


@dataclass
class Entry:
    """A heading of a section in the table of contents, and those below it."""

    id: str
    name: str
    below: list[Entry] = field(default_factory=list)


def to_html(markdown: str, base: Path) -> str:
    """The page of a Markdown text; `base` is the folder that its links to pictures start from."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = parser.parse(markdown)
    contents = _headings(tokens)
    _pictures(tokens, base)
    _tables(tokens)
    title = next(_text(tokens, at) for at, token in enumerate(tokens) if token.tag == "h1")
    body = re.sub(r"\n(?=<t[dh]\b)", "", parser.renderer.render(tokens, parser.options, {}))
    return environment().get_template("page.html.j2").render(title=title, contents=contents, body=body)


def _text(tokens: Sequence[Token], at: int) -> str:
    """What stands in the heading or cell that opens at a place."""
    return tokens[at + 1].content


def _headings(tokens: Sequence[Token]) -> list[Entry]:
    """Each heading gets the id that GitHub would give it; returns the sections with their own headings."""
    contents: list[Entry] = []
    taken: dict[str, int] = {}
    for at, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag in ("h2", "h3"):
            slug = re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", _text(tokens, at).lower()))
            again = taken[slug] = taken.get(slug, -1) + 1
            entry = Entry(f"{slug}-{again}" if again else slug, _text(tokens, at))
            token.attrs["id"] = entry.id
            (contents if token.tag == "h2" else contents[-1].below).append(entry)
    return contents


def _pictures(tokens: Sequence[Token], base: Path) -> None:
    """The files of pictures go into their addresses."""
    for token in (child for parent in tokens for child in parent.children or []):
        if token.type == "image":
            path = base / str(token.attrs["src"])
            with Image.open(path) as picture:
                width, height = (round(SHOWN * pixels) for pixels in picture.size)
            kind, packed = _packed(path)
            token.attrs |= {"src": f"data:image/{kind};base64,{base64.b64encode(packed).decode()}", "width": width,
                            "height": height}  # fmt: skip


def _packed(path: Path) -> tuple[str, bytes]:
    """The picture without loss, as it is or as WebP, whichever is smaller.

    quality: how long the encoder searches; 100 takes 50 times as long for 2 % less.
    """
    packed = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(packed, "WEBP", lossless=True, quality=75)
    return ("webp", packed.getvalue()) if packed.tell() < path.stat().st_size else ("png", path.read_bytes())


def _tables(tokens: list[Token]) -> None:
    """Each table may scroll on its own; numbers stand to the right by a class; one of claims has row heads, the name of
    its column in each cell, and the colour of each verdict. Cells end where the next one begins, as HTML allows: their
    end tags would be a tenth of the page."""
    heads: list[str] = []
    for at, token in enumerate(tokens):
        if token.type in ("th_open", "td_open") and token.attrs.pop("style", ""):
            token.attrs["class"] = "n"
        token.hidden |= token.type == "td_close"
        if token.type == "thead_open":
            heads = []
        elif token.type == "th_open":
            heads.append(_text(tokens, at))
        elif token.type == "tr_open":
            place = -1
        elif token.type == "td_open":
            place += 1
            if CLAIMED in heads:
                _claim_cell(tokens, at, place, heads[place])
    for at in reversed([at for at, token in enumerate(tokens) if token.type in ("table_open", "table_close")]):
        if tokens[at].type == "table_close":
            tokens.insert(at + 1, Token("html_block", "", 0, content="</div>\n"))
            continue
        opening = next(i for i in range(at, len(tokens)) if tokens[i].type == "thead_close")
        claims = any(tokens[i].content == CLAIMED for i in range(at, opening))
        tokens.insert(at, Token("html_block", "", 0, content=f'<div class="{"claims" if claims else "wide"}">\n'))
    for token in tokens:
        if token.type == "inline" and token.content.startswith("verdict: "):
            _color_verdicts(token)


def _claim_cell(tokens: Sequence[Token], at: int, place: int, head: str) -> None:
    cell = tokens[at]
    if place == 0:
        close = next(token for token in tokens[at:] if token.type == "td_close")
        cell.tag = close.tag = "th"
        cell.attrs["scope"] = "row"
        return
    cell.attrs["data-label"] = head
    _color_verdicts(tokens[at + 1])


def _color_verdicts(inline: Token) -> None:
    """What is bold in the cell or line is a verdict."""
    children = inline.children or []
    for token, text in itertools.pairwise(children):
        if token.type == "strong_open":
            token.attrs["class"] = "verdict " + text.content.replace(" ", "_")
