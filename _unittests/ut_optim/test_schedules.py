from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.exceptions import CheckpointError, InvalidDataError
from onnxcustom.optim import LearningRateSGD, create
from onnxcustom.optim.schedules import (
    Adaptive,
    Exp,
    Fixed,
    Function,
    Inv,
    InverseScaling,
    Null,
    Optimal,
    Schedule,
    as_schedule,
    with_rate,
)

COUNTS = np.arange(1, 9)


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
        (lambda: Exp(-0.1), "eta0 of Exp must be in \\[0, inf\\)"),
        (lambda: Exp(0.1, gamma=-0.5), "gamma of Exp must be in \\[0, inf\\)"),
        (lambda: Inv(0.1, gamma=np.nan), "gamma of Inv must be in \\[0, inf\\)"),
        (lambda: Inv(0.1, power=-1), "power of Inv must be in \\[0, inf\\)"),
        (lambda: Adaptive(0.1, tol=-1), "tol of Adaptive must be in \\[0, inf\\)"),
        (lambda: Adaptive(0.1, n_iter_no_change=0), "n_iter_no_change of Adaptive must be in \\[1, inf\\)"),
    ],
)
def test_parameters_out_of_range_say_the_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def rates(schedule: Schedule, by_iteration: bool) -> list[float]:
    """The first rates by one count; the other one is far off, to show that it is not read."""
    return [schedule.value(t, 77) if by_iteration else schedule.value(77, t) for t in COUNTS.tolist()]


@pytest.mark.parametrize("by_iteration", [False, True])
@pytest.mark.parametrize("gamma", [0.5, 0.0, 1.0, 1.5])
def test_exp_is_geometric_from_the_first_count(by_iteration, gamma):
    got = rates(Exp(0.3, gamma, decay_on_iteration=by_iteration), by_iteration)
    np.testing.assert_allclose(got, 0.3 * np.cumprod(np.full(len(COUNTS), gamma)), rtol=1e-14)


@pytest.mark.parametrize("by_iteration", [False, True])
@pytest.mark.parametrize(("gamma", "power"), [(0.9, 0.5), (2.0, 1.0), (0.0, 3.0), (0.5, 0.0)])
def test_inv_follows_its_formula(by_iteration, gamma, power):
    got = rates(Inv(0.3, gamma, power, decay_on_iteration=by_iteration), by_iteration)
    np.testing.assert_allclose(got, 0.3 / np.power(1 + gamma * COUNTS, power), rtol=1e-14)


@pytest.mark.parametrize("schedule", [Exp(), Inv()])
def test_defaults_of_the_reference(schedule):
    wanted = {"Exp": 0.01 * 0.9**3, "Inv": 0.01 * (1 + 0.9 * 3) ** -0.5}[type(schedule).__name__]
    assert schedule.value(1, 3) == pytest.approx(wanted, rel=1e-14)


def test_too_fast_a_growth_is_infinite_rather_than_an_error_of_arithmetic():
    assert Exp(0.1, gamma=10.0).value(1, 999) == math.inf
    assert Exp(0.0, gamma=10.0).value(1, 999) == 0.0
    rule = LearningRateSGD(learning_rate=Exp(0.1, gamma=10.0, decay_on_iteration=True)).init_learning_rate()
    with pytest.raises(ValueError, match="gave inf at step 1000"):
        rule.update_learning_rate(999)


def test_null_is_always_zero():
    assert [Null().value(t, t) for t in (1, 5)] == [0.0, 0.0]


@pytest.mark.parametrize("name", ["SGD", "NAG", "Signum", "SignSGD", "DCASGD", "LARS", "LBSGD"])
def test_a_momentum_that_is_null_is_not_used(name):
    rule = create(name, momentum_scheduler=Null())
    assert rule.get_params() == create(name, momentum=0.0).get_params()
    assert "momentum" not in rule.state


def test_function_of_the_epoch():
    assert rates(Function(lambda t: 1 / t, decay_on_iteration=False), False) == list(1 / COUNTS)


def test_single_precision_parameters_do_not_make_single_precision_rates():
    eta0 = np.float32(0.1)
    for schedule in (Fixed(eta0), Exp(eta0), Inv(eta0), InverseScaling(eta0), Optimal(eta0), Adaptive(eta0)):
        value = schedule.value(3, 3)
        assert type(value) is float
        assert value == type(schedule)(float(eta0)).value(3, 3)


@pytest.mark.parametrize(
    "schedule", [Fixed(), Null(), Exp(), Inv(), InverseScaling(), Optimal(), Adaptive(), Function(abs)]
)
def test_parameters_are_frozen(schedule):
    names = [name for name in vars(schedule) if name[0] != "_"]
    for name in names or ["rate"]:
        with pytest.raises(FrozenInstanceError):
            setattr(schedule, name, 0.5)


@given(
    st.floats(0, 1e3),
    st.floats(0, 2),
    st.floats(0, 5),
    st.booleans(),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
)
def test_values_are_neither_negative_nor_nan(eta0, gamma, power, by_iteration, t, epoch):
    for schedule in (
        Exp(eta0, gamma, by_iteration),
        Inv(eta0, gamma, power, by_iteration),
        InverseScaling(eta0, power),
        Optimal(eta0, gamma + 1e-6),
    ):
        assert schedule.value(t, epoch) >= 0, schedule


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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_adaptive_takes_no_note_of_a_loss_that_is_not_finite(bad):
    schedule = Adaptive(0.1)
    schedule.report_epoch(1.0)
    before = copy.deepcopy(schedule)
    with pytest.raises(InvalidDataError, match="must be finite"):
        schedule.report_epoch(bad)
    assert schedule == before


