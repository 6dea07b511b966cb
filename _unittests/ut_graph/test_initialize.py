# ruff: noqa: E501 - a node of ONNX text stays on its line
"""New first values: distributions, fans from how a weight is used, seeds, and what is no matrix."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper
from scipy import stats

from onnxcustom.exceptions import InvalidModelError, NoTrainableWeightError, UnknownNameError
from onnxcustom.graph import initialize_weights, replace_weights, weights
from onnxcustom.graph.trainable.initialize import METHODS


def parse(body: str, opset: int = 18) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}, "com.microsoft": 1]> {body}')


def build(node_text: str, tensors: dict[str, np.ndarray], opset: int = 18) -> onnx.ModelProto:
    """A model of nodes that read ``x`` of any shape and give ``y``, with initializers."""
    model = parse(f"g (float[A, B] x) => (float y) {{ {node_text} }}", opset)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    if "Gather" in node_text:
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in tensors.items())
    return model


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def drawn(model: onnx.ModelProto, *args, **options) -> dict[str, np.ndarray]:
    return weights(initialize_weights(model, *args, **options))


class Case:
    """An operator with a weight ``w``, and the matrices (outputs, inputs) that its weight consists of."""

    def __init__(self, text, shape, matrices, fans, opset=18, others=None):
        self.model = build(text, {"w": zeros(*shape), **(others or {})}, opset)
        self.matrices = matrices
        self.fans = fans


def conv(w: np.ndarray, groups: int) -> list[np.ndarray]:
    return [part.reshape(len(part), -1) for part in np.split(w, groups)]


def conv_transpose(w: np.ndarray, groups: int) -> list[np.ndarray]:
    return [np.swapaxes(part, 0, 1).reshape(part.shape[1], -1) for part in np.split(w, groups)]


def gates(w: np.ndarray, count: int) -> list[np.ndarray]:
    return [part for direction in w for part in np.split(direction, count)]


CASES = {
    "MatMul right": Case("y = MatMul(x, w)", (40, 90), lambda w: [w.T], (40, 90)),
    "MatMul left": Case("y = MatMul(w, x)", (40, 90), lambda w: [w], (90, 40)),
    "MatMul in blocks": Case("y = MatMul(x, w)", (3, 30, 50), lambda w: list(np.swapaxes(w, 1, 2)), (30, 50)),
    "MatMul of a vector": Case("y = MatMul(x, w)", (4000,), lambda w: [w[None]], (4000, 1)),
    "Gemm": Case("y = Gemm(x, w)", (40, 90), lambda w: [w.T], (40, 90)),
    "Gemm transB": Case("y = Gemm <transB = 1> (x, w)", (40, 90), lambda w: [w], (90, 40)),
    "Gemm left": Case("y = Gemm(w, x)", (40, 90), lambda w: [w], (90, 40)),
    "Gemm left transA": Case("y = Gemm <transA = 1> (w, x)", (40, 90), lambda w: [w.T], (40, 90)),
    "behind Transpose": Case("t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t)", (40, 90), lambda w: [w], (90, 40)),
    "behind Reshape": Case("t = Reshape(w, s) y = MatMul(x, t)", (3600,), lambda w: [w.reshape(40, 90).T], (40, 90), others={"s": np.array([40, 90])}),
    "behind Squeeze of opset 11": Case("t = Squeeze <axes = [0]> (w) y = Gemm(x, t)", (1, 40, 90), lambda w: [w[0].T], (40, 90), opset=11),
    "Conv": Case("y = Conv(x, w)", (32, 8, 3, 5), lambda w: conv(w, 1), (8 * 15, 32 * 15)),
    "Conv in groups": Case("y = Conv <group = 4> (x, w)", (32, 8, 3, 5), lambda w: conv(w, 4), (8 * 15, 8 * 15)),
    "depthwise Conv": Case("y = Conv <group = 200> (x, w)", (200, 1, 5, 5), lambda w: conv(w, 200), (25, 25)),
    "ConvTranspose": Case("y = ConvTranspose(x, w)", (8, 32, 3, 5), lambda w: conv_transpose(w, 1), (8 * 15, 32 * 15)),
    "ConvTranspose in groups": Case("y = ConvTranspose <group = 2> (x, w)", (8, 32, 3, 5), lambda w: conv_transpose(w, 2), (4 * 15, 32 * 15)),
    "RNN input": Case("_, y = RNN <hidden_size = 30, direction = \"bidirectional\"> (x, w, r)", (2, 30, 70), lambda w: gates(w, 1), (70, 30), others={"r": zeros(2, 30, 30)}),
    "GRU input": Case("_, y = GRU <hidden_size = 30> (x, w, r)", (1, 90, 70), lambda w: gates(w, 3), (70, 30), others={"r": zeros(1, 90, 30)}),
    "LSTM input": Case("_, y = LSTM <hidden_size = 30, direction = \"bidirectional\"> (x, w, r)", (2, 120, 70), lambda w: gates(w, 4), (70, 30), others={"r": zeros(2, 120, 30)}),
    "LSTM state": Case("_, y = LSTM <hidden_size = 30, direction = \"bidirectional\"> (x, v, w)", (2, 120, 30), lambda w: gates(w, 4), (30, 30), others={"v": zeros(2, 120, 70)}),
    "embedding": Case("y = Gather(w, x)", (500, 16), lambda w: [w], (16, 500)),
    "embedding in columns": Case("y = Gather <axis = 1> (w, x)", (16, 500), lambda w: [w.T], (16, 500)),
    "Einsum": Case('y = Einsum <equation = "bi,iho->bho"> (x, w)', (40, 5, 18), lambda w: [w.reshape(40, 90).T], (40, 90)),
    "Einsum in blocks": Case('y = Einsum <equation = "hio,bhi->bho"> (w, x)', (3, 30, 50), lambda w: list(np.swapaxes(w, 1, 2)), (30, 50)),
    "FusedMatMul transB": Case("y = com.microsoft.FusedMatMul <transB = 1> (x, w)", (40, 90), lambda w: [w], (90, 40)),
    "Attention": Case("y = com.microsoft.Attention <num_heads = 2> (x, w, b)", (40, 90), lambda w: [p.T for p in np.split(w, 3, axis=1)], (40, 30), others={"b": zeros(90)}),
}  # fmt: skip

# Standard deviation, by fan_in and fan_out, and whether normal: of the papers.
SPREADS = {
    "he": (lambda i, o: math.sqrt(2 / i), True),
    "kaiming_normal": (lambda i, o: math.sqrt(2 / i), True),
    "he_uniform": (lambda i, o: math.sqrt(2 / i), False),
    "glorot": (lambda i, o: math.sqrt(2 / (i + o)), True),
    "xavier_uniform": (lambda i, o: math.sqrt(2 / (i + o)), False),
    "lecun_normal": (lambda i, o: math.sqrt(1 / i), True),
    "lecun_uniform": (lambda i, o: math.sqrt(1 / i), False),
}


def assert_distributed(numbers: np.ndarray, std: float, normal: bool) -> None:
    """The shape by the test of Kolmogorov and Smirnov, the scale within 4 %."""
    numbers = np.asarray(numbers, np.float64).ravel()
    assert numbers.size >= 2500
    if not normal:
        bound = math.sqrt(3) * std
        assert 0.99 * bound < np.abs(numbers).max() <= bound * (1 + 1e-6)
    law = stats.norm(0, std) if normal else stats.uniform(-math.sqrt(3) * std, 2 * math.sqrt(3) * std)
    assert stats.kstest(numbers, law.cdf).pvalue > 1e-4
    np.testing.assert_allclose(numbers.std(), std, rtol=0.04)


@pytest.mark.parametrize("method", SPREADS)
@pytest.mark.parametrize("name", CASES)
def test_spread_goes_by_how_the_weight_is_used(name, method):
    case, (spread, normal) = CASES[name], SPREADS[method]
    w = drawn(case.model, "w", method, seed=5)["w"]
    assert_distributed(w, spread(*case.fans), normal)
    matrices = case.matrices(w)
    assert sum(m.size for m in matrices) == w.size


@pytest.mark.parametrize("name", CASES)
def test_orthogonal_matrices_are_those_that_the_operator_multiplies_by(name):
    case = CASES[name]
    matrices = case.matrices(drawn(case.model, "w", "orthogonal", gain=1.5)["w"].astype(np.float64))
    for q in matrices:
        square = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
        np.testing.assert_allclose(square, 2.25 * np.eye(len(square)), atol=2e-5)
    assert len(matrices) == 1 or not np.allclose(matrices[0], matrices[1])


def test_orthogonal_is_uniform():
    """A column of a Q of n rows, drawn from Haar's measure, has entries of variance 1/n and mean 0."""
    model = build("y = MatMul(x, w)", {"w": zeros(3, 3)})
    found = np.stack([drawn(model, method="orthogonal", seed=s)["w"] for s in range(400)])
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose((found**2).mean(axis=0), 1 / 3, atol=0.06)
    assert 120 < (np.linalg.det(found.astype(np.float64)) > 0).sum() < 280


