from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.exceptions import CheckpointError
from onnxcustom.optim.annealing import (
    Cosine,
    CosineRestarts,
    MultiStep,
    OneCycle,
    Polynomial,
    Step,
    Warmup,
)
from onnxcustom.optim.plateau import ReduceOnPlateau
from onnxcustom.optim.schedules import Adaptive, Exp, Fixed, Function, InverseScaling, Schedule, with_rate

N = 24


def rates(schedule: Schedule, n: int = N, by_iteration: bool | None = None) -> list[float]:
    """The first rates by the count that is read; the other one stands still, far off."""
    if by_iteration is None:
        by_iteration = schedule.decay_on_iteration
    return [schedule.value(c, 77) if by_iteration else schedule.value(77, c) for c in range(1, n + 1)]


def rates_of_torch(make, eta0: float, n: int = N, key: str = "lr") -> list[float]:
    """What PyTorch's scheduler sets, one step() after another."""
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=eta0, momentum=0.9)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    got = [float(optimizer.param_groups[0][key])]
    for _ in range(n - 1):
        optimizer.step()
        scheduler.step()
        got.append(float(optimizer.param_groups[0][key]))
    return got


def multiplied(eta0: float, gamma: float, after: list[int], n: int = N) -> list[float]:
    """Rates multiplied by gamma after these numbers of counts."""
    got, rate = [], eta0
    for done in range(n):
        rate *= gamma ** after.count(done)
        got.append(rate)
    return got


def cosine(high: float, low: float, x: np.ndarray) -> np.ndarray:
    return low + 0.5 * (high - low) * (1 + np.cos(np.pi * x))


def periods(period: int, mult: int, n: int = N) -> np.ndarray:
    """How far each count is in its period."""
    parts: list[float] = []
    while len(parts) < n:
        parts += [i / period for i in range(period)]
        period *= mult
    return np.array(parts[:n])


DONE = np.arange(N)
CASES = {
    "step": (
        Step(0.3, 4, 0.5),
        multiplied(0.3, 0.5, list(range(4, N, 4))),
        lambda ls, o: ls.StepLR(o, 4, 0.5),
        N,
    ),
    "step of 1": (Step(0.3, 1), multiplied(0.3, 0.1, list(range(1, N))), lambda ls, o: ls.StepLR(o, 1), N),
    "multi-step": (
        MultiStep(0.3, [2, 9, 5, 9], 0.7),
        multiplied(0.3, 0.7, [2, 5, 9, 9]),
        lambda ls, o: ls.MultiStepLR(o, [2, 9, 5, 9], 0.7),
        N,
    ),
    "multi-step, no milestone": (
        MultiStep(0.3),
        [0.3] * N,
        lambda ls, o: ls.MultiStepLR(o, []),
        N,
    ),
    "polynomial": (
        Polynomial(0.3, 10, 2.0),
        0.3 * (1 - np.minimum(DONE, 10) / 10) ** 2,
        lambda ls, o: ls.PolynomialLR(o, 10, 2.0),
        N,
    ),
    "linear": (
        Polynomial(0.3, 7),
        0.3 * (1 - np.minimum(DONE, 7) / 7),
        lambda ls, o: ls.PolynomialLR(o, 7),
        N,
    ),
    "polynomial to a rate": (
        Polynomial(0.3, 10, 0.5, final=0.1),
        0.1 + 0.2 * np.sqrt(1 - np.minimum(DONE, 10) / 10),
        None,
        N,
    ),
    # PyTorch's goes up again after the total.
    "cosine": (
        Cosine(0.3, 10),
        cosine(0.3, 0.0, np.minimum(DONE, 10) / 10),
        lambda ls, o: ls.CosineAnnealingLR(o, 10),
        11,
    ),
    "cosine to a rate": (
        Cosine(0.3, 9, final=0.05),
        cosine(0.3, 0.05, np.minimum(DONE, 9) / 9),
        lambda ls, o: ls.CosineAnnealingLR(o, 9, 0.05),
        10,
    ),
    "restarts": (
        CosineRestarts(0.3, 5),
        cosine(0.3, 0.0, periods(5, 1)),
        lambda ls, o: ls.CosineAnnealingWarmRestarts(o, 5),
        N,
    ),
    "longer and longer": (
        CosineRestarts(0.3, 3, mult=2, final=0.02),
        cosine(0.3, 0.02, periods(3, 2)),
        lambda ls, o: ls.CosineAnnealingWarmRestarts(o, 3, 2, 0.02),
        N,
    ),
    "restarts at once": (
        CosineRestarts(0.3, 1, mult=3),
        cosine(0.3, 0.0, periods(1, 3)),
        lambda ls, o: ls.CosineAnnealingWarmRestarts(o, 1, 3),
        N,
    ),
}


