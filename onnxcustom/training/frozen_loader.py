"""Batches of what the frozen part of a model makes of the data, computed once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from onnxcustom.feed.batch_buffers import Batch
from onnxcustom.feed.data_loader import OrtDataLoader
from onnxcustom.step.frozen import Halves, NoFrozenPartError
from onnxcustom.step.frozen_rows import refuse

from .frozen_validation import forget, keep, through

if TYPE_CHECKING:
    from onnxcustom.step.training_step import TrainingStep

__all__ = ["FrozenBatch", "FrozenLoader"]

logger = logging.getLogger("onnxcustom")

# Rows on which it is proven that rows do not mix.
_FIRST = 8


class FrozenBatch:
    """A batch whose inputs went through the frozen part of the model.

    Parameters
    ----------
    halves : Halves
        The step it is for.
    made : Batch
        What the trained half takes.
    given : callable
        The batch as the model takes it, for who asks.

    Attributes
    ----------
    rows : int
        Number of rows.
    """

    def __init__(self, halves: Halves, made: Batch, given: Callable[[], Batch]) -> None:
        self.rows = made.rows
        self._halves, self._made, self._given = halves, made, given

    @functools.cached_property
    def values(self) -> tuple[Any, ...]:
        """As those of a :class:`Batch`: inputs of the model, expected values, weights of the rows."""
        return self._given().values

    def copy(self) -> Batch:
        """The batch as the model takes it, in memory of its own."""
        return Batch(self.rows, self.values).copy()

    def __iter__(self) -> Iterator[Any]:
        """The number of rows and the values, as of a :class:`Batch`."""
        return iter((self.rows, self.values))

    def train(self, step: TrainingStep) -> float:
        """Do one step; by the whole model, if that was changed after the batch was made."""
        if not step.knows(self._halves):
            return step.run_checked(self.values)
        return step.run_half(self._halves, self._made.values)


class FrozenLoader:
    """Batches of a loader, as far as a model has a frozen part with what that makes of them.

    That is computed before the first batch of an epoch, and again when the step has become another one:
    when weights have joined those that are trained, say.

    Parameters
    ----------
    loader : OrtDataLoader
        The data.
    step : TrainingStep
        What is trained.
    wanted : bool or 'auto'
        Whether it is an error if nothing can be computed once.
    limit : int
        Bytes that what is kept may take.
    validation : ArrayValidation or StreamValidation, optional
        Validation data, for which it is kept as well if there is room.

    Raises
    ------
    InvalidParameterError
        Nothing can be computed once, or it would take more memory.
    """

    def __init__(
        self,
        loader: OrtDataLoader,
        step: TrainingStep,
        wanted: Any,
        limit: int,
        validation: Any = None,
    ) -> None:
        self.loader, self.step, self.wanted, self.limit = loader, step, wanted, limit
        self._validation = validation
        self._halves: Halves | None = None
        self._made: OrtDataLoader | None = None
        self._find()

    @property
    def n_rows(self) -> int:
        """Rows in an epoch."""
        return self.loader.n_rows

    @property
    def n_batches(self) -> int:
        """Batches in an epoch."""
        return self.loader.n_batches

    def fingerprint(self) -> dict[str, str]:
        """What data it is."""
        return self.loader.fingerprint()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.loader)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """The batches of an epoch; see :meth:`OrtDataLoader.epoch`."""
        if self._recipe is not self.step.recipe or not self._is_whole():
            self.wanted = "auto"  # training goes on, whatever it was that changed
            self._find()
        if self._halves is not None and self._made is None:
            self._compute(self._halves)
        if self._halves is None or self._made is None:
            yield from self.loader.epoch(epoch, skip)
            return
        halves = self._halves
        for number, made in enumerate(self._made.epoch(epoch, skip), skip):
            yield FrozenBatch(halves, made, functools.partial(self.loader.cut, epoch, number))

    def _is_whole(self) -> bool:
        """Whether the step still is the one of which the halves are."""
        return self._halves is None or self.step.knows(self._halves)

    # -- the frozen part -----------------------------------------------------------------------------

    def _find(self) -> None:
        """Look for a frozen part of the step as it is now, and see that what it makes has room."""
        self._recipe, self._halves, self._made = self.step.recipe, None, None
        forget(self._validation)
        try:
            halves = self.step.halves(self.loader.inputs(slice(max(_FIRST, 2 * self._fixed))))
            size = halves.nbytes(self.n_rows)
            if size > self.limit:
                raise NoFrozenPartError(too_large(halves, self.n_rows, size, self.limit))
            self._halves = halves
        except NoFrozenPartError as exc:
            refuse(self.wanted, exc)

    @property
    def _fixed(self) -> int:
        """Rows of a batch, if the model fixes them."""
        return self.step.recipe.axes.rows() or 0

    def _compute(self, halves: Halves) -> None:
        """Make of the data what the trained half takes."""
        names = [spec.name for spec in self.step.inputs]
        batches = (
            (dict(zip(names, batch.values, strict=False)), batch.rows)
            for batch in self.loader.in_sequence().epoch(0)
        )
        try:
            made = through(halves, batches, self.n_rows, self.loader.inputs())
        except NoFrozenPartError as exc:
            self._halves = None
            refuse(self.wanted, exc)
            return
        logger.info("[cache_frozen] %d rows went through the frozen part of the model", self.n_rows)
        self._made = self.loader.with_inputs([(made[spec.name], spec) for spec in halves.specs])
        room = self.limit - halves.nbytes(self.n_rows)
        keep(self._validation, self.step, halves, self.loader.batch_size, room)


def too_large(halves: Halves, rows: int, size: int, limit: int) -> str:
    """What is said of a cut that has no room."""
    parts = ", ".join(f"{kept.spec.name!r} {kept.row_bytes:,} bytes a row" for kept in halves.kept)
    return (
        f"what it computes of {rows:,} rows takes {size:,} bytes ({parts}), more than the {limit:,} of "
        "cache_bytes: raise that, or train more of the model, so that less of it crosses"
    )
