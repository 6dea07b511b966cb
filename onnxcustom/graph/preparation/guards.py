"""Operands that end the process of some onnxruntime, kept from its kernels: the last step of ``prepare``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array, is_computed_beforehand
from onnxcustom.graph.analysis.operators import is_op, operator_schema
from onnxcustom.graph.analysis.traversal import all_names, all_nodes, unique_name, value_names
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.preparation.passes import InferShapesPass, InlineFunctionsPass

__all__ = ["DIVISION", "GiveBiasesPass", "GuardKernelsPass", "NameOutputsPass", "guard"]

DIVISION = "integer division by zero"
"""Part of the name of a node that fails, rather than the division that it guards."""

_SIGNED = frozenset({ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64})
_UNSIGNED = frozenset({ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64})


def guard(model: ir.Model) -> bool:
    """Keep a model that is run as it is from ending the process, in place.

    What :func:`onnxcustom.graph.prepare` does for what is trained, and nothing else of it.

    Parameters
    ----------
    model : onnx_ir.Model
        Any model; one without anything that could do so is left alone.

    Returns
    -------
    bool
        Whether it was changed.
    """
    nodes = [n for g in (*model.graphs(), *model.functions.values()) for n in g]
    if not any(_guard_of(node) or not all(v.name for v in node.outputs) for node in nodes):
        return False
    InlineFunctionsPass()(model)
    InferShapesPass()(model)
    changed = [NameOutputsPass()(model).modified, GuardKernelsPass()(model).modified]
    return any(changed)


def _guard_of(node: ir.Node) -> _Guard | None:
    return _GUARDS.get(node.op_type) if node.domain == "" else None


class NameOutputsPass(ir.passes.InPlacePass):
    """Name the outputs without a name that are not optional, or before others of a node of constants.

    onnxruntime refuses most of them, reads what is not there for one of a Split, and up to 1.19 cannot
    compute a node beforehand that lacks one.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Name in place."""
        taken: set[str] | None = None
        for node in all_nodes(model.graph):
            if all(value.name for value in node.outputs):
                continue
            opset = model.opset_imports.get(node.domain, 1)
            wanted = _outputs_wanted(node.op_type, opset, node.domain)
            fixed = is_computed_beforehand(node)
            for k, value in enumerate(node.outputs):
                if not value.name and wanted and (fixed or wanted[min(k, len(wanted) - 1)]):
                    taken = value_names(model) if taken is None else taken
                    value.name = unique_name(f"{node.name or node.op_type}_output_{k}", taken)
        return ir.passes.PassResult(model, modified=taken is not None)


def _outputs_wanted(op_type: str, opset: int, domain: str) -> list[bool]:
    """Which outputs an operator has to have, the last one for those that follow; none of one not known."""
    schema = operator_schema(op_type, opset, domain)
    if schema is None:
        return []
    return [o.option != onnx.defs.OpSchema.FormalParameterOption.Optional for o in schema.outputs]


class GiveBiasesPass(ir.passes.InPlacePass):
    """Give every LayerNormalization a bias: a fusion of onnxruntime up to 1.18 reads it without asking.

    For graphs that are handed out, when all else is done: zeros would be taken for a weight. Sessions of our
    own do without that fusion.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add in place."""
        bare = [n for graph in model.graphs() for n in graph if _lacks_bias(n)]
        taken = all_names(model.graph) if bare else set()
        for node in bare:
            scale = node.inputs[1]
            assert node.graph is not None
            assert scale is not None
            op = Builder(opset=model.opset_imports[""], taken=taken)
            zero = ir.tensor([0.0], dtype=scale.dtype)
            bias = op.ConstantOfShape(op.Shape(scale), value=zero).value
            node.graph.insert_before(node, op.nodes)
            node.resize_inputs(3)
            node.replace_input_with(2, bias)
        return ir.passes.PassResult(model, modified=bool(bare))


def _lacks_bias(node: ir.Node) -> bool:
    if not is_op(node, "LayerNormalization") or len(node.inputs) < 2:
        return False
    scale = node.inputs[1]
    known = scale is not None and scale.dtype is not None
    return known and (len(node.inputs) < 3 or node.inputs[2] is None)


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
                insert = _guard_of(node)
                if insert is None:
                    continue
                op = Builder(opset=model.opset_imports.get("", 1), taken=taken)
                if insert(op, node):
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
    known, over = constant_array(divisor), constant_array(dividend)
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


def _indices(op: Builder, node: ir.Node) -> bool:
    """Indices of MaxUnpool of a known rank, that of its data: inference up to 1.23 takes it for granted."""
    indices = node.inputs[1] if len(node.inputs) > 1 else None
    window = node.attributes.get_ints("kernel_shape", ())
    if indices is None or indices.shape is not None or not window:
        return False
    node.replace_input_with(1, op.Reshape(indices, [0] * (len(window) + 2)).value)
    return True


_Guard = Callable[[Builder, ir.Node], bool]
_GUARDS: dict[str, _Guard] = {"Div": _division, "MaxUnpool": _indices, "Mod": _division}
"""By operator; each says whether it changed the node, and appends what goes before it."""