@pytest.mark.parametrize("name", ["MatMul right", "Gemm transB", "Conv", "Conv in groups", "ConvTranspose", "ConvTranspose in groups", "LSTM input", "embedding"])  # fmt: skip
@pytest.mark.parametrize("method", ["he", "he_uniform", "glorot", "glorot_uniform", "lecun"])
def test_as_pytorch_draws_them(name, method):
    """torch.nn.init takes (outputs, inputs, *window): each block goes through it in that form."""
    torch = pytest.importorskip("torch")
    kaiming = {"nonlinearity": "linear"} if method == "lecun" else {"nonlinearity": "relu"}
    initializer = {
        "he": lambda t: torch.nn.init.kaiming_normal_(t, **kaiming),
        "he_uniform": lambda t: torch.nn.init.kaiming_uniform_(t, **kaiming),
        "glorot": torch.nn.init.xavier_normal_,
        "glorot_uniform": torch.nn.init.xavier_uniform_,
        "lecun": lambda t: torch.nn.init.kaiming_normal_(t, **kaiming),
    }[method]
    torch.manual_seed(0)
    mine = drawn(CASES[name].model, "w", method)["w"]
    groups = 4 if name == "Conv in groups" else 2 if "groups" in name else 1
    if "Conv" in name:
        parts = [np.swapaxes(p, 0, 1) if "Transpose" in name else p for p in np.split(mine, groups)]
    else:
        parts = CASES[name].matrices(mine)
    theirs = [initializer(torch.empty(part.shape)).numpy() for part in parts]
    ours = np.concatenate([p.ravel() for p in parts])
    assert stats.ks_2samp(ours, np.concatenate([t.ravel() for t in theirs])).pvalue > 1e-4
    if "uniform" in method:
        np.testing.assert_allclose(np.abs(ours).max(), max(np.abs(t).max() for t in theirs), rtol=0.01)


