"""Which states of an update need no look for NaN: those that the weight shows it of.

A momentum is subtracted from its weight: what is NaN or infinite in it is so in the new weight as well.
Adam's second moment is what is divided by, where infinity leaves no trace.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from onnxcustom.graph.analysis.operators import is_op

__all__ = ["shown_in"]

# A number of their result is not finite if that of an operand is not, whatever the others are: 0 times
# infinity is NaN, and so is infinity minus infinity.
_ANY_OPERAND = frozenset("Add Sub Mul Neg Abs Sqrt Identity Sum Mean".split())
_FIRST_OPERAND = frozenset("Div Cast Reshape".split())
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def shown_in(model: ir.Model, states: Mapping[str, str], weights: Collection[str]) -> set[str]:
    """The states whose new value is finite if the new weights are.

    Parameters
    ----------
    model : onnx_ir.Model
        Step graph; it is only looked at.
    states : mapping of str to str
        Graph output with the new value of each.
    weights : collection of str
        Graph outputs that are looked at.
    """
    outputs = {v.name: v for v in model.graph.outputs}
    ends = {outputs[name] for name in weights}
    return {state for state, new in states.items() if _leads_to(outputs[new], ends)}


def _leads_to(value: ir.Value, ends: Collection[ir.Value]) -> bool:
    """Whether what is not finite in a tensor stays so, in its place, up to one of `ends`."""
    seen, todo = {value}, [value]
    while todo:
        read = todo.pop()
        for node, i in read.uses():
            made = node.outputs[0]
            stays = is_op(node, *_ANY_OPERAND) or (i == 0 and is_op(node, *_FIRST_OPERAND))
            same = made.shape == read.shape or is_op(node, "Reshape")
            if not stays or not same or made.dtype not in _FLOATS or made in seen:
                continue
            if made in ends:
                return True
            seen.add(made)
            todo.append(made)
    return False
