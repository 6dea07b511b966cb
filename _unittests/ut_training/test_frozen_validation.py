"""Validation data go through the frozen part of a model once: the same bits, in bounded room."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from onnxcustom.data import stream
from onnxcustom.feed.held_out import StreamValidation
from onnxcustom.step.frozen import Halves
from onnxcustom.training.callbacks import Unfreeze
from onnxcustom.training.estimators import OnnxRegressor

from .frozen_cases import model

pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)
X, V = RNG.normal(size=(40, 4)).astype(np.float32), RNG.normal(size=(23, 4)).astype(np.float32)
Y, Z = np.sin(X.sum(axis=1)), np.sin(V.sum(axis=1))
WEIGHTS = RNG.uniform(0.5, 2, 23).astype(np.float32)


def rows(*arrays, **options):
    return stream(arrays, block_rows=6, **options)


TRAINING = {"memory": lambda: (X, Y), "stream": lambda: (rows(X, Y),)}
HELD_OUT = {
    "stream": lambda: {"X_val": rows(V, Z)},
    "shuffled": lambda: {"X_val": rows(V, Z, shuffle_rows=12)},
    "weighed": lambda: {"X_val": rows(V, Z, WEIGHTS)},
    "memory": lambda: {"X_val": V, "y_val": Z, "sample_weight_val": WEIGHTS},
}


class Counted:
    """How often blocks are read, and rows go through the frozen half."""

    def __init__(self, monkeypatch):
        self.read = self.computed = 0
        read, compute = StreamValidation.read, Halves.compute

        def reading(validation):
            self.read += 1
            return read(validation)

        def computing(halves, batch):
            self.computed += 1
            return compute(halves, batch)

        monkeypatch.setattr(StreamValidation, "read", reading)
        monkeypatch.setattr(Halves, "compute", computing)


def fit(train, held_out, kind=OnnxRegressor, **options):
    defaults = {"learning_rate": 0.05, "batch_size": 5, "max_iter": 4, "random_state": 0, "optimizer": "adam"}
    made = kind(model("dense"), **{**defaults, "weights_to_train": "w", **options})
    return made.fit(*TRAINING[train](), **HELD_OUT[held_out]())


@pytest.mark.parametrize("held_out", HELD_OUT)
@pytest.mark.parametrize("train", TRAINING)
def test_the_same_bits(train, held_out, monkeypatch):
    plain, counted = fit(train, held_out), Counted(monkeypatch)
    cached = fit(train, held_out, cache_frozen=True)
    assert cached.history_["val_loss"] == plain.history_["val_loss"]
    assert counted.read == (held_out != "memory")
    once = counted.computed
    fit(train, held_out, cache_frozen=True, max_iter=8)
    assert counted.computed == 2 * once  # whatever the number of epochs


def test_no_room(caplog):
    plain = fit("memory", "stream")
    with caplog.at_level(logging.INFO, logger="onnxcustom"):
        little = fit("memory", "stream", cache_frozen=True, cache_bytes=1300)
    assert "validation data" in caplog.text
    assert "cache_bytes" in caplog.text
    np.testing.assert_allclose(little.history_["val_loss"], plain.history_["val_loss"], rtol=1e-6)


def test_of_other_weights(monkeypatch):
    """With weights that join there is another frozen part."""
    callbacks = {"callbacks": Unfreeze({2: None}), "max_iter": 5}
    plain, counted = fit("memory", "stream", **callbacks), Counted(monkeypatch)
    cached = fit("memory", "stream", cache_frozen=True, **callbacks)
    np.testing.assert_allclose(cached.history_["val_loss"], plain.history_["val_loss"], rtol=1e-6)
    assert counted.read == 1 + 3  # there is none when all weights train


def test_iterables_and_measures_of_ones_own():
    """Others may make other rows every time, or look at the rows."""
    seen = []

    class Own(OnnxRegressor):
        def validate(self, X, y, sample_weight=None):
            seen.append(next(iter(X.values())).shape)
            return super().validate(X, y, sample_weight)

    options = {
        "weights_to_train": "w",
        "max_iter": 3,
        "batch_size": 5,
        "random_state": 0,
        "cache_frozen": True,
    }
    fit("memory", "stream", kind=Own, max_iter=2, cache_frozen=True)
    assert seen == 2 * [(6, 4), (6, 4), (6, 4), (5, 4)]
    read = []

    def batches():
        read.append(1)
        yield V, Z

    OnnxRegressor(model("dense"), **options).fit(X, Y, X_val=stream(batches))
    assert len(read) >= 3
