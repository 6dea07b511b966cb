from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import onnx
import pytest

from onnxcustom import optim
from onnxcustom.feed.fingerprint import describe, differences, hash_arrays, hash_model
from onnxcustom.objective import HuberLearningLoss, SquareLearningLoss


def values():
    return [
        None,
        True,
        1,
        1.5,
        np.float32(1.5),
        "text",
        [1, "a"],
        {"a": 1},
        {"b", "a"},
        np.arange(3),
        np.arange(3.0),
        optim.Adam(0.1),
        optim.Adam(0.1, beta1=0.5),
        optim.Adam(optim.Cosine(0.1, total=5)),
        optim.Adam(optim.Cosine(0.1, total=6)),
        SquareLearningLoss(),
        HuberLearningLoss(),
        describe,
        OnnxLike,
    ]


class OnnxLike:
    pass


def test_what_differs_is_described_differently():
    texts = [describe(v) for v in values()]
    assert len(set(texts)) == len(texts)
    assert all(" at 0x" not in t for t in texts)


def test_descriptions_go_by_value():
    assert [describe(v) for v in values()] == [describe(v) for v in values()]
    assert describe(functools.partial(describe, 1)) != describe(functools.partial(describe, 2))


def test_in_another_process():
    code = (
        "from onnxcustom import optim; from onnxcustom.feed.fingerprint import describe;"
        "print(describe([optim.Adam(optim.Cosine(0.1, total=5), frozen={'a', 'b', 'c'}), {'x', 'y', 'z'}]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rule = optim.Adam(optim.Cosine(0.1, total=5), frozen={"a", "b", "c"})
    assert run.stdout.strip() == describe([rule, {"x", "y", "z"}])


def test_hash_of_a_model(mlp_model, monkeypatch):
    model = mlp_model([3, 4, 1])
    same = onnx.load_from_string(model.SerializeToString())
    assert hash_model(model) == hash_model(same) == hash_model(model.SerializeToString())
    other = mlp_model([3, 4, 1], seed=1)
    assert hash_model(other) != hash_model(model)
    monkeypatch.setattr("onnxcustom.feed.fingerprint.PROTOBUF_LIMIT", 10)
    large = hash_model(model)
    assert large == hash_model(same) != hash_model(other)
    assert len(model.graph.initializer) == 4


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 3)])
def test_hash_of_arrays(shape):
    array = np.full(shape, 1.5, np.float32)
    (text,) = hash_arrays({"x": array}).values()
    assert text.startswith(f"float32 {shape} ")
    assert hash_arrays({"x": array.copy()}) == {"x": text}
    if array.size:
        assert hash_arrays({"x": array + 1}) != {"x": text}
    assert hash_arrays({"x": array.astype(np.float64)}) != {"x": text}


def test_differences_in_words():
    one = {"model": "a", "parameter": {"batch_size": "1", "same": "x"}, "data": {"x": "1"}}
    other = {"model": "b", "parameter": {"batch_size": "2", "same": "x"}, "data": {"x": "1", "y": "2"}}
    assert differences(one, one) == []
    assert differences(one, other) == [
        "model was a, is b",
        "parameter 'batch_size' was 1, is 2",
        "data 'y' was nothing, is 2",
    ]
