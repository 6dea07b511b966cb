"""Reading ahead: an iterator that runs in a thread of its own, a few items before its consumer."""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

from onnxcustom.exceptions import CallOrderError

__all__ = ["read_ahead", "running"]

logger = logging.getLogger("onnxcustom")
T = TypeVar("T")
# How long to wait for a source that does not return before it is left alone, in seconds.
_PATIENCE = 10.0


def read_ahead(make: Callable[[], Iterator[T]], depth: int) -> Generator[T, None, None]:
    """The items of an iterator, made by a thread that is up to `depth` items ahead.

    The thread begins with the first item asked for. It ends with the iterator: when that is through, fails,
    is closed or collected, or when the consumer fails. What the iterator raises is raised here.

    Parameters
    ----------
    make : callable
        Returns the iterator; called in the thread.
    depth : int
        Items waiting at most. With 0 there is no thread.

    Yields
    ------
    object

    Examples
    --------
    >>> list(read_ahead(lambda: iter([1, 2, 3]), 2))
    [1, 2, 3]
    """
    shelf: _Shelf[T] = _Shelf(depth)
    if not depth or not _started(make, shelf):
        yield from make()
        return
    try:
        while True:
            found, item = shelf.get()
            if not found:
                break
            yield item  # type: ignore[misc]
            item = None
    finally:
        shelf.close(wait=True)


def _started(make: Callable[[], Iterator[T]], shelf: _Shelf[T]) -> bool:
    """Whether a thread fills the shelf; False where the system gives no more of them.

    ``threading.Thread.start`` waits until the new thread says that it runs, for ever if it dies of a lack of
    memory before it can. Here nobody waits: what such a thread drops says that it has died.
    """
    _OPEN.add(shelf)
    try:
        # The thread must not hold what collects it: a function, not a method of the generator's owner.
        _thread.start_new_thread(_fill, (make, shelf, _Token(shelf)))
    except RuntimeError as exc:
        logger.warning("No thread to read ahead: %s. Data is read as it is needed.", exc)
        shelf.leave()
        return False
    return True


class _Token:
    """What a thread holds as long as it lives."""

    def __init__(self, shelf: _Shelf[Any]) -> None:
        self._shelf = shelf

    def __del__(self) -> None:
        self._shelf.leave()


def _fill(make: Callable[[], Iterator[T]], shelf: _Shelf[T], token: _Token) -> None:
    """Put the items of an iterator on the shelf; what runs in the thread."""
    shelf.reader = threading.get_ident()
    try:
        iterator = make()
        try:
            while shelf.put(next(iterator)):  # no name for the item here: the consumer alone holds it
                pass
        except StopIteration:
            pass
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
        shelf.end(None)
    except BaseException as exc:
        shelf.end(exc)
    finally:  # not when the token goes: an error holds it with this frame
        shelf.leave()


class _Shelf(Generic[T]):
    """Items between two threads."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.process = os.getpid()
        self.items: deque[T] = deque()
        self.changed = threading.Condition()
        self.ended = self.closed = False
        self.error: BaseException | None = None
        self.reader: int | None = None
        #: That the other thread is through, or was never there.
        self.left = threading.Event()

    def put(self, item: T) -> bool:
        """Wait for room and put an item there; False if nobody wants it any more."""
        with self.changed:
            while len(self.items) >= self.depth and not self.closed:
                self.changed.wait()
            if not self.closed:
                self.items.append(item)
                self.changed.notify_all()
            return not self.closed

    def end(self, error: BaseException | None) -> None:
        """No more items, and why."""
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify_all()

    def leave(self) -> None:
        """The other thread is through, whether it could say so or not."""
        if not self.ended:
            self.end(
                MemoryError(
                    "The thread that reads ahead died, most likely of a lack of memory, and nothing more "
                    "will come of it. stream(..., prefetch=0) reads without one."
                )
            )
        self.left.set()

    def get(self) -> tuple[bool, T | None]:
        """Wait for an item; False if there are no more, or what the other thread raised."""
        if os.getpid() != self.process:
            raise CallOrderError("Reading was begun in another process: begin the epoch anew in this one.")
        with self.changed:
            # With a limit, so that Ctrl-C comes through on every system.
            while not self.items and not self.ended:
                self.changed.wait(1.0)
            if self.items:
                item = self.items.popleft()
                self.changed.notify_all()
                return True, item
            error, self.error = self.error, None
        if error is not None:
            raise error
        return False, None

    def close(self, wait: bool = False) -> None:
        """Make the other thread end, and perhaps wait until it has."""
        if os.getpid() != self.process:  # a fork took the memory along, but not the thread
            return
        with self.changed:
            self.closed, self.error = True, None
            self.items.clear()
            self.changed.notify_all()
        if not wait or sys.is_finalizing() or self.reader == threading.get_ident():
            return
        if not self.left.wait(_PATIENCE):
            logger.warning("A source of data does not return; its thread ends when it does.")


_OPEN: weakref.WeakSet[_Shelf] = weakref.WeakSet()


def running() -> list[_Shelf]:
    """The shelves that a thread of this process still fills."""
    return [s for s in list(_OPEN) if not s.left.is_set() and s.process == os.getpid()]


@atexit.register
def _close_all() -> None:
    """Let no thread read on while the interpreter is taken apart."""
    for shelf in list(_OPEN):
        shelf.close()
