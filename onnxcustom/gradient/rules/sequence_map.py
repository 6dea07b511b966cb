"""SequenceMap, its body written out once for every element of a sequence whose length is known."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..carried import elements, is_holder
from ..emit import GradientBuilder
from ..expand import expansion, refusal
from ..node import NodeView
from .control_flow import _rename

__all__: list[str] = []


@expansion("SequenceMap", domain="")
def sequence_map(op: GradientBuilder, node: NodeView) -> list[Var]:
    """yᵢ = body(sequenceᵢ, further sequencesᵢ or tensors) for every element i.

    ONNX's function body is a Loop that inserts into sequences; gradients of elements need to know which
    tensor each of them came from.
    """
    first = elements(node.node.inputs[0])
    if first is None:
        raise refusal(
            node,
            "how many elements its sequence has is known only when the graph runs; build it by "
            "SequenceConstruct, or by SplitToSequence of a tensor of known size, or use Scan over a tensor",
        )
    body = node.node.attributes["body"].as_graph()
    made = [_inlined(op, body, [_element(op, v, i) for v in node.inputs]) for i in range(len(first))]
    if not made:
        return [op.SequenceEmpty(dtype=v.dtype) for v in body.outputs]
    return [op.SequenceConstruct(*parts) for parts in zip(*made, strict=True)]


def _element(op: GradientBuilder, value: Var, i: int) -> Var:
    """What the body gets in run i: an element of a sequence, a tensor as it is."""
    if not is_holder(value.value):
        return value
    element = op.SequenceAt(value, op.const(i, ir.DataType.INT64))
    element.value.dtype = value.value.dtype
    return element


def _inlined(op: GradientBuilder, body: ir.Graph, inputs: list[Var]) -> list[Var]:
    """The outputs of a copy of the body, whose nodes are appended."""
    copy = body.clone(allow_outer_scope_values=True)
    _rename(copy, op)
    for value, given in zip(copy.inputs, inputs, strict=True):
        if given.value.type is None or given.value.dtype is None:
            given.value.type = value.type
        value.replace_all_uses_with(given.value, replace_graph_outputs=True)
    outputs: list[Any] = [op.wrap(v) for v in copy.outputs]
    copy.outputs.clear()
    nodes = list(copy)
    copy.remove(nodes)
    op.nodes.extend(nodes)
    initializers = list(copy.initializers.values())
    copy.initializers.clear()
    op.initializers.extend(initializers)
    return outputs
