"""The one dialect of all commands: `key=value` as Hydra takes it, and `--help`.

A dataclass holds the keys of a command; `key` makes its fields and says what they mean. A list stands in brackets. Keys
may come in capitals, as the variables of make do. A path is taken as it is typed, with spaces and with `~`, and a name
is text whatever it looks like.
"""

from __future__ import annotations

import difflib
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tritonmoe_bench import ROOT

from ..checkout import interruptible, one_line

Config = TypeVar("Config")
WANTED = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
WIDTH = 100


class PlanError(ValueError):
    """A configuration that cannot be run; the message is one line and names what is allowed."""

    one_line = True  # for experiments/checkout.py


def key(default: Any, meaning: str, values: Iterable[object] | Callable[[], Iterable[object]] = ()) -> Any:
    """A field of a dataclass of keys. values: what may stand behind the key, or a function that lists it. The help
    leaves out a key without a meaning."""
    metadata = {"meaning": meaning, "values": values}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    if callable(default):  # a section, made by its class
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def command(
    kind: type[Config], doc: str | None, work: Callable[[Config], int | None], arguments: Sequence[str] | None = None
) -> int:
    """Runs a command over its arguments, by default those of this process; returns the exit status.

    What the user can mend is one line on stderr, and so is an interrupt.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if asks_help(given):
        print(help_text(kind, doc))
        return 0
    try:
        config = read(kind, given)
        interruptible()
        return work(config) or 0
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1


def read(kind: type[Config], arguments: Sequence[str]) -> Config:
    """The keys of a command line. Raises PlanError, in one line, for a typo or a value that cannot be."""
    types = get_type_hints(kind)
    config = OmegaConf.structured(kind)
    given: set[str] = set()
    refuse_flags(arguments, list(types))
    for text, spelt in zip(arguments, spelled(arguments, types)):
        override = parse(spelt, list(types))
        name = override.key_or_group
        check_name(text, name, list(types))
        if name in given:
            raise PlanError(f"{text}: {name}=... is given twice")
        if override.is_sweep_override():
            raise PlanError(f"{text}: several values stand in brackets, {name}=[..,..]")
        given.add(name)
        value = override.value()
        listed = get_origin(types[name]) is list
        try:
            OmegaConf.update(config, name, [value] if listed and not isinstance(value, list) else value)
        except OmegaConfBaseException:
            wanted = WANTED.get((get_args(types[name]) or [types[name]])[0], "another value")
            raise PlanError(f"{text}: {wanted} is needed" + ", or a list of such in brackets" * listed) from None
    return OmegaConf.to_object(config)  # type: ignore[return-value]


def parse(text: str, known: Sequence[str]) -> Override:
    """One `key=value`. Raises PlanError that names the keys."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        raise PlanError(f"{text}: not of the form key=value; {_allowed(known)}") from None


def spelled(arguments: Sequence[str], types: dict[str, Any]) -> list[str]:
    """Arguments as Hydra's grammar takes them: keys in small letters, paths absolute, paths and names in quotes.

    types: by key; a key of the type Path is a path, one of the type str is a name. Raises PlanError.
    """
    return [_spelled(text, types) for text in arguments]


def _spelled(text: str, types: dict[str, Any]) -> str:
    name, equals, value = text.partition("=")
    if not equals or text.startswith("-"):
        return text
    name = name.lower() if name.isupper() else name
    if value.startswith(("'", '"')):
        return f"{name}={value}"
    kinds = [types.get(name), *get_args(types.get(name))]
    if Path in kinds:
        value = _quoted(_absolute(name, value))
    elif types.get(name) is str and re.fullmatch(r"[\w.+-]+", value):
        value = _quoted(value)
    return f"{name}={value}"


def _absolute(name: str, value: str) -> str:
    if not value.strip():
        raise PlanError(f"{name}=: a path is needed")
    try:
        return value if "${" in value else str(Path(value).expanduser().absolute())
    except RuntimeError as error:
        raise PlanError(f"{name}={value}: {error}") from None


def _quoted(value: str) -> str:
    # In Hydra's quotes a backslash is itself, but in front of a quotation mark.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + "\\'" * bool(found[2]), value) + "'"


def refuse_flags(arguments: Sequence[str], known: Sequence[str]) -> None:
    """Raises PlanError for a `--key value`, with the `key=value` that says it."""
    for place, text in enumerate(arguments):
        if text.startswith("-"):
            name, _, value = text.lstrip("-").replace("-", "_").partition("=")
            values = [value] if value else []
            for following in arguments[place + 1 :] if not value else []:
                if following.startswith("-") or "=" in following:
                    break
                values.append(following)
            if name not in known:
                raise PlanError(f"{text}: {_allowed(known)}, and --help")
            said = f"[{','.join(values)}]" if len(values) > 1 else (values or ["true"])[0]
            raise PlanError(f"{text}: write {name}={said}")


def check_name(text: str, name: str, known: Sequence[str], prefix: str = "") -> None:
    """Raises PlanError for a name that is not known, with the one that may be meant."""
    if name not in known:
        # Among words equally close, one with the same letters comes first: modle means model rather than modes.
        close = difflib.get_close_matches(name, known)
        close.sort(key=lambda word: sorted(word) != sorted(name))
        hint = f"did you mean {prefix}{close[0]}? " if close else ""
        raise PlanError(f"{text}: {hint}{_allowed([prefix + word for word in known])}")


def _allowed(words: Sequence[str]) -> str:
    return f"allowed are {', '.join(words)}"


def asks_help(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for the help of its command."""
    return bool({"-h", "--help"} & set(arguments))


def help_text(kind: type, doc: str | None) -> str:
    """The help of a command: its docstring, then its keys with their defaults, meanings and values."""
    shown = {each.name: f"  {each.name}={_default(each)}" for each in fields(kind) if each.metadata["meaning"]}
    indent = min(max(map(len, shown.values())), 26) + 2
    lines = []
    for each in [each for each in fields(kind) if each.name in shown]:
        values = each.metadata["values"]
        listed = ", ".join(map(str, values() if callable(values) else values))
        meaning = each.metadata["meaning"] + (f": {listed}" if listed else "")
        first = shown[each.name].ljust(indent - 2)
        if len(first) > indent - 2:
            lines.append(first)
            first = ""
        body = textwrap.wrap(meaning, WIDTH - indent, break_on_hyphens=False, break_long_words=False)
        lines += [f"{(first if not index else ''):{indent}}{part}" for index, part in enumerate(body)]
    return "\n".join([(doc or "").strip(), "", "Keys, with their defaults; a list stands in brackets:", *lines])


def _default(each: Any) -> str:
    value = each.default_factory() if each.default is MISSING else each.default
    if isinstance(value, Path):
        return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value)
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return "" if value in (None, "") or not isinstance(value, (str, int, float)) else str(value).lower()
