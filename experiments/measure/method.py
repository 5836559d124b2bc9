"""How this project measures, as numbered versions: what a row states, so that a report can tell old rows from new ones.

A version is raised by hand, with its reason, when rows measured before and after a change must not be mixed. The lock
of normalised sources (experiments/measure/revisions.py) asks for it when a function that decides a number changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from ..workload.config import CONF
from ..workload.settings import TimingSettings
from .measurement import kinds

METHOD = {"workload": 1, "latency": 3, "energy": 2, "traffic": 1, "tune": 1, "endtoend": 2, "trace": 1}
"""workload: routing, activations, weights. 1: first.
latency: timing of forwards and stages. 2: a sweep waits, between two cases, for the SM clock to recover. 3: a graph
holds as many forwards as last 3 ms in it; it held as many as would last 1 ms launched one by one, on small layers down
to one for each weight set. The first case over new weights is timed until two times agree.
energy: power and energy. 2: power is the slope through the steps of the energy counter, not its first and last step.
traffic: bytes by model, interpreter and hardware counters. 1: first.
tune: search for tiles. 1: first.
endtoend: decode steps of whole models. 2: the experts alone are timed as in version 3 of latency.
trace: time of each kernel of a forward. 1: first."""


def method_revision(kind: str, timing: Mapping[str, Any], versions: Mapping[str, int] | None = None) -> str:
    """The text in the column `method_revision`, such as "workload1+latency2+default".

    timing: the fields of `TimingSettings`; versions: of the method, today's by default.
    """
    versions = METHOD if versions is None else versions
    of = kinds()[kind]
    parts = [f"{name}{versions[name]}" for name in of.depends]
    return "+".join([*parts, timing_name(timing)] if of.timed else parts)


def timing_name(timing: Mapping[str, Any]) -> str:
    """The file of conf/timing/ that holds these settings, else a hash of them."""
    for path in sorted((CONF / "timing").glob("*.yaml")):
        if asdict(TimingSettings()) | dict(OmegaConf.load(path)) == dict(timing):
            return path.stem
    return hashlib.sha256(json.dumps(dict(timing), sort_keys=True).encode()).hexdigest()[:8]
