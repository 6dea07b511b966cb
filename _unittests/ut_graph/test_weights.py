# ruff: noqa: E501 - a node of ONNX text stays on its line
"""The definition of "Weight", names that stay the same, and tensors put back where they were."""

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.exceptions import InvalidDataError, InvalidModelError, UnknownNameError
from onnxcustom.graph import prepare, rename_weights, replace_weights, save, to_ir, to_proto, weights

onnxruntime = pytest.importorskip("onnxruntime")


def parse(body, opset=18, extra=""):
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}{extra}]> {body}')


def run(model, **feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def found(body, **options):
    """Names of the weights, the same for the model, its prepared form and both once more."""
    model = parse(body, **options)
    names = list(weights(model))
    prepared = to_proto(prepare(model))
    onnx.checker.check_model(prepared)
    inputs = {i.name for i in prepared.graph.input}
    initializers = {i.name: onnx.numpy_helper.to_array(i) for i in prepared.graph.initializer}
    assert set(names) <= set(initializers)
    assert not set(names) & inputs
    for name, array in weights(model).items():
        np.testing.assert_array_equal(initializers[name], array)
    assert list(weights(prepared)) == names
    assert list(weights(to_proto(prepare(prepared)))) == names
    trained = replace_weights(model, {n: a + a.dtype.type(1) for n, a in weights(model).items()})
    assert list(weights(trained)) == names
    for name, array in weights(trained).items():
        np.testing.assert_array_equal(array, weights(model)[name] + array.dtype.type(1))
    return names


W2 = "float[2] w = {1, 2}"
W22 = "float[2, 2] w = {1, 2, 3, 4}"
ONE = "float[1] w = {3}"
X = "g (float[N, 2] x) => (float[N, 2] y)"

COUNT = {
    "initializer": f"{X} <{W2}> {{ y = Mul(x, w) }}",
    "first operand": f"{X} <{W2}> {{ y = Div(w, x) }}",
    "constant": f"{X} {{ w = Constant <value = float[2] {{1, 2}}> ()  y = Mul(x, w) }}",
    "constant floats": f"{X} {{ w = Constant <value_floats = [1.0, 2.0]> ()  y = Mul(x, w) }}",
    "constant of shape": f"{X} <int64[1] s = {{2}}> {{ w = ConstantOfShape <value = float[1] {{0.5}}> (s)  y = Mul(x, w) }}",
    "behind identity": f"{X} <{W2}> {{ a = Identity(w)  b = Identity(a)  y = Mul(x, b) }}",
    "behind transpose": f"{X} <{W22}> {{ a = Transpose <perm = [1, 0]> (w)  y = MatMul(x, a) }}",
    "behind cast": f"{X} <double[2] w = {{1, 2}}> {{ a = Cast <to = 1> (w)  y = Mul(x, a) }}",
    "behind quantization": f"{X} <{W22}, float s = {{0.1}}, int8 z = {{0}}>"
    "{ q = QuantizeLinear(w, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(x, d) }",
    "input with default": f"g (float[N, 2] x, float[2] w) => (float[N, 2] y) <{W2}> {{ y = Mul(x, w) }}",
    "embedding": "g (int64[N] x) => (float[N, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}> { y = Gather(w, x) }",
    "label only": f"g (float[N, 2] x) => (int64[N] y) <{W22}> {{ a = MatMul(x, w)  y = ArgMax <axis = 1, keepdims = 0> (a) }}",
    "through unknown": f"{X} <{W22}> {{ a = MatMul(x, w)  y = my.domain.Thing(a) }}",
    "one in matmul": "g (float[N, 1] x) => (float[N, 1] y) <float[1, 1] w = {3}> { y = MatMul(x, w) }",
    "one in gemm": f"g (float[N, 1] x, float[1, 1] v) => (float[N, 1] y) <{ONE}> {{ y = Gemm(x, v, w) }}",
    "one in conv": "g (float[N, 1, 4] x) => (float[N, 1, 4] y) <float[1, 1, 1] w = {3}> { y = Conv(x, w) }",
    "one in norm": f"g (float[N, 1] x, float[1] b) => (float[N, 1] y) <{ONE}> {{ y = LayerNormalization(x, w, b) }}",
    "one as bias": f"g (float[N, 2] x, float[2, 1] v) => (float[N, 1] y) <{ONE}> {{ a = MatMul(x, v)  y = Add(a, w) }}",
    "one behind identity": f"g (float[N, 2] x, float[2, 1] v) => (float[N, 1] y) <{ONE}> {{ i = Identity(w)  a = MatMul(x, v)  y = Add(a, i) }}",
    "zeros": f"{X} <float[2] w = {{0, 0}}> {{ y = Add(x, w) }}",
    "float16": "g (float16[N, 2] x) => (float16[N, 2] y) <float16[2] w = {1, 2}> { y = Mul(x, w) }",
    "bfloat16": "g (bfloat16[N, 2] x) => (bfloat16[N, 2] y) <bfloat16[2] w = {1, 2}> { y = Mul(x, w) }",
    "float64": "g (double[N, 2] x) => (double[N, 2] y) <double[2] w = {1, 2}> { y = Mul(x, w) }",
    "exponent's source": f"{X} <{W22}> {{ a = MatMul(x, w)  y = Pow(x, a) }}",
}  # fmt: skip


@pytest.mark.parametrize("name", COUNT)
def test_counts(name):
    extra = ', "my.domain": 1' if "my.domain" in COUNT[name] else ""
    if name == "bfloat16":
        model = parse(COUNT[name])
        assert list(weights(model)) == ["w"]
        assert weights(model)["w"].dtype == ml_dtypes.bfloat16
        new = np.array([3, 4], dtype=ml_dtypes.bfloat16)
        np.testing.assert_array_equal(weights(replace_weights(model, {"w": new}))["w"], new)
        return
    assert found(COUNT[name], extra=extra) == ["w"]


NEVER = {
    "integers": "g (int64[N, 2] x) => (int64[N, 2] y) <int64[2] w = {1, 2}> { y = Add(x, w) }",
    "unread": f"{X} <{W2}> {{ y = Neg(x) }}",
    "dead": f"{X} <{W2}> {{ y = Neg(x)  z = Mul(x, w) }}",
    "empty": "g (float[0] x) => (float[0] y) <float[0] w = {}> { y = Mul(x, w) }",
    "one in mul": f"{X} <{ONE}> {{ y = Mul(x, w) }}",
    "one in add": f"{X} <{ONE}> {{ y = Add(x, w) }}",
    "one in prelu": f"{X} <{ONE}> {{ y = PRelu(x, w) }}",
    "scalar": f"{X} <float w = {{3}}> {{ y = Div(x, w) }}",
    "exponent": f"{X} <{W2}> {{ y = Pow(x, w) }}",
    "bounds": f"{X} <float w = {{3}}> {{ y = Clip(x, w) }}",
    "reshaped bound": f"{X} <float[1, 1] w = {{3}}, int64[0] s = {{}}> {{ a = Reshape(w, s)  y = Clip(x, a) }}",
    "resize scales": "g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] w = {1, 1, 2, 2}> { y = Resize(x, , w) }",
    "resize roi": "g (float[2, 2] x) => (float[2, 2] y) <float[4] r = {0, 0, 1, 1}, float[2] w = {1, 1}> { y = Resize(x, r, w) }",
    "upsample": "g (float[2, 2] x) => (float[2, 2] y) <float[2] w = {1, 1}> { y = Resize(x, w) }",
    "statistics": f"g (float[N, 2] x, float[2] s) => (float[N, 2] y) <{W2}> {{ y = BatchNormalization(x, s, s, w, w) }}",
    "identity of statistics": f"g (float[N, 2] x, float[2] s) => (float[N, 2] y) <{W2}> {{ a = Identity(w)  y = BatchNormalization(x, s, s, a, a) }}",
    "comparison": f"g (float[N, 2] x) => (bool[N, 2] y) <{W2}> {{ y = Greater(x, w) }}",
    "quantization scale": "g (float[2, 2] x) => (uint8[2, 2] y) <float[2] w = {1, 2}, uint8[2] z = {0, 0}> { y = QuantizeLinear(x, w, z) }",
    "dequantization scale": "g (uint8[2, 2] x) => (float[2, 2] y) <float[2] w = {1, 2}, uint8[2] z = {0, 0}> { y = DequantizeLinear(x, w, z) }",
    "feeds a shape": f"""{X} <{W2}> {{ s = Shape(x)  f = Cast <to = 1> (s)  m = Mul(f, w)  r = Floor(m)
        i = Cast <to = 7> (r)  k = Constant <value = int64[2] {{-1, 2}}> ()  l = Add(k, i)  o = Sub(l, i)  y = Reshape(x, o) }}""",
    "feeds sizes": """g (float[1, 1, 2, 2] x) => (float[A, B, C, D] y) <float[4] w = {1, 1, 2, 2}> {
        s = Shape(x)  f = Cast <to = 1> (s)  m = Mul(f, w)  i = Cast <to = 7> (m)  y = Resize(x, , , i) }""",
    "feeds an index": f"{X} <{W2}> {{ i = Cast <to = 7> (w)  y = Gather(x, i) }}",
    "feeds a condition": f"{X} <{W2}> {{ b = Cast <to = 9> (w)  y = Where(b, x, x) }}",
    "unknown operator": f"{X} <{W2}> {{ y = my.domain.Thing(x, w) }}",
    "mask": f"{X} <float[2, 2] w = {{0, -inf, 0, 0}}> {{ y = Add(x, w) }}",
    "strings": "g (int64[N] x) => (string[N] y) <string[2] w = {\"a\", \"b\"}> { y = Gather(w, x) }",
}  # fmt: skip


@pytest.mark.parametrize("name", NEVER)
def test_never(name):
    extra = ', "my.domain": 1' if "my.domain" in NEVER[name] else ""
    body, opset = NEVER[name], 10 if name == "upsample" else 18
    if "-inf" in body:
        model = parse(body.replace("-inf", "-9"), extra=extra)
        mask = np.float32([[0, -np.inf], [0, 0]])
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(mask, "w"))
        assert weights(model) == {}
        return
    assert found(body, extra=extra, opset=opset) == []


