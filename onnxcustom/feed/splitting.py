"""Hold part of the rows out of training."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples

from onnxcustom.data.blocks import Key
from onnxcustom.data.frames import is_column, is_frame
from onnxcustom.data.sources import Axes
from onnxcustom.exceptions import InvalidDataError

from .arrays import dimensions, is_named
from .order import permutation
from .validation import same_rows

__all__ = ["check_fraction", "hold_out"]

# The split must not be the order of an epoch.
_SPLIT = 2**64 - 1
_FIRST: Axes = {}


def hold_out(
    X: Any,
    y: Any,
    sample_weight: Any,
    fraction: float,
    seed: int,
    labels: np.ndarray | None = None,
    axes: Axes = _FIRST,
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Split rows at random, as a function of the seed.

    Parameters
    ----------
    X, y : array_like, DataFrame or dict of them
        Features and expected values, n rows.
    sample_weight : number or array_like of shape (n,), optional
        Weights of the rows.
    fraction : float
        Part of the rows that is held out, in (0, 1): at least one is, and one remains.
    seed : int
        Seed of the choice.
    labels : ndarray of shape (n,), optional
        Classes that both parts are to hold in the same shares.
    axes : mapping, optional
        Where the rows are, as :meth:`~onnxcustom.data.Stream.place` takes it; by default they come first.

    Returns
    -------
    tuple
        X, y and weights of the rows to train on, then of those held out.

    Raises
    ------
    InvalidDataError
        A fraction that is none, fewer than two rows, or other numbers of them.
    """
    check_fraction(fraction)
    X, y, sample_weight = map(_indexable, (X, y, sample_weight))
    rows = _row_count(X, y, sample_weight, axes)
    held = _chosen(rows, float(fraction), seed, labels)
    kept = np.setdiff1d(np.arange(rows), held, assume_unique=True)
    weights = held_weights = sample_weight
    if dimensions(sample_weight) > 0:
        key = Key("sample_weight")
        weights, held_weights = (_take(sample_weight, rows, key, axes) for rows in (kept, held))
    train, validation = (
        (_take(X, part, Key("X"), axes), _take(y, part, Key("y"), axes)) for part in (kept, held)
    )
    return *train, weights, *validation, held_weights


def _indexable(data: Any) -> Any:
    """Data that rows can be taken from: what is no array, frame or list of some kind, as an array."""
    if is_named(data):
        return {name: _indexable(part) for name, part in data.items()}
    known = data is None or isinstance(data, (np.ndarray, list, tuple)) or scipy.sparse.issparse(data)
    return data if known or is_frame(data) or is_column(data) else np.asarray(data)


def _row_count(X: Any, y: Any, sample_weight: Any, axes: Axes) -> int:
    """Rows of the data, two at least."""
    counts: dict[str, int | None] = {}
    for role, data in {"X": X, "y": y}.items():
        parts = {Key(role, n): part for n, part in data.items()} if is_named(data) else {Key(role): data}
        for key, part in parts.items():
            name = role if key.name is None else f"{role} of {key.name!r}"
            counts[name] = None if part is None else _rows(part, _axis(key, part, axes), name)
    rows = next((n for n in counts.values() if n is not None), 1)
    if dimensions(sample_weight) > 0:
        key = Key("sample_weight")
        counts[key.role] = _rows(sample_weight, _axis(key, sample_weight, axes), key.role)
    same_rows(counts)
    if rows < 2:
        raise InvalidDataError(f"validation_fraction holds rows out, and there are {rows}.")
    return rows


def _axis(key: Key, data: Any, axes: Axes) -> int | None:
    return axes[key].get(dimensions(data), 0) if key in axes else 0


def _rows(data: Any, axis: int | None, name: str) -> int | None:
    if axis is None:
        return None
    if dimensions(data) <= axis and not isinstance(data, (list, tuple)):
        raise InvalidDataError(f"validation_fraction holds rows out, and {name} has none: {data!r:.40}.")
    return _num_samples(data) if axis == 0 else np.shape(data)[axis]


def check_fraction(fraction: Any) -> None:
    """Refuse what is no part of the rows.

    Raises
    ------
    InvalidDataError
        A number outside of (0, 1), or none.
    """
    number = isinstance(fraction, numbers.Real) and not isinstance(fraction, bool)
    if not number or not 0 < float(fraction) < 1:
        raise InvalidDataError(f"validation_fraction must be in (0, 1), not {fraction!r}.")


def _chosen(rows: int, fraction: float, seed: int, labels: np.ndarray | None) -> np.ndarray:
    """Sorted indices of the rows to hold out."""
    order = permutation(seed, _SPLIT, rows)
    count = min(max(1, round(rows * fraction)), rows - 1)
    if labels is None:
        return np.sort(order[:count])
    # Every class is spread evenly over [0, 1): the first rows of that order have its shares.
    position = np.empty(rows)
    _, classes = np.unique(labels[order], return_inverse=True)
    for c in range(classes.max() + 1):
        (mine,) = np.nonzero(classes == c)
        position[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return np.sort(order[np.argsort(position, kind="stable")[:count]])


def _take(data: Any, rows: np.ndarray, key: Key, axes: Axes) -> Any:
    if data is None:
        return None  # whoever wants it says so
    if is_named(data):
        return {name: _take(part, rows, Key(key.role, name), axes) for name, part in data.items()}
    axis = _axis(key, data, axes)
    if axis is None:
        return data
    if axis:
        return np.take(np.asarray(data), rows, axis)
    return _safe_indexing(data.tocsr() if scipy.sparse.issparse(data) else data, rows)
