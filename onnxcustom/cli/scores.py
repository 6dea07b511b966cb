"""Scores, by name, of predictions that were made before."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import log_loss

from onnxcustom.exceptions import InvalidDataError
from onnxcustom.graph.analysis.decision import Decision
from onnxcustom.metrics import get_scorer
from onnxcustom.objective.labels import IGNORED

from .models import Model
from .predictor import Answers, Rows

__all__ = ["Collected", "check_metrics", "scored"]

_USUAL = {
    "classification": ("accuracy", "balanced_accuracy", "neg_log_loss"),
    "regression": ("r2", "neg_root_mean_squared_error", "neg_mean_absolute_error"),
}


class Collected:
    """Predictions and what was expected, from block to block.

    Parameters
    ----------
    task : str
        ``'classification'`` or ``'regression'``.
    metrics : sequence of str
        Names of the scores that are asked for.
    """

    def __init__(self, task: str, metrics: Sequence[str] = ()) -> None:
        self.task = task
        check_metrics(metrics)
        whole = [_takes_outputs(name, task) for name in metrics]
        self._whole, self._by_row = any(whole), not metrics or not all(whole)
        self.rows = 0
        self.classes: Sequence[Any] = ()
        self._parts: list[dict[str, np.ndarray]] = []

    def add(self, rows: Rows, answers: Answers) -> None:
        """Keep what is said to some rows."""
        assert rows.y is not None
        part = {"y": rows.y}
        if rows.weights is not None:
            part["weights"] = rows.weights
        whole: dict[str, np.ndarray] = {}
        if self._whole:
            whole = {f"output {name}": array for name, array in answers.outputs.items()}
            whole |= {f"whole {name}": array for name, array in part.items()}
            if answers.scores is not None:  # its classes come last
                whole["scores"] = answers.scores
        if not self._by_row:
            part = {}
        elif answers.labels is None:
            part["predicted"] = np.concatenate(
                [a.reshape(len(a), -1) for a in answers.values.values()], axis=1
            )
        else:
            self.classes = answers.classes
            part["predicted"] = answers.labels
            for name in ("probabilities", "scores"):
                array = getattr(answers, name)
                if array is not None:
                    part[name] = array
            if answers.labels.ndim > 1 and not answers.multilabel:
                part = _label_by_label(part)
        self.rows += len(rows)
        self._parts.append(whole | part)

    def get(self, name: str) -> np.ndarray | None:
        """An array of all rows: 'y', 'weights', 'predicted', 'probabilities' or 'scores'."""
        if not self._parts:
            raise InvalidDataError("There are no rows to score a model on.")
        if name not in self._parts[0]:
            return None
        return np.concatenate([part[name] for part in self._parts])

    def outputs(self) -> _Whole:
        """What answers to metrics of whole outputs."""
        names = [] if not self._parts else [n for n in self._parts[0] if n.startswith("output ")]
        outputs = {name.removeprefix("output "): self.get(name) for name in names}
        numbers = {n: a for n, a in outputs.items() if a is not None and a.dtype.kind == "f"} or outputs
        scores = self.get("scores") if self.task == "classification" else None
        if scores is None and len(numbers) == 1:
            (scores,) = numbers.values()
            return _Whole(scores)
        return _Whole(numbers) if scores is None else _Whole(scores, scores.ndim - 1)


def _takes_outputs(name: str, task: str) -> bool:
    """Whether a score is taken on what a model computes, of any shape, not on one prediction a row."""
    scorer = get_scorer(name)
    return hasattr(scorer, "greater_is_better") and (task == "regression" or not scorer.of_labels)


def check_metrics(names: Sequence[str]) -> None:
    """Refuse names of scores that there are not.

    Raises
    ------
    UnknownNameError
        Listing those there are.
    """
    for name in names:
        get_scorer(name)


def scored(collected: Collected, metrics: Sequence[str], model: Model) -> dict[str, float]:
    """Scores by name.

    Raises
    ------
    UnknownNameError
        No such score.
    InvalidDataError
        A score that cannot be had of these predictions.
    """
    check_metrics(metrics)
    whole = [name for name in dict.fromkeys(metrics) if _takes_outputs(name, collected.task)]
    made = _scored_whole(collected, whole)
    if not metrics or len(made) < len(set(metrics)):
        others = [name for name in dict.fromkeys(metrics) if name not in made]
        made |= _scored_by_row(collected, others, model)
    return {name: made[name] for name in dict.fromkeys(metrics or made)}


def _scored_whole(collected: Collected, names: Sequence[str]) -> dict[str, float]:
    """Scores of outputs of any shape."""
    if not names:
        return {}
    y, weights, estimator = collected.get("whole y"), collected.get("whole weights"), collected.outputs()
    return {name: float(get_scorer(name)(estimator, None, y, weights)) for name in names}


def _scored_by_row(collected: Collected, metrics: Sequence[str], model: Model) -> dict[str, float]:
    """Scores of a prediction for each row."""
    y, predicted = collected.get("y"), collected.get("predicted")
    assert y is not None
    assert predicted is not None
    y, estimator = _estimator(collected, y, predicted, model)
    kept = _counted(y, estimator) if collected.task == "classification" else slice(None)
    weights, index, y = collected.get("weights"), np.arange(len(y)).reshape(-1, 1)[kept], y[kept]
    weights = None if weights is None else weights[kept]
    made = {}
    names = list(metrics or _USUAL[collected.task])
    # Metrics of this library leave out labels that are ignored.
    known = bool(metrics) and all(hasattr(get_scorer(name), "greater_is_better") for name in names)
    if collected.task == "classification":
        unknown = [] if estimator.several or known else np.setdiff1d(y, estimator.classes_).tolist()
        if unknown:
            warnings.warn(
                f"The target holds labels that {model.path} does not have: {str(unknown[:5])[1:-1]}.",
                stacklevel=2,
            )
        if not metrics and (unknown or estimator.several or not estimator.can_tell):
            names.remove("neg_log_loss")
    for name in names:
        options: dict[str, Any] = {} if weights is None else {"sample_weight": weights}
        try:
            if name == "neg_log_loss" and not estimator.several and estimator.can_tell:
                # The scorer does not know classes that no row has.
                told = estimator.predict_proba(index)
                made[name] = -float(log_loss(y, told, labels=estimator.classes_, **options))
                continue
            with warnings.catch_warnings():
                # Such as classes that no row has: the score is what it is.
                warnings.simplefilter("ignore", UserWarning)
                made[name] = float(get_scorer(name)(estimator, index, y, **options))
        except (ValueError, TypeError, AttributeError) as exc:
            raise InvalidDataError(f"The score {name!r} cannot be computed here: {exc}") from exc
    return made


def _counted(y: np.ndarray, estimator: Any) -> Any:
    """The rows whose label is not the one that losses ignore, unless that is a class of the model.

    Raises
    ------
    InvalidDataError
        None is left.
    """
    if estimator.several or y.dtype.kind not in "iu" or np.any(estimator.classes_ == IGNORED):
        return slice(None)
    kept = y != IGNORED
    if not kept.any():
        raise InvalidDataError(f"Every label of the target is {IGNORED}, which stands for none.")
    return kept


def _estimator(
    collected: Collected, y: np.ndarray, predicted: np.ndarray, model: Model
) -> tuple[np.ndarray, Any]:
    """Expected values and what answers to scorers, of the same kind."""
    if collected.task == "regression":
        y = y.reshape(len(y), -1)
        if y.dtype.kind not in "biuf":
            raise InvalidDataError(
                f"The target holds {y.flat[0]!r}, which is no number: --task classification?"
            )
        if y.shape != predicted.shape:
            raise InvalidDataError(
                f"{model.path} predicts {predicted.shape[1]} numbers a row, the target has {y.shape[1]}."
            )
        single = y.shape[1] == 1
        return y.reshape(-1) if single else y, _Regressor(predicted.reshape(-1) if single else predicted)
    classes = np.array(list(collected.classes)) if len(collected.classes) else np.unique(predicted)
    if y.dtype.kind == "f" and classes.dtype.kind in "iu" and (y == np.floor(y)).all():
        y = y.astype(np.int64)
    if y.ndim == 2 and predicted.ndim == 1 and y.shape[1] == len(classes):
        y = classes[np.argmax(y, axis=1)]  # a column for each class
    if (y.dtype.kind in "OUS") != (predicted.dtype.kind in "OUS"):
        raise InvalidDataError(
            f"The target holds labels such as {y.flat[0]!r}, {model.path} predicts ones such as "
            f"{predicted.flat[0]!r}: they cannot be compared."
        )
    text = y.dtype.kind in "OUS"
    y, predicted = (y.astype(str), predicted.astype(str)) if text else (y, predicted)
    return y, _Classifier(
        predicted, classes, collected.get("probabilities"), collected.get("scores"), predicted.ndim == 2
    )


def _label_by_label(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows with several labels (tokens, pixels) as a row for each label."""
    y, predicted = part["y"], part["predicted"]
    if y.shape != predicted.shape and y.size == predicted.size and len(y) == len(predicted):
        y = y.reshape(predicted.shape)  # columns of a table
    if y.shape != predicted.shape:
        raise InvalidDataError(
            f"The model predicts labels of shape {predicted.shape[1:]} for a row, the target has "
            f"{y.shape[1:]}."
        )
    made: dict[str, np.ndarray] = {"y": y.reshape(-1), "predicted": predicted.reshape(-1)}
    if "weights" in part:
        made["weights"] = np.repeat(part["weights"], predicted[0].size)
    for name in ("probabilities", "scores"):
        if name in part:
            made[name] = part[name].reshape(-1, part[name].shape[-1])
    return made


