from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case, check_case
from second_order import check_second_order

import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.reduction
import onnxcustom.gradient.rules.shaping
import onnxcustom.gradient.rules.signal
import onnxcustom.gradient.rules.slicing  # noqa: F401

rng = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


def dft(label: str, x: np.ndarray, length: int | None, axis: int | None, **attributes) -> list[Case]:
    """The case with its axis as an attribute, as a constant and as an input."""
    n = None if length is None else np.array(length)
    older = attributes if axis is None else {**attributes, "axis": axis}
    cases = [
        Case("DFT", [x, n][: 1 if n is None else 2], older, label, constant=constant)
        for constant in ([1], [])[: 1 if n is None else 2]
    ]
    operands = [x] if axis is None and n is None else [x, n] if axis is None else [x, n, np.array(axis)]
    cases += [
        Case("DFT", operands, attributes, f"{label}-{constant}", constant=constant, opset=20)
        for constant in ([1, 2], [])[: 1 if len(operands) == 1 else 2]
    ]
    return cases


CASES = [
    *dft("real", r(2, 4, 1), None, 1),
    *dft("complex", r(2, 4, 2), None, 1),
    *dft("default-axis", r(2, 3, 2), None, None),
    *dft("odd", r(1, 5, 2), None, 1),
    *dft("axis0", r(3, 2, 2), None, 0),
    *dft("negative-axis", r(2, 3, 1), None, -2),
    *dft("longer", r(2, 3, 2), 5, 1),
    *dft("shorter", r(2, 5, 2), 3, 1),
    *dft("same", r(2, 3, 2), 3, 1),
    *dft("onesided", r(2, 4, 1), None, 1, onesided=1),
    *dft("onesided-odd", r(2, 5, 1), None, 1, onesided=1),
    *dft("onesided-longer", r(2, 3, 1), 6, 1, onesided=1),
    *dft("onesided-shorter", r(2, 6, 1), 4, 1, onesided=1),
    *dft("inverse", r(2, 4, 2), None, 1, inverse=1),
    *dft("inverse-real", r(2, 4, 1), None, 1, inverse=1),
    *dft("inverse-longer", r(2, 3, 2), 4, 1, inverse=1),
    *dft("inverse-shorter", r(2, 5, 2), 4, 1, inverse=1),
    *dft("one", r(2, 1, 2), None, 1),
    *(
        Case(
            "DFT",
            [r(2, 3, 2), None if n is None else np.array(n), np.array(1)],
            {"inverse": 1, "onesided": 1},
            f"irfft-{n}-{constant}",
            constant=constant,
            opset=20,
            runtime="reference",
            dynamic=n != 7,  # the reference evaluator crops no sizes known only at run time
        )
        for n in (None, 4, 5, 7, 3)
        for constant in ([1, 2], [])
        if constant or n != 7
    ),
    *(
        Case(
            "STFT",
            [signal, np.array(step), window, length],
            {"onesided": 1, **attributes},  # onnx infers wrong shapes from its default
            f"{label}-{constant}",
            constant=constant,
            # onnxruntime 1.19 returns uninitialized memory for complex signals
            runtime="reference" if label == "complex" else "auto",
        )
        for label, signal, step, window, length, attributes in (
            ("window", r(2, 9, 1), 2, r(4), None, {}),
            ("both", r(2, 9, 1), 3, r(4), np.array(4), {}),
            ("no-window", r(1, 8, 1), 2, None, np.array(4), {}),
            ("apart", r(1, 10, 1), 5, r(2), None, {}),
            ("twosided", r(1, 8, 1), 2, r(4), None, {"onesided": 0}),
            ("complex", r(2, 8, 2), 2, r(4), None, {"onesided": 0}),
            ("odd", r(1, 8, 1), 1, r(5), None, {}),
        )
        for constant in ([1, 3], [])
    ),
    Case("STFT", [r(1, 8, 1), np.array(2), r(4)], label="opset20", opset=20),
]
for case in CASES:
    while case.inputs[-1] is None:
        case.inputs.pop()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.runtime == "auto"], ids=str)
def test_second_order(case: Case) -> None:
    check_second_order(case)
