"""Rows wherever a model has them: ten steps against central differences of formulas written in NumPy."""

import pickle

import numpy as np
import onnx.parser
import pytest

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.data import stream
from onnxcustom.exceptions import EvaluationError, InvalidDataError, RowsWarning
from onnxcustom.feed.data_loader import OrtDataLoader
from onnxcustom.gradient import ENGINES
from onnxcustom.optim import SGD

HEAD = '<ir_version: 8, opset_import: ["": 17]> g '
W = "<double[2,3] w = {0.1, -0.2, 0.3, 0.4, 0.5, -0.6}>"
W0 = np.array([[0.1, -0.2, 0.3], [0.4, 0.5, -0.6]])
N, T = 4, 5
RNG = np.random.default_rng(0)
ENGINE = [name for name, engine in ENGINES.items() if engine.unavailable() is None]


def parsed(text):
    return onnx.parser.parse_model(HEAD + text)


def data(*shape):
    return RNG.normal(size=shape)


# Model -> its inputs, its prediction in NumPy, axis of the rows in the prediction, axis of the classes.
MODELS = {
    "table": (
        f"(double[N,2] x) => (double[N,3] z) {W} {{ z = MatMul(x, w) }}",
        {"x": data(N, 2)},
        lambda w, x: x @ w,
        0,
        1,
    ),
    "tokens": (
        f"(double[N,T,2] x) => (double[N,T,3] z) {W} {{ a = MatMul(x, w) z = LogSoftmax<axis = -1>(a) }}",
        {"x": data(N, T, 2)},
        lambda w, x: x @ w,
        0,
        2,
    ),
    "classes second": (
        f"(double[N,T,2] x) => (double[N,3,T] z) {W} {{ a = MatMul(x, w) z = Transpose<perm = [0,2,1]>(a) }}",
        {"x": data(N, T, 2)},
        lambda w, x: (x @ w).transpose(0, 2, 1),
        0,
        1,
    ),
    "time first at the end": (
        f"(double[N,T,2] x) => (double[T,N,3] z) {W} {{ a = MatMul(x, w) z = Transpose<perm = [1,0,2]>(a) }}",
        {"x": data(N, T, 2)},
        lambda w, x: (x @ w).transpose(1, 0, 2),
        1,
        2,
    ),
    "time first at the beginning": (
        f"(double[T,N,2] x, double[N,2] h, double[N] k) => (double[T,N,3] z) {W} "
        "{ b = Add(x, h) i = Constant<value = int64[1] {1}>() c = Unsqueeze(k, i) a = Mul(b, c) "
        "z = MatMul(a, w) }",
        {"x": data(T, N, 2), "h": data(N, 2), "k": data(N)},
        lambda w, x, h, k: ((x + h) * k[:, None]) @ w,
        1,
        2,
    ),
    "the batch last": (
        f"(double[N,2] x) => (double[3,N] z) {W} {{ a = MatMul(x, w) z = Transpose(a) }}",
        {"x": data(N, 2)},
        lambda w, x: (x @ w).T,
        1,
        0,
    ),
    "state": (
        f"(double[N,2] x, double[2,N,2] h, double r) => (double[N,3] z) {W} "
        "{ ax = Constant<value = int64[1] {0}>() s = ReduceSum<keepdims = 0>(h, ax) a = Add(x, s) "
        "b = Mul(a, r) z = MatMul(b, w) }",
        {"x": data(N, 2), "h": data(2, N, 2), "r": np.float64(0.5)},
        lambda w, x, h, r: ((x + h.sum(axis=0)) * r) @ w,
        0,
        1,
    ),
    "squeezed": (
        f"(double[1,T,2] x) => (double[T,3] z) {W} "
        "{ a = MatMul(x, w) ax = Constant<value = int64[1] {0}>() b = Squeeze(a, ax) "
        "z = LogSoftmax<axis = -1>(b) }",
        {"x": data(1, T, 2)},
        lambda w, x: (x @ w)[0],
        None,
        1,
    ),
    "one row for all": (
        f"(double[N,2] x) => (double[3] z) {W} {{ a = MatMul(x, w) ax = Constant<value = int64[1] {{0}}>() "
        "z = ReduceSum<keepdims = 0>(a, ax) }",
        {"x": data(N, 2)},
        lambda w, x: (x @ w).sum(axis=0),
        None,
        0,
    ),
}


def squared(z, y, weights, rows):
    """Half the squares of each row times its weight, over the number of rows."""
    losses = (z - y) ** 2 / 2
    if rows is None:
        return losses.sum() * weights.mean()
    by_row = np.moveaxis(losses, rows, 0).reshape(len(weights), -1).sum(axis=1)
    return (by_row * weights).sum() / len(weights)


