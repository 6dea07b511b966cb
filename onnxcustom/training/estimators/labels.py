"""What a model and its data say about classes: the output, its loss, the labels and their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom._parameters import check_number
from onnxcustom.data.sparse import is_sparse
from onnxcustom.exceptions import InvalidDataError, InvalidModelError
from onnxcustom.feed.arrays import check_not_masked
from onnxcustom.graph import find_logits
from onnxcustom.objective import (
    BaseLearningLoss,
    BinaryCrossEntropyLearningLoss,
    SoftmaxCrossEntropyLearningLoss,
)
from onnxcustom.step.targets import prediction_tensors
from onnxcustom.step.training_step import TrainingStep

__all__ = [
    "FITTING_NAMES",
    "are_independent",
    "are_numbered",
    "as_labels",
    "class_factors",
    "declared_columns",
    "fitting_loss",
    "from_one_hot",
    "label_indices",
    "labels_of",
    "link_of",
    "probability_output",
    "some",
]

# Names of losses that mean the cross-entropy that fits the model.
FITTING_NAMES = frozenset({"log", "log_loss", "logloss", "neglog"})


def probability_output(model: ir.Model) -> str:
    """The output with scores: the first one behind a Sigmoid, a Softmax or a ZipMap, else the first float."""
    tensors = prediction_tensors(model)
    if not tensors:
        raise InvalidModelError(
            f"None of the model's outputs {[v.name for v in model.graph.outputs]} holds scores or "
            "probabilities: there is nothing to train."
        )
    recognised = [name for name in tensors if find_logits(model, name) is not None or tensors[name] != name]
    chosen = (recognised or list(tensors))[0]
    if not recognised:
        _check_one_tensor(model, list(tensors))
    _check_label(model, chosen)
    return chosen


def _check_one_tensor(model: ir.Model, names: list[str]) -> None:
    """Refuse outputs that are columns of one tensor: each alone says half of what is to be trained."""
    sources: dict[ir.Value, list[str]] = {}
    for value in model.graph.outputs:
        node = value.producer()
        while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
            value = node.inputs[0]
            node = value.producer()
        if node is not None and node.op_type in _SELECTIONS and node.inputs[0] is not None:
            sources.setdefault(node.inputs[0], []).append(str(value.name))
    for columns in sources.values():
        if len(columns) > 1:
            raise InvalidModelError(
                f"The outputs {names} hold the probability of one class each, as skl2onnx writes them with "
                "zipmap='columns': convert with zipmap=False, so that one output holds all of them."
            )


def _check_label(model: ir.Model, output: str) -> None:
    """Refuse scores whose smallest one is the label, such as distances to clusters."""
    waiting = [v for v in model.graph.outputs if v.dtype is None or not v.dtype.is_floating_point()]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node.op_type == "ArgMin":
            raise InvalidModelError(
                f"The model's label is the place of its smallest number (node {node.name!r}, ArgMin): output "
                f"{output!r} holds distances, no scores to train a classifier on; OnnxRegressor trains them."
            )
        if node is not None and node.op_type in _MOVES | _SELECTIONS:
            waiting.extend(v for v in node.inputs if v is not None)


def fitting_loss(model: ir.Model, output: str, first_scores: Callable[[], np.ndarray]) -> BaseLearningLoss:
    """The cross-entropy that fits an output; `first_scores` computes it for some rows."""
    logits = find_logits(model, output)
    if logits is not None:
        sigmoid = logits.kind == "sigmoid"
        return BinaryCrossEntropyLearningLoss() if sigmoid else SoftmaxCrossEntropyLearningLoss()
    scores = first_scores()
    if scores.ndim > 2:  # classes on axis 1: of (n, tokens, classes) nothing tells the last from the second
        return SoftmaxCrossEntropyLearningLoss() if scores.shape[1] > 1 else BinaryCrossEntropyLearningLoss()
    scores = scores.reshape(len(scores), -1)
    loss = BinaryCrossEntropyLearningLoss() if scores.shape[1] == 1 else SoftmaxCrossEntropyLearningLoss()
    return loss.on_probabilities() if _are_probabilities(scores, _last_operator(model, output)) else loss


# Operators whose results may be probabilities though no Sigmoid or Softmax is in sight.
_BOUNDED = frozenset("Clip Div Exp HardSigmoid Max Min Pow Sigmoid Softmax Where".split())
_MOVES = frozenset("Cast Flatten Identity Reshape Squeeze Transpose Unsqueeze ZipMap".split())
_SELECTIONS = frozenset("ArrayFeatureExtractor Gather GatherElements Slice Split".split())


def _are_probabilities(scores: np.ndarray, last: str) -> bool:
    """Whether scores are probabilities by their values; one column, zeros perhaps, is no proof on its own."""
    if scores.min() < 0 or scores.max() > 1:
        return False
    return last in _BOUNDED if scores.shape[1] == 1 else bool(np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def _last_operator(model: ir.Model, output: str) -> str:
    """The operator that computes an output, behind what only moves or copies numbers."""
    value: ir.Value | None = next(v for v in model.graph.outputs if v.name == output)
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _MOVES | _SELECTIONS:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return "" if node is None else node.op_type


def are_independent(model: ir.Model, output: str, step: TrainingStep) -> bool:
    """Whether the columns are questions of their own: a sigmoid each, not made to sum to 1."""
    logits = find_logits(model, output)
    if logits is not None:
        return logits.independent
    loss = step.targets[0].loss
    return loss.on == "sigmoid" or isinstance(loss, BinaryCrossEntropyLearningLoss)


def link_of(model: ir.Model, output: str, step: TrainingStep) -> str | None:
    """What makes probabilities of the output: None if it holds them, 'scores' if nothing does."""
    loss = step.targets[0].loss
    if find_logits(model, output) is not None:
        return None
    if loss.on != "output":
        return loss.on
    probabilistic = (BinaryCrossEntropyLearningLoss, SoftmaxCrossEntropyLearningLoss)
    return None if isinstance(loss, probabilistic) else "scores"


def as_labels(y: Any) -> np.ndarray:
    """Labels as an array."""
    if y is None:
        raise InvalidDataError("Training requires y to be passed, but the target y is None: give the labels.")
    check_not_masked(y, "y")
    array = y.toarray() if is_sparse(y) else np.asarray(y)
    if array.ndim == 0:
        raise InvalidDataError(f"y must hold a label for every row, not {y!r}.")
    if array.dtype.kind == "O" and any(v is None or v != v for v in array.reshape(-1)):
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


def from_one_hot(y: np.ndarray, axis: int, labels: np.ndarray) -> np.ndarray:
    """Labels of rows of zeros with a single 1."""
    if y.shape[axis] != len(labels) or not (np.isin(y, (0, 1)).all() and (y.sum(axis=axis) == 1).all()):
        raise InvalidDataError(
            f"y has shape {y.shape}: for one of {len(labels)} classes a row give labels, or rows of zeros "
            f"with a single 1 in {len(labels)} columns. Several labels a row need a model that ends in a "
            "Sigmoid."
        )
    return labels[np.argmax(y, axis=axis)]


def labels_of(y: np.ndarray, columns: int) -> np.ndarray:
    """Labels in the order of the columns for a model that does not say."""
    if y.ndim == 2 and y.shape[1] == columns > 1 and y.dtype.kind in "biuf" and np.isin(y, (0, 1)).all():
        return np.arange(columns)  # one-hot
    try:
        labels = np.unique(y)
    except TypeError as exc:
        raise InvalidDataError(f"The labels in y are of several types: {exc}.") from exc
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


def declared_columns(model: Any, output: str | None) -> int | None:
    """Columns that a model in memory declares for an output, by default its first of floating-point numbers.

    None if it does not say, or if it is not in memory: nothing is loaded for this.
    """
    if isinstance(model, onnx.ModelProto):
        for info in model.graph.output:
            tensor = info.type.tensor_type
            if info.name == output or (output is None and tensor.elem_type in _FLOATS):
                dims = tensor.shape.dim
                return dims[1].dim_value or None if len(dims) == 2 else None
    if isinstance(model, ir.Model):
        for value in model.graph.outputs:
            if value.name == output or (
                output is None and value.dtype is not None and value.dtype in _FLOATS
            ):
                shape = value.shape
                return (
                    shape[1] if shape is not None and len(shape) == 2 and isinstance(shape[1], int) else None
                )
    return None


_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16})


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
            f"y holds the labels {some(np.unique(y[index < 0]))}, which the model does not have; its classes "
            f"are {some(labels)}."
        )
    return index


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
        labels, counts = y() if callable(y) else np.unique(as_labels(y).reshape(-1), return_counts=True)
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
