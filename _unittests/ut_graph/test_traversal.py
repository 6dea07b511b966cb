"""Names and subgraphs, in branches inside branches."""

from __future__ import annotations

import onnx
import pytest

from onnxcustom.graph import to_ir
from onnxcustom.graph.analysis.traversal import all_names, subgraphs, unique_name, value_names

TEXT = """<ir_version: 8, opset_import: ["": 17]>
outer (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
    [first] y = If (c) <
        then_branch = t () => (float[2] a) {
            [inner] a = If (c) <
                then_branch = tt () => (float[2] b) <float[2] v = {3, 4}> { [sum] b = Add(x, v) },
                else_branch = te () => (float[2] d) { [less] d = Sub(x, w) }
            >
        },
        else_branch = e () => (float[2] f) { [minus] f = Neg(x) }
    >
}"""


@pytest.fixture
def model():
    return to_ir(onnx.parser.parse_model(TEXT))


VALUES = {"c", "x", "w", "y", "a", "b", "v", "d", "f"}


def test_value_names(model):
    assert value_names(model) == VALUES


def test_all_names_adds_those_of_nodes(model):
    assert all_names(model.graph) == VALUES | {"first", "inner", "sum", "less", "minus"}


def test_subgraphs_are_those_of_the_node_alone(model):
    (node,) = model.graph
    assert {g.name for g in subgraphs(node)} == {"t", "e"}


def test_unique_name_takes_the_name():
    taken = {"a"}
    assert [unique_name("a", taken), unique_name("a", taken), unique_name("b", taken)] == ["a_1", "a_2", "b"]
