# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Each step of prepare alone: ONNX text in, structure out, results unchanged."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import load, to_ir, to_proto
from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.preparation import passes
from onnxcustom.graph.preparation.sites import site_of, tag
from onnxcustom.graph.preparation.unused import RemoveUnusedPass

onnxruntime = pytest.importorskip("onnxruntime")


def parse(body, opset=18, ir_version=8, extra=""):
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}{extra}]> {body}')


def run(model, **feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def apply(one, model, **feeds):
    """The model after a pass, checked and, with feeds, compared."""
    ir_model = to_ir(model)
    tag(ir_model)
    result = one(ir_model)
    after = to_proto(result.model)
    onnx.checker.check_model(after, full_check=True)
    if feeds:
        for left, right in zip(run(model, **feeds), run(after, **feeds), strict=True):
            np.testing.assert_array_equal(left, right)
    return result.model, result.modified


def operators(model):
    return [node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph)]


X = np.array([[1, -2], [3, 0.5]], dtype=np.float32)

FUNCTION = """
<ir_version: 8, opset_import: ["": 18, "local": 1]>
g (float[N, 2] x) => (float[N, 2] y) { a = local.affine(x)  y = local.affine(a) }
<domain: "local", opset_import: ["": 18]>
affine (v) => (r) { w = Constant <value = float[2] {2, 3}> ()  m = Mul(v, w)  r = Relu(m) }
"""


def test_inline_functions():
    model = onnx.parser.parse_model(FUNCTION)
    after, modified = apply(passes.InlineFunctionsPass(), model, x=X)
    assert modified
    assert not after.functions
    assert operators(after) == ["Constant", "Mul", "Relu"] * 2
    assert not apply(passes.InlineFunctionsPass(), to_proto(after))[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: (
                m.functions[0].node[0].CopyFrom(onnx.helper.make_node("affine", ["v"], ["w"], domain="local"))
            ),
            "yclic",
        ),
        (lambda m: m.functions[0].opset_import[0].__setattr__("version", 17), "Opset mismatch"),
    ],
    ids=["calls itself", "other opset"],
)
def test_inline_functions_refuses(change, message):
    model = onnx.parser.parse_model(FUNCTION)
    change(model)
    with pytest.raises(InvalidModelError, match=message):
        passes.InlineFunctionsPass()(ir.from_proto(model))


def test_unused_function_is_dropped():
    model = onnx.parser.parse_model(FUNCTION)
    model.functions[0].name = "other"
    for node in model.graph.node:
        node.CopyFrom(onnx.helper.make_node("Relu", node.input, node.output))
    assert not apply(passes.InlineFunctionsPass(), model)[0].functions


def test_merge_shared_constants():
    ir_model = to_ir(onnx.parser.parse_model(FUNCTION))
    tag(ir_model)
    for one in (passes.InlineFunctionsPass(), passes.LiftConstantsPass()):
        one(ir_model)
    assert len(ir_model.graph.initializers) == 2
    assert passes.MergeSharedConstantsPass()(ir_model).modified
    assert list(ir_model.graph.initializers) == ["w"]
    assert operators(ir_model) == ["Mul", "Relu"] * 2
    np.testing.assert_array_equal(
        run(to_proto(ir_model), x=X)[0], run(onnx.parser.parse_model(FUNCTION), x=X)[0]
    )


def test_fold_constant_of_shape():
    model = parse(
        """g (float[N, 2] x) => (float[N, 2] y, int64[3] z, float[M] d) <int64[1] s = {2}, int64[1] e = {0}> {
        w = ConstantOfShape <value = float[1] {1.5}> (s)  y = Mul(x, w)
        i = Constant <value_ints = [3]> ()  z = ConstantOfShape <value = int64[1] {4}> (i)
        n = Shape <start = 0, end = 1> (x)  d = ConstantOfShape(n)
        }"""
    )
    after, modified = apply(passes.FoldConstantsPass(), model, x=X)
    assert modified
    assert operators(after).count("ConstantOfShape") == 1


def test_fold_leaves_huge_tensors():
    model = parse("g () => (float[2000000000] y) <int64[1] s = {2000000000}> { y = ConstantOfShape(s) }")
    assert not apply(passes.FoldConstantsPass(), model)[1]