# -- the other methods ---------------------------------------------------------------------------


DENSE = build("y = MatMul(x, w)", {"w": zeros(60, 80)})


@pytest.mark.parametrize("gain", [None, 0.5])
def test_normal(gain):
    assert_distributed(drawn(DENSE, method="normal", gain=gain)["w"], gain or 0.02, True)


@pytest.mark.parametrize("gain", [None, 0.5])
def test_uniform(gain):
    assert_distributed(drawn(DENSE, method="uniform", gain=gain)["w"], (gain or 0.05) / math.sqrt(3), False)


@pytest.mark.parametrize("gain", [None, 0.5])
def test_truncated_normal(gain):
    numbers = drawn(DENSE, method="truncated_normal", gain=gain)["w"].astype(np.float64).ravel() / (
        gain or 0.02
    )
    assert np.abs(numbers).max() <= 2 + 1e-6
    assert stats.kstest(numbers, stats.truncnorm(-2, 2).cdf).pvalue > 1e-4


@pytest.mark.parametrize("method", ["he", "glorot_uniform", "lecun"])
def test_the_gain_is_a_factor_in_place_of_the_default(method):
    once, twice = (drawn(DENSE, method=method, gain=g)["w"] for g in (1.0, 2.0))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)
    if method == "he":
        np.testing.assert_allclose(drawn(DENSE)["w"], math.sqrt(2) * once, rtol=1e-6)


