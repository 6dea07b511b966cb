"""Standard operators for gradient kernels of onnxruntime-training that do not exist on every type.

The builder writes nodes of its own whether or not there is a kernel for them.
Each function takes the builder, the node and its operands and returns all outputs, or None if the node
can stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from onnxcustom.graph.building.builder import Builder, Var

from .operators import attribute, static_shape

__all__ = ["KERNELS"]

Kernel = Callable[[Builder, ir.Node, Sequence[Var]], list[Var] | None]


def _double(node: ir.Node) -> bool:
    return any(v is not None and v.dtype == ir.DataType.DOUBLE for v in (*node.inputs, *node.outputs))


def relu_grad(op: Builder, node: ir.Node, operands: Sequence[Var]) -> list[Var] | None:
    """``dx = dy`` where ``y > 0``."""
    if not _double(node):
        return None
    dy, y = operands
    zero = op.const(0.0, like=dy)
    positive = op.Greater(y, zero)
    positive.value.dtype = ir.DataType.BOOL
    return [op.Where(positive, dy, zero)]


def softmax_grad(op: Builder, node: ir.Node, operands: Sequence[Var]) -> list[Var] | None:
    """``dx = y (dy - Σ dy y)``."""
    if not _double(node):
        return None
    dy, y = operands
    axis: Any = attribute(node, "axis", -1)
    return [y * (dy - op.ReduceSum(dy * y, op.const([axis], ir.DataType.INT64), keepdims=1))]


def log_softmax_grad(op: Builder, node: ir.Node, operands: Sequence[Var]) -> list[Var] | None:
    """``dx = dy - exp(y) Σ dy``."""
    if not _double(node):
        return None
    dy, y = operands
    axis: Any = attribute(node, "axis", -1)
    return [dy - op.Exp(y) * op.ReduceSum(dy, op.const([axis], ir.DataType.INT64), keepdims=1)]


def fused_matmul(op: Builder, node: ir.Node, operands: Sequence[Var]) -> list[Var] | None:
    """``y = α aᵀ bᵀ``, transposed as asked for."""
    if not _double(node):
        return None
    a, b = operands
    if attribute(node, "transA", 0):
        a = _transposed(op, a)
    if attribute(node, "transB", 0):
        b = _transposed(op, b)
    alpha: Any = attribute(node, "alpha", 1.0)
    product = op.MatMul(a, b)
    return [product if alpha == 1.0 else product * alpha]


def _transposed(op: Builder, x: Var) -> Var:
    # Not Transpose: it wants the rank, and onnxruntime 1.19.2 fuses it with MatMul into FusedMatMul again.
    return op.Einsum(x, equation="...ij->...ji")


def split_training(op: Builder, node: ir.Node, operands: Sequence[Var]) -> list[Var] | None:
    """The same as Split, which has more types."""
    if not _double(node):
        return None
    parts = op.Split(*operands, axis=attribute(node, "axis", 0), outputs=len(node.outputs))
    return list(parts) if isinstance(parts, tuple) else [parts]


def max_pool_grad(op: Builder, node: ir.Node, operands: Sequence[Var]) -> list[Var] | None:
    """The gradient goes to where each maximum came from.

    onnxruntime's kernel takes the size of its result from the declared shape, and reads beyond the end
    of memory if one dimension is symbolic.
    """
    dy, indices = operands
    pool = indices.value.producer()
    x = None if pool is None else pool.inputs[0]
    assert x is not None  # the indices of the builder come from the MaxPool node
    if not _double(node) and static_shape(x) is not None:
        return None
    shape = op.Shape(x)
    size = op.Reshape(op.ReduceProd(shape, keepdims=0), op.const([1]))
    zeros = op.ConstantOfShape(size, value=ir.tensor([0.0], dtype=dy.dtype))
    flat = op.const([-1])
    total = op.ScatterElements(
        zeros, op.Reshape(indices, flat), op.Reshape(dy, flat), axis=0, reduction="add"
    )
    return [op.Reshape(total, shape)]


KERNELS: dict[str, Kernel] = {
    "FusedMatMul": fused_matmul,
    "LogSoftmaxGrad_13": log_softmax_grad,
    "MaxPoolGrad": max_pool_grad,
    "ReluGrad": relu_grad,
    "SoftmaxGrad_13": softmax_grad,
    "SplitTraining": split_training,
}
"""By operator."""
