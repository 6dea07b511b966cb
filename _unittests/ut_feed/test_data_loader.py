from __future__ import annotations

import hashlib
import pickle

import numpy as np
import onnx
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from onnxcustom.data.sparse import SparseRows
from onnxcustom.exceptions import CallOrderError, CheckpointError, InvalidDataError
from onnxcustom.feed.batch_buffers import BatchBuffers
from onnxcustom.feed.data_loader import OrtDataLoader
from onnxcustom.feed.order import draw_seed, permutation
from onnxcustom.feed.specs import TensorSpec

ort = pytest.importorskip("onnxruntime")
F32 = np.dtype(np.float32)


def rows_of(loader, epoch):
    """All rows of an epoch, read batch by batch."""
    # Copies: the arrays share the memory that the next block overwrites.
    parts = [[v.numpy().copy() for v in batch.values] for batch in loader.epoch(epoch)]
    return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


def make(n=23, **options):
    X = np.arange(3.0 * n).reshape(n, 3)
    options = {"batch_size": 5, "random_state": 0, **options}
    return X, OrtDataLoader(X, X[:, 0], X[:, 1], **options)


# -- order -------------------------------------------------------------------------------------


def test_permutation_is_a_function_of_seed_and_epoch():
    assert np.array_equal(permutation(1, 2, 50), permutation(1, 2, 50))
    assert not np.array_equal(permutation(1, 2, 50), permutation(1, 3, 50))
    assert not np.array_equal(permutation(1, 2, 50), permutation(2, 2, 50))
    assert sorted(permutation(1, 2, 50)) == list(range(50))


def test_seeds():
    assert draw_seed(5) == draw_seed(np.int64(5)) == 5
    assert draw_seed(np.random.RandomState(0)) == draw_seed(np.random.RandomState(0))
    assert draw_seed(np.random.default_rng(0)) == draw_seed(np.random.default_rng(0))
    assert draw_seed() != draw_seed()


@pytest.mark.parametrize("bad", [-1, "0", 1.5, True, 2**64])
def test_bad_seeds(bad):
    with pytest.raises(ValueError, match="random_state must be"):
        draw_seed(bad)


@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    block_bytes=st.sampled_from([1, 200, 2**20]),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_row_comes_once_with_its_own_target(n, batch_size, block_bytes, shuffle, epoch):
    X, loader = make(n, batch_size=batch_size, block_bytes=block_bytes, shuffle=shuffle)
    sizes = [batch.rows for batch in loader.epoch(epoch)]
    assert sum(sizes) == n
    assert len(sizes) == loader.n_batches
    assert all(s == batch_size for s in sizes[:-1])
    x, y, w = rows_of(loader, epoch)
    order = loader.order(epoch) if shuffle else np.arange(n)
    np.testing.assert_array_equal(x, X[order])
    np.testing.assert_array_equal(y[:, 0], X[order, 0])
    np.testing.assert_array_equal(w, X[order, 1])


def test_epochs_differ_and_can_be_had_again_in_any_order():
    _, loader = make()
    first = [rows_of(loader, e)[0] for e in range(4)]
    again = [rows_of(loader, e)[0] for e in (3, 1, 0, 2)]
    for e, rows in zip((3, 1, 0, 2), again, strict=True):
        np.testing.assert_array_equal(rows, first[e])
    assert not np.array_equal(first[0], first[1])


def test_same_seed_same_bits_whatever_the_block():
    for epoch in range(3):
        whole, blocks = make(block_bytes=2**20)[1], make(block_bytes=1)[1]
        np.testing.assert_array_equal(rows_of(whole, epoch)[0], rows_of(blocks, epoch)[0])


# -- memory ------------------------------------------------------------------------------------


def test_unshuffled_batches_share_the_users_memory_if_asked_to():
    X = np.zeros((10, 2), np.float32)
    loader = OrtDataLoader(X, np.zeros(10), batch_size=4, random_iter=False, copy=False)
    pointers = [b.values[0].data_ptr() for b in loader.epoch(0)]
    assert pointers == [X.ctypes.data + 8 * i for i in (0, 4, 8)]


