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
    """What a claim comes to for the paper's own code.

    ratios: those that decide it, if any; points: at how many points the claim holds as published, and of how many;
    better, worse: at how many the code is better than claimed, and worse; earlier: whether a measurement before this
    harness says so, for want of rows; numbers and sources: as of a finding, by rows of that code.
    """

    verdict: Verdict
    ratios: pd.Series = field(default_factory=lambda: pd.Series(dtype=float))
    points: tuple[int, int] = (0, 0)
    better: int = 0
    worse: int = 0
    earlier: bool = False
    numbers: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()

    @classmethod
    def by_ratios(cls, ratios: pd.Series, low: float | pd.Series, high: float) -> OwnCode | None:
        """By the claim that each ratio of the earlier measurement lies from low to high; None without ratios."""
        if ratios.empty:
            return None
        better, worse = int((ratios > high).sum()), int((ratios < low).sum())
        held = len(ratios) - better - worse
        verdict = Verdict.of(held == len(ratios), held > 0)
        return cls(verdict, ratios, (held, len(ratios)), better, worse, earlier=True)

    @classmethod
    def by_rows(cls, finding: Finding) -> OwnCode:
        """What the claim's rule finds where rows of the paper's own code stand for those of the pipeline here."""
        pairs = finding.numbers.get("pairs", pd.DataFrame())
        ratios = pairs["ratio"] if "ratio" in pairs else pd.Series(dtype=float)
        return cls(
            finding.verdict, ratios, finding.held or (0, 0), *finding.misses, numbers=finding.numbers,
            sources=finding.sources,
        )  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What the rows say about one claim.

    numbers: what the claim's template prints, by name: numbers, and tables of them; sources: the files that decide and
    how many of their rows; held: at how many of the points that decide the claim holds as published, and of how many,
    where it is decided by points; misses: at how many it is better than claimed, and worse, where that can be said;
    lack: why there is no verdict, and then no numbers; own_code: what the claim comes to for the paper's own code.
    """

    verdict: Verdict
    numbers: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    held: tuple[int, int] | None = None
    misses: tuple[int, int] = (0, 0)
    lack: str = ""
    own_code: OwnCode | None = None
    claim: Claim = Claim("", "", "", {}, "")


Rule = Callable[[Evidence, Mapping[str, Any]], Finding]


@dataclass(frozen=True)
class _Registered:
    rule: Rule
    among: str
    figure: str
    of_paper_code: bool
    constants: Mapping[str, Any]


_RULES: dict[str, _Registered] = {}


def rule(
    claim_id: str, figure: str = "", among: Path = CLAIMS, of_paper_code: bool = False, **constants: Any
) -> Callable[[Rule], Rule]:
    """Registers the rule of a claim of the file `among`. figure and constants: see `Claim`; of_paper_code: whether the
    claim is about the paper's code, which then has a verdict of its own. Raises ValueError if the claim has a rule."""

    def register(function: Rule) -> Rule:
        if claim_id in _RULES and _RULES[claim_id].rule.__module__ != function.__module__:
            raise ValueError(f"claim {claim_id} has two rules")
        _RULES[claim_id] = _Registered(function, among.name, figure, of_paper_code, constants)
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
    """One finding for each claim, in the file's order; those of `CLAIMS` say what the paper's own code does."""
    of_paper_code, findings = evidence.of_paper_code(), []
    for claim in load_claims(path):
        known = _RULES[claim.id]
        try:
            finding = known.rule(evidence, claim.figures)
        except NoEvidence as lack:
            verdict = Verdict.NOT_TESTABLE if lack.tried else Verdict.UNDECIDED
            finding = Finding(verdict, sources=lack.sources, lack=str(lack))
        if path == CLAIMS:
            finding = replace(finding, own_code=_own_code(known, of_paper_code, evidence, claim, finding.own_code))
        findings.append(replace(finding, claim=claim))
    return findings


def _own_code(
    known: _Registered, of_paper_code: Evidence, evidence: Evidence, claim: Claim, earlier: OwnCode | None
) -> OwnCode:
    """By rows of the paper's own code; without them as an earlier measurement has it, or undecided."""
    if not known.of_paper_code:
        return OwnCode(Verdict.NOT_APPLICABLE)
    try:
        finding = known.rule(of_paper_code, claim.figures)
    except NoEvidence:
        return earlier or OwnCode(Verdict.UNDECIDED)
    every = {f"{name}.csv": len(frame) for name, frame in evidence.frames.items()}
    told = tuple(source._replace(total=every.get(source.file, source.total)) for source in finding.sources)
    return OwnCode.by_rows(replace(finding, sources=told))
