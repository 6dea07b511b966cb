"""Operators of a model that can compute with integers, and the tensors around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom._registry import did_you_mean
from onnxcustom._text import listed
from onnxcustom.exceptions import UnknownNameError
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import dependents
from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.graph.preparation.unused import RemoveUnusedPass
from onnxcustom.graph.trainable.finding import array_of
from onnxcustom.graph.trainable.selection import Catalog, is_word, matching, texts_of
from onnxcustom.runtime import create_session, parse_device, run_values

__all__ = ["Product", "excluded", "moved_from", "numbers_of", "products_of"]

#: What hands numbers on as they are.
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "Identity", "Slice")


@dataclasses.dataclass(frozen=True)
class Product:
    """A node that multiplies data by a weight.

    Attributes
    ----------
    node : onnx_ir.Node
        Conv, ConvTranspose, Gemm or MatMul.
    position : int
        Of the weight among its inputs.
    axis : int or None
        Of the weight as the node reads it, its outputs; None if no axis alone stands for them.
    roots : tuple of str
        Names of the constants that the weight is, or is made of.
    """

    node: ir.Node
    position: int
    axis: int | None
    roots: tuple[str, ...]

    @property
    def weight(self) -> ir.Value:
        """The weight as the node reads it."""
        value = self.node.inputs[self.position]
        assert value is not None
        return value

    @property
    def data(self) -> ir.Value:
        """What it is multiplied by."""
        value = self.node.inputs[1 - self.position]
        assert value is not None
        return value

    @property
    def name(self) -> str:
        """What its weight is called."""
        return self.roots[0]

    def channels(self, wanted: bool) -> int | None:
        """The axis whose indices have scales of their own, if any."""
        return self.axis if wanted and len(self.weight.shape or ()) > 1 else None

    def key(self, axis: int | None) -> str:
        """What a weight that is rounded along an axis is known by: nodes may read it along several."""
        return f"{self.weight.name} along {axis}"


def products_of(model: ir.Model) -> list[Product]:
    """Products of data by weights in the main graph of a prepared model, in its order."""
    of_data = dependents(model.graph, model.graph.inputs)
    found = []
    for node in model.graph:
        for position, axis in _places(node):
            weight, data = node.inputs[position], node.inputs[1 - position]
            if weight is None or weight in of_data or data not in of_data or not is_float(weight):
                continue
            roots = tuple(dict.fromkeys(_roots(weight)))
            if roots and weight.shape is not None and weight.dtype in _FLOATS:
                rank = len(weight.shape)
                # Kernels of integers take one scale for products of stacks of matrices.
                alone = axis is not None and not (is_op(node, "MatMul") and rank > 2)
                found.append(
                    Product(node, position, axis % rank if alone and axis is not None else None, roots)
                )
    return found


def _places(node: ir.Node) -> Iterator[tuple[int, int | None]]:
    """Where a node may read a weight, and which axis of it stands for what it computes."""
    if is_op(node, "Conv"):
        yield 1, 0
    elif is_op(node, "ConvTranspose"):
        yield 1, 1 if node.attributes.get_int("group", 1) == 1 else None
    elif is_op(node, "Gemm"):
        yield 1, 0 if node.attributes.get_int("transB", 0) else 1
    elif is_op(node, "MatMul"):
        yield 1, -1
        yield 0, -2


def _roots(value: ir.Value) -> Iterator[str]:
    """Names of the constants of more than one number that a value is made of."""
    producer = value.producer()
    if producer is None:
        tensor = value.const_value if value.is_initializer() and is_float(value) else None
        if tensor is not None and tensor.size > 1:
            yield str(value.name)
        return
    for operand in producer.inputs:
        if operand is not None:
            yield from _roots(operand)


def moved_from(value: ir.Value) -> ir.Value:
    """Where the numbers of a value come from, unchanged."""
    producer = value.producer()
    while producer is not None and is_op(producer, *_MOVES) and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return value


def numbers_of(model: ir.Model, values: Sequence[ir.Value]) -> dict[ir.Value, np.ndarray]:
    """The numbers of constants, those that are computed of others as onnxruntime computes them."""
    found = {v: np.asarray(array_of(v)) for v in values if v.const_value is not None}
    left = [v for v in dict.fromkeys(values) if v not in found]
    if not left:
        return found
    part = model.clone()
    by_name = {v.name: v for node in part.graph for v in node.outputs}
    part.graph.inputs[:] = []
    part.graph.outputs[:] = [by_name[v.name] for v in left]
    RemoveUnusedPass()(part)
    device = parse_device("cpu")
    session = create_session(part, device)
    arrays = run_values(session, {}, [str(v.name) for v in left])
    return {**found, **{v: a.numpy() for v, a in zip(left, arrays, strict=True)}}


def excluded(prepared: Prepared, products: Iterable[Product], texts: object) -> set[ir.Node]:
    """The products that a user leaves out: by names or patterns of weights or nodes, or words.

    Raises
    ------
    UnknownNameError
        A text that means none of them.
    """
    products = list(products)
    catalog = Catalog(prepared)
    found: set[ir.Node] = set()
    for text in texts_of(texts):
        if not isinstance(text, str):
            raise UnknownNameError(
                f"exclude names {text!r}: names, patterns, 'first:1' or 'last:1' are meant."
            )
        chosen = set(catalog.chosen(text)) if is_word(text) else set()
        names = {name for product in products for name in product.roots}
        chosen |= set(matching(text, names))
        nodes = set(matching(text, [str(product.node.name) for product in products]))
        meant = {p.node for p in products if chosen & set(p.roots) or p.node.name in nodes}
        if not meant:
            raise UnknownNameError(
                f"exclude names {text!r}, which is none of the products that would be quantized."
                f"{did_you_mean(text, names)} Their weights are {listed([p.name for p in products])}."
            )
        found |= meant
    return found
