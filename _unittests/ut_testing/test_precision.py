"""Models of 16 bits, of mixed precision, and all in float64."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcustom.gradient import gradient_graph
from onnxcustom.graph import weights
from onnxcustom.testing import check_gradient, random_feeds, to_double
from onnxcustom.testing.precision import to_single

# The parser takes the numbers of a float16 tensor for its bits.
ONE, TWO, THREE = 15360, 16384, 16896

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
LAYERS = """g (TYPE[N,3] x) => (TYPE[N,2] y) <TYPE[3,2] w = {1, 2, 3, -4, 1, 2}, TYPE[2] b = {1, 2}> {
    h = MatMul(x, w)  a = Add(h, b)  y = Tanh(a) }"""
# No float64 kernel of Conv: the gradient runs in float32, the differences in the reference evaluator.
CONV = """g (TYPE[1,1,4,4] x) => (TYPE[1,2,3,3] y) <TYPE[2,1,2,2] w = {1, 2, 3, -4, 1, 2, -1, 1}> {
    h = Conv(x, w)  y = Sigmoid(h) }"""
# Weights and sums in 32 bits, products in 16, as automatic mixed precision has it.
MIXED = """g (float[N,3] x) => (float[N,2] y)
    <float[3,2] w = {1, 2, 3, -4, 1, 2}, float16[2] b = {ONE, TWO}> {
    x16 = Cast <to = 10> (x)  w16 = Cast <to = 10> (w)  h16 = MatMul(x16, w16)  a16 = Add(h16, b)
    a = Cast <to = 1> (a16)  y = Softmax <axis = -1> (a) }"""
BRANCHES = """g (float16[N,3] x, bool c) => (float16[N,3] y) <float16[3] w = {ONE, TWO, THREE}> {
    y = If(c) <
      then_branch = t () => (float16[N,3] p) { q = Mul(x, w)  p = Tanh(q) },
      else_branch = e () => (float16[N,3] r) {
        k = Constant <value = float16[1] {TWO}> ()  s = Cast <to = 1> (x)
        u = Cast <to = 10> (s)  r = Mul(u, k) } > }"""


def parse(text: str, dtype: str = "float") -> onnx.ModelProto:
    """The model; its tensors of TYPE are read as float and then given that type."""
    for name, bits in (("ONE", ONE), ("TWO", TWO), ("THREE", THREE)):
        text = text.replace(name, str(bits))
    model = onnx.parser.parse_model(HEAD + text.replace("TYPE", "float"))
    if "TYPE" not in text:
        return model
    to = getattr(TensorProto, dtype.upper())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = to
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(to))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def dtypes(model: onnx.ModelProto) -> set[int]:
    """Types of all values of a model, inferred anew."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = [*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info]
    return {v.type.tensor_type.elem_type for v in values} | {t.data_type for t in inferred.graph.initializer}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("text", "precision"), [(LAYERS, "float64"), (CONV, "float32")])
def test_models_of_16_bits(text: str, precision: str, dtype: str) -> None:
    result = check_gradient(parse(text, dtype))
    assert result.precision == precision
    assert result.error <= result.tolerance
    assert {row.name for row in result.rows} >= {"x", "w"}


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_gradient_of_16_bits_that_is_wrong_fails(factor: float) -> None:
    model = parse(LAYERS, "float16")
    made = gradient_graph(to_single(model))
    (node,) = [n for n in made.graph.node if "w_grad" in n.output]
    node.output[list(node.output).index("w_grad")] = "right"
    made.graph.node.append(helper.make_node("Mul", ["right", "factor"], ["w_grad"]))
    made.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    if factor == 1:
        check_gradient(model, gradient=made)
    else:
        with pytest.raises(AssertionError, match="'w' is wrong"):
            check_gradient(model, gradient=made)


def test_mixed_precision() -> None:
    result = check_gradient(parse(MIXED))
    assert result.precision == "float64"
    assert {row.name for row in result.rows} == {"x", "w", "b"}


