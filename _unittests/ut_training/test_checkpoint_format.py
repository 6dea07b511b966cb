"""Checkpoints as bytes: what is taken comes back to the bit, everything else is refused by name."""

from __future__ import annotations

import decimal
import enum
import hashlib
import json
import math
from collections import OrderedDict
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcustom import __version__
from onnxcustom.exceptions import CheckpointError
from onnxcustom.training.checkpoints import checkpoint_format
from onnxcustom.training.checkpoints.checkpoint_format import (
    NewerCheckpointError,
    decoded_document,
    decoded_tensors,
    encoded_document,
    encoded_tensors,
    json_state,
)


def written(tensors: Any, state: Any) -> tuple[bytes, bytes]:
    """The two files of a checkpoint: state and tensors."""
    data, file, specs = encoded_tensors(tensors)
    return encoded_document(json_state(state), specs, file), data


def read(text: bytes, data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    document = decoded_document(text)
    assert document.size == len(data)
    return decoded_tensors(data, document), document.state


def same(a: Any, b: Any) -> bool:
    """Equality of plain data, that of NaN and of zeros of either sign included, and of types."""
    return type(a) is type(b) and repr(a) == repr(b)


def check_back(tensors: dict[str, np.ndarray]) -> None:
    found, _ = read(*written(tensors, {}))
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.writeable


DTYPES = [np.dtype(name) for name in sorted(checkpoint_format._NATIVE)]
FOREIGN = [
    np.dtype(getattr(ml_dtypes, name))
    for name in sorted(checkpoint_format._FOREIGN)
    if hasattr(ml_dtypes, name)
]


@pytest.mark.parametrize("dtype", [*DTYPES, *FOREIGN], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0,), (2, 0, 3)])
def test_every_dtype_and_shape(dtype, shape):
    rng = np.random.default_rng(0)
    if dtype.name in checkpoint_format._FOREIGN or dtype.kind == "b":
        array = rng.integers(0, 2, shape).astype(dtype)
    else:
        array = np.frombuffer(rng.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
    check_back({"a": array, "b": np.ones(2)})


def test_there_are_foreign_dtypes():
    assert {"bfloat16", "float8_e4m3fn", "int4"} <= {dtype.name for dtype in FOREIGN}


@given(
    st.dictionaries(
        st.text(max_size=12),
        hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
        max_size=5,
    )
)
@settings(max_examples=50)
def test_any_tensors(tensors):
    check_back(tensors)


NAMES = ["", " ", "__metadata__", "__metadata___", "a/b", "../x", "\0", 'q"\\', "é✓🜁", "\u2028", "w" * 3000]


def test_names_of_all_kinds():
    check_back({name: np.full(2, k) for k, name in enumerate(NAMES)})


def test_any_layout_in_memory():
    array = np.arange(24.0).reshape(2, 3, 4)
    views = {"f": np.asfortranarray(array), "t": array.T, "s": array[:, ::-2], "b": array.astype(">f8")}
    found, _ = read(*written(views, {}))
    for name, view in views.items():
        np.testing.assert_array_equal(found[name], view)
        assert found[name].dtype == np.dtype("<f8")


def test_others_can_read_the_tensors():
    _, data = written({"w": np.arange(3.0), "h": np.ones(2, ml_dtypes.bfloat16)}, {})
    found = safetensors.numpy.load(data)
    np.testing.assert_array_equal(found["w"], np.arange(3.0))
    np.testing.assert_array_equal(found["h"], np.full(2, 0x3F80, np.uint16))


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        (None, TypeError, "tensors must be a mapping"),
        ({1: np.ones(1)}, TypeError, "is called 1"),
        ({"a\ud800": np.ones(1)}, ValueError, "no Unicode text"),
        ({"a": np.array(["x"])}, TypeError, "'a' has dtype <U1"),
        ({"b": np.array([object()])}, TypeError, "'b' has dtype object"),
        ({"c": np.ones(1, complex)}, TypeError, "'c' has dtype complex128"),
        ({"d": np.ones(1, np.longdouble)}, TypeError, "'d' has dtype"),
        ({"e": np.zeros(1, [("x", "f4")])}, TypeError, "'e' has dtype"),
    ],
)
def test_tensors_that_cannot_be_written(tensors, error, message):
    with pytest.raises(error, match=message):
        encoded_tensors(tensors)


