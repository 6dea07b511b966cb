"""Parameters of rules, schedules, losses and penalties: declared with a range, checked, stored."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import numbers
import operator
import os
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import numpy as np

from onnxcustom._registry import did_you_mean
from onnxcustom.exceptions import InvalidParameterError, UnknownNameError

__all__ = [
    "Parameters",
    "check_count",
    "check_flag",
    "check_given",
    "check_number",
    "check_parameters",
    "check_path",
    "choice",
    "flag",
    "integer",
    "is_count",
    "number",
    "optional",
    "own_parameters",
]


def number(default: float, interval: str, scheduled: bool = False, kw_only: Any = MISSING) -> Any:
    """A dataclass field that holds a real number of `interval`, written as in ``"[0, 1)"``.

    With `scheduled`, the field of an update rule may hold a schedule or a function of the step too.
    """
    metadata = {"range": interval, "scheduled": scheduled}
    return dataclasses.field(default=default, kw_only=kw_only, metadata=metadata)


def optional(interval: str) -> Any:
    """A dataclass field that holds a real number of `interval`, or None, its default."""
    return dataclasses.field(default=None, metadata={"range": interval, "optional": True})


def integer(default: int, interval: str) -> Any:
    """A dataclass field that holds an integer of `interval`."""
    return dataclasses.field(default=default, metadata={"range": interval, "integer": True})


def choice(default: str, *others: str) -> Any:
    """A dataclass field that holds one of a few words."""
    return dataclasses.field(default=default, metadata={"choice": (default, *others)})


def flag(default: bool | None, kw_only: Any = MISSING) -> Any:
    """A dataclass field that holds True or False, or None if that is its default."""
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"flag": True})


def check_parameters(instance: Any) -> None:
    """Check every declared field of a dataclass instance.

    Raises
    ------
    InvalidParameterError
        A number outside its range; the message says the range. Another word than the choices. Something
        else in place of a number, or of True or False.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        name = f"{field.name} of {type(instance).__name__}"
        if "range" in field.metadata:
            if (field.metadata.get("scheduled") and callable(getattr(type(value), "value", value))) or (
                field.metadata.get("optional") and value is None
            ):
                continue
            check_number(name, value, field.metadata["range"], field.metadata.get("integer", False))
        elif "choice" in field.metadata and not _is_one_of(value, field.metadata["choice"]):
            words = ", ".join(map(repr, field.metadata["choice"]))
            raise InvalidParameterError(f"{name} must be one of {words}, not {value!r}.")
        elif "flag" in field.metadata and (value is not None or field.default is not None):
            check_flag(name, value)


def _is_one_of(value: Any, words: tuple[str, ...]) -> bool:
    return isinstance(value, str) and value in words  # arrays are compared number by number


def check_flag(name: str, value: Any) -> None:
    """Check that `value` is True or False: other things are neither, whatever Python takes them for.

    Examples
    --------
    >>> check_flag("shuffle", "maybe")
    Traceback (most recent call last):
        ...
    onnxcustom.exceptions.InvalidParameterError: shuffle must be True or False, not 'maybe'.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidParameterError(f"{name} must be True or False, not {value!r}.")


def is_count(value: Any, least: int = 0) -> bool:
    """Whether a value is an integer, of Python or of what counts as one, of at least so many."""
    try:
        return not isinstance(value, (bool, np.bool_)) and operator.index(value) >= least
    except TypeError:
        return False


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A value as an int, if it is one of at least `least`.

    Examples
    --------
    >>> check_count("epochs", 0)
    Traceback (most recent call last):
        ...
    onnxcustom.exceptions.InvalidParameterError: epochs must be an integer of at least 1, not 0.
    """
    if not is_count(value, least):
        raise InvalidParameterError(f"{name} must be an integer of at least {least}, not {value!r}.")
    return operator.index(value)


def check_path(name: str, value: Any) -> Path:
    """A value as a path, if it is one or the text of one.

    Examples
    --------
    >>> check_path("path", 3)
    Traceback (most recent call last):
        ...
    onnxcustom.exceptions.InvalidParameterError: path must be a path, not 3: give ...
    """
    try:
        found = None if isinstance(value, bytes) else os.fspath(value)
    except TypeError:
        found = None
    if not isinstance(found, str):
        raise InvalidParameterError(
            f"{name} must be a path, not {value!r:.80}: give its name as text or as a Path."
        )
    return Path(found)


