"""Operators replaced by their ONNX function body or by an expansion, against their own kernels."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from bare_gradient import differentiate
from onnx.reference import ReferenceEvaluator

import onnxcustom.gradient.rules.activation
import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.control_flow
import onnxcustom.gradient.rules.convolution
import onnxcustom.gradient.rules.einsum
import onnxcustom.gradient.rules.indexing
import onnxcustom.gradient.rules.linear
import onnxcustom.gradient.rules.microsoft
import onnxcustom.gradient.rules.normalization
import onnxcustom.gradient.rules.reduction
import onnxcustom.gradient.rules.shaping
import onnxcustom.gradient.rules.slicing
import onnxcustom.gradient.rules.softmax  # noqa: F401
from onnxcustom.exceptions import GradientNotImplementedError
from onnxcustom.gradient.expand import expand, expandable, expansion, expansions

MS = "com.microsoft"
rng = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


def node_model(
    op_type: str, inputs: list, attributes: dict, outputs: list[str], domain: str = "", opset: int = 18,
    dtype: type = np.float32, shapes: str = "static", checked: bool = True,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:  # fmt: skip
    """A model of one node and its feeds."""
    arrays = [a if a is None or a.dtype.kind != "f" else a.astype(dtype) for a in inputs]
    names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    feeds = {n: a for n, a in zip(names, arrays, strict=False) if n}
    node = onnx.helper.make_node(op_type, names, outputs, domain=domain, name="node", **attributes)
    elem = onnx.helper.np_dtype_to_tensor_dtype
    shape = {
        "static": lambda n, a: a.shape,
        "dynamic": lambda n, a: [f"{n}_{k}" for k in range(a.ndim)],
        "unranked": lambda n, a: None,
    }[shapes]
    infos = [onnx.helper.make_tensor_value_info(n, elem(a.dtype), shape(n, a)) for n, a in feeds.items()]
    made = [onnx.helper.make_tensor_value_info(o, elem(np.dtype(dtype)), None) for o in outputs if o]
    graph = onnx.helper.make_graph([node], "g", infos, made)
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(MS, 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10), feeds


def run(model: onnx.ModelProto, feeds: dict, optimize: bool = False) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = {i.name for i in session.get_inputs()}
    values = session.run(None, {k: v for k, v in feeds.items() if k in names})
    return dict(zip([o.name for o in session.get_outputs()], values, strict=False))


def reference(model: onnx.ModelProto, feeds: dict) -> dict[str, np.ndarray]:
    evaluator = ReferenceEvaluator(model)
    values = evaluator.run(None, {k: v for k, v in feeds.items() if k in evaluator.input_names})
    return dict(zip(evaluator.output_names, values, strict=False))


def expanded(model: onnx.ModelProto) -> ir.Model:
    made = ir.from_proto(model)
    assert expand(made)
    return made


CONV = {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1]}
MICROSOFT = {
    "FusedMatMul": [
        ([r(2, 3), r(3, 4)], {}),
        ([r(2, 3), r(3, 4)], {"alpha": 0.5}),
        ([r(3, 2), r(4, 3)], {"transA": 1, "transB": 1, "alpha": 2.0}),
        ([r(2, 5, 3), r(2, 4, 3)], {"transB": 1}),
        ([r(2, 3, 5), r(3, 4)], {"transA": 1}),
        ([r(3, 2, 5), r(2, 5, 4)], {"transBatchA": 1}),
        ([r(2, 3, 5), r(4, 2, 5)], {"transBatchB": 1, "transB": 1}),
        ([r(2, 3, 2, 5), r(3, 2, 4, 5)], {"transBatchA": 1, "transB": 1}),
        ([r(5, 2, 3), r(2, 5, 4)], {"transBatchA": 1, "transA": 1}),
    ],
    "FusedGemm": [
        ([r(2, 3), r(3, 4), r(4)], {"activation": "Relu"}),
        (
            [r(3, 2), r(4, 3), r(2, 4)],
            {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0, "activation": "Sigmoid"},
        ),
        ([r(2, 3), r(3, 4), r(4)], {"activation": "LeakyRelu", "activation_alpha": 0.3}),
        ([r(2, 3), r(3, 4)], {"activation": "Tanh"}),
    ],
    "FusedConv": [
        ([r(1, 2, 4, 4), r(3, 2, 2, 2), r(3)], {**CONV, "activation": "Relu"}),
        ([r(1, 2, 4, 4), r(3, 2, 2, 2)], {**CONV, "activation": "Tanh"}),
        ([r(1, 2, 4, 4), r(3, 2, 2, 2), r(3), r(1, 3, 4, 4)], {**CONV, "activation": "Relu"}),
        (
            [r(1, 2, 4, 4), r(3, 2, 2, 2), r(3)],
            {**CONV, "activation": "LeakyRelu", "activation_params": [0.2]},
        ),
        (
            [r(1, 2, 4, 4), r(3, 2, 2, 2), r(3)],
            {**CONV, "activation": "Clip", "activation_params": [-0.5, 0.5]},
        ),
        (
            [r(1, 2, 4, 4), r(3, 2, 2, 2), r(3)],
            {**CONV, "activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
        ),
    ],
    "Gelu": [([r(2, 3)], {})],
    "BiasGelu": [([r(2, 3), r(3)], {})],
    "FastGelu": [([r(2, 3)], {}), ([r(2, 3), r(3)], {})],
    "QuickGelu": [([r(2, 3)], {}), ([r(2, 3)], {"alpha": 0.7})],
    "SkipLayerNormalization": [
        ([r(2, 3, 4), r(2, 3, 4), r(4), r(4), r(4)], {"epsilon": 1e-3}),
        ([r(2, 3, 4), r(2, 3, 4), r(4)], {}),
        ([r(2, 3, 4), r(1, 3, 4), r(4), r(4)], {}),
        ([r(2, 3, 4), r(2, 3, 4), r(4), None, r(4)], {}),
    ],
    "SkipSimplifiedLayerNormalization": [
        ([r(2, 3, 4), r(2, 3, 4), r(4)], {"epsilon": 1e-3}),
        ([r(2, 3, 4), r(2, 3, 4), r(4)], {}),
    ],
    "SimplifiedLayerNormalization": [
        ([r(2, 3, 4), r(4)], {"axis": -1, "epsilon": 1e-3}),
        ([r(2, 3, 4), r(3, 4)], {"axis": 1}),
    ],
}
ROWS = [
    pytest.param(op_type, i, shapes, opset, id=f"{op_type}-{i}-{shapes}-{opset}")
    for op_type, rows in MICROSOFT.items()
    for i in range(len(rows))
    for shapes, opset in (("static", 18), ("dynamic", 18), ("static", 20))
]


def check_gradient(
    model: onnx.ModelProto, made: ir.Model, feeds: dict, evaluate, tolerance: float, step: float
) -> None:
    """The gradient of the expanded model against finite differences of the model itself."""
    names = [n for n, a in feeds.items() if a.dtype.kind == "f"]
    outputs = [o.name for o in model.graph.output]
    gradient = ir.to_proto(differentiate(made, names, outputs))
    generator = np.random.default_rng(1)
    values = evaluate(model, feeds)
    seeds = {f"{o}_grad": generator.normal(size=v.shape).astype(v.dtype) for o, v in values.items()}
    found = evaluate(gradient, {**feeds, **seeds})
    for name in names:
        direction = generator.normal(size=feeds[name].shape).astype(feeds[name].dtype)
        sides = []
        for sign in (step, -step):
            moved = evaluate(model, {**feeds, name: (feeds[name] + sign * direction).astype(direction.dtype)})
            sides.append(sum(np.sum(np.float64(seeds[f"{o}_grad"]) * moved[o]) for o in outputs))
        expected = (sides[0] - sides[1]) / (2 * step)
        value = found[f"{name}_grad"]
        assert value.shape == feeds[name].shape
        scale = max(abs(expected), np.linalg.norm(value), 1e-2)
        assert abs(np.sum(np.float64(direction) * value) - expected) < tolerance * scale, name


@pytest.mark.parametrize(("op_type", "row", "shapes", "opset"), ROWS)
def test_microsoft(op_type: str, row: int, shapes: str, opset: int) -> None:
    inputs, attributes = MICROSOFT[op_type][row]
    domain = "" if op_type == "SimplifiedLayerNormalization" else MS
    model, feeds = node_model(op_type, inputs, attributes, ["y"], domain, opset, shapes=shapes)
    made = expanded(model)
    assert not any(node.domain == MS for node in made.graph)
    proto = ir.to_proto(made)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    np.testing.assert_allclose(run(proto, feeds)["y"], run(model, feeds)["y"], rtol=1e-4, atol=1e-5)
    check_gradient(model, made, feeds, run, 2e-2, 2e-3)


def test_every_expansion_is_tested() -> None:
    untested = {"TransposeMatMul", "LayerNormalization"}  # older spellings without a kernel
    assert {op_type for _, op_type in expansions()} - untested == set(MICROSOFT)


@pytest.mark.parametrize(
    ("op_type", "inputs", "outputs"),
    [
        ("SkipLayerNormalization", [r(2, 3, 4), r(2, 3, 4), r(4), r(4), r(4)], ["y", "", "", "s"]),
        ("SkipSimplifiedLayerNormalization", [r(2, 3, 4), r(2, 3, 4), r(4)], ["y", "", "", "s"]),
    ],
)
def test_further_outputs(op_type: str, inputs: list, outputs: list[str]) -> None:
    model, feeds = node_model(op_type, inputs, {}, outputs, MS)
    made = expanded(model)
    expected, found = run(model, feeds), run(ir.to_proto(made), feeds)
    for name in ("y", "s"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    check_gradient(model, made, feeds, run, 2e-2, 2e-3)


def test_bias_of_skip_simplified_layer_normalization() -> None:
    """The kernel of onnxruntime 1.19 leaves the bias out, against its documentation."""
    x, skip, gamma, bias = inputs = [r(2, 3, 4), r(2, 3, 4), r(4), r(4)]
    model, feeds = node_model("SkipSimplifiedLayerNormalization", inputs, {}, ["y"], MS, dtype=np.float64)
    total = x + skip + bias
    expected = total / np.sqrt(np.mean(total**2, axis=-1, keepdims=True) + 1e-12) * gamma
    np.testing.assert_allclose(run(ir.to_proto(expanded(model)), feeds)["y"], expected, rtol=1e-9)


@pytest.mark.parametrize("shapes", ["static", "dynamic", "unranked"])
def test_inverse_has_a_rule(shapes: str) -> None:
    model, feeds = node_model(
        "Inverse", [r(2, 3, 3) + 3 * np.eye(3)], {}, ["y"], MS, dtype=np.float64, shapes=shapes
    )
    made = ir.from_proto(model)
    assert not expand(made)
    check_gradient(model, made, feeds, run, 1e-6, 1e-5)


def test_unknown_ranks() -> None:
    inputs, attributes = MICROSOFT["FusedMatMul"][2]
    model, feeds = node_model("FusedMatMul", inputs, attributes, ["y"], MS, shapes="unranked")
    made = expanded(model)
    np.testing.assert_allclose(run(ir.to_proto(made), feeds)["y"], run(model, feeds)["y"], rtol=1e-5)
    model, _ = node_model(
        "FusedMatMul", [r(3, 2, 5), r(2, 5, 4)], {"transBatchA": 1}, ["y"], MS, shapes="unranked"
    )
    with pytest.raises(GradientNotImplementedError, match="rank"):
        expand(ir.from_proto(model))


CHAIN = """
<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
g (double[N, 3] x, double[3, 3] w, bool c) => (double[N, 3] y) {
  a = com.microsoft.FusedMatMul <alpha = 0.5> (x, w)
  b = Relu(a)
  d = com.microsoft.FusedMatMul <transB = 1, alpha = 0.25> (b, b)
  e = MatMul(d, x)
  y = If (c) <
    then_branch = yes () => (double[N, 3] t) { t = com.microsoft.FusedMatMul <alpha = 2.0> (e, w) },
    else_branch = no () => (double[N, 3] f) { f = com.microsoft.QuickGelu (e) }
  >
}"""


@pytest.mark.parametrize("condition", [True, False])
def test_chain_and_subgraphs_in_float64(condition: bool) -> None:
    """Constants take the operand's dtype behind operators whose output onnx cannot infer."""
    made = ir.from_proto(onnx.parser.parse_model(CHAIN))
    assert expand(made) == {(MS, "FusedMatMul"), (MS, "QuickGelu")}
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    feeds = {"x": r(2, 3), "w": r(3, 3), "c": np.array(condition)}
    a = np.maximum(0.5 * feeds["x"] @ feeds["w"], 0)
    e = 0.25 * a @ a.T @ feeds["x"]
    expected = 2 * e @ feeds["w"] if condition else e / (1 + np.exp(-1.702 * e))
    np.testing.assert_allclose(run(proto, feeds)["y"], expected, rtol=1e-9)
    check_gradient(proto, made, feeds, run, 1e-6, 1e-5)