def cross_entropy(z, y, weights, rows, classes):
    """The mean over all labels of what each costs times the weight of its row."""
    z = np.moveaxis(z, classes, -1)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_p, y[..., None], axis=-1)[..., 0]
    if weights.shape == losses.shape and weights.ndim != 1:
        return (losses * weights).mean()
    if rows is None:
        return losses.mean() * weights.mean()
    place = rows - (classes < rows)
    return (np.moveaxis(losses, place, -1) * weights).mean()


def slopes(function, w, eps=1e-6):
    made = np.zeros_like(w)
    for i in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[i] = eps
        made[i] = (function(w + step) - function(w - step)) / (2 * eps)
    return made


def counted(inputs):
    return 1 if len(inputs["x"]) == 1 else N


@pytest.mark.parametrize("engine", ENGINE)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("name", MODELS)
def test_ten_steps(name, loss, weighted, engine):
    text, inputs, forward, rows, classes = MODELS[name]
    rng = np.random.default_rng(1)
    z = forward(W0, **inputs)
    if loss == "squared_error":
        if "LogSoftmax" in text:
            text = text.replace("z = LogSoftmax<axis = -1>", "z = Identity")
        y = rng.normal(size=z.shape)
    else:
        y = rng.integers(0, 3, size=np.delete(z.shape, classes))
    sample_weight = rng.random(counted(inputs)) + 0.5 if weighted else None
    weights = np.ones(counted(inputs)) if sample_weight is None else sample_weight

    def objective(w):
        z = forward(w, **inputs)
        args = (z, y, weights, rows)
        return squared(*args) if loss == "squared_error" else cross_entropy(*args, classes)

    step = TrainingStep(parsed(text), loss, "sgd", learning_rate=0.1, engine=engine)
    X = inputs if len(inputs) > 1 else inputs["x"]
    w = W0
    for _ in range(10):
        assert step.scores(X, y, sample_weight).mean() == pytest.approx(objective(w), rel=1e-6)
        assert step.run(X, y, sample_weight) == pytest.approx(objective(w), rel=1e-6)
        w = w - 0.1 * slopes(objective, w)
        np.testing.assert_allclose(step.weights()["w"], w, rtol=1e-5, atol=1e-8)
    assert step.targets[0].rows == rows
    assert f"'z': {rows}" in repr(step)


@pytest.mark.parametrize("name", ["tokens", "classes second", "time first at the end", "squeezed"])
def test_a_weight_for_each_label(name):
    text, inputs, forward, rows, classes = MODELS[name]
    rng = np.random.default_rng(2)
    z = forward(W0, **inputs)
    y = rng.integers(0, 3, size=np.delete(z.shape, classes))
    weights = rng.random(y.shape)
    losses = cross_entropy(z, y, np.ones(counted(inputs)), rows, classes)
    step = TrainingStep(parsed(text), "cross_entropy", "sgd", learning_rate=0.1)

    def objective(w):
        z = np.moveaxis(forward(w, **inputs), classes, -1)
        log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        return (-np.take_along_axis(log_p, y[..., None], axis=-1)[..., 0] * weights).mean()

    X = inputs["x"]
    assert step.scores(X, y).mean() == pytest.approx(losses)
    assert step.scores(X, y, weights).mean() == pytest.approx(objective(W0))
    assert step.run(X, y, weights) == pytest.approx(objective(W0))
    np.testing.assert_allclose(step.weights()["w"], W0 - 0.1 * slopes(objective, W0), rtol=1e-6)
    with pytest.raises(InvalidDataError):
        step.run(X, y, weights[..., :-1])


# -- data sets -----------------------------------------------------------------------------------------


ROWS = 23


def large(name):
    """A data set of a model: features and expected values, rows where the model has them."""
    text, inputs, forward, rows, classes = MODELS[name]
    rng = np.random.default_rng(3)
    shapes = {n: [ROWS if d == N else d for d in np.shape(a)] for n, a in inputs.items()}
    X = {n: np.asarray(rng.normal(size=shape)) for n, shape in shapes.items()}
    z = forward(np.array([[1.0, 2, -1], [0, 1, 1]]), **X)
    return text, X if len(X) > 1 else X["x"], z, rows, classes


