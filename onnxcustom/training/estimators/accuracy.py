"""The part of labels that a classifier predicts: one a row, several a row, some of them ignored."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcustom.exceptions import InvalidDataError
from onnxcustom.feed.validation import as_sample_weight

from .label_coding import LabelCoding
from .labels import hits_of

__all__ = ["accuracy"]


def accuracy(
    predicted: np.ndarray, labels: np.ndarray, coding: LabelCoding, classes: np.ndarray, sample_weight: Any
) -> float:
    """What :meth:`~onnxcustom.OnnxClassifier.score` says.

    Parameters
    ----------
    predicted : ndarray
        As the classifier predicts.
    labels : ndarray
        As they were given.
    coding : LabelCoding
        How the classifier understands labels.
    classes : ndarray
        Its classes.
    sample_weight : array_like or None
        Weights of the rows, or of all labels.
    """
    if predicted.ndim == 1 or coding.decision.multilabel:
        hits, weights = hits_of(labels, predicted, classes), _weights(sample_weight, len(predicted))
        kept = coding.counted(labels.reshape(-1)) if labels.size == len(predicted) else None
        if kept is not None:
            hits, weights = hits[kept], None if weights is None else weights[kept]
        return float(np.average(hits, weights=weights))
    if labels.size != predicted.size:
        raise InvalidDataError(f"y has shape {labels.shape}, what is predicted {predicted.shape}.")
    labels = labels.reshape(predicted.shape)
    return _of_positions(predicted == labels, coding, coding.counted(labels), sample_weight)


def _of_positions(
    hits: np.ndarray, coding: LabelCoding, kept: np.ndarray | None, sample_weight: Any
) -> float:
    """The part of labels, several a row, that is predicted, of those that are kept."""
    axis = coding.spec.axis
    if axis is None and hits.ndim == coding.spec.rank:
        return float((hits if kept is None else hits[kept]).mean())
    shape, first = hits.shape, axis or 0
    hits = np.moveaxis(hits, first, 0)
    if np.shape(sample_weight) == shape:  # a weight for each label
        weights = _weights(np.moveaxis(np.asarray(sample_weight), first, 0), len(hits), hits)
    elif kept is None:
        each = hits.reshape(len(hits), -1).mean(axis=1)
        return float(np.average(each, weights=_weights(sample_weight, len(hits))))
    else:
        given = _weights(sample_weight, len(hits))
        given = np.ones(len(hits)) if given is None else given
        weights = np.broadcast_to(given.reshape(-1, *[1] * (hits.ndim - 1)), hits.shape)
    assert weights is not None
    if kept is not None:
        kept = np.moveaxis(kept, first, 0)
        hits, weights = hits[kept], weights[kept]
    return float(np.average(hits, weights=weights))


def _weights(sample_weight: Any, rows: int, labels: np.ndarray | None = None) -> np.ndarray | None:
    """Weights of rows, or of labels, as :meth:`OnnxClassifier.fit` would take them."""
    if sample_weight is None:
        return None
    return as_sample_weight(sample_weight, rows, np.float64, labels=labels)
