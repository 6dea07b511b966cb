"""Checkpoints in a folder: written whole or not at all, read only if they are what was written.

A checkpoint is a folder with two files::

    00000012/tensors.safetensors    arrays
    00000012/state.json             {"format": "onnxcustom checkpoint", "version": 1, "library": "0.5.0",
                                     "file": {"size": 1024, "sha256": "..."},
                                     "tensors": {"weights/w": {"dtype": "float32", "shape": [3, 1]}},
                                     "state": {...}, "checksum": "..."}

The checksum is the SHA-256 of all else in that JSON, keys sorted, without spaces; it stays so in every
version of the format. Nothing in either file is code.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnxcustom._parameters import check_number
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import CheckpointError

from .checkpoint_format import (
    NewerCheckpointError,
    decoded_document,
    decoded_tensors,
    encoded_document,
    encoded_tensors,
    json_state,
)
from .folder_lock import LOCK_FILE, locked_folder

__all__ = ["CheckpointStore", "Saved"]

_LOGGER = logging.getLogger("onnxcustom")
_TENSORS, _STATE = "tensors.safetensors", "state.json"
# JSON that is larger is no state of a training run.
_LARGEST_JSON = 1 << 26
_NUMBER = re.compile(r"[0-9]{8}|[1-9][0-9]{8,11}")
_TEMPORARY = re.compile(r"\.(tmp|old)-[0-9]+-[0-9a-f]{8}")
# Seconds after which a temporary name is nobody's any more, where the folder cannot be locked.
_FORGOTTEN = 86400
_ATTEMPTS = 10


class Saved(NamedTuple):
    """A checkpoint that was read.

    Attributes
    ----------
    path : Path
        Its folder.
    tensors : dict of str to ndarray
        As they were saved, to the bit.
    state : dict of str to object
        As JSON has it: tuples became lists, numbers of NumPy Python's own.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    state: dict[str, Any]


