"""What the paper's own code reached on an H200 in a measurement before this harness: results/reference/h200_peers.csv.

It stands beside the rules' verdicts on the pipeline as written here. It has medians of eager forwards, and no more.
"""

from __future__ import annotations

import pandas as pd

from tritonmoe_bench import ROOT

REFERENCE = ROOT / "results" / "reference" / "h200_peers.csv"
REFERENCE_DEVICE = "nvidia-h200"
FUSED, UNFUSED = "tritonmoe_paper_code", "tritonmoe_paper_code_unfused"
OUR_MODELS = {"mixtral": "mixtral", "qwen2": "qwen2_paper", "deepseek": "deepseek_v3"}
"""Our names of the models, by the file's."""


def speedups(device: str) -> pd.DataFrame:
    """At each model and batch size of the reference, at skew 0: columns model, tokens, over_unfused (speed of the fused
    pipeline over the unfused one) and over_megablocks (over the best Megablocks path). Empty for another device."""
    if device != REFERENCE_DEVICE:
        return pd.DataFrame({"model": "", "tokens": 0, "over_unfused": 0.0, "over_megablocks": 0.0}, index=[])
    rows = pd.read_csv(REFERENCE)
    rows = rows[rows["skew"] == 0].assign(model=rows["model"].map(OUR_MODELS))
    wide = rows.pivot_table(index=["model", "tokens"], columns="implementation", values="eager_us").reset_index()
    paths = [name for name in wide if str(name).startswith("megablocks")]
    return pd.DataFrame({
        "model": wide["model"], "tokens": wide["tokens"], "over_unfused": wide[UNFUSED] / wide[FUSED],
        "over_megablocks": wide[paths].min(axis=1) / wide[FUSED],
    })  # fmt: skip
