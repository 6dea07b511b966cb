"""DeformConv: a convolution that reads its operand at positions which carry gradients themselves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import LARGEST_CONSTANT, GradientBuilder
from ..expand import expansion, refusal
from ..node import NodeView

__all__: list[str] = []

_INT64 = ir.DataType.INT64
Sizes = list[int | Var]


@expansion("DeformConv", domain="")
def deform_conv(op: GradientBuilder, node: NodeView) -> Var:
    """y[o] = Σₖ w[k] m[k, o] x(o s + k d - p + offset[k, o]) + b, x linear between elements and 0 outside.

    onnxruntime had no kernel on CPU for years; the operators this stands for run everywhere. At an element,
    where linear interpolation has a kink, offsets get the slope towards the next element, as in torchvision.

    References
    ----------
    Dai et al. 2017, Deformable Convolutional Networks, arXiv:1703.06211; Zhu et al. 2018, Deformable
    ConvNets v2: More Deformable, Better Results, arXiv:1811.11168.
    """
    x, w, offset = node.inputs[:3]
    bias, mask = node.input(3), node.input(4)
    n = _spatial_rank(node, x, w, offset)
    groups, parts = int(node.attr("group", 1)), int(node.attr("offset_group", 1))
    given = node.attr("kernel_shape", None)
    kernel: Sizes = list(given) if given else [op.size(w, 2 + a) for a in range(n)]
    output: Sizes = [op.size(offset, 2 + a) for a in range(n)]
    k, o = _product(op, kernel), _product(op, output)
    # One image per part of the channels that shares its offsets: [batch · parts, channels / part, elements].
    batch, channels = _times(op, op.size(x, 0), parts), op.size(x, 1)
    each = channels // parts if isinstance(channels, int) else channels / parts
    images = op.Reshape(x, op.sizes_vector([-1, each, _product(op, [op.size(x, 2 + a) for a in range(n)])]))
    dims = _Dims(op, batch, each, k, o)
    offsets = op.Reshape(offset, op.sizes_vector([-1, k, n, o]))
    positions = []
    for a in range(n):
        undeformed = dims.known(_undeformed(op, node, a, kernel, output, x), "ko")
        offset = dims.known(op.squeeze(op.slice(offsets, a, a + 1, [2]), [2]), "bko")
        positions.append(dims.known(offset + undeformed, "bko"))
    columns = _read(op, x, images, positions, dims)
    if mask is not None:
        columns = columns * dims.reshaped(mask, "b1ko")
    # [batch, groups, channels / group · k, o], with the weights of each group in front.
    columns = op.Reshape(columns, op.sizes_vector([op.size(x, 0), groups, -1, o]))
    weights = op.Reshape(w, op.sizes_vector([groups, -1, _times(op, op.size(w, 1), k)]))
    y = op.Reshape(op.MatMul(weights, columns), op.sizes_vector([op.size(x, 0), op.size(w, 0), *output]))
    shape = node.outputs[0].value.shape
    if shape is not None:
        y.value.shape = ir.Shape(list(shape))
    if bias is None:
        return y
    bias = op.unsqueeze(bias, list(range(1, n + 1)))
    if shape is not None:
        bias.value.shape = ir.Shape([shape[1], *[1] * n])
    return y + bias


def _spatial_rank(node: NodeView, *operands: Var) -> int:
    for name, per_axis in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 2)):
        values = node.attr(name, None)
        if values:
            return len(values) // per_axis
    known = [v.rank for v in operands if v.rank is not None]
    if known:
        return known[0] - 2
    raise refusal(node, "neither its attributes nor the shapes tell its rank; set its attribute kernel_shape")


# -- positions -------------------------------------------------------------------------------------


def _undeformed(op: GradientBuilder, node: NodeView, a: int, kernel: Sizes, output: Sizes, x: Var) -> Var:
    """Coordinate along axis a of every offset of the kernel, for every output: [k, o] by broadcasting."""
    n = len(kernel)
    strides, dilations, pads = (node.attr(name, None) for name in ("strides", "dilations", "pads"))
    of_output = _coordinate(op, output, a, (strides or [1] * n)[a], -(pads or [0] * n)[a], x)
    return op.unsqueeze(_coordinate(op, kernel, a, (dilations or [1] * n)[a], 0, x), [1]) + of_output


def _coordinate(op: GradientBuilder, sizes: Sizes, a: int, step: int, start: int, x: Var) -> Var:
    """start + step · coordinate along axis a of each element of a tensor of these sizes, flattened."""
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) == len(sizes) and math.prod(known) <= LARGEST_CONSTANT:
        return op.const(np.indices(known)[a].reshape(-1) * step + start, like=x)
    total, behind = _product(op, sizes), _product(op, sizes[a + 1 :])
    count = op.squeeze(_vector(op, total), [0])
    place = op.Mod(op.Range(0, count, 1) / _vector(op, behind), _vector(op, sizes[a]))
    return op.cast_like(place * step + start, x)


def _read(op: GradientBuilder, x: Var, images: Var, positions: Sequence[Var], dims: _Dims) -> Var:
    """Images [b, c, elements] at positions [b, k, o] along each axis: [b, c, k, o]."""
    n = len(positions)
    corners = [_corners(op, p, op.count(x, [2 + a], dtype=x.dtype)) for a, p in enumerate(positions)]
    places, shares = [], []
    for choice in itertools.product(range(2), repeat=n):
        index, share = corners[0][choice[0]]
        for a in range(1, n):
            further, factor = corners[a][choice[a]]
            index, share = index * op.dim(x, 2 + a) + further, share * factor
        places.append(index)
        shares.append(share)
    dims.add("t", 2**n)
    dims.add("q", _product(op, [dims.sizes[d] for d in "tko"]))
    index = dims.reshaped(op.Concat(*places, axis=1), "b1q")
    index = op.Expand(index, op.sizes_vector([dims.sizes[d] for d in "bcq"]))
    read = dims.reshaped(op.GatherElements(images, index, axis=2), "bctko")
    share = dims.reshaped(op.Concat(*shares, axis=1), "b1tko")
    return dims.known(op.ReduceSum(read * share, np.array([2]), keepdims=0), "bcko")


def _corners(op: GradientBuilder, position: Var, length: Var) -> list[tuple[Var, Var]]:
    """Index and share of the elements before and behind positions along one axis."""
    before = op.Floor(position)
    way = position - before
    found = []
    for corner, share in ((before, 1 - way), (before + 1, way)):
        inside = op.Max(op.Min(corner, length - 1), 0.0)
        within = op.Cast(op.Equal(corner, inside), to=position.dtype)
        found.append((op.Cast(inside, to=_INT64), share * within))
    return found


# -- sizes -----------------------------------------------------------------------------------------


class _Dims:
    """Sizes by a letter each: b images, c channels, k offsets of the kernel, o outputs.

    What is known only when the graph runs gets a name, so that rules see which shapes agree.
    """

    def __init__(self, op: GradientBuilder, b: int | Var, c: int | Var, k: int | Var, o: int | Var) -> None:
        self.op = op
        self.sizes: dict[str, int | Var] = {"1": 1}
        self.names: dict[str, int | str] = {"1": 1}
        for letter, size in zip("bcko", (b, c, k, o), strict=True):
            self.add(letter, size)

    def add(self, letter: str, size: int | Var) -> None:
        self.sizes[letter] = size
        self.names[letter] = size if isinstance(size, int) else self.op.unique(f"deformed_{letter}")

    def known(self, x: Var, letters: str) -> Var:
        """X, whose shape is that."""
        x.value.shape = ir.Shape([self.names[d] for d in letters])
        return x

    def reshaped(self, x: Var, letters: str) -> Var:
        """X in that shape; its first size follows from the others."""
        rest = [self.sizes[d] for d in letters[1:]]
        return self.known(self.op.Reshape(x, self.op.sizes_vector([-1, *rest])), letters)


def _vector(op: GradientBuilder, size: int | Var) -> Var:
    return size if isinstance(size, Var) else op.const([size], _INT64)


def _times(op: GradientBuilder, a: int | Var, b: int | Var) -> int | Var:
    return a * b if isinstance(a, int) and isinstance(b, int) else _vector(op, a) * _vector(op, b)


def _product(op: GradientBuilder, sizes: Sizes) -> int | Var:
    """The product of sizes, numbers multiplied beforehand."""
    known = math.prod(size for size in sizes if isinstance(size, int))
    unknown = [size for size in sizes if isinstance(size, Var)]
    result: int | Var = known
    for i, size in enumerate(unknown):
        result = size if i == 0 and known == 1 else _times(op, result, size)
    return result
