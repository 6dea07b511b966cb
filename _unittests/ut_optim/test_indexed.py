"""Rules called as MXNet's optimizers are, by index and with a state that the caller keeps."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from onnxcustom.exceptions import ConvergenceError, InvalidDataError, UnknownNameError
from onnxcustom.optim import NAG, SGD, Adam, BaseLearningRate, Exp, Updater, create, rule_names
from onnxcustom.runtime import to_ortvalue

pytest.importorskip("onnxruntime")


def gradients(steps=10, shape=(2, 3), seed=0):
    return np.random.default_rng(seed).normal(size=(steps, *shape))


def mxnet_sgd(w, grads, lr, momentum, wd):
    """The page's formula: state = momentum state + lr (grad + wd w); w -= state."""
    state = np.zeros_like(w)
    for g in grads:
        state = momentum * state + lr * (g + wd * w)
        w = w - state
    return w, state


def mxnet_adam(w, grads, lr, wd, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, start=1):
        g = g + wd * w
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        w = w - lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (np.sqrt(v) + epsilon)
    return w, m, v


def test_ten_steps_of_the_pages_formulas():
    grads, start = gradients(), np.ones((2, 3))
    sgd, w = SGD(0.1, momentum=0.9, wd=0.01), start.copy()
    state = sgd.create_state(0, w)
    kept = state
    for g in grads:
        assert sgd.update(0, w, g, state) is None
    expected, momentum = mxnet_sgd(start, grads, 0.1, 0.9, 0.01)
    np.testing.assert_allclose(w, expected, rtol=1e-12)
    np.testing.assert_allclose(kept, momentum, rtol=1e-12)  # in place

    adam, w = Adam(0.1, wd=0.01), start.copy()
    state = adam.create_state(index=3, weight=w)
    for g in grads:
        adam.update(index=3, weight=w, grad=g, state=state)
    expected, m, v = mxnet_adam(start, grads, 0.1, 0.01)
    # The page leaves epsilon out of the correction of the second moment, the paper has it in.
    np.testing.assert_allclose(w, expected, rtol=1e-5)
    np.testing.assert_allclose(state[0], m, rtol=1e-5)
    np.testing.assert_allclose(state[1], v, rtol=1e-5)

    plain, w = SGD(0.1), start.copy()
    assert plain.create_state(0, w) is None
    for g in grads:
        plain.update(0, w, g, None)
    np.testing.assert_allclose(w, start - 0.1 * grads.sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize("name", rule_names())
def test_every_rule_does_what_an_updater_does(name):
    options = {} if name in ("test", "adadelta") else {"learning_rate": 0.05}
    try:
        rule, updater = create(name, **options), Updater(create(name, **options))
    except UnknownNameError:
        rule, updater = create(name), Updater(create(name))
    weights = [np.full((2, 3), 0.5, np.float32), np.linspace(-1, 1, 4, dtype=np.float32)]
    others = [w.copy() for w in weights]
    states = [rule.create_state(i, w) for i, w in enumerate(weights)]
    for k in range(10):
        for i, (w, other) in enumerate(zip(weights, others, strict=True)):
            g = np.random.default_rng(10 * k + i).normal(size=w.shape).astype(np.float32)
            rule.update(i, w, g, states[i])
            updater(i, g, other)
    for i, (w, other) in enumerate(zip(weights, others, strict=True)):
        np.testing.assert_array_equal(w, other)
        made = states[i] if isinstance(states[i], tuple) else () if states[i] is None else (states[i],)
        for mine, theirs in zip(made, updater.states[i].values(), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_schedules_count_the_updates_of_an_index():
    rule = SGD(Exp(1.0, 0.5, decay_on_iteration=True), begin_num_update=1)
    w, v = np.zeros(1), np.zeros(1)
    for _ in range(3):
        rule.update(0, w, np.ones(1), None)
    rule.update(1, v, np.ones(1), None)
    assert w[0] == -(1 / 4 + 1 / 8 + 1 / 16)
    assert v[0] == -1 / 4
    rule.init_learning_rate()
    rule.update(0, v, np.ones(1), None)
    assert v[0] == -1 / 2


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda r: pickle.loads(pickle.dumps(r))])
def test_copies_go_on_counting(copied):
    grads = gradients(6)
    rule, w = Adam(0.1, accumulate=2), np.ones((2, 3))
    state = rule.create_state(0, w)
    other, v = Adam(0.1, accumulate=2), np.ones((2, 3))
    same = other.create_state(0, v)
    for k, g in enumerate(grads):
        if k == 3:  # a gradient waits for its second
            other = copied(other)
        rule.update(0, w, g, state)
        other.update(0, v, g, same)
    np.testing.assert_array_equal(w, v)


def test_ortvalues_half_precision_and_the_older_names():
    w = np.ones(3, np.float16)
    rule = SGD(1e-4, multi_precision=True)
    state = rule.create_state_multi_precision(0, w)
    for _ in range(10):
        rule.update_multi_precision(0, w, np.ones(3, np.float16), state)
    np.testing.assert_allclose(w, np.float16(1 - 1e-3))
    np.testing.assert_allclose(state, 1 - 1e-3, rtol=1e-6)

    value = to_ortvalue(np.ones(2, np.float32))
    nag = NAG(0.5, momentum=0.5)
    state = nag.create_state(0, value)
    nag.update(0, value, to_ortvalue(np.ones(2, np.float32)), state)
    np.testing.assert_array_equal(value.numpy(), [0.25, 0.25])
    with pytest.warns(DeprecationWarning, match="set_lr_mult"):
        assert nag.set_lr_scale({0: 0.0}) is nag
    nag.update(0, value, to_ortvalue(np.ones(2, np.float32)), state)
    np.testing.assert_array_equal(value.numpy(), [0.25, 0.25])


