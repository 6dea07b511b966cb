"""Schedules that run from one rate to another: steps, polynomial, cosine, one-cycle, warm-up.

Where PyTorch's ``lr_scheduler`` has the same one, count :math:`t` is the rate after :math:`t - 1` calls
of its ``step()``.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxcustom._parameters import check_number, choice, flag, integer, number
from onnxcustom.exceptions import InvalidParameterError

from .schedules import CountedSchedule, Schedule, as_schedule, needed, times_power

__all__ = ["Cosine", "CosineRestarts", "MultiStep", "OneCycle", "Polynomial", "Step", "Warmup"]


@dataclass(frozen=True)
class Step(CountedSchedule):
    r"""Decay by a factor every so often, :math:`\eta_t = \eta_0 \gamma^{\lfloor (t - 1) / s \rfloor}`.

    PyTorch's ``StepLR``.

    Parameters
    ----------
    eta0 : float
        First rate, in [0, inf).
    step_size : int
        Epochs, or iterations, :math:`s` at each rate, in [1, inf).
    gamma : float, default=0.1
        Factor :math:`\gamma`, in [0, inf).
    decay_on_iteration : bool, default=False
        Whether :math:`t` counts iterations rather than epochs.

    Examples
    --------
    >>> schedule = Step(1.0, step_size=2, gamma=0.5)
    >>> [schedule.value(t=1, epoch=epoch) for epoch in range(1, 6)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    eta0: float = needed("[0, inf)")
    step_size: int = needed("[1, inf)", integral=True)
    gamma: float = number(0.1, "[0, inf)")
    decay_on_iteration: bool = flag(False)

    def rate(self, count: int) -> float:
        return times_power(self.eta0, self.gamma, (count - 1) // self.step_size)


@dataclass(frozen=True)
class MultiStep(CountedSchedule):
    r"""Decay by a factor at milestones, :math:`\eta_t = \eta_0 \gamma^{|\{m : m \le t - 1\}|}`.

    PyTorch's ``MultiStepLR``.

    Parameters
    ----------
    eta0 : float
        First rate, in [0, inf).
    milestones : iterable of int
        Numbers :math:`m` of epochs, or iterations, after which the rate is multiplied, in [1, inf); one
        given twice counts twice. Kept as a sorted tuple.
    gamma : float, default=0.1
        Factor :math:`\gamma`, in [0, inf).
    decay_on_iteration : bool, default=False
        Whether :math:`t` counts iterations rather than epochs.

    Examples
    --------
    >>> schedule = MultiStep(1.0, milestones=[1, 3], gamma=0.5)
    >>> [schedule.value(t=1, epoch=epoch) for epoch in range(1, 6)]
    [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    eta0: float = needed("[0, inf)")
    milestones: Iterable[int] = ()
    gamma: float = number(0.1, "[0, inf)")
    decay_on_iteration: bool = flag(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.milestones, str) or not isinstance(self.milestones, Iterable):
            raise InvalidParameterError(
                f"milestones of MultiStep must be integers in [1, inf), not {self.milestones!r}."
            )
        try:
            milestones = list(self.milestones)
        except TypeError as exc:  # an array without dimensions
            raise InvalidParameterError(f"milestones of MultiStep: {exc}.") from exc
        for milestone in milestones:
            check_number("a milestone of MultiStep", milestone, "[1, inf)", integral=True)
        object.__setattr__(self, "milestones", tuple(sorted(map(int, milestones))))

    def rate(self, count: int) -> float:
        assert isinstance(self.milestones, tuple)
        return times_power(self.eta0, self.gamma, bisect.bisect_right(self.milestones, count - 1))


@dataclass(frozen=True)
class Polynomial(CountedSchedule):
    r"""Decay along a power, :math:`\eta_t = \eta_T + (\eta_0 - \eta_T)(1 - n/T)^p`.

    Here :math:`n = \min(t - 1, T)`. With :math:`\eta_T = 0` PyTorch's ``PolynomialLR``, with :math:`p = 1`
    linear decay.

    Parameters
    ----------
    eta0 : float
        First rate, in [0, inf).
    total : int
        Epochs, or iterations, :math:`T` to the final rate, which stays, in [1, inf).
    power : float, default=1.0
        Exponent :math:`p`, in (0, inf).
    final : float, default=0.0
        Final rate :math:`\eta_T`, in [0, inf).
    decay_on_iteration : bool, default=False
        Whether :math:`t` counts iterations rather than epochs.

    Examples
    --------
    >>> schedule = Polynomial(1.0, total=4, power=2.0)
    >>> [schedule.value(t=1, epoch=epoch) for epoch in range(1, 7)]
    [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """

    eta0: float = needed("[0, inf)")
    total: int = needed("[1, inf)", integral=True)
    power: float = number(1.0, "(0, inf)")
    final: float = number(0.0, "[0, inf)")
    decay_on_iteration: bool = flag(False)

    def rate(self, count: int) -> float:
        left = 1 - min(count - 1, self.total) / self.total
        return _linear(self.final, self.eta0, math.pow(left, self.power))


@dataclass(frozen=True)
class Cosine(CountedSchedule):
    r"""Half a cosine, :math:`\eta_t = \eta_T + (\eta_0 - \eta_T)(1 + \cos(\pi n / T))/2`.

    Here :math:`n = \min(t - 1, T)`. PyTorch's ``CosineAnnealingLR`` up to :math:`t = T + 1`: there the rate
    rises again after that, here it stays.

    Parameters
    ----------
    eta0 : float
        First rate, in [0, inf).
    total : int
        Epochs, or iterations, :math:`T` to the final rate, in [1, inf).
    final : float, default=0.0
        Final rate :math:`\eta_T`, in [0, inf).
    decay_on_iteration : bool, default=False
        Whether :math:`t` counts iterations rather than epochs.

    Examples
    --------
    >>> schedule = Cosine(1.0, total=2)
    >>> [round(schedule.value(t=1, epoch=epoch), 6) for epoch in range(1, 5)]
    [1.0, 0.5, 0.0, 0.0]

    References
    ----------
    I. Loshchilov, F. Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017,
    https://arxiv.org/abs/1608.03983, equation 5
    """

    eta0: float = needed("[0, inf)")
    total: int = needed("[1, inf)", integral=True)
    final: float = number(0.0, "[0, inf)")
    decay_on_iteration: bool = flag(False)

    def rate(self, count: int) -> float:
        return _cosine(self.eta0, self.final, min(count - 1, self.total) / self.total)


@dataclass(frozen=True)
class CosineRestarts(CountedSchedule):
    r"""Half a cosine again and again, :math:`\eta_t = \eta_T + (\eta_0 - \eta_T)(1 + \cos(\pi n / T_i))/2`.

    Here :math:`n = 0 \dots T_i - 1` counts from the last restart and :math:`T_i = T_0 m^i`. PyTorch's
    ``CosineAnnealingWarmRestarts``.

    Parameters
    ----------
    eta0 : float
        Rate at every restart, in [0, inf).
    period : int
        Epochs, or iterations, :math:`T_0` to the first restart, in [1, inf).
    mult : int, default=1
        Factor :math:`m` by which each period is longer than the one before, in [1, inf).
    final : float, default=0.0
        Rate :math:`\eta_T` which each period approaches, in [0, inf).
    decay_on_iteration : bool, default=False
        Whether :math:`t` counts iterations rather than epochs.

    Examples
    --------
    >>> schedule = CosineRestarts(1.0, period=2, mult=2)
    >>> [round(schedule.value(t=1, epoch=epoch), 3) for epoch in range(1, 8)]
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]

    References
    ----------
    I. Loshchilov, F. Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017,
    https://arxiv.org/abs/1608.03983
    """

    eta0: float = needed("[0, inf)")
    period: int = needed("[1, inf)", integral=True)
    mult: int = integer(1, "[1, inf)")
    final: float = number(0.0, "[0, inf)")
    decay_on_iteration: bool = flag(False)

    def rate(self, count: int) -> float:
        n, period = count - 1, self.period
        if self.mult == 1:
            n %= period
        while n >= period:
            n -= period
            period *= self.mult
        return _cosine(self.eta0, self.final, n / period)


@dataclass(frozen=True)
class OneCycle(CountedSchedule):
    r"""Up to a peak and down below the start: PyTorch's ``OneCycleLR``.

    From :math:`\eta_{max}/d` to :math:`\eta_{max}` at count :math:`t = pT`, and from there to
    :math:`\eta_{max}/(d f)` at :math:`t = T`, where it stays. With three phases it is back at
    :math:`\eta_{max}/d` at :math:`t = 2pT - 1`, and then falls to :math:`\eta_{max}/(d f)`. Between two
    of these, with :math:`x \in [0, 1]` how far the count has come, the rate is
    :math:`b + (a - b)(1 + \cos \pi x)/2`, or :math:`a + (b - a) x`.

    The momentum that goes with it, from 0.95 down to 0.85 and back, is
    ``OneCycle(0.85, total, div_factor=0.85 / 0.95, final_div_factor=1)``.

    Parameters
    ----------
    max_rate : float
        Rate at the peak :math:`\eta_{max}`, in [0, inf).
    total : int
        Iterations, or epochs, :math:`T` of the cycle, in [1, inf).
    pct_start : float, default=0.3
        Part :math:`p` of the cycle that goes up, in [0, 1], and at most 0.5 with three phases.
    div_factor : float, default=25.0
        Peak over first rate :math:`d`, in (0, inf).
    final_div_factor : float, default=1e4
        First over last rate :math:`f`, in (0, inf).
    anneal : {'cos', 'linear'}, default='cos'
        How the rate goes from one to the next.
    three_phase : bool, default=False
        Whether the way down stops at the first rate.
    decay_on_iteration : bool, default=True
        Whether :math:`t` counts iterations rather than epochs.

    Examples
    --------
    >>> schedule = OneCycle(1.0, total=7, pct_start=3 / 7, div_factor=4, final_div_factor=2, anneal="linear")
    >>> [round(schedule.value(t, epoch=1), 3) for t in range(1, 9)]
    [0.25, 0.625, 1.0, 0.781, 0.562, 0.344, 0.125, 0.125]

    References
    ----------
    L. Smith, N. Topin, Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
    Rates, 2018, https://arxiv.org/abs/1708.07120
    """

    max_rate: float = needed("[0, inf)")
    total: int = needed("[1, inf)", integral=True)
    pct_start: float = number(0.3, "[0, 1]")
    div_factor: float = number(25.0, "(0, inf)")
    final_div_factor: float = number(1e4, "(0, inf)")
    anneal: str = choice("cos", "linear")
    three_phase: bool = flag(False)
    decay_on_iteration: bool = flag(True)

    base_field = "max_rate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.three_phase and self.pct_start > 0.5:
            raise InvalidParameterError(
                "pct_start of OneCycle must be in [0, 0.5] with three phases, since the way down takes as "
                f"long, not {self.pct_start!r}."
            )

    def rate(self, count: int) -> float:
        low = self.max_rate / self.div_factor
        lowest = low / self.final_div_factor
        up = self.pct_start * self.total - 1
        if self.three_phase:
            phases = [(up, low, self.max_rate), (2 * up, self.max_rate, low), (self.total - 1, low, lowest)]
        else:
            phases = [(up, low, self.max_rate), (self.total - 1, self.max_rate, lowest)]
        between: Callable[[float, float, float], float] = _cosine if self.anneal == "cos" else _linear
        n, begin = min(count - 1, self.total - 1), 0.0
        while n > phases[0][0]:
            begin = phases.pop(0)[0]
        end, first, last = phases[0]
        # A phase may be a single count, at which it is over.
        return between(first, last, (n - begin) / (end - begin) if end > begin else 1.0)


def _cosine(first: float, last: float, done: float) -> float:
    """The rate on half a cosine from `first` to `last`, `done` in [0, 1] of the way."""
    return _linear(last, first, (1 + math.cos(math.pi * done)) / 2)


def _linear(first: float, last: float, done: float) -> float:
    """The rate on a line from `first` to `last`, `done` in [0, 1] of the way."""
    return first * (1 - done) + last * done  # exact at both ends, never negative


@dataclass(frozen=True)
class Warmup(Schedule):
    r"""Linear warm-up before any other schedule, :math:`\eta_t = (s + (1 - s) n/N)\,\hat\eta_{t'}`.

    Here :math:`n = \min(t - 1, N)`, and :math:`\hat\eta` is the other schedule, held at its own first
    count :math:`t' = 1` until the warm-up is over and then counting :math:`t' = t - N`. PyTorch's
    ``LinearLR`` followed by another in a ``SequentialLR``.

    Warm-up and schedule may count differently, as a warm-up of 500 iterations before a decay by
    epochs. Then `steps_per_epoch` says how one count follows from the other; the first epoch of the
    schedule lasts until the end of the first whole one. Without `steps_per_epoch` the schedule
    reads the count that the warm-up doesn't use from the beginning of training.

    What is told to :meth:`report_epoch` is passed on from the first epoch.

    Parameters
    ----------
    schedule : Schedule, float or callable
        What to warm up to; a number is constant, a callable a function of the step.
    steps : int
        Iterations, or epochs, :math:`N` of warm-up, in [0, inf).
    start_factor : float, default=1/3
        First rate over that of the schedule, :math:`s`, in [0, 1].
    decay_on_iteration : bool, default=True
        Whether the warm-up counts iterations rather than epochs.
    steps_per_epoch : int, optional
        Iterations in an epoch, in [1, inf).

    Examples
    --------
    >>> schedule = Warmup(lambda t: 1 / t, steps=4, start_factor=0.0)
    >>> [round(schedule.value(t, epoch=1), 3) for t in range(1, 8)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 0.5, 0.333]
    >>> schedule = Warmup(Step(1.0, step_size=1, gamma=0.5), 3, start_factor=0.25, steps_per_epoch=3)
    >>> [schedule.value(t, epoch=(t + 2) // 3) for t in range(1, 10)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]

    References
    ----------
    P. Goyal et al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, 2017,
    https://arxiv.org/abs/1706.02677, section 2.2
    """

    schedule: Any
    steps: int = needed("[0, inf)", integral=True)
    start_factor: float = number(1 / 3, "[0, 1]")
    decay_on_iteration: bool = flag(True)
    steps_per_epoch: int | None = None

    base_field = "schedule"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_per_epoch is not None:
            check_number("steps_per_epoch of Warmup", self.steps_per_epoch, "[1, inf)", integral=True)
            object.__setattr__(self, "steps_per_epoch", int(self.steps_per_epoch))
        object.__setattr__(self, "schedule", as_schedule(self.schedule, "schedule of Warmup"))

    def value(self, t: int, epoch: int) -> float:
        steps, epochs = self._lengths()
        rate = self.schedule.value(max(1, t - steps), max(1, epoch - epochs))
        done = (t if self.decay_on_iteration else epoch) - 1
        if done >= self.steps:
            return rate
        return rate * (self.start_factor + (1 - self.start_factor) * (done / self.steps))

    def _lengths(self) -> tuple[int, int]:
        """How many iterations and epochs the schedule begins late."""
        per_epoch = self.steps_per_epoch
        if self.decay_on_iteration:
            return self.steps, 0 if per_epoch is None else -(-self.steps // per_epoch)
        return 0 if per_epoch is None else self.steps * per_epoch, self.steps

    def report_epoch(self, loss: float) -> bool:
        return self.schedule.report_epoch(loss)

    def state_dict(self) -> dict[str, Any]:
        return self.schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.schedule.load_state_dict(state)
