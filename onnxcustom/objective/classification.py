"""Losses for classification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import InvalidDataError, InvalidModelError, UnknownNameError
from onnxcustom.graph.building.builder import Builder, Var

from .base import Loss, LossTarget, register_loss
from .regression import check_eps
from .rows import is_positive, log_extended, match_shape, shaped, smallest, softplus

__all__ = [
    "BinaryCrossEntropyLearningLoss",
    "HingeLearningLoss",
    "NegLogLearningLoss",
    "SoftmaxCrossEntropyLearningLoss",
]


def are_labels(expected: Var, predicted: Var, one_column: bool = True) -> bool:
    """Whether the expected values are indices of classes: they have no axis for these.

    A prediction with an unknown number of columns is taken to have one if `one_column`, that is, if
    the loss may be taken on one column at all.
    """
    columns, several = _columns(predicted), not one_column
    if columns == 1:
        return False
    if expected.rank is None or predicted.rank is None:
        return several and _is_integer(expected)
    if expected.rank == predicted.rank - 1:
        return several or isinstance(columns, int) or predicted.rank > 2
    if expected.rank == predicted.rank:
        return _columns(expected) == 1 and (several or isinstance(columns, int))
    return False


def class_indices(op: Builder, expected: Var, predicted: Var) -> Var:
    """Indices of classes as int64, of the prediction's rank with one class on axis 1."""
    if expected.dtype != ir.DataType.INT64:
        expected = op.Cast(expected, to=ir.DataType.INT64)
    shape = None if predicted.shape is None else [predicted.shape[0], 1, *predicted.shape[2:]]
    if expected.rank is not None and expected.rank == predicted.rank:
        return shaped(expected, shape)
    return shaped(op.Unsqueeze(expected, [1]), shape)


def match_columns(op: Builder, expected: Var, predicted: Var) -> Var:
    """The expected values like the prediction; labels become one column for each class, 0 or 1."""
    if not are_labels(expected, predicted) or not isinstance(_columns(predicted), int):
        return match_shape(op, expected, predicted)
    index = op.Squeeze(class_indices(op, expected, predicted), [1])
    # OneHot has kernels for float32 only, in every onnxruntime.
    one_hot = op.OneHot(index, _columns(predicted), op.const(np.array([0, 1], dtype=np.float32)), axis=1)
    if predicted.dtype != ir.DataType.FLOAT:
        one_hot = op.Cast(one_hot, to=predicted.dtype)
    return shaped(one_hot, predicted.shape)


def _columns(var: Var) -> int | str | None:
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


class _CrossEntropy(Loss):
    """Parameters of the cross-entropies: on logits, whose `link` makes probabilities, or on these."""

    of_classes = True
    depends_on_columns = True
    link: str

    def __init__(self, from_logits: bool = True, eps: float | None = None) -> None:
        self.from_logits = from_logits
        self.eps = eps

    @property
    def on(self) -> str:  # type: ignore[override]
        """The link on logits, else 'output'."""
        return self.link if self.from_logits else "output"

    def on_probabilities(self) -> Loss:
        """The same loss taken on probabilities."""
        return type(self)(from_logits=False, eps=self.eps)

    def check(self) -> None:
        """Check the parameters."""
        check_eps(self.eps)