SCALERS = {
    "sub div": ("s = Sub(x, a)  h = Div(s, b)", ["w"]),
    "sub mul": ("s = Sub(x, a)  h = Mul(s, b)", ["w"]),
    "mul add": ("s = Mul(b, x)  h = Add(a, s)", ["w"]),
    "with cast": ("c = Cast <to = 1> (x)  s = Sub(c, a)  i = Identity(s)  h = Div(i, b)", ["w"]),
    "only one": ("h = Sub(x, a)", ["a", "w"]),
    "two additions": ("s = Add(x, a)  h = Add(s, b)", ["a", "b", "w"]),
    "not at the input": ("t = Tanh(x)  s = Sub(t, a)  h = Div(s, b)", ["a", "b", "w"]),
    "read twice": ("s = Sub(x, a)  d = Div(s, b)  h = Add(d, a)", ["a", "b", "w"]),
    "input read elsewhere": ("s = Sub(x, a)  d = Div(s, b)  h = Add(d, x)", ["a", "b", "w"]),
}


@pytest.mark.parametrize("name", SCALERS)
def test_written_out_scaler(name):
    body, expected = SCALERS[name]
    constants = "float[2] a = {1, 2}, float[1, 2] b = {3, 4}, float[2, 2] w = {1, 2, 3, 4}"
    assert found(f"{X} <{constants}> {{ {body}  y = MatMul(h, w) }}") == expected


