"""What is measured on validation data is the objective of training: weights of rows and classes, penalty."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
import sklearn.metrics

from onnxcustom import OnnxClassifier, OnnxRegressor
from onnxcustom.data import stream
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.optim import SGD
from onnxcustom.training.callbacks import EarlyStopping, Score

pytest.importorskip("onnxruntime")
LINE = """<ir_version: 8, opset_import: ["": 17]> line (float[N, 2] x) => (float[N, 1] y)
<float[2, 1] w = {0.5, -1}> { y = MatMul(x, w) }"""
CLASSES = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 2] x) => (float[N, 2] p)
<float[2, 2] w = {1, 0, 0, 1}> { z = MatMul(x, w) p = Softmax<axis = 1>(z) }"""


def data(rows: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 2)).astype(np.float32)
    return X, (X @ [1, 2]).astype(np.float32), rng.uniform(0, 2, rows)


def test_weights_and_penalty_of_validation_data():
    X, y, weight = data()
    Xv, yv, wv = X[40:], y[40:], weight[40:]
    net = OnnxRegressor(onnx.parser.parse_model(LINE), penalty="l2", max_iter=10, random_state=0)
    net.fit(X[:40], y[:40], weight[:40], Xv, yv, sample_weight_val=wv)
    w = net.weights_["w"]
    penalty = net.step_.penalty()
    assert penalty > 0
    wanted = np.mean(wv * ((Xv @ w)[:, 0] - yv) ** 2 / 2) + penalty
    assert net.history_["val_loss"][-1] == pytest.approx(wanted, rel=1e-5)
    batch = OnnxRegressor(
        onnx.parser.parse_model(LINE), penalty="l2", max_iter=1, batch_size=20, learning_rate=1e-12
    ).fit(Xv, yv, wv, Xv, yv, sample_weight_val=wv)
    assert batch.history_["val_loss"] == pytest.approx(batch.history_["loss"], rel=1e-4)
    with pytest.raises(InvalidDataError, match="sample_weight_val"):
        OnnxRegressor(onnx.parser.parse_model(LINE)).fit(X, y, sample_weight_val=wv)


@pytest.mark.parametrize("streamed", [False, True])
def test_rows_held_out_keep_their_weights(streamed):
    X, y, weight = data()
    y[weight > 1] += 100
    weight[weight > 1] = 0
    net = OnnxRegressor(
        onnx.parser.parse_model(LINE), validation_fraction=0.3, learning_rate=0.1, max_iter=60, random_state=0
    )
    net = net.fit(stream((X, y, weight))) if streamed else net.fit(X, y, weight)
    assert net.history_["val_loss"][-1] < 0.1


@pytest.mark.parametrize("class_weight", [{0: 0.5, 1: 3.0}, "balanced"])
def test_class_weights_of_arrays_and_streams(class_weight):
    X, _, _ = data()
    y = (X[:, 0] > 0.5).astype(np.int64)
    options = {"class_weight": class_weight, "shuffle": False, "max_iter": 10, "batch_size": 16}
    model = onnx.parser.parse_model(CLASSES)
    one = OnnxClassifier(model, **options).fit(X, y, X_val=X, y_val=y)
    other = OnnxClassifier(model, **options).fit(stream((X, y)), X_val=stream((X, y)))
    np.testing.assert_allclose(one.weights_["w"], other.weights_["w"], rtol=1e-5)
    assert one.history_["val_loss"] == pytest.approx(other.history_["val_loss"], rel=1e-5)
    counts = np.bincount(y)
    factors = len(y) / (2 * counts) if class_weight == "balanced" else np.array([0.5, 3.0])
    p = one.predict_proba(X)[np.arange(len(y)), y]
    assert one.history_["val_loss"][-1] == pytest.approx(np.mean(-factors[y] * np.log(p)), rel=1e-4)


def test_balanced_weights_want_all_labels():
    X, _, _ = data()
    y = (X[:, 0] > 0.5).astype(np.int64)
    net = OnnxClassifier(onnx.parser.parse_model(CLASSES), class_weight="balanced")
    with pytest.raises(ValueError, match="balanced"):
        net.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(InvalidDataError, match=r"names \[7\]"):
        net.set_params(class_weight={7: 1.0}).fit(X, y)


