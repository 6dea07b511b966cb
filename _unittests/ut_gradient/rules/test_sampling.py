"""Rules of GridSample and AffineGrid."""

from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case, check_case

from onnxcustom.exceptions import GradientNotImplementedError

random = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return random.normal(size=shape)


def positions(*shape: int) -> np.ndarray:
    """Some inside, some outside, none on a border or between two cells."""
    return np.round(random.uniform(-1.7, 1.7, size=shape), 2) + 0.0037


MODES = ("nearest", "linear", "cubic")
OLD = {"linear": "bilinear", "cubic": "bicubic"}
PADDINGS = ("zeros", "border", "reflection")
CASES = [
    *[
        Case(
            "GridSample",
            [r(2, 2, 3, 4), positions(2, 3, 2, 2)],
            {"mode": mode, "padding_mode": padding, "align_corners": align},
            f"{mode} {padding} align={align}",
            opset=20,
            rtol=1e-4,
            runtime="ort",
            dynamic=False,
        )
        for mode in MODES
        for padding in PADDINGS
        for align in (0, 1)
    ],
    *[
        Case(
            "GridSample",
            [r(1, 2, 3, 4), positions(1, 3, 2, 2)],
            {"mode": OLD.get(mode, mode), "padding_mode": padding},
            f"{mode} {padding}",
            opset=18,
            dtype=np.float32,
            runtime="ort",
            wrt=[0, 1] if mode == "nearest" else [0],
        )
        for mode in MODES
        for padding in PADDINGS
    ],
    *[
        Case(
            "GridSample",
            [r(1, 2, 3, 2, 3), positions(1, 2, 1, 3, 3)],
            {"mode": mode, "padding_mode": padding, "align_corners": align},
            f"3-D {mode} {padding} align={align}",
            opset=20,
            rtol=1e-4,
            runtime="ort",
            dynamic=False,
        )
        for mode in ("nearest", "linear")
        for padding in PADDINGS
        for align in (0, 1)
    ],
    *[
        Case(
            "AffineGrid",
            [r(2, n, n + 1), np.array(size)],
            {"align_corners": align},
            f"{n}-D align={align} {where}",
            opset=20,
            runtime=runtime,
            constant=[1] if where == "constant" else [],
        )
        for n, size in ((2, [2, 1, 3, 4]), (3, [2, 1, 2, 3, 2]))
        for align in (0, 1)
        for where, runtime in (("constant", "ort"), ("input", "ort"))
    ],
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("case", [c for c in CASES if not c.dynamic], ids=str)
def test_dynamic_dimensions(case: Case) -> None:
    (y,) = case.evaluate(case.model(), case.feeds())
    feeds = {**case.feeds(), "y0_grad": random.normal(size=y.shape).astype(y.dtype)}
    names = case.differentiable()
    found = [case.evaluate(case.gradient(shapes, names), feeds) for shapes in ("static", "dynamic")]
    for static, dynamic in zip(*found, strict=False):
        np.testing.assert_allclose(dynamic, static, rtol=1e-9, atol=1e-12)


def test_unknown_rank_is_refused() -> None:
    case = Case("GridSample", [r(1, 1, 3, 3), positions(1, 2, 2, 2)], opset=20)
    with pytest.raises(GradientNotImplementedError, match="rank"):
        case.gradient("unranked", ["x0"])


def test_float16() -> None:
    center = np.zeros((1, 1, 2, 2))  # twice the middle of an image of 3 x 3
    case = Case("GridSample", [r(1, 1, 3, 3), center], opset=20, dtype=np.float16, runtime="ort")
    feeds = {**case.feeds(), "y0_grad": np.array([[[[2.0, 3.0]]]], np.float16)}
    dx, *_ = case.evaluate(case.gradient("static", ["x0"]), feeds)
    assert dx.dtype == np.float16
    np.testing.assert_array_equal(dx, 5 * np.eye(3)[1] * np.eye(3)[1][:, None] * np.ones((1, 1, 1, 1)))
