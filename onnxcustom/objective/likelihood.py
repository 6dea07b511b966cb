"""Losses that are likelihoods or distances of distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.building.builder import Builder, Var

from .base import Loss, LossTarget, register_loss
from .labels import WeighedLabelLoss, check_unit, class_indices, masked, zeros_like
from .rows import shaped

__all__ = ["GaussianLearningLoss", "KLDivergenceLearningLoss", "NLLLearningLoss"]


@register_loss("nll", "nll_loss")
class NLLLearningLoss(WeighedLabelLoss):
    r"""Negative log-likelihood :math:`-\sum w \, l_y` of log-probabilities l.

    For a model whose output is log-probabilities already, as after a LogSoftmax that shall stay part of what
    the loss sees; as PyTorch's ``NLLLoss``. Labels have no axis of classes: [N] for [N, C], [N, d1] for
    [N, C, d1]; every one that is not ignored counts as a row. The cross-entropy of the scores before the
    LogSoftmax is the same number, and steadier.

    Parameters
    ----------
    class_axis, ignore_index, label_smoothing, class_weight
        As those of :class:`~onnxcustom.objective.classification.SoftmaxCrossEntropyLearningLoss`.
    """

    of_logarithms = True

    def __init__(
        self,
        class_axis: int | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
    ) -> None:
        self.class_axis = class_axis
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """Indices as int64, one class on axis 1."""
        return class_indices(op, expected, predicted)

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        index, ignored = self.apart(op, expected)
        if self.label_smoothing:
            share = self.shares(op, index, predicted)
            return masked(op, ignored, shaped(-(share * predicted), predicted.shape), -share)
        picked = shaped(op.GatherElements(predicted, index, axis=1), index.shape)
        weight = self.picked_weights(op, index, predicted)
        if weight is None:
            minus, losses = op.Expand(op.const(np.array(-1.0), like=predicted), op.Shape(index)), -picked
        else:
            minus, losses = -weight, -(weight * picked)
        gradient = op.ScatterElements(zeros_like(op, predicted), index, minus, axis=1)
        return masked(op, ignored, losses, shaped(gradient, predicted.shape))


@register_loss("kl_divergence", "kullback_leibler", "kl_div")
class KLDivergenceLearningLoss(Loss):
    r"""Divergence from given probabilities: :math:`T^2 \sum_c q_c (\log q_c - \log softmax(z / T)_c)` a row.

    The expected values q are probabilities of the classes, of the prediction's shape, classes on axis 1; the
    prediction is scores z, or what a final Softmax reads. The factor :math:`T^2` keeps the size of the
    gradient, :math:`T (softmax(z / T) - q)`, at every temperature. With T = 1 it is PyTorch's
    ``KLDivLoss`` of ``log_softmax(z)`` with ``reduction='sum'``.

    Parameters
    ----------
    temperature : float, default=1.0
        T > 0. The probabilities q are taken as they are: soften them by the same temperature beforehand.

    References
    ----------
    G. Hinton, O. Vinyals and J. Dean, Distilling the Knowledge in a Neural Network, 2015, section 2,
    https://arxiv.org/abs/1503.02531
    """

    on = "softmax"
    depends_on_columns = True

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def check(self) -> None:
        """Check the parameters."""
        check_number("temperature", self.temperature, "(0, inf)")

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Probabilities lie between 0 and 1."""
        check_unit(self, expected)

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        t = float(self.temperature)
        if predicted.rank == 1:
            raise InvalidModelError(
                f"{predicted.value.name!r} has shape {predicted.shape}: there is no axis of classes."
            )
        log_p = op.LogSoftmax(predicted if t == 1 else predicted / t, axis=1)
        # 0 log 0 = 0: the logarithm only has to be finite there.
        tiny = float(np.finfo((expected.dtype or ir.DataType.FLOAT).numpy()).tiny)
        losses = (t * t) * (expected * (op.Log(op.Max(expected, tiny)) - log_p))
        slope = op.Exp(log_p) * op.ReduceSum(expected, [1], keepdims=1) - expected
        return losses, shaped(t * slope, predicted.shape)


@register_loss("gaussian_nll", "gaussian")
class GaussianLearningLoss(Loss):
    r"""Negative log-likelihood of a normal distribution: the model predicts mean m and variance v.

    :math:`\frac{1}{2} (\log v + (y - m)^2 / v)` summed over columns, without the constant
    :math:`\frac{1}{2} \log 2π`. The prediction is [N, 2K], K means, then K variances; or two outputs [N, K],
    ``{("mean", "variance"): "gaussian_nll"}``: by itself it is taken on the first two outputs of a model, if
    they are alike. Expected values are [N, K]. As PyTorch's ``GaussianNLLLoss``: variances below `eps` count
    as `eps`, and their gradient is that at `eps`, so that they can grow again.

    Parameters
    ----------
    eps : float, default=1e-6
        Least variance, > 0, in squared units of y.

    References
    ----------
    D. Nix and A. Weigend, Estimating the mean and variance of the target probability distribution,
    ICNN 1994, https://doi.org/10.1109/ICNN.1994.374138
    """

    outputs = 2

    def __init__(self, eps: float = 1e-6) -> None:
        self.eps = eps

    def check(self) -> None:
        """Check the parameters."""
        check_number("eps", self.eps, "(0, inf)")

    def target(
        self, dtype: ir.DataType | None, rank: int | None = None, shape: Sequence | None = None
    ) -> LossTarget:
        """Half the columns of the prediction."""
        columns = None if shape is None or len(shape) < 2 else shape[1]
        if rank not in (None, 2) or (isinstance(columns, int) and columns % 2):
            raise InvalidModelError(
                f"{type(self).__name__} takes predictions [N, 2K], means and variances side by side, not "
                f"{shape if shape is not None else f'of {rank} dimensions'}."
            )
        half = columns // 2 if isinstance(columns, int) else None
        rows = None if shape is None else shape[0]
        return LossTarget("own", ir.DataType(dtype or ir.DataType.FLOAT), [rows, half])

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """The expected values in the prediction's dtype; [N] for one column, too."""
        if expected.dtype != predicted.dtype:
            expected = op.Cast(expected, to=predicted.dtype)
        return shaped(op.Flatten(expected, axis=1), [None, None]) if expected.rank != 2 else expected

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        columns = op.Shape(predicted)
        half = op.Slice(op.Shape(expected), [1], [2])
        mean = shaped(op.Slice(predicted, [0], half, [1]), expected.shape)
        variance = op.Slice(predicted, half, op.Slice(columns, [1], [2]), [1])
        v = shaped(op.Max(variance, float(self.eps)), expected.shape)
        d = mean - expected
        z = d / v
        losses = 0.5 * (op.Log(v) + d * z)
        return losses, shaped(op.Concat(z, 0.5 * (1 / v - z * z), axis=1), predicted.shape)