MOVED = ["table", "tokens", "classes second", "time first at the end", "time first at the beginning", "state"]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", [*MOVED, "the batch last"])
def test_batches_are_cut_along_the_rows(name, shuffle):
    text, X, z, rows, _ = large(name)
    step = TrainingStep(parsed(text.replace("LogSoftmax<axis = -1>", "Identity")))
    options = {"batch_size": 5, "shuffle": shuffle, "random_state": 0, "block_bytes": 2000}
    loader = OrtDataLoader(X, z, np.arange(ROWS) + 1.0, inputs=step.inputs, targets=step.expected, **options)
    found = []
    for epoch in range(2):
        seen = []
        for batch in loader.epoch(epoch):
            *arrays, y, weights = (v.numpy().copy() for v in batch.values)
            found.append(batch.rows)
            order = weights.astype(int) - 1
            seen += order.tolist()
            for spec, part in zip(step.inputs, arrays, strict=True):
                whole = X[spec.name] if isinstance(X, dict) else X
                expected = whole if spec.axis is None else np.take(whole, order, spec.axis)
                np.testing.assert_array_equal(part, expected)
            np.testing.assert_array_equal(y, np.take(z, order, rows))
        assert sorted(seen) == list(range(ROWS))
        assert (seen == list(range(ROWS))) is not shuffle
        assert [b.rows for b in loader.epoch(epoch, skip=2)] == [5, 5, 3]
    assert found == [5, 5, 5, 5, 3] * 2
    copied = pickle.loads(pickle.dumps(loader))
    for a, b in zip(loader.iter_numpy(), copied.iter_numpy(), strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)


def as_batches(X, z, rows):
    """The same data in pieces of eight rows."""

    def cut(array, axis, start):
        return array if axis is None else np.take(array, range(start, min(start + 8, ROWS)), axis)

    def iterate(places):
        for start in range(0, ROWS, 8):
            made = (
                {n: cut(a, places[n], start) for n, a in X.items()}
                if isinstance(X, dict)
                else cut(X, places, start)
            )
            yield made, cut(z, rows, start)

    return iterate


@pytest.mark.parametrize("name", MOVED)
def test_a_regressor_on_arrays_streams_and_batches(name):
    text, X, z, rows, _ = large(name)
    text = text.replace("LogSoftmax<axis = -1>", "Identity")
    options = {"learning_rate": 0.05, "max_iter": 3, "batch_size": 5, "shuffle": False}
    reg = OnnxRegressor(parsed(text), **options).fit(X, z)
    places = {spec.name: spec.axis for spec in reg.step_.inputs}
    places = places if isinstance(X, dict) else places["x"]
    iterate = as_batches(X, z, rows)
    for source in (stream((X, z)), lambda: iterate(places)):
        other = OnnxRegressor(parsed(text), **options).fit(source)
        np.testing.assert_array_equal(other.weights_["w"], reg.weights_["w"])
        assert other.history_ == reg.history_
    assert reg.predict(X).shape == z.shape
    # The mean loss over the rows is what a step has on all of them.
    assert reg.step_.scores(X, z).shape == (ROWS,)
    held = OnnxRegressor(parsed(text), **{**options, "max_iter": 30}, validation_fraction=0.3, random_state=0)
    assert held.fit(X, z).history_["val_loss"][-1] < held.history_["val_loss"][0]
    assert held.score(X, z) > 0.5
    streamed = OnnxRegressor(
        parsed(text), **{**options, "max_iter": 3}, validation_fraction=0.3, random_state=0
    )
    assert streamed.fit(stream((X, z))).history_["val_loss"][-1] < streamed.history_["val_loss"][0]


@pytest.mark.parametrize(
    "name", ["table", "tokens", "classes second", "time first at the end", "the batch last"]
)
def test_a_classifier(name):
    text, X, z, rows, classes = large(name)
    names = np.array(["ant", "bee", "cow"])
    y = names[z.argmax(axis=classes)]
    options = {"learning_rate": 0.5, "max_iter": 40, "batch_size": 5, "random_state": 0}
    clf = OnnxClassifier(parsed(text), loss="softmax_crossentropy", **options).fit(X, y)
    assert clf.score(X, y) > 0.9
    np.testing.assert_array_equal(clf.predict(X).shape, y.shape)
    assert (clf.predict(X) == y).mean() == pytest.approx(clf.score(X, y))
    proba = clf.predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=classes if proba.ndim > 2 else 1), 1, rtol=1e-6)

    # Weights of classes are those of labels.
    weight = {"ant": 3.0, "bee": 1.0, "cow": 0.5}
    by_class = OnnxClassifier(parsed(text), loss="softmax_crossentropy", class_weight=weight, **options).fit(
        X, y
    )
    given = np.vectorize(weight.get)(y)
    by_label = OnnxClassifier(parsed(text), loss="softmax_crossentropy", **options).fit(X, y, given)
    np.testing.assert_allclose(by_class.weights_["w"], by_label.weights_["w"], rtol=1e-9)
    assert np.abs(by_class.weights_["w"] - clf.weights_["w"]).max() > 1e-3
    place = rows - (classes < rows)
    spread = np.ones(ROWS).reshape([-1 if a == place else 1 for a in range(y.ndim)]) * np.ones(y.shape) * 0.5
    half = OnnxClassifier(parsed(text), loss="softmax_crossentropy", **options).fit(X, y, np.full(ROWS, 0.5))
    same = OnnxClassifier(parsed(text), loss="softmax_crossentropy", **options).fit(X, y, spread)
    np.testing.assert_allclose(half.weights_["w"], same.weights_["w"], rtol=1e-9)


