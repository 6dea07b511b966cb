"""Connectionist temporal classification: labels in order, without saying when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcustom._parameters import check_flag, check_number
from onnxcustom.exceptions import InvalidDataError, InvalidModelError
from onnxcustom.graph.building.builder import Builder, Var

from .base import Loss, LossTarget, register_loss
from .rows import log_extended, shaped, smallest

__all__ = ["CTCLearningLoss"]

# The logarithm of what is impossible: no sum of real logarithms comes near, and it stays finite.
_NEVER = -1e30


class _Paths(NamedTuple):
    """The labels of a batch with blanks between them, L labels making S = 2 L + 1 places."""

    places: Var  # [N, S], classes
    end: Var  # [N, S], 0 where a path may end, else _NEVER
    skip: Var  # [N, S], 0 where a path may come from two places before, else _NEVER
    length: Var  # [N, 1], number of labels, int64
    there: Var | None = None  # [T, N, 1], whether a frame is one of the row's own; None if all are


@register_loss("ctc", "ctc_loss")
class CTCLearningLoss(Loss):
    r"""CTC: minus the log-probability of all ways to say the labels in T frames, over their number.

    The prediction is [N, T, C], scores of C classes in T frames (rows come first however the model has
    them), or what a final Softmax over the classes reads. Expected values are [N, L], classes padded by -1 at
    the end; rows without any label are fine. A row's loss is divided by its number of labels, 1 at least, so
    that the mean over rows is that of PyTorch's ``CTCLoss``. Computed by the logarithms of forward and
    backward probabilities (a Scan over the frames each way), normalised frame by frame.

    Parameters
    ----------
    blank : int, default=0
        The class that says nothing.
    zero_infinity : bool, default=False
        Rows whose labels do not fit into T frames have an infinite loss; with True they count as 0. Their
        gradient is 0 either way.
    input_lengths : str or int, optional
        What says how many of the T frames are a row's own, the first ones; the others have no part in its
        loss. The name of an input of the model that has one number for each row; or the column of the
        expected values that does, 0 for the first one, beside the labels. None: all frames are.
    from_logits : bool, default=True
        Whether the prediction is scores, or probabilities.

    References
    ----------
    A. Graves et al., Connectionist Temporal Classification, ICML 2006, sections 4.1 and 4.2,
    https://doi.org/10.1145/1143844.1143891
    """

    depends_on_columns = True

    # Pickles of earlier versions don't say.
    input_lengths: str | int | None = None

    def __init__(
        self,
        blank: int = 0,
        zero_infinity: bool = False,
        input_lengths: str | int | None = None,
        from_logits: bool = True,
    ) -> None:
        self.blank = blank
        self.zero_infinity = zero_infinity
        self.input_lengths = input_lengths
        self.from_logits = from_logits

    @property
    def on(self) -> str:  # type: ignore[override]
        """'softmax' on scores, else 'output'."""
        return "softmax" if self.from_logits else "output"

    def on_probabilities(self) -> Loss:
        """The same loss taken on probabilities."""
        return type(self)(self.blank, self.zero_infinity, self.input_lengths, from_logits=False)

    @property
    def reads_input(self) -> str | None:  # type: ignore[override]
        """The input of the model that says the lengths."""
        return self.input_lengths if isinstance(self.input_lengths, str) else None

    def with_input(self, op: Builder, expected: Var, given: Var) -> tuple[Loss, Var]:
        """The same loss of lengths in a column, and expected values that have it."""
        lengths = op.Reshape(op.Cast(given, to=ir.DataType.INT64), [-1, 1])
        joined = shaped(op.Concat(lengths, self.match(op, expected, expected), axis=1), expected.shape)
        return type(self)(self.blank, self.zero_infinity, 0, self.from_logits), joined

    def check(self) -> None:
        """Check the parameters."""
        check_number("blank", self.blank, "[0, inf)", integral=True)
        check_flag("zero_infinity", self.zero_infinity)
        if self.input_lengths is not None and not isinstance(self.input_lengths, str):
            check_number("input_lengths", self.input_lengths, f"[{-(2**31)}, {2**31 - 1}]", integral=True)

    def mixes_rows(self, dtype: Any, shape: Sequence | None) -> str | None:
        """None: every row is by itself."""
        return None

    def target(
        self, dtype: ir.DataType | None, rank: int | None = None, shape: Sequence | None = None
    ) -> LossTarget:
        """Classes, as many as the longest row has."""
        rank = rank if shape is None else len(shape)
        if rank not in (None, 3):
            raise InvalidModelError(
                f"{type(self).__name__} takes predictions [N, T, C], scores of C classes in T frames, not "
                f"{rank} dimensions."
            )
        return LossTarget("own", ir.DataType.INT64, [None if shape is None else shape[0], None])

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Labels are classes but the blank, padded by -1 at the end."""
        expected = self._without_lengths(expected)
        if not expected.size:
            return
        whole = expected.dtype.kind in "iub" or np.array_equal(expected, np.floor(expected))
        least, most = expected.min(), expected.max()
        over = columns is not None and most >= columns
        if not whole or expected.ndim != 2 or least < -1 or over or (expected == self.blank).any():
            classes = "" if columns is None else f" to {columns - 1}"
            raise InvalidDataError(
                f"{type(self).__name__} takes labels [rows, length]: classes from 0{classes} without the "
                f"blank {self.blank}, padded by -1; the expected values have shape {expected.shape} and go "
                f"from {least} to {most}."
            )
        behind = (np.diff((expected >= 0).astype(np.int8), axis=1) > 0).any(axis=1)
        if behind.any():
            row = int(behind.argmax())
            raise InvalidDataError(
                f"Row {row} has labels behind a -1, which only pads the end: {expected[row]}."
            )

    def _without_lengths(self, expected: np.ndarray) -> np.ndarray:
        """The labels alone."""
        column = self.input_lengths
        if column is None or isinstance(column, str):
            return expected
        if expected.ndim != 2 or not -expected.shape[1] <= column < expected.shape[1]:
            raise InvalidDataError(
                f"The lengths are column {column} of the expected values, whose shape is {expected.shape}."
            )
        if (expected[:, column] < 0).any():
            row = int((expected[:, column] < 0).argmax())
            raise InvalidDataError(f"Row {row} has {expected[row, column]} frames, by column {column}.")
        return np.delete(expected, column, axis=1)

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """Labels as int64."""
        return expected if expected.dtype == ir.DataType.INT64 else op.Cast(expected, to=ir.DataType.INT64)

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        # Half precision has no range for logarithms of probabilities of paths.
        half = predicted.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE, None)
        x = op.Cast(predicted, to=ir.DataType.FLOAT) if half else predicted
        if self.from_logits:
            log_p = op.LogSoftmax(x, axis=2)
        else:
            log_p, slope = log_extended(op, x, smallest(None, x.dtype))
        label, there = self._parts(op, expected, log_p)
        paths = self._paths(op, label, log_p)._replace(there=there)
        losses, share, feasible = self._losses(op, log_p, paths)
        # Minus the gradient of the losses with respect to log p, scattered to the classes of the places.
        gradient = op.Exp(log_p) - share if self.from_logits else -(share * slope)
        gradient = op.Where(op.Unsqueeze(feasible, [2]), gradient, op.const(0, like=x))
        if there is not None:
            own = op.Transpose(there, perm=[1, 0, 2])
            gradient = op.Where(own, gradient, op.const(0, like=x))
        scale = op.Max(op.Cast(paths.length, to=x.dtype), 1.0)
        losses = op.Squeeze(losses / scale, [1])
        gradient = gradient / op.Unsqueeze(scale, [2])
        if half:
            losses, gradient = (op.Cast(v, to=predicted.dtype) for v in (losses, gradient))
        rows = [None] if predicted.shape is None else predicted.shape[:1]
        return shaped(losses, rows), shaped(gradient, predicted.shape)

    def _parts(self, op: Builder, expected: Var, log_p: Var) -> tuple[Var, Var | None]:
        """Labels, and which frames are a row's own, [T, N, 1]."""
        column = self.input_lengths
        if column is None:
            return expected, None
        if isinstance(column, str):
            raise InvalidModelError(
                f"input_lengths={column!r} is the name of an input of a model: without one, let a column of "
                "the expected values say the lengths, as with input_lengths=0."
            )
        start, behind = (column, column + 1) if column != -1 else (-1, 2**31 - 1)
        lengths = op.Slice(expected, [start], [behind], [1])
        before, after = op.Slice(expected, [0], [start], [1]), op.Slice(expected, [behind], [2**31 - 1], [1])
        label = before if column == -1 else after if column == 0 else op.Concat(before, after, axis=1)
        count = op.Squeeze(op.Slice(op.Shape(log_p), [1], [2]), [0])
        frame = op.Range(op.const(0), count, op.const(1))
        there = op.Less(op.Unsqueeze(frame, [1, 2]), op.Unsqueeze(lengths, [0]))
        there.value.dtype = ir.DataType.BOOL
        return shaped(label, [None, None]), shaped(there, [None, None, 1])

    def _paths(self, op: Builder, label: Var, like: Var) -> _Paths:
        there = label >= 0
        there.value.dtype = ir.DataType.BOOL
        blank = op.const(self.blank, ir.DataType.INT64)
        known = op.Where(there, label, blank)
        length = op.ReduceSum(op.Cast(there, to=ir.DataType.INT64), [1], keepdims=1)
        # A blank before each label, and one behind the last.
        pairs = op.Concat(*(op.Unsqueeze(v, [2]) for v in (0 * known + blank, known)), axis=2)
        flat = op.Reshape(pairs, op.Concat(op.Slice(op.Shape(label), [0], [1]), [-1], axis=0))
        row = op.Slice(op.Shape(label), [0], [1])
        column = op.Expand(blank, op.Concat(row, [1], axis=0))
        places = op.Concat(flat, column, axis=1)
        count = op.Squeeze(op.Slice(op.Shape(places), [1], [2]), [0])
        index = op.Unsqueeze(op.Range(op.const(0), count, op.const(1)), [0])
        last = 2 * length
        ends = op.Or(op.Equal(index, last), op.Equal(index, last - 1))
        before = op.Slice(op.Concat(column, column, places, axis=1), [0], [-2], [1])
        skips = op.Not(op.Or(op.Equal(places, blank), op.Equal(places, before)))
        never, zero = op.const(_NEVER, like=like), op.const(0, like=like)
        return _Paths(places, op.Where(ends, zero, never), op.Where(skips, zero, never), length)

    def _losses(self, op: Builder, log_p: Var, paths: _Paths) -> tuple[Var, Var, Var]:
        """Losses [N, 1]; how likely each class is said in each frame, [N, T, C]; whether a row fits."""
        frames = op.Transpose(log_p, perm=[1, 0, 2])
        shape = op.Concat(op.Slice(op.Shape(frames), [0], [1]), op.Shape(paths.places), axis=0)
        index = op.Expand(op.Unsqueeze(paths.places, [0]), shape)
        said = op.GatherElements(frames, index, axis=2)  # [T, N, S]
        first, others = op.Slice(paths.end, [0], [1], [1]), op.Slice(paths.end, [1], [2**31 - 1], [1])
        start = op.Concat(0 * first, 0 * others + _NEVER, axis=1)
        scanned = [said] if paths.there is None else [said, paths.there]
        last, forward, sizes = op.Scan(
            start, *scanned, body=_forward(op, paths, log_p.dtype), num_scan_inputs=len(scanned), outputs=3
        )
        _, backward = op.Scan(
            paths.end,
            *scanned,
            body=_backward(op, paths, log_p.dtype),
            num_scan_inputs=len(scanned),
            scan_input_directions=[1] * len(scanned),
            scan_output_directions=[1],
            outputs=2,
        )
        final = op.ReduceLogSumExp(op.Max(last + paths.end, _NEVER), [1], keepdims=1)
        likely = final + op.ReduceSum(sizes, [0], keepdims=0)
        feasible = likely > _NEVER / 10
        feasible.value.dtype = ir.DataType.BOOL
        worst = 0.0 if self.zero_infinity else np.inf
        losses = op.Where(feasible, -likely, op.const(worst, like=log_p))
        # Every frame is at one of the places: what is common to all of them cancels.
        places = op.Transpose(op.Softmax(forward + backward, axis=2), perm=[1, 0, 2])
        return losses, _by_class(op, places, paths.places, log_p), feasible


