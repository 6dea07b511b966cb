"""Losses for classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import InvalidDataError, InvalidModelError, UnknownNameError
from onnxcustom.graph.building.builder import Builder, Var

from .base import Loss, LossTarget, register_loss
from .labels import (
    ColumnLoss,
    WeighedLabelLoss,
    are_labels,
    check_labels,
    check_unit,
    class_columns,
    class_indices,
    label_target,
    masked,
    zeros_like,
)
from .regression import check_eps
from .rows import is_positive, log_extended, match_shape, shaped, smallest, softplus

__all__ = [
    "BinaryCrossEntropyLearningLoss",
    "HingeLearningLoss",
    "NegLogLearningLoss",
    "SoftmaxCrossEntropyLearningLoss",
]

# Up to so many classes of many positions each, whole passes are faster than the kernel of LogSoftmax.
_FEW = 128


@register_loss("binary_crossentropy", "binary_cross_entropy", "bce")
class BinaryCrossEntropyLearningLoss(ColumnLoss):
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

    of_classes = True

    def __init__(self, from_logits: bool = True, eps: float | None = None) -> None:
        self.from_logits = from_logits
        self.eps = eps

    def on_probabilities(self) -> Loss:
        """The same loss taken on probabilities."""
        return type(self)(from_logits=False, eps=self.eps)

    def check(self) -> None:
        """Check the parameters."""
        check_eps(self.eps)

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        if self.from_logits:
            return softplus(op, predicted) - expected * predicted, op.Sigmoid(predicted) - expected
        eps = smallest(self.eps, predicted.dtype)
        other = 1 - expected
        log_p, slope_p = log_extended(op, predicted, eps)
        log_q, slope_q = log_extended(op, 1 - predicted, eps)
        return -(expected * log_p + other * log_q), other * slope_q - expected * slope_p


@register_loss("softmax_crossentropy", "softmax_cross_entropy", "cross_entropy", "categorical_crossentropy")
class SoftmaxCrossEntropyLearningLoss(WeighedLabelLoss):
    r"""Softmax cross-entropy :math:`-\sum w \log p_y`, with p = softmax(z) over the classes.

    Labels are indices without the axis of the classes, as in PyTorch: [N] for [N, C], [N, d1, d2] for
    [N, C, d1, d2], [N, L] for [N, L, C] with ``class_axis=-1``. Every label that is not ignored counts as a
    row of the objective. Expected values of the prediction's own shape are probabilities of
    the classes (or one-hot): :math:`-\sum w \sum_c y_c \log p_c`.

    Parameters
    ----------
    from_logits : bool, default=True
        Whether the prediction is logits, the input of a final Softmax, or probabilities.
    eps : float, optional
        On probabilities only: below `eps` the logarithm is continued by its tangent. None is the
        machine epsilon of the dtype.
    class_axis : int, optional
        Axis of the classes; by default that of a model's final Softmax, or what the shape of the labels says,
        and 1 for a loss on its own.
    ignore_index : int or None, default=-100
        Labels that have no loss and do not count; None for none.
    label_smoothing : float, default=0.0
        ε: the class that is expected has the probability :math:`1 - ε + ε / C`, each other one
        :math:`ε / C`.
    class_weight : sequence of float, optional
        One weight for each class. It multiplies the loss; what the objective is divided by is the number of
        labels, not the sum of their weights.

    Notes
    -----
    With labels and without smoothing, logits of minus infinity (masked classes) are fine for classes that
    are not expected.

    References
    ----------
    C. Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016, section 7,
    https://arxiv.org/abs/1512.00567

    Examples
    --------
    >>> import numpy as np
    >>> z, y = np.array([[0, 0], [1e4, -1e4], [1, 2]], dtype=np.float32), np.array([1, 1, -100])
    >>> SoftmaxCrossEntropyLearningLoss().loss_scores("cpu", y, z).numpy().round(4)
    array([6.931e-01, 2.000e+04, 0.000e+00], dtype=float32)
    """

    takes_probabilities = True

    def __init__(
        self,
        from_logits: bool = True,
        eps: float | None = None,
        class_axis: int | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
    ) -> None:
        self.from_logits = from_logits
        self.eps = eps
        self.class_axis = class_axis
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight

    @property
    def on(self) -> str:  # type: ignore[override]
        """'softmax' on logits, else 'output'."""
        return "softmax" if self.from_logits else "output"

    def on_probabilities(self) -> Loss:
        """The same loss taken on probabilities."""
        return type(self)(**{**self.get_params(), "from_logits": False})

    def check(self) -> None:
        """Check the parameters."""
        super().check()
        check_eps(self.eps)

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Labels are classes, probabilities lie between 0 and 1."""
        # Integers are labels whatever their shape: [N, d] for predictions [N, C, d] may have d = C.
        if expected.dtype.kind == "f" and expected.ndim > 1 and expected.shape[1] == columns:
            check_unit(self, expected)
        else:
            super().check_expected(expected, columns)

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """Indices as int64, or probabilities like the prediction."""
        if predicted.rank == 1 or class_columns(predicted) == 1:
            raise InvalidModelError(
                f"{predicted.value.name!r} has shape {predicted.shape}: a softmax over one class is always "
                "1. Use binary cross-entropy."
            )
        if are_labels(expected, predicted, one_column=False):
            return class_indices(op, expected, predicted)
        return match_shape(op, expected, predicted)

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        if expected.dtype != ir.DataType.INT64:
            return self._dense(op, predicted, self.spread(op, expected))
        index, ignored = self.apart(op, expected)
        made = self._dense(op, predicted, self.shares(op, index, predicted)) if self.label_smoothing else None
        return masked(op, ignored, *(made or self._sparse(op, predicted, index)))

    def _sparse(self, op: Builder, predicted: Var, index: Var) -> tuple[Var, Var]:
        """Labels. The gradient differs from p in one place a row: no one-hot matrix is made."""
        weight = self.picked_weights(op, index, predicted)
        if self.from_logits:
            log_p = _log_softmax(op, predicted)
            picked = shaped(op.GatherElements(log_p, index, axis=1), index.shape)
            base, update = op.Exp(log_p), op.Exp(picked) - 1
            base = base if weight is None else base * weight
        else:
            p = shaped(op.GatherElements(predicted, index, axis=1), index.shape)
            picked, slope = log_extended(op, p, smallest(self.eps, predicted.dtype))
            base, update = zeros_like(op, predicted), -slope
        losses = -picked
        if weight is not None:
            losses, update = losses * weight, shaped(update * weight, index.shape)
        gradient = shaped(op.ScatterElements(base, index, update, axis=1), predicted.shape)
        return losses, gradient

    def _dense(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        if not self.from_logits:
            log, slope = log_extended(op, predicted, smallest(self.eps, predicted.dtype))
            return -(expected * log), -(expected * slope)
        log_p = _log_softmax(op, predicted)
        # Rows need not sum to 1: the sum is part of the derivative.
        gradient = op.Exp(log_p) * op.ReduceSum(expected, [1], keepdims=1) - expected
        return -(expected * log_p), shaped(gradient, predicted.shape)


def _log_softmax(op: Builder, x: Var) -> Var:
    """Logarithms of the probabilities of classes, axis 1.

    onnxruntime's kernel goes from position to position: few classes of many positions, as of pixels, are six
    times as fast in whole passes.
    """
    classes = None if x.shape is None or len(x.shape) < 3 else x.shape[1]
    if (
        not isinstance(classes, int)
        or classes > _FEW
        or x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    ):
        return op.LogSoftmax(x, axis=1)
    centred = x - op.ReduceMax(x, [1], keepdims=1)
    return shaped(centred - op.Log(op.ReduceSum(op.Exp(centred), [1], keepdims=1)), x.shape)


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
            return SoftmaxCrossEntropyLearningLoss(eps=self.eps, ignore_index=None)
        several = (
            predicted is not None
            and isinstance(class_columns(predicted), int)
            and class_columns(predicted) != 1
        )
        if several:
            return SoftmaxCrossEntropyLearningLoss(False, self.eps, ignore_index=None)
        return BinaryCrossEntropyLearningLoss(False, self.eps)

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
