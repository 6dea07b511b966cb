"""Learning rate schedules: functions of the step, evaluated in Python and fed to the graph.

No graph holds a learning rate, so a schedule may do what it likes without a session being rebuilt.
"""

from __future__ import annotations

import copy
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from onnxcustom._parameters import check_number, check_parameters, integer, number

__all__ = ["Adaptive", "Fixed", "Function", "InverseScaling", "Optimal", "Schedule", "as_schedule"]


class Schedule(ABC):
    """A learning rate as a function of the step and of the epoch, both counted from 1.

    A schedule may remember the losses it is told; a rule works on a copy of its own, so one
    instance can be given to several.
    """

    @abstractmethod
    def value(self, t: int, epoch: int) -> float:
        """The learning rate of step `t`, which belongs to epoch `epoch`."""

    def report_epoch(self, loss: float) -> bool:
        """Take note of the mean loss of an epoch; True if training should stop."""
        return False

    def __post_init__(self) -> None:
        check_parameters(self)


@dataclass(frozen=True)
class Fixed(Schedule):
    """The same rate at every step.

    Parameters
    ----------
    rate : float
        Learning rate, in [0, inf).
    """

    rate: float = number(0.01, "[0, inf)")

    def value(self, t: int, epoch: int) -> float:
        return float(self.rate)


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
        return float(self.eta0) / math.pow(t, self.power_t)


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


@dataclass
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
    _rate: float | None = field(default=None, init=False, repr=False)
    _best: float = field(default=math.inf, init=False, repr=False)
    _stalled: int = field(default=0, init=False, repr=False)

    def value(self, t: int, epoch: int) -> float:
        return float(self.eta0) if self._rate is None else self._rate

    def report_epoch(self, loss: float) -> bool:
        self._stalled = self._stalled + 1 if loss > self._best - self.tol else 0
        self._best = min(self._best, loss)
        if self._stalled < self.n_iter_no_change:
            return False
        rate = self.value(0, 0)
        if rate <= 1e-6:
            return True
        self._rate, self._stalled = rate / 5, 0
        return False


@dataclass(frozen=True)
class Function(Schedule):
    """Any Python function of the step.

    Parameters
    ----------
    function : callable
        Takes the step, counted from 1; returns the learning rate.

    Examples
    --------
    >>> Function(lambda t: 0.1 / t).value(4, epoch=1)
    0.025
    """

    function: Callable[[int], float]

    def value(self, t: int, epoch: int) -> float:
        return self.function(t)


def as_schedule(learning_rate: Any) -> Schedule:
    """The schedule meant by a number, a schedule (copied) or a function of the step.

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
        check_number("learning_rate", learning_rate, "[0, inf)")
        return Fixed(float(learning_rate))
    if callable(learning_rate) and not isinstance(learning_rate, type):
        return Function(learning_rate)
    raise TypeError(
        "learning_rate must be a number in [0, inf), a schedule or a function of the step, "
        f"not {learning_rate!r}."
    )
