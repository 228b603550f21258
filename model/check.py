"""Validation of external values: each function returns the value in its own type, or raises ValueError."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from numbers import Integral, Real


def whole(name: str, value, low: int, high: float = inf) -> int:
    """A whole number in `low`..`high`; accepts a float such as 7.0, which JSON may send for 7."""
    fits = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not fits or not low <= value <= high:
        span = f"from {low}" if high == inf else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number {span}, not {shown(value)}")
    return int(value)


def number(name: str, value, low: float, high: float) -> float:
    """A finite number in `low`..`high`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not is_finite(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low} to {high}, not {shown(value)}")
    return float(value)


def typed(name: str, value, kind) -> None:
    """Raise ValueError unless a value read from JSON is of this kind.

    A kind is a type, `[kind]` for a list, or `{field: kind}` for an object, in which `...` stands for all other fields
    and any field may be missing. Numbers must be finite.
    """
    if isinstance(kind, list) and isinstance(value, list):
        value, kind = dict(enumerate(value)), {...: kind[0]}
    if isinstance(kind, dict) and isinstance(value, dict):
        for field, part in value.items():
            typed(f"{name}{str(field)[:40]}.", part, kind.get(field, kind.get(..., object)))
    elif isinstance(kind, dict | list) or not isinstance(value, kind) or not is_finite(value):
        raise ValueError(f"{name.rstrip('.: ')} cannot be {shown(value)}")


@contextmanager
def complete(name: str) -> Iterator[None]:
    """Turn the KeyError of a field missing in a JSON file into a ValueError."""
    try:
        yield
    except KeyError as missing:
        raise ValueError(f"{name} lacks {missing}; measure or train again") from None


def is_finite(value) -> bool:
    """False for a number that a float cannot hold, such as 10**400, and for NaN; True for anything else."""
    return not isinstance(value, Real) or abs(value) <= sys.float_info.max


def plain_name(name: str, value) -> str:
    """A text that is a valid folder name on every system and needs no escaping in HTML."""
    if not isinstance(value, str) or not re.fullmatch(r"\w[\w .+-]{0,59}(?<![ .])", value):
        raise ValueError(
            f"{name} must be a plain name of at most 60 letters, digits, spaces and . _ + -, not {shown(value)}"
        )
    return value


def shown(value) -> str:
    """The value as text for a message, shortened to 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
