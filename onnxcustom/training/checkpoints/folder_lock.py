"""A folder that one training run at a time writes into, in this process or any other."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from onnxcustom.exceptions import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK_FILE", "locked_folder"]

LOCK_FILE = ".onnxcustom.lock"
_LOGGER = logging.getLogger("onnxcustom")
# File system locks belong to a process: within it, this tells its runs apart. Device and file number of
# the folder -> process and run.
_HELD: dict[tuple[int, int], tuple[int, object]] = {}
# Byte that Windows locks: not one that somebody reads.
_FAR = 1 << 30


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[bool]:
    """Hold a folder against everyone else; the system lets go of it when the process ends, however it does.

    Parameters
    ----------
    folder : Path
        A folder that exists.

    Yields
    ------
    bool
        False where the file system has no locks, so that only this process is kept out.

    Raises
    ------
    CheckpointError
        Another process, or another run of this one, holds it.
    """
    with _held_here(folder), _lock_file(folder) as file:
        taken = _lock(file, folder)
        if taken:
            with contextlib.suppress(OSError):  # it only says who it is
                os.ftruncate(file, 0)
                os.lseek(file, 0, os.SEEK_SET)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield taken


@contextlib.contextmanager
def _held_here(folder: Path) -> Iterator[None]:
    status = folder.stat()
    identity, run = (status.st_dev, status.st_ino), (os.getpid(), object())
    # In a process that was forked, runs of its parent are none of its own.
    while (found := _HELD.setdefault(identity, run)) is not run:
        if found[0] == run[0]:
            raise CheckpointError(
                f"This process already trains into {str(folder)!r}: give every run a folder of its own."
            )
        _HELD.pop(identity, None)
    try:
        yield
    finally:
        if _HELD.get(identity) is run:
            del _HELD[identity]


@contextlib.contextmanager
def _lock_file(folder: Path) -> Iterator[int]:
    path = folder / LOCK_FILE
    if path.is_symlink():
        raise CheckpointError(f"{str(path)!r} is a link: remove it.")
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    file = os.open(path, flags, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise CheckpointError(f"{str(path)!r} is no plain file: remove it.")
        yield file
    finally:
        os.close(file)  # lets go of the lock


def _lock(file: int, folder: Path) -> bool:
    """Take the lock of a file; False if the file system has none."""
    try:
        if fcntl is not None:
            # Not flock: a process that was forked while training must not hold the folder.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:  # pragma: no cover
            import msvcrt

            os.lseek(file, _FAR, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            raise CheckpointError(
                f"Another process trains into {str(folder)!r}{_who(file)}: wait for it, end it, or give this "
                "run a folder of its own."
            ) from exc
        _LOGGER.warning(
            "%s cannot be locked (%s): do not train into it from two processes.", folder, exc.strerror
        )
        return False
    return True


def _who(file: int) -> str:
    """Who holds the lock, if it says so."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        text = os.read(file, 200).decode(errors="replace")
    except OSError:
        return ""
    return f" ({text})" if re.fullmatch(r"process \d+ on [\w.-]+", text) else ""
