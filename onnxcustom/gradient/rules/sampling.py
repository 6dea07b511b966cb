"""GridSample and AffineGrid: images read at positions that carry gradients themselves."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import rule
from .windows import refused

_INT64 = ir.DataType.INT64
# Cubic convolution coefficient of GridSample, the same in PyTorch and onnxruntime.
_A = -0.75


@dataclasses.dataclass
class _Taps:
    """Along one axis, the K elements that each of Q positions reads: [N, K, Q] each.

    Attributes
    ----------
    index : Var
        Which, within the image.
    weight : Var
        Its share; 0 outside of the image if that counts as zeros.
    slope : Var or None
        Derivative of the share by the grid's coordinate, None where the share is constant.
    """

    index: Var
    weight: Var
    slope: Var | None


@rule("GridSample")
def grid_sample(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y[q] = Σₖ x[iₖ(q)] Πₐ wₐₖ(q) over the neighbours k of position q and the axes a:
    dx[i] = Σ dy[q] Πₐ wₐₖ(q) where iₖ(q) = i,  dgridₐ[q] = Σₖ dy[q] x[iₖ(q)] w′ₐₖ(q) Π_{b≠a} w_bₖ(q).
    """
    x, grid = node.inputs
    n = _spatial_rank(node, x, grid)
    positions = op.Transpose(op.Reshape(grid, np.array([0, -1, n])), perm=[0, 2, 1])  # [N, n, Q]
    if grid.dtype != x.dtype:
        positions = op.Cast(positions, to=x.dtype)
    positions.value.dtype = x.dtype
    taps = _taps(op, node, x, positions, n)
    # [N, 1, all neighbours · Q]: x along its last two axes made one, at the neighbours.
    index = op.Reshape(_combined(op, [t.index for t in taps], [op.dim(x, 2 + a) for a in range(n)]), _row())
    flat = op.Reshape(x, np.array([0, 0, -1]))
    shape = op.Concat(op.Shape(x, start=0, end=2), op.Shape(index, start=2), axis=0)
    index = op.Expand(index, shape)
    dy = op.Unsqueeze(op.Reshape(dy, np.array([0, 0, -1])), np.array([2]))  # [N, C, 1, Q]
    dx = dgrid = None
    neighbours = math.prod([_COUNT[_mode(node)]] * n)
    if node.needs[0]:
        weight = op.Reshape(_product([t.weight for t in taps], op), np.array([0, 1, neighbours, -1]))
        values = op.Reshape(dy * weight, shape)
        dx = op.reshape_like(op.scatter_add(op.zeros_like(flat), index, values, axis=2), x)
    if node.needs[1] and _mode(node) != "nearest":
        read = op.Reshape(op.GatherElements(flat, index, axis=2), np.array([0, 0, neighbours, -1]))
        by_neighbour = op.ReduceSum(read * dy, np.array([1]), keepdims=0)  # [N, neighbours, Q]
        dgrid = _grid_gradient(op, taps, by_neighbour)
        if grid.dtype != x.dtype:
            dgrid = op.Cast(dgrid, to=grid.dtype)
        dgrid = op.reshape_like(dgrid, grid)
    return [dx, dgrid]


def _row() -> np.ndarray:
    return np.array([0, 1, -1])


def _mode(node: NodeView) -> str:
    return {"bilinear": "linear", "bicubic": "cubic"}.get(node.attr("mode"), node.attr("mode"))


_COUNT = {"nearest": 1, "linear": 2, "cubic": 4}


def _spatial_rank(node: NodeView, x: Var, grid: Var) -> int:
    if node.version < 20:  # images only
        return 2
    for known in (x, grid, *node.outputs):
        if known is not None and known.rank is not None:
            return known.rank - 2
    raise refused(node, "neither its inputs nor its output tell their rank; declare the rank of one")


# -- which elements are read, and with which share --------------------------------------------------


def _taps(op: GradientBuilder, node: NodeView, x: Var, positions: Var, n: int) -> list[_Taps]:
    """Neighbours of every position along each axis of the image."""
    mode, padding, align = _mode(node), node.attr("padding_mode"), node.attr("align_corners")
    lengths = [op.count(x, [2 + a], dtype=x.dtype) for a in range(n)]
    coordinates, slopes = [], []
    for a, length in enumerate(lengths):
        # The grid's last dimension holds the coordinate of the last axis first.
        g = op.slice(positions, n - 1 - a, n - a, [1])
        scale = (length - 1 if align else length) * 0.5
        c = (g + 1) * scale if align else (g + 1) * scale - 0.5
        coordinates.append(op.Round(c) if mode == "nearest" else c)
        slopes.append(scale)
    if padding == "reflection":
        for a, length in enumerate(lengths):
            coordinates[a], sign = _reflect(op, coordinates[a], length, align)
            slopes[a] = slopes[a] * sign
    per_axis = zip(coordinates, slopes, lengths, strict=True)
    return [_taps_of_axis(op, mode, padding, align, *parts) for parts in per_axis]


