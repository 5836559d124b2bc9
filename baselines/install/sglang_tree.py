"""The folder .peers/sglang, made of SGLang's wheels by baselines/builds/offline/prune_sglang.py, set up for one GPU.

SGLang's layer asks a running server for its settings and its tensor-parallel group. `one_gpu` gives it the settings
that it reads here, at SGLang's defaults, and a group of one.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

from . import trees
from .installed import installed_version

VERSION = "0.5.17"
INSTALL = f"pip install sglang=={VERSION}"
PRUNE = "python baselines/builds/offline/prune_sglang.py"
SETTINGS = {
    "enable_fused_moe_sum_all_reduce": "exec.moe",
    "enable_deterministic_inference": "exec.deterministic",
    "enable_symm_mem": "exec.comm",
}
"""Options of SGLang's server that its fused MoE reads, all off by default, by the namespace that they lie in."""


def search_path() -> list[Path]:
    return trees.search_path("sglang")


def version() -> str:
    """SGLang's version and that of its compiled kernels, empty if it is not there."""
    if search_path():
        return _joined((built := trees.record(trees.folder("sglang")))["sglang"], built["sglang_kernel"])
    return _joined(installed_version("sglang"), installed_version("sglang-kernel"))


def _joined(sglang: str, kernels: str) -> str:
    return f"{sglang} (sglang-kernel {kernels})" if sglang and kernels else sglang


def wrong_gpu(capability: tuple[int, int]) -> str:
    return trees.wrong_gpu(trees.folder("sglang"), capability, PRUNE)


@functools.cache
def one_gpu() -> Any:
    """SGLang's module `fused_moe`, set up for one GPU and no server. Raises what importing SGLang raises."""
    import torch

    with trees.importable("sglang"):
        from sglang.srt.arg_groups.arg_utils import NS
        from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe
        from sglang.srt.runtime_context import get_context

    fields = [(name, Annotated[bool, NS(path)], False) for name, path in SETTINGS.items()]
    get_context().set_server_args(dataclasses.make_dataclass("OneGpu", fields)())
    fused_moe.get_tp_group = lambda: SimpleNamespace(world_size=1)
    # SGLang does so before it captures graphs: its small compiled sum is made anew for every batch size.
    torch._dynamo.config.recompile_limit = max(1024, torch._dynamo.config.recompile_limit)
    return fused_moe
