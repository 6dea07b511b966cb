# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Scores behind probabilities, and labels, in every spelling."""

import numpy as np
import onnx.parser
import pytest

from onnxcustom.exceptions import UnknownNameError
from onnxcustom.graph import Logits, class_axis, class_labels, find_logits, hidden_logits, prepare, to_ir


def model(body, columns=3, outputs="float[N, K] p", constants="", opset=18):
    inner = f"<{constants}>" if constants else ""
    return prepare(
        onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["": {opset}, "ai.onnx.ml": 3]>'
            f"g (float[N, {columns}] x) => ({outputs}) {inner} {{ z = Abs(x) {body} }}"
        )
    )


ONE = "float one = {1}"
SOFTMAX = Logits("z", "softmax", 3)
FOUND = {
    "softmax": ("p = Softmax(z)", {}, SOFTMAX),
    "softmax, last axis": ("p = Softmax <axis = 1> (z)", {}, SOFTMAX),
    "softmax, opset 11": ("p = Softmax(z)", {"opset": 11}, SOFTMAX),
    "softmax, other axis": ("p = Softmax <axis = 0> (z)", {}, Logits("z", "softmax", None, 0)),
    "softmax, cast": ("s = Softmax(z)  c = Cast <to = 11> (s)  p = Cast <to = 1> (c)", {}, SOFTMAX),
    "softmax, norm": ("s = Softmax(z)  p = ai.onnx.ml.Normalizer <norm = \"L1\"> (s)", {}, Logits("z", "softmax", 3)),
    "softmax, lp": ("s = Softmax(z)  p = LpNormalization <p = 1, axis = 1> (s)", {}, SOFTMAX),
    "softmax, reshape": ("s = Softmax(z)  p = Reshape(s, k)", {"constants": "int64[2] k = {-1, 3}"}, SOFTMAX),
    "softmax, flatten": ("s = Softmax(z)  p = Flatten(s)", {}, SOFTMAX),
    "softmax, zipmap": (
        "s = Softmax(z)  p = ai.onnx.ml.ZipMap <classlabels_int64s = [1, 2, 3]> (s)",
        {"outputs": "seq(map(int64, float)) p"}, SOFTMAX,
    ),
    "sigmoid": ("p = Sigmoid(z)", {"columns": 1}, Logits("z", "sigmoid", 1)),
    "sigmoids": ("p = Sigmoid(z)", {}, Logits("z", "sigmoid", 3)),
    "sigmoids, normalized": (
        "s = Sigmoid(z)  p = LpNormalization <p = 1> (s)", {}, Logits("z", "sigmoid", 3, -1, True),
    ),
    "sigmoids by hand": (
        "s = Sigmoid(z)  t = ReduceSum(s, k)  p = Div(s, t)", {"constants": "int64[1] k = {1}"},
        Logits("z", "sigmoid", 3, -1, True),
    ),
    "sigmoid and complement": (
        "s = Sigmoid(z)  q = Sub(one, s)  p = Concat <axis = 1> (q, s)", {"columns": 1, "constants": ONE},
        Logits("z", "sigmoid", 1),
    ),
    "mirrored": (
        "q = Neg(z)  c = Concat <axis = 1> (q, z)  p = Sigmoid(c)", {"columns": 1}, Logits("z", "sigmoid", 1),
    ),
    "sigmoid, flat": (
        "s = Sigmoid(z)  p = Reshape(s, k)", {"columns": 1, "constants": "int64[1] k = {-1}", "outputs": "float[N] p"},
        Logits("z", "sigmoid", 1),
    ),
    "exp, neg": (
        "n = Neg(z)  e = Exp(n)  a = Add(one, e)  p = Reciprocal(a)", {"columns": 1, "constants": ONE},
        Logits("z", "sigmoid", 1),
    ),
    "exp, mul": (
        "n = Mul(m, z)  e = Exp(n)  a = Add(e, one)  p = Reciprocal(a)", {"constants": f"{ONE}, float[1] m = {{-1}}"},
        Logits("z", "sigmoid", 3),
    ),
    "exp, div": (
        "n = Neg(z)  e = Exp(n)  a = Add(e, one)  p = Div(one, a)", {"constants": ONE}, Logits("z", "sigmoid", 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_found(name):
    body, options, expected = FOUND[name]
    found = find_logits(model(body, **options), "p")
    # A normalization that changes nothing does not count: softmax has sums of 1 already.
    assert found == expected


NOT_FOUND = {
    "scores": "p = Identity(z)",
    "tanh": "p = Tanh(z)",
    "log softmax": "p = LogSoftmax(z)",
    "gated": "s = Softmax(z)  p = Mul(s, z)",
    "cast to integers": "s = Softmax(z)  i = Cast <to = 7> (s)  p = Cast <to = 1> (i)",
    "transposed": "s = Softmax(z)  p = Transpose(s)",
    "mixed rows": "s = Softmax(z)  p = Reshape(s, k)",
    "maximum norm": 's = Softmax(z)  p = ai.onnx.ml.Normalizer <norm = "MAX"> (s)',
    "l2 norm": "s = Softmax(z)  p = LpNormalization <p = 2, axis = 1> (s)",
    "complement of another": "s = Sigmoid(z)  t = Sigmoid(x)  q = Sub(one, s)  p = Concat <axis = 1> (q, t)",
    "complement of softmax": "s = Softmax(z)  q = Sub(one, s)  p = Concat <axis = 1> (q, s)",
    "complement of several": "s = Sigmoid(z)  q = Sub(one, s)  p = Concat <axis = 1> (q, s)",
    "not one": "n = Neg(z)  e = Exp(n)  a = Add(two, e)  p = Reciprocal(a)",
    "not negative": "e = Exp(z)  a = Add(one, e)  p = Reciprocal(a)",
    "input": "p = Identity(x)",
}


@pytest.mark.parametrize("name", NOT_FOUND)
def test_not_found(name):
    constants = f"{ONE}, float two = {{2}}, int64[2] k = {{1, -1}}"
    outputs = "float[A, B] p"
    assert find_logits(model(NOT_FOUND[name], constants=constants, outputs=outputs), "p") is None


def test_softmax_of_old_over_several_axes():
    old = prepare(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 11]> g (float[N, 3, 2] x) => (float[N, 3, 2] p) { p = Softmax(x) }'
        )
    )
    assert find_logits(old, "p") is None


# -- ranks that have to be known --------------------------------------------------------------------------

HIDE = "f = Shape(x) t = Compress <axis = 0> (f, all) h = Reshape(x, t) z = Abs(h)"


def of_unknown_rank(end, outputs="float[N, 3] p", opset=11, columns=3):
    """A model in which inference knows no rank behind a Reshape to a computed shape."""
    return prepare(
        onnx.parser.parse_model(
            f'<ir_version: 6, opset_import: ["": {opset}, "ai.onnx.ml": 1]> g (float[N, {columns}] x) => '
            f"({outputs}) <bool[2] all = {{1, 1}}> {{ {HIDE} {end} }}"
        )
    )


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 17])
@pytest.mark.parametrize(
    "end",
    [
        "p = Softmax <axis = 1> (z)",
        "s = Softmax <axis = 1> (z)  p = Identity(s)",
        "s = Softmax <axis = 1> (z)  c = Cast <to = 11> (s)  p = Cast <to = 1> (c)",
    ],
)
def test_the_declared_rank_of_the_output_decides(end, opset):
    # Without declared shapes, from opset 13 on the axis is one whatever the rank is.
    assert find_logits(of_unknown_rank(end, opset=opset), "p") == Logits("z", "softmax", 3, -1)


