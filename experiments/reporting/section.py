"""The sections of the report: every module of sections/ that defines TITLE, ORDER and content(material).

`content` gives what the template templates/sections/<module>.j2 prints, by name, or None if there is nothing to show.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from ..analysis.results import Study
from ..claims import Outcomes
from . import sections
from .texts import ClaimTexts, environment


@dataclass(frozen=True)
class Material:
    """What the sections are made from.

    results, figures: folders; claims, disputed: what the rows say of the published claims and of those that the field
    disputes; studies: the current run of each study of `device`, the GPU that decides; others,
    other_claims: the rows of every other GPU by study, and what they say of the claims; outcomes: of tests and
    compilers.
    """

    results: Path
    figures: Path
    device: str
    claims: list[ClaimTexts]
    disputed: list[ClaimTexts] = field(default_factory=list)
    studies: Mapping[str, Study] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)
    other_claims: Mapping[str, list[ClaimTexts]] = field(default_factory=dict)
    outcomes: Outcomes = field(default_factory=Outcomes)

    @cached_property
    def frames(self) -> dict[str, pd.DataFrame]:
        """The rows of each study of `device`."""
        return {name: study.rows for name, study in self.studies.items()}

    @property
    def gpus(self) -> dict[str, Mapping[str, pd.DataFrame]]:
        """The rows of every GPU by study, `device` first."""
        return {self.device: self.frames, **self.others}

    def rows(self, study: str) -> pd.DataFrame:
        """The rows of a study of `device`, empty if it was not run."""
        return self.frames.get(study, pd.DataFrame())


@dataclass(frozen=True)
class Section:
    """A heading and the Markdown below it."""

    title: str
    text: str


def modules() -> list[ModuleType]:
    """Every section's module in the order of the report; of equal ORDER by name."""
    found = [
        importlib.import_module(f"{sections.__name__}.{info.name}") for info in pkgutil.iter_modules(sections.__path__)
    ]
    return sorted(found, key=lambda module: (module.ORDER, module.__name__))


def make_sections(material: Material, base: Path) -> list[Section]:
    """Every section that has something to show; `base` is the folder that links to pictures start from."""
    made = []
    for module in modules():
        content = module.content(material)
        if content is not None:
            made.append(Section(module.TITLE, render(module, content, material, base)))
    return made


def render(module: ModuleType, content: Mapping[str, Any], material: Material, base: Path) -> str:
    """The Markdown of one section."""
    template = environment().get_template(f"sections/{module.__name__.rpartition('.')[2]}.j2")
    return template.render({"device": material.device, "base": base, **content}).strip()
