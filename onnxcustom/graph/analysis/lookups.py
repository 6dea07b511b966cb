"""Inputs that are places in a table, as tokens are in an embedding, and which places there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["IndexRange", "lookups"]

# What hands integers on as they are, in another shape, type or order.
_MOVES = frozenset("Cast Expand Flatten Identity Reshape Squeeze Tile Transpose Unsqueeze".split())
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})


@dataclasses.dataclass(frozen=True)
class IndexRange:
    """Which integers an input may hold.

    Attributes
    ----------
    low, high : int
        The lowest and the highest one.
    node : str
        Who looks them up, for messages.
    """

    low: int
    high: int
    node: str


def lookups(model: ir.Model) -> dict[str, IndexRange]:
    """Integer inputs whose numbers are looked up in a table of known size, whatever else is done with them.

    Parameters
    ----------
    model : onnx_ir.Model
        Any model. What happens within branches of If is not looked at: it need not happen.

    Returns
    -------
    dict of str to IndexRange
        By input; of several tables the one that allows least.
    """
    found = {}
    for value in model.graph.inputs:
        if value.dtype not in _INTEGERS or value.name in model.graph.initializers:
            continue
        places = [p for node, position in _readers(value) if (p := _places(node, position)) is not None]
        if places:
            low, high = max(p.low for p in places), min(p.high for p in places)
            least = next(p for p in places if p.high == high)
            found[str(value.name)] = IndexRange(low, high, least.node)
    return found


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Nodes of the main graph that read a value as it is or moved about, and as which operand."""
    graph, left, seen = value.graph, [value], set()
    while left:
        for node, position in left.pop().uses():
            if node.graph is not graph or node.domain != "":
                continue
            if node.op_type in _MOVES and position == 0:
                if node not in seen and node.outputs[0].dtype in (None, *_INTEGERS):
                    seen.add(node)
                    left.append(node.outputs[0])
            else:
                yield node, position


def _places(node: ir.Node, position: int) -> IndexRange | None:
    """The places of the table that a node looks up, if it does that."""
    table = node.inputs[0]
    if node.op_type != "Gather" or position != 1 or table is None or table.shape is None:
        return None
    rank, axis = len(table.shape), node.attributes.get_int("axis", 0)
    size = table.shape[axis] if -rank <= axis < rank else None
    if not isinstance(size, int) or size < 1:
        return None
    return IndexRange(-size, size - 1, node.name or f"Gather of {table.name!r}")
