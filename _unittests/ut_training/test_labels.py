from __future__ import annotations

from decimal import Decimal

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from onnxcustom.exceptions import InvalidDataError, InvalidModelError
from onnxcustom.graph import prepare
from onnxcustom.optim import Adam
from onnxcustom.training.estimators import OnnxClassifier
from onnxcustom.training.estimators.labels import (
    as_labels,
    from_one_hot,
    hits_of,
    label_indices,
    labels_of,
)
from onnxcustom.training.estimators.outputs import declared_columns, fitting_loss, probability_output


@given(
    labels=st.one_of(
        st.lists(st.integers(-100, 100), min_size=1, max_size=8, unique=True),
        st.lists(st.text(max_size=3), min_size=1, max_size=8, unique=True),
        st.lists(st.floats(-10, 10), min_size=1, max_size=8, unique=True),
    ),
    data=st.data(),
)
def test_indices_are_positions_whatever_the_order(labels, data):
    order = np.array(labels, dtype=object if isinstance(labels[0], str) else None)
    index = data.draw(st.lists(st.integers(0, len(labels) - 1), min_size=1, max_size=20))
    y = order[index]
    np.testing.assert_array_equal(order[label_indices(y, order)], y)
    np.testing.assert_array_equal(label_indices(y[:, None], order), label_indices(y, order)[:, None])


def test_indices_of_other_types():
    assert label_indices(np.array([True, False]), np.array([0, 1])).tolist() == [1, 0]
    assert label_indices(np.array([2.0, 5.0]), np.array([5, 2])).tolist() == [1, 0]
    assert label_indices(np.array(["b"], dtype=object), np.array(["a", "b"])).tolist() == [1]


@pytest.mark.parametrize(
    ("y", "labels", "message"),
    [
        ([3], [1, 2], r"labels \[3\], .* its classes are \[1, 2\]"),
        ([1.5], [1, 2], r"labels \[1\.5\]"),
        (["c", "d"], ["a", "b"], r"labels \['c', 'd'\]"),
        ([1], ["1", "2"], r"labels \[1\]"),
        (["1"], [1, 2], r"labels \['1'\]"),
        (range(100), range(50), r"\[50, 51, .*, \.\.\.\]"),
    ],
)
def test_labels_the_model_does_not_have(y, labels, message):
    with pytest.raises(InvalidDataError, match=message):
        label_indices(np.array(y), np.array(labels))


@pytest.mark.parametrize(
    ("y", "columns", "labels"),
    [
        ([0, 1, 1], 2, [0, 1]),
        ([5, 7, 5], 2, [5, 7]),
        ([1, 1], 2, [0, 1]),
        ([0, 2], 4, [0, 1, 2, 3]),
        (["b", "a"], 2, ["a", "b"]),
        ([[0, 1, 0], [1, 0, 0]], 3, [0, 1, 2]),
        ([[0], [1]], 2, [0, 1]),
    ],
)
def test_labels_of_data(y, columns, labels):
    assert labels_of(np.array(y), columns).tolist() == labels


@pytest.mark.parametrize(
    ("y", "columns"), [([0, 5], 3), (["a"], 2), ([0, 1, 2], 2), ([-1, 0, 3], 2), ([4.0], 2)]
)
def test_labels_that_leave_the_order_open(y, columns):
    with pytest.raises(
        InvalidDataError, match=rf"different labels.*{columns} classes.*partial_fit\(classes=\)"
    ):
        labels_of(np.array(y), columns)


def test_labels_of_several_types():
    with pytest.raises(InvalidDataError, match="several types"):
        labels_of(np.array(["a", 1], dtype=object), 2)


@pytest.mark.parametrize(
    "bad", [None, 5, [np.nan, 1], [np.inf, 0], [0, 0.5], np.array([None, "a"], dtype=object)]
)
def test_what_is_no_label(bad):
    with pytest.raises(InvalidDataError, match=r"(?i)y"):
        as_labels(bad)


def test_one_hot():
    labels = np.array(["a", "b", "c"])
    assert from_one_hot(np.eye(3)[[2, 0]], 1, labels).tolist() == ["c", "a"]
    tokens = np.eye(3)[[[2, 0], [1, 1]]]
    assert from_one_hot(tokens, 2, labels).tolist() == [["c", "a"], ["b", "b"]]
    assert from_one_hot(tokens.transpose(0, 2, 1), 1, labels).tolist() == [["c", "a"], ["b", "b"]]
    for bad in (np.eye(2), np.full((2, 3), 0.5), np.zeros((2, 3)), np.ones((2, 3))):
        with pytest.raises(InvalidDataError, match=r"rows of zeros with a single 1 in 3 columns"):
            from_one_hot(bad, 1, labels)


