from __future__ import annotations

import itertools
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.data import Block, Stream, stream
from onnxcustom.data.reader import running
from onnxcustom.data.shuffling import Windows, part_order
from onnxcustom.exceptions import InvalidDataError

from .stream_cases import FILES, MEMORY, NAMES, ROWS, Batches, memory, table, write

KINDS = [*FILES, *MEMORY]
NAMED = {"target": "y", "columns": NAMES, "sample_weight": "w"}


def source_of(kind, folder):
    if kind in FILES:
        return write(folder, kind), NAMED
    return memory(kind, folder)


def joined(blocks):
    """All rows as X, y, weights."""
    blocks = list(blocks)
    if not blocks:
        return np.zeros((0, 3)), np.zeros(0), np.zeros(0)
    return tuple(np.concatenate([getattr(b, n) for b in blocks]) for n in ("X", "y", "sample_weight"))


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert not running()


# -- every source against the data in memory -------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_unshuffled_the_same_bits_in_the_order_of_the_source(kind, prefetch, tmp_path):
    source, words = source_of(kind, tmp_path)
    rows = stream(source, prefetch=prefetch, block_rows=10, **words)
    blocks = list(rows.blocks())
    assert [len(b) for b in blocks] == [10] * 5 + [3]
    X, y, w = joined(blocks)
    data = table()
    np.testing.assert_array_equal(
        X.astype(np.float32), data.X
    )  # CSV gives doubles, of which these are the nearest
    np.testing.assert_array_equal(y, data.y)
    np.testing.assert_array_equal(w, data.w)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "iterator"])
def test_shuffled_every_row_once_and_another_order_each_epoch(kind, tmp_path):
    source, words = source_of(kind, tmp_path)
    rows = stream(source, block_rows=8, shuffle_rows=20, **words)
    data, orders = table(), []
    for epoch in range(3):
        X, y, w = joined(rows.blocks(epoch, seed=5, shuffle=True))
        order = np.argsort(y)
        np.testing.assert_array_equal(y[order], data.y)
        np.testing.assert_array_equal(X[order].astype(np.float32), data.X)
        np.testing.assert_array_equal(w[order], data.w)
        orders.append(tuple(y))
    assert len(set(orders)) == 3
    assert tuple(joined(rows.blocks(1, seed=5, shuffle=True))[1]) == orders[1]
    assert tuple(joined(rows.blocks(1, seed=6, shuffle=True))[1]) != orders[1]
    again = stream(source, block_rows=3, prefetch=0, shuffle_rows=20, **words)
    assert tuple(joined(again.blocks(1, seed=5, shuffle=True))[1]) == orders[1]  # whatever the blocks


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "iterator"])
def test_skipping_is_as_iterating(kind, shuffle, tmp_path):
    source, words = source_of(kind, tmp_path)
    rows = stream(source, block_rows=8, shuffle_rows=15, prefetch=0, **words)
    whole = joined(rows.blocks(2, seed=1, shuffle=shuffle))
    for skip in (0, 1, 7, 8, 15, 29, 30, 52, 53):
        rest = joined(rows.blocks(2, seed=1, shuffle=shuffle, skip=skip))
        for a, b in zip(rest, whole, strict=True):
            np.testing.assert_array_equal(a, b[skip:])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_stream_says_of_itself(kind, tmp_path):
    source, words = source_of(kind, tmp_path)
    rows = stream(source, **words)
    known = "csv" not in kind and kind not in ("arrows", "batches", "list of batches", "function", "iterator",
                                               "tensors", "frames in batches")  # fmt: skip
    assert rows.rows == (ROWS if known else None)
    assert repr(rows).startswith("<Stream of ")
    assert ("53 rows" in repr(rows)) is known
    head = rows.head(5)
    np.testing.assert_array_equal(head.y, table().y[:5])
    if kind == "iterator":
        with pytest.raises(InvalidDataError, match="can be read once only"):
            rows.labels()
        with pytest.raises(InvalidDataError, match="two streams cannot share it"):
            rows.split(0.5)
    else:
        np.testing.assert_array_equal(rows.labels(), np.unique(table().y))
    np.testing.assert_array_equal(joined(rows.blocks())[1], table().y)  # looking took nothing away


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "iterator"])
def test_splits(kind, tmp_path):
    source, words = source_of(kind, tmp_path)
    rows = stream(source, block_rows=8, shuffle_rows=15, **words)
    train, held = rows.split(0.3, seed=2)
    parts = [set(joined(part.blocks())[1]) for part in (train, held)]
    assert parts[0] | parts[1] == set(table().y)
    assert not parts[0] & parts[1]
    assert 3 < len(parts[1]) < 30
    for part, values in zip((train, held), parts, strict=True):
        order = joined(part.blocks(1, shuffle=True))[1]
        assert set(order) == values  # the same rows, whatever the order they are read in
        assert part.rows in (len(values), None)
        assert (part.rows is None) is (rows.rows is None)
        np.testing.assert_array_equal(joined(part.blocks(1, shuffle=True, skip=6))[1], order[6:])
        assert part.head(2).y.tolist() == sorted(values)[:2]
        assert part.labels().tolist() == sorted(values)
    assert [set(joined(p.blocks())[1]) for p in rows.split(0.3, seed=2)] == parts
    assert [set(joined(p.blocks())[1]) for p in rows.split(0.3, seed=3)] != parts
    inner = train.split(0.5, seed=2)
    assert set().union(*(joined(p.blocks())[1] for p in inner)) == parts[0]
    assert all(len(joined(p.blocks())[1]) for p in inner)


