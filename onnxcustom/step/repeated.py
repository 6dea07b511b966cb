"""Batches like one that was checked: only their numbers are new, and only these are looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcustom.feed.specs import TensorSpec
from onnxcustom.graph.trainable.finding import all_finite
from onnxcustom.objective import BaseLearningLoss
from onnxcustom.runtime import to_ortvalue

from .buffers import SUMS
from .recipe import Recipe

__all__ = ["Repeated"]

# So many numbers are copied into memory that is bound already: it is quicker than to bind other memory.
_FEW = 8192

_largest = np.maximum.reduce


class Repeated:
    """What is left to look at in arrays that have the types and shapes of others that fitted.

    Parameters
    ----------
    recipe : Recipe
        What is trained.
    given, made : sequence of ndarray
        Inputs and expected values as a user gave them, and as the graph reads them.
    """

    def __init__(self, recipe: Recipe, given: Sequence[np.ndarray], made: Sequence[np.ndarray]) -> None:
        self._places = [_Place(*pair) for pair in zip(given, made, strict=True)]
        # One array, or a dict of several by these names.
        self._inputs = _names(recipe.inputs)
        self._expected = _names(recipe.expected)
        first = len(recipe.inputs)
        self._pair = tuple(place.take for place in self._places) if len(self._places) == 2 else None
        plain = BaseLearningLoss.check_expected
        self._checked: list[tuple[_Place, Any]] = []
        self._by_rows = True
        # Behind these is what losses of several targets expect beside, which nobody checks further.
        for place, target, spec in zip(self._places[first:], recipe.targets, recipe.expected, strict=False):
            if len(spec.shape or ()) == 1 and not target.soft and place.labels_below(target.sure_labels()):
                continue
            self._by_rows = self._by_rows and not target.counted
            if type(target.loss).check_expected is not plain:
                self._checked.append((place, target.check_expected))

    @classmethod
    def of(cls, recipe: Recipe, X: Any, y: Any, feeds: Mapping[str, np.ndarray]) -> Repeated | None:
        """Of a batch without weights; None where more than the numbers has to be looked at."""
        specs = [*recipe.inputs, *recipe.expected]
        inputs, expected = _parts(X, _names(recipe.inputs)), _parts(y, _names(recipe.expected))
        if inputs is None or expected is None or any(s.places is not None or s.each for s in specs):
            return None
        given, made = [*inputs, *expected], [*feeds.values()]
        if len(given) != len(made) or not all(map(_is_the_same, given, made)):
            return None
        return cls(recipe, given, made)

    def values(self, X: Any, y: Any) -> tuple[list[Any], bool] | None:
        """OrtValues of a batch, and whether each of its rows has one label that counts.

        None if it is not like the others, or its numbers need another look, as NaN does.

        Raises
        ------
        InvalidDataError
            A label that is no class, and the like.
        """
        if self._pair is not None and type(X) is np.ndarray and type(y) is np.ndarray:  # as most are
            found = [self._pair[0](X), self._pair[1](y)]
        else:
            inputs, expected = _parts(X, self._inputs), _parts(y, self._expected)
            arrays = () if inputs is None or expected is None else (*inputs, *expected)
            found = [place.take(array) for place, array in zip(self._places, arrays, strict=False)]
        if None in found or not found:
            return None
        for place, check in self._checked:
            check(place.array)
        return found, self._by_rows


class _Place:
    """Where an array of one shape and dtype goes."""

    def __init__(self, given: np.ndarray, made: np.ndarray) -> None:
        self._shape, self._dtype, self._made = given.shape, given.dtype, made.shape
        self._float = given.dtype.kind == "f"
        self._value: Any = None
        self._limit: int | None = None
        if given.size <= _FEW:
            self.array = np.empty(made.shape, made.dtype)
            self._own, self._flat = self.array.reshape(given.shape), self.array.reshape(-1)
            self._sum = SUMS.get(given.dtype)
            self._value = to_ortvalue(self.array)

    def labels_below(self, limit: int | None) -> bool:
        """Take labels from 0 to `limit` only, which need no other look; whether that can be seen here."""
        if limit is None or self._value is None or self._dtype != np.int64:
            return False
        self._limit, self._unsigned = limit, self._flat.view(np.uint64)  # of -1 it is 2**64 - 1
        return True

    def take(self, array: Any) -> Any:
        """An OrtValue of it, None if it is another kind of array or its numbers need another look."""
        if type(array) is not np.ndarray or array.shape != self._shape or array.dtype != self._dtype:
            return None
        if self._value is None:
            if not array.flags.carray or (self._float and not all_finite(array)):
                return None
            self.array = array.reshape(self._made)
            return to_ortvalue(self.array)
        self._own[...] = array
        if self._float:
            # A sum that overflows is looked at again by who checks every batch.
            finite = math.isfinite(self._sum(self._flat)) if self._sum else all_finite(self._flat)
            return self._value if finite else None
        if self._limit is not None and _largest(self._unsigned) >= self._limit:
            return None
        return self._value


def _names(specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    return tuple(spec.name for spec in specs)


def _parts(data: Any, names: tuple[str, ...]) -> Sequence[Any] | None:
    """One array, or those of a dict in order; None if it is neither."""
    if type(data) is np.ndarray:
        return (data,) if len(names) == 1 else None
    if type(data) is not dict or len(data) != len(names):
        return None
    found = [data.get(name) for name in names]
    return found if all(type(array) is np.ndarray for array in found) else None


def _is_the_same(given: np.ndarray, made: np.ndarray) -> bool:
    """Whether nothing was converted, at most reshaped."""
    same = given.dtype == made.dtype and given.size == made.size and given.size > 0
    return same and np.may_share_memory(given, made)
