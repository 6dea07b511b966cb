"""The labels of a classifier in training: what they are, how its loss takes them, what they weigh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import DataConversionWarning

from onnxcustom._warnings import warn_user
from onnxcustom.data import Stream
from onnxcustom.exceptions import InvalidDataError, InvalidModelError
from onnxcustom.feed.specs import TensorSpec
from onnxcustom.feed.validation import as_sample_weight
from onnxcustom.graph import Prepared, class_labels
from onnxcustom.graph.analysis.decision import Decision
from onnxcustom.objective import BaseLearningLoss
from onnxcustom.step.targets import Target
from onnxcustom.step.training_step import TrainingStep

from .labels import (
    are_numbered,
    as_labels,
    check_same,
    class_factors,
    distinct,
    from_one_hot,
    label_indices,
    labels_of,
    some,
    that_count,
)

__all__ = ["LabelCoding", "class_weigher", "find_labels", "ignored_label"]


@dataclass(frozen=True)
class LabelCoding:
    """What the labels of a classifier are to the step that it trains.

    Attributes
    ----------
    labels : ndarray
        In the order of the columns of the model.
    decision : Decision
        What the scores of the trained output mean.
    spec : TensorSpec
        What the loss wants.
    ignored : int or None
        Label that stands for none: it has no loss, and is not scored.
    """

    labels: np.ndarray
    decision: Decision
    spec: TensorSpec
    ignored: int | None = None

    @property
    def takes_one(self) -> bool:
        """Whether the loss takes one label a row: there are no tokens or pixels."""
        labels = self.spec.dtype is not None and self.spec.dtype.kind in "iu"
        return self.spec.rank is None or self.spec.rank <= (1 if labels else 2)

    def encode(self, y: Any, step: TrainingStep) -> np.ndarray:
        """Labels as the loss wants them: indices, a column of 0 and 1, or a column for each class."""
        y = as_labels(y)
        if self.decision.multilabel:
            return y
        spec, labels = step.expected[0], self.labels
        rank, axis = spec.rank or 1, step.targets[0].axis
        if spec.dtype is not None and spec.dtype.kind in "iu":
            if spec.axis is None and y.ndim == rank + 1 and bool(np.isin(y, labels).all()):
                rank += 1  # one of it for each row
            if y.ndim == rank + 1:
                y = y.squeeze(axis) if y.shape[axis] == 1 else from_one_hot(y, axis, labels)
            if y.ndim != rank:
                raise InvalidDataError(f"y wants {rank} dimensions, labels of that shape; it has {y.ndim}.")
            return self._indices(y)
        columns = spec.shape[1] if spec.shape is not None and len(spec.shape) > 1 else None
        if rank != 2 or columns in (1, None):
            return label_indices(y, labels)
        if y.ndim == 2 and y.shape[1] > 1:
            return y  # probabilities: as many columns as the model has
        return np.eye(len(labels))[label_indices(y.reshape(-1), labels)]

    def _indices(self, y: np.ndarray) -> np.ndarray:
        """Position of every label; what is ignored stays as it is."""
        kept = that_count(y, self.ignored)
        if kept is y:
            return label_indices(y, self.labels)
        index = np.full(y.shape, self.ignored, np.int64)
        index[y != self.ignored] = label_indices(kept, self.labels)
        return index

    def counted(self, y: np.ndarray) -> np.ndarray | None:
        """Where labels count; None if everywhere."""
        return None if that_count(y, self.ignored) is y else y != self.ignored

    def weigh(self, factors: Mapping[Any, float], y: Any, sample_weight: Any) -> np.ndarray:
        """Weights of the rows, or of their labels, times those of their classes."""
        labels = as_labels(y)
        several = labels.size > len(labels)
        if self.decision.multilabel or (several and not self._by_label(labels)):
            raise InvalidDataError("class_weight needs one label a row: give sample_weight instead.")
        found, places = distinct(labels.reshape(-1), return_inverse=True)
        weights = np.array([factors.get(label, 1.0) for label in found.tolist()])[places.reshape(-1)]
        if several:
            weights = weights.reshape(labels.shape)
        return weights if sample_weight is None else weights * self._spread(sample_weight, labels)

    def _by_label(self, labels: np.ndarray) -> bool:
        """Whether labels, several a row, may have a weight each."""
        return self.spec.weighed and labels.ndim in (self.spec.rank, (self.spec.rank or 0) + 1)

    def _spread(self, weights: Any, labels: np.ndarray) -> np.ndarray:
        """Weights of rows, checked, as broadcast over their labels."""
        one = labels.size == len(labels)
        axis = 0 if one or self.spec.is_each(labels) else self.spec.axis
        rows = max(1, np.size(weights)) if axis is None else labels.shape[axis]
        given = as_sample_weight(
            weights, rows, np.float64, part=True, labels=None if one else labels, like="y"
        )
        if one or given.shape == labels.shape:
            return given
        if axis is None:
            return given.mean()
        return given.reshape([-1 if a == axis else 1 for a in range(labels.ndim)])


def ignored_label(loss: BaseLearningLoss, labels: np.ndarray | None) -> int | None:
    """The label that stands for none: what the loss ignores, unless it is the name of a class.

    Raises
    ------
    InvalidDataError
        The loss would ignore a class as well, as it sees places in place of labels.
    """
    ignored = getattr(loss, "ignore_index", None)
    if ignored is None or labels is None:
        return ignored
    place = labels[ignored] if 0 <= ignored < len(labels) else ignored
    if np.any(labels == ignored):
        return ignored if place == ignored else None
    if 0 <= ignored < len(labels):
        raise InvalidDataError(
            f"ignore_index={ignored} of the loss stands for the class {place!r}, the one at that place of "
            f"{some(labels)}: take a number that is no place, such as -100, for labels without a class."
        )
    return ignored


def find_labels(
    prepared: Prepared,
    target: Target,
    columns: Callable[[], int],
    y: np.ndarray,
    known: np.ndarray | None,
    given: np.ndarray | None,
) -> np.ndarray:
    """Labels in the order of the model's columns.

    Parameters
    ----------
    prepared : Prepared
        The model.
    target : Target
        What is trained.
    columns : callable
        Counts the columns of the output, where its shape does not say.
    y : ndarray
        Labels of the data, several times or once each.
    known : ndarray or None
        Those of the training that goes on.
    given : ndarray or None
        Those that the user says there are, sorted.

    Raises
    ------
    InvalidDataError, InvalidModelError
        Labels that the model does not have, or another number of them than it has columns.
    """
    count = columns() if target.columns is None else target.columns
    wanted, labels = max(count, 2), class_labels(prepared.model)
    said = next((found for found in (labels, known, given) if found is not None), None)
    if said is None or not np.any(said == getattr(target.loss, "ignore_index", None)):
        y = that_count(y, ignored_label(target.loss, None))
    if labels is not None:
        labels = _named_labels(labels, y, known, given)
    elif known is not None:
        labels = known
    elif given is not None and len(given) == wanted:
        labels = given
    else:
        labels = labels_of(y if given is None else given, wanted)
    if len(labels) != wanted:
        raise InvalidModelError(
            f"There are {len(labels)} classes, {some(labels)}, and output {target.output!r} has "
            f"{count} column{'s' if count > 1 else ''}: choose another output, as "
            "loss={'name': 'log_loss'}."
        )
    return labels


def _named_labels(
    labels: np.ndarray, y: np.ndarray, known: np.ndarray | None, given: np.ndarray | None
) -> np.ndarray:
    """The labels of the graph, or their places if that is what `y` holds."""
    numbers = np.arange(len(labels))
    if known is not None and np.array_equal(known, numbers):
        return numbers  # as when training began
    if are_numbered(labels, y if given is None else given):
        warn_user(
            f"The model names its classes {some(labels)}, y holds 0 to {len(labels) - 1}: taken for the "
            "places of these names, in this order, as scikit-learn's ensembles number labels. classes_ "
            "and predictions are these numbers; the trained model keeps its names.",
            DataConversionWarning,
        )
        return numbers
    if given is not None:
        check_same(given, labels)
    return labels


def class_weigher(
    class_weight: Any, X: Any, y: Any, coding: LabelCoding | None
) -> Callable[[Any, Any], Any] | None:
    """Weights of rows, given labels and weights of theirs, times those of their classes in data.

    Parameters
    ----------
    class_weight : dict, 'balanced' or None
        As a classifier has it.
    X, y
        The data that ``'balanced'`` is of.
    coding : LabelCoding or None
        How labels are understood; None where there are no weights.
    """
    if class_weight is None:
        return None
    assert coding is not None
    found = X.label_counts if isinstance(X, Stream) else lambda: np.unique(as_labels(y), return_counts=True)

    def counted() -> tuple[np.ndarray, np.ndarray]:
        labels, counts = found()
        kept = coding.counted(labels)
        return (labels, counts) if kept is None else (labels[kept], counts[kept])

    factors = class_factors(class_weight, counted, coding.labels)
    return lambda y, sample_weight: coding.weigh(factors, y, sample_weight)
