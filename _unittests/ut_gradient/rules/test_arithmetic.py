from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from rule_cases import Case, check_case
from second_order import check_second_order

import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.reduction
import onnxcustom.gradient.rules.shaping  # noqa: F401
from onnxcustom.gradient.registry import find_rule, non_differentiable_reason

rng = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


def positive(*shape: int) -> np.ndarray:
    return rng.uniform(0.5, 2, size=shape)


def inside(*shape: int) -> np.ndarray:
    """Inside (-1, 1), away from 0."""
    return rng.uniform(0.2, 0.8, size=shape) * rng.choice([-1, 1], size=shape)


BROADCAST = {
    "same": ((2, 3), (2, 3)),
    "row": ((2, 3), (3,)),
    "column": ((2, 3), (2, 1)),
    "outer": ((2, 1), (1, 3)),
    "left": ((3,), (4, 2, 3)),
    "scalar": ((2, 3), ()),
    "one": ((1,), (2, 2)),
    "ones": ((1, 1), (1,)),
    "empty": ((0, 3), (3,)),
    "batch": ((2, 1, 3), (4, 1)),
}

BINARY = [
    # onnxruntime 1.19 sums an empty tensor over no axes to one element: only static shapes avoid it.
    Case(op_type, [positive(*a), positive(*b)], label=label, dynamic=label != "empty")
    for op_type in ("Add", "Sub", "Mul", "Div", "Pow")
    for label, (a, b) in BROADCAST.items()
]
BINARY += [Case(op_type, [r(2, 3), positive(3)], label="signs") for op_type in ("Add", "Sub", "Mul", "Div")]
BINARY += [
    Case("Div", [r(2, 3), positive(3)], constant=[1], label="constant"),
    Case("Mul", [r(2, 3), positive(3)], constant=[0], label="constant"),
    Case("Mod", [np.array([[5.3, -5.3, 7.1]]), np.array([[2.1], [-2.2]])], {"fmod": 1}),
    Case("Mod", [np.array([0.3, -0.4]), np.array(3.0)], {"fmod": 1}, label="scalar"),
]


def exponent(
    value: object, base: np.ndarray, label: str, dtype: type = np.float64, **kw: object
) -> list[Case]:
    """The exponent as a constant and as an input."""
    power = np.array(value, dtype=dtype)
    wrt = None if kw.pop("both", False) else [0]
    return [
        Case("Pow", [base, power], constant=[1], label=f"{label}-constant", **kw),
        Case("Pow", [base, power], wrt=wrt, label=label, **kw),
    ]


POW = [
    *exponent(2.0, r(2, 3), "square"),
    *exponent(3.0, r(2, 3), "cube"),
    *exponent(1.0, r(2, 3), "one"),
    *exponent(0.0, r(2, 3), "zero"),
    *exponent(0.5, positive(2, 3), "root", both=True),
    *exponent(-1.0, r(2, 3), "reciprocal"),
    *exponent(-2.3, positive(2, 3), "real", both=True),
    *exponent(4.0, r(2, 3), "negative-base"),
    *exponent(3, r(2, 3), "int64", np.int64),
    *exponent(2, r(2, 3), "int32", np.int32),
    *exponent([0, 1, 2], r(2, 3), "int64-row", np.int64),
    *exponent([0.0, -1.0, 2.0], r(2, 3), "powers"),
    *exponent([0.0, -1.0, 2.0], positive(2, 3), "powers-both", both=True),
    *exponent([2.0], r(2, 3), "vector"),
    *exponent([[[2.0]]], r(2, 3), "rank-up"),
    Case("Pow", [positive(2, 3), r(2, 3)], constant=[0], label="constant-base"),
    Case("Pow", [np.array(2.5), r(2, 3)], constant=[0], label="constant-scalar-base"),
    Case("Pow", [np.array([[2.5]]), r(3)], constant=[0], label="constant-base-rank-up"),
    *(Case("Pow", [positive(2), positive(2)], opset=o) for o in (19, 21)),
    Case("Pow", [positive(2), positive(2)], opset=23, runtime="reference"),
]

DOMAINS = {
    "Sqrt": positive,
    "Log": positive,
    "Asin": inside,
    "Acos": inside,
    "Atanh": inside,
    "Acosh": lambda *s: 1 + positive(*s),
    "Reciprocal": positive,
    "Tan": inside,
}
SMOOTH = (
    "Identity Neg Exp Log Sqrt Reciprocal Erf Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh Acosh "
    "Atanh".split()
)
PIECEWISE = "Abs Sign Floor Ceil Round".split()
UNARY = [
    Case(op_type, [DOMAINS.get(op_type, inside)(*shape)], label=label)
    for op_type in SMOOTH + PIECEWISE
    if op_type != "Erf"  # its reference computes in float32
    for label, shape in {"": (2, 3), "scalar": (), "one": (1,), "empty": (2, 0)}.items()
]
UNARY += [
    Case(op_type, [DOMAINS.get(op_type, inside)(3)], opset=22, runtime="reference")
    for op_type in (
        "Sin",
        "Cos",
        "Tan",
        "Asin",
        "Acos",
        "Atan",
        "Sinh",
        "Cosh",
        "Asinh",
        "Acosh",
        "Atanh",
        "Round",
    )
]
UNARY += [
    Case(op_type, [DOMAINS.get(op_type, inside)(2, 3)], dtype=np.float32, runtime="ort", label="float32")
    for op_type in SMOOTH
]
UNARY += [Case("Identity", [r(2)], opset=o) for o in (19, 21)]
UNARY += [Case("Sin", [100 * r(2, 3)], label="far", runtime="ort", rtol=1e-5)]

