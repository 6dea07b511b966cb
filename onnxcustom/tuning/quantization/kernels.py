"""What the installed onnxruntime can do with integers, asked of it."""

from __future__ import annotations

import functools

import onnx
import onnx.parser

from onnxcustom.exceptions import OnnxCustomError
from onnxcustom.graph.files.io import to_ir
from onnxcustom.runtime import create_session, parse_device

__all__ = ["FOUR_BITS", "highest_opset", "reads_four_bits"]

#: Opset from which there are integers of four bits; onnxruntime has them from release 1.19 on.
FOUR_BITS = 21

_FOUR_BITS = """<ir_version: 10, opset_import: ["": 21]>
m (float[N,1] x) => (float[N,1] y) <int4[1,1] w = {1}, float[1] s = {1}, int4[1] z = {0}> {
    d = DequantizeLinear<axis=1>(w, s, z)
    y = MatMul(x, d)
}"""
_PRODUCT = """<ir_version: 10, opset_import: ["": 21]>
m (uint8[N,1] x) => (uint8[N,1] y) <int8[1,1] w = {1}, float s = {1}, int8 z = {0}, uint8 u = {0}> {
    y = QLinearMatMul(x, s, u, w, s, z, s, u)
}"""


@functools.cache
def _runs(text: str) -> bool:
    try:
        create_session(to_ir(onnx.parser.parse_model(text)), parse_device("cpu"))
    except OnnxCustomError:
        return False
    return True


def reads_four_bits() -> bool:
    """Whether onnxruntime reads weights of four bits."""
    return _runs(_FOUR_BITS)


def highest_opset() -> int | None:
    """The highest opset whose products of rounded tensors run, if some do not.

    onnxruntime makes QLinearMatMul of them. Release 1.19 reads opset 21 and lacks that one.
    """
    return None if _runs(_PRODUCT) else FOUR_BITS - 1