def test_two_nodes_alike_get_names_of_their_own() -> None:
    text = """
<ir_version: 11, opset_import: ["": 23]>
g (float[B, 2, S, 4] x, float[B, S, 2] c, float[B, S, 2] s) => (float[B, 2, S, 4] y) {
  a = RotaryEmbedding(x, c, s)
  y = RotaryEmbedding(a, c, s)
}"""
    model = onnx.parser.parse_model(text)
    feeds = {k: v.astype(np.float32) for k, v in (("x", r(2, 2, 3, 4)), ("c", r(2, 3, 2)), ("s", r(2, 3, 2)))}
    made = expanded(model)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    check_gradient(model, made, feeds, reference, 2e-2, 2e-3)


# -- function bodies -------------------------------------------------------------------------------

ATTENTION = {
    "plain": ([r(2, 2, 3, 4), r(2, 2, 5, 4), r(2, 2, 5, 3)], {}, ["y"]),
    "3-D": ([r(2, 3, 8), r(2, 5, 8), r(2, 5, 6)], {"q_num_heads": 2, "kv_num_heads": 2}, ["y"]),
    "groups": ([r(2, 4, 3, 4), r(2, 2, 5, 4), r(2, 2, 5, 3)], {}, ["y"]),
    "3-D groups": ([r(2, 3, 16), r(2, 5, 8), r(2, 5, 6)], {"q_num_heads": 4, "kv_num_heads": 2}, ["y"]),
    "scale": ([r(2, 2, 3, 4), r(2, 2, 5, 4), r(2, 2, 5, 3)], {"scale": 0.3}, ["y"]),
    "causal": ([r(1, 2, 3, 4), r(1, 2, 3, 4), r(1, 2, 3, 3)], {"is_causal": 1}, ["y"]),
    "softcap": ([r(1, 2, 3, 4), r(1, 2, 5, 4), r(1, 2, 5, 3)], {"softcap": 2.0}, ["y"]),
    "mask": ([r(1, 2, 3, 4), r(1, 2, 5, 4), r(1, 2, 5, 3), r(3, 5)], {}, ["y"]),
    "mask 4-D": ([r(2, 2, 3, 4), r(2, 2, 5, 4), r(2, 2, 5, 3), r(2, 1, 3, 5)], {}, ["y"]),
    "bool mask": ([r(1, 2, 3, 4), r(1, 2, 5, 4), r(1, 2, 5, 3), rng.random((3, 5)) > 0.3], {}, ["y"]),
    "causal mask softcap": ([r(1, 2, 3, 4), r(1, 2, 3, 4), r(1, 2, 3, 3), r(3, 3)],
                            {"is_causal": 1, "softcap": 1.5, "scale": 0.4}, ["y"]),
    "past": ([r(1, 2, 3, 4), r(1, 2, 2, 4), r(1, 2, 2, 3), None, r(1, 2, 4, 4), r(1, 2, 4, 3)], {},
             ["y", "present_key", "present_value"]),
    "past causal": ([r(1, 2, 3, 4), r(1, 2, 3, 4), r(1, 2, 3, 3), None, r(1, 2, 4, 4), r(1, 2, 4, 3)],
                    {"is_causal": 1}, ["y", "present_key", "present_value"]),
    **{
        f"product {mode}": ([r(1, 2, 3, 4), r(1, 2, 5, 4), r(1, 2, 5, 3), r(3, 5)],
                            # onnx's reference caps the product that mode 0 hands out.
            {"qk_matmul_output_mode": mode, **({"softcap": 2.0} if mode else {})}, ["y", "", "", "qk"])
        for mode in range(4)
    },
}  # fmt: skip