VARIADIC = [
    Case(op_type, [r(*s) for s in shapes], label=label)
    for op_type in ("Sum", "Mean", "Max", "Min")
    for label, shapes in {
        "one": [(2, 3)],
        "two": [(2, 3), (2, 3)],
        "three": [(2, 3), (3,), (2, 1)],
        "scalars": [(), (), ()],
        "five": [(2, 2), (2,), (1,), (), (2, 1)],
    }.items()
]
VARIADIC += [Case("Max", [r(2, 3), np.array(0.1)], constant=[1], label="constant")]

BOOLS = np.array([[True, False, True], [False, False, True]])
WHERE = [
    Case("Where", [BOOLS, r(2, 3), r(2, 3)]),
    Case("Where", [BOOLS[0], r(2, 1), r(4, 1, 3)], label="broadcast"),
    Case("Where", [BOOLS, r(), r(2, 3)], label="scalar"),
    Case("Where", [BOOLS, r(2, 3), np.array(-3.0)], constant=[2], label="masked"),
    Case("Where", [np.array(True), r(3), r(2, 1)], label="scalar-condition"),
]

SPREAD = np.array([[-2.0, -0.4, 0.1], [0.6, 1.4, 3.0]])
LOW, HIGH = np.array(-0.5), np.array(1.0)
CLIP = [
    Case("Clip", [SPREAD, LOW, HIGH]),
    Case("Clip", [SPREAD, LOW, HIGH], constant=[1, 2], label="constant"),
    Case("Clip", [SPREAD, LOW], label="low"),
    Case("Clip", [SPREAD, None, HIGH], label="high"),
    Case("Clip", [SPREAD], label="unbounded"),
    Case("Clip", [SPREAD, HIGH, LOW], label="crossed"),
    Case("Clip", [np.array(3.0), LOW, HIGH], label="scalar"),
]

CAST = [
    Case("Cast", [r(2, 3)], {"to": onnx.TensorProto.DOUBLE}),
    Case(
        "Cast", [np.float32(r(2, 3))], {"to": onnx.TensorProto.DOUBLE}, dtype=np.float32, label="from-float"
    ),
    Case("Cast", [r(2, 3)], {"to": onnx.TensorProto.FLOAT}, rtol=1e-1, label="to-float"),
    *(Case("Cast", [r(2, 3)], {"to": onnx.TensorProto.DOUBLE}, opset=o) for o in (19, 21)),
    Case("CastLike", [r(2, 3), r(1)], wrt=[0]),
    Case("CastLike", [r(2, 3), np.float32(r(1))], rtol=1e-1, label="to-float", wrt=[0]),
    *(Case("CastLike", [r(2, 3), r(1)], opset=o, wrt=[0]) for o in (19, 21)),
]

CASES = BINARY + POW + UNARY + VARIADIC + WHERE + CLIP + CAST


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_finite_differences(case: Case) -> None:
    check_case(case)


SECOND = [
    c for c in CASES if c.dtype == np.float64 and c.label in ("", "row", "three", "real", "low", "broadcast")
]


@pytest.mark.parametrize("case", SECOND, ids=str)
def test_second_derivative(case: Case) -> None:
    check_second_order(case)


def gradients(case: Case, seed: object = 1.0) -> list[np.ndarray]:
    names = case.differentiable()
    proto = case.gradient("static", names)
    (y,) = case.evaluate(case.model(), case.feeds())
    feeds = {**case.feeds(), "y0_grad": np.broadcast_to(np.float64(seed), y.shape)}
    needed = {i.name for i in proto.graph.input}
    return case.evaluate(proto, {k: v for k, v in feeds.items() if k in needed})[: len(names)]


TIES = [
    (Case("Max", [[1.0, 2.0, 3.0], [1.0, 0.0, 5.0]]), [[0.5, 1, 0], [0.5, 0, 1]]),
    (Case("Min", [[1.0, 2.0, 3.0], [1.0, 0.0, 5.0]]), [[0.5, 0, 1], [0.5, 1, 0]]),
    (Case("Max", [[1.0], [1.0], [1.0], [0.0]]), [[1 / 3], [1 / 3], [1 / 3], [0]]),
    (Case("Max", [[-np.inf], [-np.inf]]), [[0.5], [0.5]]),
    (Case("Abs", [[0.0, -2.0]]), [[0, -1]]),
    (Case("Clip", [[-1.0, 0.0, 1.0, 2.0], np.array(0.0), np.array(1.0)]), [[0, 1, 1, 0], 1, 1]),
    (Case("Pow", [[0.0, 0.0, 0.0], [0.0, 1.0, 2.0]]), [[0, 1, 0], [0, 0, 0]]),
    (Case("Pow", [[-2.0, -2.0], [2.0, 0.0]], wrt=[0]), [[-4, 0]]),
    (Case("Pow", [[0.0, 3.0], np.array(0)]), [[0, 0]]),
    (Case("Pow", [[0.0, 3.0], np.array(1)], constant=[1]), [[1, 1]]),
]


