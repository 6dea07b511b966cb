"""Trajectories of scikit-learn's SGDRegressor and MLPRegressor, step for step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.linear_model import SGDRegressor
from sklearn.neural_network import MLPRegressor

from onnxcustom import optim
from onnxcustom.optim import LearningRateSGD, LearningRateSGDNesterov

from .rule_cases import one_update


def regression(n=60, d=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return X, X @ rng.normal(size=d) + 0.5 + rng.normal(size=n) * 0.1


@pytest.mark.parametrize("schedule", ["constant", "invscaling"])
@pytest.mark.parametrize("eta0", [0.01, 0.05])
def test_follows_sgd_regressor_step_for_step(schedule, eta0):
    X, y = regression()
    oracle = SGDRegressor(penalty=None, learning_rate=schedule, eta0=eta0, shuffle=False, tol=None)
    rule = LearningRateSGD(eta0, learning_rate=schedule).init_learning_rate()
    coef, intercept = np.zeros(3), np.zeros(1)
    for t, (x, target) in enumerate(zip(X, y, strict=True), 1):
        error = x @ coef + intercept[0] - target
        rule.update_weights(0, "cpu", coef, error * x, 1)
        rule.update_weights(1, "cpu", intercept, np.array([error]), 1)
        rule.update_learning_rate(t)
        oracle.partial_fit(x[None], [target])
        np.testing.assert_allclose(coef, oracle.coef_, atol=1e-6)
        np.testing.assert_allclose(intercept, oracle.intercept_, atol=1e-6)


def test_follows_adaptive_sgd_regressor_to_its_end():
    X, y = regression(20)
    oracle = SGDRegressor(
        penalty=None, learning_rate="adaptive", eta0=0.01, shuffle=False, max_iter=500, tol=1e-3
    ).fit(X, y)
    rule = LearningRateSGD(0.01, learning_rate="adaptive").init_learning_rate()
    coef, intercept, t, ends = np.zeros(3), np.zeros(1), 0, []
    for _ in range(oracle.n_iter_):
        total = 0.0
        for x, target in zip(X, y, strict=True):
            error = x @ coef + intercept[0] - target
            total += error**2 / 2
            rule.update_weights(0, "cpu", coef, error * x, 1)
            rule.update_weights(1, "cpu", intercept, np.array([error]), 1)
            t += 1
            rule.update_learning_rate(t)
        ends.append(rule.report_epoch(total / len(X)))
    assert ends == [False] * (oracle.n_iter_ - 1) + [True]
    assert rule.value <= 1e-6
    np.testing.assert_allclose(coef, oracle.coef_, atol=1e-6)
    np.testing.assert_allclose(intercept, oracle.intercept_, atol=1e-6)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_follows_mlp_regressor(momentum, nesterov):
    X, y = regression(24, 3)
    oracle = MLPRegressor(
        hidden_layer_sizes=(4,),
        activation="tanh",
        solver="sgd",
        alpha=0.0,
        batch_size=24,
        learning_rate_init=0.05,
        momentum=momentum,
        nesterovs_momentum=nesterov,
        shuffle=False,
        random_state=0,
    ).partial_fit(X, y)
    rule = LearningRateSGDNesterov(0.05, learning_rate="constant", momentum=momentum, nesterov=nesterov)
    rule.init_learning_rate()
    # The first call made the weights and did one step: from there on both go side by side.
    weights = [w.copy() for w in (*oracle.coefs_, *oracle.intercepts_)]
    velocities = [v.copy() for v in oracle._optimizer.velocities]
    for t in range(1, 11):
        for i, (w, v, g) in enumerate(zip(weights, velocities, _gradients(weights, X, y), strict=True)):
            rule.update_weights(i, "cpu", w, g, 1, v)
        rule.update_learning_rate(t)
        oracle.partial_fit(X, y)
        for got, wanted in zip(weights, (*oracle.coefs_, *oracle.intercepts_), strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-10)


def _gradients(weights, X, y):
    """Gradient of half the mean squared error of a one-layer tanh network."""
    w1, w2, b1, b2 = weights
    h = np.tanh(X @ w1 + b1)
    d2 = (h @ w2 + b2 - y[:, None]) / len(X)
    d1 = d2 @ w2.T * (1 - h**2)
    return [X.T @ d1, h.T @ d2, d1.sum(0), d2.sum(0)]


@pytest.mark.parametrize("schedule", ["invscaling", "optimal"])
def test_rates_fall_from_eta0(schedule):
    values = list(LearningRateSGD(learning_rate=schedule).loop())
    assert len(values) == 1000
    assert values[0] == 0.01
    assert all(a > b for a, b in itertools.pairwise(values))


def test_constant_stays():
    assert set(LearningRateSGD(learning_rate="constant").loop(10)) == {0.01}


@pytest.mark.parametrize("name", ["ccSGD", "ccsgd"])
def test_the_deprecated_name_is_sgd(name):
    assert optim.ccSGD is type(optim.create(name)) is optim.SGD


def test_lazy_update_is_true_or_false():
    assert optim.SGD().lazy_update is True
    with pytest.raises(TypeError, match="lazy_update of SGD must be True or False"):
        optim.SGD(lazy_update="row_sparse")


def test_the_state_of_the_test_rule_repeats_the_weight():
    rule = optim.create("test", rescale_grad=0.5).init_learning_rate()
    w = np.array([1.0, 2.0])
    (copy,) = rule.init_state(w).values()
    np.testing.assert_array_equal(copy, w)
    for _ in range(2):
        rule.update_weights(0, "cpu", w, np.array([2.0, -4.0]), 1, copy)
        np.testing.assert_array_equal(copy, w)
    np.testing.assert_array_equal(w, [3.0, -2.0])


def test_multipliers_of_the_test_rule():
    r"""MXNet's ``w += rescale_grad * grad`` has a rate of 1, which `lr_mult` multiplies."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(10, 3, 2))
    for factor, wd in [(1.0, 0.0), (0.25, 0.0), (3.0, 0.1), (0.0, 0.1)]:
        rule = optim.Test(rescale_grad=-0.5, wd=wd, lr_mult={"a": factor})
        updater = optim.Updater(rule)
        arrays = {name: rng.normal(size=(3, 2)) for name in "ab"}
        expected = {name: array.copy() for name, array in arrays.items()}
        for g in gradients:
            for name, times in (("a", factor), ("b", 1.0)):
                updater(name, g.copy(), arrays[name])
                expected[name] += times * (-0.5 * g - wd * expected[name])
        for name, array in arrays.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", optim.rule_names())
def test_a_multiplier_of_zero_holds_a_weight(name):
    rule = optim.create(name, lr_mult={"w": 0.0})
    w = np.array([[1.0, -2.0], [0.5, 3.0]])
    np.testing.assert_array_equal(one_update(rule, w, np.ones((2, 2)), name="w"), w)
