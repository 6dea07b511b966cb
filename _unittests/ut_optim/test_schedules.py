from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from onnxcustom.optim import Adaptive, Fixed, Function, InverseScaling, LearningRateSGD, Optimal, Schedule
from onnxcustom.optim.schedules import as_schedule


@pytest.mark.parametrize("number", [0, 1, 0.5, np.float32(0.5), np.int64(2)])
def test_a_number_is_a_fixed_rate(number):
    schedule = as_schedule(number)
    assert isinstance(schedule, Fixed)
    assert [schedule.value(t, 1) for t in (1, 9)] == [number, number]


def test_a_callable_is_a_function_of_the_step():
    schedule = as_schedule(lambda t: 1 / t)
    assert isinstance(schedule, Function)
    assert [schedule.value(t, 1) for t in (1, 2, 4)] == [1, 0.5, 0.25]


def test_a_schedule_is_copied():
    mine = Adaptive(1.0, n_iter_no_change=1)
    taken = as_schedule(mine)
    for _ in range(3):
        taken.report_epoch(1.0)
    assert taken.value(1, 1) == pytest.approx(0.04)
    assert mine.value(1, 1) == 1.0


@pytest.mark.parametrize("bad", [None, "fast", True, [0.1], Schedule])
def test_what_is_no_rate_is_refused(bad):
    with pytest.raises(TypeError, match="number in \\[0, inf\\), a schedule or a function"):
        as_schedule(bad)


@pytest.mark.parametrize("bad", [-1, -1e-9, np.nan, np.inf])
def test_a_rate_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="learning_rate must be in \\[0, inf\\)"):
        as_schedule(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(-1), "rate of Fixed must be in \\[0, inf\\)"),
        (lambda: InverseScaling(0.1, power_t=-1), "power_t of InverseScaling must be in \\[0, inf\\)"),
        (lambda: Optimal(0.1, alpha=0), "alpha of Optimal must be in \\(0, inf\\)"),
        (lambda: Adaptive(0.1, tol=-1), "tol of Adaptive must be in \\[0, inf\\)"),
        (lambda: Adaptive(0.1, n_iter_no_change=0), "n_iter_no_change of Adaptive must be in \\[1, inf\\)"),
    ],
)
def test_parameters_out_of_range_say_the_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_optimal_follows_bottous_formula():
    eta0, alpha = 0.3, 0.01
    typw = alpha**-0.25
    t0 = 1 / (typw / max(1, 2 * (1 + typw)) * alpha)
    values = [Optimal(eta0, alpha).value(t, 1) for t in range(1, 6)]
    assert values[0] == pytest.approx(eta0, rel=1e-15)
    assert values == pytest.approx([eta0 * t0 / (t0 + t) for t in range(5)])


def epochs_of_scikit_learn(losses: list[float], eta0: float, tol: float, patience: int):
    """The rates SGDRegressor uses, epoch by epoch, transcribed from its stopping rule."""
    rate, best, stalled, rates = eta0, np.inf, 0, []
    for loss in losses:
        rates.append(rate)
        stalled = stalled + 1 if loss > best - tol else 0
        best = min(best, loss)
        if stalled >= patience:
            if rate <= 1e-6:
                break
            rate, stalled = rate / 5, 0
    return rates


@pytest.mark.parametrize("seed", range(3))
def test_adaptive_follows_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    losses = list(np.maximum(0.1, 1 / np.arange(1, 100)) + rng.normal(size=99) * 1e-3)
    wanted = epochs_of_scikit_learn(losses, 0.1, 1e-3, 5)
    schedule, got = Adaptive(0.1), []
    for loss in losses:
        got.append(schedule.value(1, 1))
        if schedule.report_epoch(loss):
            break
    assert got == pytest.approx(wanted)
    assert got[-1] < 0.1


def test_adaptive_says_when_to_stop():
    schedule = Adaptive(4e-6, n_iter_no_change=2)
    assert [schedule.report_epoch(1.0) for _ in range(5)] == [False, False, False, False, True]
    assert schedule.value(1, 1) == pytest.approx(8e-7)


@pytest.mark.parametrize("schedule", [Fixed(0.1), InverseScaling(0.1), Optimal(0.1), Adaptive(0.1)])
def test_schedules_pickle_and_print(schedule):
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule == copy.deepcopy(schedule)
    assert repr(schedule).startswith(f"{type(schedule).__name__}(")
    assert eval(repr(schedule)) == schedule


def test_sgd_stops_through_report_epoch():
    rule = LearningRateSGD(1e-7, learning_rate="adaptive").init_learning_rate()
    assert [rule.report_epoch(1.0) for _ in range(6)] == [False] * 5 + [True]
    rule = LearningRateSGD(0.5, learning_rate="adaptive").init_learning_rate()
    for _ in range(6):
        rule.report_epoch(1.0)
    assert rule.value == pytest.approx(0.1)
    assert rule.init_learning_rate().value == 0.5