@pytest.mark.parametrize("opset", [11, 12])
def test_the_last_axis_needs_no_rank(opset):
    found = find_logits(without_shape(of_unknown_rank("p = Softmax <axis = -1> (z)", opset=opset)), "p")
    assert (found.name, found.kind, found.axis) == ("z", "softmax", -1)


def without_shape(model):
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    return model


def test_nothing_says_how_many_axes():
    model = without_shape(of_unknown_rank("p = Softmax <axis = 1> (z)"))
    assert find_logits(model, "p") is None
    assert "takes all axes from 1 on together, and nothing says how many" in hidden_logits(model, "p")


@pytest.mark.parametrize(
    ("shape", "axis", "found"),
    [
        ("N, 3, 1, 1", 1, 1),
        ("N, 3, 1", 1, 1),
        ("N, 1, 3", 1, -1),
        ("N, T, 3", 2, -1),
        ("N, 1, 1", 1, 1),
        ("N, 3, 2", 1, None),
        ("N, 3, T", 1, None),
        ("N, 3", 0, None),
        ("1, 3", 0, -1),
    ],
)
def test_softmax_of_old_over_axes_of_length_one(shape, axis, found):
    model = prepare(
        onnx.parser.parse_model(
            f'<ir_version: 6, opset_import: ["": 11]> g (float[{shape}] x) => (float[{shape}] p)'
            f"{{ z = Abs(x)  p = Softmax <axis = {axis}> (z) }}"
        )
    )
    logits = find_logits(model, "p")
    assert (None if logits is None else logits.axis) == found
    if found is None:
        assert "no axis is that of the classes" in hidden_logits(model, "p")


