"""Another last layer: models of all kinds, run, trained, compared with what they computed before the head."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from scipy.special import expit, log_softmax, softmax

import onnxcustom
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError, UnknownNameError
from onnxcustom.graph import class_labels, to_ir
from onnxcustom.tuning import replace_head

RNG = np.random.default_rng(0)


def model(body, weights, inputs="float[N, 4] x", outputs="float[N, K] p"):
    made = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> m ({inputs}) => ({outputs}) {{ {body} }}'
    )
    for name, shape in weights.items():
        array = RNG.normal(size=shape).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    return made


HIDDEN = "f0 = MatMul(x, u) f = Tanh(f0) "
CASES = {
    # Body, weights, other options; outputs, and the formula from features, weight and bias.
    "gemm": (
        HIDDEN + "z = Gemm(f, w, b) p = Softmax<axis=-1>(z)",
        {"u": (4, 6), "w": (6, 2), "b": (2,)},
        5,
        softmax,
    ),
    "turned": (HIDDEN + "z = Gemm<transB=1>(f, w) p = Softmax(z)", {"u": (4, 6), "w": (2, 6)}, 3, softmax),
    "matmul": (
        HIDDEN + "y = MatMul(f, w) z = Add(y, b) p = Softmax(z)",
        {"u": (4, 6), "w": (6, 2), "b": (2,)},
        3,
        softmax,
    ),
    "to one": (HIDDEN + "z = Gemm(f, w, b) p = Softmax(z)", {"u": (4, 6), "w": (6, 2), "b": (2,)}, 1, expit),
    "from one": (
        HIDDEN + "z = Gemm(f, w, b) p = Sigmoid(z)",
        {"u": (4, 6), "w": (6, 1), "b": (1,)},
        3,
        softmax,
    ),
    "one again": (
        HIDDEN + "z = Gemm(f, w, b) p = Sigmoid(z)",
        {"u": (4, 6), "w": (6, 1), "b": (1,)},
        1,
        expit,
    ),
    "many": (HIDDEN + "z = Gemm(f, w, b) p = Sigmoid(z)", {"u": (4, 6), "w": (6, 2), "b": (2,)}, 4, expit),
    "logarithms": (
        HIDDEN + "z = Gemm(f, w, b) p = LogSoftmax(z)",
        {"u": (4, 6), "w": (6, 2), "b": (2,)},
        4,
        log_softmax,
    ),
    "values": (HIDDEN + "p = Gemm(f, w, b)", {"u": (4, 6), "w": (6, 2), "b": (2,)}, 3, lambda z, axis: z),
}


def run(made, x, outputs=None):
    return ReferenceEvaluator(made).run(outputs, {"x": x})


@pytest.mark.parametrize("name", CASES)
def test_forms_of_heads(name):
    body, weights, count, link = CASES[name]
    given = model(body, weights)
    made = replace_head(given, count, seed=3)
    onnx.checker.check_model(made, full_check=True)
    held = onnxcustom.weights(made)
    assert set(held) == {"u", "head_weight", "head_bias"}
    assert held["head_weight"].shape == (6, count)
    assert not held["head_bias"].any()
    x = RNG.normal(size=(5, 4)).astype(np.float32)
    features = np.tanh(x @ held["u"])
    z = features @ held["head_weight"]
    wanted = link(z) if link is expit else link(z, axis=-1)
    np.testing.assert_allclose(run(made, x)[0], wanted, rtol=1e-5, atol=1e-6)
    again, other = replace_head(given, count, seed=3), replace_head(given, count, seed=4)
    assert again == made
    assert not np.array_equal(onnxcustom.weights(other)["head_weight"], held["head_weight"])


def test_a_convolution_and_what_pools_it():
    body = "f = Relu(x) y = Conv<kernel_shape=[1,1]>(f, w, b) g = GlobalAveragePool(y) z = Flatten(g) "
    body += "p = Softmax(z)"
    given = model(body, {"w": (10, 3, 1, 1), "b": (10,)}, "float[N, 3, 5, 5] x")
    made = replace_head(given, 4)
    held = onnxcustom.weights(made)
    assert held["head_weight"].shape == (4, 3, 1, 1)
    x = RNG.normal(size=(2, 3, 5, 5)).astype(np.float32)
    z = np.maximum(x, 0).mean(axis=(2, 3)) @ held["head_weight"][:, :, 0, 0].T
    np.testing.assert_allclose(run(made, x)[0], softmax(z, axis=1), rtol=1e-5)


def test_labels_are_made_anew():
    body = HIDDEN + "z = Gemm(f, w, b) p = Softmax(z) i = ArgMax<axis=1, keepdims=0>(p) label = Gather(t, i)"
    given = model(body, {"u": (4, 6), "w": (6, 2), "b": (2,)}, outputs="int64[N] label, float[N, K] p")
    given.graph.initializer.append(numpy_helper.from_array(np.array([5, 7]), "t"))
    x = RNG.normal(size=(9, 4)).astype(np.float32)
    for outputs, labels in [
        (3, [0, 1, 2]),
        ([4, 8, 15, 16], [4, 8, 15, 16]),
        (["a", "b", "c"], ["a", "b", "c"]),
    ]:
        made = replace_head(given, outputs)
        onnx.checker.check_model(made, full_check=True)
        assert [o.name for o in made.graph.output] == ["label", "p"]
        label, p = run(made, x)
        assert p.shape == (9, len(labels))
        assert label.tolist() == np.array(labels)[p.argmax(axis=1)].tolist()
        assert class_labels(to_ir(made)).tolist() == labels


def test_a_pipeline_of_scikit_learn():
    pytest.importorskip("skl2onnx")
    pytest.importorskip("onnxruntime")
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier

    X = RNG.normal(size=(60, 4)).astype(np.float32)
    y = np.array(["no", "yes"])[(X[:, 0] > 0).astype(int)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = MLPClassifier((8,), max_iter=20, random_state=0).fit(X, y)
    for options in ({}, {"zipmap": False}):
        given = to_onnx(net, X[:1], options=options, target_opset=17)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            made = replace_head(given, ["low", "middle", "high"])
        target = np.array(["low", "middle", "high"])[np.digitize(X[:, 1], [-0.5, 0.5])]
        classifier = onnxcustom.OnnxClassifier(
            made, optimizer="adam", learning_rate=0.05, max_iter=60, random_state=0
        )
        classifier.fit(X, target)
        assert sorted(classifier.classes_) == ["high", "low", "middle"]
        assert classifier.score(X, target) > 0.9


def test_what_does_not_go_with_other_outputs_is_named():
    body = HIDDEN + "z = Gemm(f, w, b) y = Mul(z, c) p = Add(y, c)"
    given = model(body, {"u": (4, 6), "w": (6, 2), "b": (2,), "c": (2,)})
    with pytest.warns(UserWarning, match=r"\(Mul\) does not go with 3 outputs in place of 2"):
        made = replace_head(given, 3)
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    held = onnxcustom.weights(made)
    np.testing.assert_allclose(
        run(made, x)[0], np.tanh(x @ held["u"]) @ held["head_weight"], rtol=1e-5, atol=1e-6
    )


def test_a_layer_by_name():
    body = "f = MatMul(x, u) g = Tanh(f) y = MatMul(g, v) z = Add(y, b) p = Softmax(z)"
    given = model(body, {"u": (4, 6), "v": (6, 3), "b": (3,)})
    given.graph.node[0].name, given.graph.node[2].name = "first", "second"
    for at in ("second", "y", "z", None):
        assert onnxcustom.weights(replace_head(given, 2, at=at))["head_weight"].shape == (6, 2)
    with pytest.warns(UserWarning, match="does not go with 5 outputs in place of 6"):
        made = replace_head(given, 5, at="first")
    assert run(made, np.ones((2, 4), np.float32))[0].shape == (2, 5)
    with pytest.raises(UnknownNameError, match=r"no layer 'secnd'.*Did you mean 'second'"):
        replace_head(given, 2, at="secnd")


def test_activation_by_name():
    given = model(HIDDEN + "p = Gemm(f, w, b)", {"u": (4, 6), "w": (6, 2), "b": (2,)})
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    made = {a: run(replace_head(given, 3, activation=a), x)[0] for a in ("none", "softmax", "sigmoid")}
    np.testing.assert_allclose(made["softmax"], softmax(made["none"], axis=1), rtol=1e-5)
    np.testing.assert_allclose(made["sigmoid"], expit(made["none"]), rtol=1e-5)
    with pytest.raises(UnknownNameError, match="activation"):
        replace_head(given, 3, activation="tanh")


def test_other_outputs_stay_unless_they_come_from_the_head():
    body = HIDDEN + "p = Gemm(f, w, b) q = ReduceMax<axes=[1]>(p) r = Identity(f)"
    given = model(
        body, {"u": (4, 6), "w": (6, 2), "b": (2,)}, outputs="float[N, K] p, float[N, L] q, float[N, 6] r"
    )
    with pytest.warns(UserWarning, match=r"\['q'\]"):
        made = replace_head(given, 3)
    assert [o.name for o in made.graph.output] == ["p", "r"]


@pytest.mark.parametrize("outputs", [0, -1, 2.5, True, [], ["a"], ["a", "a"], ["a", 1], "ab", None])
def test_outputs_that_are_none(outputs):
    given = model(HIDDEN + "p = Gemm(f, w, b)", {"u": (4, 6), "w": (6, 2), "b": (2,)})
    with pytest.raises(InvalidParameterError, match="outputs must be"):
        replace_head(given, outputs)


def test_models_without_a_head():
    with pytest.raises(InvalidModelError, match="no layer with a weight"):
        replace_head(model("p = Tanh(x)", {}), 3)
    two = model("a = MatMul(x, u) b = MatMul(x, v) p = Add(a, b)", {"u": (4, 2), "v": (4, 2)})
    with pytest.raises(InvalidModelError, match=r"Several layers are last .* at= one of"):
        replace_head(two, 3)


def test_ten_steps():
    pytest.importorskip("onnxruntime")
    body, weights, _, _ = CASES["gemm"]
    made = replace_head(model(body, weights), 3)
    X = RNG.normal(size=(60, 4)).astype(np.float32)
    y = np.digitize(X[:, 0], [-0.5, 0.5])
    step = onnxcustom.TrainingStep(
        made, loss="cross_entropy", optimizer="adam", learning_rate=0.1, weights="head_*"
    )
    losses = [step.run(X, y) for _ in range(10)]
    assert losses == sorted(losses, reverse=True)
