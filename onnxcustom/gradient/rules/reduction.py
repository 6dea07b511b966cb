"""Reductions, cumulative sums and products, TopK and determinants.

Axes may be absent (all), constant or known only when the graph runs; whether they are kept in the
output makes no difference once :meth:`Reduced.kept` has brought them back.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import non_differentiable, rule

Gradients = list[Var | None]


class Reduced:
    """Axes of a reduction, and its output with them."""

    def __init__(self, op: GradientBuilder, node: NodeView) -> None:
        self.op, self.node = op, node
        self.x, self.y = node.inputs[0], node.outputs[0]
        self.axes: Var | None = node.input(1)  # None: all
        self.known: list[int] | None = None  # where known beforehand
        constant = None if self.axes is None else node.constant(1)
        if constant is not None:
            self.known = [int(a) for a in constant.reshape(-1)]
        # Without axes all are reduced, or none.
        if self.known == [] or self.axes is None:
            none = bool(node.attr("noop_with_empty_axes"))
            self.axes, self.known = None, [] if none else None

    @property
    def nothing(self) -> bool:
        """Whether it is certain that no axis is reduced."""
        return self.known == []

    def kept(self, reduced: Var) -> Var:
        """The output, or its gradient, with the reduced axes in it as ones."""
        if self.node.attr("keepdims") or self.axes is None:
            return reduced  # without axes the output is a number: it needs none to be broadcast
        return self.op.unsqueeze(reduced, self.known) if self.known else self.op.Unsqueeze(reduced, self.axes)

    def again(self, op_type: str, v: Var) -> Var:
        """Another reduction over the same axes, which are kept."""
        if self.nothing:
            return v
        noop = 0 if self.axes is None or self.known else self.node.attr("noop_with_empty_axes")
        return self.op.call(op_type, v, self.axes, keepdims=1, noop_with_empty_axes=noop or None)

    def spread(self, dy: Var) -> Var:
        """The gradient of the output repeated over all of x."""
        return self.op.expand_like(self.kept(dy), self.x)

    def gradients(self, dx: Var) -> Gradients:
        """One entry per input of the node."""
        return [dx] + [None] * (len(self.node.inputs) - 1)


# -- sums --------------------------------------------------------------------------------------------


@rule("ReduceSum")
def reduce_sum(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = Σ x:  dx = dy."""
    r = Reduced(op, node)
    return r.gradients(r.spread(dy))