@pytest.mark.parametrize("by_iteration", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_schedule_follows_its_formula(name, by_iteration):
    schedule, wanted, _, _ = CASES[name]
    schedule = type(schedule)(**{**vars(schedule), "decay_on_iteration": by_iteration})
    np.testing.assert_allclose(rates(schedule), wanted, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][2]])
def test_a_schedule_is_pytorchs(name):
    schedule, _, make, n = CASES[name]
    wanted = rates_of_torch(make, 0.3, n)
    np.testing.assert_allclose(rates(schedule, n), wanted, rtol=1e-10, atol=1e-15)


# -- one-cycle -------------------------------------------------------------------------------------

CYCLES = [
    {},
    {"pct_start": 0.25, "div_factor": 10.0, "final_div_factor": 5.0},
    {"anneal": "linear"},
    {"three_phase": True},
    {"three_phase": True, "pct_start": 0.5, "anneal": "linear"},
    {"three_phase": True, "pct_start": 0.37, "div_factor": 3.0},
    {"pct_start": 0.0},
    {"pct_start": 1.0, "anneal": "linear"},
    {"pct_start": 0.013},
]


def knots(total: int, options: dict) -> tuple[list[float], list[float]]:
    """Numbers of steps done and the rates they lead to, for a peak of 1."""
    peak = options.get("pct_start", 0.3) * total - 1
    low = 1 / options.get("div_factor", 25.0)
    lowest = low / options.get("final_div_factor", 1e4)
    if options.get("three_phase"):
        return [0, peak, 2 * peak, total - 1], [low, 1, low, lowest]
    return [0, peak, total - 1], [low, 1, lowest]


@pytest.mark.parametrize("options", [o for o in CYCLES if 0.1 < o.get("pct_start", 0.3) < 1])
def test_one_cycle_goes_through_its_knots(options):
    total = 40
    x, y = knots(total, options)
    done = np.arange(total)
    # How far between two knots, 0 to 1, by a broken line through 0, 1, 2 ...
    place = np.interp(done, x, np.arange(len(x)))
    left = np.minimum(place.astype(int), len(x) - 2)
    part = place - left
    if options.get("anneal") != "linear":
        part = (1 - np.cos(np.pi * part)) / 2
    y = np.array(y)
    wanted = 0.7 * (y[left] + (y[left + 1] - y[left]) * part)
    got = rates(OneCycle(0.7, total, **options), total + 5)
    np.testing.assert_allclose(got[:total], wanted, rtol=1e-12, atol=1e-15)
    assert got[total:] == [got[total - 1]] * 5


