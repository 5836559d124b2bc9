"""Share of the measured limit against tokens: limit_us / p50_us of every system in its best launch mode."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.names import LIMIT
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.table.limits import BELOW_MARK, below_limit

from .parts import caption, layout, style

NAME = "limit_share"
TITLE = "Share of the measured limit"
STUDIES = ("throughput",)


def draw(results: Results) -> Figure:
    study = results.study("throughput")
    keys = compare.panels(study.rows)
    columns = min(3, len(keys))
    figure, axes = layout.sheet(-(-len(keys) // columns), columns, 1.75, TITLE, used=len(keys))
    best = compare.timed(study.rows, "best")
    best = best[best["limit_us"].notna()]
    best = best.assign(share=best["limit_us"] / best["p50_us"], below=below_limit(best))
    highest = max([1.0, *best.loc[best["below"], "share"]])
    missing = compare.missing(study.rows)
    for panel, key in zip(axes, keys):
        for name in compare.systems(best):
            rows = compare.panel_rows(best, key, name).sort_values("tokens")
            if name != LIMIT:
                layout.plot_system(panel, name, rows["tokens"], rows["share"], rows["launch"] == "eager")
        for row in compare.panel_rows(best[best["below"]], key).itertuples():
            panel.annotate(BELOW_MARK, (row.tokens, row.share), (0, 3), textcoords="offset points", ha="center")
        limit = style.look(LIMIT)
        panel.axhline(1, color=limit.color, linestyle=limit.linestyle)
        panel.set_ylim(0, 1.05 * highest)
        layout.power_axis(panel.xaxis, study.rows["tokens"])
        panel.set_yticks([0, 0.25, 0.5, 0.75, 1])
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.set_title(layout.panel_title(key))
        panel.set_xlabel("tokens")
        panel.set_ylabel("limit / latency (%)")
    layout.mark_missing(
        [
            (panel, compare.panel_rows(missing, key), compare.panel_rows(study.rows, key)["case_hash"].nunique())
            for panel, key in zip(axes, keys)
        ],
        "tokens",
    )
    rates = study.record.get("matrix_tflops", {})
    measured = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in rates.items())
    notes = (
        "Limit: the larger of the time to read the active experts' weights once (stream) and that of the operations at "
        f"the matrix rate, both measured in this run{f' ({measured} TFLOP/s)' if measured else ''}. {layout.FASTER}"
    )
    handles = layout.legend_of([*study.rows["implementation"], LIMIT], missing)
    return layout.finish(figure, handles, caption.text(study, notes, missing))
