"""Rows that belong into one batch: partners, and several of a class."""

from __future__ import annotations

import pickle

import numpy as np
import onnx.parser
import pytest
from sklearn.base import clone

from onnxcustom import OnnxRegressor
from onnxcustom.data import stream
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError, RowsWarning
from onnxcustom.feed.data_loader import OrtDataLoader
from onnxcustom.feed.grouping import class_groups, pair_groups
from onnxcustom.training.callbacks import Callback, Checkpoint

pytest.importorskip("onnxruntime")

EMBED = """<ir_version: 8, opset_import: ["": 17]> embed (float[N, 3] x) => (float[N, 2] y)
<float[3, 2] w = {0.5, -1, 0.25, 1, 0.75, 0.1}> { y = MatMul(x, w) }"""


def batches(loader, epoch):
    order = loader.order(epoch)
    order = np.arange(len(loader)) if order is None else order
    return [order[i : i + loader.batch_size] for i in range(0, len(order), loader.batch_size)]


def loader(rows, batch_size, groups, shuffle=True):
    data = np.arange(rows, dtype=np.float32).reshape(-1, 1)
    made = OrtDataLoader(data, batch_size=batch_size, shuffle=shuffle, random_state=0)
    return made.grouped(groups)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("given", ["behind", "named"])
def test_partners_share_a_batch(given, shuffle):
    """Every row once an epoch; each epoch its own order, the same from call to call."""
    names = np.repeat(np.arange(12), 2) if given == "behind" else np.tile(np.array([*"lkjihgfedcba"]), 2)
    made = loader(24, 6, pair_groups(2 if given == "behind" else names, 24, 6), shuffle)
    seen = [batches(made, epoch) for epoch in (0, 1, 0)]
    for parts in seen:
        assert sorted(np.concatenate(parts)) == [*range(24)]
        for part in parts:
            assert (np.unique(names[part], return_counts=True)[1] == 2).all()
    assert np.array_equal(seen[0], seen[2])
    assert np.array_equal(seen[0], seen[1]) != shuffle
    # What is bound is what the order says.
    for part, batch in zip(seen[0], made.epoch(0), strict=True):
        np.testing.assert_array_equal(batch.values[0].numpy()[:, 0], part)
    copy = pickle.loads(pickle.dumps(made))
    assert np.array_equal(batches(copy, 1), seen[1])


