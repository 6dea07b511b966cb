from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from onnxcustom.optim.annealing import Cosine, CosineRestarts, MultiStep, OneCycle, Polynomial, Step, Warmup
from onnxcustom.optim.optimization_state import OptimizationState, get_learning_rate, get_momentum
from onnxcustom.optim.plateau import ReduceOnPlateau
from onnxcustom.optim.schedules import Adaptive, Exp, Fixed, Function, Inv, InverseScaling, Null, Optimal


def test_counts_of_two_epochs():
    state, seen = OptimizationState(10), []
    seen.append((state.curr_epoch, state.curr_batch, state.curr_iter))
    for _ in range(2):
        state.next_epoch()
        seen.append((state.curr_epoch, state.curr_batch, state.curr_iter))
        for _ in range(2):
            state.next_batch()
            seen.append((state.curr_epoch, state.curr_batch, state.curr_iter))
    assert seen == [(0, 0, 0), (1, 0, 0), (1, 1, 1), (1, 2, 2), (2, 0, 2), (2, 1, 3), (2, 2, 4)]
    assert state.batch_size == 10


def test_the_first_batch_begins_the_first_epoch():
    state = OptimizationState(10)
    state.next_batch()
    assert state == OptimizationState(10, curr_epoch=1, curr_batch=1, curr_iter=1)
    state.next_batch()
    assert state == OptimizationState(10, curr_epoch=1, curr_batch=2, curr_iter=2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, r"batch_size of OptimizationState must be in \[1, inf\), not 0"),
        (
            {"batch_size": 10, "curr_epoch": -1},
            ValueError,
            r"curr_epoch of OptimizationState must be in \[0, inf\)",
        ),
        ({"batch_size": 10, "curr_batch": -1}, ValueError, "curr_batch of OptimizationState"),
        ({"batch_size": 10, "curr_iter": -1}, ValueError, "curr_iter of OptimizationState"),
        ({"batch_size": 1.5}, TypeError, "batch_size of OptimizationState must be an integer"),
        (
            {"batch_size": 10, "curr_iter": True},
            TypeError,
            "curr_iter of OptimizationState must be an integer",
        ),
    ],
)
def test_counts_out_of_range_say_the_range(options, error, message):
    with pytest.raises(error, match=message):
        OptimizationState(**options)


def test_counts_can_be_set_and_are_checked_then_too():
    state = OptimizationState(10)
    state.curr_epoch = np.int64(3)
    assert type(state.curr_epoch) is int
    with pytest.raises(ValueError, match="curr_epoch"):
        state.curr_epoch = -1
    with pytest.raises(AttributeError, match="has no 'epoch'; it has"):
        state.epoch = 4
    assert state == OptimizationState(10, curr_epoch=3)
    assert copy.deepcopy(state) == state == pickle.loads(pickle.dumps(state))


def test_the_counts_are_those_of_the_schedule():
    state = OptimizationState(10, curr_epoch=3, curr_batch=2, curr_iter=7)
    assert get_learning_rate(Exp(1.0, 0.5), state) == 0.125
    assert get_learning_rate(Exp(1.0, 0.5, decay_on_iteration=True), state) == 0.5**7
    assert get_learning_rate(Inv(1.0, 1.0, 1.0), state) == 0.25
    assert get_learning_rate(Inv(1.0, 1.0, 1.0, decay_on_iteration=True), state) == 0.125
    assert get_learning_rate(lambda t: 1 / t, state) == 1 / 7
    assert get_learning_rate(0.3, state) == 0.3


@pytest.mark.parametrize("by_iteration", [False, True])
def test_before_training_exp_and_inv_give_their_base_rate(by_iteration):
    state = OptimizationState(10)
    assert get_learning_rate(Exp(0.3, 0.5, decay_on_iteration=by_iteration), state) == 0.3
    assert get_learning_rate(Inv(0.3, decay_on_iteration=by_iteration), state) == 0.3


@pytest.mark.parametrize(
    "schedule",
    [
        Fixed(0.3),
        Null(),
        InverseScaling(0.3),
        Optimal(0.3),
        Adaptive(0.3),
        ReduceOnPlateau(0.3),
        Function(lambda t: 0.3 / t),
        Step(0.3, 1),
        MultiStep(0.3, [1]),
        Polynomial(0.3, 3),
        Cosine(0.3, 3),
        CosineRestarts(0.3, 3),
        OneCycle(0.3, 9),
        Warmup(0.3, 3),
    ],
    ids=lambda s: type(s).__name__,
)
def test_before_training_other_schedules_give_the_first_rate(schedule):
    assert get_learning_rate(schedule, OptimizationState(10)) == schedule.value(1, 1)
    assert get_momentum(schedule, OptimizationState(10)) == schedule.value(1, 1)


def test_momentum():
    state = OptimizationState(10, curr_epoch=2)
    assert get_momentum(Null(), state) == 0.0
    assert get_momentum(Fixed(0.9), state) == 0.9
    assert get_momentum(Exp(0.8, 0.5), state) == pytest.approx(0.2)


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, "fast", None])
def test_a_schedule_that_gives_no_rate_is_named(value):
    def mine(t):
        return value

    with pytest.raises(
        ValueError, match=r"Function\(.*mine.* at step 4 of epoch 2; a learning rate is a number"
    ):
        get_learning_rate(mine, OptimizationState(10, curr_epoch=2, curr_iter=4))


def test_a_momentum_is_at_most_1():
    state = OptimizationState(10)
    assert get_momentum(1, state) == 1.0
    with pytest.raises(
        ValueError, match=r"gave 1.5 at step 1 of epoch 1; a momentum is a number in \[0, 1\]"
    ):
        get_momentum(1.5, state)
    with pytest.raises(TypeError, match="momentum must be a number"):
        get_momentum("fast", state)
