"""Row-sparse gradients: a table that is only ever gathered from is updated in the rows of the batch.

The table is cut out of the model before it is differentiated: what is gathered becomes an input, so
that its gradient stays (indices, rows) and nothing of the table's size is computed. Afterwards the
gathers are put back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir

from onnxcustom.gradient.host import HERE, Host
from onnxcustom.gradient.known_sizes import fold_sizes
from onnxcustom.graph.analysis.traversal import all_names, unique_name
from onnxcustom.graph.building.builder import Builder, Var

__all__ = ["CutTable", "RowGradient", "cut_tables", "gather_only", "reattach"]


@dataclasses.dataclass
class CutTable:
    """A table taken out of a model.

    Attributes
    ----------
    name : str
        The weight.
    dtype, shape
        Its own.
    reads : list of (str or ndarray, str)
        For each gather that was removed: the tensor of indices, or its content if it is constant, and
        the input that stands for the result.
    host : Host
        Where the graph is going to run.
    """

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    reads: list[tuple[str | np.ndarray, str]] = dataclasses.field(default_factory=list)
    host: Host = HERE


@dataclasses.dataclass(frozen=True)
class RowGradient:
    """The gradient of a table with respect to the rows that a batch has read.

    Attributes
    ----------
    indices : Var
        Rows, each once, in order: int64, shape (k,).
    gradient : Var
        Their gradients, shape (k, ...).
    """

    indices: Var
    gradient: Var

    def take(self, table: Var) -> Var:
        """These rows of the table, or of a state laid out like it."""
        return self.gradient.op.Gather(table, self.indices, axis=0)


def gather_only(model: ir.Model, names: Iterable[str]) -> list[str]:
    """Weights that the main graph of a prepared model reads by rows, through Gather, and no other way."""
    found = []
    for name in names:
        value = model.graph.initializers.get(name)
        uses = list(value.uses()) if value is not None else []
        if uses and value not in model.graph.outputs and all(_takes_rows(model, *use) for use in uses):
            found.append(name)
    return found


def _takes_rows(model: ir.Model, node: ir.Node, position: int) -> bool:
    return (
        node.op_type == "Gather"
        and node.domain == ""
        and position == 0
        and node.attributes.get_int("axis", 0) == 0
        and node.graph is model.graph
        # The indices have to be known wherever the gather was.
        and node.inputs[1] is not None
    )


def cut_tables(
    model: ir.Model, names: Iterable[str], weights: Collection[str] = (), host: Host = HERE
) -> dict[str, CutTable]:
    """Take tables out of a prepared model, in place; their indices become outputs.

    `weights` are all that are trained: no number is computed from them beforehand.

    Returns
    -------
    dict of str to CutTable
        By weight.
    """
    graph, names = model.graph, list(names)
    if names:  # rows become inputs, whose shape is known now or never
        fold_sizes(model, Builder(model.opset_imports[""], taken=all_names(graph)), weights)
    taken = all_names(graph)
    tables = {}
    for name in names:
        value = graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        table = tables[name] = CutTable(name, tensor.dtype, tuple(tensor.shape.numpy()), host=host)
        for node, _ in list(value.uses()):
            gathered, indices = node.outputs[0], node.inputs[1]
            assert indices is not None
            rows = ir.Value(
                name=unique_name(f"{name}_rows", taken),
                type=ir.TensorType(table.dtype),
                shape=gathered.shape,
            )
            _hand_out(graph, gathered, rows)
            gathered.replace_all_uses_with(rows)
            graph.inputs.append(rows)
            table.reads.append((_kept(graph, indices), str(rows.name)))
            graph.remove(node, safe=True)
        graph.initializers.pop(name)
    return tables


def _hand_out(graph: ir.Graph, gathered: ir.Value, rows: ir.Value) -> None:
    """Outputs of the graph that are gathered rows keep their name."""
    if not gathered.is_graph_output():
        return
    own = ir.Value(name=gathered.name, type=gathered.type, shape=gathered.shape)
    graph.append(ir.node("Identity", [rows], outputs=[own], name=f"{gathered.name}_handed_out"))
    graph.outputs[:] = [own if value is gathered else value for value in graph.outputs]
    gathered.name = None


def _kept(graph: ir.Graph, indices: ir.Value) -> str | np.ndarray:
    """Indices that outlive the removal of what is not needed for the gradient."""
    if indices.const_value is not None:
        return indices.const_value.numpy()
    if not (indices.is_graph_input() or indices in graph.outputs):
        graph.outputs.append(indices)
    return str(indices.name)


def reattach(
    op: Builder, tables: dict[str, CutTable], values: dict[str, ir.Value], gradients: dict[str, Var]
) -> tuple[dict[str, Var], dict[str, RowGradient]]:
    """Put the gathers back into the gradient graph, and collect the gradients of each table.

    Parameters
    ----------
    op : Builder
        Builder of the graph.
    tables : dict of str to CutTable
        What was cut out.
    values : dict of str to onnx_ir.Value
        Tensors of the gradient graph by name.
    gradients : dict of str to Var
        Gradients of the inputs that stood for gathered rows.

    Returns
    -------
    tuple of (dict of str to Var, dict of str to RowGradient)
        The tables, which are inputs of the graph, and their gradients.
    """
    weights, found = {}, {}
    for name, table in tables.items():
        w = weights[name] = op.input(name, table.dtype, table.shape)
        parts = []
        for indices, rows in table.reads:
            if isinstance(indices, np.ndarray):
                index = op.const(indices, ir.DataType.INT64)
            else:
                index = op.Cast(op.wrap(values[indices]), to=ir.DataType.INT64)
            values[rows].replace_all_uses_with(op.Gather(w, index, axis=0).value, replace_graph_outputs=True)
            parts.append((index, gradients[rows]))
        found[name] = _row_gradient(op, table, parts)
    return weights, found


def _row_gradient(op: Builder, table: CutTable, parts: list[tuple[Var, Var]]) -> RowGradient:
    """Gradients of rows, those of a row that was read several times added."""
    row = table.shape[1:]
    indices = [op.Reshape(index, [-1]) for index, _ in parts]
    gradients = [op.Reshape(g, np.array([-1, int(np.prod(row))])) for _, g in parts]
    index = op.Concat(*indices, axis=0) if len(parts) > 1 else indices[0]
    flat = op.Concat(*gradients, axis=0) if len(parts) > 1 else gradients[0]
    # Rows counted from the end; the gather itself refuses those that there are not.
    index = op.Mod(index, max(1, table.shape[0]))
    rows, place = _each_once(op, table, index)
    for var in (rows, place):
        var.value.type = ir.TensorType(ir.DataType.INT64)
    half = table.dtype == ir.DataType.FLOAT16
    flat = op.Cast(flat, to=ir.DataType.FLOAT) if half else flat
    shape = op.Concat(op.Shape(rows), [flat_width(row)], axis=0)
    zeros = op.ConstantOfShape(shape, value=ir.tensor(np.zeros(1, flat.dtype.numpy())))
    # ScatterND would be faster, but onnxruntime 1.19 loses rows where an index repeats.
    spread = op.Expand(op.Unsqueeze(place, [1]), op.Shape(flat))
    added = op.ScatterElements(zeros, spread, flat, axis=0, reduction="add")
    added = op.Cast(added, to=table.dtype) if half else added
    result = op.Reshape(added, np.array([-1, *row])) if row else op.Reshape(added, [-1])
    result.value.shape = ir.Shape([None, *row])
    return RowGradient(rows, result)


def flat_width(row: tuple[int, ...]) -> int:
    """Numbers in a row."""
    return int(np.prod(row))


def _each_once(op: Builder, table: CutTable, index: Var) -> tuple[Var, Var]:
    """Rows that are read, in order, and for each index the place of its row among them."""
    if table.host.device == "cpu":
        rows, _, place, _ = op.Unique(index, sorted=1, outputs=4)
        return rows, place
    # On a GPU there is no such kernel: the rows are marked and counted.
    none = op.const(np.zeros(table.shape[0], np.int64))
    read = op.ScatterElements(none, index, op.Expand(op.const(np.array(1)), op.Shape(index)), axis=0)
    place = op.Gather(op.CumSum(read, op.const(np.array(0))) - 1, index, axis=0)
    return op.Reshape(op.NonZero(read), [-1]), place
