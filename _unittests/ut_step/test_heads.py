"""Losses of several outputs: by their places, and taken on several at once."""

from __future__ import annotations

import pickle

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper
from sklearn.base import clone

from onnxcustom import OnnxRegressor, TrainingStep
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError, UnknownNameError
from onnxcustom.gradient import ENGINES
from onnxcustom.objective import CustomLoss, GaussianLearningLoss

ENGINE = [name for name, engine in ENGINES.items() if engine.unavailable() is None]
W0 = np.random.default_rng(0).normal(size=(3, 4)) * 0.3


def moments(mean="N, 2", dtype="double", tail=""):
    """Means, and variances by a Softplus, of two numbers each; behind them what is not trained."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net ({dtype}[N, 3] x) => ({dtype}[{mean}] mean, {dtype}[N, 2] variance {tail}) {{
            z = MatMul(x, W) mean, raw = Split <axis = 1> (z, sizes)
            variance = Abs(raw) }}"""
    )
    kind = np.float64 if dtype == "double" else np.float32
    model.graph.initializer.append(numpy_helper.from_array(W0.astype(kind), "W"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 2]), "sizes"))
    return model


def data(rows=12):
    x = np.random.default_rng(1).normal(size=(rows, 3))
    return x, np.random.default_rng(2).normal(size=(rows, 2))


def torch_gaussian(x, y, steps):
    torch = pytest.importorskip("torch")
    w = torch.tensor(W0, requires_grad=True)
    x, y, seen = torch.tensor(x), torch.tensor(y), []
    for _ in range(steps):
        z = x @ w
        loss = torch.nn.functional.gaussian_nll_loss(z[:, :2], y, z[:, 2:].abs(), reduction="sum", eps=0.01)
        loss = loss / len(x)
        seen.append(loss.item())
        (g,) = torch.autograd.grad(loss, w)
        w = (w - 0.01 * g).detach().requires_grad_()
    return seen, w.detach().numpy()


@pytest.mark.parametrize("engine", ENGINE)
@pytest.mark.parametrize(
    "loss", [GaussianLearningLoss(0.01), {("mean", "variance"): "gaussian_nll:eps=0.01"}]
)
def test_two_outputs_are_those_of_torch(loss, engine):
    x, y = data()
    seen, weight = torch_gaussian(x, y, 10)
    step = TrainingStep(moments(), loss, "sgd", engine=engine, learning_rate=0.01)
    assert step.targets[0].value == "mean|variance"
    ours = [step.run(x, y) for _ in range(5)]
    step = pickle.loads(pickle.dumps(step))
    ours += [step.run(x, y) for _ in range(5)]
    np.testing.assert_allclose(ours, seen, rtol=1e-9)
    np.testing.assert_allclose(step.weights()["W"], weight, rtol=1e-9)
    assert step.scores(x, y).mean() == pytest.approx(step.run(x, y))
    assert [v.name for v in step.trained_model().graph.output] == ["mean", "variance"]
    assert set(step.predict(x)) == {"mean", "variance"}


def test_an_estimator_predicts_the_mean():
    x, y = (v.astype(np.float32) for v in data(40))
    net = OnnxRegressor(moments(dtype="float"), loss="gaussian_nll", learning_rate=0.01, max_iter=5)
    losses = clone(net).fit(x, y).history_["loss"]
    assert losses[-1] < losses[0]
    net.fit(x, y, X_val=x[:5], y_val=y[:5])
    assert net.predict(x).shape == (40, 2)
    assert np.isfinite(net.score(x, y))


# -- functions of one's own ------------------------------------------------------------------------------


def words_and_sizes(op, predicted, expected):
    """Squared distance of a row's numbers to the sum of a table of its words, over the other output."""
    mean, variance = predicted
    table = op.const(np.array([0.5, -0.25, 1.0, 2.0]), like=mean)
    total = op.ReduceSum(op.Gather(table, expected), [1], keepdims=1)
    d = mean - total
    return d * d / (variance + 1)


def by_hand(op, predicted, expected):
    """The same with its gradient."""
    mean, variance = predicted
    table = op.const(np.array([0.5, -0.25, 1.0, 2.0]), like=mean)
    d = mean - op.ReduceSum(op.Gather(table, expected), [1], keepdims=1)
    q = 1 / (variance + 1)
    return d * d * q, [2 * d * q, -(d * d * q * q)]


