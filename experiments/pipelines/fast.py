"""`fast`: our own forward, with its own choice of tiles, for the harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...baselines.contract import OK, Check, Forward, Implementation, unsupported

if TYPE_CHECKING:
    from ..case import Case
    from ..workload import Weights

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
FILES = (
    "fast.py", "fast_few.py", "fast_gemm.py", "fast_logits.py", "fast_schedule.py", "fast_op.py", "fast_tile_types.py",
    "fast_tiles.py", "tuned/__init__.py", "pdl.py", "schedule.py", "tiles.py", "target.py", "checks.py",
)  # fmt: skip


class Fast(Implementation):
    name = "fast"
    family = "fast"
    source = "kernels/fast.py"
    needs_gpu = False

    def version(self) -> str:
        from ...kernels import __version__

        return __version__

    def check(self, case: Case) -> Check:
        from ...kernels.checks import MAX_EXPERTS, MAX_TOP_K

        if case.num_experts > MAX_EXPERTS or case.top_k > MAX_TOP_K:
            return unsupported(f"takes up to {MAX_EXPERTS} experts and top_k up to {MAX_TOP_K}")
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        from ...kernels.fast import fast_moe

        layer = (weights.router(), weights.gate_up(), weights.down(), case.top_k, case.gate)
        bias = weights.correction_bias()
        return lambda x: fast_moe(x, *layer, correction_bias=bias)

    def config(self, case: Case) -> str:
        import torch

        from ...kernels.fast_tiles import choose_tiles

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tiles = choose_tiles(device, case.num_experts, case.top_k, case.hidden_dim, case.ffn_dim, case.tokens)
        return str(tiles)

    def code(self) -> list[Path]:
        """This device's tuned table among it, no other's: tuning another GPU makes no rows of this one stale."""
        import torch

        files = [KERNELS / name for name in FILES]
        if torch.cuda.is_available():
            from ...kernels.tuned import table_path

            table = table_path(torch.device("cuda", torch.cuda.current_device()))
            files += [table] if table.exists() else []
        return files
