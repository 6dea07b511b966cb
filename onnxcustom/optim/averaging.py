"""Moving averages of weights, beside those that are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcustom._parameters import check_parameters, integer, number
from onnxcustom._phrases import parse_phrase
from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.graph.building.builder import Builder, Var

__all__ = ["AVERAGE", "Average", "select_average"]

#: What the average is called in the state of a weight.
AVERAGE = "average"


@dataclass(frozen=True)
class Average:
    r"""Exponential moving average of the weights, taken after every update.

    .. math::

        \bar w \leftarrow \bar w + (1 - d) (w - \bar w)

    It begins as a copy of the weights, at the first update behind `start`. Variant: that of PyTorch's
    ``swa_utils.AveragedModel`` with ``get_ema_multi_avg_fn(decay)``, by its default ``use_buffers=False``:
    running statistics of BatchNormalization are those of training, and are not averaged. The average of a
    weight in half precision is kept in single precision.

    Parameters
    ----------
    decay : float, default=0.999
        What stays of the average in an update, in [0, 1).
    start : int, default=0
        Updates before averaging begins, in [0, inf): until then the average is the weights.

    References
    ----------
    B. T. Polyak, A. B. Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992,
    https://doi.org/10.1137/0330046

    Examples
    --------
    >>> Average(decay=0.99)
    Average(decay=0.99, start=0)
    """

    decay: float = number(0.999, "[0, 1)")
    start: int = integer(0, "[0, 9e15]")

    def __post_init__(self) -> None:
        check_parameters(self)

    def first(self, weight: np.ndarray) -> np.ndarray:
        """The average of a weight that was never updated."""
        return weight.astype(np.float32 if weight.dtype == np.float16 else weight.dtype)

    def update(self, op: Builder, old: Var, new: Var, step: Var, done: float) -> Var:
        """Emit the average after an update.

        Parameters
        ----------
        op : Builder
            Builder of the graph.
        old, new : Var
            The average so far, and the new weight.
        step : Var
            Step of the update, a floating-point scalar.
        done : float
            What the step before the first update is.
        """

        def kept() -> Var:
            # 0 up to the first update that is averaged, which copies; then the decay.
            counts = op.Min(op.Max(step - (done + self.start + 1), 0.0), 1.0)
            return self.decay * counts

        part = op.once(("average", step.value), kept)
        if new.dtype != old.dtype:
            new = op.Cast(new, to=old.dtype)
        if part.dtype != old.dtype:
            part = op.once(("average", step.value, old.dtype), lambda: op.Cast(part, to=old.dtype))
        return new + part * (old - new)


def select_average(given: Any) -> Average | None:
    """The average that is meant by None, ``'ema'``, ``'ema:decay=0.99'`` or an :class:`Average`.

    Raises
    ------
    InvalidParameterError
        Something else.

    Examples
    --------
    >>> select_average("ema:decay=0.9,start=100")
    Average(decay=0.9, start=100)
    """
    if given is None or isinstance(given, Average):
        return given
    if isinstance(given, str):
        name, options = parse_phrase(given)
        if name == "ema" and options.keys() <= {"decay", "start"}:
            return Average(**options)
    raise InvalidParameterError(
        "average must be None, 'ema' (with options: 'ema:decay=0.999,start=0') or tuning.Average, not "
        f"{given!r}."
    )
