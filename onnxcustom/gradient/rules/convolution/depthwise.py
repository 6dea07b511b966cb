"""Convolutions of each channel on its own, into one or several, as products of matrices.

A runtime's convolution of one channel is a product with a single row. Two forms multiply matrices instead:

- *matrix*: on a small map, the positions of the response and the pixels of the image are few, and what
  takes one to the other is a matrix A[P, Q] of each channel: the weight times a constant of zeros and ones.
- *bands*: on a larger one the same along the last axis only, a row of the kernel at a time: A[Wo, W].

The weight's gradient is the same product backwards: all pairs of a position and a pixel, responses times
images, of which the constant adds those that a place of the kernel joins.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from onnxcustom.graph.building.builder import Var

from ...emit import GradientBuilder
from .forms import Shapes

__all__ = [
    "image_by_bands",
    "image_by_matrix",
    "response_by_bands",
    "response_by_matrix",
    "sums",
    "weight_by_bands",
    "weight_by_matrix",
]

# Positions of a row of the response up to which all pairs with the pixels of a row are made.
_WHOLE = 32
# Beyond, the row is cut into blocks of at most as many, as few pairs are wanted (measured: 144 channels 3x3
# at 56 x 56 30 ms by blocks of 14, 40 ms whole; 88 at 28 x 28 3.2 ms by blocks, 2.8 ms whole).
_BLOCK = 16


def sums(op: GradientBuilder, s: Shapes, image: Var, response: Var, w: Var) -> Var:
    """The weight's gradient as sums of products, three times as fast as products of matrices with one row."""
    window = s.window
    assert window.kernel is not None
    image = window.padded(op, image, w)
    last = list(range(2, window.n + 2))
    sums = [
        op.reduce_sum(window.piece(op, image, offset) * response, [0, *last], keepdims=True)
        for offset in itertools.product(*(range(k) for k in window.kernel))
    ]
    return op.Reshape(op.transpose(op.concat(sums), [1, 0, *last]), np.array([0, 1, *window.kernel]))


