"""Constants of a model that training leaves as they are, and why: what reports say beside the weights."""

from __future__ import annotations

import onnx_ir as ir

from onnxcustom.graph.analysis.integers import HOLDS, REMEDY
from onnxcustom.graph.analysis.operands import FLOATS, is_float, is_opaque
from onnxcustom.graph.analysis.paths import End, Paths
from onnxcustom.graph.trainable.finding import Findings

__all__ = ["left_out", "quantized"]

# What operands are to operators, by position.
_PARTS: dict[tuple[str, int], str] = {
    ("BatchNormalization", 3): "a mean of BatchNormalization",
    ("BatchNormalization", 4): "a variance of BatchNormalization",
    ("Pow", 1): "an exponent",
    ("Clip", 1): "a bound (Clip)",
    ("Clip", 2): "a bound (Clip)",
    ("Resize", 1): "scales or roi of Resize",
    ("Resize", 2): "scales of Resize",
    ("Upsample", 1): "scales of Upsample",
    ("QuantizeLinear", 1): "a scale of QuantizeLinear",
    ("DequantizeLinear", 1): "a scale of DequantizeLinear",
}
_COMPARES = frozenset("Equal Greater GreaterOrEqual Less LessOrEqual".split())
# Bytes of what stands for a number, at most: a shape, say, is of int64.
_WIDEST = 4


def left_out(model: ir.Model, found: Findings) -> dict[ir.Value, str]:
    """Constants that look like weights and are none, with the reason.

    Parameters
    ----------
    model : onnx_ir.Model
        In prepared form.
    found : Findings
        Its weights.

    Returns
    -------
    dict of onnx_ir.Value to str
        Floating-point constants of more than one element, epsilons, and integers that stand for weights,
        in the order in which the model holds them.
    """
    paths = Paths(model.graph)
    weights = set(found.weights)
    rows = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value in weights or tensor.size == 0:
            continue
        if value in found.left_out:
            rows[value] = found.left_out[value]
        elif quantized(value):
            rows[value] = f"quantized ({tensor.dtype.name.lower()}): integers are not trained; {REMEDY}"
        elif is_float(tensor) and tensor.size > 1:
            rows[value] = _why(paths.ends(value), found.live)
    return rows


def quantized(value: ir.Value) -> bool:
    """Whether a constant holds the integers, or floats of few bits, that stand for a weight."""
    tensor = value.const_value
    # A scalar is a zero point, and so are vectors beside a scale. Strings and truth values stand for no
    # weight, and a string has no size in bytes to ask for.
    if tensor is None or tensor.size <= 1 or tensor.dtype in FLOATS | {ir.DataType.STRING, ir.DataType.BOOL}:
        return False
    if tensor.dtype.itemsize > _WIDEST:
        return False
    return any(node.op_type in HOLDS and not _is_zero_point(node, i) for node, i in value.uses())


def _is_zero_point(node: ir.Node, index: int) -> bool:
    positions = {"DequantizeLinear": (2,), "QLinearConv": (2, 5, 7), "QLinearMatMul": (2, 5, 7)}
    return index in positions.get(node.op_type, (2, 3) if node.op_type.endswith("Integer") else ())


def _why(ends: list[End], live: set[ir.Value]) -> str:
    alive = [end for end in ends if any(v in live for v in end.node.outputs)]
    for end in alive:
        if end.node.domain == "" and (end.node.op_type, end.index) in _PARTS:
            return _PARTS[end.node.op_type, end.index]
        if end.node.op_type in _COMPARES:
            return f"compared only ({end.node.op_type})"
    unknown = next((end.node for end in alive if end.node.domain != "" and not is_opaque(end.node)), None)
    if unknown is not None:
        return f"an operand of {unknown.domain}.{unknown.op_type}, which nothing is known of"
    return "no data: it feeds shapes, indices or conditions" if ends else "no output depends on it"
