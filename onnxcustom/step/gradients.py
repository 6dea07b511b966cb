"""The first part of a step graph: from a batch to the loss and the gradients of the weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from onnxcustom.gradient.names import GradientNames
from onnxcustom.graph.analysis.traversal import all_names
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.objective import BaseLearningPenalty
from onnxcustom.step.passes.sparse import CutTable, reattach
from onnxcustom.tuning.changes import Term

from .batch import Batch, Weighted, cast, scaled
from .forward import scalar_dtype
from .modes import Modes
from .plan import Plan
from .targets import Target

__all__ = ["Gradients"]


class Gradients:
    """Puts objective and seeds into a gradient graph, and knows what of it an update reads.

    Attributes
    ----------
    weights, gradients : dict of str to Var
        Every weight, and the gradient of those that are updated as a whole.
    sparse : dict of str to RowGradient
        Gradients of those that are updated by rows.
    learning_rate, step : Var
        Scalar inputs.
    loss : Var
        The objective.
    """

    def __init__(
        self,
        model: ir.Model,
        weighted: Weighted,
        axes: BatchAxes,
        modes: Modes,
        plan: Plan,
        tables: dict[str, CutTable],
        fed: Collection[str],
    ) -> None:
        self.model = model
        self.modes = modes
        self.graph: ir.Graph = model.graph
        self.names = GradientNames.of(model)
        self.op = Builder(model.opset_imports[""], taken=all_names(self.graph))
        self.values = {str(v.name): v for v in (*self.graph.inputs, *self.graph.outputs)}
        gradients = {n: self.op.wrap(self.values[g]) for n, g in self.names.gradients.items()}
        self.gradients = {w: gradients[w] for w in self.names.weights}
        cut, self.sparse = reattach(self.op, tables, self.values, gradients)
        found = {**{w: self.op.wrap(self.values[w]) for w in self.names.weights}, **cut}
        self.weights = {w: found[w] for w in plan.weights}
        self.prescaled = plan.prescaled
        self.gathered = {rows for table in tables.values() for _, rows in table.reads}
        self.dtype = scalar_dtype([v.value for v in self.weights.values()])
        self.batch = Batch(self.op, self.dtype, weighted, fed, self.values)
        self.axes = axes
        # Rows of a batch, as the first input that has some has them: a number, or the name of one.
        self.batch_rows = _dimension(self.values, axes) if plan.outside else None
        self.rows: Var | None = None
        self.seeds: list[ir.Value] = []
        self.reads_batch = True
        self.learning_rate = self.op.input(self.op.unique("learning_rate"), self.dtype, [])
        self.step = self.op.input(self.op.unique("step"), self.dtype, [])
        self.predicted: dict[str, str] = {}
        self.loss: Var | None = None
        self.heads: list[Var] = []
        self.finite: Var | None = None
        self.checked: list[str] = []
        self.statistics = {name: self.op.wrap(self.values[name]) for name in modes.statistics}
        if modes.step is not None:
            drawn = self.values[modes.step]
            counted = self.op.Cast(self.step, to=ir.DataType.INT64)
            drawn.replace_all_uses_with(counted.value)
            self.graph.inputs.remove(drawn)

    def objective(self, targets: Sequence[Target], terms: Sequence[Term] = ()) -> None:
        """Sum over targets and terms of weight * sum(scores) / rows; its gradient seeds the backward part."""
        op = self.op
        self.predicted = {target.output: target.value for target in targets}
        seeds: dict[str, Var] = {}
        for target in targets:
            predicted = op.wrap(self.values[target.value])
            made = self.batch.terms(target, predicted)
            rows = self._rows(predicted, target)
            loss = made.loss if rows is None else made.loss / rows
            self.heads.append(cast(op, loss, self.dtype))
            self._add_loss(scaled(loss, target.weight))
            seed = self._seed(made.gradient, rows, target.weight)
            seeds[target.value] = seeds[target.value] + seed if target.value in seeds else seed
        for term in terms:
            seeds[term.value] = self._term(term)
        for value, seed in seeds.items():
            slot = self.values[self.names.seeds[value]]
            slot.replace_all_uses_with(seed.value, replace_graph_outputs=True)
            self.graph.inputs.remove(slot)
            self.seeds.append(seed.value)

    def _term(self, term: Term) -> Var:
        """Add the mean of a tensor of the model to the loss; its gradient."""
        computed = self.op.wrap(self.values[term.value])
        weight = self.batch.weight_of(computed)
        rows = self._size(computed, 0)
        total = self.op.ReduceSum(computed if weight is None else computed * weight, keepdims=0)
        self._add_loss(scaled(total / rows, term.weight))
        if weight is None:
            weight = self.op.Expand(self.op.const(1.0, computed.dtype), self.op.Shape(computed))
        return self._seed(weight, rows, term.weight)

    def _rows(self, predicted: Var, target: Target) -> Var | None:
        """What a loss is divided by, as a scalar of its prediction's dtype; None for 1."""
        count = self.batch.count(target)
        if count is not None:
            return cast(self.op, count, predicted.dtype)
        return None if target.rows is None else self._size(predicted, target.rows)

    def _size(self, predicted: Var, axis: int) -> Var:
        """Size of a tensor along the axis of its rows, a scalar of its dtype."""
        size = None if predicted.shape is None else predicted.shape[axis]
        known = self.batch_rows is not None and size == self.batch_rows
        if not known or predicted.dtype != self.dtype:
            return self.op.Cast(self.op.Gather(self.op.Shape(predicted), axis), to=predicted.dtype)
        if self.rows is None:
            self.rows = self.op.input(self.op.unique("batch_rows"), self.dtype, [])
        return self.rows

    def _seed(self, gradient: Var, rows: Var | None, weight: float) -> Var:
        """The gradient of the mean, in one pass: all factors are scalars."""
        if self.prescaled:
            rate = scaled(cast(self.op, self.learning_rate, gradient.dtype), weight)
            return (rate if rows is None else rate / rows) * gradient
        if rows is None:
            return scaled(gradient, weight)
        return gradient / rows if weight == 1 else gradient * (weight / rows)

    def add_penalties(self, penalties: Mapping[str, BaseLearningPenalty]) -> dict[str, Var]:
        """Add each penalty to the loss; the gradients of them, by weight, are for what updates to add."""
        gradients = {}
        for name, penalty in penalties.items():
            value, gradient = penalty.build(self.op, self.weights[name])
            self._add_loss(value)
            if self.prescaled:
                gradient = cast(self.op, self.learning_rate, gradient.dtype) * gradient
            gradients[name] = gradient
        return gradients

    def _add_loss(self, term: Var) -> None:
        term = cast(self.op, term, self.dtype)
        self.loss = term if self.loss is None else self.loss + term
        self.loss.value.shape = ir.Shape([])

    def look_for_nan(self) -> None:
        """Hand out a number for each gradient: 0, or NaN where it holds NaN or infinity."""
        op = self.op
        by_rows = {w: rows.gradient for w, rows in self.sparse.items()}
        gradients = {**self.gradients, **by_rows}
        zeros = [op.Reshape(op.ReduceSum(g * 0.0, keepdims=0), [1]) for g in gradients.values()]
        zeros = [cast(op, zero, self.dtype) for zero in zeros]
        self.finite = op.Concat(*zeros, axis=0) if len(zeros) > 1 else zeros[0]
        self.finite.value.shape = ir.Shape([len(zeros)])
        self.checked = list(gradients)

    def without_batch(self) -> None:
        """Leave out everything that reads the batch; names stay as they are with one."""
        self.loss = self.op.const(0.0, self.dtype)
        self.heads, self.predicted, self.statistics = [], {}, {}
        self.reads_batch, self.rows, self.batch.counts = False, None, {}


def _dimension(values: Mapping[str, ir.Value], axes: BatchAxes) -> int | str | None:
    """The dimension of the rows of a batch: its size, or its name."""
    value = None if axes.carrier is None else values[axes.carrier]
    if value is None or value.shape is None:
        return None
    axis = axes.inputs[str(value.name)]
    size = value.shape[axis or 0]
    return size if isinstance(size, int) else size.value
