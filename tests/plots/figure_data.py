"""What a figure shows, as a digest that neither layout nor wording changes: places of artists and printed numbers.

python tests/plots/figure_data.py     records tests/fixtures/committed/figures.json anew, from the committed rows
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedFormatter

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "committed" / "figures.json"
NUMBER = r"(?<![\w.\-])\d+(?:[.,]\d+)*(?=x?\b)"


def digest(figure: Figure) -> dict[str, str]:
    """Hashes of all that is drawn at places of the data, and of the numbers that panels and caption print.

    Artists of a panel count in any order. What stands at a share of the panel (marks of missing points) counts with its
    place along the x axis alone.
    """
    panels = [_panel(axes) for axes in figure.axes if axes.get_visible()]
    texts = [[*_fixed(axes), *sorted(map(_text, axes.texts))] for axes in figure.axes if axes.get_visible()]
    printed = sorted(re.findall(NUMBER, " ".join(text.get_text() for text in figure.texts)))
    return {"artists": _hash(panels), "texts": _hash(texts), "caption": _hash(printed)}


def _panel(axes: Axes) -> list[list[Any]]:
    found: list[list[Any]] = []
    for line in axes.lines:
        x, y = _numbers(line.get_xdata()), _numbers(line.get_ydata())
        found.append(["line", x, y if line.get_transform() == axes.transData else []])
    for patch in axes.patches:
        if patch.get_data_transform() == axes.transData:
            found.append(["patch", _numbers(patch.get_patch_transform().transform(patch.get_path().vertices))])
    for collection in axes.collections:
        found += [["path", _numbers(path.vertices)] for path in collection.get_paths()]
    found += [["image", _numbers(np.ma.filled(image.get_array(), np.nan))] for image in axes.images]
    return sorted(found, key=json.dumps)


def _numbers(values: Any) -> list[str]:
    return [f"{value:.8g}" for value in np.asarray(values, float).ravel()]


def _text(text: Text) -> str:
    """A text of a panel and the place of the data at which it stands: its numbers, or all of it where it has none."""
    words = text.get_text()
    at = text.xy if isinstance(text, Annotation) else text.get_position()
    of_data = text.xycoords == "data" if isinstance(text, Annotation) else text.get_transform() == text.axes.transData
    return json.dumps([" ".join(re.findall(NUMBER, words)) or words, _numbers(at) if of_data else []])


def _fixed(axes: Axes) -> list[list[str]]:
    """The names along an axis of cells or bars."""
    formatters = [axis.get_major_formatter() for axis in (axes.xaxis, axes.yaxis)]
    return [list(formatter.seq) for formatter in formatters if isinstance(formatter, FixedFormatter)]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def committed() -> dict[str, dict[str, str]]:
    """The digest of every figure for which there are committed rows, drawn from them."""
    import matplotlib
    from matplotlib import pyplot

    from tritonmoe_bench import ROOT
    from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results
    from tritonmoe_bench.plots.parts import registry

    matplotlib.use("Agg")
    found = {}
    for name, picture in registry.figures().items():
        with contextlib.suppress(MissingStudy):
            found[name] = digest(picture.draw(Results(ROOT / "results", "nvidia-h200")))
        pyplot.close("all")
    return found


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(committed(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {FIXTURE}")