@pytest.mark.parametrize("kind", FILES)
def test_streams_of_files_are_pickled(kind, tmp_path):
    source, words = source_of(kind, tmp_path)
    rows = stream(source, block_rows=8, shuffle_rows=15, **words).split(0.2)[0]
    wanted = joined(rows.blocks(1, shuffle=True))[1]
    again = pickle.loads(pickle.dumps(rows))
    np.testing.assert_array_equal(joined(again.blocks(1, shuffle=True))[1], wanted)
    assert len(pickle.dumps(rows)) < 20_000


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("tensors",)])
def test_fingerprints(kind, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = stream(*source_of(kind, tmp_path / "one")[:1], **source_of(kind, tmp_path / "one")[1])
    second = stream(*source_of(kind, tmp_path / "two")[:1], **source_of(kind, tmp_path / "two")[1])
    found = first.fingerprint()
    assert found == first.fingerprint()
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in found.items())
    if kind != "dataset":  # which is named by its paths
        assert second.fingerprint() == found
    assert first.fingerprint() != stream(*source_of(kind, tmp_path / "one")[:1], shuffle_rows=3,
                                         **source_of(kind, tmp_path / "one")[1]).fingerprint()  # fmt: skip
    if kind != "iterator":
        parts = [part.fingerprint() for part in first.split(0.5)]
        assert parts[0] != parts[1] != found


def test_a_fingerprint_does_not_change_while_it_is_read(tmp_path):
    rows = stream(write(tmp_path, "csv"), **NAMED)
    before = rows.fingerprint()
    joined(rows.blocks())
    assert rows.fingerprint() == before
    assert rows.rows is None


def test_other_data_other_fingerprint(tmp_path):
    path = write(tmp_path, "csv")
    before = stream(path, **NAMED).fingerprint()
    path.write_text(path.read_text().replace("perhaps", "hardly_", 1))
    assert stream(path, **NAMED).fingerprint() != before
    assert stream(path, target="y", columns=["a"]).fingerprint() != stream(path, **NAMED).fingerprint()
    data = table()
    assert stream((data.X, data.y)).fingerprint() != stream((data.X, data.y + 1)).fingerprint()


# -- order ------------------------------------------------------------------------------------------------


