"""One call of ``fit`` or ``partial_fit`` while it lasts: what trainer and callbacks share."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from onnxcustom.step.training_step import TrainingStep
    from onnxcustom.training.checkpoints.checkpoint import CheckpointStore

__all__ = ["Run", "Training", "deferred_interrupt"]


class Training(Protocol):
    """What callbacks and checkpoints see of the estimator that trains: it is a :class:`Trainer`."""

    step_: TrainingStep
    history_: dict[str, list[float]]
    n_iter_: int

    @property
    def run(self) -> Run:
        """The training that goes on."""

    @property
    def shuffles(self) -> bool:
        """Whether each epoch takes the rows in another order."""

    @property
    def model_parameter(self) -> str:
        """Name of the parameter that holds the model."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name."""

    def record(self, name: str, value: float) -> None:
        """Write a number of the epoch just ended into the history."""

    def score_with(
        self, scorer: Any, X: Any, y: Any, sample_weight: Any = None, *, weighs: bool = False
    ) -> Any:
        """What a scorer says of the present weights."""

    def checkpoint_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a checkpoint of the training that goes on holds."""


@dataclass
class Run:
    """A training that goes on.

    Attributes
    ----------
    X, y : array_like, dict or Stream
        Training data as it was given, without the part held out for validation; arrays are read only.
    X_val, y_val : array_like, dict, Stream or None
        Validation data.
    loader : OrtDataLoader or StreamLoader
        Its batches.
    validation : optional
        Validation data as :meth:`Trainer.validate` takes it.
    callbacks : Callbacks
        Those of this training.
    epochs : int
        Number of epochs, counted from the first fit, at which it is through.
    measures : list of str
        Names that the history will have.
    on_the_way : list of str
        Those of them that the steps of an epoch give, not its end: objective and losses of outputs.
    batches : int
        Batches done in the present epoch.
    total, rows : float, int
        Sum of rows times objective over them, and their number.
    heads, head_units : dict of str to float, dict of str to int
        The same sum for the loss of every output, if several are trained or labels are counted, and the rows
        or labels in it. What is counted by itself is no part of the total.
    sample_weight, sample_weight_val : array_like, optional
        Weights of the rows of training and validation data, as they were given.
    cut : bool
        Whether the epoch was ended before it was through.
    diverged : bool
        Whether the objective or a gradient was not finite.
    stop_reason : str or None
        Why training is to end, once something said so.
    final : bool
        Whether it is to end for good: a run that is resumed from its checkpoint does not go on then.
    stopped_by : str or None
        Class of the callback that said so after an epoch.
    error : BaseException or None
        What ended it.
    interrupted : bool
        Whether there was an interruption, which waits for the end of a batch.
    orderly : bool
        Whether that is an interruption that waited for the end of a batch.
    store : CheckpointStore or None
        Where its checkpoints are.
    rate : Schedule or None
        Schedule of the learning rate that the optimizer has of its own.
    begun : bool
        Whether every callback was told that training begins.
    by_rows : bool
        Whether each row of the data has one label that counts.
    resumed : bool
        Whether it began at one of them.
    seed, fingerprint : int, dict
        Seed of the order of rows, and what tells this run from another, for checkpoints.
    """

    X: Any
    y: Any
    X_val: Any
    y_val: Any
    loader: Any
    validation: Any
    callbacks: Any
    epochs: int = 0
    measures: list[str] = field(default_factory=list)
    on_the_way: list[str] = field(default_factory=list)
    batches: int = 0
    total: float = 0.0
    rows: int = 0
    heads: dict[str, float] = field(default_factory=dict)
    head_units: dict[str, int] = field(default_factory=dict)
    sample_weight: Any = None
    sample_weight_val: Any = None
    cut: bool = False
    diverged: bool = False
    stop_reason: str | None = None
    final: bool = True
    stopped_by: str | None = None
    error: BaseException | None = None
    interrupted: bool = False
    orderly: bool = False
    store: CheckpointStore | None = None
    rate: Any = None
    begun: bool = False
    by_rows: bool = False
    resumed: bool = False
    seed: int = 0
    fingerprint: dict[str, Any] = field(default_factory=dict)

    def stop(self, reason: str, final: bool = True) -> None:
        """End training after the present batch, or after the epoch if that is through.

        Parameters
        ----------
        reason : str
            Why; the first one stays.
        final : bool, default=True
            Whether a run resumed from the checkpoint stays ended: true of early stopping, false of a time
            budget.
        """
        if self.stop_reason is None:
            self.stop_reason, self.final = reason, final

    def check_interrupted(self) -> None:
        """Raise the KeyboardInterrupt that waited."""
        if self.interrupted:
            self.orderly = True
            raise KeyboardInterrupt

    def begin_epoch(self) -> None:
        """Forget the position in the epoch that is through."""
        self.batches, self.total, self.rows = 0, 0.0, 0
        self.heads, self.head_units = {}, {}

    def add_heads(self, losses: Mapping[str, float], units: Mapping[str, int]) -> None:
        """Take in the losses of a batch by output, each a mean over so many rows or labels."""
        for name, loss in losses.items():
            self.heads[name] = self.heads.get(name, 0.0) + units[name] * loss
            self.head_units[name] = self.head_units.get(name, 0) + units[name]

    @property
    def head_losses(self) -> dict[str, float]:
        """Mean loss of every output over its rows or labels of the epoch so far, if several are trained."""
        return {name: total / max(1, self.head_units[name]) for name, total in self.heads.items()}

    def add_counted(self, loss: float, step: TrainingStep, rows: int) -> float:
        """Take in the losses of a batch that are means over labels; what is left of its objective.

        The loss of a single output is the whole of it.
        """
        heads, units = step.head_losses, step.head_units
        if not heads:
            self.add_heads(dict.fromkeys(units, loss), units)
            return 0.0
        self.add_heads(heads, {**dict.fromkeys(heads, rows), **units})
        return loss - sum(self._factor(step, name) * value for name, value in heads.items())

    def counted_loss(self, step: TrainingStep) -> float:
        """What the losses that were counted have in the mean objective of the epoch so far."""
        return sum(self._factor(step, name) * value for name, value in self.head_losses.items())

    def _factor(self, step: TrainingStep, output: str) -> float:
        targets = step.targets
        return next(t.weight for t in targets if t.output == output) if len(targets) > 1 else 1.0


@contextlib.contextmanager
def deferred_interrupt(run: Run) -> Iterator[None]:
    """Let Ctrl-C end the run between two batches, so that what it leaves is whole; a second one at once.

    Raises
    ------
    KeyboardInterrupt
        On leaving, if that happened after :meth:`Run.check_interrupted` was last called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield  # somebody else takes care of it
        return

    def take_note(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        run.interrupted = True
        run.stop("interrupted", final=False)

    signal.signal(signal.SIGINT, take_note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    run.check_interrupted()
