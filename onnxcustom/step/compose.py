"""Composition of training graphs: models go in, one model comes out, nothing is run.

A training step is forward, loss, penalty, backward and update in ONE graph; running it is the
business of :mod:`onnxcustom.step.program`.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.gradient.build import differentiate
from onnxcustom.gradient.interface import Engine
from onnxcustom.gradient.names import METADATA_KEY as GRADIENT_KEY
from onnxcustom.gradient.names import GradientNames
from onnxcustom.graph.analysis.traversal import all_names, all_nodes, sort_nodes
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.preparation.passes import BypassReshapePass, NameRowsPass
from onnxcustom.graph.preparation.unused import RemoveUnusedPass
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.graph.trainable.roles import Role, weight_roles
from onnxcustom.objective import BaseLearningPenalty
from onnxcustom.objective.base import LossTerms
from onnxcustom.optim import BaseLearningRate
from onnxcustom.step.passes.folding import fold_updates
from onnxcustom.step.passes.products import bias_products
from onnxcustom.step.passes.recompute import recompute
from onnxcustom.step.passes.scalars import NOTHING, plan_scalars
from onnxcustom.step.passes.sparse import CutTable, cut_tables, gather_only, reattach

from .layout import Layout
from .modes import Modes, ModeSettings, set_modes
from .step_graph import ComposedStep
from .targets import Target
from .updates import Scalars, Updates, compose_accumulation, compose_updates

__all__ = ["ComposedStep", "StepOptions", "compose_forward", "compose_scores", "compose_step"]

Phase = Literal["update", "accumulate", "apply"]
# Whether there is a weight for each row, or for each label where a row has several.
Weighted = bool | Literal["labels"]

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


# -- forward ----------------------------------------------------------------------------------


def compose_forward(model: ir.Model, values: Sequence[str], weights: Sequence[str]) -> ir.Model:
    """The graph that computes tensors of a prepared model from its inputs and weights.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model; consumed.
    values : sequence of str
        Tensors of the main graph.
    weights : sequence of str
        Initializers that become inputs, after the model's own.

    Returns
    -------
    onnx_ir.Model
    """
    trunk(model, values)
    graph = model.graph
    for name in weights:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    return model


def trunk(model: ir.Model, values: Sequence[str]) -> ir.Model:
    """Make `values` the outputs of a prepared model, in place, and drop what they don't need."""
    by_name = {v.name: v for v in (*model.graph.inputs, *model.graph.initializers.values())}
    for node in model.graph:
        by_name.update({v.name: v for v in node.outputs if v.name})
    missing = [v for v in values if v not in by_name]
    if missing:
        raise InvalidModelError(f"The model's main graph has no tensor {missing}.")
    model.graph.outputs[:] = [by_name[v] for v in values]
    kept = dict(model.graph.initializers)
    RemoveUnusedPass()(model)
    for value in kept.values():
        # A weight that these outputs don't need is still a weight: its gradient is zero.
        if value.name not in model.graph.initializers:
            model.graph.register_initializer(value)
    return model


def compose_scores(
    model: ir.Model, targets: Sequence[Target], weights: Sequence[str], *, weighted: Weighted = False
) -> ir.Model:
    """The graph that computes one score per row: the losses of all targets, weighted and added.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model; consumed.
    targets : sequence of Target
        Outputs and their losses.
    weights : sequence of str
        Initializers that become inputs.
    weighted : bool or 'labels'
        Whether the graph takes one weight per row, or one per label.

    Returns
    -------
    onnx_ir.Model
        Inputs are the model's, the weights, and what comes with every batch. The first output has shape
        (rows,), and its mean is what a step on these rows would have for its objective, without penalty; if
        there are several targets, the loss of each follows, without its factor.
    """
    model = compose_forward(model, list(dict.fromkeys(t.value for t in targets)), weights)
    graph = model.graph
    outputs = {v.name: v for v in graph.outputs}
    op = Builder(model.opset_imports[""], taken=all_names(graph))
    batch = _Batch(op, _scalar_dtype(graph.inputs), weighted)
    heads = [_row_scores(op, batch, target, op.wrap(outputs[target.value])) for target in targets]
    scaled = [_scaled(scores, target.weight) for scores, target in zip(heads, targets, strict=True)]
    total = functools.reduce(operator.add, scaled)
    graph.inputs.extend(v.value for v in batch.inputs)
    graph.outputs[:] = [op.Identity(v).value for v in [total, *(heads if len(heads) > 1 else [])]]
    _extend(model, op)
    return model


