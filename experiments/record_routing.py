"""Records which experts a model of transformers chooses while it generates, into a file that `routing=<file>` reads.

    python experiments/record_routing.py model=Qwen/Qwen3-30B-A3B prompts=prompts.txt sequences=64 out=qwen3.npz
    python experiments/record_routing.py model=qwen3_30b_a3b random=true config={num_hidden_layers:4} device=cpu
    python experiments/sweep.py model=qwen3_30b_a3b routing=qwen3.npz tokens=64

All sequences run as one batch: the tokens of a decode step follow each other in the file, one per sequence, so that a
sweep at as many tokens as there were sequences has the routing of one step of this model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench.experiments.workload.arguments import PlanError, command, key
from tritonmoe_bench.experiments.workload.case import DTYPES
from tritonmoe_bench.experiments.workload.recorded import Recorded
from tritonmoe_bench.experiments.workload.whole import build, experts_of, load_whole, whole_names

PHASES = ("decode", "prompt")
SPREAD = 4
"""Layers that are recorded where none are named: the first and the last with experts, and what lies between."""


@dataclass
class RecordConfig:
    """The keys of a recording."""

    model: str = key(
        "", "a checkpoint that transformers loads, by its name or its folder; with random=true one of", whole_names
    )
    random: bool = key(False, "random weights, which need no checkpoint and choose like no trained model")
    config: Any = key(None, "with random=true, changes of the model's config, such as config={num_hidden_layers:4}")
    prompts: Path | None = key(None, "a text file with a prompt in each line; by default prompts of random tokens")
    sequences: int = key(32, "prompts that run as one batch")
    prompt_tokens: int = key(16, "length of a prompt of random tokens")
    steps: int = key(16, "decode steps after the prompt")
    phase: str = key("decode", "which tokens are recorded, of", PHASES)
    layers: list[int] = key([], f"layers of the model, one or a list; by default {SPREAD} spread over all with experts")
    weights: bool = key(False, "record the routing weights too")
    dtype: str = key("bf16", "of the model, one of", DTYPES)
    device: str = key("", "where it runs; by default the GPU where there is one")
    seed: int = key(0, "of random weights, prompts and sampling")
    out: Path | None = key(None, "the file; by default <model>.npz here")


def record(
    model: Any, inputs: dict[str, Any], layers: Sequence[int], steps: int, phase: str, weights: bool, about: str
) -> Recorded:
    """The routing of some layers while a model generates, sampling, after prompts.

    inputs: input_ids and, with padding, attention_mask, int64 [sequences, prompt tokens]. Raises PlanError for a layer
    without experts.
    """
    import torch

    experts = experts_of(model)
    wrong = [layer for layer in layers if layer not in experts]
    if wrong:
        raise PlanError(f"layers={wrong}: layers with experts are {', '.join(map(str, experts))}")
    chosen: dict[int, list[tuple[Any, Any]]] = {layer: [] for layer in layers}

    def note(layer: int, arguments: tuple, named: dict[str, Any]) -> None:
        # Positional in all families that have been seen; by name in the order of the interface's signature.
        _, ids, factors = (*arguments, *named.values())[:3]
        ranked, order = factors.float().sort(dim=1, descending=True, stable=True)
        chosen[layer].append((ids.gather(1, order).cpu(), ranked.cpu()))

    hooks = [
        experts[layer].register_forward_pre_hook(
            lambda _, arguments, named, layer=layer: note(layer, arguments, named), with_kwargs=True
        )
        for layer in layers
    ]
    try:
        with torch.inference_mode():
            model.generate(**inputs, do_sample=True, max_new_tokens=steps + 1, min_new_tokens=steps + 1)
    finally:
        for hook in hooks:
            hook.remove()
    mask = inputs.get("attention_mask")
    kept = slice(None) if mask is None else mask.flatten().bool().cpu()
    ids, factors = [], []
    for layer in layers:
        prompt, *decode = chosen[layer]
        parts = decode if phase == "decode" else [tuple(part[kept] for part in prompt)]
        ids.append(torch.cat([part[0] for part in parts]).numpy().astype(np.int32))
        factors.append(torch.cat([part[1] for part in parts]).numpy())
    num_experts = experts[layers[0]].down_proj.shape[0]
    return Recorded(np.stack(ids), np.array(layers), num_experts, about, np.stack(factors) if weights else None)


def _loaded(config: RecordConfig, dtype: Any, device: str) -> tuple[Any, Any]:
    """(model, its tokenizer or None). Raises PlanError."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if config.random:
        return build(load_whole(config.model), dtype, device, config.seed, dict(config.config or {})), None
    try:
        model = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype, device_map=device).eval()
        tokenizer = AutoTokenizer.from_pretrained(config.model, padding_side="left") if config.prompts else None
    except (OSError, ValueError) as error:
        raise PlanError(f"model={config.model}: transformers cannot load it: {str(error).splitlines()[0]}") from None
    return model, tokenizer


