"""How far the training by an update rule is: the step, the epoch, and what schedules give for them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import CallOrderError, InvalidParameterError

from .schedules import Fixed, Schedule, check_loss

__all__ = ["Clock", "Moment"]


class Moment(NamedTuple):
    """Where a clock is: a step changes the whole of it by one assignment, which nothing can interrupt.

    Attributes
    ----------
    schedules : dict of str to Schedule
        What gives the values.
    t, epoch : int
        The current step and epoch.
    values : dict of str to float
        What the schedules give for them.
    still : bool
        Whether they give the same for every step.
    training : object
        What else changes with a step: a value of whoever trains by the clock, which others leave alone.
    """

    schedules: dict[str, Schedule]
    t: int
    epoch: int
    values: dict[str, float]
    still: bool
    training: Any = None


# What a moment's parts are called in pickles.
_WRITTEN = ("schedules", "t", "epoch", "values", "_still")


class Clock:
    """Step and epoch, counted from 1, and the numbers that schedules give for them.

    It is state: what a rule, which is a formula with its options, leaves to whoever trains by it. A clock
    that was not started has no schedules.

    Parameters
    ----------
    owner : str
        What errors call the rule.
    ranges : mapping of str to str
        The interval of every number that has a schedule.
    begin : int, default=0
        Updates counted as done before the first one.

    Attributes
    ----------
    now : Moment
        Where it is; the schedules are the clock's own, since they may remember losses.
    rate : float, Schedule, callable or str
        The learning rate as it was given, by the rule's options or later.
    """

    def __init__(self, owner: str, ranges: Mapping[str, str], begin: int = 0) -> None:
        self.owner, self.ranges, self.begin = owner, dict(ranges), begin
        self.rate: Any = None
        self.now = Moment({}, 1, 1, {}, False)

    def stop(self) -> None:
        """Have no schedules, and be at no step."""
        self.rate = None
        self.now = Moment({}, 1, 1, {}, False, self.now.training)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """What gives the values."""
        return self.now.schedules

    @property
    def t(self) -> int:
        """The current step."""
        return self.now.t

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self.now.epoch

    @property
    def values(self) -> dict[str, float]:
        """Learning rate, and every scheduled hyper-parameter, of the current step."""
        return self.now.values

    def start(self, schedules: Mapping[str, Schedule], rate: Any) -> None:
        """Be at the first step of the first epoch, with schedules that are the clock's own from now on.

        Raises
        ------
        ValueError
            A schedule gave something else than a number of its range; the clock stays as it was.
        """
        self.be_at(dict(schedules), self.begin + 1, 1)
        self.rate = rate

    @property
    def started(self) -> bool:
        """Whether it was started, and not stopped since."""
        return bool(self.now.schedules)

    def check_started(self) -> None:
        """Refuse to go on without schedules."""
        if not self.now.schedules:
            raise CallOrderError(f"The clock of {self.owner} was not started: call init_learning_rate().")

    # -- as training goes on ---------------------------------------------------------------------

    def is_after(self, t: int) -> bool:
        """Whether the current step is the one after `t` updates."""
        return self.now.t == t + 1 + self.begin

    def update(self, t: int) -> None:
        """Move on to the step after `t` updates, in [0, inf)."""
        self.now = self._after(t)

    def advance(self, t: int, training: Any) -> None:
        """Move on like :meth:`update`, with another value of who trains, in one assignment.

        A schedule may have no number for the next step, should this be the last: the clock then stays.
        """
        now = self.now
        if now.still:  # once a step: the common case is quick
            self.now = Moment(now.schedules, t + 1 + self.begin, now.epoch, now.values, True, training)
            return
        try:
            now = self._after(t)
        except Exception:  # whatever a function of the user's raises
            now = self.now
        self.now = now._replace(training=training)

    def _after(self, t: int) -> Moment:
        """The step after `t` updates."""
        self.check_started()
        if type(t) is not int or t < 0:  # once a step: the common case is quick
            check_number("t, the number of updates done,", t, "[0, inf)", integral=True)
        return self._moment(self.now.schedules, int(t) + 1 + self.begin, self.now.epoch)

    def report_epoch(self, loss: float) -> bool:
        """Tell the schedules the mean loss of an epoch; True if that of the learning rate would stop."""
        self.check_started()
        loss = check_loss(loss)
        schedules, t, epoch, *_ = self.now
        stops = [schedule.report_epoch(loss) for schedule in schedules.values()]
        self.be_at(schedules, t, epoch + 1)
        return stops[0]

    def set_rate(self, rate: Any, schedule: Schedule) -> None:
        """Use another learning rate from the current step on."""
        if self.started:
            self.be_at({**self.schedules, "learning_rate": schedule}, self.t, self.epoch)
            self.rate = rate

    # -- from one to another ---------------------------------------------------------------------

    def at(self, t: int) -> Clock:
        """A clock at the step after `t` updates that shares the schedules of this one."""
        made = copy.copy(self)
        made.update(t)
        return made

    def go_to(self, other: Clock) -> None:
        """Be at the step of a clock that shares the schedules of this one."""
        self.now = self.now._replace(t=other.now.t, values=other.now.values)

    def follow(self, other: Clock) -> None:
        """Be where another clock is, which keeps what it has; schedules that are the same go on, too."""
        schedules = {**self.schedules}
        for name, schedule in other.schedules.items():
            if name in schedules and repr(schedule) == repr(schedules[name]):
                schedules[name] = copy.deepcopy(schedule)
        self.be_at(schedules, other.t, other.epoch)

    def become(self, other: Clock) -> None:
        """Be what another clock is, which is not used any more."""
        vars(self).update({**vars(other), "now": other.now._replace(training=self.now.training)})

    def be_at(self, schedules: dict[str, Schedule], t: int, epoch: int) -> None:
        """Be at a step of an epoch, unless a schedule has no number for it."""
        self.now = self._moment(schedules, t, epoch)

    def _moment(self, schedules: dict[str, Schedule], t: int, epoch: int) -> Moment:
        """A step of an epoch."""
        values = {}
        for name, schedule in schedules.items():  # once a step: the common case is quick
            value = schedule.value(t, epoch)
            if type(value) is not float or name != "learning_rate" or not 0.0 <= value < math.inf:
                value = self._checked(name, value, schedule, t, epoch)
            values[name] = value
        still = all(type(schedule) is Fixed for schedule in schedules.values())
        return Moment(schedules, t, epoch, values, still, self.now.training)

    # -- copies and pickles ----------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """All but what belongs to who trains; each thing by its name, as it always was."""
        kept = {name: value for name, value in vars(self).items() if name != "now"}
        return {**kept, **dict(zip(_WRITTEN, self.now, strict=False))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        now = Moment(*(state.pop(name) for name in _WRITTEN))
        vars(self).update(state, now=now)

    def _checked(self, name: str, value: Any, schedule: Schedule, t: int, epoch: int) -> float:
        """What a schedule gave, if it is a number of the hyper-parameter's range."""
        interval = self.ranges.get(name, "[0, inf)")
        what = name.replace("_", " ")
        try:
            check_number(what, value, interval)
        except (TypeError, ValueError) as exc:
            raise InvalidParameterError(
                f"{schedule!r} gave {value!r} at step {t} of epoch {epoch}; "
                f"a {what} is a number in {interval}."
            ) from exc
        return float(value)
