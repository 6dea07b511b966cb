from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from rule_cases import Case, check_case
from second_order import check_second_order

import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.indexing
import onnxcustom.gradient.rules.reduction
import onnxcustom.gradient.rules.shaping
import onnxcustom.gradient.rules.slicing  # noqa: F401
from onnxcustom.gradient.registry import non_differentiable_reason

rng = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


def distinct(*shape: int) -> np.ndarray:
    """Numbers of both signs, none close to another or to 0."""
    x = rng.permutation(int(np.prod(shape))) + 0.5
    return (x * rng.choice([-0.3, 0.3], size=x.shape)).reshape(shape)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


OPS = {
    "ReduceSum": r,
    "ReduceMean": r,
    "ReduceMax": distinct,
    "ReduceMin": distinct,
    "ReduceProd": distinct,
    "ReduceL1": distinct,
    "ReduceL2": r,
    "ReduceLogSum": lambda *s: np.abs(distinct(*s)),
    "ReduceLogSumExp": r,
    "ReduceSumSquare": r,
}
AXES = {
    "": (ints(1), {}),
    "first": (ints(0), {}),
    "negative": (ints(-1), {}),
    "two": (ints(0, 2), {}),
    "two-negative": (ints(-1, -3), {}),
    "every": (ints(0, 1, 2), {}),
    "absent": (None, {}),
    "empty": (ints(), {}),
    "noop": (ints(), {"noop_with_empty_axes": 1}),
    "noop-axes": (ints(1), {"noop_with_empty_axes": 1}),
}
# onnxruntime 1.19 copies x where there is nothing to reduce, instead of squaring it or whatever else;
# its ReduceL2 of float64 is as exact as one of float32.
COMPOSED = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare", "ReduceLogSumExp")

REDUCE = [
    Case(
        op_type,
        [draw(2, 3, 2), *([] if axes is None else [axes])],
        {"keepdims": keepdims, **attributes},
        f"{label}-{'kept' if keepdims else 'gone'}{'' if constant else '-run-time'}",
        constant=[1] if constant else [],
        runtime="reference" if op_type == "ReduceL2" or (label == "noop" and op_type in COMPOSED) else "auto",
    )
    for op_type, draw in OPS.items()
    for label, (axes, attributes) in AXES.items()
    for keepdims in (0, 1)
    for constant in ((True,) if axes is None else (True, False))
]
REDUCE += [
    Case(
        op_type,
        [draw(*shape), *([] if axes is None else [axes])],
        {},
        label,
        constant=[1],
        **{**kw, **({"runtime": "reference"} if op_type == "ReduceL2" else {})},
    )
    for op_type, draw in OPS.items()
    for label, shape, axes, kw in [
        ("scalar", (), None, {}),
        ("vector", (4,), None, {}),
        ("ones", (1, 3, 1), ints(0, 2), {}),
        ("default", (2, 3), ints(0), {"opset": 21}),
        ("default", (2, 3), ints(0), {"opset": 20}),
        ("default", (2, 3), ints(0), {"opset": 23, "runtime": "reference"}),
    ]
]
REDUCE += [
    Case(op_type, [draw(2, 3, 2), ints(1)], {}, "float32", dtype=np.float32, runtime="ort", constant=[1])
    for op_type, draw in OPS.items()
]
# Shapes that only the static path knows: an empty sum is 0, its gradient has nothing in it.
REDUCE += [
    Case("ReduceSum", [r(0, 3), ints(0)], label="no-rows", constant=[1]),
    Case("ReduceMean", [r(2, 0), ints(0)], label="no-columns", constant=[1]),
]

