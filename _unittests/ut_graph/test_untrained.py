# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Constants that exporters fold and nobody trains, and what looks like them and is trained."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from onnxcustom import OrtGradientForwardBackward, TrainingStep, gradient_graph, weights
from onnxcustom.exceptions import InvalidModelError, NoTrainableWeightError, UnknownNameError
from onnxcustom.graph import prepare, replace_weights, select_weights, to_proto

LOW = float(np.finfo(np.float32).min)


def made(text: str, dtype: str = "float", opset: int = 18, **constants: object) -> onnx.ModelProto:
    text = text if dtype == "float" else text.replace("float[", f"{dtype}[")
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    kind = {"float": np.float32, "double": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    for name, array in constants.items():
        array = np.asarray(array)
        array = array.astype(kind[dtype]) if array.dtype.kind == "f" else array
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def names(text: str, dtype: str = "float", opset: int = 18, **constants: object) -> list[str]:
    model = made(text, dtype, opset, **constants)
    found = list(weights(model))
    assert list(weights(to_proto(prepare(model)))) == found
    return sorted(found)


# -- masks -------------------------------------------------------------------------------------------

HEAD = "g (float[N, 2, 4] x) => (float[N, 2, 2] y) <float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}>"
SCORES = "q = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(q) a = MatMul(q, t)"
ADDED = {
    "as it is": "b = Add(a, m) y = Softmax(b)",
    "first operand": "b = Add(m, a) y = Softmax(b)",
    "Sum": "b = Sum(a, m) y = Softmax(b)",
    "LogSoftmax": "b = Add(a, m) y = LogSoftmax(b)",
    "scaled after": "h = Constant<value = float {0.5}>() b = Add(a, m) s = Mul(b, h) y = Softmax(s)",
    "divided before": "h = Constant<value = float {2.0}>() s = Div(a, h) b = Add(s, m) y = Softmax(b)",
    "slice, unsqueeze": "z = Constant<value = int64[1] {0}>() e = Constant<value = int64[1] {2}>() c = Slice(m, z, e) u = Unsqueeze(c, z) b = Add(a, u) y = Softmax(b)",
    "expand": "s = Shape(a) u = Expand(m, s) b = Add(a, u) y = Softmax(b)",
    "cast": "c = Cast<to = 11>(m) d = Cast<to = 1>(c) b = Add(a, d) y = Softmax(b)",
    "another bias before": "b0 = Add(a, r) b = Add(b0, m) y = Softmax(b)",
    "another bias behind": "b0 = Add(a, m) b = Add(b0, r) y = Softmax(b)",
    "softcap": "c = Tanh(a) b = Add(c, m) y = Softmax(b)",
    "reshaped between": "k = Constant<value = int64[3] {-1, 2, 2}>() b = Add(a, m) v = Reshape(b, k) y = Softmax(v)",
    "written out": "k = Constant<value = int64[1] {-1}>() b = Add(a, m) h = ReduceMax(b, k) d = Sub(b, h) e = Exp(d) n = ReduceSum(e, k) y = Div(e, n)",
}  # fmt: skip


@pytest.mark.parametrize("value", [-np.inf, LOW, -1e9, -1e4, 0.0])
@pytest.mark.parametrize("way", ADDED)
def test_mask(way, value):
    more = {"r": np.array([[0.5, 0.25], [0.1, 0.2]])} if "another" in way else {}
    assert names(f"{HEAD} {{ {SCORES} {ADDED[way]} }}", m=[[0.0, value], [0.0, 0.0]], **more) == sorted(
        ["w", *more]
    )


@pytest.mark.parametrize("way", ADDED)
@pytest.mark.parametrize(
    "mask", [[[0, -9999.0], [0, 0]], [[0, -100.0], [0, 0]], [[0, -1e9], [0, 1e-3]], [[0, 1e9], [0, 0]]]
)
def test_what_does_more_than_block_is_trained(way, mask):
    more = {"r": np.array([[0.5, 0.25], [0.1, 0.2]])} if "another" in way else {}
    assert names(f"{HEAD} {{ {SCORES} {ADDED[way]} }}", m=mask, **more) == sorted(["m", "w", *more])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
@pytest.mark.parametrize("value", [-1e4, -np.inf, 0.0])
def test_mask_of_other_types(dtype, value):
    assert names(
        f"{HEAD} {{ {SCORES} b = Add(a, m) y = Softmax(b) }}", dtype, m=[[0.0, value], [0.0, 0.0]]
    ) == ["w"]


def test_masks_made_of_numbers():
    ones = np.array([[1.0, 0.0], [1.0, 1.0]])
    one, low = "o = Constant<value = float {1.0}>()", "k = Constant<value = float {-10000.0}>()"
    assert names(
        f"{HEAD} {{ {SCORES} {one} {low} i = Sub(o, m) n = Mul(i, k) b = Add(a, n) y = Softmax(b) }}", m=ones
    ) == ["w"]
    assert names(f"{HEAD} {{ {SCORES} b = Sub(a, m) y = Softmax(b) }}", m=1e4 * (1 - ones)) == ["w"]
    assert names(f"{HEAD} {{ {SCORES} {one} n = Mul(m, o) b = Add(a, n) y = Softmax(b) }}", m=ones) == [
        "m",
        "w",
    ]


def test_where():
    text = HEAD.replace("float[N, 2, 4] x", "float[N, 2, 4] x, bool[2, 2] c")
    for value in (-np.inf, LOW):
        assert names(
            f"{text} {{ {SCORES} b = Where(c, a, m) y = Softmax(b) }}", m=np.full((2, 2), value)
        ) == ["w"]
        both = {"m": np.full((2, 2), value), "z": np.zeros((2, 2))}
        assert names(f"{text} {{ {SCORES} n = Where(c, z, m) b = Add(a, n) y = Softmax(b) }}", **both) == [
            "w"
        ]
    assert names(f"{text} {{ {SCORES} b = Where(c, a, m) y = Softmax(b) }}", m=np.zeros((2, 2))) == ["m", "w"]


@pytest.mark.parametrize("dtype", ["float", "double", "float16"])
def test_zeros_that_are_biases(dtype):
    zeros, two = np.zeros((2, 4)), np.zeros(4)
    line = HEAD.replace("float[N, 2, 2] y", "float[N, 2, 4] y")
    assert names(f"{line} {{ p = MatMul(x, w) y0 = Add(p, m) y = Softmax(y0) }}", dtype, m=two) == ["m", "w"]
    assert names(f"{line} {{ p = MatMul(x, w) y0 = Add(p, m) y = Softmax(y0) }}", dtype, m=zeros) == [
        "m",
        "w",
    ]
    # Behind the product, not on its way to a Softmax.
    assert names(f"{HEAD} {{ {SCORES} y = Add(a, m) }}", dtype, m=np.zeros((2, 2))) == ["m", "w"]
    # A weight that is made of two.
    lora = f"{line} {{ d = MatMul(u, v) e = Add(w, d) p = MatMul(x, e) y0 = Add(p, m) y = Softmax(y0) }}"
    assert names(lora, dtype, m=two, u=np.ones((4, 1)), v=np.ones((1, 4))) == ["m", "u", "v", "w"]
    # Between the values that attention gives and the next layer.
    text = (
        f"{line} {{ {SCORES} s = Softmax(a) c = MatMul(s, q) b = Add(c, m) l = MatMul(b, v) y = Softmax(l) }}"
    )
    assert names(text, dtype, m=two, v=np.eye(4)) == ["m", "v", "w"]


def test_tables_of_relative_positions_are_weights():
    text = f"{HEAD} {{ {SCORES} t1 = Gather(m, i) k = Constant<value = int64[1] {{-1}}>() t2 = Squeeze(t1, k) b = Add(a, t2) y = Softmax(b) }}"
    indices = np.array([[0, 1], [2, 0]])
    for table in (np.zeros((3, 1)), np.array([[0.1], [0.2], [0.3]])):
        assert names(text, m=table, i=indices) == ["m", "w"]


def test_mask_in_a_branch():
    text = (
        HEAD.replace("float[N, 2, 4] x", "float[N, 2, 4] x, bool f")
        + f"""{{ {SCORES}
        b = If(f) <then_branch = t () => (float[N, 2, 2] p) {{ p = Add(a, m) }}, else_branch = e () => (float[N, 2, 2] r) {{ r = Identity(a) }}>
        y = Softmax(b) }}"""
    )
    for value in (0.0, LOW):
        assert names(text, m=[[0.0, value], [0.0, 0.0]]) == ["w"]


# -- rotary tables -----------------------------------------------------------------------------------

ROTARY = "g (float[N, 3, 4] x) => (float[N, 3, 4] y) <float[4, 4] w = {1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 5, 0, 1}, int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] last = {-1}>"
HALVES = "q = MatMul(x, w) q1 = Slice(q, zero, two, last) q2 = Slice(q, two, four, last)"
ANGLES = np.arange(1, 4)[:, None] * np.array([1.0, 0.1])
WIDE = np.concatenate([ANGLES, ANGLES], -1)
ROTATED = {
    "rotate_half": (f"{HALVES} n = Neg(q2) r = Concat<axis = -1>(n, q1) a = Mul(q, c) b = Mul(r, s) y = Add(a, b)", WIDE),
    "as a sequence": ("q = MatMul(x, w) size = Constant<value_int = 2>() h = SplitToSequence<axis = -1>(q, size) i = Constant<value_int = 0>() j = Constant<value_int = 1>() q1 = SequenceAt(h, i) q2 = SequenceAt(h, j) n = Neg(q2) r = Concat<axis = -1>(n, q1) a = Mul(q, c) b = Mul(r, s) y = Add(a, b)", WIDE),
    "complex pairs": (f"{HALVES} a1 = Mul(q1, c) b1 = Mul(q2, s) d1 = Sub(a1, b1) a2 = Mul(q1, s) b2 = Mul(q2, c) d2 = Add(a2, b2) y = Concat<axis = -1>(d1, d2)", ANGLES),
    "gathered": (f"{HALVES} n = Neg(q2) r = Concat<axis = -1>(n, q1) cg = Gather(c, positions) sg = Gather(s, positions) a = Mul(q, cg) b = Mul(r, sg) y = Add(a, b)", WIDE),
    "unsqueezed": (f"{HALVES} n = Neg(q2) r = Concat<axis = -1>(n, q1) cg = Unsqueeze(c, zero) sg = Unsqueeze(s, zero) a = Mul(cg, q) b = Mul(sg, r) y = Add(b, a)", WIDE),
    "tables in two": (f"{HALVES} n = Neg(q2) r = Concat<axis = -1>(n, q1) cc = Concat<axis = -1>(c, c) ss = Concat<axis = -1>(s, s) a = Mul(q, cc) b = Mul(r, ss) y = Add(a, b)", ANGLES),
    "leading axes": (f"{HALVES} n = Neg(q2) r = Concat<axis = -1>(n, q1) a = Mul(q, c) b = Mul(r, s) y = Add(a, b)", WIDE[None]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float", "double", "float16", "bfloat16"])
@pytest.mark.parametrize("way", ROTATED)
def test_rotary(way, dtype):
    text, angles = ROTATED[way]
    line = (
        ROTARY.replace("float[N, 3, 4] x", "float[N, 3, 4] x, int64[3] positions")
        if way == "gathered"
        else ROTARY
    )
    assert names(f"{line} {{ {text} }}", dtype, c=np.cos(angles), s=np.sin(angles)) == ["w"]
    # Numbers of no angle multiply like weights.
    assert names(f"{line} {{ {text} }}", dtype, c=0.5 + np.cos(angles), s=np.sin(angles)) == ["c", "s", "w"]


def test_both_in_one_table():
    text = f"{HALVES} co = Slice(t, zero, two, last) si = Slice(t, two, four, last) a1 = Mul(q1, co) b1 = Mul(q2, si) d1 = Sub(a1, b1) a2 = Mul(q1, si) b2 = Mul(q2, co) d2 = Add(a2, b2) y = Concat<axis = -1>(d1, d2)"
    assert names(f"{ROTARY} {{ {text} }}", t=np.concatenate([np.cos(ANGLES), np.sin(ANGLES)], -1)) == ["w"]


def test_ones_and_zeros_that_multiply_different_tensors_are_weights():
    """c² + s² = 1, but nothing is rotated: a gate that is closed so far."""
    text = f"{ROTARY} {{ p = MatMul(x, w) f = Relu(p) a = Mul(x, c) b = Mul(f, s) y = Add(a, b) }}"
    assert names(text, c=np.ones(4), s=np.zeros(4)) == ["c", "s", "w"]
    text = f"{ROTARY} {{ f = MatMul(x, w) a = Mul(x, c) b = Mul(f, s) y = Add(a, b) }}"
    assert names(text, c=np.ones(4), s=np.zeros(4)) == ["c", "s", "w"]


def test_sines_that_are_added_are_weights():
    table = np.concatenate([np.sin(ANGLES), np.cos(ANGLES)], -1)
    assert names(f"{ROTARY} {{ p = Add(x, t) y = MatMul(p, w) }}", t=table) == ["t", "w"]


# -- initial states, epsilons, bounds ------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize(
    "way",
    [
        "Identity(h)",
        "Expand(h, size)",
        "Tile(h, ones)",
        "Slice(h, at0, at1)",
        "Concat<axis = 0>(h)",
        "Cast<to = 1>(h)",
        "Unsqueeze(flat, at0)",
    ],
)
def test_initial_states(operator, way):
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[operator]
    state = "i" if operator != "LSTM" else "i, i"
    text = f"g (float[5, 1, 2] x) => (float[5, 1, 1, 3] y) {{ i = {way} y = {operator}<hidden_size = 3>(x, w, r, , , {state}) }}"
    arrays = {
        "w": np.ones((1, gates * 3, 2)),
        "r": np.ones((1, gates * 3, 3)),
        "h": np.full((1, 1, 3), 0.5),
        "flat": np.zeros((1, 3)),
    }
    more = {
        "size": np.array([1, 1, 3]),
        "ones": np.array([1, 1, 1]),
        "at0": np.array([0]),
        "at1": np.array([1]),
    }
    assert names(text, **arrays, **more) == ["r", "w"]


def test_states_that_are_computed_or_chosen_have_weights():
    text = "g (float[5, 1, 2] x, int64[1] who) => (float[5, 1, 1, 3] y) { e = Gather(table, who) i = Unsqueeze(e, at0) y = GRU<hidden_size = 3>(x, w, r, , , i) }"
    arrays = {
        "w": np.ones((1, 9, 2)),
        "r": np.ones((1, 9, 3)),
        "table": np.ones((4, 3)),
        "at0": np.array([0]),
    }
    assert names(text, **arrays) == ["r", "table", "w"]
    # A vector of zeros that is a bias as well.
    text = "g (float[5, 1, 2] x) => (float[5, 1, 1, 3] y) { o = GRU<hidden_size = 3>(x, w, r, , , h) y = Add(o, h) }"
    assert names(text, w=arrays["w"], r=arrays["r"], h=np.zeros((1, 1, 3))) == ["h", "r", "w"]


@pytest.mark.parametrize("dtype", ["float", "double", "float16"])
@pytest.mark.parametrize("end", ["Log(a)", "Sqrt(a)", "Pow(a, k)", "Div(x, a)", "Reciprocal(a)", "Log(c)"])
def test_epsilon(dtype, end):
    number = {"float": 1, "double": 11, "float16": 10}[dtype]
    text = f"g (float[N, 1] x) => (float[N, 1] y) {{ p = MatMul(x, w) a = Add(p, e) c = Cast<to = {number}>(a) y = {end} }}"
    more = {"k": np.array([0.5])} if "k" in end else {}
    for value in (1e-6, 1e-5, 9e-4):
        assert names(text, dtype, w=[[2.0]], e=[value], **more) == ["w"]
    for value in (0.0, 0.5, 2e-3):
        assert names(text, dtype, w=[[2.0]], e=[value], **more) == ["e", "w"]


def test_small_biases_elsewhere_are_weights():
    line = "g (float[N, 1] x) => (float[N, 1] y)"
    for end in ("Relu(a)", "Div(a, x)", "Exp(a)"):
        assert names(f"{line} {{ p = MatMul(x, w) a = Add(p, e) y = {end} }}", w=[[2.0]], e=[1e-5]) == [
            "e",
            "w",
        ]


def test_bounds_written_out():
    line = "g (float[N, 2] x) => (float[N, 2] y)"
    assert names(
        f"{line} {{ p = MatMul(x, w) a = Max(p, low) y = Min(high, a) }}",
        w=np.eye(2),
        low=np.zeros(2),
        high=np.full(2, 6.0),
    ) == ["w"]
    assert names(f"{line} {{ p = MatMul(x, w) y = Max(p, low) }}", w=np.eye(2), low=np.array([0.0, 1.0])) == [
        "low",
        "w",
    ]


# -- normalizations that are written out ---------------------------------------------------------------

GROUPS = "g (float[N, 4, 3] x) => (float[N, 4, 3] y)"
GROUPED = (
    "k = Constant<value = int64[3] {0, 2, -1}>() r = Reshape(x, k) i = InstanceNormalization(r, one, zero)"
)
BACK = "f = Shape(x) j = Reshape(i, f)"
OUT = "m = Mul(j, w) y = Add(m, b)"
SCALED = {"w": np.arange(1.0, 5).reshape(4, 1), "b": np.arange(4.0).reshape(4, 1)}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "text",
    [
        f"{GROUPED} {BACK} {OUT}",
        f"{GROUPED} {BACK} m = Mul(w, j) y = Add(b, m)",
        f"o = Constant<value = int64[1] {{0}}>() u = Squeeze(w, o) e = Unsqueeze(u, o) {GROUPED} {BACK} m = Mul(j, e) y = Add(m, b)",
        f"{GROUPED} f = Constant<value = int64[3] {{0, 4, 3}}>() j = Reshape(i, f) {OUT}",
    ],
    ids=["as exported", "other side", "moved", "constant shape"],
)
def test_group_normalization_of_exporters(text, groups):
    """Its ones and zeros are no weights, the scale and the bias behind it are."""
    text = text.replace("{0, 2, -1}", f"{{0, {groups}, -1}}")
    scaled = {"w": SCALED["w"][None], "b": SCALED["b"]} if "Squeeze" in text else SCALED
    pair = {"one": np.ones(groups), "zero": np.zeros(groups)}
    assert names(f"{GROUPS} {{ {text} }}", **scaled, **pair) == ["b", "w"]
    step = TrainingStep(made(f"{GROUPS} {{ {text} }}", **scaled, **pair), "squared_error", weights=["one"])
    assert list(step.weights()) == ["one"]


def test_groups_of_one_channel_need_no_second_reshape():
    text = f"{GROUPED} m = Mul(i, w) y = Add(m, b)".replace("{0, 2, -1}", "{0, 4, -1}")
    pair = {"one": np.ones(4), "zero": np.zeros(4)}
    assert names(f"{GROUPS} {{ {text} }}", **SCALED, **pair) == ["b", "w"]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_normalization_of_weights(scale):
    """Convolutions whose kernels are standardized: nobody gave that a scale, or it is a gain of its own."""
    text = """g (float[N, 3, 4, 4] x) => (float[N, 2, 2, 2] y) {
        k = Constant<value = int64[3] {1, 2, 27}>() r = Reshape(w, k)
        s = BatchNormalization(r, one, zero, zero, one) f = Shape(w) v = Reshape(s, f) y = Conv(x, v) }"""
    given = {"w": np.arange(54.0).reshape(2, 3, 3, 3), "one": np.full(2, scale), "zero": np.zeros(2)}
    assert names(text, **given) == (["w"] if scale == 1 else ["one", "w"])


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        (f"i = InstanceNormalization(x, one, zero) j = Relu(i) {OUT}", 1.0),
        ("i = InstanceNormalization(x, one, zero) m = Mul(i, w) y = Add(m, b)", 1.0),
        (f"{GROUPED} f = Shape(x) y = Reshape(i, f)", 1.0),
        (f"{GROUPED} {BACK} y = Mul(j, w)", 1.0),
        (f"{GROUPED} {BACK} q = Relu(x) m = Mul(j, q) y = Add(m, b)", 1.0),
        (f"{GROUPED} {BACK} {OUT}", 1.1),
        (f"{GROUPED} {BACK} m = Mul(j, w) n = Add(m, b) y = Add(n, j)", 1.0),
    ],
    ids=["begins", "begins and scaled", "alone", "no bias", "scaled by data", "trained", "read twice"],
)
def test_instance_normalization_of_its_own(text, scale):
    """Scale and bias that begin as ones and zeros, or are what they are trained to be."""
    size = 2 if "Reshape" in text else 4
    found = names(f"{GROUPS} {{ {text} }}", **SCALED, one=np.full(size, scale), zero=np.zeros(size))
    assert {"one", "zero"} <= set(found)


