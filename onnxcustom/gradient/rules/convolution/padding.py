"""ConvTranspose as a convolution reads it backwards: which padding its output was made with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcustom.graph.building.builder import Var

from ...emit import GradientBuilder
from ...node import NodeView
from ..windows import Window, cut, static_spatial

__all__ = ["seen_by_conv"]


def seen_by_conv(
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
        dy = cut(op, dy, [0] * n, [min(b, 0) or 2**62 for b in behind], n)
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
    return cut(op, wide, [0] * n, reached, n), (0,) * n, (0,) * n
