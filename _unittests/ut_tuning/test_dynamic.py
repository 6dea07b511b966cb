"""Files for one size of batch, made to take any: run row by row by onnx's own evaluator."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxcustom
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError, UnknownNameError
from onnxcustom.tuning import make_dynamic

pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)


def model(inputs, outputs, body, **tensors):
    made = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> m ({inputs}) => ({outputs}) {{ {body} }}'
    )
    for name, array in tensors.items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return made


def numbers(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def whole(*values):
    return np.array(values, np.int64)


def recurrent(layer, states, steps="float[5, 1, 3] x", outputs="float[5, 1, 1, 4] y", body="", **more):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[layer]
    weights = {"w": numbers(1, gates * 4, 3), "r": numbers(1, gates * 4, 4)}
    node = f"y, h = {layer}<hidden_size = 4>(x, w, r, , , {states})"
    return model(steps, outputs, f"{body} {node}", **weights, **more)


MODELS = {
    # Model, batch axis of the input and of the output.
    "reshape": (
        model(
            "float[1, 2, 3] x",
            "float[1, 4] y",
            "f = Reshape(x, s) y = MatMul(f, w)",
            s=whole(1, 6),
            w=numbers(6, 4),
        ),
        0,
        0,
    ),
    "reshape of four": (
        model("float[4, 6] x", "float[4, 2, 3] y", "y = Reshape(x, s)", s=whole(4, 2, 3)),
        0,
        0,
    ),
    "reshape with an open size": (
        model("float[1, T, 6] x", "float[1, T, 2, 3] y", "y = Reshape(x, s)", s=whole(1, -1, 2, 3)),
        0,
        0,
    ),
    "reshape to a computed shape": (
        model(
            "float[1, T, 6] x",
            "float[1, T, 2, 3] y",
            "a = Shape(x) t = Gather(a, i) s = Concat<axis = 0>(one, t, last) y = Reshape(x, s)",
            i=whole(1),
            one=whole(1),
            last=whole(2, 3),
        ),
        0,
        0,
    ),
    "rows made one with time, and taken apart": (
        model(
            "float[2, 3, 4] x",
            "float[2, 3, 5] y",
            "f = Reshape(x, s) z = Gemm(f, w) y = Reshape(z, t)",
            s=whole(6, 4),
            t=whole(2, 3, 5),
            w=numbers(4, 5),
        ),
        0,
        0,
    ),
    "squeezed away, and back": (
        model(
            "float[1, 6, 4] x",
            "float[1, 6, 5] y",
            "f = Squeeze(x, zero) z = MatMul(f, w) g = Unsqueeze(z, zero) y = Relu(g)",
            zero=whole(0),
            w=numbers(4, 5),
        ),
        0,
        0,
    ),
    "the only row by its index": (
        model(
            "float[1, 6, 4] x",
            "float[1, 6, 5] y",
            "f = Gather(x, zero) z = MatMul(f, w) y = Unsqueeze(z, axes)",
            zero=np.array(0),
            axes=whole(0),
            w=numbers(4, 5),
        ),
        0,
        0,
    ),
    "images of one pixel": (
        model(
            "float[1, 3, 1, 1] x",
            "float[1, 2] y",
            "z = Conv(x, w) y = Reshape(z, s)",
            s=whole(1, 2),
            w=numbers(2, 3, 1, 1),
        ),
        0,
        0,
    ),
    "a token in front": (
        model(
            "float[1, 3, 4] x",
            "float[1, 4, 4] y",
            "z = Concat<axis = 1>(token, x) y = Add(z, places)",
            token=numbers(1, 1, 4),
            places=numbers(1, 4, 4),
        ),
        0,
        0,
    ),
    "expanded to the size": (
        model(
            "float[1, 3, 4] x",
            "float[1, 4, 4] y",
            "t = Expand(token, s) y = Concat<axis = 1>(t, x)",
            token=numbers(1, 1, 4),
            s=whole(1, 1, 4),
        ),
        0,
        0,
    ),
    "constants repeated for every row": (
        model("float[4, 5] x", "float[4, 5] y", "y = Add(x, c)", c=np.repeat(numbers(1, 5), 4, axis=0)),
        0,
        0,
    ),
    "a slice of all rows": (
        model(
            "float[2, 5] x",
            "float[2, 3] y",
            "y = Slice(x, starts, ends)",
            starts=whole(0, 1),
            ends=whole(2, 4),
        ),
        0,
        0,
    ),
    "resized by sizes": (
        model(
            "float[1, 2, 3, 3] x",
            "float[1, 2, 6, 6] y",
            'y = Resize<mode = "nearest">(x, , , sizes)',
            sizes=whole(1, 2, 6, 6),
        ),
        0,
        0,
    ),
    "the mean of the only row": (
        model("float[1, 3, 4] x", "float[1, 3, 4] y", "m = ReduceMean(x) y = Sub(x, m)"),
        0,
        0,
    ),
    "states of zeros": (recurrent("LSTM", "h0, c0", h0=numbers(1, 1, 4) * 0, c0=numbers(1, 1, 4)), 1, 2),
    "states of a constant shape": (
        recurrent("LSTM", "h0, h0", body="h0 = ConstantOfShape<value = float[1] {0}>(s)", s=whole(1, 1, 4)),
        1,
        2,
    ),
    "a gated unit of two rows": (
        recurrent(
            "GRU",
            "h0",
            "float[5, 2, 3] x",
            "float[5, 1, 2, 4] y",
            h0=np.repeat(numbers(1, 1, 4), 2, axis=1),
        ),
        1,
        2,
    ),
    "time first": (
        model(
            "float[1, 5, 3] x",
            "float[1, 2] y",
            "t = Transpose<perm = [1, 0, 2]>(x) a, h = RNN<hidden_size = 2>(t, w, r, , , h0) "
            "z = Squeeze(h, zero) y = Reshape(z, s)",
            w=numbers(1, 2, 3),
            r=numbers(1, 2, 2),
            h0=numbers(1, 1, 2),
            zero=whole(0),
            s=whole(1, 2),
        ),
        0,
        0,
    ),
    "time and rows as rows of a matrix": (
        model(
            "float[5, 1, 4] x",
            "float[5, 1, 3] y",
            "f = Reshape(x, s) z = Gemm(f, w) y = Reshape(z, t)",
            s=whole(5, 4),
            t=whole(5, 1, 3),
            w=numbers(4, 3),
        ),
        1,
        1,
    ),
    "rows and heads of attention": (
        model(
            "float[5, 1, 4] x",
            "float[1, 2, 5, 5] y",
            "f = Reshape(x, s) q = Transpose<perm = [1, 0, 2]>(f) k = Transpose<perm = [1, 2, 0]>(f) "
            "z = MatMul(q, k) y = Reshape(z, t)",
            s=whole(5, 2, 2),
            t=whole(1, 2, 5, 5),
        ),
        1,
        0,
    ),
    "states of a constant and of a computed size": (
        recurrent(
            "GRU",
            "h0",
            "float[5, 2, 3] x",
            "float[5, 1, 2, 4] y",
            body="n = Shape<start = 1, end = 2>(x) s = Concat<axis = 0>(one, n, four) h0 = Expand(zero, s)",
            one=whole(1),
            four=whole(4),
            zero=np.zeros((1, 2, 4), np.float32),
        ),
        1,
        2,
    ),
    "a table where the batch is squeezed away": (
        model(
            "float[1, 6, 4] x",
            "float[1, 6, 4] y",
            "a = Squeeze(x, zero) b = Add(a, p) c = Softmax<axis = 0>(b) y = Unsqueeze(c, zero)",
            zero=whole(0),
            p=numbers(6, 4),
        ),
        0,
        0,
    ),
    "the largest number of the only row": (
        model("float[1, 4] x", "float[1, 4] y", "m = ReduceMax<keepdims = 0>(x) y = Sub(x, m)"),
        0,
        0,
    ),
    "the only row as a vector": (
        model(
            "float[1, 4] x",
            "float[1, 3] y",
            "v = Gather(x, zero) z = MatMul(v, w) y = Unsqueeze(z, first)",
            zero=np.array(0),
            first=whole(0),
            w=numbers(4, 3),
        ),
        0,
        0,
    ),
    "a branch": (
        model(
            "float[1, 2, 3] x",
            "float[1, 6] y",
            "n = Shape<start = 1, end = 2>(x) c = Equal(n, two) y = If (c) <then_branch = a () => (p) "
            "{ p = Reshape(x, s) }, else_branch = b () => (q) { r = Reshape(x, s) q = Neg(r) }>",
            two=whole(2),
            s=whole(1, 6),
        ),
        0,
        0,
    ),
    "a branch for every row": (
        model(
            "float[1, 2] x",
            "float[1, 2] y",
            "n = ReduceSum(x) c = Greater(n, zero) y = If (c) <then_branch = a () => (p) "
            "{ p = Reshape(x, s) }, else_branch = b () => (q) { q = Neg(x) }>",
            zero=np.array(0, np.float32),
            s=whole(1, 2),
        ),
        0,
        0,
    ),
    "a loop": (
        model(
            "float[1, 6] x",
            "float[1, 6] y",
            "y = Loop (three, , x) <body = b (int64 i, bool c, float[1, 6] v) => (bool d, float[1, 6] u) "
            "{ d = Identity(c) f = Reshape(v, s) g = Tanh(f) u = Reshape(g, t) }>",
            three=np.array(3),
            s=whole(1, 2, 3),
            t=whole(1, 6),
        ),
        0,
        0,
    ),
    "a scan": (
        model(
            "float[5, 1, 4] x",
            "float[1, 4] y",
            "y, z = Scan <num_scan_inputs = 1, body = b (float[1, 4] h, float[1, 4] v) "
            "=> (float[1, 4] u, float[1, 4] w) { a = Add(h, v) f = Reshape(a, s) g = Tanh(f) "
            "u = Reshape(g, t) w = Identity(u) }>(h0, x)",
            h0=numbers(1, 4),
            s=whole(1, 2, 2),
            t=whole(1, 4),
        ),
        1,
        0,
    ),
}


def axes_of(made):
    def dims(info):
        return [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim]

    return [dims(info) for info in (made.graph.input[0], made.graph.output[0])]


def row_by_row(given, x, axis, out_axis, block):
    evaluator = ReferenceEvaluator(given)
    blocks = np.split(x, x.shape[axis] // block, axis=axis)
    return np.concatenate([evaluator.run(["y"], {"x": b})[0] for b in blocks], axis=out_axis)


@pytest.mark.parametrize("name", MODELS)
def test_rows_together_are_rows_alone(name):
    given, axis, out_axis = MODELS[name]
    before = given.SerializeToString()
    made = make_dynamic(given, batch_axis={"x": axis} if axis else None)
    assert given.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    declared = axes_of(made)
    assert declared[0][axis] == declared[1][out_axis] == "N"
    dims = [d.dim_value or 7 for d in given.graph.input[0].type.tensor_type.shape.dim]
    block = dims[axis]
    dims[axis] = 2 * 3 * block
    x = np.random.default_rng(5).normal(size=dims).astype(np.float32)
    expected = row_by_row(given, x, axis, out_axis, block)
    for rows in (1, 2, 3 * block):
        some = x.take(range(rows), axis=axis)
        (found,) = ReferenceEvaluator(made).run(["y"], {"x": some})
        np.testing.assert_allclose(found, expected.take(range(rows), axis=out_axis), rtol=1e-4, atol=1e-5)


def test_names_of_weights_stay():
    given = MODELS["a branch for every row"][0]
    kept = {t.name for t in make_dynamic(given).graph.initializer}
    assert "zero" in kept
    given = MODELS["reshape"][0]
    assert list(onnxcustom.weights(make_dynamic(given))) == ["w"]


def test_several_inputs():
    given = model(
        "float[1, 3] x, float[2, 1, 3] h, float[3] scale",
        "float[1, 3] y, float[2, 1, 3] g",
        "a = Mul(x, scale) g = Add(h, a) z = ReduceSum<keepdims = 0>(g, zero) y = Reshape(z, s)",
        zero=whole(0),
        s=whole(1, 3),
    )
    made = make_dynamic(given, "rows")
    shapes = [[d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in made.graph.input]
    assert shapes == [["rows", 3], [2, "rows", 3], [3]]
    x, h, scale = numbers(5, 3), numbers(2, 5, 3), numbers(3)
    y, g = ReferenceEvaluator(made).run(None, {"x": x, "h": h, "scale": scale})
    np.testing.assert_allclose(g, h + x * scale, rtol=1e-5)
    np.testing.assert_allclose(y, g.sum(axis=0), rtol=1e-5)


def test_a_function_of_the_model():
    given = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "own": 1]>
        m (float[1, 2, 3] x) => (float[1, 6] y) { y = own.flat(x) }
        <domain: "own", opset_import: ["": 17]> flat (a) => (b) {
            s = Constant<value = int64[2] {1, 6}>() b = Reshape(a, s) }""")
    made = make_dynamic(given)
    x = numbers(3, 2, 3)
    np.testing.assert_array_equal(ReferenceEvaluator(made).run(None, {"x": x})[0], x.reshape(3, 6))