def test_shuffled_batches_keep_their_addresses_and_ortvalues():
    _, loader = make()
    first, second = list(loader.epoch(0)), list(loader.epoch(1))
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert len({b.values[0].data_ptr() for b in first}) == loader.n_batches


def test_blocks_keep_the_buffer_small():
    _, loader = make(block_bytes=300)
    assert loader._buffers.nbytes <= 300
    assert len({b.values[0].data_ptr() for b in loader.epoch(0)}) < loader.n_batches


def test_many_unshuffled_batches_are_made_on_the_way(monkeypatch):
    monkeypatch.setattr("onnxcustom.feed.data_loader._PREPARED", 2)
    X, loader = make(shuffle=False)
    assert loader._prepared == []
    np.testing.assert_array_equal(rows_of(loader, 0)[0], X)


def test_two_epochs_at_once_are_refused():
    _, loader = make()
    early = loader.epoch(0)
    next(early)
    next(loader.epoch(1))
    with pytest.raises(CallOrderError, match="Another epoch"):
        next(early)


def test_two_epochs_at_once_are_fine_without_shuffling():
    _, loader = make(shuffle=False)
    for a, b in zip(loader.epoch(0), loader.epoch(1), strict=True):
        assert a is b


WEIGHTED_SUM = """<ir_version: 8, opset_import: ["": 17]>
    g (double[N,3] x, double[N,1] y, double[N] w, double rate) => (double[N] z) <int64[1] axis = {1}>
    { a = ReduceSum<keepdims=0>(x, axis) b = Squeeze(y, axis) c = Add(a, b) d = Mul(c, w)
      z = Mul(d, rate) }"""


@pytest.mark.parametrize("c_binding", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_iter_bind_feeds_a_session(c_binding, shuffle):
    model = onnx.parser.parse_model(WEIGHTED_SUM)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    X, loader = make(shuffle=shuffle)
    python = session.io_binding()
    binding = python._iobinding if c_binding else python
    rate = ort.OrtValue.ortvalue_from_numpy(np.array(2.0))
    python.bind_ortvalue_input("rate", rate)
    for epoch in range(2):
        got = []
        for rows in loader.iter_bind(binding, ["x", "y", "w", "rate"]):
            python.bind_output("z")
            session.run_with_iobinding(python)
            got.append(python.get_outputs()[0].numpy())
            assert len(got[-1]) == rows
        rows_in_order = X[loader.order(epoch)] if shuffle else X
        expected = 2 * (rows_in_order.sum(axis=1) + rows_in_order[:, 0]) * rows_in_order[:, 1]
        np.testing.assert_allclose(np.concatenate(got), expected)


def test_iter_bind_needs_a_name_for_each_array():
    _, loader = make()
    with pytest.raises(InvalidDataError, match=r"3 arrays .* need as many names"):
        next(loader.iter_bind(None, ["x"]))


# -- an epoch that was begun before ----------------------------------------------------------------


@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    block_bytes=st.sampled_from([1, 200, 2**20]),
    shuffle=st.booleans(),
    sparse=st.booleans(),
    data=st.data(),
)
def test_skipping_is_as_iterating(n, batch_size, block_bytes, shuffle, sparse, data):
    X = np.arange(3.0 * n).reshape(n, 3)
    options = {"batch_size": batch_size, "block_bytes": block_bytes, "shuffle": shuffle, "random_state": 0}
    loader = OrtDataLoader(csr_matrix(X) if sparse else X, X[:, 0], **options)
    batches = [[v.numpy().copy() for v in batch.values] for batch in loader.epoch(2)]
    skip = data.draw(st.integers(0, loader.n_batches))
    for batch, wanted in zip(loader.epoch(2, skip), batches[skip:], strict=True):
        assert batch.rows == len(wanted[0])
        for value, array in zip(batch.values, wanted, strict=True):
            np.testing.assert_array_equal(value.numpy(), array)


def test_skipping_many_batches_made_on_the_way(monkeypatch):
    monkeypatch.setattr("onnxcustom.feed.data_loader._PREPARED", 2)
    X, loader = make(shuffle=False)
    np.testing.assert_array_equal(np.concatenate([b.values[0].numpy() for b in loader.epoch(0, 3)]), X[15:])


