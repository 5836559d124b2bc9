"""The Triton launches of our forwards, by kernel: to which stage each belongs, and which tensor each argument is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple


class Known(NamedTuple):
    """A launch of a pipeline: its kernel, its stage, and the tensor that each of its arguments is."""

    kernel: str
    stage: str
    tensors: dict[str, str]


_BLOCKS = {"block_expert": "schedule", "block_row": "schedule", "offsets": "schedule"}
_SCORE = Known(
    "_score_topk_kernel", "router", {"logits": "logits", "weights": "topk_scores", "experts": "topk_experts"}
)
_SORT = Known("_sort_slots_kernel", "permute", {"experts": "topk_experts", "order": "schedule", "offsets": "schedule"})
_LIST = Known("_list_blocks_kernel", "permute", _BLOCKS)
_PERMUTE = Known(
    "_permute_kernel", "permute", {"x": "x", "order": "schedule", "rows": "permuted", "row_of_slot": "schedule"}
)
_GATE_UP = Known(
    "_fused_gate_up_kernel", "gate_up",
    {"rows": "permuted", "gate_up": "gate_up_weights", "hidden": "intermediate", **_BLOCKS},
)  # fmt: skip
_SILU_MUL = Known("_silu_mul_kernel", "silu_mul", {"gate": "gate", "up": "up", "hidden": "intermediate"})
_COMBINE = Known(
    "_unpermute_combine_kernel", "unpermute_combine",
    {"expert_out": "expert_out", "row_of_slot": "schedule", "weights": "topk_scores", "y": "output"},
)  # fmt: skip


def _grouped_gemm(stage: str, rows: str, out: str, **more: str) -> Known:
    tensors = {"rows": rows, "weights": f"{stage}_weights", "out": out, **_BLOCKS, **more}
    return Known("_grouped_gemm_kernel", stage, tensors)


_DOWN = _grouped_gemm("down", "intermediate", "expert_out", order="schedule", scores="topk_scores")

_ROUTED = {"weights": "topk_scores", "experts": "topk_experts"}
_LOGITS = {"x": "x", "router_weight": "router_weight", "logits": "logits"}
_FAST_LOGITS = (
    (Known("_few_logits_kernel", "router", _LOGITS),),
    (Known("_split_logits_kernel", "router", _LOGITS),),
    (),  # PyTorch's GEMM
)
_FAST_TOP_K = Known(
    "_top_k_kernel", "router",
    {"logits": "logits", "bias": "correction_bias", "arrivals": "schedule", **_ROUTED},
)  # fmt: skip
_TABLE = {"order": "schedule", "table": "schedule"}
_FAST_EXPERTS = (
    (
        Known("_place_kernel", "schedule", {"experts": "topk_experts", "arrivals": "schedule", **_TABLE}),
        Known("_gate_up_kernel", "gate_up",
              {"x": "x", "gate_up": "gate_up_weights", "hidden": "intermediate", **_TABLE}),
        Known("_down_kernel", "down",
              {"hidden": "intermediate", "down": "down_weights", "out": "expert_out", "weights": "topk_scores",
               **_TABLE}),
        Known("_combine_kernel", "combine", {"out": "expert_out", "weights": "topk_scores", "y": "output"}),
    ),
    (
        Known("_few_gate_up_kernel", "gate_up",
              {"x": "x", "gate_up": "gate_up_weights", "scales": "gate_up_weights", "hidden": "intermediate",
               **_ROUTED}),
        Known("_few_down_kernel", "down",
              {"hidden": "intermediate", "down": "down_weights", "scales": "down_weights", "y": "output", **_ROUTED}),
    ),
)  # fmt: skip
_COMBINE_FAST = _FAST_EXPERTS[0][3]
_JOINED_TENSORS = {"gate_up": "gate_up_weights", "gate_up_scales": "gate_up_weights", "hidden": "intermediate",
                   "hidden_scales": "intermediate", "down": "down_weights", "down_scales": "down_weights",
                   "out": "expert_out", "experts": "topk_experts", "down_weights": "topk_scores",
                   "arrivals": "schedule"}  # fmt: skip


def _joined(rows: str) -> tuple[Known, ...]:
    """Both GEMMs in one launch; rows: x as it is, or as `_QUANTIZE` and `_REORDER` make it."""
    return Known("_joined_kernel", "experts", {"x": rows, "x_scales": rows, **_JOINED_TENSORS}), _COMBINE_FAST


def _one_grid(rows: str) -> tuple[Known, ...]:
    """Both GEMMs in one launch, behind a schedule; rows: as in `_joined`."""
    tensors = {"x": rows, "x_scales": rows, **_JOINED_TENSORS, **_TABLE}
    return _FAST_EXPERTS[0][0], Known("_one_grid_kernel", "experts", tensors), _COMBINE_FAST


_QUANTIZE = Known("_quantize_rows_kernel", "quantize", {"x": "x", "values": "rows", "scales": "rows"})


def _fp8_experts(rows: str) -> tuple[Known, ...]:
    """Over weights in fp8_block, and rows of that name: x of 16 bits, which has no scales, or `_QUANTIZE`'s."""
    place, _, _, combine = _FAST_EXPERTS[0]
    # Where activations have no scales, the kernels get the weights' in their place, which count under the last name.
    x_scales, hidden_scales = (rows, "intermediate") if rows == "rows" else ("gate_up_weights", "gate_up_weights")
    gate_up = {"x": rows, "x_scales": x_scales, "gate_up": "gate_up_weights", "gate_up_scales": "gate_up_weights",
               "hidden": "intermediate", "hidden_scales": hidden_scales, **_TABLE}  # fmt: skip
    down = {"hidden": "intermediate", "hidden_scales": "intermediate" if rows == "rows" else "down_weights",
            "down": "down_weights", "down_scales": "down_weights", "out": "expert_out", "weights": "topk_scores",
            **_TABLE}  # fmt: skip
    return place, Known("_gate_up_fp8_kernel", "gate_up", gate_up), Known("_down_fp8_kernel", "down", down), combine


