"""Limits, and models that claim more than they hold."""

import threading

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcustom import gradient_report, load, weights
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import Limits, to_ir, use_limits
from onnxcustom.graph.files.limits import current_limits, shown, size_of, survey

TEXT = """<ir_version: 8, opset_import: ["": 18]>
g (float[N, 3] x) => (float[N, 3] y) <float[3] w = {1, 2, 3}> { z = Mul(x, w)  y = Tanh(z) }"""


@pytest.fixture
def model():
    return onnx.parser.parse_model(TEXT)


def refused(model, message, **words):
    """Refused from memory and from bytes, by everything that reads models."""
    for source in (model, model.SerializeToString()):
        for function in (load, weights, to_ir, gradient_report):
            with use_limits(Limits(**words)), pytest.raises(InvalidModelError, match=message):
                function(source)


# -- the limits themselves ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nodes", "nesting", "tensor_bytes", "total_bytes", "folded_bytes"])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "many", None])
def test_bad_limits(name, wrong):
    with pytest.raises(ValueError, match=f"{name}=.*positive integer"):
        Limits(**{name: wrong})


def test_nesting_has_a_limit_itself():
    with pytest.raises(ValueError, match="nesting=101"):
        Limits(nesting=101)


def test_scope(model):
    strict = Limits(nodes=1)
    with use_limits(strict):
        assert current_limits() is strict
        seen = []
        thread = threading.Thread(target=lambda: seen.append(current_limits()))
        thread.start()
        thread.join()
        assert seen == [Limits()]  # of the thread it is set in
        with pytest.raises(InvalidModelError, match="more than 1 nodes"):
            load(model)
        assert load(model, limits=Limits()) is model
    assert current_limits() == Limits()
    with pytest.raises(InvalidModelError, match="more than 1 nodes"):
        load(model, limits=strict)
    with pytest.raises(TypeError, match="Limits"), use_limits({"nodes": 1}):
        pass


def test_within_the_limits(model):
    with use_limits(Limits(nodes=2, nesting=1, tensor_bytes=12, total_bytes=12)):
        assert list(weights(model)) == ["w"]


def test_message_says_what_to_do(model):
    with pytest.raises(InvalidModelError, match=r"Limits\.tensor_bytes is 11 .*use_limits"):
        load(model, limits=Limits(tensor_bytes=11))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "'a'"),
        ("a\0\nb\x1b", r"'a\x00\nb\x1b'"),
        ("x" * 500, f"'{'x' * 195}...'"),
        (b"\xff", r"b'\xff'"),
    ],
)
def test_shown(text, expected):
    assert shown(text) == expected
    assert len(shown(text)) <= 200


def test_size_of():
    assert size_of([2, 3], TensorProto.FLOAT) == 24
    assert size_of([3], TensorProto.INT4) == 2
    assert size_of([], TensorProto.DOUBLE) == 8
    assert size_of([2**62, 2**62], TensorProto.FLOAT) == 2**126


# -- size and nesting ----------------------------------------------------------------------------------


def test_nodes(model):
    refused(model, "more than 1 nodes", nodes=1)


def nested(depth):
    """An If in an If in an If ..."""
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "inner", [], [onnx.ValueInfoProto(name="y")]
    )
    for _ in range(depth - 1):
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
        # A name twice is no matter here; only one branch is kept, or the model would double at each level.
        del node.attribute[1]
        inner = helper.make_graph([node], "outer", [], [onnx.ValueInfoProto(name="y")])
    inner.input.extend(
        [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("c", 9, [])]
    )
    return helper.make_model(inner, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_nesting():
    model = nested(5)
    survey(model, "it", Limits(nesting=5))
    refused(model, "graphs more than 4 deep|more than 4 deep", nesting=4)


def test_nesting_beyond_the_stack():
    """Built in memory, where protobuf's own limit of a hundred messages does not hold."""
    model = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 18)])
    graph = model.graph
    for _ in range(3000):
        graph.name = "g"
        node = graph.node.add(op_type="If", input=["c"], output=["y"])
        graph = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
    with pytest.raises(InvalidModelError, match="deep"):
        load(model)


