"""Schedules: functions of the step or the epoch, evaluated in Python and fed to the graph.

They serve the learning rate, the momentum and the weight decay alike. No graph holds such a number, so
a schedule may do what it likes without a session being rebuilt.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from onnxcustom._parameters import check_number, check_parameters, flag, integer, number
from onnxcustom.exceptions import CheckpointError, InvalidDataError, InvalidParameterError

__all__ = [
    "Adaptive",
    "CountedSchedule",
    "Exp",
    "Fixed",
    "Function",
    "Inv",
    "InverseScaling",
    "Null",
    "Optimal",
    "Schedule",
    "as_schedule",
    "check_loss",
    "memory",
    "needed",
    "times_power",
    "with_rate",
]


def needed(interval: str, integral: bool = False) -> Any:
    """A dataclass field that holds a number of `interval` and has no default."""
    return dataclasses.field(metadata={"range": interval, "integer": integral})


def memory(default: float | None, interval: str, integral: bool = False) -> Any:
    """A dataclass field that a schedule changes by itself; its name starts with an underscore.

    It is compared, copied and pickled, and is part of :meth:`Schedule.state_dict`. None is taken
    where it is the default.
    """
    return dataclasses.field(
        default=default, init=False, repr=False, hash=False, metadata={"memory": (interval, integral)}
    )


class Schedule(ABC):
    """A rate as a function of the step and of the epoch, both counted from 1.

    A schedule may remember the losses it is told; a rule works on a copy of its own, so one
    instance can be given to several. One that remembers in its own way overrides :meth:`state_dict`
    and :meth:`load_state_dict`, or a checkpoint forgets it.
    """

    #: The field that :func:`with_rate` replaces.
    base_field: ClassVar[str] = "eta0"
    #: Smallest step and epoch that :meth:`value` takes.
    first: ClassVar[int] = 1

    @abstractmethod
    def value(self, t: int, epoch: int) -> float:
        """The rate of step `t`, which belongs to epoch `epoch`."""

    def report_epoch(self, loss: float) -> bool:
        """Take note of the mean loss of an epoch; True if training should stop."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What the schedule remembers, as JSON can hold it; empty if nothing.

        Returns
        -------
        dict of str to int, float or None
        """
        return {f.name[1:]: getattr(self, f.name) for f in _fields(self) if "memory" in f.metadata}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what :meth:`state_dict` gave, of a schedule with the same parameters.

        Parameters
        ----------
        state : mapping
            Taken whole or not at all.

        Raises
        ------
        CheckpointError
            Unknown or missing keys, or values that cannot be; nothing is changed.
        """
        what = f"state of {type(self).__name__}"
        kept = {f.name[1:]: f for f in _fields(self) if "memory" in f.metadata}
        if not isinstance(state, Mapping) or set(state) != set(kept):
            found = sorted(map(str, state)) if isinstance(state, Mapping) else repr(state)
            raise CheckpointError(f"The {what} must have the keys {sorted(kept)}, not {found}.")
        checked = {}
        for key, remembered in kept.items():
            value, (interval, integral) = state[key], remembered.metadata["memory"]
            if value is not None or remembered.default is not None:
                try:
                    check_number(f"{key} in the {what}", value, interval, integral)
                except (TypeError, ValueError) as exc:
                    raise CheckpointError(str(exc)) from exc
                value = int(value) if integral else float(value)
            checked[key] = value
        self._remember(**checked)

    def _remember(self, **values: Any) -> None:
        """Change fields made by :func:`memory`, on instances otherwise frozen."""
        for name, value in values.items():
            object.__setattr__(self, f"_{name}", value)

    def __post_init__(self) -> None:
        check_parameters(self)
        for f in _fields(self):
            value = getattr(self, f.name)
            # Plain numbers: numpy's would compute the rate in single precision.
            if "range" in f.metadata and value is not None:
                plain: Any = int if f.metadata.get("integer") else float
                object.__setattr__(self, f.name, plain(value))
            elif "flag" in f.metadata:
                object.__setattr__(self, f.name, bool(value))