def test_constants():
    assert (drawn(DENSE, method="ones")["w"] == 1).all()
    assert (
        drawn(replace_weights(DENSE, {"w": np.ones((60, 80), np.float32)}), method="zeros")["w"] == 0
    ).all()


@pytest.mark.parametrize("method", METHODS)
def test_aliases_draw_the_same(method):
    pairs = {"kaiming": "he", "xavier": "glorot"}
    other = next((method.replace(a, b) for a, b in pairs.items() if a in method), method)
    for name in {method, other, method if "_" in method or method not in SPREADS else f"{method}_normal"}:
        np.testing.assert_array_equal(drawn(DENSE, method=name)["w"], drawn(DENSE, method=method)["w"])


# -- what is no matrix ---------------------------------------------------------------------------

MIXED = """g (float[N, 4, 6, 6] x) => (float[N, 4] y) <float[4, 4, 3, 3] w, float[4] b, float[4] s, float[4] t,
    float[4] m, float[4] v, float[4, 1, 1] slope, float[4, 4] w2, float[4] b2, float[4] g> {
    c = Conv(x, w, b)  n = BatchNormalization(c, s, t, m, v)  r = PRelu(n, slope)
    p = ReduceMax <keepdims = 0> (r, axes)  l = MatMul(p, w2)  a = Add(l, b2)  y = Mul(a, g) }"""
SHAPES = {"w": (4, 4, 3, 3), "slope": (4, 1, 1), "w2": (4, 4), **dict.fromkeys(["b", "s", "t", "m", "v", "b2", "g"], (4,))}  # fmt: skip
NAMES = ["w", "b", "s", "t", "slope", "w2", "b2", "g"]


def mixed() -> onnx.ModelProto:
    text = MIXED.split("<")[0] + "{" + MIXED.split("{", 1)[1]
    model = parse(text)
    tensors = {n: np.full(shape, 7, np.float32) for n, shape in SHAPES.items()} | {"axes": np.array([2, 3])}
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in tensors.items())
    return model


STARTS = {"b": 0, "s": 1, "t": 0, "slope": 0.25, "b2": 0, "g": 1}


@pytest.mark.parametrize("method", ["he", "orthogonal", "normal", "zeros", {"*": "uniform"}])
def test_biases_and_scales_start_where_they_belong(method):
    assert list(weights(mixed())) == NAMES
    fresh = initialize_weights(mixed(), method=method)
    for name, start in STARTS.items():
        assert (weights(fresh)[name] == start).all(), name
    same = weights(fresh)["w"] == 0
    assert same.all() if method == "zeros" else not same.any()
    statistics = {t.name: numpy_helper.to_array(t) for t in fresh.graph.initializer}
    assert (statistics["m"] == 7).all()
    assert (statistics["v"] == 7).all()


@pytest.mark.parametrize(
    ("names", "method", "changed"),
    [
        (["s"], "zeros", ["s"]),
        ("s", "zeros", ["s"]),
        (None, {"s": "zeros"}, ["s"]),
        ("normalizations", "uniform", ["s", "t"]),
        (None, {"biases": "normal"}, ["b", "t", "b2"]),
        (["slope", "g", "b2"], "truncated_normal", ["slope", "b2", "g"]),
    ],
)
def test_what_is_called_by_its_name_gets_the_method(names, method, changed):
    before, fresh = weights(mixed()), drawn(mixed(), names, method)
    assert [n for n in NAMES if not np.array_equal(before[n], fresh[n])] == changed
    for name in changed:
        assert not np.array_equal(fresh[name], np.full_like(fresh[name], STARTS[name]))


