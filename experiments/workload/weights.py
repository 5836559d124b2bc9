"""The weights of a case's layer, generated on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from tritonmoe_bench.kernels.formats import Packed, formats

from .case import Case
from .routing import TORCH_DTYPE

Layout = Literal["nk", "kn"]
Made = TypeVar("Made")


class Weights:
    """The weights of a case's layer, generated on the device from the seed in the layout that is asked for.

    Layouts: ``nk`` has the reduced dimension last (nn.Linear's: gate [ffn, hidden], down [hidden, ffn]), ``kn`` has it
    first. Each stacked tensor is made once and kept until `release`; DeepSeek-V3's layer is 22.5 GB, so ask for one
    layout only. `set_index` names one of several independent sets of weights of the same case.
    """

    def __init__(self, case: Case, device: str | torch.device, set_index: int = 0) -> None:
        self.case = case
        self.device = torch.device(device)
        self.set_index = set_index
        self.dtype = TORCH_DTYPE[case.dtype]
        self._made: dict[Any, Any] = {}

    def router(self) -> torch.Tensor:
        """[num_experts, hidden_dim], row e one-hot at feature e."""
        return self._once(
            "router",
            lambda: torch.eye(self.case.num_experts, self.case.hidden_dim, dtype=self.dtype, device=self.device),
        )

    def correction_bias(self) -> torch.Tensor | None:
        """float32 [num_experts] for the gatings that have one, else None."""
        if not self.case.gate.correction_bias:
            return None
        rng = np.random.default_rng([self.case.seed, self.case.num_experts, 2])
        return torch.from_numpy(0.02 * rng.standard_normal(self.case.num_experts, dtype=np.float32)).to(self.device)

    def expert(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Freshly made (gate [ffn, hidden], up [ffn, hidden], down [hidden, ffn]) of one expert, in the case's dtype;
        packed weights unpacked, in float32."""
        gate, up, down = (self._part(index, part) for part in range(3))
        if self.case.quant == "none":
            return gate, up, down
        pack = formats()[self.case.quant].pack
        return pack(gate[None]).unpack()[0], pack(up[None]).unpack()[0], pack(down[None]).unpack()[0]

    def packed_gate_up(self) -> Packed:
        """Matrices [2 * ffn, hidden] of all experts in the case's format, gate rows then up rows."""
        return self._packed("gate_up", (0, 1))

    def packed_down(self) -> Packed:
        """Matrices [hidden, ffn] of all experts in the case's format."""
        return self._packed("down", (2,))

    def gate(self, layout: Layout = "nk") -> torch.Tensor:
        """[num_experts, ffn, hidden], or [num_experts, hidden, ffn] for ``kn``."""
        return self._stacked("gate", (0,), layout)

    def up(self, layout: Layout = "nk") -> torch.Tensor:
        """As `gate`."""
        return self._stacked("up", (1,), layout)

    def gate_up(self, layout: Layout = "nk") -> torch.Tensor:
        """[num_experts, 2 * ffn, hidden], gate rows then up rows, or [num_experts, hidden, 2 * ffn] for ``kn``."""
        return self._stacked("gate_up", (0, 1), layout)

    def down(self, layout: Layout = "nk") -> torch.Tensor:
        """[num_experts, hidden, ffn], or [num_experts, ffn, hidden] for ``kn``."""
        return self._stacked("down", (2,), layout)

    def flat(self) -> torch.Tensor:
        """int32 [num_experts, expert_bytes / 4] of random words: the layer's bytes for a reader that only reads."""
        return self._once(
            "flat",
            lambda: torch.empty(
                (self.case.num_experts, self.case.expert_bytes // 4), dtype=torch.int32, device=self.device
            ).random_(generator=torch.Generator(self.device).manual_seed(self.set_index)),
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

    def _part(self, index: int, part: int) -> torch.Tensor:
        rows, columns = self.case.hidden_dim, self.case.ffn_dim
        shape = (rows, columns) if part == 2 else (columns, rows)
        generator = torch.Generator(self.device)
        generator.manual_seed((((self.case.seed * 64 + self.set_index) * 4096 + index) * 4 + part) * 2654435761 % 2**63)
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        return out.normal_(0.0, shape[1] ** -0.5, generator=generator)

    def _packed(self, name: str, parts: tuple[int, ...]) -> Packed:
        def make() -> Packed:
            pack = formats()[self.case.quant].pack
            made = None
            for index in range(self.case.num_experts):
                one = pack(torch.cat([self._part(index, part) for part in parts])[None])
                if made is None:
                    room = (torch.empty((self.case.num_experts, *part.shape[1:]), dtype=part.dtype, device=self.device)
                            for part in (one.values, one.scales))  # fmt: skip
                    made = type(one)(*room)
                made.values[index], made.scales[index] = one.values[0], one.scales[0]
            assert made is not None
            return made

        return self._once(("packed", name), make)

    def _stacked(self, name: str, parts: tuple[int, ...], layout: Layout) -> torch.Tensor:
        if self.case.quant != "none":
            raise ValueError(f"the weights are packed as {self.case.quant}: ask for packed_{name}()")

        def make() -> torch.Tensor:
            rows, columns = self.case.hidden_dim, self.case.ffn_dim
            n, k = (rows, columns) if parts == (2,) else (columns * len(parts), rows)
            shape = (n, k) if layout == "nk" else (k, n)
            out = torch.empty((self.case.num_experts, *shape), dtype=self.dtype, device=self.device)
            for index in range(self.case.num_experts):
                view = out[index] if layout == "nk" else out[index].T
                for position, part in enumerate(parts):
                    height = n // len(parts)
                    view[position * height : (position + 1) * height].copy_(self._part(index, part))
            return out

        return self._once((name, layout), make)

    def _once(self, key: Any, make: Callable[[], Made]) -> Made:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _checksum(tensor: torch.Tensor) -> int:
    """The sum of the words of a tensor, which overflows as it will. A sum in another dtype would copy the tensor."""
    data = tensor.view(-1).view(torch.uint8)
    words = data.numel() // 8 * 8
    return int(data[:words].view(torch.int64).sum()) + int(data[words:].sum())
