"""What tests of figures share: the units on their axes, and how their text and lines are found."""

from matplotlib.text import Text

UNITS = {
    "throughput": ["tokens", "% of the\nmeasured limit"],
    "traffic": ["tokens"],
    "traffic_accountings": ["tokens", "saved by fusing (%)", "bytes (GB)"],
    "headline": ["tokens", "fast is faster than the\nbest other system by (%)"],
    "served": ["tokens", "fast is faster than the\nbest other system by (%)"],
    "formats": ["tokens", "latency (µs)"],
    "ranking": ["within this factor of the fastest system", "share of points"],
    "paper_ratios": ["tokens", "speed of the pipeline\nover Megablocks", "speed of fused\nover unfused"],
    "skew": ["Zipf exponent", "experts, of equal parameters", "% of the\nmeasured limit"],
    "ablations": ["tokens", "Zipf exponent", "speed with it / without"],
    "stages": ["share of the stages' sum"],
    "endtoend": ["batch (sequences)", "decode step (ms)", "experts' share\nof the step (%)"],
    "energy": ["tokens", "energy / of reading\nthe weights once", "power (W)"],
    "granular": ["tokens", "beyond reading\nthe weights (µs)"],
}


def texts(figure):
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def printed(figure):
    return " ".join(" ".join(text.get_text() for text in figure.texts).split())


def legend_labels(figure):
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


def line_of(panel, label):
    return next(line for line in panel.lines if line.get_label() == label)
