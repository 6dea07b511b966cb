# ruff: noqa: E501 - a node of ONNX text stays on its line
"""What onnx finds wrong: an error where onnxruntime has one too, and only there."""

import onnx
import onnx.parser
import pytest

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import prepare, to_ir
from onnxcustom.graph.shapes.inference import infer_shapes


def model(text):
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}')


CONTRADICTIONS = {
    "MatMul": "g (float[N, 3] x) => (float[N, 2] y) <float[4, 2] w = {0, 0, 0, 0, 0, 0, 0, 0}> { y = MatMul(x, w) }",
    "types": "g (float[N, 3] x) => (float[N, 3] y) <double[3] w = {0, 0, 0}> { y = Add(x, w) }",
    "Concat": "g (float[2, 3] x) => (float[A, B] y) <float[3, 4] w = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}>"
    "{ y = Concat <axis = 1> (x, w) }",
    "axis": "g (float[2, 3] x) => (float[A] y) { y = ReduceSum <keepdims = 0> (x, a) a = Constant <value_ints = [7]> () }",
}
FINE = {
    "wrong output": "g (float[N, 3] x) => (float[N, 7] y) { y = Neg(x) }",
    "wrong value in between": "g (float[N, 3] x) => (float[N, 3] y) <float[N, 7] z> { z = Neg(x) y = Exp(z) }",
    "state that grows": "g (float[1] x) => (float[K] y) <int64 t = {3}> { y = Loop(t, , x) <body = b (int64 i, bool c, float[A] h)"
    " => (bool d, float[B] o) { d = Identity(c) o = Concat <axis = 0> (h, h) }> }",
    "state that grows, declared": "g (float[1] x) => (float[K] y) <int64 t = {3}> { y = Loop(t, , x) <body = b (int64 i, bool c, float[1] h)"
    " => (bool d, float[1] o) { d = Identity(c) o = Concat <axis = 0> (h, h) }> }",
    "attributes of a body": "g (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y) { y = MeanVarianceNormalization(x) }",
    "no kernel": "g (double[N, 3] x) => (double[N, 3] y) { y = Celu(x) }",
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions(name):
    made = model(CONTRADICTIONS[name])
    nodes = sorted(made.graph.node, key=lambda n: n.op_type != "Constant")
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    with pytest.raises(InvalidModelError, match="contradicts itself"):
        prepare(made)
    to_ir(made)  # is not asked


@pytest.mark.parametrize("name", FINE)
def test_what_only_onnx_minds(name):
    prepare(model(FINE[name]))


def test_sizes_that_exporters_got_wrong_are_corrected():
    inferred = infer_shapes(model(FINE["wrong value in between"]), strict=True)
    sizes = {i.name: i.type.tensor_type.shape.dim[1].dim_value for i in inferred.graph.value_info}
    assert sizes == {"z": 3}