def test_a_model_that_takes_one_row_at_a_time():
    text = MODELS["squeezed"][0]
    rng = np.random.default_rng(4)
    X = rng.normal(size=(12, T, 2))
    w = np.array([[1.0, 2, -1], [0, 1, 1]])
    labels = (X @ w).argmax(axis=-1)
    clf = OnnxClassifier(parsed(text), learning_rate=0.5, max_iter=20, batch_size=1, random_state=0)
    assert clf.fit(X, labels).score(X, labels) > 0.9
    assert clf.predict(X).shape == (12, T)
    assert clf.step_.scores(X, labels).shape == (12,)
    both = OnnxClassifier(parsed(text), learning_rate=0.5, max_iter=2, batch_size=1, shuffle=False)
    other = OnnxClassifier(parsed(text), learning_rate=0.5, max_iter=2, batch_size=1, shuffle=False)
    both.fit(X, labels)
    other.fit(stream((X, labels)))
    np.testing.assert_array_equal(both.weights_["w"], other.weights_["w"])
    # Step by step it is the same.
    step = TrainingStep(parsed(text), "cross_entropy", "sgd", learning_rate=0.5)
    losses = [[step.run(X[i : i + 1], labels[i]) for i in range(12)] for _ in range(2)]
    np.testing.assert_array_equal(step.weights()["w"], both.weights_["w"])
    np.testing.assert_allclose(both.history_["loss"], np.mean(losses, axis=1))
    reg = OnnxRegressor(
        parsed(text.replace("LogSoftmax<axis = -1>", "Identity")), learning_rate=0.1, batch_size=1
    )
    assert reg.fit(X, X @ w).score(X, X @ w) > 0.9
    with pytest.raises(InvalidDataError, match="one row at a time"):
        step.run(X, labels)


def test_what_is_given_once_a_batch():
    text, X, z, _, _ = large("state")
    step = TrainingStep(parsed(text))
    with pytest.raises(InvalidDataError, match="'r' wants one number for the batch"):
        step.run({**X, "r": np.ones(ROWS)}, z)
    with pytest.raises(InvalidDataError, match="'r' is nan"):
        step.run({**X, "r": np.nan}, z)
    rates = [0.5, 2.0]
    batches = [({**X, "r": r}, z) for r in rates]
    with pytest.raises(InvalidDataError, match="given once a batch"):
        OnnxRegressor(parsed(text), batch_size=8, shuffle=False).fit(stream(batches))
    OnnxRegressor(parsed(text), batch_size=ROWS, shuffle=False, max_iter=1).fit(stream(batches))


def test_overrides():
    """(time, rows, columns) with a state whose axis has a name of its own."""
    text = f"(double[T,N,2] x, double[2,M,2] h) => (double[T,k,3] z) {W} " + (
        "{ ax = Constant<value = int64[1] {0}>() s = ReduceSum<keepdims = 0>(h, ax) "
        "a = Add(x, s) z = MatMul(a, w) }"
    )
    rng = np.random.default_rng(5)
    X = {"x": rng.normal(size=(T, ROWS, 2)), "h": rng.normal(size=(2, ROWS, 2))}
    z = (X["x"] + X["h"].sum(axis=0)) @ np.array([[1.0, 2, -1], [0, 1, 1]])
    axes = {"x": 1, "h": 1, "z": 1}
    step = TrainingStep(parsed(text), batch_axis=axes)
    assert "batch_axis={'x': 1, 'h': 1, 'z': 1}" in repr(step)
    assert step.run(X, z) == pytest.approx((((X["x"] + X["h"].sum(axis=0)) @ W0 - z) ** 2).sum() / 2 / ROWS)
    reg = OnnxRegressor(parsed(text), batch_axis=axes, learning_rate=0.05, batch_size=5, random_state=0)
    assert reg.fit(X, z).score(X, z) > 0.9
    copied = pickle.loads(pickle.dumps(reg))
    np.testing.assert_array_equal(copied.predict(X), reg.predict(X))
    assert [t.rows for t in copied.step_.targets] == [1]
    assert reg.get_params()["batch_axis"] == axes
    whole = TrainingStep(parsed(text), batch_axis={**axes, "z": None})
    assert whole.run(X, z) == pytest.approx(step_objective(X, z) * ROWS)


