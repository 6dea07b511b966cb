# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Shapes as onnx infers them with values, but only with as many as matter to shapes."""

import onnx
import onnx.parser
import pytest

from onnxcustom import gradient_report
from onnxcustom.graph import prepare
from onnxcustom.graph.shapes import propagation
from onnxcustom.graph.shapes.propagation import infer_with_values


def model(nodes, given="float[N, 3] x", made="float[A] y", data="", opset=17):
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g ({given}) => ({made}) <{data}> {{ {nodes} }}'
    )


def shapes(proto):
    found = {}
    graphs = [proto.graph]
    for graph in graphs:
        for info in (*graph.value_info, *graph.output):
            dims = info.type.tensor_type.shape.dim
            found[info.name] = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims]
        graphs.extend(a.g for node in graph.node for a in node.attribute if a.HasField("g"))
    return found


@pytest.fixture
def kept(monkeypatch):
    """Elements of vectors that onnx keeps values of, at every inference with values."""
    counts = []
    infer = onnx.shape_inference.infer_shapes

    def counting(proto, check_type=False, strict_mode=False, data_prop=False):
        found = infer(proto, check_type=check_type, strict_mode=strict_mode, data_prop=data_prop)
        if data_prop:
            counts.append(_kept(found))
        return found

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", counting)
    yield counts
    assert counts, "nothing was inferred with values"


def _kept(proto):
    """What onnx keeps, by the shapes that it found itself."""
    opset = next(o.version for o in proto.opset_import if not o.domain)
    total, graphs = 0, [(proto.graph, {})]
    for graph, outer in graphs:
        known = {**outer, **{t.name: list(t.dims) for t in graph.initializer}}
        for info in (*graph.input, *graph.value_info, *graph.output):
            if info.type.tensor_type.HasField("shape"):
                known[info.name] = [d.dim_value for d in info.type.tensor_type.shape.dim]
        for node in graph.node:
            graphs += [(a.g, known) for a in node.attribute if a.HasField("g")]
            if node.domain or not onnx.defs.get_schema(node.op_type, opset, "").has_data_propagation_function:
                continue
            operands = [] if node.op_type in ("Shape", "Size") else node.input
            total += sum(known[n][0] for n in operands if len(known.get(n, ())) == 1)
    return total


