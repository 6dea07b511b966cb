"""The response of a convolution to an image: forward of Conv, and the gradient of ConvTranspose."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxcustom.graph.building.builder import Var

from ...emit import GradientBuilder
from . import depthwise
from .columns import from_images, matrix_of, product
from .forms import Shapes

__all__ = ["RESPONSES"]


def _conv(op: GradientBuilder, s: Shapes, image: Var, w: Var, bias: Var | None) -> Var:
    """The operator itself."""
    window = s.window
    pads = [*(window.begin or ()), *(window.end or ())]
    return op.Conv(
        image, w, bias, strides=window.strides, dilations=window.dilations, group=s.group,
        pads=pads if any(pads) else None,
    )  # fmt: skip


def _columns(op: GradientBuilder, s: Shapes, image: Var, w: Var, bias: Var | None) -> Var:
    """One product of all windows of all images, where the operator has one an image."""
    operands = matrix_of(op, s, w), from_images(op, s, image)
    if bias is None:
        made = product(op, s, *operands)
    elif s.dense:
        made = op.Gemm(*operands, op.Reshape(bias, np.array([-1, 1])))
    else:
        made = product(op, s, *operands) + op.Reshape(bias, np.array([s.group, -1, 1]))
    made = op.Reshape(made, np.array([s.outer, -1, *(s.response or ())]))
    return op.transpose(made, [1, 0, *range(2, s.window.n + 2)])


#: By form: image, weight and bias to the response.
RESPONSES: Mapping[str, Callable[[GradientBuilder, Shapes, Var, Var, Var | None], Var]] = {
    "Conv": _conv,
    "columns": _columns,
    "matrix": depthwise.response_by_matrix,
    "bands": depthwise.response_by_bands,
}
