from __future__ import annotations

import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom import TrainingStep
from onnxcustom.data import stream
from onnxcustom.data.reader import running
from onnxcustom.exceptions import CallOrderError, CheckpointError, InvalidDataError
from onnxcustom.feed.specs import TensorSpec
from onnxcustom.feed.stream_loader import StreamLoader
from onnxcustom.runtime import owned_copy

ort = pytest.importorskip("onnxruntime")
F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
INPUTS, TARGETS = [TensorSpec("x", F32, ("N", 3))], [TensorSpec("y", F32, ("N", 1))]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert not running()


def data(n=23):
    X = np.arange(3.0 * n).reshape(n, 3)
    return X, X[:, 0] / 3, (X[:, 0] % 7) / 3 + 1


def make(n=23, words=None, **options):
    rows = stream(data(n), **{"block_rows": 7, "shuffle_rows": 9, **(words or {})})
    options = {"batch_size": 5, "seed": 3, **options}
    return StreamLoader(rows, INPUTS, TARGETS, **options)


def batches_of(loader, epoch=0, skip=0):
    """Copies: the arrays share the memory that the next block overwrites."""
    return [[v.numpy().copy() for v in batch.values] for batch in loader.epoch(epoch, skip)]


def rows_of(loader, epoch=0, skip=0):
    return [np.concatenate(parts) for parts in zip(*batches_of(loader, epoch, skip), strict=True)]


# -- batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 2])
def test_unshuffled_batches_are_the_rows_in_order(prefetch):
    loader = make(shuffle=False, words={"prefetch": prefetch})
    assert [batch.rows for batch in loader.epoch(0)] == [5, 5, 5, 5, 3]
    X, y, w = data()
    found = rows_of(loader)
    assert [a.dtype for a in found] == [F32] * 3
    for a, b in zip(found, (X, y.reshape(-1, 1), w), strict=True):
        np.testing.assert_array_equal(a, b.astype(F32))
    assert (loader.n_batches, loader.n_rows, loader.seed, loader.device.type) == (5, 23, 3, "cpu")