# -- state ---------------------------------------------------------------------------------------------


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
@settings(max_examples=60)
def test_any_state(state):
    _, found = read(*written({}, state))
    assert same(found, state)


@pytest.mark.parametrize("value", [0.1, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1e308, 2**53 + 1, 2**64])
def test_numbers_to_the_bit(value):
    _, found = read(*written({}, {"x": [value]}))
    assert same(found, {"x": [value]})


class Colour(enum.IntEnum):
    RED = 3


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.float32(0.1), 0.10000000149011612),
        (np.float16(np.inf), math.inf),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        ((1, (2, "a")), [1, [2, "a"]]),
        (OrderedDict(a=(1,)), {"a": [1]}),
        (Colour.RED, 3),
    ],
)
def test_values_that_become_plain(value, found):
    assert same(json_state({"x": value}), {"x": found})
    assert same(read(*written({}, {"x": value}))[1], {"x": found})


def circle() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ([], TypeError, "state must be a mapping"),
        ({"a": {"b": [0, {1, 2}]}}, TypeError, r"state\['a'\]\['b'\]\[1\] is \{1, 2\}, of type set"),
        ({"a": np.ones(2)}, TypeError, r"state\['a'\] is array.*give arrays among the tensors"),
        ({"a": np.array(1)}, TypeError, "give arrays among the tensors"),
        ({"a": {3: 1}}, TypeError, r"state\['a'\] has the key 3"),
        ({"a": b"x"}, TypeError, "of type bytes"),
        ({"a": 1j}, TypeError, "of type complex"),
        ({"a": np.complex64(1)}, TypeError, "of type complex64"),
        ({"a": decimal.Decimal(1)}, TypeError, "of type Decimal"),
        ({"a": np.datetime64("2020-01-01")}, TypeError, "of type datetime64"),
        ({"a": len}, TypeError, "of type builtin_function"),
        ({"a": 10**4000}, ValueError, "more than 10000 bits"),
        ({"a": circle()}, ValueError, "nested more than 100 deep, or holds itself"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:20],
)
def test_states_that_cannot_be_written(state, error, message):
    with pytest.raises(error, match=message):
        json_state(state)


# -- what was not written here -------------------------------------------------------------------------


TEXT, DATA = written(
    {"w": np.arange(6.0).reshape(2, 3), "h": np.ones((), ml_dtypes.bfloat16)}, {"k": [1, 0.5]}
)


def forged(change: Any) -> bytes:
    """The JSON, changed, with the checksum that fits it."""
    document = json.loads(TEXT)
    document = change(document) or document
    document.pop("checksum", None)
    return json.dumps({**document, "checksum": checkpoint_format._checksum(document)}).encode()


def put(*path: Any, value: Any) -> Any:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def test_the_document_says_what_it_is():
    document = json.loads(TEXT)
    assert (document["format"], document["version"]) == ("onnxcustom checkpoint", 1)
    assert document["library"] == __version__
    assert document["tensors"]["w"] == {"dtype": "float64", "shape": [2, 3]}
    assert forged(lambda d: None) == TEXT


