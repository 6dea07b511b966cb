"""Which output of a model a classifier trains, by which loss, and what its numbers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError, InvalidParameterError, UnknownNameError
from onnxcustom.feed.specs import input_specs, of_batch, some_rows, with_axis
from onnxcustom.feed.validation import as_inputs
from onnxcustom.graph import Prepared, find_logits
from onnxcustom.graph.analysis.decision import Decision
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.objective import (
    BaseLearningLoss,
    BinaryCrossEntropyLearningLoss,
    SoftmaxCrossEntropyLearningLoss,
)
from onnxcustom.runtime import parse_device
from onnxcustom.step.compose import compose_forward
from onnxcustom.step.inference import Forward, runnable
from onnxcustom.step.targets import prediction_tensors

__all__ = ["choose_loss", "decision_of", "declared_columns", "first_scores", "probability_output"]

# Names of losses that mean the cross-entropy that fits the model.
_FITTING_NAMES = frozenset({"log", "log_loss", "logloss", "neglog"})


def choose_loss(
    prepared: Prepared, loss: Any, scores: Callable[[str], np.ndarray]
) -> tuple[str, BaseLearningLoss]:
    """The output to train and its loss.

    Parameters
    ----------
    prepared : Prepared
        The model.
    loss : optional
        As a classifier takes it.
    scores : callable
        What the untrained model says to some rows, by output.

    Raises
    ------
    InvalidModelError, UnknownNameError, InvalidParameterError
        No output holds scores, not the one that is named, or several are to be trained; a loss of something
        else than classes.
    """
    model = prepared.model
    if isinstance(loss, Mapping):
        if len(loss) != 1:
            raise InvalidModelError(
                f"OnnxClassifier trains one output, loss names {list(loss)}; TrainingStep trains several."
            )
        output, loss = next(iter(loss.items()))
        if output not in prediction_tensors(model):
            raise UnknownNameError(
                f"The model has no output {output!r} with scores; those it has are "
                f"{list(prediction_tensors(model))}."
            )
    else:
        output = probability_output(model)
    if loss is None or (isinstance(loss, str) and loss.lower() in _FITTING_NAMES):
        loss = fitting_loss(model, output, lambda: scores(output))
    found = BaseLearningLoss.select(loss)
    if found.no_classifier:
        raise InvalidParameterError(f"loss={loss!r} {found.no_classifier}.")
    return output, found


def first_scores(
    prepared: Prepared, output: str, X: Any, batch_axis: Mapping[str, int | None] | None, device: Any
) -> np.ndarray:
    """What the untrained model says to the first rows of the data."""
    model = prepared.model
    axes = BatchAxes(model, batch_axis)
    specs = [with_axis(spec, axes.inputs[spec.name], axes.rows()) for spec in input_specs(model)]
    rows = slice(0, axes.rows() or 32)
    feeds = {
        spec.name: np.ascontiguousarray(of_batch(some_rows(array, spec, rows), spec))
        for spec, array in zip(specs, as_inputs(X, specs).values(), strict=True)
    }
    fresh = runnable(prepared)
    graph = compose_forward(fresh, [prediction_tensors(fresh)[output]], [])
    return Forward(graph, parse_device(device)).run(feeds)[0]


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
        return BaseLearningLoss.select(logits.loss)
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


def decision_of(model: ir.Model, output: str, loss: BaseLearningLoss, several: bool) -> Decision:
    """What the numbers of an output mean that is trained by a loss; `several` labels may belong to a row."""
    logits = find_logits(model, output)
    binary = isinstance(loss, BinaryCrossEntropyLearningLoss)
    independent = logits.independent if logits is not None else loss.on == "sigmoid" or binary
    if logits is not None:
        link = None
    elif loss.on != "output":
        link = loss.on
    else:
        probabilistic = binary or isinstance(loss, SoftmaxCrossEntropyLearningLoss)
        link = None if probabilistic else "scores"
    return Decision(link, several and independent)


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
