"""Rows from files, mapped arrays or batches, block by block, in an order that can be had again."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcustom._parameters import check_count, check_flag
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError

from .blocks import Block, recut
from .columns import Plan
from .naming import check_names
from .opening import as_source
from .reader import read_ahead
from .reading import SourceRows
from .shuffling import Share
from .sources import ArraySource, Axes, IterableSource, Source

__all__ = ["Stream", "stream"]

# More rows than this are as good as all of them; pyarrow counts no further.
_MOST = 2**31 - 1


def stream(
    source: Any,
    *,
    target: Any = None,
    columns: Any = None,
    sample_weight: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    block_rows: int | None = None,
    shuffle_rows: int | None = None,
    prefetch: int = 2,
) -> Stream:
    r"""Rows to train on that need not fit into memory.

    Parameters
    ----------
    source : path, dataset, frame, arrays or batches
        - a path, a pattern such as ``'data/*.parquet'``, a folder, or a list of paths: Parquet, Arrow
          (Feather version 2) and CSV files (``.gz`` and ``.bz2`` too), read by pyarrow; CSV files without it
          as well, but slowly;
        - a ``pyarrow.dataset.Dataset``;
        - a frame in memory, of pandas, polars or pyarrow, or a dict of columns;
        - a tuple of arrays, mapped into memory or not: ``(X,)``, ``(X, y)`` or ``(X, y, sample_weight)``;
          X and y may be dicts of arrays, X a sparse matrix of scipy. Up to 256 MB of arrays or of a frame are
          copied; what is mapped for reading only, and more than that, is read where it is at every epoch;
        - batches: an iterable such as ``torch.utils.data.DataLoader``, or a function that returns an
          iterator, of such tuples of arrays of any length, or of frames. An iterator can be read once only.
    target : str, list of str or dict of str to either, optional
        Column of the expected values, (n,) or lists (n, k); several are set side by side; a dict by
        output of the model.
    columns : str or list of str, optional
        Columns of the features, set side by side in this order; by default all others but those that pandas
        wrote for its index. A model that knows the names of its columns takes them in its own order. Lists of
        one length count as so many columns; a single column may hold nested lists, such as pictures.
    sample_weight : str, optional
        Column of the weights of the rows.
    inputs : dict of str to str or list of str, optional
        Columns by input of the model in place of `columns`, when it has several; a name stands for a column
        as it is, (n,) or (n, k).
    block_rows : int, optional
        Rows that are read and converted at once, by default about 4 MB.
    shuffle_rows : int, optional
        Rows of the shuffle buffer, by default about 64 MB; 0 shuffles the parts of the source only.
    prefetch : int, default=2
        Blocks that a thread reads ahead; 0 reads without one.

    Returns
    -------
    Stream

    Raises
    ------
    InvalidDataError
        No such file, or not such a column.
    MissingPackageError
        What reads such files is not installed.
    ValueError, TypeError
        A parameter that is none.

    Examples
    --------
    >>> import pathlib
    >>> _ = pathlib.Path("points.csv").write_text("a,b,y\n1,2,yes\n3,4,no\n5,6,yes\n")
    >>> rows = stream("points.csv", target="y")
    >>> rows.head().X, rows.labels()
    (array([[1., 2.],
           [3., 4.],
           [5., 6.]]), array(['no', 'yes'], dtype=object))
    >>> [(len(block), block.y.tolist()) for block in rows.blocks(rows=2)]
    [(2, ['yes', 'no']), (1, ['yes'])]
    """
    if isinstance(source, Stream):
        raise InvalidParameterError("This is a stream already; its columns were named when it was made.")
    plan = Plan(target, columns, sample_weight, inputs)
    sizes = {"block_rows": (block_rows, 1), "shuffle_rows": (shuffle_rows, 0)}
    rows: dict[str, Any] = {
        n: None if v is None else min(check_count(n, v, least), _MOST) for n, (v, least) in sizes.items()
    }
    return Stream(as_source(source, plan), **rows, prefetch=check_count("prefetch", prefetch, 0))


class Stream(SourceRows):
    """Rows that are read block by block, as often as they are needed; :func:`stream` makes one.

    Parameters
    ----------
    source : Source
        What is read.
    block_rows, shuffle_rows, prefetch
        As :func:`stream` takes them.
    shares : tuple of Share
        Which rows of the source, see :meth:`split`.

    Notes
    -----
    **Order.** Unshuffled, rows come in the order of the source. Shuffled, its parts come in another order
    each epoch, one after the other: row groups of Parquet files, record batches of Arrow files, pieces of
    256 kB of arrays, 4096 rows of frames, CSV files as a whole; batches that an iterable makes are one part.
    This sequence is cut into windows of `shuffle_rows` rows, and each window is permuted, any order of it as
    likely as another. So rows mix perfectly within a window and not at all between windows, but for the parts
    that another epoch brings together; the first window of an epoch is shorter, by a random number of rows,
    so that the cuts move. A source of at most `shuffle_rows` rows is one window: shuffled as in memory. A
    sorted CSV file of more rows, or batches that come sorted, stay so from window to window: write
    such data as Parquet or several files, or make the buffer larger. The order is a function of the source,
    `shuffle_rows`, seed and epoch, and of nothing else.

    **Memory.** ``prefetch + 2`` blocks, the shuffle buffer, and what it takes to read a part: of a Parquet
    file 256 kB for each column, of an Arrow file a record batch, of batches one of them. The size of the
    source does not matter.

    A stream of files can be pickled and read by several threads and processes at once.
    """

    # -- reading ---------------------------------------------------------------------------------------

    def blocks(
        self,
        epoch: int = 0,
        *,
        seed: int = 0,
        shuffle: bool = False,
        rows: int | None = None,
        multiple: int = 1,
        skip: int = 0,
        apply: Callable[[Block], Any] | None = None,
    ) -> Generator[Any, None, None]:
        """All rows once, in blocks.

        Parameters
        ----------
        epoch, seed : int, default=0
            What the order is a function of, in [0, 2**64).
        shuffle : bool, default=False
            Another order each epoch.
        rows : int, optional
            Rows of a block, by default :attr:`block_rows`; the last one may have less.
        multiple : int, default=1
            Rows of a block are a multiple of this. Where batches differ in shape, blocks end early, at
            such a multiple.
        skip : int, default=0
            Begin behind so many rows of that order. Parts of files and arrays that are skipped are not read.
        apply : callable, optional
            Called with each block, in the thread that reads.

        Yields
        ------
        Block
            Or what `apply` returns for it.

        Raises
        ------
        InvalidDataError
            What cannot be read, a value that is missing or no number, and where it is.
        InvalidParameterError
            A number of rows, a place or an order that is none.
        """
        rows = None if rows is None else check_count("rows", rows)
        multiple, skip = check_count("multiple", multiple), check_count("skip", skip, 0)
        check_flag("shuffle", shuffle)

        def made() -> Iterator[Any]:
            found = self._blocks(epoch, seed, shuffle, rows, multiple, skip)
            with contextlib.closing(found):
                yield from map(apply or _copied, found)

        return read_ahead(made, self.prefetch)

    def place(self, axes: Axes) -> None:
        """Say where the rows of arrays and batches are; without a word they come first.

        Blocks have the rows first all the same, and what is given once a batch is there for each of them.

        Parameters
        ----------
        axes : mapping
            Number of dimensions -> axis by place, ``Key("X", "name of an input")``; None for an array
            without rows.
        """
        if axes != self.source.axes:
            self.source.axes = axes
            self._row_bytes = self._rows = None

    def columns(self, name: str | None = None) -> list[str] | None:
        """Names of the columns of the features, in their order.

        Parameters
        ----------
        name : str, optional
            The input of the model, where ``inputs=`` says that there are several.

        Returns
        -------
        list of str or None
            None for arrays and batches of arrays, which have none.
        """
        if self.source.selection is None and self._is_batches:
            self._first(1)
        found = {} if self.source.selection is None else self.source.selection.features
        return found.get(name, found.get(None))

    def in_order(self, names: Sequence[str]) -> Stream:
        """These rows with the columns of the features in the order in which a model takes them.

        Parameters
        ----------
        names : sequence of str
            The model's columns.

        Returns
        -------
        Stream
            This one, if they are in that order, come by input of the model, or have no names.

        Raises
        ------
        InvalidDataError
            The table has others.
        """
        found = self.columns()
        if found is None or found == list(names):
            return self
        check_names(found, names, self.source.name, "Leave out what is too many: columns= names the others.")
        return self._copy(self.source.in_order(names))

    # -- what is in it ---------------------------------------------------------------------------------

    def head(self, rows: int = 100) -> Block:
        """The first rows, or all if there are fewer.

        Raises
        ------
        InvalidDataError
            There are none, or an iterator was begun already.
        InvalidParameterError
            `rows` is no number of them.
        """
        rows = check_count("rows", rows)
        if isinstance(self.source, IterableSource) and not self.source.repeatable:
            first = self._first(rows)  # an epoch gets it, too
            found = None if first is None else self._share(first, 0, 0)
        else:
            kept = self._kept(list(self.source.parts()), rows, 0)
            with contextlib.closing(kept):
                found = next(recut(kept, rows), None)
        if found is None or not len(found):
            raise self.empty()
        return _copied(found[:rows])

    def labels(self) -> np.ndarray:
        """The different values of the target, sorted, as :meth:`label_counts` finds them.

        Returns
        -------
        ndarray of shape (k,)
            Of a target of several columns, the values of all of them.
        """
        return self.label_counts()[0]

    def label_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """The different values of the target, sorted, and how often each is there; nothing else is read.

        Returns
        -------
        tuple of (ndarray of shape (k,), ndarray of shape (k,))
            Of a target of several columns, the values of all of them.

        Raises
        ------
        InvalidDataError
            There is no target or several by name, it holds more than 65,536 values, or an iterator would be
            used up.
        """
        if not self.source.repeatable:
            raise InvalidDataError(f"{self.source.name} can be read once only: give the labels.")
        found, counts = self._counted_labels()
        if found is None:
            self.head(1)  # there may be no rows at all
            raise InvalidDataError(f"The stream of {self.source.name} has no target, or several: no labels.")
        return found, counts

    def empty(self) -> InvalidDataError:
        """What to raise where rows are needed and there are none."""
        which = " that belong to this part of the split" if self._shares else ""
        hint = (
            " One iterator gives its rows once: make a new one for every epoch." if self._is_batches else ""
        )
        return InvalidDataError(f"There are no rows in {self.source.name}{which}.{hint}")

    @property
    def _is_batches(self) -> bool:
        return isinstance(self.source, IterableSource)

    def split(self, fraction: float, seed: int = 0) -> tuple[Stream, Stream]:
        """Hold rows out, for validation.

        Whether a row is held out is a function of the seed, the number of its file and its number in it:
        both streams read the source and leave out the rows of the other. Where the number of
        rows is not known, `fraction` is what is held out on average.

        Parameters
        ----------
        fraction : float
            Part that is held out, in (0, 1).
        seed : int, default=0
            Seed of the choice, in [0, 2**64).

        Returns
        -------
        tuple of Stream
            What remains, and what is held out.

        Raises
        ------
        InvalidParameterError
            A fraction or a seed that is none.
        InvalidDataError
            An iterator, which two streams cannot share.

        Examples
        --------
        >>> train, validation = stream((np.zeros((1000, 2)), np.zeros(1000))).split(0.2)
        >>> train.rows, validation.rows
        (807, 193)
        """
        if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real) or not 0 < fraction < 1:
            raise InvalidParameterError(f"fraction must be in (0, 1), not {fraction!r}.")
        if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or not 0 <= seed < 2**64:
            raise InvalidParameterError(f"seed must be an integer in [0, 2**64), not {seed!r}.")
        if not self.source.repeatable:
            raise InvalidDataError(f"{self.source.name} can be read once only: two streams cannot share it.")
        held = Share(float(fraction), int(seed), len(self._shares), True)
        return self._with(held._replace(held=False)), self._with(held)

    def _with(self, share: Share) -> Stream:
        made = self._copy(self.source)
        made._shares = (*self._shares, share)
        return made

    def _copy(self, source: Source) -> Stream:
        made = Stream(
            source,
            block_rows=self.block_rows,
            shuffle_rows=self.shuffle_rows,
            prefetch=self.prefetch,
            shares=self._shares,
        )
        made._row_bytes = self._row_bytes
        return made

    def fingerprint(self) -> dict[str, str]:
        """What data it is and in what order it comes, as text by part, the same from process to process.

        Of files name, size, number of rows where the file says it, and a hash; of arrays and frames a hash
        (of files and arrays of more than 1 GB one of samples); of datasets paths, rows, sizes and times;
        of batches the type of what makes them and nothing more.

        Returns
        -------
        dict of str to str
        """
        columns = {f"columns of {key}": text for key, text in self.source.plan.describe().items()}
        if isinstance(self.source, ArraySource):
            columns = {}
        shares = [f"{'' if s.held else 'all but '}{s.fraction} by seed {s.seed}" for s in self._shares]
        window = "by default" if self.shuffle_rows is None else str(self.shuffle_rows)
        return {
            **self.source.fingerprint(),
            **columns,
            **({"split": ", of these ".join(shares)} if shares else {}),
            "shuffle_rows": window,
        }

    def where_not_finite(self, dtype: Any = None) -> str | None:
        """Where the first NaN or infinity is; None if there is none or it cannot be told.

        All rows are read, up to the place: for an error message.

        Parameters
        ----------
        dtype : dtype, optional
            A floating-point dtype; numbers that are too large for it count as well.
        """
        large = "" if dtype is None else f", or a number too large for {np.dtype(dtype)}"
        found = self.first_place(lambda key, array: _not_finite(array, dtype))
        return None if found is None else f"{found[0]}: {found[1]} holds NaN or infinity{large}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}  # files may have others by then

    def __repr__(self) -> str:
        known = "" if self._rows is None or self._rows[0] is None else f", {self._rows[0]:,} rows"
        shares = (
            f", {len(self._shares)} splits" if len(self._shares) > 1 else ", split" if self._shares else ""
        )
        return f"<Stream of {self.source.name}{known}{shares}>"


def _copied(block: Block) -> Block:
    """A block that may be written to, and kept."""
    return block.map(np.array)


def _not_finite(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Which rows hold NaN or infinity, also once they are of a dtype."""
    if array.dtype.kind not in "fiu":
        return np.zeros(len(array), bool)
    with np.errstate(over="ignore"):
        numbers = array.reshape(len(array), -1)
        return ~np.isfinite(numbers if dtype is None else numbers.astype(dtype)).all(axis=1)
