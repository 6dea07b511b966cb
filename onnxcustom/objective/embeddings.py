"""Losses of embeddings: of two of them, and of all rows of a batch with each other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import InvalidDataError, InvalidModelError, UnknownNameError
from onnxcustom.graph.building.builder import Builder, Var

from .base import Loss, LossTarget, LossTerms, flat_weight, register_loss
from .rows import is_positive, match_shape, shaped, smallest

__all__ = ["ContrastiveLearningLoss", "CosineLearningLoss", "TripletLearningLoss"]

# Added to squared norms, as PyTorch's CosineEmbeddingLoss does.
_EPSILON = 1e-12


@register_loss("cosine", "cosine_embedding")
class CosineLearningLoss(Loss):
    r"""Cosine distance :math:`1 - \cos(a, b)` of embeddings that belong together.

    With predictions [N, D] the expected values are the other embeddings, [N, D], and all belong
    together. With predictions [N, 2, D], pairs of embeddings, the expected values are labels [N]: 1 for those
    that belong together, -1 for others, whose loss is :math:`\max(0, \cos(a, b) - margin)`. As PyTorch's
    ``CosineEmbeddingLoss``.

    Parameters
    ----------
    margin : float, default=0.0
        In [-1, 1]: cosines of strangers below it cost nothing.
    """

    def __init__(self, margin: float = 0.0) -> None:
        self.margin = margin

    def check(self) -> None:
        """Check the parameters."""
        check_number("margin", self.margin, "[-1, 1]")

    def target(
        self, dtype: ir.DataType | None, rank: int | None = None, shape: Sequence | None = None
    ) -> LossTarget:
        """Embeddings like the prediction, or a label for each pair."""
        rank = rank if shape is None else len(shape)
        if rank not in (None, 2, 3) or (rank == 3 and shape is not None and shape[1] not in (2, None)):
            raise InvalidModelError(
                f"{type(self).__name__} takes embeddings [N, D] or pairs of them [N, 2, D], not "
                f"{shape if shape is not None else f'{rank} dimensions'}."
            )
        if rank == 3:
            return LossTarget("own", ir.DataType.INT64, [None if shape is None else shape[0]])
        return super().target(dtype, rank, shape)

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Labels of pairs are 1 or -1."""
        if expected.ndim == 1 and expected.size and not np.isin(expected, (-1, 1)).all():
            raise InvalidDataError(
                "The cosine loss of pairs takes labels 1, for embeddings that belong together, and -1."
            )

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """Embeddings like the prediction, or labels in its dtype, [N, 1]."""
        if predicted.rank != 3:
            return match_shape(op, expected, predicted)
        return op.Reshape(op.Cast(expected, to=predicted.dtype), [-1, 1])

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        if predicted.rank != 3:
            cosine, slope, _ = _cosine(op, predicted, expected)
            return 1 - cosine, shaped(-slope, predicted.shape)
        a, b = (op.Squeeze(op.Slice(predicted, [i], [i + 1], [1]), [1]) for i in (0, 1))
        cosine, to_a, to_b = _cosine(op, a, b)
        together, above = is_positive(op, expected), op.Relu(cosine - float(self.margin))
        losses = op.Where(together, 1 - cosine, above)
        sign = op.Where(together, op.const(-1, like=predicted), op.Sign(above))
        both = [op.Unsqueeze(sign * slope, [1]) for slope in (to_a, to_b)]
        return losses, shaped(op.Concat(*both, axis=1), predicted.shape)


def _cosine(op: Builder, a: Var, b: Var) -> tuple[Var, Var, Var]:
    """Cosines of rows, [N, 1], and their gradients with respect to both."""
    inner, aa, bb = (op.ReduceSum(x, [1], keepdims=1) for x in (a * b, a * a, b * b))
    aa, bb = aa + _EPSILON, bb + _EPSILON
    size = op.Sqrt(aa) * op.Sqrt(bb)
    cosine = inner / size
    return cosine, b / size - (cosine / aa) * a, a / size - (cosine / bb) * b


