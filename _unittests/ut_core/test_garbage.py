"""Python looks for garbage again when graphs are made, whoever made them."""

from __future__ import annotations

import gc
import os
import threading

import pytest

from onnxcustom._garbage import collected_later


def test_errors_end_it() -> None:
    with pytest.raises(ValueError, match="any"), collected_later():
        raise ValueError("any")
    assert gc.isenabled()


def test_the_last_thread_ends_it() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with collected_later():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    with collected_later(), collected_later():
        pass
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_who_never_looks_is_left_alone() -> None:
    gc.disable()
    try:
        with collected_later():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads
def test_a_forked_process_looks() -> None:
    with collected_later():
        child = os.fork()
        if not child:
            os._exit(0 if gc.isenabled() else 1)
        assert os.waitpid(child, 0)[1] == 0
