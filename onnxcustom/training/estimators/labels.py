"""What data say about classes: labels, their order, their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcustom._parameters import check_number
from onnxcustom.data.sparse import is_sparse
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.feed.arrays import check_not_masked
from onnxcustom.feed.validation import same_rows

__all__ = [
    "are_numbered",
    "as_labels",
    "check_same",
    "class_factors",
    "distinct",
    "from_one_hot",
    "hits_of",
    "label_indices",
    "labels_of",
    "some",
    "that_count",
]


def as_labels(y: Any) -> np.ndarray:
    """Labels as an array."""
    if y is None:
        raise InvalidDataError("Training requires y to be passed, but the target y is None: give the labels.")
    check_not_masked(y, "y")
    try:
        array = y.toarray() if is_sparse(y) else np.asarray(y)
    except (TypeError, ValueError, RuntimeError) as exc:  # rows of several lengths, say
        raise InvalidDataError(f"y: {exc}") from exc
    if array.ndim == 0:
        raise InvalidDataError(f"y must hold a label for every row, not {y!r:.60}.")
    if array.dtype.kind == "O":
        for value in array.reshape(-1):
            if isinstance(value, (list, tuple, set, dict, np.ndarray)):
                raise InvalidDataError(f"y contains {value!r:.40} in place of a label.")
            if value is None or _differs_from_itself(value):
                raise InvalidDataError("y contains None or NaN in place of a label.")
    if array.dtype.kind == "c":
        raise InvalidDataError("Complex data not supported: y holds complex numbers in place of labels.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidDataError("y contains NaN or infinity in place of a label.")
    if array.dtype.kind == "f" and array.size == len(array) and (array != np.floor(array)).any():
        raise InvalidDataError(
            f"Unknown label type: continuous. y holds {array[array != np.floor(array)].flat[0]:g}, which is "
            "no label: OnnxRegressor predicts numbers."
        )
    return array


def _differs_from_itself(value: Any) -> bool:
    """Whether a value is NaN, or nothing that can be compared, such as pandas' NA."""
    try:
        return bool(value != value)
    except (TypeError, ValueError):
        return True


def distinct(labels: np.ndarray, **options: Any) -> Any:
    """Labels sorted and once each, and what :func:`numpy.unique` gives beside them.

    Raises
    ------
    InvalidDataError
        Text and numbers, say: there is no order among them.
    """
    try:
        return np.unique(labels, **options)
    except TypeError as exc:
        raise InvalidDataError(f"The labels in y are of several types: {exc}.") from exc


def from_one_hot(y: np.ndarray, axis: int, labels: np.ndarray) -> np.ndarray:
    """Labels of rows of zeros with a single 1."""
    if y.shape[axis] != len(labels) or not (np.isin(y, (0, 1)).all() and (y.sum(axis=axis) == 1).all()):
        raise InvalidDataError(
            f"y has shape {y.shape}: for one of {len(labels)} classes a row give labels, or rows of zeros "
            f"with a single 1 in {len(labels)} columns. Several labels a row need a model that ends in a "
            "Sigmoid, or loss='binary_crossentropy'."
        )
    return labels[np.argmax(y, axis=axis)]


def labels_of(y: np.ndarray, columns: int) -> np.ndarray:
    """Labels in the order of the columns for a model that does not say."""
    if y.ndim == 2 and y.shape[1] == columns > 1 and y.dtype.kind in "biuf" and np.isin(y, (0, 1)).all():
        return np.arange(columns)  # one-hot
    labels = distinct(y)
    if len(labels) == columns:
        return labels
    if labels.dtype.kind in "iuf" and len(labels) and labels.min() >= 0 and labels.max() < columns:
        return np.arange(columns, dtype=labels.dtype)  # some classes are not in this data
    binary = columns == 2 and len(labels) > 2
    raise InvalidDataError(
        ("Only binary classification is supported. The type of the target is multiclass: " if binary else "")
        + f"y has {len(labels)} different labels, {some(labels)}, the model has {columns} classes and does "
        "not name them: give every class at least once, or labels 0, 1, ..., in the order of the model's "
        "columns, or all of them to partial_fit(classes=)."
    )


def are_numbered(labels: np.ndarray, y: np.ndarray) -> bool:
    """Whether `y` holds the places of a model's labels rather than these.

    Ensembles of scikit-learn hand their estimators 0, 1, ..., k-1 for the k labels that they have seen, in
    sorted order. Those are the places of the columns if the labels of the model are sorted and all of them
    are there; if not, there is no telling what the numbers mean.

    Raises
    ------
    InvalidDataError
        Integers that are no labels, and may not be the places of the labels either.
    """
    if y.dtype.kind not in "iu" or y.size != len(y):
        return False
    names, numbers = labels.tolist(), np.unique(y)
    integers = labels.dtype.kind in "iu"
    if integers and np.isin(numbers, labels).any():
        return False
    if names == sorted(names) and np.array_equal(numbers, np.arange(len(names))):
        return True
    if integers:
        return False
    raise InvalidDataError(
        f"The model names its classes {some(labels)}, y holds the integers {some(numbers)}: give labels. "
        f"Numbers as scikit-learn's ensembles make them are taken for places in that list if all of 0 to "
        f"{len(names) - 1} are there and the names are sorted."
    )


