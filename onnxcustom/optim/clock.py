"""How far the training by an update rule is: the step, the epoch, and what schedules give for them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import InvalidParameterError

from .schedules import Fixed, Schedule, check_loss

__all__ = ["Clock"]


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
    t, epoch : int
        The current step and epoch.
    values : dict of str to float
        Learning rate, and every scheduled hyper-parameter, of the current step.
    schedules : dict of str to Schedule
        What gives them: the clock's own, since they may remember losses.
    rate : float, Schedule, callable or str
        The learning rate as it was given, by the rule's options or later.
    """

    def __init__(self, owner: str, ranges: Mapping[str, str], begin: int = 0) -> None:
        self.owner, self.ranges, self.begin = owner, dict(ranges), begin
        self.stop()

    def stop(self) -> None:
        """Have no schedules, and be at no step."""
        self.schedules: dict[str, Schedule] = {}
        self.values: dict[str, float] = {}
        self.rate: Any = None
        self.t = self.epoch = 1
        self._still = False

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
        return bool(self.schedules)

    def check_started(self) -> None:
        """Refuse to go on without schedules."""
        if not self.schedules:
            raise RuntimeError(f"The clock of {self.owner} was not started: call init_learning_rate().")

    # -- as training goes on ---------------------------------------------------------------------

    def is_after(self, t: int) -> bool:
        """Whether the current step is the one after `t` updates."""
        return self.t == t + 1 + self.begin

    def update(self, t: int) -> None:
        """Move on to the step after `t` updates, in [0, inf)."""
        self.check_started()
        if type(t) is not int or t < 0:  # once a step: the common case is quick
            check_number("t, the number of updates done,", t, "[0, inf)", integral=True)
        self.be_at(self.schedules, int(t) + 1 + self.begin, self.epoch)

    def advance(self, t: int) -> bool:
        """Move on like :meth:`update`, if the schedules know the next step.

        Returns
        -------
        bool
            False if a schedule has no number for the next step: it need not, should it be the last.
        """
        if self._still:  # once a step: the common case is quick
            self.t = t + 1 + self.begin
            return True
        try:
            self.update(t)
        except Exception:  # whatever a function of the user's raises
            return False
        return True

    def report_epoch(self, loss: float) -> bool:
        """Tell the schedules the mean loss of an epoch; True if that of the learning rate would stop."""
        self.check_started()
        loss = check_loss(loss)
        self.epoch += 1
        stops = [schedule.report_epoch(loss) for schedule in self.schedules.values()]
        self.be_at(self.schedules, self.t, self.epoch)
        return stops[0]

    def set_rate(self, rate: Any, schedule: Schedule) -> None:
        """Use another learning rate from the current step on."""
        if self.schedules:
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
        self.t, self.values = other.t, other.values

    def follow(self, other: Clock) -> None:
        """Be where another clock is, which keeps what it has; schedules that are the same go on, too."""
        schedules = {**self.schedules}
        for name, schedule in other.schedules.items():
            if name in schedules and repr(schedule) == repr(schedules[name]):
                schedules[name] = copy.deepcopy(schedule)
        self.be_at(schedules, other.t, other.epoch)

    def become(self, other: Clock) -> None:
        """Be what another clock is, which is not used any more."""
        vars(self).update(vars(other))

    def be_at(self, schedules: dict[str, Schedule], t: int, epoch: int) -> None:
        """Be at a step of an epoch, unless a schedule has no number for it."""
        values = {}
        for name, schedule in schedules.items():  # once a step: the common case is quick
            value = schedule.value(t, epoch)
            if type(value) is not float or name != "learning_rate" or not 0.0 <= value < math.inf:
                value = self._checked(name, value, schedule, t, epoch)
            values[name] = value
        self.schedules, self.t, self.epoch, self.values = schedules, t, epoch, values
        self._still = all(type(schedule) is Fixed for schedule in schedules.values())

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
