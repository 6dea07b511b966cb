"""Forward graphs of a model in training, whose weights are inputs: predictions, and one loss a row."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.analysis.traversal import all_names, sort_nodes
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.preparation.unused import RemoveUnusedPass
from onnxcustom.tuning.changes import Term

from .batch import Batch, Weighted, cast, scaled
from .targets import Target

__all__ = ["compose_forward", "compose_scores", "extend", "scalar_dtype", "trunk"]


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
    model: ir.Model,
    targets: Sequence[Target],
    weights: Sequence[str],
    *,
    weighted: Weighted = False,
    terms: Sequence[Term] = (),
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
    terms : sequence of Term
        Tensors of the model that are a part of the objective beside the losses.

    Returns
    -------
    onnx_ir.Model
        Inputs are the model's, the weights, for every output whose labels are counted how many there are for
        each row on average, and what comes with every batch. The first output has shape
        (rows,), and its mean is what a step on these rows would have for its objective, without penalty; if
        there are several targets, the loss of each follows, without its factor.
    """
    model = compose_forward(
        model, list(dict.fromkeys([t.value for t in targets] + [t.value for t in terms])), weights
    )
    graph = model.graph
    outputs = {v.name: v for v in graph.outputs}
    op = Builder(model.opset_imports[""], taken=all_names(graph))
    counted = [target.output for target in targets if target.counted]
    given = {str(v.name): v for v in graph.inputs}
    batch = Batch(op, scalar_dtype(graph.inputs), weighted, counted, given)
    heads = [_row_scores(op, batch, target, op.wrap(outputs[target.value])) for target in targets]
    weighed = [scaled(scores, target.weight) for scores, target in zip(heads, targets, strict=True)]
    for term in terms:
        computed = op.wrap(outputs[term.value])
        weight = batch.weight_of(computed)
        weighed.append(scaled(computed if weight is None else computed * weight, term.weight))
    total = functools.reduce(operator.add, weighed)
    graph.inputs.extend(v.value for v in (*batch.counts.values(), *batch.inputs))
    graph.outputs[:] = [op.Identity(v).value for v in [total, *(heads if len(heads) > 1 else [])]]
    extend(model, op)
    return model


def _row_scores(op: Builder, batch: Batch, target: Target, predicted: Var) -> Var:
    """One loss a row, whose mean is what the target has in the objective."""
    scores = batch.terms(target, predicted).scores
    count = batch.count(target)
    return scores if count is None else scores / cast(op, count, scores.dtype)


def scalar_dtype(values: Iterable[ir.Value]) -> ir.DataType:
    """Dtype of scalars and row weights: double if any tensor is, else float.

    Half precision would round the learning rate, so it is never used for them.
    """
    return ir.DataType.DOUBLE if any(v.dtype == ir.DataType.DOUBLE for v in values) else ir.DataType.FLOAT


def extend(model: ir.Model, op: Builder) -> None:
    """Put what a builder made into its graph."""
    graph = model.graph
    graph.extend(op.nodes)
    for initializer in op.initializers:
        graph.register_initializer(initializer)
    graph.opset_imports.update(op.domains)
    sort_nodes(graph)
    RemoveUnusedPass()(model)
