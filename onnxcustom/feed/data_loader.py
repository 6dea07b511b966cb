"""Batches of a data set, bound by pointer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnxcustom._parameters import check_flag
from onnxcustom._versioning import check_version, stamp_version
from onnxcustom.data.fingerprints import hash_array
from onnxcustom.data.owned import owned_parts
from onnxcustom.data.sparse import SparseRows
from onnxcustom.exceptions import CallOrderError, InvalidParameterError
from onnxcustom.runtime import parse_device, plain_array

from .batch_buffers import Batch, BatchBuffers, bound
from .grouping import Groups
from .handing_out import HandedOut
from .order import draw_seed, permutation
from .specs import TensorSpec, of_batch, rows_of, some_rows
from .validation import as_inputs, as_targets, check_batch_size, weights_of

__all__ = ["OrtDataLoader"]

# So many batches are prepared at most; beyond that they are made while iterating.
_PREPARED = 16384


class OrtDataLoader(HandedOut):
    """Iterates over a data set in batches of OrtValues.

    Data is checked and converted once, into memory of the loader's own. The batches of :meth:`epoch` share
    that memory, or, when shuffling, that of a buffer that is refilled in place at the start of each epoch
    (data sets larger than `block_bytes` block by block), so that the OrtValues are made once and a batch
    costs next to nothing. Those of the other iterators are copies.

    Parameters
    ----------
    X : array_like, sparse matrix, frame or dict of str to array_like
        Features, (n, ...), of any kind that :func:`~onnxcustom.feed.validation.as_inputs` takes; a dict
        or a frame for several inputs. Sparse rows stay sparse: those of a block become dense in the buffer.
    y : array_like, Series, frame or dict of str to array_like, optional
        Expected values, (n,) or (n, ...).
    sample_weight : number or array_like of shape (n,), optional
        Weights of the rows.
    batch_size : int, default=20
        Rows in a batch; the last one may be short.
    device : str or OrtDevice, default='cpu'
        Where the OrtValues live.
    random_iter : bool, default=True
        Draw the rows of each epoch in another order. Every row comes once.
    shuffle : bool, optional
        The same, as scikit-learn calls it; it prevails over `random_iter`.
    random_state : int, RandomState, Generator or None, default=None
        Seed of the order. The order of an epoch is a function of the seed and the epoch's number.
    inputs : sequence of TensorSpec, optional
        What the model's inputs want, see :func:`~onnxcustom.feed.specs.input_specs`; by
        default the data is taken as it is.
    targets : sequence of TensorSpec, optional
        What the losses want; by default (n, ...) as it is and (n,) as a column.
    weight_dtype : dtype, optional
        Dtype of the weights of the rows: by default that of the first floating-point array.
    block_bytes : int, default=2**23
        Size of the buffer.
    copy : bool, default=True
        Whether arrays that need no conversion are copied. Without, the loader shares their memory, and they
        must stay as they are while it lives. What is mapped for reading only is never copied.

    Attributes
    ----------
    arrays : dict of str to ndarray or SparseRows
        The data: inputs, expected values, then ``'sample_weight'``.
    seed : int
        Seed of the order.
    n_batches : int
        Batches in an epoch.

    Raises
    ------
    InvalidDataError
        Data that does not fit the model or itself; nothing was changed.
    ValueError
        A batch size below 1.

    Notes
    -----
    OrtValues of the batches of :meth:`epoch` are valid while the loader lives and, when shuffling, until the
    next epoch or block: use them, don't collect them; :meth:`Batch.copy` keeps one.

    Examples
    --------
    >>> import numpy as np
    >>> loader = OrtDataLoader(np.arange(10.0).reshape(5, 2), np.arange(5), batch_size=2, random_iter=False)
    >>> [batch.rows for batch in loader.epoch(0)]
    [2, 2, 1]
    >>> len(loader), loader.n_batches
    (5, 3)
    """

    # Rows that belong into one batch.
    groups: Groups | None = None

    def __init__(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        batch_size: int = 20,
        device: Any = "cpu",
        random_iter: bool = True,
        *,
        shuffle: bool | None = None,
        random_state: Any = None,
        inputs: Sequence[TensorSpec] | None = None,
        targets: Sequence[TensorSpec] | None = None,
        weight_dtype: Any = None,
        block_bytes: int = 2**23,
        copy: bool = True,
    ) -> None:
        check_flag("copy", copy)
        if copy:
            X, y, sample_weight = owned_parts((X, y, sample_weight), watched=True)
        self._convert(X, y, sample_weight, inputs, targets, weight_dtype, batch_size)
        self.device = parse_device(device)
        shuffle = random_iter if shuffle is None else shuffle
        check_flag("shuffle", shuffle)
        self.random_iter = bool(shuffle)
        self.seed = draw_seed(random_state)
        self.block_bytes = int(block_bytes)
        self._prepare()

    def _convert(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        inputs: Sequence[TensorSpec] | None,
        targets: Sequence[TensorSpec] | None,
        weight_dtype: Any,
        batch_size: int,
    ) -> None:
        """Check the data and make arrays of it."""
        given = _names("X", X) if inputs is None else list(inputs)
        arrays = as_inputs(X, given, sparse=True)
        specs = list(given)
        self._n_inputs = len(arrays)
        self._rows = rows_of(arrays, given)
        self.batch_size = check_batch_size(batch_size, self._rows, given)
        expected: dict[str, np.ndarray] = {}
        if y is not None or targets is not None:
            wanted = _names("y", y) if targets is None else list(targets)
            expected = as_targets(y, wanted, self._rows)
            _add(arrays, expected)
            specs += wanted
        self._n_targets = len(arrays) - self._n_inputs
        if sample_weight is not None:
            dtype = weight_dtype or _first_float(arrays.values())
            weights, like = weights_of(sample_weight, self._rows, dtype, specs[self._n_inputs :], expected)
            _add(arrays, {"sample_weight": weights})
            specs.append(like)
        self._specs = specs
        # OrtValues of batches borrow this memory: none of them may be a converted copy.
        self.arrays: dict[str, Any] = {
            name: array if isinstance(array, SparseRows) else plain_array(array)
            for name, array in arrays.items()
        }

    def with_inputs(self, inputs: Sequence[tuple[Any, TensorSpec]]) -> OrtDataLoader:
        """A loader of the same rows in the same order, with other arrays for what the model takes."""
        pairs = [*inputs, *self._pairs[self._n_inputs :]]
        arrays = {str(i): array for i, (array, _) in enumerate(pairs)}
        return self._copy(arrays=arrays, _specs=[spec for _, spec in pairs], _n_inputs=len(inputs))

    def in_sequence(self) -> OrtDataLoader:
        """A loader of the same rows in the order of the data."""
        return self._copy(random_iter=False, groups=None)

    def grouped(self, groups: Groups) -> OrtDataLoader:
        """A loader of the same rows, with those in one batch that belong together."""
        return self._copy(groups=groups)

    def _copy(self, **changes: Any) -> OrtDataLoader:
        made = object.__new__(type(self))
        made.__dict__.update(check_version(self.__getstate__(), self), **changes)
        made._prepare()
        return made

    def inputs(self, rows: slice | None = None) -> dict[str, Any]:
        """What the model takes, all rows or some, by name of the input."""
        pairs = zip(self.arrays.items(), self._specs[: self._n_inputs], strict=False)
        if rows is None:
            return {spec.name: array for (_, array), spec in pairs}
        return {spec.name: some_rows(array, spec, rows) for (_, array), spec in pairs}

    def cut(self, epoch: int, number: int) -> Batch:
        """A batch of an epoch by its number, in memory of its own."""
        start = number * self.batch_size
        stop = min(start + self.batch_size, self._rows)
        order = self.order(epoch)
        rows: Any = slice(start, stop) if order is None else order[start:stop]
        arrays = [np.asarray(array, order="C") for array in self._cut(rows)]  # there until they are copied
        return Batch(stop - start, bound(arrays, self.device)).copy()

    # -- buffers -------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Buffers and the OrtValues of their batches."""
        self._turn = 0
        self._buffers: BatchBuffers | None = None
        self._prepared: list[Batch] = []
        self._short: Batch | None = None
        self._hashes: dict[str, str] | None = None
        size = self.batch_size
        if self._gathers:
            cut = [a.nbytes for a, spec in self._pairs if spec.axis is not None or spec.is_each(a)]
            row_bytes = max(1, sum(cut) // self._rows)
            in_block = min(max(1, self.block_bytes // (row_bytes * size)), _PREPARED, self.n_batches)
            self._block = min(in_block * size, self._rows)
            self._buffers = BatchBuffers(self._pairs, self._block, self.device)
        elif self.n_batches <= _PREPARED or self.device.type != "cpu":
            # Other devices hold the whole data set: it is copied there once.
            self._block = self._rows
            self._buffers = BatchBuffers(self._pairs, None, self.device)
        else:
            return
        self._prepared = [self._buffers.batch(i, i + size) for i in range(0, self._block - size + 1, size)]
        short = self._rows % size
        if short:
            start = (self._rows - short) % self._block if self._block < self._rows else self._rows - short
            self._short = self._buffers.batch(start, start + short)

    @property
    def _pairs(self) -> list[tuple[Any, TensorSpec]]:
        return list(zip(self.arrays.values(), self._specs, strict=True))

    @property
    def _gathers(self) -> bool:
        """Whether rows go through a buffer, which the next block or epoch overwrites."""
        sparse = any(isinstance(a, SparseRows) for a in self.arrays.values())
        ordered = self.random_iter or self.groups is not None
        return ordered or sparse or any(spec.axis for spec in self._specs)

    def _block_batches(self, rows: int) -> list[Batch]:
        """Batches of a block that holds so many rows."""
        full, short = divmod(rows, self.batch_size)
        batches = self._prepared if full == len(self._prepared) else self._prepared[:full]
        return [*batches, self._short] if short and self._short is not None else batches

    # -- iteration -----------------------------------------------------------------------------

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self._rows

    def fingerprint(self) -> dict[str, str]:
        """What data it is: dtype, shape and a hash of every array, by name; computed once."""
        if self._hashes is None:
            self._hashes = {name: hash_array(array, whole=True) for name, array in self.arrays.items()}
        return dict(self._hashes)

    @property
    def n_batches(self) -> int:
        """Batches in an epoch."""
        return -(-self._rows // self.batch_size)

    def order(self, epoch: int) -> np.ndarray | None:
        """Order of the rows in an epoch, None if it is that of the data."""
        if self.groups is not None:
            return self.groups.order(self.seed, epoch, self.random_iter)
        return permutation(self.seed, epoch, self._rows) if self.random_iter else None

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch.

        Parameters
        ----------
        epoch : int
            Its number, from 0.
        skip : int, default=0
            Begin behind so many batches: those that follow are the same as if these had been taken.

        Yields
        ------
        Batch

        Raises
        ------
        ValueError
            More batches to skip than an epoch has.
        RuntimeError
            Another epoch was begun before this one was through: they share a buffer.
        """
        if not 0 <= skip <= self.n_batches:
            raise InvalidParameterError(
                f"skip must be in [0, {self.n_batches}], the batches of an epoch, not {skip!r}."
            )
        self._turn += 1
        turn = self._turn
        for batches in self._blocks(epoch, skip):
            for batch in batches:
                if self._turn != turn and self._gathers:
                    raise CallOrderError(
                        "Another epoch of this loader was begun: its batches overwrote these."
                    )
                yield batch

    def _blocks(self, epoch: int, skip: int) -> Iterator[Any]:
        if self._buffers is None:
            yield self._made_on_the_way(skip)
        elif not self._gathers:
            yield self._block_batches(self._rows)[skip:]
        else:
            order = self.order(epoch)
            first = skip // -(-self._block // self.batch_size) * self._block
            for start in range(first, self._rows, self._block):
                stop = min(start + self._block, self._rows)
                rows = np.arange(start, stop) if order is None else order[start:stop]
                batches = self._block_batches(len(rows))
                self._buffers.fill(self.arrays.values(), rows, len(rows))
                self._buffers.upload(batches)
                yield batches[skip - start // self.batch_size :] if start == first else batches

    def _made_on_the_way(self, skip: int) -> Iterator[Batch]:
        for start in range(skip * self.batch_size, self._rows, self.batch_size):
            stop = min(start + self.batch_size, self._rows)
            yield Batch(stop - start, bound(self._cut(slice(start, stop)), self.device))

    def _cut(self, rows: Any) -> list[np.ndarray]:
        """A batch as arrays."""
        return [of_batch(some_rows(a, spec, rows), spec) for a, spec in self._pairs]

    # -- looking at it -------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._rows

    def __repr__(self) -> str:
        return f"{type(self).__name__}(..., batch_size={self.batch_size!r}, device={self.device.name!r})"

    def __getstate__(self) -> dict[str, Any]:
        rebuilt = ("_turn", "_buffers", "_prepared", "_short", "_block", "_hashes")
        return stamp_version({k: v for k, v in vars(self).items() if k not in rebuilt})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(check_version(state, self))
        # Older loaders had the rows of all arrays first.
        self.__dict__.setdefault("_specs", [TensorSpec(name) for name in self.arrays])
        self._prepare()


def _names(what: str, data: Any) -> list[TensorSpec]:
    """Free specifications for data that comes without a model."""
    return [TensorSpec(str(name)) for name in data] if isinstance(data, dict) else [TensorSpec(what)]


def _add(arrays: dict[str, np.ndarray], more: dict[str, np.ndarray]) -> None:
    """Add arrays, under other names where an input has theirs."""
    for name, array in more.items():
        key = name
        while key in arrays:
            key += "_expected"
        arrays[key] = array


def _first_float(arrays: Any) -> np.dtype:
    return next((a.dtype for a in arrays if a.dtype.kind == "f"), np.dtype(np.float32))
