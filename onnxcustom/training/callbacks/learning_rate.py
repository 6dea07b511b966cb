"""Set the learning rate once an epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onnxcustom._parameters import check_number
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError
from onnxcustom.optim import ReduceOnPlateau, Schedule

from .base import Callback, monitored
from .scoring import is_score

if TYPE_CHECKING:
    from ..run import Run, Training

__all__ = ["LearningRate"]


class LearningRate(Callback):
    """Set the learning rate before every epoch, by a function of the epoch or by what a measure does.

    Schedules that need no measure are given to the optimizer: they may change at every step. What
    ``set_learning_rate`` of the optimizer sets meanwhile is overwritten, with a warning.

    Parameters
    ----------
    rate : Schedule or callable
        A schedule of :mod:`onnxcustom.optim` such as ``ReduceOnPlateau``, told `monitor` after every
        epoch, or a function from the epoch, counted from 1, to the rate.
    monitor : str, optional
        A key of ``history_``, by default ``'val_loss'``, or ``'loss'`` without validation data.

    Examples
    --------
    >>> from onnxcustom.optim import ReduceOnPlateau
    >>> halve = LearningRate(ReduceOnPlateau(0.1, factor=0.5, patience=3), monitor="val_loss")
    >>> decay = LearningRate(lambda epoch: 0.1 / epoch)
    """

    def __init__(self, rate: Schedule | Callable[[int], float], monitor: str | None = None) -> None:
        self.rate = rate
        self.monitor = monitor

    def check(self, run: Run) -> None:
        """Refuse a rate that is none and a measure that there is not."""
        if not isinstance(self.rate, Schedule) and not callable(self.rate):
            raise InvalidParameterError(
                f"rate must be a schedule or a function of the epoch, not {self.rate!r}."
            )
        name = monitored(self.monitor, run)
        if isinstance(self.rate, ReduceOnPlateau) and self.rate.mode == "min" and is_score(name, run):
            raise InvalidDataError(
                f"{self.rate!r} waits for less of {name!r}, of which more is better: give it mode='max'."
            )

    def on_train_begin(self, trainer: Training) -> None:
        """A schedule begins again."""
        self._name = monitored(self.monitor, trainer.run)
        self._schedule = copy.deepcopy(self.rate) if isinstance(self.rate, Schedule) else None
        self._value: float | None = None
        if self._schedule is None:  # what is no rate is said before anything is trained
            self._checked(self.rate(trainer.n_iter_ + 1))  # type: ignore[operator]

    def on_epoch_begin(self, trainer: Training) -> None:
        """Set the rate."""
        given = trainer.step_.optimizer.learning_rate
        if self._value is not None and given != self._value:
            warn_user(
                f"set_learning_rate({given!r}) has no effect beyond an epoch: {self!r} sets the rate before "
                "every epoch.",
                UserWarning,
            )
            self._value = None
        epoch = trainer.n_iter_ + 1
        if self._schedule is not None:
            self._set(trainer, self._schedule.value(trainer.step_.optimizer.t, epoch))
        else:
            self._set(trainer, self.rate(epoch))  # type: ignore[operator]

    def on_train_end(self, trainer: Training) -> None:
        """Give the optimizer its own rate back."""
        if self._value is not None:
            trainer.step_.optimizer.set_learning_rate(trainer.run.rate)

    @staticmethod
    def _checked(value: float) -> float:
        check_number("the learning rate that the callback gives", value, "[0, inf)")
        return value

    def _set(self, trainer: Training, value: float) -> None:
        if self._checked(value) != self._value:
            trainer.step_.optimizer.set_learning_rate(value)
            self._value = value

    def on_epoch_end(self, trainer: Training) -> None:
        """Tell the schedule."""
        value = trainer.history_[self._name][-1]
        if self._schedule is not None and value == value and self._schedule.report_epoch(value):
            trainer.run.stop(f"{self.rate!r} sees no use in going on")

    def state_dict(self) -> dict[str, Any]:
        """The rate, and what the schedule remembers."""
        memory = {} if self._schedule is None else self._schedule.state_dict()
        return {"value": self._value, "schedule": memory}

    def load_state_dict(self, trainer: Training, state: Mapping[str, Any]) -> None:
        """Go on with them."""
        if self._schedule is not None:
            self._schedule.load_state_dict(state["schedule"])
        if state["value"] is not None:
            self._set(trainer, state["value"])
