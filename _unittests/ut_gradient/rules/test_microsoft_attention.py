"""onnxruntime's attention operators: expansions against its kernels, or a transcription of their definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from node_models import MS, check_gradient, expanded, node_model, run

import onnxcustom.gradient.rules  # noqa: F401
from onnxcustom import gradient_graph, gradient_report
from onnxcustom.exceptions import GradientNotImplementedError
from onnxcustom.gradient.expand import expand
from onnxcustom.graph import weights

rng = np.random.default_rng(0)

EXPANSIONS = ["Attention", "MultiHeadAttention", "RotaryEmbedding", "EmbedLayerNormalization"]


def r(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


def ints(*values: int, shape: tuple[int, ...] | None = None, dtype: type = np.int32) -> np.ndarray:
    made = np.array(values, dtype=dtype)
    return made if shape is None else made.reshape(shape)


X, W, B = r(2, 4, 5), r(5, 18), r(18)
Q, K, V = r(2, 4, 6), r(2, 4, 6), r(2, 4, 6)
RAW = ints(1, 1, 1, 0, 1, 1, 0, 1, shape=(2, 4))
LONG = ints(1, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 1, shape=(2, 6))
FULL = (rng.random((2, 4, 4)) > 0.3).astype(np.int32)
PAST = [r(2, 2, 2, 3), r(2, 2, 2, 3)]

# What onnxruntime 1.19 has a kernel for: inputs, attributes beside num_heads, outputs.
ATTENTION: dict[str, tuple[list, dict, list[str]]] = {
    "plain": ([X, W, B], {}, ["y"]),
    "causal": ([X, W, B], {"unidirectional": 1}, ["y"]),
    "scale": ([X, W, B], {"scale": 0.3}, ["y"]),
    "sizes": ([X, r(5, 16), r(16)], {"qkv_hidden_sizes": [6, 6, 4]}, ["y"]),
    "ends": ([X, W, B, ints(3, 2)], {}, ["y"]),
    "ends and starts": ([X, W, B, ints(3, 4, 1, 0)], {}, ["y"]),
    "sums of ends": ([X, W, B, ints(3, 2, 0, 3, 5, 0, 3, 5)], {}, ["y"]),
    "mask": ([X, W, B, RAW], {}, ["y"]),
    "soft mask": ([X, W, B, RAW], {"mask_filter_value": -1.0}, ["y"]),
    "soft causal mask": ([X, W, B, RAW], {"mask_filter_value": -1.0, "unidirectional": 1}, ["y"]),
    "mask per query": ([X, W, B, FULL], {"mask_filter_value": -2.0}, ["y"]),
    "bias": ([X, W, B, None, None, r(2, 2, 4, 4)], {}, ["y"]),
    "present": ([X, W, B], {"unidirectional": 1}, ["y", "p"]),
    "past": ([X, W, B, None, np.stack(PAST)], {"unidirectional": 1}, ["y", "p"]),
    "past mask": ([X, W, B, LONG, np.stack(PAST)], {}, ["y", "p"]),
}
HEADS: dict[str, tuple[list, dict, list[str]]] = {
    "plain": ([Q, K, V], {}, ["y"]),
    "cross": ([r(2, 3, 6), K, r(2, 4, 8)], {}, ["y"]),
    "bias": ([r(2, 3, 6), K, r(2, 4, 8), r(20)], {}, ["y"]),
    "causal": ([Q, K, V], {"unidirectional": 1}, ["y"]),
    "scale": ([Q, K, V], {"scale": 0.3}, ["y"]),
    "ends": ([Q, K, V, None, ints(2, 4)], {}, ["y"]),
    "sums of ends": ([Q, K, V, None, ints(2, 4, 0, 4, 8, 0, 2, 6)], {}, ["y"]),
    "mask": ([Q, K, V, None, RAW], {}, ["y"]),
    "soft causal mask": ([Q, K, V, None, RAW], {"mask_filter_value": -1.0, "unidirectional": 1}, ["y"]),
    "mask per query": ([Q, K, V, None, FULL], {"mask_filter_value": -2.0}, ["y"]),
    "attention bias": ([r(2, 3, 6), K, V, None, None, r(2, 2, 3, 4)], {}, ["y"]),
    "everything": ([Q, K, r(2, 4, 8), r(20), RAW, r(2, 2, 4, 4)], {"unidirectional": 1}, ["y"]),
    "present": ([r(2, 3, 6), K, V], {}, ["y", "k", "v"]),
    "past": ([Q[:, :2], K[:, :2], V[:, :2], None, None, None, *PAST], {"unidirectional": 1}, ["y", "k", "v"]),
    "past mask": ([Q[:, :2], K[:, :2], V[:, :2], None, RAW, None, *PAST], {}, ["y", "k", "v"]),
    "keys by head": ([r(2, 3, 6), r(2, 2, 4, 3), r(2, 2, 4, 3)], {}, ["y"]),
    "keys by head bias": ([r(2, 3, 6), r(2, 2, 4, 3), r(2, 2, 4, 3), r(18)], {}, ["y"]),
}
PLACES, COS, SIN = ints(0, 2, 5, 1, 1, 3, shape=(2, 3), dtype=np.int64), r(8, 2), r(8, 2)
ROTARY: dict[str, tuple[list, dict, list[str]]] = {
    "3-D": ([r(2, 3, 8), PLACES, COS, SIN], {}, ["y"]),
    "3-D heads": ([r(2, 3, 8), PLACES, COS, SIN], {"num_heads": 2}, ["y"]),
    "3-D first": ([r(2, 3, 8), ints(2, dtype=np.int64), COS, SIN], {}, ["y"]),
    "4-D": ([r(2, 2, 3, 4), PLACES, COS, SIN], {}, ["y"]),
    "4-D first": ([r(2, 2, 3, 4), ints(2, dtype=np.int64), COS, SIN], {}, ["y"]),
    "interleaved": ([r(2, 3, 8), PLACES, COS, SIN], {"interleaved": 1}, ["y"]),
    "partial": ([r(2, 3, 12), PLACES, COS, SIN], {"rotary_embedding_dim": 4, "num_heads": 2}, ["y"]),
    "partial interleaved": ([r(2, 2, 3, 6), PLACES, COS, SIN],
                            {"rotary_embedding_dim": 4, "num_heads": 2, "interleaved": 1}, ["y"]),
}  # fmt: skip
IDS, KINDS = ints(1, 2, 0, 3, 4, 2, shape=(2, 3)), ints(0, 1, 1, 0, 0, 1, shape=(2, 3))
TABLES = [r(5, 4), r(6, 4), r(2, 4), r(4), r(4)]
SEEN = ints(1, 1, 0, 1, 1, 1, shape=(2, 3))
EMBED: dict[str, tuple[list, dict, list[str]]] = {
    "plain": ([IDS, KINDS, *TABLES], {"epsilon": 1e-3}, ["y", "m"]),
    "mask": ([IDS, KINDS, *TABLES, SEEN], {}, ["y", "m", "s"]),
    "no segments": ([IDS, None, *TABLES[:2], None, *TABLES[3:]], {}, ["y", "m"]),
    "positions": ([IDS, KINDS, *TABLES, None, ints(3, 0, 1, 2, 5, 4, shape=(2, 3))], {}, ["y", "m"]),
    "positions of all": ([IDS, KINDS, *TABLES, None, ints(3, 0, 1, shape=(1, 3))], {}, ["y", "m"]),
}
CASES = {
    (op_type, label): (inputs, {**common, **attributes}, outputs)
    for op_type, table, common in (
        ("Attention", ATTENTION, {"num_heads": 2}),
        ("MultiHeadAttention", HEADS, {"num_heads": 2}),
        ("RotaryEmbedding", ROTARY, {}),
        ("EmbedLayerNormalization", EMBED, {}),
    )
    for label, (inputs, attributes, outputs) in table.items()
}


def case_model(
    op_type: str, inputs: list, attributes: dict, outputs: list[str], **kwargs: Any
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    return node_model(op_type, inputs, attributes, outputs, MS, integers=["m"], **kwargs)


@pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 19),
    reason="kernels lack some of these forms",
)
@pytest.mark.parametrize("shapes", ["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_kernel(case: tuple[str, str], shapes: str) -> None:
    """The expansion computes what onnxruntime's kernel does."""
    model, feeds = case_model(case[0], *CASES[case])
    expected = run(model, feeds)
    model, _ = case_model(case[0], *CASES[case], shapes=shapes)
    made = expanded(model)
    assert not any(node.domain == MS for node in made.graph)
    proto = ir.to_proto(made)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    found = run(proto, feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        assert found[name].dtype == value.dtype


@pytest.mark.parametrize("shapes", ["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_gradient(case: tuple[str, str], shapes: str) -> None:
    """In float64, of the expansion, which is all that runs there."""
    inputs, attributes, outputs = CASES[case]
    outputs = [o if o != "m" else "" for o in outputs]
    model, feeds = case_model(case[0], inputs, attributes, outputs, dtype=np.float64, shapes=shapes)
    made = expanded(model)
    check_gradient(ir.to_proto(made), made, feeds, run, 1e-6, 1e-5)


# -- forms without a kernel ------------------------------------------------------------------------


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, added: Any = 0.0, causal: bool = False) -> np.ndarray:
    """Softmax(q kᵀ / √size + added) v for [batch, heads, length, size], as [batch, length, heads · size]."""
    scores = q @ np.swapaxes(k, 2, 3) / np.sqrt(q.shape[3]) + added
    if causal:
        future = np.arange(k.shape[2]) > np.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
        scores = np.where(future, -np.inf, scores)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    y = shares / shares.sum(axis=-1, keepdims=True) @ v
    return np.swapaxes(y, 1, 2).reshape(len(y), y.shape[2], -1)


def heads(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x.reshape(*x.shape[:2], 2, -1), 1, 2)


SQUARE = (rng.random((2, 1, 7, 7)) > 0.3).astype(np.int32)
SHORT, PACKED, PAIRS = r(2, 3, 6), r(2, 3, 2, 3, 4), r(2, 4, 2, 2, 3)
SPREAD = r(1, 1, 3, 4)
WITHOUT_KERNEL: dict[str, tuple[str, list, dict, np.ndarray]] = {
    "no bias": ("Attention", [X, W], {}, attend(*(heads(X @ w) for w in np.split(W, 3, axis=1)))),
    "square mask": (
        "Attention",
        [X, W, B, SQUARE],
        {"mask_filter_value": -3.0},
        attend(
            *(heads(X @ W[:, i : i + 6] + B[i : i + 6]) for i in (0, 6, 12)),
            -3.0 * (SQUARE[:, :, :4, :4] == 0),
        ),
    ),
    "packed": (
        "MultiHeadAttention",
        [PACKED],
        {},
        attend(*(np.swapaxes(PACKED[:, :, :, i], 1, 2) for i in range(3))),
    ),
    "packed pairs": (
        "MultiHeadAttention",
        [SHORT, PAIRS],
        {},
        attend(heads(SHORT), *(np.swapaxes(PAIRS[:, :, :, i], 1, 2) for i in range(2))),
    ),
    # onnxruntime 1.19 takes the rows of these two for as many as columns, or reads beyond the end.
    "cross mask": (
        "MultiHeadAttention",
        [SHORT, K, V, None, RAW],
        {"mask_filter_value": -2.0},
        attend(heads(SHORT), heads(K), heads(V), -2.0 * (RAW[:, None, None] == 0)),
    ),
    "spread attention bias": (
        "MultiHeadAttention",
        [SHORT, K, V, None, None, SPREAD],
        {},
        attend(heads(SHORT), heads(K), heads(V), SPREAD),
    ),
}


@pytest.mark.parametrize("shapes", ["static", "dynamic"])
@pytest.mark.parametrize("case", WITHOUT_KERNEL)
def test_definition(case: str, shapes: str) -> None:
    op_type, inputs, attributes, expected = WITHOUT_KERNEL[case]
    model, feeds = case_model(
        op_type, inputs, {"num_heads": 2, **attributes}, ["y"], dtype=np.float64, shapes=shapes
    )
    made = expanded(model)
    proto = ir.to_proto(made)
    np.testing.assert_allclose(run(proto, feeds)["y"], expected, rtol=1e-9, atol=1e-9)
    check_gradient(proto, made, feeds, run, 1e-6, 1e-5)


def test_unknown_sizes_of_a_mask_of_lengths() -> None:
    """Whether starts are behind the ends is known only when the graph runs."""
    for label in ("ends", "ends and starts", "sums of ends"):
        inputs, attributes, outputs = CASES["Attention", label]
        model, feeds = case_model("Attention", inputs, attributes, outputs, shapes="dynamic")
        expected = run(model, feeds)["y"]
        np.testing.assert_allclose(
            run(ir.to_proto(expanded(model)), feeds)["y"], expected, rtol=1e-4, atol=1e-5
        )


# -- what stays refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "shapes", "reason"),
    [
        ("Attention", [X, W, B], {"do_rotary": 1}, "static", "do_rotary"),
        ("Attention", [X, W, B, RAW], {}, "unranked", "mask"),
        ("MultiHeadAttention", [PACKED, None, None, r(24)], {}, "static", "packed"),
        ("MultiHeadAttention", [Q, K, V], {}, "unranked", "keys"),
        ("RotaryEmbedding", [r(2, 3, 8), PLACES, COS, SIN], {"is_packed_batching": 1}, "static", "packed"),
        ("RotaryEmbedding", [r(2, 3, 8), PLACES, COS, SIN], {}, "unranked", "rank"),
    ],
)
def test_refused_forms(op_type: str, inputs: list, attributes: dict, shapes: str, reason: str) -> None:
    if op_type != "RotaryEmbedding":
        attributes = {"num_heads": 2, **attributes}
    model, _ = case_model(op_type, inputs, attributes, ["y"], shapes=shapes)
    with pytest.raises(GradientNotImplementedError, match=reason) as caught:
        expand(ir.from_proto(model))
    assert (caught.value.op_type, caught.value.domain) == (op_type, MS)


@pytest.mark.parametrize(
    "op_type", ["GroupQueryAttention", "DecoderMaskedMultiHeadAttention", "PackedAttention"]
)
def test_refused_operators(op_type: str) -> None:
    model, _ = node_model(op_type, [Q, K, V], {}, ["y"], MS)
    with pytest.raises(GradientNotImplementedError, match="export the model without"):
        gradient_graph(model, inputs=["x0"], engine="onnx")
    assert [row.how for row in gradient_report(model, engine="onnx").refused] == ["refused"]


# -- a whole model ---------------------------------------------------------------------------------


def test_fused_encoder() -> None:
    """A BERT-like layer as onnxruntime's optimizer leaves it: every weight is found and differentiated."""
    text = """<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
    g (int32[N, S] ids, int32[N, S] kinds, int32[N, S] mask) => (float[N, S, 4] y) {
      e, m = com.microsoft.EmbedLayerNormalization (ids, kinds, words, places, types, g1, b1, mask)
      a = com.microsoft.Attention <num_heads = 2> (e, w, wb, m)
      p = MatMul(a, o)
      s = com.microsoft.SkipLayerNormalization (p, e, g2, b2, ob)
      h = MatMul(s, u)
      f = com.microsoft.FastGelu (h, ub)
      d = MatMul(f, v)
      y = com.microsoft.SkipLayerNormalization (d, s, g3, b3, vb)
    }"""
    shapes = {
        "words": (5, 4), "places": (6, 4), "types": (2, 4), "g1": (4,), "b1": (4,), "w": (4, 12), "wb": (12,),
        "o": (4, 4), "g2": (4,), "b2": (4,), "ob": (4,), "u": (4, 6), "ub": (6,), "v": (6, 4),
        "g3": (4,), "b3": (4,), "vb": (4,),
    }  # fmt: skip
    model = onnx.parser.parse_model(text)
    tensors = {name: r(*shape).astype(np.float32) for name, shape in shapes.items()}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in tensors.items())
    assert set(weights(model)) == set(shapes)
    gradient = gradient_graph(model, engine="onnx")
    feeds = {"ids": IDS, "kinds": KINDS, "mask": ints(1, 1, 0, 1, 1, 1, shape=(2, 3))}
    dy = r(2, 3, 4).astype(np.float32)
    found = run(gradient, {**feeds, **tensors, "y_grad": dy}, optimize=True)
    for name, value in tensors.items():
        direction = r(*value.shape).astype(np.float32)
        sides = []
        for step in (2e-3, -2e-3):
            for tensor in model.graph.initializer:
                moved = tensors[tensor.name] + (step * direction if tensor.name == name else 0)
                tensor.CopyFrom(onnx.numpy_helper.from_array(moved.astype(np.float32), tensor.name))
            sides.append(np.sum(np.float64(dy) * run(model, feeds)["y"]))
        expected = (sides[0] - sides[1]) / 4e-3
        gradient_of = found[f"{name}_grad"]
        scale = max(abs(expected), np.linalg.norm(gradient_of), 1e-2)
        assert abs(np.sum(np.float64(direction) * gradient_of) - expected) < 2e-2 * scale, name
