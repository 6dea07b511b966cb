"""Col2Im, and pooling over regions: RoiAlign and MaxRoiPool."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import rule
from .windows import Window, refused

_INT64 = ir.DataType.INT64


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


# -- regions ---------------------------------------------------------------------------------------


@rule("RoiAlign", since=16)
def roi_align(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y[r, c] = A_r x[b_r, c] B_rᵀ, bilinear samples averaged along each axis:
    dx[b, c] = Σ A_rᵀ dy[r, c] B_r over the regions r of image b.  The regions
    carry no gradient, as in PyTorch: they are refused.  Mode max takes the largest of the four
    products that a sample is the sum of, and of all samples, as ONNX's reference and onnxruntime
    do:  dx is dy times its share where that is.
    """
    x, rois, images = node.inputs
    if node.needs[1]:
        raise refused(node, "the regions' coordinates have no gradient; leave them out of what to learn")
    high, wide = node.attr("output_height"), node.attr("output_width")
    height, width = op.dim(x, 2), op.dim(x, 3)
    rows, columns = _samples(op, node, rois, 1, high, height), _samples(op, node, rois, 0, wide, width)
    if node.attr("mode") == "max":
        return [_give_to_largest(op, x, images, _corners(op, rows), _corners(op, columns), dy), None, None]
    left, right = _shares(op, rows, height), _shares(op, columns, width)  # [R, high, H], [R, wide, W]
    # One product over regions and rows: [N H, R high] by [R high, C W].
    across = op.MatMul(dy, op.unsqueeze(right, [1]))  # [R, C, high, W]
    across = op.Transpose(across, perm=[0, 2, 1, 3])
    across = op.Reshape(across, op.Concat(np.array([-1]), op.dim(x, 1) * width, axis=0))
    numbers = op.Range(0, op.squeeze(op.dim(x, 0), [0]), 1)
    of_image = op.Equal(op.unsqueeze(numbers, [1, 2, 3]), op.unsqueeze(images, [0, 2, 3]))  # [N, R, 1, 1]
    left = op.Where(of_image, op.unsqueeze(left, [0]), op.const(0, like=x))  # [N, R, high, H]
    left = op.Transpose(left, perm=[0, 3, 1, 2])
    left = op.Reshape(left, op.Concat(op.dim(x, 0) * height, np.array([-1]), axis=0))
    shape = op.Concat(op.dim(x, 0), height, op.dim(x, 1), width, axis=0)
    # A term of zeros more: without any region onnxruntime 1.19 leaves a product's memory as it was.
    left = op.Pad(left, np.array([0, 0, 0, 1]), op.const(0, like=x))
    across = op.Pad(across, np.array([0, 0, 1, 0]), op.const(0, like=x))
    product = op.Reshape(op.MatMul(left, across), shape)
    return [op.Transpose(product, perm=[0, 2, 1, 3]), None, None]


@dataclasses.dataclass
class _Samples:
    """Along one axis, where the bins of each region read: [R, bins, samples] each.

    Attributes
    ----------
    position : Var
        In elements, moved inside of the image.
    inside : Var
        Whether it was within one element of the image; a sample that was not counts as 0.
    counted : Var or None
        Whether the bin has that many samples; None where all have.
    number : Var or float
        How many samples a bin has.
    last : Var
        The last element.
    """

    position: Var
    inside: Var
    counted: Var | None
    number: Var | float
    last: Var


