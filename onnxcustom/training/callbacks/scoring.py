"""Scores of scikit-learn, and metrics of this library, on training and validation data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError, UnknownNameError
from onnxcustom.metrics import get_scorer

from .base import Callback

if TYPE_CHECKING:
    from ..run import Run, Training

__all__ = ["Score", "direction_known", "is_score", "less_is_better"]


def _takes_weights(scorer: Any) -> bool:
    """Whether a scorer weighs rows."""
    if hasattr(scorer, "greater_is_better"):  # a metric of this library
        return True
    function = getattr(scorer, "_score_func", None)
    return function is not None and "sample_weight" in inspect.signature(function).parameters


class Score(Callback):
    """Measure a score while training: one of scikit-learn, or a metric of this library.

    Parameters
    ----------
    scoring : str or callable
        Name of a scorer of scikit-learn, or of :mod:`onnxcustom.metrics`, perhaps with options
        (``"character_error_rate:beam=10"``, ``"recall:k=5"``), as ``onnxcustom.metrics.scorer_names()`` lists
        them; or a function ``(estimator, X, y) -> float``. Scorers by name that can weigh rows do so, by the
        weights that arrays or the stream came with.
    on : {'validation', 'train', 'both'}, optional
        Which data: by default the validation data if there is any, else the training data.
    every : int, default=1
        Epochs between two measurements, in [1, inf). Epoch ``max_iter`` is always measured.
    batches : int, optional
        Batches between two measurements within an epoch, in [1, inf): those are in :attr:`records_`.
    name : str, optional
        The key in ``history_``, by default that of the scorer; on validation data it begins with ``val_``.

    Attributes
    ----------
    records_ : list of dict
        Every measurement: ``'epoch'`` and ``'iteration'`` (epochs and weight updates done) and the scores by
        name.
    """

    def __init__(
        self,
        scoring: str | Callable[..., float],
        on: str | None = None,
        *,
        every: int = 1,
        batches: int | None = None,
        name: str | None = None,
    ) -> None:
        self.scoring = scoring
        self.on = on
        self.every = every
        self.batches = batches
        self.name = name

    def _key(self) -> str:
        if self.name is not None:
            return self.name
        return self.scoring if isinstance(self.scoring, str) else getattr(self.scoring, "__name__", "score")

    @property
    def directed(self) -> bool:
        """Whether it is known if more or less of it is better."""
        known = hasattr(self.scoring, "_sign") or hasattr(self.scoring, "greater_is_better")
        return isinstance(self.scoring, str) or known

    @property
    def less_is_better(self) -> bool:
        """Whether less of it is, as of an error rate; of every scorer of scikit-learn more is."""
        scorer = get_scorer(self.scoring) if isinstance(self.scoring, str) else self.scoring
        return not getattr(scorer, "greater_is_better", True)

    def _parts(self, run: Run) -> dict[str, tuple[Any, Any, Any]]:
        """The data by name of measure."""
        on = self.on or ("train" if run.X_val is None else "validation")
        data = {
            "train": (self._key(), run.X, run.y, run.sample_weight),
            "validation": (f"val_{self._key()}", run.X_val, run.y_val, run.sample_weight_val),
        }
        wanted = data if on == "both" else (on,)
        return {data[part][0]: data[part][1:] for part in wanted}

    def measures(self, run: Run) -> list[str]:
        """The scores."""
        if self.on not in (None, "validation", "train", "both"):
            raise UnknownNameError(f"on must be 'validation', 'train' or 'both', not {self.on!r}.")
        if self.on in ("validation", "both") and run.X_val is None:
            raise InvalidDataError(
                f"{self!r} is to be measured on validation data and there is none: give X_val and y_val, or "
                "validation_fraction."
            )
        return list(self._parts(run))

    def check(self, run: Run) -> None:
        """Refuse a scorer that there is not."""
        check_number("every", self.every, "[1, inf)", integral=True)
        if self.batches is not None:
            check_number("batches", self.batches, "[1, inf)", integral=True)
        if isinstance(self.scoring, str):
            get_scorer(self.scoring)
        elif not callable(self.scoring):
            raise InvalidParameterError(
                f"scoring must be a name or a function of (estimator, X, y), not {self.scoring!r}."
            )

    def on_train_begin(self, trainer: Training) -> None:
        """Nothing was measured yet."""
        self.records_: list[dict[str, float]] = []
        self._scorer = get_scorer(self.scoring) if isinstance(self.scoring, str) else self.scoring
        self._batch = 0
        wanted = getattr(self._scorer, "_response_method", "predict")
        methods = [wanted] if isinstance(wanted, str) else list(wanted)
        if not any(hasattr(trainer, {"default": "predict"}.get(m, m)) for m in methods):
            raise InvalidDataError(
                f"{self!r} needs {' or '.join(methods)}, which this {type(trainer).__name__} does not have."
            )

    @property
    def wants_batches(self) -> bool:
        """Whether something is measured within an epoch."""
        return self.batches is not None

    def on_batch_end(self, trainer: Training, batch: Any, loss: float) -> None:
        """Measure after so many batches."""
        self._batch += 1
        if self.batches is not None and self._batch % self.batches == 0:
            self._measure(trainer)

    def on_epoch_end(self, trainer: Training) -> None:
        """Measure after so many epochs."""
        if trainer.n_iter_ % self.every == 0 or trainer.n_iter_ >= trainer.run.epochs:
            for name, value in self._measure(trainer).items():
                trainer.record(name, value)

    def _measure(self, trainer: Training) -> dict[str, float]:
        found = {}
        for name, (X, y, weights) in self._parts(trainer.run).items():
            value = trainer.score_with(self._scorer, X, y, weights, weighs=_takes_weights(self._scorer))
            if not isinstance(value, (int, float, np.number)):
                raise InvalidParameterError(
                    f"The scorer {self._key()!r} returned {value!r}, which is no number."
                )
            found[name] = float(value)
        self.records_.append({"epoch": trainer.n_iter_, "iteration": trainer.step_.iteration, **found})
        return found

    def state_dict(self) -> dict[str, Any]:
        """What was measured."""
        return {"records": [dict(r) for r in self.records_], "batch": self._batch}

    def load_state_dict(self, trainer: Training, state: Mapping[str, Any]) -> None:
        """Go on behind it."""
        self.records_, self._batch = [dict(r) for r in state["records"]], state["batch"]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_scorer"}


def direction_known(name: str, run: Run) -> bool:
    """Whether it is no plain function that measures this."""
    return all(score.directed for score in _measuring(name, run))


def is_score(name: str, run: Run) -> bool:
    """Whether it is a scorer that measures this of which more is better."""
    return any(score.directed and not score.less_is_better for score in _measuring(name, run))


def less_is_better(name: str, run: Run) -> bool:
    """Whether it is a metric that measures this of which less is better."""
    return any(score.less_is_better for score in _measuring(name, run))


def _measuring(name: str, run: Run) -> list[Score]:
    return [c for c in run.callbacks.items if isinstance(c, Score) and name in c.measures(run)]
