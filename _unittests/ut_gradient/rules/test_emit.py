"""What gradients are emitted with: fewer nodes where shapes are known, the same numbers otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxcustom.gradient.emit import GradientBuilder
from onnxcustom.gradient.simplify import fuse_biases, simplify

Emit = Callable[..., Any]


def run(emit: Emit, arrays: list[np.ndarray], shapes: list) -> tuple[np.ndarray, list[str], GradientBuilder]:
    """What is emitted for inputs declared with these shapes, evaluated by onnx's reference."""
    op = GradientBuilder(18)
    inputs = [
        op.input(f"x{i}", ir.DataType.from_numpy(a.dtype), s)
        for i, (a, s) in enumerate(zip(arrays, shapes, strict=True))
    ]
    result = op.Identity(emit(op, *inputs))
    graph = op.graph(inputs, [result])
    model = ir.Model(graph, ir_version=9)
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    value = evaluator.run(None, {f"x{i}": a for i, a in enumerate(arrays)})[0]
    declared = result.value.shape
    if declared is not None:
        assert len(declared) == value.ndim
        assert all(not isinstance(d, int) or d == n for d, n in zip(declared, value.shape, strict=True))
    return value, [n.op_type for n in op.nodes if n.op_type != "Identity"], op


def declared(array: np.ndarray, how: str) -> list | None:
    return {
        "static": list(array.shape),
        "dynamic": [f"d{i}_{id(array)}" for i in range(array.ndim)],
        "unranked": None,
    }[how]


WIDE = np.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize("how", ["static", "dynamic", "unranked"])
@pytest.mark.parametrize(
    "narrow", [(2, 3, 4), (3, 4), (4,), (), (1, 3, 1), (1, 4), (2, 1, 4), (1,), (1, 1, 1)], ids=str
)
def test_sum_to(how: str, narrow: tuple[int, ...]) -> None:
    x = np.zeros(narrow)
    value, ops, _ = run(lambda op, g, x: op.sum_to(g, x), [WIDE, x], [declared(WIDE, how), declared(x, how)])
    lead = WIDE.ndim - len(narrow)
    axes = (*range(lead), *(lead + i for i, n in enumerate(narrow) if n == 1 != WIDE.shape[lead + i]))
    np.testing.assert_array_equal(value, WIDE.sum(axis=axes, keepdims=True).reshape(narrow))
    if how == "static":
        assert len(ops) <= 2
        assert "Shape" not in ops


def test_sum_to_of_a_shared_symbol() -> None:
    """Dimensions of the same name are the same: no Shape at run time."""
    value, ops, _ = run(lambda op, g, x: op.sum_to(g, x), [WIDE[0], WIDE[0]], [["N", 4], ["N", 4]])
    np.testing.assert_array_equal(value, WIDE[0])
    assert ops == []


@pytest.mark.parametrize("how", ["static", "dynamic", "unranked"])
@pytest.mark.parametrize("name", ["reshape_like", "expand_like"])
def test_shape_of_another(how: str, name: str) -> None:
    x = np.arange(12.0).reshape(1, 12) if name == "reshape_like" else np.arange(4.0)
    like = np.zeros((3, 4))
    value, ops, _ = run(
        lambda op, x, y: getattr(op, name)(x, y), [x, like], [declared(x, how), declared(like, how)]
    )
    expected = x.reshape(3, 4) if name == "reshape_like" else np.broadcast_to(x, (3, 4))
    np.testing.assert_array_equal(value, expected)
    assert ("Shape" in ops) == (how != "static")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_full_like(dtype: Any, how: str) -> None:
    x = WIDE.astype(dtype)
    value, _, _ = run(lambda op, x: op.full_like(x, 2), [x], [declared(x, how)])
    assert value.dtype == dtype
    np.testing.assert_array_equal(value, np.full(x.shape, 2, dtype))


PADS = {
    "around": ([1, 0], [0, 2], [0, 2]),
    "crop": ([-1, 0], [0, -2], [0, 2]),
    "both": ([1, -1], [-1, 1], [0, -1]),
    "nothing": ([0, 0], [0, 0], [0, 1]),
}