@pytest.mark.parametrize("function", [words_and_sizes, by_hand])
def test_a_function_of_several_outputs_and_of_words(function):
    x, _ = data()
    words = np.random.default_rng(3).integers(0, 4, size=(12, 5))
    loss = CustomLoss(function, target=("int64", ["N", "L"]))
    step = TrainingStep(moments(), {("mean", "variance"): loss}, "sgd", learning_rate=0.01)
    assert step.expected[0].dtype == np.int64
    w, total = W0.copy(), np.array([0.5, -0.25, 1.0, 2.0])[words].sum(axis=1, keepdims=True)
    for _ in range(10):
        z = x @ w
        d, v = z[:, :2] - total, abs(z[:, 2:])
        assert step.run(x, words) == pytest.approx((d**2 / (v + 1)).sum() / 12)
        slope = np.hstack([2 * d / (v + 1), -((d / (v + 1)) ** 2) * np.sign(z[:, 2:])])
        w -= 0.01 * x.T @ slope / 12
    np.testing.assert_allclose(step.weights()["W"], w, rtol=1e-9)
    step = TrainingStep(moments(), {("mean", "variance"): loss}, "sgd", learning_rate=0.01)
    one = step.run(x[:4], words[:4, :2])  # other words a row
    assert np.isfinite(one)
    assert "target=('int64', ['N', 'L'])" in repr(clone(loss))


def count_of_words(op, predicted, expected):
    d = predicted - op.Cast(op.ReduceSum(expected, [1], keepdims=1), to=predicted.dtype)
    return d * d


def test_a_function_says_what_its_targets_are():
    x, _ = data()
    words = np.random.default_rng(3).integers(0, 4, size=(12, 5))
    loss = CustomLoss(count_of_words, target=("int64", ["N", "L"]))
    net = OnnxRegressor(moments(), loss=loss, learning_rate=1e-3, max_iter=3, shuffle=False, batch_size=12)
    net.fit(x, words)
    d = x @ W0[:, :2] - words.sum(axis=1, keepdims=True)
    assert net.history_["loss"][0] == pytest.approx((d**2).sum() / 12)
    alone = loss.loss_scores("cpu", words, x @ W0[:, :2]).numpy()
    np.testing.assert_allclose(alone, (d**2).sum(axis=1))


# -- by their places -------------------------------------------------------------------------------------


def test_losses_in_a_list():
    x, y = data()
    expected = {"mean": y, "variance": abs(y)}
    wanted = TrainingStep(
        moments(), {"mean": "mse", "variance": "huber:delta=2"}, loss_weights={"mean": 2, "variance": 0.5}
    ).run(x, expected)
    lists = [["mse", "huber:delta=2"], ("mse", "huber:delta=2")]
    for loss in lists:
        assert TrainingStep(moments(), loss, loss_weights=[2, 0.5]).run(x, expected) == wanted
    net = OnnxRegressor(moments(), loss=lists[0], loss_weights=[2, 0.5], max_iter=1, batch_size=12)
    assert clone(net).fit(x, expected).history_["loss"][0] == pytest.approx(wanted)
    one = TrainingStep(moments(), [None, "mae"])
    assert [t.output for t in one.targets] == ["variance"]


@pytest.mark.parametrize(
    ("loss", "factors", "error", "words"),
    [
        (["mse"], None, InvalidParameterError, "list of 1, the model has 2 outputs"),
        (["mse", "mse"], [1], InvalidParameterError, "has 1 factors"),
        ("mse", [1, 2], InvalidParameterError, "there is one"),
        ({("mean", "sigma"): "gaussian_nll"}, None, UnknownNameError, "no output 'sigma'"),
        ({("mean", "variance"): "mse", "mean": "mse"}, None, UnknownNameError, "'mean' has several losses"),
        ({("mean", "variance"): "cross_entropy"}, None, InvalidModelError, "scores of one output"),
        (CustomLoss(by_hand, target="int64"), None, InvalidParameterError, "pair of dtype and shape"),
        (CustomLoss(by_hand, True, target=("int64", ["N"])), None, InvalidParameterError, "labels=True"),
    ],
)
def test_what_is_refused(loss, factors, error, words):
    with pytest.raises(error, match=words):
        TrainingStep(moments(), loss, loss_weights=factors).run(*data())
    sizes = moments("N, K")
    with pytest.raises(InvalidModelError, match="known number of numbers"):
        TrainingStep(sizes, {("mean", "variance"): "gaussian_nll"})
