"""Save a training while it runs, so that it goes on where it was when something ends it."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from onnxcustom._parameters import check_number, check_path
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import CheckpointError
from onnxcustom.training.checkpoints.checkpoint import CheckpointStore, Saved

from .base import Callback

if TYPE_CHECKING:
    from ..run import Run, Training

__all__ = ["Checkpoint"]

# Errors of the system that pass: somebody makes room.
_NO_ROOM = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


class Checkpoint(Callback):
    """Save everything a training needs to go on, into a folder from which ``fit`` resumes by itself.

    ``checkpoint_dir="folder"`` of an estimator is ``Checkpoint("folder")``. ``partial_fit`` neither reads nor
    writes checkpoints.

    Parameters
    ----------
    folder : str or path
        One folder for one training, made if missing.
    epochs : int, default=1
        Epochs between two checkpoints, in [1, inf).
    batches : int, optional
        Batches between two checkpoints within an epoch, in [1, inf).
    seconds : float, optional, default=600
        Seconds after which one is saved within an epoch, in (0, inf); None for never.
    keep : int, default=3
        Number of checkpoints that are kept, in [1, inf).

    Notes
    -----
    When the disk is full, training goes on with a warning; the last good checkpoint stays. A folder that is
    removed meanwhile is made again, with a warning. One that cannot be written at all is an error before
    training begins.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        epochs: int = 1,
        batches: int | None = None,
        seconds: float | None = 600.0,
        keep: int = 3,
    ) -> None:
        self.folder = folder
        self.epochs = epochs
        self.batches = batches
        self.seconds = seconds
        self.keep = keep

    def store(self) -> CheckpointStore:
        """The folder."""
        folder = check_path("The folder for checkpoints (checkpoint_dir)", self.folder)
        return CheckpointStore(folder.absolute(), self.keep)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[CheckpointStore, Saved | None]]:
        """The folder, which nobody else trains into meanwhile, and the newest checkpoint in it.

        Without room for the file that locks it, a warning, and every checkpoint tries again.

        Raises
        ------
        CheckpointError
            It cannot be used, or another run does.
        """
        with contextlib.ExitStack() as stack:
            try:
                store = self.store()
                try:
                    stack.enter_context(store.lock())
                except OSError as exc:
                    if exc.errno not in _NO_ROOM:
                        raise
                    self._warn("yet", exc)
                saved = store.latest()
            except OSError as exc:
                raise CheckpointError(
                    f"{os.fspath(self.folder)!r} cannot be used for checkpoints: {exc}. Give another folder."
                ) from exc
            yield store, saved

    def _warn(self, when: str, exc: Exception) -> None:
        warn_user(
            f"No checkpoint was written to {os.fspath(self.folder)!r} {when}: {exc}. Training goes on; the "
            "last one that was written is kept.",
            RuntimeWarning,
        )

    def check(self, run: Run) -> None:
        """Refuse intervals that are none."""
        check_number("epochs", self.epochs, "[1, inf)", integral=True)
        check_number("keep", self.keep, "[1, inf)", integral=True)
        if self.batches is not None:
            check_number("batches", self.batches, "[1, inf)", integral=True)
        if self.seconds is not None:
            check_number("seconds", self.seconds, "(0, inf)")

    @property
    def wants_batches(self) -> bool:
        """Whether there may be checkpoints within an epoch."""
        return self.batches is not None or self.seconds is not None

    def on_train_begin(self, trainer: Training) -> None:
        """Start the clock."""
        self._saved = self._place(trainer) if trainer.run.resumed else None
        self._last = time.monotonic()

    def on_batch_end(self, trainer: Training, batch: Any, loss: float) -> None:
        """Save if it is time."""
        late = self.seconds is not None and time.monotonic() - self._last >= self.seconds
        if late or (self.batches is not None and trainer.run.batches % self.batches == 0):
            self._save(trainer)

    def on_epoch_end(self, trainer: Training) -> None:
        """Save after so many epochs."""
        if trainer.n_iter_ % self.epochs == 0 and trainer.run.stop_reason is None:
            self._save(trainer)

    def on_train_end(self, trainer: Training) -> None:
        """Save the end, unless an error was it, which may have left a step half done."""
        if trainer.run.error is None or trainer.run.orderly:
            self._save(trainer)

    @staticmethod
    def _place(trainer: Training) -> tuple[Any, ...]:
        """What a checkpoint would be of: no second one is written of the same."""
        run = trainer.run
        return trainer.n_iter_, run.batches, run.stop_reason

    def _save(self, trainer: Training) -> None:
        run, place = trainer.run, self._place(trainer)
        if run.store is None or place == self._saved:
            return
        try:
            run.store.save(*trainer.checkpoint_state())
            self._saved = place
        except (OSError, CheckpointError) as exc:
            self._warn(f"after epoch {trainer.n_iter_}", exc)
        self._last = time.monotonic()
