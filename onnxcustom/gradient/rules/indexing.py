"""Operators that pick elements by index, and those that put them back.

Gradients of picking add at the places picked, since an index may repeat; what is known to be picked
once (constant indices without repetition, Compress) is put back without adding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import LARGEST_CONSTANT, GradientBuilder
from ..node import NodeView
from ..registry import non_differentiable, refuse, rule

__all__ = ["put_along"]


# -- along one axis ----------------------------------------------------------------------------------


@rule("Gather")
def gather(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x[..., indices, ...]:  dx = Σ dy at the indices."""
    return put_along(op, node.inputs[0], node.inputs[1], node.constant(1), node.attr("axis"), dy)


def put_along(
    op: GradientBuilder, x: Var, indices: Var, constant: np.ndarray | None, axis: int, dy: Var
) -> Var:
    """Zeros of x's shape with dy added at `indices` along an axis: the gradient of Gather."""
    if constant is not None:
        dx = _put_constant(op, x, constant, axis, dy)
        if dx is not None:
            return dx
    if x.rank is None or indices.rank is None:
        places = op.Gather(op.positions(x), indices, axis=axis)
        return op.add_at(x, places, dy)
    axis %= x.rank
    if axis == 0:
        return _put_rows(op, x, indices, dy)
    if indices.rank != 1:
        sizes = op.sizes(x)
        count = indices.static_shape
        middle = op.Reshape(op.Size(indices), [1]) if count is None else int(np.prod(count))
        dy = op.reshape_parts(dy, [*sizes[:axis], middle, *sizes[axis + 1 :]])
    aligned = op.Reshape(indices, np.array([-1] + [1] * (x.rank - axis - 1)))
    return op.scatter_add(op.zeros_like(x), op.Expand(aligned, op.shape(dy)), dy, axis)


def _put_rows(op: GradientBuilder, x: Var, indices: Var, dy: Var) -> Var:
    """Along the first axis: x and dy are seen as matrices of rows (the gradient of an embedding)."""
    zeros = op.zeros_like(x)
    if x.rank == 1:
        return op.scatter_add(zeros, op.Reshape(indices, [-1]), op.Reshape(dy, [-1]))
    if indices.rank != 1 or x.rank != 2:
        dy = op.Flatten(dy, axis=indices.rank)
    if x.rank != 2:
        zeros = op.Flatten(zeros, axis=1)
    rows = op.Expand(op.Reshape(indices, [-1, 1]), op.shape(dy))
    return op.reshape_like(op.scatter_add(zeros, rows, dy), x)


def _put_constant(op: GradientBuilder, x: Var, indices: np.ndarray, axis: int, dy: Var) -> Var | None:
    """Constant indices without repetition: padding or a Gather the other way; None if there is no such."""
    if indices.ndim > 1 or indices.size == 0:
        return None
    flat = indices.reshape(-1)
    size = op.size(x, axis)
    if isinstance(size, int):
        flat = flat % size
    elif flat.min() < 0 <= flat.max():
        return None
    if indices.ndim == 0:
        dy = op.unsqueeze(dy, [axis])
    if np.array_equal(flat, np.arange(flat[0], flat[0] + flat.size)):
        first, end = int(flat[0]), int(flat[-1]) + 1
        if first < 0:
            return op.pad(dy, [size + first], [-end], [axis])
        return op.pad(dy, [first], [size - end], [axis])
    if not isinstance(size, int) or size > LARGEST_CONSTANT or len(set(flat.tolist())) < flat.size:
        return None
    # Elements of x that were not picked take the zero behind the last element of dy.
    source = np.full(size, flat.size, dtype=np.int64)
    source[flat] = np.arange(flat.size)
    padded = op.pad(dy, [0], [int(flat.size < size)], [axis])
    return op.Gather(padded, source, axis=axis)


