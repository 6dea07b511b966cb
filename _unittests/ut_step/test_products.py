"""Sums over the rows of a batch as products with ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcustom import TrainingStep, optim
from onnxcustom.graph import to_proto
from onnxcustom.step.passes.products import bias_products

ort = pytest.importorskip("onnxruntime")


def rewritten(body: str, outputs: str, rows: int | str | None = "N", first: str = "N"):
    text = f"""<ir_version: 8, opset_import: ["": 18]>
        step (float[{first}, 40] d, float[{first}, 3] e, float[M, 40] m, float[40] b, float[1, 40] r,
        float[3] c) => ({outputs}) <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[2] both = {{0, 1}}> {{
        {body} }}"""
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True)
    model = ir.from_proto(proto)
    names = iter(["ones", "ones_2"])
    found = bias_products(model, rows, ir.DataType.FLOAT, lambda name: next(names))
    return proto, model, found


def run(proto: onnx.ModelProto, feeds: dict) -> list[np.ndarray]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    known = {i.name for i in session.get_inputs()}
    return session.run(None, {k: v for k, v in feeds.items() if k in known})


SUM = "ReduceSum <keepdims = 0>"


@pytest.mark.parametrize(
    ("body", "outputs", "left"),
    [
        (f"s = {SUM} (d, zero) y = Sub(b, s)", "float[40] y", ["Gemm"]),
        (f"s = {SUM} (e, zero) y = Add(s, c)", "float[3] y", ["Gemm"]),
        ("s = ReduceSum (d, zero) y = Sub(r, s)", "float[1, 40] y", ["Gemm"]),
        # Momentum: the new velocity is read again, by what may be a row, too.
        (f"s = {SUM} (d, zero) v = Add(b, s) y = Sub(b, v)", "float[40] v, float[40] y", ["Gemm", "Sub"]),
        # Alone, where there are columns enough.
        (f"y = {SUM} (d, zero)", "float[40] y", ["MatMul"]),
        ("y = ReduceSum (d, zero)", "float[1, 40] y", ["MatMul"]),
        (f"y = {SUM} (e, zero)", "float[3] y", ["ReduceSum"]),
        # Two readers, a reader that wants a vector, a sum that is taken from.
        (f"s = {SUM} (d, zero) y = Sub(b, s) z = Neg(s)", "float[40] y, float[40] z",
         ["MatMul", "Sub", "Neg"]),
        (f"s = {SUM} (d, zero) v = Sub(b, s) y = Concat <axis = 0> (v, b)", "float[80] y",
         ["MatMul", "Sub", "Concat"]),
        (f"s = {SUM} (d, zero) y = Sub(s, b)", "float[40] y", ["MatMul", "Sub"]),
        # Other sums: of another axis, of another number of rows.
        (f"y = {SUM} (d, one)", "float[N] y", ["ReduceSum"]),
        (f"y = {SUM} (d, both)", "float y", ["ReduceSum"]),
        (f"s = {SUM} (m, zero) y = Sub(b, s)", "float[40] y", ["ReduceSum", "Sub"]),
    ],
)  # fmt: skip
def test_structure_and_results(body, outputs, left):
    proto, model, ones = rewritten(body, outputs)
    assert [node.op_type for node in model.graph] == left
    rng = np.random.default_rng(0)
    shapes = {"d": (5, 40), "e": (5, 3), "m": (2, 40), "b": (40,), "r": (1, 40), "c": (3,)}
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    fed = {name: np.ones((1, 5)[2 - rank :], np.float32) for name, rank in ones.items()}
    for made, wanted in zip(run(to_proto(model), feeds | fed), run(proto, feeds), strict=True):
        np.testing.assert_allclose(made.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5)


def test_rows_that_are_a_number():
    _, model, ones = rewritten(f"s = {SUM} (d, zero) y = Sub(b, s)", "float[40] y", rows=5, first="5")
    assert ones == {"ones": 2}
    assert model.graph.inputs[-1].shape == [1, 5]


@pytest.mark.parametrize("rows", [None, "M"])
def test_rows_that_are_not_known_to_be_the_same(rows):
    _, model, ones = rewritten(f"s = {SUM} (d, zero) y = Sub(b, s)", "float[40] y", rows=rows)
    assert not ones
    assert [node.op_type for node in model.graph] == ["ReduceSum", "Sub"]


def test_biases_of_a_step_are_as_they_were(mlp_model):
    """Outputs that are rows in the graph: weights and states keep their shapes."""
    step = TrainingStep(mlp_model([3, 4, 2]), optimizer=optim.SGD(0.1, momentum=0.5), passes=True)
    shapes = {name: array.shape for name, array in step.weights().items()}
    step.run(np.ones((5, 3), np.float32), np.ones((5, 2), np.float32))
    assert not [n for n in step.recipe.graph(False).model.graph if n.op_type == "ReduceSum"]
    assert {name: array.shape for name, array in step.weights().items()} == shapes
    for name, states in step.state().items():
        assert {array.shape for array in states.values()} == {shapes[name]}


@pytest.mark.filterwarnings("ignore:The rows of a batch are taken to be")
def test_rows_of_the_prediction_that_are_not_those_of_the_batch():
    """Time first: the model's rows are steps of time, and the graph counts them itself."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        net (double[T, N, 2] x) => (double[N, 1] y)
        <double[2, 1] w = {1, 2}, double[1] b = {3}, int64[1] zero = {0}> {
            s = ReduceSum <keepdims = 0> (x, zero)  z = MatMul(s, w)  y = Add(z, b) }"""
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 4, 2)), rng.normal(size=(4, 1))
    steps = [TrainingStep(model, learning_rate=0.1, passes=passes) for passes in (True, False)]
    for _ in range(3):
        losses = [step.run(x, y) for step in steps]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for name, array in steps[1].weights().items():
        np.testing.assert_allclose(steps[0].weights()[name], array, rtol=1e-12)
