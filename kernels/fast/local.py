"""Which experts are held here: under expert parallelism a slot may belong to an expert of another GPU, or to none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Local:
    """An id from 0 to num_experts - 1 is an expert here; the slot of any other adds nothing to its token.

    expert_map: int32 [global experts], if ids are global: the id here, or -1 for an expert that is not.
    """

    num_experts: int
    expert_map: torch.Tensor | None = None

    @property
    def total(self) -> int:
        """All experts that tokens are spread over."""
        return self.num_experts if self.expert_map is None else self.expert_map.shape[0]


def lookup(local: Local | None) -> tuple[torch.Tensor | None, int | None, int | None]:
    """(expert_map, num_global, LOCAL) of a kernel that calls `expert_of`; None: every id is an expert here."""
    if local is None:
        return None, None, None
    return local.expert_map, None if local.expert_map is None else local.total, local.num_experts


@triton.jit
def expert_of(experts, expert_map, num_global, slot, inside, LOCAL: tl.constexpr):
    """int32, as `slot`: the expert here of each slot, LOCAL (how many there are) for one that has none here.

    experts: ids of any integer type. inside: false where there is no slot.
    """
    expert = tl.load(experts + slot, mask=inside, other=-1)
    if expert_map is not None:
        known = (expert >= 0) & (expert < num_global)
        expert = tl.load(expert_map + expert, mask=inside & known, other=-1)
    return tl.where((expert >= 0) & (expert < LOCAL), expert, LOCAL).to(tl.int32)