_REORDER = Known("_permute_kernel", "reorder", {"x": "x", "permuted": "rows"})
_GATE_UP_W4, _DOWN_W4 = (
    Known("_gate_up_w4_kernel", "gate_up",
          {"x": "rows", "gate_up": "gate_up_weights", "scales": "gate_up_weights", "hidden": "intermediate", **_TABLE}),
    Known("_down_w4_kernel", "down",
          {"hidden": "intermediate", "down": "down_weights", "scales": "down_weights", "out": "expert_out",
           "weights": "topk_scores", **_TABLE}),
)  # fmt: skip
_W4_EXPERTS = (_FAST_EXPERTS[0][0], _GATE_UP_W4, _DOWN_W4, _FAST_EXPERTS[0][3])
_PLANES = Known("_planes_kernel", "reorder", {"x": "x", "planes": "rows"})
_FEW_W4_EXPERTS = (
    Known("_few_gate_up_w4_kernel", "gate_up",
          {"planes": "rows", "gate_up": "gate_up_weights", "scales": "gate_up_weights", "hidden": "intermediate",
           **_ROUTED}),
    Known("_few_down_w4_kernel", "down",
          {"hidden": "intermediate", "down": "down_weights", "scales": "down_weights", "y": "output", **_ROUTED}),
)  # fmt: skip


LAUNCHES: dict[str, tuple[tuple[Known, ...], ...]] = {
    "paper_fused": ((_SCORE, _PERMUTE, _GATE_UP, _DOWN, _COMBINE),),
    "paper_fused_graph": ((_SCORE, _SORT, _LIST, _PERMUTE, _GATE_UP, _DOWN, _COMBINE),),
    "paper_unfused": (
        (
            _SCORE, _PERMUTE, _grouped_gemm("gate", "permuted", "gate"), _grouped_gemm("up", "permuted", "up"),
            _SILU_MUL, _DOWN, _COMBINE,
        ),
    ),
    "fast": (
        *((*logits, _FAST_TOP_K, *experts)
          for logits, experts in product(
              _FAST_LOGITS, (*_FAST_EXPERTS, _fp8_experts("x"), _joined("x"), _one_grid("x")))),
        *((first, *logits, _FAST_TOP_K, *experts)
          for first, experts in ((_QUANTIZE, _fp8_experts("rows")), (_QUANTIZE, _joined("rows")),
                                 (_QUANTIZE, _one_grid("rows")),
                                 (_REORDER, _W4_EXPERTS), (_REORDER, _joined("rows")), (_PLANES, _FEW_W4_EXPERTS))
          for logits in _FAST_LOGITS),
    ),
}  # fmt: skip
"""For each pipeline the sequences of Triton launches that a forward of it may be."""


def matched(implementation: str, kernels: Sequence[str]) -> tuple[Known, ...] | None:
    """The sequence that a forward's kernels are, in order; those of PyTorch's among them are passed over.

    None for a pipeline that is not known, or launches of it that are none of its sequences.
    """
    sequences = LAUNCHES.get(implementation, ())
    own = {known.kernel for sequence in sequences for known in sequence}
    launched = [kernel for kernel in kernels if kernel in own]
    return next((one for one in sequences if [known.kernel for known in one] == launched), None)