# -- naming them -------------------------------------------------------------------------------------


def test_whoever_names_a_mask_trains_it():
    model = made(f"{HEAD} {{ {SCORES} b = Add(a, m) y = Softmax(b) }}", m=np.zeros((2, 2)))
    x, y = (
        np.random.default_rng(0).normal(size=(4, 2, 4)).astype(np.float32),
        np.full((4, 2, 2), [0.9, 0.1], np.float32),
    )
    assert select_weights(model, ["w", "m"]) == ["w", "m"]
    assert select_weights(model, "*") == ["w"]
    with pytest.raises(UnknownNameError):
        select_weights(model, "m*")
    for chosen in (["w", "m"], "m"):
        step = TrainingStep(model, "squared_error", "adam", learning_rate=0.1, weights=chosen)
        losses = [step.run(x, y) for _ in range(10)]
        assert losses[-1] < losses[0]
        assert step.weights()["m"].any()
        trained = {i.name: numpy_helper.to_array(i) for i in step.trained_model().graph.initializer}
        np.testing.assert_array_equal(trained["m"], step.weights()["m"])
        again = TrainingStep(model, "squared_error", "adam", learning_rate=0.1, weights=chosen)
        again.take_over(step)
        np.testing.assert_array_equal(again.weights()["m"], step.weights()["m"])
        assert again.run(x, y) == step.run(x, y)
    names = [v.name for v in gradient_graph(model, wrt=["m"]).graph.input]
    assert "m" in names
    assert OrtGradientForwardBackward(model, weights_to_train=["m"]).weights_to_train == ["m"]


