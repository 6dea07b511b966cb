"""Adapters put beside the matrices of a model, and taken into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.traversal import all_names, sort_nodes
from onnxcustom.graph.building.builder import Builder, Var

from .sites import Matrix, Site, matrices_of

__all__ = ["attach", "delta", "first_factors", "names_of", "shapes_of"]


def names_of(weight: str) -> tuple[str, str]:
    """What the two factors beside a weight are called: A, which reads, and B, which writes.

    Examples
    --------
    >>> names_of("w")
    ('w.lora_A', 'w.lora_B')
    """
    return f"{weight}.lora_A", f"{weight}.lora_B"


def shapes_of(matrix: Matrix, rank: int | str) -> tuple[list[Any], list[Any]]:
    """Shapes of A and B: (inputs, rank) and (rank, outputs), beside a Conv those of its kernels."""
    inputs, outputs = matrix.features
    sides = [1] * (len(matrix.value.shape or ()) - 2)
    if sides:
        return [rank, inputs, *sides], [outputs, rank, *sides]
    return [inputs, rank], [rank, outputs]


def first_factors(matrix: Matrix, rank: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A as PyTorch draws the weights of a linear layer, and B of zeros: the model computes what it did."""
    (a, b), dtype = shapes_of(matrix, rank), matrix.dtype.numpy()
    bound = 1 / np.sqrt(matrix.features[0])
    return rng.uniform(-bound, bound, size=a).astype(dtype), np.zeros(b, dtype)


def delta(matrix: Matrix, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """What an adapter adds to its weight, in double precision and in the weight's own layout."""
    left, right = (f.reshape(f.shape[:2]).astype(np.float64) for f in (a, b))
    product = (right @ left).T if a.ndim > 2 else left @ right  # kernels have outputs first
    tensor = matrix.value.const_value
    assert tensor is not None
    return scale * (product.T if matrix.rows_are_outputs else product).reshape(tensor.shape.numpy())


def attach(
    model: ir.Model,
    weights: Iterable[str],
    factors: Mapping[str, np.ndarray],
    scale: float,
    as_inputs: bool = False,
    summed: bool = False,
) -> None:
    """Put adapters beside weights of a prepared model, in place.

    Parameters
    ----------
    model : onnx_ir.Model
        Changed.
    weights : iterable of str
        Names of matrices that :func:`~onnxcustom.tuning.lora.sites.matrices_of` finds.
    factors : mapping of str to ndarray
        A and B of each, by their names.
    scale : float
        What the product of the two is multiplied by.
    as_inputs : bool, default=False
        Whether A and B are inputs of the model, of any rank, for which the factors stand by default.
    summed : bool, default=False
        Whether they are added to the weight, which everything is then multiplied by, and not what is
        computed by them to what is computed by it. For weights of floats.
    """
    found = matrices_of(model)
    op = Builder(model.opset_imports[""], taken=all_names(model.graph))
    for name in weights:
        matrix = found[name]
        a, b = (_factor(model, op, matrix, i, factors, as_inputs) for i in range(2))
        if summed:
            _added(model, op, matrix, (op.wrap(a), op.wrap(b)), scale)
        for site in () if summed else matrix.sites:
            _beside(op, site, op.wrap(a), op.wrap(b), scale)


def _factor(
    model: ir.Model, op: Builder, matrix: Matrix, which: int, factors: Mapping[str, np.ndarray], given: bool
) -> ir.Value:
    """A (`which` is 0) or B (1) as an initializer, and as an input of any rank if that is wanted."""
    name = names_of(matrix.name)[which]
    value = op.initializer(name, ir.tensor(factors[name], name=name))
    model.graph.register_initializer(value)
    if given:
        # Each weight has a rank of its own: adapters that were combined differ in them.
        value.shape = ir.Shape(shapes_of(matrix, f"{matrix.name}.rank")[which])
        model.graph.inputs.append(value)
    return value


def _beside(op: Builder, site: Site, a: Var, b: Var, scale: float) -> None:
    """Add to what a node computes what it computes by an adapter."""
    node, start = site.node, len(op.nodes)
    product = _convolved(op, node, a, b, scale) if node.op_type == "Conv" else _product(op, site, a, b, scale)
    computed = node.outputs[0]
    total = op.Add(computed, product).value
    total.type, total.shape = computed.type, computed.shape
    made, op.nodes[start:] = op.nodes[start:], []
    graph = node.graph
    assert graph is not None
    for value in op.initializers:
        if not value.is_initializer():
            graph.register_initializer(value)
    if computed.is_graph_output():  # which keeps its name
        own, computed.name = computed.name, op.unique(f"{computed.name}_base")
        total.name = own
    computed.replace_all_uses_with(total, replace_graph_outputs=True)
    made[-1].replace_input_with(0, computed)
    graph.insert_after(node, made)


def _added(model: ir.Model, op: Builder, matrix: Matrix, factors: tuple[Var, Var], scale: float) -> None:
    """Put the sum of a weight and its adapter in the weight's place."""
    root, graph = matrix.value, model.graph
    uses = list(root.uses())
    a, b = factors
    if len(root.shape or ()) > 2:  # of kernels, which have outputs first
        change = op.MatMul(op.Flatten(b, axis=1), op.Flatten(a, axis=1))
        assert root.const_value is not None
        change = op.Reshape(change, list(root.const_value.shape.numpy()))
    else:
        change = op.MatMul(a, b)
        change = op.Transpose(change, perm=[1, 0]) if matrix.rows_are_outputs else change
    if root.dtype is not None and root.dtype != matrix.dtype:
        change = op.Cast(change, to=root.dtype)
    total = op.Add(root, _scaled(change, scale)).value
    total.type, total.shape = root.type, root.shape
    for use in uses:
        use.node.replace_input_with(use.idx, total)
    graph.extend(op.nodes)
    op.nodes[:] = []
    for value in op.initializers:
        if not value.is_initializer():
            graph.register_initializer(value)
    sort_nodes(graph)


def _scaled(low: Var, scale: float) -> Var:
    return low if scale == 1 else low * scale


def _product(op: Builder, site: Site, a: Var, b: Var, scale: float) -> Var:
    """The product by an adapter beside a MatMul or Gemm, the small one first."""
    node = site.node
    x = node.inputs[1 - site.position]
    assert x is not None
    data = op.wrap(x)
    if node.op_type == "Gemm":
        scale *= node.attributes.get_float("alpha", 1.0)
        if node.attributes.get_int("transB" if site.position == 0 else "transA", 0):
            data = op.Transpose(data, perm=[1, 0])
    if site.position == 1:
        return op.MatMul(_scaled(op.MatMul(data, a), scale), b)
    turned = [op.Transpose(factor, perm=[1, 0]) for factor in (a, b)]
    return op.MatMul(turned[1], _scaled(op.MatMul(turned[0], data), scale))


def _convolved(op: Builder, node: ir.Node, a: Var, b: Var, scale: float) -> Var:
    """What a Conv of kernels of one element computes by an adapter; padding and steps belong to the first."""
    x = node.inputs[0]
    assert x is not None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    sides = len(a.shape or ()) - 2
    low = op.node("Conv", x, a, **{**attributes, "kernel_shape": [1] * sides})
    return op.node("Conv", _scaled(low, scale), b, kernel_shape=[1] * sides)
