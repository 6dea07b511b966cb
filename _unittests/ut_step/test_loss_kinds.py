"""Probabilities in every form that exporters and converters write: taken on their scores, or refused."""

from __future__ import annotations

import re

import numpy as np
import onnx.parser
import pytest

from onnxcustom import OnnxClassifier, TrainingStep
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.objective import (
    BinaryCrossEntropyLearningLoss,
    PoissonLearningLoss,
    SoftmaxCrossEntropyLearningLoss,
)

W = np.array([1, 2, 0, -1, 0, 1, 2, 1, -1, 0.5, 0.5, 1], np.float32).reshape(4, 3)
CONSTANTS = (
    "float[4, 3] w = {1, 2, 0, -1, 0, 1, 2, 1, -1, 0.5, 0.5, 1}, float one = {1}, float half = {0.5}, "
    "float two = {2}, float three = {3}, float six = {6}, float fine = {0.002}, float thirty = {30}, "
    "float tiny = {1e-12}, float zero = {0}, float minus = {-1}, float scale = {0.00390625}, "
    "uint8 point = {0}, float temperature = {2.5}, int64[1] last = {-1}, int64 last1 = {-1}, "
    "int64[1] first = {0}, int64[1] second = {1}, int64[1] k = {3}, int64[2] column = {-1, 1}, "
    "int64[2] flat = {-1, 3}, bool yes = {1}, "
    "float[3, 3] confusion = {0.9, 0.1, 0, 0, 1, 0, 0.2, 0, 0.8}"
)


def model(end: str, opset: int = 17, inputs: str = "", outputs: str = "float[N, 3] p") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}, "ai.onnx.ml": 3, "com.microsoft": 1]> '
        f"g (float[N, 4] x{inputs}) => ({outputs}) <{CONSTANTS}> {{ z = MatMul(x, w)  {end} }}"
    )


def data(rows: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 4)).astype(np.float32), rng.integers(0, 3, size=rows)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def ten_steps(step: TrainingStep, slope, X: np.ndarray, y: np.ndarray) -> None:
    """Ten steps of gradient descent are those of the formula in float64."""
    w = W.astype(np.float64)
    for _ in range(10):
        wanted, dz = slope(X.astype(np.float64) @ w)
        np.testing.assert_allclose(step.run(X, y), wanted, rtol=1e-4)
        w = w - 0.1 * X.T @ dz
    np.testing.assert_allclose(step.weights()["w"], w, rtol=1e-4, atol=1e-5)


