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
    """The labels of a batch with blanks between them, L labels making S = 2 L + 1 places.

    What has 2 N rows is of the rows, and of the same with their frames and places backwards.
    """

    places: Var  # [N, S], classes
    start: Var  # [2 N, S], 0 where a path is before its first frame, else _NEVER
    end: Var  # [N, S], 0 where a path may end, else _NEVER
    skip: Var  # [2 N, S], 0 where a path may come from two places before, else _NEVER
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
    no_classifier = (
        "trains sequences of labels, where a classifier tells one for each row or frame: OnnxRegressor takes "
        "it; its predict gives the scores of all frames, onnxcustom.metrics.best_path reads sequences in "
        "them, and Score('character_error_rate') measures these"
    )

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
    def if_infinite(self) -> str:  # type: ignore[override]
        """Rows that are too long have no other loss."""
        if self.zero_infinity:
            return ""
        return (
            "CTC is infinite where the labels of a row do not fit into its frames, one for each label and "
            "one between two that are alike: give such rows more frames or fewer labels, or leave them out "
            "with zero_infinity=True, in text 'ctc:zero_infinity=true'"
        )

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
        # One column at least: what is moved out of a frame is not all of it.
        # Integers have no Max before opset 12.
        missing = op.Cast(op.Equal(op.Slice(op.Shape(label), [1], [2]), [0]), to=ir.DataType.INT64)
        label = op.Pad(label, op.Concat([0, 0, 0], missing, axis=0), op.const(-1))
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
        # And the same backwards, behind them: padding comes first there, and no path is ever at it.
        both = op.Concat(places, _turned(op, places, [1]), axis=0)
        count = op.Squeeze(op.Slice(op.Shape(places), [1], [2]), [0])
        number = op.Range(op.const(0), count, op.const(1))
        index, last = op.Unsqueeze(number, [0]), 2 * length
        started = op.Equal(index, op.Concat(0 * last, count - 1 - last, axis=0))
        ended = op.Or(op.Equal(index, last), op.Equal(index, last - 1))
        column = op.Concat(column, column, axis=0)
        earlier = op.Slice(op.Concat(column, column, both, axis=1), [0], [-2], [1])
        skips = op.Not(op.Or(op.Equal(both, blank), op.Equal(both, earlier)))
        never, zero = op.const(_NEVER, like=like), op.const(0, like=like)
        start, end, skip = (op.Where(v, zero, never) for v in (started, ended, skips))
        return _Paths(places, start, end, skip, length)

    def _losses(self, op: Builder, log_p: Var, paths: _Paths) -> tuple[Var, Var, Var]:
        """Losses [N, 1]; how likely each class is said in each frame, [N, T, C]; whether a row fits."""
        frames = op.Transpose(log_p, perm=[1, 0, 2])
        shape = op.Concat(op.Slice(op.Shape(frames), [0], [1]), op.Shape(paths.places), axis=0)
        index = op.Expand(op.Unsqueeze(paths.places, [0]), shape)
        said = op.Max(op.GatherElements(frames, index, axis=2), _NEVER)  # [T, N, S]
        scanned = [op.Concat(said, _turned(op, said, [0, 2]), axis=1)]
        if paths.there is not None:
            scanned.append(op.Concat(paths.there, _turned(op, paths.there, [0]), axis=1))
        last, made = op.Scan(
            paths.start,
            *scanned,
            body=_frame(op, paths, log_p.dtype),
            num_scan_inputs=len(scanned),
            outputs=2,
        )
        rows = op.Slice(op.Shape(paths.places), [0], [1])
        last = op.Slice(last, [0], rows, [0])
        forward, backward = op.Slice(made, [0], rows, [1]), op.Slice(made, rows, [2**31 - 1], [1])
        final = op.ReduceLogSumExp(last + paths.end, [1], keepdims=1)
        sizes = op.ReduceLogSumExp(forward, [2], keepdims=1)  # [T, N, 1]
        if paths.there is not None:
            sizes = op.Where(paths.there, sizes, op.const(0, like=sizes))
        likely = final + op.ReduceSum(sizes, [0], keepdims=0)
        feasible = likely > _NEVER / 10
        feasible.value.dtype = ir.DataType.BOOL
        worst = 0.0 if self.zero_infinity else np.inf
        losses = op.Where(feasible, -likely, op.const(worst, like=log_p))
        # Every frame is at one of the places: what is common to all of them cancels.
        places = op.Softmax(forward + _turned(op, backward, [0, 2]) - said, axis=2)
        places = op.Transpose(places, perm=[1, 0, 2])
        return losses, _by_class(op, places, paths.places, log_p), feasible


def _by_class(op: Builder, places: Var, classes: Var, like: Var) -> Var:
    """Sums of numbers at places [N, T, S], by class: [N, T, C]."""
    count = op.Squeeze(op.Slice(op.Shape(like), [2], [3]), [0])
    one_hot = op.OneHot(classes, count, op.const(np.array([0, 1], dtype=np.float32)), axis=2)
    if like.dtype != ir.DataType.FLOAT:
        one_hot = op.Cast(one_hot, to=like.dtype)
    return op.MatMul(places, one_hot)


def _turned(op: Builder, x: Var, axes: list[int]) -> Var:
    """X backwards along some axes."""
    n = len(axes)
    made = op.Slice(x, [-1] * n, [-(2**31)] * n, axes, [-1] * n)
    made.value.dtype = x.dtype
    return made


def _frame(op: Builder, paths: _Paths, dtype: ir.DataType | None) -> ir.Graph:
    """From the paths up to a frame to those up to the next, normalised; what they are before that goes out.

    The logarithm of the sum over what a path may come from, and of what is said then.
    """
    sub = Builder(op.opset, prefix=op.unique("ctc_"), taken=op.taken)
    dtype = dtype or ir.DataType.FLOAT
    state = sub.input(sub.unique("state"), dtype, [None, None])
    said = sub.input(sub.unique("said"), dtype, [None, None])
    # Operators on all places at once: one that gathers or reduces takes longer than these together.
    next_to = sub.Pad(state, [0, 1, 0, -1], sub.const(_NEVER, like=state))
    skipped = sub.Pad(next_to, [0, 1, 0, -1], sub.const(_NEVER, like=state)) + sub.wrap(paths.skip.value)
    top = sub.Max(state, next_to, skipped)
    made = sub.Log(sub.Sum(*(sub.Exp(v - top) for v in (state, next_to, skipped)))) + top + said
    inputs, new = [state, said], sub.LogSoftmax(made, axis=1)
    if paths.there is not None:  # a row that is through stays where it is
        inputs.append(sub.input(sub.unique("own"), ir.DataType.BOOL, [None, 1]))
        new = sub.Where(inputs[-1], new, state)
    # onnxruntime asks for the ranks of what a body gives.
    return sub.graph(inputs, [shaped(v, [None, None]) for v in (new, made)], name="frame")