def test_scores_weigh_rows_as_training_does():
    X, _, weight = data()
    y = (X[:, 0] > 0).astype(np.int64)
    net = OnnxClassifier(onnx.parser.parse_model(CLASSES), max_iter=2, callbacks=Score("accuracy"))
    net.fit(X, y, weight, X, y, sample_weight_val=weight)
    wanted = np.average(net.predict(X) == y, weights=weight)
    assert net.history_["val_accuracy"][-1] == pytest.approx(wanted)


@pytest.mark.parametrize(("rows", "accumulate", "updates"), [(4, 8, 1), (7, 3, 3), (6, 3, 2)])
def test_what_is_left_of_accumulate(rows, accumulate, updates):
    X, y, _ = data(rows)
    net = OnnxRegressor(
        onnx.parser.parse_model(LINE),
        optimizer=SGD(0.1, accumulate=accumulate),
        batch_size=1,
        shuffle=False,
        max_iter=1,
    ).fit(X, y)
    w = np.array([[0.5], [-1]])
    for start in range(0, rows, accumulate):
        part = slice(start, start + accumulate)
        w = w - 0.1 * X[part].T @ (X[part] @ w - y[part, None]) / len(X[part])
    assert net.step_.iteration == updates
    np.testing.assert_allclose(net.weights_["w"], w, rtol=1e-5)
    net.partial_fit(X, y)  # goes on: nothing is applied early
    assert net.step_.iteration == updates + rows // accumulate


def test_early_stopping_on_the_loss_of_whole_batches():
    X, y, _ = data(8)
    net = OnnxRegressor(
        onnx.parser.parse_model(LINE),
        learning_rate=lambda t: 0.5 if t < 6 else 30.0,
        batch_size=8,
        max_iter=12,
        callbacks=EarlyStopping("loss", patience=2),
    ).fit(X, y)
    assert np.mean((net.predict(X) - y) ** 2) / 2 == pytest.approx(min(net.history_["loss"]), rel=1e-4)


@pytest.mark.parametrize("name", ["shuffle", "warm_start"])
def test_flags_are_flags(name):
    X, y, _ = data()
    with pytest.raises(TypeError, match=f"{name} must be True or False, not 'maybe'"):
        OnnxRegressor(onnx.parser.parse_model(LINE), **{name: "maybe"}).fit(X, y)


def test_early_stopping_says_that_no_weights_have_the_loss_of_an_epoch():
    X, y, _ = data()
    options = {"max_iter": 2, "batch_size": 16, "random_state": 0}
    net = OnnxRegressor(onnx.parser.parse_model(LINE), callbacks=EarlyStopping("loss"), **options)
    with pytest.warns(UserWarning, match=r"cannot put back weights that have the best 'loss'.*no weights"):
        net.fit(X, y)
    with pytest.warns(UserWarning, match="cannot put back"):  # how many batches it has is not known
        net.fit(stream(lambda: iter([(X[:30], y[:30]), (X[30:], y[30:])])))
    heads = {"callbacks": EarlyStopping("b_loss"), "loss": {"a": "squared_error", "b": "squared_error"}}
    with pytest.warns(UserWarning, match="the best 'b_loss'"):
        OnnxRegressor(two_heads("a", "b"), **heads, **options).fit(X, {"a": y, "b": y})
    for said in (EarlyStopping("loss", restore_best=False), EarlyStopping("val_loss"), EarlyStopping()):
        net.set_params(callbacks=said).fit(X, y, X_val=X, y_val=y)
    net.set_params(callbacks=EarlyStopping("loss"), batch_size=60).fit(X, y)


