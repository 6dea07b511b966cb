"""Resize and CenterCropPad.

Resize is linear in its input and works along each axis on its own: its gradient is a product with
the transposed interpolation matrix of each axis. That matrix is what Resize makes of the identity,
so every mode is differentiated exactly as it is computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import refuse, rule
from .windows import along_axes, identity, refused

_MODES = (
    "mode", "nearest_mode", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "antialias",
)  # fmt: skip
# Ways to round that repeat each element as often as the (whole) scale says.
_REPEATING = {
    ("asymmetric", "floor"),
    *((t, m) for t in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
      for m in ("round_prefer_floor", "round_prefer_ceil")),
}  # fmt: skip

refuse(
    "Upsample",
    reason="ONNX has replaced it by Resize in opset 10; convert the model to opset 18 "
    "(onnx.version_converter), which this library does by itself where it can",
)


@rule("Resize")
def resize(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y = x ×ₐ Mₐ along each axis a:  dx = dy ×ₐ Mₐᵀ with Mₐ = Resize(identity).

    Without gradient for roi, scales and sizes: they are refused if asked for.
    """
    x, others = node.inputs[0], len(node.inputs) - 1
    if any(node.needs[1:]):
        raise refused(
            node, "roi and scales are settings that have no gradient; leave them out of what to learn"
        )
    axes, rank = _axes(node, x)
    factors = _repeats(node, axes, rank)
    if factors is not None:
        total = float(np.prod(factors))
        dx = op.AveragePool(dy, kernel_shape=factors, strides=factors) * total
    else:
        matrices = {
            a: _matrix(op, node, x, axes, i) for i, a in enumerate(axes) if not _kept(node, x, axes, i)
        }
        dx = along_axes(op, dy, matrices, rank, x) if matrices else dy
    return [dx] + [None] * others


def _axes(node: NodeView, x: Var) -> tuple[list[int], int]:
    """The axes that scales or sizes are given for, and the rank of x."""
    axes = node.attr("axes", None)
    rank = x.rank if x.rank is not None else node.outputs[0].rank
    if rank is None:
        for i in (2, 3):
            given = node.input(i)
            if given is None or axes:
                continue
            constant = node.constant(i)
            if constant is not None:
                rank = rank or len(constant) or None
            elif given.static_shape is not None:
                rank = rank or given.static_shape[0] or None
    if rank is None:
        raise refused(
            node, "neither its input nor its scales or sizes tell its rank; declare the input's rank"
        )
    return [a % rank for a in (axes or range(rank))], rank


def _scales(node: NodeView) -> Any:
    """The scales if they are constants, else None."""
    scales = node.constant(2)
    return scales if scales is not None and scales.size else None


def _by_sizes(node: NodeView) -> bool:
    return node.input(3) is not None


def _policy(node: NodeView) -> str:
    return node.attr("keep_aspect_ratio_policy") or "stretch" if _by_sizes(node) else "stretch"


def _kept(node: NodeView, x: Var, axes: list[int], i: int) -> bool:
    """Whether axis i of `axes` certainly stays as it is."""
    if node.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        return _whole_roi(node, len(axes), i) and _same_size(node, x, axes, i)
    return _same_size(node, x, axes, i)


def _whole_roi(node: NodeView, n: int, i: int) -> bool:
    roi = node.constant(1)
    return roi is not None and roi.size == 2 * n and roi[i] == 0 and roi[n + i] == 1


def _same_size(node: NodeView, x: Var, axes: list[int], i: int) -> bool:
    if _policy(node) != "stretch":
        return False
    given = node.node.inputs[3 if _by_sizes(node) else 2]
    assert given is not None
    found = _element(given, i)
    if not _by_sizes(node):
        return found == 1
    before, y = None if x.shape is None else x.shape[axes[i]], node.outputs[0]
    if found is not None:
        return found in (before, (x.value, axes[i]))
    return y.shape is not None and before is not None and before == y.shape[axes[i]]