def step_objective(X, z):
    return (((X["x"] + X["h"].sum(axis=0)) @ W0 - z) ** 2).sum() / 2 / ROWS


# -- which axis holds the classes ----------------------------------------------------------------------

DEEP = f"(double[N,T,2] x) => (double[N,T,3] z) {W} {{ z = MatMul(x, w) }}"


def test_labels_tell_the_classes():
    x, rng = data(N, T, 2), np.random.default_rng(6)
    y = rng.integers(0, 3, size=(N, T))
    step = TrainingStep(parsed(DEEP), "cross_entropy")
    assert step.run(x, y) == pytest.approx(cross_entropy(x @ W0, y, np.ones(N), 0, 2))
    assert step.targets[0].axis == 2
    step.run(x, y)
    # Three tokens and three classes: nothing tells one from the other.
    step = TrainingStep(parsed(DEEP), "cross_entropy")
    x, y = data(N, 3, 2), rng.integers(0, 3, size=(N, 3))
    with pytest.warns(UserWarning, match=r"axes \[1, 2\] may hold the classes; taken for 1"):
        loss = step.run(x, y)
    assert loss == pytest.approx(cross_entropy(x @ W0, y, np.ones(N), 0, 1))


def test_steps_of_before_divide_as_before():
    x, y = data(N, T, 2), np.random.default_rng(7).integers(0, 3, size=(N, T))
    text = MODELS["tokens"][0]
    step = TrainingStep(parsed(text), "cross_entropy")
    by_label = step.scores(x, y).mean()
    tensors, state = step.state_dict()
    del state["positions"]  # a checkpoint of before
    step.load_state_dict(tensors, state)
    assert step.scores(x, y).mean() == pytest.approx(T * by_label)
    assert step.run(x, y) == pytest.approx(T * by_label)
    assert not pickle.loads(pickle.dumps(step)).targets[0].positions
    other = TrainingStep(parsed(text), "cross_entropy")
    other.load_state_dict(*step.state_dict())
    assert not other.targets[0].positions
    after = TrainingStep(parsed(text), "cross_entropy")
    after.take_over(step)
    assert not after.targets[0].positions


def test_accumulated_batches_are_one():
    """Two batches of other lengths of tokens have the gradient of all their labels."""
    text = MODELS["tokens"][0]
    rng = np.random.default_rng(8)
    parts = [(rng.normal(size=(n, t, 2)), rng.integers(0, 3, size=(n, t))) for n, t in ((2, 3), (4, 5))]
    step = TrainingStep(parsed(text), "cross_entropy", SGD(learning_rate=1.0, accumulate=2))
    for x, y in parts:
        step.run(x, y)
    count = sum(y.size for _, y in parts)

    def objective(w):
        return sum(cross_entropy(x @ w, y, np.ones(len(x)), 0, 2) * y.size for x, y in parts) / count

    np.testing.assert_allclose(step.weights()["w"], W0 - slopes(objective, W0), rtol=1e-6)


HEADS = f"""(double[N,T,2] x) => (double[N,T,3] z, double[N,3] k) {W}
{{ z = MatMul(x, w) k = ReduceMean<axes = [1], keepdims = 0>(z) }}"""


def head_objective(kinds, x, y):
    """Sum of the means of both heads: tokens, and rows, by formulas."""

    def objective(w):
        z = x @ w
        total = 0.0
        for name, scores in (("z", z), ("k", z.mean(1))):
            if kinds[name] == "cross_entropy":
                total += cross_entropy(scores, y[name], np.ones(len(x)), 0, scores.ndim - 1)
            else:
                total += ((scores - y[name]) ** 2).sum() / 2 / len(x)
        return total

    return objective


