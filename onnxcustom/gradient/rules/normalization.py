"""Normalizations: batch, layer, instance, group, root mean square, norm, local response; Dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import rule
from .windows import refused

Gradients = list[Var | None]

_FLAT = np.array([-1])


def _standardized(op: GradientBuilder, x: Var, axes: Sequence[int], epsilon: float) -> tuple[Var, Var]:
    """(x - mean) / σ and 1/σ, σ² = variance + ε, both over `axes`."""
    over = np.array(axes)
    centred = x - op.ReduceMean(x, over)
    inverse = 1 / op.Sqrt(op.ReduceMean(centred * centred, over) + epsilon)
    return centred * inverse, inverse


def _through(
    op: GradientBuilder, g: Var, z: Var, inverse: Var, axes: Sequence[int], centred: bool = True
) -> Var:
    """dx for z = (x - mean) / σ and dz = g:  (g - mean g - z mean(g z)) / σ; without the mean of
    g where z was not centred.
    """
    over = np.array(axes)
    rest = g - z * op.ReduceMean(g * z, over)
    if centred:
        rest = rest - op.ReduceMean(g, over)
    return rest * inverse


# -- batch ---------------------------------------------------------------------------------------------


@rule("BatchNormalization")
def batch_normalization(
    op: GradientBuilder, node: NodeView, dy: Var | None, *running: Var | None
) -> Gradients:
    """y = (x - μ) s / σ + b per channel.  With given statistics, dx = dy s / σ, ds = Σ dy (x - μ) / σ,
    db = Σ dy, dμ = -db s / σ, dσ² = -ds s / 2σ²; in training mode μ and σ² follow from x.
    """
    if node.attr("training_mode"):
        return _batch_training(op, node, dy, *running)
    assert dy is not None
    x, scale, _, mean, variance = node.inputs
    inverse = 1 / op.Sqrt(variance + node.attr("epsilon"))
    factor = scale * inverse
    x3, dy3 = _by_channel(op, x, x), _by_channel(op, dy, x)
    dx = _back(op, dy3 * op.unsqueeze(factor, _behind(x3)), x)
    db = op.reduce_sum(dy3, _others(x3))
    ds = None
    if node.needs[1] or node.needs[4]:
        ds = (op.reduce_sum(dy3 * x3, _others(x3)) - mean * db) * inverse
    dvariance = ds * factor * inverse * -0.5 if ds is not None else None
    return [dx, ds, db, -(db * factor), dvariance]


def _by_channel(op: GradientBuilder, v: Var, x: Var) -> Var:
    """v, shaped like x, as it is if the rank of x is known, else as [N, C, all else]."""
    return v if x.rank is not None else op.Reshape(v, np.array([0, 0, -1]))


def _back(op: GradientBuilder, dx: Var, x: Var) -> Var:
    """The gradient in x's own shape."""
    return dx if x.rank is not None else op.reshape_like(dx, x)


def _others(x: Var) -> list[int]:
    """All axes but that of the channels."""
    return [0, *range(2, x.rank or 3)]


def _behind(x: Var) -> list[int]:
    """Where to insert axes for [C] to meet [N, C, ...]."""
    return list(range(1, (x.rank or 3) - 1))