@pytest.mark.parametrize("how", ["static", "dynamic"])
@pytest.mark.parametrize("case", PADS)
def test_pad(how: str, case: str) -> None:
    before, after, axes = PADS[case]
    op = GradientBuilder(18)
    x = op.input("x", ir.DataType.DOUBLE, declared(WIDE, how))
    op.pad(x, before, after, axes)
    expected = {"around": ["Pad"], "crop": ["Slice"], "both": ["Pad"], "nothing": []}[case]
    assert [n.op_type for n in op.nodes] == expected
    if expected == ["Pad"]:
        # All axes: onnxruntime moves a Transpose over a Pad as if there were no `axes`.
        (node,) = op.nodes
        assert len(node.inputs) == 2
        assert len(node.inputs[1].const_value.numpy()) == 2 * WIDE.ndim


def test_pad_behind_a_transpose_runs_on_onnxruntime() -> None:
    from onnxcustom.runtime import create_session

    op = GradientBuilder(18)
    x = op.input("x", ir.DataType.FLOAT, ["A", "B", "C", "D"])
    y = op.pad(op.Transpose(op.Relu(x), perm=[0, 2, 3, 1]), [1], [2], [3])
    z = op.Transpose(y, perm=[0, 3, 1, 2])
    model = ir.to_proto(ir.Model(op.graph([x], [z]), ir_version=8))
    values = np.ones((2, 3, 4, 5), np.float32)
    found = create_session(model).run(None, {"x": values})[0]
    np.testing.assert_array_equal(found, np.pad(values, [(0, 0), (1, 2), (0, 0), (0, 0)]))


def test_scatter_add_keeps_repeated_indices() -> None:
    into, indices, updates = np.zeros((3, 2)), np.array([[0, 1], [0, 1], [2, 1]]), np.ones((3, 2))
    value, _, _ = run(lambda op, *xs: op.scatter_add(*xs), [into, indices, updates], [[3, 2]] * 3)
    np.testing.assert_array_equal(value, [[2, 0], [0, 3], [1, 0]])


# -- shapes of what is emitted: `run` compares them with those of the values -----------------------

EMITTED: dict[str, Emit] = {
    "Concat": lambda op, x: op.Concat(x, x, axis=-1),
    "ConstantOfShape": lambda op, x: op.ConstantOfShape(op.Shape(x)),
    "Expand": lambda op, x: op.Expand(x, np.array([5, 1, 1, 1])),
    "Flatten": lambda op, x: op.Flatten(x, axis=-1),
    "Gather": lambda op, x: op.Gather(x, np.array([[0, 1]]), axis=1),
    "Gemm": lambda op, x: op.Gemm(op.Flatten(x), op.Flatten(x), transB=1),
    "MatMul": lambda op, x: op.MatMul(x, op.Transpose(x, perm=[0, 2, 1])),
    "MatMul broadcast": lambda op, x: op.MatMul(x, op.Transpose(op.unsqueeze(x, [0]), perm=[0, 1, 3, 2])),
    "Pad": lambda op, x: op.Pad(x, np.array([0, 1, 0, 0, 0, 2])),
    "ReduceSum": lambda op, x: op.ReduceSum(x, np.array([-1, 0]), keepdims=0),
    "ReduceSum kept": lambda op, x: op.ReduceMean(x, np.array([1])),
    "ReduceSum all": lambda op, x: op.ReduceSum(x, keepdims=0),
    "Reshape": lambda op, x: op.Reshape(x, np.array([0, -1, 2])),
    "Reshape dynamic": lambda op, x: op.Reshape(x, op.Concat(op.Shape(x, end=2), np.array([2, -1]), axis=0)),
    "Shape": lambda op, x: op.Shape(x, start=1),
    "Slice": lambda op, x: op.Slice(x, np.array([1]), np.array([2**62]), np.array([-1]), np.array([2])),
    "Slice back": lambda op, x: op.Slice(
        x, np.array([-1]), np.array([-(2**62)]), np.array([1]), np.array([-1])
    ),
    "Sum": lambda op, x: op.Sum(x, x, x),
    "Transpose": lambda op, x: op.Transpose(x, perm=[2, 0, 1]),
    "Trilu": lambda op, x: op.Trilu(x),
}


