"""The part of a layer that one GPU holds, as a shape of its own."""

from __future__ import annotations

import re
from dataclasses import replace

from .config import PlanError
from .layer import Layer


def shard(model: str, experts: int, top_k: int, ffn: int, tp: int, ep: int) -> tuple[str, int, int]:
    """(label, num_experts, ffn_dim) of what one GPU holds of a layer cut `tp` ways by ffn and `ep` ways by experts.

    Raises PlanError if a cut does not divide the layer, or leaves fewer experts than a token chooses.
    """
    for name, ways, of, whole in (("tp", tp, "ffn_dim", ffn), ("ep", ep, "num_experts", experts)):
        if ways < 1 or whole % ways:
            raise PlanError(f"{name}={ways}: must divide {of}={whole} of {model}")
    if ep > 1 and top_k > experts // ep:
        raise PlanError(
            f"ep={ep}: leaves {experts // ep} of {experts} experts of {model} on a GPU, fewer than top_k={top_k}"
        )
    label = model + f" tp{tp}" * (tp > 1) + f" ep{ep}" * (ep > 1)
    return label, experts // ep, ffn // tp


def uncut(label: str) -> tuple[str, int, int]:
    """(model, tp, ep) of a label that `shard` gave; of any other label itself, uncut."""
    model, tp, ep = re.findall(r"^(.*?)(?: tp(\d+))?(?: ep(\d+))?$", label)[0]
    return model, int(tp or 1), int(ep or 1)


def shared_part(model: str, facts: Layer, tp: int) -> Layer:
    """The facts of a shard: of its shared expert, one of `tp` equal slices. Raises PlanError if it has none."""
    if facts.shared_ffn % tp:
        raise PlanError(f"tp={tp}: must divide shared_ffn={facts.shared_ffn} of {model}")
    return replace(facts, shared_ffn=facts.shared_ffn // tp)
