"""What a model is trained on: which outputs, with which losses, taken on which tensors."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError, UnknownNameError
from onnxcustom.feed.specs import TensorSpec
from onnxcustom.graph import Logits, class_axis, find_logits, hidden_logits, last_operator
from onnxcustom.graph.analysis.tails import decisions
from onnxcustom.graph.building.builder import Var
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.objective import BaseLearningLoss, Loss, LossTarget
from onnxcustom.objective.labels import LabelLoss

from .joining import joined_name, row_shapes

__all__ = [
    "Target",
    "divided_as",
    "float_outputs",
    "part_shape",
    "prediction_tensors",
    "select_targets",
    "settled",
    "softened",
    "tensor_shape",
    "where",
]


# What names of measures begin with that are of validation data, of training data, or better when larger.
_TAKEN = ("val", "train", "neg")


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
    rows : int or None
        Axis of the batch in that tensor; None if all of it is one row.
    shape : tuple or None
        Its dimensions, None if their number is unknown.
    settled : bool
        Whether the axis of the classes is certain; otherwise the shape of the labels decides.
    positions : bool
        Whether every position of a label counts as a row, for a loss that counts them.
    soft : bool
        Whether it has probabilities of classes in place of labels, in the prediction's shape.
    """

    output: str
    value: str
    loss: BaseLearningLoss
    weight: float = 1.0
    axis: int = 1
    columns: int | None = None
    link: str | None = None
    # What follows was not there in older pickles, which had the rows first and divided by their number.
    rows: int | None = 0
    shape: tuple[int | str | None, ...] | None = None
    settled: bool = True
    positions: bool = False
    soft: bool = False

    @property
    def expects(self) -> list[str]:
        """Names of what its loss expects: that of the output, or those of several tensors."""
        several = self.loss.several
        if several is None:
            return [self.output]
        return list(several) or [f"{self.output}.{i}" for i in range(1 + len(self.loss.more_targets()))]

    @property
    def counts_positions(self) -> bool:
        """Whether it divides by the number of labels, in place of that of rows of the batch."""
        return self.positions and self.loss.counts_positions

    @property
    def has_positions(self) -> bool:
        """Whether its labels have axes beside that of the batch."""
        rank = None if self.shape is None else len(self.shape)
        return rank is not None and rank - 1 > (0 if self.rows is None else 1)

    @property
    def counts_labels(self) -> bool:
        """Whether it is divided by labels of which a row may have several."""
        return self.counts_positions and self.has_positions

    @property
    def counted(self) -> bool:
        """Whether it is divided by a number that only the labels tell."""
        return self.counts_positions and (self.has_positions or (self.loss.ignores and not self.soft))

    @property
    def masks(self) -> bool:
        """Whether its graph looks for labels that are ignored."""
        return isinstance(self.loss, LabelLoss) and self.loss.ignores and not self.soft

    def of_all(self) -> Target:
        """The same for labels that all count."""
        return dataclasses.replace(self, loss=self.loss.of_all()) if self.masks else self  # type: ignore[attr-defined]

    def count(self, expected: np.ndarray) -> int:
        """Number of its labels that count, for a target that is divided by that."""
        return expected.size // (expected.shape[self.axis] or 1) if self.soft else self.loss.count(expected)

    def wanted(self, predicted: Var) -> LossTarget:
        """What its loss expects, for the tensor it is taken on as the loss takes it."""
        about = predicted.dtype, predicted.rank, predicted.shape
        return Loss.target(self.loss, *about) if self.soft else self.loss.target(*about)

    def check_expected(self, expected: np.ndarray) -> None:
        """Check expected values as users have them, converted already."""
        given = np.moveaxis(expected, self.axis, 1) if self.soft else expected
        self.loss.check_expected(given, given.shape[1] if self.soft else self.columns)

    def sure_labels(self) -> int | None:
        """Labels from 0 up to this one are classes that count; None if that takes another look."""
        return None if self.columns is None else self.loss.sure_labels(self.columns)

    @property
    def curve(self) -> str:
        """Name of its loss in a history, which is that of no other measure."""
        begins = self.output.partition("_")[0]
        return f"output_{self.output}_loss" if begins in _TAKEN else f"{self.output}_loss"

    def label_axes(self, rank: int) -> list[int]:
        """Axes of a prediction of so many dimensions that labels have as well, in their order."""
        return [a for a in range(rank) if a != self.axis]

    def label_free_axes(self) -> list[int]:
        """Axes that may hold the classes: all but that of the batch."""
        return [a for a in range(len(self.shape or ())) if a != self.rows]

    def with_axis(self, axis: int) -> Target:
        """The target with its classes on another axis, certain now."""
        size = self.shape[axis] if self.shape is not None and axis < len(self.shape) else None
        columns = size if isinstance(size, int) else None
        return dataclasses.replace(self, axis=axis, columns=columns, settled=True)

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
    axes: BatchAxes | None = None,
    joins: Mapping[str, Sequence[str]] = MappingProxyType({}),
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
    axes : BatchAxes, optional
        Where the rows are, by default what the model itself tells.
    joins : dict of str to sequence of str, optional
        The first of several outputs that a loss is taken on -> all of them, which were joined.

    Raises
    ------
    UnknownNameError
        An output that the model does not have.
    InvalidModelError
        An output that the loss cannot be taken on.
    ValueError
        A factor that is no number in [0, inf), or factors without names.
    """
    names = [v.name for v in model.graph.outputs]
    losses = dict(loss) if isinstance(loss, Mapping) else {_default_output(model): loss}
    if not isinstance(loss_weights or {}, Mapping):
        raise InvalidParameterError(
            f"loss_weights must be factors by the name of an output, not {loss_weights!r}."
        )
    factors = {name: _factor(name, value) for name, value in (loss_weights or {}).items()}
    for name in (*losses, *factors):
        if name not in names:
            raise UnknownNameError(f"The model has no output {name!r}; its outputs are {names}.")
    if not losses:
        raise UnknownNameError(f"No loss given; the model's outputs are {names}.")
    idle = set(factors) - set(losses)
    if idle:
        raise UnknownNameError(f"loss_weights names {sorted(idle)}, which have no loss.")
    axes = axes or BatchAxes(model)
    made = [
        _joined_target(model, joins[name], spec, factors.get(name, 1.0), axes)
        if name in joins
        else _target(model, name, spec, factors.get(name, 1.0), trained, axes)
        for name, spec in losses.items()
    ]
    _check_expects(made)
    return made


def _check_expects(targets: Sequence[Target]) -> None:
    """Refuse losses whose targets have one name."""
    names = [name for target in targets for name in target.expects]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InvalidParameterError(
            f"Two targets of the losses are called {twice[0]!r}: give each a name of its own, as in "
            "CustomLoss(f, target={'boxes': ('float32', ['N', 4]), 'labels': ('int64', ['N'])})."
        )


def _joined_target(
    model: ir.Model, outputs: Sequence[str], spec: Any, weight: float, axes: BatchAxes
) -> Target:
    """The target of a loss that is taken on several outputs."""
    loss, value = BaseLearningLoss.select(spec), joined_name(outputs)
    values = {str(v.name): v for v in model.graph.outputs}
    loss = loss.of_parts(row_shapes(values, outputs))
    if loss.on != "output":
        raise InvalidModelError(
            f"{type(loss).__name__} is taken on the scores of one output, not on {list(outputs)} at once."
        )
    shape = tensor_shape(model, value)
    rows = axes.of(value)
    return Target(
        outputs[0],
        value,
        loss,
        weight,
        rows=rows,
        shape=None if shape is None else tuple(shape),
        positions=True,
    )


def _factor(output: str, value: Any) -> float:
    # A negative factor would climb: rewards are losses of their own.
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        raise InvalidParameterError(
            f"loss_weights of output {output!r} must be a number in [0, inf), not {value!r}."
        )
    return float(value)


def _default_output(model: ir.Model) -> str:
    """The first floating-point output, or the first one behind which probabilities or scores are found."""
    decided = decisions(model)
    for value in model.graph.outputs:
        name = value.name or ""
        if name in float_outputs(model) or name in decided or find_logits(model, name) is not None:
            return name
    raise InvalidModelError(
        f"None of the model's outputs {[v.name for v in model.graph.outputs]} is a floating-point "
        "tensor, or the place of the largest of some: there is nothing a loss could be taken on."
    )


def prediction_tensors(model: ir.Model) -> dict[str, str]:
    """Outputs that can be predicted as arrays -> the tensor of the main graph that holds them."""
    tensors = {name: name for name in float_outputs(model)}
    for value in model.graph.outputs:
        producer = value.producer()
        if producer is not None and producer.op_type == "ZipMap" and producer.inputs[0] is not None:
            tensors[str(value.name)] = str(producer.inputs[0].name)
    return tensors or {name: str(scores.name) for name, scores in decisions(model).items()}


def _target(
    model: ir.Model, output: str, spec: Any, weight: float, trained: Collection[str], axes: BatchAxes
) -> Target:
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
    link = None if logits is None else logits.kind.capitalize()
    _check_input(model, output, loss)
    made = Target(
        output,
        value,
        loss,
        weight,
        link=link,
        rows=axes.of(value, output),
        shape=None if shape is None else tuple(shape),
        positions=True,
    )
    return _with_class_axis(made, _agreed_axis(made, _said_axis(model, output, loss, logits)))


def _check_input(model: ir.Model, output: str, loss: BaseLearningLoss) -> None:
    """Refuse a loss that reads an input which the model does not have, or not one number a row."""
    name = loss.reads_input
    if name is None:
        return
    inputs = {v.name: v for v in model.graph.inputs if v.name not in model.graph.initializers}
    if name not in inputs:
        raise UnknownNameError(
            f"{loss!r} of output {output!r} reads input {name!r}, which the model does not have; it has "
            f"{list(inputs)}."
        )
    shape = tensor_shape(model, name)
    if shape is not None and (not shape or any(d != 1 for d in shape[1:])):
        raise InvalidModelError(
            f"{loss!r} of output {output!r} reads input {name!r}, whose shape is {tuple(shape)}: it takes "
            "one number for each row."
        )


def _check_logits(
    model: ir.Model, output: str, loss: BaseLearningLoss, logits: Logits | None, trained: Collection[str]
) -> None:
    """Refuse a loss on scores where there are others, or where the output holds probabilities."""
    if loss.on == "output":
        if loss.of_logarithms:
            _check_logarithms(model, output, loss, trained)
        _check_end(model, output, loss)
        return
    as_they_are = "from_logits=False, or " if hasattr(loss, "from_logits") else ""
    if logits is not None and logits.kind != loss.on:
        also = ", or from_logits=False to take it on probabilities" if as_they_are else ""
        raise InvalidModelError(
            f"{type(loss).__name__} is taken on what a final {loss.on} reads, but output {output!r} ends in "
            f"a {logits.kind}: choose the loss that belongs to it{also}."
        )
    why = hidden_logits(model, output, trained, loss.on) if logits is None else None
    if why is not None:
        raise InvalidModelError(
            f"{type(loss).__name__} is taken on scores, but output {output!r} holds probabilities: it {why}. "
            "Say which it is: let the model end in its scores; declare the shape of the output or of the "
            "tensor before it, if its rank is unknown; or take the loss on the probabilities as they are, "
            f"with {as_they_are}CustomLoss(..., on='output')."
        )


def _check_logarithms(model: ir.Model, output: str, loss: BaseLearningLoss, trained: Collection[str]) -> None:
    """Refuse probabilities where their logarithms are meant."""
    found = find_logits(model, output, trained)
    why = f"ends in a {found.kind}" if found is not None else hidden_logits(model, output, trained)
    if why is not None:
        raise InvalidModelError(
            f"{type(loss).__name__} is taken on logarithms of probabilities, but output {output!r} holds "
            f"probabilities: it {why}. Take the cross-entropy, or let the model end in their logarithms."
        )


def _check_end(model: ir.Model, output: str, loss: BaseLearningLoss) -> None:
    """Refuse a model whose last operator makes something else of what the loss is taken on."""
    node = last_operator(model, output)
    option = None if node is None else loss.not_behind.get(node.op_type)
    before = None if node is None else node.inputs[0]
    if node is None or option is None or before is None:
        return
    raise InvalidModelError(
        f"{loss!r} is taken on what node {node.name!r} ({node.op_type}) reads, but output {output!r} is what "
        f"comes of that: take {option}, or let the model end in {before.name!r}."
    )


def _said_axis(model: ir.Model, output: str, loss: BaseLearningLoss, logits: Logits | None) -> int | None:
    """Axis of the classes as a final Softmax or LogSoftmax has it: the last for [rows, tokens, classes]."""
    if logits is not None and logits.kind == "softmax":
        return logits.axis
    scores = loss.on == "softmax" or loss.of_logarithms
    return class_axis(model, output) if logits is None and scores else None


def _agreed_axis(target: Target, said: int | None) -> int | None:
    """The axis that the model says, or the loss; an error where they say different ones."""
    axis, shape = target.loss.class_axis, target.shape
    if axis is None or (shape is None and said == axis):
        return said
    if shape is None:
        if axis < 0 or said is not None:
            raise InvalidModelError(
                f"Output {target.output!r} has an unknown number of dimensions, and the loss has class_axis="
                f"{axis}: declare its shape, or count the axis from the front."
            )
        return axis
    at = axis + len(shape) if axis < 0 else axis
    if not 0 <= at < len(shape) or at == target.rows:
        raise InvalidModelError(
            f"class_axis={axis} of the loss is no axis of classes of output {target.output!r}, whose shape "
            f"is {shape}" + ("." if target.rows is None else f", with the rows along axis {target.rows}.")
        )
    if said is not None and said % len(shape) != at:
        raise InvalidModelError(
            f"The loss of output {target.output!r} has class_axis={axis}, but the model ends in a Softmax "
            f"over axis {said % len(shape)}: leave class_axis out, or end the model in its scores."
        )
    return at


def _with_class_axis(target: Target, said: int | None) -> Target:
    """The classes where the model says, or on the one axis that there is beside the batch.

    Else they are on axis 1, until labels say more.
    """
    if target.shape is None:
        return target.with_axis(said) if said is not None and said >= 0 else target
    if said is not None:
        return target.with_axis(said % max(1, len(target.shape)))
    free = target.label_free_axes()
    if target.loss.counts_positions:  # one class is none
        free = [a for a in free if target.shape[a] != 1] or free
    if len(free) <= 1:
        return target.with_axis(free[0] if free else 1)
    guess = target.with_axis(1 if 1 in free else free[-1])
    return dataclasses.replace(guess, settled=False)


def divided_as(targets: Sequence[Target], counted: Mapping[str, bool]) -> list[Target]:
    """Targets that divide by labels or by rows as is said, by output; those of older versions by rows."""
    return [dataclasses.replace(t, positions=counted.get(t.output, False)) for t in targets]


# -- labels decide -----------------------------------------------------------------------------------


def settled(
    targets: Sequence[Target],
    inputs: Sequence[TensorSpec],
    shapes: Sequence[tuple[int, ...] | None],
    labels: Sequence[tuple[int, ...] | None],
) -> list[Target]:
    """Targets whose classes are on the axis without which a prediction has the shape of its labels.

    Parameters
    ----------
    targets : sequence of Target
        Targets, some of them not settled.
    inputs : sequence of TensorSpec
        The model's inputs.
    shapes, labels : sequence of tuple or None
        Shapes of the inputs' data and of the expected values, None where they are unknown.
    """
    sizes: dict[str, int] = {}
    for spec, shape in zip(inputs, shapes, strict=True):
        if shape is not None and spec.shape is not None and len(shape) == len(spec.shape):
            sizes |= {d: n for d, n in zip(spec.shape, shape, strict=True) if isinstance(d, str)}
    return [
        t if t.settled or shape is None else _settled(t, sizes, shape)
        for t, shape in zip(targets, labels, strict=True)
    ]


def softened(targets: Sequence[Target], labels: Sequence[tuple[int, ...] | None]) -> list[Target]:
    """Targets that have probabilities of classes where expected values have the prediction's shape."""
    made = []
    for t, shape in zip(targets, labels, strict=True):
        soft = t.soft
        if t.loss.takes_probabilities and t.rows is not None and t.shape is not None and shape is not None:
            size = shape[t.axis] if len(shape) == len(t.shape) else 1
            soft = size != 1 and t.columns in (None, size)
        made.append(t if soft == t.soft else dataclasses.replace(t, soft=soft))
    return made


