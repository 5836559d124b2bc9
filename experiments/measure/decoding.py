"""transformers' own generate loop, timed step by step: plain, or with its decode step in one CUDA graph.

The loop, its cache and its checks are transformers'. In a graph only the call of the model is another one: where
transformers would put its compiled forward, there is a replay of the plain forward.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..workload.settings import TimingSettings

CONTEXT = 256
"""Positions of the static cache, which attention reads whole at every step."""
UNTIMED = 3
"""Steps before the first that is timed. The graph is captured in the first of them."""
LONGEST_MS = 800.0
"""Time that the timed steps of one generation take, beyond the fewest that the settings ask for."""


class Steps:
    """A stopping criterion of generate that notes when each token was made, and ends it when there are enough."""

    def __init__(self, settings: TimingSettings, timed: bool) -> None:
        self.fewest, self.most = (settings.min_samples, settings.samples) if timed else (1, 1)
        self.timed = timed
        self.marks: list[Any] = []
        self._began = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        if self.timed:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        self.marks.append(mark if self.timed else None)
        made = len(self.marks) - 1 - UNTIMED  # the first mark is the end of the prompt
        if made <= 0:
            self._began = time.perf_counter()
        late = 1e3 * (time.perf_counter() - self._began) > LONGEST_MS
        over = made >= self.most or (made >= self.fewest and late)
        return torch.full((input_ids.shape[0],), over, dtype=torch.bool, device=input_ids.device)

    def times_us(self) -> list[float]:
        """Of each timed step, in us."""
        torch.cuda.synchronize()
        return [1e3 * start.elapsed_time(end) for start, end in itertools.pairwise(self.marks[UNTIMED:])]


class Graphed:
    """The forward of a model as one CUDA graph, captured at the first call; later ones have inputs of the same shape.

    The cache is used where it lies. What its layers count in Python, as those of a sliding window do, from which
    transformers makes the next mask, is counted on at each replay. Raises RuntimeError for inputs of other shapes and
    for a sliding window that is full, which another graph would have to go on with, and what a capture raises where the
    forward waits for the GPU.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.graph: torch.cuda.CUDAGraph | None = None
        self.held: list[Any] = []
        self.spec: Any = None
        self.output: Any = None
        self.counted: dict[tuple[int, str], int] = {}

    def __call__(self, past_key_values: Any, **inputs: Any) -> Any:
        leaves, spec = pytree.tree_flatten(inputs)
        if self.graph is None:
            self.held = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            self.spec = spec
            self.graph = torch.cuda.CUDAGraph()
            before = _counters(past_key_values)
            with torch.cuda.graph(self.graph):
                own = pytree.tree_unflatten(self.held, spec)
                self.output = self.model(past_key_values=past_key_values, **own)
            steps = {key: value - before.get(key, value) for key, value in _counters(past_key_values).items()}
            self.counted = {key: step for key, step in steps.items() if step}
        else:
            self._count(past_key_values)
        if spec != self.spec:
            raise RuntimeError("the decode step was called with other inputs than it was captured with")
        for held, leaf in zip(self.held, leaves):
            if isinstance(leaf, torch.Tensor):
                if held.shape != leaf.shape:
                    raise RuntimeError(f"an input of the decode step was {list(held.shape)}, and is {list(leaf.shape)}")
                held.copy_(leaf)
        self.graph.replay()
        return self.output

    def _count(self, cache: Any) -> None:
        """What the call would have counted."""
        for (place, name), step in self.counted.items():
            layer = cache.layers[place]
            count = getattr(layer, name) + step
            if getattr(layer, "is_sliding", False) and count > layer.max_cache_len:
                raise RuntimeError(f"a sliding window of {layer.max_cache_len} is full: take fewer timing.samples")
            setattr(layer, name, count)


def _counters(cache: Any) -> dict[tuple[int, str], int]:
    """What the layers of a cache hold as whole numbers, by their place and the name."""
    return {
        (place, name): value
        for place, layer in enumerate(getattr(cache, "layers", ()))
        for name, value in vars(layer).items()
        if isinstance(value, int) and not isinstance(value, bool)
    }


@contextlib.contextmanager
def in_graph(model: Any) -> Iterator[None]:
    """Has generate run its decode step as one CUDA graph, where it would run a compiled forward."""
    graphed = Graphed(model)
    model.get_compiled_call = lambda _: graphed
    try:
        yield
    finally:
        del model.get_compiled_call


def generate(model: Any, batch: int, launch: str, steps: Steps, seed: int) -> None:
    """One greedy generation of `batch` sequences from one random token each, over a static cache.

    launch: ``graph`` or ``eager``. Raises what the model raises, and in a graph what `Graphed` does.
    """
    from transformers import StaticCache, StoppingCriteriaList

    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.config.vocab_size, (batch, 1), generator=generator).to(device)
    cache = StaticCache(config=model.config, max_cache_len=CONTEXT)
    with torch.inference_mode(), in_graph(model) if launch == "graph" else contextlib.nullcontext():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, do_sample=False,
            max_new_tokens=CONTEXT - 1, stopping_criteria=StoppingCriteriaList([steps]),
            disable_compile=launch == "eager",
        )  # fmt: skip
