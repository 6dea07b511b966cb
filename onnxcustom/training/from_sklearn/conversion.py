"""From a fitted scikit-learn estimator or pipeline to an estimator that trains it further as ONNX."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from sklearn.base import is_classifier, is_regressor
from sklearn.compose import TransformedTargetRegressor
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from onnxcustom._warnings import warn_user
from onnxcustom.data.frames import is_frame, text_names
from onnxcustom.data.naming import in_order
from onnxcustom.exceptions import (
    InvalidModelError,
    InvalidParameterError,
    NoTrainableWeightError,
    OnnxCustomError,
)
from onnxcustom.gradient.report import gradient_report
from onnxcustom.graph import select_weights, weights
from onnxcustom.graph.files.feature_names import write_feature_names
from onnxcustom.objective import (
    AbsoluteLearningLoss,
    HingeLearningLoss,
    HuberLearningLoss,
    PoissonLearningLoss,
    QuantileLearningLoss,
)
from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor

from .frozen_steps import FrozenStep
from .heads import has_several_labels, trainable_kinds
from .report import StepRow, describe_conversion, write_steps
from .steps import Part, Split, first_rows, has_no_weights, join, split, unwrap, without_weights

__all__ = ["from_sklearn"]

logger = logging.getLogger("onnxcustom")

# Made of models that have weights of their own.
_ENSEMBLE = re.compile("Bagging|Voting|Stacking|Calibrated|OneVs|MultiOutput|AdaBoost|SGD")


def from_sklearn(estimator: Any, X: Any, *, dtype: Any = np.float32, **parameters: Any) -> Any:
    """An estimator that goes on training what scikit-learn has fitted.

    The longest end of a pipeline that can be an ONNX graph becomes one: linear models and multi-layer
    perceptrons with their weights as scikit-learn calls them (``coef``, ``intercept``, ``coefs.0``), the
    rest as skl2onnx converts it; each step is compared with the original on the rows of `X`. What predicts
    is trained, what is in front stays as it was fitted. Steps that cannot be in a graph (text, columns of
    several types, missing values) and those in front of them stay in scikit-learn, frozen, in a pipeline.
    :func:`describe_conversion` tells what became of each; logger ``onnxcustom`` says it at level INFO.

    Parameters
    ----------
    estimator : estimator
        Fitted classifier or regressor, or a pipeline, search or TransformedTargetRegressor of one.
    X : array_like, DataFrame or sparse matrix
        A few rows as `estimator` reads them; the first hundred are looked at.
    dtype : {float32, float64}, default=float32
        Dtype of the graph.
    **parameters
        Those of :class:`~onnxcustom.OnnxClassifier` or :class:`~onnxcustom.OnnxRegressor`.
        ``weights_to_train='*'`` trains the steps in front as well. ``loss`` is by default the one that the
        estimator was fitted with, where there is its kind. Penalties are not taken over.

    Returns
    -------
    OnnxClassifier, OnnxRegressor, Pipeline or TransformedTargetRegressor
        Not fitted: ``fit`` starts from the estimator's weights. Of one that was fitted on a frame the model
        keeps the names of the columns, so that tables may have them in any order. A warning says where its
        graph has constants that were one parameter to scikit-learn, as a GaussianNB's.

    Raises
    ------
    NotFittedError, InvalidModelError, InvalidDataError
        The estimator is not fitted, is neither classifier nor regressor, cannot be converted; bad rows.
    NoTrainableWeightError
        Nothing of it has a gradient: trees, neighbours, kernels.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_iris(return_X_y=True)
    >>> fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    >>> from_sklearn(fitted, X, learning_rate=0.1, random_state=0).fit(X, y).score(X, y) > 0.9
    True
    """
    return _converted(estimator, X, _checked_dtype(dtype), parameters)


def _converted(estimator: Any, X: Any, number: np.dtype, parameters: dict[str, Any]) -> Any:
    """What :func:`from_sklearn` says."""
    check_is_fitted(estimator)
    found = unwrap(estimator)
    last = found.steps[-1][1]
    check_is_fitted(last)
    if not (is_classifier(last) or is_regressor(last)):
        raise InvalidModelError(
            f"{type(last).__name__} is neither a classifier nor a regressor: there is nothing to train it by."
        )
    names = _column_names(estimator, X)
    rows = first_rows(X)
    if names and is_frame(X):
        rows = in_order(rows, names, "X")
    try:
        parts = split(found.steps, rows, number)
    except InvalidModelError as exc:
        if has_no_weights(last):  # however its graph fails: it would have none either
            raise NoTrainableWeightError(without_weights(last)) from exc
        raise
    model = join(parts.graphed)
    rows_of_steps, trainable = _rows(parts, model)
    if not trainable and has_no_weights(last):
        raise NoTrainableWeightError(without_weights(last))
    if not trainable:
        raise NoTrainableWeightError(
            f"Nothing of {type(estimator).__name__} can be trained by gradients:\n"
            + "\n".join(f"  {row.step or 'estimator'} ({row.kind}): {row.why}" for row in rows_of_steps)
        )
    if parts.head is None and not _ENSEMBLE.search(type(last).__name__):
        found.notes.append(_of_constants(type(last).__name__))
        if "weights_to_train" not in parameters:
            warn_user(
                f"{found.notes[-1]}. Name in weights_to_train those that are meant, or fit a model whose "
                f"weights are its parameters: {', '.join(trainable_kinds(is_classifier(last)))}.",
                UserWarning,
            )
    write_steps(model, rows_of_steps, number, found.notes)
    if names and not parts.kept:
        write_feature_names(model, {model.graph.input[0].name: names})
    parameters.setdefault("loss", _loss_of(last, parts))
    parameters.setdefault("weights_to_train", _as_selection(parts, model, trainable))
    cls = OnnxClassifier if is_classifier(last) else OnnxRegressor
    _try(cls(model, **parameters), type(last).__name__, parts)
    result = _wrapped(cls(model, **parameters), parts.kept, found)
    logger.info("%s", describe_conversion(result))
    return result


def _of_constants(kind: str) -> str:
    """What to say of a model whose graph is of constants that were one parameter to scikit-learn."""
    return (
        f"{kind}: the graph has its parameters in constants that belong together, such as a variance and its "
        f"logarithm. They are trained, each by itself: what comes of it is no {kind} any more"
    )


def _column_names(estimator: Any, X: Any) -> list[str]:
    """Names of the columns that an estimator was fitted on, else those of the rows that are given."""
    found = getattr(estimator, "feature_names_in_", None)
    if found is None:
        found = text_names(X) if is_frame(X) else None
    names = [] if found is None else [str(name) for name in found]
    return names if len(set(names)) == len(names) else []


def _checked_dtype(dtype: Any) -> np.dtype:
    try:
        number = np.dtype(np.float32 if dtype is None else dtype)
    except TypeError:
        number = np.dtype(object)
    if number not in (np.float32, np.float64):
        raise InvalidParameterError(f"dtype must be float32 or float64, not {dtype!r}.")
    return number


# -- what is trained -------------------------------------------------------------------------------


def _rows(parts: Split, model: onnx.ModelProto) -> tuple[list[StepRow], list[str]]:
    """What became of every step, and the weights of the last one that have a gradient."""
    rows = [StepRow(p.name, type(p.step).__name__, "scikit-learn", {}, p.why) for p in parts.kept]
    shapes = {name: array.shape for name, array in weights(model).items()}
    several = len(parts.graphed) > 1
    for part in parts.graphed:
        own = {n: s for n, s in shapes.items() if not several or n.startswith(f"{part.name}.")}
        rows.append(StepRow(part.name, type(part.step).__name__, "graph", own, "prepares the data"))
    last = rows[-1]
    how = {row.name: row for row in gradient_report(model).weights}
    trainable = [n for n in last.shapes if how[n].how == "trained"]
    held = [how[n] for n in last.shapes if n not in trainable]
    why = f"{held[0].name}: {held[0].reason or held[0].how}" if held else "" if last.shapes else _NO_WEIGHTS
    rows[-1] = dataclasses.replace(last, why=why)
    return rows, trainable


_NO_WEIGHTS = "has no numbers that gradients could move, as trees, kernels and neighbours have none"


def _as_selection(parts: Split, model: onnx.ModelProto, trainable: list[str]) -> list[str] | None:
    """What `weights_to_train` says for these."""
    every = list(weights(model))
    if trainable == every:
        return None
    pattern = f"{parts.graphed[-1].name}.*"
    if len(parts.graphed) > 1 and select_weights(dict.fromkeys(every), pattern) == trainable:
        return [pattern]
    return trainable


def _loss_of(estimator: Any, parts: Split) -> Any:
    """The loss that an estimator was fitted with, None for that of the class."""
    kind = type(estimator).__name__
    if parts.head is not None and parts.head.link == "scores" and has_several_labels(estimator):
        return "binary_crossentropy"
    name = getattr(estimator, "loss", None)
    if kind in ("LinearSVC", "SGDClassifier", "PassiveAggressiveClassifier") and "hinge" in str(name):
        return HingeLearningLoss(squared=name == "squared_hinge")
    if kind in ("Perceptron", "SVC"):
        return HingeLearningLoss()
    if kind == "HuberRegressor":
        return HuberLearningLoss(float(estimator.epsilon * estimator.scale_))
    if kind == "SGDRegressor" and name == "huber":
        return HuberLearningLoss(float(estimator.epsilon))
    if kind == "QuantileRegressor":
        return QuantileLearningLoss(float(estimator.quantile))
    if kind in ("LinearSVR", "SGDRegressor") and name == "epsilon_insensitive":
        return AbsoluteLearningLoss()
    poisson = kind == "PoissonRegressor" or name == "poisson" or getattr(estimator, "power", None) == 1
    return PoissonLearningLoss(link="identity") if poisson else None


def _try(onnx_estimator: Any, kind: str, parts: Split) -> None:
    """Make a training step, so that what is wrong is said here and not by ``fit``."""
    try:
        onnx_estimator.try_step(parts.matrix, parts.predicted)
    except OnnxCustomError as exc:
        raise type(exc)(f"{kind} cannot be trained further as ONNX: {exc}") from exc


def _wrapped(onnx_estimator: Any, kept: Sequence[Part], found: Any) -> Any:
    """The estimator behind what stays in scikit-learn."""
    result = onnx_estimator
    if kept:
        steps = [(part.name, FrozenStep(part.step)) for part in kept]
        result = Pipeline([*steps, (found.steps[-1][0], onnx_estimator)])
    targets = found.targets
    if targets is None:
        return result
    func, inverse = targets.func, targets.inverse_func
    if targets.transformer is not None:  # as it was fitted, whatever the next targets are
        func, inverse = targets.transformer_.transform, targets.transformer_.inverse_transform
    return TransformedTargetRegressor(result, func=func, inverse_func=inverse, check_inverse=False)