@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    block_rows=st.integers(1, 30),
    shuffle_rows=st.integers(0, 45),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
    data_=st.data(),
)
def test_every_row_comes_once_with_its_target_and_skipping_is_as_iterating(
    n, batch_size, block_rows, shuffle_rows, shuffle, epoch, data_
):
    words = {"block_rows": block_rows, "shuffle_rows": shuffle_rows, "prefetch": 0}
    loader = make(n, words, batch_size=batch_size, shuffle=shuffle)
    sizes = [batch.rows for batch in loader.epoch(epoch)]
    assert sizes == [batch_size] * (n // batch_size) + [r for r in [n % batch_size] if r]
    assert len(sizes) == loader.n_batches
    batches = batches_of(loader, epoch)
    x, y, w = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    order = np.argsort(x[:, 0])
    for a, b in zip((x, y[:, 0], w), data(n), strict=True):
        np.testing.assert_array_equal(a[order], b.astype(F32))
    skip = data_.draw(st.integers(0, len(sizes)))
    for a, b in zip(batches_of(loader, epoch, skip), batches[skip:], strict=True):
        for one, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(loader, epoch):
        return tuple(rows_of(loader, epoch)[1][:, 0])

    orders = [order(make(), epoch) for epoch in range(3)]
    assert len(set(orders)) == 3
    loader = make()
    assert [order(loader, epoch) for epoch in (2, 0, 1)] == [orders[2], orders[0], orders[1]]
    assert order(make(seed=4), 0) != orders[0]
    assert order(make(words={"block_rows": 2, "prefetch": 0}), 1) == orders[1]


def test_values_keep_their_addresses_and_ortvalues():
    loader = make(50, shuffle=True)
    first, second = list(loader.epoch(0)), list(loader.epoch(1))
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert len({b.values[0].data_ptr() for b in first}) == 1  # blocks of one batch, all in one place
    assert len({b.values[0].data_ptr() for b in make(50, {"block_rows": 20}).epoch(0)}) == 4


def test_other_devices_get_copies_of_every_block(monkeypatch):
    """As on a GPU: OrtValues with memory of their own, which each block is copied into."""

    def somewhere_else(array, device):
        return SimpleNamespace(_ortvalue=owned_copy(array))

    loader = make(53, {"block_rows": 20})
    wanted = [rows_of(loader, epoch) for epoch in range(2)]
    monkeypatch.setattr("onnxcustom.feed.batch_buffers.to_ortvalue", somewhere_else)
    loader = make(53, {"block_rows": 20})
    loader.device = SimpleNamespace(type="elsewhere", name="elsewhere")
    for epoch in range(2):
        for a, b in zip(rows_of(loader, epoch), wanted[epoch], strict=True):
            np.testing.assert_array_equal(a, b)


def test_without_weights_there_are_none():
    X, y, _ = data()
    loader = StreamLoader(stream((X, y)), INPUTS, TARGETS, batch_size=5)
    assert {len(b.values) for b in loader.epoch(0)} == {2}


def test_the_dtype_of_weights():
    assert rows_of(make(weight_dtype=np.float64))[2].dtype == np.float64


def test_two_epochs_at_once_are_refused():
    loader = make(shuffle=False)
    early = loader.epoch(0)
    next(early)
    next(loader.epoch(1))
    with pytest.raises(CallOrderError, match="Another epoch"):
        next(early)


def test_threads_end_with_the_consumer():
    def fail():
        for _ in make().epoch(0):
            assert running()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    batches = make().epoch(0)
    next(batches)
    del batches


def test_batches_of_other_sizes_are_cut_again():
    X, y, w = data(20)
    parts = [(X[a:b], y[a:b], w[a:b]) for a, b in ((0, 3), (3, 11), (11, 12), (12, 20))]
    loader = StreamLoader(stream(parts), INPUTS, TARGETS, batch_size=6, shuffle=False)
    assert [b.rows for b in loader.epoch(0)] == [6, 6, 6, 2]
    assert loader.n_batches is None
    np.testing.assert_array_equal(rows_of(loader)[0], X)


def test_batches_padded_to_their_longest():
    spec = [TensorSpec("tokens", I64, ("N", "T"))]
    batches = [(np.full((4, length), length), np.zeros(4)) for length in (3, 5, 2)]
    loader = StreamLoader(stream(batches), spec, TARGETS, batch_size=2, shuffle=False)
    shapes = [tuple(b.values[0].shape()) for b in loader.epoch(0)]
    assert shapes == [(2, 3), (2, 3), (2, 5), (2, 5), (2, 2), (2, 2)]
    for batch in loader.epoch(0):
        tokens = batch.values[0].numpy()
        assert (tokens == tokens.shape[1]).all()


def test_several_inputs_and_targets():
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": [1.0, 2, 3], "k": [[1, 2], [3, 4], [5, 6]], "p": [0.5, 1, 2], "q": [0, 1, 0]})
    inputs = [TensorSpec("k", I64, (None, 2)), TensorSpec("x", F32, (None, 1))]
    targets = [TensorSpec("q", I64, (None,)), TensorSpec("p", F32, (None, 1))]
    rows = stream(table, inputs={"x": "a", "k": "k"}, target={"p": "p", "q": "q"})
    found = rows_of(StreamLoader(rows, inputs, targets, batch_size=2, shuffle=False))
    assert [a.tolist() for a in found] == [
        [[1, 2], [3, 4], [5, 6]],
        [[1], [2], [3]],
        [0, 1, 0],
        [[0.5], [1], [2]],
    ]


def test_labels_are_encoded_block_by_block_and_checked():
    X, _, _ = data(10)
    labels = np.array(["no", "yes"], object)[np.arange(10) % 2]
    seen, checked = [], []

    def encode(y):
        seen.append(len(y))
        return (y == "yes").astype(np.int64)

    loader = StreamLoader(
        stream((X, labels), block_rows=4),
        INPUTS,
        [TensorSpec("label", I64, ("N",))],
        batch_size=2,
        shuffle=False,
        encode=encode,
        check=lambda expected: checked.append(expected["label"].tolist()),
    )
    assert rows_of(loader)[1].tolist() == [0, 1] * 5
    assert seen == [4, 4, 2]
    assert sum(checked, []) == [0, 1] * 5  # noqa: RUF017


def test_what_check_refuses():
    def check(expected):
        raise InvalidDataError("no such class")

    with pytest.raises(InvalidDataError, match="no such class"):
        next(make(check=check).epoch(0))


# -- training ------------------------------------------------------------------------------------------------

LINE = """<ir_version: 8, opset_import: ["": 17]>
    line (float[N,3] x) => (float[N,1] y) <float[3,1] w = {0, 0, 0}> { y = MatMul(x, w) }"""


@pytest.mark.parametrize("weighted", [False, True])
def test_training_on_a_stream_is_training_on_its_batches(weighted):
    X, y, w = data(40)
    X = X / 100
    arrays = (X, y, w) if weighted else (X, y)
    model = onnx.parser.parse_model(LINE)
    step, other = (TrainingStep(model, "squared_error", "sgd", learning_rate=0.01) for _ in range(2))
    rows = stream(arrays, block_rows=10, shuffle_rows=15)
    loader = StreamLoader(
        rows, step.inputs, step.expected, batch_size=8, seed=1, weight_dtype=step.scalar_dtype
    )
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            step.run_batch(batch.values)
        order = np.concatenate([b.y for b in rows.blocks(epoch, seed=1, shuffle=True)]).astype(int)
        for start in range(0, 40, 8):
            other.run(*(a[order[start : start + 8]] for a in arrays))
    np.testing.assert_array_equal(step.weights()["w"], other.weights()["w"])
    assert step.weights()["w"].any()


# -- errors --------------------------------------------------------------------------------------------------


def loader_of(source, words=None, **options):
    return StreamLoader(stream(source, **(words or {})), INPUTS, TARGETS, **{"batch_size": 4, **options})


X, Y, W = data(10)


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((X[:, :2], Y), "Input 'x' wants 3 columns, the data has 2"),
        ((X, np.stack([Y, Y], 1)), "y wants 1 column, the data has 2"),
        ((changed(X, (7, 1), np.nan), Y), "contains NaN.* The first is in the arrays, row 7: X holds NaN"),
        ((changed(X, (6, 0), 1e300), Y), "row 6: X holds NaN or infinity, or a number too large for float32"),
        ((X, changed(Y, 4, np.inf)), "contains infinity.* The first is in the arrays, row 4: y holds NaN"),
        ((X, Y, changed(W, 8, -2)), "must not be negative: there is -2"),
        ((X, Y, W * 0), "sample_weight is zero for every row"),
        ((X,), "no expected values: name their column with target="),
        (({"x": X, "k": X}, Y), r"has the inputs \['x'\]; \['k'\] unknown"),
        ((X[:0], Y[:0]), "There are no rows in the arrays"),
        ((X, np.array(["a"] * 10)), "is text, such as"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit(source, message, shuffle):
    with pytest.raises(ValueError, match=message):
        list(loader_of(source, shuffle=shuffle).epoch(0))


def test_batches_before_an_error_come_through():
    batches = loader_of((changed(X, (7, 1), np.nan), Y), {"block_rows": 4}, shuffle=False).epoch(0)
    assert next(batches).rows == 4
    with pytest.raises(InvalidDataError, match="row 7"):
        next(batches)


def test_one_array_for_several_inputs():
    specs = [TensorSpec("a", F32, (None, 1)), TensorSpec("b", F32, (None, 2))]
    loader = StreamLoader(stream((X, Y)), specs, TARGETS)
    with pytest.raises(
        InvalidDataError, match=r"has the inputs \['a', 'b'\], the stream one array: say with inputs="
    ):
        next(loader.epoch(0))


def test_weights_of_some_blocks_may_all_be_zero():
    weights = np.where(np.arange(10) < 8, 0, 1)
    assert rows_of(loader_of((X, Y, weights), {"block_rows": 4}, shuffle=False))[2].tolist() == [0] * 8 + [
        1,
        1,
    ]


def test_an_epoch_that_has_no_rows_the_second_time():
    used_up = iter([(X, Y)])
    loader = loader_of(lambda: used_up)
    assert len(list(loader.epoch(0))) == 3
    with pytest.raises(InvalidDataError, match=r"no rows in .*make a new one for every epoch"):
        next(loader.epoch(1))


def test_an_iterator_and_two_epochs():
    loader = loader_of(iter([(X, Y)]))
    assert len(list(loader.epoch(0))) == 3
    with pytest.raises(InvalidDataError, match="cannot be read a second time"):
        next(loader.epoch(1))


@pytest.mark.parametrize("skip", [-1, 4])
def test_skipping_more_than_there_is(skip):
    with pytest.raises(ValueError, match=r"skip must be in \[0, 3\]"):
        next(loader_of((X, Y)).epoch(0, skip))


def test_skipping_more_than_an_unknown_number():
    assert list(loader_of([(X, Y)]).epoch(0, 7)) == []


@pytest.mark.parametrize("size", [0, -1, 2.5, None, True])
def test_bad_batch_sizes(size):
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
        loader_of((X, Y), batch_size=size)


def test_a_model_with_a_fixed_number_of_rows():
    fixed = [TensorSpec("x", F32, (4, 3))]
    with pytest.raises(InvalidDataError, match="exactly 4 rows; batch_size is 4 and the data has 10 rows"):
        StreamLoader(stream((X, Y)), fixed, TARGETS, batch_size=4)
    with pytest.raises(InvalidDataError, match="exactly 4 rows; batch_size is 5"):
        StreamLoader(stream([(X, Y)]), fixed, TARGETS, batch_size=5)
    assert len(rows_of(StreamLoader(stream((X[:8], Y[:8])), fixed, TARGETS, batch_size=4))[0]) == 8
    loader = StreamLoader(stream([(X, Y)], block_rows=4), fixed, TARGETS, batch_size=4, shuffle=False)
    batches = loader.epoch(0)
    assert [next(batches).rows, next(batches).rows] == [4, 4]
    with pytest.raises(
        InvalidDataError, match="exactly 4 rows, the last one of the stream has 2: leave rows out"
    ):
        next(batches)


# -- looking at it ---------------------------------------------------------------------------------


def test_fingerprint_is_that_of_the_stream():
    loader = make()
    assert loader.fingerprint() == loader.stream.fingerprint()
    assert make(22).fingerprint() != loader.fingerprint()


def test_repr():
    assert repr(make()) == "StreamLoader(<Stream of the arrays, 23 rows>, batch_size=5, device='cpu')"


def test_pickle():
    loader = make()
    wanted = rows_of(loader, 1)
    again = pickle.loads(pickle.dumps(loader))
    for a, b in zip(rows_of(again, 1), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(CheckpointError, match="StreamLoader has format 0"):
        StreamLoader.__new__(StreamLoader).__setstate__({"onnxcustom_pickle_format": 0})


MEMORY = """
import sys
import numpy as np, pyarrow as pa, pyarrow.parquet as parquet
from onnxcustom.data import stream
from onnxcustom.feed.stream_loader import StreamLoader
from onnxcustom.feed.specs import TensorSpec

def peak():
    return next(int(s.split()[1]) / 1024 for s in open("/proc/self/status") if s.startswith("VmHWM"))

F32 = np.dtype(np.float32)
path, groups = sys.argv[1], int(sys.argv[2])
X = np.random.default_rng(0).normal(size=(20_000, 100)).astype(F32)
schema = pa.schema([("x", pa.list_(pa.float32(), 100)), ("y", pa.float32())])
with parquet.ParquetWriter(path, schema) as writer:
    for _ in range(groups):
        lists = pa.FixedSizeListArray.from_arrays(X.reshape(-1), 100)
        writer.write_table(pa.table([lists, X[:, 0]], schema=schema))
del X, lists
words = {"target": "y", "block_rows": 1000, "shuffle_rows": 5000}
specs = [TensorSpec("x", F32, (None, 100))], [TensorSpec("y", F32, (None, 1))]
loader = StreamLoader(stream(path, **words), *specs, batch_size=100)
next(loader.epoch(1))
open("/proc/self/clear_refs", "w").write("5")
before = peak()
rows = sum(batch.rows for batch in loader.epoch(0))
assert rows == 20_000 * groups
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """80 MB of rows through blocks of 0.4 MB and a buffer of 2 MB."""
    pytest.importorskip("pyarrow")
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "rows.parquet"), "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 25
