"""Pooling: sliding windows, global, and the inverse of MaxPool."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import rule
from .windows import Window, along_axes, identity, spatial_rank, static_spatial

_FLAT = np.array([-1])
_SPATIAL_FLAT = np.array([0, 0, -1])


# -- maxima ------------------------------------------------------------------------------------------


@rule("MaxPool")
def max_pool(op: GradientBuilder, node: NodeView, dy: Var | None, *_: Any) -> Var | None:
    """y = x at the largest of each window:  dx = Σ dy there.  Of equal ones the first, as the
    operator's output Indices says and as PyTorch does.
    """
    if dy is None:
        return None
    (x,) = node.inputs
    window = Window.of(node, x, spatial_rank(node, x))
    if node.attr("ceil_mode") and window.begin is not None:
        return _ceil_max_pool(op, node, dy, x, window)
    if node.attr("storage_order"):
        kept = {name: node.attr(name, None) for name in node.node.attributes if name != "storage_order"}
        _, indices = op.MaxPool(x, outputs=2, **kept)
        indices.value.dtype = ir.DataType.INT64
    else:
        indices = node.require_output(1, ir.DataType.INT64)
    if node.walk.host.device == "cpu" and _undone_by_unpool(x, window):
        return op.MaxUnpool(dy, indices, kernel_shape=window.kernel, strides=window.strides)
    flat = [op.Reshape(part, _FLAT) for part in (op.zeros_like(x), indices, dy)]
    return op.reshape_like(op.scatter_add(*flat), x)


def _ceil_max_pool(op: GradientBuilder, node: NodeView, dy: Var, x: Var, window: Window) -> Var:
    """The same with padding written out, and without windows that begin behind x and its padding in front.

    onnxruntime up to 1.19 makes such windows, and fills them with nothing once Indices are asked for.
    """
    n = window.n
    assert window.begin is not None
    assert window.end is not None
    rest = [e + s - 1 for e, s in zip(window.end, window.strides, strict=True)]
    lowest = float(np.finfo((x.dtype or ir.DataType.FLOAT).numpy()).min)
    padded = op.Pad(x, np.array([0, 0, *window.begin, 0, 0, *rest]), op.const(lowest, like=x))
    kept = {k: node.attr(k, None) for k in ("kernel_shape", "strides", "dilations") if node.attr(k, None)}
    _, indices = op.MaxPool(padded, outputs=2, **kept)
    indices.value.type, indices.value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([None] * (n + 2))
    behind = op.Shape(x, start=2) + np.array(
        [b + s - 1 for b, s in zip(window.begin, window.strides, strict=True)]
    )
    ends, axes = op.Div(behind, np.array(window.strides)), np.arange(2, n + 2)
    starts = np.zeros(n, dtype=np.int64)
    parts = [op.Slice(part, starts, ends, axes) for part in (indices, dy)]
    flat = [op.Reshape(part, _FLAT) for part in (op.zeros_like(padded), *parts)]
    whole = op.reshape_like(op.scatter_add(*flat), padded)
    begin = np.array(window.begin)
    return op.Slice(whole, begin, op.Shape(x, start=2) + begin, axes)


def _undone_by_unpool(x: Var, window: Window) -> bool:
    """Whether windows neither overlap nor leave a rest, so that MaxUnpool, several times as fast
    as ScatterElements, makes a tensor of x's shape; it has kernels for float32 on CPUs only.
    """
    sizes = static_spatial(x, window.n)
    if sizes is None or window.kernel is None or x.dtype != ir.DataType.FLOAT:
        return False
    plain = not any(window.begin or [1]) and not any(window.end or [1]) and set(window.dilations) == {1}
    geometry = zip(sizes, window.kernel, window.strides, strict=True)
    return plain and all(k <= s and i >= k and (i - k) % s == 0 for i, k, s in geometry)


@rule("MaxUnpool")
def max_unpool(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y[indices] = x in a tensor of zeros:  dx = dy[indices].  Indices count the elements of the
    output, also of one of an explicit shape, as onnxruntime does.
    """
    dx = op.Gather(op.Reshape(dy, _FLAT), node.inputs[1], axis=0)
    return [dx] + [None] * (len(node.inputs) - 1)


