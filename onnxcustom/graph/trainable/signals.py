"""Constants that say where something is or how it is measured: positions, frequencies, windows, units."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.folding import PLACED, folded
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.paths import MOVES, End, Paths

__all__ = ["Signals"]

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
# What these make are places or truths, whatever they read.
_COUNTED = frozenset(
    "Shape Size NonZero ArgMax ArgMin Equal Greater GreaterOrEqual Less LessOrEqual IsNaN IsInf".split()
)
_INTEGER_PRODUCTS = frozenset({"MatMulInteger", "ConvInteger"})
# As exporters round them, in float16 at worst.
_TOLERANCE = 2e-3
# A basis or a window is longer than what a toy model might have by chance.
_LONG, _ROWS, _STEPS = 16, 4, 4


class Signals:
    """Tells what a constant measures that is read as data and is no weight.

    Parameters
    ----------
    paths : Paths
        Ways through the main graph of a prepared model.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def why(self, value: ir.Value, end: End) -> str | None:
        """What an operator takes the constant for, None if it may be a weight."""
        if end.node.domain != "":
            return None
        tests: dict[str, tuple[Callable[[ir.Value, End], str | None], ...]] = {
            "Mul": (self._frequencies, self._slopes, self._expectation, self._integer_scale, self._window),
            "Div": (self._frequencies,),
            "MatMul": (self._frequencies, self._expectation, self._basis, self._bank, self._grid),
            "Gemm": (self._grid,),
            "Conv": (self._expectation, self._basis),
            "Scatter": (self._canvas, self._sparse_bank),
            "ScatterElements": (self._canvas, self._sparse_bank),
            "ScatterND": (self._canvas, self._sparse_bank),
        }
        found = (test(value, end) for test in tests.get(end.node.op_type, ()))
        return next((reason for reason in found if reason is not None), None)

    # -- positions -----------------------------------------------------------------------------------

    def _frequencies(self, value: ir.Value, end: End) -> str | None:
        """What positions are multiplied or divided by before both Cos and Sin: rotary and other places."""
        other = _other(end)
        if other is None or (end.node.op_type == "Div" and end.index == 0):
            return None
        readers = {e.node.op_type for output in end.node.outputs for e in self._paths.ends(output)}
        if readers != {"Cos", "Sin"} or not (self._of_integers(other) or _is_geometric(_array(value))):
            return None
        return "frequencies of positions (Cos and Sin)"

    def _slopes(self, value: ir.Value, end: End) -> str | None:
        """What positions are multiplied by before they are added to attention scores: linear biases."""
        other = _other(end)
        if other is None or end.picked or not self._of_integers(other):
            return None
        found = False
        for after in self._paths.ends(end.node.outputs[0]):
            added = after.node.op_type in ("Add", "Sub", "Sum") and after.node.domain == ""
            scores = [v for i, v in enumerate(after.node.inputs) if i != after.index]
            if not added or not any(map(self._paths.from_product, scores)):
                return None
            if not self._paths.to_softmax(after.node.outputs[0]):
                return None
            found = True
        return "slopes of positions that are added to attention scores" if found else None

    def _grid(self, value: ir.Value, end: End) -> str | None:
        """Coordinates on a grid that a layer reads as if they were data: the product is constant."""
        right = end.node.inputs[1 - end.index]
        if end.index != 0 or right is None or right.const_value is None or end.picked:
            return None
        return "coordinates of a grid" if _is_grid(_array(value)) else None

    def _expectation(self, value: ir.Value, end: End) -> str | None:
        """Numbers in equal steps of which probabilities take the mean."""
        other = _other(end)
        if other is None:
            return None
        array = _array(value)
        if array.size < _STEPS or max(array.shape) != array.size:
            return None
        array = array.astype(np.float64).reshape(-1)
        steps = np.diff(array)
        if not steps[0] or (abs(steps - steps[0]) > 1e-3 * abs(steps[0])).any():
            return None
        sources = (source.producer() for source in self._moved(other))
        if not any(node is not None and node.op_type == "Softmax" for node in sources):
            return None
        return "numbers in equal steps that probabilities are multiplied by"

    def _of_integers(self, value: ir.Value) -> bool:
        """Whether a value is computed from integers, shapes and constants, not from real data."""
        queue, seen = [value], {value}
        while queue:
            for source in self._paths.sources(queue.pop()):
                node = source.producer()
                if source.const_value is not None or (node is not None and node.op_type in _COUNTED):
                    continue
                if node is None:
                    if source.dtype is None or source.dtype in _FLOATS:
                        return False
                    continue
                before = [v for v in node.inputs if v is not None and v not in seen]
                queue += before
                seen.update(before)
        return True

    def _moved(self, value: ir.Value | None) -> Iterator[ir.Value]:
        """A value and the tensors whose numbers it has, in another place or of another type."""
        queue, seen = [value], {value}
        while queue:
            for source in self._paths.sources(queue.pop()):
                yield source
                node = source.producer()
                if node is not None and node.domain == "":
                    before = [node.inputs[i] for i in MOVES.get(node.op_type, ()) if i < len(node.inputs)]
                    queue += [v for v in before if v not in seen]
                    seen.update(before)

    # -- spectra -------------------------------------------------------------------------------------

    def _basis(self, value: ir.Value, end: End) -> str | None:
        """Cosines and sines under a window: the real and the imaginary part of a Fourier transform."""
        own = _rows(value, end)
        if end.index != 1 or end.picked or own is None:
            return None
        half = len(own) // 2
        pairs = [(own[:half], own[half:]), (own[::2], own[1::2])] if len(own) % 2 == 0 else []
        pairs += [(own, other) for other in self._beside(value, end)]
        return "a Fourier basis" if any(_is_basis(c, s) for c, s in pairs) else None

    def _beside(self, value: ir.Value, end: End) -> Iterator[np.ndarray]:
        """Constants that the same data is multiplied by."""
        data = end.node.inputs[0]
        for node, index in self._paths.links.next(data) if data is not None else ():
            if index != 0 or node is end.node or node.op_type != end.node.op_type:
                continue
            for source in self._moved(node.inputs[1]):
                if is_float(source.const_value):
                    rows = _rows(source, End(node, 1))
                    if rows is not None:
                        yield rows

    def _bank(self, value: ir.Value, end: End) -> str | None:
        """Filters of a spectrum, each a hump over neighbouring frequencies: mel and bark scales."""
        array = _array(value)
        if end.picked or array.ndim != 2 or min(array.shape) < _ROWS or max(array.shape) < _LONG:
            return None
        return "a bank of filters" if _is_bank(array) or _is_bank(array.T) else None

    def _sparse_bank(self, value: ir.Value, end: End) -> str | None:
        """Such filters as the numbers that are not zero, written over zeros where constants say."""
        node = end.node
        if end.index != 2 or end.picked or node.inputs[0] in self._paths.links.computed:
            return None
        users = list(self._paths.links.next(node.outputs[0]))
        while len(users) == 1 and users[0][1] == 0 and users[0][0].op_type in PLACED:
            users = list(self._paths.links.next(users[0][0].outputs[0]))
        if not users or any(user.op_type != "MatMul" or user.domain != "" for user, _ in users):
            return None
        for user, index in users:
            array = folded(user.inputs[index])
            if array is None or array.ndim != 2 or not (_is_bank(array) or _is_bank(array.T)):
                return None
        return "a bank of filters"

    def _window(self, value: ir.Value, end: End) -> str | None:
        """A sum of cosines over a frame: Hann, Hamming, Blackman and their like."""
        array = _array(value).astype(np.float64)
        if end.picked or array.size < _LONG or max(array.shape) != array.size:
            return None
        return "a window (a sum of cosines)" if _is_window(array.reshape(-1)) else None

    # -- what numbers are written into, and their unit -------------------------------------------------

    def _canvas(self, value: ir.Value, end: End) -> str | None:
        return "zeros that others are written over" if end.index == 0 and not _array(value).any() else None

    def _integer_scale(self, value: ir.Value, end: End) -> str | None:
        """What integers are multiplied by that stand for numbers: dequantization, written out."""
        reason = "a quantization scale"
        other = _other(end)
        factors = [other]
        # Its product with the scale of the activations is what the integers are multiplied by.
        for after in self._paths.ends(end.node.outputs[0]):
            if after.node.op_type == "Mul" and after.node.domain == "":
                factors.append(_other(after))
        for factor in factors:
            for source in self._moved(factor):
                # A table of integers, or the sums of products of two.
                tensor, node = source.const_value, source.producer()
                if tensor is not None and tensor.size > 1 and tensor.dtype not in _FLOATS:
                    return reason
                if node is not None and node.op_type in _INTEGER_PRODUCTS:
                    return reason
        return None