class _Whole:
    """Answers to all rows at once, in the shape that the model gives them."""

    def __init__(self, predicted: Any, class_axis: int | None = None) -> None:
        self.predicted, self.class_axis = predicted, class_axis

    def predict(self, X: Any) -> Any:
        return self.predicted


class _Regressor(RegressorMixin, BaseEstimator):
    """Answers by number of the row."""

    can_tell, several = False, False

    def __init__(self, predicted: np.ndarray) -> None:
        self.predicted = predicted

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.predicted[X[:, 0]]

    def __sklearn_is_fitted__(self) -> bool:
        return True


class _Classifier(ClassifierMixin, BaseEstimator):
    """Answers by number of the row."""

    def __init__(self, predicted: Any, classes: Any, probabilities: Any, scores: Any, several: bool) -> None:
        self.predicted, self.classes, self.several = predicted, classes, several
        self.probabilities, self.scores = probabilities, scores
        self.classes_ = classes if several else np.sort(classes)
        self.can_tell = probabilities is not None

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.predicted[X[:, 0]]

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        if self.probabilities is None:
            raise AttributeError("the model computes no probabilities")
        return self._sorted(self.probabilities[X[:, 0]])

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        if self.scores is None:
            raise AttributeError("the model computes no scores")
        return Decision(multilabel=self.several).margins(self._sorted(self.scores[X[:, 0]]), 1)

    def _sorted(self, columns: np.ndarray) -> np.ndarray:
        """Columns in the order of `classes_`."""
        if self.several:
            return columns
        order = np.argsort(self.classes)
        if columns.shape[1] == 1:  # one score for two classes
            return columns if order[0] == 0 else -columns
        return columns[:, order]

    def __sklearn_is_fitted__(self) -> bool:
        return True
