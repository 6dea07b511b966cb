from __future__ import annotations

import ast
import concurrent.futures
import contextlib
import copy
import dataclasses
import inspect
import pickle
import re

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from skl2onnx import to_onnx
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.metrics import accuracy_score, log_loss, r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from onnxcustom.exceptions import EvaluationError, InvalidDataError, InvalidModelError, UnknownNameError
from onnxcustom.graph import weights
from onnxcustom.objective import SquareLearningLoss
from onnxcustom.optim import LearningRateSGD
from onnxcustom.training.estimators import (
    OnnxClassifier,
    OnnxRegressor,
    OrtGradientForwardBackwardOptimizer,
)

ort = pytest.importorskip("onnxruntime")

OPSETS = {"": 18, "ai.onnx.ml": 3}


def data(n=40, columns=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, columns)).astype(np.float32)
    return X, (X @ np.arange(1, columns + 1) + 0.5).astype(np.float32)


def binary(n=60, labels=(0, 1), seed=0):
    X, y = data(n, seed=seed)
    return X, np.asarray(labels)[(y > 0.5).astype(int)]


def three(n=90, labels=(0, 1, 2)):
    X, y = data(n)
    return X, np.asarray(list(labels))[np.digitize(y, [-1.5, 2])]


def session_run(model, X):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, X), strict=True))


# -- regression --------------------------------------------------------------------------------


def test_regressor_learns(linear_model):
    X, y = data()
    reg = OnnxRegressor(linear_model(3, seed=None), learning_rate=0.3, max_iter=60, random_state=0)
    assert reg.fit(X, y) is reg
    assert is_regressor(reg)
    np.testing.assert_allclose(reg.weights_["w"][:, 0], [1, 2, 3], atol=1e-3)
    np.testing.assert_allclose(reg.weights_["b"], [0.5], atol=1e-3)
    assert reg.score(X, y) == pytest.approx(r2_score(y, reg.predict(X)))
    assert reg.score(X, y) > 0.999
    assert reg.n_features_in_ == 3
    assert len(reg.history_["loss"]) == reg.n_iter_ == 60
    assert list(reg.history_) == ["loss"]


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_predictions_have_the_shape_of_y(linear_model, shape):
    X, y = data()
    reg = OnnxRegressor(linear_model(3)).fit(X, y.reshape(shape))
    assert reg.predict(X).shape == y.reshape(shape).shape


