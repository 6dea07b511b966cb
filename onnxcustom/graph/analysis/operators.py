"""Which operator a node is: one spelling of domains, one way to ask for a schema."""

from __future__ import annotations

import functools
from typing import Any

import onnx
import onnx_ir as ir

__all__ = ["is_op", "normal_domain", "operator_schema"]


def normal_domain(domain: str) -> str:
    """A domain as nodes of ``onnx_ir`` have it: protobuf, and users, may write "" as "ai.onnx"."""
    return "" if domain == "ai.onnx" else domain


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether there is a node, and it is one of these operators of ONNX itself."""
    return node is not None and node.op_type in op_types and node.domain == ""


@functools.cache
def operator_schema(op_type: str, version: int, domain: str = "") -> Any:
    """The schema of an operator, None where there is none; onnx's stubs lack what it says of bodies."""
    try:
        return onnx.defs.get_schema(op_type, version, normal_domain(domain))
    except onnx.defs.SchemaError:
        return None