def _samples(op: GradientBuilder, node: NodeView, rois: Var, axis: int, bins: int, length: Var) -> _Samples:
    """Where the bins of each region read along one axis."""
    scale, ratio = node.attr("spatial_scale"), node.attr("sampling_ratio")
    half = node.attr("coordinate_transformation_mode") == "half_pixel"
    start, end = (
        op.slice(rois, i, i + 1, [1]) * scale - (0.5 if half else 0.0) for i in (axis, axis + 2)
    )  # [R, 1]
    size = end - start if half else op.Max(end - start, 1.0)
    step = size / float(bins)
    first = op.unsqueeze(start + step * np.arange(bins, dtype=np.float64), [2])  # [R, bins, 1]
    step = op.unsqueeze(step, [2])
    counted, number = None, float(ratio)
    if ratio:
        sample = op.const(np.arange(ratio, dtype=np.float64), like=rois)
    else:  # as many as whole elements in a bin
        number = op.Ceil(step)
        sample = op.Range(op.const(0, like=rois), _longest(op, number), op.const(1, like=rois))
        counted = op.Less(sample, number)
        number = op.Max(number, 1.0)
    position = first + (sample + 0.5) * (step / number)
    last = op.Cast(length, to=rois.dtype)
    inside = op.And(op.GreaterOrEqual(position, -1.0), op.LessOrEqual(position, last))
    return _Samples(op.Max(op.Min(position, last - 1), 0.0), inside, counted, number, last - 1)


def _longest(op: GradientBuilder, numbers: Var) -> Var:
    """The largest of all, 1 at least, and of none."""
    flat = op.Concat(op.Reshape(numbers, np.array([-1])), op.const([1], like=numbers), axis=0)
    return op.ReduceMax(flat, keepdims=0)


def _shares(op: GradientBuilder, samples: _Samples, length: Var) -> Var:
    """Share of each element along one axis in each bin of each region: [R, bins, length]."""
    position = op.unsqueeze(samples.position, [3])
    inside = samples.inside if samples.counted is None else op.And(samples.inside, samples.counted)
    elements = op.cast_like(op.Range(0, op.squeeze(length, [0]), 1), position)
    share = op.Max(1 - op.Abs(position - elements), 0.0)
    share = op.Where(op.unsqueeze(inside, [3]), share, op.const(0, like=position))
    return op.ReduceSum(share, np.array([2]), keepdims=0) / samples.number


# -- the largest of a bin --------------------------------------------------------------------------


@dataclasses.dataclass
class _Candidates:
    """Along one axis, what the largest of each bin is looked for among: [R, bins, candidates] each.

    Attributes
    ----------
    index : Var
        Which element, int64, within the image.
    share : Var
        What it is multiplied by, of x's dtype.
    valid : Var or None
        Whether it is one; None where all are.
    """

    index: Var
    share: Var
    valid: Var | None


def _corners(op: GradientBuilder, samples: _Samples) -> _Candidates:
    """The elements before and behind every sample."""
    before = op.Floor(samples.position)
    way = samples.position - before
    nothing = op.const(0, like=way)
    share = op.Concat(*(op.Where(samples.inside, s, nothing) for s in (1 - way, way)), axis=2)
    index = op.Cast(op.Concat(before, op.Min(before + 1, samples.last), axis=2), to=_INT64)
    valid = samples.counted
    if valid is not None:
        valid = op.Concat(valid, valid, axis=2)
    return _Candidates(index, share, valid)


