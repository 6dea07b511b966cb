"""Fewer nodes: what rules, each seeing one node only, cannot know to be superfluous.

Every step keeps results; none makes the graph longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.builder import Var

from .emit import GradientBuilder

__all__ = ["fuse_biases", "simplify"]


def fuse_biases(graph: ir.Graph) -> None:
    """A product of matrices and the addition of a bias behind it become one Gemm, in place."""
    for add in [node for node in graph if _is(node, "Add")]:
        for i in (0, 1):
            product, bias = add.inputs[i], add.inputs[1 - i]
            node = None if product is None else product.producer()
            if product is None or node is None or bias is None:
                continue
            if not _is(node, "MatMul") or not _alone(product):
                continue
            a, b = node.inputs
            if _rank(a) == _rank(b) == 2 and _fits(bias, b):
                add.op_type = "Gemm"
                add.replace_input_with(0, a)
                add.replace_input_with(1, b)
                add.resize_inputs(3)
                add.replace_input_with(2, bias)
                graph.remove(node, safe=True)
                break


def _fits(bias: ir.Value, b: ir.Value | None) -> bool:
    """Whether a bias is a vector with an entry, or one for all, per column of b."""
    if bias.shape is None or b is None or b.shape is None or not 1 <= len(bias.shape) <= 2:
        return False
    columns = b.shape[1]
    return all(d == 1 for d in bias.shape[:-1]) and (
        bias.shape[-1] == 1 or (isinstance(columns, int) and bias.shape[-1] == columns)
    )


def simplify(graph: ir.Graph, op: GradientBuilder) -> None:
    """Merge changes of shape that follow each other, in place; nodes no longer read stay.

    Parameters
    ----------
    graph : onnx_ir.Graph
        In topological order; its subgraphs are left alone.
    op : GradientBuilder
        Makes the constants; the caller adds them to the graph.
    """
    steps: dict[str, Callable[[ir.Node, GradientBuilder], ir.Node | ir.Value | None]] = {
        "Reshape": _reshape,
        "Flatten": _reshape,
        "Transpose": _transpose,
        "Add": _sum_of_reshapes,
        "Sum": _sum_of_reshapes,
    }
    ends = set(graph.outputs)
    for node in list(graph):
        step = steps.get(node.op_type)
        if step is None or node.domain not in ("", "ai.onnx"):
            continue
        made = len(op.nodes)
        result = step(node, op)
        if result is None or (isinstance(result, ir.Value) and node.outputs[0] in ends):
            del op.nodes[made:]
            continue
        graph.insert_before(node, op.nodes[made:])
        if isinstance(result, ir.Value):
            node.outputs[0].replace_all_uses_with(result)


# -- steps: what takes the place of a node's output, the node itself if it was changed, else None ----------


def _reshape(node: ir.Node, op: GradientBuilder) -> ir.Node | ir.Value | None:
    """Reshape(Reshape(x, s), t) = Reshape(x, t), and x itself where that is its shape; Flatten likewise."""
    x, before = node.inputs[0], None if node.inputs[0] is None else node.inputs[0].producer()
    if x is None or before is None or not _is(before, "Reshape", "Flatten"):
        return None
    source, y = before.inputs[0], node.outputs[0]
    assert source is not None
    target = _flattened(x, node) if node.op_type == "Flatten" else _absolute(node)
    if (_same_shape(source, y) or _is_shape_of(target, source)) and not y.is_graph_output():
        return source
    if target is None or (node.op_type == "Flatten" and y.is_graph_output()):
        return None
    if isinstance(target, list):
        sizes = op.const(np.array(target, dtype=np.int64))
        if node.op_type == "Flatten":
            made = op.Reshape(op.wrap(source), sizes)
            made.value.shape, made.value.type = y.shape, y.type
            return made.value
        node.replace_input_with(1, sizes.value)
    node.replace_input_with(0, source)
    return node


def _is_shape_of(target: list[int] | ir.Value | None, x: ir.Value) -> bool:
    """Whether a Reshape to that target leaves x as it is: one size at most is open, the others are x's."""
    if isinstance(target, ir.Value):
        tensor = None if target.is_graph_input() else ir.convenience.get_const_tensor(target)
        target = None if tensor is None else [int(d) for d in tensor.numpy()]
    if target is None or x.shape is None or len(target) != len(x.shape) or target.count(-1) > 1:
        return False
    return all(t == -1 or (t > 0 and t == d) for t, d in zip(target, x.shape, strict=True))