def _by_class(op: Builder, places: Var, classes: Var, like: Var) -> Var:
    """Sums of numbers at places [N, T, S], by class: [N, T, C]."""
    count = op.Squeeze(op.Slice(op.Shape(like), [2], [3]), [0])
    one_hot = op.OneHot(classes, count, op.const(np.array([0, 1], dtype=np.float32)), axis=2)
    if like.dtype != ir.DataType.FLOAT:
        one_hot = op.Cast(one_hot, to=like.dtype)
    return op.MatMul(places, one_hot)


def _summed(op: Builder, likely: Sequence[Var]) -> Var:
    """Logarithm of a sum from logarithms, none of which need be real."""
    top = op.Max(*likely, _NEVER)
    total = sum((op.Exp(v - top) for v in likely[1:]), op.Exp(likely[0] - top))
    return top + op.Log(total)


def _shifted(op: Builder, x: Var, by: int) -> Var:
    """X moved along axis 1, what comes in being impossible."""
    size = abs(by)
    gap = 0 * op.Slice(x, [0], [1], [1]) + _NEVER
    gaps = [gap] * size
    if by > 0:
        return op.Slice(op.Concat(*gaps, x, axis=1), [0], [-size], [1])
    return op.Slice(op.Concat(x, *gaps, axis=1), [size], [2**31 - 1], [1])


