"""Folding updates into the products that gradients come from.

Each rewrite removes passes over memory the size of a weight: ``Gemm`` adds a third operand to what it
computes, so the gradient of a matrix needs no memory of its own where plain descent or momentum is all
that becomes of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnxcustom.gradient.simplify import become
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_names, unique_name

__all__ = ["fold_updates"]


def fold_updates(model: ir.Model, views: Collection[str] = ()) -> None:
    """Let products add what they are added to, or taken from, in place.

    ``x - alpha A B`` is plain descent, ``x + alpha A B`` momentum, ``alpha A B + beta (k C)`` the decay of
    a momentum.

    Parameters
    ----------
    model : onnx_ir.Model
        Step graph, sorted.
    views : collection of str
        Graph outputs that may as well come as a matrix: their memory is handed in, seen in whatever shape
        the graph says. The weight of a convolution is one, of which the product gives the matrix.
    """
    taken: set[str] = set()
    for node in list(model.graph):
        if is_op(node, "Sub", "Add") and node.outputs[0].name in views:
            _add_matrix(node, taken)
        if is_op(node, "Sub", "Add"):
            _fold_sum(node)
        if is_op(node, "Gemm"):
            _fold_factor(node)


def _add_matrix(total: ir.Node, taken: set[str]) -> None:
    """Add a product of matrices as it is, in place of the tensor that it is reshaped to."""
    graph, (x, tensor), new = total.graph, total.inputs, total.outputs[0]
    reshape = None if tensor is None or not _read_once(tensor) else tensor.producer()
    matrix = None if reshape is None or not is_op(reshape, "Reshape") else reshape.inputs[0]
    gemm = None if matrix is None or not _read_once(matrix) else matrix.producer()
    if graph is None or x is None or matrix is None or gemm is None or not is_op(gemm, "Gemm"):
        return
    if len(gemm.inputs) != 2 or x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return
    flat, whole = _static(matrix), _static(new)
    if flat is None or whole is None or x.shape != new.shape or math.prod(flat) != math.prod(whole):
        return
    taken.update(() if taken else all_names(graph))
    scale = x.producer() if _read_once(x) else None
    if scale is not None and is_op(scale, "Mul"):  # the factor of a momentum stays next to the matrix
        for i, operand in enumerate(scale.inputs):
            if operand is not None and operand.shape == new.shape:
                scale.replace_input_with(i, _reshaped(scale, operand, flat, taken))
        x.shape = ir.Shape(flat)
    else:
        total.replace_input_with(0, _reshaped(total, x, flat, taken))
    total.replace_input_with(1, matrix)
    assert reshape is not None
    graph.remove(reshape, safe=True)
    new.shape = ir.Shape(flat)
    readers = list(new.uses())
    if readers:
        tensor = _reshaped(total, new, whole, taken)
        for node, i in readers:
            node.replace_input_with(i, tensor)


def _static(value: ir.Value) -> list[int] | None:
    known = value.shape is not None and value.shape.is_static()
    return [int(d) for d in value.shape.numpy()] if known and value.shape is not None else None


def _reshaped(beside: ir.Node, value: ir.Value, sizes: list[int], taken: set[str]) -> ir.Value:
    """A value in another shape, before the node that reads it or behind the one that makes it."""
    graph = beside.graph
    assert graph is not None
    name = unique_name(f"{value.name}_reshaped", taken)
    made = ir.Value(name=name, type=value.type, shape=ir.Shape(sizes))
    shape = ir.Tensor(np.array(sizes, np.int64), name=unique_name(f"{name}_sizes", taken))
    target = ir.Value(name=shape.name, type=ir.TensorType(shape.dtype), const_value=shape)
    target.shape = ir.Shape([len(sizes)])
    graph.register_initializer(target)
    node = ir.node("Reshape", [value, target], outputs=[made], name=unique_name(f"{name}_node", taken))
    (graph.insert_after if value.producer() is beside else graph.insert_before)(beside, node)
    return made


def _fold_sum(total: ir.Node) -> None:
    """Make one Gemm of a product of two matrices and what it is added to, or taken from."""
    x, product = total.inputs
    gemm = None if product is None or not _read_once(product) else product.producer()
    if x is None or gemm is None or not is_op(gemm, "Gemm"):
        return
    operands = [v for v in gemm.inputs if v is not None]
    shape = total.outputs[0].shape
    if len(operands) != 2 or x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return
    # The other operand is a matrix of the result's shape: Gemm broadcasts in one direction only.
    if x.shape is None or len(x.shape) != 2 or not x.shape.is_static() or shape is None or shape != x.shape:
        return
    alpha, _, trans_a, trans_b = _attributes(gemm)
    sign = -1.0 if total.op_type == "Sub" else 1.0
    _fold(total, gemm, [*operands, x], (sign * alpha, 1.0, trans_a, trans_b))


def _fold_factor(gemm: ir.Node) -> None:
    """Let a product scale what it adds, if the factor is one number that stays."""
    scaled = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    mul = None if scaled is None or not _read_once(scaled) else scaled.producer()
    if mul is None or not is_op(mul, "Mul"):
        return
    (k, c), shape = mul.inputs, gemm.outputs[0].shape
    if k is None or c is None or k.is_graph_input() or c.shape is None or shape is None:
        return
    if k.const_value is None or k.const_value.size != 1:
        return
    factor = k.const_value.numpy().reshape(-1)[0]
    # A bias stays a vector where the product is a row.
    if list(c.shape) not in (list(shape), list(shape)[1:]):
        return
    # Attributes are in single precision, whatever the operands are.
    if factor == np.asarray(factor, np.float32):
        alpha, beta, trans_a, trans_b = _attributes(gemm)
        _fold(gemm, mul, [*gemm.inputs[:2], c], (alpha, beta * float(factor), trans_a, trans_b))


def _fold(
    node: ir.Node, before: ir.Node, inputs: list[ir.Value | None], attributes: tuple[float, float, int, int]
) -> None:
    """Make a Gemm of a node, and remove the one before it that goes into it."""
    become(node, "Gemm", inputs, dict(zip(("alpha", "beta", "transA", "transB"), attributes, strict=True)))
    assert before.graph is not None
    before.graph.remove(before, safe=True)


def _read_once(value: ir.Value) -> bool:
    """Whether one node is all that reads a value, and once: it may be both of its operands."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _attributes(node: ir.Node) -> tuple[float, float, int, int]:
    """The attributes of a Gemm, defaults included."""
    found = node.attributes
    return (
        found.get_float("alpha", 1.0),
        found.get_float("beta", 1.0),
        found.get_int("transA", 0),
        found.get_int("transB", 0),
    )
