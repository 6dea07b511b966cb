"""Indices of classes as losses take them: their axis, which of them count, what they weigh."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError
from onnxcustom.graph.building.builder import Builder, Var

from .base import Loss, LossTarget
from .rows import match_shape, shaped

__all__ = [
    "IGNORED",
    "ColumnLoss",
    "LabelLoss",
    "WeighedLabelLoss",
    "are_labels",
    "check_labels",
    "check_unit",
    "check_weighed",
    "class_columns",
    "class_indices",
    "class_weights",
    "label_target",
    "masked",
    "zeros_like",
]

#: What losses on labels ignore unless told otherwise.
IGNORED = -100


class LabelLoss(Loss):
    """Base of losses of class indices, of which those that are `ignore_index` have no loss and do not count.

    Attributes
    ----------
    class_axis : int or None
        Axis of the classes in a prediction as users have it; :meth:`build` wants it second.
    ignore_index : int or None
        Label that has no loss.
    """

    of_classes = True
    counts_positions = True
    depends_on_columns = True
    # Pickles of earlier versions ignore nothing.
    ignore_index: int | None = None

    @property
    def ignores(self) -> bool:  # type: ignore[override]
        """Whether there is a label that does not count."""
        return self.ignore_index is not None

    def of_all(self) -> LabelLoss:
        """The same for labels that all count: its graph has no mask."""
        made = copy.copy(self)
        made.ignore_index = None
        return made

    def check(self) -> None:
        """Check the parameters."""
        for name in ("class_axis", "ignore_index"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, f"[{-(2**63)}, {2**63 - 1}]", integral=True)

    def target(
        self, dtype: ir.DataType | None, rank: int | None = None, shape: Sequence | None = None
    ) -> LossTarget:
        """Indices of classes, without axis 1."""
        return label_target(rank, shape)

    def kept(self, labels: np.ndarray) -> np.ndarray:
        """The labels that count, in one row."""
        return labels.reshape(-1) if self.ignore_index is None else labels[labels != self.ignore_index]

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Labels are classes, or those that are ignored."""
        check_labels(self, self.kept(expected), columns)

    def sure_labels(self, columns: int) -> int | None:
        """All classes, unless one of them is ignored."""
        ignored = self.ignore_index is not None and 0 <= self.ignore_index < columns
        return None if ignored else columns

    def count(self, labels: np.ndarray) -> int:
        """Number of labels that count."""
        if self.ignore_index is None:
            return labels.size
        return int(np.count_nonzero(labels != self.ignore_index))

    def emit_count(self, op: Builder, labels: Var) -> Var:
        """The same in a graph, an integer scalar."""
        if self.ignore_index is None:
            return op.Size(labels)
        counts = op.Cast(op.Not(self._ignored(op, labels)), to=ir.DataType.INT64)
        return shaped(op.ReduceSum(counts, keepdims=0), [])

    def _ignored(self, op: Builder, labels: Var) -> Var:
        mask = op.Equal(labels, op.const(self.ignore_index, like=labels))
        mask.value.dtype = ir.DataType.BOOL
        return shaped(mask, labels.shape)

    def apart(self, op: Builder, index: Var) -> tuple[Var, Var | None]:
        """Indices that are classes throughout, and where they stand for nothing; None if nowhere."""
        if self.ignore_index is None:
            return index, None
        ignored = self._ignored(op, index)
        return shaped(op.Where(ignored, op.const(0, like=index), index), index.shape), ignored


