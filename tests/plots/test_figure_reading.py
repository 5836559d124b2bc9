"""Every figure, drawn from the synthetic results: that it can be read, and that there are few."""

import itertools

import pytest
from figure_parts import UNITS, texts
from matplotlib.lines import Line2D

from tritonmoe_bench.experiments.analysis.names import SYSTEMS
from tritonmoe_bench.plots.parts import files, layout, lines, style

MOST_FIGURES = 14
"""Of a GPU: more than that nobody looks at."""
ONE_COLUMN = ("throughput", "traffic")


def test_every_figure_is_there_and_they_are_few(drawn):
    assert set(UNITS) <= set(drawn)
    assert len(drawn) <= MOST_FIGURES


@pytest.mark.parametrize("name", UNITS)
def test_axes_are_labelled_with_units(drawn, name):
    labels = [axis.get_label_text() for axes in drawn[name].axes for axis in (axes.xaxis, axes.yaxis)]
    for label in UNITS[name]:
        assert any(label in found for found in labels), (label, labels)


@pytest.mark.parametrize("name", UNITS)
def test_text_is_large_enough_and_inside_the_figure(drawn, name):
    figure = drawn[name]
    renderer = figure.canvas.get_renderer()
    edge = figure.bbox
    # Matplotlib keeps tick labels beyond the limits of their axis, and does not draw them.
    ticks = {id(label) for axes in figure.axes for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]}
    assert figure.get_figwidth() == (layout.COLUMN_IN if name in ONE_COLUMN else layout.WIDTH_IN)
    small = [text for text in texts(figure) if text.get_fontsize() < style.FONT_PT]
    assert [text.get_fontsize() for text in small] == [style.SMALL_PT]
    assert ".csv, run " in small[0].get_text()
    for text in texts(figure):
        box = text.get_window_extent(renderer)
        if id(text) not in ticks:
            assert box.x0 >= edge.x0, text
            assert box.x1 <= edge.x1, text
            assert box.y0 >= edge.y0, text
            assert box.y1 <= edge.y1, text


@pytest.mark.parametrize("name", UNITS)
def test_text_is_inside_the_figure_at_every_resolution_of_a_png(drawn, name):
    figure, own = drawn[name], drawn[name].dpi
    try:
        for share in files.SMALLER:
            figure.set_dpi(share * own)
            for part in (*figure.texts, figure._suptitle, *figure.legends):
                box = part.get_window_extent(figure.canvas.get_renderer())
                assert figure.bbox.x0 <= box.x0, (part, share)
                assert box.x1 <= figure.bbox.x1, (part, share)
    finally:
        figure.set_dpi(own)


@pytest.mark.parametrize("name", ["headline", "served"])
def test_no_number_of_a_stem_stands_on_another(drawn, name):
    figure = drawn[name]
    renderer = figure.canvas.get_renderer()
    for panel in (panel for panel in figure.axes if not panel.images):
        boxes = [text.get_window_extent(renderer) for text in panel.texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(box.x0 >= panel.bbox.x0 for box in boxes)
        assert all(box.y1 <= panel.bbox.y1 for box in boxes)


@pytest.mark.parametrize("name", UNITS)
def test_sentence_legend_and_notes_lie_off_the_panels(drawn, name):
    figure = drawn[name]
    renderer = figure.canvas.get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    lowest, highest = min(box.y0 for box in boxes), max(box.y1 for box in boxes)
    assert figure._suptitle.get_window_extent(renderer).y0 >= highest - 1
    note = max(text.get_window_extent(renderer).y1 for text in figure.texts if text is not figure._suptitle)
    assert note <= lowest + 1
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert box.y1 <= lowest + 1
        assert box.y0 >= note - 1


@pytest.mark.parametrize("name", UNITS)
def test_lines_that_matter_stand_out_from_the_paper(drawn, name):
    """At least 3 to 1, but for the systems that are shown for the range that they span alone."""
    for line in (line for axes in drawn[name].axes for line in axes.lines):
        if line.get_color() != style.GREY:
            assert style.contrast(line.get_color()) >= style.LEAST_CONTRAST, line
    assert style.contrast(style.GREY) > 2


def test_every_look_stands_out_from_the_paper():
    for name in [*SYSTEMS, *(f"system_{index}" for index in range(40))]:
        assert style.contrast(style.look(name).color) >= style.LEAST_CONTRAST, name
    assert all(style.contrast(look.color) >= style.LEAST_CONTRAST for look, _ in lines.KINDS)
    assert all(style.contrast(color) >= style.LEAST_CONTRAST for color, _, _ in style.MODEL_LOOKS)


@pytest.mark.parametrize("name", UNITS)
def test_a_legend_has_what_is_drawn_and_no_more(drawn, name):
    figure = drawn[name]
    handles = [handle for legend in figure.legends for handle in legend.legend_handles if isinstance(handle, Line2D)]
    used = {line.get_color() for axes in figure.axes for line in axes.lines}
    used |= {style.INK}  # what stands for a kind of mark in any colour
    assert {handle.get_color() for handle in handles} <= used
