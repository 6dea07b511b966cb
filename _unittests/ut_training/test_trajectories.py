"""Training follows scikit-learn's, weight by weight."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from skl2onnx import to_onnx
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor

from onnxcustom.graph import replace_weights
from onnxcustom.optim import LearningRateSGD, LearningRateSGDNesterov
from onnxcustom.step.training_step import TrainingStep
from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor
from onnxcustom.training.optimizers_partial import OrtGradientForwardBackwardOptimizer

pytest.importorskip("onnxruntime")

NAMES = ["w0", "b0", "w1", "b1"]
OPSETS = {"": 18, "ai.onnx.ml": 3}


def data(n=60, columns=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, columns))
    return X, X @ rng.normal(size=columns) + 0.1 * rng.normal(size=n) + 1


# -- linear models -----------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])
@pytest.mark.parametrize("schedule", ["constant", "invscaling"])
def test_every_step_is_that_of_sgd_regressor(linear_model, schedule, dtype, tolerance):
    X, y = data()
    step = TrainingStep(
        linear_model(4, dtype=dtype, seed=None), optimizer=LearningRateSGD(0.05, learning_rate=schedule)
    )
    sgd = SGDRegressor(penalty=None, learning_rate=schedule, eta0=0.05, power_t=0.25)
    for i in range(len(X)):
        step.run(X[i : i + 1], y[i : i + 1])
        sgd.partial_fit(X[i : i + 1], y[i : i + 1])
        weights = step.weights()
        np.testing.assert_allclose(weights["w"].ravel(), sgd.coef_, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(weights["b"], sgd.intercept_, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("schedule", ["constant", "invscaling"])
@pytest.mark.parametrize("weighted", [False, True])
def test_epochs_of_batch_size_1_are_those_of_sgd_regressor(linear_model, schedule, weighted):
    X, y = data()
    w = np.random.default_rng(1).uniform(0.5, 1.5, size=len(y)) if weighted else None
    options = {"learning_rate": schedule, "eta0": 0.02, "power_t": 0.3}
    sgd = SGDRegressor(penalty=None, shuffle=False, max_iter=5, tol=None, **options).fit(
        X, y, sample_weight=w
    )
    reg = OnnxRegressor(
        linear_model(4, dtype=np.float64, seed=None),
        optimizer=LearningRateSGD(**options),
        batch_size=1,
        shuffle=False,
        max_iter=5,
    ).fit(X, y, w)
    np.testing.assert_allclose(reg.weights_["w"].ravel(), sgd.coef_, rtol=1e-9)
    np.testing.assert_allclose(reg.weights_["b"], sgd.intercept_, rtol=1e-9)
    np.testing.assert_allclose(reg.predict(X), sgd.predict(X), rtol=1e-9)


def test_adaptive_stops_where_sgd_regressor_does(linear_model):
    X, y = data(30)
    options = {"learning_rate": "adaptive", "eta0": 0.1}
    sgd = SGDRegressor(penalty=None, shuffle=False, max_iter=200, tol=1e-3, **options).fit(X, y)
    reg = OnnxRegressor(
        linear_model(4, dtype=np.float64, seed=None),
        optimizer=LearningRateSGD(**options),
        batch_size=1,
        shuffle=False,
        max_iter=200,
    ).fit(X, y)
    assert reg.n_iter_ == sgd.n_iter_ < 200
    np.testing.assert_allclose(reg.weights_["w"].ravel(), sgd.coef_, rtol=1e-9)


def test_the_older_estimator_follows_too(linear_model):
    X, y = data()
    sgd = SGDRegressor(penalty=None, shuffle=False, max_iter=3, tol=None).fit(X, y)
    model = OrtGradientForwardBackwardOptimizer(
        linear_model(4, dtype=np.float64, seed=None), batch_size=1, shuffle=False, max_iter=3
    ).fit(X, y)
    np.testing.assert_allclose(model.trained_coef_["w"].ravel(), sgd.coef_, rtol=1e-9)


@pytest.mark.parametrize("converted", [SGDClassifier, LogisticRegression])
@pytest.mark.parametrize("schedule", ["constant", "invscaling"])
def test_a_converted_classifier_goes_on_as_sgd_classifier(converted, schedule):
    X, y = data()
    y = np.where(y > 1, "yes", "no")
    start = converted(loss="log_loss", max_iter=5, tol=None) if converted is SGDClassifier else converted()
    start.fit(X, y)
    model = to_onnx(start, X[:1].astype(np.float32), target_opset=OPSETS)
    options = {"learning_rate": schedule, "eta0": 0.1, "power_t": 0.25}
    sgd = SGDClassifier(loss="log_loss", penalty=None, shuffle=False, max_iter=3, tol=None, **options)
    sgd.fit(X, y, coef_init=start.coef_, intercept_init=start.intercept_)
    clf = OnnxClassifier(
        model, optimizer=LearningRateSGD(**options), batch_size=1, shuffle=False, max_iter=3
    ).fit(X, y)
    coef, intercept = clf.weights_.values()
    np.testing.assert_allclose(coef.ravel(), sgd.coef_.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(intercept.ravel(), sgd.intercept_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(clf.predict_proba(X), sgd.predict_proba(X), atol=1e-5)
    assert clf.score(X, y) == sgd.score(X, y)


# -- perceptrons -------------------------------------------------------------------------------

RULES = {
    "plain": ({"momentum": 0.0}, LearningRateSGD(0.05, learning_rate="constant")),
    "momentum": (
        {"momentum": 0.8, "nesterovs_momentum": False},
        LearningRateSGDNesterov(0.05, learning_rate="constant", momentum=0.8, nesterov=False),
    ),
    "nesterov": (
        {"momentum": 0.9, "nesterovs_momentum": True},
        LearningRateSGDNesterov(0.05, learning_rate="constant", momentum=0.9),
    ),
}


def fit_twice(mlp, X, y, epochs):
    """One epoch, whose weights are converted; then from there with a new velocity."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mlp.set_params(max_iter=1).fit(X, y)
        model = to_onnx(mlp, X[:1], target_opset=OPSETS, options=_options(mlp))
        mlp.set_params(max_iter=epochs, warm_start=True).fit(X, y)
    return model


