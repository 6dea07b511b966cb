"""Scalars with as many axes as what they meet, where that ends in axes of one number.

onnxruntime lines up the shapes of two operands from their ends. Where the shorter one has no axes left before
it meets an axis of more than one number, it takes every number by itself: ``2 * x`` of the weights of a 1x1
convolution, (512, 512, 1, 1), takes 60 times as long as of (512, 512). With (1, 1, 1, 1) in place of
the number it does not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_names, all_nodes, unique_name

__all__ = ["widen_scalars"]

# Those that broadcast their operands, all of onnxruntime by the same code.
_BROADCASTS = (
    "Add Sub Mul Div Pow Mod Max Min Mean Sum PRelu Where "
    "Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor"
).split()


# Numbers of a tensor from which it pays to reshape a scalar, which is a node of its own.
_WORTH_A_NODE = 2**8


def widen_scalars(model: ir.Model, fed: Collection[str] = ()) -> None:
    """Give scalars the rank of the tensors that they are applied to, where it matters: in place.

    Constants are made anew; what is computed or comes from outside is reshaped, once for all that read it.

    Parameters
    ----------
    model : onnx_ir.Model
        Any graph, sorted, with shapes as far as they are known. Results stay to the bit.
    fed : collection of str
        Graph inputs that may as well have more axes, since who feeds them asks the graph.
    """
    slow = _slow(model)
    for given in [v for v in model.graph.inputs if v.name in fed and v.shape is not None]:
        ranks = {slow.get((node, i), 0) for node, i in given.uses()}
        if len(ranks) == 1 and 0 not in ranks:
            given.shape = ir.Shape([1] * ranks.pop())
    taken: set[str] | None = None
    made: dict[tuple[ir.Value, int, Any], ir.Value] = {}
    for (node, i), rank in slow.items():
        value = node.inputs[i]
        assert value is not None
        if _rank(value) == rank:
            continue
        array = constant_array(value)
        if array is None and _numbers(node.inputs) < _WORTH_A_NODE:
            continue
        key = (value, rank, None if array is not None else node.graph)
        if key not in made:
            taken = all_names(model.graph) if taken is None else taken
            shape = np.array([1] * rank, np.int64)
            if array is not None:
                made[key] = _initializer(model.graph, f"{value.name}_{rank}d", array.reshape(shape), taken)
            else:
                made[key] = _reshaped(model.graph, node, value, shape, taken)
        node.replace_input_with(i, made[key])


def _slow(model: ir.Model) -> dict[tuple[ir.Node, int], int]:
    """Where a scalar is read that has too few axes: node and input -> the axes that it should have."""
    found: dict[tuple[ir.Node, int], int] = {}
    for node in all_nodes(model.graph):
        if not is_op(node, *_BROADCASTS) or len(node.inputs) < 2:
            continue
        rank = max(map(_rank, node.inputs))
        ends = [v for v in node.inputs if v is not None and _rank(v) == rank and _ends_in_ones(v)]
        for i, value in enumerate(node.inputs) if ends else ():
            if value is not None and _is_scalar(value) and any(_meets_ones(value, x) for x in ends):
                found[node, i] = rank
    return found


def _numbers(values: Iterable[ir.Value | None]) -> int:
    """The least that the largest of some tensors has."""
    known = [[d for d in v.shape if isinstance(d, int)] for v in values if v is not None and v.shape]
    return max(map(math.prod, known), default=0)


def _rank(value: ir.Value | None) -> int:
    return 0 if value is None or value.shape is None else len(value.shape)


def _is_scalar(value: ir.Value) -> bool:
    return value.shape is not None and all(d == 1 for d in value.shape)


def _ends_in_ones(x: ir.Value) -> bool:
    """Whether the last axis has one number, and another one may have more."""
    return x.shape is not None and len(x.shape) > 1 and x.shape[-1] == 1 and any(d != 1 for d in x.shape)


def _meets_ones(scalar: ir.Value, x: ir.Value) -> bool:
    """Whether all axes of a tensor that those of a scalar are lined up with have one number."""
    assert x.shape is not None
    return _rank(scalar) < _rank(x) and all(d == 1 for d in list(x.shape)[-max(1, _rank(scalar)) :])


def _reshaped(
    graph: ir.Graph, before: ir.Node, value: ir.Value, shape: np.ndarray, taken: set[str]
) -> ir.Value:
    """A scalar that is computed, or an input, in this shape."""
    name = f"shape_of_scalars_{len(shape)}d"
    target = graph.initializers.get(name) or _initializer(graph, name, shape, taken)
    made = ir.Value(
        name=unique_name(f"{value.name}_{len(shape)}d", taken),
        type=value.type,
        shape=ir.Shape(shape.tolist()),
    )
    node = ir.node("Reshape", [value, target], outputs=[made], name=unique_name(f"{made.name}_node", taken))
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return made


def _initializer(graph: ir.Graph, name: str, array: np.ndarray, taken: set[str]) -> ir.Value:
    tensor = ir.Tensor(array, name=unique_name(name, taken))
    value = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value
