"""Operators that rearrange elements: reshaping, joining, splitting, repeating, masking.

All are linear, so a gradient is the operator's transpose: the inverse arrangement where every
element has one place, a sum where it has several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import non_differentiable, rule

__all__ = ["LAST", "sections"]

# The end of a slice that goes to the last element.
LAST = int(np.iinfo(np.int64).max)


@rule("Reshape", "Flatten")
def reshape(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y holds the elements of x in their order:  dx = dy in the shape of x."""
    return op.reshape_like(dy, node.inputs[0])


@rule("Transpose")
def transpose(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x with dimensions permuted:  dx = dy permuted back; reversing them undoes itself."""
    perm = node.attr("perm")
    return op.Transpose(dy) if perm is None else op.transpose(dy, np.argsort(perm).tolist())


@rule("Squeeze")
def squeeze(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x without dimensions of size 1:  dx = dy with them."""
    x, axes = node.inputs[0], node.input(1)
    if axes is None or x.static_shape is not None:
        return op.reshape_like(dy, x)
    return op.Unsqueeze(dy, axes)


@rule("Unsqueeze")
def unsqueeze(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x with dimensions of size 1 inserted:  dx = dy without them."""
    return op.Squeeze(dy, node.inputs[1])


@rule("Expand", broadcasts=True)
def expand(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x broadcast to a shape:  dx = dy summed over what was repeated."""
    return dy


@rule("Tile")
def tile(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y repeats x rᵢ times along dimension i:  dx = Σ of the repetitions.

    dy is seen as (r₀, d₀, r₁, d₁, ...) and summed over the rᵢ.
    """
    x, repeats = node.inputs[0], node.constant(1)
    if repeats is None or x.rank is None:
        return _untile(op, x, node.inputs[1], dy)
    parts: list[int | Var] = []
    axes = []
    for times, size in zip(repeats.tolist(), op.sizes(x), strict=True):
        if times != 1:
            axes.append(len(parts))
            parts.append(times)
        parts.append(size)
    return op.reduce_sum(op.reshape_parts(dy, parts), axes) if axes else dy


def _untile(op: GradientBuilder, x: Var, repeats: Var, dy: Var) -> Var:
    """The same with repeats or a rank known only when the graph runs."""
    shape = op.shape(x)
    pairs = op.Concat(op.unsqueeze(repeats, [1]), op.unsqueeze(shape, [1]), axis=1)
    seen = op.reshape(dy, op.Reshape(pairs, np.array([-1])))
    if x.rank is not None:
        return op.reduce_sum(seen, list(range(0, 2 * x.rank, 2)))
    return op.reduce_sum(seen, op.Range(0, op.Size(shape) * 2, 2))


@rule("Trilu")
def trilu(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x on one side of a diagonal, 0 on the other:  dx = dy there."""
    return op.Trilu(dy, node.input(1), upper=node.attr("upper"))


# -- joining and splitting ---------------------------------------------------------------------------


@rule("Concat")
def concat(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y = [a, b, ...]:  da, db, ... are the sections of dy."""
    return sections(op, dy, node.inputs, node.attr("axis"), node.needs)


def sections(
    op: GradientBuilder, dy: Var, parts: Sequence[Var], axis: int, needs: Sequence[bool]
) -> list[Var | None]:
    """The sections of dy that tensors joined along an axis take, None where none is needed.

    Two sections or fewer are cut out one by one, without looking at shapes, as long
    as the others' sizes say where a section begins and ends.
    """
    sizes = [_size(part, axis) for part in parts]
    unknown = sizes.count(None)
    few = sum(needs) <= (1 if unknown == 0 else 2)
    if len(parts) == 1:
        return [dy]
    if unknown <= 1 and few:
        return [_section(op, dy, sizes, i, axis) if need else None for i, need in enumerate(needs)]
    split = op.concat(
        [op.dim(part, axis) if n is None else np.array([n]) for part, n in zip(parts, sizes, strict=True)]
    )
    if unknown == 0:
        split = op.const(np.array(sizes, dtype=np.int64))
    return list(op.call("Split", dy, split, axis=axis, outputs=len(parts)))


def _section(op: GradientBuilder, dy: Var, sizes: Sequence[int | None], i: int, axis: int) -> Var:
    """Section i, counted from the end behind the one whose size is unknown."""
    start, end = (
        sum(sizes[:k]) if None not in sizes[:k] else -sum(sizes[k:]) or LAST  # type: ignore[arg-type]
        for k in (i, i + 1)
    )
    return op.slice(dy, start, end, [axis])


def _size(x: Any, axis: int) -> int | None:
    """Size of a dimension if it is static."""
    shape = None if x is None else x.shape
    size = None if shape is None else shape[axis]
    return size if isinstance(size, int) else None


@rule("Split")
def split(op: GradientBuilder, node: NodeView, *dys: Var | None) -> Var:
    """y₁, y₂, ... = sections of x:  dx = [dy₁, dy₂, ...], zeros where nothing comes back."""
    axis, sizes = node.attr("axis"), _split_sizes(node)
    present = [i for i, dy in enumerate(dys) if dy is not None]
    first, last = present[0], present[-1]
    before, after = sizes[:first], sizes[last + 1 :]
    # What is missing at either end is padding if its size is known, else zeros to join.
    if None in before:
        first, before = 0, []
    if None in after:
        last, after = len(dys) - 1, []
    x = node.inputs[0]
    middle = [
        op.zeros_like(node.require_output(i, x.dtype)) if dys[i] is None else dys[i]
        for i in range(first, last + 1)
    ]
    return op.pad(op.concat(middle, axis=axis), [sum(before)], [sum(after)], [axis])


def _split_sizes(node: NodeView) -> list[Any]:
    """Size of each section, None where it is known only when the graph runs."""
    given, n, axis = node.constant(1), len(node.outputs), node.attr("axis")
    if given is not None:
        return given.tolist()
    size = _size(node.inputs[0], axis)
    if node.input(1) is None and size is not None:
        chunk = -(-size // n)
        return [max(min(chunk, size - i * chunk), 0) for i in range(n)]
    return [_size(output, axis) for output in node.outputs]


# -- blocks and sequences of time --------------------------------------------------------------------


@rule("SpaceToDepth")
def space_to_depth(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y moves blocks of pixels into channels:  dx = DepthToSpace(dy), which moves them back."""
    return op.DepthToSpace(dy, blocksize=node.attr("blocksize"), mode="DCR")


@rule("DepthToSpace")
def depth_to_space(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y moves channels into blocks of pixels:  dx = SpaceToDepth(dy), which moves them back.

    With mode CRD channels lie otherwise: dy (N, C, H b, W b) becomes (N, C, b, b, H, W).
    """
    b, x = node.attr("blocksize"), node.inputs[0]
    if node.attr("mode") == "DCR":
        return op.SpaceToDepth(dy, blocksize=b)
    n, c, h, w = op.sizes(x, 4)
    channels = c // (b * b) if isinstance(c, int) else op.Div(c, b * b)
    blocks = op.reshape_parts(dy, [n, channels, h, b, w, b])
    return op.reshape_like(op.transpose(blocks, [0, 1, 3, 5, 2, 4]), x)


@rule("ReverseSequence")
def reverse_sequence(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y reverses the first steps of each sequence:  dx = dy reversed the same way."""
    axes = {"batch_axis": node.attr("batch_axis"), "time_axis": node.attr("time_axis")}
    return [op.ReverseSequence(dy, node.inputs[1], **axes), None]


# -- operators that make tensors -----------------------------------------------------------------------


@rule("Range")
def arange(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """yᵢ = start + i delta:  dstart = Σ dyᵢ,  ddelta = Σ i dyᵢ.

    The limit only decides how many elements there are: no gradient.
    """
    step = op.Cast(op.Range(0, op.count(dy, dtype=ir.DataType.INT64), 1), to=dy.dtype)
    return [op.reduce_sum(dy, None), None, op.reduce_sum(dy * step, None)]


non_differentiable("Shape", "Size", reason="its output is a shape, which no value of its input changes")
non_differentiable(
    "Constant",
    "ConstantOfShape",
    "EyeLike",
    reason="its output depends on no value of any floating-point input",
)
