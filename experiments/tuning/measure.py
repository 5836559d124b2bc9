"""`tune`: what the search for tiles has timed and chosen. Its own command writes it (experiments/tuning/tune.py)."""

from __future__ import annotations

from ..table import columns
from ..table.columns import Column
from ..table.kind import Kind


class Tune(Kind):
    """results/<device>/tune.csv: one row per case, tile of a stage, and round.

    stage ``forward``: whole tiles, timed in turns, a round each; stage ``choice``: what went into the tuned table.
    """

    kind = "tune"
    key = ("case_hash", "implementation", "stage", "config", "round")
    depends = ("workload", "latency", "tune")
    columns = (
        *columns.RUN, *columns.CASE, *columns.IMPLEMENTATION,
        Column("stage", str, "Stage that was timed; `forward` for whole forwards, `choice` for what was chosen."),
        Column("round", float, "Turn of a finalist.", least=0),
        columns.LAUNCH, columns.TIMING_METHOD, *columns.STATUS, *columns.LATENCY,
        Column("routings", float, "Routings of the case, of consecutive seeds, that one sample runs through.", least=0),
        Column("gain", float, "Of a choice: time of the heuristic over that of the fastest rival.", positive=True),
        *columns.ERRORS, *columns.ENVIRONMENT,
    )  # fmt: skip
