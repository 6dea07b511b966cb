"""Threads and processes: the same results as alone, and nothing that hangs."""

from __future__ import annotations

import concurrent.futures
import copy
import gc
import multiprocessing
import os
import pickle
import sys
import threading

import numpy as np
import onnx
import pytest
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from onnxcustom import OnnxClassifier, OnnxRegressor, OrtGradientForwardBackward
from onnxcustom.graph import to_ir
from onnxcustom.graph.preparation.passes import InferShapesPass
from onnxcustom.optim import Adam
from onnxcustom.step import evaluator as step_module
from onnxcustom.step.passes.folding import fold_updates

from ..processes import SECONDS, in_child, needs_fork

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = X.sum(axis=1)


def regressor(model, seed=0, **options):
    given = {"optimizer": "nag", "learning_rate": 0.01, "max_iter": 2, "threads": 1, **options}
    return OnnxRegressor(model, random_state=seed, **given)


def bits(est):
    """Return everything that training leaves, to the last bit."""
    return [a.tobytes() for a in est.weights_.values()], est.history_, est.predict(X).tobytes()


@pytest.fixture
def impatient():
    """Make Python change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def within(function, *args, **kwargs):
    """Call a function in a thread, and fail if it takes too long."""
    future: concurrent.futures.Future = concurrent.futures.Future()

    def call():
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=call, daemon=True).start()
    return future.result(timeout=SECONDS)


def at_once(function, count):
    """Call ``function(i)`` in as many threads that start together."""
    start = threading.Barrier(count)

    def call(i):
        start.wait(SECONDS)
        return function(i)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return [f.result(SECONDS) for f in [pool.submit(call, i) for i in range(count)]]


# -- threads -----------------------------------------------------------------------------------------


def test_training_in_threads(mlp_model, impatient):
    labels = np.arange(60) % 3

    def train(i):
        if i % 3 == 2:
            est = OnnxClassifier(mlp_model([4, 5, 3], end="Softmax"), max_iter=2, random_state=i, threads=1)
            return bits(est.fit(X, labels))
        rule = ["sgd", "nag", "adam"][i % 4 - 1]  # each makes a graph of its own
        return bits(regressor(mlp_model([4, 5 + i, 1]), i, optimizer=rule).fit(X, Y))

    alone = [train(i) for i in range(6)]
    for _ in range(3):
        assert at_once(train, 6) == alone


def test_folding_in_threads(impatient):
    def fold(i):
        shape = f"float[{i + 1},{i + 2}]"
        source = f"""<ir_version: 8, opset_import: ["": 18]>
            g (float[N,{i + 1}] a, float[N,{i + 2}] b, {shape} u, {shape} v) => ({shape} r, {shape} s)
            <float half = {{0.5}}> {{
                p = Gemm <transA = 1> (a, b)  r = Sub (u, p)
                q = Gemm <transA = 1> (a, b)  h = Mul (half, v)  s = Add (h, q) }}"""
        found = []
        for _ in range(20):
            model = to_ir(onnx.parser.parse_model(source))
            fold_updates(InferShapesPass()(model).model)
            found.append([node.op_type for node in model.graph])
        return found

    assert at_once(fold, 4) == [[["Gemm", "Gemm"]] * 20] * 4


def test_a_dropping_model_in_threads(impatient):
    models = [
        onnx.parser.parse_model(
            f"""<ir_version: 8, opset_import: ["": 18]> g (float[N,4] x) => (float[N,1] y)
            <float[4] one = {{1, 1, 1, 1}}, float[4] zero = {{0, 0, 0, 0}}, float[4] mean = {{0, 0, 0, 0}},
            float[4] var = {{1, 1, 1, 1}}, float half = {{0.5}}, float[4,1] w = {{1, 2, 3, 4}}> {{
            n = BatchNormalization (x, one, zero, mean, var)  a = {activation} (n)
            d = Dropout (a, half)  y = MatMul (d, w) }}"""
        )
        for activation in ("Relu", "Sigmoid")
    ]

    def train(i):
        est = regressor(models[i], i, dropout="on", optimizer=Adam(0.01), batch_norm="update")
        return bits(est.fit(X, Y))

    assert at_once(train, 2) == [train(i) for i in range(2)]


@pytest.mark.parametrize("threads", [1, 2])
def test_predictions_in_ten_threads(mlp_model, impatient, monkeypatch, threads):
    fitted = regressor(mlp_model([4, 8, 1]), threads=threads).fit(X, Y)
    alone = [fitted.predict(X[i::10]).tobytes() for i in range(10)]
    est = pickle.loads(pickle.dumps(fitted))  # its sessions are yet to be made
    made = []
    forward = step_module.Forward
    monkeypatch.setattr(step_module, "Forward", lambda *args: made.append(args) or forward(*args))
    found = at_once(lambda i: {est.predict(X[i::10]).tobytes() for _ in range(20)}, 10)
    assert found == [{rows} for rows in alone]
    assert len(made) == 1


def test_losses_in_threads(mlp_model, impatient, monkeypatch):
    est = regressor(mlp_model([4, 8, 1])).fit(X, Y)
    step = copy.deepcopy(est.step_)
    expected = est.step_.scores(X, Y)
    made = []
    forward = step_module.Forward
    monkeypatch.setattr(step_module, "Forward", lambda *args: made.append(args) or forward(*args))
    for found in at_once(lambda i: step.scores(X, Y), 6):
        np.testing.assert_array_equal(found, expected)
    assert len(made) == 1


def test_pickling_while_others_predict(mlp_model, impatient):
    est = regressor(mlp_model([4, 8, 1])).fit(X, Y)
    expected = est.predict(X)

    def use(i):
        own = pickle.loads(pickle.dumps(est)) if i % 2 else est
        for _ in range(5):
            np.testing.assert_array_equal(own.predict(X), expected)
            own = pickle.loads(pickle.dumps(own)) if i % 2 else own
        return True

    for _ in range(3):
        est.step_._set_up(est.step_.recipe, est.step_._state)  # so that predicting changes attributes
        assert all(at_once(use, 6))


def test_instances_in_threads(mlp_model, impatient):
    graphs = OrtGradientForwardBackward(mlp_model([4, 8, 1]))
    weights = [graphs.get_initializer(name) for name in graphs.weights_to_train]

    def gradients(i):
        function, found = graphs.new_instance(), []
        for _ in range(10):
            function.forward([X[i::6], *weights], training=True)
            made = function.backward([np.ones((len(X[i::6]), 1), np.float32)])
            found.append([g.numpy().tobytes() for g in made])
        return found

    assert at_once(gradients, 6) == [gradients(i) for i in range(6)]


# -- forked processes --------------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize("threads", [1, 4])
def test_a_forked_process_predicts_and_goes_on_training(mlp_model, threads):
    est = regressor(mlp_model([4, 64, 1]), threads=threads).fit(X, Y)
    expected = est.predict(X).tobytes()
    assert in_child(lambda: est.predict(X).tobytes()) == expected
    found = in_child(lambda: bits(est.partial_fit(X, Y)))
    assert est.n_iter_ == 2
    assert found == bits(est.partial_fit(X, Y))
    assert in_child(lambda: in_child(lambda: bits(est))) == bits(est)


@needs_fork
def test_a_forked_process_destroys_nothing_of_its_parent(mlp_model):
    est = regressor(mlp_model([4, 64, 1]), threads=4).fit(X, Y)
    expected = est.predict(X).tobytes()

    def forget():
        est.step_._set_up(est.step_.recipe, est.step_._state)
        gc.collect()
        return est.predict(X).tobytes()

    assert in_child(forget) == expected
    assert est.predict(X).tobytes() == expected


@needs_fork
@pytest.mark.parametrize("rule", ["adam", Adam(0.01, lazy_update=False, accumulate=2)])
def test_state_in_a_forked_process(mlp_model, rule):
    est = regressor(mlp_model([4, 8, 1]), optimizer=rule, threads=4).fit(X, Y)
    assert in_child(lambda: bits(est.partial_fit(X, Y, epochs=2))) == bits(est.partial_fit(X, Y, epochs=2))


@needs_fork
def test_gradients_in_a_forked_process(mlp_model):
    graphs = OrtGradientForwardBackward(mlp_model([4, 64, 1]))
    weights = [graphs.get_initializer(name) for name in graphs.weights_to_train]
    function = graphs.new_instance()

    def gradients():
        function.forward([X, *weights], training=True)
        return [g.numpy().tobytes() for g in function.backward([np.ones((60, 1), np.float32)])]

    expected = gradients()
    assert in_child(gradients) == expected
    assert gradients() == expected


@needs_fork
def test_a_rule_in_a_forked_process():
    weights, gradient = np.zeros(5, np.float32), np.ones(5, np.float32)
    rule = Adam(0.1).init_learning_rate()

    def update():
        return rule.update_weights(0, "cpu", weights.copy(), gradient, 1)[0].tobytes()

    again = copy.deepcopy(rule)
    update()
    expected = again.update_weights(0, "cpu", weights.copy(), gradient, 1)[0].tobytes()
    assert in_child(update) == expected


@needs_fork
def test_forking_while_others_predict(mlp_model):
    est = regressor(mlp_model([4, 64, 1]), threads=2).fit(X, Y)
    expected = est.predict(X).tobytes()
    ended, wrong = threading.Event(), []

    def predict():
        while not ended.is_set():
            if est.predict(X).tobytes() != expected:
                wrong.append(True)

    others = [threading.Thread(target=predict, daemon=True) for _ in range(2)]
    for thread in others:
        thread.start()
    try:
        for _ in range(5):
            assert in_child(lambda: est.predict(X).tobytes()) == expected
    finally:
        ended.set()
        for thread in others:
            thread.join(SECONDS)
    assert not wrong


# -- joblib ------------------------------------------------------------------------------------------


def predictions(est, seed):
    """Return what is trained in whatever process this runs in, and which process it is."""
    fitted = clone(est).set_params(random_state=seed).fit(X, Y)
    return bits(fitted), os.getpid()


def test_joblib_with_threads(mlp_model, impatient):
    est = regressor(mlp_model([4, 8, 1]))
    alone = [predictions(est, seed) for seed in range(4)]
    jobs = (delayed(predictions)(est, seed) for seed in range(4))
    assert Parallel(n_jobs=2, backend="threading", timeout=SECONDS)(jobs) == alone


@pytest.mark.filterwarnings("ignore:A worker stopped:UserWarning")
def test_joblib_with_processes(mlp_model, request):
    if request.config.getoption("--no-passes"):
        pytest.skip("processes of their own do not know of the option")
    est = regressor(mlp_model([4, 8, 1])).fit(X, Y)
    grid = {"learning_rate": [0.001, 0.01], "optimizer": ["sgd", Adam()]}
    try:
        jobs = (delayed(predictions)(est, seed) for seed in range(4))
        found = Parallel(n_jobs=2, timeout=SECONDS)(jobs)
        assert os.getpid() not in {process for _, process in found}
        assert [result for result, _ in found] == [predictions(est, seed)[0] for seed in range(4)]
        search = GridSearchCV(est, grid, cv=2, n_jobs=2, error_score="raise")
        within(search.fit, X, Y)
        alone = clone(search).set_params(n_jobs=1).fit(X, Y)
        np.testing.assert_array_equal(
            search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"]
        )
        assert bits(search.best_estimator_) == bits(alone.best_estimator_)
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def test_a_spawned_process(mlp_model):
    fitted = regressor(mlp_model([4, 8, 1])).fit(X, Y)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(fitted.predict, X)
        assert found.result(SECONDS).tobytes() == fitted.predict(X).tobytes()
