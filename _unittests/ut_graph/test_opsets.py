# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Opset conversion keeps results; what it cannot keep it refuses."""

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnx_ir as ir
import pytest

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import prepare, to_ir, to_proto, weights
from onnxcustom.graph.preparation.opsets import ConvertOpsetPass, SetIrVersionPass

onnxruntime = pytest.importorskip("onnxruntime")

X = np.random.default_rng(0).random((2, 4, 6), dtype=np.float32) - np.float32(0.3)


def parse(body, opset, ir_version=8):
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> {body}')


def run(model, **feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


G = "g (float[2, 4, 6] x) => (y)"
UP = {
    "softmax": (7, G + "{ y = Softmax(x) }"),
    "softmax axis": (9, G + "{ y = Softmax <axis = 2> (x) }"),
    "softmax first": (12, G + "{ y = LogSoftmax <axis = 1> (x) }"),
    "squeeze": (11, G + "{ a = Unsqueeze <axes = [0, 2]> (x)  y = Squeeze <axes = [0]> (a) }"),
    "reduce": (11, G + "{ a = ReduceSum <axes = [1]> (x)  y = ReduceMean <axes = [-1], keepdims = 0> (a) }"),
    "clip": (7, G + "{ a = Clip <min = -0.1, max = 0.2> (x)  y = Clip <min = 0.0> (a) }"),
    "slice": (9, G + "{ y = Slice <axes = [1, 2], starts = [1, 0], ends = [3, -1]> (x) }"),
    "split": (12, G + "{ y, z = Split <axis = 1> (x) }"),
    "split lengths": (11, G + "{ y, z = Split <axis = 1, split = [1, 3]> (x) }"),
    "split equally": (13, G + "{ y, z = Split <axis = 1> (x) }"),
    "pad": (10, G + "{ y = Pad <pads = [0, 1, 0, 0, 2, 1], value = 0.5> (x) }"),
    "dropout": (7, G + "{ y = Dropout <ratio = 0.3> (x) }"),
    "batch norm": (
        7, "g (float[2, 4, 6] x) => (y) <float[4] s = {1, 2, 3, 4}, float[4] m = {0, 1, 0, 1}>"
        "{ y = BatchNormalization <epsilon = 0.01> (x, s, m, m, s) }",
    ),
    "upsample nearest": (
        9, "g (float[1, 2, 4, 6] x) => (y) <float[4] s = {1, 1, 2, 3}> { y = Upsample <mode = \"nearest\"> (x, s) }",
    ),
    "upsample linear": (
        9, "g (float[1, 2, 4, 6] x) => (y) <float[4] s = {1, 1, 2, 3}> { y = Upsample <mode = \"linear\"> (x, s) }",
    ),
    "resize linear": (
        10, "g (float[1, 2, 4, 6] x) => (y) <float[4] s = {1, 1, 2, 3}> { y = Resize <mode = \"linear\"> (x, s) }",
    ),
    "grid sample": (
        16, "g (float[1, 2, 4, 6] x) => (y) <float[1, 1, 2, 2] p = {0.1, 0.2, -0.4, 0.7}>"
        "{ y = GridSample <mode = \"bilinear\"> (x, p) }",
    ),
    "top k": (9, G + "{ y, i = TopK <k = 2> (x) }"),
    "branches": (
        11, "g (float[2, 4, 6] x, bool c) => (y) {"
        "y = If (c) <then_branch = t () => (p) { p = ReduceSum <axes = [1]> (x) }, else_branch = e () => (q) { q = Softmax(x) }> }",
    ),
}  # fmt: skip


@pytest.mark.parametrize("target", [13, 18, 21])
@pytest.mark.parametrize("name", UP)
def test_up(name, target):
    opset, body = UP[name]
    if opset >= target:
        pytest.skip("not up")
    if target > 20:
        pytest.importorskip("onnxruntime", minversion="1.18")
    model = parse(
        body.replace("(y)", "(float y)").replace("(p)", "(float p)").replace("(q)", "(float q)"), opset
    )
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    for node in model.graph.node:
        node.metadata_props.add(key="from", value="me")
        for attribute in node.attribute:
            for info in attribute.g.output:
                info.type.tensor_type.ClearField("shape")
    prepared = to_proto(prepare(model, opset=target))
    assert {o.domain: o.version for o in prepared.opset_import} == {"": target}
    assert prepared.ir_version >= onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", target)])
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": np.resize(X, shape)}
    for flag in (True, False) if name == "branches" else (None,):
        if flag is not None:
            feeds["c"] = np.array(flag)
        for left, right in zip(run(model, **feeds), run(prepared, **feeds), strict=True):
            np.testing.assert_allclose(right, left, rtol=1e-6, atol=1e-6)


DOWN = {
    "unchanged since": (24, 21, G + "{ a = Relu(x)  b = Add(a, x)  y = Sigmoid(b) }"),
    "types added": (
        25,
        21,
        G
        + "<int64[1] s = {-1}> { a = Reshape(x, s)  b = Identity(a)  c = Cast <to = 11> (b)  y = Cast <to = 1> (c) }",
    ),
    "many": (25, 18, G + "{ a = Flatten(x)  b = Transpose(a)  c = Cos(b)  d = Elu(c)  y = ReduceSum(d) }"),
    "softmax": (18, 12, G + "{ y = Softmax <axis = 2> (x) }"),
    "top k": (24, 17, G + "<int64[1] k = {2}> { y, i = TopK(x, k) }"),
    "squeeze": (25, 12, G + "<int64[1] k = {0}> { a = Unsqueeze(x, k)  b = Abs(a)  y = Squeeze(b, k) }"),
}


@pytest.mark.parametrize("name", DOWN)
def test_down(name):
    opset, target, body = DOWN[name]
    # The model from a converter's hand may carry an IR version that onnxruntime refuses, too.
    model = parse(body.replace("(y)", "(float y)"), opset, ir_version=11)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    prepared = to_proto(prepare(model, max_opset=target, max_ir=10))
    assert {o.domain: o.version for o in prepared.opset_import} == {"": target}
    assert prepared.ir_version <= 10
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": X})
    np.testing.assert_allclose(run(prepared, x=X)[0], expected[0], rtol=1e-5, atol=1e-6)


def test_within_the_limits_nothing_changes():
    model = parse(G.replace("(y)", "(float[2, 4, 6] y)") + "{ y = Softmax(x) }", 17)
    for limits in ({}, {"opset": 13}, {"max_opset": 21}, {"opset": 17, "max_opset": 17}):
        assert prepare(model, **limits).opset_imports[""] == 17


def test_weights_keep_names_and_metadata():
    body = "g (float[N, 2] x) => (float[N, 1] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {5, 6}> { h = Gemm(x, w, b)  y = ReduceSum <axes = [1]> (h) }"
    model = parse(body, 11)
    model.metadata_props.add(key="k", value="v")
    model.doc_string = "about"
    prepared = to_proto(prepare(model, opset=21))
    assert list(weights(prepared)) == list(weights(model)) == ["w", "b"]
    assert (prepared.doc_string, prepared.metadata_props[0].value, prepared.graph.name) == ("about", "v", "g")
    assert [d.dim_param or d.dim_value for d in prepared.graph.input[0].type.tensor_type.shape.dim] == [
        "N",
        2,
    ]


REFUSED = {
    "no such operator": (23, 21, "float[2, 4, 6] x, float[6] s", "y = RMSNormalization(x, s)", "does not exist"),
    "group norm": (18, 21, "float[2, 4, 6] x, float[2] s", "y = GroupNormalization <num_groups = 2> (x, s, s)", "meaning changed"),
    "young value": (19, 18, "float[2, 4, 6] x, int64[6] p", 'y = Pad <mode = "wrap"> (x, p)', "wrap"),
    "young attribute": (21, 18, "float[2, 4, 6] x", "z = Cast <to = 10> (x)  y = Cast <to = 1, saturate = 0> (z)", "Cast"),
    "young type": (14, 12, "bfloat16[2, 4, 6] x", "z = Relu(x)  y = Cast <to = 1> (z)", "Relu"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    opset, target, inputs, body, message = REFUSED[name]
    model = parse(f"g ({inputs}) => (float[A, B, C] y) {{ {body} }}", opset)
    model.graph.node[0].name = "the node"
    ir_model = ir.from_proto(model)
    before = to_proto(ir_model).SerializeToString()
    with pytest.raises(
        InvalidModelError,
        match=f"(?s)cannot be converted from opset {opset} to {target}.*{message}|{message}",
    ):
        ConvertOpsetPass(target)(ir_model)
    assert to_proto(ir_model).SerializeToString() == before
    with pytest.raises(InvalidModelError, match=r"'the node'|Cast"):
        prepare(ir_model, opset=target if target > opset else None, max_opset=target)


def test_branches_that_would_have_to_be_rewritten():
    node = onnx.helper.make_node(
        "Scan", ["", "x"], ["y"], num_scan_inputs=1,
        body=onnx.helper.make_graph(
            [onnx.helper.make_node("Neg", ["a"], ["b"])], "body", [onnx.helper.make_tensor_value_info("a", 1, [6])],
            [onnx.helper.make_tensor_value_info("b", 1, [6])],
        ),
    )  # fmt: skip
    infos = [onnx.helper.make_tensor_value_info(n, 1, [2, 4, 6]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", infos[:1], infos[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 8)], ir_version=8)
    with pytest.raises(InvalidModelError, match="branches"):
        prepare(model, opset=13)


def test_unknown_ranks_stay_unknown():
    """The converter takes a shape it doesn't know for that of a scalar."""
    model = parse(
        "g (float[A, B] x, int64[R] s) => (float[C, D, E] y) { r = Reshape(x, s)  u = Squeeze <axes = [0]> (r)"
        "  v = Softmax(u)  y = Unsqueeze <axes = [0]> (v) }",
        11,
    )
    prepared = to_proto(prepare(model, opset=18))
    feeds = {"x": X[0], "s": np.array([1, 6, 4])}
    np.testing.assert_allclose(run(prepared, **feeds)[0], run(model, **feeds)[0], rtol=1e-6)


def test_unknown_target():
    with pytest.raises(InvalidModelError, match="goes up to"):
        ConvertOpsetPass(999)(to_ir(parse("g (float[N] x) => (float[N] y) { y = Abs(x) }", 18)))


def test_other_domains_are_left_alone():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 11, "my.domain": 3]> g (float[N, 2] x) => (float[N, 2] y)'
        "{ a = my.domain.Thing <axes = [1]> (x)  y = ReduceSum <axes = [1]> (a) }"
    )
    prepared = prepare(model, opset=18)
    assert prepared.opset_imports == {"": 18, "my.domain": 3}
    assert prepared.graph.node(0).attributes.get_ints("axes") == (1,)


@pytest.mark.parametrize(
    ("ir_version", "max_ir", "expected"),
    [(3, None, 8), (8, None, 8), (14, None, 14), (14, 10, 10), (9, 10, 9)],
)
def test_ir_version(ir_version, max_ir, expected):
    model = ir.from_proto(parse("g (float[N] x) => (float[N] y) { y = Abs(x) }", 18, ir_version))
    SetIrVersionPass(max_ir)(model)
    assert model.ir_version == expected


def test_ir_version_that_the_content_needs():
    model = parse("g (float[2] x) => (int4[2] y) { y = Cast <to = 22> (x) }", 21, 10)
    with pytest.raises(
        InvalidModelError, match=r"needs IR version 10 because of value 'y' of type INT4; at most 9"
    ):
        prepare(model, max_ir=9)
