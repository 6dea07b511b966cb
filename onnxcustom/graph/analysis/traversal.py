"""Walks over a graph and the subgraphs inside it: which there are, and which names they take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir

__all__ = ["all_names", "proto_nodes", "rename_twins", "subgraphs", "unique_name", "value_names"]


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Graphs in the attributes of a node."""
    if not node.attributes:
        return  # most have none, and looking through them is slow
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def value_names(model: ir.Model) -> set[str]:
    """All names of values in the model, branches included."""
    names: set[str] = set()
    for graph in model.graphs():
        names.update(v.name for v in graph.inputs if v.name)
        names.update(graph.initializers)
        names.update(v.name for node in graph for v in node.outputs if v.name)
    return names


def all_names(graph: ir.Graph) -> set[str]:
    """All names in a graph and its subgraphs, of values and of nodes."""
    names = {v.name for v in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        names.add(node.name)
        names.update(v.name for v in (*node.inputs, *node.outputs) if v is not None)
        for inner in subgraphs(node):
            names |= all_names(inner)
    return {name for name in names if name}


def unique_name(base: str, taken: set[str], counters: dict[str, int] | None = None) -> str:
    """`base` if free, else with the first free number behind it; the name is then taken."""
    count = 0 if counters is None else counters.get(base, 0)
    name = base
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    if counters is not None:
        counters[base] = count
    taken.add(name)
    return name


def rename_twins(model: onnx.ModelProto) -> None:
    """Give nodes that share a name, which onnxruntime refuses, names of their own but for the first."""
    nodes = list(proto_nodes(model.graph.node))
    taken = {node.name for node in nodes}
    seen: set[str] = set()
    counters: dict[str, int] = {}
    for node in nodes:
        if node.name in seen:
            node.name = unique_name(node.name, taken, counters)
        if node.name:
            seen.add(node.name)


def proto_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those of the graphs inside them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from proto_nodes(graph.node)