def _other(end: End) -> ir.Value | None:
    """The other operand of an operator of two."""
    return end.node.inputs[1 - end.index] if end.index in (0, 1) and len(end.node.inputs) > 1 else None


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _is_geometric(array: np.ndarray) -> bool:
    """Whether the numbers have equal ratios, as they are or each twice."""
    numbers = array.astype(np.float64).reshape(-1)
    for row in (numbers, numbers[::2]) if numbers.size >= 2 * _STEPS else (numbers,):
        if row.size >= _STEPS and (row > 0).all():
            ratios = np.diff(np.log(row))
            if ratios[0] and (abs(ratios - ratios[0]) <= _TOLERANCE * abs(ratios[0])).all():
                return True
    return False


def _rows(value: ir.Value, end: End) -> np.ndarray | None:
    """The functions that a Conv of one channel or a MatMul projects on, one a row."""
    array = _array(value)
    if end.node.op_type == "MatMul":
        array = array.T if array.ndim == 2 else array[:0]
    sizes = [d for d in array.shape[1:] if d != 1]
    if len(sizes) != 1 or sizes[0] < _LONG or len(array) < _ROWS:
        return None
    return array.reshape(len(array), -1).astype(np.float64)


def _is_basis(c: np.ndarray, s: np.ndarray) -> bool:
    """Whether c + is turns under one window by an angle of each row's own, from number to number."""
    if c.shape != s.shape or len(c) < _ROWS:
        return False
    power = c * c + s * s
    window = power.mean(axis=0)
    if not window.max() > 0 or (abs(power - window) > _TOLERANCE * window.max()).any():
        return False
    inside = window > 0.01 * window.max()
    rows = c + 1j * s
    turns = (rows[:, 1:] * rows[:, :-1].conj())[:, inside[1:] & inside[:-1]]
    if not turns.shape[1]:
        return False
    turns /= abs(turns)
    means = turns.mean(axis=1, keepdims=True)
    return bool((abs(turns - means) < 0.1).all() and abs(means - means[0]).max() > 1e-3)