def check_given(cls: type, given: Mapping[str, Any], what: str) -> None:
    """Check that a class that was chosen by name, as `what` says, takes what is given, and needs no more.

    Examples
    --------
    >>> from onnxcustom.objective import CustomLoss
    >>> check_given(CustomLoss, {}, "loss='custom'")
    Traceback (most recent call last):
        ...
    onnxcustom.exceptions.UnknownNameError: loss='custom' names CustomLoss, which cannot be made ...
    """
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(cls).parameters.values()
    names = [p.name for p in parameters if p.kind in kinds]
    unknown = [name for name in given if name not in names]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise UnknownNameError(
            f"{what} names {cls.__name__}, which has no option {unknown[0]!r}; it has {names}."
            f"{did_you_mean(unknown[0], names)}"
        )
    missing = [p.name for p in parameters if p.default is p.empty and p.kind in kinds and p.name not in given]
    if missing:
        call = f"{cls.__name__}({', '.join(f'{name}=...' for name in missing)})"
        raise UnknownNameError(
            f"{what} names {cls.__name__}, which cannot be made without its "
            f"{', '.join(map(repr, missing))}: give {call}, not its name."
        )


def check_number(name: str, value: Any, interval: str, integral: bool = False) -> None:
    """Check that `value` is a number of an interval.

    Examples
    --------
    >>> check_number("momentum", 1.5, "[0, 1]")
    Traceback (most recent call last):
        ...
    onnxcustom.exceptions.InvalidParameterError: momentum must be in [0, 1], not 1.5.
    """
    kind = numbers.Integral if integral else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "an integer" if integral else "a number"
        raise InvalidParameterError(f"{name} must be {what} in {interval}, not {value!r}.")
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    x = float(value)
    above = x >= low if interval[0] == "[" else x > low
    below = x <= high if interval[-1] == "]" else x < high
    if math.isnan(x) or not (above and below):
        raise InvalidParameterError(f"{name} must be in {interval}, not {value!r}.")


class Parameters:
    """An object that is its constructor's parameters, as scikit-learn has it.

    ``__init__`` only stores; values are checked when they are used. Attributes whose name starts or
    ends with an underscore are caches: never pickled or copied, forgotten when a parameter changes.
    """

    @classmethod
    def _parameter_names(cls) -> list[str]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [
            p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name.

        Parameters
        ----------
        deep : bool, default=True
            Taken for scikit-learn's sake; there is nothing deeper.

        Returns
        -------
        dict
            As the constructor takes them.
        """
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> Any:
        """Change parameters; return the object.

        Raises
        ------
        UnknownNameError
            If there is no parameter of that name; nothing is changed.
        """
        known = self._parameter_names()
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise UnknownNameError(f"{type(self).__name__} has no parameter {unknown}; it has {known}.")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if not _is_cache(name):
            for cache in [key for key in self.__dict__ if _is_cache(key)]:
                self.__dict__.pop(cache, None)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not _is_cache(key)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in self.get_params(deep=False).items())
        return f"{type(self).__name__}({values})"


def own_parameters(value: Any) -> Any:
    """Copies of :class:`Parameters`, alone, in a dict or in a list, as they are now; the rest as it is.

    Examples
    --------
    >>> from onnxcustom.objective import HuberLearningLoss
    >>> given = HuberLearningLoss(delta=2)
    >>> own = own_parameters({"y": given})
    >>> given.delta = 3
    >>> own
    {'y': HuberLearningLoss(delta=2)}
    """
    if isinstance(value, Mapping):
        return {key: own_parameters(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [own_parameters(item) for item in value]
    if not isinstance(value, Parameters):
        return value
    made = copy.copy(value)
    vars(made).update({name: own_parameters(item) for name, item in vars(made).items()})
    return made


def _is_cache(name: str) -> bool:
    return name.startswith("_") or name.endswith("_")