def test_blocks_that_are_skipped_are_not_gathered(monkeypatch):
    _, loader = make(block_bytes=1)
    filled = []
    monkeypatch.setattr(BatchBuffers, "fill", lambda self, arrays, order, rows: filled.append(rows))
    list(loader.epoch(0, 3))
    assert filled == [5, 3]


@pytest.mark.parametrize("skip", [-1, 6, 100])
def test_skipping_more_than_there_is(skip):
    with pytest.raises(ValueError, match=r"skip must be in \[0, 5\], the batches of an epoch, not"):
        next(make()[1].epoch(0, skip))


# -- what data it is -------------------------------------------------------------------------------


def test_fingerprint():
    X, loader = make()
    found = loader.fingerprint()
    digest = hashlib.sha256(X.tobytes()).hexdigest()
    assert list(found) == ["X", "y", "sample_weight"]
    assert found["X"] == f"float64 (23, 3) {digest[:16]}"
    assert make(shuffle=False)[1].fingerprint() == found
    assert OrtDataLoader(X + 1, X[:, 0], X[:, 1]).fingerprint() == found | {
        "X": OrtDataLoader(X + 1).fingerprint()["X"]
    }
    assert OrtDataLoader(X + 1).fingerprint() != OrtDataLoader(X).fingerprint()


def test_fingerprints_are_computed_once(monkeypatch):
    _, loader = make()
    found = loader.fingerprint()
    monkeypatch.setattr("onnxcustom.feed.data_loader.hash_array", None)
    assert loader.fingerprint() == found
    found.clear()
    assert loader.fingerprint()


def test_fingerprint_of_memory_that_is_mapped(tmp_path):
    X, loader = make()
    np.save(tmp_path / "x.npy", X)
    mapped = OrtDataLoader(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert mapped.fingerprint()["X"] == loader.fingerprint()["X"]


# -- sparse rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [1, 300, 2**20])
@pytest.mark.parametrize("shuffle", [False, True])
def test_sparse_rows_give_the_same_batches(shuffle, block_bytes):
    X, dense = make(shuffle=shuffle, block_bytes=block_bytes)
    loader = OrtDataLoader(
        csr_matrix(X),
        X[:, 0],
        X[:, 1],
        batch_size=5,
        random_state=0,
        shuffle=shuffle,
        block_bytes=block_bytes,
    )
    for epoch in range(2):
        for a, b in zip(rows_of(loader, epoch), rows_of(dense, epoch), strict=True):
            np.testing.assert_array_equal(a, b)
    assert loader._buffers.nbytes <= max(block_bytes, 200)
    assert loader.desc == dense.desc
    assert isinstance(loader.data_np[0], SparseRows)
    np.testing.assert_array_equal(loader.data_ort[0].numpy(), X)
    for a, b in zip(loader.iter_numpy(), dense.iter_numpy(), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    again = pickle.loads(pickle.dumps(loader))
    np.testing.assert_array_equal(rows_of(again, 1)[0], rows_of(dense, 1)[0])
    assert loader.fingerprint()["X"].startswith("sparse float64 (23, 3) ")


def test_sparse_rows_never_become_dense_as_a_whole():
    """As dense rows this would be 37 GB; a block of it is 8 MB."""
    n, columns = 10**6, 10_000
    place = np.arange(n)
    X = csr_matrix((np.ones(n, np.float32), (place, place % columns)), shape=(n, columns))
    spec = TensorSpec("x", F32, (None, columns))
    loader = OrtDataLoader(X, place, batch_size=100, random_state=0, inputs=[spec])
    assert loader._buffers.nbytes < 2**23 + 10**4
    x, y = (v.numpy() for v in next(loader.epoch(0)).values)
    np.testing.assert_array_equal(x.argmax(axis=1), y[:, 0] % columns)
    assert (x.sum(axis=1) == 1).all()
    with pytest.raises(InvalidDataError, match=r"37\.3 GB as dense"):
        loader.data_ort  # noqa: B018


def test_two_epochs_of_sparse_rows_at_once_are_refused():
    loader = OrtDataLoader(csr_matrix(np.eye(9)), batch_size=2, shuffle=False)
    early = loader.epoch(0)
    next(early)
    next(loader.epoch(1))
    with pytest.raises(CallOrderError, match="Another epoch"):
        next(early)


# -- what goes in ------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    "X",
    [
        [[1, 2], [3, 4], [5, 6]],
        np.array([[1, 2], [3, 4], [5, 6]], np.float64, order="F"),
        np.arange(12.0).reshape(3, 4)[:, 1:3] * 0 + [[1, 2], [3, 4], [5, 6]],
        pd.DataFrame({"a": [1, 3, 5], "b": [2.0, 4.0, 6.0]}),
        {"x": [[1, 2], [3, 4], [5, 6]]},
        csr_matrix([[1, 2], [3, 4], [5, 6]]),
    ],
    ids=["list", "fortran", "strided", "frame", "dict", "sparse"],
)
def test_data_of_any_kind(X, shuffle):
    inputs, targets = [TensorSpec("x", F32, ("N", 2))], [TensorSpec("y", F32, ("N",))]
    loader = OrtDataLoader(
        X, pd.Series([1, 2, 3]), batch_size=2, shuffle=shuffle, random_state=0, inputs=inputs, targets=targets
    )
    x, y = rows_of(loader, 0)
    assert (x.dtype, y.dtype, y.shape) == (F32, F32, (3,))
    np.testing.assert_array_equal(x[:, 0], 2 * y - 1)
    np.testing.assert_array_equal(x[:, 1], 2 * y)


def test_several_inputs_and_targets_come_in_order():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 2)), rng.integers(0, 9, size=7)
    loader = OrtDataLoader(
        {"b": b, "a": a},
        {"p": a[:, 0], "q": b},
        batch_size=3,
        random_state=1,
        inputs=[TensorSpec("a", F32, (None, 2)), TensorSpec("b", np.dtype(np.int64), (None,))],
        targets=[TensorSpec("p", F32, (None, 1)), TensorSpec("q", np.dtype(np.int64), (None,))],
    )
    assert list(loader.arrays) == ["a", "b", "p", "q"]
    values = rows_of(loader, 5)
    assert [v.dtype for v in values] == [F32, np.int64, F32, np.int64]
    np.testing.assert_array_equal(values[0][:, :1], values[2])
    np.testing.assert_array_equal(values[1], values[3])