def test_a_batch_that_any_size_is_declared_of():
    given = model("float[M, 2, 3] x", "float[K, 6] y", "y = Reshape(x, s)", s=whole(1, 6))
    assert axes_of(make_dynamic(given)) == [["N", 2, 3], ["N", 6]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            model("float[2, 3] x", "float[2, 3] y", "y = Add(x, c)", c=numbers(2, 3)),
            r"Node '.*' \(Add\) .*'c' of shape \[2, 3\]",
        ),
        (model("float[1, 3] x", "float[1, 3] y", "y = Softmax<axis = 0>(x)"), r"\(Softmax\)"),
        (
            model(
                "float[1, 3] x",
                "float[1, 3] y",
                "q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)",
            ),
            r"\(DynamicQuantizeLinear\).*tuning\.dequantize",
        ),
        (model("float[N, 3] x", "float[N, 3] y", "m = ReduceMean(x) y = Sub(x, m)"), r"\(ReduceMean\)"),
        (
            model("float[1, T] x", "float[T] y", "y = Reshape(x, s)", s=whole(-1)),
            "'y' .*has no axis for the batch",
        ),
        (model("float[1, 3] x", "float[3] y", "y = Identity(c)", c=numbers(3)), "None of the outputs"),
    ],
)
def test_what_is_refused_is_named(given, words):
    with pytest.raises(InvalidModelError, match=words):
        make_dynamic(given)


