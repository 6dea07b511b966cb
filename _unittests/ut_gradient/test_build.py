"""gradient_graph: inputs, outputs, order, names, zeros, refusals."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcustom.exceptions import (
    DifferentiationError,
    GradientNotImplementedError,
    InvalidModelError,
    NonDifferentiableError,
    UnknownNameError,
    UnknownOperatorError,
)
from onnxcustom.gradient import METADATA_KEY, GradientNames, gradient_graph
from onnxcustom.testing import check_gradient

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
RNG = np.random.default_rng(0)


def parse(text):
    return onnx.parser.parse_model(HEAD + text)


def names(model):
    return [v.name for v in model.graph.input], [v.name for v in model.graph.output]


def run(model, **feeds):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        providers=["CPUExecutionProvider"],
        # In 1.17 it puts an operator in place of Gemm and Tanh that has no float64 kernel.
        disabled_optimizers=["GemmActivationFusion"],
    )
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


MLP = """g (double[N,3] x) => (double[N,2] y)
    <double[3,4] w1 = {1,2,3,4,-1,2,-3,4,0.5,1,-2,0.25}, double[4] b1 = {0.1,0.2,-0.3,0.4},
     double[4,2] w2 = {1,-2,3,-4,0.5,1,1,-1}, double[2] b2 = {0.3,-0.1}> {
    h = MatMul(x, w1)  a = Add(h, b1)  r = Tanh(a)  o = MatMul(r, w2)  y = Add(o, b2) }"""


def test_inputs_and_outputs_in_order():
    model = gradient_graph(parse(MLP))
    assert names(model) == (
        ["x", "w1", "b1", "w2", "b2", "y_grad"],
        ["x_grad", "w1_grad", "b1_grad", "w2_grad", "b2_grad", "y"],
    )
    onnx.checker.check_model(model, full_check=True)
    assert not model.graph.initializer or all(i.name not in ("w1", "b1") for i in model.graph.initializer)


def test_values_against_finite_differences():
    result = check_gradient(parse(MLP))
    assert result.precision == "float64"
    assert {row.name for row in result.rows} == {"x", "w1", "b1", "w2", "b2"}


def test_the_model_is_not_changed():
    model = parse(MLP)
    before = model.SerializeToString()
    gradient_graph(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("wrt", [[], ["w2"], ["b2", "w1"], ["w1", "b1", "w2", "b2"]])
@pytest.mark.parametrize("inputs", [None, [], ["x"]])
def test_subsets(wrt, inputs):
    if not wrt and inputs == []:
        inputs = None
    model = gradient_graph(parse(MLP), wrt=wrt, inputs=inputs)
    x = ["x_grad"] if inputs is None or inputs else []
    assert names(model) == (["x", *wrt, "y_grad"], [*x, *(f"{n}_grad" for n in wrt), "y"])
    full = gradient_graph(parse(MLP))
    from onnxcustom.graph import weights

    feeds = {"x": RNG.normal(size=(5, 3)), "y_grad": RNG.normal(size=(5, 2))}
    values = weights(parse(MLP))
    expected = run(full, **feeds, **values)
    for name, value in run(model, **feeds, **{n: values[n] for n in wrt}).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-12)


def test_nothing_asked_for():
    model = gradient_graph(parse(MLP), wrt=[], inputs=[])
    assert names(model) == (["x", "y_grad"], ["y"])


SEVERAL = """g (double[N,2] x, int64[N] k, double[N,2] u, double[N,2] unread, int64[M] ids)
    => (double[N,2] y, int64[N,1] a, double[N,2] z, int64[M] ids2)
    <double[2,2] w = {1,2,3,4}, double[2,2] idle = {1,2,3,4}> {
    t = MatMul(x, w)  y = Tanh(t)  a = ArgMax<axis=1>(y)  s = Mul(u, x)  z = Sigmoid(s)
    ids2 = Identity(ids)  nothing = MatMul(u, idle) }"""


def test_several_inputs_and_outputs():
    model = gradient_graph(parse(SEVERAL))
    got_inputs, got_outputs = names(model)
    assert got_inputs[:5] == ["x", "k", "u", "unread", "ids"]
    assert got_inputs[-2:] == ["y_grad", "z_grad"]
    assert got_outputs[:3] == ["x_grad", "u_grad", "unread_grad"]
    assert got_outputs[-4:] == ["y", "a", "z", "ids2"]
    check_gradient(parse(SEVERAL))


def test_zero_gradients_have_the_shape_of_what_they_belong_to():
    model = gradient_graph(parse(SEVERAL), wrt=["idle", "w"], outputs=["z"])
    assert names(model)[0] == ["x", "k", "u", "unread", "ids", "idle", "w", "z_grad"]
    w = np.arange(4.0).reshape(2, 2)
    feeds = {n: RNG.normal(size=(3, 2)) for n in ("x", "u", "unread", "z_grad")}
    got = run(model, **feeds, k=np.zeros(3, np.int64), ids=np.arange(4), idle=w, w=w)
    assert got["unread_grad"].shape == (3, 2)
    for name in ("unread_grad", "idle_grad", "w_grad"):
        assert not got[name].any()
    assert got["u_grad"].any()
    assert got["ids2"].tolist() == [0, 1, 2, 3]


def test_outputs_in_the_order_of_the_model():
    model = gradient_graph(parse(SEVERAL), outputs=["z", "y"])
    assert names(model)[0][-2:] == ["y_grad", "z_grad"]


def test_taken_names_get_a_number_and_are_in_the_metadata():
    text = """g (double[N] x) => (double[N] y, double[N] w_grad) <double[2] w = {1, 2}> {
        x_grad = Mul(x, w)  x_grad_1 = Tanh(x_grad)  y_grad = Exp(x_grad_1)  y = Neg(y_grad)
        w_grad = Identity(y_grad) }"""
    model = gradient_graph(parse(text))
    raw = {p.key: p.value for p in model.metadata_props}[METADATA_KEY]
    mapping = GradientNames.of(model)
    assert json.loads(raw)["gradients"] == mapping.gradients
    assert mapping.gradients == {"x": "x_grad_2", "w": "w_grad_1"}
    assert mapping.seeds == {"y": "y_grad_1", "w_grad": "w_grad_grad"}
    assert names(model) == (
        ["x", "w", "y_grad_1", "w_grad_grad"],
        ["x_grad_2", "w_grad_1", "y", "w_grad"],
    )
    check_gradient(parse(text), {"x": np.array([0.3, -0.2])})


DIRECT = """g (double[N,2] x, double[2] v) => (double[N,2] x, double[N,2] y, double[2] w, double[2] v)
    <double[2] w = {1, 2}> { y = Mul(x, w) }"""


def test_outputs_that_are_inputs_or_weights():
    model = gradient_graph(parse(DIRECT))
    mapping = GradientNames.of(model)
    (weight,) = mapping.weights
    assert list(mapping.gradients) == ["x", "v", weight]
    assert mapping.gradients["x"] == "x_grad"
    assert list(mapping.seeds) == ["x", "y", "w", "v"]
    x, v, w, dx, dy, dw, dv = (RNG.normal(size=s) for s in [(3, 2), 2, 2, (3, 2), (3, 2), 2, 2])
    seeds = dict(zip(mapping.seeds.values(), (dx, dy, dw, dv), strict=True))
    got = run(model, x=x, v=v, **{weight: w}, **seeds)
    np.testing.assert_allclose(got["x_grad"], dx + dy * w)
    np.testing.assert_allclose(got[mapping.gradients[weight]], dw + (dy * x).sum(axis=0))
    np.testing.assert_allclose(got["v_grad"], dv)
    np.testing.assert_array_equal(got["x"], x)
    np.testing.assert_array_equal(got["w"], w)


@pytest.mark.parametrize(
    "body",
    [
        "a = Exp(x) y = Mul(a, a)",
        "y = Mul(x, x)",
        "a = Mul(x, w) b = Add(a, w) y = Mul(b, w)",
        "a = Exp(x) b = Tanh(a) c = Mul(a, b) y = Add(c, a)",
        "y = Max(x, x)",
        "a = Exp(x) y = Sub(a, a)",
        "y = Identity(x)",
        "a = Identity(x) b = Identity(a) y = Add(a, b)",
        "y = Sum(x, x, w)",
    ],
)
def test_values_used_twice(body):
    text = "g (double[N,2] x) => (double[N,2] y) <double[2] w = {1.5, -2}> {" + body + "}"
    check_gradient(parse(text))


def test_two_outputs_where_one_feeds_the_other():
    check_gradient(parse("g (double[N] x) => (double[N] y, double[N] z) { y = Tanh(x) z = Exp(y) }"))


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((2, 3), (1, 3)), ((2, 1), (1, 3)), ((1, 1), (2, 3))])
@pytest.mark.parametrize("op", ["Add", "Mul", "Sub"])
def test_symbolic_dimensions_may_broadcast(static, shapes, op):
    def dims(shape, letters):
        return ",".join(map(str, shape) if static else letters)

    text = (
        f"g (double[{dims(shapes[0], 'AB')}] x, double[{dims(shapes[1], 'CD')}] u) => (double[M,L] y)"
        f" {{ s = {op}(x, u) y = Tanh(s) }}"
    )
    check_gradient(parse(text), {n: RNG.normal(size=s) for n, s in zip("xu", shapes, strict=True)})


def test_control_flow_off_the_path_is_no_obstacle():
    text = """g (double[N,2] x, bool flag) => (double[N,2] y, double[1] c) <double[2] w = {1, 2}> {
        y = Mul(x, w)
        c = If (flag) <then_branch = t () => (double[1] c1) { c1 = Constant<value = double[1] {1.0}>() },
                       else_branch = e () => (double[1] c2) { c2 = Constant<value = double[1] {2.0}>() }> }"""
    check_gradient(parse(text), {"flag": np.array(True)}, inputs=["x"])


def test_integer_paths_carry_no_gradient():
    text = """g (double[N,4] x) => (double[N,4] y) <double[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}> {
        a = MatMul(x, w) k = ArgMax<axis=1, keepdims=0>(a) r = Gather(w, k) y = Mul(r, x) }"""
    check_gradient(parse(text), {"x": RNG.normal(size=(3, 4))})


# -- refusals ----------------------------------------------------------------------------------

REFUSED = """g (double[N,2] x, double[N,2] u, int64[N] k) => (double[N,2] y)
    <double[2] w = {1, 2}> { e = Sinh(x) f = Floor(u) s = Add(e, f) y = Mul(s, w) }"""


@pytest.mark.ort
def test_what_cannot_be_differentiated_is_left_out_or_an_error_if_named():
    model = gradient_graph(parse(REFUSED), engine="ort")
    assert names(model)[1] == ["w_grad", "y"]
    with pytest.raises(GradientNotImplementedError, match=r"'x'.*Sinh, opset 17") as info:
        gradient_graph(parse(REFUSED), inputs=["x"], engine="ort")
    assert (info.value.op_type, info.value.opset) == ("Sinh", 17)
    with pytest.raises(NonDifferentiableError, match=r"'u'.*Floor, opset 17"):
        gradient_graph(parse(REFUSED), inputs=["u"], engine="ort")
    with pytest.raises(NonDifferentiableError, match=r"'k'.*(?i:int64)"):
        gradient_graph(parse(REFUSED), inputs=["k"], engine="ort")


@pytest.mark.ort
def test_a_weight_behind_an_operator_without_gradient():
    text = "g (double[N,2] x) => (double[N,2] y) <double[2] w = {1, 2}> { a = Mul(x, w) y = Sinh(a) }"
    with pytest.raises(GradientNotImplementedError, match=r"weight 'w'.*Sinh"):
        gradient_graph(parse(text), engine="ort")
    assert names(gradient_graph(parse(text), wrt=[], engine="ort")) == (["x", "y_grad"], ["y"])


@pytest.mark.ort
def test_control_flow_on_the_path_never_reaches_the_builder():
    text = """g (double[N] x, bool flag) => (double[N] y) <double[1] w = {2}, double[2] v = {1, 2}> {
        z = Mul(x, v)
        y = If (flag) <then_branch = t () => (double[N] a) { a = Tanh(z) },
                       else_branch = e () => (double[N] b) { b = Exp(z) }> }"""
    with pytest.raises(GradientNotImplementedError, match="If"):
        gradient_graph(parse(text), engine="ort")


def test_unknown_operator():
    text = """<ir_version: 8, opset_import: ["": 17, "my.domain": 1]>
        g (double[N] x) => (double[N] y) <double[2] w = {1, 2}> { z = Mul(x, w) y = my.domain.Magic(z) }"""
    with pytest.raises((UnknownOperatorError, InvalidModelError), match="Magic"):
        gradient_graph(onnx.parser.parse_model(text))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"wrt": ["nope"]}, r"weight 'nope'.*'w1', 'b1', 'w2', 'b2'"),
        ({"wrt": ["w1", "w1"]}, "twice: 'w1'"),
        ({"wrt": "w1"}, "list"),
        ({"inputs": ["y"]}, r"input 'y'.*'x'"),
        ({"inputs": ["x", "x"]}, "twice: 'x'"),
        ({"outputs": ["x"]}, r"output 'x'.*'y'"),
        ({"outputs": ["y", "y"]}, "twice: 'y'"),
        ({"engine": "torch"}, r"'torch'.*'auto', 'onnx', 'ort'"),
    ],
)
def test_unknown_and_duplicate_names(arguments, match):
    with pytest.raises(UnknownNameError, match=match):
        gradient_graph(parse(MLP), **arguments)


def test_outputs_without_gradient():
    with pytest.raises(NonDifferentiableError, match="'a'"):
        gradient_graph(parse(SEVERAL), outputs=["a"])
    with pytest.raises(DifferentiationError, match="empty"):
        gradient_graph(parse(SEVERAL), outputs=[])
    with pytest.raises(NonDifferentiableError, match="no floating-point output"):
        gradient_graph(parse("g (double[N,2] x) => (int64[N,1] k) { k = ArgMax<axis=1>(x) }"))


def test_not_a_model():
    with pytest.raises(InvalidModelError):
        gradient_graph(b"nonsense")


def test_the_choice_of_engine_is_logged(caplog):
    with caplog.at_level("INFO", logger="onnxcustom"):
        gradient_graph(parse(MLP))
    assert any("engine 'auto' is" in r.getMessage() for r in caplog.records)


def test_a_scalar_that_is_no_weight_may_be_asked_for():
    text = "g (double[N,2] x) => (double[N,2] y) <double c = {1.5}> { y = Mul(x, c) }"
    model = gradient_graph(parse(text), wrt=["c"])
    got = run(model, x=np.ones((3, 2)), c=np.array(2.0), y_grad=np.full((3, 2), 0.5))
    assert got["c_grad"] == pytest.approx(3.0)
    assert got["c_grad"].shape == ()


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 15, 18, 21])
def test_opsets(opset):
    text = f"""<ir_version: 6, opset_import: ["": {opset}]>
        g (float[N,3] x) => (float[N,2] y) <float[3,2] w = {{1,2,3,4,-1,2}}, float[2] b = {{0.1,0.2}}> {{
        h = Gemm(x, w, b) r = Sigmoid(h) y = Softmax<axis=1>(r) }}"""
    check_gradient(onnx.parser.parse_model(text))


@pytest.mark.ort
def test_float16_is_refused_with_the_types_there_are():
    text = "g (float16[N,2] x) => (float16[N,2] y) <float16[2] w = {1, 2}> { y = Mul(x, w) }"
    with pytest.raises(GradientNotImplementedError, match="float16"):
        gradient_graph(parse(text), engine="ort")


def test_the_nodes_of_the_model_are_checked_once(monkeypatch):
    """When they come in; of the gradient only what rules made."""
    from onnxcustom.gradient import onnx_engine
    from onnxcustom.graph.preparation.prepare import prepare

    seen, check = [], onnx_engine.check_made

    def watched(nodes, opsets):
        nodes = list(nodes)
        seen.extend(nodes)
        check(nodes, opsets)

    monkeypatch.setattr(onnx_engine, "check_made", watched)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        m (float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}> {
        a = Mul(x, w) b = Tanh(a) c = Sigmoid(b) y = Softmax<axis = 1>(c) }"""
    )
    made = gradient_graph(model, engine="onnx")
    given = {out.name for node in prepare(model).graph for out in node.outputs}
    checked = {out.name for node in seen for out in node.outputs}
    assert checked
    assert not checked & given
    assert checked | given == {name for node in made.graph.node for name in node.output}