def test_a_failed_fit_does_not_change_the_shape_of_predictions(linear_model):
    X, y = data()
    reg = OnnxRegressor(linear_model(3)).fit(X, y)
    with pytest.raises(InvalidDataError):
        reg.fit(X, np.c_[y, y])
    assert reg.predict(X).shape == (40,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_of_models(linear_model, dtype):
    X, y = data()
    reg = OnnxRegressor(linear_model(3, dtype=dtype), optimizer="adam").fit(X, y)
    assert {a.dtype for a in reg.weights_.values()} == {np.dtype(dtype)}
    assert reg.predict(X).dtype == dtype


def test_containers(linear_model):
    X, y = data()
    frame, series = pd.DataFrame(X, columns=list("abc")), pd.Series(y, index=range(100, 140))
    options = {"learning_rate": 0.1, "random_state": 0}
    expected = OnnxRegressor(linear_model(3), **options).fit(X, y)
    for kind in [
        (frame, series),
        (X.tolist(), y.tolist()),
        (X.astype(float), y.astype(float)),
        ({"x": X}, y),
    ]:
        reg = OnnxRegressor(linear_model(3), **options).fit(*kind)
        np.testing.assert_array_equal(reg.weights_["w"], expected.weights_["w"])
        np.testing.assert_array_equal(reg.predict(kind[0]), expected.predict(X))


@pytest.mark.parametrize("form", ["proto", "bytes", "path", "ir"])
def test_forms_of_models(linear_model, tmp_path, form):
    X, y = data()
    proto = linear_model(3)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    made = {"proto": proto, "bytes": path.read_bytes(), "path": str(path), "ir": None}
    if form == "ir":
        ir = pytest.importorskip("onnx_ir")
        made["ir"] = ir.from_proto(proto)
    reg = OnnxRegressor(made[form], random_state=0).fit(X, y)
    expected = OnnxRegressor(proto, random_state=0).fit(X, y)
    np.testing.assert_array_equal(reg.weights_["w"], expected.weights_["w"])
    assert weights(reg.get_trained_onnx())["w"].shape == (3, 1)


def test_sample_weights_of_0_are_rows_left_out(linear_model):
    X, y = data(20)
    y[10:] = 1000
    w = np.r_[np.ones(10), np.zeros(10)]
    reg = OnnxRegressor(linear_model(3, dtype=np.float64), batch_size=20, learning_rate=0.1).fit(X, y, w)
    half = OnnxRegressor(linear_model(3, dtype=np.float64), batch_size=10, learning_rate=0.05).fit(
        X[:10], y[:10]
    )
    np.testing.assert_allclose(reg.weights_["w"], half.weights_["w"])


NET = """<ir_version: 8, opset_import: ["": 18]>
net (float[N,2] a, float[N,1] b) => (float[N,1] u, float[N,1] v)
<float[2,1] A = {0, 0}, float[1,1] B = {0}, float[1] c = {1}>
{ left = MatMul(a, A) right = MatMul(b, B) u = Add(left, right) v = Add(right, c) }"""


def test_several_inputs_and_outputs():
    rng = np.random.default_rng(0)
    X = {"a": rng.normal(size=(50, 2)), "b": rng.normal(size=(50, 1))}
    Y = {"u": X["a"] @ [1, 2] + 3 * X["b"][:, 0], "v": 3 * X["b"][:, 0] - 1}
    reg = OnnxRegressor(
        onnx.parser.parse_model(NET),
        loss={"u": "squared_error", "v": SquareLearningLoss()},
        loss_weights={"v": 0.5},
        learning_rate=0.2,
        max_iter=50,
        random_state=0,
    ).fit(X, Y, X_val=X, y_val=Y)
    np.testing.assert_allclose(reg.weights_["A"][:, 0], [1, 2], atol=1e-3)
    np.testing.assert_allclose(reg.weights_["B"], [[3]], atol=1e-3)
    np.testing.assert_allclose(reg.weights_["c"], [-1], atol=1e-3)
    made = reg.predict(X)
    assert list(made) == ["u", "v"]
    np.testing.assert_allclose(made["v"][:, 0], Y["v"], atol=1e-2)
    assert reg.history_["val_loss"][-1] < 1e-4
    heads = {n: np.mean((made[n][:, 0] - Y[n]) ** 2) / 2 for n in made}
    assert reg.score(X, Y) == pytest.approx(-(heads["u"] + 0.5 * heads["v"]), rel=1e-4)
    assert set(reg.history_) == {"loss", "u_loss", "v_loss", "val_loss", "val_u_loss", "val_v_loss"}
    for name, loss in heads.items():
        assert reg.history_[f"val_{name}_loss"][-1] == pytest.approx(loss, rel=1e-4)
    total = np.add(reg.history_["u_loss"], np.multiply(0.5, reg.history_["v_loss"]))
    np.testing.assert_allclose(reg.history_["loss"], total, rtol=1e-4)
    frame = pd.DataFrame({"a": [0.0], "b": [1.0]})
    with pytest.raises(InvalidDataError, match=r"'a' wants 2 dimensions \(N, 2\)"):
        reg.predict(frame)


def test_the_trained_model_keeps_what_the_model_was():
    X, y = data()
    model = to_onnx(LinearRegression().fit(X, y), X[:1], target_opset=OPSETS)
    onnx.helper.set_model_props(model, {"author": "me"})
    model.producer_name, model.doc_string, model.graph.name = "mine", "a line", "line"
    reg = OnnxRegressor(model, learning_rate=0.01).fit(X, 2 * y)
    trained = reg.get_trained_onnx()
    onnx.checker.check_model(trained, full_check=True)
    for field in ("producer_name", "doc_string", "ir_version"):
        assert getattr(trained, field) == getattr(model, field)
    assert trained.graph.name == "line"
    assert {p.key: p.value for p in trained.metadata_props} == {"author": "me"}
    assert [v.SerializeToString() for v in trained.graph.input] == [
        v.SerializeToString() for v in model.graph.input
    ]
    assert [v.name for v in trained.graph.output] == [v.name for v in model.graph.output]
    assert {o.domain: o.version for o in trained.opset_import} == {
        o.domain: o.version for o in model.opset_import
    }
    (made,) = session_run(trained, {"X": X}).values()
    np.testing.assert_allclose(made[:, 0], reg.predict(X), rtol=1e-6)


def test_a_pipeline_converted_is_trained_behind_its_scaler():
    X, y = data()
    pipe = make_pipeline(StandardScaler(), LinearRegression()).fit(X, y)
    model = to_onnx(pipe, X[:1], target_opset=OPSETS)
    reg = OnnxRegressor(model, learning_rate=0.1, max_iter=40, random_state=0).fit(X, 3 * y)
    assert reg.score(X, 3 * y) > 0.999
    scaled = {n: a for n, a in weights(model).items() if n not in reg.weights_}
    assert not scaled


def test_predict_in_threads(mlp_model):
    X, y = data(200)
    reg = pickle.loads(pickle.dumps(OnnxRegressor(mlp_model([3, 8, 1])).fit(X, y)))
    expected = [copy.deepcopy(reg).predict(X[i::8]) for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            made = list(pool.map(lambda i: reg.predict(X[i::8]), range(8)))
            for array, wanted in zip(made, expected, strict=True):
                np.testing.assert_array_equal(array, wanted)


def test_regressor_before_fit(linear_model):
    reg = OnnxRegressor(linear_model(3))
    for call in (lambda: reg.predict([[1, 2, 3]]), reg.get_trained_onnx, lambda: reg.score([[1, 2, 3]], [1])):
        with pytest.raises(NotFittedError, match="OnnxRegressor is not fitted yet: call fit"):
            call()
    assert not hasattr(reg, "weights_")
    with pytest.raises(AttributeError, match="not fitted"):
        _ = reg.weights_


def test_losses_by_name_model_and_function(linear_model):
    X, y = data()
    losses = ["squared_error", SquareLearningLoss(), lambda op, p, e: (p - e) * (p - e) / 2]
    fits = [OnnxRegressor(linear_model(3), loss=loss, random_state=0).fit(X, y) for loss in losses]
    for reg in fits[1:]:
        np.testing.assert_allclose(reg.weights_["w"], fits[0].weights_["w"], rtol=1e-5)


# -- classification: what the model ends in ----------------------------------------------------


def classifier_models():
    """Estimator, options of the conversion, classes."""
    for est in (
        LogisticRegression(),
        SGDClassifier(loss="log_loss"),
        MLPClassifier(hidden_layer_sizes=(4,), max_iter=3),
    ):
        for classes in (2, 3):
            for options in ({}, {"zipmap": False}):
                yield est, options, classes
            if not isinstance(est, MLPClassifier):
                yield est, {"zipmap": False, "raw_scores": True}, classes


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("labels", ["abc", (10, 5, 7)])
@pytest.mark.parametrize(("est", "options", "classes"), list(classifier_models()))
def test_converted_classifiers(est, options, classes, labels):
    labels = sorted(labels)
    X, y = binary(labels=labels[:2]) if classes == 2 else three(labels=labels)
    est = clone(est).set_params(random_state=0).fit(X, y)
    model = to_onnx(est, X[:1], target_opset=OPSETS, options={id(est): options} if options else None)
    clf = OnnxClassifier(model, learning_rate=0.0, max_iter=1).fit(X, y)
    assert is_classifier(clf)
    # Untrained it says what the model says.
    assert clf.classes_.tolist() == labels[:classes]
    np.testing.assert_array_equal(clf.predict(X), est.predict(X))
    np.testing.assert_allclose(clf.predict_proba(X).sum(axis=1), 1, rtol=1e-5)
    if "raw_scores" not in options or (isinstance(est, LogisticRegression) and classes > 2):
        # Other raw scores, [-z, z] or those of one against the rest, are read as logits of a softmax.
        np.testing.assert_allclose(clf.predict_proba(X), est.predict_proba(X), atol=1e-5)
    # Trained it gets better, and the trained graph, whatever it ends in, says the same.
    clf.set_params(learning_rate=0.2, max_iter=15, random_state=0).fit(X, y, X_val=X, y_val=y)
    assert clf.history_["val_loss"][-1] < clf.history_["loss"][0]
    assert clf.score(X, y) == accuracy_score(y, clf.predict(X)) >= est.score(X, y) - 0.02
    label, probabilities = session_run(clf.get_trained_onnx(), {"X": X}).values()
    np.testing.assert_array_equal(label, clf.predict(X))
    if "raw_scores" not in options:
        columns = [[p[c] for c in clf.classes_] for p in probabilities] if not options else probabilities
        np.testing.assert_allclose(columns, clf.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("end", ["Sigmoid", None])
@pytest.mark.parametrize("labels", [(0, 1), ("no", "yes"), (False, True), (-1, 1), (0.0, 1.0), (3, 8)])
def test_binary_with_one_column(linear_model, labels, end):
    X, y = binary(labels=labels)
    clf = OnnxClassifier(linear_model(3, end=end, seed=None), learning_rate=0.5, random_state=0).fit(X, y)
    assert clf.classes_.tolist() == list(labels)
    assert clf.classes_.dtype == y.dtype
    assert clf.score(X, y) > 0.95
    proba = clf.predict_proba(X)
    assert proba.shape == (60, 2)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(clf.predict(X), clf.classes_[proba.argmax(axis=1)])
    assert log_loss(y, proba, labels=sorted(labels)) == pytest.approx(
        clf.step_.scores(X, clf.encode(y, clf.step_)).mean(), rel=1e-4
    )


@pytest.mark.parametrize("end", ["Softmax", None])
@pytest.mark.parametrize("labels", [(0, 1, 2), ("a", "b", "c"), (1, 5, 9)])
def test_several_columns(mlp_model, labels, end):
    X, y = three(labels=labels)
    model = mlp_model([3, 6, 3], end=end)
    clf = OnnxClassifier(model, optimizer="adam", learning_rate=0.05, max_iter=40, random_state=0).fit(X, y)
    assert clf.classes_.tolist() == list(labels)
    assert clf.score(X, y) > 0.9
    assert clf.predict_proba(X).shape == (90, 3)
    np.testing.assert_array_equal(clf.predict(X), clf.classes_[clf.predict_proba(X).argmax(axis=1)])
    one = OnnxClassifier(model, optimizer="adam", learning_rate=0.05, random_state=0).fit(X, y)
    hot = OnnxClassifier(model, optimizer="adam", learning_rate=0.05, random_state=0)
    hot.fit(X, np.eye(3)[np.searchsorted(labels, y)])
    np.testing.assert_array_equal(one.weights_["w0"], hot.weights_["w0"])


def test_a_sigmoid_for_every_class(mlp_model):
    """Labels 0, 1, 2 and three sigmoids: each class against the rest."""
    X, y = three()
    clf = OnnxClassifier(
        mlp_model([3, 6, 3], end="Sigmoid"), optimizer="adam", learning_rate=0.05, max_iter=40
    )
    assert clf.fit(X, y).score(X, y) > 0.9
    assert set(clf.predict(X)) <= {0, 1, 2}


@pytest.mark.parametrize("end", ["Sigmoid", None])
def test_several_labels_a_row(mlp_model, end):
    X, y = data(80)
    Y = np.stack([y > 0, X[:, 0] > 0, X[:, 1] < 0], axis=1)
    clf = OnnxClassifier(
        mlp_model([3, 6, 3], end=end),
        loss=None if end else "binary_crossentropy",
        optimizer="adam",
        learning_rate=0.05,
        max_iter=60,
        random_state=0,
    ).fit(X, Y, X_val=X, y_val=Y)
    predicted = clf.predict(X)
    assert predicted.shape == (80, 3)
    assert set(np.unique(predicted)) == {0, 1}
    np.testing.assert_array_equal(predicted, clf.predict_proba(X) > 0.5)
    assert clf.score(X, Y) == accuracy_score(Y, predicted) > 0.7
    assert clf.classes_.tolist() == [0, 1, 2]


def test_probabilities_that_no_graph_pass_recognises():
    """A softmax written by hand is one by its values; a HardSigmoid may be a probability."""
    X, y = three()
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (float[N,3] x) => (float[N,3] p) <float[3,3] w = {1, 0, 0, 0, 1, 0, 0, 0, 1}, int64[1] last = {1}>
        { z = MatMul(x, w) e = Exp(z) s = ReduceSum <keepdims = 1> (e, last) p = Div(e, s) }""")
    clf = OnnxClassifier(model, learning_rate=0.5, max_iter=40, random_state=0).fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X).sum(axis=1), 1, rtol=1e-5)
    assert clf.history_["loss"][-1] < clf.history_["loss"][0]


def test_zeros_are_scores_not_probabilities(linear_model):
    X, y = binary()
    clf = OnnxClassifier(linear_model(3, seed=None), learning_rate=0.5).fit(X, y)
    with_end = OnnxClassifier(linear_model(3, seed=None, end="Sigmoid"), learning_rate=0.5)
    assert clf.history_["loss"][0] == pytest.approx(0.5, abs=0.3)
    assert clf.step_.targets[0].loss.on == with_end.fit(X, y).step_.targets[0].loss.on == "sigmoid"


@pytest.mark.parametrize("loss", ["log", "log_loss", "LogLoss", "neglog", None])
def test_log_loss_is_what_fits_the_model(mlp_model, loss):
    X, y = three()
    clf = OnnxClassifier(mlp_model([3, 3], end="Softmax"), loss=loss, random_state=0).fit(X, y)
    same = OnnxClassifier(mlp_model([3, 3], end="Softmax"), random_state=0).fit(X, y)
    np.testing.assert_array_equal(clf.weights_["w0"], same.weights_["w0"])


@pytest.mark.parametrize("columns", [1, 3])
def test_hinge_trains_scores(mlp_model, columns):
    X, y = binary(labels=("no", "yes")) if columns == 1 else three(labels="abc")
    clf = OnnxClassifier(
        mlp_model([3, columns]), loss="hinge", learning_rate=0.3, max_iter=40, random_state=0
    )
    assert clf.fit(X, y).score(X, y) > 0.85
    with pytest.raises(AttributeError, match="predict_proba") as caught:
        clf.predict_proba(X)
    assert "HingeLearningLoss" in str(caught.value.__cause__)


def test_squared_error_on_probabilities(mlp_model):
    X, y = three(labels="abc")
    clf = OnnxClassifier(
        mlp_model([3, 3], end="Softmax"), loss="squared_error", learning_rate=1.0, max_iter=60
    )
    assert clf.fit(X, y).score(X, y) > 0.8
    np.testing.assert_allclose(clf.predict_proba(X).sum(axis=1), 1, rtol=1e-5)


def test_tokens():
    """Classes on the last axis of (rows, tokens, classes)."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        tokens (float[N,T,2] x) => (float[N,T,3] p) <float[2,3] w = {0, 0, 0, 0, 0, 0}>
        { z = MatMul(x, w) p = Softmax <axis = -1> (z) }""")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 4, 2)).astype(np.float32)
    y = np.array(["A", "B", "C"])[(X @ [[1, -1, 0], [0, 1, -1]]).argmax(axis=-1)]
    clf = OnnxClassifier(model, learning_rate=1.0, max_iter=30, random_state=0)
    clf.fit(X, y, X_val=X, y_val=y)
    assert clf.classes_.tolist() == ["A", "B", "C"]
    assert clf.predict(X).shape == (40, 4)
    assert clf.predict_proba(X).shape == (40, 4, 3)
    assert clf.score(X, y) == (clf.predict(X) == y).mean() > 0.95
    with pytest.raises(InvalidDataError, match=r"y wants 2 dimensions.*has 1"):
        clf.fit(X, y[:, 0])
    before = clf.predict_proba(X)
    for warm in (True, False):
        with pytest.raises(EvaluationError):
            clf.set_params(warm_start=warm).fit(X, y[:, :2])
    np.testing.assert_array_equal(clf.predict_proba(X), before)
    assert clf.n_iter_ == 30


def test_pixels():
    """Classes on axis 1 of (rows, classes, height, width)."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        pixels (float[N,1,3,3] x) => (float[N,2,3,3] p) <float[2,1,1,1] w = {0, 0}, float[2] b = {0, 0}>
        { z = Conv(x, w, b) p = Softmax <axis = 1> (z) }""")
    X = np.random.default_rng(0).normal(size=(20, 1, 3, 3)).astype(np.float32)
    y = (X[:, 0] > 0).astype(int)
    clf = OnnxClassifier(model, learning_rate=0.5, max_iter=20, random_state=0).fit(X, y)
    assert clf.predict(X).shape == y.shape
    assert clf.predict_proba(X).shape == (20, 2, 3, 3)
    assert clf.score(X, y) > 0.9


# -- classification: labels --------------------------------------------------------------------


def test_labels_of_the_graph_give_the_order(mlp_model):
    X, y = three(labels="abc")
    est = LogisticRegression().fit(X, y)
    model = to_onnx(est, X[:1], target_opset=OPSETS)
    part = y != "b"
    clf = OnnxClassifier(model, learning_rate=0.1).fit(X[part], y[part])  # one class is not in the data
    assert clf.classes_.tolist() == ["a", "b", "c"]
    with pytest.raises(
        InvalidDataError, match=r"labels \['z'\], which the model does not have; .*\['a', 'b', 'c'\]"
    ):
        clf.partial_fit(X, np.where(part, y, "z"))


def test_labels_of_a_part_of_the_data(mlp_model):
    X, y = three()
    clf = OnnxClassifier(mlp_model([3, 3], end="Softmax")).partial_fit(X[y < 2], y[y < 2])
    assert clf.classes_.tolist() == [0, 1, 2]
    named = np.array(["a", "b", "c"])[y]
    clf = OnnxClassifier(mlp_model([3, 3], end="Softmax"))
    with pytest.raises(
        InvalidDataError, match=r"2 different labels.*'a', 'b'.*3 classes.*partial_fit\(classes=\)"
    ):
        clf.partial_fit(X[y < 2], named[y < 2])
    assert not hasattr(clf, "classes_")
    clf.partial_fit(X[y < 2], named[y < 2], classes=["c", "a", "b"])
    assert clf.classes_.tolist() == ["a", "b", "c"]
    clf.partial_fit(X, named)
    assert clf.n_iter_ == 2
    clf.set_params(optimizer="adam").partial_fit(X[y > 0], named[y > 0])  # a new step, the same classes
    assert clf.classes_.tolist() == ["a", "b", "c"]
    assert clf.fit(X, named).classes_.tolist() == ["a", "b", "c"]
    with pytest.raises(InvalidDataError, match="2 different labels"):
        clf.fit(X[y > 0], named[y > 0])
    assert clf.classes_.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    "kind", [pd.Series, list, lambda y: np.asarray(y, dtype=object), lambda y: y[:, None]]
)
def test_containers_of_labels(linear_model, kind):
    X, y = binary(labels=("no", "yes"))
    clf = OnnxClassifier(linear_model(3, end="Sigmoid"), random_state=0)
    expected = copy.deepcopy(clf).fit(X, y)
    labels = kind(y)
    # One of them is a column, which scikit-learn's classifiers warn of.
    with pytest.warns(DataConversionWarning) if np.ndim(labels) == 2 else contextlib.nullcontext():
        clf.fit(X, labels)
    np.testing.assert_array_equal(clf.weights_["w"], expected.weights_["w"])
    np.testing.assert_array_equal(clf.predict(X), expected.predict(X))


def test_a_categorical(linear_model):
    X, y = binary(labels=("no", "yes"))
    clf = OnnxClassifier(linear_model(3, end="Sigmoid"), learning_rate=0.5)
    assert clf.fit(pd.DataFrame(X), pd.Series(y, dtype="category")).score(X, y) > 0.9


def test_one_class_only_in_the_data(linear_model):
    X, _ = binary()
    clf = OnnxClassifier(linear_model(3, end="Sigmoid")).fit(X, np.zeros(60, int))
    assert clf.classes_.tolist() == [0, 1]


def test_a_loss_for_another_output():
    X, y = three()
    est = LogisticRegression().fit(X, y)
    model = to_onnx(est, X[:1], target_opset=OPSETS, options={id(est): {"zipmap": "columns"}})
    with pytest.raises(InvalidModelError, match=r"'i0', 'i1', 'i2'.*zipmap=False"):
        OnnxClassifier(model).fit(X, y)
    model = to_onnx(est, X[:1], target_opset=OPSETS, options={id(est): {"zipmap": False}})
    clf = OnnxClassifier(model, loss={"probabilities": "log_loss"}).fit(X, y)
    assert clf.step_.targets[0].output == "probabilities"
    with pytest.raises(
        UnknownNameError, match=r"no output 'label' with scores; those it has are \['probabilities'\]"
    ):
        OnnxClassifier(model, loss={"label": "log_loss"}).fit(X, y)
    with pytest.raises(InvalidModelError, match="trains one output"):
        OnnxClassifier(model, loss={"probabilities": "log_loss", "label": "log_loss"}).fit(X, y)


def test_classifier_before_fit(linear_model):
    clf = OnnxClassifier(linear_model(3, end="Sigmoid"))
    for method in (clf.predict, clf.predict_proba):
        with pytest.raises(NotFittedError):
            method([[1, 2, 3]])
    assert not hasattr(clf, "classes_")


def test_copies_of_a_classifier(mlp_model):
    X, y = three(labels="abc")
    clf = OnnxClassifier(mlp_model([3, 3], end="Softmax"), warm_start=True, random_state=0).fit(X, y)
    for other in (pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        np.testing.assert_array_equal(other.predict_proba(X), clf.predict_proba(X))
        assert other.fit(X, y).n_iter_ == 40


# -- scikit-learn ------------------------------------------------------------------------------


def test_parameters(linear_model):
    model = linear_model(3)
    reg = OnnxRegressor(model, learning_rate=LearningRateSGD(0.1), max_iter=3)
    params = reg.get_params(deep=False)
    assert list(params) == sorted(
        "model weights_to_train loss penalty optimizer learning_rate batch_size max_iter shuffle "
        "random_state warm_start engine device verbose loss_weights batch_norm dropout freeze threads "
        "callbacks checkpoint_dir validation_fraction batch_axis cache_frozen cache_bytes "
        "average head pairs m_per_class lora quantize teacher cache_dir".split()
    )
    assert params["model"] is model
    other = clone(reg)
    assert other.learning_rate is not reg.learning_rate
    assert other.get_params()["learning_rate__eta0"] == 0.1
    reg.set_params(learning_rate__eta0=0.5, batch_size=7)
    assert reg.learning_rate.eta0 == 0.5
    assert reg.batch_size == 7
    assert other.learning_rate.eta0 == 0.1


def test_grid_search(linear_model):
    X, y = data()
    search = GridSearchCV(
        OnnxRegressor(linear_model(3, seed=None), max_iter=5, random_state=0),
        {"learning_rate": [1e-6, 0.1], "optimizer": ["sgd", "adam"]},
        cv=2,
        error_score="raise",
    ).fit(X, y)
    assert search.best_params_ == {"learning_rate": 0.1, "optimizer": "sgd"}
    assert search.predict(X).shape == y.shape


def test_cross_validation_and_pipelines(linear_model):
    X, y = binary(labels=("no", "yes"))
    clf = OnnxClassifier(linear_model(3, end="Sigmoid"), learning_rate=0.5, random_state=0)
    assert cross_val_score(clf, X, y, cv=3, error_score="raise").mean() > 0.85
    assert cross_val_score(clf, X, y, cv=3, scoring="neg_log_loss", error_score="raise").mean() > -0.5
    pipe = make_pipeline(StandardScaler(), clf).fit(X, y)
    assert pipe.score(X, y) > 0.9
    search = GridSearchCV(pipe, {"onnxclassifier__max_iter": [1, 10]}, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_ == {"onnxclassifier__max_iter": 10}


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimators_unfitted,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_set_params,
    ],
)
@pytest.mark.parametrize("cls", [OnnxRegressor, OnnxClassifier])
def test_checks_of_scikit_learn_that_know_no_data(linear_model, cls, check):
    check(cls.__name__, cls(linear_model(10)))


def test_columns_of_one_tensor_are_refused_unless_one_is_named():
    X = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    y = (X[:, 0] > 0).astype(int)
    model = to_onnx(LogisticRegression().fit(X, y), X[:1], target_opset=OPSETS, options={"zipmap": "columns"})
    with pytest.raises(InvalidModelError, match=r"'i0', 'i1'.*zipmap=False"):
        OnnxClassifier(model).fit(X, y)
    named = OnnxClassifier(model, loss={"i1": "log_loss"}, learning_rate=0.1, random_state=0).fit(X, y)
    assert named.score(X, y) > 0.95


def test_a_selected_probability_is_no_score():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 4] x) => (float[N, 1] p) <float[4, 1] w = {3, 0, 0, 0}, int64[1] first = {0}> {
            z = MatMul (x, w)  s = Sigmoid (z)  p = Gather <axis = 1> (s, first) }"""
    )
    X = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    y = (X[:, 0] > 0).astype(int)
    assert OnnxClassifier(model, learning_rate=0.1, random_state=0).fit(X, y).score(X, y) > 0.95


def test_distances_are_no_scores():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 2] x) => (int64[N] label, float[N, 3] d) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> {
            d = MatMul (x, w)  label = ArgMin <axis = 1, keepdims = 0> (d) }"""
    )
    with pytest.raises(InvalidModelError, match=r"ArgMin.*distances"):
        OnnxClassifier(model).fit(np.ones((3, 2), dtype=np.float32), [0, 1, 2])


def test_a_model_newer_than_the_runtime_is_handed_out_in_a_version_it_reads():
    text = '<ir_version: 10, opset_import: ["": 23]> g (float[N, 2] x) => (float[N, 1] y) '
    model = onnx.parser.parse_model(text + "<float[2, 1] w = {0, 0}> { y = MatMul (x, w) }")
    X = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    reg = OnnxRegressor(model, learning_rate=0.1, random_state=0).fit(X, tuple(X.sum(axis=1)))
    trained = reg.get_trained_onnx()
    session = onnxruntime.InferenceSession(trained.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": X})[0].ravel(), reg.predict(X), rtol=1e-5)


def constant(rate):
    return LearningRateSGD(rate, learning_rate="constant")


@pytest.mark.parametrize(
    ("optimizer", "before", "after", "rate"),
    [
        ("sgd", 0.1, 0.01, 0.01),
        (constant(0.1), 0.5, None, 0.1),
        (constant(0.1), None, constant(0.2), 0.2),
        (None, constant(0.1), constant(0.5), 0.5),
    ],
)
def test_another_learning_rate_changes_nothing_else(linear_model, optimizer, before, after, rate):
    X, y = data()
    options = {"max_iter": 2, "warm_start": True, "random_state": 0, "batch_size": 10}
    reg = OnnxRegressor(linear_model(3), optimizer=optimizer, learning_rate=before, **options).fit(X, y)
    assert reg.step_.iteration == 8
    reg.set_params(learning_rate=after).fit(X, y)
    assert reg.step_.iteration == 16
    assert reg.step_.optimizer.value == rate


def test_a_rule_named_by_the_learning_rate_can_be_changed(linear_model):
    X, y = data()
    reg = OnnxRegressor(
        linear_model(3), optimizer=None, learning_rate="adam", warm_start=True, max_iter=1, random_state=0
    )
    reg.fit(X, y)
    weights_before = reg.weights_
    reg.set_params(learning_rate="nag").fit(X, y)
    assert type(reg.step_.optimizer).__name__ == "NAG"
    assert any(not np.array_equal(reg.weights_[n], a) for n, a in weights_before.items())


# -- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [OnnxRegressor, OnnxClassifier, OrtGradientForwardBackwardOptimizer])
def test_parameters_are_declared_once_and_documented_once(cls):
    signature = inspect.signature(cls).parameters
    names = [field.name for field in dataclasses.fields(cls)]
    assert list(signature) == names
    assert sorted(cls._get_param_names()) == sorted(names)
    section = cls.__doc__.split("Parameters\n")[1].split("Attributes\n")[0]
    heads = [line.strip() for line in section.splitlines() if " : " in line]
    documented = [name for head in heads for name in head.partition(" : ")[0].split(", ")]
    assert documented == names
    for head in heads:
        for name in head.partition(" : ")[0].split(", "):
            default = re.search(r"default=(.+)$", head)
            if default is not None:
                assert ast.literal_eval(default.group(1)) == signature[name].default, head


def test_the_constructor_only_stores():
    class Own(OnnxRegressor):
        """One more parameter, as older programs write it."""

        def __init__(self, model, *, factor=1.0, **options):
            super().__init__(model, **options)
            self.factor = factor

    given = {"max_iter": "many", "shuffle": [], "random_state": object()}
    for made in (OnnxRegressor("no model", **given), Own("no model", **given)):
        assert all(getattr(made, name) is value for name, value in given.items())
        assert not [name for name in vars(made) if name not in [*OnnxRegressor._get_param_names(), "factor"]]
    assert OnnxRegressor(None) != OnnxRegressor(None)  # identity, as of all estimators
    assert len({OnnxRegressor(None), OnnxRegressor(None)}) == 2


@pytest.mark.parametrize("shape", [(12, 4), (12, 2, 2)])
def test_columns_are_as_good_as_a_picture_of_as_many_numbers(shape):
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] x) => (float[N, 2, 2] y) <float[3, 4] w = {1,0,0,1,1,0,0,1,0,1,0,1},
        int64[3] s = {0,2,2}> { z = MatMul(x, w) y = Reshape(z, s) }""")
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 3)).astype(np.float32), rng.normal(size=(12, 2, 2))
    options = {"max_iter": 10, "batch_size": 5, "shuffle": False, "learning_rate": 0.05}
    net = OnnxRegressor(model, **options).fit(X, y.reshape(shape), X_val=X, y_val=y.reshape(shape))
    w = np.array([1, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1], dtype=np.float64).reshape(3, 4)
    for _ in range(10):
        for i in (0, 5, 10):
            a, b = X[i : i + 5], y.reshape(12, 4)[i : i + 5]
            w -= 0.05 * a.T @ (a @ w - b) / len(a)
    np.testing.assert_allclose(net.weights_["w"], w, rtol=1e-4, atol=1e-5)
    assert net.predict(X).shape == (12, 2, 2)
    wanted = r2_score(y.reshape(12, 4), (X @ w).reshape(12, 4))
    assert net.score(X, y.reshape(shape)) == pytest.approx(wanted, rel=1e-3)