class WeighedLabelLoss(LabelLoss):
    r"""Those that are sums of :math:`-a_c l_c` over the classes, l being logarithms of probabilities.

    :math:`a_c = w_c (1 - ε)` for the class that is expected, and :math:`w_c ε / C` more for each of the C
    classes, with ε the label smoothing and w the weights of the classes.
    """

    label_smoothing: float = 0.0
    class_weight: Any = None

    def check(self) -> None:
        """Check the parameters."""
        super().check()
        check_number("label_smoothing", self.label_smoothing, "[0, 1]")
        class_weights("class_weight", self.class_weight)

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Labels are classes, each of which has a weight if any has."""
        super().check_expected(expected, columns)
        weights = class_weights("class_weight", self.class_weight)
        if weights is not None:
            check_weighed("class_weight", weights, self.kept(expected), columns)

    def picked_weights(self, op: Builder, index: Var, like: Var) -> Var | None:
        """The weights of the classes that are expected; None for 1."""
        weights = class_weights("class_weight", self.class_weight)
        if weights is None:
            return None
        return shaped(op.Gather(op.const(weights, like=like), index), index.shape)

    def shares(self, op: Builder, index: Var, like: Var) -> Var:
        """What every class has in the loss of a position, a, of the shape of `like`."""
        weights, part = class_weights("class_weight", self.class_weight), self._part(op, like)
        own = (1 - float(self.label_smoothing)) + part
        if weights is None:
            rest: Any = zeros_like(op, like) + part
            at = own + 0 * op.Cast(index, to=like.dtype)
        else:
            rest = zeros_like(op, like) + part * self._by_class(op, weights, like)
            at = own * op.Gather(op.const(weights, like=like), index)
        made = op.ScatterElements(shaped(rest, like.shape), index, shaped(at, index.shape), axis=1)
        return shaped(made, like.shape)

    def spread(self, op: Builder, expected: Var) -> Var:
        """Probabilities of classes, smoothed and weighed."""
        weights, smoothing = class_weights("class_weight", self.class_weight), float(self.label_smoothing)
        made = expected
        if smoothing:
            made = (1 - smoothing) * made + self._part(op, expected)
        if weights is not None:
            made = made * self._by_class(op, weights, expected)
        return shaped(made, expected.shape)

    def _part(self, op: Builder, like: Var) -> Any:
        """What smoothing gives to every class: a number, or a scalar of the graph."""
        columns, smoothing = class_columns(like), float(self.label_smoothing)
        if isinstance(columns, int):
            return smoothing / columns
        return smoothing / op.Cast(op.Gather(op.Shape(like), 1), to=like.dtype)

    def _by_class(self, op: Builder, weights: np.ndarray, like: Var) -> Var:
        """Weights along axis 1."""
        if like.rank is None:
            ones = 0 * op.Shape(like) + 1
            ends = (op.Slice(ones, [0], [1]), [-1], op.Slice(ones, [2], [2**31 - 1]))
            return op.Reshape(op.const(weights, like=like), op.Concat(*ends, axis=0))
        return op.const(weights.reshape(1, -1, *[1] * (like.rank - 2)), like=like)


def masked(op: Builder, ignored: Var | None, losses: Var, gradient: Var) -> tuple[Var, Var]:
    """Losses and gradient, 0 where a label is ignored, whatever is predicted there."""
    if ignored is None:
        return losses, gradient
    zero = op.const(0, like=losses)
    return (
        shaped(op.Where(ignored, zero, losses), losses.shape),
        shaped(op.Where(ignored, zero, gradient), gradient.shape),
    )


def class_weights(name: str, given: Any) -> np.ndarray | None:
    """Weights of classes, one each.

    Raises
    ------
    InvalidParameterError
        Something else, or a weight below 0.
    """
    if given is None:
        return None
    try:
        weights = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        weights = np.zeros(0)
    if weights.ndim != 1 or len(weights) < 2 or not ((weights >= 0) & np.isfinite(weights)).all():
        raise InvalidParameterError(
            f"{name} must be None, or one weight >= 0 for each class, in order, not {given!r}."
        )
    return weights


def check_weighed(name: str, weights: np.ndarray | None, labels: np.ndarray, columns: int | None) -> None:
    """Refuse weights of another number of classes."""
    if weights is None:
        return
    classes = max(len(weights), int(labels.max(initial=0)) + 1) if columns is None else columns
    if classes != len(weights):
        raise InvalidDataError(f"{name} has {len(weights)} weights, but there are {classes} classes.")


def are_labels(expected: Var, predicted: Var, one_column: bool = True) -> bool:
    """Whether the expected values are indices of classes: they have no axis for these.

    A prediction with an unknown number of columns is taken to have one if `one_column`, that is, if
    the loss may be taken on one column at all.
    """
    columns, several = class_columns(predicted), not one_column
    if columns == 1:
        return False
    if expected.rank is None or predicted.rank is None:
        return several and _is_integer(expected)
    if expected.rank == predicted.rank - 1:
        return several or isinstance(columns, int) or predicted.rank > 2
    if expected.rank == predicted.rank:
        return class_columns(expected) == 1 and (several or isinstance(columns, int))
    return False


def class_indices(op: Builder, expected: Var, predicted: Var) -> Var:
    """Indices of classes as int64, of the prediction's rank with one class on axis 1."""
    if expected.dtype != ir.DataType.INT64:
        expected = op.Cast(expected, to=ir.DataType.INT64)
    shape = None if predicted.shape is None else [predicted.shape[0], 1, *predicted.shape[2:]]
    if expected.rank is not None and expected.rank == predicted.rank:
        return shaped(expected, shape)
    return shaped(op.Unsqueeze(expected, [1]), shape)


