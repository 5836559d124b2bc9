"""The folders .peers/vllm and .peers/triton_kernels, which prune_vllm.py makes of one wheel of vLLM."""

from . import trees
from .installed import installed_version

VERSION = "0.33.0"
INSTALL = "python baselines/builds/offline/prune_vllm.py"
"""pip would put vLLM's own torch in the place of the one that is here."""


def version() -> str:
    """Of the tree, else of what is installed; empty without either."""
    return trees.record(trees.folder("vllm"))["vllm"] if trees.search_path("vllm") else installed_version("vllm")
