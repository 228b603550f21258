"""Validation of values from outside: each function returns the value in its own type, or raises ValueError."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real


def whole(name: str, value, low: int, high: int | None = None) -> int:
    """A whole number in `low`..`high`; accepts a float such as 7.0, which JSON may send for 7."""
    fits = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not fits or not in_range(value, low, high):
        raise ValueError(f"{name} must be a whole number {span(low, high)}, not {shown(value)}")
    return int(value)


def number(name: str, value, low: float, high: float | None = None) -> float:
    """A finite number in `low`..`high`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not is_finite(value) or not in_range(value, low, high):
        raise ValueError(f"{name} must be a number {span(low, high)}, not {shown(value)}")
    return float(value)


def typed(name: str, value, kind) -> None:
    """Raise ValueError unless a value read from JSON is of this kind: a type, `[kind]` for a list, or `{field: kind}`
    for an object, in which `...` stands for all other fields and every field may be missing. Numbers must be finite."""
    if isinstance(kind, list) and isinstance(value, list):
        value, kind = dict(enumerate(value)), {...: kind[0]}
    if isinstance(kind, dict) and isinstance(value, dict):
        for field, part in value.items():
            typed(f"{name}{str(field)[:40]}.", part, kind.get(field, kind.get(..., object)))
    elif isinstance(kind, dict | list) or not isinstance(value, kind) or not is_finite(value):
        raise ValueError(f"{name.rstrip('.: ')} cannot be {shown(value)}")


@contextmanager
def complete(name: str) -> Iterator[None]:
    """Turn a missing field of a JSON file that was read before into a ValueError."""
    try:
        yield
    except KeyError as missing:
        raise ValueError(f"{name} lacks {missing}; measure or train again") from None


def is_finite(value) -> bool:
    """Whether this is no number, or one that a float can hold; False for NaN and 10**400."""
    return not isinstance(value, Real) or abs(value) <= sys.float_info.max


def plain_name(name: str, value) -> str:
    """A text that is one folder's name on every system, and needs no escaping in a page."""
    if not isinstance(value, str) or not re.fullmatch(r"\w[\w .+-]{0,59}(?<![ .])", value):
        raise ValueError(
            f"{name} must be a plain name of at most 60 letters, digits, spaces and . _ + -, not {shown(value)}"
        )
    return value


def in_range(value, low, high) -> bool:
    return low <= value and (high is None or value <= high)


def span(low, high) -> str:
    return f"from {low}" if high is None else f"from {low} to {high}"


def shown(value) -> str:
    """The value for a message, cut to one short line."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
