"""Predictions and expected values as losses take them: rows on axis 0, classes on axis 1."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.objective.base import LossTarget

from .targets import Target

__all__ = ["Layout"]


class Layout:
    """Where rows and classes of a target are, and how to get them where its loss wants them.

    Parameters
    ----------
    op : Builder
        Where to emit.
    target : Target
        The target.
    predicted : Var
        The tensor that its loss is taken on.

    Attributes
    ----------
    moved : Var
        That tensor with the rows first and the classes second, unless the loss takes them where they are; a
        tensor without rows is one.
    """

    def __init__(self, op: Builder, target: Target, predicted: Var) -> None:
        self.op, self.target, self.predicted = op, target, predicted
        self.rank = predicted.rank
        self._own = target.loss.target(predicted.dtype, self.rank).kind == "own"
        self.moved = self._move(predicted, self._values())

    def _values(self) -> list[int]:
        """Axes of the prediction in the loss's order, the new axis of a tensor without rows left out."""
        rank, rows, classes = self.rank, self.target.rows, self.target.axis
        if rank is None:
            return []
        first = [] if rows is None else [rows]
        if classes < rank and classes != rows and not self._own:
            first.append(classes)
        return first + [a for a in range(rank) if a not in first]

    def _labels(self) -> list[int]:
        """The same of labels, which have no axis of classes."""
        axes = self.target.label_axes(self.rank or 0)
        return [axes.index(a) for a in self._values() if a != self.target.axis]

    def kind(self, wanted: LossTarget) -> str:
        """What expected values look like: 'values' as the prediction, 'labels' without classes, or 'own'."""
        rank = None if wanted.shape is None else len(wanted.shape)
        if self.rank is None or rank is None:
            return "own"
        moved = self.moved.rank or 0
        if wanted.kind == "own":
            return "own"
        if wanted.kind == "labels":
            return "labels" if rank == moved - 1 and self.target.axis < self.rank else "own"
        return "values" if rank == moved else "own"

    def expected_shape(self, wanted: LossTarget, kind: str) -> list[int | str | None] | None:
        """Dimensions of the expected values as the user has them."""
        if kind == "own" or wanted.shape is None:
            return wanted.shape
        order = self._values() if kind == "values" else self._labels()
        dims = wanted.shape if self.target.rows is not None else wanted.shape[1:]
        return [dims[order.index(i)] for i in range(len(order))]

    def axis(self, kind: str) -> int | None:
        """Axis of the rows in the expected values as the user has them."""
        rows = self.target.rows
        if rows is None:
            return None
        if kind == "own" or self.rank is None:
            return 0
        return self.target.label_axes(self.rank).index(rows) if kind == "labels" else rows

    def forward(self, var: Var, kind: str) -> Var:
        """Expected values, or weights of labels, with the rows first."""
        if kind == "own":
            return var
        return self._move(var, self._values() if kind == "values" else self._labels())

    def back(self, gradient: Var) -> Var:
        """The gradient of :attr:`moved` as that of the prediction."""
        order = self._values()
        if self.target.rows is None and self.rank is not None:
            gradient = _shaped(self.op.Squeeze(gradient, [0]), (gradient.shape or [])[1:])
        return _transposed(self.op, gradient, [order.index(a) for a in range(len(order))])

    def _move(self, var: Var, order: Sequence[int]) -> Var:
        moved = _transposed(self.op, var, order)
        if self.target.rows is not None or self.rank is None:
            return moved
        return _shaped(self.op.Unsqueeze(moved, [0]), [1, *(moved.shape or [])])


def _transposed(op: Builder, var: Var, order: Sequence[int]) -> Var:
    if list(order) == sorted(order):
        return var
    made = op.Transpose(var, perm=list(order))
    return _shaped(made, None if var.shape is None else [var.shape[a] for a in order])


def _shaped(var: Var, shape: Sequence | None) -> Var:
    var.value.shape = None if shape is None else ir.Shape(shape)
    return var
