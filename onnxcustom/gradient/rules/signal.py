"""Fourier transforms: the gradient of a linear transform is its conjugate transpose.

Written with the forward transform alone, conj(F) v = conj(F conj(v)): onnxruntime computes the inverse
one in single precision for sizes that are no power of two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import non_differentiable, rule
from .indexing import put_along

__all__: list[str] = []

_CONJUGATE = (1.0, -1.0)


@rule("DFT", until=19)
def dft_17(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """The axis is an attribute; see :func:`_dft_gradient`."""
    return _dft_gradient(op, node, dy, node.attr("axis"))


@rule("DFT", since=20)
def dft_20(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """The axis is an input; see :func:`_dft_gradient`."""
    axis, known = node.input(2), node.constant(2)
    if axis is None:
        return _dft_gradient(op, node, dy, -2)
    return _dft_gradient(op, node, dy, axis if known is None else int(known.reshape(-1)[0]))


def _dft_gradient(op: GradientBuilder, node: NodeView, dy: Var, axis: int | Var) -> list[Var | None]:
    """y = F x:  dx = conj(F) dy, its real part if x is real.   y = F⁻¹ x:  dx = F dy / n.

    One-sided, dy lacks the frequencies that only repeat others: zeros. x that the transform's length
    cut or filled with zeros is filled or cut.
    """
    x = node.inputs[0]
    length = _length(op, node, x, axis)
    if not node.attr("inverse"):
        dx = _conjugate_dft(op, dy, length if node.attr("onesided") else None, axis)
    else:
        n = length if isinstance(length, int) else op.Cast(length, to=dy.dtype)
        onesided = bool(node.attr("onesided"))
        dx = _dft(op, dy, axis, onesided) / n
        if onesided:
            dx = dx * _multiplicity(op, dx, length, axis, x.rank)
            length = length // 2 + 1 if isinstance(length, int) else op.Div(length, 2) + 1
    if node.input(1) is not None or (node.attr("inverse") and node.attr("onesided")):
        dx = _resize(op, dx, _size(op, x, axis) - length, axis)
    rest: list[Var | None] = [None] * (len(node.inputs) - 1)
    return [_components(op, dx, x), *rest]


def _length(op: GradientBuilder, node: NodeView, x: Var, axis: int | Var) -> int | Var:
    """Length of the transform: a number if known, else int64 (1,)."""
    given, known = node.input(1), node.constant(1)
    if known is not None:
        return int(known.reshape(-1)[0])
    if given is not None:
        return op.Reshape(op.Cast(given, to=ir.DataType.INT64), [1])
    size = _size(op, x, axis)
    if node.attr("inverse") and node.attr("onesided"):
        return (size - 1) * 2
    return size


def _size(op: GradientBuilder, x: Var, axis: int | Var) -> Any:
    if isinstance(axis, int):
        return op.size(x, axis)
    return op.Gather(op.shape(x), op.Reshape(axis, [1]))


def _resize(op: GradientBuilder, v: Var, missing: int | Var, axis: int | Var) -> Var:
    """Fill with that many zeros at the end of an axis, or cut if negative."""
    if isinstance(axis, int):
        return op.pad(v, [0], [missing], [axis])
    return op.Pad(v, op.Concat([0], _vector(op, missing), axis=0), None, op.Reshape(axis, [1]))


def _components(op: GradientBuilder, dx: Var, x: Var) -> Var:
    """The real part if x is real, (..., 1), both if it is complex, (..., 2)."""
    size = op.size(x, -1)
    return dx if size == 2 and isinstance(size, int) else op.slice(dx, 0, size, [-1])


def _conjugate_dft(op: GradientBuilder, v: Var, length: int | Var | None, axis: int | Var) -> Var:
    """conj(F) v, v filled with zeros to `length` before.

    Not by the node's own length: onnxruntime 1.19 infers a wrong shape from it.
    """
    if length is not None:
        v = _resize(op, v, length - _size(op, v, axis), axis)
    conjugate = op.const(_CONJUGATE, like=v)
    return _dft(op, v * conjugate, axis, False) * conjugate


def _dft(op: GradientBuilder, v: Var, axis: int | Var, onesided: bool) -> Var:
    """A DFT node in the spelling of the model's opset."""
    flag = 1 if onesided else None
    if op.opset < 20:
        return op.DFT(v, axis=axis, onesided=flag)
    where = axis if isinstance(axis, Var) else op.const(axis, ir.DataType.INT64)
    return op.DFT(v, None, where, onesided=flag)


