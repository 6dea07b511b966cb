"""Operands that end the process of some onnxruntime, kept from its kernels: the last step of ``prepare``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.builder import Builder, Var
from onnxcustom.graph.passes import InferShapesPass, constant_array
from onnxcustom.graph.traversal import all_names

__all__ = ["DIVISION", "GuardKernelsPass"]

DIVISION = "integer division by zero"
"""Part of the name of a node that fails, rather than the division that it guards."""

_STANDARD = ("", "ai.onnx")
_SIGNED = frozenset({ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64})
_UNSIGNED = frozenset({ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64})


class GuardKernelsPass(ir.passes.InPlacePass):
    """Put nodes before those whose kernels would end the process, which then see no such operands.

    Results stay what they are; where there is none, as that of a division by zero, running the graph fails.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert in place."""
        taken = all_names(model.graph)
        modified = False
        for graph in [model.graph, *(g for g in model.graphs() if g is not model.graph)]:
            for node in list(graph):
                guard = _GUARDS.get(node.op_type) if node.domain in _STANDARD else None
                if guard is None:
                    continue
                op = Builder(opset=model.opset_imports[""], taken=taken)
                if guard(op, node):
                    modified = True
                    graph.insert_before(node, op.nodes)
                    for value in op.initializers:
                        model.graph.register_initializer(value)
        if modified:
            InferShapesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def _division(op: Builder, node: ir.Node) -> bool:
    """No divisor that is zero, and no smallest number by -1."""
    dividend, divisor = node.inputs[:2]
    if dividend is None or divisor is None:
        return False
    dtype = divisor.dtype or dividend.dtype
    if dtype not in _SIGNED | _UNSIGNED:
        return False
    known, over = constant_array(_fixed(divisor)), constant_array(_fixed(dividend))
    smallest = np.iinfo(dtype.numpy()).min
    zero = known is None or bool((known == 0).any())
    overflow = dtype in _SIGNED and (known is None or bool((known == -1).any()))
    if node.op_type == "Div":
        overflow = overflow and (over is None or bool((over == smallest).any()))
    if not (zero or overflow):
        return False
    by = _wide(op, divisor, dtype)
    if zero:
        by = by + _checked(op, node, op.Equal(by, 0))
    if overflow and node.op_type == "Mod":  # x mod -1 = x mod 1
        by = op.Where(op.Equal(by, -1), 1, by)
    elif overflow:
        is_smallest = op.Equal(_wide(op, dividend, dtype), int(smallest))
        by = by + _checked(op, node, op.And(is_smallest, op.Equal(by, -1)))
    by = by if dtype == ir.DataType.INT64 else op.Cast(by, to=dtype)
    node.replace_input_with(1, by.value)
    return True


def _fixed(value: ir.Value) -> ir.Value | None:
    """The value unless it is an input, whose initializer is only what it has by default."""
    return None if value.is_graph_input() else value


def _wide(op: Builder, value: ir.Value, dtype: ir.DataType) -> Var:
    """The value as int64: not all kernels know the narrow types."""
    return op.wrap(value) if dtype == ir.DataType.INT64 else op.Cast(value, to=ir.DataType.INT64)


def _checked(op: Builder, node: ir.Node, wrong: Var) -> Var:
    """Zeros of the shape of `wrong`; where that is true, an index beyond a table of one element."""
    zeros = op.Gather(np.zeros(1, np.int64), op.Cast(wrong, to=ir.DataType.INT64), axis=0)
    made = zeros.value.producer()
    assert made is not None
    made.name = op.unique(f"{node.name} ({node.op_type}): {DIVISION}, or overflow")
    return zeros


_GUARDS: dict[str, Callable[[Builder, ir.Node], bool]] = {"Div": _division, "Mod": _division}
"""By operator; each says whether it changed the node, and appends what goes before it."""
