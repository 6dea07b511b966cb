"""From a fitted scikit-learn estimator or pipeline to an estimator that trains it further as ONNX."""

from __future__ import annotations

import dataclasses
import json
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
from onnxcustom.graph import load, select_weights, weights
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
from .heads import has_several_labels
from .steps import Part, Split, first_rows, has_no_weights, join, split, unwrap, without_weights

__all__ = ["ConversionReport", "StepRow", "describe_conversion", "from_sklearn"]

logger = logging.getLogger("onnxcustom")

_KEY = "onnxcustom.conversion"

# Made of models that have weights of their own.
_ENSEMBLE = re.compile("Bagging|Voting|Stacking|Calibrated|OneVs|MultiOutput|AdaBoost|SGD")


def from_sklearn(estimator: Any, X: Any, *, dtype: Any = np.float32, **parameters: Any) -> Any:
    """An estimator that goes on training what scikit-learn has fitted.

    The longest end of a pipeline that can be an ONNX graph becomes one: linear models and multi-layer
    perceptrons, alone or one for each class or output, with their weights as scikit-learn calls them
    (``coef``, ``intercept``, ``coefs.0``), everything else as skl2onnx converts it. Each step is compared
    with the original on the rows of `X`. What predicts is trained, what is in front of it stays as it
    was fitted. Steps that cannot be in a graph (they read text, columns of several types or missing values)
    and those in front of them stay in scikit-learn, frozen: the result is then a pipeline.

    What becomes of every step is logged at level INFO on logger ``onnxcustom``, and
    :func:`describe_conversion` tells it at any time.

    Parameters
    ----------
    estimator : estimator
        Fitted classifier or regressor, or a pipeline, a search, a TransformedTargetRegressor of one. It is
        not modified.
    X : array_like, DataFrame or sparse matrix
        A few rows as `estimator` reads them; the first hundred are looked at.
    dtype : {float32, float64}, default=float32
        Dtype of the graph.
    **parameters
        Parameters of :class:`~onnxcustom.OnnxClassifier` or :class:`~onnxcustom.OnnxRegressor`, such as
        ``learning_rate`` and ``max_iter``. ``weights_to_train='*'`` trains the steps in front as well,
        as far as they have weights. ``loss`` is by default the one that the estimator was
        fitted with where there is one of its kind, else that of the class. Penalties are not taken over.

    Returns
    -------
    OnnxClassifier, OnnxRegressor, Pipeline or TransformedTargetRegressor
        Not fitted: ``fit`` starts from the estimator's weights. In a Pipeline the last step is an
        OnnxClassifier or OnnxRegressor, those before it are frozen. Of an estimator that was fitted on a
        frame the model keeps the names of the columns, so that tables may have them in any order.

    Warns
    -----
    UserWarning
        Its graph has constants that were one parameter to scikit-learn, as of a GaussianNB.

    Raises
    ------
    NotFittedError
        The estimator is not fitted.
    InvalidModelError
        Neither classifier nor regressor, or its last step cannot be converted.
    NoTrainableWeightError
        Nothing of it has a gradient: trees, neighbours, kernels.
    InvalidDataError
        Rows that the estimator cannot read.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_iris(return_X_y=True)
    >>> fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    >>> clf = from_sklearn(fitted, X, learning_rate=0.1, random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.9
    True
    >>> print(describe_conversion(clf))
    Converted from scikit-learn, float32, loss cross-entropy
      step                class               where  weights                    numbers  state
      standardscaler      StandardScaler      graph                                   0  frozen: ...
      logisticregression  LogisticRegression  graph  coef (3x4), intercept (3)       15  trained
    """
    number = _checked_dtype(dtype)
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
    parts = split(found.steps, rows, number)
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
            warn_user(f"{found.notes[-1]}. Name in weights_to_train those that are meant.", UserWarning)
    _write(model, rows_of_steps, number, found.notes)
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


@dataclasses.dataclass(frozen=True)
class StepRow:
    """What became of one step.

    Attributes
    ----------
    step, kind : str
        Its name and its class.
    place : {'graph', 'scikit-learn'}
        Where it is now.
    shapes : dict of str to tuple of int
        Its weights, by the names that :func:`onnxcustom.weights` gives them.
    why : str
        Why it is not trained, or not all of it; empty if it is.
    trained : tuple of str
        The weights that are trained.
    """

    step: str
    kind: str
    place: str
    shapes: dict[str, tuple[int, ...]]
    why: str = ""
    trained: tuple[str, ...] = ()


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