def test_scaler_alone_is_a_model():
    assert found(
        f"{X} <float[2] a = {{1, 2}}, float[2] b = {{3, 4}}> {{ s = Mul(x, a)  y = Add(s, b) }}"
    ) == ["a", "b"]


def test_position_embedding_is_no_scaler():
    body = """g (float[3, 2] x) => (float[3, 2] y) <float[2] a = {1, 2}, float[3, 2] b = {3, 4, 5, 6, 7, 8}, float[2, 2] w = {1, 2, 3, 4}>
        { s = Mul(x, a)  h = Add(s, b)  y = MatMul(h, w) }"""
    assert found(body) == ["a", "b", "w"]


def test_batch_normalization():
    body = """g (float[N, 2] x) => (float[N, 2] y) <float[2] s = {1, 2}, float[2] b = {3, 4}, float[2] m = {5, 6}, float[2] v = {7, 8}>
        { y = BatchNormalization(x, s, b, m, v) }"""
    assert found(body) == ["s", "b"]


def test_order_is_that_of_reading():
    body = f"{X} <float[2, 2] c = {{1, 2, 3, 4}}, {W2}, float[2] a = {{5, 6}}> {{ i = MatMul(x, c)  j = Mul(i, a)  k = Add(j, w)  y = Mul(k, c) }}"
    assert found(body) == ["c", "a", "w"]