@pytest.mark.parametrize("attribute", ['value_string = "é"', 'value_strings = ["é", "b"]'])
def test_string_constants(attribute):
    model = parse(f"g () => (string[N] y) {{ c = Constant <{attribute}> ()  y = Identity(c) }}")
    if "strings" not in attribute:
        model.graph.output[0].type.tensor_type.shape.ClearField("dim")
    ir_model, modified = apply(passes.FoldConstantsPass(), model)
    assert modified
    after = to_proto(passes.LiftConstantsPass()(ir_model).model)
    np.testing.assert_array_equal(run(after)[0], run(model)[0])


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value = float[2] {1, 2}", [1, 2]), ("value_float = 3.0", 3), ("value_floats = [1.0, 2.0]", [1, 2]),
        ("value_int = 5", 5), ("value_ints = [1, 2]", [1, 2]),
    ],
)  # fmt: skip
def test_lift_constants(attribute, expected):
    model = to_ir(parse(f"g () => (float[N] y) {{ c = Constant <{attribute}> ()  y = Cast <to = 1> (c) }}"))
    assert constant_array(model.graph.node(1).inputs[0]).tolist() == expected
    passes.LiftConstantsPass()(model)
    assert operators(model) == ["Cast"]
    assert model.graph.initializers["c"].const_value.numpy().tolist() == expected


def test_constant_array():
    model = to_ir(
        parse(
            "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { i = Identity(w)  j = Identity(i)  y = Add(x, j) }"
        )
    )
    add = model.graph.node(-1)
    assert constant_array(add.inputs[0]) is None
    np.testing.assert_array_equal(constant_array(add.inputs[1]), [1, 2])
    assert constant_array(add.outputs[0]) is None
    assert constant_array(None) is None


def test_separate_outputs():
    model = parse(
        """g (float[N, 2] x, bool c) => (float[N, 2] y, float[2] w, float[2] k) <float[2] w = {1, 2}> {
        k = Constant <value = float[2] {3, 4}> ()
        b = If (c) <then_branch = t () => (float[2] p) { p = Constant <value = float[2] {5, 6}> () },
                    else_branch = e () => (float[2] q) <float[2] q = {7, 8}> { }>
        s = Mul(w, k)  r = Mul(s, b)  y = Mul(x, r)
        }"""
    )
    # A branch whose output is an initializer is beyond some versions of onnxruntime: only the rest is run.
    after, modified = apply(passes.SeparateOutputsPass(), model)
    assert modified
    assert [v.name for v in after.graph.outputs] == ["y", "w", "k"]
    assert list(after.graph.initializers) == ["w_value"]
    branches = [
        a.as_graph() for n in after.graph for a in n.attributes.values() if a.type == ir.AttributeType.GRAPH
    ]
    assert [[v.name for v in b.outputs] for b in branches] == [["p_output"], ["q_output"]]
    assert list(branches[1].initializers) == ["q"]
    for flag in (True, False):
        expected = X * np.array([1, 2]) * np.array([3, 4]) * (np.array([5, 6]) if flag else np.array([7, 8]))
        np.testing.assert_array_equal(run(to_proto(after), x=X, c=np.array(flag))[0], expected)
    assert not apply(passes.SeparateOutputsPass(), to_proto(after))[1]


def test_bypass_identity():
    model = parse(
        """g (float[N, 2] x, bool c) => (float[N, 2] y, float[N, 2] z, float[2] u) <float[2] w = {1, 2}> {
        i = Identity(w)  j = Identity(i)  m = Mul(x, j)  z = Identity(m)  u = Identity(w)
        y = If (c) <then_branch = t () => (float[N, 2] p) { p = Identity(m) },
                    else_branch = e () => (float[N, 2] q) { k = Identity(x)  q = Neg(k) }>
        }"""
    )
    for flag in (True, False):
        after, modified = apply(passes.BypassIdentityPass(), model, x=X, c=np.array(flag))
    assert modified
    assert operators(after) == ["Mul", "Identity", "Identity", "If", "Identity", "Neg"]
    assert after.graph.node(0).inputs[1].name == "w"
    assert not apply(passes.BypassIdentityPass(), to_proto(after))[1]


def test_bypass_identity_keeps_the_shape_of_a_scalar():
    model = parse(
        """g (float[N, 2] x, float s) => (float[N, 2] y) {
        i = Identity(s)  y = Mul(x, i)
        }"""
    )
    ir_model = to_ir(model)
    ir_model.graph.node(0).outputs[0].shape = None
    passes.BypassIdentityPass()(ir_model)
    assert ir_model.graph.inputs[1].shape == ir.Shape([])