@pytest.mark.parametrize(("case", "expected"), TIES, ids=lambda v: str(v) if isinstance(v, Case) else "")
def test_conventions(case: Case, expected: list) -> None:
    for found, wanted in zip(gradients(case), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-14)


def test_negative_base_has_no_gradient_of_the_exponent() -> None:
    base, power = gradients(Case("Pow", [[-2.0], [2.0]]))
    assert base == [-4]
    assert np.isnan(power).all()


def test_where_stops_nan() -> None:
    case = Case("Where", [np.array([True, False]), r(2), r(2)])
    a, b = gradients(case, seed=[np.nan, 1.0])
    assert np.isnan(a[0])
    assert a[1] == 0
    assert b[0] == 0
    assert b[1] == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("op_type", "Add Div Pow Max Mod Sin Sqrt Reciprocal Abs Where Clip".split())
def test_runs_in_every_float_type(op_type: str, dtype: type) -> None:
    inputs = {
        "Where": [BOOLS, positive(2, 3), positive(3)],
        "Clip": [SPREAD, LOW, HIGH],
        **{k: [positive(2, 3)] for k in ("Sin", "Sqrt", "Reciprocal", "Abs")},
    }.get(op_type, [positive(2, 3), positive(3)])
    attributes = {"fmod": 1} if op_type == "Mod" else {}
    case = Case(op_type, inputs, attributes, dtype=dtype, runtime="ort")
    names = case.differentiable()
    proto = case.gradient("dynamic", names)
    feeds = {**case.feeds(), "y0_grad": np.ones((2, 3), dtype)}
    for found in case.evaluate(
        proto, {k: v for k, v in feeds.items() if k in {i.name for i in proto.graph.input}}
    ):
        assert found.dtype == dtype
        assert np.isfinite(found).all()


@pytest.mark.parametrize(
    "op_type",
    "Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor Not IsInf IsNaN BitShift BitwiseAnd BitwiseNot "
    "BitwiseOr BitwiseXor".split(),
)
def test_non_differentiable(op_type: str) -> None:
    assert non_differentiable_reason(op_type, "")
    assert find_rule(op_type, "", 21) is None


def nodes(case: Case, shapes: str = "static") -> list[str]:
    """Operators of the gradient graph besides the forward node."""
    model = ir.from_proto(case.gradient(shapes, case.differentiable()))
    return [n.op_type for n in model.graph if n.op_type != "Identity"]


def test_few_nodes() -> None:
    assert nodes(Case("Add", [r(2, 3), r(2, 3)])) == ["Add"]
    assert nodes(Case("Add", [r(2, 3), r(3)])) == ["Add", "ReduceSum"]
    assert nodes(Case("Pow", [r(2, 3), np.array(2.0)], constant=[1])) == ["Pow", "Add", "Mul"]
    assert nodes(Case("Div", [r(2), r(2)])) == ["Div", "Div", "Mul", "Neg"]
    assert nodes(Case("Sqrt", [r(2)])) == ["Sqrt", "Add", "Div"]


def test_pytorch() -> None:
    torch = pytest.importorskip("torch")
    a, b = np.array([0.0, 0.0, 2.0, 1.5, 0.0]), np.array([0.0, 2.0, 0.0, -1.5, -1.0])
    ta, tb = (torch.tensor(v, requires_grad=True) for v in (a, b))
    (ta**tb).sum().backward()
    found = gradients(Case("Pow", [a, b], runtime="ort"))
    np.testing.assert_allclose(found[0], ta.grad, rtol=1e-12)
    np.testing.assert_allclose(found[1], tb.grad, rtol=1e-12)
    for op_type, function in {"Max": torch.maximum, "Min": torch.minimum}.items():
        a, b = np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])
        ta, tb = (torch.tensor(v, requires_grad=True) for v in (a, b))
        function(ta, tb).sum().backward()
        for f, t in zip(gradients(Case(op_type, [a, b])), (ta, tb), strict=True):
            np.testing.assert_allclose(f, t.grad)
    x, low, high = SPREAD, np.array(1.0), np.array(-0.5)
    for lo, hi in ((low, high), (high, low)):
        tx, tl, th = (torch.tensor(v, requires_grad=True) for v in (x, lo, hi))
        torch.clamp(tx, tl, th).sum().backward()
        for f, t in zip(gradients(Case("Clip", [x, lo, hi])), (tx, tl, th), strict=True):
            np.testing.assert_allclose(f, t.grad)
