"""What passes down the ladder as arguments: data as they were given, epochs and what goes with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from onnxcustom.data import Stream
from onnxcustom.data.given import as_data
from onnxcustom.data.owned import owned_parts
from onnxcustom.exceptions import InvalidDataError

if TYPE_CHECKING:
    from onnxcustom.step.training_step import TrainingStep
    from onnxcustom.training.callbacks.checkpointing import Checkpoint
    from onnxcustom.training.checkpoints.checkpoint import CheckpointStore, Saved
    from onnxcustom.training.run import Run

__all__ = ["Begun", "Given", "Plan", "Resumed"]


class Resumed(NamedTuple):
    """The checkpoints of a fit: who writes them, where, and the last one there is."""

    checkpoint: Checkpoint
    store: CheckpointStore
    saved: Saved | None


class Plan(int):
    """A number of epochs, and what :meth:`Trainer.fit` has to say about them.

    ``partial_fit`` gets it as its `epochs`. Overrides, which know of numbers only, hand it on as one.

    Attributes
    ----------
    whole : bool
        Whether this is a training from its begin to its end, rather than a part of one.
    resumed : Resumed or None
        Its checkpoints.
    """

    whole: bool
    resumed: Resumed | None

    def __new__(cls, epochs: int, whole: bool = False, resumed: Resumed | None = None) -> Plan:
        """Make one."""
        made = super().__new__(cls, epochs)
        made.whole, made.resumed = whole, resumed
        return made

    @property
    def saved(self) -> Saved | None:
        """The checkpoint to go on from."""
        return None if self.resumed is None else self.resumed.saved


@dataclass(frozen=True)
class Given:
    """Data to train on, and those to validate with, as :meth:`Trainer.fit` takes them."""

    X: Any
    y: Any = None
    sample_weight: Any = None
    X_val: Any = None
    y_val: Any = None
    sample_weight_val: Any = None

    def owned(self, watched: bool) -> Given:
        """Copies that nobody writes to, and streams of what holds batches."""
        X = as_data(self.X, self.y)
        X_val = None if self.X_val is None else as_data(self.X_val, self.y_val)
        parts = (X, self.y, self.sample_weight, X_val, self.y_val, self.sample_weight_val)
        return Given(*owned_parts(parts, watched))

    @property
    def streams(self) -> list[Stream]:
        """Those of the data that are streams."""
        return [data for data in (self.X, self.X_val) if isinstance(data, Stream)]

    def check_epochs(self, epochs: int) -> None:
        """Refuse an iterator for more than one epoch."""
        for data in self.streams:
            if epochs > 1 and not data.source.repeatable:
                raise InvalidDataError(
                    f"{data.source.name} gives its rows once, and {epochs} epochs need them {epochs} times: "
                    "give an iterable that makes new iterators, a function that returns one, or max_iter=1."
                )

    def names_of(self, name: str) -> Sequence[str] | None:
        """Names of the columns of the features for an input of the model, if they come as a stream."""
        return self.X.columns(name) if isinstance(self.X, Stream) else None


@dataclass(frozen=True)
class Begun:
    """All that was found out before a training, to be the estimator's once training begins.

    Attributes
    ----------
    step : TrainingStep
        What is trained.
    meaning : object
        What its predictions mean to the estimator: labels, say.
    columns : dict of str to object
        The attributes ``n_features_in_`` and ``feature_names_in_`` of a first fit.
    run : Run
        The training.
    names_of : callable
        Names of the columns of the features by input, for messages.
    """

    step: TrainingStep
    meaning: Any
    columns: dict[str, Any]
    run: Run
    names_of: Callable[[str], Sequence[str] | None]