BRANCHES = """
g (float[N, 2] x, bool c) => (float[N, 2] y) <float[2] outer = {9, 8}, float[2] u = {1, 1}> {
    a = Mul(x, u)
    y = If (c) <
        then_branch = t () => (float[N, 2] p) <float[2] w = {1, 2}> { q = Mul(a, w)  p = Add(q, outer) },
        else_branch = e () => (float[N, 2] r) <float[2] w = {3, 4}> {
            k = Constant <value = float[2] {5, 6}> ()  s = Mul(a, w)  v = Add(s, k)  r = Mul(v, outer)
        }
    >
}
"""


def test_branches():
    assert found(BRANCHES) == ["u", "w", "outer", "w_1", "k"]
    prepared = to_proto(prepare(parse(BRANCHES)))
    x = np.float32([[1, 2]])
    for flag in (True, False):
        np.testing.assert_array_equal(
            run(prepared, x=x, c=np.array(flag))[0], run(parse(BRANCHES), x=x, c=np.array(flag))[0]
        )


def test_branches_are_written_back_in_place():
    model = parse(BRANCHES)
    new = {"w": np.float32([10, 20]), "w_1": np.float32([30, 40]), "k": np.float32([50, 60])}
    changed = replace_weights(model, new)
    assert [n.op_type for n in changed.graph.node] == ["Mul", "If"]
    assert {i.name for i in changed.graph.initializer} == {"outer", "u"}
    x = np.float32([[1, 2]])
    np.testing.assert_array_equal(run(changed, x=x, c=np.array(True))[0], x * [10, 20] + [9, 8])
    np.testing.assert_array_equal(run(changed, x=x, c=np.array(False))[0], (x * [30, 40] + [50, 60]) * [9, 8])


def test_constant_returned_by_a_branch():
    body = """g (float[N, 2] x, bool c) => (float[N, 2] y) {
        b = If (c) <then_branch = t () => (float[2] p) { p = Constant <value = float[2] {5, 6}> () },
                    else_branch = e () => (float[2] q) { k = Constant <value = float[2] {7, 8}> ()  q = Identity(k) }>
        y = Mul(x, b)
        }"""
    assert found(body) == ["p", "k"]


def control_flow(op_type, body_inputs, body_nodes, body_outputs, initializers=()):
    """A Loop or Scan over x with a weight in the body and one as initial state."""
    info = onnx.helper.make_tensor_value_info
    constants = [onnx.numpy_helper.from_array(np.float32([1, 2]), n) for n in initializers]
    body = onnx.helper.make_graph(body_nodes, "body", body_inputs, body_outputs, constants)
    state = onnx.numpy_helper.from_array(np.float32([0.5, 0.25]), "state")
    node = onnx.helper.make_node
    if op_type == "Scan":
        nodes = [node("Scan", ["state", "x"], ["last", "y"], body=body, num_scan_inputs=1)]
        extra = []
    else:
        nodes = [node("Loop", ["n", "", "state"], ["y"], body=body)]
        extra = [onnx.numpy_helper.from_array(np.int64(3), "n")]
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, [None, 2])], [info("y", 1, None)], [state, *extra]
    )
    opset = onnx.helper.make_opsetid("", 18)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)


