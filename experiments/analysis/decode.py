"""The decode study as its figure and its claims need it: the output-centric path of `fast` over the expert-centric one.

Needs neither matplotlib nor torch.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

OUTPUT, EXPERT = "fastvariant_output_centric", "fastvariant_expert_centric"


def crossing(pairs: pd.DataFrame) -> float | None:
    """Tokens at which the output-centric path stops being the faster one, between two batch sizes; None if nowhere.

    pairs: tokens and ratio, the speed of the output-centric path over the other, of one model; log to log between the
    last batch size that is ahead and the first after it that is not.
    """
    ordered = pairs.sort_values("tokens")
    tokens, ratios = np.log(ordered["tokens"].to_numpy(float)), np.log(ordered["ratio"].to_numpy(float))
    for at in range(len(ratios) - 1):
        if ratios[at] > 0 >= ratios[at + 1]:
            share = ratios[at] / (ratios[at] - ratios[at + 1])
            return float(np.exp(tokens[at] + share * (tokens[at + 1] - tokens[at])))
    return None


def errors(rows: pd.DataFrame) -> pd.DataFrame:
    """The relative error of both paths against the float32 reference: one row per case with both, by model and tokens.

    Columns: model, tokens, output, expert, plain (PyTorch's own computation in the dtype of the case) and ratio, that
    is, expert over output.
    """
    known = rows[(rows["status"] == "ok") & rows["rel_error"].notna()]
    known = known.drop_duplicates(["run_id", "case_hash", "implementation"])
    key = ["run_id", "case_hash"]
    output, expert = (known[known["implementation"] == name] for name in (OUTPUT, EXPERT))
    cases = output.merge(expert[[*key, "rel_error"]], on=key, suffixes=("", "_expert"))
    table = cases[[*key, "model", "tokens"]].assign(
        output=cases["rel_error"], expert=cases["rel_error_expert"], plain=cases["torch_rel_error"]
    )
    return table.assign(ratio=table["expert"] / table["output"]).sort_values(["model", "tokens"]).reset_index(drop=True)
