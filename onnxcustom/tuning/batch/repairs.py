"""Ways to let a node of a fixed number of rows take any number: tried one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Builder, Var

from .case import Case, Known, Repair
from .layouts import Layout, find_layout
from .lifting import lifted

__all__ = ["Case", "Known", "Repair", "is_shaping", "repairs"]

# Operands that hold the shape of a result.
_SHAPES = {
    "Expand": 1,
    "Resize": 3,
    "ConstantOfShape": 0,
    "CenterCropPad": 1,
    "MaxUnpool": 2,
    "AffineGrid": 1,
}
# Operators that give numbers on in their order, under another shape.
_SHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
# Layers with states: where these are, and the lengths of the sequences.
_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
_LENGTHS = 4
_MOST = 150  # combinations of operands that are tried
_ALL = np.iinfo(np.int64).max


def is_shaping(node: ir.Node) -> bool:
    """Whether a node gives numbers on in their order."""
    return node.op_type in _SHAPING and node.domain in ("", "ai.onnx")


def repairs(case: Case) -> Iterator[Repair]:
    """What may be tried, likely ones first."""
    if case.node.domain in ("", "ai.onnx"):
        found = case.operand(0)
        back = found is not None and found[1].layout is not None and found[1].layout.lifted
        for tried in (_shaped, lifted) if back else (lifted, _shaped):
            yield from tried(case)
        yield from _sized(case)
        yield from _covering(case)
        yield from _apart(case)
        yield from _reduced(case)
    yield from _with_other_operands(case)


# -- the same numbers under another shape -------------------------------------------------------------------


def _shaped(case: Case) -> Iterator[Repair]:
    node = case.node
    index = case.operand(1)
    dropping = index is not None and np.ndim(index[1].batch) == 0 and _takes_only_row(case)
    if not (is_shaping(node) or dropping):
        return
    found = case.operand(0)
    if found is None or found[1].layout is None:
        return
    x, known = found
    wanted = case.results[0][0].shape
    assert known.layout is not None
    axes = sorted(range(len(wanted)), key=lambda axis: _unlikely(case, known.layout, axis, wanted))
    for axis in axes:
        shape = [d * len(known.blocks) if i == axis else d for i, d in enumerate(wanted)]
        if int(np.prod(shape)) != known.batch.size:
            continue
        layout = find_layout(case.results[0], known.batch.reshape(shape), case.block)
        if layout is None or layout.axis != axis:
            continue
        op = case.builder()
        made = (
            _reshape(case, op, x, known, layout)
            if node.op_type == "Reshape"
            else _moved(case, op, x, known, layout)
        )
        if made is not None:
            yield made


def _unlikely(case: Case, layout: Layout | None, axis: int, wanted: Sequence[int]) -> tuple[Any, ...]:
    """Order of the axes that rows may be on: alone, where they were, with what came after or before them."""
    assert layout is not None
    stays = axis == layout.axis
    if wanted[axis] == case.block:
        return 0, not stays, axis
    return 1, not (stays and not case.leading and axis < len(wanted) - 1), axis


def _reshape(case: Case, op: Builder, x: ir.Value, known: Known, layout: Layout) -> Repair | None:
    """A Reshape to another shape, which is a constant as it was where that will do."""
    operand = case.operand(1)
    if operand is None or known.layout is None:
        return None
    target, held = operand
    said = np.asarray(held.blocks[0]).reshape(-1).tolist()
    axis, pure = layout.axis, layout.pure(case.results[0][0].shape, case.block)
    others = said[:axis] + said[axis + 1 :]
    copies = not case.node.attributes.get_int("allowzero", 0)
    if known.layout.lifted and 0 in said:  # of axes that are elsewhere now
        return None
    if pure and copies and axis == known.layout.axis and known.layout.pure(known.shape, case.block):
        entry: Any = [0]
    elif -1 not in others:
        entry = [-1]
    elif pure:
        entry = op.wrap(case.rows)
    elif held.kind == "same" and said[axis] > 0 and said[axis] % case.block == 0:
        entry = op.wrap(case.rows) * (said[axis] // case.block)
    else:
        return None
    return Repair(op, {1: _with_entry(op, target, held, axis, entry)})


def _with_entry(op: Builder, vector: ir.Value, held: Known, place: int, entry: Any) -> ir.Value:
    """A vector of sizes with another number at a place."""
    said = np.asarray(held.blocks[0]).reshape(-1)
    if held.kind == "same" and not isinstance(entry, Var):
        return op.const(np.array([*said[:place], *entry, *said[place + 1 :]], np.int64)).value
    if held.kind == "same":
        front, back = (op.const(np.array(part, np.int64)) for part in (said[:place], said[place + 1 :]))
    else:
        given = op.Cast(op.wrap(vector), to=ir.DataType.INT64)
        front, back = op.Slice(given, [0], [place], [0]), op.Slice(given, [place + 1], [len(said)], [0])
    middle = entry if isinstance(entry, Var) else op.const(np.array(entry, np.int64))
    pieces = [p for p, size in ((front, place), (middle, 1), (back, len(said) - place - 1)) if size]
    return (op.Concat(*pieces, axis=0) if len(pieces) > 1 else op.Identity(pieces[0])).value


def _moved(case: Case, op: Builder, x: ir.Value, known: Known, layout: Layout) -> Repair | None:
    """Squeeze, Unsqueeze, or the only row of a Gather, as a Reshape."""
    wanted = case.results[0][0].shape
    sources = _sources(case, len(known.shape), len(wanted))
    if sources is None or known.layout is None:
        return None
    entries: list[Any] = []
    for axis, size in enumerate(wanted):
        source = sources[axis]
        if axis == layout.axis:
            entries.append("rows" if layout.pure(wanted, case.block) else -1)
        elif source is None:
            entries.append(1)
        elif source == known.layout.axis and not known.layout.lifted:
            entries.append(1 if size == 1 else -1)
        else:
            entries.append(("size", source + known.layout.lifted))
    if entries.count(-1) > 1:
        return None
    return Repair(op, instead=op.Reshape(op.wrap(x), _vector(case, op, x, entries)).value)


def _vector(case: Case, op: Builder, x: ir.Value, entries: Sequence[Any]) -> Var:
    """A shape of numbers, sizes of `x` and the number of rows."""
    pieces: list[Var] = []
    for entry in entries:
        if entry == "rows":
            pieces.append(op.wrap(case.rows))
        elif isinstance(entry, tuple):
            pieces.append(op.Slice(op.Shape(op.wrap(x)), [entry[1]], [entry[1] + 1], [0]))
        else:
            pieces.append(op.const(np.array([entry], np.int64)))
    return op.Concat(*pieces, axis=0) if len(pieces) > 1 else pieces[0]


def _sources(case: Case, rank: int, made: int) -> list[int | None] | None:
    """For every axis of a result the one of the operand that it is, None for a new one."""
    node = case.node
    if node.op_type == "Gather":
        gone = [node.attributes.get_int("axis", 0) % rank]
    elif node.op_type == "Flatten":
        return [0, None] if case.results[0][0].shape[0] == case.block and rank == 2 else None
    else:
        gone = case.numbers(1, "axes") or []
    if node.op_type == "Unsqueeze":
        new = {a % made for a in gone}
        left = iter(range(rank))
        return [None if i in new else next(left) for i in range(made)]
    if node.op_type == "Squeeze" and not gone:
        gone = [i for i, d in enumerate(case.known[node.inputs[0]].shape) if d == 1]  # type: ignore[index]
    without = {a % rank for a in gone}
    return [i for i in range(rank) if i not in without]


# -- shapes, parts and sums that hold the number of rows ----------------------------------------------------


def _sized(case: Case) -> Iterator[Repair]:
    """Another number in the operand that holds a shape."""
    index = _SHAPES.get(case.node.op_type)
    found = None if index is None else case.operand(index)
    if found is None or index is None:
        return
    vector, held = found
    said = np.asarray(held.blocks[0]).reshape(-1).tolist()
    for place, size in enumerate(said):
        if size == case.block or (
            held.kind == "same" and size > 0 and size % case.block == 0 and case.block > 1
        ):
            op = case.builder()
            rows = op.wrap(case.rows)
            entry = rows if size == case.block else rows * (size // case.block)
            yield Repair(op, {index: _with_entry(op, vector, held, place, entry)})


def _takes_only_row(case: Case) -> bool:
    """Whether a node is a Gather that takes all rows there are, in their order."""
    found, index = case.operand(0), case.operand(1)
    if case.node.op_type != "Gather" or found is None or index is None or found[1].layout is None:
        return False
    if index[1].kind != "same":
        return False
    axis = case.node.attributes.get_int("axis", 0) % len(found[1].shape)
    places = np.asarray(index[1].batch).reshape(-1)
    same = axis == found[1].layout.axis and found[1].layout.pure(found[1].shape, case.block)
    return same and np.array_equal(places % case.block, np.arange(case.block))


def _covering(case: Case) -> Iterator[Repair]:
    """Parts of a tensor that are all of its rows."""
    node, found = case.node, case.operand(0)
    if found is None or found[1].layout is None or not found[1].layout.pure(found[1].shape, case.block):
        return
    x, known = found
    axis, rank = found[1].layout.axis, len(known.shape)
    op = case.builder()
    if node.op_type == "Gather" and _takes_only_row(case):
        yield Repair(op, instead=op.Identity(op.wrap(x)).value)
    if node.op_type == "Split" and len(node.outputs) == 1:
        yield Repair(op, instead=op.Identity(op.wrap(x)).value)
    if node.op_type != "Slice":
        return
    starts, ends = case.numbers(1, "starts"), case.numbers(2, "ends")
    if starts is None or ends is None:
        return
    axes = [a % rank for a in case.numbers(3, "axes") or range(len(starts))]
    steps = case.numbers(4, "steps") or [1] * len(starts)
    if axis not in axes or steps[axes.index(axis)] != 1 or case.results[0][0].shape[axis] != case.block:
        return
    starts[axes.index(axis)], ends[axes.index(axis)] = 0, _ALL
    numbers = [starts, ends, axes, steps] if any(s != 1 for s in steps) else [starts, ends, axes]
    operands = [np.array(n, np.int64) for n in numbers]
    yield Repair(op, instead=op.Slice(op.wrap(x), *operands).value)


def _apart(case: Case) -> Iterator[Repair]:
    """A part of an axis that rows were made one with: of every row alone."""
    node, found = case.node, case.operand(0)
    if node.op_type != "Slice" or "axes" in node.attributes or len(node.inputs) < 3 or found is None:
        return
    x, known = found
    if known.layout is None or known.layout.before > 1 or known.layout.pure(known.shape, case.block):
        return
    axis, rank = known.layout.axis, len(known.shape)
    axes = case.numbers(3, "axes") or list(range(case.known[node.inputs[1]].batch.size))  # type: ignore[index]
    inner = np.array([a % rank + (a % rank >= axis) for a in axes], np.int64)
    op = case.builder()
    entries: list[Any] = [("size", i) for i in range(rank)]
    split = [*entries[:axis], "rows", -1, *entries[axis + 1 :]]
    steps = [op.wrap(node.inputs[4])] if len(node.inputs) > 4 and node.inputs[4] is not None else []
    bounds = [op.wrap(v) for v in node.inputs[1:3] if v is not None]
    made = op.Slice(op.Reshape(op.wrap(x), _vector(case, op, x, split)), *bounds, inner, *steps)
    merged = [-1 if i == axis else ("size", i + (i > axis)) for i in range(rank)]
    yield Repair(op, instead=op.Reshape(made, _vector(case, op, made.value, merged)).value)


def _reduced(case: Case) -> Iterator[Repair]:
    """A sum over all axes where that of the only row is among them: over the others."""
    node, found = case.node, case.operand(0)
    if not node.op_type.startswith("Reduce") or found is None or case.declared or case.block > 1:
        return
    x, known = found
    if known.layout is None or not known.layout.pure(known.shape, 1):
        return
    rank, row = len(known.shape), known.layout.axis
    axes = sorted({a % rank for a in case.numbers(1, "axes") or range(rank)})
    if row not in axes:
        return
    others, keep = [a for a in axes if a != row], node.attributes.get_int("keepdims", 1)
    op = case.builder()
    made = op.wrap(x)
    if others:
        made = op.call(node.op_type, made, np.array(others, np.int64), keepdims=keep)
    if keep:
        yield Repair(op, instead=made.value)
        return
    left = [a for a in range(rank) if a == row or a not in axes]
    place = left.index(row)
    if len(left) < 2:
        return
    entries: list[Any] = [("size", i) for i in range(len(left)) if i != place]
    entries[min(place, len(entries) - 1)] = -1
    yield Repair(op, instead=op.Reshape(made, _vector(case, op, made.value, entries)).value)


# -- operands that do not go with the rows ------------------------------------------------------------------


def _with_other_operands(case: Case) -> Iterator[Repair]:
    """Operands with the rows on another axis, or repeated for each row."""
    choices = {i: found for i in range(len(case.node.inputs)) if (found := _alternatives(case, i))}
    for chosen in _combinations(case, choices):
        op = case.builder()
        yield Repair(op, {i: _changed(case, op, i, how, axis) for i, (how, axis) in chosen.items()})


def _alternatives(case: Case, index: int) -> list[tuple[str, int]]:
    """What can be done to an operand, and on which axis."""
    found = case.operand(index)
    if found is None or not isinstance(found[1].batch, np.ndarray):
        return []
    known = found[1]
    shape, states = known.shape, _STATES.get(case.node.op_type)
    fits = [axis for axis, size in enumerate(shape) if size == case.block]
    if known.kind == "rows" and known.layout is not None and known.layout.lifted:
        ranks = {len(k.shape) for k in case.known.values() if k.layout is not None and not k.layout.lifted}
        return [("spread", rank) for rank in sorted(ranks) if rank > len(shape)]
    if known.kind == "rows":
        return [
            ("moved", axis)
            for axis in fits
            if case.block == 1 and known.layout is not None and axis != known.layout.axis
        ]
    if states is not None:
        axis = 1 - case.node.attributes.get_int("layout", 0)
        place = axis if index in states else 0 if index == _LENGTHS else None
        return [] if place is None or place not in fits else [("repeated", place)]
    if known.batch.dtype.kind in "iu" and known.batch.ndim < 2:  # numbers of axes, indices
        return []
    array = known.blocks[0]
    alike = [axis for axis in fits if (array == array.take([0], axis=axis)).all()]
    once = [("once", axis) for axis in alike] if case.block > 1 else []
    return once + [("repeated", axis) for axis in alike]


def _combinations(
    case: Case, choices: Mapping[int, list[tuple[str, int]]]
) -> Iterator[dict[int, tuple[str, int]]]:
    """What to do to which operands: the same to all of a kind first."""
    seen: list[dict[int, tuple[str, int]]] = []
    kinds = {choice for found in choices.values() for choice in found}
    rows = [k.layout.axis for k in case.known.values() if k.layout is not None]
    for kind in sorted(kinds, key=lambda k: (k[0], k[1] not in rows, k[1])):
        seen.append({i: kind for i, found in choices.items() if kind in found})
    options = [[None, *found] for found in choices.values()]
    for picked in itertools.islice(itertools.product(*options), _MOST):
        chosen = {i: p for i, p in zip(choices, picked, strict=True) if p is not None}
        if chosen and chosen not in seen:
            seen.append(chosen)
    yield from seen


def _changed(case: Case, op: Builder, index: int, how: str, axis: int) -> ir.Value:
    """An operand as it is needed."""
    found = case.operand(index)
    assert found is not None
    value, known = found
    x, rank = op.wrap(value), len(known.shape)
    if how == "spread":
        sizes: list[Any] = [("size", 1 + i) for i in range(rank)]
        return op.Reshape(x, _vector(case, op, value, ["rows", *[1] * (axis - 1 - rank), *sizes])).value
    if how == "moved":
        return _on_axis(case, op, value, known, axis)
    if case.block > 1:
        x = op.Slice(x, [0], [1], [axis])
    if how == "once":
        return x.value
    entries: list[Any] = ["rows" if i == axis else 1 for i in range(rank)]
    return op.Expand(x, _vector(case, op, value, entries)).value


def _on_axis(case: Case, op: Builder, value: ir.Value, known: Known, axis: int) -> ir.Value:
    """An operand whose rows are on another axis, of which it has one element now."""
    x, rank, layout = op.wrap(value), len(known.shape), known.layout
    assert layout is not None
    if layout.pure(known.shape, 1):
        perm = list(range(rank))
        perm[layout.axis], perm[axis] = axis, layout.axis
        return op.Transpose(x, perm=perm).value
    sizes: list[Any] = [("size", i) for i in range(rank)]
    inner: list[Any] = ["rows", -1] if layout.before == 1 else [-1, "rows"]
    split = [*sizes[: layout.axis], *inner, *sizes[layout.axis + 1 :]]
    place = split.index("rows")
    apart = op.Reshape(x, _vector(case, op, value, split))
    rest = [i for i in range(rank + 1) if i != place]
    # The axis of one element makes room for the rows.
    rest[axis] = place
    gone = next(i for i in range(rank + 1) if i not in rest)
    turned = op.Transpose(apart, perm=[*rest, gone])
    sizes[layout.axis], sizes[axis] = -1, "rows"
    return op.Reshape(turned, _vector(case, op, value, sizes)).value
