"""The clock of an update rule: its step, its epoch, and what its schedules give for them."""

from __future__ import annotations

import copy
import dataclasses
import math
import numbers
from collections.abc import Iterator
from typing import Any, TypeVar

from onnxcustom._parameters import check_number

from .options import SharedOptions
from .schedules import Fixed, Schedule, as_schedule, check_loss

__all__ = ["Clock"]

Self = TypeVar("Self", bound="Clock")


class Clock(SharedOptions):
    """Step and epoch, counted from 1, and the learning rate and scheduled options of that step.

    Attributes
    ----------
    learning_rate : float, Schedule or callable
        Number, schedule or function of the step.
    """

    learning_rate: Any
    _schedules: dict[str, Schedule] | None = None
    _constant = False
    _values: dict[str, float]
    _t = 1
    _epoch = 1

    def make_schedule(self) -> Schedule:
        """A new schedule for the learning rate, at its beginning."""
        return as_schedule(self.learning_rate)

    def make_schedules(self) -> dict[str, Schedule]:
        """New schedules for everything that has one, at their beginning: the learning rate first."""
        schedules = {"learning_rate": self.make_schedule()}
        schedules.update({name: as_schedule(getattr(self, name), name) for name in self.scheduled})
        return schedules

    @property
    def scheduled(self) -> tuple[str, ...]:
        """Hyper-parameters, beside the learning rate, that have a schedule."""
        fields = dataclasses.fields(self)
        return tuple(
            f.name
            for f in fields
            if f.metadata.get("scheduled") and not isinstance(getattr(self, f.name), numbers.Real)
        )

    def init_learning_rate(self: Self) -> Self:
        """Set the clock to the first step of the first epoch.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            A schedule gave something else than a number of its range; the clock stays as it was.
        """
        return self._set_clock(self.make_schedules(), self.begin_num_update + 1, 1)

    def update_learning_rate(self: Self, t: int) -> Self:
        """Move on to the learning rate of the next step.

        Parameters
        ----------
        t : int
            Number of updates done, in [0, inf), without :attr:`begin_num_update`; the next step is
            ``t + 1`` after it.

        Returns
        -------
        self

        Raises
        ------
        RuntimeError
            Before :meth:`init_learning_rate`.
        ValueError, TypeError
            A negative `t`, or something else than an integer.
        ValueError
            A schedule gave something else than a number of its range; the clock stays where it was.
        """
        if self._schedules is None:
            raise self._not_started()
        if type(t) is not int or t < 0:  # once a step: the common case is quick
            check_number("t, the number of updates done,", t, "[0, inf)", integral=True)
        return self._set_clock(self._schedules, int(t) + 1 + self.begin_num_update, self._epoch)

    def advance(self, t: int) -> bool:
        """Move on like :meth:`update_learning_rate`, if the schedules know the next step.

        Parameters
        ----------
        t : int
            Number of updates done.

        Returns
        -------
        bool
            False if a schedule has no number for the next step: it need not, should it be the last.
        """
        if self._constant:  # once a step: the common case is quick
            self.__dict__["_t"] = t + 1 + self.begin_num_update
            return True
        try:
            self.update_learning_rate(t)
        except Exception:  # whatever a function of the user's raises
            return False
        return True

    def report_epoch(self, loss: float) -> bool:
        """Tell the schedule the mean loss of the epoch that has just ended.

        Parameters
        ----------
        loss : float
            Mean objective over the epoch's rows.

        Returns
        -------
        bool
            True if the schedule sees no use in going on: ``'adaptive'`` says so when the loss has
            stalled at a rate of 1e-6 or less.

        Raises
        ------
        RuntimeError
            Before :meth:`init_learning_rate`.
        InvalidDataError
            The loss is not finite.
        """
        if self._schedules is None:
            raise self._not_started()
        loss = check_loss(loss)
        self._epoch += 1
        stops = [schedule.report_epoch(loss) for schedule in self._schedules.values()]
        self._refresh()
        return stops[0]

    @property
    def value(self) -> float:
        """Learning rate of the current step.

        Raises
        ------
        RuntimeError
            Before :meth:`init_learning_rate`.
        """
        return self.values["learning_rate"]

    @property
    def values(self) -> dict[str, float]:
        """Learning rate and every scheduled hyper-parameter of the current step, by name.

        Raises
        ------
        RuntimeError
            Before :meth:`init_learning_rate`.
        """
        if self._schedules is None:
            raise self._not_started()
        return self._values

    @property
    def t(self) -> int:
        """The current step, counted from 1: the one that uses :attr:`value`."""
        return self._t

    def take_clock(self, other: Clock) -> None:
        """Go on at the step where another rule is; schedules that are the same go on, too."""
        self.init_learning_rate()
        assert self._schedules is not None
        for name, schedule in (other._schedules or {}).items():
            if name in self._schedules and repr(schedule) == repr(self._schedules[name]):
                self._schedules[name] = copy.deepcopy(schedule)
        self._t, self._epoch = other._t, other._epoch
        self._refresh()

    def loop(self, n: int = 1000) -> Iterator[float]:
        """Yield the learning rates of the first `n` steps; the clock starts again.

        Examples
        --------
        >>> from onnxcustom.optim import LearningRateSGD
        >>> [round(v, 4) for v in LearningRateSGD(1.0).loop(3)]
        [1.0, 0.8409, 0.7598]
        """
        self.init_learning_rate()
        for t in range(n):
            if t:  # no rate is asked for that is not yielded: a list of them may end there
                self.update_learning_rate(t)
            yield self.value

    def _refresh(self: Self) -> Self:
        assert self._schedules is not None
        return self._set_clock(self._schedules, self._t, self._epoch)

    def _set_clock(self: Self, schedules: dict[str, Schedule], t: int, epoch: int) -> Self:
        """Be at a step of an epoch, unless a schedule has no number for it."""
        values = {}
        for name, schedule in schedules.items():  # once a step: the common case is quick
            value = schedule.value(t, epoch)
            if type(value) is not float or name != "learning_rate" or not 0.0 <= value < math.inf:
                value = self._checked(name, value, schedule, t, epoch)
            values[name] = value
        self._schedules, self._t, self._epoch, self._values = schedules, t, epoch, values
        self._constant = all(type(schedule) is Fixed for schedule in schedules.values())
        return self

    def _checked(self, name: str, value: Any, schedule: Schedule, t: int, epoch: int) -> float:
        """What a schedule gave, if it is a number of the hyper-parameter's range."""
        fields = {f.name: f.metadata.get("range") for f in dataclasses.fields(self)}
        interval = fields.get(name) or "[0, inf)"
        what = name.replace("_", " ")
        try:
            check_number(what, value, interval)
        except (TypeError, ValueError) as exc:
            raise ValueError(
                f"{schedule!r} gave {value!r} at step {t} of epoch {epoch}; "
                f"a {what} is a number in {interval}."
            ) from exc
        return float(value)

    def _not_started(self) -> RuntimeError:
        return RuntimeError(f"The clock of {type(self).__name__} was not started: call init_learning_rate().")
