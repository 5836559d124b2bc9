"""Checks the command line before Hydra runs: a typo ends at once, with one line that names what is allowed."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .plan import CONF, PlanError, SweepConfig, make_plan

GROUPS = ("model", "study", "timing")


def check(arguments: Sequence[str]) -> None:
    """Raises PlanError for an override that cannot be. Flags (``-m``, ``--help``) are Hydra's own affair."""
    texts = [text for text in arguments if not text.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(texts)
    except HydraException as error:
        raise PlanError(f"{' '.join(texts)}: not of the form key=value ({str(error).splitlines()[0]})") from None
    alternatives: list[list[str]] = []
    for text, override in zip(texts, parsed):
        name = override.key_or_group.split(".")[0]
        if name == "hydra" or name.startswith("hydra/") or override.is_delete():
            _check_launcher(text)
            continue
        _check_name(override.key_or_group, name)
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [None]
        if override.key_or_group in GROUPS:
            for value in values if values != [None] else [str(override.value())]:
                _check_group(override.key_or_group, str(value))
        prefix = "+" if override.is_add() else ""
        alternatives.append([text if value is None else f"{prefix}{override.key_or_group}={value}" for value in values])
    first = [choices[0] for choices in alternatives]
    for position, choices in enumerate(alternatives):
        for choice in choices if len(choices) > 1 or position == 0 else []:
            _compose([*first[:position], choice, *first[position + 1 :]])
    if not alternatives:
        _compose([])


def _compose(texts: list[str]) -> None:
    """Composes and plans one combination, without running it."""
    from .registry import implementations

    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config: SweepConfig = OmegaConf.to_object(compose("config", texts))  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException) as error:
        raise PlanError(" ".join(str(error).split())) from None
    if not config.list:
        make_plan(config, list(implementations()))


def _check_name(key: str, name: str) -> None:
    known = [*SweepConfig.__dataclass_fields__, "hydra"]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise PlanError(f"{key}: {hint}allowed are {', '.join(known)}")


def _check_launcher(text: str) -> None:
    if text.startswith("hydra/launcher=submitit") and importlib.util.find_spec("submitit") is None:
        raise PlanError(f"{text}: not installed: pip install 'tritonmoe-bench[spread]'")


def _check_group(group: str, value: str) -> None:
    allowed = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if value not in allowed and value != "None" and value != "null":
        raise PlanError(f"{group}={value}: allowed are {', '.join(allowed)}")
