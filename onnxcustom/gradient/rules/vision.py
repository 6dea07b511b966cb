"""Col2Im and RoiAlign."""

from __future__ import annotations

import itertools

import numpy as np

from onnxcustom.graph.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import refuse, rule
from .windows import Window, refused

refuse(
    "DeformConv",
    reason="its gradient is not written yet; replace it by GridSample and Conv, which have one",
)


@rule("Col2Im")
def col2im(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y[o s + k d - p] += x[k, o] for every offset k of the block:  dx[k, o] = dy[o s + k d - p]."""
    block = node.constant(2)
    if block is None:
        raise refused(node, "its block_shape is known only when the graph runs; make it a constant")
    n = len(block)
    pads = node.attr("pads", None) or [0] * (2 * n)
    ones = [1] * n
    window = Window(
        tuple(int(k) for k in block),
        tuple(node.attr("strides", None) or ones),
        tuple(node.attr("dilations", None) or ones),
        tuple(pads[:n]),
        tuple(pads[n:]),
    )
    image = window.padded(op, dy)
    flat = np.array([0, 0, 1, -1])
    offsets = itertools.product(*(range(k) for k in window.kernel or ()))
    columns = op.concat([op.Reshape(window.piece(op, image, k), flat) for k in offsets], axis=2)
    return [op.reshape_like(columns, node.inputs[0]), None, None]


@rule("RoiAlign", since=16)
def roi_align(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y[r, c] = A_r x[b_r, c] B_rᵀ, bilinear samples averaged along each axis:
    dx[b, c] = Σ A_rᵀ dy[r, c] B_r over the regions r of image b.  The regions
    carry no gradient, as in PyTorch: they are refused.
    """
    x, rois, images = node.inputs
    if node.needs[1]:
        raise refused(node, "the regions' coordinates have no gradient; leave them out of what to learn")
    if node.attr("mode") != "avg":
        raise refused(node, "runtimes disagree on mode 'max'; use mode 'avg'")
    high, wide = node.attr("output_height"), node.attr("output_width")
    height, width = op.dim(x, 2), op.dim(x, 3)
    rows = _samples(op, node, rois, 1, high, height)  # [R, high, H]
    columns = _samples(op, node, rois, 0, wide, width)  # [R, wide, W]
    # One product over regions and rows: [N H, R high] by [R high, C W].
    across = op.MatMul(dy, op.unsqueeze(columns, [1]))  # [R, C, high, W]
    across = op.Transpose(across, perm=[0, 2, 1, 3])
    right = op.Reshape(across, op.Concat(np.array([-1]), op.dim(x, 1) * width, axis=0))
    numbers = op.Range(0, op.squeeze(op.dim(x, 0), [0]), 1)
    of_image = op.Equal(op.unsqueeze(numbers, [1, 2, 3]), op.unsqueeze(images, [0, 2, 3]))  # [N, R, 1, 1]
    left = op.Where(of_image, op.unsqueeze(rows, [0]), op.const(0, like=x))  # [N, R, high, H]
    left = op.Transpose(left, perm=[0, 3, 1, 2])
    left = op.Reshape(left, op.Concat(op.dim(x, 0) * height, np.array([-1]), axis=0))
    product = op.MatMul(left, right)
    shape = op.Concat(op.dim(x, 0), height, op.dim(x, 1), width, axis=0)
    return [op.Transpose(op.Reshape(product, shape), perm=[0, 2, 1, 3]), None, None]


def _samples(op: GradientBuilder, node: NodeView, rois: Var, axis: int, bins: int, length: Var) -> Var:
    """Share of each element along one axis in each bin of each region: [R, bins, length]."""
    scale, ratio = node.attr("spatial_scale"), node.attr("sampling_ratio")
    half = node.attr("coordinate_transformation_mode") == "half_pixel"
    start, end = (
        op.slice(rois, i, i + 1, [1]) * scale - (0.5 if half else 0.0) for i in (axis, axis + 2)
    )  # [R, 1]
    size = end - start if half else op.Max(end - start, 1.0)
    step = size / float(bins)
    first = op.unsqueeze(start + step * np.arange(bins, dtype=np.float64), [2])  # [R, bins, 1]
    step = op.unsqueeze(step, [2])
    if ratio:
        number: Var | float = float(ratio)
        sample = op.const(np.arange(ratio, dtype=np.float64), like=rois)
        counted = None
    else:  # as many as whole elements in a bin
        number = op.Ceil(step)
        most = op.ReduceMax(number, keepdims=0)
        sample = op.Range(op.const(0, like=rois), most, op.const(1, like=rois))
        counted = op.Less(sample, number)
    position = first + (sample + 0.5) * (step / number)  # [R, bins, samples]
    last = op.Cast(length, to=rois.dtype)
    inside = op.And(op.GreaterOrEqual(position, -1.0), op.LessOrEqual(position, last))
    if counted is not None:
        inside = op.And(inside, counted)
        number = op.Max(number, 1.0)
    position = op.unsqueeze(op.Max(op.Min(position, last - 1), 0.0), [3])
    elements = op.Cast(op.Range(0, op.squeeze(length, [0]), 1), to=rois.dtype)
    share = op.Max(1 - op.Abs(position - elements), 0.0)
    share = op.Where(op.unsqueeze(inside, [3]), share, op.const(0, like=rois))
    return op.ReduceSum(share, np.array([2]), keepdims=0) / number
