"""Labels of tokens and pixels, without those that are ignored."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, jaccard_score

from onnxcustom.exceptions import InvalidDataError, InvalidParameterError

from .given import as_array, as_numbers

__all__ = ["mean_iou", "token_accuracy"]


def token_accuracy(
    expected: Any, predicted: Any, ignore_index: int | None = -100, sample_weight: Any = None
) -> float:
    """Part of the labels that are predicted, of those that count: scikit-learn's ``accuracy_score``.

    Parameters
    ----------
    expected, predicted : array_like of the same shape
        Labels of any rank, such as (rows, tokens) or (rows, height, width).
    ignore_index : int or None, default=-100
        Expected labels that do not count.
    sample_weight : array_like, optional
        Of the rows, or of the labels.

    Returns
    -------
    float
        NaN if no label counts.

    Examples
    --------
    >>> token_accuracy([[3, 1, -100], [2, 2, 2]], [[3, 0, 0], [2, 2, 2]])
    0.8
    """
    y, p, weights = _counted(expected, predicted, ignore_index, sample_weight)
    return float(accuracy_score(y, p, sample_weight=weights)) if len(y) else np.nan


def mean_iou(
    expected: Any, predicted: Any, ignore_index: int | None = -100, sample_weight: Any = None
) -> float:
    """Mean intersection over union of the classes: scikit-learn's ``jaccard_score``, macro average.

    Over all rows at once, and over those classes that are expected or predicted anywhere.

    Parameters
    ----------
    expected, predicted : array_like of the same shape
        Labels of any rank, such as (rows, height, width).
    ignore_index : int or None, default=-100
        Expected labels that do not count, whatever is predicted there.
    sample_weight : array_like, optional
        Of the rows, or of the labels.

    Returns
    -------
    float
        In [0, 1]; NaN if no label counts.

    References
    ----------
    M. Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective, 2015,
    https://doi.org/10.1007/s11263-014-0733-5

    Examples
    --------
    >>> mean_iou([[0, 0, 1, 1, -100]], [[0, 1, 1, 1, 0]])
    0.5833333333333333
    """
    y, p, weights = _counted(expected, predicted, ignore_index, sample_weight)
    return float(jaccard_score(y, p, average="macro", sample_weight=weights)) if len(y) else np.nan


def _texts(labels: np.ndarray) -> np.ndarray:
    """Labels that are texts, as an array of texts."""
    texts = labels.dtype.kind == "O" and all(isinstance(v, str) for v in labels.reshape(-1).tolist())
    return labels.astype(str) if texts else labels


def _counted(
    expected: Any, predicted: Any, ignore_index: int | None, sample_weight: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Labels that count, in a row, and their weights."""
    y, p = (_texts(as_array(*named)) for named in (("expected", expected), ("predicted", predicted)))
    if ignore_index is not None and not isinstance(ignore_index, (int, np.integer)):
        raise InvalidParameterError(f"ignore_index must be a whole number or None, not {ignore_index!r:.60}.")
    if "O" in (y.dtype.kind, p.dtype.kind) or (y.dtype.kind in "US") != (p.dtype.kind in "US"):
        raise InvalidDataError(
            f"Labels of dtype {y.dtype} are expected, and those predicted have {p.dtype}: both must be "
            "numbers, or texts."
        )
    if y.shape != p.shape and y.size == p.size and len(y) == len(p):
        y = y.reshape(p.shape)  # columns of a table
    if y.shape != p.shape:
        raise InvalidDataError(
            f"Labels of shape {y.shape} are expected, and those predicted have shape {p.shape}."
        )
    counts = np.ones(y.shape, dtype=bool) if ignore_index is None else y != ignore_index
    if sample_weight is None:
        return y[counts], p[counts], None
    weights = as_numbers("sample_weight", sample_weight)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise InvalidDataError("sample_weight must hold numbers of at least 0.")
    if weights.shape != y.shape:
        if weights.size != len(y):
            raise InvalidDataError(
                f"There are weights of shape {weights.shape} for labels of shape {y.shape}: give one for "
                "each row or for each label."
            )
        weights = np.broadcast_to(weights.reshape(-1, *[1] * (y.ndim - 1)), y.shape)
    counts &= weights != 0
    return y[counts], p[counts], weights[counts]