def _multiplicity(
    op: GradientBuilder, dx: Var, length: int | Var, axis: int | Var, known_rank: int | None
) -> Var:
    """How often each frequency of a one-sided spectrum of real values counts: the inner ones twice."""
    if isinstance(length, int) and isinstance(axis, int) and known_rank is not None:
        bins = np.arange(length // 2 + 1)
        counted = np.where((bins == 0) | (2 * bins == length), 1.0, 2.0)
        return op.const(
            counted.reshape([-1 if d == axis % known_rank else 1 for d in range(known_rank)]), like=dx
        )
    int64 = ir.DataType.INT64
    k = op.Range(0, op.squeeze(_vector(op, _size(op, dx, axis)), [0]), 1)
    single = op.Or(op.Equal(k, 0), op.Equal(k * 2, _vector(op, length)))
    counts = op.Where(single, op.const(1.0, like=dx), op.const(2.0, like=dx))
    # (bins,) in the place of the axis: a vector of the rank of dx that is 1 everywhere else.
    rank = op.Size(op.shape(dx))
    place = op.Where(op.const(axis) < 0, rank + axis, op.const(axis)) if isinstance(axis, int) else None
    if place is None:
        place = op.Where(axis < 0, rank + op.Cast(axis, to=int64), op.Cast(axis, to=int64))
    here = op.Equal(op.Range(0, rank, 1), place)
    return op.reshape(counts, op.Where(here, op.const([-1], int64), op.const([1], int64)))


def _vector(op: GradientBuilder, size: int | Var) -> Var:
    return size if isinstance(size, Var) else op.const([size], ir.DataType.INT64)


@rule("STFT")
def stft(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y = F (window · frame) of each frame of the signal.

    With g = conj(F) dy:  dsignal = Σ window · g, overlapping frames added;  dwindow = Σ frame · g over
    all frames.
    """
    signal, window = node.inputs[0], node.input(2)
    n = _frame_length(op, node)
    g = _conjugate_dft(op, dy, n if node.attr("onesided") else None, 2)
    g = op.slice(g, 0, 1, [-1]) if signal.rank == 2 else _components(op, g, signal)
    scalar = op.squeeze(_vector(op, n), [0])
    step = op.Reshape(op.Cast(node.inputs[1], to=ir.DataType.INT64), [1])
    frames = op.Range(0, op.squeeze(op.dim(dy, 1), [0]), 1)
    places = op.unsqueeze(frames * step, [1]) + op.Range(0, scalar, 1)  # (frames, n)
    rest: list[Var | None] = [None] * (len(node.inputs) - 1)
    dframes = g
    if window is not None:
        dframes = g * op.unsqueeze(window, [1])
        if node.needs[2]:
            taken = op.Gather(signal, places, axis=1)
            taken = op.unsqueeze(taken, [-1]) if signal.rank == 2 else taken
            rest[1] = op.reduce_sum(g * taken, [0, 1, 3])
    if signal.rank == 2:
        dframes = op.squeeze(dframes, [-1])
    places.value.shape = ir.Shape([None, None])
    return [put_along(op, signal, places, None, 1, dframes), *rest]


def _frame_length(op: GradientBuilder, node: NodeView) -> int | Var:
    """As given, else the window's, else the signal's."""
    known = node.constant(3)
    if known is not None:
        return int(known.reshape(-1)[0])
    if node.input(2) is not None:
        return op.size(node.inputs[2], 0)
    if node.input(3) is not None:
        return op.Reshape(op.Cast(node.inputs[3], to=ir.DataType.INT64), [1])
    return op.size(node.inputs[0], 1)


non_differentiable(
    "HannWindow",
    "HammingWindow",
    "BlackmanWindow",
    "MelWeightMatrix",
    reason="its output depends on sizes and limits alone, no value of a signal",
)
