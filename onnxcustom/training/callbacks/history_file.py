"""The history of a training in a file that other programs read."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcustom.exceptions import InvalidDataError

from .base import Callback

if TYPE_CHECKING:
    from ..run import Run, Training

__all__ = ["HistoryFile"]


class HistoryFile(Callback):
    """Write the history into a file after every epoch: one row an epoch, whole at any moment.

    Columns are ``epoch``, what ``history_`` holds (empty, in JSON null, where it is not finite or was not
    measured), ``learning_rate`` of the first step after the epoch, and ``seconds`` of training.

    Parameters
    ----------
    path : str or path
        A ``.csv`` file, or a ``.json`` one for a dict of lists. A file of that name is overwritten.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = path

    def check(self, run: Run) -> None:
        """Refuse a file that cannot be written."""
        path = Path(self.path)
        if path.suffix.lower() not in (".csv", ".json"):
            raise InvalidDataError(f"The history is written as .csv or .json, not as {path.name!r}.")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {str(path.parent)!r} for the history {path.name!r}.")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise PermissionError(f"The history cannot be written to {str(path)!r}.")

    def on_train_begin(self, trainer: Training) -> None:
        """Start the clock; epochs of before have no time."""
        self._path = Path(self.path).absolute()  # whatever the current folder is then
        self._begin = time.monotonic()
        self._rates: list[float] = [math.nan] * trainer.n_iter_
        self._seconds: list[float] = [math.nan] * trainer.n_iter_

    def on_epoch_end(self, trainer: Training) -> None:
        """Write it all."""
        now = time.monotonic()
        self._seconds.append(now - self._begin)
        self._rates.append(trainer.step_.optimizer.value)
        self._begin = now
        self.write(trainer)

    def write(self, trainer: Training) -> None:
        """Write what is known of the epochs, of a training that was through as well."""
        columns: dict[str, list[Any]] = {"epoch": list(range(1, trainer.n_iter_ + 1))}
        columns.update(trainer.history_)
        columns.update(learning_rate=self._rates, seconds=[round(s, 3) for s in self._seconds])
        _replace(self._path, _text(columns, self._path.suffix.lower()))

    def state_dict(self) -> dict[str, Any]:
        """Rates and times of the epochs."""
        return {"rates": [*self._rates], "seconds": [*self._seconds]}

    def load_state_dict(self, trainer: Training, state: Mapping[str, Any]) -> None:
        """Go on behind them."""
        self._rates, self._seconds = list(state["rates"]), list(state["seconds"])


def _text(columns: Mapping[str, list[Any]], suffix: str) -> str:
    known = {k: [v if math.isfinite(v) else None for v in values] for k, values in columns.items()}
    if suffix == ".json":
        return json.dumps(known, indent=1, allow_nan=False) + "\n"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(known)
    writer.writerows(zip(*known.values(), strict=True))
    return text.getvalue()


def _replace(path: Path, text: str) -> None:
    """Write a file such that its readers see the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