@register_loss("binary_crossentropy", "binary_cross_entropy", "bce")
class BinaryCrossEntropyLearningLoss(_CrossEntropy):
    r"""Binary cross-entropy :math:`-\sum w (y \log p + (1 - y) \log(1 - p))`.

    On logits z, with p = sigmoid(z), this is :math:`softplus(z) - y z`, gradient :math:`p - y`: no
    overflow and no logarithm of 0. With several columns each is a problem of its own (labels may be
    given as class indices: one against the rest).

    Parameters
    ----------
    from_logits : bool, default=True
        Whether the prediction is logits, the input of a final Sigmoid, or probabilities.
    eps : float, optional
        On probabilities only: below `eps` the logarithms are continued by their tangents, so that
        loss and gradient stay finite and consistent. None is the machine epsilon of the dtype.

    Examples
    --------
    >>> import numpy as np
    >>> z, y = np.array([[0], [1e4]], dtype=np.float32), np.array([1, 1])
    >>> BinaryCrossEntropyLearningLoss().loss_scores("cpu", y, z).numpy().round(4)
    array([0.6931, 0.    ], dtype=float32)
    """

    link = "sigmoid"

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Values lie between 0 and 1, labels are classes."""
        if columns is not None and columns > 1 and (expected.ndim == 1 or expected.shape[1] != columns):
            check_labels(self, expected, columns)
        else:
            check_unit(self, expected)

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """The expected values like the prediction."""
        return match_columns(op, expected, predicted)

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        if self.from_logits:
            return softplus(op, predicted) - expected * predicted, op.Sigmoid(predicted) - expected
        eps = smallest(self.eps, predicted.dtype)
        other = 1 - expected
        log_p, slope_p = log_extended(op, predicted, eps)
        log_q, slope_q = log_extended(op, 1 - predicted, eps)
        return -(expected * log_p + other * log_q), other * slope_q - expected * slope_p


@register_loss("softmax_crossentropy", "softmax_cross_entropy", "cross_entropy", "categorical_crossentropy")
class SoftmaxCrossEntropyLearningLoss(_CrossEntropy):
    r"""Softmax cross-entropy :math:`-\sum w \log p_y`, with p = softmax(z) over axis 1.

    Classes are on axis 1 and labels have no such axis, [N] for [N, C] and [N, d1, d2] for
    [N, C, d1, d2], as in PyTorch. Expected values of the prediction's own shape are probabilities of
    the classes (or one-hot): :math:`-\sum w \sum_c y_c \log p_c`.

    Parameters
    ----------
    from_logits : bool, default=True
        Whether the prediction is logits, the input of a final Softmax, or probabilities.
    eps : float, optional
        On probabilities only: below `eps` the logarithm is continued by its tangent. None is the
        machine epsilon of the dtype.

    Notes
    -----
    With labels, logits of minus infinity (masked classes) are fine for classes that are not expected.

    Examples
    --------
    >>> import numpy as np
    >>> z, y = np.array([[0, 0], [1e4, -1e4]], dtype=np.float32), np.array([1, 1])
    >>> SoftmaxCrossEntropyLearningLoss().loss_scores("cpu", y, z).numpy().round(4)
    array([6.931e-01, 2.000e+04], dtype=float32)
    """

    link = "softmax"
    counts_positions = True

    def target(
        self, dtype: ir.DataType | None, rank: int | None = None, shape: Sequence | None = None
    ) -> LossTarget:
        """Indices of classes, without axis 1."""
        return label_target(rank, shape)

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Labels are classes, probabilities lie between 0 and 1."""
        # Integers are labels whatever their shape: [N, d] for predictions [N, C, d] may have d = C.
        if expected.dtype.kind == "f" and expected.ndim > 1 and expected.shape[1] == columns:
            check_unit(self, expected)
        else:
            check_labels(self, expected, columns)

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """Indices as int64, or probabilities like the prediction."""
        if predicted.rank == 1 or _columns(predicted) == 1:
            raise InvalidModelError(
                f"{predicted.value.name!r} has shape {predicted.shape}: a softmax over one class is always "
                "1. Use binary cross-entropy."
            )
        if are_labels(expected, predicted, one_column=False):
            return class_indices(op, expected, predicted)
        return match_shape(op, expected, predicted)

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        if expected.dtype == ir.DataType.INT64:
            return self._sparse(op, predicted, expected)
        return self._dense(op, predicted, expected)

    def _sparse(self, op: Builder, predicted: Var, index: Var) -> tuple[Var, Var]:
        """Labels. The gradient differs from p in one place a row: no one-hot matrix is made."""
        if self.from_logits:
            log_p = op.LogSoftmax(predicted, axis=1)
            picked = shaped(op.GatherElements(log_p, index, axis=1), index.shape)
            base, update = op.Exp(log_p), op.Exp(picked) - 1
        else:
            p = shaped(op.GatherElements(predicted, index, axis=1), index.shape)
            picked, slope = log_extended(op, p, smallest(self.eps, predicted.dtype))
            base, update = zeros_like(op, predicted), -slope
        gradient = shaped(op.ScatterElements(base, index, update, axis=1), predicted.shape)
        return -picked, gradient

    def _dense(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        if not self.from_logits:
            log, slope = log_extended(op, predicted, smallest(self.eps, predicted.dtype))
            return -(expected * log), -(expected * slope)
        log_p = op.LogSoftmax(predicted, axis=1)
        # Rows need not sum to 1: the sum is part of the derivative.
        gradient = op.Exp(log_p) * op.ReduceSum(expected, [1], keepdims=1) - expected
        return -(expected * log_p), shaped(gradient, predicted.shape)


def label_target(rank: int | None, shape: Sequence | None) -> LossTarget:
    """Class indices for a prediction of that shape: axis 1 is missing."""
    dims = list(shape) if shape is not None else [None] * (2 if rank is None else rank)
    return LossTarget("labels", ir.DataType.INT64, dims[:1] + dims[2:])


def zeros_like(op: Builder, x: Var) -> Var:
    """Zeros of x's shape and dtype."""
    dtype = x.dtype or ir.DataType.FLOAT
    zero = ir.tensor(np.zeros(1, dtype=dtype.numpy()))
    return shaped(op.ConstantOfShape(op.Shape(x), value=zero), x.shape)


@register_loss("log", "neglog", "logloss", "log_loss", "neg_log")
class NegLogLearningLoss(Loss):
    """Negative log-likelihood of classes, on raw scores.

    :class:`BinaryCrossEntropyLearningLoss` or :class:`SoftmaxCrossEntropyLearningLoss` under the name
    and with the parameters that older versions gave it. Labels are integers, [N] or [N, 1]. For scores
    of two or more columns 'sigmoid' takes the labels as class indices: each column against the rest.

    Parameters
    ----------
    eps : float, default=1e-5
        On probabilities: below `eps` the logarithm is continued by its tangent. Raw scores need no
        `eps`: their stable form has no logarithm of a probability. (Older versions clipped the
        value of the loss, and not its gradient.)
    probability_function : {'sigmoid', 'softmax', None}, default='sigmoid'
        What turns the scores into probabilities; None if they are probabilities of the class 1 (one
        column), or of all classes.
    """

    of_classes = True
    depends_on_columns = True

    def __init__(self, eps: float = 1e-5, probability_function: str | None = "sigmoid") -> None:
        self.eps = eps
        self.probability_function = probability_function

    @property
    def on(self) -> str:  # type: ignore[override]
        """'sigmoid', 'softmax', or 'output' if scores are probabilities."""
        return self.probability_function or "output"

    @property
    def counts_positions(self) -> bool:  # type: ignore[override]
        """As the softmax cross-entropy, which it is with 'softmax'."""
        return self.probability_function == "softmax"

    def on_probabilities(self) -> Loss:
        """The same loss taken on probabilities."""
        return self._loss(None).on_probabilities()

    def _loss(self, predicted: Var | None) -> Loss:
        """The loss that is meant, for a prediction."""
        if self.probability_function == "sigmoid":
            return BinaryCrossEntropyLearningLoss(eps=self.eps)
        if self.probability_function == "softmax":
            return SoftmaxCrossEntropyLearningLoss(eps=self.eps)
        several = predicted is not None and isinstance(_columns(predicted), int) and _columns(predicted) != 1
        cls = SoftmaxCrossEntropyLearningLoss if several else BinaryCrossEntropyLearningLoss
        return cls(from_logits=False, eps=self.eps)

    def target(
        self, dtype: ir.DataType | None, rank: int | None = None, shape: Sequence | None = None
    ) -> LossTarget:
        """Indices of classes for 'softmax', else values between 0 and 1."""
        if self.probability_function == "softmax":
            return label_target(rank, shape)
        return super().target(dtype, rank, shape)

    def check(self) -> None:
        """Check the parameters."""
        check_eps(self.eps)
        if self.probability_function not in ("sigmoid", "softmax", None):
            raise UnknownNameError(
                "probability_function must be 'sigmoid', 'softmax' or None, not "
                f"{self.probability_function!r}."
            )

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Values lie between 0 and 1, labels are classes."""
        self._loss(None).check_expected(expected, columns)

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """As the loss that is meant does."""
        return self._loss(predicted).match(op, expected, predicted)

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        return self._loss(predicted).terms(op, predicted, expected)


@register_loss("hinge")
class HingeLearningLoss(Loss):
    r"""Hinge loss of scores z: :math:`\sum w \max(0, 1 - y z)` with y = 1 or -1.

    For one column, and for expected values of the prediction's own shape, y is 1 where the expected
    value is positive, else -1: labels 0, 1 and -1, 1 both will do. For class indices and several
    columns it is Crammer and Singer's, as scikit-learn's ``hinge_loss``:
    :math:`\max(0, 1 - z_y + \max_{c \neq y} z_c)`. At the kink the gradient is 0; of equal scores the
    first is the largest.

    Parameters
    ----------
    squared : bool, default=False
        Square the loss of each row and column (scikit-learn's ``squared_hinge``).

    References
    ----------
    K. Crammer and Y. Singer, On the Algorithmic Implementation of Multiclass Kernel-based Vector
    Machines, JMLR 2, 2001, https://www.jmlr.org/papers/v2/crammer01a.html
    """

    of_classes = True
    depends_on_columns = True

    def __init__(self, squared: bool = False) -> None:
        self.squared = squared

    def target(
        self, dtype: ir.DataType | None, rank: int | None = None, shape: Sequence | None = None
    ) -> LossTarget:
        """Indices of classes if the prediction is known to have several columns, else values."""
        if shape is not None and len(shape) > 1 and isinstance(shape[1], int) and shape[1] > 1:
            return label_target(rank, shape)
        return super().target(dtype, rank, shape)

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Labels are classes, or 0, 1 and -1."""
        if columns is not None and columns > 1 and (expected.ndim == 1 or expected.shape[1] != columns):
            check_labels(self, expected, columns)
        elif expected.size and not np.isin(expected, (-1, 0, 1)).all():
            raise InvalidDataError("The hinge loss of one column takes labels 0 and 1, or -1 and 1.")

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """Indices as int64, or values like the prediction."""
        if are_labels(expected, predicted):
            return class_indices(op, expected, predicted)
        return match_shape(op, expected, predicted)

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        if expected.dtype == ir.DataType.INT64:
            return self._classes(op, predicted, expected)
        sign = op.Where(is_positive(op, expected), op.const(1, like=predicted), op.const(-1, like=predicted))
        losses, slope = self._hinge(op, 1 - sign * predicted)
        return losses, -sign * slope

    def _classes(self, op: Builder, z: Var, index: Var) -> tuple[Var, Var]:
        own = shaped(op.GatherElements(z, index, axis=1), index.shape)
        never = op.Expand(op.const(np.array(-np.inf), like=z), op.Shape(index))
        others = op.ScatterElements(z, index, never, axis=1)
        best = shaped(op.ArgMax(others, axis=1, keepdims=1), index.shape)
        rival = shaped(op.GatherElements(z, best, axis=1), index.shape)
        losses, slope = self._hinge(op, 1 + (rival - own))
        gradient = op.ScatterElements(zeros_like(op, z), index, -slope, axis=1)
        gradient = op.ScatterElements(gradient, best, slope, axis=1)
        return losses, shaped(gradient, z.shape)

    def _hinge(self, op: Builder, slack: Var) -> tuple[Var, Var]:
        """Loss and derivative with respect to the slack."""
        losses = op.Relu(slack)
        if self.squared:
            return losses * losses, 2 * losses
        return losses, op.Sign(losses)
