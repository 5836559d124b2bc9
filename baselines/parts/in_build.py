"""What adapters do in `build` before a forward is timed."""

from __future__ import annotations

from tritonmoe_bench.experiments.implementation.contract import Case, Forward, Implementation, Weights


class ConfiguredInBuild(Implementation):
    """A system whose tiles are known when `build` has run: it calls `configured`, and rows have the words."""

    def __init__(self) -> None:
        self._words: dict[tuple, str] = {}

    def config(self, case: Case) -> str:
        return self._words.get(_key(case), "")

    def configured(self, case: Case, words: str) -> None:
        """Keeps what `build` has chosen for the case's shape, dtype and tokens."""
        self._words[_key(case)] = words


def run_once(forward: Forward, case: Case, weights: Weights) -> Forward:
    """The forward, run once on random rows: it compiles, tunes and loads what it needs."""
    import torch

    with torch.inference_mode():
        forward(torch.randn(case.tokens, case.hidden_dim, dtype=weights.dtype, device=weights.device))
    return forward


def _key(case: Case) -> tuple:
    return (*case.weights_key, case.top_k, case.tokens)
