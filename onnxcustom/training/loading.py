"""From data as they were given to batches to train on, and to what is validated with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from onnxcustom.data import Stream
from onnxcustom.data.naming import naming
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.feed.data_loader import OrtDataLoader
from onnxcustom.feed.grouping import check_streamed, class_groups, pair_groups
from onnxcustom.feed.held_out import ArrayValidation, StreamValidation
from onnxcustom.feed.specs import rows_of
from onnxcustom.feed.stream_loader import StreamLoader
from onnxcustom.feed.validation import as_inputs, as_targets, weights_of

from .plan import Given

if TYPE_CHECKING:
    from onnxcustom.step.training_step import TrainingStep

__all__ = ["Reading", "make_loader", "make_validation"]


class Reading(NamedTuple):
    """How an estimator reads its data.

    Attributes
    ----------
    step : TrainingStep
        The step that takes them.
    encode : callable
        Expected values as given -> as the step wants them.
    weigh : callable or None
        Expected values and weights of the rows as given -> weights of the rows.
    """

    step: TrainingStep
    encode: Callable[[Any], Any]
    weigh: Callable[[Any, Any], Any] | None

    def weights(self, y: Any, sample_weight: Any) -> Any:
        """Weights of the rows."""
        return sample_weight if self.weigh is None else self.weigh(y, sample_weight)


def make_loader(
    reading: Reading,
    data: Given,
    batch_size: int,
    shuffle: bool,
    seed: int,
    pairs: Any = None,
    m_per_class: Any = None,
) -> OrtDataLoader | StreamLoader:
    """The batches of the training data, of rows that belong together in one of them."""
    step, X = reading.step, data.X
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "device": step.device,
        "shuffle": shuffle,
        "inputs": step.inputs,
        "targets": step.expected,
        "weight_dtype": step.scalar_dtype,
    }
    if isinstance(X, Stream):
        _check_brings_weights(data.sample_weight)
        check_streamed(pairs, m_per_class, X, batch_size, shuffle)
        options |= {"encode": reading.encode, "check": step.check_expected, "weigh": reading.weigh}
        return StreamLoader(X, seed=seed, **options)
    weights = reading.weights(data.y, data.sample_weight)
    try:
        y = reading.encode(data.y)
        loader = OrtDataLoader(X, y, weights, random_state=seed, copy=False, **options)
        if pairs is not None:
            loader = loader.grouped(pair_groups(pairs, len(loader), batch_size))
        elif m_per_class is not None:
            labels = loader.arrays[step.expected[0].name]
            loader = loader.grouped(class_groups(m_per_class, labels, batch_size))
    except InvalidDataError:
        step.check_declared(X)
        raise
    n = len(step.inputs)
    names = [spec.name for spec in step.expected]
    step.check_expected(dict(zip(names, list(loader.arrays.values())[n:], strict=False)))
    return loader


def make_validation(reading: Reading, data: Given) -> ArrayValidation | StreamValidation | None:
    """The validation data, checked and converted now rather than after every epoch; None without any."""
    step, X, y, sample_weight = reading.step, data.X_val, data.y_val, data.sample_weight_val
    if X is None and y is None:
        if sample_weight is not None:
            raise InvalidDataError("sample_weight_val weighs validation data, and there is none.")
        return None
    if isinstance(X, Stream):
        _check_brings_weights(sample_weight)
        with naming(Given(X).names_of):
            return StreamValidation(
                X,
                step.inputs,
                step.expected,
                reading.encode,
                step.check_expected,
                step.scalar_dtype,
                reading.weigh,
            )
    if X is None or y is None:
        raise InvalidDataError("Validation takes both X_val and y_val; one of them is None.")
    inputs = as_inputs(X, step.inputs)
    rows = rows_of(inputs, step.inputs)
    expected = as_targets(reading.encode(y), step.expected, rows)
    step.check_expected(expected)
    weights = reading.weights(y, sample_weight)
    if weights is not None:
        weights, _ = weights_of(weights, rows, step.scalar_dtype, step.expected, expected, part=True)
    return ArrayValidation(inputs, expected, weights)


def _check_brings_weights(sample_weight: Any) -> None:
    if sample_weight is not None:
        raise InvalidDataError(
            "A stream brings the weights of its rows: name their column in stream(..., sample_weight='w')."
        )
