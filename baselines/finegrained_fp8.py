"""`finegrained_fp8`: Hugging Face's Triton kernels for fp8 in blocks, which transformers uses; a checkout gives them.

Two forwards, both of two GEMMs and a sum: `moe_fused_batched` with one program per slot and tile, `moe_fused_grouped`
with rows sorted by expert. The first reads an expert's weights once a slot, and is taken while there are no more slots
than experts. x and the intermediate are quantised inside the GEMMs (W8A8). Router and top-k are those of `fast`; the
kernels have none. They tune themselves in `build`, over all tiles of their own lists: 20 of each batched kernel for
each number of slots, up to 48 of each grouped one for each power of two of slots. Left alone they compile these one
after the other, minutes a shape, so threads compile them ahead (parts/compiling.py); and each is timed for
`TRIAL_MS`, not 100 ms.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from tritonmoe_bench.experiments.implementation.contract import Case, Check, Forward, Weights, unavailable, unsupported

from .install.checkouts import Checkout, CheckoutSystem
from .install.installed import first_line
from .parts.compiling import every_config
from .parts.in_build import run_once
from .parts.router import by_router

if TYPE_CHECKING:
    import torch
    from triton.runtime.autotuner import Autotuner

CHECKOUT = Checkout(
    name="finegrained_fp8", package="finegrained_fp8", repository="huggingface/kernels-community",
    distribution="finegrained-fp8", inside="finegrained-fp8/torch-ext",
)  # fmt: skip
BLOCK = [128, 128]
TRIAL_MS = {"warmup": 5, "rep": 25}
"""How long a tile is run before, and while, it is timed by the kernels' tuners, in ms."""
OPERATORS = "finegrained_fp8"
"""The namespace in which its operators are registered; a built package has one with a hash."""


class FinegrainedFp8(CheckoutSystem):
    name = "finegrained_fp8"
    revision, revisions_up_to = by_router({15: 5})
    family = "library"
    source = "github.com/huggingface/kernels-community, finegrained-fp8: moe_fused_batched, moe_fused_grouped"
    quants = ("fp8_block",)
    checkout = CHECKOUT

    def check(self, case: Case) -> Check:
        from tritonmoe_bench.kernels.checks import MAX_EXPERTS, MAX_TOP_K

        problem = _problem()
        if problem:
            return unavailable(problem)
        if case.num_experts > MAX_EXPERTS or case.top_k > MAX_TOP_K:
            return unsupported(f"the router takes up to {MAX_EXPERTS} experts and top_k up to {MAX_TOP_K}")
        if case.num_experts & (case.num_experts - 1):
            return unsupported(f"num_experts={case.num_experts}: its sorting kernels need a power of two")
        return unsupported("its kernels want fp8 units of Hopper or later") if _is_old() else Check()

    def activations(self, case: Case) -> str:
        return "a8"

    def config(self, case: Case) -> str:
        return f"moe_fused_{_which(case)}"

    def build(self, case: Case, weights: Weights) -> Forward:
        import finegrained_fp8

        from tritonmoe_bench.kernels.fast.logits import launch_logits
        from tritonmoe_bench.kernels.fast.routing import launch_top_k

        fused = getattr(finegrained_fp8, f"moe_fused_{_which(case)}")
        router, bias = weights.router(), weights.correction_bias()
        gate_up, down = weights.packed_gate_up(), weights.packed_down()

        def forward(x: torch.Tensor) -> torch.Tensor:
            experts, scores = launch_top_k(launch_logits(x, router), case.top_k, case.gate, bias)
            return fused(x, experts, scores, gate_up.values, down.values, gate_up.scales, down.scales, BLOCK)

        with every_config(_tuners(_which(case))):
            run_once(forward, case, weights)
        return run_once(forward, case, weights)


def _tuners(which: str) -> list[Autotuner]:
    """The autotuned kernels of one of its two forwards, with short trials."""
    from triton.runtime.autotuner import Autotuner
    from triton.testing import do_bench

    module = importlib.import_module(f"finegrained_fp8.fused_{which}")
    tuners = [kernel for kernel in vars(module).values() if isinstance(kernel, Autotuner)]
    for tuner in tuners:
        tuner.do_bench = functools.partial(do_bench, **TRIAL_MS)
    return tuners


def _which(case: Case) -> str:
    return "batched" if case.slots <= case.num_experts else "grouped"


def _is_old() -> bool:
    import torch

    return torch.cuda.get_device_capability() < (9, 0)


@functools.cache
def _problem() -> str:
    """Why it cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    _name_operators()
    try:
        import finegrained_fp8

        assert finegrained_fp8.moe_fused_batched
    except Exception as error:  # another package of that name, or one for another Triton, fails in ways of its own
        return f"{first_line(error)}: {CHECKOUT.how_to_get()}"
    if not torch.cuda.is_available():
        return "finegrained-fp8's kernels need a GPU"
    return ""


def _name_operators() -> None:
    """Makes `finegrained_fp8._ops`, which a build of the package writes and a checkout lacks."""
    import torch

    module = ModuleType("finegrained_fp8._ops")
    module.__dict__.update(
        ops=getattr(torch.ops, OPERATORS), add_op_namespace_prefix=lambda name: f"{OPERATORS}::{name}"
    )
    sys.modules.setdefault(module.__name__, module)
