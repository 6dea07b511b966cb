# ruff: noqa: E501 - a node of ONNX text stays on its line
"""The whole of prepare: skl2onnx pipelines, layers, limits, and time that grows with the nodes only."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import (
    Prepared,
    class_labels,
    find_logits,
    prepare,
    replace_weights,
    to_ir,
    to_proto,
    weights,
)

onnxruntime = pytest.importorskip("onnxruntime")
skl2onnx = pytest.importorskip("skl2onnx")

from sklearn import linear_model, multiclass, neural_network, pipeline, preprocessing  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
SCORES = X @ RNG.normal(size=(4, 3))
CLASSES = SCORES.argmax(axis=1)
TARGETS = {
    "binary": (CLASSES > 0).astype(np.int64),
    "multi": CLASSES + 3,
    "text": np.array(["né", "a", "b"])[CLASSES],
    "two texts": np.array(["no", "yes"])[(CLASSES > 0).astype(int)],
    "number": SCORES[:, 0],
    "numbers": SCORES[:, :2],
}
OPSETS = [{"": 18, "ai.onnx.ml": 3}, {"": 21, "ai.onnx.ml": 3}, {"": 12, "ai.onnx.ml": 1}]


def run(model, **feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        if isinstance(one, list):  # what ZipMap gives
            assert [list(row) for row in one] == [list(row) for row in other]
            one, other = (np.array([list(row.values()) for row in rows]) for rows in (one, other))
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if one.dtype.kind == "f":
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(other, one)


def convert(model, dtype, opset, zipmap):
    options = {"zipmap": zipmap} if hasattr(model, "classes_") else None
    return skl2onnx.to_onnx(model, X[:1].astype(dtype), target_opset=opset, options=options)


def perceptron(kind):
    return getattr(neural_network, f"MLP{kind}")(hidden_layer_sizes=(3,), random_state=0, max_iter=2)


CLASSIFIERS = {
    "logistic": lambda: linear_model.LogisticRegression(),
    "liblinear": lambda: linear_model.LogisticRegression(solver="liblinear"),
    "sgd log": lambda: linear_model.SGDClassifier(loss="log_loss", random_state=0),
    "sgd hinge": lambda: linear_model.SGDClassifier(loss="hinge", random_state=0),
    "ridge": lambda: linear_model.RidgeClassifier(),
    "mlp": lambda: perceptron("Classifier"),
}
REGRESSORS = {
    "linear": lambda: linear_model.LinearRegression(),
    "ridge": lambda: linear_model.Ridge(),
    "mlp": lambda: perceptron("Regressor"),
}
SCALERS = {
    "none": lambda: preprocessing.FunctionTransformer(),
    "standard": lambda: preprocessing.StandardScaler(),
    "minmax": lambda: preprocessing.MinMaxScaler(),
    "l1": lambda: preprocessing.Normalizer("l1"),
    "l2": lambda: preprocessing.Normalizer("l2"),
    "standard, l2": lambda: pipeline.make_pipeline(
        preprocessing.StandardScaler(), preprocessing.Normalizer()
    ),
    "robust, maxabs": lambda: pipeline.make_pipeline(
        preprocessing.RobustScaler(), preprocessing.MaxAbsScaler()
    ),
}


def check(model, dtype, opset, zipmap=False):
    model_onnx = convert(model, dtype, opset, zipmap)
    prepared = prepare(model_onnx, max_opset=21, max_ir=10)
    proto = to_proto(prepared)
    onnx.checker.check_model(proto, full_check=True)
    x = X.astype(dtype)
    assert_same(run(model_onnx, X=x), run(proto, X=x))
    assert [i.name for i in proto.graph.input] == [i.name for i in model_onnx.graph.input]
    assert [o.name for o in proto.graph.output] == [o.name for o in model_onnx.graph.output]
    assert [o.type for o in proto.graph.output] == [o.type for o in model_onnx.graph.output]
    found = weights(model_onnx)
    assert list(weights(proto)) == list(found)
    changed = {n: (2 * a).astype(a.dtype) for n, a in found.items()}
    assert_same(run(replace_weights(model_onnx, changed), X=x), run(replace_weights(proto, changed), X=x))
    return model_onnx, prepared, found


@pytest.mark.filterwarnings("ignore")  # scikit-learn's about convergence, skl2onnx's about its own
@pytest.mark.parametrize("target", ["binary", "multi", "text", "two texts"])
@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("zipmap", [True, False])
def test_classifiers(name, target, zipmap):
    if name == "liblinear" and target in ("multi", "text"):
        pytest.skip("binary only")
    model = pipeline.make_pipeline(preprocessing.StandardScaler(), CLASSIFIERS[name]()).fit(
        X, TARGETS[target]
    )
    _, prepared, found = check(model, np.float32, OPSETS[0], zipmap)
    layers = 2 if name == "mlp" else 1
    assert len(found) == 2 * layers
    assert class_labels(prepared).tolist() == model.classes_.tolist()
    logits = find_logits(prepared, prepared.graph.outputs[1].name)
    if name in ("sgd hinge", "ridge"):
        assert logits is None
    else:
        binary = len(model.classes_) == 2
        one_against_rest = name == "sgd log"
        assert logits.kind == ("sigmoid" if binary or one_against_rest else "softmax")
        assert logits.columns == (1 if binary else 3)
        assert logits.normalized is (one_against_rest and not binary)


@pytest.mark.parametrize("zipmap", [True, False])
def test_one_against_rest(zipmap):
    model = multiclass.OneVsRestClassifier(linear_model.LogisticRegression()).fit(X, TARGETS["text"])
    _, prepared, found = check(model, np.float32, OPSETS[0], zipmap)
    assert [a.shape for a in found.values()] == [(1, 4), (1,)] * 3
    assert class_labels(prepared).tolist() == model.classes_.tolist()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("name", ["logistic", "sgd log", "mlp"])
@pytest.mark.parametrize(
    ("dtype", "opset"), [(np.float32, OPSETS[0]), (np.float64, OPSETS[1])], ids=["32", "64"]
)
def test_scalers(scaler, name, opset, dtype):
    model = pipeline.make_pipeline(SCALERS[scaler](), CLASSIFIERS[name]()).fit(X, TARGETS["multi"])
    _, _, found = check(model, dtype, opset)
    # No constant of a scaler is among them, however it is written.
    assert len(found) == (4 if name == "mlp" else 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["number", "numbers"])
@pytest.mark.parametrize("name", REGRESSORS)
@pytest.mark.parametrize("opset", OPSETS, ids=["18", "21", "12"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_regressors(name, target, opset, dtype):
    model = pipeline.make_pipeline(preprocessing.StandardScaler(), REGRESSORS[name]()).fit(X, TARGETS[target])
    _, _, found = check(model, dtype, opset)
    shapes = {a.size for a in found.values()}
    outputs = 1 if target == "number" else 2
    assert shapes == ({12, 3, 3 * outputs, outputs} if name == "mlp" else {4 * outputs, outputs})


# -- layers ----------------------------------------------------------------------------------


def parse(body, opset=18, ir_version=8, extra=""):
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}{extra}]> {body}')


def test_normalization_and_dropout():
    model = parse(
        """g (float[N, 2] x) => (float[N, 2] y) <float[2] s = {1, 2}, float[2] b = {3, 4}, float[2] m = {5, 6}, float[2] v = {7, 8}> {
        a = BatchNormalization(x, s, b, m, v)  d = Dropout(a)  y = LayerNormalization(d, m, v)
        }"""
    )
    prepared = prepare(model)
    x = X[:, :2]
    assert_same(run(model, x=x), run(to_proto(prepared), x=x))
    assert [len([v for v in n.outputs if v.name]) for n in prepared.graph] == [1, 2, 3]
    # m and v are read twice: as statistics by the one, as scale and bias by the other.
    assert list(weights(model)) == ["s", "b", "m", "v"]
    again = prepare(to_proto(prepared))
    assert [[v.name for v in n.outputs] for n in again.graph] == [
        [v.name for v in n.outputs] for n in prepared.graph
    ]


def test_initializers_that_are_inputs():
    model = parse(
        "g (float[N, 2] x, float[2] w) => (float[N, 2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }",
        ir_version=3,
    )
    prepared = prepare(model)
    assert [v.name for v in prepared.graph.inputs] == ["x"]
    assert prepared.ir_version >= 4
    assert_same(run(model, x=X[:, :2]), run(to_proto(prepared), x=X[:, :2]))


def test_shapes_are_inferred():
    prepared = prepare(
        parse(
            "g (float[N, 2] x) => (float[N, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> { m = MatMul(x, w)  y = Relu(m) }"
        )
    )
    assert str(prepared.graph.node(0).outputs[0].shape) == "[N,3]"
    assert prepared.graph.node(0).outputs[0].dtype == ir.DataType.FLOAT


def test_unordered_nodes():
    model = ir.from_proto(parse("g (float[N] x) => (float[N] y) { m = Neg(x)  y = Relu(m) }"))
    first = model.graph.node(0)
    model.graph.remove(first)
    model.graph.append(first)
    prepared = to_proto(prepare(model))
    assert [n.op_type for n in prepared.graph.node] == ["Neg", "Relu"]
    onnx.checker.check_model(prepared)


def test_cycle():
    model = ir.from_proto(parse("g (float[N] x) => (float[N] y) { m = Neg(x)  y = Relu(m) }"))
    model.graph.node(0).replace_input_with(0, model.graph.node(1).outputs[0])
    with pytest.raises(InvalidModelError, match="order"):
        prepare(model)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"opset": 6}, "opset=6"), ({"opset": 999}, "goes up to"), ({"opset": "18"}, "an integer"), ({"opset": True}, "an integer"),
        ({"opset": 18, "max_opset": 17}, "above max_opset=17"), ({"max_opset": 3}, "max_opset=3"), ({"max_ir": 2}, "max_ir=2"),
        ({"max_ir": 9.5}, "max_ir=9.5"),
    ],
)  # fmt: skip
def test_bad_limits(limits, message):
    with pytest.raises(InvalidModelError, match=message):
        prepare(parse("g (float[N] x) => (float[N] y) { y = Abs(x) }"), **limits)


def test_a_model_without_the_default_domain():
    node = onnx.helper.make_node(
        "LinearRegressor", ["x"], ["y"], domain="ai.onnx.ml", coefficients=[1.0, 2.0], intercepts=[0.5]
    )
    infos = [onnx.helper.make_tensor_value_info(n, 1, [None, d]) for n, d in (("x", 2), ("y", 1))]
    graph = onnx.helper.make_graph([node], "g", infos[:1], infos[1:])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("ai.onnx.ml", 1)], ir_version=8
    )
    assert prepare(model).opset_imports == {"": 18}
    assert prepare(model, opset=20).opset_imports == {"": 20}
    assert prepare(model, max_opset=15).opset_imports == {"": 15}


def test_the_model_is_left_alone():
    model = parse(
        "g (float[N, 2] x) => (float[N, 2] y) { i = Identity(x)  w = Constant <value = float[2] {1, 2}> ()  y = Mul(i, w) }",
        11,
    )
    before = model.SerializeToString()
    ir_model = to_ir(model)
    for source in (model, ir_model):
        prepare(source, opset=18)
    assert model.SerializeToString() == before
    assert [n.op_type for n in ir_model.graph] == ["Identity", "Constant", "Mul"]


def chain(n):
    """Blocks of MatMul, Add, Relu, weights as constants, behind identities, listed as inputs."""
    nodes, constants = [], []
    value = "x"
    for i in range(n // 4):
        array = np.eye(4, dtype=np.float32)
        constants.append(onnx.numpy_helper.from_array(array, f"w{i}"))
        bias = onnx.numpy_helper.from_array(np.zeros(4, dtype=np.float32))
        nodes += [
            onnx.helper.make_node("Constant", [], [f"b{i}"], value=bias),
            onnx.helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"]),
            onnx.helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]),
            onnx.helper.make_node("Relu", [f"a{i}"], [f"r{i}"]),
        ]
        value = f"r{i}"
    infos = [onnx.helper.make_tensor_value_info(n, 1, ["N", 4]) for n in ("x", value)]
    graph = onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:], constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=8)


def test_large_models_take_time_in_proportion():
    """Counted in calls of one function, not in seconds: no walk over all nodes is made for each node."""
    counts = []
    for n in (400, 1600):
        calls = 0
        original = ir.Node.inputs.fget

        def counted(self, original=original):
            nonlocal calls
            calls += 1
            return original(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ir.Node, "inputs", property(counted, ir.Node.inputs.fset))
            prepared = prepare(chain(n), opset=18)
        counts.append(calls)
        assert len(weights(prepared)) == n // 2
    assert counts[1] < 5 * counts[0]


def test_a_declared_output_shape_that_the_graph_contradicts_is_corrected():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 3] x) => (float[N, 4] y, float[M, 2] z) <float[3, 2] w = {1, 2, 3, 4, 5, 6}> {
            y = MatMul (x, w)  z = Relu (y) }"""
    )
    y, z = prepare(model).graph.outputs
    assert list(y.shape)[1] == 2
    assert str(z.shape[0]) == "M"  # nothing contradicts it