@pytest.mark.parametrize("shapes", ["static", "dynamic"])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention(case: str, shapes: str) -> None:
    inputs, attributes, outputs = ATTENTION[case]
    model, feeds = node_model(
        "Attention", inputs, attributes, outputs, opset=23, dtype=np.float64, shapes=shapes
    )
    made = expanded(model)
    assert not any(node.op_type == "Attention" for node in made.graph)
    proto = ir.to_proto(made)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    expected, found = reference(model, feeds), reference(proto, feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7)
    check_gradient(proto, made, feeds, reference, 1e-6, 1e-5)


ROTARY = {
    "4-D": ([r(2, 2, 3, 4), r(2, 3, 2), r(2, 3, 2)], {}),
    "3-D": ([r(2, 3, 8), r(2, 3, 2), r(2, 3, 2)], {"num_heads": 2}),
    "interleaved": ([r(2, 2, 3, 4), r(2, 3, 2), r(2, 3, 2)], {"interleaved": 1}),
    "positions": ([r(2, 2, 3, 4), r(6, 2), r(6, 2), np.array([[0, 2, 5], [1, 1, 3]])], {}),
    "partial": ([r(2, 2, 3, 6), r(2, 3, 2), r(2, 3, 2)], {"rotary_embedding_dim": 4}),
    "all": ([r(2, 3, 12), r(6, 2), r(6, 2), np.array([[0, 2, 5], [1, 1, 3]])],
            {"num_heads": 2, "rotary_embedding_dim": 4, "interleaved": 1}),
}  # fmt: skip


