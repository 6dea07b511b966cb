"""Which columns of a table are features, expected values and weights."""

from __future__ import annotations

import copy
import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from onnxcustom._registry import did_you_mean
from onnxcustom._text import listed
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError

from .blocks import Block, Key
from .frames import UnfitError, as_array, joined, numbers

__all__ = ["Plan", "Selection"]

# The index that pandas writes into files as a column.
_INDEX = re.compile(r"__index_level_\d+__")


class _Columns(NamedTuple):
    """Columns that make one array: side by side, or a single one as it is."""

    names: tuple[str, ...]
    side_by_side: bool


@dataclass(frozen=True)
class Selection:
    """Columns of one table, by the arrays they become.

    Attributes
    ----------
    parts : dict of Key to _Columns
        The arrays.
    """

    parts: Mapping[Key, _Columns]

    @functools.cached_property
    def names(self) -> list[str]:
        """The columns to read."""
        return list(dict.fromkeys(name for part in self.parts.values() for name in part.names))

    @property
    def features(self) -> dict[str | None, list[str]]:
        """Columns of the features by input of the model, None for the only one."""
        return {key.name: list(part.names) for key, part in self.parts.items() if key.role == "X"}

    @functools.cached_property
    def numeric(self) -> frozenset[str]:
        """Those that must be numbers: all but the expected values, which may be labels."""
        return frozenset(
            name
            for key, part in self.parts.items()
            if key.role != "y" or part.side_by_side
            for name in part.names
        )

    def check(self, names: Sequence[str], where: str) -> None:
        """Look for the columns in a table.

        Raises
        ------
        InvalidDataError
            One is missing, or another one has its name.
        """
        counts = Counter(names)
        missing = [name for name in self.names if name not in counts]
        if missing:
            raise InvalidDataError(
                f"{where} has no column{'s' if len(missing) > 1 else ''} {listed(missing)}; it has "
                f"{listed(names)}.{did_you_mean(missing[0], names)}"
            )
        twice = [name for name in self.names if counts[name] > 1]
        if twice:
            raise InvalidDataError(f"{where} has several columns called {twice[0]!r}.")

    def assemble(self, column: Callable[[str], Any]) -> Block:
        """The block that columns make.

        Raises
        ------
        UnfitError
            A value that training cannot use.
        """
        columns = {name: _named(name, column(name)) for name in self.names}
        made = {}
        for key, (names, side_by_side) in self.parts.items():
            if side_by_side:
                made[key] = joined({name: columns[name] for name in names})
            else:
                array = columns[names[0]]
                made[key] = array if key.role == "y" else numbers(array, names[0])
        return Block(made)


def _named(name: str, column: Any) -> np.ndarray:
    try:
        return as_array(column)
    except UnfitError as exc:
        raise UnfitError(exc.what, exc.row, name) from None


class Plan:
    """What a user says about columns.

    Parameters
    ----------
    target : str, list of str or dict of str to either, optional
        Expected values; a dict by output of the model.
    columns : str or list of str, optional
        Features, in this order; by default all other columns.
    sample_weight : str, optional
        Weights of the rows.
    inputs : dict of str to str or list of str, optional
        Features by input of the model.

    Raises
    ------
    ValueError
        Both `columns` and `inputs`, no columns, or one that is named twice.
    TypeError
        Something else than names.
    """

    def __init__(
        self, target: Any = None, columns: Any = None, sample_weight: Any = None, inputs: Any = None
    ) -> None:
        if columns is not None and inputs is not None:
            raise InvalidParameterError(
                "Give columns= for a model of one input or inputs= for several, not both."
            )
        self.parts: dict[Key, _Columns] = {}
        if isinstance(inputs, Mapping):
            self.parts.update({Key("X", str(k)): _checked(v, f"inputs[{k!r}]") for k, v in inputs.items()})
        elif inputs is not None:
            raise InvalidParameterError(
                f"inputs must be a dict from input of the model to columns, not {inputs!r}."
            )
        elif columns is not None:
            self.parts[Key("X")] = _checked([columns] if isinstance(columns, str) else columns, "columns")
        self.every = not self.parts  # all columns that are nothing else
        if isinstance(target, Mapping):
            self.parts.update({Key("y", str(k)): _checked(v, f"target[{k!r}]") for k, v in target.items()})
        elif target is not None:
            self.parts[Key("y")] = _checked(target, "target")
        if sample_weight is not None:
            if not isinstance(sample_weight, str):
                raise InvalidParameterError(f"sample_weight must name a column, not be {sample_weight!r}.")
            self.parts[Key("sample_weight")] = _Columns((sample_weight,), False)
        self._check_twice()

    def _check_twice(self) -> None:
        features = {n for key, part in self.parts.items() if key.role == "X" for n in part.names}
        others = {n for key, part in self.parts.items() if key.role != "X" for n in part.names}
        if features & others:
            raise InvalidParameterError(
                f"{sorted(features & others)} cannot be features and expected values or weights at once."
            )

    @property
    def said(self) -> bool:
        """Whether the user named any column."""
        return bool(self.parts)

    @property
    def targets(self) -> Plan:
        """The expected values alone."""
        made = Plan()
        made.parts = {key: part for key, part in self.parts.items() if key.role == "y"}
        made.every = False
        return made

    def in_order(self, names: Sequence[str]) -> Plan:
        """The same with these columns for the features of a model of one input."""
        made = copy.copy(self)
        made.parts = {
            Key("X"): _Columns(tuple(names), True),
            **{k: v for k, v in self.parts.items() if k != Key("X")},
        }
        made.every = False
        return made

    def select(self, names: Sequence[str], where: str, index: Sequence[str] = ()) -> Selection:
        """The columns of a table with these names.

        Parameters
        ----------
        names : sequence of str
            The table's columns.
        where : str
            What to call the table.
        index : sequence of str, optional
            Columns that are the index of a frame of pandas: no features unless they are named.

        Raises
        ------
        InvalidDataError
            A column is missing, has its name with another one, or there are no features.
        """
        parts = dict(self.parts)
        if self.every:
            taken = {name for part in parts.values() for name in part.names}
            left = [n for n in names if n not in taken]
            rest = tuple(n for n in left if n not in index and not _INDEX.fullmatch(n))
            if not rest:
                raise InvalidDataError(
                    f"{where} has the columns {listed(names)}: none is left for the features."
                    + (f" {listed(left)} is the index of pandas: name it with columns=." if left else "")
                )
            parts = {Key("X"): _Columns(rest, True), **parts}
        selection = Selection(parts)
        selection.check(names, where)
        return selection

    def describe(self) -> dict[str, str]:
        """The columns, as text by what they are for."""
        texts = {str(key): ", ".join(part.names) for key, part in self.parts.items()}
        return {"X": "all other columns", **texts} if self.every else texts


def _checked(names: Any, what: str) -> _Columns:
    """One name stands for a column as it is, a list for columns side by side."""
    if isinstance(names, str):
        return _Columns((names,), False)
    try:
        found = tuple(names)
    except TypeError:
        found = (None,)
    if not all(isinstance(name, str) for name in found):
        raise InvalidParameterError(f"{what} must be names of columns, not {names!r:.80}.")
    if not found:
        raise InvalidParameterError(f"{what} names no column.")
    if len(set(found)) < len(found):
        raise InvalidParameterError(f"{what} names a column twice: {list(found)}.")
    return _Columns(found, True)