# PyTorch divides by zero where the way up is a single step.
@pytest.mark.parametrize(
    ("options", "total"),
    [(o, total) for o in CYCLES for total in (1, 2, 23, 40) if o.get("pct_start", 0.3) * total != 1],
)
def test_one_cycle_is_pytorchs(options, total):
    words = {{"anneal": "anneal_strategy"}.get(k, k): v for k, v in options.items()}
    wanted = rates_of_torch(lambda ls, o: ls.OneCycleLR(o, 0.7, total, **words), 0.1, total)
    np.testing.assert_allclose(rates(OneCycle(0.7, total, **options), total), wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_makes_the_momentum_that_goes_with_it(anneal):
    schedule = OneCycle(0.85, 20, div_factor=0.85 / 0.95, final_div_factor=1, anneal=anneal)
    got = rates(schedule, 20)
    assert (max(got), min(got), got.index(min(got))) == (pytest.approx(0.95), 0.85, 5)
    assert got[-1] == pytest.approx(0.95)
    wanted = rates_of_torch(
        lambda ls, o: ls.OneCycleLR(o, 0.1, 20, anneal_strategy=anneal), 0.1, 20, key="momentum"
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize(("total", "three_phase"), [(1, False), (2, False), (2, True), (5, False), (5, True)])
def test_one_cycle_is_at_its_peak_in_a_phase_of_one_step(total, three_phase):
    got = rates(OneCycle(0.5, total, pct_start=1 / total, three_phase=three_phase), total)
    assert got[0] == 0.5
    assert got == sorted(got, reverse=True)
    assert got[-1] > 0


# -- warm-up ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_iteration", [False, True])
@pytest.mark.parametrize("start", [0.0, 0.25, 1.0])
def test_warm_up_is_a_line_and_then_the_schedule(start, by_iteration):
    after = Exp(0.5, 0.8, decay_on_iteration=by_iteration)
    got = rates(Warmup(after, 5, start, decay_on_iteration=by_iteration))
    first = rates(after, 1)[0]
    np.testing.assert_allclose(got[:6], np.linspace(start * first, first, 6), rtol=1e-14)
    assert got[5:] == rates(after, N - 5)


@pytest.mark.parametrize("start", [1 / 3, 0.01, 1.0])
def test_warm_up_is_pytorchs(start):
    wanted = rates_of_torch(
        lambda ls, o: ls.SequentialLR(
            o, [ls.LinearLR(o, start, total_iters=4), ls.StepLR(o, 3, 0.5)], milestones=[4]
        ),
        0.3,
    )
    schedule = Warmup(Step(0.3, 3, 0.5, decay_on_iteration=True), 4, start)
    np.testing.assert_allclose(rates(schedule), wanted, rtol=1e-13)


def test_warm_up_before_a_number_and_a_function():
    assert Warmup(0.5, 4, 0.5) == Warmup(Fixed(0.5), 4, 0.5)
    assert rates(Warmup(0.5, 4, 0.5), 6) == [0.25, 0.3125, 0.375, 0.4375, 0.5, 0.5]
    assert rates(Warmup(lambda t: 1 / t, 2, 0.5), 5) == [0.5, 0.75, 1.0, 0.5, 1 / 3]
    assert rates(Warmup(InverseScaling(1.0, 1.0), 2, 0.5), 5) == [0.5, 0.75, 1.0, 0.5, 1 / 3]


def test_no_warm_up():
    assert rates(Warmup(Step(0.5, 2), 0), by_iteration=False) == rates(Step(0.5, 2))


def run(schedule: Schedule, per_epoch: int, epochs: int) -> list[float]:
    """The rates of a training."""
    return [schedule.value(t + 1, t // per_epoch + 1) for t in range(per_epoch * epochs)]


@pytest.mark.parametrize(("steps", "late"), [(3, 1), (6, 2), (4, 2), (1, 1)])
def test_warm_up_by_iteration_before_a_decay_by_epoch(steps, late):
    got = run(Warmup(Step(1.0, 1, 0.5), steps, 0.0, steps_per_epoch=3), per_epoch=3, epochs=6)
    np.testing.assert_allclose(got[:steps], np.arange(steps) / steps)
    first = 3 * (late + 1)
    assert got[steps:first] == [1.0] * (first - steps)
    assert got[first:] == [0.5 ** (1 + i // 3) for i in range(18 - first)]


def test_warm_up_by_epoch_before_a_decay_by_iteration():
    schedule = Warmup(Function(lambda t: 1 / t), 2, 0.5, decay_on_iteration=False, steps_per_epoch=3)
    got = run(schedule, per_epoch=3, epochs=4)
    assert got[:6] == [0.5] * 3 + [0.75] * 3
    assert got[6:] == [1 / t for t in range(1, 7)]


def test_warm_up_leaves_the_count_that_it_cannot_translate():
    got = run(Warmup(Step(1.0, 1, 0.5), 3, 0.0), per_epoch=3, epochs=3)
    np.testing.assert_allclose(got, [0, 1 / 3, 2 / 3, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25])


@pytest.mark.parametrize(
    "inner", [ReduceOnPlateau(1.0, 0.5, patience=1), Adaptive(1.0, n_iter_no_change=2, tol=0.0)]
)
def test_warm_up_before_a_schedule_that_watches_the_loss(inner):
    before, mine = copy.deepcopy(inner), Warmup(inner, 2, 0.5)
    alone = copy.deepcopy(inner)
    for loss in (1.0, 2.0, 2.0, 2.0, 2.0):
        assert mine.report_epoch(loss) is alone.report_epoch(loss)
        assert mine.value(9, 9) == alone.value(9, 9)
        assert mine.value(1, 9) == 0.5 * alone.value(9, 9)
    assert mine.value(9, 9) < 1.0
    assert inner == before  # it worked on a copy

    state = json.loads(json.dumps(mine.state_dict(), allow_nan=False))
    again = Warmup(inner, 2, 0.5)
    again.load_state_dict(state)
    assert again == mine != Warmup(inner, 2, 0.5)
    with pytest.raises(CheckpointError, match="must have the keys"):
        again.load_state_dict({})
    assert again == mine
    assert with_rate(mine, 3.0) == Warmup(with_rate(inner, 3.0), 2, 0.5)


def test_warm_up_says_when_to_stop():
    schedule = Warmup(Adaptive(1e-7, n_iter_no_change=1), 2)
    assert [schedule.report_epoch(1.0) for _ in range(2)] == [False, True]


def test_warm_up_of_a_warm_up():
    got = rates(Warmup(Warmup(1.0, 2, 0.5), 2, 0.0), 6)
    np.testing.assert_allclose(got, [0, 0.25, 0.5, 0.75, 1, 1])


# -- all of them -----------------------------------------------------------------------------------

ALL = [
    Step(0.3, 4),
    MultiStep(0.3, [2, 5]),
    Polynomial(0.3, 10),
    Cosine(0.3, 10),
    CosineRestarts(0.3, 5),
    OneCycle(0.3, 10),
    Warmup(Cosine(0.3, 10), 5),
]


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_schedules_pickle_print_and_have_another_base_rate(schedule):
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule == copy.deepcopy(schedule)
    assert eval(repr(schedule)) == schedule
    assert hash(again) == hash(schedule)
    assert schedule.state_dict() == {}
    schedule.load_state_dict({})
    twice = with_rate(schedule, 0.6)
    for c in range(1, 15):
        assert twice.value(c, c) == pytest.approx(2 * schedule.value(c, c), rel=1e-14)
    assert again == schedule


def test_warm_up_of_a_function_has_no_base_rate():
    with pytest.raises(TypeError, match="Function has no base rate"):
        with_rate(Warmup(abs, 5), 0.5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Step(0.1, 0), ValueError, r"step_size of Step must be in \[1, inf\), not 0"),
        (lambda: Step(0.1, 2.5), TypeError, "step_size of Step must be an integer"),
        (lambda: Step(-0.1, 2), ValueError, r"eta0 of Step must be in \[0, inf\)"),
        (lambda: Step(0.1, 2, gamma=-1), ValueError, "gamma of Step"),
        (
            lambda: MultiStep(0.1, [3, 0]),
            ValueError,
            r"a milestone of MultiStep must be in \[1, inf\), not 0",
        ),
        (lambda: MultiStep(0.1, [1.5]), TypeError, "a milestone of MultiStep must be an integer"),
        (lambda: MultiStep(0.1, 3), TypeError, "milestones of MultiStep must be integers"),
        (lambda: MultiStep(0.1, "3"), TypeError, "milestones of MultiStep must be integers"),
        (lambda: Polynomial(0.1, 0), ValueError, "total of Polynomial"),
        (lambda: Polynomial(0.1, 5, power=0), ValueError, r"power of Polynomial must be in \(0, inf\)"),
        (lambda: Polynomial(0.1, 5, final=-1), ValueError, "final of Polynomial"),
        (lambda: Cosine(0.1, True), TypeError, "total of Cosine must be an integer"),
        (lambda: Cosine(0.1, 5, decay_on_iteration=2), TypeError, "must be True or False"),
        (lambda: CosineRestarts(0.1, 0), ValueError, "period of CosineRestarts"),
        (lambda: CosineRestarts(0.1, 5, mult=0), ValueError, "mult of CosineRestarts"),
        (lambda: OneCycle(0.1, 5, pct_start=1.1), ValueError, r"pct_start of OneCycle must be in \[0, 1\]"),
        (lambda: OneCycle(0.1, 5, pct_start=0.6, three_phase=True), ValueError, r"in \[0, 0.5\] with three"),
        (lambda: OneCycle(0.1, 5, div_factor=0), ValueError, "div_factor of OneCycle"),
        (
            lambda: OneCycle(0.1, 5, anneal="cosine"),
            ValueError,
            "anneal of OneCycle must be one of 'cos', 'linear'",
        ),
        (lambda: Warmup(0.1, -1), ValueError, r"steps of Warmup must be in \[0, inf\)"),
        (lambda: Warmup(0.1, 5, 1.5), ValueError, r"start_factor of Warmup must be in \[0, 1\]"),
        (
            lambda: Warmup(0.1, 5, steps_per_epoch=0),
            ValueError,
            r"steps_per_epoch of Warmup must be in \[1, inf\)",
        ),
        (lambda: Warmup(-0.1, 5), ValueError, r"schedule of Warmup must be in \[0, inf\)"),
        (lambda: Warmup("fast", 5), TypeError, "schedule of Warmup must be a number"),
    ],
)
def test_parameters_out_of_range_say_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()


RATE = st.floats(0, 1e3)
TOTAL = st.integers(1, 50)
COUNT = st.integers(1, 10**6)
SCHEDULES = st.one_of(
    st.builds(Step, RATE, TOTAL, st.floats(0, 1)),
    st.builds(MultiStep, RATE, st.lists(TOTAL, max_size=5), st.floats(0, 2)),
    st.builds(Polynomial, RATE, TOTAL, st.floats(0.1, 5), final=RATE),
    st.builds(Cosine, RATE, TOTAL, final=RATE),
    st.builds(CosineRestarts, RATE, TOTAL, st.integers(1, 3), final=RATE),
    st.builds(
        OneCycle,
        RATE,
        TOTAL,
        st.floats(0, 0.5),
        st.floats(0.1, 100),
        st.floats(0.1, 1e5),
        anneal=st.sampled_from(["cos", "linear"]),
        three_phase=st.booleans(),
        decay_on_iteration=st.booleans(),
    ),
)


@given(SCHEDULES, st.one_of(TOTAL, COUNT), st.one_of(TOTAL, COUNT))
def test_values_are_neither_negative_nor_nan(schedule, t, epoch):
    value = schedule.value(t, epoch)
    assert type(value) is float
    assert 0 <= value < np.inf


@given(SCHEDULES, st.integers(1, 100), st.floats(0, 1), st.booleans())
def test_warm_up_is_continuous_where_it_ends(schedule, steps, start, by_iteration):
    warm = Warmup(schedule, steps, start, decay_on_iteration=by_iteration)
    got = rates(warm, steps + 2, by_iteration)
    if schedule.decay_on_iteration != by_iteration:
        target, following = [schedule.value(*((1, 77) if by_iteration else (77, 1)))] * 2
    else:
        target, following = rates(schedule, 2)
    step = (1 - start) * target / steps
    np.testing.assert_allclose(np.diff(got[: steps + 1]), step, rtol=1e-6, atol=1e-12 * max(target, 1e-300))
    assert got[steps] == target
    assert got[steps + 1] == following


@given(RATE, st.lists(TOTAL, max_size=6), st.floats(0, 1))
def test_multi_step_never_rises(eta0, milestones, gamma):
    got = rates(MultiStep(eta0, milestones, gamma), 55)
    assert got == sorted(got, reverse=True)


@given(RATE, RATE, TOTAL, st.floats(0.1, 5))
def test_annealing_stays_between_its_ends_and_goes_one_way(eta0, final, total, power):
    for schedule in (Polynomial(eta0, total, power, final), Cosine(eta0, total, final)):
        got = rates(schedule, total + 3)
        assert got[0] == pytest.approx(eta0, rel=1e-12, abs=1e-12 * final)
        assert got[total:] == [pytest.approx(final)] * 3
        slack = 1e-12 * max(eta0, final)
        falls = np.diff(got) <= slack
        rises = np.diff(got) >= -slack
        assert (falls if eta0 >= final else rises).all()