class _BatchLoss(Loss):
    """A loss of embeddings [N, D] whose rows are compared with each other, by their labels [N].

    A subclass gives losses and a gradient from weights of the rows.
    """

    wants_partners = True

    def mixes_rows(self, dtype: Any, shape: Sequence | None) -> str | None:
        """None: the rows of a batch may come in any order."""

    def target(
        self, dtype: ir.DataType | None, rank: int | None = None, shape: Sequence | None = None
    ) -> LossTarget:
        """A label for each row."""
        rank = rank if shape is None else len(shape)
        if rank not in (None, 2):
            raise InvalidModelError(
                f"{type(self).__name__} takes embeddings [N, D], one a row, not {rank} dimensions."
            )
        return LossTarget("own", ir.DataType.INT64, [None if shape is None else shape[0]])

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Labels are whole numbers, one a row."""
        whole = expected.dtype.kind in "iub" or np.array_equal(expected, np.floor(expected))
        if not whole or expected.size != len(expected):
            raise InvalidDataError(
                f"{type(self).__name__} takes one whole number for each row: its class, or that of its pair; "
                f"the expected values have shape {expected.shape}, dtype {expected.dtype}."
            )

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """Labels as int64, [N]."""
        if expected.dtype != ir.DataType.INT64:
            expected = op.Cast(expected, to=ir.DataType.INT64)
        return expected if expected.rank == 1 else op.Reshape(expected, [-1])

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        """Losses of the rows and their gradient, all rows weighing 1."""
        return self.weighed(op, predicted, expected, None)

    def build(self, op: Builder, predicted: Var, expected: Var, weight: Var | None = None) -> LossTerms:
        """Emit the loss: a row's weight is that of its own loss, whose gradient reaches other rows."""
        if weight is None:
            return super().build(op, predicted, expected)
        self.check()
        weight = flat_weight(op, weight, predicted)
        losses, gradient = self.weighed(op, predicted, self.match(op, expected, predicted), weight)
        scores = shaped(losses * weight, losses.shape)
        return LossTerms(scores, gradient, shaped(op.ReduceSum(scores, keepdims=0), []))

    @abstractmethod
    def weighed(self, op: Builder, x: Var, label: Var, weight: Var | None) -> tuple[Var, Var]:
        """Unweighted losses [N], and the gradient of their weighted sum."""


def _partners(op: Builder, label: Var) -> tuple[Var, Var]:
    """Which rows have the same label, [N, N], without each row itself; and with it."""
    same = op.Equal(op.Unsqueeze(label, [1]), op.Unsqueeze(label, [0]))
    itself = op.Cast(
        op.EyeLike(op.Cast(same, to=ir.DataType.INT64), dtype=ir.DataType.INT64), to=ir.DataType.BOOL
    )
    return op.And(same, op.Not(itself)), same


def _counted(op: Builder, mask: Var, like: Var, axis: int) -> tuple[Var, Var]:
    """A mask as numbers, and their sums along an axis, which is kept."""
    ones = op.Cast(mask, to=like.dtype)
    return ones, op.ReduceSum(ones, [axis], keepdims=1)


def _column(op: Builder, weight: Var) -> Var:
    return op.Unsqueeze(weight, [1])


@register_loss("contrastive", "info_nce", "infonce")
class ContrastiveLearningLoss(_BatchLoss):
    r"""InfoNCE: the cross-entropy of a row's scaled cosines to all other rows, its partners being right.

    With :math:`s_{ij} = \cos(x_i, x_j) / τ` a row's loss is
    :math:`-\frac{1}{|P_i|} \sum_{j \in P_i} \log (e^{s_{ij}} / \sum_{k \neq i} e^{s_{ik}})`. Expected
    values are one whole number a row; partners :math:`P_i` are the other rows of the batch with
    the same: the two of a pair if each pair has a number of its own (NT-Xent), all of a class if they are
    classes (supervised contrastive). A row without partners has no loss.

    Parameters
    ----------
    temperature : float, default=0.07
        τ > 0.

    References
    ----------
    A. van den Oord, Y. Li and O. Vinyals, Representation Learning with Contrastive Predictive Coding, 2018,
    equation 4, https://arxiv.org/abs/1807.03748; P. Khosla et al., Supervised Contrastive Learning, NeurIPS
    2020, equation 2, https://arxiv.org/abs/2004.11362
    """

    def __init__(self, temperature: float = 0.07) -> None:
        self.temperature = temperature

    def check(self) -> None:
        """Check the parameters."""
        check_number("temperature", self.temperature, "(0, inf)")

    def weighed(self, op: Builder, x: Var, label: Var, weight: Var | None) -> tuple[Var, Var]:
        norm = op.Max(op.Sqrt(op.ReduceSum(x * x, [1], keepdims=1)), _least_norm(x))
        unit = x / norm
        scaled = op.MatMul(unit, op.Transpose(unit, perm=[1, 0])) / float(self.temperature)
        partners, same = _partners(op, label)
        itself = op.And(same, op.Not(partners))
        log_p = op.LogSoftmax(op.Where(itself, op.const(-np.inf, like=x), scaled), axis=1)
        right, count = _counted(op, partners, x, 1)
        share = right / op.Max(count, 1.0)
        zero = op.const(0, like=x)
        losses = -op.ReduceSum(op.Where(partners, share * log_p, zero), [1], keepdims=0)
        # A row that has no partner has neither loss nor gradient; one that is alone has no probabilities.
        there = op.Sign(count)
        slope = op.Where(op.And(is_positive(op, there), op.Not(itself)), op.Exp(log_p), zero) - share
        slope = slope if weight is None else slope * _column(op, weight)
        both = (slope + op.Transpose(slope, perm=[1, 0])) / float(self.temperature)
        du = op.MatMul(both, unit)
        gradient = (du - unit * op.ReduceSum(unit * du, [1], keepdims=1)) / norm
        return shaped(losses, _rows(x)), shaped(gradient, x.shape)


