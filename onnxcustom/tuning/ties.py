"""Weights that several nodes read: a copy for each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from onnxcustom._registry import did_you_mean
from onnxcustom.exceptions import UnknownNameError
from onnxcustom.graph.analysis.traversal import all_names, subgraphs
from onnxcustom.graph.building.builder import Builder
from onnxcustom.graph.files.io import ModelLike, to_ir, to_proto
from onnxcustom.graph.trainable.finding import array_of
from onnxcustom.graph.trainable.weights import weights as find_weights

__all__ = ["untie"]

_LOGGER = logging.getLogger("onnxcustom")
# Operators that look rows up in a table, their first operand.
_LOOKUPS = ("Gather", "GatherElements", "GatherND")


def untie(model: ModelLike, weights: str | Iterable[str] | None = None) -> onnx.ModelProto:
    """Give every node that reads a weight a copy of its own, so that training moves them apart.

    Exporters merge tensors that are equal: the scales of normalizations, all 1, and biases, all 0, of a
    model that was never trained become one weight that all its layers share. What a model computes stays
    the same.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form. It is not changed.
    weights : str or list of str, optional
        Names of the weights to untie. None: those of :func:`onnxcustom.weights` that several nodes read,
        unless the model ties them by design. That is taken to be so if a weight whose values differ from each
        other is the table of a Gather (an embedding that is the head's weight, too), or is read again by
        what depends on a reader of it (a recurrence that was unrolled, layers that share their weights). A
        weight that is one number everywhere is an exporter's doing.

    Returns
    -------
    onnx.ModelProto
        The first reader keeps the name, those of the others have a number behind it.

    Raises
    ------
    InvalidModelError
        As :func:`onnxcustom.load`.
    UnknownNameError
        The model has no initializer or constant of that name.

    Examples
    --------
    >>> import onnx.parser
    >>> import onnxcustom
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     m (float[N, 2] x) => (float[N, 2] y) <float[2] s = {1, 1}> {
    ...         a = LayerNormalization(x, s)
    ...         y = LayerNormalization(a, s)
    ...     }''')
    >>> list(onnxcustom.weights(untie(model)))
    ['s', 's_1']
    """
    edited = to_ir(model)
    tensors = {v.name: v for v in _tensors(edited)}
    if weights is None:
        named = [name for name in find_weights(edited) if name in tensors]
        owners = _owners(edited)
        chosen = [v for v in map(tensors.__getitem__, named) if not _by_design(v, _readers(v), owners)]
    else:
        names = [weights] if isinstance(weights, str) else list(weights)
        for name in names:
            if name not in tensors:
                raise UnknownNameError(
                    f"The model has no weight {name!r}.{did_you_mean(name, [n for n in tensors if n])} "
                    f"Weights are {list(find_weights(edited))}."
                )
        chosen = [tensors[name] for name in names]
    op = Builder(edited.opset_imports.get("", 1), taken=all_names(edited.graph))
    for value in chosen:
        _separate(edited, value, op)
    return to_proto(edited)


def _tensors(model: ir.Model) -> list[ir.Value]:
    """Tensors of numbers that the graphs of a model hold, in initializers and constants."""
    found: list[ir.Value] = []
    for graph in model.graphs():
        found += [v for v in graph.initializers.values() if v.const_value is not None]
        found += [
            node.outputs[0]
            for node in graph
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and "value" in node.attributes
        ]
    return found


def _readers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read a value, in the order of the model's uses, each once."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def _by_design(value: ir.Value, readers: Sequence[ir.Node], owners: Mapping[ir.Graph, ir.Node]) -> bool:
    """Whether the nodes that read a weight are meant to share it."""
    if len(readers) < 2:
        return True
    array = _numbers(value)
    if (array == array.flat[0]).all():
        return False
    if any(node.op_type in _LOOKUPS and node.inputs[0] is value for node in readers):
        return True
    return any(_reaches(node, set(readers) - {node}, owners) for node in readers)


def _reaches(start: ir.Node, ends: set[ir.Node], owners: Mapping[ir.Graph, ir.Node]) -> bool:
    """Whether what a node computes arrives at one of these nodes."""
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        following = [use.node for output in node.outputs for use in output.uses()]
        # What is computed in a subgraph, the node that has the subgraph hands on.
        following += [
            owners[graph] for graph in [node.graph] if isinstance(graph, ir.Graph) and graph in owners
        ]
        for other in following:
            if other in ends:
                return True
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return False


def _owners(model: ir.Model) -> dict[ir.Graph, ir.Node]:
    """The node that each subgraph belongs to."""
    return {graph: node for node in RecursiveGraphIterator(model.graph) for graph in subgraphs(node)}


def _separate(model: ir.Model, value: ir.Value, op: Builder) -> None:
    """Let all readers of a value but the first read copies."""
    _, *others = _readers(value)
    for node in others:
        copy = _copied(value, op.unique(f"{value.name}"))
        for index, operand in enumerate(node.inputs):
            if operand is value:
                node.replace_input_with(index, copy)
    if others:
        _LOGGER.info("%s: %d nodes read a copy of their own now.", value.name, len(others) + 1)


def _numbers(value: ir.Value) -> np.ndarray:
    producer = value.producer()
    return array_of(value) if producer is None else producer.attributes["value"].as_tensor().numpy()


def _copied(value: ir.Value, name: str) -> ir.Value:
    """The same tensor under another name, beside the value."""
    producer = value.producer()
    if producer is not None:
        attribute = producer.attributes["value"]
        copy = ir.node("Constant", [], {"value": attribute.value}, num_outputs=1, name=f"{name}_node")
        copy.outputs[0].name = name
        copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
        assert producer.graph is not None
        producer.graph.insert_after(producer, copy)
        return copy.outputs[0]
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    made = ir.Value(name=name, type=value.type, shape=value.shape)
    made.const_value = ir.tensor(np.array(array_of(value)), name=name)
    graph.register_initializer(made)
    if value.is_graph_input():  # before version 4 of the format initializers are inputs, too
        graph.inputs.append(made)
    return made
