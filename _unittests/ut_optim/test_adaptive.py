"""Rules of Adam's, AdaGrad's and the leader's families where their formulas have no value, or a poor one."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcustom import optim
from onnxcustom.optim.function import build_update

from .rule_cases import data, trajectory

# Rule and options, and how many nodes read or write a whole tensor: the time a large one takes.
RULES = [
    ("Adam", {}, 12),
    ("AdamW", {}, 13),
    ("AMSGrad", {}, 13),
    ("RAdam", {}, 13),
    ("Nadam", {}, 14),
    ("Adamax", {}, 10),
    ("AdaGrad", {}, 7),
    ("AdaDelta", {}, 15),
    ("RMSProp", {}, 9),
    ("RMSProp", {"centered": True}, 13),
    ("Ftrl", {}, 16),
    ("Ftrl", {"lamda1": 0.0}, 14),
    ("FTML", {}, 9),
]
EACH = pytest.mark.parametrize(("name", "options"), [row[:2] for row in RULES])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.mark.parametrize(("name", "options", "passes"), RULES)
def test_passes_over_memory(name, options, passes):
    graph = build_update(optim.create(name, **options), np.dtype(np.float32), (2, 3), 18).graph
    shapes = [tuple(node.outputs[0].shape) for node in graph]
    assert set(shapes) <= {(), (2, 3)}
    assert shapes.count((2, 3)) == passes


@EACH
@DTYPES
def test_a_gradient_of_zero(name, options, dtype):
    w, _ = data((2, 3), dtype)
    rule = optim.create(name, **options)
    last = list(trajectory(rule, w, [np.zeros_like(w)] * 8))[-1]
    # Ftrl takes the best weight for no gradient at all, others keep theirs but for decay.
    wanted = 0 * w if name == "Ftrl" else w * (1 - rule.learning_rate * rule.wd) ** 8
    np.testing.assert_allclose(last, wanted, rtol=1e-6)


@EACH
@DTYPES
def test_a_learning_rate_of_zero_leaves_the_weight(name, options, dtype):
    w, gradients = data((2, 3), dtype)
    for by in ({"learning_rate": 0.0}, {"lr_mult": {0: 0.0}}):
        for got in trajectory(optim.create(name, **options, **by), w, gradients):
            np.testing.assert_array_equal(got, w)


@EACH
def test_a_warm_up_from_zero(name, options):
    w, gradients = data((2, 3), np.float32)
    rule = optim.create(name, **options, learning_rate=lambda t: (t - 1) / 100)
    steps = list(trajectory(rule, w, gradients))
    np.testing.assert_array_equal(steps[0], w)
    assert np.isfinite(steps).all()
    assert (steps[-1] != w).all()


@EACH
def test_master_copies(name, options):
    w, gradients = data((3, 2), np.float16)
    half = optim.create(name, **options, learning_rate=0.1, multi_precision=True).init_learning_rate()
    state = list(half.create_state(w).values())
    wide = trajectory(
        optim.create(name, **options, learning_rate=0.1),
        w.astype(np.float32),
        [g.astype(np.float32) for g in gradients],
    )
    for t, (g, wanted) in enumerate(zip(gradients, wide, strict=True), 1):
        half.update_weights(0, "cpu", w, g, 1, state)
        half.update_learning_rate(t)
        np.testing.assert_array_equal(w, wanted.astype(np.float16))


def test_a_constant_gradient_has_no_negative_variance():
    g = (100 * np.random.default_rng(0).normal(size=50)).astype(np.float32)
    n, mean, lowest = np.zeros_like(g), np.zeros_like(g), 0.0
    for _ in range(300):
        n, mean = np.float32(0.9) * n + np.float32(0.1) * g**2, np.float32(0.9) * mean + np.float32(0.1) * g
        lowest = min(lowest, (n - mean**2).min())
    assert lowest < -1e-8  # in single precision, so that the formula as it is written has no root
    steps = list(trajectory(optim.create("RMSProp", centered=True), np.zeros_like(g), [g] * 300))
    assert np.isfinite(steps).all()


def test_ftrl_has_exact_zeros():
    w, _ = data((4,), np.float32)
    g = np.float32([0.05, -0.05, 0.5, -0.5])
    (new,) = trajectory(optim.create("Ftrl", lamda1=0.1), np.zeros_like(w), [g])
    np.testing.assert_array_equal(new == 0, [True, True, False, False])


def test_ftrl_is_the_minimum_of_what_it_stands_for():
    """The weight of Ftrl minimizes gradients, proximal terms and penalties together [McMahan 2013, (1)]."""
    w, gradients = data((5,), np.float64)
    rule = optim.create("Ftrl", lamda1=0.3, beta=0.7, learning_rate=0.2, wd=0.4)
    weights = [w, *trajectory(rule, w, gradients)]
    root = np.sqrt(np.cumsum(np.square(gradients), axis=0))
    sigma = np.diff(root, axis=0, prepend=0.0) / 0.2

    def objective(x):
        proximal = sum(s * (x - old) ** 2 for s, old in zip(sigma, weights, strict=False))
        smooth = np.sum(gradients, axis=0) * x + 0.5 * proximal + 0.5 * (0.7 / 0.2 + 0.4) * x**2
        return smooth + 0.3 * np.abs(x)

    best = objective(weights[-1])
    for step in (1e-3, -1e-3, 1e-1, -1e-1):
        assert (objective(weights[-1] + step) > best).all()


def test_momenta_of_nadam_multiply_for_each_weight():
    rule = optim.create("Nadam").init_learning_rate()
    w, gradients = data((2,), np.float32)
    first, second = (list(rule.init_state(w).values()) for _ in range(2))
    for t, g in enumerate(gradients, 1):
        for index, state in enumerate((first, second)):
            rule.update_weights(index, "cpu", w, g, 1, state)
        rule.update_learning_rate(t)
    momenta = 0.9 * (1 - 0.5 * 0.96 ** (0.004 * np.arange(1, 11)))
    for state in (first, second):
        assert state[2].dtype == np.float64
        np.testing.assert_allclose(state[2], momenta.prod(), rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "given", "option"),
    [
        ("Adam", "eps", "epsilon"),
        ("AdamW", "eps", "epsilon"),
        ("AMSGrad", "eps", "epsilon"),
        ("RAdam", "eps", "epsilon"),
        ("NAdam", "eps", "epsilon"),
        ("NAdam", "momentum_decay", "schedule_decay"),
        ("Adamax", "eps", "epsilon"),
        ("AdaGrad", "epsilon", "eps"),
        ("AdaDelta", "eps", "epsilon"),
        ("RMSProp", "eps", "epsilon"),
        ("RMSProp", "alpha", "gamma1"),
        ("RMSProp", "rho", "gamma1"),
        ("Ftrl", "lambda1", "lamda1"),
        ("FTML", "eps", "epsilon"),
        ("LAMB", "eps", "epsilon"),
    ],
)
def test_other_names_of_options(name, given, option):
    assert getattr(optim.create(name, **{given: 0.25}), option) == 0.25


@pytest.mark.parametrize(
    ("name", "option", "value", "interval"),
    [
        ("AdamW", "wd", -0.1, r"\[0, inf\)"),
        ("AMSGrad", "beta2", 1.0, r"\[0, 1\)"),
        ("RAdam", "beta1", -0.1, r"\[0, 1\)"),
        ("Nadam", "schedule_decay", -1, r"\[0, inf\)"),
        ("Adamax", "epsilon", 0, r"\(0, inf\)"),
        ("AdaGrad", "eps", 0, r"\(0, inf\)"),
        ("AdaDelta", "rho", 1, r"\[0, 1\)"),
        ("AdaDelta", "epsilon", -1e-5, r"\(0, inf\)"),
        ("RMSProp", "gamma1", 1.0, r"\[0, 1\)"),
        ("RMSProp", "gamma2", 1.0, r"\[0, 1\)"),
        ("RMSProp", "clip_weights", 0, r"\(0, inf\)"),
        ("Ftrl", "lamda1", -1, r"\[0, inf\)"),
        ("Ftrl", "beta", 0, r"\(0, inf\)"),
        ("FTML", "beta1", 1.0, r"\[0, 1\)"),
    ],
)
def test_out_of_range_says_the_range(name, option, value, interval):
    with pytest.raises(ValueError, match=f"{option} of {name} must be in {interval}, not {value}"):
        optim.create(name, **{option: value})


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("Adamax", 0.002),
        ("AdaGrad", 0.01),
        ("AdaDelta", 1.0),
        ("RMSProp", 0.001),
        ("Ftrl", 0.1),
        ("FTML", 0.01),
    ],
)
def test_default_learning_rate(name, rate):
    assert optim.create(name).init_learning_rate().value == rate