def _absolute(node: ir.Node) -> list[int] | ir.Value | None:
    """Target of a Reshape that does not depend on the shape it is given; None if there is none."""
    zero = node.attributes.get("allowzero")
    allowed = zero is not None and zero.as_int() == 1
    target = node.inputs[1]
    tensor = None if target is None else ir.convenience.get_const_tensor(target)
    if target is None or tensor is None or target.is_graph_input():
        return target if allowed else None
    sizes = [int(d) for d in tensor.numpy()]
    if allowed or 0 not in sizes:
        return target
    if sizes.count(0) > 1 or -1 in sizes:
        return None
    return [-1 if d == 0 else d for d in sizes]


def _flattened(x: ir.Value, node: ir.Node) -> list[int] | None:
    """Shape of a Flatten with one size left open."""
    if x.shape is None:
        return None
    attribute = node.attributes.get("axis")
    axis = 1 if attribute is None else attribute.as_int()
    axis = axis % len(x.shape) if axis < 0 else axis
    front, back = (_product(side) for side in (x.shape[:axis], x.shape[axis:]))
    if back:
        return [-1, back]
    return [front, -1] if front else None


def _product(dims: tuple) -> int | None:
    return math.prod(dims) if all(isinstance(d, int) for d in dims) else None


def _transpose(node: ir.Node, op: GradientBuilder) -> ir.Value | None:
    """Two transpositions are one, or none."""
    x = node.inputs[0]
    before = None if x is None else x.producer()
    if x is None or before is None or not _is(before, "Transpose") or node.outputs[0].is_graph_output():
        return None
    inner, outer = before.attributes.get("perm"), node.attributes.get("perm")
    if inner is None or outer is None:
        return None
    perm = [inner.as_ints()[p] for p in outer.as_ints()]
    source = before.inputs[0]
    assert source is not None
    if perm == list(range(len(perm))):
        return source
    if not _alone(x):
        return None
    made = op.Transpose(op.wrap(source), perm=perm)
    made.value.shape, made.value.type = node.outputs[0].shape, node.outputs[0].type
    return made.value


def _sum_of_reshapes(node: ir.Node, op: GradientBuilder) -> ir.Value | None:
    """Reshape(a, s) + Reshape(b, s) = Reshape(a + b, s)."""
    producers = [None if v is None or not _alone(v) else v.producer() for v in node.inputs]
    if len(producers) < 2 or node.outputs[0].is_graph_output():
        return None
    first = producers[0]
    if any(p is None or first is None or not _is(p, "Reshape") for p in producers) or first is None:
        return None
    sources = [p.inputs[0] for p in producers if p is not None]
    same = all(
        p is not None and p.inputs[1] is first.inputs[1] and p.attributes == first.attributes
        for p in producers
    )
    if not same or sources[0] is None:
        return None
    counts = all(_same_shape(first.outputs[0], v) for v in node.inputs)
    if not all(_same_shape(sources[0], s, one_open=counts) for s in sources[1:]):
        return None
    total = op.call(node.op_type, *sources)
    total.value.shape, total.value.type = sources[0].shape, sources[0].type
    kept = {name: a.value for name, a in first.attributes.items()}
    made: Var = op.Reshape(total, first.inputs[1], **kept)
    made.value.shape, made.value.type = node.outputs[0].shape, node.outputs[0].type
    return made.value


# -- questions -----------------------------------------------------------------------------------------


def _is(node: ir.Node, *op_types: str) -> bool:
    return node.op_type in op_types and node.domain in ("", "ai.onnx")


def _alone(value: ir.Value) -> bool:
    """Whether a value is read once and is no output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _same_shape(a: ir.Value, b: ir.Value | None, one_open: bool = False) -> bool:
    """Whether two values certainly have the same shape; of as many elements if `one_open`."""
    if b is None or a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    sizes = [(_size(x), _size(y)) for x, y in zip(a.shape, b.shape, strict=True)]
    unsure = [pair for pair in sizes if None in pair or pair[0] != pair[1]]
    if one_open and len(unsure) == 1:
        # The other dimensions are the same and not empty, and so is the last one.
        return None in unsure[0] and all(isinstance(x, int) and x for x, _ in sizes if (x, _) != unsure[0])
    return not unsure


def _size(dim: int | ir.SymbolicDim) -> int | str | None:
    return dim if isinstance(dim, int) else dim.value