@pytest.mark.parametrize("c", [True, False])
def test_subgraphs_of_16_bits(c: bool) -> None:
    result = check_gradient(parse(BRANCHES), {"c": np.array(c)})
    assert result.precision == "float64"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float", "double"])
@pytest.mark.parametrize("text", [LAYERS, CONV, MIXED])
def test_everything_becomes_double(text: str, dtype: str) -> None:
    model = parse(text, dtype)
    before = model.SerializeToString()
    assert dtypes(to_double(model)) == {TensorProto.DOUBLE}
    assert model.SerializeToString() == before
    narrow = dtypes(to_single(model))
    assert narrow == ({TensorProto.DOUBLE} if dtype == "double" and text != MIXED else {TensorProto.FLOAT})


def test_values_are_kept() -> None:
    model = parse(LAYERS, "bfloat16")
    double = to_double(model)
    for name, value in weights(model).items():
        assert weights(double)[name].dtype == np.float64
        np.testing.assert_array_equal(weights(double)[name], value.astype(np.float64))


@pytest.mark.parametrize(
    "node",
    [
        "y = RandomNormal <shape = [2]> ()",
        "y = RandomNormal <shape = [2], dtype = 10> ()",
        "y = RandomUniform <shape = [2], dtype = 1> ()",
        "n = Constant <value = int64[1] {2}> ()  y = ConstantOfShape(n)",
        "n = Constant <value = int64[1] {2}> ()  y = ConstantOfShape <value = float16[1] {THREE}> (n)",
        "y = Constant <value_floats = [1.0, 2.0]> ()",
        "a = Constant <value_float = 1.5> ()  n = Constant <value = int64[1] {2}> ()  y = Expand(a, n)",
        "n = Constant <value = int64 {2}> ()  y = HannWindow(n)",
        "n = Constant <value = int64 {2}> ()  y = BlackmanWindow <output_datatype = 10> (n)",
        "i = Constant <value = int64[2] {1, 2}> ()  y = Cast <to = 16> (i)",
        "s = SequenceEmpty()  a = Cast <to = 1> (x)  t = SequenceInsert(s, a)  "
        "y = ConcatFromSequence <axis = 0> (t)",
    ],
)
def test_types_of_what_has_no_input(node: str) -> None:
    model = parse(f"g (double[2] x) => (double[2] y) {{ {node} }}")
    made = to_double(model)
    onnx.checker.check_model(made, full_check=True)
    (y,) = ReferenceEvaluator(made).run(None, {"x": np.ones(2)})
    assert (y.dtype, y.shape) == (np.float64, (2,))


def test_integer_types_stay() -> None:
    model = parse(
        "g (float16[2] x) => (int32[2] y, bool[2] z) { y = Cast <to = 6> (x)  z = Cast <to = 9> (x) }"
    )
    assert dtypes(to_double(model)) == {TensorProto.DOUBLE, TensorProto.INT32, TensorProto.BOOL}


def test_sequences_and_functions() -> None:
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 18, "own": 1]>
        g (seq(float16[2]) s) => (float16[2] y) <float16[2] w = {15360, 16384}> {
            i = Constant <value = int64 {0}> ()  x = SequenceAt(s, i)  z = Mul(x, w)
            y = own.scale <factor = 1.5> (z) }
        <domain: "own", opset_import: ["": 18]> scale <factor> (x) => (y) {
            a = Constant <value_float: float = @factor> ()  b = Constant <value_float = 2.0> ()  c = Mul(a, b)
            h = Cast <to = 10> (c)  y = Mul(x, h) }""")
    made = to_double(model)
    onnx.checker.check_model(made, full_check=True)
    x = np.array([0.1, 0.2])
    (y,) = ReferenceEvaluator(made).run(None, {"s": [x]})
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, x * [1, 2] * 3, rtol=1e-15)


def test_random_feeds_of_16_bits() -> None:
    feeds = random_feeds(parse(LAYERS, "bfloat16"))
    assert feeds["x"].dtype.name == "bfloat16"
    assert np.any(feeds["x"].astype(float))
