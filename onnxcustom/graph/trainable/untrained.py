"""Constants that are read like weights and are none: exporters fold them, and nobody trains them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operands import is_bias_add, is_float, single_counts
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.paths import MOVES, End, Paths
from onnxcustom.graph.trainable.signals import Signals

__all__ = ["Untrained"]

# From here down an addend of attention scores blocks.
_LOW = -1e4
_EPSILON = 1e-3
# How far c² + s² may be from 1: tables are computed in half precision, too.
_TOLERANCE = 5e-3
_COARSE = 2e-2

_STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}
# Operands that operators add to the scores they make.
_MASKS = {("", "Attention"): 3, ("com.microsoft", "Attention"): 5, ("com.microsoft", "MultiHeadAttention"): 5}
_ROOTS = {"Log": 0, "Sqrt": 0, "Pow": 0, "Reciprocal": 0, "Div": 1}

_MOVED = frozenset(MOVES) | {"Neg"}

_Test = Callable[[ir.Value, End], str | None]


class Untrained:
    """Tells why a constant that is read as data is no weight.

    Parameters
    ----------
    graph : onnx_ir.Graph
        Main graph of a prepared model.
    live : set of onnx_ir.Value
        What an output depends on.
    """

    def __init__(self, graph: ir.Graph, live: set[ir.Value]) -> None:
        self._graph, self._live = graph, live

    @functools.cached_property
    def _paths(self) -> Paths:
        return Paths(self._graph)

    @functools.cached_property
    def _signals(self) -> Signals:
        return Signals(self._paths)

    def why(self, value: ir.Value) -> str | None:
        """What every operator that reads an initializer takes it for, None if one reads it as a weight."""
        single = value.const_value is not None and value.const_value.size == 1
        reason = None
        for end in self._paths.ends(value):
            if not any(v in self._live for v in end.node.outputs):
                continue
            if single and not single_counts(end.node, end.index):
                continue
            few: tuple[_Test, ...] = (self._epsilon, self._plain)
            found = _first(few, value, end) if single else self._reason(value, end)
            if found is None:
                return None
            reason = reason or found
        return reason

    def _reason(self, value: ir.Value, end: End) -> str | None:
        tests = (self._state, self._mask, self._table, self._bound, self._plain, self._signals.why)
        return _first(tests, value, end)

    # -- initial states, bounds, epsilons ----------------------------------------------------------

    def _state(self, value: ir.Value, end: End) -> str | None:
        """What a recurrent layer starts from; a table of such states that indices choose from is a weight."""
        if end.index not in _STATES.get(end.node.op_type, ()) or end.node.domain != "" or end.picked:
            return None
        return f"an initial state of {end.node.op_type}"

    def _bound(self, value: ir.Value, end: End) -> str | None:
        """One number many times, of which a maximum or minimum is taken: Clip, written out."""
        if end.node.op_type not in ("Max", "Min") or end.picked:
            return None
        array = _array(value)
        return f"a bound ({end.node.op_type})" if bool((array == array.reshape(-1)[0]).all()) else None

    def _epsilon(self, value: ir.Value, end: End) -> str | None:
        """A small number that keeps what is added to it away from zero."""
        if not is_bias_add(end.node, end.index):
            return None
        number = abs(float(_array(value).reshape(-1)[0]) * end.scale + end.shift)
        if not 0 < number < _EPSILON:
            return None
        for user in self._paths.ends(end.node.outputs[0]):
            if _ROOTS.get(user.node.op_type) == user.index and user.node.domain == "":
                return f"an epsilon before {user.node.op_type}"
        return None

    # -- normalizations that exporters write out -----------------------------------------------------

    def _plain(self, value: ir.Value, end: End) -> str | None:
        """Scales of ones and biases of zeros that an operator has to have and the model does not."""
        node = end.node
        if end.index not in (1, 2) or end.picked:
            return None
        if not is_op(node, "BatchNormalization", "InstanceNormalization"):
            return None
        if node.inputs[0] not in self._paths.links.computed and _is_all(value, 2 - end.index):
            return "ones or zeros of a normalization of weights"
        return self._group(node) if node.op_type == "InstanceNormalization" else None

    def _group(self, node: ir.Node) -> str | None:
        """Whether an InstanceNormalization is of groups, whose own scale and bias are behind it."""
        if not _is_all(node.inputs[1], 1) or not _is_all(node.inputs[2], 0):
            return None
        grouped, made = self._regrouped(node.outputs[0])
        data = node.inputs[0]
        grouped = grouped or (data is not None and is_op(data.producer(), "Reshape"))
        for op_type in ("Mul", "Add"):
            users = list(self._paths.links.next(made))
            if len(users) != 1 or not is_op(users[0][0], op_type):
                return None
            applied, index = users[0]
            if applied.inputs[1 - index] in self._paths.links.computed:
                return None
            made = applied.outputs[0]
        return "ones and zeros of a GroupNormalization that is written out" if grouped else None

    def _regrouped(self, value: ir.Value) -> tuple[bool, ir.Value]:
        """Whether a Reshape alone reads a value, and what it makes."""
        users = list(self._paths.links.next(value))
        if len(users) == 1 and users[0][1] == 0 and is_op(users[0][0], "Reshape"):
            return True, users[0][0].outputs[0]
        return False, value

    # -- masks -------------------------------------------------------------------------------------

    def _mask(self, value: ir.Value, end: End) -> str | None:
        node = end.node
        reason = "a mask of attention scores"
        if _MASKS.get((node.domain, node.op_type)) == end.index or (
            node.op_type == "BiasSoftmax" and end.index == 1
        ):
            return reason if _kind(value, end) and not end.picked else None
        positions = {"Add": (0, 1), "Sub": (0, 1), "Sum": tuple(range(len(node.inputs))), "Where": (1, 2)}
        if node.domain != "" or end.index not in positions.get(node.op_type, ()):
            return None
        kind = _kind(value, end, sign=-1 if node.op_type == "Sub" and end.index == 1 else 1)
        if kind == "infinite" and not is_bias_add(node, end.index):
            return "a mask"
        if kind is None or not self._paths.to_softmax(node.outputs[0]):
            return None
        if kind == "zero":
            others = [v for i, v in enumerate(node.inputs) if i != end.index]
            scores = node.op_type != "Where" and any(map(self._paths.from_product, others))
            return reason if scores and not end.picked else None
        return reason

    # -- cosines and sines -------------------------------------------------------------------------

    def _table(self, value: ir.Value, end: End) -> str | None:
        reason = "a table of cosines and sines"
        if is_op(end.node, "RotaryEmbedding"):
            others = [end.node.inputs[3 - end.index]] if end.index in (1, 2) else []
        elif is_op(end.node, "Mul"):
            others = list(self._partners(end))
        else:
            return None
        for other in others:
            for source in self._paths.behind(other, _MOVED) if other is not None else ():
                if is_float(source.const_value) and _on_circle(value, source):
                    return reason
        return None

    def _partners(self, end: End) -> list[ir.Value]:
        """What multiplies the same tensor, rotated, and is added to this product."""
        found = []
        rotated = self._made_of(end.node.inputs[1 - end.index])
        for joint in self._paths.ends(end.node.outputs[0]):
            if joint.node.op_type not in ("Add", "Sub", "Sum"):
                continue
            for i, operand in enumerate(joint.node.inputs):
                if i == joint.index or operand is None:
                    continue
                for source in self._paths.behind(operand, _MOVED):
                    node = source.producer()
                    if node is None or node.op_type != "Mul":
                        continue
                    for k in (0, 1):
                        if rotated & self._made_of(node.inputs[1 - k]):
                            found.append(node.inputs[k])
        return [v for v in found if v is not None]

    def _made_of(self, value: ir.Value | None) -> set[ir.Value]:
        """Computed tensors that a value is a rotation of."""
        if value is None:
            return set()
        made = self._paths.behind(value, _MOVED, rotated=True)
        return {v for v in made if v in self._paths.links.computed}


def _first(tests: Iterable[_Test], value: ir.Value, end: End) -> str | None:
    """What the first test finds that finds anything."""
    return next((found for test in tests if (found := test(value, end)) is not None), None)


def _is_all(value: ir.Value | None, number: float) -> bool:
    """Whether a value is a constant that holds nothing but a number."""
    array = constant_array(value)
    return array is not None and bool((array == number).all())


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _kind(value: ir.Value, end: End, sign: int = 1) -> str | None:
    """The kind of mask: ``'infinite'``, ``'low'`` or ``'zero'``; None if the addend does more than block."""
    array = _array(value)
    if (end.scale, end.shift, sign) != (1.0, 0.0, 1):
        with np.errstate(over="ignore", invalid="ignore"):
            array = sign * (array.astype(np.float64) * end.scale + end.shift)
    low = array <= float(_array(value).dtype.type(_LOW))  # as the type rounds it: -9984 in bfloat16
    if bool(array[~low].any()):
        return None
    if not low.any():
        return "zero"
    return "infinite" if bool((array[low] == -np.inf).all()) else "low"


def _on_circle(first: ir.Value, second: ir.Value) -> bool:
    """Whether two tables, or the two halves of one, hold cosines and sines of the same angles."""
    a = _array(first)
    tolerance = _COARSE if a.dtype.name == "bfloat16" else _TOLERANCE
    if first is second:
        return any(_is_one(c, s, tolerance) for c, s in _halves(a.astype(np.float64)))
    b = _array(second)
    return a.size == b.size and _is_one(
        a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1), tolerance
    )


def _is_one(c: np.ndarray, s: np.ndarray, tolerance: float) -> bool:
    return bool((abs(c * c + s * s - 1) <= tolerance).all())


def _halves(array: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ways to cut a table in two: in the middle of an axis, or every other number of it."""
    found = []
    for axis, size in enumerate(array.shape):
        if size and size % 2 == 0:
            moved = np.moveaxis(array, axis, 0)
            found += [(moved[: size // 2], moved[size // 2 :]), (moved[::2], moved[1::2])]
    return found
