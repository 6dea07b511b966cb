"""SGLD: its noise is normal, of the right size, and a function of (seed, step, weight)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from onnxcustom import optim

from .rule_cases import one_update

N = 4000


def noise(dtype=np.float64, t: int = 1, learning_rate: float = 0.25, seed: int = 0, **target):
    """Standardized noise of a step, from a weight of zeros without gradient."""
    rule = optim.SGLD(learning_rate, seed=seed, begin_num_update=t - 1)
    zeros = np.zeros(N, dtype)
    return one_update(rule, zeros, zeros, **target) / np.sqrt(learning_rate)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("learning_rate", [0.25, 1e-4])
def test_noise_is_normal_and_its_variance_is_the_learning_rate(dtype, learning_rate):
    # The bounds are at four standard deviations of what is measured.
    drawn = noise(dtype, learning_rate=learning_rate).astype(np.float64)
    assert abs(drawn.mean()) < 4 / np.sqrt(N)
    assert abs(drawn.var() - 1) < 4 * np.sqrt(2 / N)
    assert stats.kstest(drawn, "norm").pvalue > 1e-4


def test_same_seed_step_and_weight_same_noise():
    for target in ({}, {"index": 3}, {"name": "a"}):
        np.testing.assert_array_equal(noise(t=7, seed=5, **target), noise(t=7, seed=5, **target))


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"seed": 2**31}, {"t": 2}, {"index": 1}, {"index": 2}, {"name": "a"}, {"name": "b"}],
    ids=str,
)
def test_another_seed_step_or_weight_other_noise(other):
    assert abs(np.corrcoef(noise(), noise(**other))[0, 1]) < 4 / np.sqrt(N)


def test_noise_of_neighbours_is_independent():
    drawn = noise()
    for lag in (1, 2, 3, 64):
        assert abs(np.corrcoef(drawn[:-lag], drawn[lag:])[0, 1]) < 4 / np.sqrt(N - lag)


def test_float32_draws_what_float64_draws():
    np.testing.assert_allclose(noise(np.float32), noise(np.float64), atol=1e-4)


def test_updates_of_several_weights_draw_their_own():
    rule = optim.SGLD(0.25).init_learning_rate()
    first, second = np.zeros(5), np.zeros(5)
    rule.update_weights(0, "cpu", first, np.zeros(5), 1)
    rule.update_weights(1, "cpu", second, np.zeros(5), 1)
    assert not np.isclose(first, second).any()


def test_samples_have_the_variance_of_the_posterior():
    """Of the potential w²/2, hence gradient w, the stationary variance is 1/(1 - lr/4)."""
    rule = optim.SGLD(0.2).init_learning_rate()
    w = np.zeros(2000)
    for t in range(1, 41):
        rule.update_weights(0, "cpu", w, w.copy(), 1)
        rule.update_learning_rate(t)
    assert abs(w.mean()) < 4 / np.sqrt(w.size)
    assert abs(w.var() * (1 - 0.2 / 4) - 1) < 4 * np.sqrt(2 / w.size)
