"""The clock, the registry, selection, copies and pickles."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from onnxcustom import optim
from onnxcustom.exceptions import CheckpointError, InvalidDataError, UnknownNameError
from onnxcustom.optim import (
    NAG,
    SGD,
    Adam,
    BaseLearningRate,
    Fixed,
    InverseScaling,
    LearningRateSGD,
    LearningRateSGDNesterov,
    number,
    register,
    rule_names,
    select_optimizer,
)
from onnxcustom.optim.registry import RULES, SELECTED

CLASSES = [LearningRateSGD, LearningRateSGDNesterov, SGD, NAG, Adam]


# -- clock -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_value_before_init_is_an_error(cls):
    rule = cls()
    for use in (
        lambda: rule.value,
        lambda: rule.update_learning_rate(1),
        lambda: rule.report_epoch(1.0),
        lambda: rule.update_weights(0, "cpu", np.zeros(2), np.zeros(2), 1),
    ):
        with pytest.raises(RuntimeError, match="init_learning_rate"):
            use()


@pytest.mark.parametrize("cls", CLASSES)
def test_clock_methods_return_self(cls):
    rule = cls()
    assert rule.init_learning_rate() is rule
    assert rule.update_learning_rate(1) is rule
    assert rule.set_learning_rate(0.1) is rule


def test_clock_counts_from_one_and_starts_again():
    rule = LearningRateSGD(1.0, power_t=0.5).init_learning_rate()
    assert (rule.t, rule.value) == (1, 1.0)
    rule.update_learning_rate(1)
    assert (rule.t, rule.value) == (2, 1 / 2**0.5)
    rule.update_learning_rate(3)
    assert (rule.t, rule.value) == (4, 0.5)
    rule.init_learning_rate()
    assert (rule.t, rule.value) == (1, 1.0)


def test_loop_and_a_training_loop_share_one_clock():
    rule = LearningRateSGD()
    looped = list(rule.loop(20))
    rule.init_learning_rate()
    stepped = []
    for t in range(1, 21):
        stepped.append(rule.value)
        rule.update_learning_rate(t)
    assert looped == stepped == pytest.approx([0.01 / t**0.25 for t in range(1, 21)])


@pytest.mark.parametrize("t", [-1, -3])
def test_negative_step_is_refused(t):
    rule = SGD().init_learning_rate()
    with pytest.raises(ValueError, match="must be in \\[0, inf\\)"):
        rule.update_learning_rate(t)


@pytest.mark.parametrize("given", [-0.1, np.nan, "a", None])
def test_a_schedule_that_gives_no_learning_rate(given):
    rule = SGD(learning_rate=lambda t: 0.1 if t < 3 else given).init_learning_rate()
    rule.update_learning_rate(1)
    with pytest.raises(ValueError, match="at step 3 of epoch 1; a learning rate is a number in"):
        rule.update_learning_rate(2)
    assert (rule.t, rule.value) == (2, 0.1)


@pytest.mark.parametrize("bad", [lambda t: -1.0, -1.0, "no rule", Adam(), optim.Exp])
def test_a_learning_rate_that_is_refused_changes_nothing(bad):
    rule = SGD(0.1).init_learning_rate().update_learning_rate(1)
    with pytest.raises((ValueError, TypeError)):
        rule.set_learning_rate(bad)
    assert (rule.learning_rate, rule.t, rule.value) == (0.1, 2, 0.1)
    assert rule.update_learning_rate(2).value == 0.1


def test_loop_asks_for_no_rate_that_it_does_not_yield():
    rates = [0.3, 0.2, 0.1]
    assert list(SGD(lambda t: rates[t - 1]).loop(3)) == rates


@pytest.mark.parametrize("t", [1.5, "1", None, True])
def test_a_step_that_is_no_integer_is_refused(t):
    rule = SGD().init_learning_rate()
    with pytest.raises(TypeError, match="number of updates done, must be an integer"):
        rule.update_learning_rate(t)
    assert rule.t == 1


def test_epoch_loss_must_be_finite():
    with pytest.raises(InvalidDataError, match="finite"):
        SGD().init_learning_rate().report_epoch(np.nan)


def test_set_learning_rate_keeps_the_clock_and_the_rest():
    rule = Adam(beta1=0.5).init_learning_rate()
    rule.update_learning_rate(7)
    rule.set_learning_rate(lambda t: t / 100)
    assert (rule.t, rule.value, rule.beta1) == (8, 0.08, 0.5)
    rule.set_learning_rate(0.2)
    assert (rule.t, rule.value, rule.learning_rate) == (8, 0.2, 0.2)
    assert rule.init_learning_rate().value == 0.2


def test_set_learning_rate_of_sgd_replaces_its_schedule():
    rule = LearningRateSGD(0.1).set_learning_rate(0.5)
    assert list(rule.loop(3)) == [0.5, 0.5, 0.5]


def test_an_instance_serves_two_trainings_through_copies():
    mine = LearningRateSGD(1.0, learning_rate="adaptive")
    first, second = select_optimizer(mine), select_optimizer(mine)
    first.init_learning_rate()
    for _ in range(6):
        first.report_epoch(1.0)
    second.init_learning_rate()
    assert (first.value, second.value) == (0.2, 1.0)
    with pytest.raises(RuntimeError):
        _ = mine.value


# -- hyper-parameters --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (LearningRateSGD, {"eta0": -1}, "eta0 of LearningRateSGD must be in \\[0, inf\\), not -1"),
        (LearningRateSGD, {"eta0": float("nan")}, "eta0"),
        (LearningRateSGD, {"alpha": -1e-3}, "alpha of LearningRateSGD must be in \\[0, inf\\)"),
        (
            LearningRateSGD,
            {"alpha": 0, "learning_rate": "optimal"},
            "alpha of Optimal must be in \\(0, inf\\)",
        ),
        (LearningRateSGD, {"power_t": -1}, "power_t of LearningRateSGD must be in \\[0, inf\\)"),
        (LearningRateSGD, {"learning_rate": "EXC"}, "'adaptive', 'constant', 'invscaling' and 'optimal'"),
        (LearningRateSGD, {"learning_rate": -0.5}, "learning_rate must be in \\[0, inf\\)"),
        (
            LearningRateSGDNesterov,
            {"momentum": 1.1},
            "momentum of LearningRateSGDNesterov must be in \\[0, 1\\]",
        ),
        (SGD, {"learning_rate": -1}, "learning_rate must be in \\[0, inf\\), not -1"),
        (SGD, {"momentum": -0.1}, "momentum of SGD must be in \\[0, 1\\]"),
        (NAG, {"momentum": 2}, "momentum of NAG must be in \\[0, 1\\]"),
        (Adam, {"beta1": 1.0}, "beta1 of Adam must be in \\[0, 1\\)"),
        (Adam, {"beta2": -0.1}, "beta2 of Adam must be in \\[0, 1\\)"),
        (Adam, {"epsilon": 0}, "epsilon of Adam must be in \\(0, inf\\)"),
        (Adam, {"learning_rate": float("inf")}, "learning_rate must be in \\[0, inf\\)"),
    ],
)
def test_out_of_range_says_the_range(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


@pytest.mark.parametrize(
    ("cls", "options"),
    [(Adam, {"beta1": "0.9"}), (SGD, {"momentum": None}), (LearningRateSGDNesterov, {"nesterov": "yes"})],
)
def test_wrong_types(cls, options):
    with pytest.raises(TypeError, match=next(iter(options))):
        cls(**options)


def test_hyper_parameters_are_frozen():
    rule = Adam()
    with pytest.raises(AttributeError, match=r"set_params\(\), or set_learning_rate\(\)"):
        rule.beta1 = 0.5
    assert rule.beta1 == 0.9
    rule.note = "anything else may be set"


@pytest.mark.parametrize("cls", RULES.classes(), ids=lambda c: c.__name__)
def test_signature_is_that_of_the_constructor(cls):
    parameters = inspect.signature(cls).parameters
    assert list(parameters) == cls.parameter_names()
    kinds = {p.kind for p in parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def test_get_and_set_params():
    rule = Adam(0.5).init_learning_rate()
    own = {"learning_rate": 0.5, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    assert own.items() <= rule.get_params().items()
    assert rule.set_params(beta1=0.3) is rule
    assert (rule.beta1, rule.learning_rate) == (0.3, 0.5)
    with pytest.raises(RuntimeError):
        _ = rule.value
    with pytest.raises(TypeError, match=r"no option \['beta3'\]"):
        rule.set_params(beta3=0.1)
    with pytest.raises(ValueError, match="beta1"):
        rule.set_params(beta1=3)
    assert rule.beta1 == 0.3


@pytest.mark.parametrize("cls", CLASSES)
def test_scikit_learn_clones(cls):
    rule = cls().init_learning_rate()
    again = clone(rule)
    assert type(again) is cls
    assert again.get_params() == rule.get_params()
    with pytest.raises(RuntimeError):
        _ = again.value


def test_clone_keeps_a_schedule():
    assert clone(SGD(InverseScaling(0.3))).learning_rate == InverseScaling(0.3)


def test_repr_shows_the_value_once_there_is_one():
    rule = LearningRateSGD(0.5)
    assert rule.__repr_extended__() == ""
    assert repr(rule) == "LearningRateSGD(eta0=0.5, alpha=0.0001, power_t=0.25, learning_rate='invscaling')"
    assert rule.init_learning_rate().__repr_extended__() == ", value=0.5"
    assert repr(rule).endswith("learning_rate='invscaling', value=0.5)")


# -- registry ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("sgd", SGD),
        ("SGD", SGD),
        ("nag", NAG),
        ("Adam", Adam),
        ("ADAM", Adam),
        ("learningratesgd", LearningRateSGD),
        ("LearningRateSGDNesterov", LearningRateSGDNesterov),
        ("nesterov", LearningRateSGDNesterov),
    ],
)
def test_create(name, cls):
    assert type(optim.create(name)) is cls


def test_create_unknown_name_lists_all():
    with pytest.raises(UnknownNameError) as error:
        optim.create("adamm")
    for name in rule_names():
        assert repr(name) in str(error.value)
    assert {"sgd", "ccsgd", "learningratesgdnesterov", "nesterov", "adam"} <= set(rule_names())
    assert {cls.__name__.lower() for cls in RULES.classes()} <= set(rule_names())


@pytest.mark.parametrize("name", [None, 3, ["adam"], 0.01])
def test_create_takes_names_only(name):
    with pytest.raises(UnknownNameError, match="no update rule"):
        optim.create(name)


@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_create_unknown_option_names_the_accepted_ones(kind):
    with pytest.raises(kind, match=r"Adam has no option \['beta3'\]; it has \['learning_rate', 'beta1'"):
        optim.create("adam", beta3=1)


def test_create_understands_lr():
    assert optim.create("adam", lr=0.5).learning_rate == 0.5
    assert optim.create("LearningRateSGD", lr=0.5).eta0 == 0.5
    with pytest.raises(TypeError, match="twice"):
        optim.create("adam", lr=0.5, learning_rate=0.1)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("SGD", LearningRateSGD),
        ("sgd", LearningRateSGD),
        ("LearningRateSGD", LearningRateSGD),
        ("SGDNesterov", LearningRateSGDNesterov),
        ("Nesterov", LearningRateSGDNesterov),
        ("LearningRateSGDNesterov", LearningRateSGDNesterov),
        ("adam", Adam),
        ("NAG", NAG),
        (LearningRateSGDNesterov, LearningRateSGDNesterov),
    ],
)
def test_select_by_name(name, cls):
    assert type(BaseLearningRate.select(name)) is cls


def test_select_passes_options_on():
    rule = BaseLearningRate.select("SGDNesterov", eta0=0.3, momentum=0.2)
    assert (rule.eta0, rule.momentum) == (0.3, 0.2)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.25), np.int64(2)])
def test_select_numbers(value):
    rule = BaseLearningRate.select(value)
    assert type(rule) is LearningRateSGD
    assert rule.init_learning_rate().value == value
    assert rule.learning_rate == "invscaling"


def test_select_schedules():
    assert list(BaseLearningRate.select(Fixed(0.3)).loop(2)) == [0.3, 0.3]
    assert list(BaseLearningRate.select(lambda t: 1 / t).loop(2)) == [1, 0.5]


def test_select_returns_an_instance_itself():
    rule = SGD()
    assert BaseLearningRate.select(rule) is rule
    with pytest.raises(UnknownNameError, match="eta0"):
        BaseLearningRate.select(rule, eta0=1)


def test_select_unknown_name_lists_all():
    with pytest.raises(ValueError, match=r"'adam'.*'learningratesgd'.*'sgdnesterov'"):
        BaseLearningRate.select("unknown")


@pytest.mark.parametrize("bad", [None, [0.1], True])
def test_select_refuses_the_rest(bad):
    with pytest.raises(UnknownNameError, match="give an instance, a number"):
        BaseLearningRate.select(bad)


def test_select_refuses_a_negative_number():
    with pytest.raises(ValueError, match="eta0"):
        BaseLearningRate.select(-0.1)


@pytest.fixture
def _registry(monkeypatch):
    """Registries that forget what a test adds."""
    for registry in (RULES, SELECTED):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))


@pytest.mark.usefixtures("_registry")
def test_a_rule_of_ones_own():
    @register
    @dataclass(repr=False, eq=False)
    class HeavyBall(BaseLearningRate):
        learning_rate: Any = 0.1
        beta: float = number(0.5, "[0, 1)")
        state = ("m",)

        def update(self, op, w, g, s, lr, t):
            m = self.beta * s.m + g
            return w - lr * m, {"m": m}

    rule = optim.create("heavyball").init_learning_rate()
    w, m = np.array([1.0, 2.0]), np.array([1.0, 1.0])
    rule.update_weights(0, "cpu", w, np.array([2.0, 4.0]), 2, m)
    np.testing.assert_allclose(m, [1.5, 2.5])
    np.testing.assert_allclose(w, [0.85, 1.75])
    with pytest.raises(ValueError, match=r"beta of HeavyBall must be in \[0, 1\)"):
        optim.create("heavyball", beta=1)


@pytest.mark.usefixtures("_registry")
def test_a_plain_class_is_a_rule_too():
    class Plain(BaseLearningRate):
        def __init__(self, learning_rate=0.5):
            self.learning_rate = learning_rate

        def update(self, op, w, g, s, lr, t):
            return w - lr * op.Sign(g), {}

    register("plain-sign")(Plain)
    rule = optim.create("plain-sign", learning_rate=0.25).init_learning_rate()
    assert repr(rule) == "Plain(learning_rate=0.25, value=0.25)"
    np.testing.assert_array_equal(
        rule.update_weights(0, "cpu", np.zeros(2), np.array([3.0, -2.0]), 1), [-0.25, 0.25]
    )


@pytest.mark.usefixtures("_registry")
def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match=r"'adam' belongs to onnxcustom\.optim\.adam\.Adam"):
        register("adam")(type("Other", (SGD,), {}))


# -- copies and pickles ------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_copies_keep_the_clock_and_go_their_own_way(cls, duplicate):
    rule = cls().init_learning_rate()
    rule.update_weights(
        0, "cpu", np.ones(2), np.ones(2), 1, list(rule.init_state(np.ones(2)).values()) or None
    )
    rule.update_learning_rate(3)
    again = duplicate(rule)
    assert (again.t, again.value, again.get_params()) == (4, rule.value, rule.get_params())
    again.update_learning_rate(8)
    again.set_learning_rate(0.75)
    assert (rule.t, again.t, again.value) == (4, 9, 0.75)
    assert rule.value != 0.75
    state = list(again.init_state(np.ones(2)).values()) or None
    assert again.update_weights(0, "cpu", np.ones(2), np.ones(2), 1, state) is not None
    with pytest.raises(AttributeError):
        setattr(again, next(iter(again.get_params())), 1)


def test_pickle_holds_no_session():
    rule = Adam().init_learning_rate()
    rule.build_onnx_function(18, "cpu", 2)
    assert rule.__getstate__().keys().isdisjoint({"_updates"})
    assert len(pickle.dumps(rule)) < 1000


def test_adaptive_state_is_pickled():
    rule = LearningRateSGD(1.0, learning_rate="adaptive").init_learning_rate()
    for _ in range(8):
        rule.report_epoch(1.0)
    again = pickle.loads(pickle.dumps(rule))
    for _ in range(3):
        rule.report_epoch(1.0)
        again.report_epoch(1.0)
    assert again.value == rule.value == pytest.approx(0.04)


def test_pickle_of_another_version_is_refused():
    state = SGD().__getstate__()
    state["onnxcustom_pickle_format"] = -1
    with pytest.raises(CheckpointError, match="SGD has format -1"):
        SGD.__new__(SGD).__setstate__(state)