def test_a_weight_that_is_trained_stays_one_whatever_its_numbers():
    """The step's graphs have no numbers in what is trained: zeros there are no mask."""
    bias = np.array([[0.5, -0.5], [0.25, 0.0]])
    model = made(f"{HEAD} {{ {SCORES} b = Add(a, m) y = Softmax(b) }}", m=bias)
    step = TrainingStep(model, "squared_error")
    assert list(step.weights()) == ["w", "m"]
    from onnxcustom.graph import trainable_values

    assert [v.name for v in trainable_values(step.recipe.base)] == ["w", "m"]


# -- NaN and infinity --------------------------------------------------------------------------------

TABLE = (
    "g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 0, 0, 1}> { a = MatMul(x, w) y = Mul(a, t) }"
)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite(value):
    model = made(TABLE, t=[1.0, value])
    assert list(weights(model)) == ["w"]
    for make in (
        lambda: TrainingStep(model, "squared_error"),
        lambda: gradient_graph(model),
        lambda: OrtGradientForwardBackward(model),
        lambda: select_weights(model),
    ):
        with pytest.warns(UserWarning, match="'t'"):
            make()
    for make in (
        lambda: TrainingStep(model, "squared_error", weights=["w", "t"]),
        lambda: gradient_graph(model, wrt=["t"]),
        lambda: OrtGradientForwardBackward(model, weights_to_train=["t"]),
        lambda: select_weights(model, "t"),
    ):
        with pytest.raises(InvalidModelError, match="'t'"):
            make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"freeze": "t"}, {"freeze": ["t"]}, {"freeze": "t*"}, {"weights": ["w"]}):
            step = TrainingStep(model, "squared_error", **options)
            assert list(step.weights()) == ["w"]
        mended = replace_weights(model, {"t": np.ones(2, np.float32)})
    assert list(weights(mended)) == ["w", "t"]


def test_nothing_but_infinity():
    line = "g (float[N, 2] x) => (float[N, 2] y) { y = Mul(x, t) }"
    with pytest.raises(NoTrainableWeightError, match="NaN or infinity"):
        TrainingStep(made(line, t=[1.0, np.inf]))


def test_scalar_by_name():
    model = made("g (float[N, 2] x) => (float[N, 2] y) { y = PRelu(x, slope) }", slope=[0.25])
    assert weights(model) == {}
    step = TrainingStep(model, "squared_error", weights="slope")
    step.run(-np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32))
    assert step.weights()["slope"] < 0.25


def test_what_cannot_be_written_back_is_an_error_beforehand():
    node = helper.make_node(
        "Scaler", ["x"], ["y"], domain="ai.onnx.ml", name="s", scale=[1.0, 2.0], offset=[0.0, 1.0]
    )
    ends = [helper.make_tensor_value_info(n, 1, ["N", 2]) for n in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)]
    with pytest.raises(UnknownNameError):
        TrainingStep(helper.make_model(graph, opset_imports=opsets, ir_version=8), weights="s_scale")