@register_loss("triplet", "triplet_margin")
class TripletLearningLoss(_BatchLoss):
    r"""Rows of a class shall be nearer to each other than to other classes, by a margin.

    With Euclidean distances d: :math:`\max(0, d(a, p) - d(a, n) + m)` for an anchor a, another row p of its
    class and a row n of another class. ``mining='hard'`` takes for each anchor its farthest p and nearest n
    of the batch; ``'all'`` is the mean over all p and n of the anchor. Expected values are the classes, whole
    numbers [N]. A row without p or n has no loss: let batches have several rows of several classes.

    Parameters
    ----------
    margin : float, default=1.0
        m > 0, in units of the embeddings.
    mining : {'hard', 'all'}, default='hard'
        Which triplets count. 'all' needs memory for N³ numbers.

    References
    ----------
    F. Schroff, D. Kalenichenko and J. Philbin, FaceNet, CVPR 2015, section 3.1,
    https://arxiv.org/abs/1503.03832; A. Hermans, L. Beyer and B. Leibe,
    In Defense of the Triplet Loss for Person Re-Identification, 2017,
    equations 5 and 6, https://arxiv.org/abs/1703.07737
    """

    def __init__(self, margin: float = 1.0, mining: str = "hard") -> None:
        self.margin = margin
        self.mining = mining

    def check(self) -> None:
        """Check the parameters."""
        check_number("margin", self.margin, "(0, inf)")
        if self.mining not in ("hard", "all"):
            raise UnknownNameError(f"mining must be 'hard' or 'all', not {self.mining!r}.")

    def weighed(self, op: Builder, x: Var, label: Var, weight: Var | None) -> tuple[Var, Var]:
        distance = _distances(op, x)
        partners, same = _partners(op, label)
        mine = self._hardest if self.mining == "hard" else self._all
        losses, slope = mine(op, distance, partners, op.Not(same))
        slope = slope if weight is None else slope * _column(op, weight)
        # d(i, j) grows along x_i - x_j; where two rows are one point, in no direction.
        apart = is_positive(op, distance)
        pull = op.Where(apart, slope / op.Where(apart, distance, op.const(1, like=x)), op.const(0, like=x))
        both = pull + op.Transpose(pull, perm=[1, 0])
        gradient = x * op.ReduceSum(both, [1], keepdims=1) - op.MatMul(both, x)
        return shaped(losses, _rows(x)), shaped(gradient, x.shape)

    def _hardest(self, op: Builder, d: Var, partners: Var, others: Var) -> tuple[Var, Var]:
        """Losses, and slopes with respect to the distances."""
        far = op.Where(partners, d, op.const(-1, like=d))
        near = op.Where(others, d, op.const(np.inf, like=d))
        farthest, nearest = op.ReduceMax(far, [1], keepdims=1), op.ReduceMin(near, [1], keepdims=1)
        loss = op.Relu(op.Where(farthest < 0, op.const(-np.inf, like=d), farthest) - nearest + self.margin)
        at = op.And(partners, op.Not(op.Less(far, farthest))), op.And(others, op.Not(op.Less(nearest, near)))
        # Equally far ones share the slope.
        ends = [ones / op.Max(count, 1.0) for ones, count in (_counted(op, mask, d, 1) for mask in at)]
        return op.Squeeze(loss, [1]), op.Sign(loss) * (ends[0] - ends[1])

    def _all(self, op: Builder, d: Var, partners: Var, others: Var) -> tuple[Var, Var]:
        """Losses, and slopes with respect to the distances."""
        (right, with_same), (wrong, with_others) = (_counted(op, m, d, 1) for m in (partners, others))
        weight = 1 / op.Max(with_same * with_others, 1.0)
        slack = op.Unsqueeze(d, [2]) - op.Unsqueeze(d, [1]) + float(self.margin)
        counted = op.Unsqueeze(right, [2]) * op.Unsqueeze(wrong, [1]) * op.Unsqueeze(weight, [2])
        loss = op.ReduceSum(op.Relu(slack) * counted, [1, 2], keepdims=0)
        active = op.Sign(op.Relu(slack)) * counted
        return loss, op.ReduceSum(active, [2], keepdims=0) - op.ReduceSum(active, [1], keepdims=0)


def _distances(op: Builder, x: Var) -> Var:
    """Euclidean distances of all rows, [N, N]; exactly 0 of equal rows.

    From products of the rows: what is less than their rounding counts as 0.
    """
    square = op.ReduceSum(x * x, [1], keepdims=1)
    sums = square + op.Transpose(square, perm=[1, 0])
    d2 = sums - 2 * op.MatMul(x, op.Transpose(x, perm=[1, 0]))
    certain = d2 > 8 * smallest(None, x.dtype) * sums
    certain.value.dtype = ir.DataType.BOOL
    return op.Sqrt(op.Where(certain, d2, op.const(0, like=x)))


def _least_norm(x: Var) -> float:
    """Norms below count as this one, as in PyTorch's ``normalize``."""
    return max(_EPSILON, float(np.finfo((x.dtype or ir.DataType.FLOAT).numpy()).tiny))


def _rows(x: Var) -> list[Any]:
    return [None] if x.shape is None else list(x.shape[:1])