def test_an_output_called_like_an_input():
    loader = OrtDataLoader({"y": [[1.0], [2.0]]}, [3, 4], random_iter=False)
    assert list(loader.arrays) == ["y", "y_expected"]


def test_sample_weights_take_the_dtype_of_the_features():
    loader = OrtDataLoader(np.zeros((2, 1), np.float32), [0, 1], sample_weight=[1, 2])
    assert loader.arrays["sample_weight"].dtype == F32
    loader = OrtDataLoader(np.zeros((2, 1)), [0, 1], [1, 2], weight_dtype=np.float32)
    assert loader.arrays["sample_weight"].dtype == F32


def test_features_alone():
    loader = OrtDataLoader(np.zeros((3, 1)), batch_size=2)
    assert [len(b.values) for b in loader.epoch(0)] == [1, 1]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"X": np.zeros((3, 4))}, InvalidDataError, "Input 'x' wants 2 columns, the data has 4"),
        ({"X": np.zeros((0, 2))}, InvalidDataError, r"0 sample\(s\)"),
        ({"X": np.full((3, 2), np.nan)}, InvalidDataError, "contains NaN"),
        ({"y": [1, 2]}, InvalidDataError, "X has 3 rows, y has 2 rows"),
        ({"y": [1, 2, np.inf]}, InvalidDataError, "contains infinity"),
        ({"y": None}, InvalidDataError, "target y is None"),
        ({"sample_weight": [1, 2]}, InvalidDataError, "X has 3 rows, sample_weight has 2 rows"),
        ({"sample_weight": [1, -1, 1]}, InvalidDataError, "row 1 has -1"),
        ({"sample_weight": [0, 0, 0]}, InvalidDataError, "zero for every row"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, not 0"),
        ({"batch_size": -5}, ValueError, "batch_size must be an integer of at least 1, not -5"),
        ({"device": "tpu"}, ValueError, "'tpu' is not a device"),
        ({"random_state": "now"}, ValueError, "random_state"),
    ],
)
def test_bad_data(options, kind, message):
    good = {
        "X": np.zeros((3, 2)),
        "y": [1, 2, 3],
        "inputs": [TensorSpec("x", F32, ("N", 2))],
        "targets": [TensorSpec("out", F32, ("N", 1))],
    }
    with pytest.raises(kind, match=message):
        OrtDataLoader(**{**good, **options})


