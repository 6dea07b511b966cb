"""The gradient of a convolution's weight: image and response multiplied, summed over images and positions.

Every form takes the image without its padding; the result is ``[outer, inner, *kernel]``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np

from onnxcustom.graph.building.builder import Var

from ...emit import GradientBuilder
from ..windows import cut, shape_of_axes
from . import depthwise
from .columns import from_images, product, rows_of
from .forms import Shapes

__all__ = ["WEIGHTS"]

# Columns from which one product per row of the kernel is faster than copying all columns together
# first (measured: 64 channels 3x3 8.7 ms against 11.8 ms; one channel 5x5 0.35 ms against 0.24 ms).
_WIDE = 64


def _rows(op: GradientBuilder, s: Shapes, image: Var, response: Var, w: Var) -> Var:
    """dw[m, c, k] = Σ response[n, m, o] image[n, c, o s + k d]: one product over all positions of
    all images at once, of the response with the slices of the (padded) image each k meets.
    """
    window, group, outer, inner = s.window, s.group, s.outer, s.inner
    assert window.kernel is not None
    last = list(range(2, window.n + 2))
    columns = op.transpose(window.padded(op, image, w), [1, 0, *last])  # [channels, images, ...]
    response = op.Flatten(op.transpose(response, [1, 0, *last]), axis=1)
    channel = 0
    if group > 1:  # [group, channels of it, images, ...]
        split = op.concat([op.const(np.array([group, inner])), shape_of_axes(op, columns, 1)])
        columns, channel = op.Reshape(columns, split), 1
        response = op.Reshape(response, np.array([group, int(outer or 0) // group, -1]))
    for i in reversed(range(1, window.n)):
        columns = op.concat(window.pieces(op, columns, i, channel + 2 + i), axis=channel)
    rows = window.pieces(op, columns, 0, channel + 2)
    if not (inner is not None and inner * np.prod(window.kernel[1:]) >= _WIDE):
        rows = [op.concat(rows, axis=channel)]
    found = op.concat([_product(op, response, r, group) for r in rows], axis=channel + 1)
    # [outer, kernel · inner] -> [outer, inner, kernel]
    front, behind = outer if group > 1 else 0, -1 if inner is None else inner
    if s.kernel == 1:
        return op.Reshape(found, np.array([front, behind, *window.kernel]))
    found = op.Reshape(found, np.array([front, *window.kernel, behind]))
    return op.Transpose(found, perm=[0, window.n + 1, *range(1, window.n + 1)])


def _product(op: GradientBuilder, response: Var, columns: Var, group: int) -> Var:
    if group == 1:
        return op.Gemm(response, op.Flatten(columns, axis=1), transB=1)
    columns = op.Reshape(columns, np.array([0, 0, -1]))
    return op.MatMul(response, op.Transpose(columns, perm=[0, 2, 1]))


def _columns(op: GradientBuilder, s: Shapes, image: Var, response: Var, w: Var) -> Var:
    """One product that gives the weight's layout as it is; plain descent can go into it."""
    assert s.window.kernel is not None
    made = product(op, s, rows_of(op, s, response), from_images(op, s, image), second=True)
    return op.Reshape(made, np.array([s.outer, s.inner, *s.window.kernel]))


def _images(op: GradientBuilder, s: Shapes, image: Var, response: Var, w: Var) -> Var:
    """A product for each image, and the sum of them: nothing is transposed."""
    assert s.window.kernel is not None
    positions = int(s.positions)
    seen = op.Reshape(s.window.piece(op, image, (0,) * s.window.n), np.array([0, s.inner, positions]))
    given = op.Reshape(response, np.array([0, s.outer, positions]))
    products = op.MatMul(given, op.swap_last(seen))
    return op.Reshape(op.reduce_sum(products, [0]), np.array([s.outer, s.inner, *s.window.kernel]))


def _shifts(op: GradientBuilder, s: Shapes, image: Var, response: Var, w: Var) -> Var:
    """A product for each position of the kernel, of the response moved along all axes but the last, by zeros
    around it, with the image moved along the last one: few copies, for products a few rows longer.
    """
    window, n = s.window, s.window.n
    assert window.kernel is not None
    last, extent = list(range(2, n + 2)), window.extent
    seen = window.pieces(op, op.transpose(window.padded(op, image, w), [1, 0, *last]), n - 1, n + 1)
    seen = [op.Reshape(x, np.array([s.inner, -1])) for x in seen]
    response = op.transpose(response, [1, 0, *last])
    products = []
    for offset in itertools.product(*map(range, window.kernel[:-1])):
        before = [k * d for k, d in zip(offset, window.dilations, strict=False)]
        after = [e - 1 - b for e, b in zip(extent, before, strict=False)]
        moved = response
        if any(before) or any(after):
            moved = op.Pad(response, np.array([0, 0, *before, 0, 0, 0, *after, 0]))
        moved = op.Reshape(moved, np.array([s.outer, -1]))
        products += [op.Gemm(moved, x, transB=1) for x in seen]
    made = op.Reshape(op.concat(products, axis=1), np.array([s.outer, int(s.kernel), s.inner]))
    return op.Reshape(op.Transpose(made, perm=[0, 2, 1]), np.array([s.outer, s.inner, *window.kernel]))


def _by_conv(op: GradientBuilder, s: Shapes, image: Var, response: Var, w: Var) -> Var:
    """A convolution of the image by the response, channels in place of images; strides and dilations
    change places. It does without the size of the kernel.
    """
    window, group = s.window, s.group
    image = window.padded(op, image, w)
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
    return cut(op, found, [0] * window.n, shape_of_axes(op, w, 2), window.n)


#: By form: image, response, and the weight that the gradient is of, to that gradient.
WEIGHTS: Mapping[str, Callable[[GradientBuilder, Shapes, Var, Var, Var], Var]] = {
    "rows": _rows,
    "columns": _columns,
    "images": _images,
    "shifts": _shifts,
    "conv": _by_conv,
    "sums": depthwise.sums,
    "matrix": depthwise.weight_by_matrix,
    "bands": depthwise.weight_by_bands,
}
