"""Steps of a scikit-learn pipeline: which can be part of an ONNX graph, and the graph they make."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.compose
import scipy.sparse
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline

from onnxcustom.exceptions import InvalidDataError, InvalidModelError, NoTrainableWeightError

from .heads import IR_VERSION, OPSET, Head, build_head, close, evaluate, trainable_kinds

__all__ = [
    "Part",
    "Split",
    "Unwrapped",
    "first_rows",
    "has_no_weights",
    "join",
    "split",
    "unwrap",
    "without_weights",
]

ROWS = 100  # that a conversion is checked on
_VERSIONS = {"": OPSET, "ai.onnx.ml": 3}  # that every onnxruntime from 1.17 on reads


# Where estimators live that have no weights: trees, neighbours, kernels.
_WITHOUT_WEIGHTS = re.compile(
    r"\.(tree|neighbors|svm|kernel_ridge)(\.|$)|\.ensemble\._(forest|gb|hist|iforest|weight_boosting)"
)


def without_weights(estimator: Any) -> str:
    """In plain words that a kind of model has nothing to train, and which kinds have."""
    kind, classifies = type(estimator).__name__, is_classifier(estimator)
    return (
        f"{kind} has no weights that a gradient could move: trees, forests and boosting of them hold "
        "thresholds, neighbours and kernels the rows they were fitted on. "
        f"{'Classifiers' if classifies else 'Regressors'} that have weights, alone or at the end of a "
        f"pipeline: {', '.join(trainable_kinds(classifies))}."
    )


def has_no_weights(estimator: Any) -> bool:
    """Whether an estimator is of a kind without weights."""
    kernel = not hasattr(estimator, "coef_")  # a linear support vector machine has some
    return kernel and _WITHOUT_WEIGHTS.search(type(estimator).__module__) is not None


# -- what is in a wrapper ------------------------------------------------------------------------


@dataclasses.dataclass
class Unwrapped:
    """An estimator without what is around it.

    Attributes
    ----------
    steps : list of (str, estimator)
        What is applied one after the other, the last one predicts.
    targets : estimator or None
        The TransformedTargetRegressor that it was in.
    notes : list of str
        What was left behind.
    """

    steps: list[tuple[str, Any]]
    targets: Any = None
    notes: list[str] = dataclasses.field(default_factory=list)


def unwrap(estimator: Any) -> Unwrapped:
    """Take a fitted estimator out of searches, pipelines, frozen estimators and transformed targets."""
    found = Unwrapped([("", estimator)])
    while True:
        name, last = found.steps[-1]
        kind = type(last).__name__
        if isinstance(last, Pipeline):
            found.steps[-1:] = _leaves(name, last)
        elif hasattr(last, "best_estimator_"):
            found.steps[-1] = (name, last.best_estimator_)
            found.notes.append(f"{kind}: its best estimator is taken")
        elif kind in ("FixedThresholdClassifier", "TunedThresholdClassifierCV"):
            found.steps[-1] = (name, last.estimator_)
            found.notes.append(
                f"{kind}: its threshold is left behind, labels are those of the larger probability"
            )
        elif kind == "FrozenEstimator":
            found.steps[-1] = (name, last.estimator)
        elif kind == "TransformedTargetRegressor":
            found.targets = last
            found.steps[-1] = (name, last.regressor_)
        else:
            return found


def _leaves(name: str, step: Any) -> Iterator[tuple[str, Any]]:
    """The steps of a pipeline and of the pipelines in it."""
    if not isinstance(step, Pipeline):
        yield name, step
        return
    for inner, part in step.steps:
        if part is not None and part != "passthrough":
            yield from _leaves(f"{name}.{inner}" if name else inner, part)


# -- rows ------------------------------------------------------------------------------------------


def first_rows(X: Any, count: int = ROWS) -> Any:
    """The first rows of features in any form."""
    if hasattr(X, "iloc"):
        rows = X.iloc[:count]
    elif scipy.sparse.issparse(X):
        rows = scipy.sparse.csr_array(X)[:count]
    else:
        rows = X[:count]
    if (rows.shape[0] if hasattr(rows, "shape") else len(rows)) == 0:
        raise InvalidDataError("X has no rows; a few are needed to see what the estimator reads.")
    return rows


def _matrix(rows: Any, dtype: np.dtype) -> tuple[np.ndarray | None, str]:
    """Rows as what the graph reads, or None and why they are no matrix of numbers."""
    if scipy.sparse.issparse(rows):
        rows = rows.toarray()
    if hasattr(rows, "dtypes"):  # a DataFrame
        types = list(rows.dtypes)
        if not all(map(_is_number, types)):
            return None, f"reads columns of types {', '.join(sorted({str(t) for t in types}))}"
        array = np.asarray(rows, np.float64)
    else:
        array = np.asarray(rows)
    if array.dtype.kind == "O" and not any(isinstance(v, (str, bytes)) for v in array.reshape(-1)):
        with contextlib.suppress(TypeError, ValueError):
            array = array.astype(np.float64)
    if array.dtype.kind not in "biuf":
        return None, "reads text" if array.dtype.kind in "USO" else f"reads {array.dtype}"
    if array.ndim != 2:
        return None, f"reads arrays of {array.ndim} dimensions"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return None, "reads missing values"
    return np.ascontiguousarray(array, dtype), ""


def _is_number(dtype: Any) -> bool:
    """Whether a column of pandas or polars holds numbers or booleans."""
    if hasattr(dtype, "kind"):
        return dtype.kind in "biuf"
    return str(dtype) == "Boolean" or bool(getattr(dtype, "is_numeric", lambda: False)())


# -- splitting -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Part:
    """A step of the pipeline and what becomes of it.

    Attributes
    ----------
    name : str
        Of the step.
    step : estimator
        As fitted.
    model : onnx.ModelProto or None
        Its graph; None if it stays in scikit-learn.
    why : str
        Why it stays there.
    """

    name: str
    step: Any
    model: onnx.ModelProto | None = None
    why: str = ""


@dataclasses.dataclass
class Split:
    """A pipeline in two.

    Attributes
    ----------
    kept : list of Part
        The first steps, which stay in scikit-learn.
    graphed : list of Part
        The others, the last one predicts.
    head : Head or None
        The last one, if it is a linear model or a perceptron.
    matrix : ndarray of shape (rows, features)
        Rows as the graph reads them.
    predicted : ndarray
        What the last one predicts for them.
    """

    kept: list[Part]
    graphed: list[Part]
    head: Head | None
    matrix: np.ndarray
    predicted: np.ndarray


def split(steps: Sequence[tuple[str, Any]], rows: Any, dtype: np.dtype) -> Split:
    """Find the longest end of a pipeline that can be a graph, and convert its steps.

    Raises
    ------
    InvalidModelError
        The last step cannot be converted.
    """
    tolerance = 1e-3 if dtype == np.float32 else 1e-5  # what is compared with may be float32
    inputs = [rows]
    for name, step in steps[:-1]:
        try:
            inputs.append(step.transform(inputs[-1]))
        except (TypeError, ValueError, KeyError, AttributeError) as exc:
            raise InvalidDataError(
                f"Step {name!r} ({type(step).__name__}) cannot transform X: {exc}"
            ) from exc
    name, last = steps[-1]
    matrix, why = _matrix(inputs[-1], dtype)
    if matrix is None:
        raise InvalidModelError(f"{type(last).__name__} {why}: a graph that is trained reads numbers.")
    predicted = np.asarray(last.predict(inputs[-1]))
    model, head = _last(last, inputs[-1], matrix, predicted, tolerance)
    graphed = [Part(name, last, model)]
    remaining = list(zip(steps, inputs, strict=False))[:-1]
    while remaining:
        (name, step), given = remaining[-1]
        candidate, why = _matrix(given, dtype)
        converted = None
        if candidate is not None:
            converted, why = _transformer(step, given, candidate, inputs[len(remaining)], tolerance)
        if candidate is None or converted is None:
            break
        remaining.pop()
        matrix = candidate
        graphed.insert(0, Part(name, step, converted))
    kept = [Part(n, s, why="in front of a step that stays in scikit-learn") for (n, s), _ in remaining]
    if kept:
        kept[-1].why = why
    return Split(kept, graphed, head, matrix, predicted)


def _transformer(
    step: Any, given: Any, matrix: np.ndarray, wanted: Any, tolerance: float
) -> tuple[onnx.ModelProto | None, str]:
    """The graph of a step before the last, or None and why there is none."""
    if type(step).__module__.startswith("sklearn.impute"):
        return None, "reads missing values"
    try:
        model = _convert(_by_position(step, given), matrix)
        (found,) = (v for v in evaluate(model, matrix).values())
    except Exception as exc:  # skl2onnx raises exceptions of many kinds
        return None, f"cannot be converted: {_first_line(exc)}"
    expected, _ = _matrix(wanted, np.dtype(np.float64))
    if expected is None or not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        return None, "gives something else than numbers"
    if found.dtype != matrix.dtype or not close(found.astype(np.float64), expected, tolerance):
        return None, "gives other numbers as a graph"
    return model, ""


def _last(
    estimator: Any, given: Any, matrix: np.ndarray, predicted: np.ndarray, tolerance: float
) -> tuple[onnx.ModelProto, Head | None]:
    """The graph of what predicts."""
    expected = _predictions(estimator, given)
    head = build_head(estimator, matrix, expected, predicted, tolerance)
    if head is not None:
        return head.model, head
    kind = type(estimator).__name__
    try:
        model = _convert(_converted_copy(estimator), matrix)
        outputs = evaluate(model, matrix)
    except Exception as exc:
        if has_no_weights(estimator):
            raise NoTrainableWeightError(without_weights(estimator)) from exc
        raise InvalidModelError(f"{kind} cannot be converted to ONNX: {_first_line(exc)}") from exc
    found = [a for a in outputs.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    if not found:
        raise InvalidModelError(f"The graph of {kind} has no output of numbers that could be trained.")
    if not close(found[-1].reshape(len(matrix), -1).astype(np.float64), expected, tolerance):
        raise InvalidModelError(
            f"The graph that skl2onnx makes of {kind} doesn't predict what the estimator predicts: it "
            f"cannot be trained further{' in float32' if matrix.dtype == np.float32 else ''}."
        )
    return model, None


def _predictions(estimator: Any, given: Any) -> np.ndarray:
    """Probabilities, else scores, else numbers, of shape (rows, columns)."""
    if type(estimator).__name__ == "OneVsOneClassifier":
        raise InvalidModelError("OneVsOneClassifier counts votes, which have no gradient.")
    if not is_classifier(estimator):
        found = estimator.predict(given)
    elif hasattr(estimator, "predict_proba"):
        found = estimator.predict_proba(given)
        if isinstance(found, list):  # one array for each output
            if any(p.shape[1] != 2 for p in found):
                raise InvalidModelError(
                    f"{type(estimator).__name__} has outputs of more than two classes each: convert the "
                    "estimators of its outputs one by one."
                )
            found = np.stack([p[:, 1] for p in found], axis=1)
    elif hasattr(estimator, "decision_function"):
        found = estimator.decision_function(given)
    else:
        raise InvalidModelError(
            f"{type(estimator).__name__} has neither probabilities nor scores that could be trained."
        )
    found = np.asarray(found, np.float64)
    return found.reshape(len(found), -1)


# -- conversion --------------------------------------------------------------------------------------


def _converted_copy(estimator: Any) -> Any:
    """The estimator with the parameters that its converter wants."""
    if "flatten_transform" in estimator.get_params(deep=False):
        estimator = copy.deepcopy(estimator).set_params(flatten_transform=False)
    return estimator


def _by_position(step: Any, given: Any) -> Any:
    """A ColumnTransformer that takes columns by place rather than by name."""
    names = list(getattr(given, "columns", ()))
    if type(step).__name__ != "ColumnTransformer" or names != list(getattr(step, "feature_names_in_", ())):
        return step
    place = {name: i for i, name in enumerate(names)}

    def places(columns: Any) -> list[Any]:
        return [place.get(c, c) for c in ([columns] if isinstance(columns, str) else columns)]

    copied = copy.deepcopy(step)
    for attribute in ("transformers", "transformers_"):
        setattr(copied, attribute, [(n, t, places(c)) for n, t, c in getattr(step, attribute)])
    copied._columns = [places(columns) for columns in step._columns]
    return copied


def _convert(step: Any, matrix: np.ndarray) -> onnx.ModelProto:
    """A step as skl2onnx converts it: no ZipMap, operator sets that the installed onnxruntime reads."""
    from skl2onnx import to_onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            options = {"zipmap": False} if is_classifier(step) else None
            model = to_onnx(step, matrix[:1], options=options, target_opset=_VERSIONS)
        except NameError:  # a classifier that has no such option
            model = to_onnx(step, matrix[:1], target_opset=_VERSIONS)
    return _with_versions(model)


def _first_line(exc: Exception) -> str:
    text = str(exc).strip().splitlines()
    return (
        f"{type(exc).__name__}: {text[0][:90]}{'...' if len(text[0]) > 90 else ''}"
        if text
        else type(exc).__name__
    )


def join(parts: Sequence[Part]) -> onnx.ModelProto:
    """One graph of several, each on what the one before it gives; tensors are called after their steps."""
    if len(parts) == 1:
        return _with_versions(parts[0].model)
    joined = None
    for i, part in enumerate(parts):
        assert part.model is not None
        model = _with_versions(
            onnx.compose.add_prefix(
                part.model,
                prefix=f"{part.name}.",
                rename_inputs=i > 0,
                rename_outputs=i < len(parts) - 1,
            )
        )
        if joined is None:
            joined = model
            continue
        io_map = [(joined.graph.output[0].name, model.graph.input[0].name)]
        joined = onnx.compose.merge_models(joined, model, io_map=io_map)
    assert joined is not None
    joined.producer_name, joined.graph.name = "onnxcustom", "model"
    return joined


def _with_versions(model: Any) -> onnx.ModelProto:
    """The model, said to be of the versions that it was converted to."""
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in _VERSIONS.items())
    model.ir_version = IR_VERSION
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):  # some converters write the rows they have seen
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].dim_param = "N"
    return model