def _options(mlp):
    return {id(mlp): {"zipmap": False}} if isinstance(mlp, MLPClassifier) else None


def assert_same_weights(trained, mlp, rtol):
    expected = [a for pair in zip(mlp.coefs_, mlp.intercepts_, strict=True) for a in pair]
    assert len(trained) == len(expected)
    for array, wanted in zip(trained.values(), expected, strict=True):
        np.testing.assert_allclose(array.reshape(wanted.shape), wanted, rtol=rtol, atol=rtol)


DOUBLE, SINGLE = (np.float64, 1e-9), (np.float32, 1e-4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("activation", "dtype", "tolerance"),
    [("relu", *SINGLE), ("tanh", *SINGLE), *((a, *DOUBLE) for a in ("relu", "tanh", "logistic", "identity"))],
)
def test_mlp_regressor(rule, activation, dtype, tolerance):
    X, y = data(50)  # the last of 4 batches is short
    X, y = X.astype(dtype), y.astype(dtype)
    options, optimizer = RULES[rule]
    mlp = MLPRegressor(
        hidden_layer_sizes=(6, 5),
        activation=activation,
        solver="sgd",
        alpha=0,
        batch_size=16,
        learning_rate_init=0.05,
        shuffle=False,
        random_state=0,
        n_iter_no_change=1000,
        **options,
    )
    model = fit_twice(mlp, X, y, epochs=6)
    reg = OnnxRegressor(model, optimizer=optimizer, batch_size=16, shuffle=False, max_iter=6).fit(X, y)
    assert_same_weights(reg.weights_, mlp, tolerance)
    np.testing.assert_allclose(reg.predict(X), mlp.predict(X), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(reg.history_["loss"], mlp.loss_curve_[-6:], rtol=tolerance)


def test_mlp_regressor_with_several_targets(mlp_model):
    X, y = data(40)
    Y = np.stack([y, y**2 / 5, -y], axis=1)
    mlp = MLPRegressor(
        hidden_layer_sizes=(5,),
        activation="tanh",
        solver="sgd",
        alpha=0,
        batch_size=10,
        shuffle=False,
        random_state=0,
        momentum=0,
    )
    # skl2onnx reshapes several targets to one column: the model is written by hand.
    fit_twice(mlp, X, Y, epochs=1)
    start = [a.copy() for pair in zip(mlp.coefs_, mlp.intercepts_, strict=True) for a in pair]
    model = replace_weights(mlp_model([4, 5, 3], dtype=np.float64), dict(zip(NAMES, start, strict=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mlp.set_params(max_iter=4).fit(X, Y)
    reg = OnnxRegressor(model, learning_rate=0.001, batch_size=10, shuffle=False, max_iter=4).fit(X, Y)
    assert_same_weights(reg.weights_, mlp, 1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", [2, 3])
def test_mlp_classifier(rule, classes):
    X, y = data(50)
    labels = np.digitize(y, np.quantile(y, np.linspace(0, 1, classes + 1)[1:-1]))
    options, optimizer = RULES[rule]
    mlp = MLPClassifier(
        hidden_layer_sizes=(6,),
        solver="sgd",
        alpha=0,
        batch_size=16,
        learning_rate_init=0.05,
        shuffle=False,
        random_state=0,
        n_iter_no_change=1000,
        **options,
    )
    model = fit_twice(mlp, X, labels, epochs=5)
    clf = OnnxClassifier(model, optimizer=optimizer, batch_size=16, shuffle=False, max_iter=5)
    clf.fit(X, labels)
    assert_same_weights(clf.weights_, mlp, 1e-9)
    np.testing.assert_allclose(clf.predict_proba(X), mlp.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(clf.predict(X), mlp.predict(X))


def test_mlp_classifier_with_several_labels_a_row():
    X, y = data(50)
    Y = np.stack([y > 1, X[:, 0] > 0, X[:, 1] > X[:, 2]], axis=1).astype(int)
    mlp = MLPClassifier(
        hidden_layer_sizes=(6,),
        solver="sgd",
        alpha=0,
        batch_size=16,
        shuffle=False,
        random_state=0,
        momentum=0,
        learning_rate_init=0.1,
    )
    model = fit_twice(mlp, X, Y, epochs=5)
    clf = OnnxClassifier(model, learning_rate=0.1, batch_size=16, shuffle=False, max_iter=5).fit(X, Y)
    assert_same_weights(clf.weights_, mlp, 1e-9)
    np.testing.assert_allclose(clf.predict_proba(X), mlp.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(clf.predict(X), mlp.predict(X))
    assert clf.score(X, Y) == mlp.score(X, Y)
