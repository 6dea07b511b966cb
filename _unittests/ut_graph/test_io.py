# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Every form a model comes in, every way it can be bad, and files that are never left torn."""

import io
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnxruntime import InferenceSession

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import load, prepare, save, to_ir, to_proto, weights
from onnxcustom.graph.files import io as graph_io

TEXT = """
<ir_version: 8, opset_import: ["": 18], producer_name: "me", metadata_props: ["key": "value"]>
g (float[N, 3] x) => (float[N, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {7, 8}> {
    y = Gemm(x, w, b)
}
"""


@pytest.fixture
def model():
    return onnx.parser.parse_model(TEXT)


def large(size=200):
    """A model with a tensor that is worth a second file."""
    w = onnx.numpy_helper.from_array(np.arange(size, dtype=np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(n, 1, ["N", size]) for n in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [w])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def forms(model, folder):
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return {
        "str": str(path),
        "path": path,
        "bytes": model.SerializeToString(),
        "bytearray": bytearray(model.SerializeToString()),
        "file": io.BytesIO(model.SerializeToString()),
        "proto": model,
        "ir": ir.from_proto(model),
    }


@pytest.mark.parametrize("form", ["str", "path", "bytes", "bytearray", "file", "proto", "ir"])
@pytest.mark.parametrize("function", [load, lambda m: to_proto(to_ir(m))], ids=["load", "to_ir"])
def test_forms(model, tmp_path, form, function):
    loaded = function(forms(model, tmp_path)[form])
    assert isinstance(loaded, onnx.ModelProto)
    assert loaded.producer_name == "me"
    assert {p.key: p.value for p in loaded.metadata_props} == {"key": "value"}
    assert list(weights(loaded)) == ["w", "b"]


def test_to_ir_is_private(model):
    before = model.SerializeToString()
    for source in (model, ir.from_proto(onnx.ModelProto.FromString(before))):
        made = to_ir(source)
        made.graph.initializers["w"].name = "other"
        made.graph.node(0).name = "other"
        made.graph.initializers["b"].const_value = ir.tensor(np.zeros(2, dtype=np.float32))
        made.metadata_props["key"] = "changed"
        to_proto(made)
        if isinstance(source, ir.Model):
            source = ir.to_proto(source)
        assert source.graph.initializer[0].name == "w"
        assert source.graph.node[0].name == ""
        assert source.metadata_props[0].value == "value"
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(source.graph.initializer[1]), [7, 8])
    assert model.SerializeToString() == before


def test_load_does_not_copy(model):
    assert load(model) is model


# -- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"this is no model, but a text that somebody gave by mistake", "not an ONNX model"),
        (bytes(range(256)), "not an ONNX model"),
        (b"\x08\x08", "holds no graph"),
        (b"PK\x03\x04" + bytes(100), "not an ONNX model"),
    ],
)
@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_not_onnx(tmp_path, content, message, kind):
    source = content
    if kind == "file":
        source = tmp_path / "model.onnx"
        source.write_bytes(content)
    for function in (load, to_ir, weights):
        with pytest.raises(InvalidModelError, match=message):
            function(source)


def test_every_truncation_is_refused(model):
    content = model.SerializeToString()
    accepted = []
    for size in range(len(content)):
        try:
            load(content[:size])
        except InvalidModelError:
            continue
        accepted.append(size)
    # Cut between two fields a message is whole; here that loses the metadata at the end at most.
    whole = {len(onnx.ModelProto.FromString(content[:n]).SerializeToString()) for n in accepted}
    assert whole == set(accepted)
    assert all(list(weights(content[:n])) == ["w", "b"] for n in accepted)


