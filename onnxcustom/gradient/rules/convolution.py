"""Conv and ConvTranspose: each is the other's gradient with respect to its input.

Both weight gradients are the same sum over images and positions, :func:`_weight_gradient`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import rule
from .windows import Window, shape_of_axes, spatial_rank, static_spatial

# Columns from which one product per row of the kernel is faster than copying all columns together
# first (measured: 64 channels 3x3 8.7 ms against 11.8 ms; one channel 5x5 0.35 ms against 0.24 ms).
_WIDE = 64
# Copies of the image from which a convolution over transposed operands takes over.
_MANY_COPIES = 64


@rule("Conv")
def conv(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y[o] = b + Σₖ w[k] x[o s + k d - p]:  dx = ConvTranspose(dy, w),
    dw[k] = Σₒ dy[o] x[o s + k d - p],  db = Σ dy.
    """
    x, w = node.inputs[:2]
    n = spatial_rank(node, x, w)
    window = Window.of(node, x, n, w)
    group = node.attr("group")
    dx = _conv_input(op, dy, w, x, window, group) if node.needs[0] else None
    dw = None
    if node.needs[1]:
        dw = _weight_gradient(op, window.padded(op, x, w), dy, w, window, group)
    return [dx, dw, *_bias(op, node, dy, n)]


