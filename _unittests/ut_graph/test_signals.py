# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Constants that say where something is or how it is measured, and what looks like them and is trained."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcustom import TrainingStep
from onnxcustom.exceptions import NoTrainableWeightError

from .test_untrained import made, names

RNG = np.random.default_rng(0)

# -- positions ---------------------------------------------------------------------------------------

TIMES = "g (int64[N, 3] i, float[N, 3, 4] x) => (float[N, 3, 4] y)"
LAST, MIDDLE = "last = Constant<value = int64[1] {-1}>()", "middle = Constant<value = int64[1] {1}>()"
TURNED = "c = Cos(a) s = Sin(a) t = Concat<axis = -1>(c, s) p = MatMul(t, w) y = Add(p, x)"
PLACES = f"{LAST} r = Cast<to = 1>(i) u = Unsqueeze(r, last)"
ANGLES = {
    "Mul": (f"{PLACES} a = Mul(u, f)", [1.0, 0.01]),
    "Div": (f"{PLACES} a = Div(u, f)", [1.0, 100.0]),
    "MatMul": (f"{PLACES} a = MatMul(u, f)", [[1.0, 0.01]]),
    "a product of columns": (f"{MIDDLE} r = Cast<to = 1>(i) v = Unsqueeze(r, middle) b = MatMul(f, v) a = Transpose<perm = [0, 2, 1]>(b)", [[1.0], [0.01]]),
    "scaled": (f"{PLACES} h = Constant<value = float {{0.5}}>() b = Mul(u, h) d = Mul(b, f) a = Mul(d, h)", [1.0, 0.01]),
}  # fmt: skip


@pytest.mark.parametrize("way", ANGLES)
def test_frequencies_of_positions(way):
    text, frequencies = ANGLES[way]
    w = RNG.normal(size=(4, 4))
    assert names(f"{TIMES} {{ {text} {TURNED} }}", f=frequencies, w=w) == ["w"]
    only = TURNED.replace("Cos(a)", "Sin(a)")  # a layer of sines
    assert names(f"{TIMES} {{ {text} {only} }}", f=frequencies, w=w) == ["f", "w"]


def test_frequencies_of_positions_that_the_graph_counts():
    text = "k = Constant<value_int = 3>() z = Constant<value_int = 0>() e = Constant<value_int = 1>() n = Range(z, k, e)"
    text += f" {LAST} r = Cast<to = 1>(n) u = Unsqueeze(r, last) a = Mul(u, f) {TURNED}"
    assert names(f"{TIMES} {{ {text} }}", f=[1.0, 0.01], w=RNG.normal(size=(4, 4))) == ["w"]


def test_frequencies_of_real_numbers():
    """Fourier features of data may be trained; those of a time are a geometric sequence."""
    text = f"g (float[N, 1] r) => (float[N, 4] y) {{ a = Mul(r, f) {TURNED.replace('y = Add(p, x)', 'y = Neg(p)')} }}"
    w = RNG.normal(size=(8, 4))
    assert names(text, f=10.0 ** -np.arange(4), w=w) == ["w"]
    assert names(text, f=[1.0, 2.0, 3.0, 5.0], w=w) == ["f", "w"]


SCORES = "g (float[N, 2, 4] x, int64[N, 1, 2] i) => (float[N, 2, 2] y)"


def test_slopes_of_positions():
    text = "r = Cast<to = 1>(i) b = Mul(r, m) q = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(q) a = MatMul(q, t)"
    for added in ("s = Add(a, b) y = Softmax(s)", "s = Sub(a, b) y = Softmax(s)"):
        assert names(f"{SCORES} {{ {text} {added} }}", m=[[0.5], [0.25]], w=np.eye(4)) == ["w"]
    assert names(f"{SCORES} {{ {text} y = Add(a, b) }}", m=[[0.5], [0.25]], w=np.eye(4)) == ["m", "w"]


@pytest.mark.parametrize(("shape", "axes"), [((1, 3, 4, 2), (1, 2)), ((3, 4, 2), (1, 0))])
def test_coordinates_of_a_grid(shape, axes):
    grid = np.moveaxis(np.indices(shape[:-1])[list(axes)], 0, -1) / 2.0 - 1
    text = "g (float[N, 5] x) => (float[N, 5] y) { p = MatMul(t, w) k = Constant<value = int64[1] {-1}>() f = Reshape(p, k) z = Constant<value = int64[1] {0}>() e = Constant<value = int64[1] {5}>() s = Slice(f, z, e) y = Add(x, s) }"
    w = RNG.normal(size=(2, 5))
    assert names(text, t=grid, w=w) == ["w"]
    assert names(text, t=grid + 0.01 * RNG.normal(size=shape), w=w) == ["t", "w"]


