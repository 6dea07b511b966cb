"""What convolutions and poolings share: the geometry of their windows, and products along one axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcustom.exceptions import GradientNotImplementedError
from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView

__all__ = [
    "Window",
    "along_axes",
    "cut",
    "identity",
    "refused",
    "shape_of_axes",
    "spatial_rank",
    "static_spatial",
]

_TO_THE_END = 2**62
_LARGEST_MATRIX = 2**14


def refused(node: NodeView, what: str) -> Exception:
    """The exception that a node as it stands has no gradient here, and what to do."""
    return node.walk.error(GradientNotImplementedError, node.node, what)


def spatial_rank(node: NodeView, *operands: Var | None) -> int:
    """Number of spatial dimensions: from an attribute, else from the rank of an operand.

    Raises
    ------
    GradientNotImplementedError
        Neither tells.
    """
    for name, per_axis in (
        ("kernel_shape", 1),
        ("strides", 1),
        ("dilations", 1),
        ("pads", 2),
        ("output_shape", 1),
    ):
        values = node.attr(name, None)
        if values:
            return len(values) // per_axis
    for operand in (*operands, *node.outputs):
        if operand is not None and operand.rank is not None:
            return operand.rank - 2
    raise refused(node, "neither its attributes nor the shapes tell its rank; set its attribute kernel_shape")


def static_spatial(x: Var, n: int) -> tuple[int, ...] | None:
    """The last n dimensions of x if all are known."""
    dims = None if x.shape is None else x.shape[-n:]
    return dims if dims is not None and all(isinstance(d, int) for d in dims) else None  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class Window:
    """Geometry of a sliding window, one entry per spatial dimension.

    Attributes
    ----------
    kernel : tuple of int or None
        Size, None if only known when the graph runs.
    strides, dilations : tuple of int
    begin, end : tuple of int or None
        Padding; None if it follows from sizes known when the graph runs only.
    same : str or None
        ``'SAME_UPPER'`` or ``'SAME_LOWER'`` where `begin` and `end` are None.
    """

    kernel: tuple[int, ...] | None
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...] | None
    end: tuple[int, ...] | None
    same: str | None = None

    @property
    def n(self) -> int:
        """Number of spatial dimensions."""
        return len(self.strides)

    @property
    def extent(self) -> tuple[int, ...]:
        """What the dilated kernel covers; only where `kernel` is known."""
        assert self.kernel is not None
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @classmethod
    def of(cls, node: NodeView, x: Var, n: int, w: Var | None = None) -> Window:
        """The window of a Conv or pooling node that reads x, with weight w if it is a Conv."""
        kernel = node.attr("kernel_shape", None)
        if kernel is None and w is not None:
            kernel = static_spatial(w, n)
        strides = tuple(node.attr("strides", None) or [1] * n)
        dilations = tuple(node.attr("dilations", None) or [1] * n)
        bare = cls(None if kernel is None else tuple(kernel), strides, dilations, None, None)
        auto_pad = node.attr("auto_pad", "NOTSET")
        if auto_pad in ("NOTSET", "", "VALID"):
            pads = node.attr("pads", None) or [0] * (2 * n)
            pads = [0] * (2 * n) if auto_pad == "VALID" else pads
            return dataclasses.replace(bare, begin=tuple(pads[:n]), end=tuple(pads[n:]))
        if kernel is None:
            return dataclasses.replace(bare, same=auto_pad)
        sizes: Sequence[int] | None = static_spatial(x, n)
        if sizes is None and set(strides) == {1}:
            sizes = [10**9] * n  # with stride 1 the padding is the same for every size
        if sizes is None:
            return dataclasses.replace(bare, same=auto_pad)
        geometry = zip(sizes, strides, bare.extent, strict=True)
        total = [max((-(-i // s) - 1) * s + e - i, 0) for i, s, e in geometry]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        return dataclasses.replace(bare, begin=begin, end=end)

    def padded(self, op: GradientBuilder, x: Var, w: Var | None = None) -> Var:
        """X [N, C, ...] with its padding written out."""
        if self.begin is None or self.end is None:
            begin, end = self.same_padding(op, x, w)
            zeros = op.const(np.zeros(2, dtype=np.int64))
            return op.Pad(x, op.Concat(zeros, begin, zeros, end, axis=0))
        if not any(self.begin) and not any(self.end):
            return x
        return op.Pad(x, op.const(np.array([0, 0, *self.begin, 0, 0, *self.end], dtype=np.int64)))

    def same_padding(self, op: GradientBuilder, x: Var, w: Var | None = None) -> tuple[Var, Var]:
        """Padding before and behind, computed when the graph runs: (⌈x/s⌉ - 1) s + extent - x."""
        size = op.Shape(x, start=2)
        s = op.const(np.array(self.strides, dtype=np.int64))
        if self.kernel is None:
            dilations = op.const(np.array(self.dilations, dtype=np.int64))
            extent: Any = (op.Shape(w, start=2) - 1) * dilations + 1
        else:
            extent = op.const(np.array(self.extent, dtype=np.int64))
        total = op.Max((size + (s - 1)) / s * s - s + extent - size, op.const(0, like=size))
        half = total / 2
        return (half, total - half) if self.same == "SAME_UPPER" else (total - half, half)

    def pieces(self, op: GradientBuilder, x: Var, i: int, axis: int) -> list[Var]:
        """What each offset of the kernel along spatial axis i, which is dimension `axis` of x, meets.

        X is padded already.

        Constant starts and ends for every size of x: the last element met by offset j lies
        (kernel - 1 - j) · dilation before the end, rounded down to the stride.
        """
        assert self.kernel is not None
        k, d, s = self.kernel[i], self.dilations[i], self.strides[i]
        if k == 1 and s == 1:
            return [x]
        ends = [-(k - 1 - j) * d or _TO_THE_END for j in range(k)]
        return [op.slice(x, j * d, ends[j], [axis], None if s == 1 else s) for j in range(k)]

    def piece(self, op: GradientBuilder, x: Var, offset: Sequence[int]) -> Var:
        """What one offset of the kernel meets, of an x that is padded already."""
        assert self.kernel is not None
        geometry = list(zip(self.kernel, self.dilations, offset, strict=True))
        ends = [-(k - 1 - j) * d or _TO_THE_END for k, d, j in geometry]
        starts, axes = [j * d for _, d, j in geometry], list(range(2, self.n + 2))
        if set(self.kernel) == set(self.strides) == {1}:
            return x
        return op.slice(x, starts, ends, axes, None if set(self.strides) == {1} else self.strides)


# -- operators that work along each axis on its own ------------------------------------------------


def identity(op: GradientBuilder, x: Var, axis: int) -> Var:
    """The identity matrix of the size of one dimension, in x's dtype."""
    size = None if x.shape is None else x.shape[axis]
    if isinstance(size, int):
        if size > _LARGEST_MATRIX:
            raise GradientNotImplementedError(
                f"Dimension {axis} of {x.value.name!r} has {size:,} elements: no gradient, since it takes a "
                f"matrix of as many rows and columns, which is made for {_LARGEST_MATRIX:,} at most."
            )
        return op.const(np.eye(size), like=x)
    length = op.dim(x, axis)
    return op.EyeLike(op.ConstantOfShape(op.Concat(length, length, axis=0)), dtype=x.dtype)


