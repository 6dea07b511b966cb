from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case, check_case
from second_order import check_second_order

import onnxcustom.gradient.rules.activation
import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.reduction
import onnxcustom.gradient.rules.shaping  # noqa: F401

# Away from the kinks of every activation below.
X = np.array([[-4.2, -1.7, -0.3], [0.2, 1.6, 5.1]])

# Attributes of each operator besides the defaults.
ATTRIBUTES: dict[str, list[dict]] = {
    "Relu": [],
    "LeakyRelu": [{"alpha": 0.3}, {"alpha": 2.0}, {"alpha": -0.5}, {"alpha": 0.0}],
    "Elu": [{"alpha": 0.7}, {"alpha": 2.0}],
    "Celu": [{"alpha": 0.7}, {"alpha": 2.0}],
    "Selu": [{"alpha": 1.2, "gamma": 0.9}],
    "ThresholdedRelu": [{"alpha": 0.1}, {"alpha": -1.0}],
    "HardSigmoid": [{"alpha": 0.5, "beta": 0.1}, {"alpha": 0.1}, {"alpha": -0.25, "beta": 0.45}],
    "HardSwish": [],
    "Sigmoid": [],
    "Softplus": [],
    "Softsign": [],
    "Mish": [],
    "Shrink": [{"lambd": 1.5, "bias": 1.5}, {"lambd": 0.25}, {"lambd": -1.0, "bias": 0.3}],
    "Gelu": [{"approximate": "tanh"}, {"approximate": "none"}],
    "Hardmax": [{"axis": 0}, {"axis": 1}],
    "Swish": [{"alpha": 1.7}],
}
SINCE = {"Gelu": 20, "Swish": 24}
# No float64 kernel in onnxruntime 1.19 (Shrink's computes in float32), or opset 24.
REFERENCE = {"Swish", "Hardmax", "Shrink"}
FLOAT32 = {"Celu", "Gelu"}  # no float64 kernel, and a reference that computes in float32


def case(op_type: str, x: np.ndarray, attributes: dict, label: str, **kw: object) -> Case:
    kw.setdefault("opset", SINCE.get(op_type, 18))
    kw.setdefault("dtype", np.float32 if op_type in FLOAT32 else np.float64)
    kw.setdefault("runtime", "reference" if op_type in REFERENCE else "ort")
    return Case(op_type, [x], attributes, label, **kw)


CASES = [
    case(op_type, X, attributes, "-".join(f"{k}={v}" for k, v in attributes.items()))
    for op_type, choices in ATTRIBUTES.items()
    for attributes in [{}, *choices]
]
CASES += [
    case(op_type, x, {}, label)
    for op_type in ATTRIBUTES
    for label, x in {
        "scalar": np.array(0.7),
        "one": X[:1, :1],
        "3d": X.reshape(1, 2, 3),
        "empty": X[:0],
    }.items()
    if not (op_type == "Hardmax" and label in ("scalar", "empty"))
]
CASES += [
    case(op_type, X, {}, "", opset=22, runtime="reference")
    for op_type in (
        "Elu",
        "Selu",
        "ThresholdedRelu",
        "HardSigmoid",
        "HardSwish",
        "Softplus",
        "Softsign",
        "Mish",
    )
]
CASES += [
    Case("PRelu", [X, slope], label=label, **kw)
    for label, slope, kw in [
        ("scalar", np.array(0.3), {}),
        ("channel", np.array([0.3, -0.2, 1.5]), {}),
        ("row", np.array([[0.3], [2.0]]), {}),
        ("constant", np.array([0.3]), {"constant": [1]}),
        ("full", X * 0.1, {}),
        ("", np.array([0.3]), {"opset": 21}),
    ]
]
CASES += [Case("PRelu", [X.reshape(1, 2, 3, 1), np.array([[[0.3]], [[0.2]]])], label="image")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_finite_differences(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.dtype == np.float64 and c.label in ("", "3d", "alpha=2.0", "channel")],
    ids=str,
)
def test_second_derivative(case: Case) -> None:
    check_second_order(case)


def gradient(case: Case) -> np.ndarray:
    names = case.differentiable()
    proto = case.gradient("static", names)
    feeds = {**case.feeds(), "y0_grad": np.ones_like(case.arrays()[0])}
    return case.evaluate(proto, {k: v for k, v in feeds.items() if k in {i.name for i in proto.graph.input}})[
        0
    ]


