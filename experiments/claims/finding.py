"""Findings, and the registry of rules: exactly one for each claim of results/paper/claims.yaml."""

from __future__ import annotations

import enum
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tritonmoe_bench import ROOT

from ..analysis.compare import NoEvidence
from .evidence import Evidence

CLAIMS = ROOT / "results" / "paper" / "claims.yaml"
RULE_MODULES = ("speed", "skew", "assignment", "resources", "correctness", "decode", "fusion")


class Verdict(str, enum.Enum):
    """What the rows say about a claim."""

    HOLDS = "holds"
    IN_PART = "holds in part"
    DOES_NOT = "does not hold"
    NOT_TESTABLE = "not testable here"
    UNDECIDED = "undecided"

    def counted(self, count: int) -> str:
        """So many claims, and this verdict, as in "2 hold in part"."""
        if self in (Verdict.NOT_TESTABLE, Verdict.UNDECIDED):
            return f"{count} {'is' if count == 1 else 'are'} {self.value}"
        verb, _, rest = self.value.partition(" ")
        plural = {"holds": "hold", "does": "do"}[verb]
        return " ".join(filter(None, [str(count), verb if count == 1 else plural, rest]))

    @classmethod
    def of(cls, everywhere: bool | np.bool_, somewhere: bool | np.bool_) -> Verdict:
        """Holds at every point, in part at some, or at none."""
        return cls.HOLDS if everywhere else cls.IN_PART if somewhere else cls.DOES_NOT


@dataclass(frozen=True)
class Finding:
    """What the rows say about one claim.

    measured: the numbers in short; sentence: one generated sentence; rows: the CSV and how many of its rows decide;
    held: at how many of the points that decide the claim holds as published, and of how many, where it is decided by
    points; figure: name of the figure without its ending, empty if none shows it; id, source and claim are the claim's
    own.
    """

    verdict: Verdict
    measured: str
    sentence: str
    rows: str
    held: tuple[int, int] | None = None
    figure: str = ""
    id: str = ""
    source: str = ""
    claim: str = ""

    @property
    def points(self) -> str:
        """`held` as text, as in "3 of 4", empty without it."""
        return f"{self.held[0]} of {self.held[1]}" if self.held else ""


Rule = Callable[[Evidence, Mapping[str, Any]], Finding]


@dataclass(frozen=True)
class _Registered:
    rule: Rule
    text: str
    figure: str


_RULES: dict[str, _Registered] = {}


def rule(claim_id: str, text: str, figure: str = "") -> Callable[[Rule], Rule]:
    """Registers the rule of a claim. `text` says when it holds, in part and not, with the claim's figures in braces."""

    def register(function: Rule) -> Rule:
        if claim_id in _RULES and _RULES[claim_id].rule.__module__ != function.__module__:
            raise ValueError(f"claim {claim_id} has two rules")
        _RULES[claim_id] = _Registered(function, text, figure)
        return function

    return register


def load_claims(path: Path = CLAIMS) -> list[dict[str, Any]]:
    """The claims, in the file's order. Raises ValueError unless claims and rules match one to one."""
    for module in RULE_MODULES:
        importlib.import_module(f".{module}", __package__)
    claims = yaml.safe_load(path.read_text(encoding="utf-8"))
    ids = [claim["id"] for claim in claims]
    without_rule = sorted(set(ids) - set(_RULES))
    without_claim = sorted(set(_RULES) - set(ids))
    if without_rule or without_claim or len(ids) != len(set(ids)):
        raise ValueError(
            f"{path.name} and the rules differ: claims without a rule {without_rule}, rules without a claim "
            f"{without_claim}, ids given twice {sorted({i for i in ids if ids.count(i) > 1})}"
        )
    return claims


def decide(evidence: Evidence, path: Path = CLAIMS) -> list[Finding]:
    """One finding a claim, in the file's order."""
    findings = []
    for claim in load_claims(path):
        registered = _RULES[claim["id"]]
        try:
            finding = registered.rule(evidence, claim["figures"])
        except NoEvidence as lack:
            verdict = Verdict.NOT_TESTABLE if lack.tried else Verdict.UNDECIDED
            sentence = f"{lack}; what decides it: {claim['decided_by']}."
            finding = Finding(verdict, "-", sentence, lack.rows)
        findings.append(
            replace(finding, figure=registered.figure, id=claim["id"], source=claim["source"], claim=claim["claim"])
        )
    return findings


def rules_text(path: Path = CLAIMS) -> Sequence[tuple[str, str]]:
    """(claim id, its rule in words with the claim's figures filled in), in the file's order."""
    return [(claim["id"], _RULES[claim["id"]].text.format(**claim["figures"])) for claim in load_claims(path)]
