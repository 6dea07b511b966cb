"""Constants that a model writes as a list of numbers and where they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array

__all__ = ["PLACED", "folded"]

PLACED = frozenset("Identity Cast Reshape Squeeze Unsqueeze Transpose".split())
"""What such a list goes through, its numbers as they are."""

_DEEP = 16


def folded(value: ir.Value | None, depth: int = _DEEP) -> np.ndarray | None:
    """The numbers of a constant that is scattered into another, and moved; None of anything else.

    Parameters
    ----------
    value : onnx_ir.Value or None
        What an operator reads.
    depth : int
        How many nodes there may be, one behind the other.
    """
    array = constant_array(value)
    node = None if value is None else value.producer()
    if array is not None or node is None or node.domain != "" or not depth:
        return array
    made = _OPERATORS.get(node.op_type)
    if made is None or node.attributes.get_string("reduction", "none") != "none":
        return None
    operands = [folded(v, depth - 1) for v in node.inputs]
    if any(operand is None for operand in operands):
        return None
    try:
        return made(node, [operand for operand in operands if operand is not None])
    except (ValueError, IndexError):  # a model that fails when it runs
        return None


_Arrays = Sequence[np.ndarray]


def _reshape(node: ir.Node, operands: _Arrays) -> np.ndarray:
    array, sizes = operands
    copied = [array.shape[i] if d == 0 else int(d) for i, d in enumerate(sizes)]
    return array.reshape([int(d) for d in sizes] if node.attributes.get_int("allowzero", 0) else copied)


def _axes(node: ir.Node, operands: _Arrays) -> tuple[int, ...] | None:
    axes = operands[1].reshape(-1) if len(operands) > 1 else node.attributes.get_ints("axes", None)
    return None if axes is None else tuple(int(axis) for axis in axes)


def _squeeze(node: ir.Node, operands: _Arrays) -> np.ndarray:
    return np.squeeze(operands[0], _axes(node, operands))


def _unsqueeze(node: ir.Node, operands: _Arrays) -> np.ndarray:
    return np.expand_dims(operands[0], _axes(node, operands) or ())


def _transpose(node: ir.Node, operands: _Arrays) -> np.ndarray:
    return np.transpose(operands[0], node.attributes.get_ints("perm", None))


def _scatter_elements(node: ir.Node, operands: _Arrays) -> np.ndarray:
    data, indices, updates = operands
    axis = node.attributes.get_int("axis", 0)
    made = data.copy()
    np.put_along_axis(made, np.where(indices < 0, indices + data.shape[axis], indices), updates, axis)
    return made


def _scatter_nd(node: ir.Node, operands: _Arrays) -> np.ndarray:
    data, indices, updates = operands
    made = data.copy()
    made[tuple(np.moveaxis(indices, -1, 0))] = updates
    return made


_OPERATORS: dict[str, Callable[[ir.Node, _Arrays], np.ndarray]] = {
    "Identity": lambda node, operands: operands[0],
    "Cast": lambda node, operands: operands[0],
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements,
    "ScatterND": _scatter_nd,
}
