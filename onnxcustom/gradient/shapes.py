"""Shapes of what rules emit: known shapes, or at least ranks, spare the rules behind them nodes at run time.

Only what follows from a node's operands at hand; onnx infers the rest once the graph is whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["output_shape"]

Dim = int | str | None
Shape = list[Dim]


def output_shape(node: ir.Node) -> Shape | None:
    """Shape of a node's first output, None where not even its rank is certain."""
    rule = _SHAPES.get(node.op_type)
    return None if rule is None or node.domain else rule(node)


# -- operands and attributes -----------------------------------------------------------------------


def _of(node: ir.Node, i: int) -> Shape | None:
    value = node.inputs[i] if i < len(node.inputs) else None
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def _numbers(node: ir.Node, i: int) -> list[int] | None:
    """A constant operand."""
    value = node.inputs[i] if i < len(node.inputs) else None
    tensor = None if value is None or value.is_graph_input() else value.const_value
    return None if tensor is None else [int(n) for n in np.ravel(tensor.numpy())]


def _attr(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def _product(dims: Sequence[Dim]) -> Dim:
    if all(isinstance(d, int) for d in dims):
        return math.prod(d for d in dims if isinstance(d, int))
    rest = [d for d in dims if d != 1]
    return rest[0] if len(rest) == 1 else None


# -- operators -------------------------------------------------------------------------------------


def _same(node: ir.Node) -> Shape | None:
    return _of(node, 0)


def _same_for_all(node: ir.Node) -> Shape | None:
    first = _of(node, 0)
    if first is None or None in first:
        return None
    return first if all(_of(node, i) == first for i in range(len(node.inputs))) else None


def _rank_only(node: ir.Node) -> Shape | None:
    shape = _of(node, 0)
    return None if shape is None else [None] * len(shape)


def _gemm(node: ir.Node) -> Shape | None:
    a, b = _of(node, 0), _of(node, 1)
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return None
    return [a[1 if _attr(node, "transA", 0) else 0], b[0 if _attr(node, "transB", 0) else 1]]


def _matmul(node: ir.Node) -> Shape | None:
    a, b = _of(node, 0), _of(node, 1)
    if a is None or b is None or min(len(a), len(b)) < 2:
        return None
    if len(b) == 2 or (len(a) == len(b) and a[:-2] == b[:-2] and None not in a[:-2]):
        return [*a[:-1], b[-1]]
    return [*[None] * (max(len(a), len(b)) - 2), a[-2], b[-1]]


def _flatten(node: ir.Node) -> Shape | None:
    shape = _of(node, 0)
    if shape is None:
        return None
    axis = _attr(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return [_product(shape[:axis]), _product(shape[axis:])]


def _reshape(node: ir.Node) -> Shape | None:
    target, shape = _numbers(node, 1), _of(node, 0)
    if target is None:
        return _unknown(_of(node, 1))
    if _attr(node, "allowzero", 0):
        return [None if d == -1 else d for d in target]
    dims: Shape = [None if d == -1 else d for d in target]
    for i, d in enumerate(target):
        if d == 0:
            dims[i] = shape[i] if shape is not None and i < len(shape) else None
    if -1 in target and shape is not None and all(isinstance(d, int) for d in shape):
        known = math.prod(d for d in dims if isinstance(d, int))
        if known and all(isinstance(d, int) for i, d in enumerate(dims) if target[i] != -1):
            dims[target.index(-1)] = math.prod(d for d in shape if isinstance(d, int)) // known
    return dims


def _transpose(node: ir.Node) -> Shape | None:
    perm, shape = _attr(node, "perm", None), _of(node, 0)
    return None if perm is None or shape is None or len(perm) != len(shape) else [shape[p] for p in perm]


def _concat(node: ir.Node) -> Shape | None:
    parts = [_of(node, i) for i in range(len(node.inputs))]
    first = next((p for p in parts if p is not None), None)
    if first is None:
        return None
    axis, dims = _attr(node, "axis", 0) % len(first), list(first)
    sizes = [None if p is None else p[axis] for p in parts]
    dims[axis] = (
        sum(s for s in sizes if isinstance(s, int)) if all(isinstance(s, int) for s in sizes) else None
    )
    return dims


def _slice(node: ir.Node) -> Shape | None:
    shape, axes = _of(node, 0), _numbers(node, 3)
    if shape is None:
        return None
    if axes is None:
        return [None] * len(shape)
    starts, ends = _numbers(node, 1), _numbers(node, 2)
    steps = _numbers(node, 4) if len(node.inputs) > 4 else [1] * len(axes)
    for k, axis in enumerate(a % len(shape) for a in axes):
        size = shape[axis]
        known = isinstance(size, int) and starts is not None and ends is not None and steps is not None
        shape[axis] = None
        if known and starts is not None and ends is not None and steps is not None and steps[k] > 0:
            shape[axis] = len(range(*slice(starts[k], ends[k], steps[k]).indices(int(size or 0))))
    return shape


def _pad(node: ir.Node) -> Shape | None:
    shape, pads = _of(node, 0), _numbers(node, 1)
    if shape is None or pads is None or len(node.inputs) > 3 or len(pads) != 2 * len(shape):
        return None if shape is None else [None] * len(shape)
    sides = zip(shape, pads[: len(shape)], pads[len(shape) :], strict=True)
    return [d + a + b if isinstance(d, int) else d if a == b == 0 else None for d, a, b in sides]


def _conv(node: ir.Node) -> Shape | None:
    x, w = _of(node, 0), _of(node, 1)
    rank = x or w
    return None if rank is None else [x[0] if x else None, w[0] if w else None, *[None] * (len(rank) - 2)]


def _conv_transpose(node: ir.Node) -> Shape | None:
    x, w = _of(node, 0), _of(node, 1)
    rank = x or w
    if rank is None:
        return None
    group, inner = _attr(node, "group", 1), w[1] if w else None
    outer = inner * group if isinstance(inner, int) else None
    return [x[0] if x else None, outer, *[None] * (len(rank) - 2)]


def _pool(node: ir.Node) -> Shape | None:
    x = _of(node, 0)
    return None if x is None else [*x[:2], *[None] * (len(x) - 2)]


def _reduce(node: ir.Node) -> Shape | None:
    shape, axes, kept = _of(node, 0), _numbers(node, 1), _attr(node, "keepdims", 1)
    if len(node.inputs) < 2 or node.inputs[1] is None:
        if _attr(node, "noop_with_empty_axes", 0):
            return shape
        return [] if not kept else None if shape is None else [1] * len(shape)
    if shape is None or axes is None or not axes:
        return None
    gone = {a % len(shape) for a in axes}
    return [1 if i in gone else d for i, d in enumerate(shape) if kept or i not in gone]


def _gather(node: ir.Node) -> Shape | None:
    data, indices = _of(node, 0), _of(node, 1)
    if data is None or indices is None:
        return None
    axis = _attr(node, "axis", 0) % len(data)
    return [*data[:axis], *indices, *data[axis + 1 :]]


def _filled(node: ir.Node) -> Shape | None:
    """Of ConstantOfShape and Shape-like operands: the operand holds the sizes."""
    sizes = _numbers(node, 0)
    if sizes is not None:
        return list(sizes)
    return _unknown(_of(node, 0))


def _expand(node: ir.Node) -> Shape | None:
    x, target = _of(node, 0), _of(node, 1)
    if x is None or target is None or not isinstance(target[0], int):
        return None
    return [None] * max(len(x), target[0])


def _unknown(vector: Shape | None) -> Shape | None:
    """Unknown sizes, as many as a vector that holds them has elements."""
    return (
        [None] * vector[0] if vector is not None and len(vector) == 1 and isinstance(vector[0], int) else None
    )


def _shape(node: ir.Node) -> Shape | None:
    shape, start, end = _of(node, 0), _attr(node, "start", 0), _attr(node, "end", None)
    return [None if shape is None else len(range(*slice(start, end).indices(len(shape))))]


_SHAPES: dict[str, Callable[[ir.Node], Shape | None]] = {
    "AveragePool": _pool,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "CumSum": _same,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "HardSigmoid": _same,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "MaxUnpool": _pool,
    "Pad": _pad,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceProd": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Resize": _rank_only,
    "Round": _same,
    "ScatterElements": _same,
    "ScatterND": _same,
    "Shape": _shape,
    "Slice": _slice,
    "Sum": _same_for_all,
    "Transpose": _transpose,
    "Trilu": _same,
}