@pytest.mark.parametrize("how", ["static", "dynamic", "unranked"])
@pytest.mark.parametrize("name", EMITTED)
def test_shapes(name: str, how: str) -> None:
    _, _, op = run(EMITTED[name], [WIDE], [declared(WIDE, how)])
    if how != "unranked":
        (value,) = (n.inputs[0] for n in op.nodes if n.op_type == "Identity")
        assert value.shape is not None, "at least the rank is known"


# -- fewer nodes -----------------------------------------------------------------------------------

MERGED = {
    "reshape": ("float[N, 12]", "a = Reshape(x, s1) y = Reshape(a, s2)", "Reshape"),
    "reshape with zero": ("float[N, 12]", "a = Reshape(x, s1) y = Reshape(a, s3)", "Reshape"),
    "flatten": (
        "float[N, 3, 4]",
        "a = Flatten <axis = 2> (x) b = Reshape(a, s1) c = Flatten <axis = 1> (b) y = Relu(c)",
        "Flatten Relu",
    ),
    "there and back": ("float[N, 12]", "a = Reshape(x, s1) b = Reshape(a, s4) y = Relu(b)", "Relu"),
    "transposed twice": (
        "float[N, 3, 4]",
        "a = Transpose <perm = [1, 2, 0]> (x) b = Transpose <perm = [2, 0, 1]> (a) y = Relu(b)",
        "Relu",
    ),
    "transposed otherwise": (
        "float[N, 3, 4]",
        "a = Transpose <perm = [1, 2, 0]> (x) b = Transpose <perm = [1, 0, 2]> (a) y = Relu(b)",
        "Transpose Relu",
    ),
    "sum": (
        "float[N, 12]",
        "u = Relu(x) v = Tanh(x) a = Reshape(u, s1) b = Reshape(v, s1) c = Add(a, b) y = Relu(c)",
        "Relu Tanh Add Reshape Relu",
    ),
    "product with one": (
        "float[N, 12]",
        "a = Mul(one, x) b = Div(a, one) c = Mul(b, ones) d = Div(one, c) e = Div(c, wide) y = Relu(d)",
        "Div Relu",
    ),
    "product of matrices and number": (
        "float[N, 12]",
        "a = Gemm <transB = 1, alpha = 0.25> (x, x, half) b = Mul(half, a) y = Neg(b)",
        "Gemm",
    ),
    "product of matrices read twice": (
        "float[N, 12]",
        "a = Gemm <transB = 1> (x, x) b = Mul(half, a) y = Sub(b, a)",
        "Gemm Mul Sub",
    ),
    "expanded to the shape of the other": (
        "float[N, 12]",
        "s = Shape(x) e = Expand(half, s) y = Mul(e, x)",
        "Mul",
    ),
    "expanded to a known shape": ("float[2, 12]", "e = Expand(half, s5) y = Sub(e, x)", "Sub"),
    "expanded both": (
        "float[2, 12]",
        "a = Expand(half, s5) t = Relu(one) b = Expand(t, s5) c = Add(a, b) y = Div(c, x)",
        "Relu Expand Add Div",
    ),
    "expanded beyond the other": (
        "float[2, 12]",
        "a = ReduceSum(x, last) b = Expand(half, s5) y = Sum(a, b)",
        "ReduceSum Expand Sum",
    ),
    "dimension kept and removed": (
        "float[N, 12]",
        "a = ReduceMean(x, last) b = Relu(a) c = ReduceMax <keepdims = 1> (x, last) d = Squeeze(c, second) "
        "y = Mul(b, d)",
        "ReduceMean Relu ReduceMax Mul",
    ),
    "dimensions kept": (
        "float[2, 12]",
        "a = ReduceSum(x, both) y = Squeeze(a, second)",
        "ReduceSum Squeeze",
    ),
    "constants": (
        "float[N, 12]",
        "a = Add(var, half) b = Sqrt(a) c = Reciprocal(b) d = Mul(c, var) e = Neg(d) y = Mul(x, e)",
        "Mul",
    ),
    "sum of other shapes": (
        "float[N, 12]",
        "u = Relu(x) v = Transpose(u) a = Reshape(u, s2) b = Reshape(v, s2) c = Add(a, b) y = Relu(c)",
        "Relu Transpose Reshape Reshape Add Relu",
    ),
}


