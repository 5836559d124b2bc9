"""The folders .peers/vllm and .peers/triton_kernels, which prune_vllm.py makes of one wheel of vLLM."""

VERSION = "0.22.1"
INSTALL = f"pip install vllm=={VERSION}"
PRUNE = "python baselines/builds/offline/prune_vllm.py"