@pytest.mark.parametrize("engine", ENGINE)
@pytest.mark.parametrize(
    "kinds",
    [
        {"z": "cross_entropy", "k": "squared_error"},
        {"z": "cross_entropy", "k": "cross_entropy"},
        {"z": "squared_error", "k": "cross_entropy"},
    ],
    ids=lambda kinds: "-".join(kinds.values()),
)
@pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 1, 3)])
def test_accumulated_heads_are_means_of_their_own(kinds, sizes, engine):
    """Heads with a label a token and a label a row: batches accumulated are one batch, ten times."""
    rng = np.random.default_rng(3)
    rule = {"learning_rate": 0.2, "momentum": 0.5}
    step = TrainingStep(parsed(HEADS), kinds, SGD(**rule, accumulate=3), engine=engine)
    whole = TrainingStep(parsed(HEADS), kinds, SGD(**rule), engine=engine)
    w, v = W0, np.zeros_like(W0)
    for _ in range(10):
        x = rng.normal(size=(sum(sizes), T, 2))
        shapes = {"z": (len(x), T), "k": (len(x),)}
        y = {
            name: rng.integers(0, 3, size=shapes[name])
            if kind == "cross_entropy"
            else rng.normal(size=(*shapes[name], 3))
            for name, kind in kinds.items()
        }
        ends = np.cumsum(sizes)
        for start, end in zip(ends - sizes, ends, strict=True):
            step.run(x[start:end], {name: part[start:end] for name, part in y.items()})
        whole.run(x, y)
        v = 0.5 * v - 0.2 * slopes(head_objective(kinds, x, y), w)
        w = w + v
        np.testing.assert_allclose(step.weights()["w"], w, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(step.weights()["w"], whole.weights()["w"], rtol=1e-9)


def test_accumulated_heads_of_other_lengths():
    """Both heads have a label a token, and batches have other numbers of tokens."""
    text = f"(double[N,T,2] x) => (double[N,T,3] z, double[N,T,3] k) {W} {{ z = MatMul(x, w) k = Mul(z, z) }}"
    kinds = {"z": "cross_entropy", "k": "cross_entropy"}
    rng = np.random.default_rng(4)
    step = TrainingStep(parsed(text), kinds, SGD(learning_rate=1.0, accumulate=2))
    parts = [(rng.normal(size=(n, t, 2)), rng.integers(0, 3, size=(n, t))) for n, t in ((2, 4), (4, 5))]
    for x, y in parts:
        step.run(x, {"z": y, "k": y})
    count = sum(y.size for _, y in parts)

    def objective(w):
        scores = [(f(x @ w), y, len(x)) for x, y in parts for f in (np.asarray, np.square)]
        return sum(cross_entropy(z, y, np.ones(n), 0, 2) * y.size for z, y, n in scores) / count

    np.testing.assert_allclose(step.weights()["w"], W0 - slopes(objective, W0), rtol=1e-6)
    mixed = TrainingStep(
        parsed(HEADS), {"z": "cross_entropy", "k": "squared_error"}, SGD(learning_rate=1.0, accumulate=3)
    )
    given = [(x, {"z": y, "k": np.zeros((len(x), 3))}) for x, y in parts]
    mixed.run(*given[0])
    with pytest.raises(InvalidDataError, match=r"over 20 and 4 .* 8 and 2 in those before"):
        mixed.run(*given[1])
    assert mixed.pending == 1
    other = TrainingStep(
        parsed(HEADS), {"z": "cross_entropy", "k": "squared_error"}, SGD(learning_rate=1.0, accumulate=3)
    )
    other.load_state_dict(*mixed.state_dict())
    for one in (mixed, other, pickle.loads(pickle.dumps(mixed))):
        with pytest.raises(InvalidDataError, match="8 and 2 in those before"):
            one.run(*given[1])
        one.run(*given[0])
        one.run(*given[0])
        assert one.iteration == 1
        np.testing.assert_array_equal(one.weights()["w"], mixed.weights()["w"])


# A recognizer of text as exporters write them: one image at a time, any width, time first in the output.
RECOGNIZER = """<ir_version: 8, opset_import: ["": 17]>
ocr (float[1, 1, 8, W] image) => ({declared} scores)
<float[4, 1, 8, 3] k, float[4, 5] w, int64[1] two = {{2}}, int64[1] zero = {{0}}> {{
    c = Conv<pads = [0, 1, 0, 1]>(image, k)
    r = Relu(c)
    s = Squeeze(r, two)
    p = Transpose<perm = [2, 0, 1]>(s)
    {hidden}
    scores = MatMul(t, w) }}"""
# After these, no inference knows how many dimensions there are.
HIDDEN = """f = Shape(p)
    n = NonZero(f)
    i = Squeeze(n, zero)
    d = Gather<axis = 0>(f, i)
    t = Reshape(p, d)"""


def recognizer(declared, hidden):
    text = RECOGNIZER.format(declared=declared, hidden=HIDDEN if hidden else "t = Identity(p)")
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name, shape in {"k": (4, 1, 8, 3), "w": (4, 5)}.items():
        values = rng.normal(size=shape).astype(np.float32) / 3
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def recognized(weights, x):
    """Scores of images, (time, rows, classes)."""
    padded = np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1)))
    width = x.shape[3]
    windows = np.stack([padded[:, 0, :, i : i + width] for i in range(3)], axis=-1)  # (n, 8, width, 3)
    return np.maximum(np.einsum("nhwi,chi->wnc", windows, weights["k"][:, 0]), 0) @ weights["w"]


