"""Ends of a training that are not its goal: time is up, the objective is no number."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from onnxcustom._parameters import check_number
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import ConvergenceWarning

from .base import Callback

if TYPE_CHECKING:
    from ..run import Run, Training

__all__ = ["StopOnNonFinite", "TimeBudget"]


class TimeBudget(Callback):
    """End training when its time is up, also in the middle of an epoch.

    With ``checkpoint_dir``, the next ``fit`` goes on at the next batch, with a budget of its own.

    Parameters
    ----------
    seconds : float
        Time from the beginning of training, in (0, inf).

    Attributes
    ----------
    used_up_ : bool
        Whether it ended the training.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def check(self, run: Run) -> None:
        """Refuse a budget that is none."""
        check_number("seconds", self.seconds, "(0, inf)")

    def on_train_begin(self, trainer: Training) -> None:
        """Start the clock."""
        self._end = time.monotonic() + self.seconds
        self.used_up_ = False

    def on_batch_end(self, trainer: Training, batch: Any, loss: float) -> None:
        """Look at the clock."""
        if time.monotonic() >= self._end:
            self.used_up_ = True
            trainer.run.stop(f"the time budget of {self.seconds:g} seconds is used up", final=False)


class StopOnNonFinite(Callback):
    """End training with a warning, not an error, when the objective or a gradient is NaN or infinite.

    The weights are those before that step, the last good ones; :class:`EarlyStopping` puts back the best.
    """

    def on_nonfinite(self, trainer: Training, error: Exception) -> bool:
        """Warn and end."""
        warn_user(str(error), ConvergenceWarning)
        trainer.run.stop("the objective is not finite")
        return True
