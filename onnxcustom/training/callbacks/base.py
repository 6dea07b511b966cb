"""What may look at a training while it runs: one class with a method for each moment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from onnxcustom._registry import did_you_mean
from onnxcustom.exceptions import InvalidParameterError, UnknownNameError

if TYPE_CHECKING:
    from ..run import Run, Training

__all__ = ["Callback", "Callbacks", "is_better", "is_loss", "monitored"]

logger = logging.getLogger("onnxcustom")


class Callback:
    """Base of the callbacks: override the moments of interest.

    Every method gets the estimator: ``trainer.history_``, ``trainer.n_iter_``, ``trainer.step_`` and, while
    training lasts, ``trainer.run`` with the data and ``trainer.run.stop(reason)``. An estimator trains with
    shallow copies of its callbacks, so that two of them may be given the same ones; the copies are its
    ``callbacks_``.

    Examples
    --------
    >>> class StopBelow(Callback):
    ...     def __init__(self, loss):
    ...         self.loss = loss
    ...
    ...     def on_epoch_end(self, trainer):
    ...         if trainer.history_["loss"][-1] < self.loss:
    ...             trainer.run.stop("good enough")
    """

    def measures(self, run: Run) -> list[str]:
        """Names under which this callback writes into the history."""
        return []

    def check(self, run: Run) -> None:
        """Refuse, before anything of the estimator changes, a training this callback cannot be part of."""

    def on_train_begin(self, trainer: Training) -> None:
        """Before the first epoch of a ``fit`` or ``partial_fit``."""

    def on_train_end(self, trainer: Training) -> None:
        """After the last one, also if an error ended it (``trainer.run.error``): in reverse order."""

    def on_epoch_begin(self, trainer: Training) -> None:
        """Before an epoch; not before the rest of one that was resumed."""

    def on_epoch_end(self, trainer: Training) -> None:
        """After an epoch, when its loss is in the history and ``n_iter_`` counts it."""

    def on_batch_begin(self, trainer: Training, batch: Any) -> None:
        """Before a step on a batch."""

    def on_batch_end(self, trainer: Training, batch: Any, loss: float) -> None:
        """After it, with the objective before its update."""

    def on_nonfinite(self, trainer: Training, error: Exception) -> bool:
        """When the objective is NaN or infinite: whether training is to end without that error."""
        return False

    @property
    def wants_batches(self) -> bool:
        """Whether this callback has something to do at every batch."""
        cls = type(self)
        begins = cls.on_batch_begin is not Callback.on_batch_begin
        return begins or cls.on_batch_end is not Callback.on_batch_end

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: numbers, text, lists, dicts and arrays."""
        return {}

    def load_state_dict(self, trainer: Training, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned: after :meth:`on_train_begin`."""

    def __repr__(self) -> str:
        options = ", ".join(
            f"{k}={v!r}" for k, v in vars(self).items() if not k.endswith("_") and k[0] != "_"
        )
        return f"{type(self).__name__}({options})"


class _Function(Callback):
    """A function of the estimator that is called after every epoch."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def on_epoch_end(self, trainer: Training) -> None:
        self.function(trainer)


class Callbacks:
    """The callbacks of one training.

    Parameters
    ----------
    given : iterable of Callback or function, or None
        Functions are called with the estimator after every epoch.
    *more : Callback
        Called after those.

    Raises
    ------
    TypeError
        Something that is neither.
    """

    def __init__(self, given: Any, *more: Callback) -> None:
        if isinstance(given, Callback) or callable(given):
            given = [given]
        if given is not None and not isinstance(given, (list, tuple)):
            raise InvalidParameterError(
                f"callbacks takes a Callback, a function or a list of them, not {given!r}."
            )
        items = [*map(_as_callback, given or ()), *more]
        # Those that measure come first: others read what they wrote.
        self.items = sorted(items, key=lambda c: type(c).measures is Callback.measures)
        self.of_batches = [c for c in self.items if c.wants_batches]
        self.begun: list[Callback] = []

    def prepare(self, run: Run, names: Iterable[str]) -> None:
        """Find out what will be measured and let every callback check the training."""
        run.measures = [*names, *(name for c in self.items for name in c.measures(run))]
        twice = sorted({name for name in run.measures if run.measures.count(name) > 1})
        if twice:
            raise UnknownNameError(
                f"{twice[0]!r} would be measured twice, and the history has one list of that name: give one "
                "of the two another name."
            )
        for callback in self.items:
            _check_moments(callback)
            callback.check(run)

    def begin(self, trainer: Training) -> None:
        """Tell all of them, in order, that training begins."""
        for callback in self.items:
            callback.on_train_begin(trainer)
            self.begun.append(callback)

    def call(self, moment: str, trainer: Training) -> None:
        """Call a method of all of them, in order."""
        run = trainer.run
        for callback in self.items:
            going = run.stop_reason is None
            getattr(callback, moment)(trainer)
            if going and run.stop_reason is not None:
                run.stopped_by = type(callback).__name__

    def begin_batch(self, trainer: Training, batch: Any) -> None:
        """Tell those that look at batches."""
        for callback in self.of_batches:
            callback.on_batch_begin(trainer, batch)

    def end_batch(self, trainer: Training, batch: Any, loss: float) -> None:
        """Tell those that look at batches."""
        for callback in self.of_batches:
            callback.on_batch_end(trainer, batch, loss)

    def end(self, trainer: Training) -> None:
        """Call all that began, the last first, though one of them may fail."""
        failed: BaseException | None = None
        for callback in reversed(self.begun):
            try:
                callback.on_train_end(trainer)
            except BaseException as exc:
                failed = failed or exc
        if failed is not None and trainer.run.error is None:
            raise failed
        if failed is not None:
            logger.error("A callback failed when training ended: %s", failed, exc_info=failed)

    def accept(self, trainer: Training, error: Exception) -> bool:
        """Whether one of them lets training end on an objective that is not finite."""
        accepted = [callback.on_nonfinite(trainer, error) for callback in self.items]  # all are told
        return any(accepted)


def _as_callback(given: Any) -> Callback:
    if isinstance(given, Callback):
        made = object.__new__(type(given))  # copy.copy would leave out what is not pickled, such as files
        made.__dict__.update(vars(given))
        return made
    if callable(given) and not isinstance(given, type):
        return _Function(given)
    raise InvalidParameterError(
        f"callbacks takes instances of Callback and functions of the estimator, not {given!r}"
        + (": make an instance of it." if isinstance(given, type) else ".")
    )


def _check_moments(callback: Callback) -> None:
    """Refuse a method that looks like one of the moments, and that nothing calls.

    Raises
    ------
    UnknownNameError
        Naming the moment it may be meant for.
    """
    moments = [name for name in dir(Callback) if name.startswith("on_")]
    for name in dir(type(callback)):
        if name.startswith("on_") and name not in moments and callable(getattr(type(callback), name)):
            raise UnknownNameError(
                f"{type(callback).__name__}.{name} is called by nothing.{did_you_mean(name, moments)} "
                f"The moments are {', '.join(moments)}; let a method of your own have another beginning."
            )


def monitored(monitor: str | None, run: Run) -> str:
    """The name of what is watched: by default the validation loss, without validation data the loss.

    Raises
    ------
    UnknownNameError
        Nothing of that name will be in the history.
    """
    if monitor is None:
        return "val_loss" if "val_loss" in run.measures else "loss"
    if monitor not in run.measures:
        lacking = monitor.startswith("val_") and "val_loss" not in run.measures
        raise UnknownNameError(
            f"monitor names {monitor!r}, which this training does not measure; it measures {run.measures}."
            + (" Validation data is needed for it." if lacking else did_you_mean(monitor, run.measures))
        )
    return monitor


def is_loss(name: str) -> bool:
    """Whether a measure is a loss by its name."""
    return name.endswith("loss") and not name.removeprefix("val_").startswith("neg_")


def is_better(name: str, mode: str | None, value: float, best: float | None, delta: float = 0.0) -> bool:
    """Whether a value improves on the best one.

    Without a mode a loss does by being less, and any other score, ``neg_log_loss`` too, by being more.
    """
    if best is None:
        return value == value
    less = mode == "min" if mode is not None else is_loss(name)
    return value < best - delta if less else value > best + delta
