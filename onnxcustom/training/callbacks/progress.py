"""Tell a person how training goes: a progress bar, or a line an epoch."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .base import Callback

if TYPE_CHECKING:
    from ..run import Training

__all__ = ["PrintLog", "ProgressBar"]


class ProgressBar(Callback):
    """A bar over the rows of all epochs: rows a second, time left, loss and scores of the last epoch.

    Parameters
    ----------
    always : bool, default=False
        Show it also where the output is no terminal and no notebook.
    file : text file, optional
        Where it is written, by default standard error.
    """

    def __init__(self, always: bool = False, file: Any = None) -> None:
        self.always = always
        self.file = file

    _bar: Any = None

    def on_train_begin(self, trainer: Training) -> None:
        """Open it."""
        run = trainer.run
        self._n_rows = run.loader.n_rows
        total = None if self._n_rows is None else self._n_rows * run.epochs
        done = run.rows if self._n_rows is None else self._n_rows * trainer.n_iter_ + run.rows
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=" rows",
            unit_scale=True,
            desc=self._description(trainer),
            disable=None if not (self.always or "ipykernel" in sys.modules) else False,
            dynamic_ncols=True,
            file=self.file,
            bar_format="{desc}: {percentage:3.0f}%|{bar:10}| {rate_fmt}, {remaining} left{postfix}"
            if total
            else "{desc}: {n_fmt} rows, {rate_fmt}{postfix}",
        )

    def _description(self, trainer: Training) -> str:
        epochs = trainer.run.epochs
        return f"epoch {min(trainer.n_iter_ + 1, epochs)}/{epochs}"

    def on_epoch_begin(self, trainer: Training) -> None:
        """Name the epoch."""
        self._bar.set_description_str(self._description(trainer), refresh=False)

    def on_batch_end(self, trainer: Training, batch: Any, loss: float) -> None:
        """Move on."""
        self._bar.update(batch.rows)

    def on_epoch_end(self, trainer: Training) -> None:
        """Show what was measured."""
        last = ", ".join(f"{k} {v[-1]:.4g}" for k, v in trainer.history_.items() if v and v[-1] == v[-1])
        self._bar.set_postfix_str(last, refresh=True)

    def on_train_end(self, trainer: Training) -> None:
        """Close it."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_bar", "file")} | {"file": None}


class PrintLog(Callback):
    """Print a line for every epoch: its number, what was measured, and seconds.

    Parameters
    ----------
    file : text file, optional
        Where it is written, by default standard output.
    """

    def __init__(self, file: Any = None) -> None:
        self.file = file

    def on_train_begin(self, trainer: Training) -> None:
        """Start the clock."""
        self._begin = time.monotonic()

    def on_epoch_end(self, trainer: Training) -> None:
        """Print."""
        now = time.monotonic()
        seconds, self._begin = now - self._begin, now
        epochs = trainer.run.epochs
        measured = [f"{k} {v[-1]:.5g}" for k, v in trainer.history_.items() if v and v[-1] == v[-1]]
        line = "  ".join([f"epoch {trainer.n_iter_:>{len(str(epochs))}}/{epochs}", *measured])
        print(f"{line}  {seconds:.2f} s", file=self.file or sys.stdout, flush=True)

    def on_train_end(self, trainer: Training) -> None:
        """Say why it ended early."""
        if trainer.run.stop_reason is not None:
            print(f"stopped: {trainer.run.stop_reason}", file=self.file or sys.stdout, flush=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "file": None}