def test_missing_file(tmp_path):
    with pytest.raises(InvalidModelError, match=r"no file .*absent\.onnx"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.onnx")


def test_folder(tmp_path):
    with pytest.raises(InvalidModelError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    "wrong", [None, 3, 1.5, ["model.onnx"], np.zeros(3), object()], ids=lambda v: type(v).__name__
)
def test_wrong_type(wrong):
    with pytest.raises(InvalidModelError, match=f"not as {type(wrong).__name__}"):
        load(wrong)


def test_text_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("abc")
    with open(path) as file, pytest.raises(InvalidModelError, match="mode 'rb'"):
        load(file)


def test_empty_proto():
    with pytest.raises(InvalidModelError, match="holds no graph"):
        load(onnx.ModelProto())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.graph.node[0].input.__setitem__(0, "nobody"), "nobody"),
        (lambda m: m.graph.node[0].__setattr__("op_type", "NoSuchOperator"), "NoSuchOperator"),
        (lambda m: m.graph.node.append(m.graph.node[0]), "y"),
        (lambda m: m.ClearField("opset_import"), "opset_import"),
        (lambda m: m.__setattr__("ir_version", 99), "99"),
        (lambda m: m.graph.output[0].ClearField("name"), "name"),
    ],
    ids=["undefined input", "unknown operator", "name twice", "no opset", "IR version", "no output name"],
)
@pytest.mark.parametrize("limit", [None, 0], ids=["whole", "without data"])
def test_invalid_graph(model, change, message, limit, monkeypatch):
    if limit is not None:
        monkeypatch.setattr(graph_io, "_LARGE", limit)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1000, np.float32), "large"))
    change(model)
    for source in (model, model.SerializeToString()):
        with pytest.raises(InvalidModelError, match=f"not a valid ONNX model(.|\n)*{message}"):
            load(source)


def test_large_models_are_checked_without_their_numbers(monkeypatch):
    seen = []
    check = onnx.checker.check_model
    monkeypatch.setattr(onnx.checker, "check_model", lambda m: (seen.append(m), check(m)))
    model = large(2**18 + 1)
    model.metadata_props.add(key="a", value="b")
    before = model.SerializeToString()
    assert load(model) is model
    assert load(before) == model
    assert model.SerializeToString() == before
    for checked in seen:
        assert checked.ByteSize() < 1000
        del checked.graph.initializer[:]
        del model.graph.initializer[:]
        assert checked == model


# -- saving ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["str", "bytes", "proto", "ir"])
def test_save_and_load(model, tmp_path, form):
    target = tmp_path / "saved.onnx"
    save(forms(model, tmp_path)[form], target)
    assert load(target).SerializeToString() == model.SerializeToString() or form == "ir"
    save(large(), str(target))  # replaces
    assert weights(target)["w"].shape == (200,)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "saved.onnx"]


def test_external_data_on_request(tmp_path):
    target = tmp_path / "model.onnx"
    save(large(), target, external_data=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert os.path.getsize(target) < 400
    assert load(target).graph.initializer[0].raw_data
    for read in (weights(target), weights(to_ir(target)), weights(to_proto(to_ir(target)))):
        np.testing.assert_array_equal(read["w"], np.arange(200, dtype=np.float32))
    with open(target, "rb") as file:  # a file object that knows its name
        np.testing.assert_array_equal(weights(file)["w"], np.arange(200, dtype=np.float32))
    save(large(), target, external_data="weights.bin")
    assert (tmp_path / "weights.bin").exists()
    # A model in external form saved into one file again, in its own place.
    save(target, target)
    assert os.path.getsize(target) > 800


def test_external_data_above_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_io, "PROTOBUF_LIMIT", 700)
    target = tmp_path / "model.onnx"
    save(large(), target)
    assert (tmp_path / "model.onnx.data").exists()
    np.testing.assert_array_equal(weights(target)["w"], np.arange(200, dtype=np.float32))
    save(large(), target, external_data=False)
    assert os.path.getsize(target) > 800


def test_external_model_saved_over_itself(tmp_path):
    target = tmp_path / "model.onnx"
    save(large(), target, external_data=True)
    save(to_ir(target), target, external_data=True)  # reads the file that it replaces
    np.testing.assert_array_equal(weights(target)["w"], np.arange(200, dtype=np.float32))


@pytest.mark.parametrize(
    "name", ["", "../out.data", "/absolute/out.data", "sub/out.data", "model.onnx", ".."]
)
def test_external_name_leads_elsewhere(tmp_path, name):
    with pytest.raises(InvalidModelError, match="without folder"):
        save(large(), tmp_path / "model.onnx", external_data=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "sub/../../secret", "link"])