HEADS = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 2] x) => (float[N, 1] {a}, float[N, 1] {b})
<float[2, 1] v = {{1, 2}}, float[2, 1] w = {{0.5, -1}}> {{ {a} = MatMul(x, v) {b} = MatMul(x, w) }}"""


def two_heads(a: str, b: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEADS.format(a=a, b=b))


@pytest.mark.parametrize("streamed", [False, True])
def test_outputs_that_are_called_like_other_measures(streamed):
    X, y, _ = data()
    given = [stream(lambda: iter([(X, {"val": y, "neg_b": y})]))] * 2
    given = given if streamed else [(X, {"val": y, "neg_b": y})] * 2
    options = {"learning_rate": 0.05, "max_iter": 3, "batch_size": 60, "random_state": 0}
    net = OnnxRegressor(
        two_heads("val", "neg_b"),
        loss={"val": "squared_error", "neg_b": "squared_error"},
        callbacks=EarlyStopping("output_neg_b_loss", patience=0, restore_best=False),
        **options,
    )
    fit, held = (
        ((given[0],), {"X_val": given[1]}) if streamed else (given[0], {"X_val": X, "y_val": given[1][1]})
    )
    net.fit(*fit)
    assert list(net.history_) == ["loss", "output_val_loss", "output_neg_b_loss"]
    net.fit(*fit, **held)
    heads = ["output_val_loss", "output_neg_b_loss"]
    assert list(net.history_) == ["loss", *heads, "val_loss", *(f"val_{name}" for name in heads)]
    assert net.n_iter_ == 3  # less of it is better
    total = np.add(*(net.history_[f"val_{name}"] for name in heads))
    np.testing.assert_allclose(net.history_["val_loss"], total, rtol=1e-5)
    plain = OnnxRegressor(
        two_heads("a", "b"), loss={"a": "squared_error", "b": "squared_error"}, **options
    ).fit(X, {"a": y, "b": y}, X_val=X, y_val={"a": y, "b": y})
    np.testing.assert_allclose([*net.history_.values()], [*plain.history_.values()], rtol=1e-5)


@pytest.mark.parametrize("on", ["train", "validation", "both"])
@pytest.mark.parametrize("metric", ["r2", "neg_mean_absolute_error", "accuracy"])
def test_scores_of_streams_weigh_rows(metric, on):
    X, y, weight = data()
    weight[::3] = 0
    y[::3] += 7
    text, make = (CLASSES, OnnxClassifier) if metric == "accuracy" else (LINE, OnnxRegressor)
    y = (y > 0).astype(np.int64) if metric == "accuracy" else y
    made = []
    for streamed in (False, True):
        net = make(
            onnx.parser.parse_model(text),
            callbacks=Score(metric, on),
            max_iter=3,
            random_state=0,
            shuffle=False,
        )
        if streamed:
            rows = [stream((X[part], y[part], weight[part])) for part in (slice(40), slice(40, None))]
            net.fit(rows[0], X_val=rows[1])
        else:
            net.fit(X[:40], y[:40], weight[:40], X[40:], y[40:], sample_weight_val=weight[40:])
        made.append({name: values for name, values in net.history_.items() if metric in name})
        assert len(made[-1]) == (2 if on == "both" else 1)
    arrays, streams = made
    for name, values in arrays.items():
        np.testing.assert_allclose(streams[name], values, rtol=1e-6)


def test_scores_of_streams_against_scikit_learn():
    X, y, weight = data()
    net = OnnxRegressor(onnx.parser.parse_model(LINE), callbacks=Score("r2"), max_iter=2, random_state=0)
    net.fit(stream((X, y, weight)))
    found = sklearn.metrics.r2_score(y, net.predict(X), sample_weight=weight)
    assert net.history_["r2"][-1] == pytest.approx(found, rel=1e-6)
    assert found != pytest.approx(sklearn.metrics.r2_score(y, net.predict(X)), rel=1e-3)


def test_held_out_rows_that_weigh_nothing():
    X, y, weight = data()
    none = np.zeros(20)
    net = OnnxRegressor(onnx.parser.parse_model(LINE), max_iter=2, random_state=0)
    with pytest.raises(InvalidDataError, match=r"validation data weighs 0.*sample_weight_val"):
        net.fit(X[:40], y[:40], weight[:40], X[40:], y[40:], sample_weight_val=none)
    rows = stream((X[:40], y[:40], weight[:40]))
    with pytest.raises(InvalidDataError, match="validation data weighs 0"):
        net.fit(rows, X_val=stream((X[40:], y[40:], none)))
    assert not hasattr(net, "step_")
    late = np.zeros(4000)
    late[-1] = 1
    repeated = [np.resize(a, (4000, *a.shape[1:])) for a in (X, y)]
    net.fit(rows, X_val=stream((*repeated, late)))  # of the last row alone
    wanted = (net.predict(repeated[0][-1:])[0] - repeated[1][-1]) ** 2 / 2 / 4000
    assert net.history_["val_loss"][-1] == pytest.approx(wanted, rel=1e-4)
    late[-1] = 0
    with pytest.raises(InvalidDataError, match="validation data weighs 0"):
        net.fit(rows, X_val=stream((*repeated, late)))
    labels = (y > 0).astype(np.int64)
    classes = OnnxClassifier(onnx.parser.parse_model(CLASSES), class_weight={0: 0.0, 1: 1.0}, max_iter=1)
    with pytest.raises(InvalidDataError, match=r"validation data weighs 0.*class_weight"):
        classes.fit(X, labels, X_val=X[labels == 0], y_val=labels[labels == 0])