def _inputs(config: RecordConfig, model: Any, tokenizer: Any, device: str) -> dict[str, Any]:
    import torch

    if config.prompts is None:
        generator = torch.Generator().manual_seed(config.seed)
        shape = (config.sequences, config.prompt_tokens)
        ids = torch.randint(0, model.config.get_text_config().vocab_size, shape, generator=generator)
        return {"input_ids": ids.to(device)}
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return dict(tokenizer(_lines(config, config.prompts), return_tensors="pt", padding=True).to(device))


def _lines(config: RecordConfig, prompts: Path) -> list[str]:
    """The prompts. Raises PlanError for a file that cannot be read, or has too few."""
    try:
        lines = [line for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"prompts={prompts}: cannot be read: {error}") from None
    if len(lines) < config.sequences:
        raise PlanError(f"prompts={prompts}: it has {len(lines)}, sequences={config.sequences} are wanted")
    return lines[: config.sequences]


def run(config: RecordConfig) -> None:
    """Records as the keys say, and writes the file. Raises PlanError."""
    if not config.model:
        raise PlanError("model=... is needed: a checkpoint, or with random=true one of " + ", ".join(whole_names()))
    for name, allowed in (("phase", PHASES), ("dtype", DTYPES)):
        if getattr(config, name) not in allowed:
            raise PlanError(f"{name}={getattr(config, name)}: allowed are {', '.join(allowed)}")
    for name in ("sequences", "prompt_tokens", "steps"):
        if getattr(config, name) < 1:
            raise PlanError(f"{name}={getattr(config, name)}: must be at least 1")
    if config.prompts:
        if config.random:
            raise PlanError(f"prompts={config.prompts}: a model of random weights has no tokenizer, leave prompts out")
        _lines(config, config.prompts)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise PlanError(f"{error}: pip install '.[transformers]'") from None
    from tritonmoe_bench.experiments.workload.routing import TORCH_DTYPE

    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = _loaded(config, TORCH_DTYPE[config.dtype], device)
    inputs = _inputs(config, model, tokenizer, device)
    held = sorted(experts_of(model))
    spread = np.linspace(0, len(held) - 1, min(SPREAD, len(held))).round().astype(int)
    layers = sorted(set(config.layers)) or [held[place] for place in spread]
    source = f"random weights, config {dict(config.config or {})}" if config.random else "trained weights"
    prompts = f"{config.prompts.name}" if config.prompts else "random tokens"
    about = (
        f"{config.model}, {source}; {config.phase} of {config.sequences} sequences, prompts: {prompts}, "
        f"{config.dtype}, seed {config.seed}, transformers {transformers.__version__}"
    )
    torch.manual_seed(config.seed)
    recorded = record(model, inputs, layers, config.steps, config.phase, config.weights, about)
    out = config.out or Path(f"{Path(config.model).name}.npz")
    recorded.write(out)
    count, tokens, top_k = recorded.ids.shape
    print(
        f"{out}: {count} layers ({', '.join(map(str, layers))}), {tokens} tokens, top-{top_k} of "
        f"{recorded.num_experts} experts; `python experiments/sweep.py model=... routing={out}` runs them"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Records, or says how to ask; returns the exit status."""
    return command(RecordConfig, __doc__, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
