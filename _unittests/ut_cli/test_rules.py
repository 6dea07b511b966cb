"""Names and options as typed, and the objects of the library that they mean."""

from __future__ import annotations

import click
import pytest

from onnxcustom import optim
from onnxcustom.cli.rules import (
    SCHEDULES,
    classifies,
    loss_name,
    make_loss,
    make_optimizer,
    make_penalty,
    make_schedule,
)
from onnxcustom.objective import (
    ElasticLearningPenalty,
    HuberLearningLoss,
    L1LearningPenalty,
    L2LearningPenalty,
    PerWeightLearningPenalty,
)
from onnxcustom.objective.base import LOSSES


def test_losses() -> None:
    assert make_loss("huber:delta=2").delta == 2
    assert make_loss("LOG_LOSS") == "log_loss"
    assert make_loss("some/loss.onnx") == "some/loss.onnx"
    assert classifies("log_loss") is True
    assert classifies(make_loss("bce")) is True
    assert classifies(HuberLearningLoss()) is False
    assert classifies("loss.onnx") is None


@pytest.mark.parametrize("cls", [c for c in LOSSES.classes() if c.__name__ != "CustomLoss"])
def test_a_loss_is_called_what_makes_it(cls: type) -> None:
    name = loss_name(cls())
    made = make_loss(name)
    assert type(LOSSES.find(made)() if isinstance(made, str) else made) is cls


def test_penalties() -> None:
    assert make_penalty([]) is None
    assert repr(make_penalty(["l1:0.5"])) == repr(L1LearningPenalty(0.5))
    assert repr(make_penalty(["l2:l2=0.5,biases=false"])) == repr(L2LearningPenalty(0.5, biases=False))
    assert repr(make_penalty(["elastic:l1=0.1,l2=0.2"])) == repr(ElasticLearningPenalty(0.1, 0.2))
    both = make_penalty(["dense*=l2:0.1", "l1:0.2"])
    assert isinstance(both, PerWeightLearningPenalty)
    assert repr(both.penalties) == repr({"dense*": L2LearningPenalty(0.1), "*": L1LearningPenalty(0.2)})
    for texts in (["l1:1", "l2:1"], ["l2:x"], ["nope"], ["l1:-1"]):
        with pytest.raises(click.UsageError, match="--penalty"):
            make_penalty(texts)


def test_optimizers() -> None:
    assert repr(make_optimizer("adamw:wd=0.1,beta1=0.8")) == repr(optim.AdamW(wd=0.1, beta1=0.8))
    assert repr(make_optimizer("SGD:momentum=0.9", 0.5)) == repr(optim.SGD(0.5, momentum=0.9))
    for name in optim.rule_names():
        assert isinstance(make_optimizer(name), optim.BaseLearningRate)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_begin_at_the_rate(name: str) -> None:
    options = {"step": ":step_size=2", "milestones": ":milestones=[1,2]", "restarts": ":period=2"}.get(
        name, ""
    )
    schedule = make_schedule(name + options, 0.5, 0, 10, optim.SGD())
    assert type(schedule) is SCHEDULES[name]
    highest = max(schedule.value(t, t) for t in range(1, 11))
    assert 0 < highest <= 0.5
    without = make_schedule(name + options, None, 0, 10, optim.SGD(0.25))
    assert 0 < max(without.value(t, t) for t in range(1, 11)) <= 0.25


def test_lengths_are_epochs() -> None:
    schedule = make_schedule("linear", 1.0, 2, 6, optim.SGD())
    rates = [schedule.value(t=100 * epoch, epoch=epoch) for epoch in range(1, 8)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25, 0])
    assert make_schedule("cosine:total=3", 1.0, 0, 6, optim.SGD()).total == 3


def test_no_schedule() -> None:
    assert make_schedule(None, None, 0, 5, optim.SGD()) is None
    assert make_schedule(None, 0.5, 0, 5, optim.SGD()) == 0.5
    warm = make_schedule(None, 0.5, 4, 5, optim.SGD())
    assert [warm.value(1, epoch) for epoch in (1, 5)] == pytest.approx([0.5 / 3, 0.5])


def test_schedules_that_are_none() -> None:
    for text in ("nope", "step", "step:step_size=0", "cosine:eta0=-1", "step:size=1"):
        with pytest.raises(click.UsageError, match="--schedule"):
            make_schedule(text, 0.1, 0, 5, optim.SGD())