@pytest.mark.parametrize("sizes", [[8, 8, 8, 8], [20, 5, 9, 3], [32, 1, 1, 2]])
def test_rows_of_a_class_share_a_batch(sizes):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), sizes)) * 10
    made = loader(len(labels), 8, class_groups(2, labels, 8))
    partners = []
    for epoch in range(3):
        parts = batches(made, epoch)
        order = np.concatenate(parts)
        assert sorted(order) == [*range(len(labels))]
        whole = sum(n // 2 for n in sizes)
        together = order[: 2 * whole].reshape(-1, 2)
        assert (labels[together[:, 0]] == labels[together[:, 1]]).all()
        partners.append({frozenset(pair) for pair in together.tolist()})
        if len(set(sizes)) == 1:  # each batch has all four classes
            assert all(len(set(labels[part])) == 4 for part in parts)
    assert partners[0] != partners[1]  # others come together


def test_groups_in_a_fit():
    X = np.random.default_rng(1).normal(size=(24, 3)).astype(np.float32)
    y = np.repeat(np.arange(12), 2)
    seen = []

    class Look(Callback):
        def on_batch_begin(self, trainer, batch):
            seen.append(np.array(batch.values[1].numpy()).reshape(-1))

    options = {"loss": "contrastive", "batch_size": 6, "max_iter": 3, "random_state": 0}
    net = OnnxRegressor(onnx.parser.parse_model(EMBED), pairs=2, callbacks=[Look()], **options)
    net.fit(X, y)
    assert all((np.unique(part, return_counts=True)[1] == 2).all() for part in seen)
    assert clone(net).pairs == 2
    named = OnnxRegressor(onnx.parser.parse_model(EMBED), pairs=y + 7, **options).fit(X, y)
    np.testing.assert_array_equal(named.weights_["w"], net.weights_["w"])
    classes = OnnxRegressor(onnx.parser.parse_model(EMBED), m_per_class=2, **options).fit(X, y)
    assert np.isfinite(classes.history_["loss"]).all()
    with pytest.warns(RowsWarning, match=r"are the only one of theirs in their batch.*m_per_class=2"):
        OnnxRegressor(onnx.parser.parse_model(EMBED), **options).fit(X, y)


def test_checkpoints_know_the_groups(tmp_path):
    X = np.random.default_rng(1).normal(size=(24, 3)).astype(np.float32)
    y = np.arange(24) % 4

    class Stop(Callback):
        def on_batch_end(self, trainer, batch, loss):
            if trainer.n_iter_ == 1 and trainer.run.batches == 2:
                trainer.run.stop("enough", final=False)

    def net(*callbacks):
        return OnnxRegressor(
            onnx.parser.parse_model(EMBED),
            loss="triplet",
            m_per_class=2,
            batch_size=4,
            max_iter=3,
            random_state=0,
            callbacks=[*callbacks],
        )

    through = net().fit(X, y)
    net(Stop(), Checkpoint(tmp_path)).fit(X, y)
    np.testing.assert_array_equal(net(Checkpoint(tmp_path)).fit(X, y).weights_["w"], through.weights_["w"])


def test_streams_keep_what_is_behind_each_other():
    X = np.random.default_rng(1).normal(size=(24, 3)).astype(np.float32)
    y = np.repeat(np.arange(12), 2)
    options = {"loss": "contrastive", "batch_size": 6, "max_iter": 2, "shuffle": False, "pairs": 2}
    rows = stream((X, y), block_rows=5)
    streamed = OnnxRegressor(onnx.parser.parse_model(EMBED), **options).fit(rows)
    memory = OnnxRegressor(onnx.parser.parse_model(EMBED), **options).fit(X, y)
    np.testing.assert_allclose(streamed.weights_["w"], memory.weights_["w"], rtol=1e-6)
    for change in ({"shuffle": True}, {"pairs": y}, {"pairs": None, "m_per_class": 2}):
        with pytest.raises(InvalidDataError, match="cannot be brought together: write rows"):
            OnnxRegressor(onnx.parser.parse_model(EMBED), **{**options, **change}).fit(rows)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"pairs": 2, "batch_size": 5}, InvalidParameterError, "batch_size=5 is no multiple of 2"),
        ({"pairs": 5, "batch_size": 5}, InvalidDataError, "the data has 24: no multiple"),
        ({"pairs": 1}, InvalidParameterError, "at least 2"),
        ({"pairs": [1, 2]}, InvalidParameterError, "for each of the 24 rows"),
        ({"pairs": [0] * 4 + [1] * 20, "batch_size": 4}, InvalidDataError, "groups of one size.*m_per_class"),
        ({"pairs": np.arange(24), "batch_size": 4}, InvalidDataError, "; 0 has 1 of the rows, others"),
        ({"m_per_class": 4, "batch_size": 6}, InvalidParameterError, "no multiple of 4"),
        ({"m_per_class": 2, "pairs": 2}, InvalidParameterError, "give one"),
        ({"pairs": 2, "validation_fraction": 0.5}, InvalidParameterError, "give X_val and y_val"),
    ],
)
def test_what_is_refused(options, error, words):
    X, y = np.zeros((24, 3), np.float32), np.arange(24) % 4
    options = {"batch_size": 4, "loss": "triplet", "max_iter": 1, **options}
    with pytest.raises(error, match=words):
        OnnxRegressor(onnx.parser.parse_model(EMBED), **options).fit(X, y)
