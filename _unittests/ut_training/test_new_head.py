"""Estimators whose model has other outputs than the data: a head is made, and goes along."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from sklearn.base import clone

import onnxcustom
from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError
from onnxcustom.tuning import replace_head

pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 4)).astype(np.float32)
THREE = np.digitize(X[:, 0], [-0.4, 0.4])
NAMES = np.array(["high", "low", "middle"])[THREE]
FIVE = np.digitize(X[:, 1], [-0.8, -0.2, 0.2, 0.8])
SET = {"optimizer": "adam", "learning_rate": 0.05, "max_iter": 40, "random_state": 0}


def network(columns=2, body="p = Softmax(z)", outputs="float[N, K] p", shape="N, 4", opset="", **tables):
    made = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> m (float[{shape}] x) => ({outputs}) {{ '
        f"f0 = MatMul(x, u) f = Tanh(f0) y = MatMul(f, w) z = Add(y, b) {body} }}"
    )
    rng = np.random.default_rng(1)
    for name, size in {"u": (4, 8), "w": (8, columns), "b": (columns,)}.items():
        made.graph.initializer.append(numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name))
    for name, table in tables.items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(table), name))
    return made


LABELLED = network(
    body="p = Softmax(z) i = ArgMax<axis = 1, keepdims = 0>(p) label = Gather(t, i)",
    outputs="int64[N] label, float[N, K] p",
    t=np.array([5, 7]),
)


@pytest.mark.parametrize(
    "y", [THREE, NAMES, THREE * 10, THREE.astype(float)], ids=["numbers", "names", "tens", "floats"]
)
@pytest.mark.parametrize("model", [network(), network(5), LABELLED], ids=["two", "five", "labelled"])
def test_other_classes(model, y):
    fits = model.graph.initializer[1].dims[1] == 5 and y.dtype.kind != "U" and y.max() == 2
    classifier = OnnxClassifier(model, head="auto", **SET)
    if fits:
        classifier.fit(X, y)
        assert "head_weight" not in classifier.weights_
        return
    with pytest.warns(UserWarning, match=r"y has 3 classes.*a new last layer of 3 outputs"):
        classifier.fit(X, y)
    assert classifier.classes_.tolist() == sorted(set(y.tolist()))
    assert classifier.weights_["head_weight"].shape == (8, 3)
    assert classifier.score(X, y) > 0.9
    trained = classifier.get_trained_onnx()
    assert trained.graph.output[-1].type.tensor_type.shape.dim[1].dim_value == 3
    again = pickle.loads(pickle.dumps(classifier))
    assert again.predict(X).tolist() == classifier.predict(X).tolist()


def test_the_same_as_by_hand():
    with pytest.warns(UserWarning, match="a new last layer"):
        classifier = OnnxClassifier(network(), head="auto", **SET).fit(X, NAMES)
    by_hand = OnnxClassifier(replace_head(network(), 3, seed=0), **SET).fit(X, NAMES)
    given = OnnxClassifier(network(), head=["high", "low", "middle"], **SET).fit(X, NAMES)
    for name, array in by_hand.weights_.items():
        np.testing.assert_array_equal(classifier.weights_[name], array)
        np.testing.assert_array_equal(given.weights_[name], array)


def test_classes_that_fit_keep_their_head():
    for model, y in ((network(), THREE > 0), (network(5), FIVE), (LABELLED, np.where(THREE > 0, 5, 7))):
        classifier = OnnxClassifier(model, head="auto", **SET).fit(X, y)
        assert "w" in classifier.weights_


def test_parameters_and_copies():
    classifier = OnnxClassifier(network(), head="auto", weights_to_train="head_*", **SET)
    assert clone(classifier).get_params()["head"] == "auto"
    assert "head='auto'" in repr(classifier)
    with pytest.warns(UserWarning, match="a new last layer"):
        classifier.fit(X, THREE)
    assert set(classifier.weights_) == {"head_weight", "head_bias"}
    for wrong in ("new", 0, 2.5, True, {}):
        with pytest.raises(InvalidParameterError, match="head"):
            OnnxClassifier(network(), head=wrong).fit(X, THREE)


def test_going_on_keeps_the_head():
    classifier = OnnxClassifier(network(), head="auto", **SET)
    with pytest.warns(UserWarning, match="a new last layer"):
        classifier.partial_fit(X[:20], THREE[:20], classes=[0, 1, 2])
    classifier.partial_fit(X[:20], np.zeros(20, int))
    assert classifier.classes_.tolist() == [0, 1, 2]
    with pytest.raises(InvalidDataError, match="labels"):
        classifier.partial_fit(X, FIVE)
    classifier.set_params(optimizer="sgd", warm_start=True, max_iter=2)  # another step of the same classes
    before = classifier.weights_["head_weight"]
    with pytest.warns(UserWarning, match="a new last layer"):
        classifier.fit(X[:20], np.ones(20, int))
    assert classifier.weights_["head_weight"].shape == before.shape
    assert np.abs(classifier.weights_["head_weight"] - before).max() < 0.5
    classifier.set_params(warm_start=False)
    with pytest.warns(UserWarning, match="of 5 outputs"):
        classifier.fit(X, FIVE)


def test_a_checkpoint_goes_on_with_the_head(tmp_path):
    whole = OnnxClassifier(network(), head="auto", **{**SET, "max_iter": 4})
    part = OnnxClassifier(network(), head="auto", checkpoint_dir=tmp_path, **{**SET, "max_iter": 2})
    with pytest.warns(UserWarning, match="a new last layer"):
        whole.fit(X, THREE)
    with pytest.warns(UserWarning, match="a new last layer"):
        part.fit(X, THREE)
    rest = clone(part).set_params(max_iter=4)
    with pytest.warns(UserWarning, match="a new last layer"):
        rest.fit(X, THREE)
    for name, array in whole.weights_.items():
        np.testing.assert_array_equal(rest.weights_[name], array)


def test_several_labels_a_row():
    y = np.stack([X[:, 0] > 0, X[:, 1] > 0, X[:, 2] > 0, X[:, 3] > 0], axis=1).astype(int)
    with pytest.warns(UserWarning, match="y has 4 columns of 0 and 1, and the model 2"):
        classifier = OnnxClassifier(network(2, "p = Sigmoid(z)"), head="auto", **SET).fit(X, y)
    assert classifier.predict(X).shape == y.shape
    assert (classifier.predict(X) == y).mean() > 0.85


def test_one_score_becomes_three():
    with pytest.warns(UserWarning, match="the model has 1 column"):
        classifier = OnnxClassifier(network(1, "p = Sigmoid(z)"), head="auto", **SET).fit(X, NAMES)
    np.testing.assert_allclose(classifier.predict_proba(X).sum(axis=1), 1, rtol=1e-4)


def test_labels_of_positions():
    model = network(2, "p = Softmax(z)", "float[N, L, K] p", "N, L, 4")
    features, labels = X.reshape(18, 5, 4), THREE.reshape(18, 5).copy()
    labels[0, 0] = -100
    with pytest.warns(UserWarning, match="y has 3 classes"):
        classifier = OnnxClassifier(model, head="auto", **SET).fit(features, labels)
    assert classifier.predict(features).shape == labels.shape
    assert classifier.classes_.tolist() == [0, 1, 2]


def test_the_output_that_is_trained():
    model = network(
        2, "p = Softmax(z) v = MatMul(f, a)", "float[N, L] v, float[N, K] p", a=np.ones((8, 3), np.float32)
    )
    with pytest.warns(UserWarning, match="a new last layer"):
        classifier = OnnxClassifier(model, head="auto", loss={"p": "log_loss"}, **SET).fit(X, THREE)
    names = [o.name for o in classifier.get_trained_onnx().graph.output]
    assert names == ["v", "p"]


def test_regression():
    model = network(2, "p = Identity(z)")
    for columns in (1, 3):
        Y = X[:, :columns] @ np.ones((columns, columns)) if columns > 1 else X[:, 0]
        with pytest.warns(UserWarning, match=f"y has {columns} column.* has 2"):
            regressor = OnnxRegressor(model, head="auto", **SET).fit(X, Y)
        assert regressor.predict(X).shape == Y.shape
        assert regressor.score(X, Y) > 0.8
    kept = OnnxRegressor(model, head="auto", **SET).fit(X, X[:, :2])
    assert "w" in kept.weights_
    assert OnnxRegressor(model, head=1, **SET).fit(X, X[:, 0]).weights_["head_bias"].shape == (1,)


def test_gradients_of_the_head_are_those_of_numpy():
    made = replace_head(network(), 3, seed=2)
    held = onnxcustom.weights(made)
    step = TrainingStep(made, "cross_entropy", "sgd", learning_rate=1.0, weights="head_*")
    step.run(X, THREE)
    features = np.tanh(X.astype(np.float64) @ held["u"])
    z = features @ held["head_weight"] + held["head_bias"]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    change = features.T @ (p - np.eye(3)[THREE]) / len(X)
    found = held["head_weight"] - onnxcustom.weights(step.trained_model())["head_weight"]
    np.testing.assert_allclose(found, change, rtol=1e-3, atol=1e-5)


def test_a_regressor_counts_no_classes():
    with pytest.raises(InvalidParameterError, match=r"OnnxClassifier\(head='auto'\).*head=10"):
        OnnxRegressor(network(), head="auto", loss="cross_entropy", **SET).fit(X, THREE)
    fitted = OnnxRegressor(network(), head=3, loss="cross_entropy", **SET).fit(X, THREE)
    assert fitted.predict(X).shape == (len(X), 3)