@pytest.mark.parametrize("name", MERGED)
def test_simplify(name: str) -> None:
    kind, body, expected = MERGED[name]
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]> g ({kind} x) => (float[K, M] y)
        <int64[3] s1 = {{-1, 3, 4}},
        int64[2] s2 = {{-1, 6}}, int64[2] s3 = {{0, 12}}, int64[2] s4 = {{-1, 12}}, float one = {{1}},
        int64[2] s5 = {{2, 12}}, int64[1] last = {{-1}}, int64[1] second = {{1}}, int64[2] both = {{0, 1}},
        float[1, 1] ones = {{1}}, float[1, 1, 1] wide = {{1}}, float half = {{0.5}},
        float[12] var = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}> {{ {body} }}"""
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    before = ReferenceEvaluator(model)
    made = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    op = GradientBuilder(
        18, taken={v.name for n in made.graph for v in n.outputs} | set(made.graph.initializers)
    )
    simplify(made.graph, op)
    for value in op.initializers:
        made.graph.register_initializer(value)
    RemoveUnusedNodesPass()(made)
    assert [n.op_type for n in made.graph] == expected.split()
    x = np.random.default_rng(0).normal(size=(2, 12) if "12" in kind else (2, 3, 4)).astype(np.float32)
    after = ReferenceEvaluator(ir.to_proto(made))
    np.testing.assert_array_equal(after.run(None, {"x": x})[0], before.run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("kind", "shape", "nodes"),
    [
        ("float", "32, 33", "MatMul"),
        ("double", "1100, 1", "MatMul"),
        ("float", "3, 4", "ReduceSum"),
        ("float", "N, 400", "ReduceSum"),
        ("float16", "32, 33", "ReduceSum"),
        ("float", "32, 33, 1", "ReduceSum"),
    ],
)
def test_sum_of_rows(kind: str, shape: str, nodes: str) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]> g ({kind}[{shape}] x) => ({kind}[K] y)
        <int64[1] axis = {{0}}> {{ y = ReduceSum <keepdims = 0> (x, axis) }}"""
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    made, op = ir.from_proto(model), GradientBuilder(18)
    simplify(made.graph, op)
    for value in op.initializers:
        made.graph.register_initializer(value)
    assert [n.op_type for n in made.graph] == nodes.split()
    sizes = [3 if d == "N" else int(d) for d in shape.split(", ")]
    x = (
        np.random.default_rng(0)
        .normal(size=sizes)
        .astype(onnx.helper.tensor_dtype_to_np_dtype(made.graph.inputs[0].dtype))
    )
    found = ReferenceEvaluator(ir.to_proto(made)).run(None, {"x": x})[0]
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found, x.sum(axis=0), rtol=1e-5, atol=1e-2 if kind == "float16" else 1e-5)


@pytest.mark.parametrize(
    ("bias", "fused"),
    [("float[5]", 1), ("float[1, 5]", 1), ("float[1]", 1), ("float[2, 5]", 0), ("float[N, 1]", 0)],
)
def test_fuse_biases(bias: str, fused: int) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 4] x, float[4, 5] w, {bias} b) => (float[N, 5] y)
        {{ p = MatMul(x, w)  y = Add(b, p) }}"""
    )
    made = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    fuse_biases(made.graph)
    assert [n.op_type for n in made.graph] == (["Gemm"] if fused else ["MatMul", "Add"])
    onnx.checker.check_model(ir.to_proto(made), full_check=True)


def test_fuse_biases_leaves_values_that_are_read() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 4] x, float[4, 5] w, float[5] b) => (float[N, 5] y, float[N, 5] p)
        { p = MatMul(x, w)  y = Add(b, p) }"""
    )
    made = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    fuse_biases(made.graph)
    assert [n.op_type for n in made.graph] == ["MatMul", "Add"]