HIDDEN = {
    "scaled": "s = Softmax(z)  p = Mul(s, two)",
    "transposed": "s = Softmax(z)  p = Transpose(s)",
    "mixed rows": "s = Softmax(z)  p = Reshape(s, k)",
    "a column": "s = Softmax(z)  p = Gather <axis = 1> (s, k)",
    "cut": "s = Sigmoid(z)  p = Unsqueeze(s, j)",
    "complement of several": "s = Sigmoid(z)  q = Sub(one, s)  p = Concat <axis = 1> (q, s)",
    "exp": "e = Exp(z)  a = Add(one, e)  p = Reciprocal(a)",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_probabilities_whose_scores_are_no_tensor(name):
    constants = f"{ONE}, float two = {{2}}, int64[2] k = {{1, -1}}, int64[1] j = {{1}}"
    made = model(HIDDEN[name], constants=constants, outputs="float[A, B] p")
    assert find_logits(made, "p") is None
    assert hidden_logits(made, "p").startswith("comes from ")


@pytest.mark.parametrize("name", ["scores", "tanh", "log softmax", "gated", "input"])
def test_scores_are_not_hidden(name):
    assert hidden_logits(model(NOT_FOUND[name], constants=ONE, outputs="float[A, B] p"), "p") is None


def test_a_constant_that_is_trained_is_none():
    constants = f"{ONE}, float[3] m = {{-1, -1, -1}}"
    made = model("n = Mul(m, z)  e = Exp(n)  a = Add(e, one)  p = Reciprocal(a)", constants=constants)
    assert find_logits(made, "p") == Logits("z", "sigmoid", 3)
    assert find_logits(made, "p", ["m"]) is None
    assert "constants of which are among the weights to train" in hidden_logits(made, "p", ["m"])


@pytest.mark.parametrize(
    ("end", "axis"), [("LogSoftmax <axis = 1> (z)", 1), ("LogSoftmax(z)", -1), ("Abs(z)", None)]
)
def test_axis_of_log_softmax(end, axis):
    made = prepare(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 18]> g (float[N, 4, 3] x) => (float[N, 4, 3] p)'
            f"{{ z = Abs(x)  p = {end} }}"
        )
    )
    assert class_axis(made, "p") == axis


