"""Losses for classes of very different sizes: focal and dice."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError, UnknownNameError
from onnxcustom.graph.building.builder import Builder, Var

from .base import Loss, LossTarget, register_loss
from .labels import (
    ColumnLoss,
    LabelLoss,
    check_weighed,
    class_indices,
    class_weights,
    masked,
)
from .rows import match_shape, shaped, softplus, sum_rows

__all__ = ["DiceLearningLoss", "FocalLearningLoss"]


@register_loss("focal", "focal_loss")
class FocalLearningLoss(LabelLoss):
    r"""Cross-entropy that cares less for what is right already: :math:`-α_y (1 - p_y)^γ \log p_y`.

    p is the probability of the class that is expected. Taken on scores, or on what a final Softmax or
    Sigmoid reads: classes on axis 1 with labels [N] for [N, C] and [N, d1] for [N, C, d1] as in the
    cross-entropy; with ``link='sigmoid'`` every column is a problem of its own with labels 0 and 1.
    With γ = 0 it is the cross-entropy.

    Parameters
    ----------
    gamma : float, default=2.0
        γ >= 0.
    alpha : float or sequence of float, optional
        Weights of the classes, one each; a number a is the weight of class 1, and 1 - a that of class 0.
        None weighs all alike.
    link : {'softmax', 'sigmoid'}, default='softmax'
        What makes probabilities of the scores.
    class_axis : int, optional
        Axis of the classes, as in the cross-entropy.
    ignore_index : int or None, default=-100
        Labels that have no loss; of several classes, they do not count either.

    References
    ----------
    T.-Y. Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equations 4 and 5,
    https://arxiv.org/abs/1708.02002
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: Any = None,
        link: str = "softmax",
        class_axis: int | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        self.gamma = gamma
        self.alpha = alpha
        self.link = link
        self.class_axis = class_axis
        self.ignore_index = ignore_index

    @property
    def on(self) -> str:  # type: ignore[override]
        """The link."""
        return self.link

    @property
    def counts_positions(self) -> bool:  # type: ignore[override]
        """Whether a label is one of several classes."""
        return self.link == "softmax"

    def check(self) -> None:
        """Check the parameters."""
        if self.link not in ("softmax", "sigmoid"):
            raise UnknownNameError(f"link must be 'softmax' or 'sigmoid', not {self.link!r}.")
        check_number("gamma", self.gamma, "[0, inf)")
        super().check()
        self._weights()

    def _weights(self) -> np.ndarray | None:
        """Weights of the classes."""
        if self.alpha is None:
            return None
        if isinstance(self.alpha, numbers.Real):
            check_number("alpha", self.alpha, "[0, 1]")
            return np.array([1 - float(self.alpha), float(self.alpha)])
        weights = class_weights("alpha", self.alpha)
        assert weights is not None
        if self.link == "sigmoid" and len(weights) != 2:
            raise InvalidParameterError("With link='sigmoid' alpha has two weights, of labels 0 and 1.")
        return weights

    def target(
        self, dtype: ir.DataType | None, rank: int | None = None, shape: Sequence | None = None
    ) -> LossTarget:
        """Indices of classes, or 0 and 1 like the prediction."""
        if self.link == "softmax":
            return super().target(dtype, rank, shape)
        return Loss.target(self, dtype, rank, shape)

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Labels are classes that have a weight."""
        if self.link == "sigmoid":
            if not np.isin(self.kept(expected), (0, 1)).all():
                raise InvalidDataError("The focal loss with link='sigmoid' takes labels 0 and 1.")
            return
        super().check_expected(expected, columns)
        check_weighed("alpha", self._weights(), self.kept(expected), columns)

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """Indices as int64, one class on axis 1; or values like the prediction."""
        if self.link == "softmax":
            return class_indices(op, expected, predicted)
        return match_shape(op, expected, predicted)

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        if self.link == "sigmoid":
            return self._binary(op, predicted, expected)
        index, ignored = self.apart(op, expected)
        log_p = op.LogSoftmax(predicted, axis=1)
        picked = shaped(op.GatherElements(log_p, index, axis=1), index.shape)
        losses, slope = self._modulated(op, picked, index)
        # d log p_y / dz is 1 - p at y and -p elsewhere.
        gradient = -slope * op.Exp(log_p)
        update = shaped(slope * (1 - op.Exp(picked)), index.shape)
        gradient = op.ScatterElements(shaped(gradient, predicted.shape), index, update, axis=1)
        return masked(op, ignored, losses, shaped(gradient, predicted.shape))

    def _binary(self, op: Builder, z: Var, expected: Var) -> tuple[Var, Var]:
        label, ignored = self.apart(op, expected)
        sign = 2 * label - 1
        log_p = -softplus(op, -(sign * z))
        losses, slope = self._modulated(op, log_p, op.Cast(label, to=ir.DataType.INT64))
        return masked(op, ignored, losses, sign * slope * op.Sigmoid(-(sign * z)))

    def _modulated(self, op: Builder, log_p: Var, label: Var) -> tuple[Var, Var]:
        """The loss of a log-probability, and its derivative with respect to that."""
        gamma = float(self.gamma)
        if not gamma:
            losses, slope = -log_p, op.const(-1, like=log_p)
        else:
            p = op.Exp(log_p)
            tiny = float(np.finfo((log_p.dtype or ir.DataType.FLOAT).numpy()).tiny)
            q = op.Max(1 - p, tiny)
            last = op.Pow(q, op.const(gamma - 1, like=log_p))
            losses, slope = -(last * q * log_p), last * (gamma * p * log_p - q)
        weights = self._weights()
        if weights is None:
            return losses, slope
        weight = shaped(op.Gather(op.const(weights, like=log_p), label), label.shape)
        return weight * losses, weight * slope


@register_loss("dice", "dice_loss")
class DiceLearningLoss(ColumnLoss):
    r"""Dice loss :math:`1 - (2 \sum p y + s) / (\sum p + \sum y + s)`, one for each row.

    The sums go over everything in a row: all pixels, and all columns. Labels are 0 and 1 (or probabilities)
    of the prediction's shape, or indices of classes, each class then a column of its own. Taken on
    probabilities, or on scores, which a sigmoid makes probabilities of.

    Parameters
    ----------
    smooth : float, default=1.0
        s >= 0. With 0 a row without any label has no loss only if nothing is predicted.
    from_logits : bool, default=True
        Whether the prediction is scores, the input of a final Sigmoid, or probabilities.

    References
    ----------
    F. Milletari, N. Navab and S.-A. Ahmadi, V-Net, 3DV 2016, section 3, with the sums of p and y in place of
    those of their squares, https://arxiv.org/abs/1606.04797
    """

    def __init__(self, smooth: float = 1.0, from_logits: bool = True) -> None:
        self.smooth = smooth
        self.from_logits = from_logits

    def on_probabilities(self) -> Loss:
        """The same loss taken on probabilities."""
        return type(self)(self.smooth, from_logits=False)

    def check(self) -> None:
        """Check the parameters."""
        check_number("smooth", self.smooth, "[0, inf)")

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        p = op.Sigmoid(predicted) if self.from_logits else predicted
        both, smooth = sum_rows(op, p * expected), float(self.smooth)
        # With nothing predicted, nothing expected and nothing added there is no loss.
        tiny = float(np.finfo((p.dtype or ir.DataType.FLOAT).numpy()).tiny)
        size = op.Max(sum_rows(op, p + expected) + smooth, tiny)
        share = (2 * both + smooth) / size
        losses = 1 - share if smooth else op.Where(size > tiny, 1 - share, op.const(0, like=p))
        by_row = _beside(op, share, p), _beside(op, size, p)
        slope = (by_row[0] - 2 * expected) / by_row[1]
        return losses, shaped(slope * p * (1 - p) if self.from_logits else slope, predicted.shape)


def _beside(op: Builder, rows: Var, x: Var) -> Var:
    """Numbers of rows in a shape that goes with x."""
    if x.rank is None or x.shape is None:
        ones = op.Shape(x) * 0 + 1
        ones = op.Concat(op.Slice(op.Shape(x), [0], [1]), op.Slice(ones, [1], [2**31 - 1]), axis=0)
        return op.Reshape(rows, ones)
    if x.rank == 1:
        return rows
    return shaped(op.Unsqueeze(rows, list(range(1, x.rank))), [x.shape[0], *[1] * (x.rank - 1)])