def _body(
    op: Builder, paths: _Paths, dtype: ir.DataType | None, name: str
) -> tuple[Builder, Var, Var, list[Var]]:
    sub = Builder(op.opset, prefix=op.unique(f"ctc_{name}_"), taken=op.taken)
    dtype = dtype or ir.DataType.FLOAT
    state = sub.input(sub.unique("state"), dtype, [None, None])
    said = sub.input(sub.unique("said"), dtype, [None, None])
    own = [] if paths.there is None else [sub.input(sub.unique("own"), ir.DataType.BOOL, [None, 1])]
    return sub, state, said, own


def _passed(sub: Builder, own: list[Var], made: Var, before: Var) -> Var:
    """What is made of a frame, or what was before it where the row is through."""
    return sub.Where(own[0], made, before) if own else made


def _forward(op: Builder, paths: _Paths, dtype: ir.DataType | None) -> ir.Graph:
    """From the paths up to a frame to those up to the next, normalised; their size goes out, too."""
    sub, state, said, own = _body(op, paths, dtype, "forward")
    skipped = _shifted(sub, state, 2) + sub.wrap(paths.skip.value)
    made = sub.Max(_summed(sub, [state, _shifted(sub, state, 1), skipped]) + said, _NEVER)
    size = sub.ReduceMax(made, [1], keepdims=1)
    state_out = _passed(sub, own, sub.Max(made - size, _NEVER), state)
    size = _passed(sub, own, size, sub.const(0, like=size))
    return _graph(sub, [state, said, *own], [state_out, sub.Identity(state_out), size], "forward")


def _backward(op: Builder, paths: _Paths, dtype: ir.DataType | None) -> ir.Graph:
    """From the paths behind a frame to those from it on; what comes out is the former."""
    sub, state, said, own = _body(op, paths, dtype, "backward")
    ahead = sub.Max(state + said, _NEVER)
    skipped = _shifted(sub, ahead + sub.wrap(paths.skip.value), -2)
    made = sub.Max(_summed(sub, [ahead, _shifted(sub, ahead, -1), skipped]), _NEVER)
    size = sub.ReduceMax(made, [1], keepdims=1)
    state_out = _passed(sub, own, sub.Max(made - size, _NEVER), state)
    return _graph(sub, [state, said, *own], [state_out, sub.Identity(state)], "backward")


def _graph(sub: Builder, inputs: list[Var], outputs: list[Var], name: str) -> ir.Graph:
    """A body whose outputs have ranks, which onnxruntime asks of them."""
    return sub.graph(inputs, [shaped(v, [None, None]) for v in outputs], name=name)
