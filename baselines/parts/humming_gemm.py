"""One of a layer's two GEMMs as Humming runs it: packed weights in its layout, and its heuristic's tiles."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from tritonmoe_bench.kernels.formats import Packed

ROW_STEP = 128
"""Rows of a weight matrix are padded with zeros up to a multiple of this, which Humming's tiles divide."""
ONE = 127
"""The e8m0 scale of 1, for padding."""
MOST_ROWS = 1 << 30
LOCKS = 2048
"""Words with which programs that share a tile synchronise; zero before and after a GEMM."""
COMPUTE = json.dumps({"gemm_type": "indexed", "use_f16_accum": False, "use_batch_invariant": False})
TYPES = {"fp8_block": "float8e4m3", "mxfp4": "float4e2m1", "int4": "uint4", "int4_g32": "uint4"}
Aligned = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Indices of rows in groups of one tile's height, the expert of each group, and the number of rows with padding."""


@dataclass(frozen=True)
class Tile:
    """height: rows; config: as Humming takes it; words: for a row."""

    height: int
    config: str
    words: str


class Gemm:
    def __init__(self, packed: Packed, dtype: torch.dtype, input_dtype: str | None) -> None:
        """input_dtype: of the rows that are multiplied, if they are quantised first."""
        from humming.schema import HummingInputSchema, HummingWeightSchema
        from humming.transform import prepare_fp16_e8m0_scale, prepare_layer_config, transform_humming_tensors

        experts, rows, columns = packed.shape
        group = columns // packed.scales.shape[2]
        schema = HummingWeightSchema(
            b_dtype=TYPES[packed.name],
            bs_dtype="float8e8m0" if packed.name == "mxfp4" else None,
            weight_scale_group_size=group,
        )
        config = prepare_layer_config(
            shape_n=rows, shape_k=columns, weight_schema=schema,
            input_schema=HummingInputSchema(a_dtype=input_dtype) if input_dtype else None,
            num_experts=experts, pad_n_to_multiple=ROW_STEP, torch_dtype=dtype, device=packed.device,
        )  # fmt: skip
        tensors = {"weight": _values(packed), "weight_scale": _scales(packed, dtype)}
        self._config, tensors = prepare_fp16_e8m0_scale(config, tensors)
        made = transform_humming_tensors(self._config, tensors, already_padded=True)
        self._operands = {name: made.get(name) for name in ("weight", "weight_scale", "weight_scale_2")}
        self._locks = torch.zeros(LOCKS, dtype=torch.int32, device=packed.device)

    def tile(self, slots: int) -> Tile:
        """That of Humming's heuristic for so many token-expert pairs."""
        from humming.tune import get_heuristics_config

        ranges = get_heuristics_config(
            layer_config=self._config, gemm_type="indexed", device=self._operands["weight"].device
        )
        chosen = next(config for least, most, config in ranges if least < slots <= most)
        tuning = json.dumps([[0, MOST_ROWS, chosen]])
        words = "x".join(map(str, chosen["block_shape"])) + f" {chosen['mma_type']} stages={chosen['num_stages']}"
        return Tile(chosen["block_shape"][0], tuning, words)

    def __call__(self, x: torch.Tensor, aligned: Aligned, tile: Tile, top_k: int) -> torch.Tensor:
        """[rows of x times top_k, rows of the matrix]."""
        from humming.forward import humming_forward

        sorted_ids, expert_ids, num_tokens_padded = aligned
        return humming_forward(
            self._config, x, **self._operands, sorted_ids=sorted_ids, expert_ids=expert_ids,
            num_tokens_padded=num_tokens_padded, locks=self._locks, top_k=top_k, valid_shape_m=x.shape[0] * top_k,
            compute_config=COMPUTE, tuning_config=tile.config,
        )  # fmt: skip


def _values(packed: Packed) -> torch.Tensor:
    """int32 [experts, padded rows, columns * bits / 32], always a copy: Humming may write into it."""
    raw = packed.raw()
    return torch.nn.functional.pad(raw, (0, 0, 0, -raw.shape[1] % ROW_STEP)).view(torch.int32)


def _scales(packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    """[experts, padded rows, columns / group], e8m0 or in `dtype`."""
    scales = packed.scales
    if packed.name == "mxfp4":
        return torch.nn.functional.pad(scales, (0, 0, 0, -scales.shape[1] % ROW_STEP), value=ONE).view(
            torch.float8_e8m0fnu
        )
    by_row = scales.to(dtype).repeat_interleave(packed.shape[1] // scales.shape[1], 1)
    return torch.nn.functional.pad(by_row, (0, 0, 0, -by_row.shape[1] % ROW_STEP))
