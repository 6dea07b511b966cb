"""Normalizations by constant statistics taken into the product before them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_names
from onnxcustom.graph.building.builder import Builder
from onnxcustom.graph.preparation.unused import RemoveUnusedPass
from onnxcustom.graph.trainable.finding import array_of

from .sites import Product, products_of

__all__ = ["fold_normalizations"]


def fold_normalizations(model: ir.Model) -> None:
    """Take BatchNormalization that alone reads a product with a weight into weight and bias, in place."""
    op = Builder(model.opset_imports[""], taken=all_names(model.graph))
    for product in products_of(model):
        readers = [use.node for use in product.node.outputs[0].uses()]
        following = readers[0] if len(readers) == 1 else None
        if (
            product.position == 1
            and product.axis is not None
            and is_op(following, "BatchNormalization")
            and _is_constant(following)
        ):
            assert following is not None
            _fold(model, op, product, following)
    RemoveUnusedPass()(model)


def _is_constant(node: ir.Node | None) -> bool:
    """Whether it goes by statistics that nothing computes."""
    return (
        node is not None
        and not node.attributes.get_int("training_mode", 0)
        and all(v is not None and v.const_value is not None for v in node.inputs[1:5])
    )


def _fold(model: ir.Model, op: Builder, product: Product, normalization: ir.Node) -> None:
    node = product.node
    if is_op(node, "MatMul") and len(product.weight.shape or ()) != 2:
        return
    if is_op(node, "Gemm") and node.attributes.get_float("beta", 1.0) != 1:
        return
    scale, shift, mean, variance = (
        array_of(v).astype(np.float64) for v in normalization.inputs[1:5] if v is not None
    )
    factor = scale / np.sqrt(variance + normalization.attributes.get_float("epsilon", 1e-5))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.const_value is None:
        return
    assert product.weight.dtype is not None
    dtype = product.weight.dtype.numpy()
    before = np.zeros(len(factor)) if bias is None else array_of(bias).astype(np.float64)
    weight = _scaled(model, op, product, factor)
    added = _constant(model, op, f"{product.name}_bias", (before - mean) * factor + shift, dtype)
    if is_op(node, "MatMul"):
        _behind(op, node, normalization, weight, added)
    else:
        node.replace_input_with(product.position, weight)
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, added)
        normalization.outputs[0].replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)


def _behind(op: Builder, node: ir.Node, normalization: ir.Node, weight: ir.Value, added: ir.Value) -> None:
    """Let a MatMul read its new weight, and add the bias to it."""
    node.replace_input_with(1, weight)
    start = len(op.nodes)
    total = op.Add(node.outputs[0], added).value
    total.shape, total.dtype = normalization.outputs[0].shape, normalization.outputs[0].dtype
    made, op.nodes[start:] = op.nodes[start:], []
    assert node.graph is not None
    node.graph.insert_after(node, made)
    normalization.outputs[0].replace_all_uses_with(total, replace_graph_outputs=True)


def _scaled(model: ir.Model, op: Builder, product: Product, factor: np.ndarray) -> ir.Value:
    """The weight times a number for each of its outputs; one that is computed is multiplied in the graph."""
    weight = product.weight
    shape = [1] * len(weight.shape or ())
    assert product.axis is not None
    assert weight.dtype is not None
    shape[product.axis] = -1
    alone = len(weight.uses()) == 1 and not weight.is_graph_output()
    if weight.const_value is not None and alone:
        array = array_of(weight)
        weight.const_value = ir.Tensor(
            (array * factor.reshape(shape)).astype(array.dtype), dtype=weight.dtype, name=weight.name
        )
        return weight
    start = len(op.nodes)
    by = _constant(model, op, f"{product.name}_factor", factor.reshape(shape), weight.dtype.numpy())
    made = op.Mul(weight, by).value
    made.shape, made.dtype = weight.shape, weight.dtype
    nodes, op.nodes[start:] = op.nodes[start:], []
    assert product.node.graph is not None
    product.node.graph.insert_before(product.node, nodes)
    return made


def _constant(model: ir.Model, op: Builder, name: str, array: np.ndarray, dtype: np.dtype) -> ir.Value:
    name = op.unique(name)
    value = op.initializer(name, ir.tensor(array.astype(dtype), name=name))
    model.graph.register_initializer(value)
    return value
