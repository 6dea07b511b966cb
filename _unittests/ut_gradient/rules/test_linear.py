from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from bare_gradient import differentiate
from rule_cases import Case, check_case
from second_order import check_second_order

import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.einsum
import onnxcustom.gradient.rules.linear
import onnxcustom.gradient.rules.reduction
import onnxcustom.gradient.rules.shaping
import onnxcustom.gradient.rules.slicing  # noqa: F401
from onnxcustom.gradient.registry import non_differentiable_reason
from onnxcustom.gradient.rules.einsum import parse

rng = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


MATMUL = [
    Case("MatMul", [r(*a), r(*b)], label=label, **kw)
    for label, a, b, kw in [
        ("", (2, 3), (3, 4), {}),
        ("opset21", (2, 3), (3, 4), {"opset": 21}),
        ("opset23", (2, 3), (3, 4), {"opset": 23, "runtime": "reference"}),
        ("constant", (2, 3), (3, 4), {"constant": [1]}),
        ("ones", (1, 1), (1, 1), {}),
        ("1d-1d", (3,), (3,), {}),
        ("1d-2d", (3,), (3, 4), {}),
        ("2d-1d", (2, 3), (3,), {}),
        ("3d-1d", (2, 3, 4), (4,), {}),
        ("4d-1d", (2, 1, 3, 4), (4,), {}),
        ("1d-3d", (3,), (2, 3, 4), {}),
        ("1d-4d", (3,), (2, 2, 3, 1), {}),
        ("3d-2d", (2, 3, 4), (4, 2), {}),
        ("4d-2d", (2, 1, 3, 4), (4, 2), {}),
        ("2d-3d", (3, 4), (2, 4, 2), {}),
        ("3d-3d", (2, 3, 4), (2, 4, 2), {}),
        ("4d-4d", (2, 3, 1, 2), (2, 3, 2, 2), {}),
        ("broadcast-left", (1, 3, 4), (2, 4, 2), {}),
        ("broadcast-right", (2, 3, 4), (1, 4, 2), {}),
        ("broadcast-both", (2, 1, 2, 3), (1, 3, 3, 2), {}),
        ("broadcast-rank", (2, 3, 2, 3), (3, 3, 1), {}),
        # By b it is a product over nothing, which onnxruntime 1.19 refuses in Gemm; with unknown ranks
        # it is in the way of a ReduceSum over no axes, which 1.19 gets wrong for empty tensors.
        ("no-rows", (0, 3), (3, 2), {"wrt": [0], "dynamic": False}),
        ("no-batch", (0, 2, 3), (3, 2), {"wrt": [0], "dynamic": False}),
    ]
]

C = {"": (2, 4), "row": (4,), "column": (2, 1), "scalar": (), "one": (1,), "row2": (1, 4), "none": None}
GEMM = [
    Case(
        "Gemm",
        [r(*((3, 2) if ta else (2, 3))), r(*((4, 3) if tb else (3, 4))), *([] if c is None else [r(*c)])],
        {**({"transA": 1} if ta else {}), **({"transB": 1} if tb else {}), **more},
        f"{label}-{ta}{tb}{''.join(f'-{k}{v}' for k, v in more.items())}",
    )
    for label, c in C.items()
    for ta in (0, 1)
    for tb in (0, 1)
    for more in ([{}, {"alpha": 0.5, "beta": 2.0}] if label in ("", "row", "none") else [{"beta": 0.5}])
]
GEMM += [
    Case("Gemm", [r(2, 3), r(3, 4), r(4)], label="constant", constant=[1, 2]),
    Case("Gemm", [r(2, 3), r(3, 4), r(4)], opset=21),
    Case("Gemm", [r(2, 3), r(3, 4), r(4)], opset=23, runtime="reference"),
    Case("Gemm", [r(1, 1), r(1, 1), r(1)], label="ones"),
]