def _batch_training(
    op: GradientBuilder,
    node: NodeView,
    dy: Var | None,
    dmean: Var | None = None,
    dvariance: Var | None = None,
) -> Gradients:
    """μ, σ²: mean and variance of the batch;  running = momentum · input + (1 - momentum) · batch."""
    x, scale, _, _old_mean, _old_variance = node.inputs
    momentum = node.attr("momentum")
    x3 = _by_channel(op, x, x)
    axes, behind = _others(x3), _behind(x3)
    gradients: Gradients = [None] * 5
    z, inverse = _standardized(op, x3, axes, node.attr("epsilon"))
    parts = []
    if dy is not None:
        dy3 = _by_channel(op, dy, x)
        # Σ dy and Σ dy z, per channel, are what dx and the gradients of bias and scale share.
        db = op.reduce_sum(dy3, axes)
        ds = op.reduce_sum(dy3 * z, axes)
        gradients[1:3] = ds, db
        over = 1 / op.count(x3, axes, dtype=x.dtype)
        centre, tilt = (op.unsqueeze(v * over, behind) for v in (db, ds))
        parts.append((dy3 - centre - z * tilt) * (op.unsqueeze(scale, behind) * inverse))
    # The statistics that the node hands on depend on x as well.
    if dmean is not None:
        gradients[3] = dmean * momentum
        parts.append(op.unsqueeze(dmean * (1 - momentum) / op.count(x3, axes, dtype=x.dtype), behind))
    if dvariance is not None:
        gradients[4] = dvariance * momentum
        share = dvariance * (2 * (1 - momentum)) / op.count(x3, axes, dtype=x.dtype)
        parts.append(z / inverse * op.unsqueeze(share, behind))
    dx = parts[0] if len(parts) == 1 else op.Sum(*parts)
    gradients[0] = _back(op, dx if dy is not None else op.Expand(dx, op.shape(x3)), x)
    return gradients


# -- layer, root mean square ---------------------------------------------------------------------------


@rule("LayerNormalization")
def layer_normalization(
    op: GradientBuilder, node: NodeView, dy: Var | None, *statistics: Var | None
) -> Gradients:
    """y = z s + b, z = (x - mean) / σ over the last axes:  dx = (g - mean g - z mean(g z)) / σ with g = dy s,
    ds = Σ dy z,  db = Σ dy.
    """
    x = node.inputs[0]
    flat = _flatten(op, node)
    if x.dtype == ir.DataType.FLOAT:
        # What the forward computed anyway; of other types it keeps them in float32 only.
        mean, inverse = (flat(node.require_output(i, x.dtype)) for i in (1, 2))
        z = (flat(x) - mean) * inverse
    else:
        z, inverse = _standardized(op, flat(x), [-1], node.attr("epsilon"))
    gradients: Gradients = [None] * len(node.inputs)
    parts = [] if dy is None else [_scaled(op, node, flat(dy), z, inverse, gradients)]
    dmean, dinverse = [*statistics, None, None][:2]
    if dmean is not None:  # d mean / dx = 1 / D
        parts.append(flat(op.Cast(dmean, to=x.dtype)) / op.count(flat(x), [-1]))
    if dinverse is not None:  # d (1/σ) / dx = -z / (D σ²)
        share = flat(op.Cast(dinverse, to=x.dtype)) / op.count(flat(x), [-1])
        parts.append(-(z * (share * inverse * inverse)))
    dx = parts[0] if len(parts) == 1 else op.Sum(*parts)
    gradients[0] = _unflatten(op, node, dx if dy is not None else op.Expand(dx, op.shape(flat(x))))
    return gradients


