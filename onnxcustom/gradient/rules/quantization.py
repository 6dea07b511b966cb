"""Quantization: straight-through gradients of QuantizeLinear and DequantizeLinear pairs.

The integers between the two carry no gradient; DequantizeLinear gives its own straight to what
QuantizeLinear read, as fake quantization does in training [1]_, and to the scales [2]_.

.. [1] Jacob et al., Quantization and Training of Neural Networks for Efficient
   Integer-Arithmetic-Only Inference, 2018, https://arxiv.org/abs/1712.05877
.. [2] Esser et al., Learned Step Size Quantization, 2020, https://arxiv.org/abs/1902.08153
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.integers import COMPUTES, FUSED, MICROSOFT, NCHWC, REMEDY
from onnxcustom.graph.building.builder import Var

from ..carried import quantizer
from ..emit import LARGEST_CONSTANT, GradientBuilder
from ..node import NodeView
from ..registry import non_differentiable, refuse, rule

__all__: list[str] = []

_BOUNDS = {
    "INT4": (-8, 7),
    "UINT4": (0, 15),
    "INT8": (-128, 127),
    "UINT8": (0, 255),
    "INT16": (-(2**15), 2**15 - 1),
    "UINT16": (0, 2**16 - 1),
    "FLOAT4E2M1": (-6, 6),
    "FLOAT8E4M3FN": (-448, 448),
    "FLOAT8E4M3FNUZ": (-240, 240),
    "FLOAT8E5M2": (-57344, 57344),
    "FLOAT8E5M2FNUZ": (-57344, 57344),
}


@rule("DequantizeLinear")
def dequantize_linear(
    op: GradientBuilder, node: NodeView, dy: Var
) -> tuple[list[Var | None], dict[ir.Value, Var]]:
    """y = (q - zero) scale:  dscale = Σ dy (q - zero).

    With q = round(x / s) + z, clipped to its range, from QuantizeLinear:  dx = dy scale / s inside the
    range and 0 outside;  ds = Σ -dx x / s. Of DynamicQuantizeLinear nothing is outside and s is a
    constant.
    """
    q, scale, zero = node.inputs[0], node.inputs[1], node.input(2)
    like = _Layout(q, node.attr("axis"), node.attr("block_size") or 0)
    rest: list[Var | None] = [None] * (len(node.inputs) - 1)
    if node.needs[1]:
        steps = _cast(op, q, dy)
        if zero is not None:
            steps = steps - _cast(op, _spread(op, zero, like), dy)
        rest[0] = _gather_back(op, dy * steps, scale, like)
    source = quantizer(node.node)
    given: dict[ir.Value, Var] = {}
    if source is not None:
        given = _through(op, node, source, _spread(op, scale, like), dy)
    return [None, *rest], given


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How scales lie along a tensor: one, one per index of an axis, or one per block of it."""

    x: Var
    axis: int
    block: int


def _through(
    op: GradientBuilder, node: NodeView, source: ir.Node, scale: Var, dy: Var
) -> dict[ir.Value, Var]:
    """Gradients of what the quantizing node read."""
    ours = NodeView(op, source, node.version, (True,) * len(source.inputs))
    x, s = ours.inputs[0], ours.input(1)
    if source.op_type == "DynamicQuantizeLinear":
        return {x.value: dy} if x.value in node.captured else {}
    assert s is not None
    like = _Layout(x, ours.attr("axis"), ours.attr("block_size") or 0)
    dx = op.Where(_inside(op, ours, like), dy, op.const(0, like=dy))
    if not _same(ours, node):
        dx = dx * (scale / _cast(op, _spread(op, s, like), scale))
    given = {x.value: _cast(op, dx, x)}
    if s.value in node.captured:
        along = dx * _cast(op, x / _cast(op, _spread(op, s, like), x), dx)
        given[s.value] = -_gather_back(op, along, s, like)
    return given


def _same(quantize: NodeView, dequantize: NodeView) -> bool:
    """Whether both certainly have the same scales."""
    one, other = quantize.inputs[1], dequantize.inputs[1]
    if one.value is other.value:
        return True
    ours, theirs = quantize.constant(1), dequantize.constant(1)
    return ours is not None and theirs is not None and np.array_equal(ours, theirs)


