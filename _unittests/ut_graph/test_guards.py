"""What would end the process is an error, or has the result that it has by definition."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcustom import gradient_graph
from onnxcustom.exceptions import OnnxCustomError
from onnxcustom.graph import prepare, to_ir, to_proto
from onnxcustom.graph.preparation.guards import guard
from onnxcustom.runtime import create_session, run_values, to_ortvalue
from onnxcustom.step.inference import guarded

from ..processes import in_child, needs_fork


def session(op: str, dtype: type, divisor: np.ndarray | None = None):
    """y = a op d, both inputs unless the divisor is given."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info("a", kind, ["N", 3])]
    inputs += [helper.make_tensor_value_info("d", kind, [3])] if divisor is None else []
    tensors = [] if divisor is None else [onnx.numpy_helper.from_array(divisor, "d")]
    y = helper.make_tensor_value_info("y", kind, ["N", 3])
    graph = helper.make_graph([helper.make_node(op, ["a", "d"], ["y"], name="n")], "g", inputs, [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return create_session(to_proto(prepare(model)), threads=1)


def run(made, **feeds: np.ndarray) -> np.ndarray:
    return run_values(made, {n: to_ortvalue(v) for n, v in feeds.items()}, ["y"])[0].numpy()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_division_of_integers(op, dtype):
    made = session(op, dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    a = np.array([[low, high, 7], [-7, low + 1, 0]], dtype)
    rows = [[int(v) for v in row] for row in a]
    by = [3, 5, -1]
    if op == "Div":
        wanted = [
            [abs(x) // abs(d) * (1 if x * d > 0 else -1) for x, d in zip(r, by, strict=False)] for r in rows
        ]
    else:
        wanted = [[x % d for x, d in zip(r, by, strict=False)] for r in rows]
    assert run(made, a=a, d=np.array(by, dtype)).tolist() == wanted
    assert run(made, a=a[:0], d=np.array(by, dtype)).shape == (0, 3)
    with pytest.raises(OnnxCustomError, match="integer division by zero"):
        run(made, a=a, d=np.array([1, 0, 1], dtype))
    by_minus_one = np.array([-1, 1, 1], dtype)
    if op == "Div":
        with pytest.raises(OnnxCustomError, match="overflow"):
            run(made, a=a, d=by_minus_one)
    else:
        assert run(made, a=a, d=by_minus_one)[0, 0] == 0


@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_constants(op):
    with pytest.raises(OnnxCustomError, match=r"division by zero|out of data bounds"):
        # Some onnxruntime compute what is constant when the session is made.
        run(session(op, np.int64, np.array([2, 0, 1])), a=np.ones((2, 3), np.int64))
    text = f"g (int64[N] a) => (int64[N] y) <int64 d = {{2}}> {{ y = {op}(a, d) }}"
    plain = prepare(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'))
    assert [node.op_type for node in plain.graph] == [op]


def test_lower_bound_before_quantization():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (uint8[N] y)
        <float low = {0}, float s = {0.1}, uint8 z = {0}> { c = Clip(x, low) y = QuantizeLinear(c, s, z) }"""
    )
    made = create_session(to_proto(prepare(model)), threads=1)
    assert run(made, x=np.array([-1, 2, 7, np.inf], np.float32)).tolist() == [0, 20, 70, 255]


# -- what ends the process while a session is made -----------------------------------------------------


def one_node(op: str, inputs: dict, outputs: list[str], opset: int = 17, **attributes) -> onnx.ModelProto:
    """A model of one node; inputs by name with their type and shape, the first named output handed out."""
    infos = [helper.make_tensor_value_info(name, *given) for name, given in inputs.items()]
    node = helper.make_node(op, list(inputs), outputs, **attributes)
    y = helper.make_tensor_value_info(next(o for o in outputs if o), onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", infos, [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def plain(model: onnx.ModelProto, feeds: dict) -> list:
    """What a session of somebody else's computes, as lists."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    made = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(v).tolist() for v in made.run(None, feeds)]


@needs_fork
@pytest.mark.parametrize("made", [lambda m: to_proto(prepare(m)), guarded], ids=["prepare", "guarded"])
@pytest.mark.parametrize("rank", [["N", 1, "H", "W"], None])
def test_max_unpool_with_indices_of_unknown_rank(rank, made):
    if rank is None and made is not guarded:
        pytest.skip("data of unknown rank is refused")
    inputs = {"x": (onnx.TensorProto.FLOAT, rank), "i": (onnx.TensorProto.INT64, None)}
    model = one_node("MaxUnpool", inputs, ["y"], kernel_shape=[2, 2], strides=[2, 2])
    x = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 2, 2)
    i = np.array([0, 3, 13, 10]).reshape(x.shape)
    wanted = np.zeros(16)
    wanted[i.ravel()] = x.ravel()
    (found,) = in_child(lambda: plain(made(model), {"x": x, "i": i}))
    assert np.ravel(found).tolist() == wanted.tolist()


@needs_fork
@pytest.mark.parametrize("made", [lambda m: to_proto(prepare(m)), guarded], ids=["prepare", "guarded"])
@pytest.mark.parametrize("outputs", [["a", "", "c"], ["", "b", ""], ["a", "", ""]], ids=" ".join)
def test_split_without_names_for_parts(outputs, made):
    model = one_node("Split", {"x": (onnx.TensorProto.FLOAT, ["N", 6])}, outputs, 13, axis=1)
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    first = next(k for k, name in enumerate(outputs) if name)
    (found,) = in_child(lambda: plain(made(model), {"x": x}))
    assert found == np.split(x, 3, axis=1)[first].tolist()


@pytest.mark.parametrize("outputs", [["u", "", "i"], ["u", "k", "i"]], ids=["unnamed", "unused"])
def test_outputs_before_others_of_a_node_of_constants(outputs):
    """onnxruntime up to 1.19 computes it beforehand, and fails where one is not there."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (int64[N] x) => (int64[M] y, int64[N] z)
            <int64[3] c = {5, 2, 5}> {
            u, k, i = Unique <sorted = 1> (c)
            y = Gather (u, i)
            z = Neg (x)
        }"""
    )
    model.graph.node[0].output[:] = outputs
    made = to_proto(prepare(model))
    assert plain(made, {"x": np.array([3])}) == [[5, 2, 5], [-3]]


def test_optional_outputs_stay_without_a_name():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[1, 1, 4] x, bool c) => (float[1, 1, 2] y) {
            p, i = MaxPool <kernel_shape = [2], strides = [2]> (x)
            y, n = If (c) <
                then_branch = t () => (float[1, 1, 2] a, float[1, 1, 2] b) { a = Neg(p) b = Abs(p) },
                else_branch = e () => (float[1, 1, 2] d, float[1, 1, 2] f) { d = Abs(p) f = Neg(p) }>
        }"""
    )
    for node in model.graph.node:
        node.output[1] = ""
    made = prepare(model)
    assert [sum(bool(v.name) for v in node.outputs) for node in made.graph] == [1, 2]
    x = np.array([[[1, 3, 2, 0]]], np.float32)
    assert plain(to_proto(made), {"x": x, "c": np.array(True)}) == [[[[-3, -2]]]]


@needs_fork
def test_layer_normalization_without_bias_in_a_graph_handed_out():
    """Read several times it is what a fusion of onnxruntime 1.17 looks for."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y)
        <float[4] s = {1, 2, 3, 4}> { n = LayerNormalization(x, s) t = Tanh(n) e = Exp(n) y = Mul(t, e) }"""
    )
    made = gradient_graph(model, engine="onnx")
    assert all(len(n.input) == 3 for n in made.graph.node if n.op_type == "LayerNormalization")
    x, s = np.array([[1, -1, 2, 0.5]], np.float32), np.arange(1, 5, dtype=np.float32)
    found = in_child(lambda: plain(made, {"x": x, "s": s, "y_grad": np.ones_like(x)}))
    n = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * s
    np.testing.assert_allclose(found[2], np.tanh(n) * np.exp(n), rtol=1e-4)


# -- models that are run as they are -------------------------------------------------------------------


def test_a_model_without_anything_to_guard_is_left_alone():
    text = "g (float[N] x, int64[N] i) => (float[N] y) <float d = {0}> { q = Div(x, d) y = Neg(q) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    before = model.SerializeToString()
    assert not guard(to_ir(model))
    assert guarded(model).SerializeToString() == before


@needs_fork
@pytest.mark.parametrize("place", ["graph", "branch", "function"])
def test_division_in_a_model_that_is_run_as_it_is(place):
    division = {
        "graph": "y = Div(a, d)",
        "branch": "c = Constant <value = bool {1}> () y = If (c) <then_branch = t () => (int64[N] p) "
        "{ p = Div(a, d) }, else_branch = e () => (int64[N] q) { q = Identity(a) }>",
        "function": "y = local.halve(a, d)",
    }[place]
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (int64[N] a, int64[N] d) => (int64[N] y) {{ {division} }}
        <domain: "local", opset_import: ["": 17]> halve (p, q) => (r) {{ r = Div(p, q) }}"""
    )

    def work() -> list:
        made = create_session(guarded(model), threads=1)
        a = np.array([7, -7])
        # Some onnxruntime put the branch in the place of the If, and call the node in it by a name of theirs.
        with pytest.raises(OnnxCustomError, match=r"integer division by zero|out of data bounds|looks up 1"):
            run(made, a=a, d=np.array([1, 0]))
        return run(made, a=a, d=np.array([2, 2])).tolist()

    assert in_child(work) == [3, -3]