FORGED: dict[str, tuple[Any, str]] = {
    "list": (lambda d: {"format": [1]}, "not of the format 'onnxcustom checkpoint'"),
    "foreign": (put("format", value="pt"), "not of the format"),
    "no version": (lambda d: d.pop("version") and None, "torn or foreign: KeyError: 'version'"),
    "version": (put("version", value="1"), "version '1'"),
    "version zero": (put("version", value=0), "version 0; this onnxcustom reads version 1"),
    "version true": (put("version", value=True), "version True"),
    "more": (put("more", value=1), "its state must have"),
    "state": (put("state", value=[]), "its state must have"),
    "size": (put("file", "size", value="1"), "has size '1'"),
    "size small": (put("file", "size", value=10), "its tensors take 50 bytes, the file is said to have 10"),
    "size large": (put("file", "size", value=10**18), "its tensors take 50 bytes, the file is said"),
    "shape large": (put("tensors", "w", "shape", value=[2**62, 2**62]), "its tensors take"),
    "shape": (put("tensors", "w", "shape", value=[-1]), r"'w' has shape \[-1\]"),
    "shape number": (put("tensors", "w", "shape", value=3), "'w' has shape 3"),
    "shape float": (put("tensors", "w", "shape", value=[1.0]), "'w' has shape"),
    "dtype": (put("tensors", "w", "dtype", value="object"), "'w' has dtype 'object'"),
    "dtype list": (put("tensors", "w", "dtype", value=[]), "torn or foreign: TypeError"),
    "tensor": (put("tensors", "w", value=[]), "torn or foreign: TypeError"),
    "file": (put("file", value=None), "torn or foreign: TypeError"),
}


@pytest.mark.parametrize(("change", "message"), FORGED.values(), ids=FORGED)
def test_documents_made_up(change, message):
    with pytest.raises(CheckpointError, match=message):
        decoded_document(forged(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("tensors", "w", "dtype", value="int64"), "'w' is float64 .*, not int64"),
        (put("tensors", "w", "shape", value=[3, 2]), r"'w' is float64 \(2, 3\), not float64 \(3, 2\)"),
        (put("tensors", "w", "key", value="h"), "not those that its state names"),
        (put("file", "sha256", value="0" * 64), "the SHA-256 differs"),
    ],
)
def test_documents_that_do_not_describe_the_tensors(change, message):
    document = decoded_document(forged(change))
    with pytest.raises(CheckpointError, match=message):
        decoded_tensors(DATA, document)


def test_two_names_for_one_tensor():
    document = decoded_document(TEXT)
    document.tensors["v"] = document.tensors["w"]._replace(key="w")
    with pytest.raises(CheckpointError, match="not those that its state names"):
        decoded_tensors(DATA, document)


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\xff" * 40, DATA[:-1], DATA + b"x", b"\x08" + DATA])
def test_tensors_made_up(data):
    document = decoded_document(TEXT)._replace(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(CheckpointError, match="its tensors cannot be read: SafetensorError"):
        decoded_tensors(data, document)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{" * 10**5,
        b"[" * 10**5,
        b'{"format":' * 10**5,
        b"1" * 10**5,
    ],
    ids=range(9),
)
def test_text_that_is_none_of_ours(text):
    with pytest.raises(CheckpointError, match=r"torn or foreign|not of the format"):
        decoded_document(text)


def test_deep_nesting_made_up():
    text = forged(put("state", "deep", value=0)).replace(
        b'"deep": 0', b'"deep": ' + b"[" * 10**5 + b"]" * 10**5
    )
    with pytest.raises(CheckpointError, match="torn or foreign: RecursionError"):
        decoded_document(text)


@given(st.data())
@settings(max_examples=60)
def test_a_changed_text_is_refused_or_says_the_same(data):
    position = data.draw(st.integers(0, len(TEXT) - 1))
    text = TEXT[:position] + bytes([data.draw(st.integers(0, 255))]) + TEXT[position + 1 :]
    try:
        found = decoded_document(text)
    except CheckpointError:
        return
    assert found == decoded_document(TEXT)


def test_spaces_and_order_of_keys_do_not_matter():
    document = json.loads(TEXT)
    text = json.dumps(dict(reversed(document.items())), indent=2).encode()
    assert decoded_document(text) == decoded_document(TEXT)


def test_a_newer_version_is_told_from_a_torn_one():
    newer = forged(lambda d: d.update(version=2, library="9.1", new="field"))
    with pytest.raises(NewerCheckpointError, match=r"written by onnxcustom 9\.1 in version 2.*reads up to 1"):
        decoded_document(newer)
    with pytest.raises(CheckpointError, match="the checksum differs"):
        decoded_document(newer.replace(b'"version": 2', b'"version": 3'))