@given(
    n=st.integers(0, 60),
    part=st.integers(1, 20),
    window=st.integers(0, 70),
    block=st.integers(1, 20),
    multiple=st.integers(1, 6),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 5),
    skip=st.integers(0, 60),
    split=st.booleans(),
)
def test_the_order_as_it_is_documented(n, part, window, block, multiple, seed, epoch, skip, split):
    """Parts permuted, then windows permuted, from nothing but part_order and Windows."""
    y = np.arange(n)
    rows = stream({"x": y, "y": y}, target="y", block_rows=block, shuffle_rows=window, prefetch=0)
    rows.source.__init__(rows.source._frame, rows.source.plan, part)
    if split:
        rows = rows.split(0.4)[0]
    kept = set(joined_targets(rows.blocks()))
    parts = [y[a : a + part] for a in range(0, n, part)]
    order = [v for i in part_order(seed, epoch, len(parts)) for v in parts[i] if v in kept]
    windows = Windows(seed, epoch, max(1, window))
    cuts = [0, windows.first] if len(order) > windows.size else [0]
    while cuts[-1] + windows.size < len(order):
        cuts.append(cuts[-1] + windows.size)
    cuts.append(len(order))
    wanted = [
        order[a + i]
        for number, (a, b) in enumerate(itertools.pairwise(cuts))
        for i in windows.order(number, b - a)
    ]
    got = list(rows.blocks(epoch, seed=seed, shuffle=True, multiple=multiple, skip=skip))
    assert joined_targets(got) == wanted[skip:]
    size = max(1, block // multiple) * multiple
    assert [len(b) for b in got] == [size] * (len(wanted[skip:]) // size) + [
        r for r in [len(wanted[skip:]) % size] if r
    ]


def joined_targets(blocks):
    return [value for block in blocks for value in block.y.tolist()]


def test_small_sources_are_one_window():
    data = table()
    rows = stream((data.X, data.y, data.w), shuffle_rows=ROWS)
    y = joined(rows.blocks(3, seed=4, shuffle=True))[1]
    np.testing.assert_array_equal(y, data.y[Windows(4, 3, ROWS).order(0, ROWS)])


def test_without_a_buffer_only_parts_are_shuffled(tmp_path):
    path = write(tmp_path, "parquet")
    y = joined(stream(path, shuffle_rows=0, **NAMED).blocks(0, shuffle=True))[1]
    groups = [table().y[i : i + 7].tolist() for i in range(0, ROWS, 7)]
    assert y.tolist() == [v for i in part_order(0, 0, len(groups)) for v in groups[i]]


class Counting(Stream):
    """A stream that counts the parts it reads."""

    def __init__(self, made):
        super().__init__(made.source, block_rows=made.block_rows, shuffle_rows=made.shuffle_rows, prefetch=0)
        self.read: list[int] = []
        original = self.source.read

        def read(part, *rest):
            self.read.append(part.start)
            return original(part, *rest)

        self.source.read = read


@pytest.mark.parametrize("shuffle", [False, True])
def test_parts_that_are_skipped_are_not_read(shuffle, tmp_path):
    rows = Counting(stream(write(tmp_path, "parquet"), block_rows=7, shuffle_rows=8, **NAMED))
    joined(rows.blocks(0, shuffle=shuffle, skip=40))
    assert len(rows.read) <= 1 + 4  # one for the size of a row


def test_blocks_are_multiples_of_a_batch():
    data = table()
    rows = stream((data.X, data.y), block_rows=10)
    assert {len(b) for b in rows.blocks(multiple=4)} == {8, ROWS % 8}
    assert [len(b) for b in rows.blocks(multiple=25)] == [25, 25, 3]
    assert [len(b) for b in rows.blocks(rows=30)] == [30, 23]


def test_apply_is_called_in_the_thread_that_reads():
    data = table()
    seen = []
    made = stream((data.X, data.y), block_rows=50).blocks(
        apply=lambda b: seen.append(threading.get_ident()) or len(b)
    )
    assert list(made) == [50, 3]
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen


# -- memory and threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "csv", "arrays", "function"])
def test_no_thread_is_left_when_the_consumer_stops(kind, tmp_path):
    source, words = source_of(kind, tmp_path)
    rows = stream(source, block_rows=5, **words)
    for block in rows.blocks():
        assert len(block) == 5
        assert len(running()) == 1
        break
    assert not running()

    def fail():
        for _ in rows.blocks(shuffle=True):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not running()


def test_the_source_is_closed_when_the_consumer_stops():
    data = table()
    batches = Batches((data.X, data.y))
    next(stream(batches, block_rows=5).blocks())
    assert batches.begun == batches.ended == 1
    next(stream(batches, block_rows=5).blocks(shuffle=True))
    assert batches.begun == batches.ended == 2


def test_several_epochs_at_once_and_in_threads(tmp_path):
    rows = stream(write(tmp_path, "parquet"), block_rows=5, shuffle_rows=20, **NAMED)
    wanted = {e: joined_targets(rows.blocks(e, shuffle=True)) for e in range(4)}
    for a, b in zip(rows.blocks(0, shuffle=True), rows.blocks(0, shuffle=True), strict=True):
        assert a.y.tolist() == b.y.tolist()
    found: dict[int, list] = {}
    threads = [
        threading.Thread(target=lambda e=e: found.update({e: joined_targets(rows.blocks(e, shuffle=True))}))
        for e in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def test_sizes_by_default_are_bytes():
    rows = stream((np.zeros((10, 2**18), np.float32),))
    assert rows._sizes() == (4, 2**26 // (2**20 + 24))
    assert stream((np.zeros((5, 2**23), np.float32),))._sizes() == (1, 1)
    assert stream((np.zeros((5, 1), np.int8),))._sizes() == (2**16, 2**26 // 25)
    assert stream((np.zeros((5, 1)),), block_rows=3, shuffle_rows=4)._sizes() == (3, 4)


# -- several inputs, text, targets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["parquet", "parquet files", "arrow", "feather", "dataset", "pandas", "polars", "pyarrow"]
)
def test_several_inputs_lists_and_labels(kind, tmp_path):
    source, _ = source_of(kind, tmp_path)
    rows = stream(
        source, target="label", inputs={"x": ["b", "a"], "tokens": "tokens", "w": "w"}, block_rows=20
    )
    blocks = list(rows.blocks())
    data = table()
    np.testing.assert_array_equal(np.concatenate([b.X["x"] for b in blocks]), data.X[:, [1, 0]])
    np.testing.assert_array_equal(np.concatenate([b.X["tokens"] for b in blocks]), data.tokens)
    np.testing.assert_array_equal(np.concatenate([b.X["w"] for b in blocks]), data.w)
    assert joined_targets(blocks) == data.label.tolist()
    assert rows.labels().tolist() == ["no", "perhaps", "yes"]
    assert joined_targets(rows.split(0.5)[1].blocks()) < data.label.tolist()


def test_several_targets(tmp_path):
    rows = stream(write(tmp_path, "parquet"), target={"one": "y", "two": ["w", "y"]}, columns=NAMES)
    head = rows.head(4)
    np.testing.assert_array_equal(head.y["one"], table().y[:4])
    np.testing.assert_array_equal(head.y["two"][:, 0], table().w[:4])
    with pytest.raises(InvalidDataError, match="has no target, or several"):
        rows.labels()
    assert stream(write(tmp_path, "parquet"), target=["y", "w"], columns=NAMES).head(3).y.shape == (3, 2)


def test_batches_of_dicts():
    data = table()
    batches = [({"x": data.X[:5], "tokens": data.tokens[:5]}, {"out": data.y[:5]}, data.w[:5])] * 3
    rows = stream(batches, block_rows=7)
    blocks = list(rows.blocks())
    assert [len(b) for b in blocks] == [7, 7, 1]
    assert blocks[0].X["tokens"].shape == (7, 4)
    assert blocks[0].y["out"].tolist() == [*data.y[:5], *data.y[:2]]


def test_batches_of_tensors_padded_to_their_longest():
    batches = [(np.zeros((4, length)), np.zeros(4)) for length in (3, 5, 5, 2)]
    rows = stream(batches)
    assert [b.X.shape for b in rows.blocks(multiple=4)] == [(4, 3), (8, 5), (4, 2)]
    with pytest.raises(InvalidDataError, match="differ in shape cannot be shuffled"):
        list(rows.blocks(shuffle=True))
    unshuffled = stream(batches, shuffle_rows=0)
    assert [b.X.shape for b in unshuffled.blocks(multiple=4, shuffle=True)] == [(4, 3), (8, 5), (4, 2)]


def test_a_stream_without_expected_values():
    rows = stream((table().X,))
    block = rows.head(3)
    assert (block.y, block.sample_weight) == (None, None)
    with pytest.raises(InvalidDataError, match="has no target"):
        rows.labels()


def test_labels_of_numbers_in_several_dtypes():
    rows = stream([(np.zeros((2, 1)), np.array([1, 3])), (np.zeros((1, 1)), np.array([2.0]))])
    assert rows.labels().tolist() == [1, 2, 3]


def test_too_many_labels(monkeypatch):
    monkeypatch.setattr("onnxcustom.data.reading._MOST_LABELS", 10)
    with pytest.raises(InvalidDataError, match="more than 10 different values: they are no labels"):
        stream((table().X, table().y)).labels()


# -- iterators -----------------------------------------------------------------------------------------------


def one_shot():
    data = table()
    return iter(Batches((data.X, data.y, data.w)))


def test_an_iterator_is_read_once():
    rows = stream(one_shot(), block_rows=10)
    assert len(joined(rows.blocks())[1]) == ROWS
    with pytest.raises(InvalidDataError, match="was read already, and cannot be read a second time"):
        next(rows.blocks(1))
    with pytest.raises(InvalidDataError, match="read already"):
        rows.head()
    with pytest.raises(TypeError, match="iterator, which cannot be pickled"):
        pickle.dumps(rows)


def test_the_head_of_an_iterator_is_not_lost():
    rows = stream(one_shot(), block_rows=10)
    assert rows.head(3).y.tolist() == rows.head(3).y.tolist() == table().y[:3].tolist()
    np.testing.assert_array_equal(joined(rows.blocks())[1], table().y)


def test_a_generator_function():
    calls = []

    def batches():
        calls.append(1)
        yield np.zeros((3, 2)), np.arange(3)

    rows = stream(batches)
    assert [joined_targets(rows.blocks(e)) for e in range(2)] == [[0, 1, 2]] * 2
    assert len(calls) == 2


def test_a_function_that_returns_the_same_iterator_every_time():
    used_up = iter([(np.zeros((3, 2)), np.arange(3))])
    rows = stream(lambda: used_up)
    assert joined_targets(rows.blocks(0)) == [0, 1, 2]
    assert joined_targets(rows.blocks(1)) == []
    assert "make a new one for every epoch" in str(rows.empty())


def test_errors_of_batches_come_with_their_cause():
    def batches():
        yield np.zeros((3, 2)), np.arange(3)
        raise LookupError("no more disks")

    for prefetch in (0, 2):
        blocks = stream(batches, prefetch=prefetch, block_rows=3).blocks()
        assert len(next(blocks)) == 3
        with pytest.raises(InvalidDataError, match="failed: LookupError: no more disks") as caught:
            next(blocks)
        assert isinstance(caught.value.__cause__, LookupError)
        assert not running()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((np.zeros((3, 2)), np.zeros(2)), "Batch 1 of the batches of list differ in rows: X has 3, y has 2"),
        ((None, np.zeros(2)), "there are no features"),
        (np.zeros((3, 2)), r"Batch 1 of .* is a numpy.ndarray; batches are tuples"),
        ({"a": [1]}, "is a dict; batches are tuples"),
        ("text", "is a str"),
        ((), "is a tuple"),
        ((1, 2), "X is 1, not an array with rows"),
        (([[1, 2], [3]], [1, 2]), "X is no array"),
    ],
)
def test_batches_that_are_none(batch, message):
    good = (np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(InvalidDataError, match=message):
        list(stream([good, batch]).blocks())


def test_empty_batches_are_left_out():
    good, empty = (np.ones((3, 2)), np.ones(3)), (np.zeros((0, 2)), np.zeros(0))
    rows = stream([empty, good, empty, good, empty])
    assert joined_targets(rows.blocks()) == [1] * 6
    assert len(rows.head()) == 6


# -- what is no stream -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words", "error", "message"),
    [
        (3, {}, TypeError, "not of a int"),
        (np.zeros((3, 2)), {}, TypeError, "not of a ndarray"),
        ((np.zeros((3, 2)), np.zeros(3)), {"target": "y"}, ValueError, "has no columns to name"),
        ((np.zeros((3, 2)), np.zeros(2)), {}, InvalidDataError, "X has 3, y has 2"),
        ((), {}, InvalidDataError, "not 0 things"),
        ({"a": [1, 2], "y": [1]}, {"target": "y"}, InvalidDataError, "differ in length"),
        ({"a": [1, 2]}, {"target": "y"}, InvalidDataError, "the dict has no column 'y'"),
        ([], {}, InvalidDataError, None),
        ((np.zeros((3, 2)),), {"block_rows": 0}, ValueError, r"block_rows must be .* at least 1, not 0"),
        ((np.zeros((3, 2)),), {"block_rows": 2.5}, ValueError, "block_rows"),
        ((np.zeros((3, 2)),), {"shuffle_rows": -1}, ValueError, r"shuffle_rows must be .* at least 0"),
        ((np.zeros((3, 2)),), {"prefetch": None}, ValueError, "prefetch"),
        ((np.zeros((3, 2)),), {"prefetch": True}, ValueError, "prefetch"),
    ],
)  # fmt: skip
def test_bad_streams(source, words, error, message):
    with pytest.raises(error, match=message):
        stream(source, **words).head()


def test_a_stream_of_a_stream():
    with pytest.raises(TypeError, match="is a stream already"):
        stream(stream((np.zeros((3, 2)),)))


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, "half", True, np.nan])
def test_fractions_that_are_none(fraction):
    with pytest.raises(ValueError, match="fraction must be in"):
        stream((np.zeros((3, 2)),)).split(fraction)


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, None])
def test_seeds_that_are_none(seed):
    with pytest.raises(ValueError, match="seed must be an integer in"):
        stream((np.zeros((3, 2)),)).split(0.5, seed)


