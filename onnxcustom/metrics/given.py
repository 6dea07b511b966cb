"""What metrics are given: arrays and sequences, or an error that says which is none."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcustom.exceptions import InvalidDataError

__all__ = ["as_array", "as_list", "as_numbers", "as_weights"]


def as_array(name: str, value: Any) -> np.ndarray:
    """A value as an array of numbers or texts, of at least one dimension."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as exc:
        raise InvalidDataError(f"{name} is no array: {exc}.") from exc
    if array.ndim == 0 or array.dtype.kind in "mMc":
        raise InvalidDataError(f"{name} must be an array, not {value!r:.60}.")
    return array


def as_numbers(name: str, value: Any) -> np.ndarray:
    """A value as an array of float64."""
    array = as_array(name, value)
    try:
        return array.astype(np.float64)
    except (ValueError, TypeError) as exc:
        raise InvalidDataError(f"{name} must hold numbers, not {array.dtype}.") from exc


def as_weights(value: Any, rows: int) -> np.ndarray:
    """Weights of rows: ones, if none are given."""
    if value is None:
        return np.ones(rows)
    weights = as_numbers("sample_weight", value).reshape(-1)
    if len(weights) != rows or not (np.isfinite(weights) & (weights >= 0)).all():
        raise InvalidDataError(
            f"sample_weight must hold one number of at least 0 for each of {rows} rows; its shape is "
            f"{np.shape(value)}: {len(weights)} weights."
        )
    return weights


def as_list(name: str, value: Any) -> list[Any]:
    """What a sequence holds."""
    try:
        return list(value)
    except TypeError as exc:
        raise InvalidDataError(f"{name} must be a sequence, not {value!r:.60}.") from exc
