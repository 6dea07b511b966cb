"""Calling functions in other processes, and failing rather than waiting for ever."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest

#: What takes longer hangs.
SECONDS = 600


def needs_fork(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a test that forks; from Python 3.12 on, doing so with several threads is warned of."""
    test = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")(test)
    return pytest.mark.skipif(sys.platform != "linux", reason="processes are not forked here")(test)


def in_child(function: Callable[[], Any]) -> Any:
    """Call a function in a forked process; what it returns comes back through a pipe."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def work() -> None:
        try:
            there.send((True, function()))
        except BaseException:
            there.send((False, traceback.format_exc()))

    child = context.Process(target=work)
    child.start()
    there.close()
    try:
        assert here.poll(SECONDS), "the child hangs"
        try:
            done, value = here.recv()
        except EOFError:
            child.join(SECONDS)
            raise AssertionError(f"the child died: {child.exitcode}") from None
        child.join(SECONDS)
        assert child.exitcode == 0, f"the child does not end as it should: {child.exitcode}"
    finally:
        if child.is_alive():
            child.kill()
            child.join()
        here.close()
    assert done, value
    return value
