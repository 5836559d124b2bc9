"""What the adapters of vLLM and of OpenAI's triton_kernels share, apart from the adapters themselves."""
