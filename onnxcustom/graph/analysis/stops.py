"""Nodes whose results count as constants when a graph is differentiated."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["is_stopped", "stop"]

_KEY = "onnxcustom.gradient"


def stop(node: ir.Node) -> None:
    """Let no gradient flow through a node, as through what an observer measures."""
    node.metadata_props[_KEY] = "none"


def is_stopped(node: ir.Node) -> bool:
    """Whether :func:`stop` was said of a node."""
    return node.metadata_props.get(_KEY) == "none"
