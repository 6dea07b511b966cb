"""The builder that rules emit gradients with: shapes taken statically where they are known.

Every helper emits constants where the shape is static and Shape nodes only where it is not, so
that rules read the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Builder, Operand, Var

from .shapes import output_shape

__all__ = ["LARGEST_CONSTANT", "GradientBuilder"]

# Elements of the largest constant that is made of sizes alone; beyond, nodes make it when the graph runs.
LARGEST_CONSTANT = 2**20


class GradientBuilder(Builder):
    """A :class:`~onnxcustom.graph.building.builder.Builder` with what gradients need besides operators."""

    def call(self, op_type: str, *operands: Operand, domain: str = "", **options: Any) -> Any:
        """Append a node, as the base class does, and give its first output a shape where that is known."""
        made = super().call(op_type, *operands, domain=domain, **options)
        first = made if isinstance(made, Var) else made[0]
        if first.value.shape is None:
            node = first.value.producer()
            shape = None if node is None else output_shape(node)
            first.value.shape = None if shape is None else ir.Shape(shape)
        return made

    # -- shapes --------------------------------------------------------------------------------

    def shape(self, x: Var) -> Var:
        """Shape of x as int64 (rank,): a constant if static."""
        static = x.static_shape
        if static is not None:
            return self.const(np.array(static, dtype=np.int64))
        return self.Shape(x)

    def dim(self, x: Var, axis: int) -> Var:
        """Size of one dimension as int64 (1,): a constant if static."""
        shape = x.shape
        if shape is not None:
            size = shape[axis]
            if isinstance(size, int):
                return self.const(np.array([size], dtype=np.int64))
            axis %= len(shape)
        if axis >= 0:
            return self.Shape(x, start=axis, end=axis + 1)
        return self.Shape(x, start=axis, end=None if axis == -1 else axis + 1)

    def count(self, x: Var, axes: Sequence[int] | None = None, dtype: ir.DataType | None = None) -> Var:
        """How many elements x has along `axes` (all by default), a scalar of x's dtype."""
        dtype = dtype or x.dtype
        shape = x.shape
        if shape is not None:
            dims = [shape[a] for a in (range(len(shape)) if axes is None else axes)]
            if all(isinstance(d, int) for d in dims):
                return self.const(np.prod(np.array(dims, dtype=np.int64), dtype=np.int64), dtype)
        if axes is None:
            return self.Cast(self.Size(x), to=dtype)
        picked = self.Gather(self.Shape(x), self.const(np.array(list(axes), dtype=np.int64)))
        return self.Cast(self.ReduceProd(picked, keepdims=0), to=dtype)

    def divide_by_count(
        self, x: Var, of: Var, axes: Sequence[int] | None = None, per: Var | None = None
    ) -> Var:
        """X divided by how many elements `of` has along axes (all by default), over those of `per`."""
        shape = of.shape
        if per is None and shape is not None:
            dims = [shape[a] for a in (range(len(shape)) if axes is None else axes)]
            sizes = [d for d in dims if isinstance(d, int)]
            if len(sizes) == len(dims):
                return x * (1 / (math.prod(sizes) or 1))  # of no elements there is nothing to divide
        # A number of elements may be more than 16 bits of float hold.
        narrow = x.dtype in (None, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        dtype = ir.DataType.FLOAT if narrow else x.dtype
        count = self.count(of, axes, dtype)
        if per is not None:
            count = count / self.count(per, None, dtype)
        return x * self.cast_like(self.Reciprocal(count), x) if narrow else x / count

    def cast_like(self, x: Var, like: Var) -> Var:
        """X in the dtype of `like`; nothing if they agree already."""
        if like.dtype is None:
            return self.CastLike(x, like)
        return x if x.dtype == like.dtype else self.Cast(x, to=like.dtype)

    # -- shape changes ---------------------------------------------------------------------------

    def reshape(self, x: Var, shape: Var | Sequence[int]) -> Var:
        """Reshape to exactly that shape; a 0 in it means an empty dimension, not a copied one."""
        target = shape if isinstance(shape, Var) else self.const(np.array(shape, dtype=np.int64))
        constant = target.value.const_value
        known = None if constant is None else [int(d) for d in constant.numpy()]
        result = self.Reshape(x, target, allowzero=1 if known is None or 0 in known else None)
        if known is not None and -1 not in known:
            result.value.shape = ir.Shape(known)
        return result

    def reshape_like(self, x: Var, like: Var) -> Var:
        """X in the shape of `like`, which has as many elements; nothing if they agree already."""
        if x.shape is not None and x.shape == like.shape and None not in x.shape:
            return x
        dims = _reshape_dims(x.shape, like.shape)
        if dims is None:
            result = self.reshape(x, self.shape(like))
        else:
            result = self.Reshape(x, self.sizes_vector(dims))
        result.value.shape = like.value.shape
        return result

    def expand_like(self, x: Var, like: Var) -> Var:
        """X broadcast to the shape of `like`; nothing if they agree already."""
        if x.shape is not None and x.shape == like.shape and None not in x.shape:
            return x
        result = self.Expand(x, self.shape(like))
        result.value.shape = like.value.shape
        return result

    def zeros_like(self, x: Var) -> Var:
        """Zeros of x's shape and dtype."""
        return self.full_like(x, 0)

    def full_like(self, x: Var, fill: float) -> Var:
        """A constant of x's shape and dtype."""
        if x.dtype is None:
            # Without a dtype the zero must be computed from x itself.
            return self.Expand(self.Sub(self.Add(x, x), x) * fill, self.shape(x))
        value = ir.tensor(np.array([fill], dtype=x.dtype.numpy()))
        result = self.ConstantOfShape(self.shape(x), value=value)
        result.value.shape = x.value.shape
        return result

    def squeeze(self, x: Var, axes: Sequence[int]) -> Var:
        """Remove dimensions of size 1."""
        return self.Squeeze(x, self.const(np.array(list(axes), dtype=np.int64))) if axes else x

    def unsqueeze(self, x: Var, axes: Sequence[int]) -> Var:
        """Insert dimensions of size 1 at positions of the result."""
        if not axes:
            return x
        result = self.Unsqueeze(x, self.const(np.array(list(axes), dtype=np.int64)))
        if x.shape is not None:
            rank = len(x.shape) + len(axes)
            made, dims = {a % rank for a in axes}, iter(x.shape)
            result.value.shape = ir.Shape([1 if i in made else next(dims) for i in range(rank)])
        return result

    def transpose(self, x: Var, perm: Sequence[int]) -> Var:
        """Permute dimensions; nothing if the permutation is the identity."""
        perm = list(perm)
        if perm == list(range(len(perm))):
            return x
        result = self.Transpose(x, perm=perm)
        if x.shape is not None:
            result.value.shape = ir.Shape([x.shape[p] for p in perm])
        return result

    def swap_last(self, x: Var) -> Var:
        """X (..., M, N) of known rank as (..., N, M), to be multiplied by in a MatMul."""
        axes = range(x.rank or 2)
        result = self.transpose(x, [*axes[:-2], axes[-1], axes[-2]])
        if x.dtype != ir.DataType.DOUBLE:
            return result
        # Up to 1.19, onnxruntime fuses Transpose and MatMul to what has no float64 kernel: keep them apart.
        shape = result.value.shape
        result = self.squeeze(self.unsqueeze(result, [0]), [0])
        result.value.shape = shape
        return result

    def reduce_sum(self, x: Var, axes: Sequence[int] | Var | None, keepdims: bool = False) -> Var:
        """Sum over axes (None: all; empty: none)."""
        if axes is None:
            return self.ReduceSum(x, keepdims=int(keepdims))
        if isinstance(axes, Var):
            return self.ReduceSum(x, axes, keepdims=int(keepdims), noop_with_empty_axes=1)
        if not axes:
            return x
        result = self.ReduceSum(x, self.const(np.array(list(axes), dtype=np.int64)), keepdims=int(keepdims))
        if x.shape is not None:
            gone = {a % len(x.shape) for a in axes}
            dims = [1 if i in gone else d for i, d in enumerate(x.shape) if keepdims or i not in gone]
            result.value.shape = ir.Shape(dims)
        return result

    def concat(self, parts: Sequence[Any], axis: int = 0) -> Var:
        """Concatenate; a single part is itself."""
        return parts[0] if len(parts) == 1 else self.Concat(*parts, axis=axis)

    def slice(self, x: Var, starts: Any, ends: Any, axes: Sequence[int], steps: Any = None) -> Var:
        """Slice with Python numbers or int64 variables."""
        operands = [
            part if isinstance(part, Var) else self.const(np.array(part, dtype=np.int64).reshape(-1))
            for part in (starts, ends, list(axes), *([] if steps is None else [steps]))
        ]
        return self.Slice(x, *operands)

    def reshape_parts(self, x: Var, parts: Sequence[int | Var]) -> Var:
        """Reshape to sizes given one by one, numbers or int64 (1,); a single unknown costs no Shape."""
        unknown = [i for i, part in enumerate(parts) if isinstance(part, Var)]
        if len(unknown) == 1 and 0 not in parts:
            parts = [-1 if isinstance(part, Var) else part for part in parts]
        return self.reshape(x, self.sizes_vector(parts))

    def sizes_vector(self, parts: Sequence[int | Var]) -> Var:
        """Sizes as one int64 vector: a constant if all are numbers."""
        runs: list[Any] = []
        for part in parts:
            if not isinstance(part, Var) and runs and isinstance(runs[-1], list):
                runs[-1].append(part)
            else:
                runs.append(part if isinstance(part, Var) else [part])
        made = [r if isinstance(r, Var) else self.const(np.array(r, dtype=np.int64)) for r in runs]
        return self.concat(made) if made else self.const(np.zeros(0, dtype=np.int64))

    def size(self, x: Var, axis: int) -> int | Var:
        """Size of one dimension: a number if static, else int64 (1,)."""
        size = None if x.shape is None else x.shape[axis]
        return size if isinstance(size, int) else self.dim(x, axis)

    def sizes(self, x: Var, rank: int | None = None) -> list[int | Var]:
        """Size of every dimension of x, whose rank is known or given."""
        return [self.size(x, axis) for axis in range((x.rank or 0) if rank is None else rank)]

    def pad(
        self, x: Var, before: Sequence[int | Var], after: Sequence[int | Var], axes: Sequence[int]
    ) -> Var:
        """Zeros around x, negative sizes crop; sizes are numbers or int64 (1,)."""
        kept = [i for i in range(len(axes)) if not (_is_zero(before[i]) and _is_zero(after[i]))]
        if not kept:
            return x
        both = [side[i] for side in (before, after) for i in kept]
        if all(isinstance(n, int) and n <= 0 for n in both):
            starts, ends = np.split(np.array(both, dtype=np.int64), 2)
            last = np.iinfo(np.int64).max
            return self.slice(x, -starts, np.where(ends < 0, ends, last), [axes[i] for i in kept])
        if x.rank is None:
            return self.Pad(x, self.sizes_vector(both), None, self.sizes_vector([axes[i] for i in kept]))
        # onnxruntime's transpose optimizer takes pads for those of all axes, whatever `axes` says.
        sides: list[dict[int, int | Var]] = [
            {axes[i] % x.rank: side[i] for i in kept} for side in (before, after)
        ]
        return self.Pad(x, self.sizes_vector([side.get(a, 0) for side in sides for a in range(x.rank)]))

    def eye(self, x: Var, axis: int) -> Var:
        """Identity matrix of the size of an axis of x, in x's dtype."""
        n = self.dim(x, axis)
        size = 0 if n.value.const_value is None else int(n.value.const_value.numpy()[0])
        if 0 < size * size <= LARGEST_CONSTANT:
            return self.const(np.eye(size), like=x)
        square = self.ConstantOfShape(self.Concat(n, n, axis=0))
        return self.cast_like(self.EyeLike(square, dtype=ir.DataType.FLOAT), x)

    # -- elements by their place -------------------------------------------------------------------

    def count_up(self, n: int) -> Var:
        """0, 1 ... n - 1: a constant, unless that would be a large one."""
        return self.const(np.arange(n)) if n <= LARGEST_CONSTANT else self.Range(0, n, 1)

    def positions(self, x: Var) -> Var:
        """Place of each element of x in row-major order: int64 of x's shape."""
        flat = self.Range(0, self.count(x, dtype=ir.DataType.INT64), 1)
        return flat if x.rank == 1 else self.reshape(flat, self.shape(x))

    def flat_zeros(self, x: Var) -> Var:
        """As many zeros of its dtype as x has elements, in one dimension."""
        static = x.static_shape
        if static is None:
            count = self.Reshape(self.Size(x), self.sizes_vector([1]))
        else:
            count = self.sizes_vector([math.prod(static)])
        dtype = x.dtype or ir.DataType.FLOAT
        return self.ConstantOfShape(count, value=ir.tensor(np.zeros(1, dtype=dtype.numpy())))

    def add_at(self, x: Var, positions: Var, gradient: Var) -> Var:
        """Zeros of x's shape, elements of `gradient` added at `positions` (see :meth:`positions`)."""
        flat = (self.Reshape(t, self.sizes_vector([-1])) for t in (positions, gradient))
        return self.reshape_like(self.scatter_add(self.flat_zeros(x), *flat), x)

    def scatter_add(self, into: Var, indices: Var, updates: Var, axis: int = 0) -> Var:
        """Add `updates` to `into` along an axis, whatever indices repeat.

        ScatterND would be faster, but onnxruntime adds its rows from several threads at once and
        loses some where an index repeats. 16-bit floats, which it adds nowhere, add in 32 bits.
        """
        dtype, shape = into.dtype, into.value.shape
        half = dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        if half:
            into, updates = (self.Cast(t, to=ir.DataType.FLOAT) for t in (into, updates))
        added = self.ScatterElements(into, indices, updates, axis=axis, reduction="add")
        result = self.Cast(added, to=dtype) if half else added
        result.value.shape = shape
        return result

    # -- broadcasting ----------------------------------------------------------------------------

    def sum_to(self, gradient: Var, x: Var) -> Var:
        """Sum a gradient to the shape of x, which was broadcast to the gradient's shape."""
        axes = _broadcast_axes(gradient.shape, x.shape)
        if axes is None:
            return self._sum_to_dynamic(gradient, x)
        leading = (gradient.rank or 0) - (x.rank or 0)
        kept = [a for a in axes if a >= leading]
        result = gradient
        if kept:
            result = self.reduce_sum(result, axes, keepdims=True)
            result = self.squeeze(result, list(range(leading)))
        elif axes:
            result = self.reduce_sum(result, axes)
        if result is not gradient:
            result.value.shape = x.value.shape
        return result

    def _sum_to_dynamic(self, gradient: Var, x: Var) -> Var:
        """The same with shapes known only when the graph runs."""
        shape = self.shape(x)
        rank = self.Size(self.shape(gradient)) if gradient.rank is None else gradient.rank
        if x.rank is not None and isinstance(rank, int):
            padded = self.concat([np.ones(rank - x.rank, dtype=np.int64), shape]) if rank > x.rank else shape
        else:
            ones = self.Expand(
                self.const([1], ir.DataType.INT64),
                self.Reshape(self._int(rank) - self.Size(shape), self.const([-1], ir.DataType.INT64)),
            )
            padded = self.Concat(ones, shape, axis=0)
        differs = self.Not(self.Equal(padded, self.shape(gradient)))
        axes = self.Reshape(self.NonZero(differs), self.const([-1], ir.DataType.INT64))
        summed = self.reduce_sum(gradient, axes, keepdims=True)
        result = self.Reshape(summed, shape, allowzero=1)
        result.value.shape = x.value.shape
        return result

    def _int(self, value: Var | int) -> Var:
        return value if isinstance(value, Var) else self.const(value, ir.DataType.INT64)


def _is_zero(size: int | Var) -> bool:
    return not isinstance(size, Var) and size == 0


def _reshape_dims(
    given: tuple[int | str | None, ...] | None, wanted: tuple[int | str | None, ...] | None
) -> list[int | Var] | None:
    """Target of a Reshape known beforehand: -1 for one unknown size, 0 for those that stay; else None."""
    if wanted is None or 0 in wanted:
        return None
    unknown = [i for i, d in enumerate(wanted) if not isinstance(d, int)]
    stays = given is not None and all(
        wanted[i] is not None and i < len(given) and given[i] == wanted[i] for i in unknown
    )
    if len(unknown) > 1 and not stays:
        return None
    return [d if isinstance(d, int) else 0 if stays else -1 for d in wanted]


def _broadcast_axes(
    wide: tuple[int | str | None, ...] | None, narrow: tuple[int | str | None, ...] | None
) -> list[int] | None:
    """Axes of `wide` that a tensor of shape `narrow` was repeated along; None if not certain."""
    if wide is None or narrow is None:
        return None
    leading = len(wide) - len(narrow)
    axes = list(range(leading))
    for axis, (w, n) in enumerate(zip(wide[leading:], narrow, strict=True), start=leading):
        if n == 1:
            if w != 1:
                axes.append(axis)
        elif isinstance(n, int) or (n is not None and n == w):
            continue  # a size of two or more cannot have been repeated
        else:
            return None
    return axes