# -- what is known -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Sizes of a convolution all of which are known.

    Parameters
    ----------
    group, outer : int
        Channels of the image, and M: how many of the response each of them has.
    kernel, image, response, begin, strides, dilations : tuple of int
        Along each axis.
    """

    group: int
    outer: int
    kernel: tuple[int, ...]
    image: tuple[int, ...]
    response: tuple[int, ...]
    begin: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]

    @classmethod
    def of(cls, s: Shapes) -> _Sizes:
        """Those of shapes that the form was chosen for."""
        window = s.window
        assert s.outer is not None
        assert s.image is not None
        assert s.response is not None
        assert window.kernel is not None
        assert window.begin is not None
        per_group = s.outer // s.group
        sides = (window.kernel, s.image, s.response, window.begin, window.strides, window.dilations)
        return cls(s.group, per_group, *sides)

    @property
    def positions(self) -> int:
        """P: of the response."""
        return math.prod(self.response)

    @property
    def pixels(self) -> int:
        """Q: of the image."""
        return math.prod(self.image)

    def reach(self, i: int) -> int:
        """From the first to the last pixel that a window sees along axis i."""
        return (self.kernel[i] - 1) * self.dilations[i]

    def joins(self, i: int, positions: int, pixels: int, begin: int) -> np.ndarray:
        """[kernel, positions, pixels] along axis i: 1 where position o meets pixel o s + k d - begin."""
        k, o, q = np.ogrid[: self.kernel[i], :positions, :pixels]
        met = o * self.strides[i] + k * self.dilations[i] - begin
        return (met == q).astype(np.float64)

    def all_joins(self) -> np.ndarray:
        """The same along all axes together: [K, P Q]."""
        whole = np.ones((1, 1, 1))
        for i, (positions, pixels) in enumerate(zip(self.response, self.image, strict=True)):
            along = self.joins(i, positions, pixels, self.begin[i])
            sizes = [a * b for a, b in zip(whole.shape, along.shape, strict=True)]
            whole = np.einsum("kpq,lrs->klprqs", whole, along).reshape(sizes)
        return whole.reshape(math.prod(self.kernel), -1)


# -- matrix: from all pixels to all positions --------------------------------------------------------------


def response_by_matrix(op: GradientBuilder, s: Shapes, image: Var, w: Var, bias: Var | None) -> Var:
    """[channels, images, Q] times Aᵀ [channels, Q, M P]."""
    z = _Sizes.of(s)
    y = op.MatMul(_by_channel(op, image, z.group, z.pixels), op.swap_last(_matrix(op, s, w)))
    if bias is not None:
        apart = op.Reshape(y, np.array([0, 0, z.outer, z.positions]))
        apart = apart + op.Reshape(bias, np.array([z.group, 1, z.outer, 1]))
        y = op.Reshape(apart, np.array([0, 0, z.outer * z.positions]))
    return _by_image(op, y, z.group * z.outer, z.response)


def image_by_matrix(op: GradientBuilder, s: Shapes, response: Var, w: Var, image: Var) -> Var:
    """[channels, images, M P] times A [channels, M P, Q]."""
    z = _Sizes.of(s)
    responses = _by_channel(op, response, z.group, z.outer * z.positions)
    return _by_image(op, op.MatMul(responses, _matrix(op, s, w)), z.group, z.image)


def weight_by_matrix(op: GradientBuilder, s: Shapes, image: Var, response: Var, w: Var) -> Var:
    """All pairs of position and pixel, summed over images; then those that each place of the kernel joins."""
    z = _Sizes.of(s)
    responses = op.swap_last(_by_channel(op, response, z.group, z.outer * z.positions))
    pairs = op.MatMul(responses, _by_channel(op, image, z.group, z.pixels))
    pairs = op.Reshape(pairs, np.array([z.group * z.outer, z.positions * z.pixels]))
    return _as_weight(op, z, op.Gemm(pairs, _joins(op, s, w), transB=1))


def _by_channel(op: GradientBuilder, x: Var, channels: int, size: int) -> Var:
    """[images, channels, ...] as [channels, images, size]."""
    return op.transpose(op.Reshape(x, np.array([0, channels, size])), [1, 0, 2])


def _by_image(op: GradientBuilder, x: Var, channels: int, sizes: Sequence[int]) -> Var:
    """[.., images, size] as [images, channels, *sizes]."""
    return op.Reshape(op.transpose(x, [1, 0, 2]), np.array([0, channels, *sizes]))


def _matrix(op: GradientBuilder, s: Shapes, w: Var) -> Var:
    """A [channels, M P, Q]: what takes all pixels of a channel to all its positions."""

    def make() -> Var:
        z = _Sizes.of(s)
        a = op.MatMul(op.Reshape(w, np.array([z.group * z.outer, -1])), _joins(op, s, w))
        return op.Reshape(a, np.array([z.group, z.outer * z.positions, z.pixels]))

    return op.once(("matrix of a convolution", w.value, s), make)


def _joins(op: GradientBuilder, s: Shapes, w: Var) -> Var:
    """[K, P Q]: 1 where a place of the kernel joins a position with a pixel."""
    return op.once(("joins of a convolution", s), lambda: op.const(_Sizes.of(s).all_joins(), like=w))


def _as_weight(op: GradientBuilder, z: _Sizes, dw: Var) -> Var:
    """[.., kernel] in the shape of the weight."""
    return op.Reshape(dw, np.array([z.group * z.outer, 1, *z.kernel]))


# -- bands: from the pixels of rows to the positions of a row ------------------------------------------------


def response_by_bands(op: GradientBuilder, s: Shapes, image: Var, w: Var, bias: Var | None) -> Var:
    """The rows that the kernel's rows meet, side by side, times their bands [group, M, kh W, Wo]."""
    z = _Sizes.of(s)
    images = _padded(op, z, _swapped(op, image))
    rows = _side_by_side(op, _met(op, z, images), z.group, 1, z.image[-1])
    y = op.MatMul(rows, _bands(op, z, w))
    if bias is not None:
        y = y + op.Reshape(bias, np.array([z.group, z.outer, 1, 1]))
    return _swapped(op, op.Reshape(y, np.array([z.group * z.outer, -1, *z.response])))


def image_by_bands(op: GradientBuilder, s: Shapes, response: Var, w: Var, image: Var) -> Var:
    """The same from the response's rows to the image's, where rows have a stride of 1."""
    z = _Sizes.of(s)
    axes = range(len(z.image) - 1)
    before = [z.reach(i) - z.begin[i] for i in axes]
    after = [z.image[i] + z.reach(i) - z.response[i] - b for i, b in zip(axes, before, strict=True)]
    responses = op.pad(_swapped(op, response), before, after, [i + 2 for i in axes])
    backwards = reversed(list(_offsets(z)))
    met = [_cut(op, responses, offset, z.image[:-1], [1] * len(offset)) for offset in backwards]
    rows = _side_by_side(op, met, z.group, z.outer, z.response[-1])
    dx = op.MatMul(rows, _bands(op, z, w, backwards=True))
    dx = op.reduce_sum(dx, [1]) if z.outer > 1 else dx
    return _swapped(op, op.Reshape(dx, np.array([z.group, -1, *z.image])))