@pytest.mark.parametrize(
    ("body", "axis"),
    [
        ("s = Softmax <axis = 1> (z)  p = Log(s)", 1),
        ("s = Softmax(z)  l = Log(s)  p = Identity(l)", -1),
        ("l = ReduceLogSumExp(z, second)  p = Sub(z, l)", -2),
        ("s = Sigmoid(z)  p = Log(s)", None),
        ("s = Softmax(z)  l = Log(s)  p = Neg(l)", None),
    ],
)
def test_the_axis_of_logarithms(body, axis):
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N, 3, 5] x) => (float[N, 3, 5] p) '
        f"<int64[1] second = {{1}}> {{ z = Abs(x) {body} }}"
    )
    assert class_axis(prepare(made), "p") == axis


def test_unknown_output():
    with pytest.raises(UnknownNameError, match=r"no output 'q'; its outputs are \['p'\]"):
        find_logits(model("p = Softmax(z)"), "q")


ARGMAX = "i = ArgMax <axis = 1, keepdims = 0> (z)"
LABELS = {
    "zipmap": ("p = ai.onnx.ml.ZipMap <classlabels_int64s = [4, 5, 6]> (z)", "seq(map(int64, float)) p", "", [4, 5, 6]),
    "zipmap texts": ('p = ai.onnx.ml.ZipMap <classlabels_strings = ["é", "b"]> (z)', "seq(map(string, float)) p", "", ["é", "b"]),
    "gather": (f"{ARGMAX} p = Gather(t, i)", "int64[N] p", "int64[3] t = {7, 8, 9}", [7, 8, 9]),
    "gather texts": (f"{ARGMAX} p = Gather(t, i)", "string[N] p", 'string[2] t = {"a", "b"}', ["a", "b"]),
    "extractor": (
        f"{ARGMAX} e = ai.onnx.ml.ArrayFeatureExtractor(t, i)  p = Cast <to = 7> (e)", "int64[A, B] p",
        "int32[3] t = {7, 8, 9}", [7, 8, 9],
    ),
    "float labels": (f"{ARGMAX} p = Gather(t, i)", "float[N] p", "float[3] t = {7, 8, 9}", [7, 8, 9]),
    "threshold": (
        "b = Greater(z, h)  c = Cast <to = 7> (b)  p = Gather(t, c)", "int64[A, B] p", "float h = {0.5}, int64[2] t = {3, 4}",
        [3, 4],
    ),
    "linear": (
        "p, q = ai.onnx.ml.LinearClassifier <coefficients = [1.0, 2.0, 3.0], intercepts = [0.5], classlabels_ints = [3, 5]> (z)",
        "int64[N] p", "", [3, 5],
    ),
    "other operator": (
        'p, q = ai.onnx.ml.SVMClassifier <classlabels_strings = ["u", "v"], coefficients = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], rho = [0.5]> (z)',
        "string[N] p", "", ["u", "v"],
    ),
    "embedding": ("c = Cast <to = 7> (z)  p = Gather(t, c)", "int64[A, B] p", "int64[2] t = {3, 4}", None),
    "table of rows": (f"{ARGMAX} p = Gather(t, i)", "int64[A, B] p", "int64[2, 2] t = {3, 4, 5, 6}", None),
    "none": ("p = Softmax(z)", "float[A, B] p", "", None),
    "fractions": (f"{ARGMAX} p = Gather(t, i)", "float[N] p", "float[2] t = {0.5, 1}", None),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_labels(name):
    body, outputs, constants, expected = LABELS[name]
    inner = f"<{constants}>" if constants else ""
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18, "ai.onnx.ml": 3]> g (float[N, 3] x) => ({outputs}) {inner} {{ z = Abs(x) {body} }}'
    )
    for source in (to_ir(proto), prepare(proto)):
        found = class_labels(source)
        if expected is None:
            assert found is None
        else:
            assert found.tolist() == expected
            assert found.dtype == (np.dtype(np.int64) if isinstance(expected[0], int) else found.dtype)
