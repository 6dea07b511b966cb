"""Slice and Pad: each is the other's gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import rule
from .shaping import LAST

__all__: list[str] = []

# Ends at or beyond this mean "to the last element" whatever the size.
_FAR = 2**31 - 2

# As many zeros behind every single element are joined to it, five times as fast as padded.
_JOINED = 7


# -- Slice -------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Window:
    """What a slice takes along one axis: every `step`-th element, `before` and `after` left out.

    `reverse` tells that it takes them from last to first.
    """

    axis: int
    before: int | Var
    after: int | Var
    step: int
    reverse: bool


@rule("Slice")
def slice_(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x[window]:  dx = dy put back into zeros.

    Windows known beforehand are padded (a step s puts s - 1 zeros behind every element of dy first),
    others add each element of dy at the place where the same slice of all places took it from.
    """
    x = node.inputs[0]
    windows = _windows(op, node, dy)
    if windows is None:
        places = op.call("Slice", op.positions(x), *node.inputs[1:])
        return op.add_at(x, places, dy)
    result = dy
    flipped = [w.axis for w in windows if w.reverse]
    if flipped:
        n = len(flipped)
        result = op.slice(result, [-1] * n, [-LAST] * n, flipped, [-1] * n)
    steps = {w.axis: w.step for w in windows if w.step > 1}
    if steps:
        result = _spread(op, result, op.sizes(dy, x.rank), steps)
    return op.pad(result, [w.before for w in windows], [w.after for w in windows], [w.axis for w in windows])


def _spread(op: GradientBuilder, dy: Var, sizes: Sequence[int | Var], steps: dict[int, int]) -> Var:
    """Put step - 1 zeros behind each element of dy along some axes."""
    axes = sorted(steps)
    inner = [axis + 1 + i for i, axis in enumerate(axes)]
    spread = op.unsqueeze(dy, inner)
    after = [steps[axis] - 1 for axis in axes]
    if axes[-1] == len(sizes) - 1 and after[-1] <= _JOINED:
        zeros = op.zeros_like(spread)
        spread = op.Concat(spread, *[zeros] * after.pop(), axis=inner.pop())
    spread = op.pad(spread, [0] * len(after), after, inner)
    return op.reshape_parts(spread, [size * steps[i] if i in steps else size for i, size in enumerate(sizes)])


def _windows(op: GradientBuilder, node: NodeView, dy: Var) -> list[_Window] | None:
    """The windows of a slice whose operands are constant, None if that is not enough to know them."""
    operands = [node.constant(i) for i in range(1, 5)]
    given = [node.input(i) is not None for i in range(1, 5)]
    if any(value is None and there for value, there in zip(operands, given, strict=True)):
        return None
    starts, ends, axes, steps = ([] if v is None else v.tolist() for v in operands)
    axes = axes if given[2] else list(range(len(starts)))
    steps = steps if given[3] else [1] * len(starts)
    x = node.inputs[0]
    if x.rank is not None:
        axes = [axis % x.rank for axis in axes]
    elif any(step > 1 for step in steps):
        return None  # zeros between elements need the rank
    windows = [_window(op, x, dy, *each) for each in zip(axes, starts, ends, steps, strict=True)]
    return None if None in windows else windows  # type: ignore[return-value]


def _window(
    op: GradientBuilder, x: Var, dy: Var, axis: int, start: int, end: int, step: int
) -> _Window | None:
    size = None if x.shape is None else x.shape[axis]
    if isinstance(size, int):
        return _static_window(axis, size, start, end, step)
    if step == -1 and (start == -1 or start >= _FAR) and end <= -_FAR:
        return _Window(axis, 0, 0, 1, True)
    if step < 1:
        return None
    n: Any = op.dim(x, axis)
    rest = n - op.dim(dy, axis) * step
    if start >= 0:
        # Of a start beyond the last element nothing is taken: all of x is padding.
        if start == 0:
            return _Window(axis, 0, 0 if _whole(end, step) else rest, step, False)
        before = op.Min(n, [start])
        return _Window(axis, before, rest - before, step, False)
    if step == 1 and (end < 0 or end >= _FAR):
        if end >= _FAR:
            return _Window(axis, rest, 0, 1, False)
        after = op.Min(n, [-end])
        return _Window(axis, rest - after, after, 1, False)
    return None


def _whole(end: int, step: int) -> bool:
    return end >= _FAR and step == 1


