"""Clocks and learning rates as data by themselves: of rules and schedules of any kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxcustom import optim
from onnxcustom.exceptions import CallOrderError, CheckpointError
from onnxcustom.optim import (
    SGD,
    Adam,
    BaseLearningRate,
    Exp,
    LearningRateSGD,
    ReduceOnPlateau,
    Schedule,
    Step,
    Warmup,
)
from onnxcustom.optim.serialization import clock_to_dict, load_clock, load_rate, rate_to_dict

from .schedule_cases import LOSSES, SCHEDULES


class Own(SGD):
    """A rule that is not registered."""


class Told(Schedule):
    """A schedule of the user's that counts the losses it was told."""

    def __init__(self) -> None:
        self.losses = 0

    def value(self, t: int, epoch: int) -> float:
        return 1 / (1 + self.losses)

    def report_epoch(self, loss: float) -> bool:
        self.losses += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state: Any) -> None:
        self.losses = state["losses"]


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data))


CLOCKS: dict[str, Callable[[], BaseLearningRate]] = {
    **{repr(schedule): lambda schedule=schedule: Own(schedule, wd=Exp(0.1, 0.9)) for schedule in SCHEDULES},
    "function": lambda: Adam(lambda t: 1 / t, beta1=lambda t: 1 - 1 / (t + 1), wd=Step(0.1, step_size=1)),
    "warm function": lambda: SGD(Warmup(lambda t: 1 / t, steps=3)),
    "own": lambda: SGD(Told(), momentum=ReduceOnPlateau(0.9, patience=0)),
    "begun": lambda: LearningRateSGD(0.1, learning_rate="invscaling", begin_num_update=5),
    "large": lambda: optim.LBSGD(Step(0.1, step_size=1)),
}


@pytest.mark.parametrize("make", CLOCKS.values(), ids=CLOCKS)
@pytest.mark.parametrize("cut", [0, 1, 4])
def test_a_clock_goes_on_where_it_was(make, cut):
    def epochs(rule: BaseLearningRate, first: int, last: int) -> list[Any]:
        found = []
        for k in range(first, last):
            for t in (2 * k + 1, 2 * k + 2):
                rule.update_learning_rate(t)
                found.append((rule.t, dict(rule.values)))
            rule.report_epoch(LOSSES[k])
        return found

    rule, other = make().init_learning_rate(), make().init_learning_rate()
    epochs(rule, 0, cut)
    epochs(other, 3, 5)  # where it was does not matter
    data = through_json(clock_to_dict(rule))
    load_clock(other, data)
    assert (other.t, other.values) == (rule.t, rule.values)
    assert epochs(other, cut, 8) == epochs(rule, cut, 8)
    assert clock_to_dict(other) == clock_to_dict(rule)


def test_nothing_is_written_for_a_function():
    rule = Adam(lambda t: 1 / t, beta1=Exp(0.9)).init_learning_rate()
    assert clock_to_dict(rule) == {"t": 1, "epoch": 1, "schedules": {"beta1": {}}}


def test_clocks_that_were_not_started():
    rule = SGD(0.1)
    assert clock_to_dict(rule) is None
    load_clock(rule, clock_to_dict(SGD(0.5).init_learning_rate()))
    assert rule.value == 0.1
    load_clock(rule, None)
    with pytest.raises(CallOrderError, match="init_learning_rate"):
        _ = rule.value


def fails_after(last: int) -> Callable[[int], float]:
    def rate(t: int) -> float:
        if t > last:
            raise IndexError("no such step")
        return 0.1

    return rate


PLATEAU = {"rate": 0.5, "best": 1.0, "bad_epochs": 0, "cooling": 0}


def clock(t: Any = 1, epoch: Any = 1, **schedules: Any) -> dict[str, Any]:
    return {"t": t, "epoch": epoch, "schedules": schedules or {"momentum": PLATEAU}}


