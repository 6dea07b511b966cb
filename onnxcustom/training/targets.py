"""What a model is trained on: which outputs, with which losses, taken on which tensors."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Collection, Mapping
from typing import Any

import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError, UnknownNameError
from onnxcustom.graph import Logits, class_axis, find_logits, hidden_logits
from onnxcustom.objective import BaseLearningLoss

__all__ = ["Target", "float_outputs", "prediction_tensors", "select_targets", "tensor_shape", "where"]


@dataclasses.dataclass(frozen=True)
class Target:
    """One output of the model with the loss it is trained on.

    Attributes
    ----------
    output : str
        Output of the user's model.
    value : str
        The tensor the loss is taken on: the output itself, or what its final Sigmoid or
        Softmax reads.
    loss : BaseLearningLoss
        Loss.
    weight : float
        Factor of this loss in the objective.
    axis : int
        Axis of the classes in that tensor.
    columns : int or None
        Size of that axis, if it is known.
    link : str or None
        What makes probabilities of that tensor ('Softmax', 'Sigmoid'), if it does not hold what the
        output does.
    """

    output: str
    value: str
    loss: BaseLearningLoss
    weight: float = 1.0
    axis: int = 1
    columns: int | None = None
    link: str | None = None

    def __str__(self) -> str:
        return f"{self.output}: {self.loss!r} {where(self.output, self.value, self.link)}"


def where(output: str, value: str, link: str | None) -> str:
    """Which tensor a loss is taken on, in words."""
    if link is not None:
        return f"on logits {value!r} (before {link})"
    return f"on {value!r}" if value == output else f"on {value!r} (which {output!r} is made of)"


def float_outputs(model: ir.Model) -> list[str]:
    """Names of the floating-point tensor outputs of a model, in order."""
    return [
        v.name
        for v in model.graph.outputs
        if v.name
        and isinstance(v.type, ir.TensorType)
        and v.dtype is not None
        and v.dtype.is_floating_point()
    ]


def select_targets(
    model: ir.Model,
    loss: Any,
    loss_weights: Mapping[str, float] | None = None,
    trained: Collection[str] = (),
) -> list[Target]:
    """The targets that a user's `loss` means.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model.
    loss : anything :meth:`BaseLearningLoss.select` takes, or dict from output name to it
        A single loss goes to the first output it can be taken on.
    loss_weights : dict of str to float, optional
        Factors by output name.
    trained : collection of str, default=()
        Weights that are trained.

    Raises
    ------
    UnknownNameError
        An output that the model does not have.
    InvalidModelError
        An output that the loss cannot be taken on.
    ValueError
        A factor that is no number in [0, inf).
    """
    names = [v.name for v in model.graph.outputs]
    losses = dict(loss) if isinstance(loss, Mapping) else {_default_output(model): loss}
    factors = {name: _factor(name, value) for name, value in (loss_weights or {}).items()}
    for name in (*losses, *factors):
        if name not in names:
            raise UnknownNameError(f"The model has no output {name!r}; its outputs are {names}.")
    if not losses:
        raise UnknownNameError(f"No loss given; the model's outputs are {names}.")
    idle = set(factors) - set(losses)
    if idle:
        raise UnknownNameError(f"loss_weights names {sorted(idle)}, which have no loss.")
    return [_target(model, name, spec, factors.get(name, 1.0), trained) for name, spec in losses.items()]


def _factor(output: str, value: Any) -> float:
    # A negative factor would climb: rewards are losses of their own.
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        raise ValueError(f"loss_weights of output {output!r} must be a number in [0, inf), not {value!r}.")
    return float(value)


def _default_output(model: ir.Model) -> str:
    """The first floating-point output, or the first one behind which probabilities are found."""
    for value in model.graph.outputs:
        name = value.name or ""
        if name in float_outputs(model) or find_logits(model, name) is not None:
            return name
    raise InvalidModelError(
        f"None of the model's outputs {[v.name for v in model.graph.outputs]} is a floating-point "
        "tensor: there is nothing a loss could be taken on."
    )


def prediction_tensors(model: ir.Model) -> dict[str, str]:
    """Outputs that can be predicted as arrays -> the tensor of the main graph that holds them."""
    tensors = {name: name for name in float_outputs(model)}
    for value in model.graph.outputs:
        producer = value.producer()
        if producer is not None and producer.op_type == "ZipMap" and producer.inputs[0] is not None:
            tensors[str(value.name)] = str(producer.inputs[0].name)
    return tensors


def _target(model: ir.Model, output: str, spec: Any, weight: float, trained: Collection[str]) -> Target:
    loss = BaseLearningLoss.select(spec)
    tensors = prediction_tensors(model)
    logits = None if loss.on == "output" else find_logits(model, output, trained)
    _check_logits(model, output, loss, logits, trained)
    if logits is None and output not in tensors:
        raise InvalidModelError(
            f"Output {output!r} is not a floating-point tensor, {type(loss).__name__} cannot be taken on it; "
            f"the outputs it can be taken on are {list(tensors)}."
        )
    value = tensors[output] if logits is None else logits.name
    shape = tensor_shape(model, value)
    if shape == []:
        raise InvalidModelError(
            f"Output {output!r} is one number for the whole batch: a loss is taken on tensors with one row "
            "for each row of the data."
        )
    axis, columns = _classes(model, output, loss, logits, shape)
    link = None if logits is None else logits.kind.capitalize()
    return Target(output, value, loss, weight, axis, columns, link)


def _check_logits(
    model: ir.Model, output: str, loss: BaseLearningLoss, logits: Logits | None, trained: Collection[str]
) -> None:
    """Refuse a loss on scores where there are others, or where the output holds probabilities."""
    if loss.on == "output":
        return
    if logits is not None and logits.kind != loss.on:
        raise InvalidModelError(
            f"{type(loss).__name__} is taken on what a final {loss.on} reads, but output {output!r} ends in "
            f"a {logits.kind}: choose the loss that belongs to it."
        )
    why = hidden_logits(model, output, trained) if logits is None else None
    if why is not None:
        raise InvalidModelError(
            f"{type(loss).__name__} is taken on scores, but output {output!r} holds probabilities: it {why}. "
            "Say which it is: declare the shape of the output or of the tensor before it, if its rank is "
            "unknown; or take the loss on the probabilities as they are, with from_logits=False, or "
            "CustomLoss(..., on='output')."
        )


def _classes(
    model: ir.Model,
    output: str,
    loss: BaseLearningLoss,
    logits: Logits | None,
    shape: list[int | str | None] | None,
) -> tuple[int, int | None]:
    """Axis of the classes and their number, if it is known."""
    # A final Softmax tells which axis holds the classes: the last one for [rows, tokens, classes].
    found = class_axis(model, output) if logits is None and loss.on == "softmax" else None
    if logits is not None and logits.kind == "softmax":
        found = logits.axis
    axis = 1 if found is None else found
    if axis < 0:
        axis = 1 if shape is None else axis + len(shape)
    columns = shape[axis] if shape is not None and axis < len(shape) else None
    return axis, columns if isinstance(columns, int) else None


def tensor_shape(model: ir.Model, name: str) -> list[int | str | None] | None:
    """Dimensions of a tensor of the main graph; None if its rank is unknown."""
    values = (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))
    for value in values:
        if value.name == name and value.shape is not None:
            return [d if isinstance(d, int) else d.value for d in value.shape]
    return None