def weight_by_bands(op: GradientBuilder, s: Shapes, image: Var, response: Var, w: Var) -> Var:
    """All pairs of position and pixel of rows that meet, summed over rows and images; then diagonals."""
    z = _Sizes.of(s)
    images, responses = _swapped(op, image), _swapped(op, response)
    if z.response[-1] <= _WHOLE:
        block, pixels = z.response[-1], z.image[-1]
        images, begin = _padded(op, z, images), z.begin[-1]
    else:
        images, responses, block, pixels = _in_blocks(op, z, images, responses)
        begin = 0  # written out
    responses = op.Reshape(responses, np.array([z.group, z.outer, -1, block]))
    pairs = []
    for rows in _met(op, z, images):
        rows = op.swap_last(op.Reshape(rows, np.array([z.group, 1, -1, pixels])))
        product = op.MatMul(rows, responses)
        pairs.append(op.Reshape(product, np.array([z.group * z.outer, 1, pixels * block])))
    joins = z.joins(-1, block, pixels, begin).transpose(0, 2, 1).reshape(z.kernel[-1], -1)
    whole = op.Reshape(op.concat(pairs, 1), np.array([-1, pixels * block]))
    return _as_weight(op, z, op.Gemm(whole, op.const(joins, like=w), transB=1))


def _in_blocks(op: GradientBuilder, z: _Sizes, images: Var, responses: Var) -> tuple[Var, Var, int, int]:
    """Rows cut into blocks, and how many positions a block has, which see how many pixels."""
    width, axis = z.response[-1], len(z.image) + 1
    blocks = -(-width // _BLOCK)
    block = -(-width // blocks)
    step = z.strides[-1] * block
    pixels = (block - 1) * z.strides[-1] + z.reach(-1) + 1
    images = _padded(op, z, images, step * (blocks - 1) + pixels)
    parts = [op.slice(images, i * step, i * step + pixels, [axis]) for i in range(blocks)]
    responses = op.pad(responses, [0], [blocks * block - width], [axis])
    return op.concat(parts, axis), responses, block, pixels


def _swapped(op: GradientBuilder, x: Var) -> Var:
    """[images, channels, ...] as [channels, images, ...] and back."""
    return op.transpose(x, [1, 0, *range(2, x.rank or 2)])


def _padded(op: GradientBuilder, z: _Sizes, x: Var, width: int | None = None) -> Var:
    """The image as far as windows reach, along the last axis only if that is to have a width."""
    n = len(z.image) - (width is None)
    ends = [(z.response[i] - 1) * z.strides[i] + z.reach(i) + 1 for i in range(n)]
    if width is not None:
        ends[-1] = width
    after = [max(end - z.begin[i] - z.image[i], 0) for i, end in enumerate(ends)]
    return op.pad(x, z.begin[:n], after, list(range(2, n + 2)))


def _offsets(z: _Sizes) -> itertools.product[tuple[int, ...]]:
    """Where each row of the kernel begins."""
    sides = zip(z.kernel[:-1], z.dilations[:-1], strict=True)
    return itertools.product(*(range(0, k * d, d) for k, d in sides))


def _met(op: GradientBuilder, z: _Sizes, x: Var) -> list[Var]:
    """What each row of the kernel meets of a padded image: [channels, images, *rows, width]."""
    return [_cut(op, x, offset, z.response[:-1], z.strides[:-1]) for offset in _offsets(z)]


def _cut(
    op: GradientBuilder, x: Var, offset: Sequence[int], sizes: Sequence[int], strides: Sequence[int]
) -> Var:
    """So many rows from an offset."""
    if not offset:
        return x
    ends = [a + (n - 1) * d + 1 for a, n, d in zip(offset, sizes, strides, strict=True)]
    return op.slice(x, offset, ends, list(range(2, len(sizes) + 2)), None if set(strides) == {1} else strides)


def _side_by_side(op: GradientBuilder, rows: Sequence[Var], group: int, outer: int, width: int) -> Var:
    """[channels, images, *rows, width] each as [group, outer, all rows, all widths]."""
    axis = (rows[0].rank or 0) - 1
    return op.Reshape(op.concat(rows, axis), np.array([group, outer, -1, width * len(rows)]))


def _bands(op: GradientBuilder, z: _Sizes, w: Var, backwards: bool = False) -> Var:
    """[group, M, kh W, Wo]: what takes rows of pixels to positions; backwards [group, M, kh Wo, W]."""
    joins = z.joins(-1, z.response[-1], z.image[-1], z.begin[-1])
    joins = joins if backwards else joins.transpose(0, 2, 1)
    kernel, height, width = joins.shape
    bands = op.MatMul(op.Reshape(w, np.array([-1, kernel])), op.const(joins.reshape(kernel, -1), like=w))
    return op.Reshape(bands, np.array([z.group, z.outer, math.prod(z.kernel[:-1]) * height, width]))
