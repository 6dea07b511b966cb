"""Linear models and multi-layer perceptrons of scikit-learn as graphs that end in their scores.

skl2onnx has converters for them too, with one form for float32 and another for float64, mirrored
coefficients that training would tear apart, and operators behind which the scores are hard to find. Here
weights keep the names and shapes they have in scikit-learn, and the last operator is the link.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import scipy.sparse
from scipy.special import expit, softmax
from sklearn.base import is_classifier
from sklearn.utils import all_estimators

from onnxcustom.graph import Builder, Var, to_proto
from onnxcustom.runtime import create_session

__all__ = [
    "IR_VERSION",
    "LINKS",
    "OPSET",
    "Head",
    "build_head",
    "close",
    "evaluate",
    "has_several_labels",
    "trainable_kinds",
]

OPSET = 18
IR_VERSION = 8

_ACTIVATIONS: dict[str, Callable[[Builder, Var], Var]] = {
    "identity": lambda op, z: z,
    "logistic": lambda op, z: op.Sigmoid(z),
    "tanh": lambda op, z: op.Tanh(z),
    "relu": lambda op, z: op.Relu(z),
}


# -- scores ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Linear:
    """z = x @ coefᵀ + intercept, with coef (k, features) and intercept (k,)."""

    coef: np.ndarray
    intercept: np.ndarray

    def emit(self, op: Builder, x: Var, prefix: str = "") -> Var:
        """The scores, of shape (n, k)."""
        arrays = {"coef": self.coef, "intercept": self.intercept}
        return op.Gemm(x, *(_weight(op, x, prefix + n, a) for n, a in arrays.items()), transB=1)


@dataclasses.dataclass(frozen=True)
class _Perceptron:
    """Layers h @ coefs[i] + intercepts[i] with an activation between them."""

    coefs: list[np.ndarray]
    intercepts: list[np.ndarray]
    activation: str

    def emit(self, op: Builder, x: Var, prefix: str = "") -> Var:
        """The scores, of shape (n, k)."""
        for i, (coef, intercept) in enumerate(zip(self.coefs, self.intercepts, strict=True)):
            if i:
                x = _ACTIVATIONS[self.activation](op, x)
            w = _weight(op, x, f"{prefix}coefs.{i}", coef)
            x = op.Gemm(x, w, _weight(op, x, f"{prefix}intercepts.{i}", intercept))
        return x


@dataclasses.dataclass(frozen=True)
class _Several:
    """The scores of several models beside each other."""

    parts: list[Any]

    def emit(self, op: Builder, x: Var, prefix: str = "") -> Var:
        """The scores, of shape (n, number of models)."""
        scores = [part.emit(op, x, f"{prefix}estimators.{i}.") for i, part in enumerate(self.parts)]
        return op.Concat(*scores, axis=1)


def _weight(op: Builder, x: Var, name: str, array: np.ndarray) -> Var:
    assert x.dtype is not None
    return op.wrap(op.initializer(name, ir.tensor(np.ascontiguousarray(array, x.dtype.numpy()), name=name)))


def _scores_of(estimator: Any, features: int) -> Any:
    """What computes the scores of an estimator, None if it is no model of these kinds."""
    if hasattr(estimator, "coefs_") and hasattr(estimator, "intercepts_"):
        if getattr(estimator, "activation", None) not in _ACTIVATIONS:
            return None
        return _Perceptron(estimator.coefs_, estimator.intercepts_, estimator.activation)
    if hasattr(estimator, "estimators_") and type(estimator).__name__ in _SEVERAL:
        return _several([_scores_of(e, features) for e in estimator.estimators_])
    if type(estimator).__name__ == "RANSACRegressor":
        return _scores_of(estimator.estimator_, features)
    coef, intercept = getattr(estimator, "coef_", None), getattr(estimator, "intercept_", None)
    if coef is None or intercept is None:
        return None
    coef = coef.toarray() if scipy.sparse.issparse(coef) else np.asarray(coef)
    coef = np.atleast_2d(coef)
    if coef.ndim != 2 or coef.dtype.kind != "f" or coef.shape[1] != features:
        return None
    intercept = np.broadcast_to(np.asarray(intercept, np.float64).reshape(-1), (len(coef),))
    if hasattr(estimator, "_x_mean"):  # of PLS, which centres what it reads
        intercept = intercept - coef @ estimator._x_mean
    return _Linear(coef, intercept)


_SEVERAL = frozenset({"OneVsRestClassifier", "MultiOutputClassifier", "MultiOutputRegressor"})


def _several(parts: list[Any]) -> Any:
    if not parts or any(part is None for part in parts):
        return None
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, _Linear) and len(part.coef) == 1 for part in parts):
        coefs, intercepts = ([getattr(p, n) for p in parts] for n in ("coef", "intercept"))
        return _Linear(np.concatenate(coefs), np.concatenate(intercepts))
    return _Several(parts)


@functools.lru_cache(maxsize=2)
def trainable_kinds(classifiers: bool) -> list[str]:
    """Names of the classifiers or regressors of scikit-learn that have weights which this module finds.

    They are fitted on a few rows, those alone whose documentation says that they have coefficients.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(24, 3))
    y = np.arange(24) % 2 if classifiers else np.abs(X @ [1.0, 2.0, 3.0])
    names = []
    for name, kind in all_estimators(type_filter="classifier" if classifiers else "regressor"):
        if "coef_ :" not in (kind.__doc__ or "") and "coefs_ :" not in (kind.__doc__ or ""):
            continue
        with warnings.catch_warnings(), contextlib.suppress(TypeError, ValueError, AttributeError):
            warnings.simplefilter("ignore")
            if _scores_of(kind().fit(X, y), X.shape[1]) is not None:
                names.append(name)
    return names