def test_scan_and_loop():
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    scan = control_flow(
        "Scan", [info("s", 1, [2]), info("e", 1, [2])],
        [node("Mul", ["s", "w"], ["t"]), node("Add", ["t", "e"], ["o"]), node("Identity", ["o"], ["p"])],
        [info("o", 1, [2]), info("p", 1, [2])], ["w"],
    )  # fmt: skip
    loop = control_flow(
        "Loop", [info("i", 7, []), info("c", 9, []), info("s", 1, [2])],
        [node("Identity", ["c"], ["d"]), node("Mul", ["s", "w"], ["t"]), node("Add", ["t", "x"], ["o"]),
         node("ReduceSum", ["o", "axes"], ["r"], keepdims=0)],
        [info("d", 9, []), info("r", 1, [2])], ["w"],
    )  # fmt: skip
    loop.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([0]), "axes"))
    x = np.float32([[1, 2], [3, 4]])
    for model in (scan, loop):
        assert sorted(weights(model)) == ["state", "w"]
        prepared = to_proto(prepare(model))
        assert list(weights(prepared)) == list(weights(model))
        np.testing.assert_array_equal(run(prepared, x=x)[0], run(model, x=x)[0])
        changed = replace_weights(model, {"w": np.float32([0, 0])})
        assert [n.op_type for n in changed.graph.node] == [n.op_type for n in model.graph.node]
        np.testing.assert_array_equal(weights(changed)["w"], [0, 0])


def test_state_that_is_no_data():
    """An initial state that the body only compares is none."""
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    scan = control_flow(
        "Scan", [info("s", 1, [2]), info("e", 1, [2])],
        [node("Greater", ["s", "e"], ["b"]), node("Where", ["b", "e", "e"], ["p"]), node("Identity", ["e"], ["o"])],
        [info("o", 1, [2]), info("p", 1, [2])],
    )  # fmt: skip
    assert weights(scan) == {}


FUNCTION = """
<ir_version: 8, opset_import: ["": 18, "local": 1]>
g (float[N, 2] x) => (float[N, 2] y) <float[2] u = {1, 1}> { a = local.affine(x)  b = Mul(a, u)  y = local.affine(b) }
<domain: "local", opset_import: ["": 18]>
affine (v) => (r) { w = Constant <value = float[2] {2, 3}> ()  r = Mul(v, w) }
"""


def test_functions():
    model = onnx.parser.parse_model(FUNCTION)
    assert list(weights(model)) == ["w", "u"]
    prepared = to_proto(prepare(model))
    assert list(weights(prepared)) == ["w", "u"]
    x = np.float32([[1, 2]])
    np.testing.assert_array_equal(run(prepared, x=x)[0], run(model, x=x)[0])
    changed = replace_weights(model, {"w": np.float32([5, 7])})
    assert len(changed.functions) == 1
    np.testing.assert_array_equal(run(changed, x=x)[0], x * [25, 49])
    assert list(weights(rename_weights(model, {"w": "new"}))) == ["new", "u"]


@pytest.mark.parametrize("name", ["a/b:0", "é ü", "权重", "x y", "1", "-", "Wgrad", "w\n", "." * 200])
def test_any_name(name):
    model = parse(f"{X} <{W2}> {{ y = Mul(x, w) }}")
    model.graph.initializer[0].name = name
    model.graph.node[0].input[1] = name
    for source in (
        model,
        model.SerializeToString(),
        to_proto(prepare(model)),
        replace_weights(model, weights(model)),
    ):
        assert list(weights(source)) == [name]
    assert list(weights(rename_weights(model, {name: "w"}))) == ["w"]
    assert list(weights(rename_weights(parse(f"{X} <{W2}> {{ y = Mul(x, w) }}"), {"w": name}))) == [name]


