from __future__ import annotations

import datetime
import decimal

import numpy as np
import pytest

from onnxcustom.data.frames import (
    UnfitError,
    as_array,
    column_getter,
    column_names,
    is_column,
    is_frame,
    joined,
    slice_rows,
)

pd = pytest.importorskip("pandas")
DAY = datetime.date(2020, 1, 1)
PICTURES = np.arange(24).reshape(2, 3, 4)


class Tensor:
    """What has ``__array__``, as tensors do."""

    def __array__(self, dtype=None, copy=None):
        return np.array([1.5, 2.5])


def arrow(values, type=None):
    pa = pytest.importorskip("pyarrow")
    return pa.array(values, eval(type, vars(pa)) if type else None)


def polars(values, type=None):
    pl = pytest.importorskip("polars")
    return pl.Series(values, dtype=eval(type, vars(pl)) if type else None)


def pandas(values, type=None):
    return pd.Series(values, dtype=type)


FIT = [
    (lambda: [1, 2], np.array([1, 2])),
    (lambda: Tensor(), np.array([1.5, 2.5])),
    (lambda: np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]])),
    (lambda: arrow([1, 2]), np.array([1, 2])),
    (lambda: arrow([1, 2], "int8()"), np.array([1, 2], np.int8)),
    (lambda: arrow(np.array([1.5, 2], np.float16)), np.array([1.5, 2], np.float16)),
    (lambda: arrow([True, False]), np.array([True, False])),
    (lambda: arrow(["a", "b"]), np.array(["a", "b"], object)),
    (lambda: arrow(["a", "b"], "large_string()"), np.array(["a", "b"], object)),
    (lambda: arrow(["a", "b", "a"]).dictionary_encode(), np.array(["a", "b", "a"], object)),
    (lambda: arrow([decimal.Decimal("1.5")]), np.array([1.5])),
    (lambda: arrow([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]])),
    (lambda: arrow([[1, 2], [3, 4], [5, 6]])[1:], np.array([[3, 4], [5, 6]])),
    (lambda: arrow([[1, 2], [3, 4]], "large_list(int16())"), np.array([[1, 2], [3, 4]], np.int16)),
    (
        lambda: arrow([[1, 2], [3, 4], [5, 6]], "list_(float32(), 2)")[1:],
        np.array([[3, 4], [5, 6]], np.float32),
    ),
    (lambda: arrow(PICTURES.tolist()), PICTURES),
    (lambda: arrow([[], []], "list_(int8())"), np.zeros((2, 0))),
    (lambda: arrow([], "int8()"), np.zeros(0, np.int8)),
    (lambda: polars([1, 2]), np.array([1, 2])),
    (lambda: polars([1, 2], "Float32"), np.array([1, 2], np.float32)),
    (lambda: polars([True]), np.array([True])),
    (lambda: polars(["a", "b"]), np.array(["a", "b"], object)),
    (lambda: polars(["a", "b"], "Categorical"), np.array(["a", "b"], object)),
    (lambda: polars(["a", "b"], "Enum(['b', 'a'])"), np.array(["a", "b"], object)),
    (lambda: polars([decimal.Decimal("1.5")]), np.array([1.5])),
    (lambda: polars([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]])),
    (lambda: polars([[1, 2], [3, 4]], "Array(Int8, 2)"), np.array([[1, 2], [3, 4]], np.int8)),
    (lambda: polars(PICTURES.tolist()), PICTURES),
    (lambda: polars(PICTURES.tolist(), "Array(Int64, (3, 4))"), PICTURES),
    (lambda: pandas([1, 2]), np.array([1, 2])),
    (lambda: pandas([1, 2], "Int64"), np.array([1, 2])),
    (lambda: pandas([True], "boolean"), np.array([True])),
    (lambda: pandas(["a", "b"]), np.array(["a", "b"], object)),
    (lambda: pandas(["a", "b"], "category"), np.array(["a", "b"], object)),
    (lambda: pandas([1.0, 0.0], "Sparse[float]"), np.array([1.0, 0.0])),
    (lambda: pandas([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]])),
    (lambda: pandas([np.array([1, 2]), np.array([3, 4])]), np.array([[1, 2], [3, 4]])),
]


