"""The image that a convolution makes of its response backwards: its gradient, and what ConvTranspose is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from onnxcustom.graph.building.builder import Var

from ...emit import GradientBuilder
from ..windows import Window, cut, shape_of_axes
from . import depthwise
from .columns import matrix_of, product, rows_of, to_images
from .forms import Shapes

__all__ = ["IMAGES", "positive"]


def _conv_transpose(op: GradientBuilder, s: Shapes, response: Var, w: Var, image: Var) -> Var:
    """ConvTranspose, as large as the image: positions that no window reaches, at most stride - 1
    behind the last one, are made by output_padding; if the image is not static, all of them and then cut.
    """
    window, n = s.window, s.window.n
    same = {"strides": window.strides, "dilations": window.dilations, "group": s.group}
    behind = positive(stride - 1 for stride in window.strides)
    if window.begin is None or window.end is None:
        full = op.ConvTranspose(response, w, output_padding=behind, **same)
        begin, _ = window.same_padding(op, image, w)
        return cut(op, full, begin, begin + shape_of_axes(op, image, 2), n)
    pads = positive([*window.begin, *window.end])
    if s.image is not None and window.kernel is not None:
        covered = zip(s.image, window.begin, window.end, window.extent, window.strides, strict=True)
        rest = positive((i + b + e - extent) % stride for i, b, e, extent, stride in covered)
        return op.ConvTranspose(response, w, pads=pads, output_padding=rest, **same)
    full = op.ConvTranspose(response, w, pads=pads, output_padding=behind, **same)
    return full if behind is None else cut(op, full, [0] * n, shape_of_axes(op, image, 2), n)


def _turned_slice(op: GradientBuilder, s: Shapes, response: Var, w: Var, image: Var) -> Var:
    """A convolution by the kernel turned round: where strides are 1, several times as fast."""
    window, n = s.window, s.window.n
    turned = op.slice(w, [-1] * n, [-(2**62)] * n, list(range(2, n + 2)), [-1] * n)
    return op.Conv(response, turned, pads=_pads_behind(window), dilations=window.dilations, group=s.group)


def _turned(op: GradientBuilder, s: Shapes, response: Var, w: Var, image: Var) -> Var:
    """A convolution by the kernel turned round, channels in place of each other: turned by a product with the
    identity read backwards, since onnxruntime slices backwards number by number.
    """
    window, k, outer, inner = s.window, int(s.kernel), int(s.outer or 0), int(s.inner or 0)
    turned = w
    if k > 1:
        backwards = op.const(np.eye(k)[::-1].copy(), like=w)
        turned = op.MatMul(op.Reshape(w, np.array([int(s.channels), k])), backwards)
    # onnxruntime is slow where axes of one number stand beside those that change places.
    front, behind = [s.group] * (s.group > 1), [k] * (k > 1)
    swapped = [*front, outer // s.group, inner, *behind]
    order = list(range(len(swapped)))
    order[len(front) : len(front) + 2] = [len(front) + 1, len(front)]
    turned = op.Transpose(op.Reshape(turned, np.array(swapped)), perm=order)
    turned = op.Reshape(turned, np.array([s.group * inner, outer // s.group, *(window.kernel or ())]))
    return op.Conv(response, turned, pads=_pads_behind(window), dilations=window.dilations, group=s.group)


def _columns(op: GradientBuilder, s: Shapes, response: Var, w: Var, image: Var) -> Var:
    """Columns of all images by one product, added up where windows overlap."""
    columns = product(op, s, matrix_of(op, s, w), rows_of(op, s, response), first=True)
    return to_images(op, s, columns, image)


def _pads_behind(window: Window) -> list[int] | None:
    """Padding of the response, so that a convolution of it has the positions of the image."""
    assert window.begin is not None
    assert window.end is not None
    pads = (*window.begin, *window.end)
    return positive(e - 1 - p for e, p in zip(window.extent * 2, pads, strict=True))


def positive(values: Iterable[int]) -> list[int] | None:
    """The values for an attribute, None if all are 0."""
    values = list(values)
    return values if any(values) else None


#: By form: response, weight, and an image of the shape wanted, to that image.
IMAGES: Mapping[str, Callable[[GradientBuilder, Shapes, Var, Var, Var], Var]] = {
    "ConvTranspose": _conv_transpose,
    "turned": _turned,
    "columns": _columns,
    "turned slice": _turned_slice,
    "matrix": depthwise.image_by_matrix,
    "bands": depthwise.image_by_bands,
}