def _fields(schedule: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(schedule) if dataclasses.is_dataclass(schedule) else ()


class CountedSchedule(Schedule):
    """A schedule of one count: the epochs, or the iterations if its `decay_on_iteration` is True."""

    decay_on_iteration: bool

    @abstractmethod
    def rate(self, count: int) -> float:
        """The rate at a count, which starts at 1."""

    def value(self, t: int, epoch: int) -> float:
        return self.rate(t if self.decay_on_iteration else epoch)


@dataclass(frozen=True)
class Fixed(Schedule):
    """The same rate at every step.

    Parameters
    ----------
    rate : float, default=0.01
        The rate, in [0, inf).

    Examples
    --------
    >>> Fixed(0.5).value(4, epoch=1)
    0.5
    """

    rate: float = number(0.01, "[0, inf)")

    base_field = "rate"

    def value(self, t: int, epoch: int) -> float:
        return self.rate


@dataclass(frozen=True)
class Null(Schedule):
    """Always 0; given as a hyper-parameter of a rule, it is the number 0: momentum is not used, nor kept.

    Examples
    --------
    >>> Null().value(4, epoch=1)
    0.0
    """

    def value(self, t: int, epoch: int) -> float:
        return 0.0


@dataclass(frozen=True)
class Exp(CountedSchedule):
    r"""Exponential decay, :math:`\eta_t = \eta_0 \gamma^t`.

    The count :math:`t` is 1 during the first epoch, or at the first iteration: the first rate is
    :math:`\eta_0 \gamma`, as in MXNet.jl. PyTorch's ``ExponentialLR`` starts with :math:`\eta_0`.

    Parameters
    ----------
    eta0 : float, default=0.01
        Rate before the first decay, in [0, inf).
    gamma : float, default=0.9
        Factor :math:`\gamma` of each count, in [0, inf).
    decay_on_iteration : bool, default=False
        Whether :math:`t` counts iterations rather than epochs.

    Examples
    --------
    >>> schedule = Exp(1.0, gamma=0.5)
    >>> [schedule.value(t=1, epoch=epoch) for epoch in (1, 2, 3)]
    [0.5, 0.25, 0.125]
    """

    eta0: float = number(0.01, "[0, inf)")
    gamma: float = number(0.9, "[0, inf)")
    decay_on_iteration: bool = flag(False)

    first = 0

    def rate(self, count: int) -> float:
        return times_power(self.eta0, self.gamma, count)


@dataclass(frozen=True)
class Inv(CountedSchedule):
    r"""Inverse decay, :math:`\eta_t = \eta_0 (1 + \gamma t)^{-p}`.

    The count :math:`t` is 1 during the first epoch, or at the first iteration, as in MXNet.jl.

    Parameters
    ----------
    eta0 : float, default=0.01
        Rate before the first decay, in [0, inf).
    gamma : float, default=0.9
        Speed :math:`\gamma` of the decay, in [0, inf).
    power : float, default=0.5
        Exponent :math:`p`, in [0, inf).
    decay_on_iteration : bool, default=False
        Whether :math:`t` counts iterations rather than epochs.

    Examples
    --------
    >>> schedule = Inv(1.0, gamma=1.0, power=2.0)
    >>> [schedule.value(t=1, epoch=epoch) for epoch in (1, 3)]
    [0.25, 0.0625]
    """

    eta0: float = number(0.01, "[0, inf)")
    gamma: float = number(0.9, "[0, inf)")
    power: float = number(0.5, "[0, inf)")
    decay_on_iteration: bool = flag(False)

    first = 0

    def rate(self, count: int) -> float:
        return self.eta0 * math.pow(1 + self.gamma * count, -self.power)


def times_power(rate: float, factor: float, exponent: int) -> float:
    """``rate * factor**exponent``, infinite where that is too large, 0 for a rate of 0."""
    try:
        return rate * math.pow(factor, exponent)
    except OverflowError:
        return math.inf if rate else 0.0


@dataclass(frozen=True)
class InverseScaling(Schedule):
    r"""Inverse scaling, :math:`\eta_t = \eta_0 / t^p`: scikit-learn's ``'invscaling'``.

    Parameters
    ----------
    eta0 : float, default=0.01
        Rate of the first step, in [0, inf).
    power_t : float, default=0.25
        Exponent :math:`p`, in [0, inf).

    Examples
    --------
    >>> InverseScaling(1.0, power_t=0.5).value(4, epoch=1)
    0.5
    """

    eta0: float = number(0.01, "[0, inf)")
    power_t: float = number(0.25, "[0, inf)")

    def value(self, t: int, epoch: int) -> float:
        try:
            return self.eta0 / math.pow(t, self.power_t)
        except OverflowError:
            return 0.0


@dataclass(frozen=True)
class Optimal(Schedule):
    r"""Bottou's schedule, :math:`\eta_t = \eta_0 T_0 / (T_0 + t - 1)`.

    :math:`T_0 = 1/(e\alpha)` with :math:`e = w / \max(1, 2(1 + w))` and
    :math:`w = \alpha^{-1/4}`, the heuristic of scikit-learn's ``'optimal'``; unlike there, the
    first rate is `eta0`.

    Parameters
    ----------
    eta0 : float, default=0.01
        Rate of the first step, in [0, inf).
    alpha : float, default=0.0001
        Strength of the regularization the heuristic assumes, in (0, inf).

    References
    ----------
    L. Bottou, Stochastic Gradient Descent Tricks, 2012,
    https://www.microsoft.com/en-us/research/publication/stochastic-gradient-tricks/
    """

    eta0: float = number(0.01, "[0, inf)")
    alpha: float = number(0.0001, "(0, inf)")

    def value(self, t: int, epoch: int) -> float:
        typical = self.alpha**-0.25
        initial = typical / max(1.0, 2 * (1 + typical))
        t0 = 1 / (initial * self.alpha)
        return self.eta0 * t0 / (t0 + t - 1)


@dataclass(frozen=True)
class Adaptive(Schedule):
    """Constant while the loss falls, divided by 5 when it stalls: scikit-learn's ``'adaptive'``.

    The rate is divided when the mean loss of `n_iter_no_change` epochs in a row was not below the
    best one by `tol`; when that happens at 1e-6 or less, training should stop
    [as ``sklearn.linear_model.SGDRegressor`` without early stopping].

    Parameters
    ----------
    eta0 : float, default=0.01
        First rate, in [0, inf).
    tol : float, default=1e-3
        Smallest improvement that counts, in [0, inf).
    n_iter_no_change : int, default=5
        Epochs to wait, in [1, inf).
    """

    eta0: float = number(0.01, "[0, inf)")
    tol: float = number(1e-3, "[0, inf)")
    n_iter_no_change: int = integer(5, "[1, inf)")
    _rate: float | None = memory(None, "[0, inf)")
    _best: float | None = memory(None, "(-inf, inf)")
    _stalled: int = memory(0, "[0, inf)", integral=True)

    def value(self, t: int, epoch: int) -> float:
        return self.eta0 if self._rate is None else self._rate

    def report_epoch(self, loss: float) -> bool:
        loss = check_loss(loss)
        best = math.inf if self._best is None else self._best
        stalled = self._stalled + 1 if loss > best - self.tol else 0
        self._remember(best=min(best, loss), stalled=stalled)
        if stalled < self.n_iter_no_change:
            return False
        rate = self.value(0, 0)
        if rate <= 1e-6:
            return True
        self._remember(rate=rate / 5, stalled=0)
        return False


def check_loss(loss: float) -> float:
    """The loss of an epoch as a float.

    Raises
    ------
    InvalidDataError
        If it is not finite.
    """
    if not isinstance(loss, numbers.Real) or not math.isfinite(loss):
        raise InvalidDataError(f"The loss of an epoch must be finite, not {loss!r:.60}.")
    return float(loss)


@dataclass(frozen=True)
class Function(CountedSchedule):
    """Any Python function of the step, or of the epoch.

    Parameters
    ----------
    function : callable
        Takes the count, which starts at 1; returns the rate.
    decay_on_iteration : bool, default=True
        Whether it takes the iteration rather than the epoch.

    Examples
    --------
    >>> Function(lambda t: 0.1 / t).value(4, epoch=1)
    0.025
    """

    function: Callable[[int], float]
    decay_on_iteration: bool = flag(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.function):
            raise InvalidParameterError(f"function of Function must be one, not {self.function!r:.80}.")

    def rate(self, count: int) -> float:
        return self.function(count)


def as_schedule(learning_rate: Any, name: str = "learning_rate") -> Schedule:
    """The schedule meant by a number, a schedule (copied) or a function of the step.

    Parameters
    ----------
    learning_rate : float, Schedule or callable
        What is given.
    name : str
        What errors call it.

    Raises
    ------
    ValueError
        A number that is negative or not finite.
    TypeError
        Anything else.
    """
    if isinstance(learning_rate, Schedule):
        return copy.deepcopy(learning_rate)
    if isinstance(learning_rate, numbers.Real) and not isinstance(learning_rate, bool):
        check_number(name, learning_rate, "[0, inf)")
        return Fixed(float(learning_rate))
    if callable(learning_rate) and not isinstance(learning_rate, type):
        return Function(learning_rate)
    raise InvalidParameterError(
        f"{name} must be a number in [0, inf), a schedule or a function of the step, not {learning_rate!r}."
    )


def with_rate(schedule: Schedule, rate: float) -> Schedule:
    """A copy of a schedule with another base rate, at its beginning: it remembers no loss.

    What MXNet's optimizers do when both ``learning_rate`` and ``lr_scheduler`` are given.

    Parameters
    ----------
    schedule : Schedule
        Left as it is.
    rate : float
        In place of its ``eta0``, of the rate of :class:`Fixed`, of the peak of
        :class:`~onnxcustom.optim.OneCycle`, or of that of what a
        :class:`~onnxcustom.optim.Warmup` leads to.

    Returns
    -------
    Schedule

    Raises
    ------
    TypeError
        The schedule has no base rate, as :class:`Function` and :class:`Null`.
    ValueError
        `rate` is negative or not finite.

    Examples
    --------
    >>> with_rate(Exp(gamma=0.5), 2.0)
    Exp(eta0=2.0, gamma=0.5, decay_on_iteration=False)
    """
    if not isinstance(schedule, Schedule):
        raise InvalidParameterError(f"schedule must be a Schedule, not {schedule!r}.")
    check_number("rate", rate, "[0, inf)")
    name = schedule.base_field
    if name not in [f.name for f in _fields(schedule)]:
        raise InvalidParameterError(
            f"{type(schedule).__name__} has no base rate that could be set to {rate!r}: "
            "leave out either the rate or the schedule."
        )
    base = getattr(schedule, name)
    fresh: Any = copy.deepcopy(schedule)
    return dataclasses.replace(fresh, **{name: with_rate(base, rate) if isinstance(base, Schedule) else rate})