BOMBS = {
    "Range": ("r = Range(a, b, c)  f = Cast <to = 1> (r)  y = Neg(f)", "int64 a = {0}, int64 b = {40000000}, int64 c = {1}"),
    "Range, computed": (
        "h = Mul(b, b)  r = Range(a, h, c)  f = Cast <to = 1> (r)  y = Neg(f)",
        "int64 a = {0}, int64 b = {6000}, int64 c = {1}",
    ),
    "ConstantOfShape": ("r = ConstantOfShape(s)  f = Add(r, r)  y = Neg(f)", "int64[1] s = {40000000}"),
    "ConstantOfShape, computed": (
        "h = Mul(s, s)  r = ConstantOfShape(h)  f = Add(r, r)  g = Cast <to = 7> (f)  q = Concat <axis = 0> (g, g)  k = Cast <to = 1> (q)  y = Neg(k)",
        "int64[1] s = {6000}",
    ),
    "Expand": ("r = Expand(v, s)  f = Mul(r, r)  y = Neg(f)", "float[1] v = {1}, int64[1] s = {40000000}"),
    "Tile": ("r = Tile(v, s)  f = Sub(r, r)  y = Neg(f)", "float[2] v = {1, 2}, int64[1] s = {20000000}"),
    "Pad": ("r = Pad(v, s)  f = Sub(r, r)  y = Neg(f)", "float[2] v = {1, 2}, int64[2] s = {0, 20000000}"),
    "Resize": ("r = Resize(v, , , s)  f = Sub(r, r)  y = Neg(f)", "float[2] v = {1, 2}, int64[1] s = {40000000}"),
    "OneHot": (
        "r = OneHot(i, d, v)  s = Squeeze(r, ax)  f = Sub(s, s)  y = Neg(f)",
        "int64[1] i = {3}, int64[1] d = {40000000}, float[2] v = {0, 1}, int64[1] ax = {0}",
    ),
    "Reshape": ("r = Expand(v, s)  q = Reshape(r, m)  f = Add(q, q)  y = Neg(f)", "float[1] v = {1}, int64[2] s = {6000, 6000}, int64[1] m = {-1}"),
    "Gather": ("r = Range(a, b, c)  f = Gather(t, r)  y = Neg(f)", "float[2] t = {1, 2}, int64 a = {0}, int64 b = {40000000}, int64 c = {1}"),
    "Slice": ("r = Range(a, b, c)  f = Slice(r, s, e)  g = Cast <to = 1> (f)  y = Neg(g)", "int64 a = {0}, int64 b = {40000000}, int64 c = {1}, int64[1] s = {1}, int64[1] e = {30000000}"),
    "Concat": (
        "c0 = Identity(v)" + "".join(f"  c{i + 1} = Concat <axis = 0> (c{i}, c{i})" for i in range(28)) + "  y = Neg(c28)",
        "float[2] v = {1, 2}",
    ),
    "If": (
        "r = If(t) <then_branch = a () => (float[B] p) { p0 = ConstantOfShape(s)  p = Add(p0, p0) }, else_branch = b () => (float[C] q) { q0 = Range(u, e, u)  q1 = Add(q0, q0)  q = Cast <to = 1> (q1) }>  y = Neg(r)",
        "bool t = {1}, int64[1] s = {40000000}, int64 u = {1}, int64 e = {40000000}",
    ),
    "Loop": (
        "r = Loop(n, , v) <body = b (int64 i, bool c, float[1] h) => (bool d, float[1] o) { d = Identity(c)  p0 = ConstantOfShape(s)  p = Add(p0, p0)  o = ReduceSum(p) }>  y = Neg(r)",
        "int64 n = {3}, float[1] v = {1}, int64[1] s = {40000000}",
    ),
    "many": (
        "".join(f"r{i} = ConstantOfShape(s)  a{i} = Add(r{i}, r{i})  b{i} = Neg(a{i})  " for i in range(300)) + "y = Neg(b7)",
        "int64[1] s = {1000}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", BOMBS)
def test_vectors_are_as_long_as_shapes(name, strict, kept):
    nodes, data = BOMBS[name]
    made = model(nodes, data=data)
    infer_with_values(made, check_type=strict, strict_mode=strict)
    assert max(kept) <= propagation._TOGETHER


@pytest.mark.parametrize("name", BOMBS)
def test_reports_are_bounded(name, kept):
    nodes, data = BOMBS[name]
    made = model(f"{nodes}  z = MatMul(x, w)", data=f"{data}, float[3, 2] w = {{1, 2, 3, 4, 5, 6}}")
    made.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["N", 2]))
    for engine in ("onnx", "auto"):
        gradient_report(made, engine=engine)
    assert max(kept) <= propagation._TOGETHER


