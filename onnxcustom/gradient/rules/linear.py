"""Matrix products: MatMul, Gemm; Einsum is in :mod:`.einsum`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import non_differentiable, rule

Gradients = list[Var | None]
INT64_MAX = np.iinfo(np.int64).max


@rule("MatMul")
def matmul(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = a @ b:  da = dy @ bᵀ,  db = aᵀ @ dy.  a (..., M, K), b (..., K, N)."""
    a, b = node.inputs
    if a.rank == b.rank == 2:
        return [op.Gemm(dy, b, transB=1), op.Gemm(a, dy, transA=1)]
    if b.rank == 2:
        # The rows of all batches are one matrix; a vector is one row.
        rows_a, rows_dy = op.Flatten(a, axis=-1), op.Flatten(dy, axis=-1)
        return [op.reshape_like(op.Gemm(rows_dy, b, transB=1), a), op.Gemm(rows_a, rows_dy, transA=1)]
    if b.rank == 1 and a.rank is not None:
        return [_outer(op, dy, b), _matrix_by_vector(op, a, dy)]
    if a.rank == 1 and b.rank is not None:
        da = op.MatMul(b, op.unsqueeze(dy, [-1]))  # (..., K, 1)
        da = op.reshape_like(op.reduce_sum(da, list(range(b.rank - 2))), a)
        return [da, op.unsqueeze(a, [1]) * op.unsqueeze(dy, [-2])]
    if a.rank is None or b.rank is None:
        return _matmul_of_any_rank(op, node, dy)
    return _batched(op, a, b, dy)


def _outer(op: GradientBuilder, dy: Var, b: Var) -> Var:
    """Gradient of a matrix by dy = gradient of its product with a vector: each row is dyₘ b."""
    return dy * b if dy.rank == 0 else op.unsqueeze(dy, [-1]) * b


def _matrix_by_vector(op: GradientBuilder, a: Var, dy: Var) -> Var:
    """Gradient of the vector: Σ over rows of dyₘ aₘ."""
    if a.rank == 1:
        return a * dy
    if a.rank == 2:
        return op.MatMul(dy, a)
    flat = op.Reshape(dy, op.const(np.array([-1], dtype=np.int64)))
    return op.MatMul(flat, op.Flatten(a, axis=-1))


def _batched(op: GradientBuilder, a: Var, b: Var, dy: Var) -> Gradients:
    """Both have at least two dimensions, batch dimensions are broadcast."""
    da = op.MatMul(dy, op.swap_last(b))
    db = op.MatMul(op.swap_last(a), dy)
    shape_a, shape_b = a.shape or (), b.shape or ()
    missing = len(shape_a) - len(shape_b)
    pairs = zip((1,) * -missing + shape_a[:-2], (1,) * missing + shape_b[:-2], strict=True)
    batch = [broadcast_size(sizes) for sizes in pairs]
    da.value.shape = ir.Shape([*batch, *shape_a[-2:]])
    db.value.shape = ir.Shape([*batch, *shape_b[-2:]])
    return [op.sum_to(da, a), op.sum_to(db, b)]


def broadcast_size(sizes: Iterable[int | str | None]) -> int | str | None:
    """The size that sizes are broadcast to, None if not certain."""
    wide = set(sizes) - {1}
    known = [s for s in wide if isinstance(s, int)]
    if known:
        return known[0]
    return 1 if not wide else wide.pop() if len(wide) == 1 else None


def _matmul_of_any_rank(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """Ranks known only when the graph runs: all become stacks of matrices, of rank 3."""
    a, b = node.inputs

    def number(n: int) -> Var:
        return op.const(np.array([n], dtype=np.int64))

    shape_a, shape_b = op.Shape(a), op.Shape(b)
    rank_a, rank_b = op.Shape(shape_a), op.Shape(shape_b)  # int64 (1,)
    # [1, K] or the shape it has; [K, 1] or the shape it has.
    shape_a = op.Slice(op.concat([number(1), shape_a]), op.Min(rank_a - 1, number(1)), number(INT64_MAX))
    shape_b = op.Slice(op.concat([shape_b, number(1)]), number(0), op.Max(rank_b, number(2)))
    batch = op.Slice(op.Shape(dy), number(0), op.Max(rank_a, rank_b, number(2)) - 2)
    stack = op.ReduceProd(op.concat([number(1), batch]), number(0))
    size_a, size_b = (op.Slice(s, number(-2), number(INT64_MAX)) for s in (shape_a, shape_b))
    size_y = op.concat([op.Slice(size_a, number(0), number(1)), op.Slice(size_b, number(1), number(2))])

    def stacked(x: Var, size: Var) -> Var:
        result = op.Reshape(x, op.concat([stack, size]), allowzero=1)
        result.value.shape = ir.Shape([None, None, None])
        return result

    def unstacked(dx: Var, like: Var, x: Var, size: Var) -> Var:
        return op.reshape_like(op.sum_to(op.Reshape(dx, op.concat([batch, size]), allowzero=1), like), x)

    a2, b2 = op.Reshape(a, shape_a, allowzero=1), op.Reshape(b, shape_b, allowzero=1)
    a3 = stacked(op.Expand(a2, op.concat([batch, size_a])), size_a)
    b3 = stacked(op.Expand(b2, op.concat([batch, size_b])), size_b)
    dy3 = stacked(dy, size_y)
    da = op.MatMul(dy3, op.swap_last(b3))
    db = op.MatMul(op.swap_last(a3), dy3)
    return [unstacked(da, a2, a, size_a), unstacked(db, b2, b, size_b)]


@rule("Gemm")
def gemm(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = α a b + β c, a and b transposed on demand:  da = α dy bᵀ,  db = α aᵀ dy,  dc = β Σ dy."""
    a, b = node.inputs[:2]
    alpha, ta, tb = node.attr("alpha"), node.attr("transA"), node.attr("transB")
    if ta:
        da = op.Gemm(b, dy, alpha=alpha, transA=tb, transB=1)
    else:
        da = op.Gemm(dy, b, alpha=alpha, transB=1 - tb)
    if tb:
        db = op.Gemm(dy, a, alpha=alpha, transA=1, transB=ta)
    else:
        db = op.Gemm(a, dy, alpha=alpha, transA=1 - ta)
    c = node.input(2)
    if c is None:
        return [da, db, None][: len(node.inputs)]
    beta = node.attr("beta")
    dc = op.sum_to(dy, c) if node.needs[2] else None
    return [da, db, dc if dc is None or beta == 1 else dc * beta]


non_differentiable("MatMulInteger", "QLinearMatMul", reason="it multiplies integers")
