"""What the traffic model says of whole pipelines, for tests: the share of bytes that fusing saves, by accounting."""

from tritonmoe_bench.experiments.traffic.model_paper import pipeline_traffic, total

WEIGHTS = ("router_weight", "gate_up_weights", "gate_weights", "up_weights", "down_weights")
ACTIVATIONS = ("x", "permuted", "gate", "up", "intermediate", "expert_out", "output")
METADATA = ("logits", "correction_bias", "topk_scores", "topk_experts", "schedule")


def saving(case, counts, tiles, accounting):
    """1 - bytes of the fused pipeline over those of the unfused one: 0.35 is 35 %.

    accounting: ``activations``, each tensor of `ACTIVATIONS` once a stage, as the paper estimates; ``unique``, all
    tensors once a stage; ``issued``, all accesses.
    """
    moved = {}
    for name in ("paper_fused", "paper_unfused"):
        seen = total(pipeline_traffic(name, case, counts, tiles), ACTIVATIONS if accounting == "activations" else None)
        moved[name] = seen.read + seen.write if accounting == "issued" else seen.unique_read + seen.unique_write
    return 1 - moved["paper_fused"] / moved["paper_unfused"]
