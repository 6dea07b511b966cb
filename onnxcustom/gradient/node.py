"""What a rule sees of the forward node it differentiates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import DifferentiationError
from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operators import operator_schema
from onnxcustom.graph.building.builder import Var

from .emit import GradientBuilder
from .host import Host

__all__ = ["NodeView", "Walk"]

_MISSING = object()


class Walk(Protocol):
    """What a rule may ask of the walk that called it."""

    opsets: dict[str, int]
    host: Host

    def inside(self, op: GradientBuilder) -> Walk:
        """A walk over a subgraph, whose gradients another builder emits."""

    def active(self, nodes: Iterable[ir.Node], wanted: Iterable[ir.Value]) -> set[ir.Value]:
        """`wanted` and every floating-point value that depends differentiably on one of them."""

    def gradients(
        self, nodes: Sequence[ir.Node], seeds: Mapping[ir.Value, Var], wanted: Sequence[ir.Value]
    ) -> dict[ir.Value, Var]:
        """Gradients of sum(seed · value) with respect to `wanted`."""

    def error(self, kind: type[DifferentiationError], node: ir.Node, what: str) -> DifferentiationError:
        """An exception that names the node."""


class NodeView:
    """A forward node, its tensors as variables of the builder that emits the gradient.

    Attributes
    ----------
    inputs, outputs : tuple of Var or None
        None for an optional one that is absent.
    needs : tuple of bool
        Which inputs a gradient is asked for; a rule may emit the others as well, dead nodes are
        removed afterwards.
    version : int
        Opset of the node's domain.
    walk : Walk
        The walk that asks, to be repeated inside subgraphs.
    captured : tuple of onnx_ir.Value
        Values of enclosing graphs that the node's subgraphs read and a gradient is asked for; a rule
        of such a node returns (gradients of the inputs, dict of captured value to gradient).
    """

    def __init__(self, op: GradientBuilder, node: ir.Node, version: int, needs: Sequence[bool]) -> None:
        self._op = op
        self.node = node
        self.version = version
        self.needs = tuple(needs)
        # Any: which ones may be None is the operator's business, and each rule knows its operator.
        self.inputs: tuple[Any, ...] = tuple(None if v is None else op.wrap(v) for v in node.inputs)
        self.outputs: tuple[Any, ...] = tuple(op.wrap(v) if v.name else None for v in node.outputs)
        self.walk: Walk
        self.captured: tuple[ir.Value, ...] = ()

    @property
    def op_type(self) -> str:
        """Operator."""
        return self.node.op_type

    @property
    def name(self) -> str:
        """Name of the node, or of its first output if it has none."""
        return self.node.name or str(self.node.outputs[0].name)

    def attr(self, name: str, default: Any = _MISSING) -> Any:
        """Value of an attribute: as set, else `default`, else the schema's default, else None."""
        attribute = self.node.attributes.get(name)
        if attribute is not None:
            return attribute.as_string() if attribute.type == ir.AttributeType.STRING else attribute.value
        if default is not _MISSING:
            return default
        return _schema_default(self.op_type, self.version, self.node.domain, name)

    def constant(self, i: int) -> np.ndarray | None:
        """Value of input i if it is known before the graph runs, else None."""
        return constant_array(self.node.inputs[i]) if i < len(self.node.inputs) else None

    def input(self, i: int) -> Var | None:
        """Input i, None if it is absent or the node has fewer."""
        return self.inputs[i] if i < len(self.inputs) else None

    def require_output(self, i: int, dtype: ir.DataType | None = None) -> Var:
        """Output i of the forward node, declared now if the model did without it."""
        if i >= len(self.node.outputs):
            self.node.resize_outputs(i + 1)
        value = self.node.outputs[i]
        if not value.name:
            value.name = self._op.unique(f"{self.node.outputs[0].name}_{i}")
        if value.dtype is None and dtype is not None:
            value.dtype = dtype
        return self._op.wrap(value)

    def replace_output(self, i: int, by: Var) -> None:
        """Let everything that reads output i of the forward node read `by` instead, in its name.

        For a rule that has to compute the output again anyway, with what the gradient needs besides;
        a forward node that nothing reads any more is removed. Nothing happens if there is no such output.
        """
        value = self.node.outputs[i] if i < len(self.node.outputs) else None
        if value is None or not value.name:
            return
        name, new = value.name, by.value
        new.shape = new.shape if value.shape is None else value.shape
        new.type = new.type if value.type is None else value.type
        value.replace_all_uses_with(new, replace_graph_outputs=True)
        value.name = self._op.unique(f"{name}_replaced")
        new.name = name


def _schema_default(op_type: str, version: int, domain: str, name: str) -> Any:
    schema = operator_schema(op_type, version, domain)
    attribute = None if schema is None else schema.attributes.get(name)
    if attribute is None or not attribute.default_value.name:
        return None
    value = onnx.helper.get_attribute_value(attribute.default_value)
    return value.decode() if isinstance(value, bytes) else value
