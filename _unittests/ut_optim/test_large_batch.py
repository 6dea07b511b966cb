"""LARS, LBSGD and LAMB: roles, norms of 0, half precision, and the clock of the warm-up."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from onnxcustom import optim
from onnxcustom.optim.large_batch import LargeBatchWarmup
from onnxcustom.optim.schedules import with_rate

from .rule_cases import data, one_update, trajectory

W, G = np.array([3.0, -4.0]), np.array([0.6, 0.8])


# -- LARS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["bias", "normalization", "weight", "unknown"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.5}, {"momentum": 0.5, "momentum_correction": False}])
def test_biases_and_normalizations_keep_the_global_rate(role, options):
    rule = optim.LARS(0.1, eta=0.01, wd=0.2, **options)
    moved = W - one_update(rule, W, G, role=role)
    if role in ("bias", "normalization"):
        np.testing.assert_allclose(moved, 0.1 * G)
    else:
        np.testing.assert_allclose(moved, 0.1 * 0.01 * 5 / (1 + 0.2 * 5) * (G + 0.2 * W))


@pytest.mark.parametrize(("w", "g"), [(0 * W, G), (W, 0 * G), (0 * W, 0 * G)])
@pytest.mark.parametrize("opset", [7, 18])
def test_a_norm_of_zero_leaves_the_global_rate(w, g, opset):
    rule = optim.LARS(0.1, wd=0.2)
    np.testing.assert_allclose(one_update(rule, w, g, opset), w - 0.1 * (g + 0.2 * w))


def test_momentum_correction_matters_only_when_the_rate_changes():
    w, gradients = data((3, 2), np.float64)
    rules = [optim.LARS(0.1, 0.9, eta=0.1, momentum_correction=c) for c in (True, False)]
    first, second = (list(trajectory(rule, w, gradients)) for rule in rules)
    np.testing.assert_allclose(first, second, rtol=1e-12)
    # The velocity scaled by each change of the rate, as Goyal et al. write it.
    rate = [0.1, 0.1, 0.01, 0.5, 0.5]
    v = np.zeros_like(w)
    rule = optim.LARS(lambda t: rate[t - 1], 0.9, eta=0.1)
    for t, got in enumerate(trajectory(rule, w, gradients[:4])):
        g = gradients[t]
        ratio = 0.1 * np.linalg.norm(w) / np.linalg.norm(g)
        v = 0.9 * v * rate[t] / rate[max(t - 1, 0)] + rate[t] * ratio * g
        w = w - v
        np.testing.assert_allclose(got, w, rtol=1e-12)


def test_lars_understands_the_names_of_the_page():
    rule = optim.create("lars", lars_eta=0.5, lars_epsilon=0.25)
    assert (rule.eta, rule.eps) == (0.5, 0.25)


# -- norms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        optim.LARS(0.5, eta=0.1, wd=0.1),
        optim.LBSGD(0.5, warmup_strategy="lars", wd=0.1),
        optim.LAMB(0.5, wd=0.1),
    ],
    ids=lambda r: type(r).__name__,
)
@pytest.mark.parametrize("size", [0, 1, 50])
def test_norms_of_half_precision_do_not_overflow(rule, size):
    # The squares are beyond float16, and so is their sum.
    w, g = np.full(size, 300, np.float16), np.full(size, 250, np.float16)
    wanted = one_update(rule, w.astype(np.float64), g.astype(np.float64))
    got = one_update(rule, w, g)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, wanted, rtol=2e-3)
    rule.init_learning_rate().update_weights(0, "cpu", w, g, 1)
    np.testing.assert_allclose(w, wanted, rtol=2e-3)


# -- LBSGD -------------------------------------------------------------------------------------

WARM = {"batch_scale": 5, "warmup_epochs": 2, "updates_per_epoch": 2}


@pytest.mark.parametrize(
    ("strategy", "rates"),
    [
        ("linear", [2, 3, 4, 5, 5]),
        ("power2", [1.25, 2, 3.25, 5, 5]),
        ("sqrt", [3, 1 + 8**0.5, 1 + 12**0.5, 5, 5]),
        ("lars", [1, 1, 1, 1, 1]),
    ],
)
def test_the_rate_rises_to_batch_scale(strategy, rates):
    rule = optim.LBSGD(1.0, warmup_strategy=strategy, **WARM)
    assert list(rule.loop(5)) == pytest.approx(rates)
    later = optim.LBSGD(1.0, warmup_strategy=strategy, begin_epoch=1, **WARM)
    assert list(later.loop(3)) == pytest.approx(rates[2:])
    resumed = optim.LBSGD(1.0, warmup_strategy=strategy, begin_num_update=2, **WARM)
    assert list(resumed.loop(3)) == pytest.approx(rates[2:])


def test_without_warmup_the_rate_is_scaled_at_once():
    assert list(optim.LBSGD(1.0, warmup_epochs=0, batch_scale=3).loop(2)) == [3, 3]


def test_by_default_it_is_sgd():
    w, gradients = data((3, 2), np.float64)
    rules = optim.LBSGD(0.1, 0.9, wd=0.1), optim.SGD(0.1, 0.9, wd=0.1)
    first, second = (list(trajectory(rule, w, gradients)) for rule in rules)
    np.testing.assert_allclose(first, second, rtol=1e-12)


@pytest.mark.parametrize("started", [True, False])
def test_another_learning_rate_keeps_the_warmup(started):
    rule = optim.LBSGD(1.0, **WARM)
    if started:
        rule.init_learning_rate().update_learning_rate(2)
        assert rule.value == 4
    rule.set_learning_rate(0.1)
    if started:
        assert rule.value == pytest.approx(0.4)
    assert list(rule.loop(5)) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.5])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_the_warmup_is_copied_and_told_the_losses(duplicate):
    rule = optim.LBSGD(optim.Adaptive(1.0), **WARM).init_learning_rate()
    rule.update_learning_rate(3)
    for _ in range(6):
        rule.report_epoch(1.0)
    again = duplicate(rule)
    assert again.value == rule.value == pytest.approx(5 / 5)


def test_the_state_of_the_warmup_is_that_of_its_schedule():
    first, second = (LargeBatchWarmup(optim.Adaptive(1.0), 5.0, 4.0) for _ in range(2))
    for _ in range(6):
        first.report_epoch(1.0)
    second.load_state_dict(first.state_dict())
    assert second.value(9, 1) == first.value(9, 1) == pytest.approx(5 / 5)
    assert with_rate(first, 3.0).value(9, 1) == 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_strategy": "cubic"}, "'linear', 'power2', 'sqrt', 'lars', not 'cubic'"),
        ({"batch_scale": 0.5}, r"batch_scale of LBSGD must be in \[1, inf\)"),
        ({"warmup_epochs": -1}, r"warmup_epochs of LBSGD must be in \[0, inf\)"),
        ({"updates_per_epoch": 0}, r"updates_per_epoch of LBSGD must be in \[1, inf\)"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        optim.LBSGD(**options)


# -- LAMB --------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 18])
@pytest.mark.parametrize("wd", [0.0, 0.5])
def test_a_weight_of_zeros_takes_steps_of_adam(opset, wd):
    got = one_update(optim.LAMB(0.1, wd=wd), 0 * W, G, opset)
    np.testing.assert_allclose(got, one_update(optim.Adam(0.1, epsilon=1e-6), 0 * W, G))


def test_no_gradient_no_step():
    np.testing.assert_array_equal(one_update(optim.LAMB(0.1), W, 0 * G), W)


@pytest.mark.parametrize(
    ("low", "high", "norm"), [(None, 2.0, 2), (7.0, None, 7), (2.0, 9.0, 5), (0.0, 5.0, 5)]
)
def test_steps_are_as_long_as_the_bounded_norm(low, high, norm):
    moved = one_update(optim.LAMB(0.1, lower_bound=low, upper_bound=high), W, G) - W
    np.testing.assert_allclose(np.linalg.norm(moved), 0.1 * norm)


def test_a_lower_bound_lets_a_weight_of_zeros_move():
    moved = one_update(optim.LAMB(0.1, lower_bound=3.0), 0 * W, G)
    np.testing.assert_allclose(np.linalg.norm(moved), 0.3)


def test_bounds_must_not_cross():
    with pytest.raises(ValueError, match=r"lower_bound of LAMB must be in \[0, upper_bound\], not 3 with 2"):
        optim.LAMB(lower_bound=3, upper_bound=2)