def _inside(op: GradientBuilder, node: NodeView, like: _Layout) -> Var:
    """Where x is within the range of the integers, as a tensor of booleans.

    Constant scales and zero points give bounds for x itself.
    """
    x, s, zero = node.inputs[0], node.inputs[1], node.input(2)
    low, high, half = _bounds(node)
    scale, offset = node.constant(1), np.zeros(()) if zero is None else node.constant(2)
    if scale is None or offset is None or like.block or (scale.ndim and scale.size > 1 and x.rank is None):
        steps = x / _cast(op, _spread(op, s, like), x)
        steps = op.Round(steps) if half else steps
        if zero is not None:
            steps = steps + _cast(op, _spread(op, zero, like), x)
        return op.Equal(op.Clip(steps, op.const(low, like=x), op.const(high, like=x)), steps)
    scale, offset = scale.astype(np.float64), offset.astype(np.float64)
    below, above = (low - half - offset) * scale, (high + half - offset) * scale
    if scale.size == 1:
        below, above = (op.const(b.reshape(()), like=x) for b in (below, above))
        return op.Equal(op.Clip(x, below, above), x)
    shape = [-1] + [1] * (x.rank - like.axis % x.rank - 1)
    below, above = (op.const(b.reshape(shape), like=x) for b in (below, above))
    return op.And(x >= below, x <= above)


def _bounds(node: NodeView) -> tuple[float, float, float]:
    """Lowest and highest value of the quantized type, and how far beyond them rounds to them."""
    zero, wanted = node.input(2), node.attr("output_dtype", 0)
    dtype = zero.dtype if zero is not None else node.outputs[0].dtype
    if zero is None and wanted:
        dtype = ir.DataType(wanted)
    name = "UINT8" if dtype is None else dtype.name
    low, high = _BOUNDS[name]
    return low, high, 0.0 if "FLOAT" in name else 0.5


def _cast(op: GradientBuilder, x: Var, like: Var) -> Var:
    return x if x.dtype is not None and x.dtype == like.dtype else op.Cast(x, to=like.dtype)


def _is_single(scale: Var) -> bool:
    """Whether there is certainly one scale for the whole tensor."""
    return scale.static_shape in ((), (1,))


def _spread(op: GradientBuilder, scale: Var, like: _Layout) -> Var:
    """Scales (or zero points) in a shape that broadcasts against the tensor."""
    if _is_single(scale):
        return scale
    if like.block:
        return op.Gather(scale, _blocks(op, like), axis=like.axis)
    return op.Reshape(scale, _aligned(op, like))


def _aligned(op: GradientBuilder, like: _Layout) -> Var:
    """The shape (-1, 1, ..., 1) with as many ones as dimensions follow the axis."""
    int64 = ir.DataType.INT64
    rank, axis = like.x.rank, like.axis
    if rank is not None or axis < 0:
        following = -axis - 1 if axis < 0 else max((rank or 0) - axis - 1, 0)
        return op.const(np.array([-1] + [1] * following, dtype=np.int64))
    following_ones = op.Max(op.Size(op.Shape(like.x)) - op.const(axis + 1, int64), op.const(0, int64))
    ones = op.Expand(op.const([1], int64), op.Reshape(following_ones, op.const([1], int64)))
    return op.Concat(op.const([-1], int64), ones, axis=0)


def _blocks(op: GradientBuilder, like: _Layout) -> Var:
    """Which block each index of the axis belongs to."""
    size = op.size(like.x, like.axis)
    if isinstance(size, int):
        if size <= LARGEST_CONSTANT:
            return op.const(np.arange(size, dtype=np.int64) // like.block)
        return op.Div(op.count_up(size), like.block)
    return op.Div(op.Range(0, op.squeeze(size, [0]), 1), like.block)


def _gather_back(op: GradientBuilder, gradient: Var, scale: Var, like: _Layout) -> Var:
    """The sum of a gradient over all that share a scale, in the shape and dtype of the scales."""
    gradient = _cast(op, gradient, scale)
    if _is_single(scale):
        return op.reshape_like(op.reduce_sum(gradient, None), scale)
    if like.block:
        zeros = op.zeros_like(scale)
        index = _blocks(op, like)
        if like.x.rank is None:
            places = op.Gather(op.positions(scale), index, axis=like.axis)
            return op.add_at(scale, places, gradient)
        ones = [1] * (like.x.rank - like.axis % like.x.rank - 1)
        column = op.Reshape(index, op.const(np.array([-1, *ones], dtype=np.int64)))
        return op.scatter_add(zeros, op.Expand(column, op.shape(gradient)), gradient, like.axis)
    spread = _spread(op, scale, like)
    return op.reshape_like(op.sum_to(gradient, spread), scale)


non_differentiable(
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    reason="its output is integers, which are steps of its input; only DequantizeLinear right behind it lets "
    f"a gradient through; {REMEDY}",
)
for _domain, _op_types in COMPUTES.items():
    non_differentiable(
        *_op_types - {"QuantizeLinear", "DynamicQuantizeLinear"},
        domain=_domain,
        reason=f"it computes with integers; {REMEDY}",
    )
refuse(*FUSED, domain=MICROSOFT, reason=f"it holds its weights as integers; {REMEDY}")
refuse(
    *("AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReorderInput"),
    *("ReorderOutput", "Upsample"),
    domain=NCHWC,
    reason="onnxruntime's optimizer has put its tensors into a layout of its own; "
    "onnxcustom.tuning.dequantize(model) undoes that",
)