def test_a_weight_that_is_an_output():
    """The output keeps its name, the weight behind it gets another."""
    body = f"g (float[N, 2] x) => (float[N, 2] y, float[2] w) <{W2}> {{ y = Mul(x, w) }}"
    model = parse(body)
    assert list(weights(model)) == ["w_value"]
    prepared = to_proto(prepare(model))
    assert [o.name for o in prepared.graph.output] == ["y", "w"]
    assert list(weights(prepared)) == ["w_value"]
    changed = replace_weights(model, {"w_value": np.float32([5, 6])})
    np.testing.assert_array_equal(run(changed, x=np.float32([[1, 1]]))[1], [5, 6])
    renamed = rename_weights(model, {"w_value": "z"})
    assert [o.name for o in renamed.graph.output] == ["y", "w"]
    assert list(weights(renamed)) == ["z"]


def test_weights_are_copies():
    model = parse(f"{X} <{W2}> {{ y = Mul(x, w) }}")
    before = model.SerializeToString()
    for source in (model, to_ir(model)):
        array = weights(source)["w"]
        array[:] = 0
        np.testing.assert_array_equal(weights(source)["w"], [1, 2])
    new = np.float32([5, 6])
    changed = replace_weights(model, {"w": new})
    new[:] = 0
    np.testing.assert_array_equal(weights(changed)["w"], [5, 6])
    assert model.SerializeToString() == before


def test_everything_else_survives(tmp_path):
    model = parse(f"{X} <{W2}> {{ y = Mul(x, w) }}")
    model.doc_string, model.producer_name, model.model_version = "about", "me", 7
    model.metadata_props.add(key="k", value="é")
    model.graph.doc_string = "graph"
    model.graph.node[0].name = "the node"
    model.graph.node[0].ClearField("domain")  # empty in either case
    model.graph.node[0].metadata_props.add(key="n", value="1")
    changed = replace_weights(model, {"w": np.float32([1, 2])})
    del changed.graph.value_info[:]
    changed.graph.initializer[0].CopyFrom(model.graph.initializer[0])
    assert str(changed) == str(model)
    save(changed, tmp_path / "model.onnx")
    assert list(weights(tmp_path / "model.onnx")) == ["w"]


# -- bad input -------------------------------------------------------------------------------


@pytest.fixture
def two():
    return parse(f"{X} <{W2}, float[2] b = {{3, 4}}> {{ m = Mul(x, w)  y = Add(m, b) }}")


@pytest.mark.parametrize(
    ("new", "error", "message"),
    [
        ({"nobody": np.float32([1, 2])}, UnknownNameError, r"'nobody'; its weights are 'w', 'b'"),
        ({"w": np.float32([1, 2]), "x": 0, "y": 1}, UnknownNameError, r"'x', 'y'"),
        ({"w": np.float32([1, 2, 3])}, InvalidDataError, r"'w' has shape \(2,\), the new one \(3,\)"),
        ({"w": np.float32([[1, 2]])}, InvalidDataError, "shape"),
        ({"w": np.array([1.0, 2.0])}, InvalidDataError, "'w' is of dtype float32, the new one of float64"),
        ({"w": np.array([1, 2])}, InvalidDataError, "dtype"),
        ({"w": np.float32([1, np.nan])}, InvalidDataError, "'w' has 1 values that are NaN or infinite"),
        ({"b": np.float32([np.inf, -np.inf])}, InvalidDataError, "'b' has 2 values"),
        ({"w": None}, InvalidDataError, "dtype"),
        ([("w", np.float32([1, 2]))], InvalidDataError, "a mapping"),
        (None, InvalidDataError, "a mapping"),
    ],
)
def test_replace_refuses(two, new, error, message):
    before = two.SerializeToString()
    with pytest.raises(error, match=message):
        replace_weights(two, new)
    assert two.SerializeToString() == before


def test_replace_in_a_model_without_weights():
    with pytest.raises(UnknownNameError, match="its weights are none"):
        replace_weights(parse(f"{X} {{ y = Neg(x) }}"), {"w": np.zeros(2)})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"nobody": "a"}, "'nobody'"),
        ({"w": "b"}, "has that name already"),
        ({"w": "x"}, "has that name already"),
        ({"w": "m"}, "has that name already"),
        ({"w": "a", "b": "a"}, "has that name already"),
        ({"w": ""}, "non-empty"),
        ({"w": 3}, "non-empty"),
    ],
)
def test_rename_refuses(two, names, message):
    before = two.SerializeToString()
    with pytest.raises(UnknownNameError, match=message):
        rename_weights(two, names)
    assert two.SerializeToString() == before


