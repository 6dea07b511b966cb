"""Reading ahead: an iterator that runs in a thread of its own, a few items before its consumer."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

__all__ = ["read_ahead"]

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
    if not depth:
        yield from make()
        return
    shelf: _Shelf[T] = _Shelf(depth)
    # The thread must not hold what collects it: a function, not a method of the generator's owner.
    thread = threading.Thread(target=_fill, args=(make, shelf), name="onnxcustom-reader", daemon=True)
    _OPEN.add(shelf)
    thread.start()
    try:
        while True:
            found, item = shelf.get(thread)
            if not found:
                break
            yield item  # type: ignore[misc]
            item = None
    finally:
        shelf.close(thread)


def _fill(make: Callable[[], Iterator[T]], shelf: _Shelf[T]) -> None:
    """Put the items of an iterator on the shelf; what runs in the thread."""
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


class _Shelf(Generic[T]):
    """Items between two threads."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.process = os.getpid()
        self.items: deque[T] = deque()
        self.changed = threading.Condition()
        self.ended = self.closed = False
        self.error: BaseException | None = None

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

    def get(self, thread: threading.Thread) -> tuple[bool, T | None]:
        """Wait for an item; False if there are no more, or what the other thread raised."""
        if os.getpid() != self.process:
            raise RuntimeError("Reading was begun in another process: begin the epoch anew in this one.")
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

    def close(self, thread: threading.Thread | None = None) -> None:
        """Make the other thread end, and wait until it has."""
        if os.getpid() != self.process:  # a fork took the memory along, but not the thread
            return
        with self.changed:
            self.closed, self.error = True, None
            self.items.clear()
            self.changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)
            if thread.is_alive():
                logger.warning("A source of data does not return; its thread ends when it does.")


_OPEN: weakref.WeakSet[_Shelf] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Let no thread read on while the interpreter is taken apart."""
    for shelf in list(_OPEN):
        shelf.close()