# -- links -------------------------------------------------------------------------------------------


def _pair(p: np.ndarray) -> np.ndarray:
    return np.concatenate([1 - p, p], axis=1)


def _shares(p: np.ndarray) -> np.ndarray:
    return p / p.sum(axis=1, keepdims=True)


#: What makes of scores what an estimator predicts.
LINKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": lambda z: _pair(expit(z)),
    "softmax": lambda z: softmax(z, axis=1),
    "one against the rest": lambda z: _shares(expit(z)),
    "several labels": expit,
    "scores": lambda z: z,
    "identity": lambda z: z,
    "exp": np.exp,
}


def _emit_link(op: Builder, z: Var, link: str) -> Var:
    if link == "sigmoid":
        p = op.Sigmoid(z)
        return op.Concat(1 - p, p, axis=1)
    if link == "softmax":
        return op.Softmax(z, axis=1)
    if link == "one against the rest":
        p = op.Sigmoid(z)
        tiny = np.finfo(np.float32).tiny  # where all of them round to 0
        return p / op.Max(op.ReduceSum(p, [1], keepdims=1), tiny)
    if link == "several labels":
        return op.Sigmoid(z)
    return op.Exp(z) if link == "exp" else op.Identity(z)


@dataclasses.dataclass(frozen=True)
class Head:
    """A model of scikit-learn as a graph.

    Attributes
    ----------
    model : onnx.ModelProto
        Input ``X``; outputs ``label`` and ``probabilities`` or ``scores``, or ``variable``.
    link : str
        Of :data:`LINKS`.
    """

    model: onnx.ModelProto
    link: str


