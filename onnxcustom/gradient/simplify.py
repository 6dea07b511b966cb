"""Fewer nodes: what rules, each seeing one node only, cannot know to be superfluous.

Every step keeps results; none makes the graph longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array, keeps_shape
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.building.builder import Var

from .emit import GradientBuilder
from .joining import joined_pads

__all__ = ["become", "fuse_biases", "simplify"]

Step = Callable[[ir.Node, GradientBuilder], ir.Node | ir.Value | None]
# What is computed from constants before the graph runs, and up to how many numbers.
_ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Neg": np.negative,
    "Reciprocal": np.reciprocal,
    "Sqrt": np.sqrt,
}
_FEW = 2**14
# As many numbers are added faster by a product of matrices.
_WORTH_A_PRODUCT = 2**10


def fuse_biases(graph: ir.Graph) -> None:
    """A product of matrices and the addition of a bias behind it become one Gemm, in place."""
    for add in [node for node in graph if is_op(node, "Add")]:
        for i in (0, 1):
            product, bias = add.inputs[i], add.inputs[1 - i]
            node = None if product is None else product.producer()
            if product is None or node is None or bias is None:
                continue
            if not is_op(node, "MatMul") or not _alone(product):
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
    """Merge nodes that follow each other, compute what is constant; nodes no longer read stay.

    Parameters
    ----------
    graph : onnx_ir.Graph
        In topological order, changed in place; its subgraphs are left alone.
    op : GradientBuilder
        Makes the constants; the caller adds them to the graph.
    """
    steps: dict[str, tuple[Step, ...]] = {
        "Reshape": (_reshape,),
        "Flatten": (_reshape,),
        "Transpose": (_transpose, _turned_product),
        "Squeeze": (_squeezed_reduction,),
        "ReduceSum": (_summed_rows,),
        "Add": (_folded, _without_expand, _sum_of_reshapes, joined_pads),
        "Sum": (_without_expand, _sum_of_reshapes, joined_pads),
        "Sub": (_folded, _without_expand),
        "Mul": (_folded, _times_one, _scaled_product, _without_expand),
        "Div": (_folded, _times_one, _without_expand),
        "Neg": (_folded, _scaled_product),
        "Reciprocal": (_folded,),
        "Sqrt": (_folded,),
    }
    ends = set(graph.outputs)
    for node in list(graph):
        if node.domain != "":
            continue
        made = len(op.nodes)
        results = (step(node, op) for step in steps.get(node.op_type, ()))
        result = next((r for r in results if r is not None), None)
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
    if x is None or before is None or not is_op(before, "Reshape", "Flatten"):
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
        array = constant_array(target)
        target = None if array is None else [int(d) for d in array]
    return keeps_shape(x.shape, target)


def _absolute(node: ir.Node) -> list[int] | ir.Value | None:
    """Target of a Reshape that does not depend on the shape it is given; None if there is none."""
    zero = node.attributes.get("allowzero")
    allowed = zero is not None and zero.as_int() == 1
    target = node.inputs[1]
    array = constant_array(target)
    if array is None:
        return target if allowed else None
    sizes = [int(d) for d in array]
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
    if x is None or before is None or not is_op(before, "Transpose") or node.outputs[0].is_graph_output():
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


def _turned_product(node: ir.Node, op: GradientBuilder) -> ir.Node | None:
    """(a b)ᵀ = bᵀ aᵀ: a product of matrices takes its operands turned, and hands out no more than it did."""
    x = node.inputs[0]
    before = None if x is None or not _alone(x) else x.producer()
    perm = node.attributes.get("perm")
    if before is None or not is_op(before, "Gemm") or len(before.inputs) > 2 or _rank(x) != 2:
        return None
    if perm is not None and list(perm.as_ints()) != [1, 0]:
        return None
    a, b = before.inputs
    attributes = {name: v.value for name, v in before.attributes.items() if name in ("alpha", "beta")}
    for name, other in (("transA", "transB"), ("transB", "transA")):
        attributes[name] = 1 - before.attributes.get_int(other, 0)
    return become(node, "Gemm", [b, a], attributes)


def _sum_of_reshapes(node: ir.Node, op: GradientBuilder) -> ir.Value | None:
    """Reshape(a, s) + Reshape(b, s) = Reshape(a + b, s)."""
    producers = [None if v is None or not _alone(v) else v.producer() for v in node.inputs]
    if len(producers) < 2 or node.outputs[0].is_graph_output():
        return None
    first = producers[0]
    if any(p is None or first is None or not is_op(p, "Reshape") for p in producers) or first is None:
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


def _folded(node: ir.Node, op: GradientBuilder) -> ir.Value | None:
    """The value of arithmetic on constants, such as the statistics of a normalization."""
    arrays = [v for v in map(_constant, node.inputs) if v is not None]
    if len(arrays) < len(node.inputs) or not all(is_float(v) for v in node.inputs):
        return None
    with np.errstate(all="ignore"):
        result = _ARITHMETIC[node.op_type](*arrays)
    return op.const(np.asarray(result, dtype=arrays[0].dtype)).value if result.size <= _FEW else None


def _times_one(node: ir.Node, op: GradientBuilder) -> ir.Value | None:
    """The other factor of a product with 1, the dividend of a division by 1."""
    for x, factor in [tuple(node.inputs), tuple(reversed(node.inputs))][: 2 if node.op_type == "Mul" else 1]:
        one = _constant(factor)
        if x is not None and one is not None and one.size == 1 and one.item() == 1:
            rank = _rank(x)
            if one.ndim == 0 or (rank is not None and one.ndim <= rank):
                return x
    return None


def _scaled_product(node: ir.Node, op: GradientBuilder) -> ir.Node | None:
    """A product of matrices times a number, which the product itself can take as alpha."""
    for i, product in enumerate(node.inputs):
        before = None if product is None or not _alone(product) else product.producer()
        factor = np.float32(-1) if node.op_type == "Neg" else _number(node.inputs[1 - i])
        if before is None or factor is None or not is_op(before, "Gemm"):
            continue
        attributes = {name: a.value for name, a in before.attributes.items()}
        scales = [float(attributes.get(name, 1.0)) * float(factor) for name in ("alpha", "beta")]
        rounded = [float(np.float32(s)) for s in scales]  # attributes have the precision of float32
        if not np.isfinite(rounded).all() or (factor.dtype == np.float64 and rounded != scales):
            continue
        attributes |= dict(zip(("alpha", "beta"), rounded, strict=True))
        return become(node, "Gemm", before.inputs, attributes)
    return None


def _number(value: ir.Value | None) -> np.generic | None:
    """A floating-point constant of one element, which a matrix times it stays a matrix."""
    array = _constant(value)
    if array is None or array.size != 1 or array.ndim > 2 or not is_float(value):
        return None
    return array.ravel()[0]


def _without_expand(node: ir.Node, op: GradientBuilder) -> ir.Node | None:
    """What is expanded to the shape of the other operand need not be: the operator broadcasts."""
    changed = None
    for i, value in enumerate(node.inputs):
        before = None if value is None else value.producer()
        if value is None or before is None or not is_op(before, "Expand"):
            continue
        others = [v for k, v in enumerate(node.inputs) if k != i and v is not None]
        if any(_same_shape(value, v) or _is_shape_node(before.inputs[1], v) for v in others):
            node.replace_input_with(i, before.inputs[0])
            changed = node
    return changed


def _is_shape_node(target: ir.Value | None, x: ir.Value) -> bool:
    """Whether a value is the shape of x, whatever that is."""
    node = None if target is None else target.producer()
    return node is not None and is_op(node, "Shape") and node.inputs[0] is x and not node.attributes


def _squeezed_reduction(node: ir.Node, op: GradientBuilder) -> ir.Node | None:
    """Dimensions that a reduction keeps and a Squeeze removes need not be kept."""
    x = node.inputs[0]
    before = None if x is None or not _alone(x) else x.producer()
    if before is None or not before.op_type.startswith("Reduce") or before.domain != "":
        return None
    rank = _rank(before.inputs[0])
    axes, gone = (None if len(n.inputs) < 2 else _constant(n.inputs[1]) for n in (before, node))
    attributes = {name: a.value for name, a in before.attributes.items()}
    if rank is None or axes is None or gone is None or not axes.size or not attributes.get("keepdims", 1):
        return None
    if {int(a) % rank for a in axes} != {int(a) % rank for a in gone}:
        return None
    return become(node, before.op_type, before.inputs, {**attributes, "keepdims": 0})


def _summed_rows(node: ir.Node, op: GradientBuilder) -> ir.Node | None:
    """The sum of a matrix's rows as a product with ones.

    On onnxruntime's CPU a third of the time, half for large ones; where the number of rows is known only
    when the graph runs, making the ones would take two nodes.
    """
    x, axes = node.inputs[0], _constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if x is None or x.shape is None or len(x.shape) != 2 or axes is None or axes.tolist() not in ([0], [-2]):
        return None
    rows, columns = (d if isinstance(d, int) else 0 for d in x.shape)
    keepdims = node.attributes.get_int("keepdims", 1)
    if keepdims or rows > _FEW or rows * columns < _WORTH_A_PRODUCT:
        return None
    if x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return None
    return become(node, "MatMul", [op.const(np.ones(rows), x.dtype).value, x], {})


def become(
    node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any]
) -> ir.Node:
    """Make another operator of a node, whose output stays."""
    node.op_type = op_type
    node.resize_inputs(len(inputs))
    for i, value in enumerate(inputs):
        node.replace_input_with(i, value)
    node.attributes.clear()
    node.attributes.update({a.name: a for a in ir.convenience.convert_attributes(attributes)})
    return node


# -- questions -----------------------------------------------------------------------------------------


def _alone(value: ir.Value) -> bool:
    """Whether a value is read once and is no output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a small constant."""
    array = constant_array(value)
    return None if array is None or array.size > _FEW else array


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
