"""Copies, pickles and threads of an updater; states on devices; whatever happens in between."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom import optim
from onnxcustom.exceptions import CheckpointError, InvalidDataError
from onnxcustom.optim import SGD, Adam, Updater

from .rule_cases import adam, draws

pytest.importorskip("onnxruntime")

HALF = np.array([0.5, -0.5])


DUPLICATES = pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda u: pickle.loads(pickle.dumps(u))], ids=["deepcopy", "pickle"]
)


@DUPLICATES
@pytest.mark.parametrize("on_device", [False, True], ids=["arrays", "ortvalues"])
def test_copies_go_their_own_way(duplicate, on_device):
    gradients = draws(6)
    updater, w = Updater(Adam(0.1, accumulate=2, skip_nonfinite=True)), np.ones(2)
    for g in [*gradients[:3], np.full(2, np.nan)]:
        updater("w", g, w)
    if on_device:
        updater.states["w"] = updater.sync_state_context(updater.states["w"], "cpu")
    again, w2 = duplicate(updater), w.copy()
    assert (again.counts, again.skipped, repr(again)) == (updater.counts, 1, repr(updater))
    means = [np.mean(gradients[i : i + 2], axis=0) for i in (0, 2, 4)]
    for g in gradients[3:]:
        again("w", g, w2)
    np.testing.assert_allclose(w2, adam(np.ones(2), means, 0.1), rtol=1e-12)
    for g in gradients[3:]:
        updater("w", g, w)
    np.testing.assert_array_equal(w, w2)
    again.optimizer.set_learning_rate(0.5)
    assert updater.optimizer.learning_rate == 0.1


def test_pickle_of_another_version_is_refused():
    state = Updater("sgd").__getstate__()
    state["onnxcustom_pickle_format"] = -1
    with pytest.raises(CheckpointError, match="Updater has format -1"):
        Updater.__new__(Updater).__setstate__(state)


EVENTS = ["update", "update", "bad", "skip", "save", "save rule", "pickle", "rate", "freeze", "thaw"]


@given(st.lists(st.sampled_from(EVENTS), max_size=12))
def test_whatever_happens_in_between_the_run_goes_on(events):
    def rule(**options: Any) -> SGD:
        return SGD(0.5, momentum=0.5, skip_nonfinite=True, **options)

    updater, w = Updater(rule()), np.ones(2)
    expected, v, lr, frozen = np.ones(2), np.zeros(2), 0.5, False
    for event, g in zip(events, draws(len(events)), strict=True):
        if event == "update":
            updater("w", g, w)
            if not frozen:
                v = 0.5 * v + lr * g
                expected = expected - v
        elif event == "bad" and not frozen:
            with pytest.raises(InvalidDataError):
                updater(["x", "w"], [g, g[:1]], [np.ones(2), w])
        elif event == "skip":
            updater(["x", "w"], [g * np.nan, g], [np.ones(2), w])
        elif event.startswith("save"):
            whole = event == "save rule"
            again = Updater(SGD()) if whole else Updater(updater.optimizer)
            again.set_states(updater.get_states(whole))
            updater = again
        elif event == "pickle":
            updater = pickle.loads(pickle.dumps(updater))
        elif event == "rate":
            lr = 0.25
            updater.optimizer.set_learning_rate(lr)
        elif event in ("freeze", "thaw"):
            frozen = event == "freeze"
            updater.optimizer = rule(frozen=["w"] if frozen else None).set_learning_rate(lr)
        np.testing.assert_allclose(w, expected, rtol=1e-12, atol=1e-13)
    assert updater.skipped == events.count("skip")


def test_state_on_a_device():
    updater, w = Updater(Adam(0.1)), np.ones(2)
    updater(0, HALF, w)
    moved = updater.sync_state_context(updater.states[0], "cpu")
    for name, array in updater.states[0].items():
        np.testing.assert_array_equal(moved[name].numpy(), array)
        assert not np.shares_memory(moved[name].numpy(), array)
    updater.states[0] = moved
    updater(0, HALF, w)
    np.testing.assert_allclose(w, adam(np.ones(2), [HALF] * 2, 0.1), rtol=1e-12)
    with pytest.raises(ValueError, match="not a device"):
        updater.sync_state_context(moved, "tpu")


def run_threads(targets: list[Any]) -> None:
    errors: list[BaseException] = []

    def guarded(target: Any) -> None:
        try:
            target()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("shared", ["updater", "rule"])
def test_threads_do_not_disturb_each_other(shared):
    rule = Adam(lambda t: 0.1 / t)
    common = Updater(rule)
    updaters = [common if shared == "updater" else Updater(rule) for _ in range(3)]
    gradients = [draws(40, (2,), seed) for seed in range(3)]
    weights = [np.ones(2) for _ in range(3)]

    def work(k: int) -> None:
        for g in gradients[k][: 20 + 10 * k]:
            updaters[k](k, g, weights[k])

    run_threads([lambda k=k: work(k) for k in range(3)])
    for k, w in enumerate(weights):
        n = 20 + 10 * k
        expected = adam(np.ones(2), gradients[k][:n], [0.1 / t for t in range(1, n + 1)])
        np.testing.assert_allclose(w, expected, rtol=1e-12)


def test_random_numbers_belong_to_index_and_step():
    start = np.zeros(50)

    def run(indices: list[Any]) -> dict[Any, np.ndarray]:
        updater = Updater(optim.SGLD(0.1))
        weights = {i: start.copy() for i in indices}
        for _ in range(2):
            for i in indices:
                updater(i, np.zeros(50), weights[i])
        return weights

    one, other = run([0, 1, "a", -1]), run(["a", -1, 1])
    for i in other:
        np.testing.assert_array_equal(one[i], other[i])
    values = list(one.values())
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.7 for k, a in enumerate(values) for b in values[:k])
