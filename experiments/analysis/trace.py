"""The study `trace` as its table needs it: what a forward spends on routing, on its experts, and on their outputs.

Needs neither matplotlib nor torch.
"""

from __future__ import annotations

import pandas as pd

from ..measure.trace import APART, beyond
from ..table.card_speed import CARD_US, slower
from .names import LIMIT

EXPERT_KERNELS = ("gate_up", "down", "joined", "one_grid", "fused_moe")
"""What the names of kernels that read experts' weights hold."""
PARTS = ("routing", "experts", "outputs")
CASE = ["run_id", "case_hash"]
POINT = [*CASE, "model", "dtype", "num_experts", "top_k", "hidden_dim", "ffn_dim", "seed", "tokens",
         "skew"]  # fmt: skip


def parts(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per case and system whose kernels say where the experts begin and end: times of a forward's parts, in us.

    Columns beside those of the case: routing, all before the first kernel that reads experts' weights; experts, from
    there to the last one, less the reading as the system's card does it (`card_speed`); outputs, all behind; reading,
    the kernel of `stream` in the same run; kernels, how many there are; apart, whether all of them together are not the
    forward as it is without tracing.
    """
    traced = rows[(rows["status"] == "ok") & rows["p50_us"].notna()]
    card = [CARD_US] if CARD_US in rows else []
    stream = traced.loc[traced["implementation"] == LIMIT, [*CASE, "p50_us", *card]]
    found = []
    both = traced[traced["implementation"] != LIMIT].merge(stream, on=CASE, suffixes=("", "_other"))
    both["here"] = both["p50_us_other"] * slower(both)
    for key, kernels in both.groupby([*POINT, "implementation"], sort=False):
        kernels = kernels.sort_values("place")
        reads = kernels["kernel_name"].map(lambda name: any(word in name for word in EXPERT_KERNELS)).to_numpy()
        if not reads.any():
            continue
        reading, here = (float(kernels[name].iloc[0]) for name in ("p50_us_other", "here"))
        times = kernels["p50_us"].to_numpy(float)
        first, last = reads.argmax(), len(reads) - reads[::-1].argmax()
        routing, experts, outputs = times[:first].sum(), times[first:last].sum(), times[last:].sum()
        apart = abs(beyond(times.sum(), float(kernels["forward_us"].iloc[0]))) > APART
        found.append([*key, routing, experts - here, outputs, reading, len(times), apart])
    return pd.DataFrame(found, columns=[*POINT, "implementation", *PARTS, "reading", "kernels", "apart"])
