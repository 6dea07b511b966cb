"""Small models that the tests of pictures share, and the programs that lay graphs out."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

MODELS = {
    "mlp": """net (float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] w0 = {1,0,1,0,0,1,0,1,1,1,0,0}, float[4] b0 = {0,0,0,1}, float[4, 2] w1 = {1,0,1,0,0,1,0,1},
     float[2] b1 = {0,1}> {
        m0 = MatMul(x, w0)
        z0 = Add(m0, b0)
        h0 = Tanh(z0)
        m1 = MatMul(h0, w1)
        y = Add(m1, b1)
    }""",
    "sigmoid": """net (float[N, 3] x) => (float[N, 1] y) <float[3, 1] w = {1,2,3}, float[1] b = {0.5}> {
        m = MatMul(x, w)
        z = Add(m, b)
        y = Sigmoid(z)
    }""",
    # Read twice, so that its gradient is a sum, and on the way to itself.
    "tied": """net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1,2,3,4}> {
        a = MatMul(x, w)
        h = Tanh(a)
        y = MatMul(h, w)
    }""",
    "embedding": """net (int64[N] ids) => (float[N, 2] y) <float[5, 2] table = {0,1,2,3,4,5,6,7,8,9},
     float[2, 2] w = {1,2,3,4}> {
        e = Gather(table, ids)
        y = MatMul(e, w)
    }""",
    "normalized": """net (float[N, 2, 4] x) => (float[N, 3, 2] y) <float[3, 2, 3] w =
     {1,0,1,0,1,0,1,1,0,0,1,1,0,1,0,1,0,0}, float[3] scale = {1,1,1}, float[3] bias = {0,0,0},
     float[3] mean = {0,0,0}, float[3] var = {1,1,1}> {
        c = Conv(x, w)
        y = BatchNormalization(c, scale, bias, mean, var)
    }""",
    "branches": """net (float[N, 2] x, bool deep) => (float[N, 2] y) <float[2, 2] w = {1,0,0,1},
     float[2, 2] v = {1,2,3,4}, int64 three = {3}, bool yes = {1}> {
        h = MatMul(x, w)
        z = If (deep) <then_branch = big () => (float[N, 2] o) { a = MatMul(h, v)  o = Relu(a) },
                       else_branch = small () => (float[N, 2] p) { p = Tanh(h) }>
        y = Loop (three, yes, z) <body = turn (int64 i, bool c, float[N, 2] s) => (bool c2, float[N, 2] s2) {
            c2 = Identity(c)
            m = MatMul(s, w)
            s2 = Sigmoid(m)
        }>
    }""",
}


def parse(name: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {MODELS[name]}')


@pytest.fixture(scope="session", params=sorted(MODELS))
def any_model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    """Each of the models."""
    return parse(request.param)


@pytest.fixture(scope="session")
def small_model():
    """Make a model by name."""
    return parse


@pytest.fixture(scope="session")
def needs_graphviz() -> None:
    """Skip where nothing lays graphs out."""
    from onnxcustom.plotting.dot import find_program

    if find_program() is None:
        pytest.skip("Graphviz is not installed: neither dot nor graphviz-pure")