def test_types_within_types(model):
    kind = model.graph.input[0].type
    for _ in range(70):
        kind.sequence_type.SetInParent()
        kind = kind.sequence_type.elem_type
    kind.tensor_type.elem_type = 1
    with pytest.raises(InvalidModelError, match="type within types"):
        load(model)


def laughing(depth):
    """Functions that call the one before twice."""
    model = onnx.parser.parse_model(TEXT)
    model.opset_import.append(helper.make_opsetid("laugh", 1))
    for i in range(depth):
        function = model.functions.add(name=f"f{i}", domain="laugh", input=["a"], output=["c"])
        function.opset_import.extend([helper.make_opsetid("", 18), helper.make_opsetid("laugh", 1)])
        name, domain = (f"f{i - 1}", "laugh") if i else ("Neg", "")
        function.node.add(op_type=name, domain=domain, input=["a"], output=["b"])
        function.node.add(op_type=name, domain=domain, input=["b"], output=["c"])
    model.graph.node.add(op_type=f"f{depth - 1}", domain="laugh", input=["x"], output=["more"])
    model.graph.output.append(helper.make_tensor_value_info("more", 1, ["N", 3]))
    return model


def test_billion_laughs():
    assert list(weights(laughing(5))) == ["w"]  # 32 nodes
    refused(laughing(40), "stands for more than 100,000 nodes")
    # What the count is: 2 + 4 + ... + 2 ** 5 nodes of functions, the call itself and two others.
    survey(laughing(5), "it", Limits(nodes=62 + 3))
    with pytest.raises(InvalidModelError, match="stands for more than 64 nodes"):
        survey(laughing(5), "it", Limits(nodes=62 + 2))


def test_long_chain_of_functions():
    model = laughing(90)
    for function in model.functions:
        del function.node[1]
        function.node[0].output[0] = "c"
    refused(model, "deep")


@pytest.mark.parametrize("by", ["itself", "another"])
def test_function_that_calls_itself(by):
    model = laughing(3)
    model.functions[0].node[0].op_type = "f0" if by == "itself" else "f2"
    model.functions[0].node[0].domain = "laugh"
    refused(model, "calls itself")


def test_tensors_of_functions_count_at_every_call():
    model = laughing(10)
    constant = model.functions[0].node.add(op_type="Constant", output=["k"])
    constant.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(100), "k")))
    survey(model, "it", Limits(total_bytes=2**9 * 800 + 12))
    with pytest.raises(InvalidModelError, match="total_bytes"):
        survey(model, "it", Limits(total_bytes=2**9 * 800 + 11))


# -- tensors -------------------------------------------------------------------------------------------


def changed(model, place, change):
    """The tensor as an initializer or in a Constant, changed."""
    tensor = model.graph.initializer[0]
    if place == "constant":
        node = helper.make_node("Constant", [], ["w"])
        node.attribute.append(helper.make_attribute("value", tensor))
        model.graph.ClearField("initializer")
        model.graph.node.insert(0, node)
        tensor = model.graph.node[0].attribute[0].t
    change(tensor)
    return model


def dims(*sizes):
    return lambda tensor: tensor.dims.__setitem__(slice(None), sizes)


def raw(size):
    def change(tensor):
        tensor.ClearField("float_data")
        tensor.raw_data = bytes(size)

    return change


@pytest.mark.parametrize("place", ["initializer", "constant"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dims(2**62), "tensor_bytes"),
        (dims(2**31, 2**31, 2**31), "tensor_bytes"),
        (dims(2**32, 2**32), "tensor_bytes"),
        (dims(0, 2**62, 2**62), "tensor_bytes"),
        (dims(-1), "impossible"),
        (dims(-1, -3), "impossible"),
        (dims(*[1] * 40), "impossible"),
        (dims(4), "3 entries of float_data where .* asks for 4"),
        (dims(2), "3 entries of float_data where .* asks for 2"),
        (dims(0), "3 entries"),
        (raw(11), "11 bytes where .* asks for 12"),
        (raw(13), "13 bytes"),
        (raw(0), "0 bytes"),
        (lambda t: t.__setattr__("data_type", 0), "element type 0"),
        (lambda t: t.__setattr__("data_type", 99), "element type 99"),
        (lambda t: t.__setattr__("data_type", TensorProto.INT64), "entries of int64_data"),
        (lambda t: t.__setattr__("data_type", TensorProto.STRING), "entries of string_data"),
        (lambda t: t.segment.__setattr__("begin", 1), "segment"),
    ],
)
def test_tensors_have_the_bytes_they_claim(model, place, change, message):
    refused(changed(model, place, change), message)


