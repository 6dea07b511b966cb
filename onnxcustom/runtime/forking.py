"""onnxruntime in a forked process: the threads of its sessions do not come along.

A session made before a fork may wait for ever for threads that the new process does not have, and
destroying it ends the process. So the new process keeps it, untouched, and makes another when it is used.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["ForkLock", "Remade", "remade_session"]


class ForkLock:
    """A reentrant lock that is free in a forked process, whoever held it before.

    Examples
    --------
    >>> lock = ForkLock()
    >>> with lock, lock:
    ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        with _GUARD:
            _LOCKS.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


class Remade:
    """Base of what holds objects of onnxruntime that are of no use in a forked process.

    There, those attributes are gone until somebody reads one of them: then they are made again.
    """

    #: The attributes.
    _parts: tuple[str, ...] = ()

    #: A method that sets them anew, which every subclass has.
    _remake: Callable[[], None]

    def __getattr__(self, name: str) -> Any:
        # Called for attributes that are missing only: in the process that made them this costs nothing.
        if name not in self._parts or "_lost" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _REMAKING:
            if name not in self.__dict__:
                self._remake()
        return self.__dict__[name]

    def _lose(self) -> None:
        """Drop the attributes, and see to it that what they were is never destroyed."""
        for name in self._parts:
            if name in self.__dict__:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.__dict__.pop(name)))
        self.__dict__["_lost"] = True


class _Session(Remade):
    """What makes an ``InferenceSession`` one that is made again."""

    _parts = ("_sess",)
    _make: Callable[[], Any]

    def _remake(self) -> None:
        made = dict(vars(self._make()))
        self.__dict__.update(made)


_CLASSES: dict[type, type] = {}


def remade_session(session: Any, make: Callable[[], Any]) -> Any:
    """Let a session be made again in a forked process.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        It is changed, and stays an instance of its class.
    make : callable
        Makes another like it.

    Returns
    -------
    onnxruntime.InferenceSession
        The same object.
    """
    cls = type(session)
    session.__class__ = _CLASSES.setdefault(cls, type(cls.__name__, (_Session, cls), {}))
    session._make = make
    return remember(session)


def remember(thing: Any) -> Any:
    """Have a :class:`Remade` looked after when the process is forked; returns it."""
    with _GUARD:
        _REMADE.add(thing)
    return thing


# Held while the sets change, and during a fork.
_GUARD = threading.Lock()
_LOCKS: weakref.WeakSet[ForkLock] = weakref.WeakSet()
_REMADE: weakref.WeakSet[Any] = weakref.WeakSet()
_REMAKING = ForkLock()
# What a thread that forks keeps alive meanwhile.
_HELD = threading.local()


def _before() -> None:
    _GUARD.acquire()
    # Garbage may be collected in the child before that gets to see to it.
    _HELD.things = list(_REMADE)


def _in_parent() -> None:
    _HELD.things = []
    _GUARD.release()


def _in_child() -> None:
    for lock in list(_LOCKS):
        lock._lock = threading.RLock()
    for thing in _HELD.things:
        thing._lose()
    _HELD.things = []
    _GUARD.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
