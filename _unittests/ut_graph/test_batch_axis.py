"""Which axis of a tensor holds the rows of a batch."""

import onnx.parser
import pytest

from onnxcustom.exceptions import InvalidModelError, UnknownNameError
from onnxcustom.graph import prepare
from onnxcustom.graph.shapes.batch_axis import BatchAxes

HEAD = '<ir_version: 8, opset_import: ["": 17]> g '


def axes_of(text, overrides=None):
    model = prepare(onnx.parser.parse_model(HEAD + text))
    axes = BatchAxes(model, overrides)
    return axes, {**axes.inputs, **{str(v.name): axes.of(str(v.name)) for v in model.graph.outputs}}


PAIR = "{ s = ReduceSum<keepdims = 0>(h) y = Add(x, s) }"
CASES = {
    "a table": ("(float[N,2] x) => (float[N,2] y) { y = Neg(x) }", {"x": 0, "y": 0}),
    "no names": ("(float[?,2] x) => (float[?,2] y) { y = Neg(x) }", {"x": 0, "y": 0}),
    "other names": ("(float[a,2] x) => (float[b,2] y) { y = Neg(x) }", {"x": 0, "y": 0}),
    "transposed": (
        "(float[N,T,2] x) => (float[T,N,2] y) { y = Transpose<perm = [1,0,2]>(x) }",
        {"x": 0, "y": 1},
    ),
    "transposed, no names": (
        "(float[?,?,2] x) => (float[?,?,2] y) { y = Transpose<perm = [1,0,2]>(x) }",
        {"x": 0, "y": 1},
    ),
    "transposed, other names": (
        "(float[a,b,2] x) => (float[c,d,2] y) { y = Transpose<perm = [2,1,0]>(x) }",
        {"x": 0, "y": 2},
    ),
    "last": ("(float[N,2] x) => (float[2,N] y) { y = Transpose(x) }", {"x": 0, "y": 1}),
    "time first": ("(float[T,N,2] x) => (float[T,N,2] y) { y = Neg(x) }", {"x": 0, "y": 0}),
    "state": (f"(float[N,2] x, float[2,N,3] h) => (float[N,2] y) {PAIR}", {"x": 0, "h": 1, "y": 0}),
    "state of fixed size": (
        f"(float[N,2] x, float[2,1,3] h) => (float[N,2] y) {PAIR}",
        {"x": 0, "h": None, "y": 0},
    ),
    "scalar": (f"(float[N,2] x, float h) => (float[N,2] y) {PAIR}", {"x": 0, "h": None, "y": 0}),
    "a mask of time": (
        f"(float[N,T,2] x, float[T,T] h) => (float[N,T,2] y) {PAIR}",
        {"x": 0, "h": None, "y": 0},
    ),
    "two names: the first input's": (
        f"(float[N,T,2] x, float[T,N] h) => (float[N,T,2] y) {PAIR}",
        {"x": 0, "h": 1, "y": 0},
    ),
    "two names that are rows": (
        f"(float[N,2] x, float[M,3] h) => (float[N,2] y) {PAIR}",
        {"x": 0, "h": 0, "y": 0},
    ),
    "most inputs": (
        "(float[T,N,2] x, float[N,3] h, float[N] k) => (float[T,N,2] y) "
        "{ s = ReduceSum<keepdims = 0>(h) t = ReduceSum<keepdims = 0>(k) u = Add(s, t) y = Add(x, u) }",
        {"x": 1, "h": 0, "k": 0, "y": 1},
    ),
    "an unnamed first input and a name": (
        f"(float[?,T,2] x, float[T,T] h) => (float[?,T,2] y) {PAIR}",
        {"x": 0, "h": None, "y": 0},
    ),
    "fixed at one": ("(float[1,T,2] x) => (float[1,T,2] y) { y = Neg(x) }", {"x": 0, "y": 0}),
    "fixed at one, squeezed": (
        "(float[1,T,2] x) => (float[T,2] y) { a = Constant<value = int64[1] {0}>() y = Squeeze(x, a) }",
        {"x": 0, "y": None},
    ),
    "fixed at one, transposed": (
        "(float[1,T,2] x) => (float[T,1,2] y) { y = Transpose<perm = [1,0,2]>(x) }",
        {"x": 0, "y": 1},
    ),
    "fixed at eight": (f"(float[8,2] x, float[8,3] h) => (float[8,2] y) {PAIR}", {"x": 0, "h": 0, "y": 0}),
    "fixed at eight, a row for all": (
        f"(float[8,2] x, float[1,3] h) => (float[8,2] y) {PAIR}",
        {"x": 0, "h": None, "y": 0},
    ),
    "one number": ("(float[N,2] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }", {"x": 0, "y": None}),
    "one row": (
        "(float[N,2] x) => (float[1,2] y) { y = ReduceMean<axes = [0]>(x) }",
        {"x": 0, "y": None},
    ),
    "through a reshape": (
        "(float[N,2,3] x) => (float[k,6] y) { s = Constant<value = int64[2] {-1, 6}>() y = Reshape(x, s) }",
        {"x": 0, "y": 0},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_model_says(name):
    text, expected = CASES[name]
    assert axes_of(text)[1] == expected


def test_overrides():
    text = f"(float[T,N,2] x, float[2,N,3] h) => (float[T,N,2] y) {PAIR}"
    assert axes_of(text)[1] == {"x": 0, "h": None, "y": 0}
    # What an axis is called is the name of the batch.
    assert axes_of(text, {"x": 1})[1] == {"x": 1, "h": 1, "y": 1}
    assert axes_of(text, {"h": -2})[1] == {"x": 1, "h": 1, "y": 1}
    assert axes_of(text, {"x": None, "h": 1, "y": None})[1] == {"x": None, "h": 1, "y": None}
    assert axes_of(text, {"h": 1})[0].carrier == "x"
    assert axes_of(text, {"x": None, "h": None})[0].carrier is None


def test_rows_that_the_model_fixes():
    assert axes_of("(float[8,2] x) => (float[8,2] y) { y = Neg(x) }")[0].rows() == 8
    assert axes_of("(float[N,2] x) => (float[N,2] y) { y = Neg(x) }")[0].rows() is None
    assert axes_of("(float[2,8] x) => (float[2,8] y) { y = Neg(x) }", {"x": 1})[0].rows() == 8


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"z": 0}, UnknownNameError, "'z', which is no input and no output"),
        ({"x": 2}, InvalidModelError, "'x' is 2; it has 2 dimensions"),
        ({"x": -3}, InvalidModelError, "'x' is -3"),
        ({"x": True}, InvalidModelError, "an axis or None, not True"),
        ({"x": "N"}, InvalidModelError, "an axis or None, not 'N'"),
        (1, InvalidModelError, "a dict from name"),
    ],
)
def test_what_is_no_axis(overrides, error, message):
    with pytest.raises(error, match=message):
        axes_of("(float[N,2] x) => (float[N,2] y) { y = Neg(x) }", overrides)
