"""Losses as ONNX models whose integers have a shape of their own: ten steps against formulas in NumPy."""

import numpy as np
import onnx.parser
import pytest

from onnxcustom import OnnxRegressor, TrainingStep
from onnxcustom.data import stream
from onnxcustom.gradient import ENGINES

HEAD = '<ir_version: 8, opset_import: ["": 17]> '
W = "<double[2,3] w = {0.1, -0.2, 0.3, 0.4, 0.5, -0.6}>"
W0 = np.array([[0.1, -0.2, 0.3], [0.4, 0.5, -0.6]])
N, T, C = 6, 5, 3
ENGINE = [name for name, engine in ENGINES.items() if engine.unavailable() is None]

# Losses of moments that are asked for, of tokens, and of pairs of moments that rows compare.
LOSSES = {
    "moments": """moments (double[N,T,C] predicted, int64[{0}] expected) => (double[N] losses)
<int64[1] one = {{1}}> {{
    l = LogSoftmax<axis = 1>(predicted)
    m = ReduceMean<axes = [2], keepdims = 0>(l)
    g = GatherElements<axis = 1>(m, expected)
    s = ReduceSum<keepdims = 0>(g, one)
    losses = Neg(s) }}""",
    "tokens": """tokens (double[N,T,C] predicted, int64[{0}] expected) => (double[N] losses)
<int64[1] one = {{1}}, int64[1] two = {{2}}> {{
    l = LogSoftmax<axis = 2>(predicted)
    e = Unsqueeze(expected, two)
    g = GatherElements<axis = 2>(l, e)
    q = Squeeze(g, two)
    s = ReduceSum<keepdims = 0>(q, one)
    losses = Neg(s) }}""",
    "classes second": """tokens (double[N,C,T] predicted, int64[{0}] expected) => (double[N] losses)
<int64[1] one = {{1}}> {{
    l = LogSoftmax<axis = 1>(predicted)
    e = Unsqueeze(expected, one)
    g = GatherElements<axis = 1>(l, e)
    q = Squeeze(g, one)
    s = ReduceSum<keepdims = 0>(q, one)
    losses = Neg(s) }}""",
    "pairs": """pairs (double[N,T,C] predicted, int64[{0}] expected) => (double[N,M,C] losses)
<int64 zero = {{0}}, int64 one = {{1}}, int64[1] axis = {{2}}, double[3] like = {{1, 1, 1}}> {{
    f = Gather<axis = 2>(expected, zero)
    u = Unsqueeze(f, axis)
    s = Shape(like)
    n = Constant<value = int64[2] {{1, 1}}>()
    k = Concat<axis = 0>(n, s)
    i = Expand(u, k)
    a = GatherElements<axis = 1>(predicted, i)
    g = Gather<axis = 2>(expected, one)
    v = Unsqueeze(g, axis)
    j = Expand(v, k)
    b = GatherElements<axis = 1>(predicted, j)
    d = Sub(a, b)
    e = Mul(d, d)
    h = Constant<value = double {{1.0}}>()
    c = Add(e, h)
    losses = Log(c) }}""",
}


def log_softmax(z, axis):
    return z - np.log(np.exp(z).sum(axis=axis, keepdims=True))


def moments(z, y):
    return -np.take_along_axis(log_softmax(z, 1).mean(axis=2), y, 1).sum(axis=1)


def tokens(z, y):
    return -np.take_along_axis(log_softmax(z, 2), y[..., None], 2).sum(axis=(1, 2))


def pairs(z, y):
    picked = [np.take_along_axis(z, y[..., i, None], 1) for i in (0, 1)]
    return np.log((picked[0] - picked[1]) ** 2 + 1).sum(axis=(1, 2))


# Loss, dimensions of its integers, their shape in the data, formula, how many there are to choose from.
CASES = {
    "names": ("moments", "N,K", (N, 2), moments, T),
    "another name for rows": ("moments", "B,K", (N, 2), moments, T),
    "fixed": ("moments", "N,2", (N, 2), moments, T),
    "as many as classes": ("moments", "N,K", (N, C), moments, T),
    "as many as moments": ("moments", "N,K", (N, T), moments, T),
    "tokens": ("tokens", "N,T", (N, T), tokens, C),
    "tokens, classes second": ("classes second", "N,T", (N, T), tokens, C),
    "pairs": ("pairs", "N,M,2", (N, 4, 2), pairs, T),
    "pairs, names": ("pairs", "N,M,two", (N, 4, 2), pairs, T),
}