def test_external_data_must_not_escape(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "sub").mkdir()
    (tmp_path / "secret").write_bytes(bytes(800))
    (folder / "link").symlink_to(tmp_path / "secret")
    target = folder / "model.onnx"
    save(large(), target, external_data=True)
    model = onnx.load(target, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    target.write_bytes(model.SerializeToString())
    for function in (load, to_ir, weights):
        with pytest.raises(InvalidModelError, match="outside its own folder"):
            function(target)


def test_external_data_missing(tmp_path):
    target = tmp_path / "model.onnx"
    save(large(), target, external_data=True)
    model = onnx.load(target, load_external_data=False)
    with pytest.raises(InvalidModelError, match="give the path"):
        load(model)
    (tmp_path / "model.onnx.data").write_bytes(bytes(10))
    with pytest.raises(InvalidModelError, match=r"cannot be read|not a valid"):
        load(target)
    with pytest.raises(InvalidModelError, match=r"cannot be read|not a valid"):
        to_proto(to_ir(target))
    (tmp_path / "model.onnx.data").unlink()
    for function in (load, to_ir):
        with pytest.raises(InvalidModelError, match="missing"):
            function(target)


def failing(*_args, **_kwargs):
    raise OSError("no space left on device")


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("place", ["write", "first replace", "last replace"])
def test_failed_save_leaves_what_was_there(tmp_path, monkeypatch, external, place):
    target = tmp_path / "model.onnx"
    save(large(), target, external_data=external)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    calls = []
    replace = os.replace

    def sometimes(source, destination):
        if Path(destination).parent == tmp_path and "backup" not in Path(source).name:
            calls.append(destination)
            if (place == "first replace") == (len(calls) == 1):
                failing()
        return replace(source, destination)

    with monkeypatch.context() as patch:
        if place == "write":
            patch.setattr(Path, "write_bytes", failing)
            patch.setattr(ir, "save", failing)
        elif external or place == "first replace":
            patch.setattr(os, "replace", sometimes)
        else:
            patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="no space"):
            save(large(300), target, external_data=external)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert weights(target)["w"].shape == (200,)


def test_save_into_nowhere(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        save(model, tmp_path / "absent" / "model.onnx")
    with pytest.raises(IsADirectoryError):
        save(model, tmp_path)
    model.graph.node[0].input[0] = "nobody"
    with pytest.raises(InvalidModelError):
        save(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


# -- what onnx_ir does not know --------------------------------------------------------------


def test_sparse_tensors_become_dense():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N, 3] x) => (float[N, 3] y, float[2, 2] s)'
        "{ y = Add(x, w)  s = Constant() }"
    )
    values = onnx.numpy_helper.from_array(np.array([2.0, 3.0], dtype=np.float32), "w")
    for indices, dims, where in (
        ([0, 2], [3], model.graph.sparse_initializer.add()),
        ([[0, 1], [1, 1]], [2, 2], None),
    ):
        sparse = onnx.SparseTensorProto(values=values, dims=dims)
        sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.array(indices, dtype=np.int64)))
        if where is None:
            model.graph.node[1].attribute.append(onnx.helper.make_attribute("sparse_value", sparse))
        else:
            where.CopyFrom(sparse)
    dense = to_proto(to_ir(model))
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(dense.graph.initializer[0]), [2, 0, 3])
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(dense.graph.node[1].attribute[0].t), [[0, 2], [0, 3]]
    )
    assert len(model.graph.sparse_initializer) == 1


def test_map_types_survive():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18, "ai.onnx.ml": 3]>'
        "g (float[N, 2] x) => (seq(map(int64, float)) z) { z = ai.onnx.ml.ZipMap <classlabels_int64s = [3, 4]> (x) }"
    )
    again = to_proto(to_ir(model).clone())
    assert again.graph.output[0].type == model.graph.output[0].type


def test_the_other_name_of_the_default_domain_says_the_opset():
    """Of a model that imports "ai.onnx" the version was taken for missing, and Softmax for that of opset 18."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["ai.onnx": 12]>
        g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax(x) }""")
    assert to_ir(model).opset_imports == {"": 12}
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    session = InferenceSession(to_proto(prepare(model, opset=13)).SerializeToString())
    flat = np.exp(x.reshape(2, -1).astype(np.float64))
    expected = flat / flat.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(session.run(None, {"x": x})[0].reshape(2, -1), expected, rtol=1e-5)
