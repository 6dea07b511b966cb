"""Rules of poolings."""

from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case, check_case

random = np.random.default_rng(0)


def x(*shape: int) -> np.ndarray:
    """Values at least 0.1 apart from one another and from 0: maxima stay where they are."""
    values = np.arange(1, np.prod(shape) + 1) - np.prod(shape) // 2 - 0.5
    return random.permutation(values / 3).reshape(shape)


GEOMETRY = [
    ("plain", (2, 2, 4, 5), {"kernel_shape": [2, 3]}),
    ("strides", (1, 2, 5, 6), {"kernel_shape": [3, 2], "strides": [2, 3]}),
    ("side by side", (2, 2, 4, 6), {"kernel_shape": [2, 3], "strides": [2, 3]}),
    ("side by side rest", (1, 2, 5, 5), {"kernel_shape": [2, 3], "strides": [2, 3]}),
    ("side by side ceil", (1, 2, 5, 5), {"kernel_shape": [2, 3], "strides": [2, 3], "ceil_mode": 1}),
    ("side by side ceil whole", (1, 2, 4, 6), {"kernel_shape": [2, 3], "strides": [2, 3], "ceil_mode": 1}),
    ("apart", (1, 2, 5, 6), {"kernel_shape": [2, 2], "strides": [3, 4]}),
    ("pads", (1, 1, 4, 4), {"kernel_shape": [3, 2], "pads": [1, 0, 2, 1]}),
    ("strides pads", (1, 1, 5, 4), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 0]}),
    ("ceil", (1, 1, 6, 5), {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    (
        "ceil pads",
        (1, 1, 6, 6),
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    ),
    ("same upper", (1, 1, 5, 4), {"kernel_shape": [3, 2], "strides": [2, 1], "auto_pad": "SAME_UPPER"}),
    ("same lower", (1, 1, 5, 4), {"kernel_shape": [2, 3], "strides": [1, 2], "auto_pad": "SAME_LOWER"}),
    ("valid", (1, 1, 5, 4), {"kernel_shape": [2, 3], "auto_pad": "VALID"}),
    ("1-D", (2, 2, 7), {"kernel_shape": [3], "strides": [2]}),
    ("1-D side by side", (2, 2, 6), {"kernel_shape": [3], "strides": [3]}),
    ("3-D", (1, 2, 3, 3, 4), {"kernel_shape": [2, 3, 2], "strides": [1, 1, 2]}),
    ("3-D side by side", (1, 2, 2, 4, 2), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    ("1x1", (1, 2, 3, 3), {"kernel_shape": [1, 1]}),
]
DILATED = ("dilations", (1, 1, 6, 5), {"kernel_shape": [2, 2], "dilations": [3, 2], "strides": [2, 1]})
INCLUDED = [
    (f"count_include_pad {label}", shape, {**attributes, "count_include_pad": 1})
    for label, shape, attributes in GEOMETRY
    if "pads" in attributes or "auto_pad" in attributes
]

MAX = [
    Case("MaxPool", [x(*shape)], attributes, label + suffix, dtype=dtype, outputs=outputs, runtime="ort")
    for label, shape, attributes in [*GEOMETRY, DILATED]
    for suffix, dtype, outputs in (("", np.float64, 1), (" float32 indices", np.float32, 2))
]
AVERAGE = [
    case
    for label, shape, attributes in [*GEOMETRY, *INCLUDED]
    for case in (
        Case("AveragePool", [x(*shape)], attributes, label + " float32", dtype=np.float32, runtime="ort"),
        Case("AveragePool", [x(*shape)], attributes, label, runtime="reference"),
    )
]
LP = [
    Case("LpPool", [x(*shape)], {**attributes, "p": p}, f"{label} p={p}", dtype=np.float32, runtime="ort")
    for label, shape, attributes in [*GEOMETRY, DILATED]
    for p in ((1, 2, 3) if label in ("plain", "strides pads") else (2,))
]
CASES = [
    *MAX,
    Case("MaxPool", [x(1, 2, 3, 5)], {"kernel_shape": [2, 2], "storage_order": 1}, "storage_order"),
    Case(
        "MaxPool",
        [x(1, 2, 3, 5)],
        {"kernel_shape": [2, 2], "storage_order": 1},
        "storage_order indices",
        outputs=2,
    ),
    Case("MaxPool", [x(1, 1, 3, 3)], {"kernel_shape": [2, 2]}, "", opset=21),
    Case("MaxPool", [x(1, 1, 3, 3)], {"kernel_shape": [2, 2]}, "", opset=22, runtime="reference"),
    *AVERAGE,
    Case("AveragePool", [x(*DILATED[1])], DILATED[2], "dilations", opset=19, dtype=np.float32, runtime="ort"),
    Case("AveragePool", [x(*DILATED[1])], DILATED[2], "dilations", opset=22, runtime="reference"),
    Case(
        "AveragePool",
        [x(1, 1, 4, 4)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        "",
        opset=22,
        runtime="reference",
    ),
    *LP,
    Case("LpPool", [x(1, 1, 3, 3)], {"kernel_shape": [2, 2]}, "", opset=22, runtime="reference"),
    *[
        Case(
            name,
            [x(*shape)],
            attributes,
            f"{len(shape) - 2}-D{suffix}",
            dtype=dtype,
            runtime=runtime,
            opset=opset,
        )
        for name, attributes in (
            ("GlobalAveragePool", {}),
            ("GlobalMaxPool", {}),
            ("GlobalLpPool", {}),
            ("GlobalLpPool", {"p": 1}),
            ("GlobalLpPool", {"p": 3}),
        )
        for shape in ((2, 3, 4), (2, 1, 2, 3), (1, 2, 2, 1, 3))
        for suffix, dtype, runtime, opset in (
            ("", np.float64, "reference", 18),
            (" float32", np.float32, "ort", 18),
            ("", np.float64, "reference", 22),
        )
        if runtime == "ort" or name == "GlobalAveragePool" or (name == "GlobalMaxPool" and len(shape) == 4)
    ],
    Case(
        "MaxUnpool",
        [x(1, 2, 2, 2), np.array([[[[0, 3], [9, 10]], [[20, 19], [28, 31]]]])],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        "",
        runtime="reference",
    ),
    Case(
        "MaxUnpool",
        [x(1, 2, 2, 2), np.array([[[[0, 3], [9, 10]], [[20, 19], [28, 31]]]])],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        "float32",
        dtype=np.float32,
        runtime="ort",
    ),
    Case(
        "MaxUnpool",
        [x(1, 1, 2, 2), np.array([[[[0, 3], [9, 24]]]]), np.array([1, 1, 5, 5])],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        "output_shape",
        dtype=np.float32,
        runtime="ort",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check_case(case)


def test_first_of_equal_maxima() -> None:
    case = Case("MaxPool", [np.zeros((1, 1, 2, 4))], {"kernel_shape": [2, 2], "strides": [2, 2]})
    dx, _ = case.evaluate(
        case.gradient("static", ["x0"]), {**case.feeds(), "y0_grad": np.array([[[[2.0, 3.0]]]])}
    )
    np.testing.assert_array_equal(dx, [[[[2, 0, 3, 0], [0, 0, 0, 0]]]])


@pytest.mark.parametrize("op_type", ["GlobalLpPool", "LpPool"])
def test_norm_of_zeros(op_type: str) -> None:
    attributes = {"kernel_shape": [2]} if op_type == "LpPool" else {}
    case = Case(op_type, [np.zeros((1, 1, 2))], attributes, dtype=np.float32)
    feeds = {**case.feeds(), "y0_grad": np.ones((1, 1, 1), np.float32)}
    np.testing.assert_array_equal(
        case.evaluate(case.gradient("static", ["x0"]), feeds)[0], np.zeros((1, 1, 2))
    )


def test_overlapping_maxima_in_float16() -> None:
    case = Case(
        "MaxPool", [np.array([[[1.0, 5.0, 2.0]]])], {"kernel_shape": [2]}, dtype=np.float16, runtime="ort"
    )
    feeds = {**case.feeds(), "y0_grad": np.array([[[2.0, 3.0]]], np.float16)}
    dx, _ = case.evaluate(case.gradient("static", ["x0"]), feeds)
    assert dx.dtype == np.float16
    np.testing.assert_array_equal(dx, [[[0, 5, 0]]])
