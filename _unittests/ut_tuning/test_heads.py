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


def scores(body, weights=None, **more):
    """A model with a head of two outputs behind a hidden layer, and what the head's numbers go through."""
    return model(
        HIDDEN + "z = Gemm(f, w, b) " + body, {"u": (4, 6), "w": (6, 2), "b": (2,), **(weights or {})}, **more
    )


def test_indices_that_are_no_label():
    body = "p = Softmax(z) k = Constant<value = int64[1] {%s}>() v, i = TopK(p, k)"
    outputs = "float[N, K] p, int64[N, M] i"
    with pytest.warns(UserWarning, match=r"Outputs \['i'\] came from the layer"):
        made = replace_head(scores(body % 2, outputs=outputs), 3)
    assert [o.name for o in made.graph.output] == ["p"]
    made = replace_head(scores(body % 1, outputs=outputs), 3)  # the best score alone is a label
    onnx.checker.check_model(made, full_check=True)
    p, i = run(made, RNG.normal(size=(9, 4)).astype(np.float32))
    assert i.tolist() == p.argmax(axis=1)[:, None].tolist()
    counted = scores("p = Softmax(z) n = Shape(p) c = NonZero(p)", outputs="float[N, K] p, int64[R, M] c")
    with pytest.warns(UserWarning, match=r"\['c'\]"):
        replace_head(counted, 3)


def test_scales_and_shapes_behind_a_head_stay():
    body = "h = Constant<value = float {0.5}>() a = Mul(h, z) s = Constant<value = int64[3] {-1, 1, 2}>() "
    body += "r = Reshape(a, s) t = Transpose<perm=[0, 2, 1]>(r) p = Softmax<axis=1>(t)"
    made = replace_head(scores(body, outputs="float[N, K, 1] p"), 3)
    onnx.checker.check_model(made, full_check=True)
    held, x = onnxcustom.weights(made), RNG.normal(size=(5, 4)).astype(np.float32)
    z = np.tanh(x @ held["u"]) @ held["head_weight"]
    np.testing.assert_allclose(run(made, x)[0], softmax(0.5 * z, axis=1)[:, :, None], rtol=1e-5)


def test_rows_are_not_mixed_with_outputs():
    body = "y = MatMul(x, w) z = Add(y, b) s = Constant<value = int64[1] {-1}>() p = Reshape(z, s)"
    given = model(body, {"w": (4, 1), "b": (1,)}, "float[N, T, 4] x", "float[M] p")
    with pytest.warns(UserWarning, match=r"\(Reshape\) does not go with 3 outputs in place of 1"):
        made = replace_head(given, 3)
    assert run(made, np.ones((2, 5, 4), np.float32))[0].shape == (2, 5, 3)
    assert run(replace_head(given, 1), np.ones((2, 5, 4), np.float32))[0].shape == (10,)


@pytest.mark.parametrize(
    ("body", "weights", "shape", "wanted"),
    [
        ("z = MatMul(x, w) p = Softmax(z)", {"w": (4, 2)}, (3, 7, 4), (3, 7, 5)),
        (
            "z = Conv(x, w, b) p = Softmax<axis=1>(z)",
            {"w": (2, 4, 1, 1), "b": (2,)},
            (3, 4, 6, 7),
            (3, 5, 6, 7),
        ),
        ("z = Conv(x, w) p = Sigmoid(z)", {"w": (2, 4, 1)}, (3, 4, 6), (3, 5, 6)),
        (
            "z = ConvTranspose<strides=[2, 2]>(x, w, b) p = Sigmoid(z)",
            {"w": (4, 1, 2, 2), "b": (1,)},
            (3, 4, 6, 7),
            (3, 5, 12, 14),
        ),
        (
            "v = Transpose<perm=[1, 0]>(w) y = MatMul(x, v) z = Add(b, y) p = Softmax(z)",
            {"w": (2, 4), "b": (2,)},
            (3, 4),
            (3, 5),
        ),
        (
            "v = Transpose<perm=[1, 0]>(w) z = Gemm<transB=1>(x, w, b) p = Softmax(z)",
            {"w": (2, 4), "b": (2,)},
            (3, 4),
            (3, 5),
        ),
        (
            "y = Conv(x, w) t = Transpose<perm=[0, 2, 3, 1]>(y) p = Softmax(t)",
            {"w": (2, 4, 1, 1)},
            (3, 4, 6, 7),
            (3, 6, 7, 5),
        ),
        ("y = Conv(x, w) g = GlobalAveragePool(y) p = Flatten(g)", {"w": (2, 4, 3, 3)}, (3, 4, 6, 7), (3, 5)),
        (
            "y = Conv(x, w) s = Constant<value = int64[4] {0, 2, 8, 10}>() "
            'z = Resize<mode="nearest">(y, , , s) p = Sigmoid(z)',
            {"w": (2, 4, 3, 3)},
            (3, 4, 6, 7),
            (3, 5, 8, 10),
        ),
    ],
)
def test_heads_of_all_shapes(body, weights, shape, wanted):
    if "Resize" in body:
        body = body.replace("{0,", "{3,")
    sizes = ", ".join(map(str, shape))
    made = replace_head(
        model(body, weights, f"float[{sizes}] x", f"float[{', '.join('ABCD'[: len(wanted)])}] p"), 5
    )
    onnx.checker.check_model(made, full_check=True)
    x = RNG.normal(size=shape).astype(np.float32)
    found = run(made, x)[0]
    assert found.shape == wanted
    if "Softmax" in body:
        np.testing.assert_allclose(found.sum(axis=wanted.index(5)), 1, rtol=1e-5)
    pytest.importorskip("onnxruntime")
    loss = "squared_error"
    step = onnxcustom.TrainingStep(made, loss=loss, optimizer="adam", learning_rate=0.01, weights="head_*")
    target = np.full(wanted, 0.3, np.float32)
    losses = [step.run(x, target) for _ in range(10)]
    assert losses == sorted(losses, reverse=True)