def case(name):
    loss, dims, shape, formula, most = CASES[name]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, T, 2)), rng.integers(0, most, shape)
    return onnx.parser.parse_model(HEAD + LOSSES[loss].format(dims)), x, y, formula


def net(dims="N,T"):
    return onnx.parser.parse_model(
        f"{HEAD} g (double[{dims},2] x) => (double[{dims},3] z) {W} {{ z = MatMul(x, w) }}"
    )


def slopes(function, w, eps=1e-6):
    made = np.zeros_like(w)
    for i in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[i] = eps
        made[i] = (function(w + step) - function(w - step)) / (2 * eps)
    return made


# Every case with every engine, every case with every form of the dimensions; all three with --exhaustive.
DIMS = ("N,T", "b,t", "N,5")
TEN_STEPS = [
    pytest.param(
        name,
        dims,
        engine,
        marks=() if (i + j + k) % len(DIMS) == 0 or engine == "onnx" else pytest.mark.exhaustive,
    )
    for i, name in enumerate(CASES)
    for j, dims in enumerate(DIMS)
    for k, engine in enumerate(ENGINE)
]


@pytest.mark.parametrize(("name", "dims", "engine"), TEN_STEPS)
def test_ten_steps(name, dims, engine):
    loss, x, y, formula = case(name)
    step = TrainingStep(net(dims), loss, "sgd", learning_rate=0.05, engine=engine)
    weight = np.random.default_rng(1).random(N) + 0.5
    w = W0
    for i in range(10):
        given = weight if i % 2 else None

        def objective(w, given=given):
            return (formula(x @ w, y) * (1 if given is None else given)).mean()

        np.testing.assert_allclose(step.scores(x, y), formula(x @ w, y), rtol=1e-6)
        assert step.run(x, y, given) == pytest.approx(objective(w), rel=1e-6)
        w = w - 0.05 * slopes(objective, w)
        np.testing.assert_allclose(step.weights()["w"], w, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_arrays_and_streams(name):
    loss, x, y, formula = case(name)
    options = {"loss": loss, "batch_size": 2, "shuffle": False, "max_iter": 4, "learning_rate": 0.05}
    reg = OnnxRegressor(net(), **options).fit(x, y)
    streamed = OnnxRegressor(net(), **options).fit(stream((x, y)))
    batches = [(x[i : i + 3], y[i : i + 3]) for i in (0, 3)]
    cut = OnnxRegressor(net(), **options).fit(stream(batches))
    w = W0
    for _ in range(4):
        for i in range(0, N, 2):
            part = slice(i, i + 2)
            w = w - 0.05 * slopes(lambda w, p=part: formula(x[p] @ w, y[p]).mean(), w)
    for found in (reg, streamed, cut):
        np.testing.assert_allclose(found.weights_["w"], w, rtol=1e-5, atol=1e-8)
        assert found.history_ == reg.history_


@pytest.mark.parametrize("name", ["names", "tokens", "pairs"])
def test_rows_on_the_second_axis(name):
    """Predictions of (time, rows, classes) come to the loss with their rows first."""
    loss, x, y, formula = case(name)
    model = onnx.parser.parse_model(
        f"{HEAD} g (double[N,T,2] x) => (double[T,N,3] z) {W} "
        "{ a = MatMul(x, w) z = Transpose<perm = [1, 0, 2]>(a) }"
    )
    step = TrainingStep(model, loss, "sgd", learning_rate=0.05)
    w = W0
    for _ in range(10):
        assert step.run(x, y) == pytest.approx(formula(x @ w, y).mean(), rel=1e-6)
        w = w - 0.05 * slopes(lambda w: formula(x @ w, y).mean(), w)
        np.testing.assert_allclose(step.weights()["w"], w, rtol=1e-5, atol=1e-8)
