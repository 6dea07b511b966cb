"""Where a weight of the prepared model lives in the user's own model.

Preparing moves tensors about: out of ``Constant`` nodes, branches, function bodies and attributes of
``ai.onnx.ml`` operators. A site is pinned on each of these before the passes run and travels with it in
``onnx_ir``'s ``meta`` (never written to a file), so that a new tensor can be put back where the old one was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_tensor
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_nodes

__all__ = [
    "AttributeSite",
    "ConstantSite",
    "InitializerSite",
    "OperandSite",
    "Site",
    "marks_of",
    "own_name",
    "site_of",
    "tag",
    "with_marks",
]

_KEY = "onnxcustom.site"

# What the names of constants end in that are no floats.
OWN = "_constant"

# Renaming a coefficient has no tensor name to change: the name is kept on the node itself.
NAME_KEY = "onnxcustom.name."


@dataclasses.dataclass(frozen=True, eq=False)
class InitializerSite:
    """An initializer of the main graph or of a branch.

    Attributes
    ----------
    value : onnx_ir.Value
    name : str
        What the user's model calls it, which preparing may change.
    """

    value: ir.Value
    name: str

    def write(self, array: np.ndarray) -> None:
        """Put `array` in place of the tensor."""
        old = self.value.const_value
        assert old is not None
        self.value.const_value = ir.Tensor(
            array, dtype=old.dtype, name=self.value.name, doc_string=old.doc_string
        )

    def rename(self, name: str) -> None:
        """Change the name."""
        self.value.name = name


@dataclasses.dataclass(frozen=True, eq=False)
class ConstantSite:
    """A ``Constant``, ``ConstantOfShape`` or ``Identity`` node of any graph or function."""

    node: ir.Node

    def write(self, array: np.ndarray) -> None:
        """Make the node a ``Constant`` of `array`."""
        node = self.node
        node.resize_inputs(0)
        node.op_type = "Constant"
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))

    def rename(self, name: str) -> None:
        """Change the name of the node's output."""
        self.node.outputs[0].name = name


@dataclasses.dataclass(frozen=True)
class AttributeSite:
    """Coefficients in an attribute of a linear operator of ``ai.onnx.ml``.

    Attributes
    ----------
    node : onnx_ir.Node
    attribute : str
        ``'coefficients'`` or ``'intercepts'``.
    mirrored : bool
        The attribute holds the weight twice, first negated: how a binary logistic model is written
        with two rows.
    """

    node: ir.Node
    attribute: str
    mirrored: bool = False

    def write(self, array: np.ndarray) -> None:
        """Put `array` into the attribute."""
        flat = np.asarray(array, dtype=np.float32).reshape(-1)
        if self.mirrored:
            flat = np.concatenate([-flat, flat])
        self.node.attributes[self.attribute] = ir.AttrFloat32s(self.attribute, flat.tolist())

    def rename(self, name: str) -> None:
        """Write the name down on the node."""
        self.node.metadata_props[NAME_KEY + self.attribute] = name


@dataclasses.dataclass(frozen=True)
class OperandSite:
    """An operand that shares its tensor with others, and gets one of its own when it is written.

    Attributes
    ----------
    node : onnx_ir.Node
    index : int
    name : str
        What its tensor is called then.
    """

    node: ir.Node
    index: int
    name: str

    def write(self, array: np.ndarray) -> None:
        """Let the operand be `array`."""
        self._own(ir.tensor(array, name=self.name), self.name)

    def rename(self, name: str) -> None:
        """Let the operand be a copy of that name."""
        tensor = constant_tensor(self.node.inputs[self.index])
        assert tensor is not None
        self._own(tensor, name)

    def _own(self, tensor: ir.TensorProtocol, name: str) -> None:
        node, graph = self.node, self.node.graph
        if isinstance(graph, ir.Graph):
            shape = ir.Shape(tensor.shape.numpy())
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
            graph.register_initializer(value)
        else:  # functions have no initializers
            constant = ir.node("Constant", [], attributes={"value": tensor})
            value = constant.outputs[0]
            value.name = name
            node.prepend(constant)
        node.replace_input_with(self.index, value)


Site = InitializerSite | ConstantSite | AttributeSite | OperandSite


def tag(model: ir.Model) -> None:
    """Pin a site on every initializer, constant, BatchNormalization and ``ai.onnx.ml`` node of `model`."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            pin(value, InitializerSite(value, value.name or ""))
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in all_nodes(body):
            if is_op(node, "Constant", "ConstantOfShape", "Identity"):
                pin(node.outputs[0], ConstantSite(node))
            elif node.domain == "ai.onnx.ml" or node.op_type == "BatchNormalization":
                node.meta[_KEY] = node


def pin(value: ir.Value, site: Site) -> None:
    """Pin `site` on `value`."""
    value.meta[_KEY] = site


def site_of(value: ir.Value) -> Site | None:
    """The site pinned on `value`."""
    return value.meta.get(_KEY)


def own_name(value: ir.Value) -> str:
    """What the user's model calls a constant: integers have other names in the prepared one."""
    site = site_of(value)
    if isinstance(site, InitializerSite) and site.name:
        return site.name
    return str(value.name).removesuffix(OWN)


def origin(node: ir.Node) -> ir.Node:
    """The node of the user's model that `node` is a copy of."""
    return node.meta.get(_KEY, node)


def marks_of(model: ir.Model) -> dict[str, dict[str, Any]] | None:
    """What is noted on the values of a prepared model, as JSON holds it; None if there is more than that.

    Of a site it is kept that there is one, and the user's name: nothing else is asked of a prepared model.
    """
    found: dict[str, dict[str, Any]] = {}
    for value in _values(model):
        notes = {k: own_name(value) if k == _KEY else note for k, note in value.meta.items()}
        if not all(isinstance(note, (str, bool)) for note in notes.values()):
            return None
        if notes:
            found[str(value.name)] = notes
    nodes = all_nodes(model.graph)
    return None if any(key != _KEY for node in nodes for key in node.meta) else found


def with_marks(model: ir.Model, marks: Mapping[str, Mapping[str, Any]]) -> ir.Model:
    """The model with what :func:`marks_of` has found noted on its values, in place."""
    for value in _values(model):
        for key, note in marks.get(str(value.name), {}).items():
            value.meta[key] = InitializerSite(value, note) if key == _KEY else note
    return model


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (*graph.inputs, *graph.initializers.values())
        for node in graph:
            yield from node.outputs
