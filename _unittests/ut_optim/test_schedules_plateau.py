from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.exceptions import CheckpointError, InvalidDataError
from onnxcustom.optim import LearningRateSGD
from onnxcustom.optim.plateau import ReduceOnPlateau
from onnxcustom.optim.schedules import with_rate


def follow(schedule: ReduceOnPlateau, losses) -> list[float]:
    """The rates of the epochs after each loss."""
    got = []
    for loss in losses:
        assert schedule.report_epoch(loss) is False
        got.append(schedule.value(1, 1))
    return got


@pytest.mark.parametrize(
    ("options", "losses", "wanted"),
    [
        # Two epochs are put up with, the third reduces; then counting starts again.
        ({"patience": 2}, [5, 5, 5, 5, 5, 5, 5], [1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
        # Progress starts it again, too.
        ({"patience": 1}, [5, 5, 4, 4, 4], [1, 1, 1, 1, 0.5]),
        ({"patience": 0}, [5, 5, 4, 6], [1, 0.5, 0.5, 0.25]),
        # 1 % of 100 is too little with a threshold of 2 %, 3 % is enough.
        ({"patience": 0, "threshold": 0.02}, [100, 99, 97], [1, 0.5, 0.5]),
        ({"patience": 0, "threshold": 2.0, "threshold_mode": "abs"}, [100, 98.5, 97.5], [1, 0.5, 0.5]),
        ({"patience": 0, "mode": "max"}, [1, 2, 1.5, 3], [1, 1, 0.5, 0.5]),
        ({"patience": 0, "mode": "max", "threshold": 0.5}, [1, 1.4, 1.6], [1, 0.5, 0.5]),
        (
            {"patience": 0, "mode": "max", "threshold": 0.5, "threshold_mode": "abs"},
            [-1, -0.6, 0],
            [1, 0.5, 0.5],
        ),
        # The two epochs after a reduction are not held against it.
        ({"patience": 0, "cooldown": 2}, [5, 5, 5, 5, 5], [1, 0.5, 0.5, 0.5, 0.25]),
        ({"patience": 0, "min_rate": 0.4}, [5, 5, 5, 5], [1, 0.5, 0.4, 0.4]),
        ({"patience": 0, "eps": 0.3}, [5, 5, 5], [1, 0.5, 0.5]),
        ({"patience": 0, "min_rate": 2.0}, [5, 5, 5], [1, 1, 1]),
        ({"patience": 0, "factor": 0.0}, [5, 5, 5], [1, 0, 0]),
    ],
)
def test_the_rate_is_reduced_when(options, losses, wanted):
    assert follow(ReduceOnPlateau(1.0, **{"factor": 0.5, **options}), losses) == wanted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"factor": 0.3, "patience": 1, "cooldown": 2},
        {"patience": 2, "threshold": 0.05, "min_rate": 0.002},
        {"patience": 0, "threshold": 0.02, "threshold_mode": "abs", "eps": 1e-3},
    ],
)
def test_it_is_pytorchs(options, mode, seed):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.5)
    words = {{"min_rate": "min_lr"}.get(k, k): v for k, v in options.items()}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, **words)
    rng = np.random.default_rng(seed)
    losses = (1 / np.arange(1, 80) + 0.1 * rng.normal(size=79)) * (1 if mode == "min" else -1)
    wanted = []
    for loss in losses:
        scheduler.step(loss)
        wanted.append(optimizer.param_groups[0]["lr"])
    got = follow(ReduceOnPlateau(0.5, mode=mode, **options), losses)
    np.testing.assert_allclose(got, wanted, rtol=1e-15)
    assert got[-1] < 0.5


def test_it_goes_on_from_its_state():
    losses = [5, 5, 5, 4, 4, 4, 4, 4, 3]
    options = {"factor": 0.5, "patience": 1, "cooldown": 1}
    whole = ReduceOnPlateau(1.0, **options)
    wanted = follow(whole, losses)
    for cut in range(len(losses)):
        begun, resumed = (ReduceOnPlateau(1.0, **options) for _ in range(2))
        follow(begun, losses[:cut])
        resumed.load_state_dict(json.loads(json.dumps(begun.state_dict(), allow_nan=False)))
        assert resumed == begun
        assert follow(resumed, losses[cut:]) == wanted[cut:]
        assert resumed == whole
    for again in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert again == whole != ReduceOnPlateau(1.0, **options)


@pytest.mark.parametrize(
    "change", [{"best": ...}, {"more": 1}, {"cooling": -1}, {"bad_epochs": 0.5}, {"best": "low"}]
)
def test_a_state_that_does_not_fit_changes_nothing(change):
    schedule = ReduceOnPlateau(1.0, patience=0)
    follow(schedule, [5, 5])
    before, state = copy.deepcopy(schedule), {**ReduceOnPlateau().state_dict(), **change}
    with pytest.raises(CheckpointError, match="state of ReduceOnPlateau"):
        schedule.load_state_dict({k: v for k, v in state.items() if v is not ...})
    assert schedule == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_is_refused(bad):
    schedule = ReduceOnPlateau(1.0)
    follow(schedule, [5, 5])
    before = copy.deepcopy(schedule)
    with pytest.raises(InvalidDataError, match="must be finite"):
        schedule.report_epoch(bad)
    assert schedule == before


def test_another_base_rate_begins_anew():
    schedule = ReduceOnPlateau(1.0, patience=0, mode="max")
    follow(schedule, [5, 5])
    assert with_rate(schedule, 3.0) == ReduceOnPlateau(3.0, patience=0, mode="max")
    with pytest.raises(FrozenInstanceError):
        schedule.factor = 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta0": -1}, r"eta0 of ReduceOnPlateau must be in \[0, inf\)"),
        ({"factor": 1.0}, r"factor of ReduceOnPlateau must be in \[0, 1\)"),
        ({"patience": -1}, r"patience of ReduceOnPlateau must be in \[0, inf\)"),
        ({"threshold": -1}, "threshold of ReduceOnPlateau"),
        ({"threshold_mode": "relative"}, "threshold_mode of ReduceOnPlateau must be one of 'rel', 'abs'"),
        ({"mode": "less"}, "mode of ReduceOnPlateau must be one of 'min', 'max'"),
        ({"cooldown": -1}, "cooldown of ReduceOnPlateau"),
        ({"min_rate": -1}, "min_rate of ReduceOnPlateau"),
        ({"eps": -1}, "eps of ReduceOnPlateau"),
    ],
)
def test_parameters_out_of_range_say_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        ReduceOnPlateau(**options)


def test_a_rule_uses_it():
    schedule = ReduceOnPlateau(1.0, factor=0.5, patience=0)
    rule = LearningRateSGD(learning_rate=schedule).init_learning_rate()
    assert [(rule.report_epoch(loss), rule.value) for loss in (5, 5, 5)] == [
        (False, 1),
        (False, 0.5),
        (False, 0.25),
    ]
    assert schedule == ReduceOnPlateau(1.0, factor=0.5, patience=0)


@given(
    st.lists(st.floats(-1e6, 1e6), max_size=20),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from(["min", "max"]),
    st.sampled_from(["rel", "abs"]),
)
def test_the_rate_never_rises(losses, factor, patience, cooldown, mode, threshold_mode):
    schedule = ReduceOnPlateau(
        1.0, factor, patience, cooldown=cooldown, mode=mode, threshold_mode=threshold_mode, min_rate=1e-3
    )
    got = [1.0, *follow(schedule, losses)]
    assert got == sorted(got, reverse=True)
    assert got[-1] >= 1e-3