EINSUM = [
    Case("Einsum", [r(*s) for s in shapes], {"equation": equation}, equation, **kw)
    for equation, shapes, kw in [
        ("ij,jk->ik", [(2, 3), (3, 4)], {}),
        ("ij,jk", [(2, 3), (3, 4)], {}),
        ("i j , j k -> k i", [(2, 3), (3, 4)], {}),
        ("bhid,bhjd->bhij", [(2, 1, 3, 2), (2, 1, 4, 2)], {}),
        ("bij,bjk->bik", [(2, 3, 2), (2, 2, 4)], {}),
        ("ij->ji", [(2, 3)], {}),
        ("ba", [(2, 3)], {}),
        ("ij->i", [(2, 3)], {}),
        ("ij->", [(2, 3)], {}),
        ("i->i", [(3,)], {}),
        ("i->", [(3,)], {}),
        ("ii->i", [(3, 3)], {}),
        ("ii->", [(3, 3)], {}),
        ("ii", [(3, 3)], {}),
        ("iii->i", [(2, 2, 2)], {}),
        ("iij->j", [(3, 3, 2)], {}),
        ("iji->ij", [(3, 2, 3)], {}),
        ("ii,jj->ij", [(3, 3), (2, 2)], {}),
        ("ii,ij->j", [(3, 3), (3, 2)], {}),
        ("i,i->", [(3,), (3,)], {}),
        ("i,j->ij", [(3,), (2,)], {}),
        (",i->i", [(), (3,)], {}),
        ("i,->", [(3,), ()], {}),
        ("->", [()], {}),
        (",->", [(), ()], {}),
        ("ij,kl->", [(2, 3), (2, 2)], {}),
        ("ijk,jk->i", [(2, 3, 2), (3, 2)], {}),
        ("ij,jk,kl->il", [(2, 3), (3, 2), (2, 2)], {}),
        ("a,b,c,d->abcd", [(2,), (1,), (3,), (2,)], {}),
        ("i,i,ij->j", [(3,), (3,), (3, 2)], {}),
        ("...ij,...jk->...ik", [(2, 3, 2), (2, 2, 4)], {}),
        ("...ij,jk->...ik", [(2, 2, 3, 2), (2, 4)], {}),
        ("ij,...jk->...ik", [(3, 2), (2, 2, 4)], {}),
        ("...i,...i->...", [(2, 3), (2, 3)], {}),
        ("...i,...i", [(2, 3), (2, 3)], {}),
        ("...ii->...i", [(2, 3, 3)], {}),
        ("i...i->...i", [(3, 2, 3)], {}),
        ("a...b,b->a...", [(2, 3, 4, 2), (2,)], {}),
        ("a...b,...b->a...", [(2, 3, 2), (3, 2)], {}),
        ("...->...", [(2, 3)], {}),
        ("...,...->...", [(2, 3), (1, 3)], {}),
        ("...ij,...jk->...ik", [(1, 3, 2), (2, 2, 4)], {}),
        ("...i->...", [(2, 3)], {}),
        ("i...->i...", [(2, 3)], {}),
        ("j...->...", [(2, 3)], {}),
        ("ij,jk->ik", [(2, 1), (3, 4)], {}),  # j is 1 in a and 3 in b: broadcast
        ("ij,jk->ik", [(2, 3), (1, 4)], {}),
        ("ij,jk->ik", [(2, 3), (3, 4)], {"opset": 21}),
        ("ij,jk->ik", [(2, 3), (3, 4)], {"opset": 23, "runtime": "reference"}),
        ("ij,jk->ik", [(2, 3), (3, 4)], {"constant": [1]}),
        ("iJ,Jk->ik", [(2, 3), (3, 4)], {}),
    ]
]

INVERSE = [Case("Inverse", [r(2, 3, 3) + 3 * np.eye(3)], domain="com.microsoft", runtime="ort")]
CASES = MATMUL + GEMM + EINSUM + INVERSE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_finite_differences(case: Case) -> None:
    check_case(case)


SECOND = [c for c in MATMUL if c.label not in ("opset21", "opset23", "no-rows", "no-batch", "constant")]
SECOND += [c for c in GEMM if "alpha" in c.label and c.label.startswith(("row", "none"))]
SECOND += [c for c in EINSUM if c.opset == 18]


@pytest.mark.parametrize("case", SECOND, ids=str)
def test_second_derivative(case: Case) -> None:
    check_second_order(case)


