"""Which optimizers of onnxruntime have nothing to do in a graph."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from onnxcustom.graph.analysis.traversal import all_nodes, proto_nodes

__all__ = ["idle_optimizers"]

# Up to 1.19 at least, each of them sorts the nodes of the graph in a time that grows with their square, a
# second for 10,000 nodes. In smaller graphs there is nothing to gain.
_MANY = 1000

_INTEGERS = (
    "QuantizeLinear DequantizeLinear DynamicQuantizeLinear MatMulInteger ConvInteger QLinearMatMul "
    "QLinearConv MatMulNBits QGemm MatMulIntegerToFloat DynamicQuantizeMatMul"
)
_NORMS = "ReduceMean LayerNormalization SimplifiedLayerNormalization SkipLayerNormalization"
_CONVS = "Conv ConvTranspose FusedConv MaxPool AveragePool GlobalMaxPool GlobalAveragePool"

# Optimizers, by names that onnxruntime has or had for them, each with operators one of which it looks for.
_LOOKS_FOR = {
    "QDQPropagationTransformer": _INTEGERS,
    "EnsureUniqueDQForNodeUnit": _INTEGERS,
    "DoubleQDQPairsRemover": _INTEGERS,
    "QDQSelectorActionTransformer": _INTEGERS,
    "QDQFinalCleanupTransformer": _INTEGERS,
    "DynamicQuantizeMatMulFusion": _INTEGERS,
    "MatMulIntegerToFloatFusion": _INTEGERS,
    "MatMulNBitsFusion": _INTEGERS,
    "GeluFusionL1": "Erf",
    "GeluFusionL2": "Erf",
    "BiasGeluFusion": "Erf Gelu Tanh FastGelu",
    "FastGeluFusion": "Tanh",
    "QuickGeluFusion": "Sigmoid",
    "LayerNormFusionL1": _NORMS,
    "LayerNormFusionL2": _NORMS,
    "SimplifiedLayerNormFusion": _NORMS,
    "AttentionFusion": _NORMS,
    "EmbedLayerNormFusion": _NORMS,
    "SkipLayerNormFusion": _NORMS,
    "GatherSliceToSplitFusion": "Gather Slice",
    "GatherToSliceFusion": "Gather Slice",
    "GatherToSplitFusion": "Gather Slice",
    "ConvActivationFusion": _CONVS,
    "ConvAddActivationFusion": _CONVS,
    "BiasSoftmaxFusion": "Softmax",
    "BiasDropoutFusion": "Dropout BitmaskDropout",
    "GroupQueryAttentionFusion": "GroupQueryAttention",
    "MatmulTransposeFusion": "Transpose",
    "ReshapeFusion": "Reshape",
    "IsInfReduceSumFusion": "IsInf",
}


def idle_optimizers(model: onnx.ModelProto | bytes | ir.Model) -> list[str]:
    """Names of optimizers that find nothing in a graph of many nodes: without them it is sooner ready.

    Parameters
    ----------
    model : ModelProto, bytes or onnx_ir.Model
        Of bytes nothing is known.
    """
    if isinstance(model, bytes):
        return []
    nodes: list[Any] = [
        *(all_nodes(model.graph) if isinstance(model, ir.Model) else proto_nodes(model.graph.node))
    ]
    if len(nodes) < _MANY or (model.functions if isinstance(model, onnx.ModelProto) else False):
        return []
    there = {node.op_type for node in nodes}
    return [name for name, wanted in _LOOKS_FOR.items() if there.isdisjoint(wanted.split())]
