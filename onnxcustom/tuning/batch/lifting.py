"""A batch axis of one row that a node drops: it stays in front, and nodes behind count from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .case import Case, Repair

__all__ = ["lifted"]

# Operands that hold axes.
_AXES = {"Slice": 3, "Squeeze": 1, "Unsqueeze": 1}


def lifted(case: Case) -> Iterator[Repair]:
    """A node that keeps the axis which it drops, or that finds its own behind it."""
    found = case.operand(0)
    if not case.lifting or found is None or case.block > 1 or found[1].layout is None:
        return
    layout = found[1].layout
    if layout.lifted:
        yield from _shifted(case)
    elif layout.axis == 0 and layout.before == 1 and found[1].shape[:1] == (1,):
        yield from _kept(case)


def _kept(case: Case) -> Iterator[Repair]:
    node, found = case.node, case.operand(0)
    assert found is not None
    value, known = found
    op, kind, rank = case.builder(), node.op_type, len(known.shape)
    x, axes = op.wrap(value), case.numbers(1, "axes")
    sums = kind.startswith("Reduce") and not node.attributes.get_int("keepdims", 1)
    if kind == "Squeeze" or (sums and not case.declared):
        if axes is None:
            axes = [i for i in range(rank) if sums or known.shape[i] == 1]
        others = np.array([a % rank for a in axes if a % rank], np.int64)
        if not others.size:
            yield Repair(op, instead=op.Identity(x).value)
        elif sums:
            yield Repair(op, instead=op.call(kind, x, others, keepdims=0).value)
        else:
            yield Repair(op, instead=op.Squeeze(x, others).value)
    first = node.attributes.get_int("axis", 0) in (0, -rank)
    if (
        kind == "Gather"
        and first
        and case.numbers(1, "") in ([0], [-1])
        and len(case.results[0][0].shape) < rank
    ):
        yield Repair(op, instead=op.Identity(x).value)


def _shifted(case: Case) -> Iterator[Repair]:
    """The same node with its axes counted behind one more."""
    node = case.node
    if len(node.outputs) > 1:
        return
    attributes: dict[str, Any] = {name: a.value for name, a in node.attributes.items()}
    for name in ("axis", "perm", "axes"):
        value = attributes.get(name)
        if isinstance(value, int):
            attributes[name] = value + (value >= 0)
        elif value is not None:
            attributes[name] = [*[0] * (name == "perm"), *(v + (v >= 0) for v in value)]
    op = case.builder()
    operands: list[Any] = [None if v is None else op.wrap(v) for v in node.inputs]
    index = 1 if node.op_type.startswith("Reduce") else _AXES.get(node.op_type)
    said = None if index is None or index >= len(operands) else case.numbers(index, "")
    if said is not None and index is not None:
        operands[index] = np.array([a + (a >= 0) for a in said], np.int64)
    yield Repair(op, instead=op.node(node.op_type, *operands, domain=node.domain, **attributes).value)