def _give_to_largest(
    op: GradientBuilder, x: Var, images: Var, rows: _Candidates, columns: _Candidates, dy: Var
) -> Var:
    """dy [R, C, high, wide] times its share at the largest share · x among rows and columns of each bin.

    It reads every candidate once, so memory holds as many numbers as all regions have, by channel.
    """
    height, width, channels = op.dim(x, 2), op.dim(x, 3), op.dim(x, 1)
    every = height * width
    place = _paired(op, rows.index * width, columns.index, op.Add)  # [R, high, wide, candidates]
    share = _paired(op, rows.share, columns.share, op.Mul)
    pixels = op.Reshape(op.Transpose(x, perm=[0, 2, 3, 1]), op.Concat(np.array([-1]), channels, axis=0))
    values = op.Gather(pixels, op.unsqueeze(images, [1, 2, 3]) * every + place, axis=0)
    values = values * op.unsqueeze(share, [4])  # [R, high, wide, candidates, C]
    if rows.valid is not None and columns.valid is not None:
        valid = _paired(op, rows.valid, columns.valid, op.And)
        share = op.Where(valid, share, op.const(0, like=share))
        lowest = float(x.dtype.min) if x.dtype else -65504.0
        values = op.Where(op.unsqueeze(valid, [4]), values, op.const(lowest, like=x))
    winner = op.ArgMax(values, axis=3, keepdims=0)  # [R, high, wide, C]
    # Place and share of the winner: those of bin k lie from k · candidates on.
    flat = np.array([-1])
    bins = op.Shape(place, start=0, end=3)
    start = op.Range(0, op.ReduceProd(bins, keepdims=0), 1) * op.dim(place, 3)
    winner = winner + op.unsqueeze(op.Reshape(start, bins), [3])
    place, share = (op.Gather(op.Reshape(t, flat), winner, axis=0) for t in (place, share))
    channel = op.Range(0, op.squeeze(channels, [0]), 1)
    place = place + (op.unsqueeze(images, [1, 2, 3]) * channels + channel) * every
    return op.add_at(x, place, op.Transpose(dy, perm=[0, 2, 3, 1]) * share)


def _paired(op: GradientBuilder, rows: Var, columns: Var, join: Callable[..., Var]) -> Var:
    """[R, high, a] and [R, wide, b] joined, each with each: [R, high, wide, a · b]."""
    pairs = join(op.unsqueeze(rows, [2, 4]), op.unsqueeze(columns, [1, 3]))
    # Not by -1, which no size follows from where there is no region.
    each = op.Shape(pairs, start=3, end=4) * op.Shape(pairs, start=4)
    return op.Reshape(pairs, op.Concat(op.Shape(pairs, start=0, end=3), each, axis=0))


@rule("MaxRoiPool")
def max_roi_pool(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y[r, c] = the largest x of each bin of region r:  dx = Σ dy there.  Of equal ones the first.
    Corners round to elements, bins outwards, as onnxruntime does; an empty bin gives 0 and gets none.
    """
    x, rois = node.inputs
    if node.needs[1]:
        raise refused(node, "the regions' corners are rounded to elements; leave them out of what to learn")
    high, wide = node.attr("pooled_shape")
    rows = _cells(op, node, rois, 2, high, op.dim(x, 2))
    columns = _cells(op, node, rois, 1, wide, op.dim(x, 3))
    images = op.Cast(op.squeeze(op.slice(rois, 0, 1, [1]), [1]), to=_INT64)
    return [_give_to_largest(op, x, images, rows, columns, dy), None]


def _cells(op: GradientBuilder, node: NodeView, rois: Var, axis: int, bins: int, length: Var) -> _Candidates:
    """The elements of every bin along one axis."""
    start, end = (
        _rounded(op, op.slice(rois, i, i + 1, [1]) * node.attr("spatial_scale")) for i in (axis, axis + 2)
    )
    step = op.Max(end - start + 1, 1.0) / float(bins)  # [R, 1]
    first = op.Floor(step * np.arange(bins, dtype=np.float64)) + start
    behind = op.Ceil(step * np.arange(1, bins + 1, dtype=np.float64)) + start
    last = op.cast_like(length, rois)
    first, behind = (op.unsqueeze(op.Max(op.Min(t, last), 0.0), [2]) for t in (first, behind))  # [R, bins, 1]
    count = op.Range(op.const(0, like=rois), _longest(op, behind - first), op.const(1, like=rois))
    index = first + count  # [R, bins, cells]
    valid = op.Less(index, behind)
    index = op.Cast(op.Max(op.Min(index, last - 1), 0.0), to=_INT64)
    return _Candidates(index, op.full_like(op.cast_like(valid, rois), 1), valid)


def _rounded(op: GradientBuilder, x: Var) -> Var:
    """Halves away from zero, where ONNX's Round goes to even numbers."""
    return op.Sign(x) * op.Floor(op.Abs(x) + 0.5)
