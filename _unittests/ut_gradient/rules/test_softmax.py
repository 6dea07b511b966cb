from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from rule_cases import Case, check_case
from second_order import check_second_order

import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.indexing
import onnxcustom.gradient.rules.reduction
import onnxcustom.gradient.rules.shaping
import onnxcustom.gradient.rules.softmax  # noqa: F401

rng = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


def log_p(*shape: int) -> np.ndarray:
    x = r(*shape)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


SOFTMAX = [
    Case(op_type, [r(*shape)], attributes, label)
    for op_type in ("Softmax", "LogSoftmax")
    for label, shape, attributes in [
        ("", (2, 3), {}),
        ("1d", (4,), {}),
        ("axis0", (2, 3), {"axis": 0}),
        ("axis1", (2, 3, 2), {"axis": 1}),
        ("axis-2", (2, 3, 2), {"axis": -2}),
        ("one-class", (3, 1), {}),
        ("one", (1,), {"axis": 0}),
        ("empty", (0, 3), {}),
    ]
]
SOFTMAX += [
    Case(op_type, [r(2, 3)], label="float32", dtype=np.float32, runtime="ort")
    for op_type in ("Softmax", "LogSoftmax")
]

SHAPES = {"2d": (4, 3), "3d": (2, 3, 2), "4d": (2, 3, 1, 2), "one-class": (3, 1), "one-row": (1, 3)}
CLASS_WEIGHTS = np.array([0.3, 1.1, 0.7])


def labels(shape: tuple[int, ...], ignored: int | None = None, dtype: type = np.int64) -> np.ndarray:
    found = rng.integers(0, shape[1], size=(shape[0], *shape[2:])).astype(dtype)
    if ignored is not None:
        found.flat[-1] = ignored
    return found


LOSSES: list[Case] = []
for op_type, reduction, (label, shape) in itertools.product(
    ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), ("mean", "sum", "none"), SHAPES.items()
):
    soft = op_type.startswith("S")
    scores = r(*shape) if soft else log_p(*shape)
    weights = CLASS_WEIGHTS[: shape[1]]
    for weighted, ignored in itertools.product((False, True), (None, 0, -1)):
        attributes = (
            {"reduction": reduction} if ignored is None else {"reduction": reduction, "ignore_index": ignored}
        )
        if label in ("one-class", "one-row") and ignored is not None:
            continue  # nothing may be left: a mean of nothing is no number
        LOSSES += [
            Case(
                op_type,
                [scores, labels(shape, ignored), *([weights] if weighted else [])],
                attributes,
                f"{reduction}-{label}-{'weighted' if weighted else 'plain'}-{ignored}",
                outputs=1 + (soft and label in ("2d", "3d")),
            )
        ]
for op_type in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"):
    LOSSES += [
        Case(op_type, [log_p(4, 3), labels((4, 3))], label="default"),
        Case(op_type, [log_p(4, 3), labels((4, 3)), CLASS_WEIGHTS], label="constant-weights", constant=[2]),
        Case(op_type, [log_p(4, 3), labels((4, 3)), CLASS_WEIGHTS], label="constant-labels", constant=[1]),
        Case(
            op_type,
            [log_p(4, 3), labels((4, 3), -100), CLASS_WEIGHTS],
            {"ignore_index": -100},
            label="far-ignored",
        ),
        Case(op_type, [log_p(4, 3), labels((4, 3), 100)], {"ignore_index": 100}, label="above-ignored"),
        Case(
            op_type,
            [log_p(4, 3), labels((4, 3), dtype=np.int32), CLASS_WEIGHTS],
            label="int32",
            runtime="reference",
        ),
        Case(op_type, [log_p(4, 3), labels((4, 3)), CLASS_WEIGHTS], opset=22, runtime="reference"),
    ]
LOSSES += [
    Case("SoftmaxCrossEntropyLoss", [r(4, 3), labels((4, 3))], {"reduction": k}, f"log_prob-{k}", outputs=2)
    for k in ("mean", "none")
]

CASES = SOFTMAX + LOSSES


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_finite_differences(case: Case) -> None:
    check_case(case)


SECOND = [c for c in SOFTMAX if c.label in ("", "axis1")] + [
    c for c in LOSSES if "-2d-weighted-0" in c.label or c.label in ("default", "log_prob-mean")
]


@pytest.mark.parametrize("case", SECOND, ids=str)
def test_second_derivative(case: Case) -> None:
    check_second_order(case)


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=lambda d: d.__name__)
def test_large_scores_stay_finite(dtype: type) -> None:
    case = Case(
        "SoftmaxCrossEntropyLoss", [[[1e4, -1e4], [-1e4, 1e4]], np.array([0, 0])], dtype=dtype, runtime="ort"
    )
    proto = case.gradient("dynamic", ["x0"])
    found = case.evaluate(proto, {**case.feeds(), "y0_grad": np.ones((), dtype)})[0]
    np.testing.assert_allclose(found, [[0, 0], [-0.5, 0.5]], atol=1e-7)


def test_only_the_probabilities_are_used() -> None:
    case = Case("SoftmaxCrossEntropyLoss", [r(2, 3), np.array([0, 2])], outputs=2)
    model = ir.from_proto(case.model())
    from bare_gradient import differentiate

    proto = ir.to_proto(differentiate(model, ["x0"], ["y1"]))
    seed = r(2, 3)
    found = case.evaluate(proto, {**case.feeds(), "y1_grad": seed})[0]
    p = np.exp(case.inputs[0]) / np.exp(case.inputs[0]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, seed - p * seed.sum(axis=1, keepdims=True), rtol=1e-12)


def test_few_nodes() -> None:
    def nodes(case: Case) -> list[str]:
        model = ir.from_proto(case.gradient("static", ["x0"]))
        return [n.op_type for n in model.graph][1:]

    assert nodes(Case("Softmax", [r(2, 3)])) == ["Mul", "ReduceSum", "Mul", "Sub"]
    assert nodes(Case("LogSoftmax", [r(2, 3)])) == ["Exp", "ReduceSum", "Mul", "Sub"]
    assert len(nodes(Case("SoftmaxCrossEntropyLoss", [r(2, 3), np.array([0, 1])]))) <= 8


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_pytorch(reduction: str) -> None:
    torch = pytest.importorskip("torch")
    x, t, w = r(5, 3, 2), labels((5, 3, 2), -100), CLASS_WEIGHTS
    attributes = {"reduction": reduction, "ignore_index": -100}
    tx = torch.tensor(x, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(tx, torch.tensor(t), torch.tensor(w), reduction=reduction)
    seed = r(*loss.shape)
    (loss * torch.tensor(seed)).sum().backward()
    case = Case("SoftmaxCrossEntropyLoss", [x, t, w], attributes)
    found = case.evaluate(case.gradient("dynamic", ["x0"]), {**case.feeds(), "y0_grad": np.asarray(seed)})[0]
    np.testing.assert_allclose(found, tx.grad, rtol=1e-10, atol=1e-12)
