"""Data in other files: only in the model's folder, only whole."""

import os
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcustom import load, weights
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import to_ir

VALUES = np.arange(10, dtype=np.float32)


@pytest.fixture
def write(tmp_path):
    """A model whose weight is where `entries` say; its path."""

    def to_file(content=None, dims=(10,), kind=TensorProto.FLOAT, attribute=False, **entries):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "w.bin").write_bytes(VALUES.tobytes() if content is None else content)
        tensor = TensorProto(name="w", data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in {"location": "w.bin", **entries}.items():
            tensor.external_data.add(key=key, value=value)
        x, y = (helper.make_tensor_value_info(n, 1, ["N", 10]) for n in "xy")
        nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
        if attribute:
            nodes.insert(0, helper.make_node("Constant", [], ["w"]))
            nodes[0].attribute.append(helper.make_attribute("value", tensor))
        graph = helper.make_graph(nodes, "g", [x], [y], [] if attribute else [tensor])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return to_file


def refused(path, message):
    for function in (load, weights, to_ir):
        with pytest.raises(InvalidModelError, match=message):
            function(path)


@pytest.mark.parametrize("attribute", [False, True])
@pytest.mark.parametrize(
    "entries", [{}, {"offset": "0", "length": "40"}, {"checksum": "abc"}, {"length": ""}]
)
def test_read(write, attribute, entries):
    loaded = load(write(attribute=attribute, **entries))
    tensor = loaded.graph.node[0].attribute[0].t if attribute else loaded.graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), VALUES)
    assert not tensor.external_data


def test_part_of_a_file(write):
    path = write(dims=(3,), offset="8", length="12")
    np.testing.assert_array_equal(weights(path)["w"], VALUES[2:5])
    np.testing.assert_array_equal(numpy_helper.to_array(load(path).graph.initializer[0]), VALUES[2:5])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "4"}, r"bytes 4 to 44 of 'w.bin', which has 40"),
        ({"offset": "9" * 19}, "which has 40"),
        ({"offset": "-4"}, "offset '-4'"),
        ({"offset": "1e3"}, "offset '1e3'"),
        ({"offset": "9" * 40}, "no such place"),
        ({"offset": "٣"}, "no such place"),
        ({"offset": "x"}, "offset 'x'"),
        ({"length": "36"}, "36 bytes in another file, and its shape asks for 40"),
        ({"length": "44"}, "44 bytes"),
        ({"length": "-1"}, "length '-1'"),
        ({"dims": (2**40,)}, "tensor_bytes"),
        ({"dims": (-1,)}, "impossible"),
        ({"dims": (11,)}, "which has 40"),
        ({"kind": TensorProto.STRING}, "text, which cannot be in another file"),
        ({"content": b""}, "which has 0"),
    ],
)
def test_claims(write, entries, message):
    refused(write(**entries), message)


@pytest.mark.parametrize(
    "location",
    [
        *("/etc/passwd", "../w.bin", "sub/../../w.bin", "..", ".", "", "a\0b", "//server/share/w.bin"),
        *("C:\\w.bin", "\\\\server\\share\\w.bin"),
    ],
)
def test_outside(write, location):
    refused(write(location=location), "outside its own folder|no plain file")


@pytest.mark.parametrize("location", ["http://localhost/w.bin", "file:///etc/passwd", "absent.bin"])
def test_addresses_are_names_of_files(write, location):
    refused(write(location=location), "missing")


@pytest.mark.skipif(sys.platform == "win32", reason="links and devices of POSIX")
@pytest.mark.parametrize("kind", ["link", "link to folder", "device", "pipe", "folder"])
def test_links_and_devices(write, tmp_path, kind):
    path = write(location="other" if kind != "link to folder" else "other/w.bin")
    other = path.parent / "other"
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "w.bin").write_bytes(VALUES.tobytes())
    if kind == "link":
        other.symlink_to(tmp_path / "secret" / "w.bin")
    elif kind == "link to folder":
        other.symlink_to(tmp_path / "secret")
    elif kind == "device":
        other.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(other)
    else:
        other.mkdir()
    refused(path, "outside its own folder" if "link" in kind or kind == "device" else "no plain file")


def test_two_places(write):
    path = write()
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="other.bin")
    path.write_bytes(model.SerializeToString())
    refused(path, "two places")


def test_sparse_tensors_have_no_other_file(write):
    model = onnx.load(write(), load_external_data=False)
    tensor = model.graph.initializer.pop()
    indices = numpy_helper.from_array(np.arange(10), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [10]))
    with pytest.raises(InvalidModelError, match="another file"):
        load(model.SerializeToString())