def test_create_state_of_a_weight_alone():
    w = np.ones(2, np.float32)
    for made in (Adam().create_state(w), Adam().create_state(weight=w)):
        assert list(made) == ["m", "v"]


def test_rules_of_ones_own_and_their_children():
    class Plain(SGD):
        def update(self, op, w, g, s, lr, t):
            new, state = super().update(op, w, 2 * g, s, lr, t)
            return new, state

    w = np.zeros(2)
    Plain(0.5).update(0, w, np.ones(2), None)
    np.testing.assert_array_equal(w, [-1, -1])
    assert isinstance(Plain(0.5), BaseLearningRate)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda r, w, s: r.update(0, w, np.ones(2), None),
            InvalidDataError,
            r"create_state\(index, weight\)",
        ),
        (lambda r, w, s: r.update(0, w, np.ones(3), s), InvalidDataError, "gradient of 0"),
        (lambda r, w, s: r.update(1.5, w, np.ones(2), s), InvalidDataError, "index must be"),
        (lambda r, w, s: r.update(0, w, np.array([np.nan, 0]), s), ConvergenceError, "NaN or infinity"),
        (lambda r, w, s: r.update(0, w, np.ones(2), np.ones(3)), InvalidDataError, "does not fit"),
    ],
)
def test_bad_calls_change_nothing(call, error, message):
    rule, w = NAG(0.5, momentum=0.5), np.ones(2)
    state = rule.create_state(0, w)
    with pytest.raises(error, match=message):
        call(rule, w, state)
    np.testing.assert_array_equal(w, [1, 1])
    np.testing.assert_array_equal(state, [0, 0])
    rule.update(0, w, np.ones(2), state)
    np.testing.assert_array_equal(w, [0.25, 0.25])


# -- names ---------------------------------------------------------------------------------------------


NAMES = {0: "fc_weight", 1: "fc_bias", 2: "bn_gamma", 3: "bn_beta", 4: "embedding"}


def decayed(update, **options):
    rule = SGD(1.0, wd=0.1, param_idx2name=NAMES, **options).init_learning_rate()
    found = []
    for index in NAMES:
        w = np.ones(2)
        update(rule, index, w)
        found.append(w[0])
    return found


@pytest.mark.parametrize(
    "update",
    [
        lambda rule, i, w: Updater(rule)(i, np.zeros(2), w),
        lambda rule, i, w: Updater(rule)(NAMES[i], np.zeros(2), w),
        lambda rule, i, w: rule.update(i, w, np.zeros(2), None),
        lambda rule, i, w: rule.update_weights(i, "cpu", w, np.zeros(2), 1),
    ],
)
def test_only_weights_and_gammas_decay(update):
    np.testing.assert_allclose(decayed(update), [0.9, 1, 0.9, 1, 1])
    found = decayed(update, wd_mult={"fc_bias": 2.0, "*_gamma": 0.0})
    np.testing.assert_allclose(found, [0.9, 0.8, 1, 1, 1])


def test_weight_decay_of_indices_without_names():
    updater, found = Updater(SGD(1.0, wd=0.1, param_idx2name={0: "a_bias"})), []
    for index in (0, 1):
        w = np.ones(2)
        updater(index, np.zeros(2), w)
        found.append(w[0])
    np.testing.assert_allclose(found, [1, 0.9])


@pytest.mark.parametrize("option", ["lr_mult", "wd_mult"])
@pytest.mark.parametrize(
    "update",
    [
        lambda rule, w: Updater(rule)(0, np.ones(2), w),
        lambda rule, w: rule.update(0, w, np.ones(2), None),
        lambda rule, w: rule.update_weights(0, "cpu", w, np.ones(2), 1),
    ],
)
def test_factors_for_names_that_cannot_be_known(option, update):
    for names in (None, {1: "other_weight"}):
        rule = SGD(1.0, param_idx2name=names, **{option: {"conv_weight": 0.0}}).init_learning_rate()
        w = np.ones(2)
        with pytest.raises(UnknownNameError, match=rf"{option} names 'conv_weight'.*index 0"):
            update(rule, w)
        np.testing.assert_array_equal(w, [1, 1])
    rule = SGD(1.0, param_idx2name={0: "conv_weight"}, **{option: {"conv_*": 0.0}}).init_learning_rate()
    update(rule, w)
    np.testing.assert_array_equal(w, [1, 1] if option == "lr_mult" else [0, 0])


def test_factors_set_later_are_looked_at_too():
    updater, w = Updater(SGD(1.0)), np.ones(2)
    updater(0, np.zeros(2), w)
    updater.optimizer.set_lr_mult({"conv_weight": 0.0})
    with pytest.raises(UnknownNameError, match="conv_weight"):
        updater(0, np.ones(2), w)
    updater("conv_weight", np.ones(2), w)  # by name it is known
    np.testing.assert_array_equal(w, [1, 1])


def test_a_frozen_weight_of_update_weights():
    rule = SGD(1.0, frozen=["fc_bias"], param_idx2name=NAMES).init_learning_rate()
    w = np.ones(2)
    assert rule.update_weights(1, "cpu", w, np.ones(2), 1) is w
    np.testing.assert_array_equal(w, [1, 1])