CUMULATIVE = [
    Case(
        "CumSum",
        [r(3, 4), np.array(axis)],
        {"exclusive": e, "reverse": v},
        f"{axis}-{e}{v}",
        constant=constant,
    )
    for axis, constant in ((0, [1]), (1, []), (-1, [1]))
    for e in (0, 1)
    for v in (0, 1)
]
CUMULATIVE += [
    Case("CumSum", [r(4), np.array(0)]),
    Case("CumSum", [r(4), np.array(0, dtype=np.int32)], label="int32"),
    Case("CumSum", [r(1), np.array(0)], label="one"),
    Case("CumSum", [r(3), np.array(0)], opset=21),
]
PRODUCTS = [
    np.array([[2.0, 0.5, -3.0, 1.5]]),
    np.array([[2.0, 0.0, -3.0, 1.5]]),
    np.array([[2.0, 0.0, -3.0, 0.0]]),
]
CUMULATIVE += [
    Case(
        "CumProd",
        [x, np.array(1)],
        {"exclusive": e, "reverse": v},
        f"{zeros}-zeros-{e}{v}",
        opset=26,
        runtime="reference",
    )
    for zeros, x in enumerate(PRODUCTS)
    for e in (0, 1)
    for v in (0, 1)
]

ZEROS = [
    Case(
        "ReduceProd", [np.array(x), *axes], label=f"{label}-{zeros}-zeros", constant=[1], runtime="reference"
    )
    for zeros, x in enumerate(
        (
            [[2.0, 3.0, -1.5], [0.5, 1.0, 4.0]],
            [[2.0, 0.0, -1.5], [0.5, 1.0, 4.0]],
            [[0.0, 0.0, -1.5], [0.5, 1.0, 0.0]],
        )
    )
    for label, axes in {"all": [], "rows": [ints(1)], "columns": [ints(0)]}.items()
]

TOPK = [
    Case("TopK", [distinct(3, 4), ints(k)], attributes, label, outputs=2, **kw)
    for label, k, attributes, kw in [
        ("", 2, {}, {"constant": [1]}),
        ("run-time", 2, {}, {}),
        ("axis0", 1, {"axis": 0}, {}),
        ("negative-axis", 2, {"axis": -2}, {}),
        ("smallest", 2, {"largest": 0}, {}),
        ("unsorted", 3, {"sorted": 0}, {}),
        ("all", 4, {}, {}),
        ("none", 0, {}, {}),
        ("opset21", 2, {}, {"opset": 21}),
    ]
]

DET = [
    Case("Det", [x], label=label, runtime="reference")
    for label, x in {
        "": r(3, 3),
        "one": r(1, 1),
        "batch": r(2, 2, 2),
        "4d": r(1, 2, 3, 3),
        "singular": np.array([[1.0, 2.0], [2.0, 4.0]]),
        "rank-1": np.outer([1.0, 2.0, 3.0], [1.0, -1.0, 2.0]),
    }.items()
]
DET += [
    Case("Det", [r(2, 3, 3)], label="float32", dtype=np.float32, runtime="ort"),
    Case("Det", [r(2, 2)], opset=22, runtime="reference"),
]

CASES = REDUCE + CUMULATIVE + ZEROS + TOPK + DET


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_finite_differences(case: Case) -> None:
    check_case(case)


SECOND = [
    c
    for c in CASES
    if c.label
    in (
        "-gone",
        "two-kept",
        "negative-gone-run-time",
        "noop-kept",
        "absent-gone",
        "rows-0-zeros",
        "0-zeros-00",
        "0-zeros-11",
        "",
    )
]


@pytest.mark.parametrize("case", SECOND, ids=str)
def test_second_derivative(case: Case) -> None:
    check_second_order(case)


def gradient(case: Case, shapes: str = "static") -> np.ndarray:
    proto = case.gradient(shapes, ["x0"])
    (y, *_) = case.evaluate(case.model(), case.feeds())
    feeds = {**case.feeds(), "y0_grad": np.ones_like(y)}
    return case.evaluate(proto, {k: v for k, v in feeds.items() if k in {i.name for i in proto.graph.input}})[
        0
    ]


@pytest.mark.parametrize("shapes", ["static", "dynamic", "unranked"])
@pytest.mark.parametrize(
    ("op_type", "x", "expected"),
    [
        ("ReduceMax", [[1, 3, 3], [2, 1, 0]], [[0, 0.5, 0.5], [1, 0, 0]]),
        ("ReduceMin", [[1, 3, 1], [0, 0, 0]], [[0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3]]),
        ("ReduceL1", [[0, -3, 2]], [[0, -1, 1]]),
        ("ReduceL2", [[0, 0, 0], [3, 4, 0]], [[0, 0, 0], [0.6, 0.8, 0]]),
        ("ReduceLogSumExp", [[1e4, 0, -1e4]], [[1, 0, 0]]),
        ("ReduceLogSumExp", [[-1e4, -1e4, -2e4]], [[0.5, 0.5, 0]]),
    ],
)
def test_conventions(op_type: str, x: list, expected: list, shapes: str) -> None:
    case = Case(op_type, [np.array(x, dtype=float), ints(1)], {"keepdims": 0}, constant=[1])
    np.testing.assert_allclose(gradient(case, shapes), expected, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=lambda d: d.__name__)