def test_outputs_that_are_copies_keep_their_names():
    """Also where two are copies of one tensor, where a branch hands one out, and copies of no node's output."""
    model = parse("""g (float[2] x, bool c) => (float[2] a, float[2] b, float[2] d, float[2] e) {
        h = Neg(x)  i = Identity(h)  a = Identity(i)  b = Identity(h)  d = Identity(x)  k = Abs(i)  m = Identity(k)
        e = If (c) <then_branch = t () => (float[2] p) { p = Identity(m) },
                    else_branch = f () => (float[2] q) { q = Exp(m) }> }""")
    own = to_ir(model)
    assert passes.bypass_identities(list(own.graph), rename=True)
    made = to_proto(own)
    assert [v.name for v in made.graph.output] == ["a", "b", "d", "e"]
    assert operators(own) == ["Neg", "Identity", "Identity", "Abs", "If", "Identity", "Exp"]
    for flag in (True, False):
        feeds = {"x": np.array([1, -2], np.float32), "c": np.array(flag)}
        for wanted, found in zip(run(model, **feeds), run(made, **feeds), strict=True):
            np.testing.assert_array_equal(wanted, found)


def test_unique_names():
    model = parse(
        """g (float[N, 2] x, bool c) => (float[N, 2] y) {
        a = Relu(x)
        y = If (c) <then_branch = t () => (float[N, 2] p) { h = Neg(a)  p = Abs(h) },
                    else_branch = e () => (float[N, 2] p) { h = Abs(a)  p = Neg(h) }>
        }"""
    )
    for flag in (True, False):
        apply(passes.UniqueNamesPass(), model, x=X, c=np.array(flag))
    model.graph.node[0].name = "same"
    model.graph.node[1].name = "same"
    after, modified = apply(passes.UniqueNamesPass(), model)
    assert modified
    nodes = list(ir.traversal.RecursiveGraphIterator(after.graph))
    values = [v.name for n in nodes for v in n.outputs]
    assert values == ["a", "y", "h", "p", "h_1", "p_1"]
    assert [n.name for n in nodes] == ["same", "same_1", "Neg", "Abs", "Abs_1", "Neg_1"]
    assert not apply(passes.UniqueNamesPass(), to_proto(after))[1]


def test_unique_names_leave_omitted_outputs():
    model = parse(
        "g (float[3, 1, 2] x, float[1, 8, 2] w, float[1, 8, 2] r) => (float[1, 1, 2] h)"
        '{ "", h = LSTM <hidden_size = 2> (x, w, r) }'.replace('"", h', "skip, h")
    )
    model.graph.node[0].output[0] = ""
    after, _ = apply(passes.UniqueNamesPass(), model)
    assert after.graph.node(0).outputs[0].name == ""


def test_unique_names_after_many_clashes():
    nodes = " ".join(f"a{i} = If (c) <then_branch = t () => (float[2] h) {{ h = Neg(x) }}, else_branch = e () => (float[2] h) {{ h = Abs(x) }}>" for i in range(200))  # fmt: skip
    outputs = ", ".join(f"float[2] a{i}" for i in range(200))
    after, _ = apply(passes.UniqueNamesPass(), parse(f"g (float[2] x, bool c) => ({outputs}) {{ {nodes} }}"))
    names = [v.name for n in ir.traversal.RecursiveGraphIterator(after.graph) for v in n.outputs]
    assert len(set(names)) == len(names) == 600


@pytest.mark.parametrize("declared", [1, 2, 3])
def test_layer_normalization_outputs(declared):
    outputs = ["y", "m", "s"][:declared]
    model = parse(
        "g (float[N, 2] x, float[2] w, float[2] b) => (float[N, 2] y) { y = LayerNormalization(x, w, b) }"
    )
    del model.graph.node[0].output[:]
    model.graph.node[0].output.extend(outputs)
    feeds = {"x": X, "w": np.float32([1, 2]), "b": np.float32([3, 4])}
    after, modified = apply(passes.DeclareOptionalOutputsPass(), model, **feeds)
    assert modified is (declared < 3)
    names = [v.name for v in after.graph.node(0).outputs]
    assert names[:declared] == outputs
    assert all(names)
    assert len(names) == 3


@pytest.mark.parametrize(("opset", "mask"), [(9, "FLOAT"), (10, "BOOL"), (18, "BOOL")])
def test_dropout_mask(opset, mask):
    model = parse("g (float[N, 2] x) => (float[N, 2] y) { y = Dropout(x) }", opset=opset)
    after, modified = apply(passes.DeclareOptionalOutputsPass(), model, x=X)
    assert modified
    assert [v.name for v in after.graph.node(0).outputs] == ["y", "y_mask"]
    assert after.graph.node(0).outputs[1].dtype.name == mask


