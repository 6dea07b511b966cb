"""Graphs within graphs: what older releases of onnxruntime spend on them."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from onnxcustom.exceptions import EvaluationError
from onnxcustom.graph.analysis.traversal import proto_subgraphs, subgraphs
from onnxcustom.graph.files.limits import current_limits

__all__ = ["check_nesting"]

# Visits that a node of Limits.nodes stands for: a few seconds with the default.
_VISITS = 8
# Bytes are parsed for this up to here: what is larger is weights.
_LARGE = 2**26


def check_nesting(model: onnx.ModelProto | bytes | ir.Model, version: str) -> None:
    """Refuse graphs that are nested so deep that making a session of them takes minutes, days or years.

    Up to 1.28, onnxruntime goes through a graph twice for every level that it is nested in.

    Parameters
    ----------
    model : ModelProto, bytes or onnx_ir.Model
        What a session is made of.
    version : str
        Of onnxruntime, for the message.

    Raises
    ------
    EvaluationError
        The visits are more than eight times ``Limits.nodes``.
    """
    nodes, visits, depth = _visits(model)
    allowed = current_limits().nodes
    if visits > _VISITS * allowed:
        raise EvaluationError(
            f"The model has graphs within graphs, {depth} deep: onnxruntime {version} goes through a graph "
            f"twice for every level, which is 2**{visits.bit_length() - 1} visits for {nodes:,} nodes. "
            f"Refused, {_VISITS} visits for each of Limits.nodes = {allowed:,} are allowed: join nested "
            "conditions into one, raise that limit, or use onnxruntime 1.30 or later."
        )


def _visits(model: onnx.ModelProto | bytes | ir.Model) -> tuple[int, int, int]:
    """Nodes, how often onnxruntime comes to them, and the deepest level."""
    if isinstance(model, bytes):
        if len(model) > _LARGE:
            return 0, 0, 0
        try:
            model = onnx.ModelProto.FromString(model)
        except Exception:  # for onnxruntime to say
            return 0, 0, 0
    graph: onnx.GraphProto | ir.Graph = model.graph  # type: ignore[union-attr]
    nodes = visits = depth = 0
    level = [graph]
    while level:
        within: list[onnx.GraphProto | ir.Graph] = []
        for graph in level:
            for node in graph.node if isinstance(graph, onnx.GraphProto) else graph:
                nodes += 1
                visits += 2**depth
                within.extend(_within(node))
        level, depth = within, depth + 1
    return nodes, visits, depth - 1


def _within(node: onnx.NodeProto | ir.Node) -> Iterable[onnx.GraphProto | ir.Graph]:
    return subgraphs(node) if isinstance(node, ir.Node) else proto_subgraphs(node)
