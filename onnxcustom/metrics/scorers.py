"""Metrics by name, as scorers of an estimator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import get_scorer as sklearn_scorer
from sklearn.metrics import get_scorer_names

from onnxcustom._parameters import Parameters, check_count, check_given
from onnxcustom._phrases import parse_phrase
from onnxcustom._registry import Registry, did_you_mean
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError, UnknownNameError

from .decoding import beam_search, best_path
from .labels import mean_iou, token_accuracy
from .retrieval import recall_at_k
from .text import character_error_rate, word_error_rate

__all__ = [
    "CharacterErrorRate",
    "MeanIoU",
    "Metric",
    "RecallAtK",
    "TokenAccuracy",
    "WordErrorRate",
    "get_scorer",
    "register_metric",
    "scorer_names",
]


@dataclass(frozen=True)
class _Predicted:
    """What an estimator predicts.

    Attributes
    ----------
    array : ndarray
        Labels, scores or embeddings.
    rows : int or None
        Axis of the rows.
    classes : int or None
        Axis of the classes in scores, if that is known.
    """

    array: np.ndarray
    rows: int | None = 0
    classes: int | None = None

    def rows_first(self) -> np.ndarray:
        """The array, rows first."""
        return np.moveaxis(self.array, self.rows, 0) if self.rows else self.array


class Metric(Parameters):
    """Base of the metrics that are found by name: scorers ``(estimator, X, y, sample_weight=None)``.

    A subclass writes :meth:`value`.

    Attributes
    ----------
    greater_is_better : bool
        Whether more of it is better.
    of_labels : bool
        Whether it is taken on labels, where an estimator tells classes apart, not on what these come from.
    output : str or None
        The output it is taken on, if the estimator predicts several.
    """

    greater_is_better: bool = True
    of_labels: bool = False
    output: str | None = None

    @abstractmethod
    def value(self, predicted: Any, y: np.ndarray, weights: Any) -> float:
        """The metric.

        Parameters
        ----------
        predicted : object
            Predictions: ``array``, axis ``rows`` of the rows, ``rows_first()``, and axis ``classes`` of the
            classes in scores, None if that is not known.
        y : ndarray
            Expected values.
        weights : ndarray or None
            Of the rows.
        """

    def check(self) -> None:
        """Check the parameters."""

    def __call__(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        """What an estimator gets on data."""
        predicted, name = _predict(estimator, X, self.output)
        expected = y[name] if isinstance(y, Mapping) else y
        if expected is None:
            raise InvalidDataError(f"{type(self).__name__} compares with expected values, and y is None.")
        return float(self.value(predicted, np.asarray(expected), sample_weight))


class _Negative:
    """Minus a metric of which less is better, for those who look for more."""

    greater_is_better = True

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    @property
    def of_labels(self) -> bool:
        """Whether it is taken on labels."""
        return self.metric.of_labels

    def __call__(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        """What an estimator gets on data."""
        return -self.metric(estimator, X, y, sample_weight)

    def __repr__(self) -> str:
        return f"minus {self.metric!r}"


METRICS: Registry[type[Metric]] = Registry("metric")


def register_metric(*names: str) -> Callable[[type], type]:
    """Class decorator: :func:`get_scorer` finds the class under `names` and its own name.

    Raises
    ------
    ValueError
        A name that another metric has.
    """
    return METRICS.register(*names)


def scorer_names() -> list[str]:
    """Names that :func:`get_scorer` knows: those of this library, then those of scikit-learn."""
    return [*METRICS.names(), *get_scorer_names()]


def get_scorer(name: str) -> Any:
    """The scorer of that name.

    Parameters
    ----------
    name : str
        A name of scikit-learn, or one of this library, perhaps with options as in ``"recall:k=5"``. With
        ``neg_`` in front of one of which less is better, more is, as scikit-learn has it.

    Returns
    -------
    callable
        ``(estimator, X, y, sample_weight=None) -> float``.

    Raises
    ------
    UnknownNameError
        No such name or option.
    InvalidParameterError
        An option out of its range.

    Examples
    --------
    >>> get_scorer("recall:k=5")
    RecallAtK(k=5, distance='cosine', output=None)
    >>> get_scorer("neg_character_error_rate:beam=10").greater_is_better
    True
    """
    if not isinstance(name, str):
        raise UnknownNameError(f"The name of a score is a text, not {name!r:.60}.")
    if name in get_scorer_names():
        return sklearn_scorer(name)
    plain, options = parse_phrase(name) if ":" in name else (name, {})
    negative = plain.lower().removeprefix("neg_") if plain.lower().startswith("neg_") else None
    known = plain if negative is None else negative
    if known not in METRICS or (negative is not None and METRICS.find(known).greater_is_better):
        names = scorer_names()
        if plain in get_scorer_names():
            raise UnknownNameError(f"{name!r}: the score {plain!r} is scikit-learn's and takes no options.")
        raise UnknownNameError(
            f"There is no score {name!r}.{did_you_mean(plain, names)} Names are {', '.join(names)}."
        )
    cls = METRICS.find(known)
    check_given(cls, options, f"The score {name!r}")
    metric = cls(**options)
    metric.check()
    return metric if negative is None else _Negative(metric)


# -- what an estimator predicts ---------------------------------------------------------------------------


def _predict(estimator: Any, X: Any, output: str | None) -> tuple[_Predicted, str | None]:
    """Predictions of the output that is meant, and its name."""
    predicted, step = estimator.predict(X), getattr(estimator, "step_", estimator)
    targets: Any = getattr(step, "targets", ())
    if isinstance(predicted, Mapping):
        if output is None and len(targets) == 1:  # of a training step, which predicts all outputs
            output = targets[0].output
        if output not in predicted:
            raise UnknownNameError(
                f"The estimator predicts several outputs: say which one to score, output= one of "
                f"{list(predicted)}, not {output!r}."
            )
        predicted = predicted[output]
    array = np.asarray(predicted)
    target = next((t for t in targets if output in (None, t.output)), None)
    if target is None or target.shape is None:
        return _Predicted(array, classes=getattr(estimator, "class_axis", None)), output
    rank, rows = len(target.shape), step.output_axis(target.output)
    moved = getattr(estimator, "rows_first", False)  # already, by a stream
    if array.ndim == rank:
        classes = target.axis if target.loss.of_classes and target.settled else None
        if moved and rows and classes is not None:
            classes += classes < rows
        return _Predicted(array, 0 if moved else rows, classes), target.output
    if array.ndim == rank - 1 and rows and not moved:  # labels
        return _Predicted(array, rows - (target.axis < rows)), target.output
    return _Predicted(array), target.output


def _as_labels(predicted: _Predicted, y: np.ndarray) -> np.ndarray:
    """Labels: those predicted, or the best class of scores."""
    array = predicted.array
    if array.dtype.kind != "f" or array.ndim <= 1:
        return array
    axis = predicted.classes
    if axis is None:
        fitting = [a for a in range(1, array.ndim) if array.shape[:a] + array.shape[a + 1 :] == y.shape]
        axis = min(fitting, default=None)
    if axis is None:
        return array
    return array.argmax(axis=axis)


# -- the metrics ------------------------------------------------------------------------------------------


class _ErrorRate(Metric):
    """Error rates of labels that are said without saying when."""

    greater_is_better = False
    blank: int
    beam: int | None

    def check(self) -> None:
        check_count(f"blank of {type(self).__name__}", self.blank, 0)
        if self.beam is not None:
            check_count(f"beam of {type(self).__name__}", self.beam)

    def _said(self, predicted: _Predicted) -> list[np.ndarray]:
        array = predicted.rows_first()
        if array.ndim == 3 and array.dtype.kind == "f":
            if self.beam is None:
                return best_path(array, self.blank)
            return beam_search(array, self.beam, self.blank)
        if array.ndim != 2:
            raise InvalidDataError(
                f"{type(self).__name__} takes scores of classes in frames, (rows, frames, classes), or rows "
                f"of labels, not predictions of shape {array.shape}."
            )
        return list(array)

    @staticmethod
    def _wanted(y: np.ndarray) -> list[Any]:
        return list(y.reshape(len(y), -1)) if y.dtype.kind in "biuf" else y.tolist()


@register_metric("character_error_rate", "cer")
class CharacterErrorRate(_ErrorRate):
    """Edits that decoded labels are away from what was expected, over its length.

    Predictions are scores of C classes in T frames of a model trained with CTC, or labels. Expected values
    are labels (rows, length), padded by numbers below 0. See
    :func:`~onnxcustom.metrics.text.character_error_rate`.

    Parameters
    ----------
    blank : int, default=0
        The class that says nothing.
    beam : int, optional
        Width of the beam of :func:`~onnxcustom.metrics.decoding.beam_search`; by default the best path is
        taken.
    output : str, optional
        The output, if several are predicted.
    """

    def __init__(self, blank: int = 0, beam: int | None = None, output: str | None = None) -> None:
        self.blank = blank
        self.beam = beam
        self.output = output

    def value(self, predicted: Any, y: np.ndarray, weights: Any) -> float:
        """The rate."""
        return character_error_rate(self._wanted(y), self._said(predicted), weights)


@register_metric("word_error_rate", "wer")
class WordErrorRate(_ErrorRate):
    """The same for words, which one of the classes separates.

    Parameters
    ----------
    space : int
        The class between words.
    blank, beam, output
        As those of :class:`CharacterErrorRate`.
    """

    def __init__(
        self, space: int, blank: int = 0, beam: int | None = None, output: str | None = None
    ) -> None:
        self.space = space
        self.blank = blank
        self.beam = beam
        self.output = output

    def check(self) -> None:
        """Check the parameters."""
        super().check()
        check_count("space of WordErrorRate", self.space, 0)

    def value(self, predicted: Any, y: np.ndarray, weights: Any) -> float:
        """The rate."""
        return word_error_rate(self._wanted(y), self._said(predicted), self.space, weights)


class _OfLabels(Metric):
    """Metrics of labels, of any rank."""

    of_labels = True

    def __init__(self, ignore_index: int | None = -100, output: str | None = None) -> None:
        self.ignore_index = ignore_index
        self.output = output

    def check(self) -> None:
        if self.ignore_index is not None and not isinstance(self.ignore_index, (int, np.integer)):
            raise InvalidParameterError(
                f"ignore_index must be a whole number or None, not {self.ignore_index!r}."
            )

    def _weights(self, predicted: _Predicted, labels: np.ndarray, weights: Any) -> Any:
        """Weights of rows along the axis that labels have the rows on."""
        if weights is None or not predicted.rows or np.ndim(weights) != 1:
            return weights
        axis = predicted.rows - (
            predicted.array.ndim > labels.ndim and (predicted.classes or 0) < predicted.rows
        )
        places = [-1 if a == axis else 1 for a in range(labels.ndim)]
        return np.broadcast_to(np.asarray(weights).reshape(places), labels.shape)


@register_metric("token_accuracy")
class TokenAccuracy(_OfLabels):
    """Part of the labels of tokens or pixels that are predicted, without those that are ignored.

    Predictions are labels, or scores, of which the best class counts: on the axis that the loss goes by, else
    on the one without which they have the labels' shape. See
    :func:`~onnxcustom.metrics.labels.token_accuracy`.

    Parameters
    ----------
    ignore_index : int or None, default=-100
        Expected labels that do not count.
    output : str, optional
        The output, if several are predicted.
    """

    def value(self, predicted: Any, y: np.ndarray, weights: Any) -> float:
        """The accuracy."""
        labels = _as_labels(predicted, y)
        return token_accuracy(y, labels, self.ignore_index, self._weights(predicted, labels, weights))


@register_metric("mean_iou", "miou")
class MeanIoU(_OfLabels):
    """Mean intersection over union of the classes of tokens or pixels, of all rows together.

    Predictions as for :class:`TokenAccuracy`; see :func:`~onnxcustom.metrics.labels.mean_iou`.

    Parameters
    ----------
    ignore_index : int or None, default=-100
        Expected labels that do not count.
    output : str, optional
        The output, if several are predicted.
    """

    def value(self, predicted: Any, y: np.ndarray, weights: Any) -> float:
        """The mean."""
        labels = _as_labels(predicted, y)
        return mean_iou(y, labels, self.ignore_index, self._weights(predicted, labels, weights))


@register_metric("recall", "recall_at_k")
class RecallAtK(Metric):
    """Part of the embeddings that have one with their label among the k nearest.

    Predictions are embeddings, one a row, expected values classes or numbers of pairs. See
    :func:`~onnxcustom.metrics.retrieval.recall_at_k`. Without options, ``"recall"`` is the score of that name
    of scikit-learn: write ``"recall_at_k"``.

    Parameters
    ----------
    k : int, default=1
        How many are looked at.
    distance : {'cosine', 'euclidean'}, default='cosine'
        By which they are near.
    output : str, optional
        The output, if several are predicted.
    """

    def __init__(self, k: int = 1, distance: str = "cosine", output: str | None = None) -> None:
        self.k = k
        self.distance = distance
        self.output = output

    def check(self) -> None:
        """Check the parameters."""
        check_count("k of RecallAtK", self.k)
        if self.distance not in ("cosine", "euclidean"):
            raise UnknownNameError(f"distance must be 'cosine' or 'euclidean', not {self.distance!r}.")

    def value(self, predicted: Any, y: np.ndarray, weights: Any) -> float:
        """The recall."""
        return recall_at_k(predicted.rows_first(), y, self.k, self.distance, weights)