def check_same(classes: np.ndarray, labels: np.ndarray) -> None:
    """Compare the classes that are given with those that a classifier has.

    Raises
    ------
    InvalidDataError
        They are others.
    """
    given, known = set(classes.tolist()), labels.tolist()
    # Numbers from 0 on are labels in the order of the columns, also where some of them are missing.
    if given != set(known) and not (given <= set(known) and known == list(range(len(known)))):
        raise InvalidDataError(
            f"classes={some(classes)} is not the same as the labels that the classifier has: {some(labels)}."
        )


def label_indices(y: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Position of every label, in the shape of `y`."""
    if y.dtype.kind in "OUS" or labels.dtype.kind in "OUS":
        table: dict[Any, int] = {label: i for i, label in enumerate(labels.tolist())}
        found = [table.get(label, -1) for label in y.reshape(-1).tolist()]
        index = np.array(found, dtype=np.int64).reshape(y.shape)
    else:
        order = np.argsort(labels)
        nearest = order[np.clip(np.searchsorted(labels, y, sorter=order), 0, len(labels) - 1)]
        index = np.where(labels[nearest] == y, nearest, -1)
    if (index < 0).any():
        raise InvalidDataError(
            f"y holds the labels {some(distinct(y[index < 0]))}, which the model does not have; its "
            f"classes are {some(labels)}."
        )
    return index


def that_count(labels: np.ndarray, ignored: int | None) -> np.ndarray:
    """Labels without those that are ignored, in one row; all of them as they are if none is."""
    if ignored is None or labels.dtype.kind not in "iuf":
        return labels
    kept = labels != ignored
    return labels if kept.all() else labels[kept]


def hits_of(y: Any, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the label, or every one of several, that is predicted for a row is that of the data.

    Parameters
    ----------
    y : array_like
        Labels, or rows of zeros with a single 1.
    predicted : ndarray of shape (n,) or (n, columns)
        Labels; 0 and 1 for several a row.
    labels : ndarray
        Those there are.

    Raises
    ------
    InvalidDataError
        Another number of rows, text in place of numbers or the other way round.
    """
    expected = as_labels(y)
    if predicted.ndim == 1 and expected.ndim == 2 and expected.shape[1] > 1:
        expected = from_one_hot(expected, 1, labels)
    elif expected.size == len(expected):
        expected = expected.reshape(-1, *(1,) * (predicted.ndim - 1))
    same_rows({"X": len(predicted), "y": len(expected)})
    if expected.shape != predicted.shape:
        raise InvalidDataError(f"y has shape {expected.shape}, what is predicted {predicted.shape}.")
    words, wanted = ({isinstance(v, str) for v in distinct(a).tolist()} for a in (expected, labels))
    if words and not words <= wanted:
        raise InvalidDataError(
            f"y holds {some(distinct(expected))}, the classes are {some(labels)}: text and numbers are never "
            "the same label."
        )
    hits = expected.astype(object) == predicted.astype(object)
    return hits.reshape(len(hits), -1).all(axis=1)


def some(labels: np.ndarray) -> str:
    """The first labels, for messages."""
    text = ", ".join(repr(v) for v in labels[:10].tolist())
    return f"[{text}{', ...' if len(labels) > 10 else ''}]"


def class_factors(class_weight: Any, y: Any, classes: np.ndarray) -> dict[Any, float]:
    """Weights of classes by label.

    Parameters
    ----------
    class_weight : dict of label to float, or 'balanced'
        The latter is n / (k c) for a class that c of n rows are in, of k classes that there are.
    y : array_like, or callable
        Labels, or what returns those there are and how often each is.
    classes : ndarray
        Labels that the classifier tells apart.

    Returns
    -------
    dict of label to float
        Those that are not in it weigh 1.

    Raises
    ------
    InvalidDataError
        Something else, a weight that is no number in [0, inf), or one for a class that there is not.
    """
    if isinstance(class_weight, str) and class_weight == "balanced":
        labels, counts = y() if callable(y) else distinct(as_labels(y).reshape(-1), return_counts=True)
        weights = counts.sum() / (len(counts) * counts)
        return dict(zip(labels.tolist(), weights.tolist(), strict=True))
    if not isinstance(class_weight, Mapping):
        raise InvalidDataError(
            f"class_weight must be a dict from label to weight, 'balanced' or None, not {class_weight!r}."
        )
    unknown = [label for label in class_weight if not np.any(classes == label)]
    if unknown:
        raise InvalidDataError(f"class_weight names {unknown}, no class of {some(classes)}.")
    made = {}
    for label, weight in class_weight.items():
        try:
            check_number(f"class_weight[{label!r}]", weight, "[0, inf)")
        except (TypeError, ValueError) as exc:
            raise InvalidDataError(str(exc)) from exc
        made[label.item() if isinstance(label, np.generic) else label] = float(weight)
    return made