@pytest.mark.parametrize(
    ("op_type", "attributes", "x", "expected"),
    [
        ("Relu", {}, 0, 0),
        ("LeakyRelu", {"alpha": 0.5}, 0, 0.5),
        ("Elu", {"alpha": 2.0}, 0, 2),
        ("Elu", {}, 0, 1),
        ("Selu", {"alpha": 0.5, "gamma": 3.0}, 0, 1.5),
        ("Celu", {"alpha": 0.5}, 0, 1),
        ("ThresholdedRelu", {"alpha": 0.5}, 0.5, 0),
        ("Shrink", {"lambd": 0.5}, 0.5, 0),
        ("Shrink", {"lambd": 0.5}, -0.5, 0),
        ("HardSigmoid", {"alpha": 0.5}, -1, 0),
        ("HardSigmoid", {"alpha": 0.5}, 1, 0),
        ("HardSwish", {}, 3, 1),
        ("HardSwish", {}, -3, 0),
        ("Softsign", {}, 0, 1),
    ],
)
def test_kinks(op_type: str, attributes: dict, x: float, expected: float) -> None:
    found = gradient(case(op_type, np.array([x], dtype=float), attributes, ""))
    np.testing.assert_allclose(found, [expected], atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("op_type", "attributes", "low"),
    [("Relu", {}, 0), ("LeakyRelu", {"alpha": 0.25}, 0.25), ("LeakyRelu", {"alpha": -2.0}, -2)],
)
def test_steps(op_type: str, attributes: dict, low: float, dtype: type) -> None:
    """In every type the slope changes right behind 0, and what is no number does not get the slope 0."""
    info = np.finfo(dtype)
    x = np.array([-np.inf, info.min, -1, -info.tiny, 0, info.tiny, 1, info.max, np.inf, np.nan], dtype)
    found = gradient(case(op_type, x, attributes, "", dtype=dtype, runtime="ort"))
    np.testing.assert_array_equal(found[:-1], [low] * 5 + [1] * 4)
    assert found[-1] != 0


def test_a_step_has_no_slope() -> None:
    """A HardSigmoid as steep as those that rules emit is one."""
    made = case("HardSigmoid", X, {"alpha": 2.0**126, "beta": 0.0}, "", dtype=np.float32)
    assert not np.any(gradient(made))


@pytest.mark.parametrize(
    "op_type", ["Sigmoid", "Softplus", "Softsign", "Mish", "Elu", "Selu", "HardSwish", "Gelu"]
)
def test_far_away(op_type: str) -> None:
    left, right = gradient(case(op_type, np.array([-1e4, 1e4]), {}, ""))
    assert abs(left) < 1e-7
    assert right == pytest.approx(
        0 if op_type in ("Sigmoid", "Softsign") else 1.05070102 if op_type == "Selu" else 1, abs=1e-7
    )


@pytest.mark.parametrize("op_type", [k for k in ATTRIBUTES if k not in ("Swish", "Celu")])
def test_runs_in_float16(op_type: str) -> None:
    found = gradient(case(op_type, X, {}, "", dtype=np.float16, runtime="ort"))
    wide = gradient(case(op_type, X, {}, "", dtype=np.float32, runtime="ort"))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, wide, atol=2e-3)


def test_pytorch() -> None:
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    points = np.array([-4.0, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 4.0])
    for op_type, attributes, function in [
        ("Relu", {}, f.relu),
        ("LeakyRelu", {"alpha": 0.25}, lambda x: f.leaky_relu(x, 0.25)),
        ("Elu", {"alpha": 1.5}, lambda x: f.elu(x, 1.5)),
        ("Elu", {}, f.elu),
        ("Celu", {"alpha": 1.5}, lambda x: f.celu(x, 1.5)),
        ("Selu", {}, f.selu),
        ("HardSigmoid", {"alpha": 1 / 6}, f.hardsigmoid),
        ("HardSwish", {}, f.hardswish),
        ("Mish", {}, f.mish),
        ("Softplus", {}, f.softplus),
        ("Softsign", {}, f.softsign),
        ("Gelu", {}, f.gelu),
        ("Gelu", {"approximate": "tanh"}, lambda x: f.gelu(x, approximate="tanh")),
        ("Shrink", {"lambd": 0.5, "bias": 0.5}, f.softshrink),
        ("Shrink", {"lambd": 0.5}, f.hardshrink),
        ("ThresholdedRelu", {"alpha": 0.5}, lambda x: f.threshold(x, 0.5, 0)),
    ]:
        x = torch.tensor(points, requires_grad=True)
        function(x).sum().backward()
        found = gradient(case(op_type, points, attributes, ""))
        np.testing.assert_allclose(found, x.grad, atol=2e-6, err_msg=op_type)
