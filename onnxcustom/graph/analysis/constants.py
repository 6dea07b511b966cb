"""Values that are the same in every run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.operators import is_op

__all__ = ["constant_array", "constant_tensor", "is_computed_beforehand", "keeps_shape"]


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of :func:`constant_tensor`."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or ``Constant``, also behind ``Identity``, None of all else.

    An initializer that is an input of its graph is not constant: it is only what that has by default.
    """
    while value is not None and not value.is_graph_input():
        if value.const_value is not None:
            return value.const_value
        node = value.producer()
        if is_op(node, "Constant"):
            assert node is not None
            return _of_node(node)
        value = node.inputs[0] if node is not None and is_op(node, "Identity") else None
    return None


def _of_node(node: ir.Node) -> ir.TensorProtocol | None:
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return attribute.as_tensor()
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.array(attribute.value, dtype=np.float32))
        if name in ("value_int", "value_ints"):
            return ir.tensor(np.array(attribute.value, dtype=np.int64))
    return None


def is_computed_beforehand(node: ir.Node) -> bool:
    """Whether a node depends on initializers alone, so that a runtime computes it when it loads the graph."""
    todo, seen = [node], {node}
    while todo:
        for value in todo.pop().inputs:
            if value is None or (value.is_initializer() and not value.is_graph_input()):
                continue
            maker = value.producer()
            if maker is None:
                return False
            if maker not in seen:
                seen.add(maker)
                todo.append(maker)
    return True


def keeps_shape(shape: ir.Shape | None, sizes: Sequence[int] | None) -> bool:
    """Whether a Reshape to `sizes`, of which one may be open, certainly leaves a tensor as it is."""
    if shape is None or sizes is None or len(sizes) != len(shape) or list(sizes).count(-1) > 1:
        return False
    return all(size == -1 or (size > 0 and size == d) for size, d in zip(sizes, shape, strict=True))
