"""How long and how often a latency is sampled: the one place of these numbers. Imports neither torch nor triton."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TimingSettings:
    """Settings of experiments/measure/timing.py; `timing.samples=...` and the like on the command line change them.

    samples: most samples of a latency; min_samples: fewest; budget_ms: GPU time that one latency may take between
    the two; min_replay_us: least length of a chained sample, if 4096 forwards last as long; cold_factor: the working
    set of a chain over the L2.
    """

    samples: int = 40
    min_samples: int = 8
    budget_ms: float = 120.0
    min_replay_us: float = 3000.0
    cold_factor: float = 4.0
