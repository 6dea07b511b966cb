"""Bias gradients as products of matrices: the sum over the rows of a batch is a row of ones times them.

The product adds the bias itself, so that sum and update are one node in place of two, and of two that cost
more: onnxruntime's sum over rows reads memory in an order that its products don't.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.preparation.unused import RemoveUnusedPass

__all__ = ["bias_products"]

# With fewer columns, a product of its own takes as long as the sum.
_FEWEST_COLUMNS = 32


def bias_products(
    model: ir.Model, rows: int | str | None, dtype: ir.DataType, unique: Callable[[str], str]
) -> dict[str, int]:
    """Write sums over the rows of the batch as products, in place.

    Parameters
    ----------
    model : onnx_ir.Model
        Step graph, sorted.
    rows : int, str or None
        First dimension of a batch. Other sums are left alone.
    dtype : onnx_ir.DataType
        Of the tensors that are summed.
    unique : callable
        Makes names.

    Returns
    -------
    dict of str to int
        New graph inputs, which are to be ones, and their rank: (rows,) or (1, rows). Outputs of the graph
        that were (n,) may be (1, n).
    """
    graph = model.graph
    if rows is None or dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return {}
    ones: dict[int, ir.Value] = {}

    def input_of(rank: int) -> ir.Value:
        if rank not in ones:
            shape = ir.Shape([rows] if rank == 1 else [1, rows])
            ones[rank] = ir.Value(name=unique("ones"), type=ir.TensorType(dtype), shape=shape)
        return ones[rank]

    for node in list(graph):
        if not _sums_rows(node, rows, dtype):
            continue
        total = node.outputs[0]
        update = _update(total)
        if update is not None:
            _as_gemm(graph, node, update, input_of(2))
        elif node.inputs[0] is not None and _columns(node.inputs[0]) >= _FEWEST_COLUMNS:
            row = len(total.shape or ())
            made = ir.node("MatMul", [input_of(row), node.inputs[0]], name=f"{node.name}_product")
            _replace(graph, node, made, total.shape)
    if ones:
        graph.inputs.extend(ones.values())
        RemoveUnusedPass()(model)
    return {str(value.name): rank for rank, value in ones.items()}


def _sums_rows(node: ir.Node, rows: int | str, dtype: ir.DataType) -> bool:
    """Whether a node adds the rows of a matrix that has as many as the batch."""
    if not is_op(node, "ReduceSum") or len(node.inputs) != 2:
        return False
    x, axes = node.inputs
    if x is None or axes is None or axes.const_value is None or axes.is_graph_input():
        return False
    if axes.const_value.numpy().tolist() not in ([0], [-2]):
        return False
    if x.dtype != dtype or x.shape is None or len(x.shape) != 2:
        return False
    columns, kept = _columns(x), node.attributes.get_int("keepdims", 1)
    shape = node.outputs[0].shape
    return _dim(x, 0) == rows and columns > 0 and shape == ([1, columns] if kept else [columns])


def _dim(value: ir.Value, axis: int) -> int | str | None:
    assert value.shape is not None
    size = value.shape[axis]
    return size if isinstance(size, int) else size.value


def _columns(value: ir.Value) -> int:
    """Columns of a matrix, 0 if unknown."""
    size = _dim(value, 1)
    return size if isinstance(size, int) else 0


def _update(total: ir.Value) -> ir.Node | None:
    """The addition or subtraction that is all that becomes of a sum, if its result may be (1, n)."""
    uses = list(total.uses())
    if len(uses) != 1 or total.is_graph_output():
        return None
    ((node, i),) = uses
    if not is_op(node, "Add", "Sub") or (node.op_type == "Sub" and i == 0):
        return None
    other = node.inputs[1 - i]
    if other is None or other is total or other.shape is None or other.shape != total.shape:
        return None
    return node if len(other.shape) == 2 or _may_be_row(node.outputs[0]) else None


def _may_be_row(value: ir.Value) -> bool:
    """Whether all that reads a vector works as well on a matrix of one row."""
    return all(
        user.op_type in ("Add", "Sub", "Mul") and user.graph is not None and _may_be_row(user.outputs[0])
        for user, _ in value.uses()
    )


def _as_gemm(graph: ir.Graph, node: ir.Node, update: ir.Node, ones: ir.Value) -> None:
    (i,) = (i for i, v in enumerate(update.inputs) if v is node.outputs[0])
    made = ir.node(
        "Gemm",
        [ones, node.inputs[0], update.inputs[1 - i]],
        attributes={"alpha": -1.0 if update.op_type == "Sub" else 1.0, "beta": 1.0},
        name=f"{update.name}_product",
    )
    shape = update.outputs[0].shape
    assert shape is not None
    widened = len(shape) == 1
    _replace(graph, update, made, ir.Shape([1, *shape]) if widened else shape)
    if widened:
        _widen(made.outputs[0])


def _widen(value: ir.Value) -> None:
    """Shapes of what is computed from a row."""
    for user, _ in value.uses():
        user.outputs[0].shape = ir.Shape(list(value.shape or ()))
        _widen(user.outputs[0])


def _replace(graph: ir.Graph, node: ir.Node, made: ir.Node, shape: ir.Shape | None) -> None:
    """Put a node of one output in the place of another."""
    old, new = node.outputs[0], made.outputs[0]
    new.type, new.shape, new.name = old.type, shape, old.name
    graph.insert_before(node, made)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
