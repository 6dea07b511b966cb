"""A model beside another one in one graph: the one that teaches, whose weights stay as they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxcustom._text import listed
from onnxcustom.exceptions import InvalidModelError, UnknownNameError
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_names, all_nodes
from onnxcustom.graph.building.builder import Builder
from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.graph.preparation.unused import RemoveUnusedPass
from onnxcustom.graph.trainable.finding import array_of

__all__ = ["PREFIX", "both", "put_beside", "tensor"]

#: What names of the teacher's tensors begin with.
PREFIX = "teacher/"


def both(student: Prepared, teacher: Prepared) -> tuple[ir.Model, ir.Model]:
    """Copies of two models in one opset, the later one of the two."""
    opset = max(student.model.opset_imports[""], teacher.model.opset_imports[""])
    return student.take(opset=opset, max_opset=opset), teacher.take(opset=opset, max_opset=opset)


def put_beside(student: ir.Model, teacher: ir.Model, wanted: Mapping[str, str]) -> dict[str, ir.Value]:
    """Put a model that reads the same inputs into the graph of another one, in place.

    Normalizations by statistics become arithmetic and what drops numbers goes: the teacher computes as it
    predicts, whatever the modes of the step are.

    Parameters
    ----------
    student, teacher : onnx_ir.Model
        Prepared, of one opset; the second one is consumed.
    wanted : mapping of str to str
        Tensors of the teacher that are needed, by any key.

    Returns
    -------
    dict of str to onnx_ir.Value
        These tensors, by key.

    Raises
    ------
    InvalidModelError
        The two read different inputs, or different versions of a domain.
    UnknownNameError
        The teacher has no such tensor.
    """
    _check_domains(student, teacher)
    found = {key: tensor(teacher, name, "teacher") for key, name in wanted.items()}
    teacher.graph.outputs[:] = list(dict.fromkeys(found.values()))
    RemoveUnusedPass()(teacher)
    _settle(teacher)
    inputs = _inputs_for(student, teacher)
    _rename(student, teacher)
    graph, other = student.graph, teacher.graph
    other.outputs[:] = []
    op = Builder(student.opset_imports[""], taken=all_names(graph))
    for value, same in inputs.items():
        read = same if value.dtype == same.dtype else op.Cast(op.wrap(same), to=value.dtype).value
        value.replace_all_uses_with(read)
    graph.extend(op.nodes)
    initializers = list(other.initializers.values())
    nodes = list(other)
    other.remove(nodes)
    other.initializers.clear()
    for value in initializers:
        graph.register_initializer(value)
    graph.extend(nodes)
    student.opset_imports.update(teacher.opset_imports)
    return {key: inputs.get(value, value) for key, value in found.items()}


def tensor(model: ir.Model, name: str, whose: str) -> ir.Value:
    """A tensor of a model's main graph by its name.

    Raises
    ------
    UnknownNameError
        There is none.
    """
    values = {str(v.name): v for node in model.graph for v in node.outputs}
    values.update({str(v.name): v for v in model.graph.inputs})
    if name not in values:
        raise UnknownNameError(
            f"The {whose} has no tensor {name!r}; among its tensors are {listed(list(values)[::-1], 12)}."
        )
    return values[name]


def _check_domains(student: ir.Model, teacher: ir.Model) -> None:
    for domain, version in teacher.opset_imports.items():
        if student.opset_imports.get(domain, version) != version:
            raise InvalidModelError(
                f"The teacher has version {version} of domain {domain!r}, the model that is trained "
                f"{student.opset_imports[domain]}: one graph has one of both."
            )


def _inputs_for(student: ir.Model, teacher: ir.Model) -> dict[ir.Value, ir.Value]:
    """Inputs of the teacher and what they are of the student: those of one name, others in their order."""
    own = {str(v.name): v for v in student.graph.inputs}
    read = [v for v in teacher.graph.inputs if v.uses() or v.is_graph_output()]
    if all(str(v.name) in own for v in read):
        pairs = {v: own[str(v.name)] for v in read}
    elif len(teacher.graph.inputs) == len(own):
        theirs = {str(v.name) for v in teacher.graph.inputs}
        left = iter([v for name, v in own.items() if name not in theirs])
        pairs = {v: own[str(v.name)] if str(v.name) in own else next(left) for v in teacher.graph.inputs}
    else:
        raise InvalidModelError(
            f"The teacher reads {[v.name for v in read]}, the model that is trained has {list(own)}: give "
            "inputs that mean the same the same names."
        )
    for value, same in pairs.items():
        both_real = is_float(value, unknown=False) and is_float(same, unknown=False)
        if (value.dtype != same.dtype and not both_real) or not _fits(value, same):
            raise InvalidModelError(
                f"The teacher's input {value.name!r} is {value.dtype} of shape {value.shape}, input "
                f"{same.name!r} of the model that is trained {same.dtype} of shape {same.shape}: both have "
                "to take the same rows."
            )
    return pairs


def _fits(one: ir.Value, other: ir.Value) -> bool:
    if one.shape is None or other.shape is None:
        return True
    pairs = zip(one.shape, other.shape, strict=False)
    sizes = ((a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int))
    return len(one.shape) == len(other.shape) and all(a == b for a, b in sizes)


def _rename(student: ir.Model, teacher: ir.Model) -> None:
    """Give everything of the teacher a name that the student does not have."""
    taken = all_names(student.graph)
    values = [*teacher.graph.initializers.values()]
    for node in all_nodes(teacher.graph):
        values += [*node.outputs]
        node.name = _free(f"{PREFIX}{node.name or node.op_type}", taken)
    graphs = [g for node in all_nodes(teacher.graph) for a in node.attributes.values() for g in _bodies(a)]
    values += [v for graph in graphs for v in (*graph.inputs, *graph.initializers.values())]
    initializers = {g: [*g.initializers.values()] for g in (teacher.graph, *graphs)}
    for value in dict.fromkeys(values):
        if value.name:
            value.name = _free(f"{PREFIX}{value.name}", taken)
    for graph, held in initializers.items():
        graph.initializers.clear()
        for value in held:
            graph.register_initializer(value)


def _bodies(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def _free(name: str, taken: set[str]) -> str:
    made, number = name, 0
    while made in taken:
        number += 1
        made = f"{name}_{number}"
    taken.add(made)
    return made


def _settle(model: ir.Model) -> None:
    """Let what has two ways to compute have one: as it predicts."""
    op = Builder(model.opset_imports[""], taken=all_names(model.graph))
    for node in list(all_nodes(model.graph)):
        if is_op(node, "Dropout"):
            value = node.inputs[0]
            assert value is not None
            node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
        elif is_op(node, "BatchNormalization"):
            _as_arithmetic(model, op, node)
    for value in op.initializers:
        model.graph.register_initializer(value)
    RemoveUnusedPass()(model)


def _as_arithmetic(model: ir.Model, op: Builder, node: ir.Node) -> None:
    """A normalization by constant statistics as a product and a sum."""
    x, parts = node.inputs[0], node.inputs[1:5]
    if x is None or any(v is None or v.const_value is None for v in parts):
        return  # computed statistics are the same in every mode
    scale, bias, mean, variance = (array_of(v).astype(np.float64) for v in parts if v is not None)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    rank = 2 if x.shape is None else len(x.shape)
    sides = [1] * (rank - 2)
    dtype = node.outputs[0].dtype or x.dtype or ir.DataType.FLOAT
    pair = (a.reshape(-1, *sides).astype(dtype.numpy()) for a in (factor, bias - mean * factor))
    start = len(op.nodes)
    product, shift = (op.const(array) for array in pair)
    made = op.Add(op.Mul(x, product), shift).value
    made.shape = node.outputs[0].shape
    nodes, op.nodes[start:] = op.nodes[start:], []
    assert node.graph is not None
    node.graph.insert_after(node, nodes)
    node.outputs[0].replace_all_uses_with(made, replace_graph_outputs=True)
