"""Batches of a stream, bound by pointer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcustom._parameters import check_flag
from onnxcustom._text import count
from onnxcustom._versioning import check_version, stamp_version
from onnxcustom.data import Block, Stream
from onnxcustom.exceptions import CallOrderError, InvalidDataError, InvalidParameterError
from onnxcustom.runtime import parse_device
from onnxcustom.runtime.tensors import PlaceError

from .batch_buffers import Batch, BatchBuffers
from .specs import TensorSpec, row_count
from .stream_rows import converted, given_once, placed
from .validation import check_batch_size

__all__ = ["StreamLoader"]

# Arrays of a block, and what each is to be.
_Pairs = list[tuple[Any, TensorSpec]]


class StreamLoader:
    """Iterates over a stream in batches of OrtValues, as an ``OrtDataLoader`` does over arrays.

    Blocks are read, checked and converted in the stream's own thread, and copied into one buffer whose
    OrtValues are made once: a batch costs next to nothing, and memory does not grow with the stream.

    Parameters
    ----------
    stream : Stream
        The rows.
    inputs : sequence of TensorSpec
        What the model's inputs want, see :func:`~onnxcustom.feed.specs.input_specs`.
    targets : sequence of TensorSpec
        What the losses want.
    batch_size : int, default=20
        Rows in a batch; only the last one of an epoch may be short.
    device : str or OrtDevice, default='cpu'
        Where the OrtValues live.
    shuffle : bool, default=True
        Take the rows of each epoch in another order, see :class:`~onnxcustom.data.Stream`.
    seed : int, default=0
        Seed of that order, in [0, 2**64).
    weight_dtype : dtype, optional
        Dtype of the weights of the rows, float32 by default. They come from the stream.
    encode : callable, optional
        Called with the expected values of each block, it returns what the losses want: indices of
        labels, for example.
    check : callable, optional
        Called with the converted expected values of each block, by name; raises an error if they do not fit.
    weigh : callable, optional
        Called with expected values and weights of each block as the stream has them, it returns the weights
        of the rows: those of classes, for example.

    Attributes
    ----------
    n_rows, n_batches : int or None
        Rows and batches in an epoch, None while that is not known.

    Raises
    ------
    InvalidDataError
        The model fixes the rows of a batch, and not at `batch_size` or not at a divisor of the stream's rows.
    ValueError
        A batch size below 1.

    Notes
    -----
    OrtValues of batches are valid until the next block: use them, don't collect them. `encode` and `check`
    are called in the thread that reads, if there is one.

    Examples
    --------
    >>> import numpy as np
    >>> from onnxcustom.data import stream
    >>> rows = stream((np.arange(10.0).reshape(5, 2), np.arange(5)))
    >>> x = TensorSpec("x", np.dtype(np.float32), (None, 2))
    >>> y = TensorSpec("y", np.dtype(np.float32), (None, 1))
    >>> loader = StreamLoader(rows, [x], [y], batch_size=2, shuffle=False)
    >>> [(batch.rows, batch.values[1].numpy().tolist()) for batch in loader.epoch(0)]
    [(2, [[0.0], [1.0]]), (2, [[2.0], [3.0]]), (1, [[4.0]])]
    """

    def __init__(
        self,
        stream: Stream,
        inputs: Sequence[TensorSpec],
        targets: Sequence[TensorSpec],
        *,
        batch_size: int = 20,
        device: Any = "cpu",
        shuffle: bool = True,
        seed: int = 0,
        weight_dtype: Any = None,
        encode: Callable[[Any], Any] | None = None,
        check: Callable[[Mapping[str, np.ndarray]], object] | None = None,
        weigh: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.stream = stream
        self.inputs, self.targets = list(inputs), list(targets)
        self.batch_size = check_batch_size(batch_size, stream.rows, self.inputs)
        self.device = parse_device(device)
        check_flag("shuffle", shuffle)
        self.shuffle, self.seed = bool(shuffle), seed
        self.weight_dtype = np.dtype(weight_dtype or np.float32)
        self.encode, self.check, self.weigh = encode, check, weigh
        self._forget()

    def _forget(self) -> None:
        self._turn = 0
        self._buffers: BatchBuffers | None = None
        self._batches: list[Batch] = []
        self._short: dict[tuple[int, int], Batch] = {}

    # -- iteration -----------------------------------------------------------------------------------

    @property
    def n_rows(self) -> int | None:
        """Rows in an epoch, None if that is not known."""
        return self.stream.rows

    @property
    def n_batches(self) -> int | None:
        """Batches in an epoch, None if that is not known."""
        return None if self.n_rows is None else -(-self.n_rows // self.batch_size)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch.

        Parameters
        ----------
        epoch : int
            Its number, from 0.
        skip : int, default=0
            Begin behind so many batches: those that follow are the same as if these had been taken. What
            the stream need not read to get there is not read.

        Yields
        ------
        Batch

        Raises
        ------
        InvalidDataError
            No rows, rows that do not fit the model, or what cannot be read, and where it is.
        ValueError
            More batches to skip than an epoch has.
        RuntimeError
            Another epoch was begun before this one was through: they share a buffer.
        """
        if skip < 0 or (self.n_batches is not None and skip > self.n_batches):
            raise InvalidParameterError(
                f"skip must be in [0, {self.n_batches}], the batches of an epoch, not {skip!r}."
            )
        self._turn += 1
        turn, rows, weighs = self._turn, 0, skip > 0
        blocks = self.stream.blocks(
            epoch,
            seed=self.seed,
            shuffle=self.shuffle,
            multiple=self.batch_size,
            skip=skip * self.batch_size,
            apply=self._convert,
        )
        with contextlib.closing(blocks):
            for pairs in blocks:
                self._check_turn(turn)
                rows += self._count(pairs)
                weighs = weighs or not self._weighted(pairs) or bool(pairs[-1][0].any())
                for batch in self._filled(pairs):
                    self._check_turn(turn)
                    yield batch
        if not rows and not skip:
            raise self.stream.empty()
        if not weighs:
            raise InvalidDataError("sample_weight is zero for every row: nothing would be learned from.")

    def __iter__(self) -> Iterator[Batch]:
        """The batches of epoch 0."""
        return self.epoch(0)

    def _check_turn(self, turn: int) -> None:
        if self._turn != turn:
            raise CallOrderError("Another epoch of this loader was begun: its batches overwrote these.")

    def _weighted(self, pairs: _Pairs) -> bool:
        return len(pairs) > len(self.inputs) + len(self.targets)

    @staticmethod
    def _count(pairs: _Pairs) -> int:
        """Rows of a block."""
        return next(n for n in (row_count(array, spec) for array, spec in pairs) if n is not None)

    # -- blocks --------------------------------------------------------------------------------------

    def _convert(self, block: Block) -> _Pairs:
        """Inputs, expected values and weights of a block as the model wants them, and what they are to be."""
        try:
            pairs = converted(
                block,
                self.stream,
                self.inputs,
                self.targets,
                self.encode,
                self.check,
                self.weight_dtype,
                self.weigh,
            )
        except PlaceError as exc:
            raise placed(exc, self.stream) from exc
        except InvalidDataError as exc:
            if "NaN" not in str(exc) and "infinity" not in str(exc):
                raise
            floats = [
                s.dtype for s in (*self.inputs, *self.targets) if s.dtype is not None and s.dtype.kind == "f"
            ]
            where = self.stream.where_not_finite(min(floats, key=lambda d: d.itemsize, default=None))
            if where is None:
                raise
            raise InvalidDataError(f"{exc} The first is in {where}.") from exc
        self._check_rows(len(block))
        self._check_once(pairs)
        return pairs

    def _check_once(self, pairs: _Pairs) -> None:
        """Refuse a batch whose rows come with different values of what the model takes once."""
        for array, spec in pairs:
            if not spec.is_each(array):
                continue
            once = dataclasses.replace(spec, each=False)
            for start in range(0, len(array), self.batch_size):
                given_once(array[start : start + self.batch_size], spec, once)

    def _check_rows(self, rows: int) -> None:
        """Refuse the short batch at the end where the model fixes the number of rows."""
        fixed = next((spec for spec in self.inputs if spec.rows is not None), None)
        if fixed is not None and rows % self.batch_size:
            raise InvalidDataError(
                f"Input {fixed.name!r} takes batches of exactly {count(self.batch_size, 'row')}, the last "
                f"one of the stream has {rows % self.batch_size}: leave rows out, or make the first dimension"
                " of the model's input dynamic."
            )

    def _filled(self, pairs: _Pairs) -> list[Batch]:
        """The batches of a block, once it is in the buffer."""
        rows, size = self._count(pairs), self.batch_size
        if self._buffers is None or not self._buffers.fit(pairs, rows):
            self._buffers = BatchBuffers(pairs, rows, self.device)
            self._batches = [
                self._buffers.batch(start, start + size) for start in range(0, rows - size + 1, size)
            ]
            self._short = {}
        made = self._batches[: rows // size]
        if rows % size:
            place = rows - rows % size, rows
            if place not in self._short:
                self._short[place] = self._buffers.batch(*place)
            made = [*made, self._short[place]]
        self._buffers.fill((array for array, _ in pairs), None, rows)
        self._buffers.upload(made)
        return made

    # -- looking at it -------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, str]:
        """What data it is, see :meth:`onnxcustom.data.Stream.fingerprint`."""
        return self.stream.fingerprint()

    def __repr__(self) -> str:
        options = f"batch_size={self.batch_size}, device={self.device.name!r}"
        return f"{type(self).__name__}({self.stream!r}, {options})"

    def __getstate__(self) -> dict[str, Any]:
        rebuilt = ("_turn", "_buffers", "_batches", "_short")
        return stamp_version({k: v for k, v in vars(self).items() if k not in rebuilt})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(check_version(state, self))
        self._forget()