@rule("Compress")
def compress(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x where the condition holds, along an axis or of all elements:  dx = dy put back."""
    x, condition = node.inputs
    axis, constant = node.attr("axis"), node.constant(1)
    picked = None if constant is None else np.flatnonzero(constant)
    where = op.Transpose(op.NonZero(condition))  # (picked, 1); each once
    if axis is None:
        flat = op.ScatterND(op.flat_zeros(x), where, dy)
        return op.reshape_like(flat, x)
    if axis == 0 and (picked is None or picked.size == 0):
        return op.ScatterND(op.zeros_like(x), where, dy)
    return put_along(op, x, _vector(op.Reshape(where, [-1])), picked, axis, dy)


def _vector(x: Var) -> Var:
    x.value.shape = ir.Shape([None])
    return x


@rule("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y = x[..., indices]:  dx = Σ dy at the indices.  x and dy are seen as matrices."""
    x, indices = node.inputs
    constant = node.constant(1)
    if x.rank is not None and x.rank > 1:
        flat = None if constant is None else constant.reshape(-1)
        return [put_along(op, x, _vector(op.Reshape(indices, [-1])), flat, -1, dy), None]
    rows = op.reshape(op.zeros_like(x), op.Concat([-1], op.dim(x, -1), axis=0))
    dy = op.reshape(dy, op.Concat([-1], op.Reshape(op.Size(indices), [1]), axis=0))
    picked = op.Expand(op.Reshape(indices, [1, -1]), op.shape(dy))
    return [op.reshape_like(op.scatter_add(rows, picked, dy, axis=1), x), None]


@rule("OneHot")
def one_hot(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y = off or on:  doff = Σ dy where y is off,  don = Σ dy where it is on."""
    indices, depth, values = node.inputs
    int64 = ir.DataType.INT64
    hot = op.OneHot(
        op.Cast(indices, to=int64),
        op.Cast(depth, to=int64),
        op.const([0.0, 1.0], ir.DataType.FLOAT),
        axis=node.attr("axis"),
    )
    on = dy * op.Cast(hot, to=values.dtype)
    sums = [op.Reshape(op.reduce_sum(part, None), [1]) for part in (dy - on, on)]
    return [None, None, op.Concat(*sums, axis=0)]


# -- element by element ------------------------------------------------------------------------------


@rule("GatherElements")
def gather_elements(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x at indices along an axis:  dx = Σ dy at the indices."""
    x, indices = node.inputs
    return op.scatter_add(op.zeros_like(x), indices, dy, node.attr("axis"))


@rule("GatherND")
def gather_nd(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x at index tuples:  dx = Σ dy at the places the same GatherND takes from all places."""
    x, indices = node.inputs
    batch = node.attr("batch_dims")
    if batch == 0 and _distinct(node.constant(1)):
        return op.ScatterND(op.zeros_like(x), indices, dy)
    return op.add_at(x, op.GatherND(op.positions(x), indices, batch_dims=batch or None), dy)


def _distinct(indices: np.ndarray | None) -> bool:
    """Whether constant index tuples are all different; signs may hide that two are the same."""
    if indices is None or (indices.min(initial=0) < 0 < indices.max(initial=0)):
        return False
    tuples = indices.reshape(-1, indices.shape[-1])
    return len(np.unique(tuples, axis=0)) == len(tuples)


# -- Scatter -----------------------------------------------------------------------------------------


@rule("ScatterElements")
def scatter_elements(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y = data with updates at indices along an axis; see :func:`_scatter`."""
    data, indices, updates = node.inputs
    axis = node.attr("axis")

    def take(t: Var) -> Var:
        return op.GatherElements(t, indices, axis=axis)

    def put(t: Var, u: Var, reduction: str) -> Var:
        if reduction == "add":
            return op.scatter_add(t, indices, u, axis)
        return op.ScatterElements(t, indices, u, axis=axis, reduction=reduction)

    return _scatter(op, data, updates, node.outputs[0], dy, node.attr("reduction") or "none", take, put)


@rule("ScatterND")
def scatter_nd(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y = data with updates at index tuples; see :func:`_scatter`."""
    data, indices, updates = node.inputs

    def take(t: Var) -> Var:
        return op.GatherND(t, indices)

    def put(t: Var, u: Var, reduction: str) -> Var:
        if reduction == "none":
            return op.ScatterND(t, indices, u)
        # Element by element: onnxruntime's ScatterND reduces repeated rows from several threads at once.
        flat = [op.Reshape(v, [-1]) for v in (t, take(op.positions(data)), u)]
        reduced = (
            op.scatter_add(*flat)
            if reduction == "add"
            else op.ScatterElements(*flat, axis=0, reduction=reduction)
        )
        return op.reshape_like(reduced, data)

    return _scatter(op, data, updates, node.outputs[0], dy, node.attr("reduction") or "none", take, put)


def _scatter(
    op: GradientBuilder,
    data: Var,
    updates: Var,
    y: Var,
    dy: Var,
    reduction: str,
    take: Callable[[Var], Var],
    put: Callable[[Var, Var, str], Var],
) -> list[Var | None]:
    """Gradients of all scatters, `take` and `put` being theirs.

    none: ddata = dy, 0 at the indices;  dupdates = dy taken at the indices (if one repeats, which
    ONNX forbids, each update gets it).
    add:  ddata = dy;  dupdates = dy taken.
    mul:  ddata = dy times the updates;  dupdates = dy times data and the other updates (its second
    derivative by an update that is exactly 0 is lost).
    max, min: dy goes to what equals y, evenly among ties, data included (as PyTorch).
    """
    if reduction == "none":
        return [put(dy, op.zeros_like(updates), "none"), None, take(dy)]
    if reduction == "add":
        return [dy, None, take(dy)]
    if reduction == "mul":
        return [put(dy, updates, "mul"), None, _scatter_mul_updates(op, data, updates, dy, take, put)]
    ours, theirs = (op.Cast(op.Equal(a, b), to=dy.dtype) for a, b in ((data, y), (updates, take(y))))
    share = dy / put(ours, theirs, "add")
    return [share * ours, None, take(share) * theirs]


def _scatter_mul_updates(
    op: GradientBuilder,
    data: Var,
    updates: Var,
    dy: Var,
    take: Callable[[Var], Var],
    put: Callable[[Var, Var, str], Var],
) -> Var:
    """dupdates = dy Π others: the product of all that are not 0 over one, if all others are not 0."""
    zero = op.Equal(updates, 0)
    safe = op.Where(zero, 1, updates)
    zeros = op.Cast(zero, to=updates.dtype)
    count = put(op.zeros_like(data), zeros, "add")
    others = take(dy * put(data, safe, "mul")) / safe
    return op.Where(op.Equal(take(count), zeros), others, 0)


@rule("Unique")
def unique(op: GradientBuilder, node: NodeView, dy: Var, *_: Var | None) -> Var:
    """y = x without repetitions:  dx = dy at the first of each, 0 at those that repeat it."""
    x, axis = node.inputs[0], node.attr("axis")
    first = node.require_output(1, ir.DataType.INT64)
    if axis is None:
        flat = op.ScatterND(op.flat_zeros(x), op.unsqueeze(first, [1]), dy)
        return op.reshape_like(flat, x)
    return put_along(op, x, _vector(first), None, axis, dy)


# -- no gradient -------------------------------------------------------------------------------------

refuse(
    "Scatter",
    reason="it is deprecated since opset 11; ScatterElements, which takes its place, has a gradient",
)
non_differentiable("NonZero", reason="its output is indices, which are steps of its input")
non_differentiable("NonMaxSuppression", reason="its output is the indices of boxes, which are steps")
non_differentiable("IsInf", "IsNaN", reason="its output is true or false")
