"""Validation data, in memory or as a stream: its mean loss, and its scores."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from onnxcustom.data import Stream
from onnxcustom.data.blocks import Key
from onnxcustom.exceptions import InvalidDataError

from .fingerprint import hash_arrays
from .specs import TensorSpec, rows_of
from .stream_rows import converted, features, given_once

__all__ = ["ArrayValidation", "StreamValidation", "score_stream"]


class ArrayValidation:
    """Validation data in memory, checked and converted once.

    Parameters
    ----------
    inputs, expected : dict of str to ndarray
        By input and by output of the model.
    weights : ndarray, optional
        Of the rows.

    Raises
    ------
    InvalidDataError
        Weights that are all zero.
    """

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray],
        expected: Mapping[str, np.ndarray],
        weights: np.ndarray | None = None,
    ) -> None:
        self.inputs, self.expected, self.weights = inputs, expected, weights
        if weights is not None and not weights.any():
            raise _weightless()

    def mean_loss(self, validate: Callable[..., float], weigh: Callable[..., Any] | None = None) -> float:
        """Mean loss over the rows; `validate` computes it for arrays, whatever it is a mean over."""
        return _validated(validate, self.inputs, self.expected, self.weights)

    def fingerprint(self) -> dict[str, str]:
        """Dtype, shape and hash of every array."""
        weights = {} if self.weights is None else {"sample_weight": self.weights}
        return hash_arrays({**self.inputs, **self.expected, **weights})


class StreamValidation:
    """Validation data that is read anew after every epoch.

    Parameters
    ----------
    stream : Stream
        The rows.
    inputs, expected : list of TensorSpec
        What model and losses want.
    encode : callable
        Makes of expected values what the losses take.
    check : callable
        Refuses expected values that no loss allows.
    weight_dtype : dtype
        Of the weights of the rows.
    weigh : callable, optional
        Makes these, of expected values and weights as the stream has them.

    Raises
    ------
    InvalidDataError
        Rows that do not fit, or that all weigh nothing.
    """

    def __init__(
        self,
        stream: Stream,
        inputs: list[TensorSpec],
        expected: list[TensorSpec],
        encode: Callable[[Any], Any],
        check: Callable[[Mapping[str, np.ndarray]], None],
        weight_dtype: Any = np.float32,
        weigh: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.stream = stream
        self.specs = inputs, expected
        self.encode, self.check = encode, check
        self.weight_dtype, self.weigh = weight_dtype, weigh
        # What gives the blocks in place of the stream: see `read`.
        self.kept: Callable[[], Iterator[tuple[Any, Any, Any, int]]] | None = None
        _, _, weights = self._arrays(stream.head())  # what is wrong with all rows is said before training
        if weights is not None and not weights.any() and stream.source.repeatable:
            self._look_for_weights()

    def _look_for_weights(self) -> None:
        """Refuse rows that all weigh nothing; no more of them are read than it takes to see."""
        with contextlib.closing(self.stream.blocks(apply=self._arrays)) as blocks:
            if not any(weights is None or weights.any() for _, _, weights in blocks):
                raise _weightless()

    def _arrays(self, block: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray | None]:
        inputs, expected = self.specs
        wanted = [*inputs, *expected]
        made = converted(
            block, self.stream, inputs, expected, self.encode, self.check, self.weight_dtype, self.weigh
        )
        found = {
            spec.name: given_once(array, spec, like)
            for (array, spec), like in zip(made, wanted, strict=False)
        }
        weights = made[-1][0] if len(made) > len(wanted) else None
        return {s.name: found[s.name] for s in inputs}, {s.name: found[s.name] for s in expected}, weights

    def mean_loss(self, validate: Callable[..., float], weigh: Callable[..., Any] | None = None) -> float:
        """Mean loss over the rows.

        Parameters
        ----------
        validate : callable
            Computes it for arrays.
        weigh : callable, optional
            How much what it computes counts, of expected values and the rows; by default as much as the rows.
        """
        total, counted, empty = 0.0, 0, True
        for inputs, expected, weights, rows in (self.kept or self.read)():
            empty = False
            count = rows if weigh is None else weigh(expected, rows)
            total = total + count * _validated(validate, inputs, expected, weights)
            counted = counted + count
        if empty:
            raise self.stream.empty()
        return total / np.maximum(counted, 1)

    def read(self) -> Iterator[tuple[Any, Any, Any, int]]:
        """Inputs, expected values, weights and the number of rows of every block of the stream."""
        for inputs, expected, weights in self.stream.blocks(apply=self._arrays):
            yield inputs, expected, weights, rows_of(inputs, self.specs[0])

    def fingerprint(self) -> dict[str, str]:
        """What the stream says of itself."""
        return self.stream.fingerprint()


def _weightless() -> InvalidDataError:
    return InvalidDataError(
        "Every row of the validation data weighs 0, by sample_weight or class_weight: nothing would be "
        "measured. Give weights above 0 (sample_weight_val), or other rows."
    )


def _validated(validate: Callable[..., float], X: Any, y: Any, weights: np.ndarray | None) -> float:
    """What `validate` says; overrides of older programs know nothing of weights."""
    return validate(X, y) if weights is None else validate(X, y, weights)


def score_stream(scorer: Any, estimator: Any, stream: Stream, weighs: bool = False) -> Any:
    """What a scorer of scikit-learn says of an estimator on the rows of a stream.

    Targets, weights and predictions are held in memory, features are not. With `weighs` the scorer is given
    the weights of the rows, if the stream has some.
    """
    parts, weights = [], []
    for block in stream.blocks():
        if weighs and block.sample_weight is not None:
            weights.append(np.asarray(block.sample_weight))
        if isinstance(block.y, Mapping):
            parts.append({name: np.asarray(y) for name, y in block.y.items()})
        else:
            parts.append({"": np.asarray(block.y)})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    given = {"sample_weight": np.concatenate(weights)} if weights else {}
    return scorer(_OfStream(estimator, stream), stream, joined.get("", joined), **given)


class _OfStream:
    """An estimator that predicts the rows of a stream, block by block, whatever it is asked to predict."""

    #: What is predicted has its rows first, whatever outputs of the model have.
    rows_first = True

    def __init__(self, estimator: Any, stream: Stream) -> None:
        self._estimator, self._stream = estimator, stream

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._estimator, name)
        return self._joined(found) if name in ("predict", "predict_proba") else found

    def _joined(self, predict: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
        axes, inputs = self._stream.source.axes, self._estimator.step_.inputs

        @functools.wraps(predict)  # scikit-learn goes by its name
        def over_blocks(X: Any) -> Any:
            made = [predict(features(block, axes, inputs)) for block in self._stream.blocks()]
            if not isinstance(made[0], Mapping):
                return np.concatenate([self._rows_first(p) for p in made])
            return {n: np.concatenate([self._rows_first(p[n], n) for p in made]) for n in made[0]}

        return over_blocks

    def _rows_first(self, predicted: Any, output: str | None = None) -> Any:
        """Predictions as the expected values of the stream are: the rows first."""
        axes, rank = self._stream.source.axes.get(Key("y"), {}), np.ndim(predicted)
        axis = axes.get(rank)
        if rank not in axes:
            step = self._estimator.step_
            target = next(t for t in step.targets if output in (None, t.output))
            whole = target.shape is not None and len(target.shape) == rank
            axis = step.output_axis(target.output) if whole else 0
        return np.moveaxis(predicted, axis, 0) if axis else predicted