def _settled(target: Target, sizes: Mapping[str, int], labels: tuple[int, ...]) -> Target:
    dims = list(target.shape or ())
    kind = target.loss.target(None, len(dims)).kind
    if target.rows is None and len(labels) == len(dims):
        labels = labels[1:]  # one for each row of a model that takes one at a time
    if kind == "values" or len(labels) != len(dims) - 1:
        return target
    fit = [a for a in target.label_free_axes() if _fits(target, a, sizes, labels)]
    if not fit:
        return target  # the check of shapes says what is wrong
    if len(fit) > 1:
        axis = target.axis if target.axis in fit else fit[0]
        if kind == "own":
            return target.with_axis(axis)
        warn_user(
            f"Output {target.output!r} has shape {tuple(dims)}, its labels {labels}: any of the axes {fit} "
            f"may hold the classes; taken for {axis}. End the model in a Softmax over the classes, or fix "
            "their number in its shape.",
            UserWarning,
        )
        return target.with_axis(axis)
    return target.with_axis(fit[0])


def _fits(target: Target, axis: int, sizes: Mapping[str, int], labels: tuple[int, ...]) -> bool:
    """Whether labels have the shape of a prediction without an axis, as far as it is known."""
    assert target.shape is not None
    for a, found in zip((a for a in range(len(target.shape)) if a != axis), labels, strict=True):
        size = target.shape[a]
        size = sizes.get(size) if isinstance(size, str) else size
        if a != target.rows and size is not None and size != found:
            return False
    return True


def part_shape(data: Any, name: str) -> tuple[int, ...] | None:
    """Shape of data, or of a part of it that has a name; None if there is no telling."""
    part = data.get(name) if isinstance(data, Mapping) else data
    shape = getattr(part, "shape", None)
    if isinstance(shape, tuple):
        return shape
    try:
        return None if part is None else np.shape(part)
    except ValueError:  # rows of several lengths
        return None


def tensor_shape(model: ir.Model, name: str) -> list[int | str | None] | None:
    """Dimensions of a tensor of the main graph; None if its rank is unknown."""
    values = (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))
    for value in values:
        if value.name == name and value.shape is not None:
            return [d if isinstance(d, int) else d.value for d in value.shape]
    return None
