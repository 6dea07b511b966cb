"""DequantizeLinear written out: constant integers, Cast, Sub and Mul, as other quantizers have it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operands import FLOATS
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.building.builder import Var

from .rewriting import Rewriting
from .steps import BOUNDS

__all__ = ["written_out"]


def written_out(walk: Rewriting, node: ir.Node) -> Var | None:
    """The weight that a product of constants is, one of which was integers."""
    for i in (0, 1):
        steps, scale = node.inputs[i], constant_array(node.inputs[1 - i])
        found = None if scale is None or steps is None else _steps(steps)
        if found is None or scale is None:
            continue
        q, array = found
        if not walk.chooses(q):
            return None
        key = (q, hash(array.tobytes()), scale.tobytes(), scale.shape)
        return walk.weight(q, key, lambda array=array, scale=scale: array * scale)  # type: ignore[misc]
    return None


def _steps(value: ir.Value) -> tuple[ir.Value, np.ndarray] | None:
    """Integers that a value is made from by Cast, Sub and Add of constants, and its numbers."""
    node = value.producer()
    if node is None:
        return None
    if is_op(node, "Cast") and node.attributes.get_int("to", 0) in FLOATS:
        q = node.inputs[0]
        array = constant_array(q)
        if q is None or array is None or array.size <= 1 or ir.DataType.from_numpy(array.dtype) not in BOUNDS:
            return None
        return q, array.astype(ir.DataType(node.attributes.get_int("to", 0)).numpy())
    if not is_op(node, "Sub", "Add"):
        return None
    first, second = node.inputs
    for one, other in ((first, second), (second, first)):
        offset = _number(other)
        found = None if offset is None or one is None else _steps(one)
        if found is None or offset is None:
            continue
        if is_op(node, "Add"):
            return found[0], found[1] + offset
        return found[0], found[1] - offset if one is first else offset - found[1]
    return None


def _number(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant, or of one that Cast makes floats of."""
    array = constant_array(value)
    node = None if value is None else value.producer()
    if array is None and node is not None and is_op(node, "Cast"):
        array = constant_array(node.inputs[0])
        if array is not None and node.attributes.get_int("to", 0) in FLOATS:
            return array.astype(ir.DataType(node.attributes.get_int("to", 0)).numpy())
        return None
    return array
