"""The checker is checked: right gradients pass, gradients wrong by 0.1 % fail."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcustom.exceptions import GradientNotImplementedError, UnknownNameError
from onnxcustom.gradient import gradient_graph
from onnxcustom.testing import check_gradient, random_feeds, to_double

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
DENSE = """g (float[N,3] x) => (float[N,2] y) <float[3,2] w = {1,2,3,-4,1,2}, float[2] b = {1, 2}> {
    h = MatMul(x, w)  a = Add(h, b)  y = Tanh(a) }"""
# No float64 kernel of Conv: the gradient runs in float32, the differences in the reference evaluator.
CONV = """g (float[1,1,4,4] x) => (float[1,2,3,3] y)
    <float[2,1,2,2] w = {1,2,3,-4,1,2,-1,1}, float[2] b = {1, 2}> {
    h = Conv(x, w, b)  y = Sigmoid(h) }"""


def parse(text):
    return onnx.parser.parse_model(HEAD + text)


def spoilt(model, name, factor):
    """The gradient graph with one gradient multiplied."""
    made = gradient_graph(model)
    for node in made.graph.node:
        for k, output in enumerate(node.output):
            if output == name:
                node.output[k] = "spoilt"
            assert name not in node.input
    made.graph.node.append(helper.make_node("Mul", ["spoilt", "factor"], [name]))
    made.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    return made


@pytest.mark.parametrize(("text", "precision"), [(DENSE, "float64"), (CONV, "float32")])
def test_right_gradients_pass(text, precision):
    result = check_gradient(parse(text))
    assert result.precision == precision
    assert {row.name for row in result.rows} == {"x", "w", "b"}
    assert result.error <= result.tolerance


@pytest.mark.parametrize("factor", [1.001, 0.999, -1.0, 0.0])
@pytest.mark.parametrize("name", ["x_grad", "w_grad", "b_grad"])
@pytest.mark.parametrize("text", [DENSE, CONV])
def test_wrong_gradients_fail(text, name, factor):
    model = parse(text)
    check_gradient(model, gradient=spoilt(model, name, 1.0))
    with pytest.raises(AssertionError, match=f"'{name[0]}' is wrong"):
        check_gradient(model, gradient=spoilt(model, name, factor))


def test_a_transposed_gradient_fails():
    model = parse(
        "g (float[3,3] x) => (float[3,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,1}> { y = MatMul(x, w) }"
    )
    made = gradient_graph(model)
    for node in made.graph.node:
        node.output[:] = ["wrong" if o == "w_grad" else o for o in node.output]
    made.graph.node.append(helper.make_node("Transpose", ["wrong"], ["w_grad"], perm=[1, 0]))
    with pytest.raises(AssertionError, match="'w'"):
        check_gradient(model, gradient=made)


def test_own_point_and_choice():
    x = np.full((5, 3), 0.1, np.float32)
    result = check_gradient(parse(DENSE), {"x": x, "b": np.zeros(2)}, wrt=["b"], inputs=[])
    assert {row.name for row in result.rows} == {"b"}


def test_a_constant_that_is_no_weight():
    """What a rule of one's own is for is often in no list of weights yet."""
    text = "g (float[N,2] x) => (float[N,2] y) <float c = {0.5}> { y = Div(x, c) }"
    assert {row.name for row in check_gradient(parse(text), wrt=["c"]).rows} == {"x", "c"}


@pytest.mark.ort
def test_errors_pass_through():
    with pytest.raises(UnknownNameError, match="nope"):
        check_gradient(parse(DENSE), wrt=["nope"])
    text = "g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> { a = Mul(x, w) y = Sinh(a) }"
    with pytest.raises(GradientNotImplementedError, match="Sinh"):
        check_gradient(parse(text), engine="ort")


def test_random_feeds():
    model = parse("g (float[N,2] x, int64[N] k, double d) => (float[N,2] y) { y = Identity(x) }")
    feeds = random_feeds(model, dim=4)
    assert {k: (v.shape, v.dtype.name) for k, v in feeds.items()} == {
        "x": ((4, 2), "float32"),
        "k": ((4,), "int64"),
        "d": ((), "float64"),
    }
    np.testing.assert_array_equal(random_feeds(model, dim=4)["x"], feeds["x"])


def test_to_double():
    text = """g (float[N] x, bool c) => (float[N] y) <float[1] w = {2}> {
        k = Constant<value_float = 1.5>()  i = Cast<to = 7>(x)  f = Cast<to = 1>(i)  p = Mul(f, w)
        q = Add(p, k)
        y = If (c) <then_branch = t () => (float[N] a) {
                        one = Constant<value = float[1] {1.0}>() a = Add(q, one) },
                    else_branch = e () => (float[N] b) { b = Identity(q) }> }"""
    model = parse(text)
    data = model.SerializeToString()
    made = to_double(model)
    assert model.SerializeToString() == data
    onnx.checker.check_model(made, full_check=True)
    from onnxcustom.runtime import create_session

    (y,) = create_session(made).run(None, {"x": np.array([1.0, 2.0]), "c": np.array(True)})
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, [4.5, 6.5])


def test_nothing_to_compare_is_no_success():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        g (int64[N] i) => (float[N] y) { y = Cast <to = 1> (i) }"""
    )
    with pytest.raises(AssertionError, match="nothing to compare"):
        check_gradient(model)
