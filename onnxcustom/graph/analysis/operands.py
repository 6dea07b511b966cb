"""Which operands of which operators are differentiable data: the one table behind "Weight".

An operand position is listed when the result depends on it smoothly and a model may learn it.
Positions left out are shapes, indices, bounds, exponents, statistics, quantization scales and the
like. Operators of a domain this table does not know have no listed position: nothing is known of
what they do with an operand, so none of their initializers is taken for a weight (a user may still
name it in ``wrt`` or ``weights_to_train``); what flows into them is followed, though.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxcustom.graph.analysis.operators import is_op

__all__ = [
    "FLOATS",
    "is_bias_add",
    "is_float",
    "is_opaque",
    "passes_through",
    "single_counts",
    "trainable",
]

# Beyond the largest number of operands: "every position".
_ALL = tuple(range(4096))


def _table() -> dict[str, tuple[int, ...]]:
    first = (
        # unary arithmetic and activations
        "Abs Acos Acosh Asin Asinh Atan Atanh Cast CastLike Celu Cos Cosh Elu Erf Exp Gelu HardSigmoid "
        "HardSwish Identity LeakyRelu Log LogSoftmax Mish Neg Reciprocal Relu Selu Shrink Sigmoid "
        "Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Clip Mod Pow CumSum Det "
        # pooling, normalization without parameters, sampling
        "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LRN LpNormalization LpPool MaxPool "
        "MaxRoiPool MaxUnpool MeanVarianceNormalization Resize RoiAlign Upsample AffineGrid "
        # reductions
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare TopK "
        # data movement
        "CenterCropPad Col2Im Compress DepthToSpace Dropout Expand Flatten Gather GatherElements GatherND "
        "Pad Reshape ReverseSequence Slice SpaceToDepth Split SplitToSequence Squeeze Tile Transpose Trilu "
        "Unsqueeze Optional OptionalGetElement SequenceAt ConcatFromSequence DFT STFT "
        # straight-through: the quantized tensor itself, never its scale
        "QuantizeLinear "
        "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss"
    )
    table: dict[str, tuple[int, ...]] = dict.fromkeys(first.split(), (0,))
    two = "Add Sub Mul Div MatMul PRelu GridSample RMSNormalization"
    table.update(dict.fromkeys(two.split(), (0, 1)))
    table.update(dict.fromkeys("Sum Max Min Mean Concat Einsum SequenceConstruct".split(), _ALL))
    table.update({
        "Conv": (0, 1, 2), "ConvTranspose": (0, 1, 2), "DeformConv": (0, 1, 2, 3, 4), "Gemm": (0, 1, 2),
        "BatchNormalization": (0, 1, 2), "InstanceNormalization": (0, 1, 2), "GroupNormalization": (0, 1, 2),
        "LayerNormalization": (0, 1, 2),
        "RNN": (0, 1, 2, 3, 5), "GRU": (0, 1, 2, 3, 5), "LSTM": (0, 1, 2, 3, 5, 6, 7),
        "Attention": (0, 1, 2, 3, 4, 5), "RotaryEmbedding": (0, 1, 2),
        "Where": (1, 2), "Scatter": (0, 2), "ScatterElements": (0, 2), "ScatterND": (0, 2),
        "TensorScatter": (0, 1), "SequenceInsert": (0, 1), "OneHot": (2,), "SequenceMap": _ALL,
    })  # fmt: skip
    return table


# What graph optimizers leave behind; the domain is onnxruntime's own.
_MICROSOFT: dict[str, tuple[int, ...]] = {
    "FusedMatMul": (0, 1), "FusedGemm": (0, 1, 2), "FusedConv": (0, 1, 2, 3), "TransposeMatMul": (0, 1),
    "Gelu": (0,), "FastGelu": (0, 1), "BiasGelu": (0, 1), "QuickGelu": (0,), "BiasDropout": (0, 1, 2),
    "LayerNormalization": (0, 1, 2), "SimplifiedLayerNormalization": (0, 1),
    "SkipLayerNormalization": (0, 1, 2, 3, 4), "SkipSimplifiedLayerNormalization": (0, 1, 2, 3),
    "EmbedLayerNormalization": (2, 3, 4, 5, 6), "GroupNorm": (0, 1, 2), "BiasSoftmax": (0, 1),
    "BiasSplitGelu": (0, 1), "BiasAdd": (0, 1, 2), "Attention": (0, 1, 2, 5),
    "MultiHeadAttention": (0, 1, 2, 3, 5), "RotaryEmbedding": (0,), "SkipGroupNorm": (0, 1, 2, 3, 4),
    "NhwcConv": (0, 1, 2), "NhwcFusedConv": (0, 1, 2, 3), "FusedMatMulActivation": (0, 1),
    "GemmFastGelu": (0, 1, 2),
}  # fmt: skip

_ONNX = _table()

# Differentiable and worth following to what they are computed from, but never weights themselves.
_FOLLOWED = {"Pow": (0, 1)}

# The result tells shapes, not data: nothing flows through.
_OPAQUE = frozenset(
    "Shape Size ConstantOfShape Range EyeLike RandomNormal RandomUniform RandomNormalLike RandomUniformLike "
    "SequenceLength OptionalHasElement NonMaxSuppression BlackmanWindow HannWindow HammingWindow "
    "MelWeightMatrix".split()
)

_LINEAR = frozenset(
    "Conv ConvTranspose DeformConv Gemm MatMul FusedMatMul FusedGemm FusedConv TransposeMatMul "
    "NhwcConv NhwcFusedConv FusedMatMulActivation GemmFastGelu".split()
)
_NORMALIZATION = frozenset(
    "BatchNormalization InstanceNormalization GroupNormalization LayerNormalization RMSNormalization "
    "SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization "
    "EmbedLayerNormalization GroupNorm SkipGroupNorm".split()
)
# Types that can carry a gradient: those of eight bits and fewer only store.
FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})
_MOVES = frozenset("Identity Cast Reshape Flatten Squeeze Unsqueeze Transpose".split())


def is_float(typed: Any, unknown: bool = True) -> bool:
    """Whether a value, variable or tensor can carry a gradient, or be a weight; None cannot.

    Parameters
    ----------
    typed : onnx_ir.Value, Var, onnx_ir.TensorProtocol or None
        Whatever has a ``dtype``.
    unknown : bool, default=True
        What is said of one whose type is not known.
    """
    if typed is None:
        return False
    return unknown if typed.dtype is None else typed.dtype in FLOATS


def is_opaque(node: ir.Node) -> bool:
    """Whether a node's result tells shapes or nothing of its operands, but not their content."""
    return node.domain == "" and node.op_type in _OPAQUE