def model_of(end):
    return prepare(
        onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[N,2] x) => (int64[N] best, float[N,2] z, float[N,2] p) <float[2,2] w = {{1, 2, 3, 4}}>
        {{ z = MatMul(x, w) p = {end} best = ArgMax <axis = 1, keepdims = 0> (z) }}""")
    )


def test_the_output_behind_a_sigmoid_or_softmax_comes_first():
    assert probability_output(model_of("Softmax(z)")) == "p"
    assert probability_output(model_of("Tanh(z)")) == "z"
    only = prepare(
        onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (float[N,2] x) => (int64[N] best) { best = ArgMax <axis = 1, keepdims = 0> (x) }""")
    )
    with pytest.raises(InvalidModelError, match=r"\['best'\] holds scores or probabilities"):
        probability_output(only)


@pytest.mark.parametrize(
    ("end", "scores", "name", "on"),
    [
        ("Softmax(z)", None, "SoftmaxCrossEntropyLearningLoss", "softmax"),
        ("Sigmoid(z)", None, "BinaryCrossEntropyLearningLoss", "sigmoid"),
        ("Tanh(z)", [[-1, 2]], "SoftmaxCrossEntropyLearningLoss", "softmax"),
        ("Tanh(z)", [[0, 0]], "SoftmaxCrossEntropyLearningLoss", "softmax"),
        ("Tanh(z)", [[0]], "BinaryCrossEntropyLearningLoss", "sigmoid"),
        ("HardSigmoid(z)", [[0.2]], "BinaryCrossEntropyLearningLoss", "output"),
        ("HardSigmoid(z)", [[0.2, 0.8]], "SoftmaxCrossEntropyLearningLoss", "output"),
    ],
)
def test_the_loss_that_fits(end, scores, name, on):
    loss = fitting_loss(model_of(end), "p", lambda: np.array(scores, dtype=np.float32))
    assert type(loss).__name__ == name
    assert loss.on == on


def test_columns_that_are_declared():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 4] x) => (int64[N] label, float[N, 3] p, float[N, K] q, float[N] r, string s) {
            p = Identity (x)  q = Identity (x)  r = Identity (x)  s = Identity (x)
            label = Cast <to = 7> (r) }"""
    )
    found = {"p": 3, "q": None, "r": None, None: 3, "label": None, "missing": None}
    for form in (model, ir.from_proto(model)):
        assert {name: declared_columns(form, name) for name in found} == found
    assert declared_columns(model.SerializeToString(), "p") is None
    assert declared_columns("model.onnx", None) is None


@pytest.mark.parametrize(
    "bad", [pd.NA, pd.NaT, np.nan, None, (1, 2), [1, 2], {1}, np.arange(2)], ids=lambda bad: repr(bad)
)
def test_what_is_no_label_in_a_column_of_objects(bad):
    y = np.empty(3, dtype=object)
    y[:] = ["a", bad, "b"]
    with pytest.raises(InvalidDataError, match="in place of a label"):
        as_labels(y)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([b"a", b"b"], None),
        ([Decimal(0), Decimal(1)], object),
        ([np.float64(0), np.float64(2)], object),
        ([np.datetime64("2020-01-01"), np.datetime64("2021-01-01")], None),
        ([2**62, 2**62 + 1], None),
        ([False, True], None),
        ([-5, 3], None),
        (["a", "b"], object),
    ],
)
def test_every_label_that_can_be_trained_can_be_scored(labels, kind):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> net (float[N, 1] x) => (float[N, 1] p)
        <float[1, 1] w = {0.1}> { z = MatMul(x, w) p = Sigmoid(z) }"""
    )
    X = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
    y = np.array(labels, dtype=kind)[(X[:, 0] > 0).astype(int)]
    net = OnnxClassifier(model, class_weight="balanced", validation_fraction=0.2, random_state=0).fit(X, y)
    assert net.score(X, y) == 1
    assert net.score(X, y[:, None]) == 1
    assert net.score(X, y[::-1], np.arange(20.0)) == 0
    assert net.score(X, np.where(X[:, 0] > 0.5, y, y[0])) == np.mean((X[:, 0] > 0.5) | (X[:, 0] < 0))
    with pytest.raises(InvalidDataError, match="X has 20 rows, y has 19 rows"):
        net.score(X, y[1:])
    other = np.arange(20) if isinstance(labels[0], str) else np.array(["z"] * 20)
    with pytest.raises(InvalidDataError, match="text and numbers"):
        net.score(X, other)