def shape_of_axes(op: GradientBuilder, x: Var, start: int) -> Var:
    """Sizes of dimensions `start` and following."""
    shape = x.shape
    if shape is not None and all(isinstance(d, int) for d in shape[start:]):
        return op.const(np.array(shape[start:], dtype=np.int64))
    return op.Shape(x, start=start)


def cut(op: GradientBuilder, x: Var, start: Var | Sequence[int], end: Var | Sequence[int], n: int) -> Var:
    """The last n dimensions of X [N, C, ...] from `start` to `end`."""
    return op.slice(x, start, end, list(range(2, n + 2)))


def along_axes(op: GradientBuilder, y: Var, matrices: Mapping[int, Var], rank: int, like: Var) -> Var:
    """Multiply y by a matrix along each axis: [.., o, ..] -> [.., h, ..] by matrices [h, o].

    `like` has the shape of the result.
    """
    for axis in sorted(matrices, reverse=True):
        matrix = matrices[axis]
        if axis == rank - 1:
            y = op.MatMul(y, op.Transpose(matrix, perm=[1, 0]))
        elif axis == rank - 2:
            y = op.MatMul(matrix, y)
        else:  # the axes behind are those of the result already
            rows = op.Reshape(y, op.const(np.array([0] * (axis + 1) + [-1], dtype=np.int64)))
            front = op.const(np.array([0] * axis + [-1], dtype=np.int64))
            behind = shape_of_axes(op, like, axis + 1)
            y = op.Reshape(op.MatMul(matrix, rows), op.Concat(front, behind, axis=0))
    return y