def test_rename(two):
    assert list(weights(rename_weights(two, {"w": "b", "b": "w"}))) == ["b", "w"]
    assert list(weights(rename_weights(two, {"w": "w"}))) == ["w", "b"]
    assert list(weights(rename_weights(two, {}))) == ["w", "b"]
    renamed = rename_weights(parse(BRANCHES), {"w_1": "w2", "k": "k/2", "outer": "o"})
    assert list(weights(renamed)) == ["u", "w", "o", "w2", "k/2"]
    x = np.float32([[1, 2]])
    np.testing.assert_array_equal(
        run(renamed, x=x, c=np.array(False))[0], run(parse(BRANCHES), x=x, c=np.array(False))[0]
    )


@pytest.mark.parametrize(
    "function", [weights, lambda m: replace_weights(m, {}), lambda m: rename_weights(m, {}), prepare]
)
def test_bad_models_are_refused(function):
    with pytest.raises(InvalidModelError):
        function(b"no model")


# -- any graph -------------------------------------------------------------------------------


@st.composite
def chains(draw):
    """A chain of affine steps whose constants sit in every place a constant may sit in."""
    lines, constants, used = [], [], []
    value = "x"
    for i in range(draw(st.integers(1, 6))):
        place = draw(st.sampled_from(["initializer", "constant", "identity", "branch", "again"]))
        name = draw(st.sampled_from(["w", "h_1", "v", f"w{i}", "s"]))
        while name in used:
            name += "_"
        operator = draw(st.sampled_from(["Mul", "Add", "Sub"]))
        if place == "again" and not used:
            place = "constant"
        if place == "branch":
            one, other = (
                f"then_branch = t{i} () => (float[N, 2] p{i})",
                f"else_branch = e{i} () => (float[N, 2] q{i})",
            )
            lines.append(
                f"h{i} = If (c) <{one} <float[2] s = {{1, {i}}}> {{ p{i} = {operator}({value}, s) }}, "
                f"{other} <float[2] s = {{{i}, 2}}> {{ q{i} = {operator}({value}, s) }}>"
            )
            value = f"h{i}"
            continue
        if place == "again":
            name = draw(st.sampled_from(used))
        elif place == "constant":
            lines.append(f"{name} = Constant <value = float[2] {{{i}, 3}}> ()")
        else:
            constants.append(f"float[2] {name} = {{{i}, 4}}")
            if place == "identity":
                lines.append(f"copy{i} = Identity({name})")
        used.append(name)
        operand = f"copy{i}" if place == "identity" else name
        lines.append(f"h{i} = {operator}({value}, {operand})")
        value = f"h{i}"
    lines.append(f"y = Tanh({value})")
    initializers = f"<{', '.join(constants)}>" if constants else ""
    return f"g (float[N, 2] x, bool c) => (float[N, 2] y) {initializers} {{ {' '.join(lines)} }}"


@given(chains(), st.booleans())
def test_prepare_and_replace_agree(body, flag):
    """Training the prepared model and writing back gives what the prepared model computes."""
    model = parse(body)
    names = list(weights(model))
    prepared = to_proto(prepare(model))
    assert list(weights(prepared)) == names
    rng = np.random.default_rng(0)
    new = {n: rng.normal(size=2).astype(np.float32) for n in names}
    feeds = {"x": np.float32([[0.5, -1]]), "c": np.array(flag)}
    np.testing.assert_array_equal(run(model, **feeds)[0], run(prepared, **feeds)[0])
    left, right = replace_weights(model, new), replace_weights(prepared, new)
    np.testing.assert_array_equal(run(left, **feeds)[0], run(right, **feeds)[0])
    assert list(weights(left)) == names
    assert isinstance(to_ir(left), ir.Model)
