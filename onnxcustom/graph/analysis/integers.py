"""Operators of models that quantizers, and onnxruntime's own optimizer, have written."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["COMPUTES", "FUSED", "HOLDS", "MICROSOFT", "NCHWC", "REMEDY", "computes_integers"]

MICROSOFT = "com.microsoft"

REMEDY = (
    "onnxcustom.tuning.dequantize(model) puts floating-point weights, which can be trained, in the place of "
    "integers"
)

# Integers go in or come out, by domain: no gradient passes.
COMPUTES: dict[str, frozenset[str]] = {
    "": frozenset(
        "ConvInteger DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul QuantizeLinear".split()
    ),
    MICROSOFT: frozenset(
        "DequantizeLinear NhwcMaxPool QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool "
        "QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMatMul QLinearMul "
        "QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear".split()
    ),
}
# What of these in the domain of onnxruntime reads numbers, and holds its weights as integers: there is a
# gradient, of the operators that they were fused from.
FUSED = frozenset(
    "DynamicQuantizeLSTM DynamicQuantizeMatMul GatherBlockQuantized MatMulBnb4 MatMulIntegerToFloat "
    "MatMulNBits QAttention".split()
)
# Operators whose constant integers stand for weights.
HOLDS = frozenset(
    {"DequantizeLinear", *FUSED, *COMPUTES[""], *COMPUTES[MICROSOFT]}
    - {"DynamicQuantizeLinear", "QuantizeLinear", "NhwcMaxPool"}
)
# The layout of onnxruntime's own optimizer, of its highest level.
NCHWC = "com.microsoft.nchwc"


def computes_integers(node: ir.Node) -> bool:
    """Whether a node quantizes, or computes with what was quantized."""
    return node.op_type in COMPUTES.get(node.domain, ())
