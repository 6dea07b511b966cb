from __future__ import annotations

import numpy as np
import onnx
import pandas as pd
import pytest
import scipy.sparse as sparse
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from onnxcustom.data.sparse import SparseRows
from onnxcustom.exceptions import InvalidDataError, UnknownNameError
from onnxcustom.feed.specs import TensorSpec, input_specs
from onnxcustom.feed.validation import as_inputs, as_sample_weight, as_targets, check_batch_size

F32, F64, I64 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)
MATRIX = TensorSpec("X", F32, ("N", 3))


def test_specs_of_a_model_leave_initializers_out():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,3] x, int64[N] k, float[3,1] w, double y) => (float[N,1] z) <float[3,1] w = {1,2,3}>
        { z = MatMul(x, w) }"""
    )
    specs = input_specs(model)
    assert specs == [
        TensorSpec("x", F32, ("N", 3)),
        TensorSpec("k", I64, ("N",)),
        TensorSpec("y", F64, ()),
    ]
    assert (specs[0].rank, specs[0].rows, specs[2].rows) == (2, None, None)
    assert TensorSpec("a", shape=(4, 2)).rows == 4


def test_specs_of_a_model_that_ends_in_dictionaries():
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    model = to_onnx(LogisticRegression().fit(rows, [0, 1] * 3), rows, target_opset=17)
    assert model.graph.output[1].type.HasField("sequence_type")
    assert input_specs(model) == [TensorSpec("X", F32, (None, 2))]


# -- features ----------------------------------------------------------------------------------

ROWS = [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "X",
    [
        ROWS,
        np.array(ROWS),
        np.array(ROWS, np.float64),
        np.array(ROWS, np.float32, order="F"),
        np.array(ROWS, ">f4"),
        np.array(ROWS, np.float32)[::-1][::-1],
        np.array(ROWS, object),
        pd.DataFrame(ROWS, columns=list("abc")),
        pd.DataFrame(ROWS, columns=list("abc")).astype({"a": "Int64", "b": "float32"}),
        {"X": np.array(ROWS)},
    ],
    ids=["list", "int", "float64", "fortran", "swapped", "strided", "object", "frame", "nullable", "dict"],
)
def test_features_of_any_kind_become_what_the_input_wants(X):
    arrays = as_inputs(X, [MATRIX])
    assert list(arrays) == ["X"]
    array = arrays["X"]
    assert array.dtype == F32
    assert array.flags.c_contiguous
    assert array.dtype.isnative
    np.testing.assert_array_equal(array, ROWS)


def test_what_fits_is_not_copied():
    X = np.array(ROWS, np.float32)
    assert np.shares_memory(as_inputs(X, [MATRIX])["X"], X)
    assert np.shares_memory(as_inputs(X, [TensorSpec("X")])["X"], X)


def test_read_only_data_is_taken_as_it_is():
    X = np.array(ROWS, np.float32)
    X.flags.writeable = False
    assert np.shares_memory(as_inputs(X, [MATRIX])["X"], X)


def test_images_keep_their_shape():
    X = np.zeros((5, 1, 4, 4))
    assert as_inputs(X, [TensorSpec("image", F32, ("N", 1, "h", "w"))])["image"].shape == (5, 1, 4, 4)


def test_several_inputs_by_name():
    specs = [TensorSpec("a", F32, (None, 2)), TensorSpec("k", I64, (None,))]
    arrays = as_inputs({"k": [[1], [2]], "a": [[1, 2], [3, 4]]}, specs)
    assert list(arrays) == ["a", "k"]
    np.testing.assert_array_equal(arrays["k"], [1, 2])
    assert arrays["k"].dtype == I64


def test_a_data_frame_feeds_one_input_a_column():
    specs = [TensorSpec("b", F32, (None, 1)), TensorSpec("a", I64, (None, 1))]
    arrays = as_inputs(pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}), specs)
    np.testing.assert_array_equal(arrays["b"], [[0.5], [1.5]])
    np.testing.assert_array_equal(arrays["a"], [[1], [2]])


def test_numbers_of_another_dtype_that_fit_are_converted():
    spec = TensorSpec("k", np.dtype(np.int32), (None, 1))
    assert as_inputs(np.array([[1.0], [2.0]]), [spec])["k"].dtype == np.int32
    flags = TensorSpec("b", np.dtype(bool), (None, 1))
    np.testing.assert_array_equal(as_inputs([[1], [0]], [flags])["b"], [[True], [False]])


BAD_X = [
    ("columns", np.zeros((2, 4)), "Input 'X' wants 3 columns, the data has 4"),
    ("columns of a list", [[1, 2]], "Input 'X' wants 3 columns, the data has 2"),
    ("nan", [[1, np.nan, 3]], "Input 'X': Input X contains NaN"),
    ("infinity", [[1, np.inf, 3]], "Input 'X': Input X contains infinity"),
    ("too large", [[1, 1e300, 3]], "Input 'X': Input X contains infinity or a value too large"),
    ("one dimension", [1, 2, 3], "Expected 2D array, got 1D array instead"),
    ("three dimensions", np.zeros((2, 3, 1)), "Input 'X' wants 2 dimensions .N, 3., the data has 3"),
    ("no rows", np.zeros((0, 3)), r"0 sample\(s\) \(shape=\(0, 3\)\)"),
    ("no columns", np.zeros((3, 0)), r"0 feature\(s\) \(shape=\(3, 0\)\)"),
    ("text", [["a", "b", "c"]], "Input 'X' is text, such as"),
    ("complex", np.zeros((2, 3), complex), "Complex data not supported"),
    ("none", None, "Input 'X'"),
    ("scalar", 3.0, "Input 'X'"),
    ("ragged", [[1, 2, 3], [1, 2]], "Input 'X'"),
]


@pytest.mark.parametrize(("X", "message"), [b[1:] for b in BAD_X], ids=[b[0] for b in BAD_X])
def test_bad_features(X, message):
    with pytest.raises(InvalidDataError, match=message):
        as_inputs(X, [MATRIX])


# -- frames, tables, tensors, sparse rows --------------------------------------------------------


class Tensor:
    """What has ``__array__``, as tensors of other packages do."""

    def __init__(self, values, error=None):
        self.values, self.error = values, error

    def __array__(self, dtype=None, copy=None):
        if self.error is not None:
            raise self.error
        return np.array(self.values)


LISTS = {"a": [1, 4], "rest": [[2, 3], [5, 6]]}
FRAMES = {
    "pandas": lambda data: pd.DataFrame(data),
    "polars": lambda data: pytest.importorskip("polars").DataFrame(data),
    "table": lambda data: pytest.importorskip("pyarrow").table(data),
    "record batch": lambda data: pytest.importorskip("pyarrow").RecordBatch.from_pydict(data),
}
COLUMNS = {
    "series": lambda data: pd.Series(data),
    "polars": lambda data: pytest.importorskip("polars").Series(data),
    "array": lambda data: pytest.importorskip("pyarrow").array(data),
    "chunks": lambda data: pytest.importorskip("pyarrow").chunked_array([data[:1], data[1:]]),
    "tensor": Tensor,
}


@pytest.mark.parametrize("make", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize(
    "data", [{"a": [1, 4], "b": [2, 5], "c": [3.0, 6.0]}, LISTS], ids=["numbers", "lists"]
)
def test_frames_are_matrices(make, data):
    array = as_inputs(make(data), [MATRIX])["X"]
    assert array.dtype == F32
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, ROWS)
    np.testing.assert_array_equal(as_inputs(make(data), [TensorSpec("X")])["X"], ROWS)


@pytest.mark.parametrize("make", FRAMES.values(), ids=FRAMES)
def test_frames_feed_inputs_by_name(make):
    specs = [TensorSpec("rest", I64, (None, 2)), TensorSpec("a", F32, (None, 1))]
    arrays = as_inputs(make(LISTS), specs)
    np.testing.assert_array_equal(arrays["rest"], [[2, 3], [5, 6]])
    np.testing.assert_array_equal(arrays["a"], [[1], [4]])
    targets = as_targets(make(LISTS), specs, 2)
    np.testing.assert_array_equal(targets["rest"], arrays["rest"])
    with pytest.raises(UnknownNameError, match=r"\['rest'\] unknown"):
        as_inputs(make(LISTS), [TensorSpec("a"), TensorSpec("b")])


@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
def test_columns_and_tensors_are_arrays(make):
    np.testing.assert_array_equal(
        as_targets(make([1, 2]), [TensorSpec("y", F32, (None, 1))], 2)["y"], [[1], [2]]
    )
    np.testing.assert_array_equal(as_sample_weight(make([1.0, 2.0]), 2), [1, 2])
    np.testing.assert_array_equal(as_inputs(make(ROWS), [MATRIX])["X"], ROWS)


@pytest.mark.parametrize("kind", [k for k in FRAMES if k != "pandas"])
def test_bad_frames(kind):
    make = FRAMES[kind]
    with pytest.raises(InvalidDataError, match="Input 'X': column 'b', row 1: there is no value"):
        as_inputs(make({"a": [1, 2], "b": [1, None]}), [MATRIX])
    with pytest.raises(InvalidDataError, match="Input 'X': column 'b', row 0: 'x' is no number"):
        as_inputs(make({"a": [1, 2], "b": ["x", "y"]}), [MATRIX])
    with pytest.raises(InvalidDataError, match="Input 'X': column 'b', row 1: 1 value where row 0 has 2"):
        as_inputs(make({"a": [1, 2], "b": [[1, 2], [3]]}), [MATRIX])
    with pytest.raises(InvalidDataError, match="Input 'X': column 'b', row 1: there is NaN"):
        as_inputs(make({"a": [1, 2], "b": [1.0, np.nan], "c": [1, 2]}), [MATRIX])
    with pytest.raises(InvalidDataError, match="Input 'X' wants 3 columns, the data has 2"):
        as_inputs(make({"a": [1, 2], "b": [1, 2]}), [MATRIX])


def test_nullable_frames_of_pandas_name_what_is_missing():
    frame = pd.DataFrame({"a": [1, 2], "b": [1, None]}).astype("Int64")
    with pytest.raises(InvalidDataError, match="Input 'X'"):
        as_inputs(frame, [MATRIX])


@pytest.mark.parametrize("error", [TypeError("on a GPU"), RuntimeError("requires grad"), ValueError("no")])
def test_tensors_that_are_no_arrays(error):
    with pytest.raises(InvalidDataError, match=str(error)) as caught:
        as_inputs(Tensor(ROWS, error), [MATRIX])
    assert caught.value.__cause__ is error


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(as_inputs(torch.tensor(ROWS), [MATRIX])["X"], ROWS)
    with pytest.raises(InvalidDataError, match="requires grad"):
        as_inputs(torch.tensor(ROWS, dtype=torch.float32, requires_grad=True), [MATRIX])


SPARSE = ["csr_matrix", "csc_matrix", "coo_matrix", "csr_array", "coo_array"]


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_features(kind):
    matrix = getattr(sparse, kind)(np.array(ROWS, float))
    array = as_inputs(matrix, [MATRIX])["X"]
    assert (array.dtype, array.flags.c_contiguous) == (F32, True)
    np.testing.assert_array_equal(array, ROWS)
    rows = as_inputs(matrix, [MATRIX], sparse=True)["X"]
    assert isinstance(rows, SparseRows)
    assert rows.dtype == F32
    np.testing.assert_array_equal(rows[1:], ROWS[1:])
    kept = as_inputs({"X": matrix, "k": [1, 2]}, [MATRIX, TensorSpec("k", I64, (None,))], sparse=True)
    assert isinstance(kept["X"], SparseRows)
    assert isinstance(kept["k"], np.ndarray)


def test_sparse_integers():
    spec = TensorSpec("k", I64, (None, 3))
    np.testing.assert_array_equal(as_inputs(sparse.csr_matrix(np.array(ROWS, float)), [spec])["k"], ROWS)
    with pytest.raises(InvalidDataError, match=r"wants int64, the data holds 0\.5"):
        as_inputs(sparse.csr_matrix(np.full((2, 3), 0.5)), [spec])


def test_sparse_targets():
    array = as_targets(sparse.csr_matrix(np.eye(2)), [TensorSpec("y", F32, (None, 2))], 2)["y"]
    np.testing.assert_array_equal(array, np.eye(2))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.eye(2), "Input 'X' wants 3 columns, the data has 2"),
        (np.array([[1, np.nan, 3]]), "Input X contains NaN"),
        (np.array([[1, 1e300, 3]]), "contains infinity or a value too large"),
        (np.zeros((0, 3)), r"0 sample\(s\)"),
    ],
)
def test_bad_sparse_features(values, message, keep):
    with pytest.raises(InvalidDataError, match=message):
        as_inputs(sparse.csr_matrix(values), [MATRIX], sparse=keep)


def test_sparse_features_that_are_too_many_to_be_dense():
    matrix = sparse.csr_matrix((10**6, 10_000), dtype=np.float32)
    spec = TensorSpec("X", F32, (None, 10_000))
    with pytest.raises(
        InvalidDataError, match=r"sparse matrix of 1,000,000 rows, which take 37.3 GB as dense ones"
    ):
        as_inputs(matrix, [spec])
    assert len(as_inputs(matrix, [spec], sparse=True)["X"]) == 10**6


def test_bad_shape_of_images():
    spec = TensorSpec("image", F32, ("N", 1, 28, 28))
    message = r"Input 'image' wants the shape \(N, 1, 28, 28\).*dimension 3 is 32 in place of 28"
    with pytest.raises(InvalidDataError, match=message):
        as_inputs(np.zeros((2, 1, 28, 32)), [spec])


@pytest.mark.parametrize(("value", "dtype"), [(1.5, np.int64), (300, np.uint8), (-1, np.uint8), (2, bool)])
def test_numbers_that_a_dtype_cannot_hold(value, dtype):
    with pytest.raises(InvalidDataError, match="which it cannot represent"):
        as_inputs([[value]], [TensorSpec("k", np.dtype(dtype), (None, 1))])


def test_text_inputs_cannot_be_trained_on():
    with pytest.raises(InvalidDataError, match="encode it as numbers first"):
        as_inputs([["a"]], [TensorSpec("s", np.dtype(object), (None, 1))])


@pytest.mark.parametrize(
    ("X", "kind", "message"),
    [
        ({"a": [[1]]}, UnknownNameError, r"the inputs \['a', 'b'\]; \['b'\] missing"),
        ({"a": [[1]], "b": [[1]], "c": [[1]]}, UnknownNameError, r"\['c'\] unknown"),
        (pd.DataFrame({"a": [1], "c": [1]}), UnknownNameError, r"\['b'\] missing; \['c'\] unknown"),
        (
            np.zeros((2, 2)),
            InvalidDataError,
            r"has 2 inputs, \['a', 'b'\]: X must be a dict of arrays or a DataF",
        ),
        ({"a": [[1], [2]], "b": [[1]]}, InvalidDataError, "input 'a' has 2 rows, input 'b' has 1 row"),
    ],
)
def test_bad_dicts(X, kind, message):
    with pytest.raises(kind, match=message):
        as_inputs(X, [TensorSpec("a", F32, (None, 1)), TensorSpec("b", F32, (None, 1))])


# -- targets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [[1, 2], np.array([1.0, 2.0]), pd.Series([1, 2]), [[1], [2]], {"out": [1, 2]}])
@pytest.mark.parametrize(
    ("shape", "wanted"), [(("N", 1), (2, 1)), ((None, None), (2, 1)), (("N", "k"), (2, 1)), (("N",), (2,))]
)
def test_a_column_of_targets_becomes_what_the_loss_wants(y, shape, wanted):
    array = as_targets(y, [TensorSpec("out", F32, shape)], rows=2)["out"]
    assert (array.dtype, array.shape) == (F32, wanted)


def test_targets_without_a_specification_become_a_column():
    assert as_targets([1, 2], [TensorSpec("y")], 2)["y"].shape == (2, 1)
    assert as_targets(np.zeros((2, 3)), [TensorSpec("y")], 2)["y"].shape == (2, 3)


def test_class_indices():
    array = as_targets([0, 2, 1], [TensorSpec("label", I64, ("N",))], 3)["label"]
    assert array.dtype == I64


def test_several_targets():
    specs = [TensorSpec("a", F32, (None, 1)), TensorSpec("b", I64, (None,))]
    arrays = as_targets({"b": [0, 1], "a": [0.5, 1.5]}, specs, 2)
    assert [a.shape for a in arrays.values()] == [(2, 1), (2,)]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "requires y to be passed, but the target y is None"),
        ([1, 2, 3], "X has 2 rows, y has 3 rows"),
        ([1, np.nan], "y: Input y contains NaN"),
        ([np.inf, 1], "y: Input y contains infinity"),
        (np.zeros((2, 2)), "y wants 1 column, the data has 2"),
        (["a", "b"], "y is text, such as"),
        (3.0, "y: "),
    ],
)
def test_bad_targets(y, message):
    with pytest.raises(InvalidDataError, match=message):
        as_targets(y, [TensorSpec("out", F32, ("N", 1))], 2)


def test_a_column_where_several_are_wanted():
    with pytest.raises(InvalidDataError, match=r"y wants 2 dimensions \(N, 3\), the data has 1"):
        as_targets([1, 2], [TensorSpec("out", F32, ("N", 3))], 2)


def test_fractions_are_no_class_indices():
    with pytest.raises(InvalidDataError, match=r"y wants int64, the data holds 0.5"):
        as_targets([0, 0.5], [TensorSpec("label", I64, ("N",))], 2)


# -- weights and batch size --------------------------------------------------------------------


@pytest.mark.parametrize("weight", [[1, 2], [[1], [2]], pd.Series([1.0, 2.0]), np.array([1, 2])])
def test_sample_weights(weight):
    array = as_sample_weight(weight, 2, np.float64)
    assert array.dtype == F64
    np.testing.assert_array_equal(array, [1, 2])


def test_one_weight_for_all():
    np.testing.assert_array_equal(as_sample_weight(2, 3), np.full(3, 2, np.float32))


def test_some_weights_may_be_zero():
    np.testing.assert_array_equal(as_sample_weight([0, 1], 2), [0, 1])


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1, -2], "must not be negative: row 1 has -2"),
        ([0, 0], "zero for every row"),
        (0, "zero for every row"),
        ([1, np.nan], "contains NaN"),
        ([1, np.inf], "contains infinity"),
        ([1], "X has 2 rows, sample_weight has 1 row"),
        ([[1, 2], [3, 4]], "wants 1 dimension "),
        (["a", "b"], "is text, such as"),
    ],
)
def test_bad_sample_weights(weight, message):
    with pytest.raises(InvalidDataError, match=message):
        as_sample_weight(weight, 2)


def test_weights_of_a_part_may_be_zero():
    np.testing.assert_array_equal(as_sample_weight([0, 0], 2, part=True), [0, 0])
    with pytest.raises(InvalidDataError, match="must not be negative: there is -1"):
        as_sample_weight([0, -1], 2, part=True)


@pytest.mark.parametrize("size", [1, 7, np.int64(3), 100])
def test_batch_sizes(size):
    assert check_batch_size(size, 10) == size


@pytest.mark.parametrize("size", [0, -1, 2.5, "2", None, True, np.float64(2)])
def test_bad_batch_sizes(size):
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
        check_batch_size(size, 10)


def test_a_model_with_a_fixed_number_of_rows():
    spec = TensorSpec("x", F32, (2, 3))
    assert check_batch_size(2, 4, [spec]) == 2
    for size, rows in [(3, 6), (2, 5), (1, 4)]:
        with pytest.raises(InvalidDataError, match="'x' takes batches of exactly 2 rows"):
            check_batch_size(size, rows, [spec])


def test_a_model_with_a_fixed_number_of_rows_and_data_of_unknown_length():
    spec = TensorSpec("x", F32, (2, 3))
    assert check_batch_size(2, None, [spec]) == 2
    with pytest.raises(InvalidDataError, match=r"exactly 2 rows; batch_size is 3\. Use batch_size=2"):
        check_batch_size(3, None, [spec])
    with pytest.raises(InvalidDataError, match=r"exactly 1 row; batch_size is 3 and the data has 4 rows\."):
        check_batch_size(3, 4, [TensorSpec("x", F32, (1, 3))])


def test_what_is_given_once_a_batch_keeps_its_rank_where_the_model_does_not_say():
    specs = [TensorSpec("axes", np.dtype(np.int64), None, None), TensorSpec("x", np.dtype(np.float32), None)]
    found = as_inputs({"axes": np.array([1]), "x": np.ones(3, np.float32)}, specs)
    assert {name: a.shape for name, a in found.items()} == {"axes": (1,), "x": (3, 1)}
    found = as_inputs({"axes": np.array(1), "x": np.ones(3, np.float32)}, specs)
    assert found["axes"].shape == ()