def _element(value: ir.Value, k: int) -> float | tuple[ir.Value, int] | None:
    """What element k of a vector is: a number, a dimension (tensor and axis), None if not known.

    It looks through what exporters put between a Shape and the sizes they ask for.
    """
    constant = constant_array(value)
    if constant is not None:
        return constant.reshape(-1)[k].item()
    producer = value.producer()
    source = producer.inputs[0] if producer is not None and producer.inputs else None
    if producer is None or source is None:
        return None
    if producer.op_type in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"):
        return _element(source, k)
    if producer.op_type == "Concat":
        for part in producer.inputs:
            size = None if part is None or part.shape is None or len(part.shape) != 1 else part.shape[0]
            if part is None or not isinstance(size, int):
                return None
            if k < size:
                return _element(part, k)
            k -= size
        return None
    if producer.op_type == "Shape":
        start = producer.attributes.get_int("start", 0)
        return (source, start + k) if start >= 0 else None
    if producer.op_type == "Gather" or (producer.op_type == "Slice" and len(producer.inputs) < 5):
        picked = constant_array(producer.inputs[1])
        if picked is None:
            return None
        indices = picked.reshape(-1)
        index = int(indices[k]) if producer.op_type == "Gather" else int(indices[0]) + k
        return _element(source, index) if index >= 0 else None
    return None


def _repeats(node: NodeView, axes: list[int], rank: int) -> list[int] | None:
    """How often elements are repeated along each spatial axis, if that is all that happens."""
    scales = _scales(node)
    how = (node.attr("coordinate_transformation_mode"), node.attr("nearest_mode"))
    if scales is None or rank < 3 or node.attr("mode") != "nearest" or how not in _REPEATING:
        return None
    factors = [1.0] * rank
    for a, s in zip(axes, scales, strict=True):
        factors[a] = float(s)
    whole = factors[:2] == [1.0, 1.0] and all(f >= 1 and f == int(f) for f in factors)
    return [int(f) for f in factors[2:]] if whole and max(factors) > 1 else None


def _matrix(op: GradientBuilder, node: NodeView, x: Var, axes: list[int], i: int) -> Var:
    """The interpolation matrix [x, y] of one axis."""
    if _policy(node) != "stretch":
        return _matrix_by_policy(op, node, x, axes, i)
    modes = {name: node.attr(name, None) for name in _MODES}
    roi = None
    if modes["coordinate_transformation_mode"] == "tf_crop_and_resize":
        n = len(axes)
        roi = _pick(op, node, 1, [i, n + i])
    given = 3 if _by_sizes(node) else 2
    scale_or_size = _pick(op, node, given, [i])
    operands = [roi, None, scale_or_size] if _by_sizes(node) else [roi, scale_or_size]
    return op.Resize(identity(op, x, axes[i]), *operands, axes=[1], **modes)


def _pick(op: GradientBuilder, node: NodeView, i: int, elements: list[int]) -> Var:
    constant = node.constant(i)
    if constant is not None:
        return op.const(constant[elements])
    return op.Gather(node.inputs[i], op.const(np.array(elements)))


def _matrix_by_policy(op: GradientBuilder, node: NodeView, x: Var, axes: list[int], i: int) -> Var:
    """The same where all axes share one scale: the identity along axis i, the same along the
    others, is resized along all of them, which then are dropped.
    """
    modes = {name: node.attr(name, None) for name in (*_MODES, "keep_aspect_ratio_policy")}
    if not node.attr("axes", None) or modes["coordinate_transformation_mode"] == "tf_crop_and_resize":
        raise refused(
            node,
            "keep_aspect_ratio_policy needs attribute axes and no tf_crop_and_resize; set sizes for both",
        )
    n = len(axes)
    eye = op.unsqueeze(identity(op, x, axes[i]), [0, *(k + 2 for k in range(n) if k != i)])
    shape = op.Concat(op.const([1], 7), op.dim(x, axes[i]), *(op.dim(x, a) for a in axes), axis=0)
    made = op.Resize(op.Expand(eye, shape), None, None, node.inputs[3], axes=list(range(2, n + 2)), **modes)
    gone = [0, *(k + 2 for k in range(n) if k != i)]
    return op.squeeze(op.slice(made, [0] * n, [1] * n, gone), gone)


@rule("CenterCropPad")
def center_crop_pad(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y = the middle of x, or x with zeros around it:  dx = dy cropped where x was padded and
    padded where it was cropped, to x's shape.
    """
    x, axes = node.inputs[0], node.attr("axes", None)
    shape = op.shape(x)
    if axes:
        shape = op.Gather(shape, np.array(axes))
        if x.static_shape is not None:
            shape = op.const(np.array([x.static_shape[a] for a in axes]))
    return [op.CenterCropPad(dy, shape, axes=axes), None]