@pytest.mark.parametrize("shapes", ["static", "dynamic"])
@pytest.mark.parametrize("case", ROTARY)
def test_rotary_embedding(case: str, shapes: str) -> None:
    inputs, attributes = ROTARY[case]
    model, feeds = node_model("RotaryEmbedding", inputs, attributes, ["y"], opset=23, shapes=shapes)
    made = expanded(model)
    assert not any(node.op_type == "RotaryEmbedding" for node in made.graph)
    np.testing.assert_allclose(
        reference(ir.to_proto(made), feeds)["y"], reference(model, feeds)["y"], rtol=1e-5
    )
    check_gradient(model, made, feeds, reference, 2e-2, 2e-3)


def test_body_that_wants_a_rank_stays() -> None:
    inputs, attributes = ROTARY["4-D"]
    model, _ = node_model("RotaryEmbedding", inputs, attributes, ["y"], opset=23, shapes="unranked")
    made = ir.from_proto(model)
    assert not expand(made)
    assert [node.op_type for node in made.graph] == ["RotaryEmbedding"]


# -- the registry ----------------------------------------------------------------------------------


def test_expandable() -> None:
    assert expandable("FusedMatMul", MS, 1) == "expansion"
    assert expandable("Attention", "", 23) == "function"
    assert expandable("Attention", "ai.onnx", 22) is None
    assert expandable("Conv", "", 18) is None
    assert expandable("Anything", "my.domain", 1) is None


def test_own_expansion() -> None:
    @expansion("TwiceForExpandTest", domain="my.domain")
    def twice(op, node):
        (x,) = node.inputs
        return x * 2

    with pytest.raises(ValueError, match="already"):
        expansion("TwiceForExpandTest", domain="my.domain")(twice)
    text = """
<ir_version: 10, opset_import: ["": 18, "my.domain": 1]>
g (double[N] x) => (double[N] y) { y = my.domain.TwiceForExpandTest (x) }"""
    made = ir.from_proto(onnx.parser.parse_model(text))
    assert expand(made) == {("my.domain", "TwiceForExpandTest")}
    x = r(3)
    np.testing.assert_array_equal(run(ir.to_proto(made), {"x": x})["y"], 2 * x)
    from onnxcustom.gradient import expand as module

    del module._EXPANSIONS["my.domain", "TwiceForExpandTest"]
