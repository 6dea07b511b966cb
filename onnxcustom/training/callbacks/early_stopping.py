"""Stop when nothing gets better, with the best weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcustom._parameters import check_flag, check_number
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import UnknownNameError

from .base import Callback, is_better, is_loss, monitored
from .scoring import direction_known, less_is_better

if TYPE_CHECKING:
    from ..run import Run, Training

__all__ = ["EarlyStopping", "Kept", "put_back", "weights_of"]

#: Weights, running statistics, and averages of the weights if they are kept.
Kept = tuple[dict[str, np.ndarray], ...]
_PARTS = ("weights", "statistics", "averages")


class EarlyStopping(Callback):
    """End training when a measure has stopped improving, and go back to the weights that had the best.

    Parameters
    ----------
    monitor : str, optional
        What is watched, a key of ``history_``: by default ``'val_loss'``, or ``'loss'`` without validation
        data.
    mode : {'min', 'max'}, optional
        Whether less or more of it is better: by default less of what ends in ``loss`` and of error rates,
        more of every score of scikit-learn and of what callbacks of yours measure. Of a :class:`Score` that
        is a plain function nothing tells: it has to be said.
    patience : int, default=10
        Epochs without improvement that are put up with, in [0, inf).
    min_delta : float, default=0.0
        Smallest improvement that counts, in [0, inf).
    restore_best : bool, default=True
        Whether weights and running statistics of the best epoch are put back when training ends, for
        whatever reason it does. What is measured after an epoch is of its last weights. ``'loss'`` is
        measured on the way, before each update: of an epoch of one batch it is that of the weights it began
        with, which are put back; of several batches it is that of no weights: a warning says so, and the
        last ones of the epoch are put back.

    Attributes
    ----------
    best_ : float or None
        The best value.
    best_epoch_ : int or None
        Its epoch, counted from 1.
    """

    def __init__(
        self,
        monitor: str | None = None,
        *,
        mode: str | None = None,
        patience: int = 10,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        self.monitor = monitor
        self.mode = mode
        self.patience = patience
        self.min_delta = min_delta
        self.restore_best = restore_best

    def check(self, run: Run) -> None:
        """Refuse a measure that there is not."""
        if self.mode not in (None, "min", "max"):
            raise UnknownNameError(f"mode must be 'min', 'max' or None, not {self.mode!r}.")
        check_number("patience", self.patience, "[0, inf)", integral=True)
        check_number("min_delta", self.min_delta, "[0, inf)")
        check_flag("restore_best", self.restore_best)
        name = monitored(self.monitor, run)
        if self.mode is None and not is_loss(name) and not direction_known(name, run):
            raise UnknownNameError(
                f"monitor names {name!r}, which a function of yours measures: say with mode='min' or "
                "mode='max' whether less or more of it is better."
            )
        if self._is_on_the_way(run) and run.loader.n_batches != 1:
            warn_user(
                f"EarlyStopping cannot put back weights that have the best {name!r}: in an epoch of several "
                "batches it is measured before each update, so that no weights have it. Those after the best "
                "epoch are put back. Watch validation data, or give restore_best=False.",
                UserWarning,
            )

    def on_train_begin(self, trainer: Training) -> None:
        """Nothing was measured yet."""
        self._name = monitored(self.monitor, trainer.run)
        self._mode = "min" if self.mode is None and less_is_better(self._name, trainer.run) else self.mode
        self.best_: float | None = None
        self.best_epoch_: int | None = None
        self._waited = 0
        self._best: Kept = ()
        self._before: Kept | None = None
        self._first = self._is_on_the_way(trainer.run) and trainer.run.loader.n_batches == 1

    def _is_on_the_way(self, run: Run) -> bool:
        """Whether weights are put back for what the steps of an epoch give."""
        return self.restore_best and monitored(self.monitor, run) in run.on_the_way

    def on_epoch_begin(self, trainer: Training) -> None:
        """Keep the weights that an epoch of one batch measures."""
        if self._first:
            self._before = weights_of(trainer)

    def on_epoch_end(self, trainer: Training) -> None:
        """Keep the best, count the others."""
        value = trainer.history_[self._name][-1]
        if np.isnan(value):  # not measured after this epoch
            return
        if is_better(self._name, self._mode, value, self.best_, self.min_delta):
            self.best_, self.best_epoch_, self._waited = float(value), trainer.n_iter_, 0
            if self.restore_best:
                self._best = self._before or weights_of(trainer)
            return
        self._waited += 1
        if self._waited > self.patience:
            trainer.run.stop(
                f"{self._name} has not improved on {self.best_:.6g} (epoch {self.best_epoch_}) for "
                f"{self._waited} epochs"
            )

    def on_train_end(self, trainer: Training) -> None:
        """Put the best weights back."""
        if self._best:
            put_back(trainer, self._best)
            if self.best_epoch_ == trainer.n_iter_ and self.best_ is not None:
                trainer.record(self._name, self.best_)  # not that of an update since
        self._best = ()

    def state_dict(self) -> dict[str, Any]:
        """The best and its weights."""
        best = dict(zip(_PARTS, self._best or ({}, {}, {}), strict=False))
        kept = {**best, "before": dict(zip(_PARTS, self._before or (), strict=False))}
        numbers = {"best": self.best_, "best_epoch": self.best_epoch_, "waited": self._waited}
        return {"name": self._name, **numbers, **copy.deepcopy(kept)}

    def load_state_dict(self, trainer: Training, state: Mapping[str, Any]) -> None:
        """Go on with the best of before, if it is of the same measure."""
        if state["name"] != self._name:
            return
        state = copy.deepcopy(dict(state))
        self.best_, self.best_epoch_, self._waited = state["best"], state["best_epoch"], state["waited"]
        best = _parts(state)
        self._best = best if best[0] else ()
        if self._first and state.get("before"):
            self._before = _parts(state["before"])


def weights_of(trainer: Training) -> Kept:
    """Weights, running statistics and averages of the step, as they are now."""
    step = trainer.step_
    return step.weights(), step.statistics(), step.averages()


def put_back(trainer: Training, kept: Kept) -> None:
    """Overwrite weights, statistics and averages of the step by those that were kept."""
    weights, statistics, averages = kept
    joined = [name for name in trainer.step_.weights() if name not in weights]  # frozen when they were kept
    trainer.step_.set_weights({**trainer.step_.frozen_weights(joined), **weights})
    if statistics:
        trainer.step_.set_statistics(statistics)
    trainer.step_.set_averages(averages)


def _parts(state: Mapping[str, Any]) -> Kept:
    """What was kept, of a state; older ones know no averages."""
    return tuple(dict(state.get(part, {})) for part in _PARTS)
