"""The two halves of a gradient graph compute what the whole does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcustom.exceptions import DifferentiationError, InvalidModelError
from onnxcustom.gradient import gradient_graph, split_gradient
from onnxcustom.graph import load, weights
from onnxcustom.runtime import create_session, training_available
from onnxcustom.testing import random_feeds

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
MODELS = {
    "mlp": """g (double[N,3] x) => (double[N,2] y) <double[3,4] w = {1,2,3,4,-1,2,-3,4,1,1,-2,1},
        double[4] b = {1,2,-3,4}, double[4,2] v = {1,-2,3,-4,1,1,1,-1}> {
        h = MatMul(x, w)  a = Add(h, b)  r = Relu(a)  y = MatMul(r, v) }""",
    "several": """g (double[N,2] x, int64[N] k, double[N,2] u) => (double[N,2] y, int64[N,1] a, double[N,2] z)
        <double[2,2] w = {1,2,3,4}> { t = MatMul(x, w)  y = Tanh(t)  a = ArgMax<axis=1>(y)
        s = Mul(u, x)  z = Exp(s) }""",
    "direct": "g (double[N] x) => (double[N] x, double[N] y) { y = Exp(x) }",
    "zeros": "g (double[N] x, double[M] u) => (double[N] y) { y = Neg(x) }",
    "softmax": """g (double[N,2] x) => (double[N,2] y) <double[2] w = {1, 2}> {
        t = Mul(x, w)  s = LogSoftmax(t) y = Exp(s) }""",
    "constant": """g (double[2] x) => (double[2] y) <double[2] w = {1, 2}> {
        d = Exp(w) e = Tanh(d) y = Mul(x, e) }""",
    "captured": """g (double[N,2] x, bool c) => (double[N,2] y) <double[2] w = {1, 2}> {
        z = If(c) <then_branch = t () => (double[N,2] a) { a = Mul(x, w) },
                   else_branch = e () => (double[N,2] b) { b = Add(x, w) }>  y = Tanh(z) }""",
}


def run(model, feeds):
    session = create_session(model, threads=1)
    names = [o.name for o in session.get_outputs()]
    fed = {i.name: feeds[i.name] for i in session.get_inputs()}
    return dict(zip(names, session.run(None, fed), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_halves_equal_the_whole(name):
    model = onnx.parser.parse_model(HEAD + MODELS[name])
    gradient = gradient_graph(model)
    parts = split_gradient(gradient)
    feeds = {**random_feeds(model), **weights(model)}
    rng = np.random.default_rng(0)
    forward = run(parts.forward, feeds)
    assert list(forward) == [*parts.names.outputs, *parts.saved]
    seeds = {s: rng.normal(size=forward[o].shape) for o, s in parts.names.seeds.items()}
    backward = run(parts.backward, {**feeds, **forward, **seeds})
    whole = run(gradient, {**feeds, **seeds})
    assert list(backward) == list(parts.names.gradients.values())
    for key, value in {**forward, **backward}.items():
        if key in whole:
            np.testing.assert_array_equal(value, whole[key])
    evaluated = run(parts.evaluation(), feeds)
    assert list(evaluated) == list(parts.names.outputs)


@pytest.mark.parametrize("name", MODELS)
def test_structure(name):
    model = onnx.parser.parse_model(HEAD + MODELS[name])
    before = gradient_graph(model)
    data = before.SerializeToString()
    parts = split_gradient(before)
    assert before.SerializeToString() == data
    inputs = [v.name for v in parts.forward.graph.input]
    assert inputs == [*parts.names.inputs, *parts.names.weights]
    got = [v.name for v in parts.backward.graph.input]
    assert got == [*parts.names.seeds.values(), *parts.backward_inputs]
    assert set(parts.backward_inputs) <= {*inputs, *parts.names.outputs, *parts.saved}


def test_activations_are_saved_and_not_computed_again():
    # Engine 'onnx' folds the bias into a Gemm.
    parts = split_gradient(gradient_graph(onnx.parser.parse_model(HEAD + MODELS["mlp"]), engine="onnx"))
    assert parts.saved == ("r",)
    assert [n.op_type for n in parts.evaluation().graph.node] == ["Gemm", "Relu", "MatMul"]


CROSSING = {
    "maxpool": """g (float[N,1,4,4] x) => (float[N,1,2,2] y) <float[1,1,1,1] w = {2}> {
        c = Conv(x, w) y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c) }""",
    "maxpool of unknown rank": """g (float[N,1,4,4] x, int64[4] s) => (float[N,1,2,2] y) <float[1] w = {2}> {
        c = Mul(x, w) r = Reshape(c, s) y = MaxPool<kernel_shape=[2,2], strides=[1,1]>(r) }""",
    "concat": """g (float[N,2] x) => (float[N,4] y) <float[2] w = {1, 2}> {
        a = Mul(x, w) y = Concat<axis=1>(a, x) }""",
    "where": """g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> {
        a = Mul(x, w) c = Less(a, x) b = Exp(a) y = Where(c, b, w) }""",
    "max": """g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> {
        a = Exp(x) b = Max(a, w) y = Exp(b) }""",
    "gelu": """g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> {
        a = Mul(x, w) b = com.microsoft.Gelu(a) c = Exp(b) y = Mul(c, w) }""",
    "normal": """g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> {
        a = Mul(x, w) b = LayerNormalization(a, w)
        c, d = Split<axis=1, num_outputs=2>(b) y = Concat<axis=1>(c, d) }""",
}


@pytest.mark.parametrize("name", CROSSING)
@pytest.mark.parametrize("engine", ["onnx", "ort"])
@pytest.mark.parametrize("shapes", [True, False])
def test_tensors_that_cross_have_types(name, engine, shapes):
    """A session is made of both halves, also without the shapes that the model declares."""
    if engine == "ort" and not training_available():
        pytest.skip("engine 'ort' needs onnxruntime-training")
    head = '<ir_version: 8, opset_import: ["": 18, "com.microsoft": 1]>\n'
    model = onnx.parser.parse_model(head + CROSSING[name])
    if not shapes:
        for info in (*model.graph.input, *model.graph.output):
            if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                info.type.tensor_type.ClearField("shape")
    try:
        gradient = gradient_graph(model, engine=engine)
    except DifferentiationError:
        assert engine == "ort"
        return
    parts = split_gradient(gradient)
    for info in (*parts.forward.graph.output, *parts.backward.graph.input):
        assert info.type.tensor_type.elem_type, info.name
        if shapes and name != "maxpool of unknown rank":
            assert info.type.tensor_type.HasField("shape"), info.name
    for part in (parts.forward, parts.backward, parts.evaluation()):
        load(part)
        create_session(part, threads=1)


def test_only_gradient_graphs_can_be_split():
    with pytest.raises(InvalidModelError, match="gradient graph"):
        split_gradient(onnx.parser.parse_model(HEAD + MODELS["mlp"]))
