"""Operators of onnxruntime with more than a product in them, which hold their weights as integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.integers import MICROSOFT
from onnxcustom.graph.building.builder import Var

from .rewriting import Rewriting, attributes, integer
from .steps import dequantized

__all__: list[str] = []


def _given(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if i < len(node.inputs) else None


def _outputs(node: ir.Node) -> list[str]:
    """Base names of the outputs up to the last that is there."""
    there = [i for i, v in enumerate(node.outputs) if v.name]
    return [f"{node.op_type}_{i}" for i in range(max(there) + 1)]


@integer("DynamicQuantizeLSTM")
def dynamic_quantize_lstm(walk: Rewriting, node: ir.Node) -> list[Var] | None:
    """LSTM, whose weights are turned here: [directions, inputs, 4 hidden]."""
    w, r = (_turned(walk, *(_given(node, i) for i in places)) for places in ((1, 8, 9), (2, 10, 11)))
    if w is None or r is None:
        return None
    rest = [_given(node, i) for i in range(3, 8)]
    return list(walk.op.LSTM(_given(node, 0), w, r, *rest, outputs=_outputs(node), **attributes(node)))


def _turned(walk: Rewriting, q: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None) -> Var | None:
    """Weights of an LSTM, with a scale for each direction or for each column of one."""
    assert q is not None
    array, s, z = walk.constant(q), walk.constant(scale), walk.constant(zero)
    if array is None or s is None or (z is None and zero is not None) or not walk.chooses(q):
        return None
    along = [s.shape[0], 1, -1] if s.ndim == 2 else [-1, 1, 1]

    def numbers() -> np.ndarray:
        offset = None if z is None else z.reshape(along)
        return dequantized(array, s.reshape(along), offset).swapaxes(1, 2)

    return walk.weight(q, (q, "turned", s.tobytes(), s.shape), numbers)


@integer("QAttention")
def qattention(walk: Rewriting, node: ir.Node) -> list[Var]:
    """Attention(x, w, bias): w has a scale for each column."""
    x, w, scales = _given(node, 0), _given(node, 1), (_given(node, 3), _given(node, 4))
    assert x is not None
    assert w is not None
    assert scales[0] is not None
    assert scales[1] is not None
    operands = [
        walk.operand(x, scales[0], _given(node, 6)),
        walk.operand(w, scales[1], _given(node, 7), axis=-1),
        _given(node, 2),
        _given(node, 5),
        _given(node, 8),
    ]
    return list(walk.op.Attention(*operands, domain=MICROSOFT, outputs=_outputs(node), **attributes(node)))


@integer("QEmbedLayerNormalization")
def qembed_layer_normalization(walk: Rewriting, node: ir.Node) -> list[Var]:
    """EmbedLayerNormalization with tables, gamma and beta of integers."""
    tables = [_number(walk, node, i) for i in range(2, 7)]
    operands = [_given(node, 0), _given(node, 1), *tables, _given(node, 7)]
    return list(
        walk.op.EmbedLayerNormalization(
            *operands, domain=MICROSOFT, outputs=_outputs(node), **attributes(node)
        )
    )


def _number(walk: Rewriting, node: ir.Node, i: int) -> Var | None:
    """Operand i of QEmbedLayerNormalization; scales are 6 further on, zero points 11."""
    q, scale = _given(node, i), _given(node, i + 6)
    if q is None or scale is None:
        return None
    return walk.operand(q, scale, _given(node, i + 11))
