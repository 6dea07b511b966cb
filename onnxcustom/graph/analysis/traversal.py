"""Walks over a graph and the subgraphs inside it: which there are, and which names they take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx
import onnx_ir as ir

__all__ = [
    "all_names",
    "all_nodes",
    "captured",
    "dependents",
    "proto_nodes",
    "proto_subgraphs",
    "reads",
    "rename_twins",
    "sort_nodes",
    "subgraphs",
    "unique_name",
    "value_names",
]


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Graphs in the attributes of a node."""
    found: list[ir.Graph] = []
    attributes = node.attributes.data  # of a million nodes: no views of a UserDict
    if not attributes:
        return found
    for attribute in attributes.values():
        if attribute.type == _GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == _GRAPHS:
            found.extend(attribute.as_graphs())
    return found


_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS


def all_nodes(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Nodes, those of a graph for instance, and those of the graphs inside them, which follow them."""
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def captured(node: ir.Node, beside: Callable[[ir.Node], Iterable[ir.Value]] | None = None) -> list[ir.Value]:
    """Values of the graphs around that the subgraphs of a node read, each once.

    Parameters
    ----------
    node : onnx_ir.Node
        Subgraphs are in topological order.
    beside : callable, optional
        What a node inside reads besides its inputs.
    """
    found: dict[ir.Value, None] = {}
    graphs = subgraphs(node)
    if not graphs:
        return []
    for graph in graphs:
        own = {*graph.inputs, *graph.initializers.values()}
        for inner in graph:
            more = () if beside is None else beside(inner)
            for value in (*inner.inputs, *more, *captured(inner, beside)):
                if value is not None and value not in own:
                    found[value] = None
            own.update(inner.outputs)
        found.update((v, None) for v in graph.outputs if v not in own)
    return list(found)


def reads(node: ir.Node) -> list[ir.Value]:
    """What a node reads, itself and by its subgraphs from outside of them."""
    return [*(v for v in node.inputs if v is not None), *captured(node)]


def dependents(
    nodes: Iterable[ir.Node],
    sources: Iterable[ir.Value],
    read: Callable[[ir.Node], Iterable[ir.Value]] = reads,
    carries: Callable[[ir.Value], bool] | None = None,
) -> set[ir.Value]:
    """Values, and all that is computed of them by nodes in topological order.

    Parameters
    ----------
    nodes : iterable of onnx_ir.Node
        Those to go through.
    sources : iterable of onnx_ir.Value
        Where to start.
    read : callable
        What a node reads.
    carries : callable, optional
        Which results count; None: all.
    """
    found = set(sources)
    for node in nodes:
        if any(v in found for v in read(node)):
            found.update(v for v in node.outputs if carries is None or carries(v))
    return found


def sort_nodes(graph: ir.Graph) -> None:
    """Put nodes into an order in which they can be computed, the one there is where that will do."""
    seen: set[ir.Node] = set()
    for node in graph:
        makers = (None if v is None else v.producer() for v in node.inputs)
        if subgraphs(node) or any(maker is not None and maker not in seen for maker in makers):
            graph.sort()
            return
        seen.add(node)


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
        for graph in proto_subgraphs(node):
            yield from proto_nodes(graph.node)


def proto_subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
