"""Checks the command line before Hydra runs: a typo ends at once, with one line that names what is allowed."""

from __future__ import annotations

import difflib
import importlib.util
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, ValidationError

from ..workload.config import CONF, SECTIONS, WANTED, PlanError, SweepConfig, load, names
from .plan import Plan, make_plan


@dataclass(frozen=True)
class Job:
    """A combination of the command line, planned. logs: where a submitit launcher puts what it prints."""

    config: SweepConfig
    plan: Plan
    logs: str


def check(arguments: Sequence[str]) -> list[list[str]]:
    """Raises PlanError for an override that cannot be. Flags (``-m``, ``--help``) are Hydra's own affair.

    Returns the overrides of every combination that -m runs.
    """
    texts = [text for text in arguments if not text.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(texts)
    except HydraException as error:
        raise PlanError(f"{' '.join(texts)}: not of the form key=value ({str(error).splitlines()[0]})") from None
    alternatives: list[list[str]] = []
    for text, override in zip(texts, parsed):
        key = override.key_or_group
        if key.replace("/", ".").split(".")[0] == "hydra":
            _check_launcher(text)
            alternatives.append([text])
            continue
        _check_key(key)
        if override.is_add() or override.is_force_add() or override.is_delete():
            raise PlanError(f"{text}: no key can be added or taken away, write {key}=...")
        values = _values(text, override, multirun(arguments))
        for value in values:
            _check_value(key, value)
        alternatives.append([f"{key}={value}" for value in values] if override.is_sweep_override() else [text])
    shapes = [text for text in texts if text.startswith("model.")]
    if shapes and not any(override.key_or_group == "model" for override in parsed):
        raise PlanError(f"{shapes[0]}: give model=... too, whose shape it changes, one of {', '.join(names('model'))}")
    first = [choices[0] for choices in alternatives]
    planned_job(first)
    for position, choices in enumerate(alternatives):
        for choice in choices[1:]:
            planned_job([*first[:position], choice, *first[position + 1 :]])
    return [list(combination) for combination in itertools.product(*alternatives)]


def multirun(arguments: Iterable[str]) -> bool:
    """Whether a command line asks for every combination of what stands between commas."""
    return any(text in ("-m", "--multirun", "hydra.mode=MULTIRUN") for text in arguments)


def planned_job(texts: list[str]) -> Job:
    """Composes and plans one combination, without running it. Raises PlanError."""
    from ..implementation.registry import implementations

    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = compose("config", texts, return_hydra_config=True)
        logs = OmegaConf.select(composed, "hydra.launcher.submitit_folder", default="").removesuffix("/%j")
        with open_dict(composed):
            del composed["hydra"]
        config: SweepConfig = OmegaConf.to_object(composed)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise PlanError(_reason(error)) from None
    return Job(config, make_plan(config, list(implementations())), logs)


def _reason(error: Exception) -> str:
    """In one line why a configuration cannot be composed."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if not isinstance(cause, OmegaConfBaseException) or not is_dataclass(cause.object_type):
        return " ".join(str(error).split("Config search path")[0].split())
    given = str(error).splitlines()[0].removeprefix("Error merging override ")
    if isinstance(cause, ValidationError):
        wanted = WANTED.get(get_type_hints(cause.object_type).get(str(cause.key), object))
        return f"{given}: {wanted} is needed" if wanted else f"{given}: {str(cause).splitlines()[0]}"
    return f"{str(cause).splitlines()[0]}: allowed are {', '.join(field.name for field in fields(cause.object_type))}"


def _check_key(key: str) -> None:
    """Of a key of SweepConfig, or of a key of one of its sections."""
    name, _, rest = key.partition(".")
    _check_name(key, name, [*SweepConfig.__dataclass_fields__, "hydra"])
    if rest and name not in SECTIONS:
        raise PlanError(f"{key}: {name} has no keys, write {name}=...")
    if rest:
        _check_name(key, rest.partition(".")[0], [field.name for field in fields(SECTIONS[name])], f"{name}.")


def _check_name(key: str, name: str, known: list[str], prefix: str = "") -> None:
    if name not in known:
        # Of words as close as each other the one with the same letters first: modle is model rather than modes.
        close = difflib.get_close_matches(name, known)
        close.sort(key=lambda word: sorted(word) != sorted(name))
        hint = f"did you mean {prefix}{close[0]}? " if close else ""
        raise PlanError(f"{key}: {hint}allowed are {', '.join(prefix + word for word in known)}")


def _values(text: str, override: Override, many: bool) -> list[str]:
    """The value of an override, or all that stand between its commas, which only -m takes."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    values = [str(value) for value in override.sweep_string_iterator()]
    if not many:
        key = override.key_or_group
        listed = "" if key in SECTIONS else f"as one list, {key}=[{','.join(values)}], or "
        raise PlanError(f"{text}: give several values {listed}one after another by -m {text}")
    return values


def _check_value(key: str, value: str) -> None:
    """Of a section, whose values are files of conf/, or of the name that its rows carry."""
    group, _, rest = key.partition(".")
    if key in SECTIONS:
        load(key, value)
    elif group in SECTIONS and rest == "name" and value in names(group):
        raise PlanError(f"{key}={value}: allowed are names that no file of conf/{group}/ has")


def _check_launcher(text: str) -> None:
    if text.startswith("hydra/launcher=submitit") and importlib.util.find_spec("submitit") is None:
        raise PlanError(f"{text}: not installed: pip install 'tritonmoe-bench[spread]'")