SAID = {"batch_axis": {"scores": 1}}


@pytest.mark.parametrize(
    ("declared", "hidden", "options"),
    [
        ("float[1, seqlen]", False, {}),  # wrong, and inference knows
        ("float[1, seqlen]", False, SAID),
        ("float[T, 1, 5]", False, {}),
        ("float[T, 1, 5]", True, SAID),  # time looks like the rows
    ],
)
def test_a_recognizer_of_text(declared, hidden, options):
    model = recognizer(declared, hidden)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 1, 8, 7)).astype(np.float32)
    labels = rng.integers(0, 5, size=(7, 6))
    step = TrainingStep(model, "cross_entropy", "adam", learning_rate=0.05, **options)
    assert "'scores': 1" in repr(step)
    scores = recognized(step.weights(), x)
    np.testing.assert_allclose(step.predict(x)["scores"], scores, rtol=1e-4, atol=1e-5)
    z = np.exp(scores - scores.max(2, keepdims=True))
    picked = np.take_along_axis(np.log(z / z.sum(2, keepdims=True)), labels[..., None], 2)
    np.testing.assert_allclose(step.scores(x, labels), -picked[..., 0].mean(0), rtol=1e-4)
    losses = [np.mean([step.run(x[i : i + 1], labels[:, i : i + 1]) for i in range(6)]) for _ in range(10)]
    assert losses[-1] < losses[0]
    reg = OnnxRegressor(model, batch_size=1, max_iter=20, learning_rate=0.005, random_state=0, **options)
    reg.fit(x, scores * 1.5)
    assert reg.history_["loss"][-1] < reg.history_["loss"][0] / 2
    np.testing.assert_allclose(reg.predict(x), recognized(reg.weights_, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"batch_axis": {"scores": None}}, {"batch_axis": {"scores": 1}}])
def test_an_output_that_is_not_as_its_file_declares(options):
    model = recognizer("float[1, seqlen]", True)
    x, y = np.ones((6, 1, 8, 7), np.float32), np.zeros((7, 6, 5), np.float32)
    words = r"declares that output 'scores' .*\(1, 'seqlen'\).*1 of these rows.*\(7, 1, 5\).*batch_axis="
    step = TrainingStep(model, **options)
    with pytest.raises(InvalidDataError, match=words):
        step.run(x[:1], y[:, :1])
    with pytest.raises(InvalidDataError, match=words):
        OnnxRegressor(model, batch_size=1, max_iter=1, **options).fit(x, y)


def test_a_number_for_a_row_where_the_file_declares_one_number():
    """As speech scorers do: Squeeze without axes, declared without dimensions."""
    w = "w = Constant<value = double[2,1] {1.0, 2.0}>()"
    model = parsed(f"(double[N,2] x) => (double[N] z) {{ {w} a = MatMul(x, w) z = Squeeze(a) }}")
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    x, y = data(2, 2), np.zeros(2)
    with pytest.raises(
        InvalidDataError, match=r"2 of these rows its shape is \(2,\).*1 dimension .*make_tensor"
    ):
        TrainingStep(model).run(x, y)
    with pytest.raises(InvalidDataError, match=r"2 of these rows its shape is \(2,\)"):
        OnnxRegressor(model, max_iter=1).fit(x, y)
    declared = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.DOUBLE, ["N"])
    model.graph.output[0].CopyFrom(declared)
    step = TrainingStep(model, optimizer="adam", learning_rate=0.1)
    losses = [step.run(x, y) for _ in range(10)]
    np.testing.assert_allclose(losses[0], ((x @ [1.0, 2.0]) ** 2).mean() / 2)
    assert losses[-1] < losses[0]


def test_an_output_of_more_rows_than_the_inputs():
    """Both directions of a sound, say, declared as its rows."""
    model = parsed(f"(double[N,2] x) => (double[N,3] z) {W} {{ a = MatMul(x, w) z = Concat<axis=0>(a, a) }}")
    x, y = data(1, 2), np.zeros((2, 3))
    with pytest.raises(
        InvalidDataError, match=r"For 1 row output 'z' has the shape \(2, 3\).*batch_axis=.*None"
    ):
        TrainingStep(model).run(x, y)
    step = TrainingStep(model, batch_axis={"z": None}, optimizer="adam", learning_rate=0.1)
    losses = [step.run(x, y) for _ in range(10)]
    assert losses[-1] < losses[0]


# -- rows in doubt -----------------------------------------------------------------------------------