def _row_scores(op: Builder, batch: _Batch, target: Target, predicted: Var) -> Var:
    """One loss a row, whose mean is what the target has in the objective."""
    scores = batch.terms(target, predicted).scores
    count = batch.positions(target)
    if count is None:
        return scores
    return scores * (op.Cast(op.Size(scores), to=scores.dtype) / _cast(op, count, scores.dtype))


# -- step ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step graph does what it does.

    Parameters
    ----------
    weighted : bool or 'labels'
        Whether the graph takes one weight per row, or one per label.
    phase : {'update', 'accumulate', 'apply'}
        Whether the step updates the weights, only adds its gradients to those accumulated, or updates the
        weights by those accumulated, without a batch.
    axes : BatchAxes, optional
        Where the rows of the inputs are, by default what the model itself tells.
    modes : ModeSettings
        How BatchNormalization and Dropout behave.
    born : mapping of str to int
        Updates done when a weight joined, where it was not there from the beginning.
    check : bool
        Whether the graph says if the gradients are finite.
    fold : bool
        Whether the graph is simplified, and the learning rate goes into the seeds and updates into the
        products of matrices, where the optimizer allows it.
    lean : bool
        Whether small weights are updated together where the optimizer allows it, and who runs the graph does
        arithmetic of scalars beside it and feeds it what only depends on the number of rows: it is then not
        to be read without :attr:`ComposedStep.plan`.
    again : bool
        Whether the backward pass computes cheap activations again in place of keeping them.
    """

    weighted: Weighted = False
    phase: Phase = "update"
    axes: BatchAxes | None = None
    modes: ModeSettings = ModeSettings()  # noqa: RUF009 - frozen
    born: Mapping[str, int] = dataclasses.field(default_factory=dict)
    check: bool = False
    fold: bool = True
    lean: bool = False
    again: bool = False


def compose_step(
    model: ir.Model,
    engine: Engine,
    targets: Sequence[Target],
    weights: Sequence[str],
    optimizer: BaseLearningRate,
    penalties: Mapping[str, BaseLearningPenalty],
    options: StepOptions = StepOptions(),
) -> ComposedStep:
    """Join everything one training step does into one graph.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model (see :func:`onnxcustom.graph.prepare`); consumed.
    engine : Engine
        Gradient engine.
    targets : sequence of Target
        Outputs and their losses.
    weights : sequence of str
        Names of the weights to train.
    optimizer : BaseLearningRate
        Update rule.
    penalties : mapping of str to BaseLearningPenalty
        Penalty per weight; weights without one are not penalised.
    options : StepOptions
        How.

    Returns
    -------
    ComposedStep
        The graph: inputs are the model's inputs, the expected values, the row weights, the
        weights, the state, the running statistics and scalars; outputs are the loss, the new weights,
        the new state and the new statistics.
    """
    values = list(dict.fromkeys(t.value for t in targets))
    axes = options.axes or BatchAxes(model)
    if options.fold:
        if axes.carrier is not None:
            NameRowsPass(axes.carrier, axes.inputs[axes.carrier] or 0)(model)
        BypassReshapePass()(model)
    rewritten = set_modes(trunk(model, values), options.modes)
    roles = weight_roles(model, weights)
    made = {v.name: v for node in model.graph for v in node.outputs}
    model.graph.outputs.extend(made[new] for new in rewritten.statistics.values())
    tables: dict[str, CutTable] = {}
    if optimizer.by_rows and getattr(optimizer, "lazy_update", False) and optimizer.accumulate == 1:
        # A penalty has a gradient of its own in every row.
        tables = cut_tables(model, gather_only(model, [w for w in weights if w not in penalties]))
    dense = [w for w in weights if w not in tables]
    rows = [rows for table in tables.values() for _, rows in table.reads]
    gradient = differentiate(model, engine, dense, rows, values)
    prescaled = options.fold and optimizer.prescalable
    composer = _StepComposer(
        gradient, options.weighted, axes, rewritten, weights, tables, prescaled, options.lean
    )
    composer.objective(targets)
    composer.penalties(penalties)
    if options.phase == "apply":
        composer.without_batch()
    elif options.check:
        composer.look_for_nan()
    composer.updates(optimizer, roles, options.phase, options.born, options.lean)
    return _finished(composer, options)


def _finished(composer: _StepComposer, options: StepOptions) -> ComposedStep:
    """The graph of a composer, rewritten to run as it should."""
    composed, reads_batch = composer.finish(), options.phase != "apply"
    if options.again and reads_batch:
        recompute(composed.model, composer.seeds)
    if options.lean and reads_batch:
        composed.ones = bias_products(composed.model, composer.batch_rows, composer.dtype, composer.op.unique)
    if options.fold:
        fold_updates(composed.model)
    composed.plan = plan_scalars(composed.model, composed.loss, composer.sources(), hoist=options.lean)
    composed.describe()
    return composed


class _Batch:
    """Graph inputs that come with every batch: expected values and row weights."""

    def __init__(self, op: Builder, dtype: ir.DataType, weighted: Weighted) -> None:
        self.op = op
        self.dtype = dtype
        self.expected: dict[str, Var] = {}
        # Where the rows of these inputs are.
        self.axes: dict[str, int | None] = {}
        self.weighted = weighted
        self._counts: dict[str, Var] = {}
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
        return [*self.expected.values(), *([] if self.sample_weight is None else [self.sample_weight])]

    def positions(self, target: Target) -> Var | None:
        """Number of labels of a target, if it is divided by that; None for rows of the batch."""
        return self._counts.get(target.output)

    def terms(self, target: Target, predicted: Var) -> LossTerms:
        """Scores and gradient of a target's loss."""
        op = self.op
        layout = Layout(op, target, predicted)
        wanted = target.loss.target(layout.moved.dtype, layout.moved.rank, layout.moved.shape)
        kind = layout.kind(wanted)
        name = op.unique(f"{target.output}_expected")
        expected = op.input(name, wanted.dtype, layout.expected_shape(wanted, kind))
        self.expected[target.output], self.axes[name] = expected, layout.axis(kind)
        moved = layout.forward(expected, kind)
        several = kind == "labels" and moved.rank is not None and moved.rank > 1
        if several:
            moved = _one_label_each(op, moved, layout.moved)
            if target.counts_positions:
                self._counts[target.output] = op.Size(expected)
        if self.weighted == "labels" and self.sample_weight is None:
            self._weigh(expected.shape, layout.axis(kind))
        terms = target.loss.build(op, layout.moved, moved, self._weight_of(layout, kind))
        return dataclasses.replace(terms, gradient=layout.back(terms.gradient))

    def _weight_of(self, layout: Layout, kind: str) -> Var | None:
        """Weights as a loss takes them: of the rows, or of labels with the rows first."""
        if self.sample_weight is None:
            return None
        weight = _cast(self.op, self.sample_weight, layout.moved.dtype)
        if self.weighted == "labels":
            return layout.forward(weight, kind)
        return weight if layout.target.rows is not None else _mean(self.op, weight)