@pytest.mark.parametrize("operator", ["Conv", "MatMul", "Mul"])
def test_numbers_whose_expectation_is_taken(operator):
    shape = {"Conv": "float[N, 8, 3, 1]", "MatMul": "float[N, 3, 8]", "Mul": "float[N, 3, 8]"}[operator]
    sizes = {"Conv": (1, 8, 1, 1), "MatMul": (8, 1), "Mul": (8,)}[operator]
    axis = 1 if operator == "Conv" else -1
    text = (
        f"g ({shape} x) => ({shape} y) {{ h = Mul(x, w) p = Softmax<axis = {axis}>(h) y = {operator}(p, k) }}"
    )
    text = text.replace(
        f"({shape} y)", "(float[N, A, B, C] y)" if operator == "Conv" else "(float[N, A, B] y)"
    )
    w = RNG.normal(size=sizes if operator == "Conv" else (8,))
    for first in (0.0, 3.5):
        assert names(text, w=w, k=np.arange(8.0).reshape(sizes) + first) == ["w"]
    assert names(text, w=w, k=RNG.normal(size=sizes)) == ["k", "w"]
    assert names(
        text.replace("Softmax<axis = 1>", "Relu").replace("Softmax<axis = -1>", "Relu"),
        w=w,
        k=np.arange(8.0).reshape(sizes),
    ) == ["k", "w"]


# -- spectra -------------------------------------------------------------------------------------------

PHASES = 2 * np.pi * np.arange(9)[:, None] * np.arange(16) / 16
HANN = np.hanning(17)[:16]
REAL, IMAGINARY = HANN * np.cos(PHASES), HANN * np.sin(PHASES)
POWER = "a2 = Mul(a, a) b2 = Mul(b, b) p = Add(a2, b2)"
SOUND = "g (float[N, 1, 64] x) => (float[N, T, 3] y)"
ENDS = "t = Transpose<perm = [0, 2, 1]>(p) y = MatMul(t, w)"


def test_a_fourier_basis():
    w = RNG.normal(size=(9, 3))
    two = f"{SOUND} {{ a = Conv<strides = [8]>(x, c) b = Conv<strides = [8]>(x, s) {POWER} {ENDS} }}"
    assert names(two, c=REAL[:, None], s=-IMAGINARY[:, None], w=w) == ["w"]
    noisy = REAL + 0.01 * RNG.normal(size=REAL.shape)
    assert names(two, c=noisy[:, None], s=IMAGINARY[:, None], w=w) == ["c", "s", "w"]
    one = f"{SOUND} {{ q = Conv<strides = [8]>(x, k) n = Constant<value = int64[2] {{9, 9}}>() a, b = Split<axis = 1>(q, n) {POWER} {ENDS} }}"
    assert names(one, k=np.concatenate([REAL, IMAGINARY])[:, None], w=w) == ["w"]
    product = f"g (float[N, 16] x) => (float[N, 3] y) {{ a = MatMul(x, c) b = MatMul(x, s) {POWER} y = MatMul(p, w) }}"
    assert names(product, c=REAL.T, s=IMAGINARY.T, w=w) == ["w"]


@pytest.mark.parametrize("numbers", ["ones", "signs"])
def test_numbers_of_one_size_are_no_fourier_basis(numbers):
    """Their squares add up to the same everywhere, too."""
    k = RNG.choice([-1.0, 1.0], size=(18, 1, 16)) if numbers == "signs" else np.ones((18, 1, 16))
    text = f"{SOUND} {{ a = Conv<strides = [8]>(x, k) t = Transpose<perm = [0, 2, 1]>(a) y = MatMul(t, w) }}"
    assert names(text, k=k, w=RNG.normal(size=(18, 3))) == ["k", "w"]