def test_shapes_declared_in_between_may_be_wrong():
    """Exporters leave old ones behind; onnxruntime corrects them, too."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 2] x) => (float[N, 1] y) <float[2, 3] w, float[3, 1] v>
        { a = MatMul(x, w) b = Tanh(a) y = MatMul(b, v) }""")
    for name, shape in (("a", [7, 9]), ("b", [7])):
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    for name, shape in (("w", (2, 3)), ("v", (3, 1))):
        array = np.ones(shape, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    values = {v.name: v for node in prepare(model).graph for v in node.outputs}
    assert [str(d) for d in values["a"].shape] == [str(d) for d in values["b"].shape] == ["N", "3"]


@pytest.mark.parametrize(
    ("opset", "target", "last"),
    [
        (11, 18, "c = Unsqueeze <axes = [1]> (b) y = ReduceMean <axes = [0]> (c)"),
        (17, 18, "c = Unsqueeze (b, axes) y = ReduceMean <axes = [0]> (c)"),
        (18, 17, "c = Unsqueeze (b, axes) y = ReduceMean (c, axes)"),
    ],
)
def test_every_integer_has_a_name_that_nobody_makes_again(opset, target, last):
    """Those that the conversion adds as well: onnxruntime's fusions call theirs by fixed names."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[N, 4] x) => (float y) <float[4] w = {{1, 2, 3, 4}}, int64[1] axes = {{1}},
          int64[2] gemm_output_shape = {{-1, 4}}> {{
            a = Mul(x, w)
            b = Reshape(a, gemm_output_shape)
            {last}
        }}"""
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    made = prepare(model, opset=target, max_opset=target)
    assert made.opset_imports[""] == target
    assert "w" in made.graph.initializers
    integers = [n for n, v in made.graph.initializers.items() if v.dtype != ir.DataType.FLOAT]
    assert integers
    assert all(name.endswith("_constant") for name in integers), integers
    assert list(weights(model)) == ["w"]
    assert list(prepare(to_proto(made)).graph.initializers) == list(made.graph.initializers)


# -- prepared once -----------------------------------------------------------------------------------


@pytest.mark.parametrize("versions", [{}, {"opset": 18}, {"max_opset": 16, "max_ir": 8}, {"max_ir": 7}])
def test_copies_of_a_prepared_model(versions: dict[str, int]) -> None:
    """In any versions they compute what the user's model does, and belong to whoever asked."""
    text = """<ir_version: 9, opset_import: ["": 17]>
        g (float[N, 4] x, int64[N] k) => (float[N, 2] y, int64[N] q) <float[2, 2] w = {1, 2, 3, 4}, int64 d = {3}> {
            a, b = Split<axis = 1>(x) c = Add(a, b) m = ReduceMean<axes = [1]>(c) e = Sub(c, m)
            y = MatMul(e, w) q = Div(k, d) }"""
    model = onnx.parser.parse_model(text)
    prepared = Prepared.of(model)
    assert Prepared.of(prepared) is prepared
    assert prepared.proto == model
    made = [prepared.take(**versions) for _ in range(2)]
    made[0].graph.initializers["w"].const_value = None
    for node in list(made[0].graph):
        node.name = "spoilt"
    copy = made[1]
    assert copy.opset_imports[""] == {**{"opset": 17}, **versions}.get("opset", 17) or "max_opset" in versions
    assert copy.opset_imports[""] <= versions.get("max_opset", 99)
    assert copy.ir_version <= versions.get("max_ir", 99)
    assert not any(node.name == "spoilt" for node in (*copy.graph, *prepared.model.graph))
    feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 4), "k": np.array([7, -7])}
    wanted = ReferenceEvaluator(model).run(None, feeds)
    for one in (copy, prepared.take(**versions)):
        for found, array in zip(ReferenceEvaluator(to_proto(one)).run(None, feeds), wanted, strict=True):
            np.testing.assert_allclose(found, array, rtol=1e-6)


def test_a_prepared_model_is_guarded_once() -> None:
    """A second preparation would put a second check before every integer division."""
    text = """<ir_version: 9, opset_import: ["": 18]>
        g (float[N, 2] x, int64[N] k) => (float[N, 2] y, int64[N] q) <float[2, 2] w = {1, 2, 3, 4}> {
            y = MatMul(x, w) q = Div(k, k) }"""
    prepared = Prepared.of(onnx.parser.parse_model(text))
    assert len(prepared.take(max_ir=8).graph) == len(prepared.model.graph)
    assert [n.op_type for n in prepared.take().graph] == [n.op_type for n in prepared.model.graph]
