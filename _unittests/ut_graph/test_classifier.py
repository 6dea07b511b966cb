# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Scores behind probabilities, and labels, in every spelling."""

import numpy as np
import onnx.parser
import pytest

from onnxcustom.exceptions import UnknownNameError
from onnxcustom.graph import Logits, class_labels, find_logits, prepare, to_ir


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
    "scaled": "s = Softmax(z)  p = Mul(s, one)",
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