class ColumnLoss(Loss):
    """A loss of columns of probabilities, or of their scores; labels are columns of 0 and 1."""

    depends_on_columns = True
    from_logits: bool

    @property
    def on(self) -> str:  # type: ignore[override]
        """'sigmoid' on scores, else 'output'."""
        return "sigmoid" if self.from_logits else "output"

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Values lie between 0 and 1, labels are classes."""
        if columns is not None and columns > 1 and (expected.ndim == 1 or expected.shape[1] != columns):
            check_labels(self, expected, columns)
        else:
            check_unit(self, expected)

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """The expected values like the prediction; labels become one column for each class, 0 or 1."""
        if not are_labels(expected, predicted) or not isinstance(class_columns(predicted), int):
            return match_shape(op, expected, predicted)
        index, classes = op.Squeeze(class_indices(op, expected, predicted), [1]), class_columns(predicted)
        # OneHot has kernels for float32 only, in every onnxruntime.
        one_hot = op.OneHot(index, classes, op.const(np.array([0, 1], dtype=np.float32)), axis=1)
        if predicted.dtype != ir.DataType.FLOAT:
            one_hot = op.Cast(one_hot, to=predicted.dtype)
        return shaped(one_hot, predicted.shape)


def class_columns(var: Var) -> int | str | None:
    """Size of axis 1, the number of classes, as far as it is known."""
    return var.shape[1] if var.shape is not None and len(var.shape) > 1 else None


def _is_integer(var: Var) -> bool:
    return var.dtype is not None and not var.dtype.is_floating_point()


def check_labels(loss: Loss, labels: np.ndarray, columns: int | None) -> None:
    """Labels are whole numbers from 0 to one less than the number of classes."""
    if not labels.size:
        return
    whole = (
        np.array_equal(labels, np.floor(labels)) if labels.dtype.kind == "f" else labels.dtype.kind in "iub"
    )
    if not whole or labels.min() < 0 or (columns is not None and labels.max() >= columns):
        limit = "" if columns is None else f" to {columns - 1}"
        raise InvalidDataError(
            f"{type(loss).__name__} takes indices of classes, whole numbers from 0{limit}; the expected "
            f"values go from {labels.min()} to {labels.max()}. Encode the labels first."
        )


def check_unit(loss: Loss, values: np.ndarray) -> None:
    """Probabilities and binary labels lie between 0 and 1."""
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise InvalidDataError(
            f"{type(loss).__name__} takes values between 0 and 1; the expected values go from "
            f"{values.min()} to {values.max()}. Encode the labels first."
        )


def label_target(rank: int | None, shape: Sequence | None) -> LossTarget:
    """Class indices for a prediction of that shape: axis 1 is missing."""
    dims = list(shape) if shape is not None else [None] * (2 if rank is None else rank)
    return LossTarget("labels", ir.DataType.INT64, dims[:1] + dims[2:])


def zeros_like(op: Builder, x: Var) -> Var:
    """Zeros of x's shape and dtype."""
    dtype = x.dtype or ir.DataType.FLOAT
    zero = ir.tensor(np.zeros(1, dtype=dtype.numpy()))
    return shaped(op.ConstantOfShape(op.Shape(x), value=zero), x.shape)
