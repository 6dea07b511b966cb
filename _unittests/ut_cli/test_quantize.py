"""``onnxcustom quantize``: what ``tuning.quantize`` does, with rows of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnxcustom import load, save
from onnxcustom.tuning import Quantization, quantize

MODEL = """<ir_version: 8, opset_import: ["": 17]> m (float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] w = {1, -2, 3, 4, 5, -6, 7, 8, 9, 1, -1, 2}, float[4, 2] v = {1, 2, 3, -4, 5, 6, 7, 8}>
    { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"""


@pytest.fixture
def rows(folder: Path) -> np.ndarray:
    save(onnx.parser.parse_model(MODEL), "m.onnx")
    array = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.save("rows.npy", array)
    return array


def test_by_the_first_rows(rows: np.ndarray, command) -> None:
    told = command(
        "quantize",
        "m.onnx",
        "rows.npy",
        *("--rows", "20", "--exclude", "v", "--reduce-range", "--calibration", "mse"),
    ).output
    assert told.startswith("m_quantized.onnx: ")
    options = Quantization(rows=20, exclude="v", reduce_range=True, calibration="mse")
    assert load("m_quantized.onnx").graph == quantize("m.onnx", rows[:20], options).graph


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--weights", "int9"), "must be 'int8' to 'int2'"),
        (("--activations", "float8"), "'uint8' to 'uint2'"),
        (("--exclude", "z"), "'z'"),
        (("-o", "m.onnx"), "m.onnx"),
    ],
)
def test_what_is_wrong(options: tuple[str, ...], said: str, rows: np.ndarray, command) -> None:
    result = command("quantize", "m.onnx", "rows.npy", *options, code=2)
    assert said in result.stderr
    assert not Path("m_quantized.onnx").exists()
