"""Does it carry over? The order of the systems, the lead of `fast` and the verdicts on every GPU, side by side."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ...analysis.across import Carried, carried
from ...analysis.names import label_of, model_label, models_in_order
from .. import lead
from ..section import Material
from ..tables import Table

TITLE, ORDER = "Other GPUs", 25


def content(material: Material) -> dict[str, Any] | None:
    if not material.others:
        return None
    verdicts = Table("Verdicts", ["claim", *material.gpus], text=range(1 + len(material.gpus)))
    columns = [material.claims, *material.other_claims.values()]
    for claims in zip(*columns):
        verdicts.rows.append([claims[0].title, *(claim.verdict.value for claim in claims)])
    leads = {
        gpu: lead.standings(studies["headline"])["every"]
        for gpu, studies in material.gpus.items()
        if "headline" in studies and lead.standings(studies["headline"])
    }
    compared = {gpu: carried(material.frames, studies) for gpu, studies in material.others.items()}
    return {
        "verdicts": verdicts, "leads": leads,
        "carried": {
            gpu: (found, _systems(found, material.device, gpu), _leads(found.leads, material.device, gpu))
            for gpu, found in compared.items() if found
        },
    }  # fmt: skip


def _systems(found: Carried, device: str, gpu: str) -> Table:
    """A row for each system: how far it is behind the fastest of a point, in the mean, on both GPUs."""
    table = Table("Systems", ["system", "points", device, gpu], text=(0,))
    for row in found.systems.to_dict("records"):
        table.rows.append([
            label_of(row["implementation"]), str(row["points"]), f"{row['one']:.2f}", f"{row['two']:.2f}",
        ])  # fmt: skip
    return table


def _leads(leads: pd.DataFrame, device: str, gpu: str) -> Table:
    """A row for each model and batch size: by how much `fast` is ahead on both GPUs, and of whom."""
    table = Table("Leads", ["model", "format", "tokens", "skew", device, "of", gpu, "of"], text=(0, 1, 5, 7))
    models = models_in_order(leads["model"])
    order = leads.assign(place=leads["model"].map(models.index), native=leads["layer"] == "native")
    order = order.sort_values(["native", "place", "quant", "tokens", "skew", "case_hash"], kind="stable")
    for row in order.to_dict("records"):
        table.rows.append([
            model_label(row["model"]) + ", native" * row["native"], row["quant"], str(row["tokens"]),
            f"{row['skew']:g}", _lead(row["lead"], row["tie"]), label_of(row["other"]),
            _lead(row["lead_two"], row["tie_two"]), label_of(row["other_two"]),
        ])  # fmt: skip
    return table


def _lead(per_cent: float, tie: bool) -> str:
    return "tie" if tie else f"{per_cent:+.0f} %"