def test_parameters():
    given = model("float[1, N, 3] x", "float[1, N, 3] y", "y = Neg(x)")
    with pytest.raises(InvalidParameterError, match="name of axis 1 of input 'x'"):
        make_dynamic(given)
    for wrong in ("", 3, None):
        with pytest.raises(InvalidParameterError, match="batch must be"):
            make_dynamic(given, wrong)
    with pytest.raises(UnknownNameError, match="batch_axis names 'z'"):
        make_dynamic(given, "B", batch_axis={"z": 0})
    with pytest.raises(InvalidParameterError, match="has 3 dimensions"):
        make_dynamic(given, "B", batch_axis={"x": 3})
    with pytest.raises(UnknownNameError, match="example names"):
        make_dynamic(given, "B", example={"z": 0})
    assert axes_of(make_dynamic(given, "B"))[0] == ["B", "N", 3]


def test_examples_for_inputs_that_numbers_do_not_fit():
    given = model(
        "int64[1, 4] x",
        "float[1, 4, 2] y",
        "z = Gather(t, x) y = Reshape(z, s)",
        s=whole(1, 4, 2),
        t=numbers(3, 2),
    )
    made = make_dynamic(given, example={"x": [[0, 1, 2, 0], [2, 2, 1, 0]]})
    x = np.array([[0, 1, 2, 2]] * 5)
    assert ReferenceEvaluator(made).run(None, {"x": x})[0].shape == (5, 4, 2)
    assert make_dynamic(given) == made