@pytest.mark.parametrize("several", [False, True])
def test_the_score_is_that_of_scikit_learn(several):
    rng = np.random.default_rng(0)
    predicted, y = (rng.integers(0, 2, size=(50, 3)) if several else rng.integers(0, 4, 50) for _ in "ab")
    hits = hits_of(y, predicted, np.arange(4))
    weights = rng.uniform(size=50)
    assert np.average(hits, weights=weights) == pytest.approx(
        accuracy_score(y, predicted, sample_weight=weights)
    )
    if not several:
        assert (hits_of(np.eye(4)[y], predicted, np.arange(4)) == hits).all()


class Overriding(OnnxClassifier):
    """Calls what it overrides, and keeps something of its own."""

    def encode(self, y, step):
        self.seen_ = len(y)
        return super().encode(y, step)

    def weigher(self, X, y):
        weigh = super().weigher(X, y)
        return None if weigh is None else lambda y, sample_weight: 2 * weigh(y, sample_weight)


@pytest.mark.parametrize("labels", [("d", "u"), (1, 2)])
@pytest.mark.parametrize("weights", [None, "balanced", 0])
def test_overrides_of_encode_and_weigher_may_ask_what_they_override(labels, weights):
    """The first call, too, and for data that lack a class: they know the training that is about to begin."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> net (float[N, 1] x) => (float[N, 2] p)
        <float[1, 2] w = {0.1, -0.2}> { z = MatMul(x, w) p = Softmax(z) }"""
    )
    X = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
    y = np.array(labels)[(X[:, 0] > -0.5).astype(int)]
    given = {labels[0]: 3.0} if weights == 0 else weights
    options = {"class_weight": given, "random_state": 0, "max_iter": 3}
    own, plain = Overriding(model, **options), OnnxClassifier(model, **options)
    held_out = {"X_val": X[-4:], "y_val": y[-4:]}  # one class
    factor = 1 if given is None else 2
    own.fit(X, y, **held_out)
    plain.fit(X, y, np.full(20, factor), **held_out, sample_weight_val=np.full(4, factor))
    for name, curve in plain.history_.items():
        np.testing.assert_allclose(own.history_[name], curve, rtol=1e-6)
    assert own.seen_ == 4
    if given != "balanced":
        fresh = Overriding(model, **options).partial_fit(X[-4:], y[-4:], classes=labels)
        assert fresh.classes_.tolist() == list(labels)


class Counting(OnnxClassifier):
    """Counts the labels of every batch, also where the data are known to have one a row."""

    def train_step(self, batch):
        return self.step_.run_batch(batch.values)


@pytest.mark.parametrize("ignored", [0, 7], ids=["all", "some"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_labels_are_counted_where_some_are_ignored(ignored, accumulate):
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 3] p)'
        " <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> { z = MatMul(x, w) p = Softmax(z) }"
    )
    X, y = rng.normal(size=(40, 4)).astype(np.float32), rng.integers(0, 3, 40)
    y[:ignored] = -100
    made = []
    for kind in (OnnxClassifier, Counting):
        optimizer = Adam(accumulate=accumulate)
        fitted = kind(model, optimizer=optimizer, max_iter=4, batch_size=7, random_state=0)
        made.append(fitted.fit(X, y))
    fast, slow = made
    np.testing.assert_array_equal(fast.weights_["w"], slow.weights_["w"])
    np.testing.assert_allclose(fast.history_["loss"], slow.history_["loss"], rtol=1e-12)
    # The first epoch by NumPy, with the loss before each update: only possible where nothing was updated.
    still = OnnxClassifier(model, learning_rate=1e-30, max_iter=1, batch_size=7).fit(X, y)
    z = X.astype(np.float64) @ np.arange(1.0, 13).reshape(4, 3)
    logs = (
        z
        - np.log(np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
        - z.max(axis=1, keepdims=True)
    )
    exact = -logs[np.arange(40), y.clip(0)][y >= 0].mean()
    np.testing.assert_allclose(still.history_["loss"], [exact], rtol=1e-5)