@pytest.mark.parametrize("shapes", ["static", "dynamic", "unranked"])
@pytest.mark.parametrize("op_type", [*OPS, "CumSum", "TopK", "Det"])
def test_runs_in_other_float_types(op_type: str, shapes: str, dtype: type) -> None:
    if op_type == "Det":
        case = Case(op_type, [r(2, 2)], dtype=dtype, runtime="ort")
    elif op_type in OPS:
        case = Case(op_type, [np.abs(r(2, 3)), ints(1)], dtype=dtype, runtime="ort")
    elif op_type == "TopK":
        case = Case(op_type, [r(2, 3), ints(2)], outputs=2, dtype=dtype, runtime="ort")
    else:
        case = Case(op_type, [r(2, 3), np.array(1)], dtype=dtype, runtime="ort")
    found = gradient(case, shapes)
    assert found.dtype == dtype
    assert found.shape == case.arrays()[0].shape
    assert np.isfinite(found).all()


@pytest.mark.parametrize("shapes", ["static", "dynamic", "unranked"])
def test_mean_of_more_than_float16_counts(shapes: str) -> None:
    x = np.zeros((2, 2**17), dtype=np.float16)
    for axes in ({"constant": [1]}, {}):
        case = Case("ReduceMean", [x, ints(1)], dtype=np.float16, runtime="ort", **axes)
        np.testing.assert_allclose(gradient(case, shapes), np.full_like(x, 2.0**-17), rtol=0.01)


def test_few_nodes() -> None:
    def nodes(case: Case) -> list[str]:
        return [n.op_type for n in ir.from_proto(case.gradient("static", ["x0"])).graph][1:]

    assert nodes(Case("ReduceSum", [r(2, 3), ints(0)], constant=[1])) == ["Expand"]
    assert nodes(Case("ReduceMean", [r(2, 3), ints(0)], constant=[1])) == ["Mul", "Expand"]
    assert nodes(Case("ReduceSumSquare", [r(2, 3)], {"keepdims": 0})) == ["Add", "Mul"]
    assert nodes(Case("CumSum", [r(3), np.array(0)])) == ["CumSum"]
    assert nodes(Case("TopK", [r(3), ints(1)], outputs=2)) == ["ConstantOfShape", "ScatterElements"]


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_non_differentiable(op_type: str) -> None:
    assert non_differentiable_reason(op_type, "")


def test_pytorch() -> None:
    torch = pytest.importorskip("torch")
    x = np.array([[0.0, 2.0, 2.0], [0.0, 0.0, 0.0], [-1.0, 3.0, 0.0]])
    for op_type, function in [
        ("ReduceMax", lambda t: t.amax(1)),
        ("ReduceMin", lambda t: t.amin(1)),
        ("ReduceProd", lambda t: t.prod(1)),
        ("ReduceL1", lambda t: t.norm(p=1, dim=1)),
        ("ReduceL2", lambda t: t.norm(dim=1)),
        ("ReduceLogSumExp", lambda t: t.logsumexp(1)),
        ("ReduceMean", lambda t: t.mean(1)),
    ]:
        t = torch.tensor(x, requires_grad=True)
        function(t).sum().backward()
        case = Case(op_type, [x, ints(1)], constant=[1])
        rtol = 1e-6 if op_type == "ReduceL2" else 1e-12  # onnxruntime computes it in float32
        np.testing.assert_allclose(gradient(case), t.grad, rtol=rtol, err_msg=op_type)
    a = r(2, 4, 4)
    t = torch.tensor(a, requires_grad=True)
    torch.linalg.det(t).sum().backward()
    np.testing.assert_allclose(gradient(Case("Det", [a], runtime="reference")), t.grad, rtol=1e-10)
