"""What a step minimises, and by which gradient, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.graph import weights
from onnxcustom.objective import (
    BinaryCrossEntropyLearningLoss,
    ElasticLearningLoss,
    ElasticLearningPenalty,
    HuberLearningLoss,
    L1LearningPenalty,
    L2LearningPenalty,
    PoissonLearningLoss,
    QuantileLearningLoss,
    SquareLearningLoss,
)
from onnxcustom.optim import create, rule_names
from onnxcustom.step.training_step import TrainingStep
from onnxcustom.training.run import Run

ort = pytest.importorskip("onnxruntime")


def batch(n=7, columns=3, outputs=1, dtype=np.float64, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, columns)).astype(dtype), rng.normal(size=(n, outputs)).astype(dtype)


# -- the objective, in NumPy -------------------------------------------------------------------


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def log_softmax(z):
    return (
        z
        - z.max(axis=1, keepdims=True)
        - np.log(np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    )


def huber(p, y):
    d = np.abs(p - y)
    return np.where(d <= 1, d**2 / 2, d - 0.5)


ACTIVATIONS = {"Tanh": np.tanh, "Sigmoid": sigmoid, "Identity": lambda z: z}
# Loss, end of the model, one score per element (or row) of raw scores z.
LOSSES = {
    "squared": ("squared_error", None, lambda z, y: (z - y) ** 2 / 2),
    "absolute": ("absolute_error", None, lambda z, y: np.abs(z - y)),
    "elastic": (
        ElasticLearningLoss(0.3, 0.7),
        None,
        lambda z, y: 0.3 * np.abs(z - y) + 0.7 * (z - y) ** 2,
    ),
    "huber": (HuberLearningLoss(), None, huber),
    "quantile": (QuantileLearningLoss(0.2), None, lambda z, y: np.maximum(0.2 * (y - z), 0.8 * (z - y))),
    "poisson": (PoissonLearningLoss(), None, lambda z, y: np.exp(z) - y * z),
    "squared on sigmoid": (SquareLearningLoss(), "Sigmoid", lambda z, y: (sigmoid(z) - y) ** 2 / 2),
    "binary": (
        BinaryCrossEntropyLearningLoss(),
        "Sigmoid",
        lambda z, y: -(y * np.log(sigmoid(z)) + (1 - y) * np.log(1 - sigmoid(z))),
    ),
    "binary on scores": (
        "binary_crossentropy",
        None,
        lambda z, y: -(y * np.log(sigmoid(z)) + (1 - y) * np.log(1 - sigmoid(z))),
    ),
    "softmax": ("softmax_crossentropy", "Softmax", lambda z, y: -log_softmax(z)[np.arange(len(y)), y]),
    "softmax on scores": ("softmax_crossentropy", None, lambda z, y: -log_softmax(z)[np.arange(len(y)), y]),
}
PENALTIES = {
    "none": (None, lambda w: 0.0),
    "l1": (L1LearningPenalty(0.1), lambda w: 0.1 * sum(np.abs(a).sum() for a in w.values())),
    "l2": (L2LearningPenalty(0.2), lambda w: 0.2 * sum((a**2).sum() for a in w.values())),
    "elastic without biases": (
        ElasticLearningPenalty(0.1, 0.2, biases=False),
        lambda w: sum(0.1 * np.abs(a).sum() + 0.2 * (a**2).sum() for n, a in w.items() if n[0] == "w"),
    ),
    "per weight": (
        {"w0": L2LearningPenalty(0.3), "b*": L1LearningPenalty(0.1)},
        lambda w: (
            0.3 * (w["w0"] ** 2).sum() + 0.1 * sum(np.abs(a).sum() for n, a in w.items() if n[0] == "b")
        ),
    ),
}


def objective(w, X, y, sample_weight, activation, scores, penalty):
    """CONTRACT: sum of w_i * loss_i / rows + penalty."""
    z = X
    layers = len(w) // 2
    for i in range(layers):
        z = z @ w[f"w{i}"] + w[f"b{i}"]
        z = ACTIVATIONS[activation](z) if i < layers - 1 else z
    rows = scores(z, y).reshape(len(X), -1).sum(axis=1)
    return (sample_weight * rows).sum() / len(X) + penalty(w)


def gradient(function, w, eps=1e-6):
    """Central differences."""
    result = {}
    for name, array in w.items():
        slope = np.zeros_like(array)
        for i in np.ndindex(array.shape):
            sides = []
            for sign in (1, -1):
                moved = {**w, name: array.copy()}
                moved[name][i] += sign * eps
                sides.append(function(moved))
            slope[i] = (sides[0] - sides[1]) / (2 * eps)
        result[name] = slope
    return result


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    outputs=st.integers(1, 3),
    rows=st.integers(1, 6),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    loss=st.sampled_from(sorted(LOSSES)),
    penalty=st.sampled_from(sorted(PENALTIES)),
    weighted=st.booleans(),
    flat=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_one_step_descends_the_objective(
    mlp_model, sizes, outputs, rows, activation, loss, penalty, weighted, flat, seed
):
    spec, end, scores = LOSSES[loss]
    chosen, value = PENALTIES[penalty]
    rng = np.random.default_rng(seed)
    if "softmax" in loss:
        outputs += 1
        y = rng.integers(0, outputs, size=rows)
    else:
        y = (
            rng.integers(0, 2, size=(rows, outputs))
            if "binary" in loss
            else rng.uniform(size=(rows, outputs))
        )
    model = mlp_model([*sizes, outputs], activation, dtype=np.float64, end=end, seed=seed)
    X = rng.normal(size=(rows, sizes[0]))
    w = rng.uniform(0.1, 2, size=rows) if weighted else None
    step = TrainingStep(model, spec, "sgd", penalty=chosen, learning_rate=0.125)
    before = step.weights()

    def function(moved):
        return objective(moved, X, y, 1.0 if w is None else w, activation, scores, value)

    given_y = y.ravel() if flat and outputs == 1 else y
    loss = step.run(X, given_y, w)
    assert loss == pytest.approx(function(before), rel=1e-10)
    after, slopes = step.weights(), gradient(function, before)
    for name, array in before.items():
        np.testing.assert_allclose((array - after[name]) / 0.125, slopes[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", rule_names())
def test_every_rule_updates_as_it_does_alone(mlp_model, rule, dtype):
    """The gradient comes from plain descent at rate 1, the update from the rule's own function."""
    X, y = batch(dtype=dtype)
    model = mlp_model([3, 2, 1], dtype=dtype)
    # Alone, a rule does not know which weights are biases, nor their names.
    step = TrainingStep(model, optimizer=create(rule, wd_mult={"*": 1.0}))
    alone = create(rule).init_learning_rate()
    if alone.stochastic:
        pytest.skip("its numbers depend on the weight's name")
    skipped = [n for n in step.weights() if rule == "lars" and n.startswith("b")]
    state, probe = {}, TrainingStep(model, learning_rate=1.0)
    for t in range(1, 4):
        before = step.weights()
        probe.set_weights(before)
        probe.run(X, y)
        step.run(X, y)
        for i, (name, w) in enumerate(before.items()):
            if name in skipped:
                continue
            slope = w - probe.weights()[name]
            made = alone.update_weights(i, "cpu", w.copy(), slope, 1, state.get(name))
            new = made[0] if alone.needs_grad else made
            np.testing.assert_allclose(step.weights()[name], new, rtol=1e-4, atol=1e-6)
            if alone.needs_grad:
                made = made[1] if isinstance(made[1], tuple) else (made[1],)
                state[name] = tuple(np.array(v.numpy() if hasattr(v, "numpy") else v) for v in made)
                for own, wanted in zip(step.state()[name].values(), state[name], strict=True):
                    np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-6)
        alone.update_learning_rate(t)
        assert step.iteration == t
        assert step.optimizer.value == alone.value