def test_no_rows():
    for rows in (stream((np.zeros((0, 2)), np.zeros(0))), stream([])):
        assert list(rows.blocks()) == list(rows.blocks(shuffle=True)) == []
        for look in (rows.head, rows.labels):
            with pytest.raises(InvalidDataError, match="There are no rows in the"):
                look()


def test_nothing_in_a_part_of_a_split():
    held = stream((np.zeros((1, 2)), np.zeros(1))).split(1e-9)[1]
    assert held.rows == 0
    with pytest.raises(InvalidDataError, match="no rows in the arrays that belong to this part of the split"):
        held.head()


def test_where_a_number_is_not_finite():
    X = np.zeros((100, 2))
    X[77, 1] = np.nan
    X[99, 0] = np.inf
    rows = stream((X, np.zeros(100)), block_rows=10)
    assert rows.where_not_finite() == "the arrays, row 77: X holds NaN or infinity"
    parts = rows.split(0.5, seed=1)
    found = {part.where_not_finite() for part in parts}
    assert "the arrays, row 77: X holds NaN or infinity" in found
    assert stream((np.zeros((3, 2)), np.zeros(3))).where_not_finite() is None
    large = stream((np.array([[1.0], [1e39]]), np.zeros(2)))
    assert large.where_not_finite() is None
    assert large.where_not_finite(np.float32).startswith("the arrays, row 1: X holds")
    assert stream(iter([(X, np.zeros(100))])).where_not_finite() is None


def test_blocks_can_be_changed_without_changing_the_source():
    data = np.zeros((10, 2))
    for block in stream((data, np.zeros(10)), block_rows=4).blocks(shuffle=True):
        assert isinstance(block, Block)
        block.X[:] = 1
    assert not data.any()
