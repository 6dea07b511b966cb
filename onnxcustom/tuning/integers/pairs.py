"""DequantizeLinear of weights, and behind QuantizeLinear."""

from __future__ import annotations

import onnx_ir as ir

from onnxcustom.graph.analysis.integers import MICROSOFT
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.building.builder import Var

from .rewriting import QUANTIZERS, Rewriting, integer

__all__: list[str] = []


@integer("DequantizeLinear", domain="")
@integer("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(walk: Rewriting, node: ir.Node) -> Var | None:
    """The numbers that the integers stand for, if they are known."""
    q, scale = node.inputs[:2]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    axis, block = (node.attributes.get_int(name, n) for name, n in (("axis", 1), ("block_size", 0)))
    assert q is not None
    assert scale is not None
    maker = q.producer()
    if maker is not None and not node.domain and is_op(maker, *QUANTIZERS) and walk.keeps(maker):
        return None
    found = walk.real(q, scale, zero, axis, block)
    wanted = node.attributes.get_int("output_dtype", 0)
    if found is None or not wanted or found.dtype == wanted:
        return found
    return walk.op.Cast(found, to=wanted)
