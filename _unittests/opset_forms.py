"""Which of the models that were made for one opset after the other are different ones to onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

__all__ = ["distinct"]


def distinct(models: dict[int, onnx.ModelProto]) -> dict[int, onnx.ModelProto]:
    """One of those with the same nodes and the same versions of operators, by opset; preferably 18."""
    found: dict[object, int] = {}
    for opset in sorted(models, key=lambda opset: (opset != 18, opset)):
        graph = models[opset].graph
        versions = {(n.op_type, n.domain): _since(n, opset) for n in _nodes(graph)}
        key = graph.SerializeToString(deterministic=True), tuple(sorted(versions.items()))
        found.setdefault(key, opset)
    return {opset: models[opset] for opset in sorted(found.values())}


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of bodies too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def _since(node: onnx.NodeProto, opset: int) -> int:
    """The version of the operator that an opset has; of other domains there is one."""
    if node.domain not in ("", "ai.onnx"):
        return 1
    return onnx.defs.get_schema(node.op_type, opset).since_version
