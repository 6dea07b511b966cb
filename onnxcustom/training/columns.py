"""Columns of features and their names: those of the first fit, and those of later data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import validate_data

from onnxcustom.data import Stream
from onnxcustom.data.frames import is_frame, text_names
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.feed.arrays import dimensions, is_named, ordered

if TYPE_CHECKING:
    from onnxcustom.step.training_step import TrainingStep

__all__ = ["check_columns", "first_columns", "in_order", "is_as_wide"]

_COLUMNS = ("n_features_in_", "feature_names_in_")


def check_columns(
    estimator: Any, X: Any, step: TrainingStep, silent: bool, columns: Mapping[str, Any] | None = None
) -> None:
    """Compare columns and their names with those of the first fit.

    Parameters
    ----------
    estimator : Results
        The estimator.
    X : array_like, frame, dict or Stream
        Features.
    step : TrainingStep
        Its step.
    silent : bool
        Whether an array, which has no names, is as good as a table.
    columns : dict, optional
        What :func:`first_columns` found, if the estimator doesn't know it yet.

    Raises
    ------
    InvalidDataError
        Others.
    """
    rows = _rows(X, step)
    if rows is None:
        return
    names = X.columns() if isinstance(X, Stream) else text_names(rows) if is_frame(rows) else None
    if step.inputs[0].columns is not None and names is not None:
        return  # they are in order by now, or were refused
    known = _with(estimator, columns) if columns else estimator
    if not (silent and type(rows) is np.ndarray and is_as_wide(known, rows)):
        _validated(known, rows, step, first=False)


def is_as_wide(estimator: Any, rows: np.ndarray) -> bool:
    """Whether rows have as many columns as at the first fit."""
    return rows.ndim == 2 and getattr(estimator, "n_features_in_", None) == rows.shape[1]


def first_columns(estimator: Any, X: Any, step: TrainingStep) -> dict[str, Any]:
    """What a first fit leaves: ``n_features_in_``, and ``feature_names_in_`` of a table.

    The step, which is new, keeps the names of the columns of a table of any kind, in their order.

    Raises
    ------
    InvalidDataError
        Another number of columns than the model has.
    """
    rows = _rows(X, step)
    if rows is None:
        return {}
    names = X.columns() if isinstance(X, Stream) else text_names(rows) if is_frame(rows) else None
    other = _with(estimator, {})  # scikit-learn writes into what it is given
    _validated(other, rows, step, first=True)
    found = {name: vars(other)[name] for name in _COLUMNS if name in vars(other)}
    if names is not None and len(set(names)) == len(names):
        step.name_columns({step.inputs[0].name: names})
        found["feature_names_in_"] = np.array(names, dtype=object)
        found["_names_from_stream"] = isinstance(X, Stream)
    return found


def _with(estimator: Any, columns: Mapping[str, Any]) -> Any:
    """An estimator of these parameters that knows these columns."""
    made = object.__new__(type(estimator))
    vars(made).update({k: v for k, v in vars(estimator).items() if k not in _COLUMNS})
    vars(made).update(columns)
    return made


def _rows(X: Any, step: TrainingStep) -> Any:
    """The features as scikit-learn looks at them; None if they are no table to it."""
    rows = X.head(1).X if isinstance(X, Stream) else X
    spec = step.inputs[0]
    if len(step.inputs) > 1 or is_named(rows) or dimensions(rows) != 2 or spec.axis != 0:
        return None
    return ordered(rows, spec) if is_frame(rows) else rows


def _validated(estimator: Any, X: Any, step: TrainingStep, first: bool) -> None:
    try:
        validate_data(estimator, X, reset=first, skip_check_array=True)
    except ValueError as exc:
        raise InvalidDataError(f"Input {step.inputs[0].name!r}: {exc}") from exc


def in_order(stream: Stream, columns: Sequence[str] | None) -> Stream:
    """A stream with its columns as the model takes them, if their names are known."""
    return stream if columns is None else stream.in_order(columns)
