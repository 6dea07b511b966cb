# ruff: noqa: E501 - a node of ONNX text stays on its line
"""What ended or stopped the process, in onnx's shape inference or in onnxruntime: refused before it gets there."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper

from onnxcustom import gradient_report
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import Limits, prepare, use_limits, weights


def model(nodes, given="float[1, 2, 6, 6] x", made="float[A, B, C, D] y", data="", opset=18):
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1, "ai.onnx.ml": 3]> g ({given}) => ({made}) <{data}> {{ {nodes} }}'
    )


def zeros(name, *shape):
    return f"float[{', '.join(map(str, shape))}] {name} = {{{', '.join(['0'] * int(np.prod(shape)))}}}"


K = zeros("k", 2, 2, 2, 2)
VALID = {
    "convolution": model("y = Conv <strides = [1, 1]> (x, k)", data=K),
    "kernel given": model("y = Conv <kernel_shape = [2, 2], pads = [0, 0, 1, 1]> (x, k)", data=K),
    "pool": model("y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)"),
    "split": model("y, z = Split <axis = 1, num_outputs = 2> (x)"),
    "reflection": model('y = Pad <mode = "reflect"> (x, p)', data="int64[8] p = {0, 0, 5, 0, 0, 0, 0, 5}"),
    "gather": model("y = GatherND <batch_dims = 1> (x, i)", data="int64[1, 2] i = {0, 1}", made="float[A, B] y"),
    "einsum": model('y = Einsum <equation = "b...ij, b...jk -> b...ik"> (x, x)'),
    "loop": model("t = Constant <value_int = 3> ()  y = Loop(t, , x) <body = b (int64 i, bool c, float[1, 2, 6, 6] h) => (bool d, float[1, 2, 6, 6] o) { d = Identity(c)  o = Neg(h) }>"),
    "loop with a condition": model("y = Loop( , go, x) <body = b (int64 i, bool c, float[1, 2, 6, 6] h) => (bool d, float[1, 2, 6, 6] o) { s = ReduceMax <keepdims = 0> (h)  d = Less(s, t)  o = Exp(h) }>", data="float t = {1000}, bool go = {1}"),
    "normalization": model("y = LayerNormalization <axis = -1> (x, s)", data=zeros("s", 6)),
    "unknown size": model("y = Neg(x)", given="float[N, -1] x", made="float[A, B] y"),
}  # fmt: skip
INVALID = {
    "stride 0": (model("y = Conv <strides = [0, 1]> (x, k)", data=K), "attribute strides"),
    "dilation 0": (model("y = Conv <dilations = [1, 0]> (x, k)", data=K), "attribute dilations"),
    "group 0": (model("y = Conv <group = 0> (x, k)", data=K), "attribute group"),
    "huge window": (model("y = AveragePool <kernel_shape = [65536, 65536]> (x)"), "attribute kernel_shape"),
    "negative window": (model("y = MaxPool <kernel_shape = [2, -2]> (x)"), "attribute kernel_shape"),
    "ranks of a convolution": (
        model('y = Conv <auto_pad = "SAME_UPPER", kernel_shape = [3, 4]> (x, k)', given="float[A, B, C, D] x", data="float[6, 2, 0] k = {}"),
        "do not go with each other|contradicts itself",
    ),
    "kernel of another size": (model("y = Conv <kernel_shape = [3, 2]> (x, k)", data=K), "kernel_shape"),
    "block of 0": (model("y = DepthToSpace <blocksize = 0> (x)"), "attribute blocksize"),
    "parts": (model("y, z = Split <axis = 1, num_outputs = 1> (x)"), "splits into 1 parts and has 2"),
    "no parts": (model("y = Split <axis = 1, num_outputs = 0> (x)"), "splits into 0|num_outputs"),
    "negative batch dimensions": (model("y = GatherND <batch_dims = -2> (x, i)", data="int64[1, 2] i = {0, 1}", made="float[A, B] y"), "batch_dims"),
    "overflow": (model("y = CumSum <reverse = -9223372036854775808> (x, a)", data="int64 a = {0}"), "attribute reverse"),
    "reflection beyond": (model('y = Pad <mode = "reflect"> (x, p)', data="int64[8] p = {0, 0, 6, 0, 0, 0, 0, 0}"), "reflect more than the 6"),
    "equation": (model('y = Einsum <equation = "%s {0}"> (x)'), "equation"),
    "letters": (model('y = Einsum <equation = "abc->abc"> (x)', made="float[A, B, C] y"), "3 dimensions|contradicts itself"),
    "nothing to sum": (model("y = MatMul(x, e)", given="float[N] x", made="float y", data="float[0] e = {}"), "empty constant|contradicts itself"),
    "length 0": (model("y = DFT <axis = 1> (x, n)", given="float[2, 3, 2] x", made="float[A, B, C] y", data="int64 n = {0}"), "length is 0"),
    "several trip counts": (model("y = Loop(t, , x) <body = b (int64 i, bool c, float[1, 2, 6, 6] h) => (bool d, float[1, 2, 6, 6] o) { d = Identity(c)  o = Neg(h) }>", data="int64[2] t = {1, 2}"), "one number is read"),
    "no trip count": (model("y = Loop(t, , x) <body = b (int64 i, bool c, float[1, 2, 6, 6] h) => (bool d, float[1, 2, 6, 6] o) { d = Identity(c)  o = Neg(h) }>", data="int64[0] t = {}"), "one number is read"),
    "for ever": (model("y = Loop( , go, x) <body = b (int64 i, bool c, float[1, 2, 6, 6] h) => (bool d, float[1, 2, 6, 6] o) { d = Identity(c)  o = Neg(h) }>", data="bool go = {1}"), "would not end"),
    "nearly for ever": (model("y = Loop(t, , x) <body = b (int64 i, bool c, float[1, 2, 6, 6] h) => (bool d, float[1, 2, 6, 6] o) { d = Identity(one)  o = Neg(h) }>", data="int64 t = {4611686018427387904}, bool one = {1}"), "would not end"),
    "shape that is no vector": (model("y = Reshape(x, s)", data="int64 s = {1}", made="float[A] y"), "1 dimensions|contradicts itself"),
    "scale of another size": (model("y = LayerNormalization <axis = -1> (x, s)", data=zeros("s", 5)), "does not fit"),
    "empty bias": (model("y = LayerNormalization <axis = -1> (x, s, b)", data=f"{zeros('s', 6)}, float[0, 3, 4] b = {{}}"), "does not fit"),
    "too many operands": (model("y = Neg(x)"), "2 operands|Neg"),
    "heads": (model("y = com.microsoft.Attention <num_heads = 134217728> (x, w, b)", given="float[N, 4, 6] x", made="float[A, B, C] y", data=f"{zeros('w', 6, 18)}, {zeros('b', 18)}"), "attribute num_heads"),
    "where to sample": (model("y = GridSample(x, g)", data="float[1, 1, 1, 2] g = {1e30, 0}"), "grid holds"),
    "size of a result": (model("y = Expand(x, s)", data="int64[4] s = {1073741824, 2, 1073741824, 6}"), "takes .* bytes|contradicts itself"),
    "n-grams": (model('y = TfIdfVectorizer <mode = "TF", min_gram_length = 1, max_gram_length = 2, max_skip_count = 0, ngram_counts = [0, 9], ngram_indexes = [0, 1, 2], pool_int64s = [1, 2, 1, 2]> (x)', given="int64[N, 4] x", made="float[A, B] y"), "counts"),
}  # fmt: skip
INVALID["too many operands"][0].graph.node[0].input.append("x")


@pytest.mark.parametrize("name", VALID)
def test_valid(name):
    prepare(VALID[name])


@pytest.mark.parametrize("name", INVALID)
def test_invalid(name):
    made, message = INVALID[name]
    for function in (prepare, gradient_report):
        with pytest.raises(InvalidModelError, match=message):
            function(made)


RECURRENT = {"w": [1, 8, 3], "r": [1, 8, 2], "b": [1, 16], "h": [1, 4, 2], "p": [1, 6]}


def recurrent(attributes="hidden_size = 2", given="float[5, 4, 3] x", **shapes):
    data = ", ".join(zeros(n, *s) for n, s in {**RECURRENT, **shapes}.items())
    return model(
        f"_, y = LSTM <{attributes}> (x, w, r, b, , h, h, p)", given, "float[A, B, C] y", data, opset=14
    )


def test_recurrent():
    prepare(recurrent())
    both = {name: [2, *shape[1:]] for name, shape in RECURRENT.items()}
    prepare(recurrent('hidden_size = 2, direction = "bidirectional"', **both))
    prepare(recurrent("hidden_size = 2, layout = 1", given="float[4, 5, 3] x", h=[4, 1, 2]))


@pytest.mark.parametrize(
    "shapes",
    [
        *({"w": s} for s in ([2, 8, 3], [1, 9, 3], [1, 8, 4], [1, 0, 3])),
        *({"r": s} for s in ([2, 8, 2], [1, 7, 2], [1, 8, 3])),
        *({"b": s} for s in ([1, 15], [2, 16])),
        *({"h": s} for s in ([1, 3, 2], [2, 4, 2], [1, 4, 3])),
        {"p": [1, 5]},
        {"attributes": 'hidden_size = 2, direction = "sideways"'},
        {"attributes": 'hidden_size = 2, direction = "bidirectional"'},
        {"attributes": "hidden_size = 3"},
        {"given": "float[5, 4, 2] x"},
        {"given": "float[5, 4] x"},
    ],
    ids=str,
)
def test_recurrent_layers_have_weights_of_their_sizes(shapes):
    with pytest.raises(InvalidModelError, match=r"LSTM|contradicts itself"):
        prepare(recurrent(**shapes))


@pytest.mark.parametrize("operator", ["LSTM", "Einsum", "MaxUnpool"])
def test_an_input_of_unknown_rank_gets_the_one_that_is_read(operator):
    """onnxruntime then compares it with that of the data."""
    made = {
        "LSTM": recurrent(),
        "Einsum": model('y = Einsum <equation = "abcd->abcd"> (x)'),
        "MaxUnpool": model("y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (x, i)", given="float[1, 1, 2, 2] x, int64[A, B, C, D] i"),
    }[operator]  # fmt: skip
    value = made.graph.input[-1]
    value.type.tensor_type.ClearField("shape")
    rank = {"LSTM": 3, "Einsum": 4, "MaxUnpool": 4}[operator]
    assert len(prepare(made).graph.inputs[-1].shape) == rank


def test_operands_left_out_of_a_call():
    """onnx's checker looks at the body of a function, where nothing is missing."""
    made = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18, "local": 1]> g (float[N, 3] x) => (float[N, 3] y) { y = local.f(x) }
        <opset_import: ["": 18], domain: "local"> f (a, b) => (c) { c = Add(a, b) }"""
    )
    for function in (weights, prepare):
        with pytest.raises(InvalidModelError, match=r"Add.* is missing|Add.* operands"):
            function(made)


def test_tensors_folded_beforehand_stay_within_a_budget():
    made = model(
        "a = ConstantOfShape(s)  b = ConstantOfShape(s)  c = Add(a, b)  y = Add(x, c)",
        "float[N, 1000] x",
        "float[N, 1000] y",
        "int64[1] s = {1000}",
    )
    assert [n.op_type for n in prepare(made).graph] == ["Add", "Add"]
    with use_limits(Limits(folded_bytes=4000)):
        assert sorted(n.op_type for n in prepare(made).graph) == ["Add", "Add", "ConstantOfShape"]
    made.graph.initializer[0].int64_data[:] = [-5]
    with pytest.raises(InvalidModelError):
        prepare(made)


@pytest.mark.parametrize("size", [2**40, 2**62])
def test_what_a_known_shape_asks_for_is_not_made(size):
    made = model("y = ConstantOfShape(s)", made="float[A] y", data=f"int64[1] s = {{{size}}}")
    with pytest.raises(InvalidModelError, match=r"tensor_bytes|contradicts itself"):
        prepare(made)


def test_negative_sizes_are_unknown_ones():
    made = model(
        "y = Slice(x, a, b, c)",
        "float[N, 3, -3] x",
        "float[A, B, C] y",
        "int64[1] a = {0}, int64[1] b = {2}, int64[1] c = {2}",
    )
    shape = prepare(made).graph.inputs[0].shape
    assert list(shape)[1] == 3
    assert not isinstance(shape[2], int)


def test_long_vectors_are_not_looked_at_element_by_element():
    """onnx would make as many entries as the vector has elements, and not come back."""
    made = model(
        "y = Slice(x, a, b, a)",
        "float[2147483647] x",
        "float[3] y",
        "int64[1] a = {0}, int64[1] b = {3}",
        opset=14,
    )
    assert [list(v.shape) for v in prepare(made).graph.outputs] == [[3]]


def test_stash_type():
    made = model("y = LayerNormalization(x, s)", data=zeros("s", 6))
    made.graph.node[0].attribute.append(helper.make_attribute("stash_type", 2**32))
    with pytest.raises(InvalidModelError, match="stash_type"):
        prepare(made)
