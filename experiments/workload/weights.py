"""The weights of a case's layer, generated on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch

from tritonmoe_bench.kernels.formats import Packed, formats

from .case import Case
from .corrected import correction_bias
from .dtypes import TORCH_DTYPE
from .reference import Matrices, Parts
from .routing import router_bias

Layout = Literal["nk", "kn"]
Made = TypeVar("Made")
BIAS_SCALE = 0.5
"""Standard deviation of the experts' biases, beside products of about 1."""


class Weights:
    """The weights of a case's layer, generated on the device from the seed in the layout that is asked for.

    Layouts: ``nk`` has the reduced dimension last (nn.Linear's: gate [ffn, hidden], down [hidden, ffn]), ``kn`` has it
    first. Each stacked tensor is made once and kept until `release`; DeepSeek-V3's layer is 22.5 GB, so ask for one
    layout only. `set_index` names one of several independent sets of weights of the same case. with_shared: the shared
    expert stands behind the others, as one more, or as many as it is wide.
    """

    def __init__(self, case: Case, device: str | torch.device, set_index: int = 0) -> None:
        self.case = case
        self.device = torch.device(device)
        self.set_index = set_index
        self.dtype = TORCH_DTYPE[case.dtype]
        self._made: dict[Any, Any] = {}

    def router(self) -> torch.Tensor:
        """[num_experts, hidden_dim], row e one-hot at feature e; float32 for a float32 router, else of the dtype."""
        dtype = torch.float32 if self.case.facts.float32_router else self.dtype
        shape = self.case.num_experts, self.case.hidden_dim
        return self._once("router", lambda: torch.eye(*shape, dtype=dtype, device=self.device))

    def router_bias(self) -> torch.Tensor | None:
        """[num_experts] in the case's dtype, exact in it; None for a router without."""
        if not self.case.facts.router_bias:
            return None
        bias = torch.from_numpy(router_bias(self.case))
        return self._once("router_bias", lambda: bias.to(device=self.device, dtype=self.dtype))

    def correction_bias(self) -> torch.Tensor | None:
        """float32 [num_experts] for the gatings that have one, else None."""
        if not self.case.gate.correction_bias:
            return None
        return torch.from_numpy(correction_bias(self.case)).to(self.device)

    def expert(self, index: int) -> Matrices:
        """Freshly made (gate [ffn, hidden], up [ffn, hidden], down [hidden, ffn]) of one expert, in the case's dtype;
        packed weights unpacked, in float32."""
        return self._matrices(index, self.case.ffn_dim)

    def parts(self) -> Parts:
        """What the native layer has beside router and experts, for the reference; the shared expert freshly made."""
        case = self.case
        shared = self._matrices(case.num_experts, case.facts.shared_ffn) if case.facts.shared_ffn else None
        gate_up, down = self.gate_up_bias(), self.down_bias()

        def expert_bias(index: int) -> Matrices:
            assert gate_up is not None
            assert down is not None
            return gate_up[index, : case.ffn_dim], gate_up[index, case.ffn_dim :], down[index]

        biases = expert_bias if case.facts.expert_bias else None
        return Parts(case.facts, self.router_bias(), biases, shared, self.shared_router())

    def gate_up_bias(self) -> torch.Tensor | None:
        """[num_experts, 2 * ffn] in the case's dtype, of gate rows then up rows; None for experts without."""
        return self._bias("gate_up_bias", 2 * self.case.ffn_dim)

    def down_bias(self) -> torch.Tensor | None:
        """[num_experts, hidden] in the case's dtype; None for experts without."""
        return self._bias("down_bias", self.case.hidden_dim)

    def shared_gate_up(self) -> torch.Tensor:
        """[2 * shared_ffn, hidden] of the shared expert, gate rows then up rows."""
        return self._once("shared_gate_up", lambda: torch.cat(self._matrices(*self._shared)[:2]))

    def shared_down(self) -> torch.Tensor:
        """[hidden, shared_ffn] of the shared expert."""
        return self._once("shared_down", lambda: self._matrices(*self._shared)[2])

    def shared_router(self) -> torch.Tensor | None:
        """[1, hidden] in the case's dtype: sigmoid of its product with x multiplies the shared expert's output; None
        for a shared expert without a gate. It does not see the logits that x carries."""
        if not self.case.facts.shared_gate:
            return None

        def make() -> torch.Tensor:
            row = self._normal((1, self.case.hidden_dim), self.case.num_experts, 3, self.case.hidden_dim**-0.5)
            row[:, : self.case.num_experts] = 0
            return row

        return self._once("shared_router", make)

    def packed_gate_up(self, with_shared: bool = False) -> Packed:
        """Matrices [2 * ffn, hidden] of all experts in the case's format, gate rows then up rows."""
        return self._packed("gate_up", (0, 1), with_shared)

    def packed_down(self, with_shared: bool = False) -> Packed:
        """Matrices [hidden, ffn] of all experts in the case's format."""
        return self._packed("down", (2,), with_shared)

    def gate(self, layout: Layout = "nk") -> torch.Tensor:
        """[num_experts, ffn, hidden], or [num_experts, hidden, ffn] for ``kn``."""
        return self._stacked("gate", (0,), layout)

    def up(self, layout: Layout = "nk") -> torch.Tensor:
        """As `gate`."""
        return self._stacked("up", (1,), layout)

    def gate_up(self, layout: Layout = "nk", with_shared: bool = False) -> torch.Tensor:
        """[num_experts, 2 * ffn, hidden], gate rows then up rows, or [num_experts, hidden, 2 * ffn] for ``kn``."""
        return self._stacked("gate_up", (0, 1), layout, with_shared)

    def down(self, layout: Layout = "nk", with_shared: bool = False) -> torch.Tensor:
        """[num_experts, hidden, ffn], or [num_experts, ffn, hidden] for ``kn``."""
        return self._stacked("down", (2,), layout, with_shared)

    def flat(self) -> torch.Tensor:
        """int32 [num_experts + shared, expert_bytes / 4] of random words: the layer's bytes for a reader that only
        reads. The shared expert is as many more rows as it is experts wide, rounded down: a limit reads no more than
        the layer."""
        rows = self.case.num_experts + self.case.shared_bytes // self.case.expert_bytes
        return self._once(
            "flat",
            lambda: torch.empty((rows, self.case.expert_bytes // 4), dtype=torch.int32, device=self.device).random_(
                generator=torch.Generator(self.device).manual_seed(self.set_index)
            ),
        )

    def checksums(self) -> dict[tuple, int]:
        """A sum over the bits of each tensor made so far: what overwrites one changes its sum."""
        tensors = {
            (key, part): tensor
            for key, made in self._made.items()
            for part, tensor in enumerate((made.values, made.scales) if isinstance(made, Packed) else (made,))
        }
        return {key: _checksum(tensor) for key, tensor in tensors.items()}

    def release(self) -> None:
        """Drops every tensor made so far."""
        self._made.clear()

    @property
    def _shared(self) -> tuple[int, int]:
        """(index, width) of the shared expert. Raises ValueError where it has to be asked for otherwise."""
        if not self.case.facts.shared_ffn:
            raise ValueError("the layer has no shared expert")
        if self.case.quant != "none":
            raise ValueError(f"the weights are packed as {self.case.quant}: ask for them with_shared")
        return self.case.num_experts, self.case.facts.shared_ffn

    def _matrices(self, index: int, ffn_dim: int) -> Matrices:
        """gate, up and down of an expert of that width, in the case's dtype; packed weights unpacked, in float32."""
        gate, up, down = (self._part(index, part, ffn_dim) for part in range(3))
        if self.case.quant == "none":
            return gate, up, down
        pack = formats()[self.case.quant].pack
        return pack(gate[None]).unpack()[0], pack(up[None]).unpack()[0], pack(down[None]).unpack()[0]

    def _part(self, index: int, part: int, ffn_dim: int) -> torch.Tensor:
        rows, columns = self.case.hidden_dim, ffn_dim
        shape = (rows, columns) if part == 2 else (columns, rows)
        return self._normal(shape, index, part, shape[1] ** -0.5)

    def _normal(self, shape: tuple[int, ...], index: int, part: int, scale: float) -> torch.Tensor:
        generator = torch.Generator(self.device)
        generator.manual_seed((((self.case.seed * 64 + self.set_index) * 4096 + index) * 4 + part) * 2654435761 % 2**63)
        return torch.empty(shape, dtype=self.dtype, device=self.device).normal_(0.0, scale, generator=generator)

    def _bias(self, name: str, width: int) -> torch.Tensor | None:
        """A bias of that width for each expert: gate_up's stands first in the draw that both come from."""
        if not self.case.facts.expert_bias:
            return None

        def make() -> torch.Tensor:
            both = (2 * self.case.ffn_dim + self.case.hidden_dim,)
            every = (self._normal(both, index, 3, BIAS_SCALE) for index in range(self.case.num_experts))
            return torch.stack([one[:width] if name == "gate_up_bias" else one[-width:] for one in every])

        return self._once(name, make)

    def _indices(self, with_shared: bool) -> range:
        """The experts of a stack. Raises ValueError for a shared expert that does not fit into it."""
        case = self.case
        if with_shared and case.facts.shared_ffn % case.ffn_dim:
            raise ValueError(f"a shared expert of width {case.facts.shared_ffn} is no whole number of {case.ffn_dim}")
        return range(case.num_experts + with_shared * (case.facts.shared_ffn // case.ffn_dim))

    def _stack_part(self, index: int, part: int) -> torch.Tensor:
        """`_part` of an expert of a stack: behind the others, as wide parts of the shared one."""
        if index < self.case.num_experts:
            return self._part(index, part, self.case.ffn_dim)
        whole = self._part(self.case.num_experts, part, self.case.facts.shared_ffn)
        return whole.split(self.case.ffn_dim, dim=1 if part == 2 else 0)[index - self.case.num_experts]

    def _packed(self, name: str, parts: tuple[int, ...], with_shared: bool) -> Packed:
        indices = self._indices(with_shared)

        def make() -> Packed:
            pack = formats()[self.case.quant].pack
            made = None
            for index in indices:
                one = pack(torch.cat([self._stack_part(index, part) for part in parts])[None])
                if made is None:
                    room = (torch.empty((len(indices), *part.shape[1:]), dtype=part.dtype, device=self.device)
                            for part in (one.values, one.scales))  # fmt: skip
                    made = type(one)(*room)
                made.values[index], made.scales[index] = one.values[0], one.scales[0]
            assert made is not None
            return made

        return self._once(("packed", name, with_shared), make)

    def _stacked(self, name: str, parts: tuple[int, ...], layout: Layout, with_shared: bool = False) -> torch.Tensor:
        if self.case.quant != "none":
            raise ValueError(f"the weights are packed as {self.case.quant}: ask for packed_{name}()")
        indices = self._indices(with_shared)

        def make() -> torch.Tensor:
            rows, columns = self.case.hidden_dim, self.case.ffn_dim
            n, k = (rows, columns) if parts == (2,) else (columns * len(parts), rows)
            shape = (n, k) if layout == "nk" else (k, n)
            out = torch.empty((len(indices), *shape), dtype=self.dtype, device=self.device)
            for index in indices:
                view = out[index] if layout == "nk" else out[index].T
                for position, part in enumerate(parts):
                    height = n // len(parts)
                    view[position * height : (position + 1) * height].copy_(self._stack_part(index, part))
            return out

        return self._once((name, layout, with_shared), make)

    def _once(self, key: Any, make: Callable[[], Made]) -> Made:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _checksum(tensor: torch.Tensor) -> int:
    """The sum of the words of a tensor, which overflows as it will. A sum in another dtype would copy the tensor."""
    data = tensor.view(-1).view(torch.uint8)
    words = data.numel() // 8 * 8
    return int(data[:words].view(torch.int64).sum()) + int(data[words:].sum())
