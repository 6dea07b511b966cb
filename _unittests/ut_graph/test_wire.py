"""Parts counted on the bytes: compared with what protobuf makes of them."""

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxcustom import load
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import Limits
from onnxcustom.graph.files.wire import count_parts

MODEL = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
g (float[N, 3] x, bool c) => (float[N, 3] y) <float[3] w = {1, 2, 3}> {
    t = Transpose <perm = [0, 1]> (x)
    y = If (c) <
        then_branch = a () => (float[N, 3] p) { p = Mul(t, w) },
        else_branch = b () => (float[N, 3] q) { q = Neg(t) }
    >
}""")


def parts(message):
    """Messages and texts in a message, one by one."""
    count = 0
    for field, value in message.ListFields():
        values = value if hasattr(value, "extend") else [value]
        if field.message_type is not None:
            count += sum(1 + parts(inner) for inner in values)
        elif field.type in (field.TYPE_STRING, field.TYPE_BYTES):
            count += len(values)
        elif len(values) and field.GetOptions().packed:
            count += 1  # one piece of bytes
    return count


def test_counts_what_protobuf_finds():
    assert count_parts(MODEL.SerializeToString(), 10**6) == parts(MODEL)


def test_long_lists_of_numbers_are_one_part():
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    before = parts(model)
    model.graph.node[0].attribute.append(helper.make_attribute("numbers", list(range(-5, 50_000))))
    model.graph.node[0].attribute.append(helper.make_attribute("others", [0.5] * 50_000))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(50_000), "zeros"))
    # Two attributes and a tensor with their names, and the data of the latter.
    assert count_parts(model.SerializeToString(), 10**6) == parts(model) == before + 2 + 2 + 1 + 2


def test_stops_beyond_the_limit():
    assert count_parts(MODEL.SerializeToString(), 5) <= 8


@given(st.binary(max_size=200))
def test_anything_can_be_counted(content):
    assert 0 <= count_parts(content, 1000) <= len(content)


@given(st.data())
def test_anything_like_a_model_can_be_counted(data):
    content = bytearray(MODEL.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    made = onnx.ModelProto()
    try:
        made.ParseFromString(bytes(content))
    except Exception:
        return
    assert count_parts(bytes(content), 1000) >= parts(made) - 3  # a field given twice is one message


@pytest.mark.parametrize("item", [b"\x0a\x00", b"\x2a\x00", b"\x6a\x00", b"\x0a\x02\x2a\x00"])
def test_bombs_are_not_parsed(item):
    """Two bytes a node: refused before protobuf makes a hundred times as many of them."""
    graph = item * 60_000
    size = len(graph)
    varint = b""
    while size:
        varint += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
        size >>= 7
    content = b"\x08\x08\x3a" + varint + graph

    with pytest.raises(InvalidModelError, match="more than 42,000 names, attributes and other parts"):
        load(content, limits=Limits(nodes=1000))