FEW = {
    "shape arithmetic": (
        "s = Shape(x)  t = Mul(s, two)  q = Slice(t, one, two)  u = Concat <axis = 0> (q, two)  y = ConstantOfShape(u)",
        "float[N, 3] x", "int64[1] one = {1}, int64[1] two = {2}", {"y": [6, 2]},
    ),
    "names": (
        "s = Shape(x)  n = Gather(s, zero)  u = Unsqueeze(n, zero)  v = Concat <axis = 0> (u, two)  y = ConstantOfShape(v)",
        "float[N, 3] x", "int64 zero = {0}, int64[1] two = {2}", {"y": ["N", 2]},
    ),
    "behind a Reshape": (
        "s = Shape(x)  a = Reshape(x, s)  b = Add(a, v)  t = Shape(b)  y = Reshape(b, t)",
        "float[N, 3] x", "float[3] v = {1, 2, 3}", {"a": ["N", 3], "y": ["N", 3]},
    ),
    "beside a long one": (
        "s = Shape(x)  long = ConstantOfShape(many)  twice = Add(long, long)  a = Reshape(x, s)  r = ReduceSum <keepdims = 0> (twice)  y = Mul(a, r)",
        "float[N, 3] x", "int64[1] many = {40000000}", {"long": [40000000], "twice": [40000000], "a": ["N", 3], "y": ["N", 3]},
    ),
    "of a length that is computed": (
        "h = Mul(s, s)  r = ConstantOfShape(h)  f = Add(r, r)  g = Cast <to = 7> (f)  y = ConstantOfShape(g)",
        "float[N, 3] x", "int64[1] s = {2}", {"f": [4], "g": [4]},
    ),
    "long and computed": (
        "h = Mul(s, s)  r = ConstantOfShape(h)  f = Add(r, r)  g = Cast <to = 7> (f)  y = Concat <axis = 0> (g, g)",
        "float[N, 3] x", "int64[1] s = {6000}", {"f": [36_000_000], "g": [36_000_000], "y": [72_000_000]},
    ),
    "positions": (
        "s = Shape(x)  n = Gather(s, one)  r = Range(zero, n, one)  u = Unsqueeze(r, axis)  f = Cast <to = 1> (u)  q = Gather(s, axis)  c = ConstantOfShape(q)  y = Add(f, c)",
        "float[N, S, 3] x", "int64 zero = {0}, int64 one = {1}, int64[1] axis = {0}", {"c": ["N"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FEW)
def test_sizes_that_need_values(name, kept):
    nodes, given, data, expected = FEW[name]
    made = model(nodes, given, "float y" if name == "of a length that is computed" else "float[A] y", data)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    if "g" in expected and "y" in expected:
        made.graph.output[0].type.tensor_type.elem_type = 7
    found = infer_with_values(made)
    assert {k: v for k, v in shapes(found).items() if k in expected} == expected
    assert max(kept) <= propagation._TOGETHER


def test_nodes_stay_what_they_are():
    nodes, data = BOMBS["If"]
    made = model(nodes, data=data)
    found = infer_with_values(made)
    assert list(found.opset_import) == list(made.opset_import)

    def kinds(graph):
        return [
            (n.op_type, n.domain, list(n.input), list(n.output), [kinds(a.g) for a in n.attribute if a.HasField("g")])
            for n in graph.node
        ]  # fmt: skip

    assert kinds(found.graph) == kinds(made.graph)


def test_declared_sizes_are_not_believed(kept):
    """A file may say of a vector of millions that it has three elements; then onnx takes it for three as well."""
    nodes, data = BOMBS["ConstantOfShape"]
    made = model(nodes, data=f"{data}, float[3] r, float[3] f")
    infer_with_values(made)
    with pytest.raises(onnx.shape_inference.InferenceError):
        infer_with_values(made, check_type=True, strict_mode=True)
    made = model(nodes, data=f"{data}, float[K] r, float[K] f")
    infer_with_values(made)
    assert max(kept) <= propagation._TOGETHER


def test_operators_that_keep_values_are_known():
    """Every operator that this onnx computes values with is one of those whose lengths are followed."""
    schemas = onnx.defs.get_all_schemas()
    found = {s.name for s in schemas if s.has_data_propagation_function and s.domain == ""}
    assert found == {"Concat", "Slice", "Squeeze", "Unsqueeze", *propagation._READ}


def test_a_slice_whose_start_is_not_known_does_not_start_at_the_first():
    text = "r = Reshape(x, s) h = Shape(r) n = Sub(h, one) m = Min(n, one) c = Concat<axis = 0>(one, n) t = Slice(c, m, two) y = Reshape(x, t)"
    found = infer_with_values(
        model(text, "float[3, 4] x, int64[1] s", "float y", "int64[1] one = {1}, int64[1] two = {2}")
    )
    assert shapes(found)["y"] in ([], [""])


def test_an_input_that_is_an_output_keeps_its_shape():
    proto = model("a = MatMul(x, w) y = Neg(a)", "float[N, 2] x", "float y", "float[2, 2] w = {1, 2, 3, 4}")
    proto.graph.output.add().CopyFrom(proto.graph.input[0])
    assert [[str(d) for d in n.outputs[0].shape] for n in prepare(proto).graph] == [["N", "2"], ["N", "2"]]
