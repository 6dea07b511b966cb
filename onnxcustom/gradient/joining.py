"""Gradients of parts of a tensor, each padded with zeros and all added, are the parts side by side."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operators import is_op

from .emit import GradientBuilder

__all__ = ["joined_pads"]

# What was padded, the axis, where it begins and where it ends.
Part = tuple[ir.Value, int, int, int]


def joined_pads(node: ir.Node, op: GradientBuilder) -> ir.Value | None:
    """Pad(a) + Pad(b) + ... = Concat(a, b, ...), if they cover an axis without overlap; others are added."""
    if node.outputs[0].is_graph_output():
        return None
    parts = [_part(v) for v in node.inputs]
    for axis in {part[1] for part in parts if part is not None}:
        chosen = sorted(
            (part for part in parts if part is not None and part[1] == axis), key=lambda part: part[2]
        )
        if len(chosen) < 2 or not _covers(chosen, _size(node.outputs[0], axis)):
            continue
        joined = op.Concat(*(op.wrap(part[0]) for part in chosen), axis=axis)
        joined.value.shape, joined.value.type = node.outputs[0].shape, node.outputs[0].type
        others = [
            v
            for v, part in zip(node.inputs, parts, strict=True)
            if v is not None and (part is None or part[1] != axis)
        ]
        if not others:
            return joined.value
        added = joined + op.wrap(others[0]) if len(others) == 1 else op.Sum(joined, *others)
        added.value.shape, added.value.type = node.outputs[0].shape, node.outputs[0].type
        return added.value
    return None


def _part(value: ir.Value | None) -> Part | None:
    """What a value is between zeros along one axis, None if it is not."""
    node = None if value is None else value.producer()
    if value is None or node is None or not is_op(node, "Pad") or len(value.uses()) != 1:
        return None
    x, pads = node.inputs[0], constant_array(node.inputs[1])
    mode = node.attributes.get("mode")
    if x is None or x.shape is None or pads is None or (mode is not None and mode.as_string() != "constant"):
        return None
    fill = (
        constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    )
    rank = len(x.shape)
    if fill is None or fill.any() or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return None
    if len(pads) != 2 * rank or (pads < 0).any() or value.is_graph_output():
        return None
    padded = [axis for axis in range(rank) if pads[axis] or pads[axis + rank]]
    if len(padded) != 1:
        return None
    (axis,) = padded
    size = _size(x, axis)
    begin = int(pads[axis])
    if size is None:
        return None
    return x, axis, begin, begin + size


def _covers(parts: list[Part], size: int | None) -> bool:
    """Whether parts in order fill an axis from its first element to its last."""
    follow = all(one[3] == other[2] for one, other in itertools.pairwise(parts))
    return follow and parts[0][2] == 0 and size == parts[-1][3]


def _size(value: ir.Value, axis: int) -> int | None:
    size = None if value.shape is None else value.shape[axis]
    return size if isinstance(size, int) else None