POOLED = "{ i = Constant<value = int64[1] {0}>() a = ReduceSum<keepdims = 0>(x, i) z = MatMul(a, w) }"
MASKED = POOLED.replace("a = ", "s = ").replace(" z =", " u = Unsqueeze(k, j) a = Mul(s, u) z =")
MASKED = MASKED.replace("{ i", "{ j = Constant<value = int64[1] {1}>() i")
# Model whose time comes first and is in no output -> what is taken, the axes that the rows would have.
DOUBTFUL = {
    "time": (f"(double[T,N,2] x) => (double[N,3] z) {W} {POOLED}", "'T'", {"x": 1}),
    "a fixed time": (f"(double[5,N,2] x) => (double[N,3] z) {W} {POOLED}", "5", {"x": 1}),
    "an output without names": (f"(double[T,N,2] x) => (double[?,3] z) {W} {POOLED}", "'T'", {"x": 1}),
    "a mask": (
        f"(double[T,N,2] x, double[N] k) => (double[N,3] z) {W} {MASKED}",
        "'T'",
        {"x": 1, "k": 0},
    ),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_rows_in_doubt(name):
    """The rule stays and is said; the axes that the warning names make every target a row."""
    text, taken, instead = DOUBTFUL[name]
    model, rate = parsed(text), 0.01
    x, k, y = data(T, N, 2), data(N) if "k" in instead else np.ones(N), data(N, 3)
    X = {"x": x, "k": k} if "k" in instead else {"x": x}
    with pytest.warns(RowsWarning) as said:
        whole = TrainingStep(model, optimizer=SGD(rate))
    (message,) = [str(w.message) for w in said]
    assert f"{taken}, axis 0 of input 'x'" in message
    assert "Output 'z' has 'N'" in message
    assert f"batch_axis={instead};" in message
    assert said[0].filename == __file__
    steps = {
        N: TrainingStep(model, optimizer=SGD(rate), batch_axis=instead),
        1: pickle.loads(pickle.dumps(whole)),
    }
    design = x.sum(axis=0) * k[:, None]
    for rows, step in steps.items():
        w = W0.copy()
        for _ in range(10):
            left = design @ w - y
            np.testing.assert_allclose(step.run(X, y), (left**2).sum() / 2 / rows, rtol=1e-10)
            w -= rate * design.T @ left / rows
        np.testing.assert_allclose(step.weights()["w"], w, rtol=1e-10)


@pytest.mark.parametrize("axes", [{"x": 0}, {"x": 1}, {"z": None}])
def test_rows_that_are_said_are_in_no_doubt(axes):
    model = parsed(DOUBTFUL["time"][0])
    assert TrainingStep(model, batch_axis=axes).run(data(T, N, 2), data(N, 3)) > 0


@pytest.mark.parametrize(
    "text",
    [
        f"(double[T,N,2] x) => (double[T,N,3] z) {W} {{ z = MatMul(x, w) }}",
        f"(double[1,N,2] x) => (double[N,3] z) {W} {POOLED}",
        f"(double[T,N,2] x) => (double[3,T] z) {W} "
        "{ i = Constant<value = int64[1] {1}>() a = ReduceSum<keepdims = 0>(x, i) b = MatMul(a, w) "
        "z = Transpose(b) }",
        f"(double[T,2] x) => (double[M,3] z) {W} {{ a = NonZero(x) b = Transpose(a) "
        "c = Cast<to = 11>(b) z = MatMul(c, w) }",
    ],
    ids=["time is an axis of the output", "a batch of one row", "rows last", "a dimension of its own"],
)
def test_no_doubt(text):
    TrainingStep(parsed(text))  # a warning is an error here


def test_an_estimator_says_once_what_is_in_doubt():
    with pytest.warns(RowsWarning, match=r"batch_axis=\{'x': 1\}") as said:
        OnnxRegressor(parsed(DOUBTFUL["time"][0]), max_iter=2).fit(data(T, N, 2), data(N, 3))
    assert len(said) == 1


def test_a_batch_that_does_not_fit_says_what_its_rows_were():
    model = parsed(DOUBTFUL["time"][0])
    turned = data(N, T, 2)
    step = TrainingStep(model, batch_axis={"x": 0})
    wanted = r"'x' of shape \(4, 5, 2\) has 4 along axis 0.*batch_axis=\{'x': \.\.\.\}"
    with pytest.raises(EvaluationError, match=wanted):
        step.run(turned, data(N, 3))
    with pytest.raises(EvaluationError, match=wanted):
        OnnxRegressor(model, batch_axis={"x": 0}).fit(turned, data(N, 3))
    step.run(data(T, N, 2), data(N, 3))
    with pytest.raises(EvaluationError, match=r"^(?!.*batch_axis)"):  # not the first batch
        step.run(turned, data(N, 3))