@pytest.mark.parametrize("name", ["INT4", "UINT4", "BFLOAT16", "BOOL", "FLOAT8E5M2"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("size", [0, 1, 5])
def test_small_types(name, packed, size):
    tensor = helper.make_tensor("w", TensorProto.DataType.Value(name), [size], [1] * size)
    if packed:
        array = numpy_helper.to_array(tensor)
        tensor = numpy_helper.from_array(array, "w")
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(tensor)
    model.graph.initializer[1].name = "other"
    model.ir_version = 10
    assert load(model) is model


@pytest.mark.parametrize(
    ("indices", "sizes", "message"),
    [
        ([0, 5], [3], "index beyond"),
        ([-1, 0], [3], "index beyond|not a valid"),
        ([0, 1], [2**62], "tensor_bytes"),
        ([0, 1], [-3], "impossible"),
        ([[0, 1], [0, 5]], [2, 2], "index beyond"),
        ([0, 1, 2], [3], "do not fit its values"),
    ],
)
def test_sparse_tensors(model, indices, sizes, message):
    values = numpy_helper.from_array(np.array([2.0, 3.0], dtype=np.float32), "w")
    where = numpy_helper.from_array(np.array(indices, dtype=np.int64), "i")
    model.graph.ClearField("initializer")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, sizes))
    with pytest.raises(InvalidModelError, match=f"{message}|not a valid ONNX model"):
        to_ir(model)


def test_total(model):
    for i in range(3):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(100), f"w{i}"))
    load(model, limits=Limits(total_bytes=2412))
    refused(model, "tensors of 2,412 bytes", total_bytes=2411)


@pytest.mark.parametrize("size", [2**40, 2**62])
def test_values_that_would_not_fit(model, size):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    refused(model, "value 'x' of .* bytes")


# -- what it says --------------------------------------------------------------------------------------


def spoilt(content, name, by=b"\xff\xfe"):
    return content.replace(name, by)


@pytest.mark.parametrize("name", [b"zz", b"Tanh", b"ww", b"xx", b"NN", b"gg"])
def test_text_that_is_no_utf_8(name):
    text = TEXT.replace("z", "zz").replace(" w", " ww").replace("[N", "[NN").replace("g (", "gg (")
    text = text.replace(" x", " xx").replace("(x", "(xx")
    content = onnx.parser.parse_model(text).SerializeToString()
    broken = content.replace(name, b"\xff\xfe" if len(name) == 2 else b"\xff\xfeab")
    assert broken != content
    with pytest.raises(InvalidModelError):
        load(broken)


def test_attribute_that_is_no_utf_8():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 20]> g (float[2] x) => (float[2] y)'
        '{ y = Gelu <approximate = "tanh"> (x) }'
    )
    model.graph.node[0].attribute[0].s = b"\xff"
    with pytest.raises(InvalidModelError, match="not UTF-8"):
        load(model)


@pytest.mark.parametrize("name", ["a\0b", "line\nbreak", "\x1b[31m", "x" * 100_000, "'\"", "{0} %s"])
def test_strange_names_survive(name):
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer[0].name = model.graph.node[0].input[1] = name
    assert list(weights(model)) == [name]
    model.graph.initializer[0].dims[0] = 7
    with pytest.raises(InvalidModelError) as caught:
        load(model)
    assert len(str(caught.value)) < 1000


def test_reference_to_an_attribute_outside_of_a_function(model):
    model.graph.node[1].attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="a")
    refused(model, "refers to an attribute 'a'")


@pytest.mark.parametrize(
    "operator", [("com.microsoft", "PythonOp"), ("com.microsoft", "TritonOp"), ("org.pytorch.aten", "ATen")]
)
def test_operators_that_run_code(model, operator):
    domain, name = operator
    model.opset_import.append(helper.make_opsetid(domain, 1))
    model.graph.node[1].domain, model.graph.node[1].op_type = operator
    refused(model, f"{name} of {domain}, which runs code")
