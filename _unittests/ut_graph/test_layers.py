# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Layers: which weights belong together, and what comes after what."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from onnxcustom.graph import layers, prepare, weights


def parse(body: str, opset: int = 18, extra: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}{extra}]> {body}')


def found(model: onnx.ModelProto) -> list[tuple[int, str, tuple[str, ...]]]:
    return [(layer.level, layer.operator, layer.weights) for layer in layers(model)]


VECTORS = "float[2] b = {1, 2}, float[2] g = {3, 4}, float[2] c = {5, 6}"
MATRICES = "float[2, 2] w = {1, 2, 3, 4}, float[2, 2] v = {5, 6, 7, 8}, float[2, 2] u = {9, 1, 2, 3}"
NET = f"net (float[N, 2] x) => (float[N, 2] y) <{MATRICES}, {VECTORS}>"
CASES = {
    "dense with its bias": (
        f"{NET} {{ a = MatMul(x, w) z = Add(a, b) h = Relu(z) y = Gemm(h, v, c) }}",
        [(1, "MatMul", ("w", "b")), (2, "Gemm", ("v", "c"))],
    ),
    "the bias in front": (
        f"{NET} {{ a = MatMul(x, w) z = Add(b, a) y = Sub(z, c) }}",
        [(1, "MatMul", ("w", "b", "c"))],
    ),
    "a bias behind a reshape": (
        """net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}, int64[2] s = {-1, 2}> {
           a = MatMul(x, w) r = Reshape(a, s) y = Add(r, b) }""",
        [(1, "MatMul", ("w", "b"))],
    ),
    "what is put together first": (
        f"{NET} {{ t = Transpose <perm = [1, 0]> (v) p = Mul(g, t) y = Gemm(x, p, b) z = MatMul(x, w) }}",
        [(1, "Gemm", ("g", "v", "b"))],
    ),
    "a normalization is a layer": (
        f"{NET} {{ a = MatMul(x, w) n = LayerNormalization(a, g, b) y = MatMul(n, v) }}",
        [(1, "MatMul", ("w",)), (2, "LayerNormalization", ("g", "b")), (3, "MatMul", ("v",))],
    ),
    "one written out": (
        f"{NET} {{ a = MatMul(x, w) m = ReduceMean(a) d = Sub(a, m) s = Mul(d, g) y = Add(s, b) }}",
        [(1, "MatMul", ("w",)), (2, "Mul", ("g", "b"))],
    ),
    "an embedding": (
        """net (int64[N] x) => (float[N, 1] y) <float[3, 2] t = {1, 2, 3, 4, 5, 6}, float[2, 1] w = {1, 2}> {
           e = Gather(t, x) y = MatMul(e, w) }""",
        [(1, "Gather", ("t",)), (2, "MatMul", ("w",))],
    ),
    "two heads are both last": (
        f"""net (float[N, 2] x) => (float[N, 2] y, float[N, 2] z) <{MATRICES}> {{
           a = MatMul(x, w) y = MatMul(a, v) z = MatMul(a, u) }}""",
        [(1, "MatMul", ("w",)), (2, "MatMul", ("v",)), (2, "MatMul", ("u",))],
    ),
    "wide beside deep": (
        f"{NET} {{ wide = MatMul(x, u) a = MatMul(x, w) deep = MatMul(a, v) y = Add(wide, deep) }}",
        [(1, "MatMul", ("w",)), (2, "MatMul", ("u",)), (2, "MatMul", ("v",))],
    ),
    "past a shortcut": (
        f"{NET} {{ a = MatMul(x, w) h = Tanh(a) c2 = MatMul(h, v) s = Add(a, c2) y = MatMul(s, u) }}",
        [(1, "MatMul", ("w",)), (2, "MatMul", ("v",)), (3, "MatMul", ("u",))],
    ),
    "shared by two": (
        f"{NET} {{ a = MatMul(x, w) h = MatMul(a, v) y = MatMul(h, w) }}",
        [(1, "MatMul", ("v",)), (2, "MatMul", ("w",))],
    ),
    "tied to an embedding": (
        """net (int64[N] x) => (float[N, 3] y) <float[3, 2] t = {1, 2, 3, 4, 5, 6}, float[2, 2] w = {1, 2, 3, 4}> {
           e = Gather(t, x) h = MatMul(e, w) r = Transpose <perm = [1, 0]> (t) y = MatMul(h, r) }""",
        [(1, "MatMul", ("w",)), (2, "MatMul", ("t",))],
    ),
    "in branches": (
        f"""net (float[N, 2] x, bool k) => (float[N, 2] y) <{MATRICES}> {{
           a = MatMul(x, w)
           z = If (k) <then_branch = t () => (float[N, 2] p) {{ p = MatMul(a, v) }},
                       else_branch = e () => (float[N, 2] q) {{ q = Relu(a) }}>
           y = MatMul(z, u) }}""",
        [(1, "MatMul", ("w",)), (2, "MatMul", ("v",)), (3, "MatMul", ("u",))],
    ),
    "in a loop": (
        f"""net (float[N, 2] x) => (float[N, 2] y) <{MATRICES}, int64 n = {{3}}, bool k = {{1}}> {{
           s = Loop (n, k, x) <body = step (int64 i, bool go, float[N, 2] h) => (bool on, float[N, 2] o) {{
               on = Identity(go) m = MatMul(h, w) o = Tanh(m) }}>
           y = MatMul(s, v) }}""",
        [(1, "MatMul", ("w",)), (2, "MatMul", ("v",))],
    ),
    "the first state of a loop": (
        """net (float[N, 2] x) => (float[N, 2] y) <float[1, 2] h = {1, 2}, int64 n = {3}, bool k = {1}, float[2, 2] v = {1, 2, 3, 4}> {
           s = Loop (n, k, h) <body = step (int64 i, bool go, float[A, 2] g) => (bool on, float[A, 2] o) {
               on = Identity(go) m = Add(g, x) o = Tanh(m) }>
           y = MatMul(s, v) }""",
        [(1, "Add", ("h",)), (2, "MatMul", ("v",))],
    ),
    "weights that meet no data": (
        "net (float[N, 2] x) => (float[N, 2] y, float[2, 2] z) <float[2, 2] w = {1, 2, 3, 4}, float[2, 2] v = {5, 6, 7, 8}> { y = Relu(x) z = MatMul(w, v) }",
        [(1, "MatMul", ("w", "v"))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_layers(name: str) -> None:
    body, wanted = CASES[name]
    model = parse(body)
    assert found(model) == wanted
    assert sorted(w for _, _, ws in wanted for w in ws) == sorted(weights(model)), "each weight once"
    assert [layer.weights for layer in layers(prepare(model))] == [ws for _, _, ws in wanted]


def test_the_order_of_nodes_in_the_file_does_not_matter() -> None:
    body = CASES["wide beside deep"][0]
    swapped = body.replace("wide = MatMul(x, u) ", "").replace("y = Add", "wide = MatMul(x, u) y = Add")
    assert swapped != body
    assert {(level, ws) for level, _, ws in found(parse(swapped))} == {
        (level, ws) for level, _, ws in found(parse(body))
    }


@pytest.mark.parametrize("operator", ["RNN", "GRU", "LSTM"])
def test_a_recurrent_cell_is_one_layer(operator: str) -> None:
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[operator]
    shapes = {"W": (1, gates * 2, 3), "R": (1, gates * 2, 2), "B": (1, gates * 4), "h0": (1, 5, 2)}
    tensors = [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in shapes.items()]
    node = helper.make_node(operator, ["x", "W", "R", "B", "", "h0"], ["", "y"], hidden_size=2)
    values = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (4, 5, 3)), ("y", (1, 5, 2)))]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert found(model) == [(1, operator, ("W", "R", "B"))]  # and no initial state


def test_attention_of_onnxruntime_is_one_layer() -> None:
    model = parse(
        """net (float[N, S, 2] x) => (float[N, S, 2] y) <float[2, 6] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}, float[6] b = {1, 2, 3, 4, 5, 6}> {
           y = com.microsoft.Attention <num_heads = 1> (x, w, b) }""",
        extra=', "com.microsoft": 1',
    )
    assert found(model) == [(1, "Attention", ("w", "b"))]


def test_a_model_without_weights_has_no_layers() -> None:
    assert layers(parse("net (float[N] x) => (float[N] y) { y = Relu(x) }")) == []


def test_nodes_are_named() -> None:
    model = parse(CASES["dense with its bias"][0])
    model.graph.node[0].name = "first"
    assert layers(model)[0].node == "first"
