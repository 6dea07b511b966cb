"""OrtValues and IO binding."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi import _pybind_state as pybind

from onnxcustom.exceptions import EvaluationError, InvalidDataError
from onnxcustom.runtime import (
    Binding,
    create_session,
    owned_copy,
    run_values,
    to_ortvalue,
    to_vector,
)

BASE = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize(
    "array",
    [
        BASE,
        BASE.T,
        BASE[::2, 1:],
        BASE[:, ::-1],
        np.asfortranarray(BASE),
        BASE.astype(">f4"),
        BASE.astype(np.float64),
        BASE.astype(np.float16),
        BASE.astype(np.int64)[::-1],
        BASE > 3,
        np.float32(3),
        np.zeros((0, 3)),
        np.array(2.0),
        [[1.0, 2.0]],
        np.frombuffer(b"\0" + BASE.tobytes(), np.uint8)[1:].view(np.float32),
    ],
)
def test_values_survive(array):
    value = to_ortvalue(array)
    np.testing.assert_array_equal(value.numpy(), np.asarray(array))
    assert list(value.shape()) == list(np.shape(array))


def test_read_only_arrays():
    array = BASE.copy()
    array.flags.writeable = False
    np.testing.assert_array_equal(to_ortvalue(array).numpy(), array)


def test_the_array_stays_alive():
    value = to_ortvalue(np.full(100_000, 7.0))
    gc.collect()
    np.full(100_000, 1.0)
    assert (value.numpy() == 7).all()


def test_contiguous_memory_is_borrowed_and_copies_are_owned():
    array = BASE.copy()
    value = to_ortvalue(array)
    copy = owned_copy(value)
    array[:] = 0
    assert (value.numpy() == 0).all()
    np.testing.assert_array_equal(copy.numpy(), BASE)


def test_ortvalues_pass_through():
    value = onnxruntime.OrtValue.ortvalue_from_numpy(BASE)
    assert to_ortvalue(value) is value
    assert isinstance(to_ortvalue(value._ortvalue), onnxruntime.OrtValue)
    vector = to_vector([value, value._ortvalue])
    assert isinstance(vector, pybind.OrtValueVector)
    np.testing.assert_array_equal(vector[1].numpy(), BASE)


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([object()])])
def test_no_tensor_of_that(array):
    with pytest.raises(InvalidDataError, match="dtype"):
        to_ortvalue(array)


@pytest.fixture
def session():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N] x, float[1] w) => (float[N] y, float[N] z) { y = Add(x, w) z = Mul(x, w) }"""
    )
    return create_session(model)


def f(*values):
    return np.array(values, dtype=np.float32)


def test_run_values(session):
    feeds = {"x": to_ortvalue(f(1, 2)), "w": to_ortvalue(f(3))}
    first = run_values(session, feeds, ["z", "y"])
    second = run_values(session, {**feeds, "x": to_ortvalue(f(5))}, ["y"])
    assert [v.tolist() for v in first.numpy()] == [[3, 6], [4, 5]]
    assert second[-1].numpy().tolist() == [8]
    with pytest.raises(EvaluationError, match="'g'"):
        run_values(session, {"x": to_ortvalue(np.zeros(2))}, ["y"])


def test_binding_gives_fresh_outputs_at_every_run(session):
    bound = Binding(session)
    bound.bind_input("w", f(2))
    bound.bind_output("y")
    bound.bind_output("z")
    bound.bind_input("x", f(1, 2))
    first = bound.run()
    bound.bind_input("x", f(5, 6, 7))
    second = bound.run()
    assert [v.tolist() for v in first.numpy()] == [[3, 4], [2, 4]]
    assert [v.tolist() for v in second.numpy()] == [[7, 8, 9], [10, 12, 14]]


def test_binding_writes_into_bound_memory(session):
    bound = Binding(session)
    target = to_ortvalue(f(0, 0))
    bound.bind_input("w", to_ortvalue(f(2)))
    bound.bind_input("x", to_ortvalue(f(1, 2))._ortvalue)
    bound.bind_output("y", target)
    bound.bind_output("z")
    bound.execute()
    assert target.numpy().tolist() == [3, 4]
    bound.bind_input("x", f(2, 2))
    bound.run()
    assert target.numpy().tolist() == [4, 4]


def test_binding_keeps_what_is_bound_alive(session):
    bound = Binding(session)
    bound.bind_output("y")
    bound.bind_input("w", f(0))
    bound.bind_input("x", np.full(50_000, 7, np.float32))
    gc.collect()
    np.full(50_000, 1, np.float32)
    assert (bound.run()[0].numpy() == 7).all()


def test_binding_errors_name_the_graph(session):
    bound = Binding(session)
    with pytest.raises(EvaluationError, match="'g'"):
        bound.bind_input("nowhere", f(1))
    bound.bind_input("x", f(1))
    bound.bind_output("y")
    with pytest.raises(EvaluationError, match="'g'"):
        bound.run()


def test_an_output_that_is_an_input_gets_memory_of_its_own():
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N] x) => (float[N] x, float[N] y) { y = Neg(x) }"""
    array = f(1, 2)
    values = run_values(create_session(onnx.parser.parse_model(text)), {"x": to_ortvalue(array)}, ["x", "y"])
    array[:] = 7
    assert [v.numpy().tolist() for v in values] == [[1, 2], [-1, -2]]


def test_owned_copy_of_an_array():
    array = f(1, 2)
    copy = owned_copy(array)
    array[:] = 7
    assert copy.numpy().tolist() == [1, 2]
