"""Validation of values from outside: each function returns the value in its own type, or raises ValueError."""

import re
import sys
from numbers import Integral, Real


def whole(name: str, value, low: int, high: int | None = None) -> int:
    """A whole number in `low`..`high`; accepts a float such as 7.0, which JSON may send for 7."""
    fits = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not fits or not in_range(value, low, high):
        raise ValueError(f"{name} must be a whole number {span(low, high)}, not {shown(value)}")
    return int(value)


def number(name: str, value, low: float, high: float | None = None) -> float:
    """A finite number in `low`..`high`."""
    finite = (
        not isinstance(value, bool) and isinstance(value, Real) and abs(value) <= sys.float_info.max
    )  # False for NaN and 10**400
    if not finite or not in_range(value, low, high):
        raise ValueError(f"{name} must be a number {span(low, high)}, not {shown(value)}")
    return float(value)


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
