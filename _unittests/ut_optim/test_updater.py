"""Updates by index: state, errors that change nothing, odd arrays, copies, threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from onnxcustom import optim
from onnxcustom.exceptions import ConvergenceError, InvalidDataError, UnknownNameError
from onnxcustom.optim import NAG, SGD, Adam, BaseLearningRate, Exp, ReduceOnPlateau, Updater, get_updater
from onnxcustom.runtime import owned_copy, to_ortvalue

from .rule_cases import adam, draws

pytest.importorskip("onnxruntime")

HALF = np.array([0.5, -0.5])


def heavy_ball(w, gradients, lr, momentum):
    v = np.zeros_like(w)
    for g in gradients:
        v = momentum * v + lr * g
        w = w - v
    return w


def snapshot(updater: Updater) -> tuple[Any, ...]:
    """Everything an updater remembers, as bytes."""
    return updater.get_states(), dict(updater.counts), updater.skipped


# -- what it does ------------------------------------------------------------------------------


def test_get_updater_makes_an_updater():
    rule = SGD(0.1)
    assert get_updater(rule).optimizer is rule
    assert type(get_updater("ADAM").optimizer) is Adam
    with pytest.raises(UnknownNameError, match="no update rule"):
        get_updater("adamm")


@pytest.mark.parametrize("bad", [None, 0.1, SGD, [SGD()]])
def test_only_rules_and_names(bad):
    with pytest.raises(TypeError, match="must be an update rule or its name"):
        get_updater(bad)


def test_device_is_checked_at_once():
    with pytest.raises(ValueError, match="'tpu' is not a device"):
        Updater("sgd", device="tpu")


@given(
    array_shapes(min_dims=0, max_dims=3, max_side=3),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, -7, 2**40, "kernel", ""]),
)
def test_follows_the_formula(shape, steps, seed, index):
    start, *gradients = draws(steps + 1, shape, seed)
    w = np.array(start)
    updater = Updater(Adam(0.1, beta1=0.8, beta2=0.95))
    for g in gradients:
        assert updater(index, g, w) is w
    expected = adam(np.array(start), gradients, 0.1, 0.8, 0.95)
    np.testing.assert_allclose(w, expected, rtol=1e-12, atol=1e-13)
    assert updater.counts == {index: steps}


def test_each_index_has_a_clock_of_its_own():
    updater = Updater(Adam(lambda t: 0.1 / t))
    a, b = np.ones(2), np.ones(3)
    of_a, of_b = draws(4), draws(2, (3,), seed=1)
    for t, g in enumerate(of_a):
        updater(0, g, a)
        if t >= 2:  # a weight that comes late
            updater("late", of_b[t - 2], b)
    np.testing.assert_allclose(a, adam(np.ones(2), of_a, [0.1 / t for t in (1, 2, 3, 4)]), rtol=1e-12)
    np.testing.assert_allclose(b, adam(np.ones(3), of_b, [0.1 / t for t in (1, 2)]), rtol=1e-12)
    assert updater.counts == {0: 4, "late": 2}
    assert (updater.optimizer.t, updater.optimizer.value) == (2, 0.05)  # of the last update


def test_lists_of_weights():
    updater, alone = Updater(Adam(0.1)), Updater(Adam(0.1))
    weights, ones = [np.ones(2), np.ones((2, 2))], [np.ones(2), np.ones((2, 2))]
    for seed in range(3):
        gradients = [*draws(1, (2,), seed), *draws(1, (2, 2), seed)]
        assert updater([1, "b"], gradients, weights) is weights
        for i, g, w in zip((1, "b"), gradients, ones, strict=True):
            alone(i, g, w)
    for got, wanted in zip(weights, ones, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert updater([], [], []) == []


def test_numpy_integers_are_the_same_index():
    updater = Updater(NAG(0.1, momentum=0.5))
    w = np.ones(2)
    updater(np.int32(3), HALF, w)
    updater(3, HALF, w)
    updater(np.uint8(3), HALF, w)
    assert updater.counts == {3: 3}
    Updater(NAG(0.1, momentum=0.5)).set_states(updater.get_states())


@pytest.mark.parametrize("index", [True, 1.0, None, b"w", (1, 2.0)])
def test_no_index(index):
    with pytest.raises(InvalidDataError, match=r"must be an integer or a name|needs a list"):
        Updater("sgd")(index, np.ones(2), np.ones(2))


def test_accumulation_updates_by_the_mean():
    gradients = draws(7)
    w, updater = np.ones(2), Updater(Adam(0.1, accumulate=3))
    seen = []
    for g in gradients:
        updater(0, g, w)
        seen.append(w.copy())
    means = [np.mean(gradients[i : i + 3], axis=0) for i in (0, 3)]
    np.testing.assert_array_equal(seen[:2], np.ones((2, 2)))
    np.testing.assert_allclose(seen[2], adam(np.ones(2), means[:1], 0.1), rtol=1e-12)
    np.testing.assert_allclose(seen[6], adam(np.ones(2), means, 0.1), rtol=1e-12)
    assert updater.counts == {0: 2}


def test_accumulation_is_precise_in_half_precision():
    w, updater = np.zeros(1, np.float16), Updater(SGD(1.0, accumulate=2))
    for g in (40000, 50000):  # their sum is infinite in float16
        updater(0, np.array([g], np.float16), w)
    np.testing.assert_array_equal(w, [np.float16(-45000)])


@given(st.floats(0.01, 10), st.integers(0, 2**32 - 1))
def test_clip_global_norm_is_of_the_whole_call(limit, seed):
    gradients = [*draws(1, (3,), seed), *draws(1, (2, 2), seed + 1)]
    weights = [np.zeros(3), np.zeros((2, 2))]
    Updater(SGD(1.0, clip_global_norm=limit))([0, 1], gradients, weights)
    norm = np.linalg.norm(np.concatenate([g.ravel() for g in gradients]))
    for w, g in zip(weights, gradients, strict=True):
        np.testing.assert_allclose(w, -g * min(1, limit / norm), rtol=1e-12)


def test_clip_global_norm_comes_before_the_rest_and_is_of_means():
    rule = SGD(1.0, clip_global_norm=1.0, rescale_grad=3.0, clip_gradient=0.5, accumulate=2)
    w, updater = np.zeros(2), Updater(rule)
    for g in ([0.0, 0.0], [12.0, 16.0]):  # mean (6, 8), norm 10
        updater(0, np.array(g), w)
    np.testing.assert_allclose(w, [-1.5, -1.5])  # SGD clips before it rescales


# -- NaN -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("wrap", [to_ortvalue, lambda a: a], ids=["ortvalue", "numpy"])
@pytest.mark.parametrize("name", ["sgd", "signsgd", "adam"])
def test_nonfinite_gradient_names_the_index_and_changes_nothing(value, wrap, name):
    updater = get_updater(name)
    first, second = np.ones(2), np.ones(2)
    updater(["a", 7], [HALF, HALF], [first, second])
    kept, before = (first.copy(), second.copy()), snapshot(updater)
    with pytest.raises(ConvergenceError, match=r"gradient of 7 holds NaN or infinity at its update 2.*skip_"):
        updater(["a", 7], [HALF, wrap(np.array([0.0, value]))], [first, second])
    np.testing.assert_array_equal((first, second), kept)
    assert snapshot(updater) == before


def test_skip_nonfinite_counts_and_goes_on():
    gradients = draws(4)
    updater, w, other = Updater(Adam(0.1, skip_nonfinite=True)), np.ones(2), np.ones(2)
    for t, g in enumerate(gradients):
        updater([0, 1], [g, g], [w, other])
        updater([0, 1], [g, np.full(2, np.nan)], [w, other])
        assert updater.skipped == t + 1
    np.testing.assert_allclose((w, other), [adam(np.ones(2), gradients, 0.1)] * 2, rtol=1e-12)
    assert updater.counts == {0: 4, 1: 4}


def test_a_skipped_batch_is_not_accumulated():
    w, updater = np.zeros(1), Updater(SGD(1.0, accumulate=2, skip_nonfinite=True))
    for g in (1.0, np.nan, 3.0):
        updater(0, np.array([g]), w)
    np.testing.assert_array_equal(w, [-2.0])


def test_frozen_weights_may_have_any_gradient():
    w = np.ones(2)
    updater = Updater(SGD(0.1, frozen=["b*", "x[0]"], param_idx2name={4: "bias"}))
    for index in ("bias", 4, "x[0]", "x0"):
        updater(index, np.full(2, np.nan), w)
    np.testing.assert_array_equal(w, [1, 1])
    assert updater.counts == {}


# -- bad input changes nothing ---------------------------------------------------------------------


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


BAD: list[tuple[str, list[Any], type[Exception], str]] = [
    ("shape", [1, np.ones(3), np.ones(2)], InvalidDataError, r"gradient of 1 has shape \(3,\)"),
    ("rank", [1, np.ones((1, 2)), np.ones(2)], InvalidDataError, r"gradient of 1 has shape \(1, 2\)"),
    ("dtype", [1, np.ones(2, "f4"), np.ones(2)], InvalidDataError, "dtype float32, its weight has.*float64"),
    ("integers", [1, np.ones(2, int), np.ones(2, int)], InvalidDataError, "must be a floating-point"),
    ("list", [1, [1.0, 1.0], np.ones(2)], TypeError, "gradient must be an OrtValue or an array"),
    ("scalar", [1, np.ones(()), 1.0], TypeError, "weight must be an OrtValue or an array"),
    ("read-only", [1, np.ones(2), read_only(np.ones(2))], InvalidDataError, "weight of 1 .* read-only"),
    ("twice", ["first", np.ones(2), np.ones(2)], InvalidDataError, "index is given twice"),
    ("index", [1.5, np.ones(2), np.ones(2)], InvalidDataError, r"integer or a name, not 1\.5"),
    (
        "new shape",
        ["old", np.ones(3), np.ones(3)],
        InvalidDataError,
        "state of 'old' does not fit its weight",
    ),
    ("new dtype", ["old", np.ones(2, "f4"), np.ones(2, "f4")], InvalidDataError, "state of 'old'.*float32"),
]


@pytest.mark.parametrize(("call", "kind", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_one_bad_weight_leaves_all_as_they_are(call, kind, message):
    updater = Updater(Adam(0.1))
    updater("old", HALF, np.ones(2))
    before, w = snapshot(updater), np.ones(2)
    index, gradient, weight = call
    with pytest.raises(kind, match=message):
        updater(["first", index], [np.ones(2), gradient], [w, weight])
    np.testing.assert_array_equal(w, [1, 1])
    np.testing.assert_array_equal(weight, np.ones_like(weight))
    assert snapshot(updater) == before


def test_lengths_must_agree():
    with pytest.raises(InvalidDataError, match="2 indices, 1 gradients and 2 weights"):
        Updater("sgd")([0, 1], [np.ones(2)], [np.ones(2), np.ones(2)])
    for gradient in (np.ones((2, 2)), to_ortvalue(np.ones(2))):
        with pytest.raises(InvalidDataError, match="needs a list of gradients"):
            Updater("sgd")([0, 1], gradient, [np.ones(2), np.ones(2)])


def test_read_only_state_is_refused_first():
    updater, w = Updater(Adam(0.1)), np.ones(2)
    updater([0, 1], [HALF, HALF], [np.ones(2), w])
    read_only(updater.states[1]["v"])
    kept, first = w.copy(), np.ones(2)
    with pytest.raises(InvalidDataError, match=r"The v of 1 is updated in place.*read-only"):
        updater([0, 1], [HALF, HALF], [first, w])
    np.testing.assert_array_equal((first, w), ([1, 1], kept))


def test_a_schedule_that_fails_for_a_later_index_changes_nothing():
    updater = Updater(Adam(lambda t: 0.1 if t < 3 else -1.0))
    old, new = np.ones(2), np.ones(2)
    for _ in range(2):
        updater("old", HALF, old)
    before, kept = snapshot(updater), old.copy()
    with pytest.raises(
        ValueError, match=r"gave -1.0 at step 3 of epoch 1; a learning rate is a number in \[0, inf\)"
    ):
        updater(["new", "old"], [HALF, HALF], [new, old])
    np.testing.assert_array_equal((new, old), (np.ones(2), kept))
    assert snapshot(updater) == before


def test_accumulated_gradients_of_another_shape_are_not_broadcast():
    updater, w = Updater(SGD(1.0, accumulate=2)), np.zeros(3)
    updater(0, np.ones(1), np.zeros(1))
    with pytest.raises(
        InvalidDataError, match=r"accumulated so far have shape \(1,\), its weight has \(3,\)"
    ):
        updater(0, np.ones(3), w)
    np.testing.assert_array_equal(w, np.zeros(3))


# -- arrays of every kind --------------------------------------------------------------------------


def _strided(a):
    base = np.zeros((2 * a.shape[0], *a.shape[1:]), a.dtype)
    base[::2] = a
    return base[::2]


def _unaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    view = raw.view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


KINDS = {
    "fortran": np.asfortranarray,
    "strided": _strided,
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "unaligned": _unaligned,
    "ortvalue": lambda a: to_ortvalue(a.copy()),
    "c ortvalue": owned_copy,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of_gradient", [False, True], ids=["weight", "both"])
@pytest.mark.parametrize("name", ["adam", "dcasgd", "nadam"])
def test_weights_in_any_memory(kind, of_gradient, name):
    make = KINDS[kind]
    start, *gradients = draws(4, (3, 2))
    plain, odd = start.copy(), make(start)
    one, other = get_updater(name), get_updater(name)
    for g in gradients:
        one(0, g, plain)
        assert other(0, make(g) if of_gradient else g, odd) is odd
        again = Updater(name)  # and through bytes
        again.set_states(other.get_states())
        other = again
    got = odd if isinstance(odd, np.ndarray) else odd.numpy()
    np.testing.assert_array_equal(got, plain)
    assert not np.array_equal(plain, start)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip_global_norm": 1.0}], ids=str)
def test_scalars_and_empty_weights(shape, dtype, options):
    w = np.ones(shape, dtype)
    updater = Updater(SGD(0.5, momentum=0.5, **options))
    for _ in range(4):
        updater(0, np.ones(shape, dtype), w)
    steps = 4 // options.get("accumulate", 1)
    np.testing.assert_array_equal(w, heavy_ball(np.ones(shape), [np.ones(shape)] * steps, 0.5, 0.5))
    assert (w.shape, w.dtype) == (shape, dtype)


def test_gradient_of_a_scalar_may_be_a_numpy_number():
    w, updater = np.array(3.0), Updater(SGD(0.25))
    updater(0, 2 * w, w)
    assert w == 1.5


@pytest.mark.parametrize("wrap", [to_ortvalue, lambda a: a], ids=["ortvalue", "numpy"])
@pytest.mark.parametrize("name", ["sgd", "adam", "nag", "adamax", "ftml", "signum"])
def test_the_gradient_may_be_the_weight_itself(wrap, name):
    # As for half the square of the weight.
    apart, same = get_updater(name), get_updater(name)
    a, b = draws(1, (100,))[0], draws(1, (100,))[0]
    shared = wrap(b)
    for _ in range(3):
        apart(0, a.copy(), a)
        same(0, shared, shared)
    np.testing.assert_array_equal(a, b)


class Late(BaseLearningRate):
    """Moves along the gradient of the step before: the present one is read when the weight is new."""

    learning_rate = 1.0
    state = ("m",)

    def __init__(self):
        pass

    def update(self, op, w, g, s, lr, t):
        return w - lr * s.m, {"m": g}


@pytest.mark.parametrize("of_gradient", [slice(0, 3), slice(1, 4)], ids=["all", "part"])
@pytest.mark.parametrize("wrap", [to_ortvalue, lambda a: a], ids=["ortvalue", "numpy"])
def test_a_gradient_in_the_memory_of_the_weight_is_read_as_it_was(of_gradient, wrap):
    memory = np.arange(1.0, 5.0)
    updater, w = Updater(Late()), memory[:3]
    for _ in range(2):
        g = memory[of_gradient].copy()
        expected = w - updater.states[0]["m"] if updater.states else w.copy()
        updater(0, wrap(memory[of_gradient]), wrap(w))
        np.testing.assert_array_equal(w, expected)
        np.testing.assert_array_equal(updater.states[0]["m"], g)


def test_gradients_are_left_alone():
    g, w = HALF.copy(), np.ones(2)
    updater = Updater(Adam(0.1, wd=0.1, clip_gradient=0.2, clip_global_norm=0.1, accumulate=2))
    for _ in range(4):
        updater(0, g, w)
    np.testing.assert_array_equal(g, HALF)


def test_half_precision_with_master_copies():
    gradients = [np.float16(g) for g in draws(200, (4,))]
    w = np.ones(4, np.float16)
    updater = Updater(Adam(1e-4, multi_precision=True))
    for g in gradients:
        updater(0, g, w)
    expected = adam(np.ones(4), [g.astype(np.float64) for g in gradients], 1e-4)
    np.testing.assert_allclose(updater.states[0]["master"], expected, rtol=1e-6)
    np.testing.assert_array_equal(w, updater.states[0]["master"].astype(np.float16))
    assert {v.dtype for v in updater.states[0].values()} == {np.dtype(np.float32)}


def test_unknown_precisions_are_refused():
    w = np.ones(2, np.longdouble)
    if w.dtype == np.float64:
        pytest.skip("no longer double here")
    with pytest.raises(InvalidDataError, match=r"longdouble|float128"):
        Updater("sgd")(0, w, w)


# -- in between ------------------------------------------------------------------------------------


def test_changing_the_learning_rate_changes_nothing_else():
    gradients = draws(6)
    w, updater = np.ones(2), Updater(Adam(0.1))
    for t, g in enumerate(gradients):
        if t == 3:
            updater.optimizer.set_learning_rate(0.02)
        updater(0, g, w)
    np.testing.assert_allclose(w, adam(np.ones(2), gradients, [0.1] * 3 + [0.02] * 3), rtol=1e-12)


def test_changing_the_rate_of_lbsgd_leaves_its_warmup():
    rule = optim.LBSGD(0.1, warmup_epochs=2, updates_per_epoch=4, batch_scale=5)
    updater, w = Updater(rule), np.zeros(1)
    steps = []
    for t in range(1, 11):
        if t == 4:
            rule.set_learning_rate(0.2)
        before = w.copy()
        updater(0, np.ones(1), w)
        steps.append((before - w).item())
    base = [0.1] * 3 + [0.2] * 7
    np.testing.assert_allclose(steps, [b * min(5, 1 + 4 * t / 8) for t, b in enumerate(base, 1)])


def test_freezing_and_adding_weights_keeps_the_state_of_others():
    gradients = draws(6)
    a, b, c = np.ones(2), np.ones(2), np.ones(2)
    updater = Updater(Adam(0.1))
    for t, g in enumerate(gradients):
        if t == 2:
            updater.optimizer = Adam(0.1, frozen=["b"])
        if t == 4:
            updater.optimizer = Adam(0.1)
        updater(["a", "b"], [g, g], [a, b])
        if t >= 3:
            updater("c", g, c)
    np.testing.assert_allclose(a, adam(np.ones(2), gradients, 0.1), rtol=1e-12)
    np.testing.assert_allclose(b, adam(np.ones(2), gradients[:2] + gradients[4:], 0.1), rtol=1e-12)
    np.testing.assert_allclose(c, adam(np.ones(2), gradients[3:], 0.1), rtol=1e-12)


def test_a_rule_assigned_goes_on_with_the_schedule():
    plateau = ReduceOnPlateau(1.0, factor=0.5, patience=0)
    updater = Updater(SGD(plateau))
    for loss in (1.0, 1.0, 1.0):
        updater.optimizer.report_epoch(loss)
    updater.optimizer = SGD(plateau, frozen=["b"])
    w = np.zeros(1)
    updater(0, np.ones(1), w)
    np.testing.assert_array_equal(w, [-0.25])


@pytest.mark.parametrize("rule", [NAG(), SGD()])
def test_a_rule_of_another_state_is_refused(rule):
    updater = Updater(SGD(0.1, momentum=0.5))
    updater(0, HALF, np.ones(2))
    with pytest.raises(ValueError, match="cannot go on with their state"):
        updater.optimizer = rule
    with pytest.raises(TypeError, match="must be an update rule"):
        updater.optimizer = "sgd"
    assert updater.optimizer.momentum == 0.5
    fresh = Updater(SGD(0.1, momentum=0.5))
    fresh.optimizer = rule  # nothing was updated yet
    assert fresh.optimizer is rule


def test_set_params_in_between_is_seen():
    # What was compiled for the old options is not used any more.
    updater, w = Updater(SGD(1.0, momentum=0.5)), np.zeros(1)
    updater(0, np.ones(1), w)
    updater.optimizer.set_params(momentum=0.25)
    updater(0, np.ones(1), w)
    np.testing.assert_array_equal(w, [-1 - 1.25])
    assert updater.counts == {0: 2}


def test_set_params_in_between_is_seen_by_all_who_share_the_rule():
    rule = SGD(1.0, momentum=0.5)
    updaters, weights = [Updater(rule), Updater(rule)], [np.zeros(1), np.zeros(1)]
    for updater, w in zip(updaters, weights, strict=True):
        updater(0, np.ones(1), w)
    rule.set_params(momentum=0.25)
    for updater, w in zip(updaters, weights, strict=True):
        updater(0, np.ones(1), w)
        np.testing.assert_array_equal(w, [-2.25])


def test_no_session_is_made_after_the_first_step(monkeypatch):
    updater, w = Updater(Adam(0.1, wd=lambda t: 0.1 / t)), np.ones(2)
    updater(0, HALF, w)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a session was made after the first step")

    monkeypatch.setattr("onnxcustom.optim.in_place.create_session", refuse)
    for t in range(1, 5):
        updater.optimizer.set_learning_rate(Exp(0.1, gamma=1 / t))
        updater.optimizer.report_epoch(1.0)
        updater([0, t], [HALF, HALF], [w, np.ones(2)])
    updater.optimizer.init_learning_rate()
    updater(0, HALF, w)
    assert updater.counts[0] == 6


def test_two_updaters_share_a_rule():
    rule = Adam(lambda t: 0.1 / t)
    one, other = Updater(rule), Updater(rule)
    gradients = draws(5)
    a, b = np.ones(2), np.ones(2)
    for t, g in enumerate(gradients):
        one(0, g, a)
        if t % 2:
            other(0, g, b)
    np.testing.assert_allclose(a, adam(np.ones(2), gradients, [0.1 / t for t in range(1, 6)]), rtol=1e-12)
    np.testing.assert_allclose(b, adam(np.ones(2), gradients[1::2], [0.1, 0.05]), rtol=1e-12)