@rule("RMSNormalization")
def rms_normalization(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = z s, z = x / σ, σ² = mean x² + ε over the last axes:  dx = (g - z mean(g z)) / σ with g = dy s,
    ds = Σ dy z.
    """
    x = node.inputs[0]
    flat = _flatten(op, node)
    x2 = flat(x)
    inverse = 1 / op.Sqrt(op.ReduceMean(x2 * x2, np.array([-1])) + node.attr("epsilon"))
    gradients: Gradients = [None] * len(node.inputs)
    dx = _scaled(op, node, flat(dy), x2 * inverse, inverse, gradients, centred=False)
    gradients[0] = _unflatten(op, node, dx)
    return gradients


def _unflatten(op: GradientBuilder, node: NodeView, dx: Var) -> Var:
    return dx if _last_axis(node) else op.reshape_like(dx, node.inputs[0])


def _last_axis(node: NodeView) -> bool:
    """Whether the last axis alone is normalized."""
    rank = node.inputs[0].rank
    return node.attr("axis") == -1 or (rank is not None and node.attr("axis") == rank - 1)


def _flatten(op: GradientBuilder, node: NodeView) -> Any:
    """x -> [all rows, all that is normalized together]; x itself where that is its last axis."""
    axis, shape, scale = node.attr("axis"), node.inputs[0].static_shape, node.inputs[1].static_shape
    if shape is not None and scale is not None and np.prod(shape[axis:]) != np.prod(scale):
        raise refused(node, "its scale is repeated along axes that are normalized together; expand it before")
    return (lambda v: v) if _last_axis(node) else (lambda v: op.Flatten(v, axis=axis))


def _scaled(
    op: GradientBuilder,
    node: NodeView,
    dy: Var,
    z: Var,
    inverse: Var,
    gradients: Gradients,
    centred: bool = True,
) -> Var:
    """Fill in the gradients of scale and bias; return that of the flattened x."""
    scale = node.inputs[1]
    row = scale if _last_axis(node) else op.Reshape(scale, _FLAT)
    if node.needs[1]:
        gradients[1] = _sum_rows(op, dy * z, scale)
    if len(gradients) > 2 and node.needs[2]:
        gradients[2] = _sum_rows(op, dy, node.inputs[2])
    return _through(op, dy * row, z, inverse, [-1], centred) if node.needs[0] else dy


def _sum_rows(op: GradientBuilder, gradient: Var, like: Var) -> Var:
    """Sum of all rows, in the shape of the scale or bias that was the same for all of them."""
    if gradient.rank is None or like.rank is None:
        gradient = op.Flatten(gradient, axis=-1)
    rows = 1 if gradient.rank is None else gradient.rank - 1
    return op.reshape_like(op.reduce_sum(gradient, list(range(rows))), like)


# -- instance, group -----------------------------------------------------------------------------------


@rule("InstanceNormalization")
def instance_normalization(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = z s + b, z = (x - mean) / σ over each channel of each image:
    dx = s (dy - mean dy - z mean(dy z)) / σ,  ds = Σ dy z,  db = Σ dy.
    """
    x, scale, _ = node.inputs
    x3, dy3 = _by_channel(op, x, x), _by_channel(op, dy, x)
    rank = x3.rank or 3
    spatial = list(range(2, rank))
    z, inverse = _standardized(op, x3, spatial, node.attr("epsilon"))
    dx = _through(op, dy3, z, inverse * op.unsqueeze(scale, _behind(x3)), spatial)
    return [_back(op, dx, x), op.reduce_sum(dy3 * z, _others(x3)), op.reduce_sum(dy3, _others(x3))]


@rule("GroupNormalization", since=21)
def group_normalization(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = z s + b, z = (x - mean) / σ over each group of channels; s and b per channel:
    dx = (g - mean g - z mean(g z)) / σ with g = dy s,  ds = Σ dy z,  db = Σ dy.
    """
    x, scale, _ = node.inputs
    by_group, by_channel = np.array([0, node.attr("num_groups"), -1]), np.array([0, 0, -1])
    z, inverse = _standardized(op, op.Reshape(x, by_group), [2], node.attr("epsilon"))
    dy3 = op.Reshape(dy, by_channel)
    g = op.Reshape(dy3 * op.unsqueeze(scale, [1]), by_group)
    dx = op.reshape_like(_through(op, g, z, inverse, [2]), x)
    z = op.Reshape(op.reshape_like(z, x), by_channel) if node.needs[1] else z
    ds = op.reduce_sum(dy3 * z, [0, 2]) if node.needs[1] else None
    return [dx, ds, op.reduce_sum(dy3, [0, 2])]


@rule("GroupNormalization", since=18, until=20)
def group_normalization_18(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """The same with s and b per group."""
    x, scale, _ = node.inputs
    by_group = np.array([0, node.attr("num_groups"), -1])
    z, inverse = _standardized(op, op.Reshape(x, by_group), [2], node.attr("epsilon"))
    dy3 = op.Reshape(dy, by_group)
    dx = _through(op, dy3, z, inverse * op.unsqueeze(scale, [1]), [2])
    return [op.reshape_like(dx, x), op.reduce_sum(dy3 * z, [0, 2]), op.reduce_sum(dy3, [0, 2])]


# -- without parameters ----------------------------------------------------------------------------------


@rule("MeanVarianceNormalization")
def mean_variance_normalization(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = (x - mean) / (σ + 1e-9):  dx = (dy - mean dy - y mean(dy y)) / (σ + 1e-9), 1e-9 taken for 0
    where σ is differentiated.
    """
    x, y = node.inputs[0], node.outputs[0]
    axes = np.array(node.attr("axes"))
    centred = x - op.ReduceMean(x, axes)
    inverse = 1 / (op.Sqrt(op.ReduceMean(centred * centred, axes)) + 1e-9)
    return _through(op, dy, y, inverse, node.attr("axes"))


@rule("LpNormalization")
def lp_normalization(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x / n, n = ‖x‖ₚ along the axis:  dx = (dy - n′ Σ dy y) / n with n′ = sign x (p = 1) or y (p = 2);
    0 where n is 0.
    """
    (x,), y = node.inputs, node.outputs[0]
    axes = np.array([node.attr("axis")])
    p = node.attr("p")
    norm = op.ReduceL1(x, axes) if p == 1 else op.ReduceL2(x, axes)
    inverse = op.Where(op.Equal(norm, 0.0), 0.0, 1 / norm)
    return (dy - (op.Sign(x) if p == 1 else y) * op.ReduceSum(dy * y, axes)) * inverse


@rule("LRN")
def lrn(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x u^-β, u = bias + α mean of x² over `size` channels around:
    dx = dy u^-β - 2αβ x mean of (dy y / u) over the channels that look at it.
    """
    (x,), y = node.inputs, node.outputs[0]
    alpha, beta, size = node.attr("alpha"), node.attr("beta"), node.attr("size")
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    u = _mean_of_channels(op, x * x, size, before, after) * alpha + node.attr("bias")
    shared = _mean_of_channels(op, dy * y / u, size, after, before)
    return dy * op.Pow(u, -beta) - x * shared * (2 * alpha * beta)


def _mean_of_channels(op: GradientBuilder, x: Var, size: int, before: int, after: int) -> Var:
    """Mean over a window of channels, zeros beyond the first and the last counted."""
    image = op.Unsqueeze(op.Reshape(x, np.array([0, 0, -1])), np.array([1]))  # [N, 1, C, ...]
    mean = op.AveragePool(image, kernel_shape=[size, 1], pads=[before, 0, after, 0], count_include_pad=1)
    return op.reshape_like(mean, x)


# -- Dropout -----------------------------------------------------------------------------------------------


@rule("Dropout")
def dropout(op: GradientBuilder, node: NodeView, dy: Var | None, *_: Any) -> Gradients:
    """y = x mask / (1 - ratio) in training, else x:  dx = dy mask / (1 - ratio) with the forward's own mask.
    The ratio carries no gradient, as in PyTorch.
    """
    others: Gradients = [None] * (len(node.inputs) - 1)
    training, known = node.input(2), node.constant(2)
    if dy is None or training is None or (known is not None and not known.any()):
        return [dy, *others]
    mask = node.require_output(1, ir.DataType.BOOL)
    kept = _kept(op, node, dy)
    if known is None:  # the mask lets everything pass when not training
        kept = op.Where(training, kept, op.const(1, like=dy))
    return [op.Where(mask, dy * kept, op.const(0, like=dy)), *others]


def _kept(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """1 / (1 - ratio) in dy's dtype."""
    ratio, known = node.input(1), node.constant(1)
    if ratio is None:
        return op.const(2.0, like=dy)
    if known is not None:
        share = 1 - float(known)
        return op.const(1 / share if share else 0.0, like=dy)
    return 1 / (1 - (ratio if ratio.dtype == dy.dtype else op.Cast(ratio, to=dy.dtype)))
