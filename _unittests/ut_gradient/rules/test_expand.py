"""Operators replaced by their ONNX function body or by an expansion, against their own kernels."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import test_deform
import test_microsoft_attention
import test_sequence_map
from bare_gradient import differentiate
from node_models import MS, check_gradient, expanded, node_model, reference, run

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

rng = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


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
    elsewhere = {op_type for module in (test_deform, test_microsoft_attention, test_sequence_map)
                 for op_type in module.EXPANSIONS}  # fmt: skip
    tested = {*MICROSOFT, *OLDER, *(op_type for op_type, *_ in GPU.values())} | elsewhere
    assert {op_type for _, op_type in expansions()} == tested


# Spellings without a kernel, and with one.
OLDER = {
    "TransposeMatMul": ([r(3, 2), r(4, 3)], {"transA": 1, "transB": 1, "alpha": 2.0}, ("FusedMatMul", MS)),
    "LayerNormalization": (
        [r(2, 3, 4), r(4), r(4)],
        {"axis": -1, "epsilon": 1e-3},
        ("LayerNormalization", ""),
    ),
}


@pytest.mark.parametrize("op_type", OLDER)
def test_older_spellings(op_type: str) -> None:
    inputs, attributes, (younger, domain) = OLDER[op_type]
    same, feeds = node_model(younger, inputs, attributes, ["y"], domain)
    model, _ = node_model(op_type, inputs, attributes, ["y"], MS)
    made = expanded(model)
    np.testing.assert_allclose(
        run(ir.to_proto(made), feeds)["y"], run(same, feeds)["y"], rtol=1e-5, atol=1e-6
    )
    check_gradient(same, made, feeds, run, 2e-2, 2e-3)


# -- operators that onnxruntime's optimizers make for GPUs: no kernel on CPU ------------------------


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def group_norm(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, groups: int, epsilon: float = 1e-5
) -> np.ndarray:
    """Of channels last."""
    rows = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, deviation = rows.mean(axis=(1, 3), keepdims=True), rows.var(axis=(1, 3), keepdims=True)
    return ((rows - mean) / np.sqrt(deviation + epsilon)).reshape(x.shape) * gamma + beta


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def softmax(x: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
    e = np.exp(x)
    return e / e.sum(axis=axes, keepdims=True)


def conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """[N, H, W, C] by [M, C, 2, 2]."""
    h, k = x.shape[1] - 1, x.shape[2] - 1
    return sum(x[:, i : i + h, j : j + k] @ w[:, :, i, j].T for i in range(2) for j in range(2))  # type: ignore[return-value]


def first(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1)


A, G, C2, SKIP = r(2, 3, 4), r(2, 3, 3, 4), r(4), r(2, 4)
GAMMA, BETA, FILTER, C3, Z = r(4), r(4), r(3, 4, 2, 2), r(3), r(2, 2, 2, 3)
GPU: dict[str, tuple[str, list, dict, np.ndarray]] = {
    "GemmFastGelu": ("GemmFastGelu", [A, FILTER[0, :, 0], r(2) * 0], {}, gelu_tanh(A @ FILTER[0, :, 0])),
    "GemmFastGelu bias": ("GemmFastGelu", [A, r(4, 4) * 0 + np.eye(4), C2], {}, gelu_tanh(A + C2)),
    "FusedMatMulActivation": ("FusedMatMulActivation", [A, C2.reshape(1, 4)],
                              {"activation": "Tanh", "alpha": 0.5, "transB": 1}, np.tanh(0.5 * A @ C2[:, None])),
    "FusedMatMulActivation slope": ("FusedMatMulActivation", [A, C2.reshape(4, 1)],
                                    {"activation": "LeakyRelu", "activation_alpha": 0.3},
                                    np.where(A @ C2[:, None] > 0, 1, 0.3) * (A @ C2[:, None])),
    "BiasSplitGelu": ("BiasSplitGelu", [A, C2], {}, (A + C2)[..., :2] * gelu((A + C2)[..., 2:])),
    "BiasSoftmax": ("BiasSoftmax", [A, r(1, 1, 4) * 0 + C2], {"axis": 2, "is_inner_broadcast": 1},
                    softmax(A + C2, 2)),
    "BiasSoftmax axes": ("BiasSoftmax", [A, C2.reshape(1, 1, 4)], {"axis": 1, "is_inner_broadcast": 0},
                         softmax(A + C2, (1, 2))),
    "BiasAdd": ("BiasAdd", [A, C2, A + 1], {}, A + C2 + A + 1),
    "BiasDropout": ("BiasDropout", [A, C2], {}, A + C2),
    "BiasDropout residual": ("BiasDropout", [A, C2, A - 1], {}, A + C2 + A - 1),
    "NhwcConv": ("NhwcConv", [G, FILTER, C3], {"kernel_shape": [2, 2]}, conv(G, FILTER) + C3),
    "NhwcFusedConv": ("NhwcFusedConv", [G, FILTER, C3, Z], {"activation": "Relu"},
                      np.maximum(conv(G, FILTER) + C3 + Z, 0)),
    "GroupNorm": ("GroupNorm", [G, GAMMA, BETA], {"groups": 2, "activation": 0}, group_norm(G, GAMMA, BETA, 2)),
    "GroupNorm SiLU": ("GroupNorm", [G, GAMMA, BETA], {"groups": 4, "activation": 1, "epsilon": 0.1},
                       silu(group_norm(G, GAMMA, BETA, 4, 0.1))),
    "GroupNorm first": ("GroupNorm", [first(G), GAMMA, BETA], {"groups": 2, "activation": 0, "channels_last": 0},
                        first(group_norm(G, GAMMA, BETA, 2))),
    "SkipGroupNorm": ("SkipGroupNorm", [G, GAMMA, BETA, G * G, C2], {"groups": 2, "activation": 0},
                      group_norm(G + G * G + C2, GAMMA, BETA, 2)),
    "SkipGroupNorm rows": ("SkipGroupNorm", [G, GAMMA, BETA, SKIP], {"groups": 2, "activation": 1},
                           silu(group_norm(G + SKIP[:, None, None], GAMMA, BETA, 2))),
    "SkipGroupNorm first": ("SkipGroupNorm", [first(G), GAMMA, BETA, SKIP, C2],
                            {"groups": 2, "activation": 0, "channels_last": 0},
                            first(group_norm(G + SKIP[:, None, None] + C2, GAMMA, BETA, 2))),
}  # fmt: skip


@pytest.mark.parametrize("shapes", ["static", "dynamic"])
@pytest.mark.parametrize("case", GPU)
def test_gpu(case: str, shapes: str) -> None:
    op_type, inputs, attributes, expected = GPU[case]
    model, feeds = node_model(op_type, inputs, attributes, ["y"], MS, dtype=np.float64, shapes=shapes)
    made = expanded(model)
    proto = ir.to_proto(made)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    np.testing.assert_allclose(reference(proto, feeds)["y"], expected, rtol=1e-6, atol=1e-9)
    # The reference's Erf is one of float32.
    tolerance, step = (1e-3, 1e-3) if op_type == "BiasSplitGelu" else (1e-6, 1e-5)
    check_gradient(proto, made, feeds, reference, tolerance, step)


def test_sum_of_skip_group_norm() -> None:
    op_type, inputs, attributes, _ = GPU["SkipGroupNorm rows"]
    model, feeds = node_model(op_type, inputs, attributes, ["y", "s"], MS, dtype=np.float64)
    made = expanded(model)
    proto = ir.to_proto(made)
    np.testing.assert_allclose(reference(proto, feeds)["s"], G + SKIP[:, None, None])
    check_gradient(proto, made, feeds, reference, 1e-6, 1e-5)


def test_unknown_activation_of_group_norm() -> None:
    model, _ = node_model("GroupNorm", [G, GAMMA, BETA], {"groups": 2, "activation": 7}, ["y"], MS)
    with pytest.raises(GradientNotImplementedError, match="activation 7"):
        expand(ir.from_proto(model))


def test_bias_dropout_in_training_keeps_its_mask() -> None:
    """Forward and gradient drop the same elements."""
    x, bias = r(40, 4), r(4)
    inputs = [x, bias, None, np.array(0.5), np.array(True)]
    model, feeds = node_model("BiasDropout", inputs, {"seed": 3}, ["y"], MS, dtype=np.float64)
    made = expanded(model)
    gradient = ir.to_proto(differentiate(made, ["x0"], ["y"]))
    found = run(gradient, {**feeds, "y_grad": np.ones((40, 4))})
    kept = found["y"] != 0
    assert 40 < kept.sum() < 120
    np.testing.assert_allclose(found["y"], np.where(kept, 2 * (x + bias), 0))
    np.testing.assert_allclose(found["x0_grad"], np.where(kept, 2.0, 0))


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
<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
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
<ir_version: 9, opset_import: ["": 18, "my.domain": 1]>
g (double[N] x) => (double[N] y) { y = my.domain.TwiceForExpandTest (x) }"""
    made = ir.from_proto(onnx.parser.parse_model(text))
    assert expand(made) == {("my.domain", "TwiceForExpandTest")}
    x = r(3)
    np.testing.assert_array_equal(run(ir.to_proto(made), {"x": x})["y"], 2 * x)
    from onnxcustom.gradient import expand as module

    del module._EXPANSIONS["my.domain", "TwiceForExpandTest"]
