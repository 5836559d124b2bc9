"""A case: one MoE layer, one batch, one routing. Everything that is timed, checked or counted is asked of a case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from tritonmoe_bench.kernels.formats import formats
from tritonmoe_bench.kernels.gating import GATINGS, Gating

from .layer import LAYERS, PLAIN_LAYER, Layer
from .recorded import DRAWN

DTYPES = ("bf16", "fp16")
DTYPE_NAMES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
"""Other words for a dtype, which commands understand."""
BYTES_PER_ELEMENT = 2
MAX_TOKENS = 8192
QUANTS = ("none", *formats())
MAX_SKEW = 8.0
PLAIN: dict[str, Any] = {"quant": "none", "routing": DRAWN, "layer": "plain", "facts": asdict(PLAIN_LAYER)}
"""Fields that stay out of `case_hash` at this value: rows measured before there were such fields keep theirs."""


@dataclass(frozen=True)
class Case:
    """One point of a sweep.

    model: label of the shape; num_experts, top_k, hidden_dim, ffn_dim: the shape of the layer;
    tokens: rows of x, 1 to 8192; skew: Zipf exponent of the expert popularity, 0 is uniform;
    seed: of routing, activations and weights; dtype: of x and y, ``bf16`` or ``fp16``; gating: a name of `GATINGS`;
    quant: of the experts' weights, ``none`` for those of the dtype, else a name of `formats`;
    routing: ``drawn`` from skew and seed, or the whole name of a recorded layer (`recorded.spelled_out`), of which
    `seed` picks the tokens;
    layer: ``plain``, or ``native`` for the model's own layer; facts: what that has beside its gating, as a `Layer` or
    as a mapping of its fields.

    Raises ValueError, with what is allowed, for a case that cannot be.
    """

    model: str
    num_experts: int
    top_k: int
    hidden_dim: int
    ffn_dim: int
    tokens: int
    skew: float = 0.0
    seed: int = 0
    dtype: str = "bf16"
    gating: str = "softmax"
    quant: str = "none"
    routing: str = DRAWN
    layer: str = "plain"
    facts: Layer = PLAIN_LAYER

    def __post_init__(self) -> None:
        for name in ("num_experts", "top_k", "hidden_dim", "ffn_dim", "tokens", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name}={value!r}: a whole number is needed")
        for name in ("num_experts", "top_k", "hidden_dim", "ffn_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 1 <= self.tokens <= MAX_TOKENS:
            raise ValueError(f"tokens={self.tokens}: allowed are 1 to {MAX_TOKENS}")
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k}: allowed are 1 to num_experts={self.num_experts}")
        if self.num_experts > self.hidden_dim:
            raise ValueError(
                f"num_experts={self.num_experts}: at most hidden_dim={self.hidden_dim}, "
                "because the workload carries each expert's logit in one feature of x"
            )
        if isinstance(self.skew, bool) or not isinstance(self.skew, (int, float)) or not 0 <= self.skew <= MAX_SKEW:
            raise ValueError(f"skew={self.skew!r}: allowed are 0 (uniform) to {MAX_SKEW:g}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype}: allowed are {', '.join(DTYPES)}")
        if self.gating not in GATINGS:
            raise ValueError(f"gating={self.gating}: allowed are {', '.join(GATINGS)}")
        if self.quant not in QUANTS:
            raise ValueError(f"quant={self.quant}: allowed are {', '.join(QUANTS)}")
        if self.layer not in LAYERS:
            raise ValueError(f"layer={self.layer}: allowed are {', '.join(LAYERS)}")
        if isinstance(self.facts, Mapping):
            object.__setattr__(self, "facts", Layer(**self.facts))
        if self.layer == "plain" and self.facts != PLAIN_LAYER:
            raise ValueError(f"layer=plain: has no {', '.join(self.facts.needs)}, write layer=native")
        shared = _matrices(self.hidden_dim, self.facts.shared_ffn) if self.facts.shared_ffn else ()
        for rows, columns in (*self.matrices, *shared) if self.quant != "none" else ():
            formats()[self.quant].check(rows, columns)
        if self.routing != DRAWN and self.skew:
            raise ValueError(f"skew={self.skew:g}: recorded routing has its own, leave skew at 0 beside {self.routing}")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be at least 0")
        groups = self.gate.groups
        if self.num_experts % groups or self.top_k > self.gate.top_groups * (self.num_experts // groups):
            raise ValueError(
                f"gating={self.gating}: needs num_experts divisible by its {groups} groups and top_k within "
                f"{self.gate.top_groups} of them, got num_experts={self.num_experts}, top_k={self.top_k}"
            )
        object.__setattr__(self, "skew", float(self.skew))

    @property
    def gate(self) -> Gating:
        return GATINGS[self.gating]

    @property
    def slots(self) -> int:
        """Token-expert pairs of the forward."""
        return self.tokens * self.top_k

    @cached_property
    def case_hash(self) -> str:
        stated = {name: value for name, value in asdict(self).items() if PLAIN.get(name) != value}
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def weights_key(self) -> tuple:
        """Cases with the same key share their weights, whatever their tokens and skew."""
        return (self.num_experts, self.hidden_dim, self.ffn_dim, self.dtype, self.quant, self.seed, self.facts)

    @property
    def cells(self) -> dict[str, Any]:
        """What rows say of the case, by column, without its hash."""
        return {name: value for name, value in asdict(self).items() if name != "facts"}

    @property
    def expert_bytes(self) -> int:
        """Weights of one expert (gate, up, down), in bytes, with the scales of a packed format, without its biases."""
        return self._matrix_bytes(self.ffn_dim)

    @property
    def shared_bytes(self) -> int:
        """Weights of the shared expert, in bytes; 0 if the layer has none."""
        return self._matrix_bytes(self.facts.shared_ffn) if self.facts.shared_ffn else 0

    @property
    def bias_bytes(self) -> int:
        """Biases of one expert, in bytes; 0 if the layer has none."""
        return (2 * self.ffn_dim + self.hidden_dim) * BYTES_PER_ELEMENT * self.facts.expert_bias

    @property
    def router_bytes(self) -> int:
        """Weights of the router and of the gate of the shared expert, and the router's bias, in bytes."""
        width = 4 if self.facts.float32_router else BYTES_PER_ELEMENT
        router = self.num_experts * (self.hidden_dim * width + self.facts.router_bias * BYTES_PER_ELEMENT)
        return router + self.facts.shared_gate * self.hidden_dim * BYTES_PER_ELEMENT

    def _matrix_bytes(self, ffn_dim: int) -> int:
        if self.quant == "none":
            return 3 * self.hidden_dim * ffn_dim * BYTES_PER_ELEMENT
        return sum(formats()[self.quant].matrix_bytes(*matrix) for matrix in _matrices(self.hidden_dim, ffn_dim))

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of an expert's gate, up and down; the sum of a product runs over the columns."""
        return _matrices(self.hidden_dim, self.ffn_dim)

    @property
    def weight_bytes(self) -> int:
        """Weights of the whole layer, in bytes: all experts, the shared one and the router."""
        return self.num_experts * (self.expert_bytes + self.bias_bytes) + self.shared_bytes + self.router_bytes

    def read_bytes(self, active_experts: int) -> int:
        """Weights of experts that one forward has to read, in bytes: of the active ones and the shared one."""
        return active_experts * (self.expert_bytes + self.bias_bytes) + self.shared_bytes

    def min_bytes(self, active_experts: int) -> int:
        """Compulsory traffic of one forward, in bytes: weights of active and shared experts, router, x and y, each
        once."""
        return (
            self.read_bytes(active_experts) + self.router_bytes + 2 * self.tokens * self.hidden_dim * BYTES_PER_ELEMENT
        )

    @property
    def flops(self) -> int:
        """Floating-point operations of the GEMMs of one forward: router, experts and shared expert."""
        columns = self.slots * self.ffn_dim + self.tokens * self.facts.shared_ffn
        outputs = self.num_experts + self.facts.shared_gate
        return 6 * columns * self.hidden_dim + 2 * self.tokens * outputs * self.hidden_dim

    def __str__(self) -> str:
        return (
            f"{self.model} E{self.num_experts} k{self.top_k} tokens={self.tokens} skew={self.skew:g} {self.dtype}"
            + (f" {self.quant}" if self.quant != "none" else "")
            + (f" {self.routing}" if self.routing != DRAWN else "")
            + (f" {self.layer}" if self.layer != "plain" else "")
        )


def _matrices(hidden_dim: int, ffn_dim: int) -> tuple[tuple[int, int], ...]:
    return (ffn_dim, hidden_dim), (ffn_dim, hidden_dim), (hidden_dim, ffn_dim)