@rule("GlobalMaxPool")
def global_max_pool(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = max x:  dx = dy [x = y] / number of maxima: split evenly among equal ones."""
    (x,), y = node.inputs, node.outputs[0]
    flat = x
    if x.rank is None:
        flat, y, dy = (op.Reshape(v, _SPATIAL_FLAT) for v in (x, y, dy))
    largest = op.Cast(op.Equal(flat, y), to=x.dtype)
    axes = list(range(2, x.rank)) if x.rank is not None else [2]
    dx = largest * (dy / op.reduce_sum(largest, axes, keepdims=True))
    return dx if x.rank is not None else op.reshape_like(dx, x)


# -- means -------------------------------------------------------------------------------------------


@rule("AveragePool")
def average_pool(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = Σ x / count over each window, a product with one matrix per axis:  dx = the product with
    their transposes.  Windows side by side:  dx = dy / count, repeated.
    """
    (x,) = node.inputs
    window = Window.of(node, x, spatial_rank(node, x))
    if _side_by_side(node, x, window):
        return _repeated(op, dy / float(np.prod(window.strides)), x, window)
    return _transposed(op, node, dy, x, window)


def _side_by_side(node: NodeView, x: Var, window: Window) -> bool:
    if window.kernel != window.strides or window.begin is None or any(window.begin) or any(window.end or ()):
        return False
    if set(window.dilations) != {1}:
        return False
    sizes = static_spatial(x, window.n)
    whole = sizes is not None and all(i % s == 0 for i, s in zip(sizes, window.strides, strict=True))
    return whole or not node.attr("ceil_mode")


def _repeated(op: GradientBuilder, dy: Var, x: Var, window: Window) -> Var:
    """dy repeated by the strides, zeros for the rest of x behind the last window."""
    n = window.n
    scales = np.array([1, 1, *window.strides], dtype=np.float32)
    dx = op.Resize(
        dy, None, scales, mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"
    )
    sizes = static_spatial(x, n)
    if sizes is not None:
        rest = [i % s for i, s in zip(sizes, window.strides, strict=True)]
        return op.Pad(dx, np.array([0] * (n + 4) + rest)) if any(rest) else dx
    behind = op.Shape(x, start=2) - op.Shape(dx, start=2)
    return op.Pad(dx, op.Concat(np.zeros(n + 4, dtype=np.int64), behind, axis=0))


def _transposed(
    op: GradientBuilder, node: NodeView, dy: Var, x: Var, window: Window, **attributes: Any
) -> Var:
    """The transposed pooling of dy. Its matrix along an axis is the pooling of the identity."""
    n, matrices = window.n, {}
    for i in range(n):
        here = {name: value[i : i + 1] for name in ("kernel_shape", "strides", "dilations")
                if (value := node.attr(name, None))}  # fmt: skip
        if pads := node.attr("pads", None):
            here["pads"] = [pads[i], pads[n + i]]
        for name in ("auto_pad", "ceil_mode", "count_include_pad"):
            here[name] = node.attr(name, None)
        eye = op.unsqueeze(identity(op, x, i - n), [0])
        matrices[i + 2] = op.squeeze(op.call(node.op_type, eye, **here, **attributes), [0])
    return along_axes(op, dy, matrices, n + 2, x)


@rule("GlobalAveragePool")
def global_average_pool(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = mean x:  dx = dy / number of elements, everywhere."""
    (x,) = node.inputs
    count = op.Cast(op.Size(x) / op.Size(dy), to=x.dtype) if x.rank is None else op.count(x, range(2, x.rank))
    return op.expand_like(dy / count, x)


# -- norms -------------------------------------------------------------------------------------------


@rule("LpPool")
def lp_pool(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = (Σ |x|ᵖ)^(1/p) over each window:  dx = sign(x) |x|^(p-1) Σ dy y^(1-p) over the windows of x.
    0 for a window of zeros.
    """
    (x,) = node.inputs
    p = node.attr("p")
    window = Window.of(node, x, spatial_rank(node, x))
    shares = _transposed(op, node, _share(op, dy, node.outputs[0], p), x, window, p=1)
    return _slope(op, x, p) * shares


@rule("GlobalLpPool")
def global_lp_pool(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = (Σ |x|ᵖ)^(1/p):  dx = sign(x) |x|^(p-1) y^(1-p) dy.  0 where all x are 0."""
    p = node.attr("p")
    return _slope(op, node.inputs[0], p) * _share(op, dy, node.outputs[0], p)


def _slope(op: GradientBuilder, x: Var, p: int) -> Var:
    if p == 1:
        return op.Sign(x)
    return x if p == 2 else x * op.Pow(op.Abs(x), float(p - 2))


def _share(op: GradientBuilder, dy: Var, y: Var, p: int) -> Var:
    if p == 1:
        return dy
    norm = op.Where(op.Equal(y, 0.0), 1.0, y)
    return dy / (norm if p == 2 else op.Pow(norm, float(p - 1)))