def test_dropout_in_a_branch_with_the_name_taken():
    model = parse(
        """g (float[N, 2] x, bool c) => (float[N, 2] y, float[N, 2] p_mask) {
        y = If (c) <then_branch = t () => (float[N, 2] p) { p = Dropout(x) },
                    else_branch = e () => (float[N, 2] q) { q = Neg(x) }>
        p_mask = Abs(x)
        }"""
    )
    after, _ = apply(passes.DeclareOptionalOutputsPass(), model, x=X, c=np.array(True))
    names = [v.name for n in ir.traversal.RecursiveGraphIterator(after.graph) for v in n.outputs]
    assert names == ["y", "p", "p_mask_1", "q", "p_mask"]


def test_infer_shapes():
    model = parse(
        """g (float[N, 2] x, bool c) => (float[M, 3] y, seq(float[K, 2]) s, float[] u) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> {
        m = MatMul(x, w)
        y = If (c) <then_branch = t () => (p) { k = Neg(m)  p = Abs(k) }, else_branch = e () => (q) { q = Neg(m) }>
        s = SequenceConstruct(x, x)
        i = Constant <value = int64 {0}> ()
        a = SequenceAt(s, i)
        u = ReduceSum <keepdims = 0> (a)
        }"""
    )
    ir_model = to_ir(model)
    passes.InferShapesPass()(ir_model)
    values = {v.name: v for n in ir.traversal.RecursiveGraphIterator(ir_model.graph) for v in n.outputs}
    assert str(values["m"].shape) == str(values["k"].shape) == "[N,3]"
    assert isinstance(values["s"].type, ir.SequenceType)
    assert isinstance(values["a"].type, ir.TensorType)
    assert [v.name for v in ir_model.graph.inputs] == ["x", "c"]
    assert list(ir_model.graph.initializers) == ["w"]
    load(to_proto(ir_model))


def test_infer_shapes_of_scalars():
    model = parse("g (float[N, 2] x) => (float[N, 2] y) { m = ReduceMax <keepdims = 0> (x)  y = Sub(x, m) }")
    ir_model = to_ir(model)
    ir_model.graph.node(0).outputs[0].shape = None
    passes.InferShapesPass()(ir_model)
    assert ir_model.graph.node(0).outputs[0].shape == ir.Shape([])