def build_head(
    estimator: Any, matrix: np.ndarray, expected: np.ndarray, predicted: np.ndarray, tolerance: float
) -> Head | None:
    """The graph of a linear model or perceptron, or of several of them.

    Parameters
    ----------
    estimator : estimator
        Fitted.
    matrix : ndarray of shape (rows, features)
        Rows that it predicts, in the dtype of the graph.
    expected : ndarray of shape (rows, columns)
        Its probabilities, else scores, of these; of a regressor its predictions.
    predicted : ndarray of shape (rows,) or (rows, columns)
        What its ``predict`` returns.
    tolerance : float
        How much of the largest expected number the graph may be off.

    Returns
    -------
    Head or None
        None for other estimators, and where no link gives what is expected.
    """
    scores = _scores_of(estimator, matrix.shape[1])
    if scores is None:
        return None
    z = evaluate(_model(scores, matrix, None, None), matrix)["scores"]
    for link in _candidates(estimator):
        with np.errstate(over="ignore"):
            found = LINKS[link](z.astype(np.float64))
        if close(found, expected, tolerance):
            classes = _classes(estimator, link) if is_classifier(estimator) else None
            if classes is not None and z.shape[1] != (1 if len(classes) == 2 else len(classes)):
                return None
            model = _model(scores, matrix, link, classes)
            return Head(model, link) if _agrees(model, matrix, predicted) else None
    return None


def _agrees(model: onnx.ModelProto, matrix: np.ndarray, predicted: np.ndarray) -> bool:
    """Whether labels, if there are any, are those of the estimator but for what rounding may turn."""
    found = evaluate(model, matrix).get("label")
    return found is None or (
        found.shape == predicted.shape
        and bool(np.mean(found.astype(object) != predicted.astype(object)) < 0.02)
    )


def _candidates(estimator: Any) -> list[str]:
    if not is_classifier(estimator):
        return ["identity", "exp"]
    if hasattr(estimator, "predict_proba"):
        return ["sigmoid", "softmax", "one against the rest", "several labels"]
    return ["scores"]


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays are the same but for rounding."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return False
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    return bool(np.abs(found - expected).max(initial=0) <= tolerance * scale)


def _classes(estimator: Any, link: str) -> np.ndarray | None:
    """The labels that the graph picks from, None where each column is a label of its own."""
    return None if link == "several labels" or has_several_labels(estimator) else estimator.classes_


def has_several_labels(estimator: Any) -> bool:
    """Whether every column of a classifier's scores is a label of its own."""
    binarizer = getattr(estimator, "_label_binarizer", None)
    return getattr(estimator, "multilabel_", False) or str(getattr(binarizer, "y_type_", "")).startswith(
        "multilabel"
    )


def _model(scores: Any, matrix: np.ndarray, link: str | None, classes: np.ndarray | None) -> onnx.ModelProto:
    op = Builder(OPSET)
    x = op.input("X", ir.DataType.from_numpy(matrix.dtype), ["N", matrix.shape[1]])
    z = scores.emit(op, x)
    outputs = {"scores": z}
    if link in ("identity", "exp"):
        outputs = {"variable": _emit_link(op, z, link)}
    elif link is not None:
        name = "scores" if link == "scores" else "probabilities"
        single = classes is not None and len(classes) == 2 and link in ("sigmoid", "scores")
        outputs = {"label": _label(op, z, classes, single), name: _emit_link(op, z, link)}
    for name, var in outputs.items():
        var.value.name = name
    graph = op.graph([x], list(outputs.values()), "model")
    model = to_proto(ir.Model(graph, ir_version=IR_VERSION, producer_name="onnxcustom"))
    return onnx.shape_inference.infer_shapes(model)


def _label(op: Builder, z: Var, classes: np.ndarray | None, single: bool) -> Var:
    if classes is None:
        return op.Cast(z > 0, to=int(ir.DataType.INT64))
    if single:
        index = op.Reshape(op.Cast(z > 0, to=int(ir.DataType.INT64)), [-1])
    else:
        index = op.ArgMax(z, axis=1, keepdims=0)
    if classes.dtype.kind in "biuf":  # scikit-learn takes floats for labels if they are integers
        return op.Gather(op.const(classes.astype(np.int64)), index)
    texts = [str(label).encode() for label in classes]
    tensor = ir.StringTensor(texts, shape=ir.Shape([len(texts)]), name="labels")
    return op.Gather(op.wrap(op.initializer("labels", tensor)), index)


def evaluate(model: onnx.ModelProto, matrix: np.ndarray) -> dict[str, Any]:
    """Outputs of a model of one input, by name."""
    session = create_session(model, threads=1)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: matrix}), strict=True))
