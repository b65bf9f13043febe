"""Frozen dataclasses to and from plain dictionaries, strictly: an unknown key is an error with a suggestion."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import numbers
import os
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from glomo_dist.runtime.errors import ConfigError, suggest

T = TypeVar("T")
# Looked up anew for each of thousands of jobs they took most of the time of a plan. No function with the cache around
# it, as mypy doubts that a class has a hash.
_hints: Callable[[type], dict[str, Any]] = functools.cache(lambda cls: typing.get_type_hints(cls))
MOST = 10**15  # of what a setting counts: a sum of two fits 64 bits, and a product of some is a float
LARGEST = 1e38  # of what goes into a weight: they are float32, and torch has no better word for more
MOST_PROCESSES = 1024  # that are started on a machine at once
MOST_THREADS = 4096  # of one process; for many more OpenMP finds no memory, and ends the program


def to_dict(config: Any) -> dict[str, Any]:
    """JSON-able form of a (nested) dataclass; `from_dict` is its inverse."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], values: dict[str, Any], where: str = "config") -> T:
    """Build dataclass `cls` from `values`.

    where: named in errors, e.g. the file the values come from.
    Raises ConfigError for unknown or missing keys and for values of the wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected an object with the keys of {cls.__name__}, got {values!r}.")
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}.{suggest(key, fields)}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing key {missing[0]!r} of {cls.__name__}.")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def check_fields(config: Any, where: str) -> None:
    """For the `__post_init__` of a frozen dataclass: values given in Python are held to its types as a file's are.

    where: before each field's name in errors, such as "model.". A list becomes a tuple, a NumPy number one of Python,
    a path its text. Raises ConfigError for a value of another type, or that is none of the choices.
    """
    for name, hint in _hints(type(config)).items():
        object.__setattr__(config, name, _convert(hint, getattr(config, name), f"{where}{name}"))


def check_least(config: Any, where: str, least: int, *names: str, most: int | None = None) -> None:
    """After `check_fields`, for fields that are whole numbers, or none where their type says so: ConfigError for the
    first that is below `least`, or above `most` where that is given."""
    hints = _hints(type(config))
    for name in names:
        value = getattr(config, name)
        if value is None or (value >= least and (most is None or value <= most)):
            continue
        none = " or none" if type(None) in typing.get_args(hints[name]) else ""
        bound = f"at least {least}" if value < least else f"at most {most:,}"
        raise ConfigError(f"{where}{name} must be {bound}{none}, got {value}.")


def check_positive(config: Any, where: str, *names: str, most: float | None = None) -> None:
    """After `check_fields`, for fields that are floats, or none: ConfigError for the first that is not positive and
    finite, or above `most` where that is given."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (0 < value < math.inf and (most is None or value <= most)):
            bound = "finite" if most is None else f"at most {most:,.0f}"
            raise ConfigError(f"{where}{name} must be positive and {bound}, got {value}.")


def whole(name: str, value: Any, least: int, most: int = MOST, why: str = "") -> int:
    """`value` as a number of Python; ConfigError naming it unless it is a whole number from `least` to `most`.

    why: what the least is, in brackets.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= int(value) <= most:
        raise ConfigError(f"{name} must be a whole number from {least}{why} to {most:,}, got {value!r}.")
    return int(value)


def _convert(hint: Any, value: Any, where: str, none: str = "") -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        errors = []
        none = " or none" if type(None) in arguments else ""
        for option in arguments:
            if option is type(None):
                continue
            try:
                return _convert(option, value, where, none)
            except ConfigError as e:
                errors.append(str(e))
        raise ConfigError(errors[0])
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        return from_dict(typing.cast(type, hint), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where} must be one of {', '.join(map(str, arguments))}, got {value!r}.")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} must be a list, got {value!r}.")
        if ... not in arguments and len(value) != len(arguments):
            raise ConfigError(f"{where} must be a list of {len(arguments)}, got {list(value)!r}.")
        return tuple(_convert(arguments[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must map names to values, got {value!r}.")
        for key in value:
            if type(key) is not str:
                raise ConfigError(f"{where}: the name {key!r} is not text. Put it in quotes.")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Callable:
        if not callable(value):
            raise ConfigError(f"{where} must be a function or a class, got {value!r}.")
        return value
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if hint is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # of hundreds of digits
            raise ConfigError(f"{where} is larger than any float.") from None
    if hint is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if hint in (int, float, str, bool) and (type(value) is not hint):
        raise ConfigError(
            f"{where} must be {hint.__name__}{none}, got {value!r}.{_spelling(hint, value, none)}"
        )
    return value


def _spelling(hint: type, value: Any, none: str) -> str:
    """YAML takes 1e-3 for text, and the words that flags have for none."""
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return f" Write {float(value)!r}, without quotes, and an exponent as in 1.0e-3."
    return " None is null in a file." if none and value in ("all", "none") else ""
