"""Einsum: the gradient of a sum of products is a sum of products."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import rule
from .linear import broadcast_size

ELLIPSIS = "."  # "..." while an equation is taken apart, so that a label is one character


def parse(equation: str) -> tuple[list[str], str]:
    """Labels of the operands and of the result; an implicit result is spelled out.

    Examples
    --------
    >>> parse("b...j, jk")
    (['b.j', 'jk'], '.bk')
    """
    text = equation.replace(" ", "").replace("...", ELLIPSIS)
    left, arrow, right = text.partition("->")
    if not arrow:
        labels = left.replace(",", "")
        right = "".join(sorted(c for c in set(labels) - {ELLIPSIS} if labels.count(c) == 1))
        right = ELLIPSIS * (ELLIPSIS in labels) + right
    return left.split(","), right


@rule("Einsum")
def einsum(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y = einsum(ij,jk->ik; a, b):  da = einsum(ik,jk->ij; dy, b), and so on for every operand.

    A label that only the operand has was summed over: it comes back as a vector of ones.  A label
    that the operand repeats took a diagonal: it comes back as a product with the identity.
    """
    terms, result = parse(node.attr("equation"))
    return [
        _operand_gradient(op, node, dy, k, terms, result) if node.needs[k] else None
        for k in range(len(terms))
    ]


def _operand_gradient(
    op: GradientBuilder, node: NodeView, dy: Var, k: int, terms: Sequence[str], result: str
) -> Var:
    x, term = node.inputs[k], terms[k]
    others = [(v, t) for i, (v, t) in enumerate(zip(node.inputs, terms, strict=True)) if i != k]
    factors = [(dy, result), *others]
    present = "".join(t for _, t in factors)
    unused = iter(c for c in string.ascii_letters if c not in present + term)
    target = ""
    renamed: dict[str, str] = {}
    for axis, label in enumerate(term):
        if label in target:
            fresh = next(unused)
            factors.append((op.eye(x, _axis(term, axis)), label + fresh))
            renamed[fresh] = label
            label = fresh
        elif label not in present:
            factors.append((_ones(op, x, _axis(term, axis)), label))
        target += label
    if ELLIPSIS in result and ELLIPSIS not in term:
        target = ELLIPSIS + target  # Einsum may not drop an ellipsis: sum_to does
    dx = _contract(op, factors, target)
    sizes = _sizes(list(zip(node.inputs, terms, strict=True)))
    dx.value.shape = _shape(target, sizes, renamed)
    # A label of size 1 is repeated along the same label of the others: in x, or in all but x.
    summed = [(label, axis) for axis, label in enumerate(term) if label in present and label not in result]
    seen = _sizes(others)
    if any(not _reaches(seen.get(label), x, _axis(term, axis)) for label, axis in summed):
        shape, dx.value.shape = dx.value.shape, None
        dx = op.Expand(dx, op.shape(x))
        dx.value.shape = shape
    summed_dx = op.sum_to(dx, x)
    if summed_dx is not dx:
        dx.value.shape = None  # onnx's shape inference knows no broadcasting in Einsum: it would object
    return summed_dx


def _axis(term: str, axis: int) -> int:
    """Axis of a label, counted from the end if an ellipsis comes first."""
    return axis - len(term) if ELLIPSIS in term[:axis] else axis


def _contract(op: GradientBuilder, factors: Sequence[tuple[Var, str]], target: str) -> Var:
    """The product of all factors, summed over what is not in `target`; numbers multiply it."""
    numbers = [v for v, labels in factors if not labels]
    arrays = [(v, labels) for v, labels in factors if labels]
    if len(arrays) == 1 and arrays[0][1] == target:
        result = arrays[0][0]
    elif arrays:
        equation = ",".join(labels for _, labels in arrays) + "->" + target
        result = op.Einsum(*(v for v, _ in arrays), equation=equation.replace(ELLIPSIS, "..."))
    else:
        result, *numbers = numbers
    for number in numbers:
        result = result * number
    return result


def _ones(op: GradientBuilder, x: Var, axis: int) -> Var:
    """Ones, as many as an axis has."""
    one = ir.tensor(np.ones(1, dtype=(x.dtype or ir.DataType.FLOAT).numpy()))
    return op.ConstantOfShape(op.dim(x, axis), value=one)


# -- sizes known beforehand ------------------------------------------------------------------------

Size = int | str | None


def _sizes(operands: Sequence[tuple[Var, str]]) -> dict[str, list[Size]]:
    """What the operands say of each label's size; of the ellipsis, a list of shapes."""
    sizes: dict[str, list] = {}
    for x, term in operands:
        for axis, label in enumerate(term):
            if label == ELLIPSIS:
                end = axis + (x.rank or 0) - len(term) + 1
                sizes.setdefault(label, []).append(None if x.shape is None else x.shape[axis:end])
            else:
                size = None if x.shape is None else x.shape[_axis(term, axis)]
                sizes.setdefault(label, []).append(size)
    return sizes


def _shape(target: str, sizes: dict[str, list], renamed: dict[str, str]) -> ir.Shape | None:
    dims: list[Size] = []
    for label in target:
        if label == ELLIPSIS:
            shapes = sizes[label]
            if any(s is None for s in shapes):
                return None
            dims += [broadcast_size(axis) for axis in zip(*shapes, strict=True)]
        else:
            dims.append(broadcast_size(sizes[renamed.get(label, label)]))
    return ir.Shape(dims)


def _reaches(others: Sequence[Size] | None, x: Var, axis: int) -> bool:
    """Whether the other operands have a summed label in the full size for certain."""
    wide = broadcast_size(others or [])
    own = None if x.shape is None else x.shape[axis]
    return own == 1 or wide == own is not None or (isinstance(wide, int) and wide > 1)
