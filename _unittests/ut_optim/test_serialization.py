"""States and rules as bytes: what was saved goes on bit for bit, what is none is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom import optim
from onnxcustom.exceptions import CheckpointError, InvalidDataError
from onnxcustom.optim import (
    NAG,
    SGD,
    Adam,
    BaseLearningRate,
    Exp,
    Fixed,
    Function,
    LearningRateSGD,
    ReduceOnPlateau,
    Schedule,
    Updater,
    Warmup,
)
from onnxcustom.optim.registry import RULES
from onnxcustom.optim.serialization import rule_from_dict, rule_to_dict

from .schedule_cases import LOSSES, SCHEDULES

pytest.importorskip("onnxruntime")

EACH = pytest.mark.parametrize("cls", RULES.classes(), ids=lambda c: c.__name__)
KEY = "onnxcustom.updater"


def draws(n: int, shape: tuple[int, ...], dtype: Any = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.normal(size=shape)).astype(dtype) for _ in range(n)]


def momentum_of(rule: BaseLearningRate) -> dict[str, float]:
    """Options with which a rule keeps as much as it can."""
    return {"momentum": 0.5} if "momentum" in rule.get_params() else {}


# -- states --------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize(
    ("dump", "dtype", "options"),
    [
        (False, np.float64, {"wd": 0.1}),
        (True, np.float64, {"wd": Exp(0.1)}),
        (False, np.float32, {"accumulate": 3}),
        (True, np.float16, {"multi_precision": True, "l1": 1e-3}),
    ],
    ids=["f8", "f8 rule too", "f4 accumulated", "f2 master rule too"],
)
def test_a_run_goes_on_bit_for_bit(cls, dump, dtype, options):
    def rule() -> BaseLearningRate:
        return cls(lr=0.5, **options, **momentum_of(cls()))

    shapes: dict[Any, tuple[int, ...]] = {0: (2, 3), "scalar": (), -5: (0, 2)}
    weights = {i: np.asarray(np.ones(shape), dtype) for i, shape in shapes.items()}
    batches = [{i: draws(8, shape, dtype)[t] for i, shape in shapes.items()} for t in range(8)]
    updater = Updater(rule())
    for batch in batches[:4]:
        for i, g in batch.items():
            updater(i, g, weights[i])
    saved, copies = updater.get_states(dump), {i: w.copy() for i, w in weights.items()}
    again = Updater(cls() if dump else rule())
    again.set_states(saved)
    assert again.get_states(dump) == saved
    for batch in batches[4:]:
        for i, g in batch.items():
            updater(i, g, weights[i])
            again(i, g, copies[i])
    for i, w in weights.items():
        assert w.tobytes() == copies[i].tobytes()
        assert (w.shape, w.dtype) == (shapes[i], dtype)
    assert again.get_states(dump) == updater.get_states(dump)
    assert np.abs(weights[0] - 1).max() > 0


def test_an_index_that_has_only_accumulated_is_saved():
    updater, w = Updater(SGD(1.0, accumulate=3)), np.zeros(1)
    for g in (3.0, 6.0):
        updater("w", np.array([g]), w)
    again = Updater(SGD(1.0, accumulate=3))
    again.set_states(updater.get_states())
    again("w", np.array([9.0]), w)
    np.testing.assert_array_equal(w, [-6])


def test_skipped_steps_are_remembered():
    updater = Updater(SGD(skip_nonfinite=True))
    updater(0, np.array([np.nan]), np.zeros(1))
    again = Updater(SGD(skip_nonfinite=True))
    again.set_states(updater.get_states())
    assert again.skipped == 1


def test_states_of_nothing():
    updater = Updater("adam")
    saved = updater.get_states()
    updater(0, np.ones(1), np.ones(1))
    updater.set_states(saved)
    assert (updater.states, updater.counts) == ({}, {})


def test_names_of_weights_may_be_anything():
    names = ["", "0", "0.m", "1:mean", "é✓", 'a"b\\c', "__metadata__", 0, -1, 2**60]
    updater = Updater(Adam())
    for k, name in enumerate(names):
        updater(name, np.full(1, k + 1.0), np.ones(1))
    again = Updater(Adam())
    again.set_states(bytearray(updater.get_states()))
    assert list(again.states) == names
    for k, name in enumerate(names):
        np.testing.assert_allclose(again.states[name]["m"], [0.1 * (k + 1)])


def saved_adam() -> bytes:
    updater = Updater(Adam(0.1))
    for _ in range(2):
        updater(["a", 1], [np.ones(2), np.ones(3)], [np.ones(2), np.ones(3)])
    return updater.get_states(dump_optimizer=True)


SAVED = saved_adam()


def trained() -> Updater:
    updater = Updater(Adam(0.3))
    updater("mine", np.ones(1), np.ones(1))
    return updater


def refuse(states: Any, message: str) -> None:
    """The states are refused, and the updater is as it was."""
    updater = trained()
    rule, before = updater.optimizer, updater.get_states(True)
    with pytest.raises(CheckpointError, match=message):
        updater.set_states(states)
    assert updater.optimizer is rule
    assert updater.get_states(True) == before


@given(st.integers(0, len(SAVED) - 1))
def test_torn_bytes(length):
    refuse(SAVED[:length], "no saved states of an updater")


@pytest.mark.parametrize("states", [None, "text", 3, [], b"", b"\0" * 8, b"\xff" * 100, np.zeros(3)])
def test_no_bytes_of_ours(states):
    refuse(states, "no saved states of an updater")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(metadata):
    refuse(safetensors.numpy.save({"0.m": np.ones(2)}, metadata), "no saved states.*'onnxcustom.updater'")


def changed(change: Callable[[dict[str, Any], dict[str, np.ndarray]], Any], states: bytes = SAVED) -> bytes:
    """Saved states whose header and tensors were changed."""
    size = int.from_bytes(states[:8], "little")
    header = json.loads(json.loads(states[8 : 8 + size])["__metadata__"][KEY])
    tensors = safetensors.numpy.load(states)
    change(header, tensors)
    return safetensors.numpy.save(tensors, {KEY: json.dumps(header)})


def test_changed_changes_nothing_by_itself():
    assert changed(lambda header, tensors: None) == SAVED


def entry(k: int, position: int, value: Any) -> Callable[..., None]:
    def change(header: dict[str, Any], tensors: Any) -> None:
        header["entries"][k][position] = value

    return change


def put(*path: Any, value: Any) -> Callable[..., None]:
    def change(header: dict[str, Any], tensors: Any) -> None:
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = value

    return change


BAD: dict[str, tuple[Callable[..., Any], str]] = {
    "newer": (put("version", value=2), "version 2, made by a newer onnxcustom"),
    "version text": (put("version", value="1"), "no saved states"),
    "no version": (lambda h, t: h.pop("version"), "'version' is missing"),
    "no rule": (lambda h, t: h.pop("rule"), "'rule' is missing"),
    "no entries": (lambda h, t: h.pop("entries"), "'entries' is missing"),
    "no tensor": (lambda h, t: t.pop("1.v"), r"tensors \['1.v'\] of 1 are missing"),
    "no mean": (entry(0, 3, 1), r"tensors \['0:mean'\] of 'a' are missing"),
    "count": (entry(0, 1, -1), "entry 0 has counts"),
    "count true": (entry(0, 1, True), "entry 0 has counts"),
    "seen": (entry(0, 3, 0.5), "entry 0 has counts"),
    "index": (entry(1, 0, 1.5), "entry 1 has index 1.5"),
    "index twice": (entry(1, 0, "a"), "an index is there twice"),
    "names": (entry(0, 2, ["m"]), r"state of 'a' holds \['m'\]; Adam with these options keeps \['m', 'v'\]"),
    "names none": (entry(0, 2, 5), "no saved states"),
    "entry short": (put("entries", 0, value=["a"]), "no saved states"),
    "skipped": (put("skipped", value=-1), "skipped has counts"),
    "other rule": (put("rule", value="SGD"), "states of SGD, not of Adam"),
    "rule number": (put("rule", value=3), "their rule is 3"),
    "optimizer": (put("optimizer", value=[1]), "saved optimizer cannot be read"),
    "optimizer rule": (put("optimizer", "rule", value="adamm"), "saved optimizer.*'adamm' is no update rule"),
    "option": (put("optimizer", "options", "beta3", value=1), "saved optimizer.*beta3"),
    "range": (put("optimizer", "options", "beta1", value=2), r"saved optimizer.*beta1 of Adam.*\[0, 1\)"),
    "schedule": (
        put("optimizer", "options", "learning_rate", value={"schedule": "os", "fields": {}}),
        "no schedule 'os'",
    ),
    "clock": (put("optimizer", "clock", "t", value="x"), "saved optimizer"),
    "clock zero": (put("optimizer", "clock", "t", value=0), "saved optimizer"),
    "clock memory": (put("optimizer", "clock", "schedules", value={"beta9": {}}), "saved optimizer"),
    "memory": (
        put("optimizer", "clock", "schedules", "learning_rate", value={"best": 1}),
        "state of Fixed must have the keys",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_states_that_contradict_themselves(change, message):
    refuse(changed(change), message)


def test_states_of_another_rule():
    updater = Updater(NAG(0.1))
    updater(0, np.ones(1), np.ones(1))
    refuse(updater.get_states(), "states of NAG, not of Adam")


@pytest.mark.parametrize(("saved", "wanted"), [(0.0, 0.5), (0.5, 0.0)])
def test_states_of_other_options(saved, wanted):
    updater, other = Updater(SGD(momentum=saved)), Updater(SGD(momentum=wanted))
    updater("w", np.ones(1), np.ones(1))
    with pytest.raises(CheckpointError, match=r"The state of 'w' holds.*SGD with these options keeps"):
        other.set_states(updater.get_states())


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(2), r"state of 0 does not fit its weight of shape \(2,\) and dtype float64"),
        (np.ones(3, np.float32), r"state of 0 does not fit its weight of shape \(3,\) and dtype float32"),
        (np.ones((3, 1)), r"state of 0 does not fit its weight of shape \(3, 1\)"),
    ],
)
def test_states_of_another_weight(weight, message):
    updater, again = Updater(Adam()), Updater(Adam())
    updater(0, np.ones(3), np.ones(3))
    again.set_states(updater.get_states())
    kept = weight.copy()
    with pytest.raises(InvalidDataError, match=message):
        again(0, np.ones_like(weight), weight)
    np.testing.assert_array_equal(weight, kept)


def test_states_of_master_copies_need_the_option():
    updater, again = Updater(Adam(multi_precision=True)), Updater(Adam())
    w = np.ones(2, np.float16)
    updater(0, w.copy(), w)
    again.set_states(updater.get_states())
    with pytest.raises(InvalidDataError, match="does not fit its weight"):
        again(0, w.copy(), w)


# -- the rule with them ----------------------------------------------------------------------------


def all_schedules(base: type = Schedule) -> set[type]:
    subclasses = set(base.__subclasses__())
    return subclasses.union(*map(all_schedules, subclasses))


def test_every_schedule_is_tried():
    ours = {
        c for c in all_schedules() if c.__module__.startswith("onnxcustom.") and dataclasses.is_dataclass(c)
    }
    # A function cannot be saved, and the warm-up of LBSGD is made by the rule.
    assert ours == {*map(type, SCHEDULES), Function, optim.large_batch.LargeBatchWarmup}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("cut", [0, 1, 3, 5, 8])
def test_schedules_go_on_where_they_were(schedule, cut):
    def epoch(updater: Updater, w: np.ndarray, loss: float) -> list[dict[str, float]]:
        values = []
        for _ in range(2):
            updater("w", np.ones(1), w)
            values.append(dict(updater.optimizer.values))
        updater.optimizer.report_epoch(loss)
        return values

    updater = Updater(SGD(schedule, wd=Exp(0.1, 0.9)))
    w = np.ones(1)
    for loss in LOSSES[:cut]:
        epoch(updater, w, loss)
    again, w2 = Updater(SGD(0.77)), w.copy()
    again.set_states(updater.get_states(dump_optimizer=True))
    assert again.optimizer.values == updater.optimizer.values
    assert again.optimizer.t == updater.optimizer.t
    assert again.optimizer.learning_rate == schedule
    for loss in LOSSES[cut:]:
        assert epoch(again, w2, loss) == epoch(updater, w, loss)
    np.testing.assert_array_equal(w, w2)


def test_a_plateau_remembers_its_losses():
    updater = Updater(SGD(ReduceOnPlateau(1.0, factor=0.5, patience=2)))
    for loss in (1.0, 1.0, 1.0):  # one more, and the rate is halved
        updater.optimizer.report_epoch(loss)
    again = Updater(SGD())
    again.set_states(updater.get_states(dump_optimizer=True))
    again.optimizer.report_epoch(1.0)
    w = np.zeros(1)
    again(0, np.ones(1), w)
    np.testing.assert_array_equal(w, [-0.5])


def test_without_the_rule_the_present_one_goes_on():
    updater = Updater(Adam(0.1))
    updater(0, np.ones(1), np.ones(1))
    rule = Adam(0.5)
    again = Updater(rule)
    again.set_states(updater.get_states())
    assert again.optimizer is rule


def test_the_rule_may_be_of_another_kind():
    again = Updater(SGD(0.5))
    again(0, np.ones(2), np.ones(2))
    again.set_states(SAVED)
    assert type(again.optimizer) is Adam
    assert again.counts == {"a": 2, 1: 2}
    w = np.ones(2)
    again("a", np.ones(2), w)
    np.testing.assert_allclose(w, [0.9, 0.9])  # whatever the step, of equal gradients


class Parameter:
    lr_mult = 0.5


def test_objects_of_the_callers_stay_the_callers():
    parameters = {0: Parameter()}
    updater = Updater(SGD(1.0, param_dict=parameters))
    saved = updater.get_states(dump_optimizer=True)
    updater.set_states(saved)
    w = np.zeros(1)
    updater(0, np.ones(1), w)
    np.testing.assert_array_equal(w, [-0.5])
    assert updater.optimizer.param_dict is parameters
    plain = Updater("sgd")
    plain.set_states(saved)
    assert plain.optimizer.param_dict is None


@pytest.mark.parametrize(
    ("rule", "option"),
    [
        (SGD(lambda t: 1 / t), "learning_rate"),
        (SGD(Function(math.sqrt)), "learning_rate"),
        (Adam(beta1=lambda t: 0.5), "beta1"),
        (SGD(wd=lambda t: 0.0), "wd"),
        (SGD(Warmup(Function(lambda t: 0.1), steps=2)), "learning_rate"),
        (SGD(type("Mine", (Fixed,), {})()), "learning_rate"),
    ],
)
def test_python_functions_are_refused(rule, option):
    updater = Updater(rule)
    with pytest.raises(TypeError, match=rf"The {option} of {type(rule).__name__} is .* use a number or a"):
        updater.get_states(dump_optimizer=True)
    updater.get_states()  # the weights' own can be saved all the same


def test_rules_that_are_not_registered_are_refused():
    with pytest.raises(TypeError, match="Mine is not registered"):
        rule_to_dict(type("Mine", (SGD,), {})())
    with pytest.raises(TypeError, match="SGD is not registered"):
        rule_to_dict(type("SGD", (SGD,), {})())


# -- rules as data ---------------------------------------------------------------------------------


OPTIONS: dict[str, Any] = {
    "wd": 0.1,
    "decoupled_weight_decay": True,
    "l1": Exp(0.1),
    "rescale_grad": -2.5,
    "clip_gradient": 0.5,
    "clip_global_norm": 3.0,
    "lr_mult": {"a*": 0.5, 3: 2.0, "3": 1.0},
    "wd_mult": {"*": 0.0},
    "frozen": ("a", "b*"),
    "accumulate": 3,
    "begin_num_update": 5,
    "multi_precision": True,
    "skip_nonfinite": True,
    "param_idx2name": {0: "a", 7: "b"},
}


@EACH
def test_every_option_survives_json(cls):
    rule = cls(**OPTIONS).init_learning_rate()
    rule.update_learning_rate(3)
    data = json.loads(json.dumps(rule_to_dict(rule)))
    again = rule_from_dict(data)
    mine, others = rule.get_params(), again.get_params()
    assert list(others.pop("frozen")) == list(mine.pop("frozen"))
    assert others == mine
    assert (again.t, again.values) == (9, rule.values)


def test_every_shared_option_is_tried():
    names = {f.name for f in dataclasses.fields(optim.options.SharedOptions)}
    assert set(OPTIONS) == names - {"sym", "param_dict"}


@given(st.floats(0, 1e300), st.floats(0, 1, exclude_max=True), st.integers(1, 10**6))
def test_numbers_are_kept_to_the_bit(rate, beta, accumulate):
    rule = Adam(rate, beta1=np.float64(beta), accumulate=np.int64(accumulate))
    again = rule_from_dict(json.loads(json.dumps(rule_to_dict(rule))))
    assert (again.learning_rate, again.beta1, again.accumulate) == (rate, beta, accumulate)


def test_what_older_versions_wrote():
    """Lists and mappings each had a key of their own."""
    rule = optim.SGD(optim.MultiStep(0.1, milestones=[3, 5]), lr_mult={"w*": 0.5, 1: 2.0}, frozen=["b"])
    data = rule_to_dict(rule)
    options = data["options"]
    options["learning_rate"]["fields"]["milestones"] = {"list": [3, 5]}
    options["lr_mult"] = {"mapping": options["lr_mult"]["items"]}
    options["frozen"] = {"list": ["b"]}
    assert rule_to_dict(rule_from_dict(json.loads(json.dumps(data)))) == rule_to_dict(rule)


def test_a_clock_that_was_not_started():
    again = rule_from_dict(rule_to_dict(LearningRateSGD(0.5)))
    with pytest.raises(RuntimeError, match="init_learning_rate"):
        _ = again.value


def test_a_rate_set_in_mid_training_is_kept():
    rule = LearningRateSGD(0.5).init_learning_rate()
    rule.update_learning_rate(4)
    rule.set_learning_rate(Exp(0.25, 0.5, decay_on_iteration=True))
    again = rule_from_dict(rule_to_dict(rule))
    assert (again.value, again.t) == (0.25 * 0.5**5, 5)


@pytest.mark.parametrize(
    "data", [{}, {"rule": "SGD"}, {"rule": "SGD", "options": []}, {"rule": 1, "options": {}}]
)
def test_data_that_are_no_rule(data):
    with pytest.raises(CheckpointError, match="saved optimizer cannot be read"):
        rule_from_dict(data)
