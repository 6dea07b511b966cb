"""What a weight is to the model: a matrix or kernel, a bias, a parameter of a normalization."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import onnx_ir as ir

__all__ = ["Role", "weight_roles"]

Role = Literal["weight", "bias", "normalization", "unknown"]

# Operands by what they are to an operator, its position.
_WEIGHTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "FusedGemm"), (0, 1)),
    **dict.fromkeys(("Conv", "ConvTranspose", "DeformConv", "FusedConv"), (1,)),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), (1, 2)),
}
# ONNX's own Attention has no weights as operands, onnxruntime's has.
_MICROSOFT_WEIGHTS: dict[str, tuple[int, ...]] = {"Attention": (1,)}
_BIASES: dict[str, tuple[int, ...]] = {
    "Add": (0, 1),
    "Sub": (0, 1),
    "Gemm": (2,),
    "FusedGemm": (2,),
    "Conv": (2,),
    "FusedConv": (2,),
    "ConvTranspose": (2,),
    "DeformConv": (3,),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), (3,)),
    "BatchNormalization": (2,),
    "LayerNormalization": (2,),
    "InstanceNormalization": (2,),
    "GroupNormalization": (2,),
    "GroupNorm": (2,),
    **dict.fromkeys(("BiasGelu", "FastGelu", "BiasSoftmax", "BiasSplitGelu", "BiasDropout", "BiasAdd"), (1,)),
    "Attention": (2,),
    "MultiHeadAttention": (3,),
    "SkipLayerNormalization": (3, 4),
    "SkipSimplifiedLayerNormalization": (3,),
    "EmbedLayerNormalization": (6,),
}
_SCALES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        "BatchNormalization LayerNormalization InstanceNormalization GroupNormalization RMSNormalization "
        "SimplifiedLayerNormalization GroupNorm".split(),
        (1,),
    ),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), (2,)),
    "EmbedLayerNormalization": (5,),
}
_PASS_THROUGH = frozenset("Identity Cast Reshape Flatten Squeeze Unsqueeze Transpose Expand".split())


def weight_roles(model: ir.Model, names: Iterable[str]) -> dict[str, Role]:
    """The role of weights, by what reads them.

    Shapes do not tell: skl2onnx writes biases as matrices of one row, and a linear model of one
    output has a matrix of one column.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model.
    names : iterable of str
        Weights to look at, initializers or inputs of the main graph.

    Returns
    -------
    dict of str to {'weight', 'bias', 'normalization', 'unknown'}
        ``'weight'`` where a matrix product, convolution or recurrent layer multiplies by it,
        ``'bias'`` where it is only ever added, ``'normalization'`` where it scales what a
        normalization computes.
    """
    values = {v.name: v for v in (*model.graph.initializers.values(), *model.graph.inputs)}
    return {name: _role(values[name]) if name in values else "unknown" for name in names}


def _role(value: ir.Value) -> Role:
    uses = list(_uses(value))
    if any(position in _weight_operands(node) for node, position in uses):
        return "weight"
    if uses and all(position in _BIASES.get(node.op_type, ()) for node, position in uses):
        return "bias"
    if uses and all(position in _SCALES.get(node.op_type, ()) for node, position in uses):
        return "normalization"
    return "unknown"


def _weight_operands(node: ir.Node) -> tuple[int, ...]:
    if node.domain == "com.microsoft" and node.op_type in _MICROSOFT_WEIGHTS:
        return _MICROSOFT_WEIGHTS[node.op_type]
    return _WEIGHTS.get(node.op_type, ())


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Operators that read a value, as it is or in another layout."""
    for node, position in value.uses():
        if node.op_type in _PASS_THROUGH and position == 0:
            yield from _uses(node.outputs[0])
        else:
            yield node, position