# -- calls of old ------------------------------------------------------------------------------


@pytest.fixture
def old():
    X = np.random.default_rng(0).normal(size=(100, 10))
    return X, X[:, 0], OrtDataLoader(X, X[:, 0], batch_size=5)


def test_iter_ortvalue(old):
    from onnxruntime.capi._pybind_state import OrtValue

    _, _, data = old
    shapes = []
    for x, y in data.iter_ortvalue():
        assert isinstance(x, OrtValue)
        assert isinstance(y, OrtValue)
        shapes.append((x.shape(), y.shape()))
    assert shapes == [([5, 10], [5, 1])] * 20


def test_iter_numpy(old):
    X, _, data = old
    batches = list(data.iter_numpy())
    assert [(x.shape, y.shape) for x, y in batches] == [((5, 10), (5, 1))] * 20
    np.testing.assert_array_equal(
        np.sort(np.concatenate([x for x, _ in batches]), axis=0), np.sort(X, axis=0)
    )


def test_description(old):
    _, _, data = old
    assert repr(data) == "OrtDataLoader(..., batch_size=5, device='cpu')"
    assert len(data) == 100
    assert data.desc == [((100, 10), np.float64), ((100, 1), np.float64)]
    assert [a.shape for a in data.data_np] == [(100, 10), (100, 1)]
    assert [tuple(v.shape()) for v in data.data_ort] == [(100, 10), (100, 1)]


def test_both_iterators_agree_in_order(old):
    X, y, _ = old
    data = OrtDataLoader(X, y, batch_size=5, random_iter=False)
    pairs = zip(list(data.iter_ortvalue()), list(data.iter_numpy()), strict=True)
    for i, (from_ort, from_numpy) in enumerate(pairs):
        np.testing.assert_array_equal(from_ort[0].numpy(), from_numpy[0])
        np.testing.assert_array_equal(from_ort[1].numpy(), from_numpy[1])
        np.testing.assert_array_equal(from_numpy[0], X[5 * i : 5 * i + 5])


def test_iterating_goes_from_epoch_to_epoch(old):
    _, _, data = old
    seen = [np.concatenate([b.values[0].numpy().copy() for b in data]) for _ in range(2)]
    np.testing.assert_array_equal(seen[0], rows_of(data, 0)[0])
    np.testing.assert_array_equal(seen[1], rows_of(data, 1)[0])


def test_pickle_goes_on_where_it_was(old):
    _, _, data = old
    list(data)
    again = pickle.loads(pickle.dumps(data))
    assert again.desc == data.desc
    wanted = [b.values[0].numpy().copy() for b in data]
    np.testing.assert_array_equal([b.values[0].numpy() for b in again], wanted)


def test_pickle_of_another_version_is_refused(old):
    _, _, data = old
    state = {**data.__getstate__(), "onnxcustom_pickle_format": 0}
    with pytest.raises(CheckpointError, match="OrtDataLoader has format 0"):
        OrtDataLoader.__new__(OrtDataLoader).__setstate__(state)


@pytest.mark.parametrize("shuffle", [False, True])
def test_foreign_byte_order_is_converted_once(shuffle):
    X = np.arange(20.0).reshape(10, 2)
    data = OrtDataLoader(
        X.astype(X.dtype.newbyteorder()), X[:, :1], batch_size=4, shuffle=shuffle, random_state=0
    )
    for _ in range(2):
        for batch in data:
            x, y = (v.numpy() for v in batch.values)
            np.testing.assert_array_equal(x[:, :1], y)
            np.testing.assert_array_equal(x[:, 1:], y + 1)


def test_the_whole_data_set_outlives_the_loader():
    X = np.arange(2000.0).reshape(1000, 2)
    values = OrtDataLoader(X.copy(), X[:, 0].copy()).data_ort
    np.full((1000, 2), 7.0)
    np.testing.assert_array_equal(values[0].numpy(), X)
