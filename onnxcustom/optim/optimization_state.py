"""How far training has come, and the rates that schedules give for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcustom._parameters import check_number, integer
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError

from .base import BaseLearningRate
from .rule import Rule
from .schedules import Schedule, as_schedule, needed

__all__ = ["OptimizationState", "get_learning_rate", "get_momentum", "normalized_gradient"]


@dataclass
class OptimizationState:
    """Counts of epochs and mini-batches, as MXNet.jl has them.

    All counts are 0 before training and 1 during the first epoch, mini-batch or iteration. Each can
    be set; one that no schedule reads may stay 0.

    Parameters
    ----------
    batch_size : int
        Rows in a mini-batch, in [1, inf).
    curr_epoch : int, default=0
        Current epoch, in [0, inf).
    curr_batch : int, default=0
        Current mini-batch of the epoch, 0 at its beginning, in [0, inf).
    curr_iter : int, default=0
        Mini-batches of all epochs, in [0, inf).

    Raises
    ------
    ValueError
        A number outside its range, also when it is set later.
    TypeError
        Something else than an integer.

    Examples
    --------
    >>> state = OptimizationState(batch_size=10)
    >>> for epoch in range(2):
    ...     state.next_epoch()
    ...     for batch in range(3):
    ...         state.next_batch()
    >>> state
    OptimizationState(batch_size=10, curr_epoch=2, curr_batch=3, curr_iter=6)
    """

    batch_size: int = needed("[1, inf)", integral=True)
    curr_epoch: int = integer(0, "[0, inf)")
    curr_batch: int = integer(0, "[0, inf)")
    curr_iter: int = integer(0, "[0, inf)")

    def __setattr__(self, name: str, value: Any) -> None:
        ranges = {f.name: f.metadata["range"] for f in dataclasses.fields(self)}
        if name not in ranges:
            raise AttributeError(f"OptimizationState has no {name!r}; it has {sorted(ranges)}.")
        check_number(f"{name} of OptimizationState", value, ranges[name], integral=True)
        object.__setattr__(self, name, int(value))

    def next_epoch(self) -> None:
        """Begin an epoch, with no mini-batch seen yet."""
        self.curr_epoch += 1
        self.curr_batch = 0

    def next_batch(self) -> None:
        """Begin a mini-batch; the first of all begins the first epoch if that was not done."""
        self.curr_epoch = max(1, self.curr_epoch)
        self.curr_batch += 1
        self.curr_iter += 1


def get_learning_rate(schedule: Schedule | Any, state: OptimizationState) -> float:
    """The current learning rate.

    Before training, when a count is 0, :class:`~onnxcustom.optim.Exp` and
    :class:`~onnxcustom.optim.Inv` give ``eta0``, which is what their formulas say of 0; all others
    count from 1 and give the rate of the first step.

    Parameters
    ----------
    schedule : Schedule, float or callable
        A number is constant, a callable a function of the iteration.
    state : OptimizationState
        How far training has come.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        `schedule` is none of these.
    ValueError
        It gave something else than a number in [0, inf).

    Examples
    --------
    >>> from onnxcustom.optim.schedules import Exp
    >>> get_learning_rate(Exp(1.0, gamma=0.5), OptimizationState(batch_size=10, curr_epoch=2))
    0.25
    """
    return _rate(schedule, state, "learning rate", "[0, inf)")


def get_momentum(schedule: Schedule | Any, state: OptimizationState) -> float:
    """The current momentum.

    Parameters
    ----------
    schedule : Schedule, float or callable
        As in :func:`get_learning_rate`; :class:`~onnxcustom.optim.Null` says that there is none.
    state : OptimizationState
        How far training has come.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        `schedule` is none of these.
    ValueError
        It gave something else than a number in [0, 1].

    Examples
    --------
    >>> get_momentum(0.9, OptimizationState(batch_size=10))
    0.9
    """
    return _rate(schedule, state, "momentum", "[0, 1]")


def _rate(schedule: Any, state: OptimizationState, name: str, interval: str) -> float:
    if not isinstance(state, OptimizationState):
        raise InvalidParameterError(f"state must be an OptimizationState, not {state!r:.80}.")
    if not isinstance(schedule, Schedule):
        schedule = as_schedule(schedule, name)
    t, epoch = max(state.curr_iter, schedule.first), max(state.curr_epoch, schedule.first)
    value = schedule.value(t, epoch)
    try:
        check_number(name, value, interval)
    except (TypeError, ValueError) as exc:
        raise InvalidParameterError(
            f"{schedule!r} gave {value!r} at step {t} of epoch {epoch}; a {name} is a number in {interval}."
        ) from exc
    return float(value)


def normalized_gradient(
    opts: BaseLearningRate, state: OptimizationState, weight: np.ndarray, grad: np.ndarray
) -> np.ndarray:
    """The gradient divided by the size of the batch, rescaled, clipped and with weight decay added.

    Parameters
    ----------
    opts : update rule
        Its options ``rescale_grad``, ``clip_gradient`` and ``wd`` count, in the order in which the rule
        itself applies them. A decoupled decay is not part of the gradient.
    state : OptimizationState
        Says the size of the batch.
    weight, grad : ndarray
        Weight, and its gradient summed over the batch.

    Returns
    -------
    ndarray
        Of the shape and dtype of `grad`.

    Raises
    ------
    ValueError
        A schedule of `wd` gave something else than a number in [0, inf).

    Examples
    --------
    >>> from onnxcustom.optim import NAG
    >>> state = OptimizationState(batch_size=2)
    >>> normalized_gradient(NAG(grad_clip=1, weight_decay=0.5), state, np.array([1.0]), np.array([6.0]))
    array([1.5])
    """
    if not isinstance(opts, Rule):
        raise InvalidParameterError(f"opts must be an update rule, not {opts!r:.80}.")
    decay = _rate(opts.wd, state, "wd", "[0, inf)")
    for what, array in {"weight": weight, "grad": grad}.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise InvalidDataError(f"{what} must be an array of floating-point numbers, not {array!r:.80}.")
    if weight.shape != grad.shape:
        raise InvalidDataError(f"weight has shape {weight.shape}, grad {grad.shape}.")
    g = grad / state.batch_size
    for what in (*opts.order, *(["decay"] if "decay" not in opts.order else [])):
        if what == "rescale":
            g = opts.rescale_grad * g
        elif what == "clip" and opts.clip_gradient is not None:
            g = np.clip(g, -opts.clip_gradient, opts.clip_gradient)
        elif what == "decay" and not opts.decoupled_weight_decay:
            g = g + decay * weight
    return np.asarray(g, grad.dtype)
