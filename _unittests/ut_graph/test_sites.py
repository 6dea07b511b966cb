"""Where tensors are put back."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcustom.graph import to_ir, to_proto
from onnxcustom.graph.preparation.sites import (
    AttributeSite,
    ConstantSite,
    InitializerSite,
    origin,
    site_of,
    tag,
)

TEXT = """
<ir_version: 8, opset_import: ["": 18, "ai.onnx.ml": 3]>
g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {1, 2}, int64[1] s = {2}> {
    a = Mul(x, w)
    c = Constant <value_floats = [3.0, 4.0]> ()
    f = ConstantOfShape(s)
    b = Mul(a, c)
    y = Mul(b, f)
    z = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0], intercepts = [0.0]> (x)
}
"""


@pytest.fixture
def model():
    made = to_ir(onnx.parser.parse_model(TEXT))
    tag(made)
    return made


def test_tag(model):
    assert isinstance(site_of(model.graph.initializers["w"]), InitializerSite)
    nodes = {n.outputs[0].name: n for n in model.graph}
    assert isinstance(site_of(nodes["c"].outputs[0]), ConstantSite)
    assert isinstance(site_of(nodes["f"].outputs[0]), ConstantSite)
    assert site_of(nodes["a"].outputs[0]) is None
    copy = model.clone()
    twin = next(n for n in copy.graph if n.op_type == "LinearRegressor")
    assert origin(twin) is nodes["z"]
    assert origin(nodes["a"]) is nodes["a"]


def test_write_and_rename(model):
    new = np.array([7, 8], dtype=np.float32)
    nodes = {n.outputs[0].name: n for n in model.graph}
    sites = {
        "w": InitializerSite(model.graph.initializers["w"], "w"),
        "c": ConstantSite(nodes["c"]),
        "f": ConstantSite(nodes["f"]),
    }
    for name, site in sites.items():
        site.write(new)
        site.rename(f"{name}/new")
    proto = to_proto(model)
    onnx.checker.check_model(proto)
    constants = {
        n.output[0]: onnx.numpy_helper.to_array(n.attribute[0].t)
        for n in proto.graph.node
        if n.op_type == "Constant"
    }
    assert set(constants) == {"c/new", "f/new"}
    for array in constants.values():
        np.testing.assert_array_equal(array, new)
    initializers = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    assert set(initializers) == {"w/new", "s"}
    np.testing.assert_array_equal(initializers["w/new"], new)


@pytest.mark.parametrize("mirrored", [False, True])
def test_attribute_site(model, mirrored):
    node = next(n for n in model.graph if n.op_type == "LinearRegressor")
    site = AttributeSite(node, "coefficients", mirrored)
    site.write(np.array([[5, 6]], dtype=np.float32))
    site.rename("name")
    assert node.attributes.get_floats("coefficients") == ((-5, -6, 5, 6) if mirrored else (5, 6))
    assert node.metadata_props == {"onnxcustom.name.coefficients": "name"}
    assert site == AttributeSite(node, "coefficients", mirrored)
    assert site != AttributeSite(node, "intercepts", mirrored)
    assert isinstance(node, ir.Node)