# -- the report --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What became of every step of a scikit-learn estimator; ``str()`` is a table.

    Attributes
    ----------
    rows : tuple of StepRow
        One for each step, in order.
    dtype : str
        Of the graph.
    loss : str
        What it is trained by.
    notes : tuple of str
        What was left behind.
    """

    rows: tuple[StepRow, ...]
    dtype: str
    loss: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        titles = ("step", "class", "where", "weights", "numbers", "state")
        cells = [
            (r.step or "-", r.kind, r.place, _listed(r), f"{_numbers(r.shapes.values()):,}", _state(r))
            for r in self.rows
        ]
        sizes = [max(len(row[k]) for row in (titles, *cells)) for k in range(len(titles))]
        lines = [f"Converted from scikit-learn, {self.dtype}, loss {self.loss}"]
        for row in (titles, *cells):
            padded = [
                f"{c:>{n}}" if t == "numbers" else f"{c:{n}}"
                for c, n, t in zip(row, sizes, titles, strict=True)
            ]
            lines.append(f"  {'  '.join(padded)}".rstrip())
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def _listed(row: StepRow) -> str:
    """Weights with their shapes, or how many if that is too long."""
    prefix = f"{row.step}."
    texts = [f"{n.removeprefix(prefix)} ({'x'.join(map(str, s))})" for n, s in row.shapes.items()]
    text = ", ".join(texts)
    return text if len(text) <= 72 else f"{len(texts)} weights"


def _numbers(shapes: Any) -> int:
    return int(sum(np.prod(shape, dtype=np.int64) for shape in shapes))


def _state(row: StepRow) -> str:
    if not row.trained:
        return f"frozen: {row.why}" if row.why else "frozen"
    if len(row.trained) == len(row.shapes):
        return "trained"
    held = [n.removeprefix(f"{row.step}.") for n in row.shapes if n not in row.trained]
    return f"trained, but not {', '.join(held[:3])}{' ...' if len(held) > 3 else ''}"


def _write(model: onnx.ModelProto, rows: Sequence[StepRow], dtype: np.dtype, notes: Sequence[str]) -> None:
    """Leave what became of the steps in the model, where copies, pickles and files keep it."""
    data = {
        "dtype": dtype.name,
        "notes": list(notes),
        "steps": [[r.step, r.kind, r.place, {n: list(s) for n, s in r.shapes.items()}, r.why] for r in rows],
    }
    entry = model.metadata_props.add()
    entry.key, entry.value = _KEY, json.dumps(data)


def describe_conversion(estimator: Any) -> ConversionReport:
    """What became of the steps of a scikit-learn estimator, and what of them is trained.

    Parameters
    ----------
    estimator : OnnxClassifier, OnnxRegressor, Pipeline or TransformedTargetRegressor
        What :func:`from_sklearn` returned, also after changes of ``weights_to_train`` and ``freeze``,
        after ``clone``, ``fit`` or pickling.

    Returns
    -------
    ConversionReport

    Raises
    ------
    InvalidModelError
        The model does not come from :func:`from_sklearn`.
    """
    while not isinstance(estimator, (OnnxClassifier, OnnxRegressor)):
        if isinstance(estimator, Pipeline):
            estimator = estimator.steps[-1][1]
        elif isinstance(estimator, TransformedTargetRegressor):
            estimator = estimator.regressor
        else:
            raise InvalidModelError(f"{type(estimator).__name__} is nothing that from_sklearn returns.")
    model = load(estimator.model)
    found = {p.key: p.value for p in model.metadata_props}
    if _KEY not in found:
        raise InvalidModelError("The model was not made by from_sklearn: it doesn't say what its steps were.")
    data = _read(found[_KEY])
    chosen = select_weights(model, estimator.weights_to_train, getattr(estimator, "freeze", None))
    rows = [
        StepRow(
            step,
            kind,
            place,
            shapes := {n: tuple(s) for n, s in own.items()},
            why,
            tuple(n for n in shapes if n in chosen),
        )
        for step, kind, place, own, why in data["steps"]
    ]
    loss = _named(estimator)
    return ConversionReport(tuple(rows), data["dtype"], loss, tuple(data["notes"]))


def _read(text: str) -> dict[str, Any]:
    """What :func:`_write` wrote; a model may come from anywhere, and anything may be there."""
    try:
        data = json.loads(text)
        np.dtype(data["dtype"])
        rows = [(step, kind, place, why, dict(own)) for step, kind, place, own, why in data["steps"]]
        texts = [data["dtype"], *data["notes"], *(t for row in rows for t in (*row[:4], *row[4]))]
        sizes = [size for row in rows for shape in row[4].values() for size in shape]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as exc:
        raise _unread() from exc
    if not all(isinstance(t, str) for t in texts) or not all(isinstance(n, int) for n in sizes):
        raise _unread()
    return data


def _unread() -> InvalidModelError:
    return InvalidModelError(
        f"The metadata entry {_KEY!r} of the model is not what from_sklearn writes: convert the model again."
    )


def _named(estimator: Any) -> str:
    """The loss in words."""
    if estimator.loss is not None:
        return str(estimator.loss)
    return "cross-entropy" if isinstance(estimator, OnnxClassifier) else "squared error"
