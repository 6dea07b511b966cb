"""Sequences and optionals: nodes that take a tensor out give its gradient to the tensor put in.

Positions must be known before the graph runs; what a Loop or an If does to a sequence is refused.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxcustom.exceptions import GradientNotImplementedError
from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.building.builder import Var

from ..carried import Element, element_at, elements, held
from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import non_differentiable, rule

__all__: list[str] = []

Given = tuple[list[Var | None], dict[ir.Value, Var]]


@rule("SequenceAt")
def sequence_at(op: GradientBuilder, node: NodeView, dy: Var) -> Given:
    """y = sequence[i]:  dy goes to the tensor that became element i."""
    element = element_at(node.node)
    if element is None:
        raise _unknown(node)
    return [None] * len(node.inputs), {element.value: _give(op, node, element, dy)}


@rule("ConcatFromSequence")
def concat_from_sequence(op: GradientBuilder, node: NodeView, dy: Var) -> Given:
    """y = [element₀, element₁, ...]: each element gets its section of dy."""
    found = elements(node.node.inputs[0])
    if found is None:
        raise _unknown(node)
    axis = node.attr("axis")
    if node.attr("new_axis"):
        parts = [op.Gather(dy, op.const(i, ir.DataType.INT64), axis=axis) for i in range(len(found))]
    else:
        sizes = [_size(op, node, element, axis) for element in found]
        names = ["part"] * len(found)
        parts = list(op.call("Split", dy, op.sizes_vector(sizes), axis=axis, outputs=names))
    given: dict[ir.Value, Var] = {}
    for element, part in zip(found, parts, strict=True):
        if element.value not in node.captured:
            continue
        gradient = _give(op, node, element, part)
        given[element.value] = gradient if element.value not in given else given[element.value] + gradient
    return [None] * len(node.inputs), given


@rule("OptionalGetElement")
def optional_get_element(op: GradientBuilder, node: NodeView, dy: Var) -> Given:
    """y = what the optional holds:  dy goes to the tensor it was made from."""
    source: Any = node.node.inputs[0]
    value = held(source)
    if value is not None:
        return [None], {value: dy}
    if isinstance(source.type, (ir.OptionalType, ir.SequenceType)):
        raise _unknown(node)
    return [dy], {}


def _give(op: GradientBuilder, node: NodeView, element: Element, dy: Var) -> Var:
    """The gradient of an element as that of the tensor it was cut from."""
    if element.split is None:
        return dy
    x = op.wrap(element.value)
    axis, chunk, sizes, keepdims = _cut(node, element)
    if not keepdims:
        dy = op.unsqueeze(dy, [axis])
    before = element.index * chunk if sizes is None else sum(sizes[: element.index])
    total = op.size(x, axis)
    if sizes is not None:
        after: Any = sum(sizes[element.index + 1 :])
    elif isinstance(total, int):
        after = max(total - before - chunk, 0)
    else:
        after = total - op.dim(dy, axis) - before
    return op.pad(dy, [before], [after], [axis])


def _cut(node: NodeView, element: Element) -> tuple[int, int, list[int] | None, bool]:
    """Axis of a SplitToSequence, its chunk or its sizes, and whether pieces keep the axis."""
    split = element.split
    assert split is not None
    axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
    given = split.inputs[1] if len(split.inputs) > 1 else None
    value = constant_array(given)
    if given is not None and value is None:
        raise _unknown(node)
    if value is not None:
        return (axis, 0, value.tolist(), True) if value.ndim else (axis, int(value), None, True)
    keepdims = split.attributes["keepdims"].as_int() if "keepdims" in split.attributes else 1
    return axis, 1, None, bool(keepdims)


def _size(op: GradientBuilder, node: NodeView, element: Element, axis: int) -> int | Var:
    """Size of an element along an axis."""
    x = op.wrap(element.value)
    if element.split is None:
        return op.size(x, axis)
    cut, chunk, sizes, keepdims = _cut(node, element)
    if x.rank is None or not keepdims:
        raise node.walk.error(
            GradientNotImplementedError,
            node.node,
            "it joins pieces of a tensor of unknown rank, or pieces without the axis they were cut along; "
            "use Split and Concat instead",
        )
    if cut % x.rank != axis % x.rank:
        return op.size(x, axis)
    if sizes is not None:
        return sizes[element.index]
    total = op.size(x, axis)  # a number: the pieces were counted
    assert isinstance(total, int)
    return min(chunk, total - element.index * chunk)


def _unknown(node: NodeView) -> Exception:
    return node.walk.error(
        GradientNotImplementedError,
        node.node,
        "which tensor it takes is known only when the graph runs; make the position a constant and build the "
        "sequence or optional outside of Loop, Scan and If, or use Concat, Split and Gather instead",
    )


@rule("SequenceConstruct", "SequenceInsert", "SequenceErase", "SplitToSequence", "Optional")
def sequence(op: GradientBuilder, node: NodeView, *dys: Var) -> None:
    """Holds tensors; their gradients come from the nodes that take them out, never from here."""
    raise node.walk.error(
        GradientNotImplementedError,
        node.node,
        "its output, a sequence or an optional, is asked for as a whole; differentiate the tensors in it",
    )


non_differentiable("SequenceEmpty", reason="it holds nothing")
non_differentiable("SequenceLength", reason="its output is a length, which no value of its input changes")
non_differentiable("OptionalHasElement", reason="its output is true or false")