# -- several inputs, several outputs -----------------------------------------------------------

TWO = """<ir_version: 8, opset_import: ["": 18]>
two (double[N,2] a, double[N,3] b, int64[N] k) => (double[N,2] u, double[N,1] v, int64[N] label)
<double[2,2] A = {1, 2, 3, 4}, double[3,2] B = {1, 0, 1, 0, 1, 1}, double[2,1] C = {1, -1},
 double[4,2] E = {1, 2, 3, 4, 5, 6, 7, 8}, double[2] unused = {5, 6}>
{
    left = MatMul(a, A)
    right = MatMul(b, B)
    row = Gather <axis = 0> (E, k)
    both = Add(left, right)
    all = Add(both, row)
    u = Tanh(all)
    v = MatMul(u, C)
    label = ArgMax <axis = 1, keepdims = 0> (u)
    lost = Mul(left, unused)
}"""


def two_batch():
    rng = np.random.default_rng(0)
    X = {"a": rng.normal(size=(5, 2)), "b": rng.normal(size=(5, 3)), "k": np.array([0, 1, 1, 2, 0])}
    return X, {"u": rng.normal(size=(5, 2)), "v": rng.normal(size=5)}


def two_forward(w, X):
    u = np.tanh(X["a"] @ w["A"] + X["b"] @ w["B"] + w["E"][X["k"]])
    return u, u @ w["C"]


def test_several_inputs_and_outputs():
    X, Y = two_batch()
    step = TrainingStep(
        onnx.parser.parse_model(TWO),
        {"u": "squared_error", "v": "huber"},
        learning_rate=0.25,
        loss_weights={"v": 3.0},
    )

    def function(w):
        u, v = two_forward(w, X)
        return ((u - Y["u"]) ** 2 / 2).sum() / 5 + 3 * huber(v[:, 0], Y["v"]).sum() / 5

    before = step.weights()
    slopes = gradient(function, before)
    assert step.run(X, Y) == pytest.approx(function(before))
    for name, array in step.weights().items():
        np.testing.assert_allclose((before[name] - array) / 0.25, slopes[name], rtol=1e-5, atol=1e-7)
    made = step.predict(X)
    assert list(made) == ["u", "v"]
    for array, wanted in zip(made.values(), two_forward(step.weights(), X), strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-6)
    assert [s.name for s in step.inputs] == ["a", "b", "k"]
    assert [s.name for s in step.expected] == ["u", "v"]


