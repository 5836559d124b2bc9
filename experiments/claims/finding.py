"""Findings, and the registry of rules: exactly one for each claim of results/paper/claims.yaml and disputed.yaml."""

from __future__ import annotations

import enum
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from tritonmoe_bench import ROOT

from ..analysis.compare import NoEvidence, Source
from .evidence import Evidence

CLAIMS = ROOT / "results" / "paper" / "claims.yaml"
"""What is claimed of this kind of kernel, by the paper and others."""
DISPUTED = CLAIMS.with_name("disputed.yaml")
"""What public threads contradict each other on."""


class Verdict(str, enum.Enum):
    """What the rows say about a claim."""

    HOLDS = "holds"
    IN_PART = "holds in part"
    DOES_NOT = "does not hold"
    NOT_APPLICABLE = "not applicable"
    NOT_TESTABLE = "not testable here"
    UNDECIDED = "undecided"

    @classmethod
    def of(cls, everywhere: bool | np.bool_, somewhere: bool | np.bool_) -> Verdict:
        """Holds at every point, in part at some, or at none."""
        return cls.HOLDS if everywhere else cls.IN_PART if somewhere else cls.DOES_NOT


@dataclass(frozen=True)
class Claim:
    """An entry of claims.yaml: the claim in our words, where it comes from, its figures, and what would decide it.

    threads: where it is disputed, as in owner/name#number; figure: name of the figure that shows it, without its
    ending, empty if none does; constants: what its rule decides with beside the claim's figures. Both are the rule's.
    """

    id: str
    source: str
    claim: str
    figures: Mapping[str, Any]
    decided_by: str
    threads: Sequence[str] = ()
    figure: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnCode:
    """What an earlier measurement of the paper's own code says of a claim: its ratios, and at how many points it is
    better than claimed, and worse."""

    verdict: Verdict
    ratios: pd.Series
    better: int
    worse: int

    @classmethod
    def of(cls, ratios: pd.Series, low: float | pd.Series, high: float) -> OwnCode | None:
        """By the claim that each ratio lies from low to high; None without ratios."""
        if ratios.empty:
            return None
        better, worse = int((ratios > high).sum()), int((ratios < low).sum())
        return cls(Verdict.of(better + worse == 0, better + worse < len(ratios)), ratios, better, worse)

    @property
    def held(self) -> int:
        """At how many points the claim holds as published."""
        return len(self.ratios) - self.better - self.worse


@dataclass(frozen=True)
class Finding:
    """What the rows say about one claim.

    numbers: what the claim's template prints, by name: numbers, and tables of them; sources: the files that decide and
    how many of their rows; held: at how many of the points that decide the claim holds as published, and of how many,
    where it is decided by points; lack: why there is no verdict, and then no numbers; own_code: what the paper's own
    code does, where that was measured.
    """

    verdict: Verdict
    numbers: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    held: tuple[int, int] | None = None
    lack: str = ""
    own_code: OwnCode | None = None
    claim: Claim = Claim("", "", "", {}, "")


Rule = Callable[[Evidence, Mapping[str, Any]], Finding]


@dataclass(frozen=True)
class _Registered:
    rule: Rule
    among: str
    figure: str
    constants: Mapping[str, Any]


_RULES: dict[str, _Registered] = {}


def rule(claim_id: str, figure: str = "", among: Path = CLAIMS, **constants: Any) -> Callable[[Rule], Rule]:
    """Registers the rule of a claim of the file `among`. figure and constants: see `Claim`. Raises ValueError if the
    claim has one."""

    def register(function: Rule) -> Rule:
        if claim_id in _RULES and _RULES[claim_id].rule.__module__ != function.__module__:
            raise ValueError(f"claim {claim_id} has two rules")
        _RULES[claim_id] = _Registered(function, among.name, figure, constants)
        return function

    return register


def load_claims(path: Path = CLAIMS) -> list[Claim]:
    """The claims, in the file's order. Raises ValueError unless its claims and the rules for them match one to one."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f".{module.name}", __package__)
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    ids = [entry["id"] for entry in entries]
    rules = {claim_id for claim_id, known in _RULES.items() if known.among == path.name}
    without_rule = sorted(set(ids) - rules)
    without_claim = sorted(rules - set(ids))
    if without_rule or without_claim or len(ids) != len(set(ids)):
        raise ValueError(
            f"{path.name} and the rules differ: claims without a rule {without_rule}, rules without a claim "
            f"{without_claim}, ids given twice {sorted({i for i in ids if ids.count(i) > 1})}"
        )
    return [
        Claim(**entry, figure=_RULES[entry["id"]].figure, constants=_RULES[entry["id"]].constants) for entry in entries
    ]


def decide(evidence: Evidence, path: Path = CLAIMS) -> list[Finding]:
    """One finding for each claim, in the file's order."""
    findings = []
    for claim in load_claims(path):
        try:
            finding = _RULES[claim.id].rule(evidence, claim.figures)
        except NoEvidence as lack:
            verdict = Verdict.NOT_TESTABLE if lack.tried else Verdict.UNDECIDED
            finding = Finding(verdict, sources=lack.sources, lack=str(lack))
        findings.append(replace(finding, claim=claim))
    return findings
