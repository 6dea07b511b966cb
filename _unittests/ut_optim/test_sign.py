"""Signum, SignSGD and Lion: what the case tables do not show."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcustom import optim

from .rule_cases import one_update

W, G = np.array([4.0, -2.0, 0.5]), np.array([3.0, 0.0, -1e-9])


@pytest.mark.parametrize("name", ["Signum", "SignSGD", "Lion"])
@pytest.mark.parametrize("opset", [7, 9, 18])
def test_no_gradient_no_step(name, opset):
    rule = optim.create(name, learning_rate=0.25)
    np.testing.assert_array_equal(one_update(rule, W, G, opset), [3.75, -2.0, 0.75])


@pytest.mark.parametrize("name", ["SignSGD", "Lion"])
def test_the_size_of_the_gradient_does_not_matter(name):
    small, large = (one_update(optim.create(name), W, k * G) for k in (1e-5, 1e5))
    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}], ids=["default", "0", "dampening"]
)
def test_nesterov_needs_momentum_and_no_dampening(options):
    with pytest.raises(ValueError, match=r"nesterov of SignSGD needs momentum in \(0, 1\] and dampening 0"):
        optim.SignSGD(nesterov=True, **options)


def test_the_first_step_after_those_counted_as_done_is_not_dampened():
    options = {"learning_rate": 0.1, "momentum": 0.5, "dampening": 1.0}
    rule = optim.SignSGD(**options, begin_num_update=4)
    np.testing.assert_array_equal(one_update(rule, W, G), one_update(optim.SignSGD(**options), W, G))
    assert (one_update(rule, W, G) != W).any()


@pytest.mark.parametrize(
    ("target", "wd_mult", "factor"),
    [
        ({"role": "weight"}, None, 0.95),
        ({"role": "bias"}, None, 1.0),
        ({"role": "normalization"}, None, 1.0),
        ({"name": "a.b", "role": "bias"}, {"a.*": 2.0}, 0.9),
        ({"name": "a.b"}, {"a.b": 0.0}, 1.0),
    ],
)
@pytest.mark.parametrize("wd_lh", [0.5, lambda t: 0.5], ids=["number", "function"])
def test_wd_lh_is_a_decay_like_others(target, wd_mult, factor, wd_lh):
    rule = optim.Signum(0.1, wd_lh=wd_lh, wd_mult=wd_mult)
    np.testing.assert_allclose(one_update(rule, W, 0 * G, **target), factor * W)


def test_decay_of_lion_is_decoupled_unless_told_otherwise():
    np.testing.assert_allclose(one_update(optim.Lion(0.1, wd=0.5), W, 0 * G), 0.95 * W)
    coupled = optim.Lion(0.1, wd=0.5, decoupled_weight_decay=False)
    np.testing.assert_allclose(one_update(coupled, W, 0 * G), W - 0.1 * np.sign(W))
    with pytest.raises(TypeError, match="by position"):
        optim.Lion(0.1, 0.9, 0.99, True)
