from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings

import pytest

from onnxcustom.data import reader
from onnxcustom.data.reader import read_ahead, running
from onnxcustom.exceptions import InvalidDataError


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    assert not running()
    yield
    gc.collect()
    assert not running()


class Endless:
    """Numbers, and how many were made and whether it was closed."""

    def __init__(self):
        self.made = 0
        self.closed = False
        self.thread = None

    def __call__(self):
        self.thread = threading.current_thread()
        try:
            while True:
                self.made += 1
                yield self.made
        finally:
            self.closed = True


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_come_in_order(depth):
    assert list(read_ahead(lambda: iter(range(100)), depth)) == list(range(100))
    assert list(read_ahead(lambda: iter(()), depth)) == []


def test_nothing_is_read_before_it_is_asked_for():
    source = Endless()
    items = read_ahead(source, 2)
    assert source.made == 0
    assert not running()
    items.close()
    assert source.made == 0


def test_a_thread_reads_and_not_far_ahead():
    source = Endless()
    items = read_ahead(source, 3)
    for i in range(1, 50):
        assert next(items) == i
        assert source.made <= i + 3 + 1  # on the shelf, and one in the hand of the thread
    assert source.thread is not threading.main_thread()
    assert len(running()) == 1
    items.close()


def test_no_thread_with_depth_0():
    source = Endless()
    items = read_ahead(source, 0)
    assert next(items) == 1
    assert source.made == 1
    assert source.thread is threading.current_thread()
    items.close()
    assert source.closed


@pytest.mark.parametrize("depth", [0, 2])
def test_the_source_is_closed_when_the_consumer_stops(depth):
    source = Endless()
    for item in read_ahead(source, depth):
        if item == 5:
            break
    assert source.closed
    assert not running()


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Stopped, GeneratorExit])
def test_the_thread_ends_when_the_consumer_fails(error):
    source = Endless()

    def consume():
        for item in read_ahead(source, 2):
            if item == 3:
                raise error

    with pytest.raises(error):
        consume()
    assert source.closed
    assert not running()


def test_the_thread_ends_when_the_iterator_is_collected():
    source = Endless()
    items = read_ahead(source, 2)
    next(items)
    del items
    gc.collect()
    assert source.closed
    assert not running()


def test_the_thread_ends_when_all_is_read():
    items = read_ahead(lambda: iter([1]), 2)
    assert list(items) == [1]
    assert not running()
    with pytest.raises(StopIteration):
        next(items)


@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.parametrize(
    "error", [InvalidDataError("bad"), OSError("disk"), KeyboardInterrupt(), SystemExit(3)]
)
def test_errors_come_through_after_the_items_before_them(depth, error):
    def source():
        yield 1
        yield 2
        raise error

    got = []
    with pytest.raises(type(error)) as caught:
        got.extend(read_ahead(source, depth))
    assert caught.value is error
    assert not running()
    items = read_ahead(source, depth)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(type(error)):
        next(items)


def test_errors_before_the_first_item():
    def source():
        raise ValueError("nothing to begin with")

    with pytest.raises(ValueError, match="nothing to begin with"):
        next(read_ahead(source, 2))


def test_an_error_nobody_waits_for_is_dropped():
    begun = threading.Event()

    def source():
        yield 1
        begun.set()
        raise ValueError("nobody wants to know")

    items = read_ahead(source, 2)
    assert next(items) == 1
    assert begun.wait(10)
    items.close()


def test_items_are_not_held_after_they_are_given_out():
    class Item:
        alive = 0

        def __init__(self):
            Item.alive += 1

        def __del__(self):
            Item.alive -= 1

    depth, most = 2, 0
    for item in read_ahead(lambda: (Item() for _ in range(50)), depth):
        most = max(most, Item.alive)
        del item
    assert most <= depth + 2


def test_a_thread_that_dies_before_its_first_line(monkeypatch):
    """Of a lack of memory, before it can say so: what it was given is dropped, and nobody waits."""
    monkeypatch.setattr(reader._thread, "start_new_thread", lambda function, arguments: 1)
    items = read_ahead(lambda: iter([1]), 2)
    with pytest.raises(MemoryError, match=r"thread that reads ahead died.*prefetch=0"):
        next(items)


def test_a_thread_that_dies_in_the_middle(monkeypatch):
    """Nor can it say so where there is no memory for that."""
    died = threading.Event()
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: died.set())

    def broken(self, item):
        raise MemoryError

    monkeypatch.setattr(reader._Shelf, "put", broken)
    end = reader._Shelf.end
    monkeypatch.setattr(
        reader._Shelf, "end", lambda self, error: end(self, error) if str(error) else broken(self, None)
    )
    with pytest.raises(MemoryError, match="thread that reads ahead died"):
        next(read_ahead(lambda: iter([1]), 2))
    assert died.wait(600)


def test_without_threads_reading_goes_on(monkeypatch, caplog):
    def none(*arguments):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(reader._thread, "start_new_thread", none)
    assert list(read_ahead(lambda: iter([1, 2]), 2)) == [1, 2]
    assert "can't start new thread" in caplog.text


def test_many_at_once():
    items = [read_ahead(lambda: iter(range(20)), 2) for _ in range(5)]
    assert [list(z) for z in zip(*items, strict=True)] == [[i] * 5 for i in range(20)]


def test_a_source_that_never_returns_is_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(reader, "_PATIENCE", 0.01)
    stuck, release = threading.Event(), threading.Event()

    def source():
        yield 1
        stuck.set()
        release.wait(60)

    items = read_ahead(source, 2)
    assert next(items) == 1
    assert stuck.wait(10)
    items.close()
    assert "does not return" in caplog.text
    (shelf,) = running()
    release.set()
    assert shelf.left.wait(10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_what_was_begun_before_a_fork_says_so():
    items = read_ahead(lambda: iter(range(100)), 2)
    next(items)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
        context = multiprocessing.get_context("fork")
        parent, child = context.Pipe()

        def run():
            try:
                next(items)
                child.send("read on")
            except RuntimeError as exc:
                child.send(str(exc))

        process = context.Process(target=run)
        process.start()
    assert parent.poll(600)
    assert "another process" in parent.recv()
    process.join()
    assert process.exitcode == 0
    assert next(items) == 1
    items.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_reads_on_its_own():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = multiprocessing.get_context("fork")
        parent, child = context.Pipe()
        process = context.Process(target=lambda: child.send(list(read_ahead(lambda: iter(range(5)), 2))))
        process.start()
    assert parent.poll(30)
    assert parent.recv() == [0, 1, 2, 3, 4]
    process.join(30)


def test_the_interpreter_ends_while_something_is_read():
    code = (
        "import itertools\n"
        "from onnxcustom.data.reader import read_ahead\n"
        "items = read_ahead(itertools.count, 2)\n"
        "print(next(items))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
