from __future__ import annotations

import pytest

from onnxcustom.exceptions import UnknownNameError
from onnxcustom.optim import (
    NAG,
    SGD,
    Adam,
    Fixed,
    LearningRateSGD,
    LearningRateSGDNesterov,
    select_optimizer,
)


def test_select_optimizer_by_name_and_rate():
    assert type(select_optimizer("sgd")) is SGD
    assert type(select_optimizer()) is SGD
    rule = select_optimizer("adam", learning_rate=0.25)
    assert (type(rule), rule.learning_rate) == (Adam, 0.25)
    assert select_optimizer("adam").learning_rate == 0.001
    assert type(select_optimizer(NAG, 0.5)) is NAG


def test_select_optimizer_with_a_schedule():
    assert list(select_optimizer("adam", lambda t: 1 / t).loop(3)) == [1, 1 / 2, 1 / 3]
    assert list(select_optimizer("adam", Fixed(0.5)).loop(2)) == [0.5, 0.5]
    rule = select_optimizer("adam", LearningRateSGD(1.0, power_t=1.0))
    assert type(rule) is Adam
    assert list(rule.loop(3)) == [1, 1 / 2, 1 / 3]
    assert list(select_optimizer("adam", "SGD").loop(1)) == [0.01]


@pytest.mark.parametrize("name", ["constant", "invscaling", "adaptive", "optimal"])
@pytest.mark.parametrize(
    ("optimizer", "rate"), [("adam", 0.001), (Adam(0.5), 0.5), (LearningRateSGD(2.0), 2.0)]
)
def test_schedules_by_the_names_of_scikit_learn(name, optimizer, rate):
    rule = select_optimizer(optimizer, name)
    assert type(rule) is type(select_optimizer(optimizer))
    expected = LearningRateSGD(rate, learning_rate=name)
    assert list(rule.loop(5)) == list(expected.loop(5))
    assert list(select_optimizer(None, name).loop(5)) == list(LearningRateSGD(learning_rate=name).loop(5))


def test_a_schedule_by_name_begins_at_a_number():
    with pytest.raises(ValueError, match="'constant' begins at the rate of the optimizer"):
        select_optimizer(Adam(lambda t: 1 / t), "constant")


def test_select_optimizer_without_one():
    assert type(select_optimizer(None, "SGDNesterov")) is LearningRateSGDNesterov
    assert type(select_optimizer(None, "adam")) is Adam
    assert select_optimizer(None, 0.5).eta0 == 0.5


def test_select_optimizer_copies_and_leaves_the_callers_alone():
    mine = Adam(0.5)
    for rate in (None, 0.25):
        assert select_optimizer(mine, rate) is not mine
    assert mine.learning_rate == 0.5
    sgd = LearningRateSGD(0.5)
    assert select_optimizer(None, sgd) is not sgd


@pytest.mark.parametrize("rate", [LearningRateSGDNesterov(), Adam(), "adam"])
def test_a_rule_with_state_is_no_learning_rate(rate):
    with pytest.raises(ValueError, match="give it as optimizer"):
        select_optimizer("sgd", rate)


@pytest.mark.parametrize(("rate", "kind"), [(-1, ValueError), ("nothing", ValueError), ([1], TypeError)])
def test_select_optimizer_bad_rate(rate, kind):
    with pytest.raises(kind, match=r"learning_rate|update rule"):
        select_optimizer("adam", rate)


@pytest.mark.parametrize("bad", ["nothing", 0.1, [SGD()]])
def test_select_optimizer_bad_optimizer(bad):
    with pytest.raises(UnknownNameError, match="no update rule"):
        select_optimizer(bad)
