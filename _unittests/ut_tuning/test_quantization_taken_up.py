"""Models that onnxruntime's quantizers wrote, trained with rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from onnxcustom import TrainingStep, tuning

from .test_quantization import IMAGES, LABELS, network, run, tensors_of


class Rows(CalibrationDataReader):
    """Pictures for onnxruntime's quantizer."""

    def __init__(self) -> None:
        self._parts = iter([{"x": IMAGES}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._parts, None)


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_models_of_onnxruntimes_quantizers(form: str, tmp_path: Path) -> None:
    """Their integers become weights by the scales they have, and integers again, the same ones."""
    source, target = tmp_path / "float.onnx", tmp_path / "integers.onnx"
    onnx.save(network(), source)
    if form == "dynamic":
        quantize_dynamic(source, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    else:
        if onnxruntime.__version__.startswith("1.17"):
            pytest.skip("its quantizer asks onnx for onnx.mapping, which is gone")
        quantize_static(
            source,
            target,
            Rows(),
            quant_format=QuantFormat[form],
            per_channel=True,
            reduce_range=True,  # products of bytes saturate on some processors
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
    given = onnx.load(target)
    step = TrainingStep(given, "cross_entropy", "adam", learning_rate=0.01, quantize="int8")
    floats = tensors_of(tuning.dequantize(given, activations="remove"))
    for name, array in step.weights().items():
        if name in floats and name != "k1":  # which a normalization was taken into
            np.testing.assert_array_equal(array, floats[name])
    step.calibrate(IMAGES)
    before = run(given, IMAGES)
    assert np.abs(run(step.trained_model(), IMAGES) - before).max() < 0.08 * np.ptp(before)
    losses = [step.run(IMAGES, LABELS) for _ in range(10)]
    assert losses[-1] < losses[0]
    expected = step.predict(IMAGES)["y"]
    assert np.abs(run(step.trained_model(), IMAGES) - expected).max() < 0.05 * np.ptp(expected)
