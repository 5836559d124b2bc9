"""A figure as the bytes of its files, which the rows alone decide: no dates in them."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .registry import Picture

COLORS = 64
"""At most so many in a PNG's palette."""
APART = 16
"""Between two colours of a palette, of the 441 from black to white."""
MOST_BYTES = 100_000
SMALLER = (1, 0.9, 0.8, 0.7, 0.6)
"""Shares of the pixels across, of which a PNG has the first with which it is no larger than MOST_BYTES."""


def png(figure: Figure, picture: Picture, dpi: int) -> bytes:
    """The figure as pixels of few colours; `dpi` 0 is the figure's own. The report reads the texts that it carries:
    Title (what is shown), Description (the sentence above it) and Source (the studies)."""
    texts = PngInfo()
    for key, text in (
        ("Title", picture.title),
        ("Description", " ".join(figure.get_suptitle().split())),
        ("Source", ", ".join(picture.studies)),
    ):
        texts.add_itxt(key, text)
    for share in SMALLER:
        drawn, packed = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=share * (dpi or figure.dpi))
        with Image.open(drawn) as pixels:
            few = _few_colors(pixels.convert("RGB"))
        few.save(packed, "PNG", optimize=True, pnginfo=texts)
        if packed.tell() <= MOST_BYTES:
            break
    return packed.getvalue()


def _few_colors(pixels: Image.Image) -> Image.Image:
    """The picture with a palette of the colours that most pixels have, each `APART` from the others.

    So small marks keep their colour, and letters smooth edges. Every other colour becomes the nearest of them.
    """
    parts = np.asarray(pixels, dtype=np.int64)
    packed = (parts[..., 0] << 16) | (parts[..., 1] << 8) | parts[..., 2]
    colors, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    rgb = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1)
    palette: list[np.ndarray] = []
    for color in rgb[np.argsort(-counts, kind="stable")]:
        if all(np.sum((color - other) ** 2) >= APART**2 for other in palette):
            palette.append(color)
        if len(palette) == COLORS:
            break
    nearest = np.argmin(((rgb[:, None, :] - np.array(palette)[None]) ** 2).sum(axis=2), axis=1)
    few = Image.fromarray(nearest[inverse].reshape(packed.shape).astype(np.uint8), "P")
    few.putpalette([int(part) for color in palette for part in color])
    return few


def pdf(figure: Figure, picture: Picture, dpi: int) -> bytes:
    """The figure for print, with text as text."""
    drawn, engine, canvas = io.BytesIO(), figure.get_layout_engine(), figure.canvas
    FigureCanvasPdf(figure)
    figure.draw_without_rendering()  # lays it out by the sizes that texts have in this format
    figure.set_canvas(canvas)
    figure.set_layout_engine("none")
    for axes in figure.axes:  # the solver of the layout leaves last digits to the order in which a process hashes
        left, bottom, width, height = (round(part, 6) for part in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))
    figure.savefig(drawn, format="pdf", metadata={"CreationDate": None, "Title": picture.title})
    figure.set_layout_engine(engine)
    return drawn.getvalue()