@pytest.mark.parametrize(("make", "wanted"), FIT, ids=range(len(FIT)))
def test_columns_of_any_kind(make, wanted):
    array = as_array(make())
    assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape)
    np.testing.assert_array_equal(array, wanted)


def test_columns_in_chunks():
    pa = pytest.importorskip("pyarrow")
    np.testing.assert_array_equal(as_array(pa.chunked_array([[1], [], [2, 3]])), [1, 2, 3])
    assert as_array(pa.chunked_array([], pa.int8())).shape == (0,)
    np.testing.assert_array_equal(as_array(pa.chunked_array([[[1, 2]], [[3, 4]]])), [[1, 2], [3, 4]])


def test_tensors_of_arrow():
    pa = pytest.importorskip("pyarrow")
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(PICTURES)
    np.testing.assert_array_equal(as_array(tensors), PICTURES)
    np.testing.assert_array_equal(as_array(tensors[1:]), PICTURES[1:])


def test_columns_of_arrow_in_pandas():
    pa = pytest.importorskip("pyarrow")
    lists = pd.Series([[1, 2], [3, 4]], dtype=pd.ArrowDtype(pa.list_(pa.int8())))
    np.testing.assert_array_equal(as_array(lists), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(as_array(pd.Series([1, 2], dtype=pd.ArrowDtype(pa.int8()))), [1, 2])


def test_numbers_are_not_copied():
    pa = pytest.importorskip("pyarrow")
    values = np.arange(6.0)
    lists = pa.FixedSizeListArray.from_arrays(values, 3)
    assert np.shares_memory(as_array(lists), values)


UNFIT = [
    (lambda: arrow([1, None]), 1, "no value"),
    (lambda: arrow(["a", None, None]), 1, "no value"),
    (lambda: arrow([None, None]), 0, "no value"),
    (lambda: arrow([[1, 2], [3, None]]), 1, "no value"),
    (lambda: arrow([[1, 2], None]), 1, "no value"),
    (lambda: arrow([[1, 2], [3, 4], [5]]), 2, "1 value where row 0 has 2"),
    (lambda: arrow([DAY]), None, "date32.* is no type"),
    (lambda: arrow([b"a"]), None, "binary is no type"),
    (lambda: arrow([{"a": 1}]), None, "struct.* is no type"),
    (lambda: polars([1, None]), 1, "no value"),
    (lambda: polars([[1], [None]]), 1, "no value"),
    (lambda: polars([[1], [1, 2]]), 1, "2 values where row 0 has 1"),
    (lambda: polars([DAY]), None, "Date is no type"),
    (lambda: pandas([1, np.nan]), 1, "no value"),
    (lambda: pandas([1, None], "Int64"), 1, "no value"),
    (lambda: pandas(["a", None]), 1, "no value"),
    (lambda: pandas([[1, 2], [1]]), 1, "1 value where row 0 has 2"),
    (lambda: pandas([np.zeros((2, 2)), np.zeros((2, 3))]), 1, r"shape \(2, 3\) where row 0 has \(2, 2\)"),
    (lambda: pandas(pd.to_datetime(["2020-01-01"])), None, "datetime64.* is no type"),
    (lambda: np.array(["2020-01-01"], "M8[D]"), None, "datetime64"),
]


@pytest.mark.parametrize(("make", "row", "message"), UNFIT, ids=range(len(UNFIT)))
def test_values_that_training_cannot_use(make, row, message):
    with pytest.raises(UnfitError, match=message) as caught:
        as_array(make())
    assert caught.value.row == row


def test_rows_of_chunks_are_counted_on():
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(UnfitError, match="row 3: there is no value"):
        as_array(pa.chunked_array([[1, 2], [3, None]]))
    with pytest.raises(UnfitError, match="row 2: 3 values where row 0 has 2"):
        as_array(pa.chunked_array([[[1, 2], [1, 2]], [[1, 2, 3]]]))


# -- frames -------------------------------------------------------------------------------------------

COLUMNS = {"a": [1, 2, 3], "b": [[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]]}


def frames():
    yield "pandas", lambda: pd.DataFrame(COLUMNS)
    yield "polars", lambda: pytest.importorskip("polars").DataFrame(COLUMNS)
    yield "table", lambda: pytest.importorskip("pyarrow").table(COLUMNS)
    yield "batch", lambda: pytest.importorskip("pyarrow").RecordBatch.from_pydict(COLUMNS)
    yield "dict", lambda: COLUMNS


@pytest.mark.parametrize("make", [make for _, make in frames()], ids=[name for name, _ in frames()])
def test_frames_of_any_kind(make):
    frame = make()
    assert is_frame(frame) is not isinstance(frame, dict)
    assert not is_column(frame)
    assert column_names(frame) == ["a", "b"]
    columns = {name: as_array(column_getter(slice_rows(frame, 1, 3))(name)) for name in "ab"}
    np.testing.assert_array_equal(joined(columns), [[2, 3.5, 4.5], [3, 5.5, 6.5]])
    if not isinstance(frame, dict):
        assert is_column(column_getter(frame)("b"))
        assert not is_frame(column_getter(frame)("b"))


def test_columns_with_names_that_are_no_text():
    frame = pd.DataFrame(np.arange(6).reshape(3, 2))
    assert column_names(frame) == ["0", "1"]
    np.testing.assert_array_equal(as_array(column_getter(frame)("1")), [1, 3, 5])


@pytest.mark.parametrize("data", [[1, 2], np.zeros(3), {"a": [1]}, "text", None, Tensor()])
def test_what_is_neither_frame_nor_column(data):
    assert not is_frame(data)
    assert not is_column(data)


def test_lazy_frames_are_none():
    pl = pytest.importorskip("polars")
    assert not is_frame(pl.LazyFrame({"a": [1]}))


def test_a_subclass_of_a_frame_is_one():
    class Frame(pd.DataFrame):
        pass

    assert is_frame(Frame({"a": [1]}))


# -- several columns ----------------------------------------------------------------------------------


def test_columns_side_by_side():
    columns = {
        "a": np.array([1, 2]),
        "b": np.array([[0.5, 1.5], [2.5, 3.5]], np.float32),
        "c": np.array([True, False]),
    }
    made = joined(columns)
    assert made.dtype == np.float64
    np.testing.assert_array_equal(made, [[1, 0.5, 1.5, 1], [2, 2.5, 3.5, 0]])
    assert joined(columns, np.float32).dtype == np.float32


def test_a_single_column():
    assert joined({"a": np.arange(3)}).shape == (3, 1)
    assert joined({"a": PICTURES}) is PICTURES


def test_numbers_that_come_as_objects():
    made = joined({"a": np.array([1, decimal.Decimal("2.5")], object)})
    np.testing.assert_array_equal(made, [[1], [2.5]])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"a": np.zeros(2), "city": np.array(["Paris", "Rome"], object)},
            "column 'city', row 0: 'Paris' is no number",
        ),
        ({"a": np.array([1.0, "x"], object)}, "column 'a', row 1: 'x' is no number"),
        ({"city": np.array(["Paris", "Rome"])}, "column 'city', row 0: 'Paris' is no number"),
        ({"a": np.zeros(2), "p": PICTURES}, r"column 'p': values of shape \(3, 4\) fit beside no other"),
        ({"z": np.zeros(2, complex)}, "column 'z': complex128 is no type of numbers"),
    ],
)
def test_columns_that_are_no_features(columns, message):
    with pytest.raises(UnfitError, match=message):
        joined(columns)