def test_scores_are_the_losses_of_the_rows_without_penalty():
    X, Y = two_batch()
    w = np.arange(1.0, 6)
    step = TrainingStep(
        onnx.parser.parse_model(TWO),
        {"u": "squared_error", "v": "huber"},
        loss_weights={"v": 3.0},
        penalty="l2",
    )
    u, v = two_forward(step.weights(), X)
    expected = ((u - Y["u"]) ** 2 / 2).sum(axis=1) + 3 * huber(v[:, 0], Y["v"])
    np.testing.assert_allclose(step.scores(X, Y), expected)
    np.testing.assert_allclose(step.scores(X, Y, w), w * expected)


def test_the_first_output_is_trained_by_default():
    X, Y = two_batch()
    step = TrainingStep(onnx.parser.parse_model(TWO))
    assert [t.output for t in step.targets] == ["u"]
    step.run(X, Y["u"])


def test_some_weights_only():
    X, Y = two_batch()
    step = TrainingStep(onnx.parser.parse_model(TWO), {"v": "squared_error"}, weights=["C", "A"])
    assert list(step.weights()) == ["C", "A"]
    step.run(X, {"v": Y["v"]})
    trained, own = weights(step.trained_model()), weights(onnx.parser.parse_model(TWO))
    assert {n for n in own if not np.array_equal(own[n], trained[n])} == {"A", "C"}


def test_a_weight_the_output_does_not_read_gets_its_penalty_only():
    X, Y = two_batch()
    model = onnx.parser.parse_model(TWO)
    step = TrainingStep(
        model, {"u": "squared_error"}, penalty={"C": L2LearningPenalty(0.5)}, learning_rate=0.5
    )
    before = step.weights()
    step.run(X, {"u": Y["u"]})
    np.testing.assert_allclose(step.weights()["C"], before["C"] * 0.5)


# -- classes on the last axis ------------------------------------------------------------------

TOKENS = """<ir_version: 8, opset_import: ["": 18]>
tokens (double[N,T,2] x) => (double[N,T,3] p) <double[2,3] w = {1, -1, 0, 0, 1, 2}>
{ z = MatMul(x, w) p = Softmax <axis = -1> (z) }"""


@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_classes_on_the_last_axis(tokens):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(5, tokens, 2)), rng.integers(0, 3, size=(5, tokens))
    step = TrainingStep(onnx.parser.parse_model(TOKENS), "softmax_crossentropy", learning_rate=1.0)

    def rows(w):
        z = X @ w["w"]
        log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        return -np.take_along_axis(log_p, y[..., None], axis=-1)[..., 0].mean(axis=1)

    before = step.weights()
    np.testing.assert_allclose(step.scores(X, y), rows(before))
    slopes = gradient(lambda w: rows(w).sum() / 5, before)
    assert step.run(X, y) == pytest.approx(rows(before).sum() / 5)
    np.testing.assert_allclose(before["w"] - step.weights()["w"], slopes["w"], rtol=1e-6, atol=1e-8)


def test_the_mean_loss_of_an_output_is_over_its_own_labels():
    """Batches of sentences of two lengths: by tokens where tokens count, by rows where rows do."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> g (float[N, T, 3] x) => (float[N, T, 2] p, float[N, 1] q)
        <float[3, 2] w = {1, 0, 0, 1, 1, 1}, float[3, 1] v = {1, 2, 1}, int64[1] one = {1}> {
            p = MatMul(x, w) m = ReduceMean<keepdims = 0>(x, one) q = MatMul(m, v) }"""
    )
    rng = np.random.default_rng(0)
    losses = {"p": "cross_entropy", "q": "squared_error"}
    step, run = TrainingStep(model, losses, learning_rate=0.0), Run(*[None] * 7)
    tokens, rows = [], []
    for n, length in ((4, 3), (3, 5)):
        x = rng.normal(size=(n, length, 3)).astype(np.float32)
        labels, values = rng.integers(0, 2, (n, length)), rng.normal(size=(n, 1)).astype(np.float32)
        step.run(x, {"p": labels, "q": values})
        assert step.head_units == {"p": n * length, "q": n}
        run.add_heads(step.head_losses, step.head_units)
        found = step.predict(x)
        scores = found["p"] - np.log(np.exp(found["p"]).sum(-1, keepdims=True))
        tokens += [-np.take_along_axis(scores, labels[..., None], -1).ravel()]
        rows += [0.5 * (found["q"] - values).ravel() ** 2]
    means = {"p": np.concatenate(tokens).mean(), "q": np.concatenate(rows).mean()}
    assert run.head_losses == pytest.approx(means, rel=1e-5)
