"""Softmax, LogSoftmax and the classification losses made of them."""

from __future__ import annotations

import numpy as np

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import rule

Gradients = list[Var | None]


@rule("Softmax", since=13)
def softmax(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = softmax(x):  dx = g - y Σ g,  g = y dy."""
    y = node.outputs[0]
    g = y * dy
    return g - y * op.reduce_sum(g, [node.attr("axis")], keepdims=True)


@rule("LogSoftmax", since=13)
def log_softmax(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = log softmax(x):  dx = dy - eʸ Σ dy."""
    return dy - op.Exp(node.outputs[0]) * op.reduce_sum(dy, [node.attr("axis")], keepdims=True)


# -- losses ----------------------------------------------------------------------------------------
# Both are -wₜ logp[t], t the label of a row, w its weight (0 where t is ignored), and their mean is
# divided by Σ w. Rows may have more dimensions behind the class axis, which is 1: no rank is needed.


class _Rows:
    """What the gradients of both losses share: labels, weights and the divisor of the mean."""

    def __init__(self, op: GradientBuilder, node: NodeView, log_p: Var) -> None:
        self.op, self.log_p = op, log_p
        self.loss = node.outputs[0]
        self.mean = node.attr("reduction") == "mean"
        labels, self.class_weights = node.inputs[1], node.input(2)
        ignore = node.attr("ignore_index")
        self.kept: Var | None = None
        if ignore is not None:
            kept = op.Not(op.Equal(labels, ignore))
            self.kept = op.cast_like(kept, log_p)
            # An ignored label may be no class at all: it must not be used as an index.
            labels = labels * op.cast_like(kept, labels)
        self.labels = labels
        self.weights = None if self.class_weights is None else op.Gather(self.class_weights, labels)
        if self.kept is not None:
            self.weights = self.kept if self.weights is None else self.weights * self.kept
        # Whether all rows have the same slope.
        self.uniform = self.weights is None and node.attr("reduction") != "none"

    def share(self, dloss: Var) -> Var:
        """Gradient of the weighted sum: that of the mean is divided by Σ w."""
        if not self.mean:
            return dloss
        if self.weights is None:
            return self.op.divide_by_count(dloss, self.labels)
        return dloss / self.op.reduce_sum(self.weights, None)

    def slope(self, dloss: Var) -> Var:
        """Gradient of -logp[t]: a scalar where all rows have the same, else one per row."""
        slope = self.share(dloss)
        return slope if self.weights is None else slope * self.weights

    def at_labels(self, into: Var, slope: Var) -> Var:
        """`into` with -slope added at the label of each row."""
        updates = self.op.Expand(-slope, self.op.shape(self.labels)) if self.uniform else -slope
        return self.op.scatter_add(into, self.column(self.labels), self.column(updates), axis=1)

    def column(self, rows: Var) -> Var:
        """One value per row, beside the classes."""
        return self.op.unsqueeze(rows, [1])

    def weight_gradient(self, class_weights: Var, dloss: Var) -> Var:
        """dw[c] = Σ over rows of class c of -logp[c] dloss; a mean also loses the loss through Σ w."""
        op = self.op
        picked = op.GatherElements(self.log_p, self.column(self.labels), axis=1)
        each = -op.squeeze(picked, [1])
        each = (each - self.loss if self.mean else each) * self.share(dloss)
        if self.kept is not None:
            each = each * self.kept
        flat = op.const(np.array([-1], dtype=np.int64))
        return op.scatter_add(
            op.zeros_like(class_weights), op.Reshape(self.labels, flat), op.Reshape(each, flat)
        )

    def gradients(self, node: NodeView, dx: Var | None, dloss: Var | None) -> Gradients:
        """One entry per input of the node."""
        found: Gradients = [dx] + [None] * (len(node.inputs) - 1)
        if dloss is not None and self.class_weights is not None and node.needs[2]:
            found[2] = self.weight_gradient(self.class_weights, dloss)
        return found


@rule("NegativeLogLikelihoodLoss")
def negative_log_likelihood(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = -wₜ x[t] per row, summed or averaged (Σ wₜ):  dx[t] = -wₜ dy (/ Σ wₜ), else 0."""
    x = node.inputs[0]
    rows = _Rows(op, node, x)
    return rows.gradients(node, rows.at_labels(op.zeros_like(x), rows.slope(dy)), dy)


@rule("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(
    op: GradientBuilder, node: NodeView, dy: Var | None, dlog_p: Var | None = None
) -> Gradients:
    """y = -wₜ logp[t] per row, logp = log_softmax(x):  dx = (p - onehot(t)) wₜ dy (/ Σ wₜ).

    The gradient of the output logp comes on top:  dx += dlogp - p Σ dlogp.
    """
    x = node.inputs[0]
    log_p = node.require_output(1, x.dtype)
    log_p.value.shape = x.value.shape
    p = op.Exp(log_p)
    rows = _Rows(op, node, log_p)
    dx = None
    if dlog_p is not None:
        dx = dlog_p - p * op.reduce_sum(dlog_p, [1], keepdims=True)
    if dy is not None:
        slope = rows.slope(dy)
        spread = p * (slope if rows.uniform else rows.column(slope))
        dx = rows.at_labels(spread if dx is None else dx + spread, slope)
    return rows.gradients(node, dx, dy)
