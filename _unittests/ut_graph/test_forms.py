"""Operators in the form that each opset has: the same numbers as NumPy's, checked and run."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import prepare
from onnxcustom.graph.building.builder import Builder
from onnxcustom.graph.building.forms import _STAND_INS
from onnxcustom.objective.standalone import make_model
from onnxcustom.runtime import create_session, ort_limits

TOP = min(23, ort_limits()[0])
X = np.array([[[1.0, -2.0], [0.0, 3.0], [-0.5, 3.0]], [[4.0, 0.25], [-1.0, 7.0], [4.0, -3.0]]])
Y = np.array([[[1.0], [0.0], [2.5]]])
PLACES = np.array([[[2, 0]], [[1, 1]]])


def evaluate(emit, *arrays, opset, known=True):
    """What the function of the builder computes, of inputs whose shapes are known or not."""
    op = Builder(opset)
    inputs = [
        op.input(
            f"x{i}",
            ir.DataType.from_numpy(a.dtype),
            list(a.shape) if known else [1 if d == 1 else None for d in a.shape],
        )
        for i, a in enumerate(arrays)
    ]
    model = ir.to_proto(make_model(op, inputs, [("y", emit(op, *inputs))], "forms"))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    found = create_session(model).run(None, {f"x{i}": a for i, a in enumerate(arrays)})[0]
    # What the builder does not know of the shape, the checker asks for.
    for i in range(found.ndim):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = f"d{i}"
    onnx.checker.check_model(model, full_check=True)
    return found


def softmax(x, axis, log=False):
    e = np.exp(x - x.max(axis, keepdims=True))
    p = e / e.sum(axis, keepdims=True)
    return np.log(p) if log else p


def scattered(x, places, updates, axis):
    made = x.copy()
    np.put_along_axis(made, places, updates, axis)
    return made


# Operator -> the lowest opset it can be had in, what emits it, the arrays, and NumPy's result of them.
CASES = {
    "ArgMax": (7, lambda op, x: op.ArgMax(x, axis=1, keepdims=1), [X], lambda x: x.argmax(1)[:, None]),
    "Clip": (7, lambda op, x: op.Clip(x, -0.5, 2.0), [X], lambda x: np.clip(x, -0.5, 2)),
    "ConstantOfShape": (
        7,
        lambda op, x: op.ConstantOfShape(op.Shape(x), value=ir.tensor(np.array([3.0], np.float32))),
        [X],
        lambda x: np.full(x.shape, 3.0),
    ),
    "Equal": (7, lambda op, x, y: op.Cast(op.Equal(x, y), to=1), [X, Y], lambda x, y: x == y),
    "Expand": (
        7,
        lambda op, x, y: op.Expand(y, op.Shape(x)),
        [X, Y],
        lambda x, y: np.broadcast_to(y, x.shape),
    ),
    "GatherElements": (
        7,
        lambda op, x, i: op.GatherElements(x, i, axis=1),
        [X, PLACES],
        lambda x, i: np.take_along_axis(x, i, 1),
    ),
    "Greater": (7, lambda op, i: op.Cast(op.Greater(i, 1), to=1), [PLACES], lambda i: i > 1),
    "GreaterOrEqual": (
        7,
        lambda op, x, y: op.Cast(op.GreaterOrEqual(x, y), to=1),
        [X, Y],
        lambda x, y: x >= y,
    ),
    "Less": (7, lambda op, i: op.Cast(op.Less(i, 1), to=1), [PLACES], lambda i: i < 1),
    "LessOrEqual": (7, lambda op, x, y: op.Cast(op.LessOrEqual(x, y), to=1), [X, Y], lambda x, y: x <= y),
    "LogSoftmax": (7, lambda op, x: op.LogSoftmax(x, axis=1), [X], lambda x: softmax(x, 1, log=True)),
    "Max": (7, lambda op, x, y: op.Max(x, y, 0.5), [X, Y], lambda x, y: np.maximum(np.maximum(x, y), 0.5)),
    "Min": (7, lambda op, x, y: op.Min(x, y, 0.5), [X, Y], lambda x, y: np.minimum(np.minimum(x, y), 0.5)),
    "Mod": (7, lambda op, i: op.Mod(5 * i, 3), [PLACES], lambda i: 5 * i % 3),
    "Range": (
        9,
        lambda op, x: op.Range(1, op.Size(x), 3),
        [X],
        lambda x: np.arange(1, x.size, 3),
    ),
    "ScatterElements": (
        7,
        lambda op, x, i, u: op.ScatterElements(x, i, u, axis=1),
        [X, PLACES, np.array([[[10.0, 20.0]], [[30.0, 40.0]]])],
        lambda x, i, u: scattered(x, i, u, 1),
    ),
    "Sign": (7, lambda op, x: op.Sign(x), [X], np.sign),
    "Softmax": (7, lambda op, x: op.Softmax(x, axis=1), [X], lambda x: softmax(x, 1)),
    "Where": (7, lambda op, x, y: op.Where(op.Greater(x, y), x, y), [X, Y], np.maximum),
}


def test_every_stand_in_has_a_case():
    assert set(CASES) == set(_STAND_INS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_every_opset_computes_the_same(name, dtype):
    lowest, emit, arrays, wanted = CASES[name]
    arrays = [a if a.dtype.kind == "i" else a.astype(dtype) for a in arrays]
    for opset in range(lowest, TOP + 1):
        for known in (True, opset < 9):  # a size that is unknown needs Range
            found = evaluate(emit, *arrays, opset=opset, known=known)
            np.testing.assert_allclose(found, wanted(*arrays), rtol=1e-5, atol=1e-6, err_msg=f"opset {opset}")


@pytest.mark.parametrize("opset", [7, 8])
def test_what_cannot_be_had_says_so(opset):
    with pytest.raises(InvalidModelError, match=rf"Range of opset {opset} does not exist"):
        evaluate(CASES["Range"][1], X, opset=opset)


@pytest.mark.parametrize("opset", range(7, TOP + 1))
def test_where_leaves_out_what_is_infinite(opset):
    x, y = np.array([1, -np.inf, np.inf], np.float32), np.array([np.inf, 2, -np.inf], np.float32)
    found = evaluate(lambda op, x, y: op.Where(op.Less(x, y), x, y), x, y, opset=opset)
    np.testing.assert_array_equal(found, [1, -np.inf, -np.inf])


# -- operands that were attributes ------------------------------------------------------------------------

REDUCED = {
    "ReduceSum": np.sum,
    "ReduceMean": np.mean,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
    "ReduceL1": lambda x, axis, keepdims: abs(x).sum(axis, keepdims=keepdims),
    "ReduceL2": lambda x, axis, keepdims: np.sqrt((x * x).sum(axis, keepdims=keepdims)),
    "ReduceSumSquare": lambda x, axis, keepdims: (x * x).sum(axis, keepdims=keepdims),
}
MOVES = {
    "Squeeze": (lambda op, x: op.Squeeze(op.Unsqueeze(x, [0, 2]), [0, 2]), lambda x: x),
    "Unsqueeze": (lambda op, x: op.Unsqueeze(x, [-1]), lambda x: x[..., None]),
    "Unsqueeze, as an attribute": (lambda op, x: op.Unsqueeze(x, axes=[1]), lambda x: x[:, None]),
    "Slice": (lambda op, x: op.Slice(x, [1], [3], [1]), lambda x: x[:, 1:3]),
    "Slice, from behind": (lambda op, x: op.Slice(x, [0], [1], [-1], [1]), lambda x: x[..., :1]),
    "Clip, one side": (lambda op, x: op.Clip(x, None, 1.0), lambda x: np.minimum(x, 1)),
    "Clip, attributes": (lambda op, x: op.Clip(x, min=0.0, max=1.0), lambda x: np.clip(x, 0, 1)),
    "Pad": (lambda op, x: op.Pad(x, [0, 1, 0, 0, 0, 2], 5.0), lambda x: np.pad(
        x, [(0, 0), (1, 0), (0, 2)], constant_values=5)),
    "TopK": (lambda op, x: op.TopK(x, [1], axis=1, outputs=2)[0], lambda x: x.max(1, keepdims=True)),
    "Split": (lambda op, x: op.Split(x, [1, 2], axis=1, outputs=2)[1], lambda x: x[:, 1:]),
    "Reshape": (lambda op, x: op.Reshape(x, [0, -1], allowzero=0), lambda x: x.reshape(len(x), -1)),
}  # fmt: skip


@pytest.mark.parametrize("operand", [True, False])
@pytest.mark.parametrize("name", REDUCED)
def test_axes_of_reductions(name, operand):
    x = X.astype(np.float32)
    for opset in range(7, TOP + 1):
        for axes in ([1], [0, 2], [-1]):
            emit = functools.partial(_reduced, name=name, axes=axes, operand=operand)
            wanted = REDUCED[name](x, tuple(axes), keepdims=True)
            np.testing.assert_allclose(evaluate(emit, x, opset=opset), wanted, rtol=1e-5, err_msg=f"{opset}")


def _reduced(op, x, name, axes, operand):
    return op.call(name, x, axes, keepdims=1) if operand else op.call(name, x, axes=axes, keepdims=1)


@pytest.mark.parametrize("name", MOVES)
def test_constants_move_between_operands_and_attributes(name):
    emit, wanted = MOVES[name]
    x = X.astype(np.float32)
    for opset in range(7, TOP + 1):
        np.testing.assert_allclose(evaluate(emit, x, opset=opset), wanted(x), err_msg=f"opset {opset}")


def test_what_must_be_a_constant():
    with pytest.raises(InvalidModelError, match=r"ReduceSum of opset 12 has 'axes' as an attribute"):
        evaluate(lambda op, x, i: op.ReduceSum(x, i), X, np.array([1]), opset=12)
    evaluate(lambda op, x, i: op.ReduceSum(x, i), X, np.array([1]), opset=13)


def test_what_an_opset_cannot_say():
    with pytest.raises(InvalidModelError, match=r"ScatterElements of opset 15 has no 'reduction'"):
        evaluate(
            lambda op, x, i: op.ScatterElements(x, i, op.GatherElements(x, i), reduction="add"),
            X,
            np.zeros((1, 3, 2), np.int64),
            opset=15,
        )
    with pytest.raises(InvalidModelError, match=r"Slice of opset 9 has no 'steps'"):
        evaluate(lambda op, x: op.Slice(x, [0], [3], [1], [2]), X, opset=9)


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"])
def test_linear_models_of_every_opset(transform):
    """Operators of ai.onnx.ml become standard ones with the results of onnxruntime's own."""
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    for opset in range(7, TOP + 1):
        node = onnx.helper.make_node(
            "LinearClassifier", ["x"], ["label", "p"], domain="ai.onnx.ml", classlabels_ints=[3, 5, 7],
            coefficients=[1.0, -1, 0.5, 2, -0.5, 1], intercepts=[0.1, -0.2, 0.3], post_transform=transform,
        )  # fmt: skip
        graph = onnx.helper.make_graph(
            [node],
            "linear",
            [onnx.helper.make_tensor_value_info("x", 1, ["N", 2])],
            [
                onnx.helper.make_tensor_value_info("label", 7, ["N"]),
                onnx.helper.make_tensor_value_info("p", 1, ["N", 3]),
            ],
        )
        domains = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("ai.onnx.ml", 1)]
        model = onnx.helper.make_model(graph, opset_imports=domains, ir_version=8)
        made = ir.to_proto(prepare(model))
        onnx.checker.check_model(made, full_check=True)
        assert "ai.onnx.ml" not in {node.domain for node in made.graph.node}
        for found, wanted in zip(
            create_session(made).run(None, {"x": x}), create_session(model).run(None, {"x": x}), strict=True
        ):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=f"opset {opset}")