def test_adaptive_goes_on_from_its_state():
    losses = [1.0] * 5 + [0.5] * 9
    whole = Adaptive(0.1, n_iter_no_change=3)
    for loss in losses:
        whole.report_epoch(loss)
    begun, resumed = (Adaptive(0.1, n_iter_no_change=3) for _ in range(2))
    for loss in losses[:6]:
        begun.report_epoch(loss)
    resumed.load_state_dict(json.loads(json.dumps(begun.state_dict(), allow_nan=False)))
    assert resumed == begun != Adaptive(0.1, n_iter_no_change=3)
    for loss in losses[6:]:
        resumed.report_epoch(loss)
    assert resumed == whole
    assert whole.value(1, 1) < 0.1


@pytest.mark.parametrize(
    "schedule", [Fixed(), Null(), Exp(), Inv(), InverseScaling(), Optimal(), Function(abs)]
)
def test_most_schedules_have_no_state(schedule):
    assert schedule.state_dict() == {}
    schedule.load_state_dict({})
    with pytest.raises(CheckpointError, match=r"must have the keys \[\], not \['rate'\]"):
        schedule.load_state_dict({"rate": 1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best": ...}, r"must have the keys \['best', 'rate', 'stalled'\], not \['rate', 'stalled'\]"),
        ({"epoch": 3}, "not \\['best', 'epoch', 'rate', 'stalled'\\]"),
        ({"stalled": -1}, r"stalled in the state of Adaptive must be in \[0, inf\)"),
        ({"stalled": 1.5}, "stalled in the state of Adaptive must be an integer"),
        ({"stalled": None}, "stalled in the state of Adaptive must be an integer"),
        ({"rate": "fast"}, "rate in the state of Adaptive must be a number"),
        ({"rate": -0.5}, r"rate in the state of Adaptive must be in \[0, inf\)"),
        ({"best": np.nan}, "best in the state of Adaptive must be in"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    schedule = Adaptive(0.1)
    for _ in range(3):
        schedule.report_epoch(1.0)
    before = copy.deepcopy(schedule)
    state = {**Adaptive(0.1).state_dict(), **change}
    with pytest.raises(CheckpointError, match=message):
        schedule.load_state_dict({k: v for k, v in state.items() if v is not ...})
    assert schedule == before


@pytest.mark.parametrize("state", [None, [], "state"])
def test_a_state_is_a_mapping(state):
    with pytest.raises(CheckpointError, match="the keys"):
        Adaptive().load_state_dict(state)


class Foreign(Schedule):
    """What a user writes."""

    def value(self, t, epoch):
        return 1 / epoch


@dataclass
class ForeignData(Schedule):
    eta0: float = 0.5

    def value(self, t, epoch):
        return self.eta0 / epoch


@pytest.mark.parametrize("schedule", [Foreign(), ForeignData(2.0)])
def test_a_schedule_of_ones_own_has_an_empty_state(schedule):
    assert schedule.state_dict() == {}
    schedule.load_state_dict({})
    assert schedule.report_epoch(1.0) is False


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (Fixed(0.1), Fixed(3.0)),
        (Exp(0.1, 0.5, True), Exp(3.0, 0.5, True)),
        (Inv(0.1, 0.5, 2.0), Inv(3.0, 0.5, 2.0)),
        (InverseScaling(0.1, 0.5), InverseScaling(3.0, 0.5)),
        (Optimal(0.1, 0.5), Optimal(3.0, 0.5)),
        (Adaptive(0.1, 0.5, 2), Adaptive(3.0, 0.5, 2)),
        (ForeignData(0.1), ForeignData(3.0)),
    ],
)
def test_with_rate_changes_the_base_rate_of_a_copy(schedule, wanted):
    before = copy.deepcopy(schedule)
    got = with_rate(schedule, 3)
    assert got == wanted
    assert got is not schedule
    assert schedule == before


def test_with_rate_begins_anew():
    schedule = Adaptive(0.1, n_iter_no_change=1)
    for _ in range(2):
        schedule.report_epoch(1.0)
    assert schedule.value(1, 1) == pytest.approx(0.02)
    assert with_rate(schedule, 3.0) == Adaptive(3.0, n_iter_no_change=1)


@pytest.mark.parametrize("schedule", [Null(), Function(abs), Foreign()])
def test_with_rate_refuses_schedules_without_one(schedule):
    with pytest.raises(TypeError, match=f"{type(schedule).__name__} has no base rate"):
        with_rate(schedule, 0.5)


@pytest.mark.parametrize(
    ("schedule", "rate", "error"),
    [
        (Fixed(), -1, ValueError),
        (Fixed(), np.nan, ValueError),
        (Fixed(), "fast", TypeError),
        (0.1, 1.0, TypeError),
    ],
)
def test_with_rate_refuses_what_is_no_rate_or_no_schedule(schedule, rate, error):
    with pytest.raises(error, match="must be"):
        with_rate(schedule, rate)


def test_a_function_without_a_name_is_copied_but_not_pickled():
    schedule = Function(lambda t: 1 / t)
    assert copy.deepcopy(schedule) == schedule
    assert pickle.loads(pickle.dumps(Function(abs))) == Function(abs)


@pytest.mark.parametrize(
    "schedule",
    [Fixed(0.1), InverseScaling(0.1), Optimal(0.1), Adaptive(0.1), Null(), Exp(0.1, 0.5, True), Inv(0.1)],
)
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