@pytest.mark.parametrize("method", ["he", "orthogonal"])
def test_a_bias_called_by_its_name_has_no_inputs(method):
    assert (drawn(mixed(), ["b"], method)["b"] == 0).all()
    assert (drawn(mixed(), None, {"b": method, "s": method})["s"] == 1).all()


@pytest.mark.parametrize("operator", ["GRU", "LSTM", "RNN"])
def test_biases_of_recurrent_cells(operator):
    count = {"RNN": 1, "GRU": 3, "LSTM": 4}[operator]
    shapes = {"W": (1, count * 4, 3), "R": (1, count * 4, 4), "B": (1, count * 8), "h": (1, 5, 4)}
    inputs = ["x", "W", "R", "B", "", "h"]
    if operator == "LSTM":
        shapes |= {"c": (1, 5, 4), "p": (1, 12)}
        inputs += ["c", "p"]
    node = helper.make_node(operator, inputs, ["", "y"], hidden_size=4)
    values = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (4, 5, 3)), ("y", (1, 5, 4)))]
    tensors = [numpy_helper.from_array(np.full(s, 7, np.float32), n) for n, s in shapes.items()]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    fresh = drawn(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    assert set(fresh) == set(shapes) - {"h", "c"}  # first states are no weights
    for name, array in fresh.items():
        assert (array == 0).all() == (name not in "WR")


# -- which, and with what ------------------------------------------------------------------------


def test_names_and_dicts_choose():
    before = weights(mixed())

    def changed(*args):
        return [n for n, a in drawn(mixed(), *args).items() if not np.array_equal(a, before[n])]

    assert changed("w*") == ["w", "w2"]
    assert changed("last:2") == ["w2", "b2", "g"]
    assert changed(None, {"w2": "he"}) == ["w2"]
    assert changed("w", {"*": "he"}) == ["w"]
    assert changed(None, {}) == []
    fresh = drawn(mixed(), None, {"*": "ones", "w2": "zeros", "w": "uniform"})
    assert (fresh["w2"] == 0).all()
    assert 0 < np.abs(fresh["w"]).max() < 0.05
    assert (drawn(mixed(), None, {"w?": "zeros", "w*": "ones"})["w2"] == 0).all()
    assert (drawn(mixed(), None, {"w*": "ones", "w?": "zeros"})["w2"] == 1).all()


def test_numbers_depend_on_seed_and_name_alone():
    first = drawn(DENSE, seed=1)["w"]
    np.testing.assert_array_equal(first, drawn(DENSE, seed=1)["w"])
    assert not np.array_equal(first, drawn(DENSE, seed=2)["w"])
    larger = build("a = MatMul(x, v) y = MatMul(a, w)", {"v": zeros(60, 60), "w": zeros(60, 80)})
    both = drawn(larger, seed=1)
    np.testing.assert_array_equal(both["w"], first)
    assert not np.array_equal(both["v"], both["w"][:, :60])
    renamed = build("y = MatMul(x, v)", {"v": zeros(60, 80)})
    assert not np.array_equal(drawn(renamed, seed=1)["v"], first)


def test_numbers_stay_from_release_to_release():
    """Frozen: what was drawn with a seed can be drawn again."""
    small = build("y = MatMul(x, w)", {"w": zeros(1, 3)})
    np.testing.assert_allclose(drawn(small, seed=0)["w"], [[-1.534185, 0.612316, 0.94141]], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_the_dtype_is_kept(dtype):
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = [helper.make_tensor_value_info(n, number, ["N", c]) for n, c in (("x", 60), ("y", 80))]
    tensor = numpy_helper.from_array(np.zeros((60, 80), dtype), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [tensor]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    fresh = drawn(model)["w"]
    assert fresh.dtype == dtype
    np.testing.assert_allclose(fresh.astype(np.float64), drawn(DENSE)["w"], rtol=0.02, atol=1e-3)


def test_the_model_is_left_alone_and_keeps_its_form():
    model = parse("g (float[N, 2] x) => (float[N, 2] y) { w = Constant <value = float[2, 2] {1, 2, 3, 4}> () y = MatMul(x, w) }")  # fmt: skip
    before = model.SerializeToString()
    fresh = initialize_weights(model)
    assert model.SerializeToString() == before
    assert [n.op_type for n in fresh.graph.node] == ["Constant", "MatMul"]
    assert not np.array_equal(weights(fresh)["w"], weights(model)["w"])
    onnx.checker.check_model(fresh)


def test_coefficients_of_scikit_learn():
    """LinearClassifier of ai.onnx.ml holds them as (classes, features)."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18, "ai.onnx.ml": 3]> g (float[N, 4] x) => (int64[N] k, float[N, 3] p) {
        k, p = ai.onnx.ml.LinearClassifier <classlabels_ints = [0, 1, 2], post_transform = "SOFTMAX",
               coefficients = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.0, 2.0, 3.0], intercepts = [1.0, 2.0, 3.0]> (x) }"""
    )
    coefficients, intercepts = drawn(model, method="orthogonal").values()
    assert coefficients.shape == (3, 4)
    np.testing.assert_allclose(coefficients @ coefficients.T, np.eye(3), atol=1e-6)
    assert (intercepts == 0).all()


def test_a_shared_weight_is_drawn_as_its_first_reader_wants_it():
    model = build("a = MatMul(x, w) t = Transpose <perm = [1, 0]> (w) y = MatMul(a, t)", {"w": zeros(40, 90)})
    assert_distributed(drawn(model, method="lecun")["w"], math.sqrt(1 / 40), True)


def test_parts_of_one_tensor_are_drawn_by_what_reads_each():
    model = build(
        "a, b = Split <axis = 0> (w, s) u = MatMul(x, a) y = Gemm <transB = 1> (u, b)",
        {"w": zeros(190, 90), "s": np.array([40, 150])},
    )
    w = drawn(model, method="lecun")["w"]
    assert_distributed(w[:40], math.sqrt(1 / 40), True)
    assert_distributed(w[40:], math.sqrt(1 / 90), True)


def test_a_weight_that_is_put_together_with_another():
    model = build("c = Concat <axis = 0> (w, v) y = MatMul(x, c)", {"w": zeros(100, 90), "v": zeros(60, 90)})
    fresh = drawn(model, method="lecun")
    for array in fresh.values():
        assert_distributed(array, math.sqrt(1 / 160), True)
    assert not np.array_equal(fresh["w"][:60], fresh["v"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"names": "nothing"}, UnknownNameError, r"\['nothing'\]"),
        ({"names": []}, NoTrainableWeightError, "empty"),
        ({"method": "henormal"}, UnknownNameError, r"no method 'henormal'.*'he_uniform'"),
        ({"method": {"w": None}}, UnknownNameError, "no method None"),
        ({"method": {"nothing": "he"}}, UnknownNameError, r"\['nothing'\]"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"seed": 2**64}, ValueError, "seed must be"),
        ({"seed": 0.5}, ValueError, "seed must be"),
        ({"gain": 0}, ValueError, "gain must be in"),
        ({"gain": "relu"}, TypeError, "gain must be a number"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        initialize_weights(DENSE, **options)


def test_a_weight_whose_use_is_unknown():
    model = build("a = Concat <axis = 0> (x, w) y = Softmax(a)", {"w": zeros(3, 4)})
    with pytest.raises(InvalidModelError, match=r"Concat uses weight 'w'.*'w': 'normal'"):
        initialize_weights(model)
    assert np.std(drawn(model, method="normal")["w"]) > 0
