"""From JSON to frozen dataclasses: the one mechanism behind every setting and every preset.

A settings class is a frozen dataclass whose fields are declared with :func:`setting`. :func:`parse` turns a JSON
mapping into an instance and complains, in one sentence, about the first thing that does not fit: the key as the user
wrote it (``lesion.volume_ml``), the value, and what is allowed.

Types that a field may have: ``bool``, ``int``, ``float``, ``str``, another settings class, ``tuple[X, Y]`` (fixed
length), ``tuple[X, ...]``, ``dict[str, X]``, ``X | None`` and ``Any``. ``Range`` is ``tuple[float, float]`` with
low <= high, ``CountRange`` the same of whole numbers.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from nnunet_synthtumour.errors import UserError

T = TypeVar("T")

_ORDERED = object()
Range = Annotated[tuple[float, float], _ORDERED]
"""An interval (low, high), written ``[low, high]`` in JSON."""
CountRange = Annotated[tuple[int, int], _ORDERED]
"""Fewest and most."""


class SettingsError(UserError):
    """A setting that cannot be used; the message names the key, the value and what is allowed."""


def setting(
    default: Any = MISSING,
    *,
    factory: Any = MISSING,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
    doc: str = "",
) -> Any:
    """A dataclass field with its limits. ``low``, ``high`` and ``choices`` hold for every leaf of a tuple or dict."""
    metadata = {"low": low, "high": high, "choices": choices, "doc": doc}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def parse(cls: type[T], block: Mapping[str, Any] | None, where: str = "") -> T:
    """Build ``cls`` from ``block``; keys that are absent take the default. Raises :class:`SettingsError`."""
    block = {} if block is None else block
    if not isinstance(block, Mapping):
        raise SettingsError(f"{where or cls.__name__} is {_show(block)}, but a block of settings ({{...}}) is needed.")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    for key in block:
        if key not in fields:
            raise SettingsError(_unknown_key(_join(where, str(key)), str(key), list(fields)))
    values = {}
    for name, f in fields.items():
        if name in block:
            values[name] = _convert(block[name], hints[name], f.metadata, _join(where, name))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise SettingsError(f"{_join(where, name)} is missing: {f.metadata.get('doc') or 'it has no default'}.")
    try:
        return cls(**values)
    except SettingsError:
        raise
    except ValueError as error:  # from a __post_init__ that relates several fields
        raise SettingsError(f"{where or cls.__name__}: {error}") from error


def to_json(settings: Any) -> Any:
    """The inverse of :func:`parse`: plain dicts, lists and scalars."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: to_json(getattr(settings, f.name)) for f in dataclasses.fields(settings) if f.init}
    if isinstance(settings, Mapping):
        return {key: to_json(value) for key, value in settings.items()}
    if isinstance(settings, (tuple, list)):
        return [to_json(value) for value in settings]
    return settings


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``over`` put in its place, block by block; an empty block empties the one in its place."""
    merged = dict(base)
    for key, value in over.items():
        both = value and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_assignments(texts: Sequence[str], example: str, cls: Any = None) -> dict[str, Any]:
    """What `--set` takes: `shape.volume_ml=[5,20]` -> {"shape": {"volume_ml": [5, 20]}}, several merged.

    Where `cls` is the class that they are settings of, names in its mappings (of cases) may have dots.
    """
    merged: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--set {text} is not KEY=VALUE, for example --set {example}.")
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = value
        for step in reversed(_steps(key, cls)):
            parsed = {step: parsed}
        merged = merge(merged, parsed)
    return merged


def _steps(key: str, cls: Any) -> list[str]:
    """`roles.sub 1.v1` -> ["roles", "sub 1.v1"], and `intensities.sub 1.v1.mean` -> ["intensities", "sub 1.v1", "mean"]."""
    first, dot, rest = key.partition(".")
    if not dot:
        return [first]
    hint = typing.get_type_hints(cls).get(first) if dataclasses.is_dataclass(cls) else None
    values = get_args(hint)[1] if get_origin(hint) is dict else Any
    if values is Any:
        return [first, *_steps(rest, hint)]
    name, _, last = rest.rpartition(".")
    fields = {f.name for f in dataclasses.fields(values)} if dataclasses.is_dataclass(values) else set()
    return [first, name, last] if name and last in fields else [first, rest]


def leaves(settings: Any, where: str = "") -> dict[str, Any]:
    """Dotted key -> value for everything below ``settings``, nested settings classes and dicts opened."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.init}
    if isinstance(settings, Mapping) and (settings or not where):
        found: dict[str, Any] = {}
        for key, value in settings.items():
            found |= leaves(value, _join(where, str(key)))
        return found
    return {where: settings}


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _unknown_key(where: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else "known keys: " + ", ".join(sorted(known)) + "."
    return f"{where} is not a setting; {hint}"


def _convert(value: Any, hint: Any, limits: Mapping[str, Any], where: str) -> Any:
    origin = get_origin(hint)
    if origin is Annotated:
        base, *marks = get_args(hint)
        low_high = _convert(value, base, limits, where)
        if _ORDERED in marks and low_high[0] > low_high[1]:
            raise SettingsError(f"{where} is {_show(value)}, but the first number must not exceed the second.")
        return low_high
    if origin in (Union, types.UnionType):
        return _convert_union(value, hint, limits, where)
    if origin is tuple:
        return _convert_tuple(value, hint, limits, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise SettingsError(f"{where} is {_show(value)}, but a block ({{...}}) is needed.")
        return {str(k): _convert(v, get_args(hint)[1], limits, _join(where, str(k))) for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, typing.cast(type, hint)) else parse(typing.cast(type, hint), value, where)
    if hint is Any:
        return value
    return _convert_scalar(value, hint, limits, where)


def _convert_union(value: Any, hint: Any, limits: Mapping[str, Any], where: str) -> Any:
    options = get_args(hint)
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is not type(None):
            try:
                return _convert(value, option, limits, where)
            except SettingsError as error:
                errors.append(error)
    raise errors[0]


def _convert_tuple(value: Any, hint: Any, limits: Mapping[str, Any], where: str) -> Any:
    inner = get_args(hint)
    is_open = len(inner) == 2 and inner[1] is Ellipsis
    wanted = "a list" if is_open else f"a list of {len(inner)}"
    if not isinstance(value, (list, tuple)) or not (is_open or len(value) == len(inner)):
        raise SettingsError(f"{where} is {_show(value)}, but {wanted} is needed.")
    hints = [inner[0]] * len(value) if is_open else list(inner)
    return tuple(_convert(v, h, limits, f"{where}[{i}]") for i, (v, h) in enumerate(zip(value, hints, strict=True)))


_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _convert_scalar(value: Any, hint: Any, limits: Mapping[str, Any], where: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {
        bool: isinstance(value, bool),
        int: is_number and math.isfinite(value) and value == int(value),
        float: is_number and math.isfinite(value),
        str: isinstance(value, str) or (isinstance(value, int) and is_number),  # ids are texts that look like numbers
    }
    if hint not in fits:
        raise TypeError(f"{where}: the type {hint} cannot be a setting")  # our mistake, not the user's
    allowed = _allowed(hint, limits)
    if not fits[hint]:
        raise SettingsError(f"{where} is {_show(value)}, but {allowed} is needed.")
    value = hint(value)
    low, high, choices = (limits.get(key) for key in ("low", "high", "choices"))
    if choices is not None and value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
        hint_text = f" Did you mean '{near[0]}'?" if near else ""
        raise SettingsError(f"{where} is {_show(value)}, but {allowed} is needed.{hint_text}")
    if hint in (int, float) and ((low is not None and value < low) or (high is not None and value > high)):
        raise SettingsError(f"{where} is {_show(value)}, but {allowed} is needed.")
    return value


def _allowed(hint: Any, limits: Mapping[str, Any]) -> str:
    low, high, choices = (limits.get(key) for key in ("low", "high", "choices"))
    if choices is not None:
        return "one of " + ", ".join(repr(c) for c in choices)
    text = _WANTED[hint]
    if hint in (int, float):
        if low is not None and high is not None:
            return f"{text} from {low:g} to {high:g}"
        if low is not None:
            return f"{text} of at least {low:g}"
        if high is not None:
            return f"{text} of at most {high:g}"
    return text
