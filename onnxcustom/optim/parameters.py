"""Hyper-parameters: how a rule or a schedule declares them, with their default and range."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

__all__ = ["check_number", "check_parameters", "flag", "integer", "number"]


def number(default: float, interval: str) -> Any:
    """A dataclass field that holds a real number of `interval`, written as in ``"[0, 1)"``."""
    return dataclasses.field(default=default, metadata={"range": interval})


def integer(default: int, interval: str) -> Any:
    """A dataclass field that holds an integer of `interval`."""
    return dataclasses.field(default=default, metadata={"range": interval, "integer": True})


def flag(default: bool) -> Any:
    """A dataclass field that holds True or False."""
    return dataclasses.field(default=default, metadata={"flag": True})


def check_parameters(instance: Any) -> None:
    """Check every declared field of a dataclass instance.

    Raises
    ------
    ValueError
        A number outside its range; the message says the range.
    TypeError
        Something else in place of a number, or of True or False.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        name = f"{field.name} of {type(instance).__name__}"
        if "range" in field.metadata:
            check_number(name, value, field.metadata["range"], field.metadata.get("integer", False))
        elif "flag" in field.metadata and str(value) not in ("True", "False"):
            raise TypeError(f"{name} must be True or False, not {value!r}.")


def check_number(name: str, value: Any, interval: str, integral: bool = False) -> None:
    """Check that `value` is a number of an interval.

    Examples
    --------
    >>> check_number("momentum", 1.5, "[0, 1]")
    Traceback (most recent call last):
        ...
    ValueError: momentum must be in [0, 1], not 1.5.
    """
    kind = numbers.Integral if integral else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "an integer" if integral else "a number"
        raise TypeError(f"{name} must be {what} in {interval}, not {value!r}.")
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    x = float(value)
    above = x >= low if interval[0] == "[" else x > low
    below = x <= high if interval[-1] == "]" else x < high
    if math.isnan(x) or not (above and below):
        raise ValueError(f"{name} must be in {interval}, not {value!r}.")
