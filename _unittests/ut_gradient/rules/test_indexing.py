from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case, check_case
from second_order import check_second_order

import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.indexing  # noqa: F401

rng = np.random.default_rng(0)
PROVIDERS = ["CPUExecutionProvider"]


def ints(values: object, dtype: type = np.int64) -> np.ndarray:
    return np.array(values, dtype=dtype)


def r(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


def both(op_type: str, label: str, inputs: list, attributes: dict, at: list[int], **options) -> list[Case]:
    """The case with constant indices and with indices that are inputs."""
    return [
        Case(op_type, inputs, attributes, f"{label}-{kind}", constant=constant, **options)
        for kind, constant in (("constant", at), ("run-time", []))
    ]


GATHER = [
    case
    for label, x, indices, axis in (
        ("rows", r(4, 3), [0, 2], 0),
        ("repeated", r(4, 3), [1, 3, 1, 1], 0),
        ("negative", r(4, 3), [-1, 0, 3], 0),
        ("negative-distinct", r(4, 3), [-3, -2], 0),
        ("negative-last", r(4, 3), [-2, -1], 0),
        ("contiguous", r(5, 3), [1, 2, 3], 0),
        ("permutation", r(2, 4), [2, 0, 3, 1], 1),
        ("some", r(2, 4), [3, 1], -1),
        ("repeated-inner", r(2, 4, 3), [3, 1, 3], 1),
        ("scalar", r(4, 3), 2, 0),
        ("scalar-negative", r(2, 4, 3), -1, 1),
        ("scalar-last", r(2, 4), 1, -1),
        ("matrix", r(4, 3), [[0, 1, 1], [3, 0, 2]], 0),
        ("matrix-inner", r(2, 4, 3), [[0, 1], [3, 0]], 1),
        ("matrix-last", r(2, 4), [[0, 1], [3, 0]], -1),
        ("embedding-3d", r(4, 3, 2), [[0, 1], [3, 0]], 0),
        ("1d", r(5), [4, 4, 0], 0),
        ("1d-scalar", r(5), 3, 0),
        ("1d-matrix", r(5), [[4, 4], [0, 1]], 0),
        ("none", r(4, 3), np.zeros(0), 0),
        ("none-inner", r(4, 3), np.zeros((0, 2)), 1),
        ("of-one", r(1, 3), [0, 0], 0),
    )
    for case in both("Gather", label, [x, ints(indices)], {"axis": axis}, [1])
] + [
    Case("Gather", [r(4, 3), ints([1, 1], np.int32)], label="int32"),
    Case("Gather", [r(4, 3), ints([1, 1])], label="no-axis"),
    Case("Gather", [r(4, 3), ints([1, 2, 1])], label="float32", dtype=np.float32, opset=21),
]
GATHER_MANY = [
    *both("GatherElements", "rows", [r(3, 2), ints([[0, 2], [0, 1], [2, 2], [1, 0]])], {"axis": 0}, [1]),
    *both("GatherElements", "columns", [r(3, 3), ints([[0, 2], [0, -1], [2, 2]])], {"axis": 1}, [1]),
    *both("GatherElements", "last", [r(2, 2, 3), ints(np.ones((2, 2, 1)))], {"axis": -1}, [1]),
    Case("GatherElements", [r(3), ints([0, 0, -1])], label="no-axis"),
    Case("GatherElements", [r(3, 2), ints(np.zeros((0, 2)))], label="none"),
    Case("GatherElements", [r(3, 3), ints([[0, 2]])], {"axis": 1}, label="fewer-rows"),
    *both("GatherND", "rows", [r(3, 2), ints([[0], [2], [0]])], {}, [1]),
    *both("GatherND", "distinct", [r(3, 2), ints([[2], [0]])], {}, [1]),
    *both("GatherND", "elements", [r(3, 2), ints([[0, 1], [2, 0]])], {}, [1]),
    *both("GatherND", "negative", [r(3, 2), ints([[0, 1], [-3, -1]])], {}, [1]),
    *both("GatherND", "one", [r(3, 2), ints([1])], {}, [1]),
    *both("GatherND", "none", [r(3, 2), ints(np.zeros((0, 1)))], {}, [1]),
    *both("GatherND", "deep", [r(2, 3, 2), ints([[[0, 1]], [[1, 2]]])], {}, [1]),
    *both("GatherND", "batch1", [r(2, 3, 2), ints([[1], [0]])], {"batch_dims": 1}, [1]),
    *both("GatherND", "batch1-many", [r(2, 3, 2), ints([[[1], [1]], [[0], [-1]]])], {"batch_dims": 1}, [1]),
    *both("GatherND", "batch2", [r(2, 2, 3), ints([[[1], [0]], [[2], [2]]])], {"batch_dims": 2}, [1]),
]


def apart(*shape: int) -> np.ndarray:
    """Values further from each other than a finite difference moves them."""
    return rng.permutation(np.arange(1.0, 1 + np.prod(shape))).reshape(shape) * 0.37 - 1.5


SCATTER = [
    case
    for reduction, opset in (("none", 18), ("add", 18), ("mul", 18), ("max", 18), ("min", 18), ("add", 21))
    for op_type, label, data, indices, shape, attributes in (
        ("ScatterElements", "rows", (3, 2), [[0, 2], [1, 1]], (2, 2), {"axis": 0}),
        ("ScatterElements", "columns", (2, 4), [[0, 3, -3], [3, 2, 1]], (2, 3), {"axis": 1}),
        ("ScatterElements", "last", (2, 3), [[1]], (1, 1), {"axis": -1}),
        ("ScatterElements", "none", (2, 3), np.zeros((0, 3)), (0, 3), {}),
        ("ScatterND", "rows", (3, 2), [[2], [0]], (2, 2), {}),
        ("ScatterND", "elements", (3, 2), [[2, 1], [0, -1]], (2,), {}),
        ("ScatterND", "deep", (2, 2, 2), [[[0, 1]], [[1, 1]]], (2, 1, 2), {}),
    )
    for case in both(
        op_type,
        f"{reduction}-{label}",
        [
            *np.split(apart(int(np.prod(data)) + int(np.prod(shape))), [int(np.prod(data))]),
            *(indices, data, shape),
        ],
        attributes if reduction == "none" else {**attributes, "reduction": reduction},
        [1],
        opset=opset,
    )
]
for case in SCATTER:
    data, updates, indices, shape, taken = case.inputs
    case.inputs = [data.reshape(shape), ints(indices), updates.reshape(taken)]
SCATTER += [
    Case(
        op_type,
        [apart(3, 2), ints(indices), apart(*shape) + 0.1],
        {"reduction": reduction},
        f"{reduction}-repeated",
    )
    for reduction in ("add", "mul", "max", "min")
    for op_type, indices, shape in (
        ("ScatterElements", [[0, 2], [0, 2], [0, 1]], (3, 2)),
        ("ScatterND", [[1], [1], [0]], (3, 2)),
        ("ScatterND", [[1, 1], [1, 1], [1, 1], [0, 1]], (4,)),
    )
] + [
    Case(
        "ScatterElements",
        [r(3), ints([0, 0, 2, 2]), np.array([0.0, 2.0, 0.0, 0.0])],
        {"reduction": "mul"},
        "zeros",
    ),
    Case("ScatterElements", [r(3), ints([1, 0]), r(2)], {}, "no-axis"),
]
OTHERS = [
    case
    for label, x, condition, attributes in (
        ("rows", r(4, 2), [True, False, True, False], {"axis": 0}),
        ("short", r(4, 2), [False, True], {"axis": 0}),
        ("columns", r(2, 4), [False, True, True, False], {"axis": 1}),
        ("scattered", r(2, 4), [True, False, False, True], {"axis": -1}),
        ("nothing", r(2, 3), [False, False, False], {"axis": 1}),
        ("nothing-rows", r(2, 3), [False, False], {"axis": 0}),
        ("flat", r(2, 3), [False, True, True, False, True], {}),
        ("flat-nothing", r(2, 3), [False], {}),
        ("1d", r(3), [True, False, True], {"axis": 0}),
    )
    for case in both("Compress", label, [x, np.array(condition)], attributes, [1])
] + [
    *both("ArrayFeatureExtractor", "some", [r(3, 4), ints([[2, 0]])], {}, [1], domain="ai.onnx.ml"),
    *both("ArrayFeatureExtractor", "repeated", [r(3, 4), ints([1, 1, 3])], {}, [1], domain="ai.onnx.ml"),
    *both("ArrayFeatureExtractor", "one", [r(3, 4), ints([1])], {}, [1], domain="ai.onnx.ml"),
    *both("ArrayFeatureExtractor", "3d", [r(2, 2, 3), ints([2, 1])], {}, [1], domain="ai.onnx.ml"),
    *both("ArrayFeatureExtractor", "1d", [r(4), ints([2, 2, 1])], {}, [1], domain="ai.onnx.ml"),
    *(
        Case(
            "OneHot",
            [ints([[1, 0], [-1, 5]]), ints(3), r(2)],
            {"axis": axis},
            f"axis{axis}",
            dtype=np.float32,
        )
        for axis in (-1, 0, 1)
    ),
    Case("OneHot", [ints([1, 0]), ints(3), r(2)], label="float64", runtime="reference"),
    Case("OneHot", [ints(1), ints(3), r(2)], label="scalar", dtype=np.float32),
    Case(
        "OneHot",
        [ints([2, 0], np.int32), np.array(3, np.float32), r(2)],
        label="int32",
        wrt=[2],
        dtype=np.float32,
    ),
    Case("Unique", [np.array([2.0, 1.0, 4.0, 3.0])], {"sorted": 0}, "unsorted"),
    Case("Unique", [np.array([[2.0, 1.0], [4.0, 3.0]])], label="flat"),
    Case("Unique", [np.array([[2.0, 1.0], [4.0, 3.0], [0.0, 7.0]])], {"axis": 0}, "rows"),
    Case("Unique", [np.array([[2.0, 1.0], [4.0, 3.0], [0.0, 7.0]])], {"axis": 1}, "columns", outputs=4),
]
CASES = GATHER + GATHER_MANY + SCATTER + OTHERS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check_case(case)


def twice(case: Case) -> bool:
    """Whether the second derivative is tested as well.

    Not of updates that are exactly 0 and are multiplied (which the rule singles out), nor of no update
    at all (onnxruntime's ReduceSum reduces an empty tensor though no axis is given).
    """
    bad = case.label == "zeros" or any(f"{k}-none" in case.label for k in ("mul", "max", "min"))
    usual = case.dtype == np.float64 and not case.domain and case.runtime == "auto"
    return usual and not bad and case.op_type != "Unique"


@pytest.mark.parametrize("case", list(filter(twice, CASES)), ids=str)
def test_second_order(case: Case) -> None:
    check_second_order(case)


def gradients(case: Case, shapes: str = "static") -> list[np.ndarray]:
    names = case.differentiable()
    proto = case.gradient(shapes, names)
    needed = {i.name for i in proto.graph.input}
    y = case.evaluate(case.model(), case.feeds())[0]
    feeds = {**case.feeds(), "y0_grad": np.ones_like(y)}
    return case.evaluate(proto, {k: v for k, v in feeds.items() if k in needed})


@pytest.mark.parametrize("op_type", ["ScatterElements", "ScatterND"])
def test_ties_share_evenly(op_type: str) -> None:
    indices = ints([0, 0, 1]) if op_type == "ScatterElements" else ints([[0], [0], [1]])
    case = Case(
        op_type, [np.array([2.0, 1.0, 0.0]), indices, np.array([2.0, 2.0, 0.5])], {"reduction": "max"}
    )
    data, updates = gradients(case)[:2]
    np.testing.assert_allclose(data, [1 / 3, 1, 1])
    np.testing.assert_allclose(updates, [1 / 3, 1 / 3, 0])


def test_unique_gives_all_to_the_first() -> None:
    case = Case("Unique", [np.array([3.0, 1.0, 3.0, 1.0, 2.0])])
    np.testing.assert_allclose(gradients(case)[0], [1, 1, 0, 0, 1])


def test_many_repetitions_from_several_threads() -> None:
    """ScatterND would lose some here."""
    import onnxruntime

    indices = np.zeros((2000,), dtype=np.int64)
    case = Case("Gather", [np.zeros((3, 64)), indices], dtype=np.float32)
    proto = case.gradient("static", ["x0"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=PROVIDERS)
    feeds = {**case.feeds(), "y0_grad": np.ones((2000, 64), dtype=np.float32)}
    needed = {i.name for i in proto.graph.input}
    for _ in range(5):
        found = session.run(["x0_grad"], {k: v for k, v in feeds.items() if k in needed})[0]
        np.testing.assert_array_equal(found[0], 2000)


@pytest.mark.parametrize("op_type", ["Gather", "GatherElements"])
def test_float16(op_type: str) -> None:
    indices = ints([0, 2, 0]) if op_type == "Gather" else ints([[0, 1], [0, 1], [2, 1]])
    case = Case(op_type, [r(3, 2), indices], dtype=np.float16, runtime="ort")
    (found, _) = gradients(case)
    assert found.dtype == np.float16
    expected = [[2, 2], [0, 0], [1, 1]] if op_type == "Gather" else [[2, 0], [0, 3], [1, 0]]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("inputs", "axis", "expected"),
    [
        ([r(4, 3), ints(2)], 0, ["Unsqueeze", "Pad"]),
        ([r(4, 3), ints([1, 2])], 1, None),
        ([r(2, 4), ints([2, 0, 3, 1])], 1, ["Gather"]),
        ([r(4, 2), ints([3, 1])], 0, ["Pad", "Gather"]),
    ],
    ids=str,
)
def test_constant_indices_do_not_add(inputs: list, axis: int, expected: list[str] | None) -> None:
    case = Case("Gather", inputs, {"axis": axis}, constant=[1])
    if expected is None:
        expected = ["Pad"]
        case.inputs[0] = r(3, 4)
    nodes = [n.op_type for n in case.gradient("static", ["x0"]).graph.node]
    nodes.remove("Gather")
    assert [n for n in nodes if n != "Identity"] == expected


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_against_torch(reduction: str) -> None:
    """Ties and zeros included."""
    torch = pytest.importorskip("torch")
    data = np.array([2.0, 1.0, 0.0, 3.0])
    updates = np.array([2.0, 2.0, 0.5, 0.0, 0.0, 3.0])
    indices = ints([0, 0, 1, 2, 2, 3])
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    a, b = (torch.tensor(v, requires_grad=True) for v in (data, updates))
    torch.scatter_reduce(a, 0, torch.tensor(indices), b, names[reduction]).sum().backward()
    found = gradients(Case("ScatterElements", [data, indices, updates], {"reduction": reduction}))
    np.testing.assert_allclose(found[0], a.grad.numpy())
    np.testing.assert_allclose(found[1], b.grad.numpy())