TURNED = "t = Transpose(z)  s = Softmax <axis = 0> (t)  p = Transpose(s)"
SOFTMAXES = {
    "exp of log": "s = Softmax(z)  l = Log(s)  p = Exp(l)",
    "exp of log, copied": "s = Softmax(z)  l = Log(s)  d = Dropout(l)  p = Exp(d)",
    "normalized by F.normalize": "s = Softmax(z)  l = ReduceL1 <axes = [1], keepdims = 1> (s)  "
    "c = Clip(l, tiny)  n = Shape(s)  f = Expand(c, n)  p = Div(s, f)",
    "divided by the sum": "s = Softmax(z)  t = ReduceSum <keepdims = 1> (s, last)  p = Div(s, t)",
    "divided by a lifted sum": "s = Softmax(z)  t = ReduceSum <keepdims = 0> (s, last)  "
    "u = Unsqueeze(t, last)  p = Div(s, u)",
    "naive Bayes": "l = ReduceLogSumExp <axes = [1], keepdims = 0> (z)  c = Reshape(l, column)  "
    "d = Sub(z, c)  p = Exp(d)",
    "turned and back": TURNED,
    "flattened and back": "f = Reshape(z, flat)  s = Softmax(f)  p = Reshape(s, flat)",
    "deep and back": "f = Unsqueeze(z, first)  s = Softmax(f)  p = Squeeze(s, first)",
    "quantized": "s = Softmax(z)  q = QuantizeLinear(s, scale, point)  p = DequantizeLinear(q, scale, point)",
    "log softmax": "p = LogSoftmax(z)",
    "logarithm": "s = Softmax(z)  p = Log(s)",
    "less log sum exp": "l = ReduceLogSumExp <axes = [1]> (z)  p = Sub(z, l)",
    "clipped logarithm": "s = Softmax(z)  l = Log(s)  hundred = Neg(thirty)  p = Max(l, hundred)",
    "zip map": "s = Softmax(z)  p = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1, 2]> (s)",
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_cross_entropy_of_forms_of_a_softmax(name):
    outputs = "seq(map(int64, float)) p" if name == "zip map" else "float[N, 3] p"
    X, y = data()

    def slope(z):
        p = softmax(z)
        return -np.log(p[range(len(y)), y]).mean(), (p - np.eye(3)[y]) / len(y)

    step = TrainingStep(model(SOFTMAXES[name], outputs=outputs), "cross_entropy", learning_rate=0.1)
    ten_steps(step, slope, X, y)


def test_the_temperature_belongs_to_the_scores():
    X, y = data()

    def slope(z):
        p = softmax(z / 2.5)
        return -np.log(p[range(len(y)), y]).mean(), (p - np.eye(3)[y]) / len(y) / 2.5

    step = TrainingStep(model("t = Div(z, temperature)  p = Softmax(t)"), "cross_entropy", learning_rate=0.1)
    assert "on logits 't'" in repr(step)
    ten_steps(step, slope, X, y)


SIGMOIDS = {
    "power of -1": "n = Neg(z)  e = Exp(n)  a = Add(e, one)  p = Pow(a, minus)",
    "exp of log": "s = Sigmoid(z)  l = Log(s)  p = Exp(l)",
    "turned and back": "t = Transpose(z)  s = Sigmoid(t)  p = Transpose(s)",
    "flattened and back": "f = Reshape(z, column)  s = Sigmoid(f)  p = Reshape(s, flat)",
    "quantized": "s = Sigmoid(z)  q = QuantizeLinear(s, scale, point)  p = DequantizeLinear(q, scale, point)",
    "logit": "s = Sigmoid(z)  c = Sub(one, s)  r = Div(s, c)  p = Log(r)",
    "logit by logarithms": "s = Sigmoid(z)  c = Sub(one, s)  l = Log(s)  m = Log(c)  p = Sub(l, m)",
}


@pytest.mark.parametrize("name", SIGMOIDS)
def test_log_loss_of_forms_of_a_sigmoid(name):
    X, y = data()
    labels = np.eye(3, dtype=np.float32)[y]

    def slope(z):
        p = 1 / (1 + np.exp(-z))
        losses = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
        return losses.sum(1).mean(), (p - labels) / len(y)

    step = TrainingStep(model(SIGMOIDS[name]), "binary_cross_entropy", learning_rate=0.1)
    ten_steps(step, slope, X, labels)


def test_the_step_and_the_estimator_take_the_same():
    """Naive Bayes as skl2onnx writes it: predictions stay those of the formula."""
    X, y = data(60)
    clf = OnnxClassifier(model(SOFTMAXES["naive Bayes"]), max_iter=2, random_state=0).fit(X, y)
    assert "on logits 'z' (before Softmax)" in repr(clf.step_)
    z = X.astype(np.float64) @ clf.step_.weights()["w"]
    np.testing.assert_allclose(clf.predict_proba(X), softmax(z), rtol=1e-4)


ON_PROBABILITIES = [
    (SoftmaxCrossEntropyLearningLoss, "s = Softmax(z)  m = Add(s, tiny)  p = Slice(m, first, k, last)"),
    (BinaryCrossEntropyLearningLoss, "p = HardSigmoid <alpha = 0.05> (z)"),
]


@pytest.mark.parametrize(("cls", "end"), ON_PROBABILITIES)
def test_what_is_refused_can_be_asked_for(cls, end):
    X, y = data()
    labels = y if cls is SoftmaxCrossEntropyLearningLoss else np.eye(3, dtype=np.float32)[y]
    step = TrainingStep(model(end), cls(from_logits=False), learning_rate=0.0)
    z = X.astype(np.float64) @ W
    if labels is y:
        wanted = -np.log(softmax(z)[range(len(y)), y]).mean()
    else:
        p = np.clip(0.05 * z + 0.5, 0, 1)
        wanted = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(1).mean()
    np.testing.assert_allclose(step.run(X, labels), wanted, rtol=1e-4)


MASK = ", float[N, 3] mask"
# What both losses refuse, and words of the reason.
REFUSED = {
    "hard sigmoid": ("p = HardSigmoid(z)", "lie between 0 and 1"),
    "hard sigmoid by hand": ("a = Add(z, three)  b = Clip(a, zero, one)  p = Mul(b, one)", "between 0 and 1"),
    "relu6 / 6": ("a = Add(z, three)  b = Clip(a, zero, six)  p = Div(b, six)", "lie between 0 and 1"),
    "probit": ("e = Erf(z)  a = Add(e, one)  p = Mul(a, half)", "lie between 0 and 1"),
    "softsign": ("e = Softsign(z)  a = Add(e, one)  p = Div(a, two)", "lie between 0 and 1"),
    "complementary log-log": ("e = Exp(z)  n = Neg(e)  f = Exp(n)  p = Sub(one, f)", "lie between 0 and 1"),
    "squares": ("a = Mul(z, z)  t = ReduceSum <keepdims = 1> (a, last)  p = Div(a, t)", "between 0 and 1"),
    "evidence": (
        "a = Softplus(z)  b = Add(a, one)  t = ReduceSum <keepdims = 1> (b, last)  p = Div(b, t)",
        "lie between 0 and 1",
    ),
    "sparsemax": (
        "sorted, i = TopK <axis = 1> (z, k)  c = CumSum(sorted, last1)  m = Sub(c, one)  "
        "t = ReduceMax <axes = [1]> (m)  d = Sub(z, t)  p = Max(d, zero)",
        "sparsemax|lie between 0 and 1",
    ),
    "masked": ("s = Softmax(z)  p = Mul(s, mask)", r"changed by node .*Mul"),
    "masked and normalized": (
        "s = Softmax(z)  m = Mul(s, mask)  t = ReduceSum <keepdims = 1> (m, last)  p = Div(m, t)",
        r"changed by node .*Mul",
    ),
    "masked by a comparison": (
        "s = Sigmoid(z)  b = Greater(mask, zero)  c = Cast <to = 1> (b)  p = Mul(s, c)",
        r"changed by node .*Mul",
    ),
    "where": ("s = Softmax(z)  b = Greater(mask, zero)  p = Where(b, s, zero)", r"changed by node .*Where"),
    "another axis of sums": (
        "s = Softmax(z)  t = ReduceSum <keepdims = 1> (s, first)  p = Div(s, t)", r"changed by node .*"
    ),
    "sums of more": (
        "s = Softmax(z)  t = ReduceSum <keepdims = 1> (s, last)  u = Add(t, one)  p = Div(s, u)", "changed by"
    ),
    "power and normalized": (
        "s = Softmax(z)  m = Pow(s, two)  t = ReduceSum <keepdims = 1> (m, last)  p = Div(m, t)", "changed by"
    ),
    "average": ("n = Neg(z)  a = Sigmoid(z)  b = Sigmoid(n)  p = Mean(a, b)", "changed by"),
    "mean of features": ("s = Sigmoid(z)  p = ReduceMean <axes = [1]> (s)", "changed by"),
    "percent": ("s = Softmax(z)  p = Mul(s, thirty)", "changed by"),
    "of one class less": ("s = Softmax(z)  p = Slice(s, first, last, last)", "changed by"),
    "confusion": ("s = Softmax(z)  p = MatMul(s, confusion)", "changed by"),
    "inside of If": (
        "s = Softmax(z)  p = If (yes) <then_branch = a () => (q) { q = Identity(s) }, "
        "else_branch = b () => (r) { r = Relu(s) }>",
        "changed by|comes from",
    ),
    "negative logarithm": ("s = Softmax(z)  l = Log(s)  p = Neg(l)", "changed by node"),
    "fused": ("p = com.microsoft.FusedGemm <activation = \"Sigmoid\"> (x, w)", "comes from node"),
    "quantized up to a half": (
        "s = Sigmoid(z)  q = QuantizeLinear(s, fine, point)  p = DequantizeLinear(q, fine, point)",
        "changed by",
    ),
}  # fmt: skip
# What is a score of a softmax, but none of a sigmoid.
LOGARITHMS = {
    "log sigmoid": ("s = Sigmoid(z)  p = Log(s)", "Log.*its scores are 'z'"),
    "softplus": ("n = Neg(z)  s = Softplus(n)  p = Neg(s)", "node .*its scores are 'z'"),
    "of the complement": ("s = Softplus(z)  p = Neg(s)", "node"),
    "log of the complement": ("s = Sigmoid(z)  c = Sub(one, s)  p = Log(c)", "changed by"),
    "log softmax": ("p = LogSoftmax(z)", r"LogSoftmax.*its scores are 'z'"),
    "less log sum exp": ("l = ReduceLogSumExp <axes = [1]> (z)  p = Sub(z, l)", "its scores are 'z'"),
    "log of evidence": (
        "a = Softplus(z)  t = ReduceSum <keepdims = 1> (a, last)  q = Div(a, t)  p = Log(q)",
        "lie between 0 and 1",
    ),
}


def made(end: str) -> onnx.ModelProto:
    return model(end, inputs=MASK if "mask" in end else "", outputs="float[A, B] p")


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("name", REFUSED)
def test_other_probabilities_are_refused(name, loss):
    end, words = REFUSED[name]
    with pytest.raises(InvalidModelError) as caught:
        TrainingStep(made(end), loss, weights=["w"])
    text = str(caught.value)
    assert "'p' holds probabilities: it comes from" in text
    assert re.search(words, text), text
    assert "from_logits=False" in text


@pytest.mark.parametrize("end", ["p = Exp(z)", "p = Softplus(z)", "e = Exp(z)  p = Identity(e)"])
def test_the_mean_is_no_logarithm_of_itself(end):
    X, y = data()
    counts = np.eye(3, dtype=np.float32)[y]
    with pytest.raises(InvalidModelError, match=r"link='identity', or let the model end in 'z'"):
        TrainingStep(model(end), "poisson")
    z = X.astype(np.float64) @ W
    mean = np.log1p(np.exp(z)) if "Softplus" in end else np.exp(z)
    wanted = (mean - counts * np.log(mean)).sum(1).mean()
    found = TrainingStep(model(end), PoissonLearningLoss(link="identity")).run(X, counts)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("end", ["p = Softmax(z)", "p = Sigmoid(z)", "s = Softmax(z)  p = Mul(s, mask)"])
def test_probabilities_are_no_logarithms(end):
    with pytest.raises(InvalidModelError, match="logarithms of probabilities, but output 'p' holds prob"):
        TrainingStep(made(end), "nll", weights=["w"])


@pytest.mark.parametrize("end", ["p = LogSoftmax(z)", "s = Softmax(z)  p = Log(s)"])
def test_nll_of_logarithms(end):
    X, y = data()
    p = softmax(X.astype(np.float64) @ W)
    wanted = -np.log(p[range(len(y)), y]).mean()
    np.testing.assert_allclose(TrainingStep(model(end), "nll").run(X, y), wanted, rtol=1e-5)


@pytest.mark.parametrize("loss", ["focal", "dice", "kl_divergence"])
def test_other_losses_on_scores_refuse_the_same(loss):
    with pytest.raises(InvalidModelError, match=r"'p' holds probabilities: it comes from .*HardSigmoid"):
        TrainingStep(model("p = HardSigmoid(z)"), loss)


@pytest.mark.parametrize("name", LOGARITHMS)
def test_logarithms_are_no_scores_of_a_sigmoid(name):
    end, words = LOGARITHMS[name]
    with pytest.raises(InvalidModelError, match=f"'p' holds probabilities: it comes from .*{words}"):
        TrainingStep(made(end), "binary_cross_entropy")


# -- PyTorch -----------------------------------------------------------------------------------------


def torch_forms():
    """Ends of models as text, and the losses of PyTorch of what they compute."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def of_probabilities(make):
        return lambda z, y: functional.nll_loss(torch.log(make(z)), y)

    def of_columns(make):
        return lambda z, y: 3 * functional.binary_cross_entropy(make(z), functional.one_hot(y, 3).to(z.dtype))

    return {
        "LogSoftmax": ("p = LogSoftmax(z)", lambda z, y: functional.nll_loss(torch.log_softmax(z, 1), y)),
        "normalize": (
            SOFTMAXES["normalized by F.normalize"],
            of_probabilities(lambda z: functional.normalize(torch.softmax(z, 1), p=1, dim=1)),
        ),
        "turned": (TURNED, of_probabilities(lambda z: torch.softmax(z.T, 0).T)),
        "exp of log": (SOFTMAXES["exp of log"], of_probabilities(lambda z: torch.softmax(z, 1).log().exp())),
        "temperature": (
            "t = Div(z, temperature)  p = Softmax(t)",
            of_probabilities(lambda z: torch.softmax(z / 2.5, 1)),
        ),
        "reciprocal": (SIGMOIDS["power of -1"], of_columns(lambda z: (1 + torch.exp(-z)) ** -1)),
        "logsigmoid": (
            "n = Neg(z)  s = Softplus(n)  l = Neg(s)  p = Exp(l)",
            of_columns(lambda z: functional.logsigmoid(z).exp()),
        ),
    }


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name", ["LogSoftmax", "normalize", "turned", "exp of log", "temperature", "reciprocal", "logsigmoid"]
)
def test_ten_steps_of_pytorch(name):
    torch = pytest.importorskip("torch")
    end, objective = torch_forms()[name]
    X, y = data()
    columns = name in ("reciprocal", "logsigmoid")
    loss = "binary_cross_entropy" if columns else "cross_entropy"
    step = TrainingStep(model(end), loss, "sgd", learning_rate=0.1)
    w = torch.tensor(W.astype(np.float64), requires_grad=True)
    rule = torch.optim.SGD([w], lr=0.1)
    for _ in range(10):
        rule.zero_grad()
        wanted = objective(torch.tensor(X.astype(np.float64)) @ w, torch.tensor(y))
        wanted.backward()
        rule.step()
        found = step.run(X, np.eye(3, dtype=np.float32)[y] if columns else y)
        np.testing.assert_allclose(found, wanted.item(), rtol=1e-4)
    np.testing.assert_allclose(step.weights()["w"], w.detach().numpy(), rtol=1e-4, atol=1e-5)