def test_a_bank_of_filters():
    """Triangles over the frequencies; with the signs of a trained matrix it is one."""
    edges = np.linspace(0, 31, 10)
    bank = np.array(
        [np.interp(np.arange(32), edges[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(8)]
    ).T
    text = "g (float[N, 32] x) => (float[N, 3] y) { m = MatMul(x, k) l = Relu(m) y = MatMul(l, w) }"
    w = RNG.normal(size=(8, 3))
    assert names(text, k=bank, w=w) == ["w"]
    assert names(text, k=bank - 1e-3, w=w) == ["k", "w"]
    assert names(text, k=np.roll(bank, 16, axis=0)[::-1] + np.eye(32, 8)[:, ::-1], w=w) == ["k", "w"]
    # Ones and zeros: columns that are chosen.
    assert names(text, k=np.eye(32)[:, :8], w=w) == ["k", "w"]


@pytest.mark.parametrize("way", ["ScatterElements", "ScatterND"])
def test_a_bank_of_filters_written_into_zeros(way):
    """Only the numbers that are not zero are in the file; others, written in the same way, are weights."""
    edges = np.linspace(0, 31, 10)
    bank = np.array(
        [np.interp(np.arange(32), edges[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(8)]
    )
    places = np.flatnonzero(bank)
    scatter = "a = ScatterElements(z, i, k)" if way == "ScatterElements" else "a = ScatterND(z, i, k)"
    text = f"s = Constant<value = int64[2] {{8, 32}}>() {scatter} c = Reshape(a, s) d = Transpose(c)"
    text = f"g (float[N, 32] x) => (float[N, 3] y) {{ {text} m = MatMul(x, d) l = Relu(m) y = MatMul(l, w) }}"
    given = {"z": np.zeros(256), "i": places if way == "ScatterElements" else places[:, None]}
    given["w"] = RNG.normal(size=(8, 3))
    assert names(text, **given, k=bank.ravel()[places]) == ["w"]
    assert names(text, **given, k=RNG.normal(size=len(places))) == ["k", "w"]
    added = text.replace("(z, i, k)", '<reduction = "add">(z, i, k)')
    assert "k" in names(added, **given, k=bank.ravel()[places])


def test_nothing_but_tables():
    text = (
        f"{SOUND} {{ a = Conv<strides = [8]>(x, c) b = Conv<strides = [8]>(x, s) {POWER} y = Identity(p) }}"
    )
    model = made(text.replace("T, 3", "T, U"), c=REAL[:, None], s=IMAGINARY[:, None])
    with pytest.raises(NoTrainableWeightError, match=r"where it is named: 'c' \(a Fourier basis\), 's' "):
        TrainingStep(model)


WINDOWS = {
    "hann": np.hanning(32),
    "periodic": np.hanning(33)[:32],
    "hamming": np.hamming(32),
    "blackman": np.blackman(33)[:32],
    "padded": np.pad(np.hanning(33)[:32], 8),
    "root": None,
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_windows(kind):
    window = np.sqrt(np.hanning(32)) if kind == "root" else WINDOWS[kind]
    size = len(window)
    text = f"g (float[N, {size}] x) => (float[N, 3] y) {{ f = Mul(x, h) y = MatMul(f, w) }}"
    w = RNG.normal(size=(size, 3))
    # What is no sum of a few cosines is a weight; it may be one that was trained.
    assert names(text, h=window, w=w) == (["h", "w"] if kind == "root" else ["w"])
    assert names(text, h=window + 0.01 * RNG.normal(size=size), w=w) == ["h", "w"]
    assert names(text, h=np.ones(size), w=w) == ["h", "w"]


# -- what is written over, units ----------------------------------------------------------------------


def test_zeros_that_others_are_written_over():
    text = "g (float[N, 3] x) => (float[N, 5] y) { s = ScatterElements<axis = 1>(z, i, u) m = MatMul(x, s) y = Neg(m) }"
    i, u = np.array([[0, 4], [1, 2], [3, 3]]), RNG.normal(size=(3, 2))
    assert names(text, z=np.zeros((3, 5)), i=i, u=u) == ["u"]
    assert names(text, z=np.ones((3, 5)), i=i, u=u) == ["u", "z"]


def test_units_of_integers():
    table = "g (int64[N, 3] i) => (float[N, 3, 2] y) { q = Gather(t, i) f = Cast<to = 1>(q) r = Gather(s, i) e = Mul(f, r) y = MatMul(e, w) }"
    t = RNG.integers(-128, 128, size=(5, 4)).astype(np.int8)
    assert names(table, t=t, s=np.full((5, 1), 0.01), w=np.ones((4, 2))) == ["w"]
    product = "g (float[N, 4] x) => (float[N, 2] y) { h = MatMul(x, w) a, b, z = DynamicQuantizeLinear(h) p = MatMulInteger(a, k, z) f = Cast<to = 1>(p) c = Mul(b, s) m = Mul(f, c) y = Add(m, bias) }"
    k = RNG.integers(-128, 128, size=(4, 2)).astype(np.int8)
    assert "s" not in names(product, k=k, s=[0.01, 0.02], w=np.eye(4), bias=[0.1, 0.2])
    assert "bias" in names(product, k=k, s=[0.01, 0.02], w=np.eye(4), bias=[0.1, 0.2])


def test_integers_that_are_no_numbers_have_no_unit():
    """Shapes and indices are integers, too."""
    text = "g (float[N, 4] x) => (float[N, 2, 2] y) { k = Constant<value = int64[3] {-1, 2, 2}>() r = Reshape(x, k) i = Constant<value = int64[2] {1, 0}>() q = Gather<axis = 1>(r, i) y = Mul(q, w) }"
    assert names(text, w=RNG.normal(size=(2, 2))) == ["w"]


def test_by_name_it_is_trained():
    text = f"{SOUND} {{ a = Conv<strides = [8]>(x, c) b = Conv<strides = [8]>(x, s) {POWER} {ENDS} }}"
    model = made(text, c=REAL[:, None], s=IMAGINARY[:, None], w=0.1 * RNG.normal(size=(9, 3)))
    step = TrainingStep(model, "squared_error", "adam", weights=["c", "w"])
    x = RNG.normal(size=(2, 1, 64)).astype(np.float32)
    y = step.predict(x)["y"] + 1
    losses = [step.run(x, y) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert not np.array_equal(step.weights()["c"], REAL[:, None].astype(np.float32))
