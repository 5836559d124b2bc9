"""The folders .peers/vllm and .peers/triton_kernels, which prune_vllm.py makes of one wheel of vLLM."""

from . import trees
from .installed import installed_version

VERSION = "0.22.1"
INSTALL = f"pip install vllm=={VERSION}"
PRUNE = "python baselines/builds/offline/prune_vllm.py"


def version() -> str:
    """Of the tree, else of what is installed; empty without either."""
    return trees.record(trees.folder("vllm"))["vllm"] if trees.search_path("vllm") else installed_version("vllm")