def _taps_of_axis(
    op: GradientBuilder, mode: str, padding: str, align: int, coordinate: Var, slope: Var, length: Var
) -> _Taps:
    first = coordinate if mode == "nearest" else op.Floor(coordinate)
    t = None if mode == "nearest" else coordinate - first
    weight, derivative = _shares(op, mode, t)
    offsets = {"nearest": [0], "linear": [0, 1], "cubic": [-1, 0, 1, 2]}[mode]
    index = first + np.array(offsets, dtype=np.float64)[:, None] if mode != "nearest" else first
    if padding == "reflection":
        index, _ = _reflect(op, index, length, align)
    inside = op.Max(op.Min(index, length - 1), 0.0)
    if padding == "zeros":
        within = op.Cast(op.Equal(index, inside), to=index.dtype)
        weight = within if weight is None else weight * within
        derivative = None if derivative is None else derivative * within
    if weight is None:
        weight = op.full_like(inside, 1)
    return _Taps(op.Cast(inside, to=_INT64), weight, None if derivative is None else derivative * slope)


def _shares(op: GradientBuilder, mode: str, t: Var | None) -> tuple[Var | None, Var | None]:
    """Share of each neighbour for the fraction t in [0, 1) of the way to the next, and its derivative."""
    if t is None:
        return None, None
    if mode == "linear":
        return op.Concat(1 - t, t, axis=1), op.Concat(op.full_like(t, -1), op.full_like(t, 1), axis=1)
    far, near, opposite, farther = t + 1, t, 1 - t, 2 - t
    weights = [_outer(far), _inner(near), _inner(opposite), _outer(farther)]
    slopes = [_outer_slope(far), _inner_slope(near), -_inner_slope(opposite), -_outer_slope(farther)]
    return op.Concat(*weights, axis=1), op.Concat(*slopes, axis=1)


def _inner(s: Var) -> Var:
    return ((_A + 2) * s - (_A + 3)) * s * s + 1


def _inner_slope(s: Var) -> Var:
    return (3 * (_A + 2) * s - 2 * (_A + 3)) * s


def _outer(s: Var) -> Var:
    return ((_A * s - 5 * _A) * s + 8 * _A) * s - 4 * _A


def _outer_slope(s: Var) -> Var:
    return (3 * _A * s - 10 * _A) * s + 8 * _A


def _reflect(op: GradientBuilder, c: Var, length: Var, align: int) -> tuple[Var, Var]:
    """c mirrored at both borders as often as needed, and the derivative, 1 or -1."""
    low = 0.0 if align else -0.5
    span = length - 1 if align else length
    from_low = c - low if low else c
    period = 2 * span
    way = from_low - period * op.Floor(from_low / period)
    beyond = span - way
    mirrored = span - op.Abs(beyond)
    return mirrored + low if low else mirrored, op.Where(op.Less(beyond, 0.0), -1.0, op.full_like(beyond, 1))


# -- products over the axes ----------------------------------------------------------------------------


def _spread(op: GradientBuilder, parts: list[Var]) -> list[Var]:
    """[N, K, Q] per axis -> [N, K, 1, Q] and [N, 1, K, Q], to be combined by broadcasting."""
    n = len(parts)
    return [op.unsqueeze(p, [1 + b for b in range(n) if b != a]) for a, p in enumerate(parts)]


def _product(parts: list[Var], op: GradientBuilder) -> Var:
    first, *others = _spread(op, parts)
    for other in others:
        first = first * other
    return first


def _combined(op: GradientBuilder, indices: list[Var], lengths: list[Var]) -> Var:
    """Index of the element in the flattened image."""
    combined, *others = _spread(op, indices)
    for other, length in zip(others, lengths[1:], strict=True):
        combined = combined * length + other
    return combined


def _grid_gradient(op: GradientBuilder, taps: list[_Taps], by_neighbour: Var) -> Var:
    """Derivative by every coordinate, [N, Q, n], from that by every neighbour's value."""
    parts = []
    n = len(taps)
    for a in reversed(range(n)):
        factors = [t.slope if b == a else t.weight for b, t in enumerate(taps)]
        share = op.Reshape(_product(factors, op), op.Shape(by_neighbour))  # type: ignore[arg-type]
        parts.append(op.ReduceSum(share * by_neighbour, np.array([1])))
    return op.Transpose(op.concat(parts, axis=1), perm=[0, 2, 1])


# -- AffineGrid ------------------------------------------------------------------------------------------


@rule("AffineGrid")
def affine_grid(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y[q] = θ b(q):  dθ = Σ dy[q] b(q)ᵀ.  b, positions with a 1 behind, is the grid of θ = identity."""
    theta, size = node.inputs
    one = np.ones(1, dtype=np.int64)
    constant = node.constant(1)
    if constant is None:
        single = op.Concat(one, op.slice(size, 1, 2**62, [0]), axis=0)
    else:
        single = op.const(np.concatenate([one, constant[1:]]))
    n = op.dim(theta, 1)  # 2 or 3
    if theta.shape is not None and isinstance(theta.shape[1], int):
        identity = op.const(np.eye(theta.shape[1], theta.shape[1] + 1)[None], like=theta)
    else:
        eye = op.EyeLike(op.ConstantOfShape(op.Concat(n, n + 1, axis=0)), dtype=theta.dtype)
        identity = op.unsqueeze(eye, [0])
    base = op.AffineGrid(identity, single, align_corners=node.attr("align_corners"))
    behind = op.Pad(
        op.Reshape(base, op.Concat(-one, n, axis=0)), np.array([0, 0, 0, 1]), op.const(1, like=theta)
    )
    rows = op.Reshape(dy, op.Concat(np.array([0, -1]), n, axis=0))
    return [op.Einsum(rows, behind, equation="nqi,qj->nij"), None]
