"""Options of a bundle's commands: unknown ones are refused, and those that shape a training are kept.

MONAI takes every option of ``python -m monai.bundle run`` for an override, and adds it to the configuration where it is
unknown. An expression of a configuration does not see the configuration, nor what was given: both are found on the
stack, in the public arguments of `monai.bundle.run` and in MONAI's resolver, of which the expression is an item.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from numbers import Real
from pydoc import locate
from types import FrameType
from typing import Any

import monai.bundle
from monai.bundle import ConfigComponent, ConfigParser, ReferenceResolver
from monai.utils import str2bool

ENTRIES = ("imports", "initialize", "finalize", "run", "_meta_")


def check_options() -> None:
    """Accepts the options of the running command; a configuration calls this first.

    An option is known when the configuration's files have its id, or an argument of that name is taken there, and when
    the workflow makes use of it. Does nothing where no command of `monai.bundle.run` is running.

    Raises:
        ValueError: when an option is unknown, which one is similar is said; or its value is of another kind than its
            default.
    """
    command = next((frame for frame in _frames() if frame.f_code is monai.bundle.run.__code__), None)
    if command is None or not command.f_locals["override"]:
        return
    parser = ConfigParser()
    parser.read_config(command.f_locals["config_file"])
    run_id = command.f_locals["run_id"] or "run"
    for name, value in command.f_locals["override"].items():
        _check_name(parser, ReferenceResolver.normalize_id(name).replace("::", "#"), run_id)
        _check_kind(name, value, parser.get(name))


def configuration(ids: Iterable[str]) -> dict[str, Any]:
    """Returns parts of the configuration in which this is called, as they stand in it, overrides included.

    Args:
        ids: ids at its top.

    Returns:
        The parts by their ids, as JSON has them; ``None`` for those that it lacks.

    Raises:
        RuntimeError: when this is not called in a configuration.
    """
    resolvers = (frame.f_locals.get("self") for frame in _frames())
    resolver = next((found for found in resolvers if isinstance(found, ReferenceResolver)), None)
    if resolver is None:
        raise RuntimeError("options.configuration is for the expressions of a configuration.")
    whole = resolver.items[""].get_config()
    return {id: json.loads(json.dumps(whole.get(id), default=str)) for id in ids}


def differences(before: Any, now: Any, id: str = "") -> dict[str, tuple[Any, Any]]:
    """Finds where two configurations differ.

    Args:
        before: a configuration, or part of one.
        now: another one.
        id: id of the part.

    Returns:
        Both values by the ids of the smallest parts that differ.
    """
    if before == now:
        return {}
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return {id: (before, now)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*before, *(key for key in now if key not in before)]:
        found |= differences(before.get(key), now.get(key), f"{id}#{key}" if id else key)
    return found


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _check_name(parser: ConfigParser, name: str, run_id: str) -> None:
    """Raises where nothing is called so, or nothing refers to it, above or below it."""
    used = _references(parser.get())

    def is_used(id: str) -> bool:
        return any(id == other or id.startswith(f"{other}#") or other.startswith(f"{id}#") for other in used)

    if name.partition("#")[0] in (*ENTRIES, run_id):
        return
    if is_used(name) and (name in parser or _is_argument(parser, name)):
        return
    known = [id for id in _ids(parser.get()) if is_used(id) and not id.startswith(ENTRIES)]
    similar = [id for id in known if id.rpartition("#")[2] == name.rpartition("#")[2]]
    similar += get_close_matches(name, known)
    options = [f"--{id}" for id in dict.fromkeys(similar)] or [f"--{id}" for id in known if "#" not in id]
    advice = f"Did you mean {' or '.join(options[:3])}?" if similar else f"There are {', '.join(options)}."
    raise ValueError(f"{run_id} has no option --{name}, or makes no use of it. {advice}")


def _ids(config: Any, id: str = "") -> Iterator[str]:
    """Ids of dictionaries' parts."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        inner = f"{id}#{key}" if id else key
        yield inner
        yield from _ids(value, inner)


def _references(config: Any) -> set[str]:
    """Ids that something refers to."""
    if isinstance(config, str):
        return {id.replace("::", "#") for id in ReferenceResolver.match_refs_pattern(config)}
    values = config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else []
    return {id for value in values for id in _references(value)}


def _is_argument(parser: ConfigParser, name: str) -> bool:
    """Whether a component of the configuration takes an argument that it is not given there."""
    parent, _, argument = name.rpartition("#")
    part = parser.get(parent) if parent else None
    if not ConfigComponent.is_instantiable(part):
        return False
    target: Any = locate(str(ConfigComponent(part).resolve_module_name()))
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(each)["__init__"] for each in target.__mro__ if "__init__" in vars(each)]
        last = next((index for index, each in enumerate(functions) if not _takes_any(each)), len(functions))
        functions = functions[: last + 1]  # what takes **kwargs hands them to its base
    takes_any = not inspect.isclass(target) and _takes_any(target)
    names = {name for each in functions for name in inspect.signature(each).parameters}
    return argument == "_disabled_" or takes_any or argument in names


def _takes_any(function: Any) -> bool:
    """Whether it has **kwargs."""
    return any(each.kind == each.VAR_KEYWORD for each in inspect.signature(function).parameters.values())


def _check_kind(name: str, value: Any, default: Any) -> None:
    """Raises where a value is no switch, number or list of numbers, but the default is."""
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        return
    if isinstance(default, bool):
        try:
            str2bool(value)
        except ValueError as error:
            raise ValueError(f"--{name} must be true or false, got {value!r}.") from error
    elif _is_numeric(default) and not _is_numeric(value):
        raise ValueError(f"--{name} must be of numbers, as the default {default} is, got {value!r}.")


def _is_numeric(value: Any) -> bool:
    """Whether it is a number, or a list of numbers or such lists."""
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(map(_is_numeric, value))
    return isinstance(value, Real) and not isinstance(value, bool)