def test_infer_shapes_leaves_out_large_tensors(monkeypatch):
    model = parse("g (float[N, 400] x) => (float[N, 400] y) { a = Add(x, w)  y = Add(a, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(400, dtype=np.float32), "w"))
    seen = []
    infer = onnx.shape_inference.infer_shapes

    def spy(proto, **options):
        seen.append(proto.ByteSize())
        return infer(proto, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", spy)
    ir_model = to_ir(model)
    passes.InferShapesPass()(ir_model)
    assert seen[0] < 1000
    assert str(ir_model.graph.node(0).outputs[0].shape) == "[N,400]"
    assert list(ir_model.graph.initializers) == ["w"]
    assert [v.name for v in ir_model.graph.inputs] == ["x"]


def test_infer_shapes_failing_changes_nothing(monkeypatch):
    def failing(*_args, **_options):
        raise RuntimeError("no")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", failing)
    assert not passes.InferShapesPass()(
        to_ir(parse("g (float[N] x) => (float[N] y) { y = Abs(x) }"))
    ).modified


def test_maps_are_passed_by():
    model = parse(
        "g (float[N, 2] x) => (seq(map(int64, float)) z) { a = Abs(x)  z = ai.onnx.ml.ZipMap <classlabels_int64s = [3, 4]> (a) }",
        extra=', "ai.onnx.ml": 3',
    )
    ir_model = to_ir(model)
    passes.InferShapesPass()(ir_model)
    assert str(ir_model.graph.node(0).outputs[0].shape) == "[N,2]"
    assert run(to_proto(ir_model), x=X)[0] == run(model, x=X)[0]


def test_sites_travel():
    ir_model = to_ir(onnx.parser.parse_model(FUNCTION))
    tag(ir_model)
    copy = ir_model.clone()
    passes.InlineFunctionsPass()(copy)
    passes.LiftConstantsPass()(copy)
    node = next(iter(ir_model.functions.values())).graph.node(0)
    assert {site_of(v).node for v in copy.graph.initializers.values()} == {node}


def test_remove_unused_lets_go_of_what_removed_subgraphs_read():
    model = parse(
        """g (float[N] x, bool c) => (float[N] y) <float[1] w = {2}> {
             a = Abs(x)  b = Mul(a, w)
             dead = If(c) <
               then_branch = t () => (float[N] e) {
                 f = Neg(b)
                 e = If(c) < then_branch = tt () => (float[N] p) { p = Exp(b) },
                             else_branch = te () => (float[N] q) { q = Identity(f) } > },
               else_branch = s () => (float[N] h) { h = Sin(b) } >
             y = Cos(x)
           }"""
    )
    made, modified = apply(RemoveUnusedPass(), model, x=np.ones(2, np.float32), c=np.array(True))
    assert modified
    assert operators(made) == ["Cos"]
    assert list(made.graph.initializers) == []
    assert [v.name for v in made.graph.inputs] == ["x", "c"]


def test_remove_unused_looks_into_subgraphs_that_stay():
    model = parse(
        """g (float[N] x, bool c) => (float[N] y) {
             a = Abs(x)  b = Neg(x)
             y = If(c) <
               then_branch = t () => (float[N] e) {
                 dead = If(c) < then_branch = tt () => (float[N] p) { p = Exp(a) },
                                else_branch = te () => (float[N] q) { q = Identity(a) } >
                 e = Sin(b) },
               else_branch = s () => (float[N] h) { h = Cos(b) } >
           }"""
    )
    made, modified = apply(RemoveUnusedPass(), model, x=np.ones(2, np.float32), c=np.array(True))
    assert modified
    assert operators(made) == ["Neg", "If", "Sin", "Cos"]
    assert not RemoveUnusedPass()(made).modified


# -- rows ------------------------------------------------------------------------------------------------


def named(model):
    """Dimensions of every value."""
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    return {v.name: None if v.shape is None else [getattr(d, "value", d) for d in v.shape] for v in values}


def test_name_rows():
    """A name goes as far as the number of rows does, whatever converters called it in between."""
    model = parse("""g (float[?, 2] x, float[?, 2] u) => (float[?, 3] y, float[?, 2] z) <float[2, 3] w = {1, 2, 3, 4, 5, 6}, int64[2] s = {-1, 6}> {
        a = Relu(x)  y = MatMul(a, w)  b = Abs(u)  c = Reshape(y, s)  z = Add(b, a) }""")
    ir_model = to_ir(onnx.shape_inference.infer_shapes(model))
    for value in (*ir_model.graph.inputs, *ir_model.graph.outputs):
        value.shape = ir.Shape([None, *value.shape[1:]])
    after = passes.NameRowsPass()(ir_model)
    assert after.modified
    shapes = named(after.model)
    assert shapes["x"] == ["rows", 2]
    assert shapes["u"] == [None, 2]
    assert shapes["a"] == ["rows", 2]
    assert shapes["y"] == ["rows", 3]
    assert "rows" not in shapes["c"]
    assert "rows" not in shapes["z"]
    assert not passes.NameRowsPass()(after.model).modified


@pytest.mark.parametrize("first", ["4", "N"])
def test_rows_that_have_a_size_or_a_name(first):
    model = parse(f"g (float[{first}, 2] x) => (float[{first}, 2] y) {{ y = Relu(x) }}")
    after, modified = apply(passes.NameRowsPass(), model)
    assert not modified
    assert str(named(after)["x"][0]) == first


def test_a_name_that_is_taken():
    model = parse("g (float[?, 2] x, float[rows, 2] u) => (float[rows, 2] y) { y = Relu(u)  z = Relu(x) }")
    ir_model = to_ir(model)
    ir_model.graph.inputs[0].shape = ir.Shape([None, 2])
    shapes = named(passes.NameRowsPass()(ir_model).model)
    assert shapes["x"][0] not in (None, "rows")
    assert shapes["z"] == shapes["x"]
    assert shapes["y"] == ["rows", 2]


@pytest.mark.parametrize(
    ("shape", "target", "bypassed"),
    [
        ("N, 2", [-1, 2], True),
        ("2, 2", [2, 2], True),
        ("N, 2", [-1, 1], False),
        ("N, 2", [-1], False),
        ("N, M", [-1, 2], False),
        ("N, 2", [0, 2], False),
    ],
)
def test_bypass_reshape(shape, target, bypassed):
    text = ", ".join(map(str, target))
    model = parse(
        f"g (float[{shape}] x) => (y) <int64[{len(target)}] s = {{{text}}}> {{ a = Abs(x)  b = Reshape(a, s)  y = Neg(b) }}"
    )
    after, modified = apply(passes.BypassReshapePass(), onnx.shape_inference.infer_shapes(model), x=X)
    assert modified == bypassed
    assert operators(after) == ["Abs", "Identity" if bypassed else "Reshape", "Neg"]
