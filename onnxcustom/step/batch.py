"""What comes with every batch beside the model's inputs: expected values, weights of rows, losses of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.objective.base import LossTerms

from .layout import Layout
from .targets import Target

__all__ = ["Batch", "Weighted", "cast", "scaled"]

# Whether there is a weight for each row, or for each label where a row has several.
Weighted = bool | Literal["labels"]


class Batch:
    """Graph inputs that come with every batch: expected values and row weights.

    What the losses of outputs among `fed` are divided by comes with it, too: see :attr:`counts`.
    """

    def __init__(
        self,
        op: Builder,
        dtype: ir.DataType,
        weighted: Weighted,
        fed: Collection[str] = (),
        values: Mapping[str, ir.Value] = MappingProxyType({}),
    ) -> None:
        self.op = op
        self.dtype = dtype
        self.expected: dict[str, Var] = {}
        # What losses expect beside that, by its name.
        self.more: dict[str, Var] = {}
        # Where the rows of these inputs are.
        self.axes: dict[str, int | None] = {}
        self.weighted = weighted
        # Scalar graph inputs with the number of labels, or rows, that count, by output.
        self.counts: dict[str, Var] = {}
        self._fed = fed
        # Of the model's graph, its inputs among them.
        self._values = values
        self._counted: dict[str, Var] = {}
        # Taken either way: weighted and unweighted graphs of a model share the names of their buffers.
        self._weight_name = op.unique("sample_weight")
        self.sample_weight: Var | None = None
        if weighted is True:
            self._weigh(["rows"], 0)

    def _weigh(self, shape: Sequence | None, axis: int | None) -> None:
        self.sample_weight = self.op.input(self._weight_name, self.dtype, shape)
        self.axes[self._weight_name] = axis

    @property
    def inputs(self) -> list[Var]:
        """Graph inputs, in their order."""
        weights = [] if self.sample_weight is None else [self.sample_weight]
        return [*self.expected.values(), *self.more.values(), *weights]

    def count(self, target: Target) -> Var | None:
        """What a target is divided by, if that is not the rows of the batch."""
        return self._counted.get(target.output)

    def _count(self, target: Target, expected: Var) -> None:
        op, name = self.op, target.output
        if name in self._fed:
            self._counted[name] = self.counts[name] = op.input(op.unique(f"{name}_count"), self.dtype, [])
        elif target.counted:
            count = target.loss.emit_count(op, expected)
            if target.soft:
                count = op.Div(op.Size(expected), op.Gather(op.Shape(expected), target.axis))
            count = cast(op, count, self.dtype)
            self._counted[name] = op.Max(count, 1.0) if target.loss.ignores else count

    def terms(self, target: Target, predicted: Var) -> LossTerms:
        """Scores and gradient of a target's loss."""
        op = self.op
        layout = Layout(op, target, predicted)
        wanted = target.wanted(layout.moved)
        kind = layout.kind(wanted)
        name = op.unique(f"{target.output}_expected")
        expected = op.input(name, wanted.dtype, layout.expected_shape(wanted, kind))
        self.expected[target.output], self.axes[name] = expected, layout.axis(kind)
        moved = layout.forward(expected, kind)
        if kind == "labels" and moved.rank is not None and moved.rank > 1:
            moved = _one_label_each(op, moved, layout.moved)
        self._count(target, expected)
        if self.weighted == "labels" and self.sample_weight is None:
            self._weigh(expected.shape, layout.axis(kind))
        loss = target.loss
        if loss.reads_input is not None:
            loss, moved = loss.with_input(op, moved, op.wrap(self._values[loss.reads_input]))
        loss = loss.given(self._others(target))
        terms = loss.build(op, layout.moved, moved, self._weight_of(layout, kind))
        return dataclasses.replace(terms, gradient=layout.back(terms.gradient))

    def _others(self, target: Target) -> list[Var]:
        """Inputs for what a loss expects beside its first target, rows first."""
        made = []
        for name, wanted in zip(target.expects[1:], target.loss.more_targets(), strict=True):
            var = self.op.input(self.op.unique(f"{name}_expected"), wanted.dtype, wanted.shape)
            self.axes[str(var.value.name)] = None if target.rows is None else 0
            self.more[name] = var
            made.append(var)
        return made

    def weight_of(self, term: Var) -> Var | None:
        """Weights of the rows of a tensor of the model that is a part of the objective; of labels, none."""
        if self.sample_weight is None or self.weighted == "labels":
            return None
        weight = cast(self.op, self.sample_weight, term.dtype)
        alone = term.shape is not None and term.shape[0] == 1  # one number for the whole batch
        return _mean(self.op, weight) if alone else weight

    def _weight_of(self, layout: Layout, kind: str) -> Var | None:
        """Weights as a loss takes them: of the rows, or of labels with the rows first."""
        if self.sample_weight is None:
            return None
        weight = cast(self.op, self.sample_weight, layout.moved.dtype)
        if self.weighted == "labels":
            return layout.forward(weight, kind)
        return weight if layout.target.rows is not None else _mean(self.op, weight)


def _mean(op: Builder, weight: Var) -> Var:
    """The weight of an output that is one row for all rows of the batch, shape [1]."""
    total = op.ReduceSum(weight, [0], keepdims=1)
    made = total / op.Cast(op.Size(weight), to=weight.dtype)
    made.value.shape = ir.Shape([1])
    return made


def _one_label_each(op: Builder, labels: Var, predicted: Var) -> Var:
    """Labels for every token or pixel: picking scores by too few of them would go unnoticed."""
    if labels.shape is not None and all(isinstance(d, int) for d in labels.shape[1:]):
        return labels  # the step's own check of shapes does
    shape = op.Shape(predicted)
    wanted = op.Concat(op.Gather(shape, [0]), op.Slice(shape, [2], [np.iinfo(np.int64).max]), axis=0)
    made = op.Reshape(labels, wanted)
    made.value.shape = labels.value.shape
    return made


def cast(op: Builder, var: Var, dtype: ir.DataType | None) -> Var:
    """A tensor in a dtype."""
    return var if dtype is None or var.dtype == dtype else op.Cast(var, to=dtype)


def scaled(var: Var, factor: float) -> Var:
    """A tensor times a number."""
    return var if factor == 1.0 else var * factor