def test_the_output_of_a_layer_by_name():
    body = HIDDEN + "y = Gemm(f, v) z = Gemm(f, w, b) p = Softmax(z)"
    given = model(
        body, {"u": (4, 6), "v": (6, 3), "w": (6, 2), "b": (2,)}, outputs="float[N, L] y, float[N, K] p"
    )
    made = replace_head(given, 4, at="z")
    y, p = run(made, RNG.normal(size=(5, 4)).astype(np.float32))
    assert (y.shape, p.shape) == ((5, 3), (5, 4))
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)


def test_names_in_metadata():
    given = scores("p = Softmax(z)")
    texts = {
        "names": "{0: 'cat', 1: 'dog'}",
        "id2label": '{"0": "cat", "1": "dog"}',
        "label2id": '{"cat": 0, "dog": 1}',
        "classes": '["cat", "dog"]',
        "class_list": "cat,dog",
        "labels": "cat\ndog",
        "character": "c",
        "model_name": "cat,dog,bird,fish",
        "feature_names": "a,b",
    }
    onnx.helper.set_model_props(given, texts)
    made = replace_head(given, ["a", "b", "c"])
    found = {p.key: p.value for p in made.metadata_props}
    assert found == {
        **texts,
        "names": "{0: 'a', 1: 'b', 2: 'c'}",
        "id2label": '{"0": "a", "1": "b", "2": "c"}',
        "label2id": '{"a": 0, "b": 1, "c": 2}',
        "classes": '["a", "b", "c"]',
        "class_list": "a,b,c",
        "labels": "a\nb\nc",
    }
    with pytest.warns(UserWarning, match="Metadata .* name the classes"):
        made = replace_head(given, 3)
    assert {p.key for p in made.metadata_props} == {"character", "model_name", "feature_names"}


def test_a_map_of_labels_is_made_anew():
    pytest.importorskip("onnxruntime")
    given = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 1]>
        m (float[N, 4] x) => (int64[N] label, seq(map(string, float)) p)
        <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
            z = MatMul(x, w) q = Softmax(z) label = ArgMax<axis = 1, keepdims = 0>(q)
            p = ai.onnx.ml.ZipMap<classlabels_strings = ["no", "yes"]>(q)
        }""")
    from onnxcustom.runtime import create_session

    made = replace_head(given, ["a", "b", "c"])
    x = RNG.normal(size=(5, 4)).astype(np.float32)
    label, maps = create_session(made).run(None, {"x": x})
    assert [max(m, key=m.get) for m in maps] == label.tolist()
    assert set(maps[0]) == {"a", "b", "c"}
    assert class_labels(to_ir(made)).tolist() == ["a", "b", "c"]


def test_heads_of_integers_are_refused_with_the_remedy():
    body = "q, s, n = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, n) p = Cast<to = 1>(i)"
    given = model(body, {}, "float[N, 4] x")
    given.graph.initializer.append(numpy_helper.from_array(np.ones((4, 2), np.int8), "w"))
    with pytest.raises(InvalidModelError, match=r"\(MatMulInteger\).*tuning\.dequantize"):
        replace_head(given, 3)