@rule("ConvTranspose")
def conv_transpose(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y[o s + k d - p] += w[k] x[o]:  dx = Conv(dy, w),  dw[k] = Σₒ x[o] dy[o s + k d - p],  db = Σ dy."""
    x, w = node.inputs[:2]
    n = spatial_rank(node, x, w)
    window = dataclasses.replace(Window.of(node, x, n, w), begin=None, end=None)
    group = node.attr("group")
    seen, begin, end = _seen_by_conv(op, node, dy, x, w, window)
    pads = [*begin, *end]
    dx = dw = None
    if node.needs[0]:
        dx = op.Conv(
            seen, w, strides=window.strides, dilations=window.dilations, group=group,
            pads=pads if any(pads) else None,
        )  # fmt: skip
    if node.needs[1]:
        explicit = dataclasses.replace(window, begin=begin, end=end)
        dw = _weight_gradient(op, explicit.padded(op, seen), x, w, explicit, group)
    return [dx, dw, *_bias(op, node, dy, n)]


def _bias(op: GradientBuilder, node: NodeView, dy: Var, n: int) -> list[Var | None]:
    if len(node.inputs) < 3:
        return []
    return [op.reduce_sum(dy, [0, *range(2, n + 2)]) if node.needs[2] else None]


# -- input of Conv -----------------------------------------------------------------------------------


def _conv_input(op: GradientBuilder, dy: Var, w: Var, x: Var, window: Window, group: int) -> Var:
    """ConvTranspose of dy, as large as x: positions that no window reaches, at most stride - 1
    behind the last one, are made by output_padding; if x is not static, all of them and then cut.
    """
    strides, n = window.strides, window.n
    same = {"strides": strides, "dilations": window.dilations, "group": group}
    sizes = static_spatial(x, n)
    if window.begin is None or window.end is None:
        full = op.ConvTranspose(dy, w, output_padding=_positive(s - 1 for s in strides), **same)
        begin, _ = window.same_padding(op, x, w)
        return _cut(op, full, begin, begin + shape_of_axes(op, x, 2), n)
    pads = _positive([*window.begin, *window.end])
    if _depthwise(w, group) and window.kernel is not None and set(strides) == {1}:
        behind = [e - 1 - p for e, p in zip(window.extent * 2, (*window.begin, *window.end), strict=True)]
        if min(behind) >= 0:  # the same as a convolution by the kernel turned round, several times as fast
            last = list(range(2, n + 2))
            turned = op.slice(w, [-1] * n, [-(2**62)] * n, last, [-1] * n)
            return op.Conv(dy, turned, pads=_positive(behind), dilations=window.dilations, group=group)
    if sizes is not None and window.kernel is not None:
        covered = zip(sizes, window.begin, window.end, window.extent, strides, strict=True)
        rest = _positive((i + b + e - extent) % s for i, b, e, extent, s in covered)
        return op.ConvTranspose(dy, w, pads=pads, output_padding=rest, **same)
    rest = _positive(s - 1 for s in strides)
    full = op.ConvTranspose(dy, w, pads=pads, output_padding=rest, **same)
    return full if rest is None else _cut(op, full, [0] * n, shape_of_axes(op, x, 2), n)


def _depthwise(w: Var, group: int) -> bool:
    """Whether each channel is convolved on its own, into one."""
    return group > 1 and w.shape is not None and w.shape[:2] == (group, 1)


def _positive(values: Iterable[int]) -> list[int] | None:
    """The values for an attribute, None if all are 0."""
    values = list(values)
    return values if any(values) else None


def _cut(op: GradientBuilder, x: Var, start: Var | Sequence[int], end: Var | Sequence[int], n: int) -> Var:
    return op.slice(x, start, end, list(range(2, n + 2)))


# -- ConvTranspose ------------------------------------------------------------------------------------


def _seen_by_conv(
    op: GradientBuilder, node: NodeView, dy: Var, x: Var, w: Var, window: Window
) -> tuple[Var, tuple[int, ...], tuple[int, ...]]:
    """dy and the padding with which a Conv over it has exactly x's positions.

    output_padding took from the padding at the end, and what it took beyond that is zeros.
    """
    n = window.n
    extra = list(node.attr("output_padding", None) or [0] * n)
    shape = node.attr("output_shape", None)
    auto_pad = node.attr("auto_pad", "NOTSET")
    if shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        sizes = static_spatial(x, n)
        if window.kernel is None or (shape and sizes is None):
            return _seen_at_run_time(op, dy, x, w, window, auto_pad, extra, shape)
        # Without output_shape the output has stride times as many positions as the input: the
        # padding is the same for every size.
        per_axis = zip(window.extent, window.strides, extra, strict=True)
        if shape:
            assert sizes is not None
            sized = zip(per_axis, sizes, shape, strict=True)
            total = [s * (i - 1) + e + a - o for (e, s, a), i, o in sized]
        else:
            total = [e + a - s for e, s, a in per_axis]
        begin, end = _halves([max(t, 0) for t in total], auto_pad)
        if shape:
            # Positions beyond what the windows reach are zeros.
            extra = [a + max(-t, 0) for a, t in zip(extra, total, strict=True)]
    else:
        pads = [0] * (2 * n) if auto_pad == "VALID" else (node.attr("pads", None) or [0] * (2 * n))
        begin, end = tuple(pads[:n]), tuple(pads[n:])
    behind = [e - a for e, a in zip(end, extra, strict=True)]
    # Windows that x has no position for.
    if any(-b >= s for b, s in zip(behind, window.strides, strict=True)):
        dy = _cut(op, dy, [0] * n, [min(b, 0) or 2**62 for b in behind], n)
    return dy, tuple(begin), tuple(max(b, 0) for b in behind)


def _halves(total: Sequence[int], auto_pad: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def _seen_at_run_time(
    op: GradientBuilder,
    dy: Var,
    x: Var,
    w: Var,
    window: Window,
    auto_pad: str,
    extra: list[int],
    shape: list[int] | None,
) -> tuple[Var, tuple[int, ...], tuple[int, ...]]:
    """The same where the padding follows from sizes known when the graph runs only: dy padded and
    cut to (x - 1) s + extent positions.
    """
    n = window.n
    s = op.const(np.array(window.strides, dtype=np.int64))
    d = op.const(np.array(window.dilations, dtype=np.int64))
    if window.kernel is None:
        extent = (op.Shape(w, start=2) - 1) * d + 1
    else:
        extent = op.const(np.array(window.extent, dtype=np.int64))
    size = op.Shape(x, start=2)
    reached = (size - 1) * s + extent
    output = op.const(np.array(shape, dtype=np.int64)) if shape else size * s
    total = op.Max(reached + np.array(extra, dtype=np.int64) - output, op.const(0, like=size))
    half = total / 2
    begin = half if auto_pad == "SAME_UPPER" else total - half
    zeros = op.const(np.zeros(2, dtype=np.int64))
    wide = op.Pad(dy, op.Concat(zeros, begin, zeros, total - begin, axis=0))
    return _cut(op, wide, [0] * n, reached, n), (0,) * n, (0,) * n


# -- weights --------------------------------------------------------------------------------------------


def _weight_gradient(
    op: GradientBuilder, image: Var, response: Var, w: Var, window: Window, group: int
) -> Var:
    """dw[m, c, k] = Σ response[n, m, o] image[n, c, o s + k d]: one product over all positions of
    all images at once, of the response with the slices of the (padded) image each k meets.
    """
    copies = np.inf if window.kernel is None else np.prod(window.kernel) / np.prod(window.strides)
    outer, inner = (None, None) if w.shape is None else w.shape[:2]
    if copies > _MANY_COPIES or (group > 1 and not (isinstance(outer, int) and isinstance(inner, int))):
        return _weight_gradient_by_conv(op, image, response, w, window, group)
    assert window.kernel is not None
    if _depthwise(w, group):
        return _depthwise_weight_gradient(op, image, response, window)
    last = list(range(2, window.n + 2))
    columns = op.transpose(image, [1, 0, *last])  # [channels, images, ...]
    response = op.Flatten(op.transpose(response, [1, 0, *last]), axis=1)
    channel = 0
    if group > 1:  # [group, channels of it, images, ...]
        split = op.concat([op.const(np.array([group, inner])), shape_of_axes(op, columns, 1)])
        columns, channel = op.Reshape(columns, split), 1
        response = op.Reshape(response, np.array([group, int(outer or 0) // group, -1]))
    for i in reversed(range(1, window.n)):
        columns = op.concat(window.pieces(op, columns, i, channel + 2 + i), axis=channel)
    rows = window.pieces(op, columns, 0, channel + 2)
    if not (isinstance(inner, int) and inner * np.prod(window.kernel[1:]) >= _WIDE):
        rows = [op.concat(rows, axis=channel)]
    product = op.concat([_product(op, response, r, group) for r in rows], axis=channel + 1)
    # [outer, kernel · inner] -> [outer, inner, kernel]
    positions, front = int(np.prod(window.kernel)), outer if group > 1 else 0
    behind = inner if isinstance(inner, int) else -1
    if positions == 1:
        return op.Reshape(product, np.array([front, behind, *window.kernel]))
    product = op.Reshape(product, np.array([front, *window.kernel, behind]))
    return op.Transpose(product, perm=[0, window.n + 1, *range(1, window.n + 1)])


def _product(op: GradientBuilder, response: Var, columns: Var, group: int) -> Var:
    if group == 1:
        return op.Gemm(response, op.Flatten(columns, axis=1), transB=1)
    columns = op.Reshape(columns, np.array([0, 0, -1]))
    return op.MatMul(response, op.Transpose(columns, perm=[0, 2, 1]))


def _depthwise_weight_gradient(op: GradientBuilder, image: Var, response: Var, window: Window) -> Var:
    """The same where each channel meets one other only: sums of products, three times as fast as
    matrix products with a single row.
    """
    assert window.kernel is not None
    last = list(range(2, window.n + 2))
    sums = [
        op.reduce_sum(window.piece(op, image, offset) * response, [0, *last], keepdims=True)
        for offset in itertools.product(*(range(k) for k in window.kernel))
    ]
    return op.Reshape(op.transpose(op.concat(sums), [1, 0, *last]), np.array([0, 1, *window.kernel]))


def _weight_gradient_by_conv(
    op: GradientBuilder, image: Var, response: Var, w: Var, window: Window, group: int
) -> Var:
    """The same as a convolution of the image by the response, channels in place of images; strides
    and dilations change places. It does without the size of the kernel.
    """
    last = list(range(2, window.n + 2))
    if group > 1:  # [channels of a group, group · images, ...]
        parts = op.Reshape(
            image, op.concat([op.const(np.array([0, group, -1])), shape_of_axes(op, image, 2)])
        )
        parts = op.Transpose(parts, perm=[2, 1, 0, *(a + 1 for a in last)])
        front = op.const(np.array([0, -1]))
        image = op.Reshape(parts, op.concat([front, shape_of_axes(op, image, 2)]))
    else:
        image = op.transpose(image, [1, 0, *last])
    response = op.transpose(response, [1, 0, *last])
    found = op.Conv(image, response, strides=window.dilations, dilations=window.strides, group=group)
    found = op.transpose(found, [1, 0, *last])
    return _cut(op, found, [0] * window.n, shape_of_axes(op, w, 2), window.n)
