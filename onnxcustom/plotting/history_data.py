"""The numbers of trainings, from wherever they are kept."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcustom.exceptions import InvalidDataError, InvalidParameterError, UnknownNameError

__all__ = ["Run", "Series", "chosen_metrics", "is_part", "read_runs"]

#: What is in a history and no measure of the model: drawn only if asked for.
BESIDES = frozenset({"epoch", "learning_rate", "seconds"})
_PREFIXES = ("val_", "train_")


@dataclasses.dataclass
class Series:
    """One measure, where it was measured.

    Attributes
    ----------
    quantity : str
        Name without ``val_``.
    validation : bool
        Whether it is of validation data.
    epochs, values : ndarray of shape (n,), float64
        Finite values only.
    """

    quantity: str
    validation: bool
    epochs: np.ndarray
    values: np.ndarray


@dataclasses.dataclass
class Run:
    """The history of one training.

    Attributes
    ----------
    name : str
        Empty if there is only one.
    series : dict of str to Series
        By key of the history.
    """

    name: str
    series: dict[str, Series]

    def best(self) -> tuple[Series, int] | None:
        """The series that tells the best epoch, the validation loss if there is one, and where in it."""
        for key in ("val_loss", "loss"):
            found = self.series.get(key)
            if found is not None and len(found.values):
                return found, int(np.argmin(found.values))
        return None


def read_runs(given: Any) -> list[Run]:
    """Histories by name of run.

    Parameters
    ----------
    given : estimator, mapping or path
        A fitted estimator, its ``history_``, a ``.csv`` or ``.json`` file of it, or a mapping from names to
        several of these.

    Returns
    -------
    list of Run

    Raises
    ------
    InvalidDataError
        It is none of these.
    """
    if isinstance(given, Mapping) and any(not _numbers(v) for v in given.values()):
        return [_run(str(name), history) for name, history in given.items()]
    return [_run("", given)]


def chosen_metrics(runs: Sequence[Run], metrics: Iterable[str] | None) -> list[str]:
    """Keys to draw beside the losses, in the order of the first history that has them.

    Raises
    ------
    UnknownNameError
        Nothing of that name was measured.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.series))
    if metrics is None:
        return [key for key in known if key not in BESIDES and not _is_loss(key)]
    wanted: list[Any]
    try:
        wanted = [metrics] if isinstance(metrics, str) else list(metrics)
    except TypeError:
        wanted = [None]
    if not all(isinstance(name, str) for name in wanted):
        raise InvalidParameterError(f"metrics must be names of measures, not {metrics!r:.80}.")
    found: list[str] = []
    for name in wanted:
        keys = [key for key in known if name in (key, _split(key)[0]) and not _is_loss(key)]
        if not keys:
            there = [key for key in known if key != "epoch" and not _is_loss(key)]
            raise UnknownNameError(f"metrics names {name!r}, which was not measured; there are {there}.")
        found += keys
    return list(dict.fromkeys(found))


def _numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) or hasattr(value, "__array__")


def is_part(quantity: str) -> bool:
    """Whether it is the loss of one of several outputs, by its name."""
    return quantity.endswith("_loss") and not quantity.startswith("neg_")


def _is_loss(key: str) -> bool:
    return _split(key)[0] == "loss"


def _split(key: str) -> tuple[str, bool]:
    """Quantity, and whether it is of validation data."""
    for prefix in _PREFIXES:
        if key.startswith(prefix) and key != prefix:
            return key.removeprefix(prefix), prefix == "val_"
    return key, False


def _run(name: str, given: Any) -> Run:
    where = f"The history {name!r}" if name else "The history"
    if isinstance(given, (str, os.PathLike)):
        where, history = f"The history {os.fspath(given)!r}", _read(Path(given))
    elif isinstance(given, Mapping):
        history = dict(given)
    elif hasattr(given, "history_"):
        history = given.history_
    elif hasattr(given, "get_params") and hasattr(given, "fit"):
        from sklearn.exceptions import NotFittedError

        raise NotFittedError(f"This {type(given).__name__} is not fitted yet: it has no history_ to draw.")
    else:
        raise InvalidDataError(
            f"{where} must be a fitted estimator, its history_, a .csv or .json file, or a dict of several "
            f"of these by name, not {type(given).__name__}."
        )
    columns = {str(key): _column(where, key, values) for key, values in history.items()}
    series = {}
    for key, values in columns.items():
        epochs = columns.get("epoch", np.empty(0))
        if len(epochs) != len(values):
            epochs = np.arange(1.0, len(values) + 1)
        known = np.isfinite(values) & np.isfinite(epochs)
        series[key] = Series(*_split(key), epochs[known], values[known])
    return Run(name, series)


def _column(where: str, key: Any, values: Any) -> np.ndarray:
    if not _numbers(values):
        raise InvalidDataError(f"{where} must hold one number an epoch, but {key!r} is {values!r:.60}.")
    try:
        array = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    except (TypeError, ValueError) as exc:
        raise InvalidDataError(f"{where} must hold one number an epoch, but {key!r} does not: {exc}") from exc
    if array.ndim != 1:
        raise InvalidDataError(f"{where} must hold one number an epoch, but {key!r} has shape {array.shape}.")
    return array


def _read(path: Path) -> dict[str, list[Any]]:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json"):
        raise InvalidDataError(f"A history is read from .csv or .json, not from {path.name!r}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if suffix == ".json" else _read_csv(text)
    except (ValueError, RecursionError, csv.Error) as exc:
        raise InvalidDataError(f"The history {str(path)!r} cannot be read: {exc}") from exc
    if not isinstance(found, dict):
        raise InvalidDataError(
            f"The history {str(path)!r} must be a dict of lists, not {type(found).__name__}."
        )
    return found


def _read_csv(text: str) -> dict[str, list[Any]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if not rows:
        raise ValueError("it is empty")
    columns: dict[str, list[Any]] = {name: [] for name in rows[0]}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {number} has {len(row)} columns, the first has {len(rows[0])}")
        for name, cell in zip(columns, row, strict=False):
            try:
                columns[name].append(float(cell) if cell.strip() else np.nan)
            except ValueError:
                raise ValueError(f"row {number} has {cell[:60]!r} in column {name!r}") from None
    return columns