def _positions(node: ir.Node) -> tuple[int, ...] | None:
    if node.domain == "":
        return _ONNX.get(node.op_type)
    if node.domain == "com.microsoft":
        return _MICROSOFT.get(node.op_type)
    return None


def trainable(node: ir.Node, index: int) -> bool:
    """Whether operand `index` of `node` is differentiable data that a model may learn."""
    if is_op(node, "Cast"):
        to = node.attributes.get_int("to", 0)
        return index == 0 and to in FLOATS
    return index in (_positions(node) or ())


def passes_through(node: ir.Node, index: int) -> bool:
    """Whether data of operand `index` reaches the result, differentiably or not.

    Operators without an entry (comparisons, ArgMax, rounding, unknown domains) pass on every operand:
    a model whose only output is a label still has the weights of the scores behind it.
    """
    positions = _positions(node)
    if is_opaque(node):
        return False
    if node.domain == "":
        positions = _FOLLOWED.get(node.op_type, positions)
    return positions is None or index in positions


def single_counts(node: ir.Node, index: int) -> bool:
    """Whether a tensor of one element is a weight as operand `index` of `node`."""
    if not trainable(node, index):
        return False
    return node.op_type in _LINEAR or node.op_type in _NORMALIZATION or is_bias_add(node, index)


def is_bias_add(node: ir.Node, index: int) -> bool:
    """Whether operand `index` is added to the result of a linear operator."""
    if not is_op(node, "Add"):
        return False
    value = node.inputs[1 - index]
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type in _LINEAR:
            return True
        if producer.op_type not in _MOVES or not producer.inputs:
            return False
        value = producer.inputs[0]
    return False
