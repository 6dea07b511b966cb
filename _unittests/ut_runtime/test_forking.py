from __future__ import annotations

import gc
import threading
import warnings
import weakref

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcustom.runtime import Binding, ForkLock, create_session, forking, run_values, sessions, to_ortvalue

from ..processes import SECONDS, in_child, needs_fork

X = np.arange(3, dtype=np.float32)


@pytest.fixture
def model():
    return onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N] x, float[N] y) => (float[N] sum, float[N] twice) { sum = Add(x, y) twice = Add(x, x) }"""
    )


def feeds():
    return {"x": to_ortvalue(X), "y": to_ortvalue(X * X)}


@needs_fork
@pytest.mark.parametrize("spilled", [False, True])
def test_a_session_is_made_again_when_it_is_used(model, monkeypatch, spilled):
    if spilled:  # as models that are too large for a message are
        monkeypatch.setattr(sessions, "PROTOBUF_LIMIT", 1)
    session = create_session(model, threads=4)
    assert isinstance(session, onnxruntime.InferenceSession)
    first = session._sess

    def use():
        assert "_sess" not in vars(session)
        assert [i.name for i in session.get_inputs()] == ["x", "y"]
        (total,) = run_values(session, feeds(), ["sum"])
        assert session._sess is not first
        assert session._sess is session._sess
        twice = session.run(["twice"], {"x": X, "y": X})[0]
        return total.numpy().tolist(), twice.tolist()

    assert in_child(use) == ([0, 2, 6], [0, 2, 4])
    assert session._sess is first
    assert in_child(lambda: in_child(use)) == ([0, 2, 6], [0, 2, 4])


@needs_fork
def test_a_binding_keeps_what_is_bound(model):
    binding = Binding(create_session(model, threads=4))
    total = np.zeros(3, np.float32)
    for name, value in feeds().items():
        binding.bind_input(name, value)
    binding.bind_output("sum", to_ortvalue(total))
    binding.bind_output("twice")
    binding.run()

    def use():
        total[...] = 0
        assert "_binding" not in vars(binding)
        twice = binding.run()[1].numpy().tolist()
        binding.rebind_inputs(["y"], [to_ortvalue(X + 1)])
        before = total.tolist()
        binding.execute()
        return before, twice, total.tolist()

    assert in_child(use) == ([0, 2, 6], [0, 2, 4], [1, 3, 5])

    def rebind_first():
        binding.rebind_inputs(["y"], [to_ortvalue(X + 1)])
        binding.execute()
        return total.tolist()

    assert in_child(rebind_first) == [1, 3, 5]
    assert total.tolist() == [0, 2, 6]


@needs_fork
def test_what_is_left_is_not_destroyed(model):
    held = [create_session(model, threads=4)]
    held.append(Binding(held[0]))

    def forget():
        held.clear()
        gc.collect()
        return True

    assert in_child(forget)


def test_garbage_lives_until_the_child_has_seen_to_it(model):
    session = create_session(model)
    alive = weakref.ref(session)
    forking._before()
    try:
        del session
        gc.collect()
        assert alive() is not None
    finally:
        forking._in_parent()
    gc.collect()
    assert alive() is None


@needs_fork
def test_threads_of_a_child_make_it_once(model):
    session = create_session(model, threads=1)

    def use():
        made = []
        original, session._make = session._make, lambda: made.append(1) or original()
        start = threading.Barrier(4)

        def run():
            start.wait(SECONDS)
            session.run(None, {"x": X, "y": X})

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        return len(made)

    assert in_child(use) == 1


@needs_fork
def test_a_lock_is_free_in_a_child():
    lock = ForkLock()
    held, release = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            release.wait(SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(SECONDS)
        assert not lock._lock.acquire(blocking=False)
        assert in_child(lambda: lock._lock.acquire(timeout=SECONDS / 2))
    finally:
        release.set()
        thread.join()


@pytest.mark.parametrize("make", [create_session, lambda m: Binding(create_session(m))])
def test_other_attributes_are_still_missing(model, make):
    with pytest.raises(AttributeError, match="no_such"):
        _ = make(model).no_such


def test_sessions_leave_the_filters_of_warnings_alone(model, monkeypatch):
    # All threads share them: two that set and restore them at a time leave those of the other behind.
    monkeypatch.setattr(warnings, "catch_warnings", None)
    create_session(model)