def test_a_column_of_rank_3_is_predicted_as_it_was_given():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] x) => (float[N, 1, 1] y) <float[3, 1] w = {1, 0, 0}, int64[3] s = {0, 1, 1}> {
        z = MatMul(x, w) y = Reshape(z, s) }""")
    X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    y = X.sum(axis=1)
    for shape, predicted in (((12,), (12,)), ((12, 1), (12, 1, 1)), ((12, 1, 1), (12, 1, 1))):
        assert OnnxRegressor(model, max_iter=1).fit(X, y.reshape(shape)).predict(X).shape == predicted


def test_predictions_say_what_was_taken_for_rows():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 2] x, float[N, 2] z) => (float[N, 2] y) <float[2, 2] w = {1, 0, 0, 1}> {
        h = Concat<axis = 1>(x, z) s = Shape<start = 0, end = 1>(x) t = Expand(x, s)
        a = MatMul(t, w) y = Add(a, z) }""")
    rng = np.random.default_rng(0)
    given = {"x": rng.normal(size=(2, 2)).astype(np.float32), "z": rng.normal(size=(2, 2)).astype(np.float32)}
    net = OnnxRegressor(model, max_iter=1, batch_size=2).fit(given, np.zeros((2, 2)))
    more = {name: np.concatenate([array] * 2)[:3] for name, array in given.items()}
    with pytest.raises(EvaluationError, match=r"'x' of shape .* has 3 along axis 0.*batch_axis="):
        net.predict(more)
    with pytest.raises(EvaluationError, match=r"'x' of shape .* has 3 along axis 0.*batch_axis="):
        net.step_.scores(more, np.zeros((3, 2)))


def test_scores_of_tokens_weigh_rows_or_labels():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, T, 3] x) => (float[N, T, 3] p) <float[3, 3] w = {1, 0, 0, 0, 2, 0, 0, 0, 1}> {
        z = MatMul(x, w) p = Softmax(z) }""")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6, 4, 3)).astype(np.float32)
    y = rng.integers(0, 3, size=(6, 4))
    net = OnnxClassifier(model, max_iter=1, random_state=0).fit(X, y)
    hits = net.predict(X) == y
    rows, labels = rng.uniform(size=6), rng.uniform(size=(6, 4))
    assert net.score(X, y) == pytest.approx(hits.mean())
    assert net.score(X, y, sample_weight=rows) == pytest.approx(np.average(hits.mean(axis=1), weights=rows))
    assert net.score(X, y, sample_weight=labels) == pytest.approx(np.average(hits, weights=labels))
    for wrong in (-rows, -labels, labels[:, :3], np.full((6, 4), np.nan)):
        with pytest.raises(InvalidDataError, match=r"(?i)sample_weight"):
            net.score(X, y, sample_weight=wrong)