def _static_window(axis: int, size: int, start: int, end: int, step: int) -> _Window:
    """The window on a dimension of known size: starts and ends are clamped to it."""
    low, high = (0, size) if step > 0 else (-1, size - 1)
    first = start + size if start < 0 else start
    first = min(max(first, 0), high if step > 0 else size - 1)
    stop = min(max(end + size if end < 0 else end, low), high)
    n = max(-(-(stop - first) // step), 0)
    lowest = first if step > 0 else first + (n - 1) * step
    if n == 0:
        lowest = 0
    # Of the last element only itself is in the window, not the zeros behind it.
    return _Window(axis, lowest, size - lowest - n * abs(step), abs(step), step < 0)


# -- Pad ---------------------------------------------------------------------------------------------


@rule("Pad")
def pad(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y = x with borders:  dx = dy without them, plus what the borders repeat of x.

    The value of constant borders gets the sum of dy over them. Modes reflect and wrap assume
    borders no wider than one turn of x, as onnxruntime does.
    """
    x, mode = node.inputs[0], node.attr("mode")
    mode = mode or "constant"
    rest: list[Var | None] = [None] * (len(node.inputs) - 1)
    if mode == "constant":
        dx = _crop(op, node, dy)
        value = node.input(2)
        if value is not None and node.needs[2]:
            # Subtracting dy itself inside leaves exact zeros there.
            inside = op.call("Pad", dx, node.inputs[1], None, node.input(3))
            rest[1] = op.reshape_like(op.reduce_sum(dy - inside, None), value)
        return [dx, *rest]
    borders = _borders(node, x)
    if borders is None:
        places = op.call("Pad", op.positions(x), node.inputs[1], None, node.input(3), mode=mode)
        return [op.add_at(x, places, dy), *rest]
    for border in borders:
        folded = _fold_static(op, mode, op.size(x, border[0]), dy, *border)
        dy = _fold(op, mode, x, dy, *border) if folded is None else folded
    return [dy, *rest]


def _sides(node: NodeView, rank: int | None) -> list[tuple[int, int, int]] | None:
    """Axis, size before and size after of each border, None if they are not constant."""
    pads, axes = node.constant(1), node.constant(3)
    if pads is None or (axes is None and node.input(3) is not None):
        return None
    n = len(pads) // 2
    return [
        (axis if rank is None else axis % rank, before, after)
        for axis, before, after in zip(
            range(n) if axes is None else axes.tolist(), pads[:n].tolist(), pads[n:].tolist(), strict=True
        )
        if before or after
    ]


def _crop(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """dy without constant borders; where the borders cropped x, zeros take the place."""
    sides = _sides(node, None)
    if sides is None:
        return op.Pad(dy, -node.inputs[1], None, node.input(3))
    axes, before, after = ([side[k] for side in sides] for k in range(3))
    if any(n < 0 for n in (*before, *after)):
        return op.pad(dy, [-n for n in before], [-n for n in after], axes)
    if not sides:
        return dy
    return op.slice(dy, before, [-n or LAST for n in after], axes)


def _borders(node: NodeView, x: Var) -> Sequence[tuple[int, int, int]] | None:
    """Constant borders wide one turn of x at the most, which may be folded back one by one."""
    sides = _sides(node, x.rank)
    if sides is None or any(min(before, after) < 0 for _, before, after in sides):
        return None
    # Folding an axis leaves the others as they are, but each only once.
    if len({axis for axis, _, _ in sides}) < len(sides):
        return None
    turn = 1 if node.attr("mode") == "reflect" else 0
    for axis, before, after in sides:
        size = None if x.shape is None else x.shape[axis]
        if isinstance(size, int) and node.attr("mode") != "edge" and max(before, after) > size - turn:
            return None
    return sides


def _fold_static(
    op: GradientBuilder, mode: str, n: int | Var, dy: Var, axis: int, before: int, after: int
) -> Var | None:
    """Fold the borders of one axis where no border reaches the other's place: cut, add, join.

    None where they do, or where that is known only when the graph runs.
    """
    if not isinstance(n, int):
        return None
    left, right = int(before > 0), int(after > 0)
    if mode == "reflect":
        middle = n - before - after - left - right
        layout = [before, left, before, middle, after, right, after]
    elif mode == "wrap":
        middle = n - before - after
        layout = [before, after, middle, before, after]
    else:
        middle = n - left - right
        layout = [(before + 1) * left, middle, (after + 1) * right]
    if middle < 0:
        return None
    sizes = [width for width in layout if width]
    cut = iter(
        op.call("Split", dy, np.array(sizes), axis=axis, outputs=len(sizes)) if len(sizes) > 1 else [dy]
    )
    parts: list[Any] = [next(cut) if width else None for width in layout]
    if mode == "reflect":
        lower, first, near, inside, far, last, upper = parts
        near = near if lower is None else near + _flip(op, lower, axis, before)
        far = far if upper is None else far + _flip(op, upper, axis, after)
        parts = [first, near, inside, far, last]
    elif mode == "wrap":
        lower, near, inside, far, upper = parts
        parts = [near if upper is None else near + upper, inside, far if lower is None else far + lower]
    else:
        lower, inside, upper = parts
        ends = [e if e is None else op.reduce_sum(e, [axis], keepdims=True) for e in (lower, upper)]
        parts = [ends[0], inside, ends[1]]
    return op.concat([part for part in parts if part is not None], axis=axis)


def _flip(op: GradientBuilder, x: Var, axis: int, size: int) -> Var:
    return x if size == 1 else op.slice(x, -1, -LAST, [axis], -1)


def _fold(op: GradientBuilder, mode: str, x: Var, dy: Var, axis: int, before: int, after: int) -> Var:
    """Fold the borders of one axis of any size: each is put in its place among zeros, and all are added."""
    n: Any = op.size(x, axis)
    parts = [op.slice(dy, before, -after or LAST, [axis])]
    if before:
        left = op.slice(dy, 0, before, [axis])
        if mode == "reflect":
            parts.append(op.pad(_flip(op, left, axis, before), [1], [n - (before + 1)], [axis]))
        elif mode == "wrap":
            parts.append(op.pad(left, [n - before], [0], [axis]))
        else:
            parts.append(op.pad(op.reduce_sum(left, [axis], keepdims=True), [0], [n - 1], [axis]))
    if after:
        right = op.slice(dy, -after, LAST, [axis])
        if mode == "reflect":
            parts.append(op.pad(_flip(op, right, axis, after), [n - (after + 1)], [1], [axis]))
        elif mode == "wrap":
            parts.append(op.pad(right, [0], [n - after], [axis]))
        else:
            parts.append(op.pad(op.reduce_sum(right, [axis], keepdims=True), [n - 1], [0], [axis]))
    return op.Sum(*parts)