@pytest.mark.parametrize("case", [c for c in MATMUL if c.label in ("", "1d-3d", "broadcast-both")], ids=str)
def test_second_derivative_of_unknown_rank(case: Case) -> None:
    check_second_order(case, "unranked")


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=lambda d: d.__name__)
@pytest.mark.parametrize("shapes", ["static", "dynamic", "unranked"])
@pytest.mark.parametrize(
    ("op_type", "operands", "attributes"),
    [
        ("MatMul", [(2, 3, 4), (2, 4, 2)], {}),
        ("MatMul", [(2, 3, 4), (4, 2)], {}),
        ("Gemm", [(2, 3), (3, 2), (2,)], {"alpha": 0.5}),
        ("Einsum", [(2, 2, 3), (2, 3)], {"equation": "aai,bi->b"}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_runs_in_other_float_types(op_type, operands, attributes, shapes, dtype) -> None:
    case = Case(op_type, [r(*s) for s in operands], attributes, dtype=dtype, runtime="ort")
    (y,) = case.evaluate(case.model(), case.feeds())
    names = case.differentiable()
    found = case.evaluate(case.gradient(shapes, names), {**case.feeds(), "y0_grad": np.ones_like(y)})
    for value, x in zip(found[: len(names)], case.arrays(), strict=True):
        assert value.dtype == dtype
        assert value.shape == x.shape


@pytest.mark.parametrize("shapes", ["dynamic", "unranked"])
def test_einsum_broadcasts_labels(shapes: str) -> None:
    """Static shapes are left out: onnx's shape inference gives such a result the wrong shape."""
    a, b, dy = r(2, 1), r(1, 3), r(2, 3)
    case = Case("Einsum", [a, b], {"equation": "ij,ij->ij"})
    da, db, *_ = case.evaluate(case.gradient(shapes, ["x0", "x1"]), {"x0": a, "x1": b, "y0_grad": dy})
    np.testing.assert_allclose(da, (dy * b).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(db, (dy * a).sum(axis=0, keepdims=True))


def nodes(case: Case, shapes: str = "static") -> list[str]:
    """Operators of the gradient graph besides the forward node."""
    model = ir.from_proto(case.gradient(shapes, case.differentiable()))
    return [n.op_type for n in model.graph][1:]


@pytest.mark.parametrize("shapes", ["static", "dynamic"])
def test_few_nodes(shapes: str) -> None:
    assert nodes(Case("MatMul", [r(2, 3), r(3, 4)]), shapes) == ["Gemm", "Gemm"]
    assert nodes(Case("Gemm", [r(2, 3), r(3, 4)]), shapes) == ["Gemm", "Gemm"]
    shape = [] if shapes == "static" else ["Shape"]
    rows = sorted(["Flatten", "Gemm", *shape, "Reshape", "Flatten", "Gemm"])
    assert sorted(nodes(Case("MatMul", [r(2, 3, 4), r(4, 2)]), shapes)) == rows


def test_batched_without_sum() -> None:
    assert nodes(Case("MatMul", [r(2, 3, 4), r(2, 4, 2)], dtype=np.float32)) == [
        "Transpose",
        "MatMul",
        "Transpose",
        "MatMul",
    ]
    assert nodes(Case("Gemm", [r(2, 3), r(3, 4), r(4)])) == ["Gemm", "Gemm", "ReduceSum"]
    equation = {"equation": "bhid,bhjd->bhij"}
    assert nodes(Case("Einsum", [r(2, 2, 3, 4), r(2, 2, 3, 4)], equation)) == ["Einsum", "Einsum"]


def test_same_symbols_need_no_sum() -> None:
    """Batch dimensions that carry the same name are equal: nothing is summed."""
    case = Case("MatMul", [r(2, 3, 4), r(2, 4, 2)], dtype=np.float32)
    model = ir.from_proto(case.model("dynamic"))
    model.graph.inputs[0].shape = ir.Shape(["batch", "m", "k"])
    model.graph.inputs[1].shape = ir.Shape(["batch", "k", "n"])
    found = differentiate(model, ["x0", "x1"], ["y0"])
    assert [n.op_type for n in found.graph][1:] == ["Transpose", "MatMul", "Transpose", "MatMul"]


@pytest.mark.parametrize(
    ("equation", "expected"),
    [
        ("ij,jk->ik", (["ij", "jk"], "ik")),
        ("ij,jk", (["ij", "jk"], "ik")),
        (" b a ", (["ba"], "ab")),
        ("...i,...i", ([".i", ".i"], ".")),
        ("ii", (["ii"], "")),
        ("bA", (["bA"], "Ab")),
    ],
)
def test_parse(equation: str, expected: tuple) -> None:
    assert parse(equation) == expected


@pytest.mark.parametrize("op_type", ["MatMulInteger", "QLinearMatMul"])
def test_non_differentiable(op_type: str) -> None:
    assert non_differentiable_reason(op_type, "")


def test_pytorch() -> None:
    torch = pytest.importorskip("torch")
    for case in [*MATMUL, *(c for c in EINSUM if "..." not in c.attributes["equation"] and c.opset == 18)]:
        x = [torch.tensor(v, requires_grad=True) for v in case.arrays()]
        equation = case.attributes.get("equation")
        if equation and (equation != equation.lower() or "->" not in equation):
            continue
        y = torch.matmul(*x) if equation is None else torch.einsum(equation.replace(" ", ""), *x)
        seed = np.asarray(r(*y.shape))
        (y * torch.tensor(seed)).sum().backward()
        names = case.differentiable()
        found = case.evaluate(case.gradient("dynamic", names), {**case.feeds(), "y0_grad": seed})
        for name, value in zip(names, found[: len(names)], strict=True):
            np.testing.assert_allclose(
                value, x[int(name[1:])].grad, rtol=1e-10, atol=1e-12, err_msg=str(case)
            )
