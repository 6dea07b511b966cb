"""What changes a model, or how it is trained, two at a time: stopped and gone on with to the same bits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxcustom import OnnxClassifier
from onnxcustom.tuning import Average, Distillation, LoRA


def network(width: int, seed: int) -> onnx.ModelProto:
    """Two layers."""
    rng = np.random.default_rng(seed)
    first, second = (", ".join(map(str, rng.normal(size=n * width))) for n in (4, 3))
    return onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        network (float[N, 4] x) => (float[N, 3] p)
        <float[4, {width}] w1 = {{{first}}}, float[{width}, 3] w2 = {{{second}}}> {{
            a = MatMul(x, w1)  h = Tanh(a)  z = MatMul(h, w2)  p = Softmax(z)
        }}""")


STUDENT, TEACHER = network(5, 0), network(8, 1)
X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
Y = np.arange(40) % 3
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"lora": LoRA(2)},
    "quantize": {"quantize": "int8"},
    "teacher": {"teacher": Distillation(TEACHER, match={"h": "h"})},
    "average": {"average": Average(decay=0.9)},
    "cache_frozen": {"cache_frozen": True},
}
PAIRS = [p for p in itertools.combinations(OPTIONS, 2) if p != ("lora", "quantize")]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_gone_on_with(pair: tuple[str, str]) -> None:
    """Two epochs and two more are four, what is handed out too."""
    options = {**OPTIONS[pair[0]], **OPTIONS[pair[1]]}
    if set(pair) == {"average", "cache_frozen"}:
        options["weights_to_train"] = "last:1"  # else nothing is frozen
    settings = {"optimizer": "adam", "random_state": 0, "batch_size": 16, "warm_start": True}
    whole = OnnxClassifier(STUDENT, max_iter=4, **settings, **options).fit(X, Y)
    part = OnnxClassifier(STUDENT, max_iter=2, **settings, **options).fit(X, Y)
    part.fit(X, Y)
    assert list(whole.weights_) == list(part.weights_)
    for name, array in whole.weights_.items():
        np.testing.assert_array_equal(part.weights_[name], array)
    one, other = (m.get_trained_onnx().SerializeToString(deterministic=True) for m in (whole, part))
    assert one == other


@pytest.mark.parametrize("other", ["lora", "quantize", "teacher", "average"])
def test_what_is_kept_changes_nothing(other: str) -> None:
    """With ``cache_frozen`` and without, the last layer alone where the user chooses weights."""
    chosen = {} if other == "lora" else {"weights_to_train": "last:1"}
    settings = {
        "optimizer": "adam",
        "max_iter": 3,
        "random_state": 0,
        "batch_size": 16,
        **chosen,
        **OPTIONS[other],
    }
    kept = OnnxClassifier(STUDENT, cache_frozen=True, **settings).fit(X, Y)
    plain = OnnxClassifier(STUDENT, **settings).fit(X, Y)
    for name, array in plain.weights_.items():
        np.testing.assert_allclose(kept.weights_[name], array, rtol=1e-5, atol=1e-6)