class CheckpointStore:
    """The last checkpoints of a training run, in a folder of their own.

    A checkpoint is there as a whole or not at all, whenever the process is killed: it is written
    under a temporary name, brought to the disk and renamed. Other files in the folder are left alone.

    Parameters
    ----------
    folder : str or path-like
        Made at the first :meth:`save` if it is not there; its checkpoints are called ``00000001`` and so
        on.
    keep : int, default=3
        Number of checkpoints that are kept, in [1, inf): the last ones.

    Raises
    ------
    CheckpointError
        `folder` is a file.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = CheckpointStore(folder.name)
    >>> store.save({"w": np.ones(2)}, {"epoch": 1}).name
    '00000001'
    >>> saved = store.latest()
    >>> saved.tensors, saved.state
    ({'w': array([1., 1.])}, {'epoch': 1})
    >>> folder.cleanup()
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3) -> None:
        check_number("keep", keep, "[1, inf)", integral=True)
        self.folder = Path(folder)
        self.keep = int(keep)
        self._forget_locks()
        self._check_folder()

    def _forget_locks(self) -> None:
        self._process = os.getpid()
        self._saving = threading.Lock()
        # Whether the file system knows that this store holds the folder; None where it does not.
        self._held: bool | None = None
        # What lets go of the folder, and which file locks it.
        self._release = contextlib.ExitStack()
        self._mark: tuple[int, int] | None = None

    # -- reading -----------------------------------------------------------------------------------

    def paths(self) -> list[Path]:
        """Folders of the checkpoints, oldest first, readable or not.

        Returns
        -------
        list of Path
        """
        self._check_folder()
        try:
            with os.scandir(self.folder) as entries:
                found = [e.name for e in entries if _NUMBER.fullmatch(e.name) and _is_folder(e)]
        except FileNotFoundError:
            return []
        return [self.folder / name for name in sorted(found, key=int)]

    def latest(self) -> Saved | None:
        """The newest checkpoint that is what was written; a warning is logged for each that is not.

        Returns
        -------
        Saved or None
            None if there is no checkpoint at all.

        Raises
        ------
        CheckpointError
            There are checkpoints, but none can be read: the message says why of each. The newest one
            was written by a newer version of this library.
        """
        reasons: list[str] = []
        for _ in range(_ATTEMPTS):
            found, reasons = self.paths(), []
            if not found:
                return None
            for path in reversed(found):
                try:
                    return _read(path)
                except NewerCheckpointError as exc:
                    raise CheckpointError(f"{path}: {exc}") from exc
                except CheckpointError as exc:
                    if not os.path.lexists(path):
                        break  # another process has just put newer ones in its place
                    reasons.append(f"{path.name}: {exc}")
                    _LOGGER.warning("The checkpoint %s cannot be read and is passed over: %s", path, exc)
            else:
                break
        raise CheckpointError(
            f"None of the checkpoints in {str(self.folder)!r} can be read: move them away to start anew. "
            + " ".join(reasons)
        )

    # -- writing -----------------------------------------------------------------------------------

    def save(self, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove all but the last ones.

        Parameters
        ----------
        tensors : mapping of str to ndarray
            Arrays of any shape, of booleans, integers or floating-point numbers, bfloat16 and float8 of
            ``ml_dtypes`` included.
        state : mapping of str to object
            What JSON can hold: None, booleans, numbers, NaN and infinity included, texts, lists, and
            mappings with texts as keys.

        Returns
        -------
        Path
            Folder of the checkpoint, which is on the disk.

        Raises
        ------
        TypeError, ValueError
            What cannot be written, named; nothing was.
        CheckpointError
            Another process, or another run of this one, trains into the folder.
        OSError
            The disk is full, or does not take it; the checkpoints that were there are as they were.
        """
        data, file, specs = encoded_tensors(tensors)
        text = encoded_document(json_state(state), specs, file)
        if len(text) > _LARGEST_JSON:
            raise ValueError(
                f"The state is {len(text)} bytes of JSON, more than {_LARGEST_JSON}: give arrays among the "
                "tensors."
            )
        if self._process != os.getpid():  # this is a copy in a process that was forked
            self._forget_locks()
        with self._saving, self._writing() as locked:
            self._sweep(locked)
            path = self._write(data, text)
            self._prune()
        return path

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep everyone else from writing into the folder, for as long as a run trains into it.

        A process that ends, however it does, holds it no longer. The folder is made if it is not there.

        Raises
        ------
        CheckpointError
            Another process, or another run of this one, trains into the folder.
        """
        with contextlib.ExitStack() as release:
            self._take(release)
            try:
                yield
            finally:
                self._held = self._mark = None

    def _take(self, release: contextlib.ExitStack) -> None:
        self._make_folder()
        held = release.enter_context(locked_folder(self.folder))
        self._process, self._held, self._release, self._mark = os.getpid(), held, release, self._present()

    def _present(self) -> tuple[int, int] | None:
        """Which file locks the folder, if one does."""
        try:
            status = os.stat(self.folder / LOCK_FILE, follow_symlinks=False)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _take_again(self) -> None:
        """The folder is gone, or another one: make it and hold it again."""
        self._held = self._mark = None
        self._release.close()
        self._take(self._release)
        warn_user(
            f"{str(self.folder)!r} was removed, emptied or replaced during training: it was made again, and "
            "goes on with the checkpoints from here.",
            RuntimeWarning,
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[bool]:
        """Be the only one who writes; whether the file system makes sure of it."""
        if self._held is not None and self._present() != self._mark:
            self._take_again()
        with contextlib.nullcontext() if self._held is not None else self.lock():
            yield bool(self._held)

    def _make_folder(self) -> None:
        self._check_folder()
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            _sync_folder(self.folder.absolute().parent)

    def _check_folder(self) -> None:
        if "\0" in str(self.folder):
            raise CheckpointError(f"{str(self.folder)!r} is no path: checkpoints go into a folder.")
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(f"{str(self.folder)!r} is a file: checkpoints go into a folder.")

    def _write(self, data: bytes, text: bytes) -> Path:
        temporary = self._temporary("tmp")
        try:
            os.mkdir(temporary)
            _write_file(temporary / _TENSORS, data)
            _write_file(temporary / _STATE, text)
            _sync_folder(temporary)
            path = self.folder / f"{self._next_number():08d}"
            os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(self.folder)
        return path

    def _next_number(self) -> int:
        """One more than anything there is called, a checkpoint or not."""
        number = 1 + max((int(n) for n in os.listdir(self.folder) if _NUMBER.fullmatch(n)), default=0)
        if not _NUMBER.fullmatch(f"{number:08d}"):
            raise CheckpointError(f"There is no number left in {str(self.folder)!r} after {number - 1}.")
        return number

    def _temporary(self, kind: str) -> Path:
        return self.folder / f".{kind}-{os.getpid()}-{secrets.token_hex(4)}"

    # -- removing ----------------------------------------------------------------------------------

    def _prune(self) -> None:
        """Remove checkpoints older than the last ones: renamed first, so that none is ever half there."""
        for path in self.paths()[: -self.keep]:
            try:
                if not set(os.listdir(path)) <= {_TENSORS, _STATE}:
                    continue  # somebody else's
                temporary = self._temporary("old")
                os.rename(path, temporary)
                shutil.rmtree(temporary)
            except OSError as exc:
                _LOGGER.warning("The old checkpoint %s could not be removed: %s", path, exc)

    def _sweep(self, locked: bool) -> None:
        """Remove what writers that were killed have left behind."""
        with os.scandir(self.folder) as entries:
            left = [e for e in entries if _TEMPORARY.fullmatch(e.name) and _is_folder(e)]
        for entry in left:
            # Whoever holds the lock is the only one who writes.
            if locked or time.time() - entry.stat(follow_symlinks=False).st_mtime > _FORGOTTEN:
                shutil.rmtree(entry.path, ignore_errors=True)

    # -- copies, pickles ---------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "keep": self.keep}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_locks()

    def __repr__(self) -> str:
        return f"CheckpointStore({str(self.folder)!r}, keep={self.keep})"


# -- files ---------------------------------------------------------------------------------------------


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _read(path: Path) -> Saved:
    """A checkpoint, if it is whole.

    Raises
    ------
    CheckpointError
        It is not; the message says what is wrong with it.
    """
    try:
        document = decoded_document(_read_file(path / _STATE, _LARGEST_JSON))
        # The size was checked against the shapes: nothing is read before that.
        data = _read_file(path / _TENSORS, document.size, exactly=True)
        return Saved(path, decoded_tensors(data, document), document.state)
    except OSError as exc:
        raise CheckpointError(f"{exc.strerror or exc}: {exc.filename!r}.") from exc
    except MemoryError as exc:
        raise CheckpointError("it does not fit into memory.") from exc


def _read_file(path: Path, size: int, exactly: bool = False) -> bytes:
    """The content of a plain file of a size, or of no more than that."""
    if path.is_symlink():
        raise CheckpointError(f"{path.name} is a symbolic link.")
    with open(path, "rb", opener=_open_only) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path.name} is no plain file.")
        if status.st_size > size or (exactly and status.st_size != size):
            wanted = f"{size}" if exactly else f"at most {size}"
            raise CheckpointError(f"{path.name} has {status.st_size} bytes, not {wanted}.")
        content = file.read(status.st_size)
    if len(content) != status.st_size:
        raise CheckpointError(f"{path.name} ended after {len(content)} of {status.st_size} bytes.")
    return content


def _open_only(path: str, flags: int) -> int:
    """Open a file that is one: no link, and nothing that would make us wait."""
    for name in ("O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    return os.open(path, flags)


def _write_file(path: Path, content: bytes) -> None:
    """Write a new file, onto the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    file = os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    finally:
        os.close(file)


def _sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name == "nt":  # pragma: no cover
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as exc:  # some network file systems
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(file)