def _is_bank(array: np.ndarray) -> bool:
    """Whether each column is zero but for one hump, and most numbers are zero."""
    wide = np.count_nonzero(array)
    if (array < 0).any() or not 2 * array.shape[1] <= wide <= array.size / 4:
        return False
    for column in array.T:
        places = np.flatnonzero(column)
        if not len(places):
            continue
        hump = column[places[0] : places[-1] + 1].astype(np.float64)
        top, slack = int(hump.argmax()), 1e-6 * hump.max()
        if (np.diff(hump[: top + 1]) < -slack).any() or (np.diff(hump[top:]) > slack).any():
            return False
        if len(places) < len(hump):
            return False
    return True


def _is_window(array: np.ndarray) -> bool:
    """Whether it is a sum of at most four cosines of a period, and no constant."""
    inside = np.flatnonzero(array)
    if not len(inside) or np.ptp(array) < 1e-2 * abs(array).max():
        return False
    # Padded to a longer frame, with the zero that it begins with.
    first, last = inside[0], inside[-1] + 1
    for begin in {max(first - 1, 0), first, 0}:
        for stop in {last, min(last + 1, len(array)), len(array)}:
            part = array[begin:stop]
            for period in (len(part), len(part) - 1):
                n = np.arange(len(part))[:, None] * np.arange(4) * 2 * np.pi / period
                terms = np.cos(n)
                fit = terms @ np.linalg.lstsq(terms, part, rcond=None)[0]
                if len(part) >= _LONG and (abs(fit - part) <= 1e-4 * abs(array).max()).all():
                    return True
    return False


def _is_grid(array: np.ndarray) -> bool:
    """Whether each of the last axis's columns varies along one axis only, each along another."""
    axes = [i for i, d in enumerate(array.shape[:-1]) if d > 1]
    if array.ndim < 3 or array.shape[-1] != len(axes) or len(axes) < 2:
        return False
    along = []
    for column in np.moveaxis(array, -1, 0):
        varies = [i for i in axes if bool((np.diff(column, axis=i) != 0).any())]
        if len(varies) != 1 or not bool((np.diff(column, axis=varies[0]) != 0).all()):
            return False
        along += varies
    return len(set(along)) == len(axes)