class _StepComposer:
    """Appends loss, penalty and update nodes to a gradient graph, in that order."""

    def __init__(
        self,
        model: ir.Model,
        weighted: Weighted,
        axes: BatchAxes,
        modes: Modes,
        weights: Sequence[str],
        tables: dict[str, CutTable],
        prescaled: bool,
        fed: bool,
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
        self.weights = {w: found[w] for w in weights}
        # Half precision would lose small gradients: they stay as they are.
        self.prescaled = prescaled and not _computes_in_half(self.graph)
        self.gathered = {rows for table in tables.values() for _, rows in table.reads}
        self.dtype = _scalar_dtype([v.value for v in self.weights.values()])
        self.batch = _Batch(self.op, self.dtype, weighted)
        self.axes = axes
        # Rows of a batch, as the first input that has some has them: a number, or the name of one.
        self.batch_rows = _dimension(self.values, axes) if fed else None
        self.rows: Var | None = None
        self.seeds: list[ir.Value] = []
        self.reads_batch = True
        self.learning_rate = self.op.input(self.op.unique("learning_rate"), self.dtype, [])
        self.step = self.op.input(self.op.unique("step"), self.dtype, [])
        self.hyper: dict[str, Var] = {}
        self.predicted: dict[str, str] = {}
        self.share: Var | None = None
        self.loss: Var | None = None
        self.heads: list[Var] = []
        self.finite: Var | None = None
        self.checked: list[str] = []
        self.updated = Updates()
        self.accumulated: dict[str, tuple[Var, Var | None]] = {}
        self.statistics = {name: self.op.wrap(self.values[name]) for name in modes.statistics}
        if modes.step is not None:
            drawn = self.values[modes.step]
            counted = self.op.Cast(self.step, to=ir.DataType.INT64)
            drawn.replace_all_uses_with(counted.value)
            self.graph.inputs.remove(drawn)

    def objective(self, targets: Sequence[Target]) -> None:
        """Sum over the targets of weight * sum(scores) / rows; its gradient seeds the backward part."""
        op = self.op
        self.predicted = {target.output: target.value for target in targets}
        seeds: dict[str, Var] = {}
        for target in targets:
            predicted = op.wrap(self.values[target.value])
            terms = self.batch.terms(target, predicted)
            rows = self._rows(predicted, target)
            loss = terms.loss if rows is None else terms.loss / rows
            self.heads.append(_cast(op, loss, self.dtype))
            self._add_loss(_scaled(loss, target.weight))
            seed = self._seed(terms.gradient, rows, target.weight)
            seeds[target.value] = seeds[target.value] + seed if target.value in seeds else seed
        for value, seed in seeds.items():
            slot = self.values[self.names.seeds[value]]
            slot.replace_all_uses_with(seed.value, replace_graph_outputs=True)
            self.graph.inputs.remove(slot)
            self.seeds.append(seed.value)

    def _rows(self, predicted: Var, target: Target) -> Var | None:
        """What a loss is divided by, as a scalar of its prediction's dtype; None for 1."""
        count = self.batch.positions(target)
        if count is not None:
            return self.op.Cast(count, to=predicted.dtype)
        if target.rows is None:
            return None
        size = None if predicted.shape is None else predicted.shape[target.rows]
        known = self.batch_rows is not None and size == self.batch_rows
        if not known or predicted.dtype != self.dtype:
            return self.op.Cast(self.op.Gather(self.op.Shape(predicted), target.rows), to=predicted.dtype)
        if self.rows is None:
            self.rows = self.op.input(self.op.unique("batch_rows"), self.dtype, [])
        return self.rows

    def _seed(self, gradient: Var, rows: Var | None, weight: float) -> Var:
        """The gradient of the mean, in one pass: all factors are scalars."""
        if self.prescaled:
            rate = _scaled(_cast(self.op, self.learning_rate, gradient.dtype), weight)
            return (rate if rows is None else rate / rows) * gradient
        if rows is None:
            return _scaled(gradient, weight)
        return gradient / rows if weight == 1 else gradient * (weight / rows)

    def penalties(self, penalties: Mapping[str, BaseLearningPenalty]) -> None:
        """Add each penalty to the loss and to the gradient of its weight."""
        for name, penalty in penalties.items():
            value, gradient = penalty.build(self.op, self.weights[name])
            self._add_loss(value)
            if self.prescaled:
                gradient = _cast(self.op, self.learning_rate, gradient.dtype) * gradient
            self.gradients[name] = self.gradients[name] + gradient

    def _add_loss(self, term: Var) -> None:
        term = _cast(self.op, term, self.dtype)
        self.loss = term if self.loss is None else self.loss + term
        self.loss.value.shape = ir.Shape([])

    def look_for_nan(self) -> None:
        """Hand out a number for each gradient: 0, or NaN where it holds NaN or infinity."""
        op = self.op
        by_rows = {w: rows.gradient for w, rows in self.sparse.items()}
        gradients = {**self.gradients, **by_rows}
        zeros = [op.Reshape(op.ReduceSum(g * 0.0, keepdims=0), [1]) for g in gradients.values()]
        zeros = [_cast(op, zero, self.dtype) for zero in zeros]
        self.finite = op.Concat(*zeros, axis=0) if len(zeros) > 1 else zeros[0]
        self.finite.value.shape = ir.Shape([len(zeros)])
        self.checked = list(gradients)

    def without_batch(self) -> None:
        """Leave out everything that reads the batch; names stay as they are with one."""
        self.loss = self.op.const(0.0, self.dtype)
        self.heads, self.predicted, self.statistics = [], {}, {}
        self.reads_batch, self.rows = False, None

    def updates(
        self,
        optimizer: BaseLearningRate,
        roles: Mapping[str, Role],
        phase: Phase,
        born: Mapping[str, int],
        packed: bool,
    ) -> None:
        """New weight and new state of every weight, or gradients accumulated for a later update."""
        op = self.op
        gradients: Mapping[str, Var] = self.gradients
        if optimizer.accumulate > 1:
            self.share = op.input(op.unique("share"), self.dtype, [])
            means = compose_accumulation(op, optimizer, gradients, self.share)
            gradients = {name: new for name, (_, new) in means.items()}
            handed_out = phase == "accumulate"
            self.accumulated = {n: (old, new if handed_out else None) for n, (old, new) in means.items()}
            if phase == "apply":
                gradients = {name: old for name, (old, _) in means.items()}
                self.share = None
        if phase != "accumulate":
            self.hyper = {name: op.input(op.unique(name), self.dtype, []) for name in optimizer.scheduled}
            scalars = Scalars(self.learning_rate, self.step, self.hyper)
            self.updated = compose_updates(
                op,
                optimizer,
                self.weights,
                gradients,
                self.sparse,
                roles,
                scalars,
                born,
                self.prescaled,
                packed,
            )

    def finish(self) -> ComposedStep:
        """Put everything into the graph, in topological order and without dead nodes."""
        assert self.loss is not None
        outputs = _Outputs(self.op)
        inputs = [n for n in self.names.inputs if n not in self.modes.inputs | self.gathered]
        inputs = inputs if self.reads_batch else []
        expected = {output: _name(v) for output, v in self.batch.expected.items()}
        weight = self.batch.sample_weight
        composed = ComposedStep(
            model=self.model,
            inputs=inputs,
            predicted=self.predicted,
            expected=expected if self.reads_batch else {},
            sample_weight=_name(weight) if weight is not None and self.reads_batch else None,
            learning_rate=_name(self.learning_rate),
            step=_name(self.step),
            hyper={name: _name(v) for name, v in self.hyper.items()},
            share=None if self.share is None else _name(self.share),
            loss=outputs.add("loss", self.loss),
            heads=self._heads(outputs),
            finite=None if self.finite is None else outputs.add("finite", self.finite),
            checked=self.checked,
            weights=self._new_weights(outputs),
            state=self._new_state(outputs),
            packs={
                _name(old): (outputs.add(f"{_name(old)}_new", new, old), names)
                for old, new, names in self.updated.packs
            },
            statistics={
                name: outputs.add(f"{name}_new", self.op.wrap(self.values[self.modes.statistics[name]]), old)
                for name, old in self.statistics.items()
            },
            accumulated={
                w: (_name(old), None if new is None else outputs.add(f"{w}_accumulated_new", new, old))
                for w, (old, new) in self.accumulated.items()
            },
            rows={
                w: outputs.add(f"{w}_indices", rows.indices)
                for w, rows in self.sparse.items()
                if w in self.updated.rows
            },
            ones={},
            plan=NOTHING,
            batch_axis={n: self.axes.inputs[n] for n in inputs}
            | (self.batch.axes if self.reads_batch else {}),
        )
        self._set_inputs(composed)
        self.graph.outputs[:] = outputs.values
        _extend(composed.model, self.op)
        del composed.model.metadata_props[GRADIENT_KEY]
        return composed

    def sources(self) -> dict[str, str]:
        """Scalar graph inputs and what they are: see :func:`~onnxcustom.step.passes.scalars.plan_scalars`."""
        scalars = {"step": self.step, "share": self.share, "rows": self.rows}
        hyper = {"learning_rate": self.learning_rate, **self.hyper}
        found = {_name(v): f"hyper[{key!r}]" for key, v in hyper.items()}
        return found | {_name(v): text for text, v in scalars.items() if v is not None}

    def _heads(self, outputs: _Outputs) -> str | None:
        """The losses of several outputs side by side."""
        if len(self.heads) < 2:
            return None
        return outputs.add("losses", self.op.Concat(*(self.op.Reshape(v, [1]) for v in self.heads), axis=0))

    def _new_weights(self, outputs: _Outputs) -> dict[str, str]:
        new = {w: outputs.add(f"{w}_new", v, self.weights[w]) for w, v in self.updated.weights.items()}
        new.update({w: outputs.add(f"{w}_new_rows", v) for w, v in self.updated.rows.items()})
        return {w: new[w] for w in self.weights if w in new}

    def _new_state(self, outputs: _Outputs) -> dict[str, dict[str, tuple[str, str | None]]]:
        named: dict[str, dict[str, tuple[str, str | None]]] = {}
        for w, states in self.updated.state.items():
            rows = w in self.updated.rows
            named[w] = {}
            for s, (old, new) in states.items():
                suffix = "_new_rows" if rows else "_new"
                made = None if new is None else outputs.add(f"{w}_{s}{suffix}", new, None if rows else old)
                named[w][s] = (_name(old), made)
        return {w: named[w] for w in self.weights if w in named}

    def _set_inputs(self, composed: ComposedStep) -> None:
        """List what the graph reads: batch, weights, state, statistics, scalars."""
        pairs = [pair for w in self.weights for pair in self.updated.state.get(w, {}).values()]
        states = [old for old, new in pairs if new is not None]
        states += [old for old, _, _ in self.updated.packs]
        means = [old for old, _ in self.accumulated.values()]
        kept = [*self.weights.values(), *states, *self.statistics.values(), *means]
        scalars = [self.learning_rate, self.step, *self.hyper.values()]
        batch = self.batch.inputs if self.reads_batch else []
        added = [*batch, *kept, *scalars, *(v for v in (self.share, self.rows) if v is not None)]
        own = [self.values[n] for n in composed.inputs]
        self.graph.inputs[:] = own + [v.value for v in added]


class _Outputs:
    """Graph outputs: each a tensor of its own, computed by a node of ours and named by us."""

    def __init__(self, op: Builder) -> None:
        self.op = op
        self.values: list[ir.Value] = []
        self._ours = {v for node in op.nodes for v in node.outputs}

    def add(self, name: str, var: Var, like: Var | None = None) -> str:
        value = var.value
        if value not in self._ours or value in self.values:
            value = self.op.Identity(var).value
        value.name = self.op.unique(name)
        if like is not None:
            value.shape = like.value.shape
        self.values.append(value)
        return value.name


# -- helpers ------------------------------------------------------------------------------------


def _name(var: Var) -> str:
    assert var.value.name is not None
    return var.value.name


def _scalar_dtype(values: Iterable[ir.Value]) -> ir.DataType:
    """Dtype of scalars and row weights: double if any tensor is, else float.

    Half precision would round the learning rate, so it is never used for them.
    """
    return ir.DataType.DOUBLE if any(v.dtype == ir.DataType.DOUBLE for v in values) else ir.DataType.FLOAT


def _computes_in_half(graph: ir.Graph) -> bool:
    """Whether a tensor of the graph, or of a graph inside, is in half precision."""
    nodes = all_nodes(graph)
    return any(v.dtype in _HALF for v in graph.inputs) or any(
        v.dtype in _HALF for node in nodes for v in node.outputs
    )


def _cast(op: Builder, var: Var, dtype: ir.DataType | None) -> Var:
    return var if dtype is None or var.dtype == dtype else op.Cast(var, to=dtype)


def _dimension(values: Mapping[str, ir.Value], axes: BatchAxes) -> int | str | None:
    """The dimension of the rows of a batch: its size, or its name."""
    value = None if axes.carrier is None else values[axes.carrier]
    if value is None or value.shape is None:
        return None
    axis = axes.inputs[str(value.name)]
    size = value.shape[axis or 0]
    return size if isinstance(size, int) else size.value


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


def _scaled(var: Var, factor: float) -> Var:
    return var if factor == 1.0 else var * factor


def _extend(model: ir.Model, op: Builder) -> None:
    """Put what a builder made into its graph."""
    graph = model.graph
    graph.extend(op.nodes)
    for initializer in op.initializers:
        graph.register_initializer(initializer)
    graph.opset_imports.update(op.domains)
    sort_nodes(graph)
    RemoveUnusedPass()(model)