BAD: dict[str, tuple[Any, str]] = {
    "list": ([1], "must have 't', 'epoch' and 'schedules'"),
    "short": ({"t": 1, "epoch": 1}, "must have 't', 'epoch' and 'schedules'"),
    "t": (clock(t=0), r"t of the clock of SGD must be in \[1"),
    "t float": (clock(t=1.5), "t of the clock of SGD must be an integer"),
    "t huge": (clock(t=10**400), "cannot be read"),
    "epoch": (clock(epoch=None), "epoch of the clock of SGD must be an integer"),
    "none": ({**clock(), "schedules": {}}, "holds nothing of its momentum.*which remembers losses"),
    "other": (clock(wd={}), r"has schedules for .*; what was saved is of \['wd'\]"),
    "no schedules": ({**clock(), "schedules": None}, "cannot be read"),
    "memory": (clock(momentum={"best": 1}), "state of ReduceOnPlateau must have"),
    "range": (clock(momentum={**PLATEAU, "rate": 2.0}), "gave 2.0 at step 1"),
    "step": (clock(t=9), "cannot be read: no such step"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD)
def test_clocks_that_cannot_be_read_change_nothing(data, message):
    rule = SGD(fails_after(5), momentum=ReduceOnPlateau(0.5)).init_learning_rate()
    rule.update_learning_rate(2)
    rule.report_epoch(1.0)
    before, values = clock_to_dict(rule), rule.values
    with pytest.raises(CheckpointError, match=message):
        load_clock(rule, data)
    assert (clock_to_dict(rule), rule.values) == (before, values)


# -- learning rates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.25, np.float32(0.1), *SCHEDULES], ids=repr)
def test_a_learning_rate_by_itself(rate):
    rule, other = Adam(rate), Adam(0.77)
    load_rate(other, through_json(rate_to_dict(rule)))
    assert other.learning_rate == rule.learning_rate
    assert other.init_learning_rate().value == rule.init_learning_rate().value


@pytest.mark.parametrize(("rate", "value"), [(0.25, 0.25), (Exp(0.5, 0.5), 0.25)])
def test_a_learning_rate_set_on_the_way_overrules_a_named_one(rate, value):
    rule, other = (LearningRateSGD(0.1, learning_rate="adaptive") for _ in range(2))
    rule.init_learning_rate().set_learning_rate(rate)
    load_rate(other, through_json(rate_to_dict(rule)))
    load_clock(other, through_json(clock_to_dict(rule)))
    assert other.values == {"learning_rate": value}


@pytest.mark.parametrize("rate", [lambda t: 0.5, Told(), Warmup(lambda t: 0.5, steps=0)])
def test_a_learning_rate_that_is_code_stays_the_users(rate):
    rule = SGD(rate)
    assert rate_to_dict(rule) == {}
    load_rate(rule, {})
    assert rule.learning_rate is rate
    with pytest.raises(CheckpointError, match=r"was a Python function.*now 0\.1: give the one"):
        load_rate(SGD(0.1), {})


def test_the_same_learning_rate_stays_the_users_object():
    schedule = ReduceOnPlateau(0.1)
    rule = SGD(schedule)
    load_rate(rule, rate_to_dict(SGD(ReduceOnPlateau(0.1))))
    assert rule.learning_rate is schedule


UNKNOWN = {"schedule": "os", "fields": {}}
NEGATIVE = {"schedule": "Exp", "fields": {"eta0": -1}}


@pytest.mark.parametrize(
    "data",
    [
        *(None, [], 3, {"more": 1}),
        *({"value": value} for value in (-1.0, "x", None, {}, 10**400, UNKNOWN, NEGATIVE)),
    ],
    ids=lambda data: repr(data)[:40],
)
def test_learning_rates_that_cannot_be_read_change_nothing(data):
    rule = SGD(0.5)
    with pytest.raises(CheckpointError, match="saved learning rate of SGD cannot be read"):
        load_rate(rule, data)
    assert rule.learning_rate == 0.5
