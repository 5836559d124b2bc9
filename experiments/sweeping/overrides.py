"""Reads the command line of a sweep before Hydra does: a typo is one line that names what is allowed."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import NoReturn, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, ValidationError

from ..workload.arguments import WANTED, check_name, refuse_flags, spelled
from ..workload.config import CONF, SECTIONS, PlanError, SweepConfig, load, names
from .plan import Plan, make_plan

_KEYS = SweepConfig.__dataclass_fields__


@dataclass(frozen=True)
class Job:
    """A combination of the command line, planned. logs: where a submitit launcher puts what it prints."""

    config: SweepConfig
    plan: Plan
    logs: str


@dataclass(frozen=True)
class CommandLine:
    """A command line of a sweep, taken apart.

    arguments: as Hydra is to get them; combinations: the overrides of every combination that -m runs, or of the one
    sweep; many: whether there is a -m; only_shown: whether Hydra prints something, such as --cfg job, and runs nothing.
    """

    arguments: list[str]
    combinations: list[list[str]]
    many: bool
    only_shown: bool


def read(arguments: Sequence[str]) -> CommandLine:
    """Checks a command line. Raises PlanError for a flag that Hydra has not, or an override that cannot be."""
    types = get_type_hints(SweepConfig) | {"model.name": str, "study.name": str, "hydra.sweep.dir": Path}
    flags = _flags(arguments)
    overrides = [_named_models(text) for text in spelled(flags.overrides, types)]
    many = flags.multirun or "hydra.mode=MULTIRUN" in overrides
    own = list(arguments)
    for text in flags.overrides:
        own.remove(text)
    only_shown = any((flags.cfg, flags.info, flags.hydra_help, flags.shell_completion))
    return CommandLine([*own, *overrides], check(overrides, many), many, only_shown)


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags and the overrides of a command line. Raises PlanError for a flag that is none of Hydra's."""
    parser = get_args_parser()
    known = {option for action in parser._actions for option in action.option_strings}
    refuse_flags([text for text in arguments if text.partition("=")[0] not in known], list(_KEYS))

    def refuse(message: str) -> NoReturn:
        raise PlanError(f"{' '.join(arguments)}: {message}")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args(arguments)


def _named_models(text: str) -> str:
    """`model=[a,b]` as `models=[a,b]`: in Hydra a list behind a section merges its files into one."""
    return text.replace("model=", "models=", 1) if text.startswith("model=[") else text


def check(texts: Sequence[str], many: bool) -> list[list[str]]:
    """Raises PlanError for an override that cannot be. Returns the overrides of every combination that -m runs."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(texts))
    except HydraException as error:
        raise PlanError(f"{' '.join(texts)}: not of the form key=value ({str(error).splitlines()[0]})") from None
    alternatives: list[list[str]] = []
    keys = [override.key_or_group for override in parsed]
    for text, key, override in zip(texts, keys, parsed):
        if keys.count(key) > 1:
            raise PlanError(f"{text}: {key}=... is given twice")
        if key.replace("/", ".").split(".")[0] == "hydra":
            _check_launcher(text)
            alternatives.append([text])
            continue
        check_name(text, key.partition(".")[0], [*_KEYS, "hydra"])
        _check_section(key)
        if override.is_add() or override.is_force_add() or override.is_delete():
            raise PlanError(f"{text}: no key can be added or taken away, write {key}=...")
        values = _values(text, override, many)
        for value in values:
            _check_value(key, value)
        alternatives.append([f"{key}={value}" for value in values] if override.is_sweep_override() else [text])
    shapes = [text for text in texts if text.startswith("model.")]
    if shapes and not any(override.key_or_group == "model" for override in parsed):
        raise PlanError(f"{shapes[0]}: give one model=... too, whose shape it changes: {', '.join(names('model'))}")
    first = [choices[0] for choices in alternatives]
    planned_job(first)
    for position, choices in enumerate(alternatives):
        for choice in choices[1:]:
            planned_job([*first[:position], choice, *first[position + 1 :]])
    return [list(combination) for combination in itertools.product(*alternatives)]


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


def _check_section(key: str) -> None:
    """Raises PlanError for a key below a section that has no such key, or below a key that is no section."""
    name, _, rest = key.partition(".")
    if rest and name not in SECTIONS:
        raise PlanError(f"{key}: {name} has no keys, write {name}=...")
    if rest:
        check_name(key, rest.partition(".")[0], [field.name for field in fields(SECTIONS[name])], f"{name}.")


def _values(text: str, override: Override, many: bool) -> list[str]:
    """The value of an override, or all that its commas, glob(...) or range(...) stand for, which only -m takes."""
    key, value = override.key_or_group, override.value()
    if not override.is_sweep_override():
        return [value if isinstance(value, str) else override.get_value_element_as_str()]
    if isinstance(value, Glob):
        known = names(key) if key in SECTIONS else []
        values = value.filter(known)
        if not values:
            raise PlanError(f"{text}: matches none of {', '.join(known) or 'the files of conf/'}")
    elif override.is_discrete_sweep():
        values = [str(value) for value in override.sweep_string_iterator()]
    else:
        raise PlanError(f"{text}: a sweep needs single values, such as {key}=1,2,4 or {key}=range(1,5)")
    if not many:
        listed = f"as one list, {key}=[{','.join(values)}], or " if key not in SECTIONS or key == "model" else ""
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
        raise PlanError(f"{text}: not installed: pip install '.[spread]'")
