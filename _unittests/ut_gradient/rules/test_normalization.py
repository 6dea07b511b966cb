"""Rules of normalizations and of Dropout."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from bare_gradient import differentiate
from rule_cases import Case, check_case

random = np.random.default_rng(0)
BOTH = ((np.float64, "auto"), (np.float32, "ort"))


def r(*shape: int) -> np.ndarray:
    return random.normal(size=shape)


def positive(*shape: int) -> np.ndarray:
    return random.uniform(0.5, 2, size=shape)


def name(dtype: type) -> str:
    return "" if dtype == np.float64 else " float32"


CASES = [
    *[
        Case(
            "BatchNormalization",
            [r(*shape), r(shape[1]), r(shape[1]), r(shape[1]), positive(shape[1])],
            {"epsilon": 1e-2},
            f"rank {len(shape)}{name(dtype)}",
            dtype=dtype,
            runtime="ort",
        )
        for shape in ((3, 2), (2, 3, 4), (2, 2, 3, 2), (1, 1, 2, 2, 2))
        for dtype in (np.float64, np.float32)
    ],
    Case(
        "BatchNormalization",
        [r(2, 2, 3), r(2), r(2), r(2), positive(2)],
        {},
        "constant statistics",
        constant=[3, 4],
    ),
    *[
        Case(
            "BatchNormalization",
            [r(*shape), r(shape[1]), r(shape[1]), r(shape[1]), positive(shape[1])],
            {"training_mode": 1, "momentum": 0.7, "epsilon": 1e-2},
            f"training rank {len(shape)} outputs={outputs}",
            outputs=outputs,
            wrt=wrt,
            runtime="reference",
            rtol=1e-4,
        )
        for shape in ((4, 2), (2, 3, 4), (2, 2, 3, 2))
        for outputs, wrt in ((1, [0, 1, 2]), (3, None))
    ],
    *[
        Case(
            "LayerNormalization",
            [r(*shape), r(*shape[axis:]), r(*shape[axis:])][: 3 if bias else 2],
            {"axis": axis, "epsilon": 1e-2},
            f"{shape} axis={axis} bias={bias}{name(dtype)}",
            dtype=dtype,
            runtime="ort",
        )
        for shape in ((4,), (3, 4), (2, 3, 2), (2, 1, 2, 3))
        for axis in range(-len(shape), len(shape))
        for bias in (True, False)
        for dtype in (np.float64, np.float32)
    ],
    Case("LayerNormalization", [r(3, 4), r(4), r(4)], {}, "statistics float32", outputs=3, dtype=np.float32),
    Case(
        "LayerNormalization",
        [r(3, 4), r(4), r(4)],
        {},
        "statistics",
        outputs=3,
        runtime="reference",
        rtol=1e-3,
    ),
    Case(
        "LayerNormalization",
        [r(2, 3, 2), r(3, 2), r(3, 2)],
        {"axis": 1},
        "statistics axis=1 float32",
        outputs=3,
        dtype=np.float32,
    ),
    *[
        Case(
            "RMSNormalization",
            [r(*shape), r(*shape[axis:])],
            {"axis": axis, "epsilon": 1e-2},
            f"{shape} axis={axis}",
            opset=23,
            runtime="reference",
            rtol=1e-3,
        )
        for shape in ((4,), (3, 4), (2, 3, 2))
        for axis in range(-len(shape), len(shape))
    ],
    *[
        Case(
            "InstanceNormalization",
            [r(*shape), r(shape[1]), r(shape[1])],
            {"epsilon": 1e-2},
            f"rank {len(shape)}{name(dtype)}",
            dtype=dtype,
            runtime=runtime,
        )
        for shape in ((2, 3, 4), (2, 2, 3, 2), (1, 2, 2, 2, 2))
        for dtype, runtime in ((np.float64, "reference"), (np.float32, "ort"))
    ],
    *[
        Case(
            "GroupNormalization",
            [r(2, 4, *spatial), r(*parameters), r(*parameters)],
            {"num_groups": groups, "epsilon": 1e-2},
            f"{spatial} groups={groups}",
            opset=opset,
            dtype=dtype,
            runtime=runtime,
        )
        for spatial in ((3,), (2, 3))
        for groups in (1, 2, 4)
        for opset, parameters, dtype, runtime in (
            (18, (groups,), np.float64, "auto"),
            (21, (4,), np.float32, "auto"),
            (21, (4,), np.float32, "reference"),
        )
    ],
    *[
        Case(
            "MeanVarianceNormalization",
            [r(2, 3, 2, 2)],
            {} if axes is None else {"axes": axes},
            f"axes={axes}",
            dtype=np.float32,
            runtime="ort",
        )
        for axes in (None, [2, 3], [1], [0, 1, 2, 3])
    ],
    *[
        Case(
            "LpNormalization",
            [r(2, 3, 4)],
            {"axis": axis, "p": p},
            f"axis={axis} p={p}",
            opset=opset,
            runtime=runtime,
        )
        for axis in (-1, 0, 1)
        for p, opset, runtime in ((1, 18, "ort"), (2, 18, "ort"), (2, 22, "reference"))
    ],
    *[
        Case(
            "LRN",
            [r(*shape)],
            {"size": size, "alpha": 0.3, "beta": 0.6, "bias": 1.5},
            f"{shape} size={size}{name(dtype)}",
            dtype=dtype,
            runtime=runtime,
        )
        for shape in ((5, 5, 1, 2), (3, 3, 2, 1))
        for size in (1, 2, 3, 5)
        for dtype, runtime in ((np.float64, "reference"), (np.float32, "ort"))
        if size % 2 or runtime == "reference"
    ],
    Case("Dropout", [r(2, 3)], {}, "inference"),
    Case("Dropout", [r(2, 3), np.array(0.4)], {}, "inference ratio", wrt=[0]),
    Case("Dropout", [r(2, 3), np.array(0.4), np.array(False)], {}, "not training", wrt=[0]),
    Case(
        "Dropout", [r(2, 3), np.array(0.4), np.array(False)], {}, "never training", constant=[1, 2], outputs=2
    ),
    Case("Dropout", [r(2, 3), np.array(0.4)], {}, "", opset=22, wrt=[0], runtime="reference"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("shapes", ["static", "dynamic", "unranked"])
@pytest.mark.parametrize("constant", [[], [1], [2], [1, 2]], ids=str)
@pytest.mark.parametrize("ratio", [0.0, 0.4, None])
def test_dropout_uses_the_same_mask(ratio: float | None, constant: list[int], shapes: str) -> None:
    inputs = [positive(20, 5), None if ratio is None else np.array(ratio), np.array(True)]
    if ratio is None:
        constant = [c for c in constant if c != 1]
    case = Case("Dropout", inputs, constant=constant, wrt=[0])
    model = ir.from_proto(case.model(shapes))
    proto = ir.to_proto(differentiate(model, ["x0"], ["y0"]))
    dy = r(20, 5)
    dx, y = case.evaluate(proto, {**case.feeds(), "y0_grad": dy})
    share = 1 - (0.5 if ratio is None else ratio)
    np.testing.assert_allclose(dx, np.where(y != 0, dy / share, 0), rtol=1e-6)
    assert share == 1 or 0 < np.mean(y == 0) < 1


@pytest.mark.parametrize("p", [1, 2])
def test_norm_of_zeros(p: int) -> None:
    case = Case("LpNormalization", [np.zeros((2, 3))], {"p": p}, dtype=np.float32)
    feeds = {**case.feeds(), "y0_grad": np.ones((2, 3), np.float32)}
    np.testing.assert_array_equal(case.evaluate(case.gradient("static", ["x0"]), feeds)[0], np.zeros((2, 3)))
