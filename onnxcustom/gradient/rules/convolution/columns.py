"""What every window of a convolution sees, side by side, so that its products are products of matrices."""

from __future__ import annotations

import numpy as np

from onnxcustom.graph.building.builder import Var

from ...emit import GradientBuilder
from ..windows import Window
from .forms import Shapes

__all__ = ["from_images", "matrix_of", "product", "rows_of", "to_images"]


def from_images(op: GradientBuilder, s: Shapes, image: Var) -> Var:
    """The columns of images, channels first: one product with them needs no transposition of what it gives.

    They are [inner · kernel, images · P], with the groups in front where there are several. Forward and
    gradient of the weight read the same.
    """
    window, n = s.window, s.window.n
    assert window.kernel is not None
    assert s.image is not None
    begin, end = window.begin or (0,) * n, window.end or (0,) * n
    if s.kernel == 1 and not s.padded:
        seen = window.piece(op, image, (0,) * n)
        return _grouped(op, s, op.transpose(seen, [1, 0, *range(2, n + 2)]), int(s.inner or 0))
    x = op.transpose(image, [1, 0, *range(2, n + 2)])
    if any((*begin, *end)):
        x = op.Pad(x, np.array([0, 0, *begin, 0, 0, *end]))
    channels = s.group * int(s.inner or 0)
    sizes = [i + b + e for i, b, e in zip(s.image, begin, end, strict=True)]
    for i in reversed(range(n)):
        if window.kernel[i] == window.strides[i] == 1:
            continue
        # [channels, 1, positions of the kernel so far · images, ...] -> [channels, kernel of this axis, ...]
        x = op.concat(window.pieces(op, op.Reshape(x, np.array([channels, 1, -1, *sizes])), i, 3 + i), axis=1)
        sizes[i] = (sizes[i] - window.extent[i]) // window.strides[i] + 1
    return _grouped(op, s, x, int(s.inner or 0) * int(s.kernel))


def to_images(op: GradientBuilder, s: Shapes, columns: Var, image: Var) -> Var:
    """The images that their columns add up to."""
    window = s.window
    assert window.kernel is not None
    assert s.image is not None
    channels = s.group * int(s.inner or 0)
    x = op.Reshape(columns, np.array([channels * int(s.kernel), -1, int(s.positions)]))
    x = op.Transpose(x, perm=[1, 0, 2])
    if s.plain:
        made = op.Reshape(x, np.array([0, channels, *s.image]))
    elif window.n == 2:
        made = _added_up(op, x, window, s.image)
    else:  # a row of an image: up to 1.19 onnxruntime adds up wrongly in one dimension
        wide = Window((1, *window.kernel), (1, *window.strides), (1, *window.dilations), *_row(window))
        made = op.Squeeze(_added_up(op, x, wide, (1, *s.image)), np.array([2]))
    made.value.shape = image.value.shape
    return made


def _row(window: Window) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding of one dimension as that of two."""
    return (0, *(window.begin or ())), (0, *(window.end or ()))


def _added_up(op: GradientBuilder, x: Var, window: Window, sizes: tuple[int, ...]) -> Var:
    pads = [*(window.begin or ()), *(window.end or ())]
    return op.Col2Im(
        x, np.array(sizes), np.array(window.kernel), strides=window.strides, dilations=window.dilations,
        pads=pads if any(pads) else None,
    )  # fmt: skip


def rows_of(op: GradientBuilder, s: Shapes, x: Var) -> Var:
    """A response as [outer, images · P], with the groups in front if there are several."""
    first = op.transpose(x, [1, 0, *range(2, s.window.n + 2)])
    return _grouped(op, s, first, int(s.outer or 0) // s.group)


def matrix_of(op: GradientBuilder, s: Shapes, w: Var) -> Var:
    """A weight as [outer, inner · kernel], with the groups in front if there are several."""
    return _grouped(op, s, w, int(s.outer or 0) // s.group)


def _grouped(op: GradientBuilder, s: Shapes, x: Var, rows: int) -> Var:
    return op.Reshape(x, np.array([rows, -1] if s.dense else [s.group, rows, -1]))


def product(
    op: GradientBuilder, s: Shapes, a: Var, b: Var, *, first: bool = False, second: bool = False
) -> Var:
    """The product of matrices, one for each group; whether the first or the second is transposed."""
    if s.dense:
        return op.Gemm(a, b, transA=int(first) or None, transB=int(second) or None)
    return op.MatMul(op.swap_last(a) if first else a, op.swap_last(b) if second else b)