@rule("ReduceMean")
def reduce_mean(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = Σ x / n:  dx = dy / n."""
    r = Reduced(op, node)
    if r.nothing:
        return r.gradients(dy)
    # Axes known only when the graph runs: an output is made of size(x) / size(y) elements.
    per = None if r.axes is None or r.known else r.y
    return r.gradients(r.spread(op.divide_by_count(dy, r.x, r.known, per)))


@rule("ReduceSumSquare")
def reduce_sum_square(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = Σ x²:  dx = 2 x dy."""
    r = Reduced(op, node)
    return r.gradients(r.x * r.kept(dy + dy))


@rule("ReduceLogSum")
def reduce_log_sum(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = log Σ x:  dx = dy / eʸ."""
    r = Reduced(op, node)
    return r.gradients(r.spread(dy / op.Exp(r.y)))


@rule("ReduceLogSumExp")
def reduce_log_sum_exp(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = log Σ eˣ:  dx = eˣ⁻ʸ dy, which overflows nowhere."""
    r = Reduced(op, node)
    return r.gradients(op.Exp(r.x - r.kept(r.y)) * r.kept(dy))


# -- norms -----------------------------------------------------------------------------------------


@rule("ReduceL1")
def reduce_l1(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = Σ |x|:  dx = sign(x) dy, 0 at x = 0."""
    r = Reduced(op, node)
    return r.gradients(op.Sign(r.x) * r.kept(dy))


@rule("ReduceL2")
def reduce_l2(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = √Σ x²:  dx = x / y dy, 0 where y = 0 as in PyTorch."""
    r = Reduced(op, node)
    length = r.y + op.cast_like(op.Equal(r.y, 0), r.y)
    return r.gradients(r.x * r.kept(dy / length))


# -- extrema, products -----------------------------------------------------------------------------


@rule("ReduceMax", "ReduceMin")
def reduce_extremum(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = max x:  dx = [x = y] dy / (how many are); ties share evenly, as in PyTorch."""
    r = Reduced(op, node)
    if r.nothing:
        return r.gradients(dy)
    attained = op.cast_like(op.Equal(r.x, r.kept(r.y)), dy)
    share = r.kept(dy) / r.again("ReduceSum", attained)
    return r.gradients(attained * share)


@rule("ReduceProd")
def reduce_prod(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = Π x:  dxᵢ = dy Π xⱼ (j ≠ i).

    That is p / xᵢ with p the product of all but the zeros, if xᵢ is the only zero or none is.
    (The second derivative by two elements that are both zero is lost.)
    """
    r = Reduced(op, node)
    if r.nothing:
        return r.gradients(dy)
    zero = op.cast_like(op.Equal(r.x, 0), dy)
    others = op.cast_like(op.Equal(r.again("ReduceSum", zero), zero), dy)
    x = r.x + zero  # ones in place of zeros
    return r.gradients(others / x * (r.again("ReduceProd", x) * r.kept(dy)))


# -- along an axis ---------------------------------------------------------------------------------


@rule("CumSum")
def cumulative_sum(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """yᵢ = Σ xⱼ (j ≤ i):  dxⱼ = Σ dyᵢ (i ≥ j), the sum from the other end."""
    return [_cumulate(op, node, dy, reverse=1 - node.attr("reverse")), None]


def _cumulate(op: GradientBuilder, node: NodeView, v: Var, reverse: int) -> Var:
    exclusive = node.attr("exclusive")
    return op.CumSum(v, node.inputs[1], exclusive=exclusive or None, reverse=reverse or None)


@rule("CumProd", since=26)
def cumulative_product(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """yᵢ = Π xⱼ (j ≤ i):  dxⱼ = Σ dyᵢ yᵢ / xⱼ (i ≥ j).

    With p the product and n the number of zeros up to i:  dxⱼ = Σ dyᵢ pᵢ [nᵢ = [xⱼ = 0]] / xⱼ (p and
    xⱼ with ones in place of zeros), since a product is free of xⱼ = 0 only if no other zero is in it.
    """
    x, axis = node.inputs
    exclusive, reverse = node.attr("exclusive"), node.attr("reverse")
    zero = op.cast_like(op.Equal(x, 0), dy)
    x = x + zero
    terms = dy * op.CumProd(x, axis, exclusive=exclusive, reverse=reverse)
    zeros = _cumulate(op, node, zero, reverse)
    without, single = (
        _cumulate(op, node, terms * op.cast_like(op.Equal(zeros, n), dy), 1 - reverse) for n in (0, 1)
    )
    return [(without * (1 - zero) + single * zero) / x, None]


@rule("TopK")
def top_k(op: GradientBuilder, node: NodeView, dy: Var, *_: Any) -> Gradients:
    """y = x[i], i the places of the largest along an axis:  dx[i] = dy, 0 elsewhere."""
    x = node.inputs[0]
    places = node.require_output(1, ir.DataType.INT64)
    return [op.ScatterElements(op.zeros_like(x), places, dy, axis=node.attr("axis")), None]


# -- determinant -----------------------------------------------------------------------------------


@rule("Det")
def determinant(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = det x:  dxᵢⱼ = dy det(x with row i replaced by the unit vector eⱼ).

    ONNX has no inverse, and this, the cofactor, is right for singular matrices too. It takes n²
    determinants of n × n matrices, all in one node: meant for the small matrices that models have.
    """
    x = node.inputs[0]
    eye = op.eye(x, -1)
    row = op.unsqueeze(eye, [1, 3])  # (i, 1, row, 1)
    unit = op.unsqueeze(eye, [0, 2])  # (1, j, 1, column)
    replaced = op.unsqueeze(x, [-4, -3]) * (1 - row) + row * unit
    return op.Det(replaced) * op.unsqueeze(dy, [-2, -1])


non_differentiable("ArgMax", "ArgMin", reason="its output is a position")
