from __future__ import annotations

import gc

import numpy as np
import pytest

from onnxcustom.runtime import parse_device
from onnxcustom.step.buffers import DoubleBuffer, Scalar

pytest.importorskip("onnxruntime")


def arrays():
    return {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(2.0), "e": np.zeros((0, 2))}


def test_buffers_own_their_memory():
    given = arrays()
    buffer = DoubleBuffer(given, parse_device("cpu"))
    given["a"][...] = 9
    del given
    gc.collect()
    (a, b, e) = buffer.read("abe")
    np.testing.assert_array_equal(a, arrays()["a"])
    assert (b.shape, float(b), e.shape) == ((), 2.0, (0, 2))
    a[...] = 7
    np.testing.assert_array_equal(buffer.read("a")[0], arrays()["a"])


def test_any_strides():
    transposed = np.arange(6.0).reshape(2, 3).T
    buffer = DoubleBuffer({"t": transposed}, parse_device("cpu"))
    np.testing.assert_array_equal(buffer.read("t")[0], transposed)
    buffer.write({"t": transposed[::-1]})
    np.testing.assert_array_equal(buffer.read("t")[0], transposed[::-1])


def test_two_sets():
    front = [0]
    buffer = DoubleBuffer(arrays(), parse_device("cpu"), front=lambda: front[0])
    addresses = [{n: v.data_ptr() for n, v in values.items()} for values in buffer.values]
    assert addresses[0]["a"] != addresses[1]["a"]
    buffer.write({"a": np.ones((2, 3), np.float32), "b": np.array(5.0)})
    front[0] = 1
    buffer.write({"a": np.full((2, 3), 2, np.float32)})
    np.testing.assert_array_equal(buffer.read("a")[0], 2)
    front[0] = 0
    np.testing.assert_array_equal(buffer.read("a")[0], 1)
    assert float(buffer.read("b")[0]) == 5
    # In place: bindings go on pointing there.
    assert [{n: v.data_ptr() for n, v in values.items()} for values in buffer.values] == addresses


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scalars_are_read_where_they_are_written(dtype):
    scalar = Scalar(np.dtype(dtype), 0.5)
    assert float(scalar) == 0.5
    scalar.set(0.25)
    value = scalar.ortvalue.numpy()
    assert (value.shape, value.dtype, float(value)) == ((), dtype, 0.25)


def test_a_back_tensor_as_a_row():
    buffer = DoubleBuffer(arrays() | {"v": np.arange(3.0)}, parse_device("cpu"), packs={"pack": ["v"]})
    assert buffer.back("v", [3]) is buffer.values[1]["v"]
    row = buffer.back("v", [1, 3])
    assert row.shape() == [1, 3]
    assert row.data_ptr() == buffer.values[1]["v"].data_ptr()
    assert buffer.back("pack", [3]).data_ptr() == row.data_ptr()
