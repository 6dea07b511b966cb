"""Options that every rule has, and updates handed to other people's graphs."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom import optim
from onnxcustom.optim import (
    NAG,
    SGD,
    Adam,
    AdamW,
    Exp,
    Fixed,
    LearningRateSGD,
    OptimizationState,
    ReduceOnPlateau,
    UnknownOptionError,
    Updater,
    normalized_gradient,
    update_model,
)
from onnxcustom.optim.options import SharedOptions
from onnxcustom.optim.registry import RULES

from .rule_cases import data, one_update

ort = pytest.importorskip("onnxruntime")

EACH = pytest.mark.parametrize("cls", RULES.classes(), ids=lambda c: c.__name__)
NUMBER = st.floats(-10, 10).map(lambda x: x + 0.0)


def step(rule: optim.BaseLearningRate, w: Any, g: Any, index: Any = 0) -> np.ndarray:
    """The weight after one update."""
    weight = np.array(w, np.float64)
    return Updater(rule)(index, np.array(g, np.float64), weight)


# -- gradient: rescale, clip, decay ----------------------------------------------------------------


def clip(x, limit):
    return np.clip(x, -limit, limit)


ORDERS = {  # as the pages write it
    "LearningRateSGD": lambda g, w, r, c, wd: clip(r * g, c) + wd * w,
    "NAG": lambda g, w, r, c, wd: clip(r * g, c) + wd * w,
    "SGD": lambda g, w, r, c, wd: r * clip(g, c) + wd * w,
    "Adam": lambda g, w, r, c, wd: clip(r * g + wd * w, c),
}


@pytest.mark.parametrize("name", ORDERS)
@given(NUMBER, NUMBER, st.floats(-3, 3), st.floats(0.01, 5), st.floats(0, 2))
def test_order_of_rescale_clip_and_decay(name, g, w, rescale, limit, wd):
    rule = optim.create(name, lr=1.0, rescale_grad=rescale, clip_gradient=limit, wd=wd)
    got = one_update(rule.init_learning_rate(), np.array([w]), np.array([g]))
    wanted = ORDERS[name](g, w, rescale, limit, wd)
    if name == "Adam":  # whose first step is the sign, nearly
        wanted = wanted / (abs(wanted) + 1e-8)
    np.testing.assert_allclose(got, [w - wanted], rtol=1e-12, atol=1e-7 if name == "Adam" else 1e-12)


@pytest.mark.parametrize("clip_gradient", [None, 0.5])
def test_what_is_not_asked_for_is_not_emitted(clip_gradient):
    # A pass over memory for nothing is what a default may not cost.
    nodes = [n.op_type for n in update_model(SGD(clip_gradient=clip_gradient)).graph.node]
    assert nodes == (["Clip"] if clip_gradient else []) + ["Mul", "Sub"]


def test_decay_with_a_schedule():
    updater, w = Updater(SGD(0.1, wd=lambda t: 1 / t)), np.array([1.0])
    expected = 1.0
    for t in range(1, 4):
        updater(0, np.array([0.5]), w)
        expected -= 0.1 * (0.5 + expected / t)
    np.testing.assert_allclose(w, [expected], rtol=1e-14)


@pytest.mark.parametrize("name", ["SGD", "NAG", "LearningRateSGD"])
@given(NUMBER, NUMBER, st.floats(0, 1), st.floats(0, 1))
def test_decoupled_decay_shrinks_the_weight(name, w, g, lr, wd):
    options = {"lr": lr, "wd": wd, "decoupled_weight_decay": True, "clip_gradient": 0.5}
    got = one_update(optim.create(name, **options), np.array([w]), np.array([g]))
    np.testing.assert_allclose(got, [(1 - lr * wd) * w - lr * clip(g, 0.5)], rtol=1e-12, atol=1e-12)


def test_decoupled_decay_follows_the_rate_and_torch():
    torch = pytest.importorskip("torch")
    w, gradients = data((3,), np.float64)
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.3)
    updater = Updater(Adam(lambda t: 0.1 / t, wd=0.3, decoupled_weight_decay=True))
    for t, g in enumerate(gradients, 1):
        optimizer.param_groups[0]["lr"] = 0.1 / t
        parameter.grad = torch.from_numpy(g)
        optimizer.step()
        updater(0, g, w)
    np.testing.assert_allclose(w, parameter.detach().numpy(), rtol=1e-12)


# -- L1 ------------------------------------------------------------------------------------------


@given(NUMBER, NUMBER, st.floats(0, 1), st.floats(0, 5), st.sampled_from([0.0, 0.5]))
def test_l1_is_proximal(w, g, lr, l1, mult):
    rule = LearningRateSGD(lr, learning_rate="constant", l1=l1, wd_mult={"w": mult})
    before = w - lr * g
    wanted = np.sign(before) * max(abs(before) - lr * l1 * mult, 0.0)
    got = one_update(rule, np.array([w]), np.array([g]), name="w")
    np.testing.assert_allclose(got, [wanted], rtol=1e-12, atol=1e-14)


def test_l1_never_crosses_zero_and_stays_there():
    updater, w = Updater(Adam(0.1, l1=0.6)), np.array([0.07, -0.07, 3.0])
    for _ in range(100):
        before = w.copy()
        updater(0, np.zeros(3), w)
        assert (w * before >= 0).all()
        assert (np.abs(w) <= np.abs(before)).all()
    np.testing.assert_array_equal(w, [0, 0, 0])


def test_l1_has_a_schedule():
    updater, w = Updater(SGD(0.1, l1=lambda t: float(t))), np.array([1.0])
    for _ in range(3):
        updater(0, np.zeros(1), w)
    np.testing.assert_allclose(w, [1 - 0.1 - 0.2 - 0.3])


def test_l1_finds_the_solution_of_a_lasso():
    # Soft thresholding is the solution where the design is orthonormal.
    target = np.array([2.0, 0.3, -0.7, -0.1])
    updater, w = Updater(SGD(0.5, l1=0.5)), np.zeros(4)
    for _ in range(100):
        updater(0, w - target, w)
    np.testing.assert_allclose(w, [1.5, 0, -0.2, 0], atol=1e-12)


# -- multipliers -----------------------------------------------------------------------------------


MODEL = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 18]>
    agraph (float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] kernel = {1,1,1,1,1,1,1,1,1,1,1,1}, float[1, 4] row = {1,1,1,1}, float[4] scale = {1,1,1,1},
     float[4] shift = {1,1,1,1}, float[4, 2] last = {1,1,1,1,1,1,1,1}, float[2] bias = {1,1},
     float[2] factor = {1,1}>
    {
        a = MatMul(x, kernel)
        b = Add(a, row)
        c = LayerNormalization<axis = -1>(b, scale, shift)
        d = Gemm(c, last, bias)
        y = Mul(d, factor)
    }"""
)
DECAYING = {"kernel": 1, "last": 1, "factor": 1, "other": 1, "row": 0, "bias": 0, "scale": 0, "shift": 0}
INDEXED = dict(enumerate(DECAYING))


@pytest.mark.parametrize("form", ["proto", "bytes", "file"])
@pytest.mark.parametrize("by_index", [False, True], ids=["name", "index"])
def test_biases_and_normalizations_do_not_decay(form, by_index, tmp_path):
    sym: Any = MODEL
    if form == "bytes":
        sym = MODEL.SerializeToString()
    elif form == "file":
        sym = str(tmp_path / "m.onnx")
        onnx.save(MODEL, sym)
    updater = Updater(SGD(0.5, wd=1.0, l1=0.2, sym=sym, param_idx2name=INDEXED))
    for index, (name, decays) in enumerate(DECAYING.items()):
        w = updater(index if by_index else name, np.zeros(1), np.ones(1))
        np.testing.assert_allclose(w, [0.4 if decays else 1.0])


def test_unless_told_otherwise():
    rule = SGD(0.5, wd=1.0, sym=MODEL, wd_mult={"bias": 0.5, "s*": 1.0, "kernel": 0})
    updater = Updater(rule)
    wanted = {"bias": 0.75, "scale": 0.5, "shift": 0.5, "row": 1.0, "kernel": 1.0, "last": 0.5}
    for name, value in wanted.items():
        np.testing.assert_allclose(updater(name, np.zeros(1), np.ones(1)), [value])


def test_roles_survive_copies_and_saved_rules():
    updater = Updater(SGD(0.5, wd=1.0, sym=MODEL))
    again = copy.deepcopy(updater)
    other = Updater(SGD(0.5, sym=MODEL))
    other.set_states(updater.get_states(dump_optimizer=True))
    for u in (updater, again, other):
        assert u.optimizer.sym == MODEL
        np.testing.assert_array_equal(u("bias", np.zeros(1), np.ones(1)), [1.0])
        np.testing.assert_array_equal(u("kernel", np.zeros(1), np.ones(1)), [0.5])


PARAMETER = SimpleNamespace(lr_mult=5.0, wd_mult=7.0)
# What is given for weight 3, called "dense.w": the factor that counts.
PRECEDENCE = [
    ({"dense.w": 2.0, 3: 3.0, "dense.*": 4.0}, True, True, 2.0),
    ({"dense.*": 4.0, 3: 3.0}, True, True, 3.0),
    ({"*": 6.0, "dense.*": 4.0}, True, True, 6.0),
    ({"dense.?": 4.0, "*": 6.0}, True, True, 4.0),
    ({"DENSE.*": 4.0}, True, False, None),
    ({"Dense.*": 4.0}, True, True, None),
    ({"dense": 4.0, 4: 3.0}, True, True, None),
    ({3: 3.0}, False, True, 3.0),
    ({np.int64(3): 3.0}, True, False, 3.0),
    (None, True, True, None),
    (None, False, False, 1.0),
]


@pytest.mark.parametrize("option", ["lr_mult", "wd_mult"])
@pytest.mark.parametrize(("table", "named", "parameter", "factor"), PRECEDENCE, ids=str)
def test_which_multiplier_counts(option, table, named, parameter, factor):
    options: dict[str, Any] = {option: table}
    if named:
        options["param_idx2name"] = {3: "dense.w"}
    if parameter:
        options["param_dict"] = {3: PARAMETER}
    # By default names that end in neither "_weight" nor "_gamma" do not decay.
    rates = {"lr_mult": 1.0, "wd_mult": 0.0 if named else 1.0}
    if parameter:
        rates = {"lr_mult": 5.0, "wd_mult": 7.0}
    if factor is not None:
        rates[option] = factor
    rule = SGD(0.01, wd=0.25, **options)
    expected = 2.0 - 0.01 * rates["lr_mult"] * (3.0 + 0.25 * rates["wd_mult"] * 2.0)
    np.testing.assert_allclose(step(rule, [2.0], [3.0], 3), [expected], rtol=1e-14)


def test_multipliers_of_the_learning_rate_reach_what_it_multiplies():
    # Decoupled decay and the threshold of L1 follow the rate of the weight.
    rule = SGD(1.0, wd=0.2, l1=0.1, decoupled_weight_decay=True, lr_mult={"w": 0.5}, wd_mult={"w": 3.0})
    w = 2.0 - 0.5 * 0.6 * 2.0 - 0.5 * 0.25
    np.testing.assert_allclose(step(rule, [2.0], [0.25], "w"), [w - 0.5 * 0.3], rtol=1e-14)


def test_a_multiplier_of_zero_keeps_the_weight_but_not_its_state():
    updater, w = Updater(Adam(0.1, lr_mult={"w": 0})), np.ones(2)
    updater("w", np.ones(2), w)
    np.testing.assert_array_equal(w, [1, 1])
    np.testing.assert_allclose(updater.states["w"]["m"], [0.1, 0.1])


def test_param_dict_is_read_anew():
    parameter = SimpleNamespace(lr_mult=1.0)
    updater, w = Updater(SGD(1.0, param_dict={0: parameter})), np.zeros(1)
    for mult in (1.0, 0.5):
        parameter.lr_mult = mult
        updater(0, np.ones(1), w)
    np.testing.assert_array_equal(w, [-1.5])


def test_parameters_of_the_callers_are_not_copied():
    parameter, schedule = SimpleNamespace(lr_mult=1.0), ReduceOnPlateau(1.0)
    rule = SGD(schedule, param_dict={0: parameter}, lr_mult={"a": 1.0})
    for again in (
        copy.deepcopy(rule),
        copy.deepcopy([rule, rule])[1],
        copy.deepcopy(Updater(rule)).optimizer,
    ):
        assert again is not rule
        assert again.param_dict is rule.param_dict
        assert again.lr_mult is not rule.lr_mult
        assert again.learning_rate is not schedule
        assert repr(again.learning_rate) == repr(schedule)
    first, second = copy.deepcopy([rule, rule])
    assert first is second


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, "1", None])
@pytest.mark.parametrize("option", ["lr_mult", "wd_mult"])
def test_bad_factors_of_parameters(bad, option):
    updater, w = Updater(SGD(1.0, param_dict={0: SimpleNamespace(**{option: bad})})), np.zeros(1)
    with pytest.raises((ValueError, TypeError), match=rf"{option} of parameter 0 must be .*\[0, inf\)"):
        updater(0, np.ones(1), w)
    np.testing.assert_array_equal(w, [0])


# -- names of options ------------------------------------------------------------------------------


def options_of(rule: Any, *names: str) -> tuple[Any, ...]:
    return tuple(getattr(rule, name) for name in names)


@EACH
def test_aliases(cls):
    rule = cls(lr=0.25, weight_decay=0.5, grad_clip=2, grad_scale=3.0)
    assert options_of(rule, "wd", "clip_gradient", "rescale_grad") == (0.5, 2, 3.0)
    plain = cls()
    rate = "eta0" if "eta0" in plain.get_params() else "learning_rate"
    assert getattr(rule, rate) == 0.25
    assert cls(grad_clip=0).clip_gradient is None
    assert cls(lr=None).get_params() == cls(learning_rate=None).get_params() == plain.get_params()
    assert cls(lr_scheduler=None, momentum_scheduler=None).get_params() == plain.get_params()


@EACH
def test_schedulers(cls):
    def at(rule: Any, epoch: int) -> float:
        rule.init_learning_rate()
        for _ in range(epoch - 1):
            rule.report_epoch(1.0)
        return rule.value

    factor = at(cls(lr_scheduler=Fixed(1.0)), 3)  # LBSGD multiplies it
    assert at(cls(lr_scheduler=Exp(0.5, 0.5)), 3) == pytest.approx(factor * 0.5**4)
    assert at(cls(lr_scheduler=Exp(0.5, 0.5), lr=0.8), 3) == pytest.approx(factor * 0.8 * 0.5**3)
    assert at(cls(lr_scheduler=lambda t: 0.25), 1) == pytest.approx(factor * 0.25)
    assert at(cls(lr_scheduler=ReduceOnPlateau(0.1), lr=0.8), 1) == pytest.approx(factor * 0.8)


def places_of(cls: Any) -> list[str]:
    """Options that the constructor takes by position."""
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


@EACH
def test_options_by_position(cls):
    """The same as by name, whatever is given by name beside them."""
    plain, places = cls(), places_of(cls)
    values = [getattr(plain, name) for name in places]
    shared = {
        "weight_decay": 0.5,
        "grad_clip": 2,
        "rescale_grad": 3.0,
        "frozen": ["b"],
        "lr_mult": {"w": 2.0},
    }
    for n in range(len(places) + 1):
        placed = dict(zip(places, values[:n], strict=False))
        assert cls(*values[:n], **shared).get_params() == cls(**placed, **shared).get_params()
    rate = "eta0" if "eta0" in places else "learning_rate"
    before = values[: places.index(rate)]
    assert getattr(cls(*before, 0.25), rate) == 0.25
    assert cls(*before, None).get_params() == plain.get_params() if rate == "learning_rate" else True
    for name in {rate, "lr"}:
        with pytest.raises(TypeError, match=rf"{cls.__name__}|twice"):
            cls(*before, 0.25, **{name: 0.5})
    with pytest.raises(UnknownOptionError, match=f"got the option {places[0]!r} by position and by name"):
        cls(values[0], **{places[0]: values[0]})
    many = rf"takes \[.*{places[-1]!r}\] by position, not {len(places) + 1} values"
    with pytest.raises(UnknownOptionError, match=many):
        cls(*values, 1)


@EACH
def test_a_rate_by_position_is_the_base_of_a_scheduler(cls):
    places = places_of(cls)
    rate = "eta0" if "eta0" in places else "learning_rate"
    before = [getattr(cls(), name) for name in places[: places.index(rate)]]
    for scheduler in (Exp(0.5, 0.5), Fixed(0.1), None):
        one, other = cls(*before, 0.8, lr_scheduler=scheduler), cls(lr=0.8, lr_scheduler=scheduler)
        assert list(one.loop(4)) == list(other.loop(4))
    with pytest.raises(TypeError, match=r"lr_scheduler is a function, .* has no base to replace by 0\.8"):
        cls(*before, 0.8, lr_scheduler=lambda t: 0.5 / t)


def test_a_momentum_by_position_gives_way_to_its_scheduler():
    assert SGD(0.3, 0.9, momentum_scheduler=Fixed(0.5)).momentum == Fixed(0.5)
    assert SGD(0.3, 0.9, momentum_scheduler=None).momentum == 0.9


def test_a_constructor_of_its_own_takes_what_it_says():
    class Loud(SGD):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    assert Loud(0.3).learning_rate == 0.3


@pytest.mark.parametrize("name", [c.__name__ for c in RULES.classes() if "momentum" in c.parameter_names()])
def test_momentum_schedulers(name):
    assert optim.create(name, momentum_scheduler=Fixed(0.5)).momentum == Fixed(0.5)
    assert optim.create(name, momentum=0.3, momentum_scheduler=None).momentum == 0.3
    # As the page has it: "if set, will overwrite the momentum parameter".
    assert optim.create(name, momentum=0.3, momentum_scheduler=Fixed(0.5)).momentum == Fixed(0.5)


def test_momentum_schedulers_where_there_is_no_momentum():
    with pytest.raises(UnknownOptionError, match=r"Adam has no option \['momentum_scheduler'\]"):
        Adam(momentum_scheduler=Fixed(0.5))


@EACH
@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_unknown_options_name_the_accepted(cls, kind):
    with pytest.raises(kind, match=rf"{cls.__name__} has no option \['speed', 'wdd'\].*'wd'.*'sym'") as error:
        cls(speed=1, wdd=2)
    for name in cls.parameter_names():
        assert repr(name) in str(error.value)


@EACH
@pytest.mark.parametrize(
    "twice",
    [
        {"wd": 0.1, "weight_decay": 0.1},
        {"clip_gradient": 1, "grad_clip": 0},
        {"grad_scale": 1, "rescale_grad": 1},
        {"lr": None, "learning_rate": 0.1},
    ],
    ids=str,
)
def test_options_given_twice(cls, twice):
    if cls.option_aliases()["lr"] != "learning_rate":
        twice = {"eta0" if k == "learning_rate" else k: v for k, v in twice.items()}
    with pytest.raises(UnknownOptionError, match=rf"name the option '\w+' of {cls.__name__} twice"):
        cls(**twice)


def test_shared_options_are_keywords():
    for cls in RULES.classes():
        assert not set(cls.__match_args__) & {f.name for f in dataclasses.fields(SharedOptions)}


# Option, values outside its range, what the message says of the range.
RANGES: list[tuple[str, list[Any], str]] = [
    ("wd", [-0.1, np.nan, np.inf], r"wd of \w+ must be in \[0, inf\)"),
    ("wd", ["0.1", None, True], r"wd of \w+ must be a number in \[0, inf\)"),
    ("l1", [-1, -np.inf], r"l1 of \w+ must be in \[0, inf\)"),
    ("rescale_grad", [np.nan, np.inf], r"rescale_grad of \w+ must be in \(-inf, inf\)"),
    ("clip_gradient", [0, -1, np.inf, np.nan], r"clip_gradient of \w+ must be in \(0, inf\)"),
    ("grad_clip", [-1], r"clip_gradient of \w+ must be in \(0, inf\)"),
    ("clip_global_norm", [0, -1], r"clip_global_norm of \w+ must be in \(0, inf\)"),
    ("accumulate", [0, -3], r"accumulate of \w+ must be in \[1, inf\)"),
    ("accumulate", [1.5, True, None], r"accumulate of \w+ must be an integer in \[1, inf\)"),
    ("begin_num_update", [-1], r"begin_num_update of \w+ must be in \[0, inf\)"),
    ("lr", [-1, np.nan, np.inf], r"must be in \[0, inf\)"),
    ("lr_mult", [{"a": -1}, {0: np.nan}], r"lr_mult\[.*\] must be in \[0, inf\)"),
    ("wd_mult", [{"a": np.inf}], r"wd_mult\['a'\] must be in \[0, inf\)"),
    ("wd_mult", [{"a": "1"}, {"a": None}], r"wd_mult\['a'\] must be a number in \[0, inf\)"),
    ("lr_mult", [0.5, [1.0], {1.5: 1.0}, {True: 1.0}], "lr_mult must be a dict from name, pattern or index"),
    ("frozen", ["w", 3, [3], {"w": 1}, iter(["w"])], "frozen must be a list of names or patterns"),
    ("param_idx2name", [["w"], {"w": 0}, {0: 1}], "param_idx2name must be a dict"),
    ("param_dict", [["w"], {"w": PARAMETER}], "param_dict must be a dict whose keys are indices"),
    ("multi_precision", [1, None, "yes"], "multi_precision of .* must be True or False"),
    ("skip_nonfinite", [0], "skip_nonfinite of .* must be True or False"),
    ("decoupled_weight_decay", ["no"], "decoupled_weight_decay of .* must be True or False"),
]


@pytest.mark.parametrize("cls", [SGD, AdamW, LearningRateSGD, optim.LARS], ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [(option, value, message) for option, values, message in RANGES for value in values],
)
def test_values_out_of_range(cls, option, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        cls(**{option: value})


def test_every_shared_option_has_a_bad_value():
    # What a model may be is said by prepare(), when an updater needs it.
    assert {f.name for f in dataclasses.fields(SharedOptions)} - {"sym"} <= {row[0] for row in RANGES}


@EACH
def test_every_number_of_a_rule_says_its_range(cls):
    checked = []
    for field in dataclasses.fields(cls):
        interval = field.metadata.get("range")
        if interval is None:
            continue
        checked.append(field.name)
        with pytest.raises(ValueError, match=f"{field.name} of {cls.__name__} must be in ") as error:
            cls(**{field.name: _outside(interval, field.metadata.get("integer", False))})
        assert interval in str(error.value)
        with pytest.raises(TypeError, match=f"{field.name} of {cls.__name__} must be an? ") as other:
            cls(**{field.name: "many"})
        assert interval in str(other.value)
    own = {f.name for f in dataclasses.fields(cls)} - {"learning_rate"}
    assert {name for name in own if type(getattr(cls(), name)) in (int, float)} <= set(checked)


def _outside(interval: str, integral: bool) -> Any:
    low = float(interval[1:-1].split(",")[0])
    if low == -np.inf:
        return np.nan
    value = low if interval[0] == "(" else low - 1
    return int(value) if integral else value


# -- clock, accumulation, precision ----------------------------------------------------------------


@pytest.mark.parametrize("begin", [0, 1, 10])
def test_begin_num_update(begin):
    rates = []

    def rate(t: int) -> float:
        rates.append(t)
        return 0.1 / t

    rule = Adam(rate, begin_num_update=begin, wd=Exp(0.1, 0.5, decay_on_iteration=True))
    updater, w, m, v, expected = Updater(rule), np.ones(2), 0.0, 0.0, np.ones(2)
    for t, g in enumerate(data((2,), np.float64, steps=4)[1], begin + 1):
        updater(0, g, w)
        g = g + 0.1 * 0.5**t * expected
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        expected = expected - 0.1 / t * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(w, expected, rtol=1e-12)
    assert min(rates) == begin + 1
    assert list(SGD(lambda t: float(t), begin_num_update=begin).loop(2)) == [begin + 1, begin + 2]


@EACH
def test_master_copies_are_single_precision_runs(cls):
    # A float16 weight with a master copy follows the float32 run of the same numbers.
    w, gradients = data((3,), np.float16)
    single = w.astype(np.float32)
    low, high = Updater(cls(multi_precision=True, wd=0.01)), Updater(cls(multi_precision=True, wd=0.01))
    for g in gradients:
        low(0, g, w)
        high(0, g.astype(np.float32), single)
    np.testing.assert_array_equal(w, single.astype(np.float16))
    np.testing.assert_array_equal(low.states[0]["master"], single)
    assert "master" not in high.states[0]


@EACH
def test_frozen_weights_stay(cls):
    updater, w = Updater(cls(frozen=["enc.*"], wd=0.1)), np.ones(2)
    updater("enc.w", np.ones(2), w)
    np.testing.assert_array_equal(w, [1, 1])
    assert updater.states == {}


# -- normalized gradient ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDERS)
@given(NUMBER, NUMBER, st.floats(-3, 3), st.floats(0.01, 5), st.floats(0, 2), st.integers(1, 9))
def test_normalized_gradient(name, g, w, rescale, limit, wd, rows):
    rule = optim.create(name, grad_scale=rescale, grad_clip=limit, weight_decay=wd)
    got = normalized_gradient(rule, OptimizationState(rows), np.array([w]), np.array([g]))
    np.testing.assert_allclose(got, [ORDERS[name](g / rows, w, rescale, limit, wd)], rtol=1e-12, atol=1e-12)


def test_normalized_gradient_of_other_rules():
    state = OptimizationState(2, curr_epoch=1, curr_batch=3, curr_iter=3)
    w, g = np.full((2, 2), 2, np.float32), np.full((2, 2), 8, np.float32)

    def of(rule: Any) -> np.ndarray:
        got = normalized_gradient(rule, state, w, g)
        assert (got.shape, got.dtype) == ((2, 2), np.float32)
        return got[0, 0]

    assert of(SGD()) == 4
    assert of(SGD(wd=lambda t: t / 3)) == 6
    assert of(optim.LARS(wd=0.5)) == 5  # whose formula has the decay elsewhere
    assert of(AdamW(wd=0.5)) == 4  # decoupled: no part of the gradient
    np.testing.assert_array_equal(g, np.full((2, 2), 8))


# -- rules of one's own get them, too ---------------------------------------------------------------


@pytest.mark.parametrize("rule", [NAG, SGD])
def test_a_schedule_that_leaves_the_range_says_so(rule):
    made = rule(0.1, momentum=lambda t: 0.5 * t).init_learning_rate()
    with pytest.raises(
        ValueError, match=r"gave 1\.5 at step 3 of epoch 1; a momentum is a number in \[0, 1\]"
    ):
        made.update_learning_rate(2)
    negative = rule(0.1, wd=lambda t: 1.0 - t).init_learning_rate()
    with pytest.raises(ValueError, match=r"gave -1\.0 at step 2 of epoch 1; a wd is a number in \[0, inf\)"):
        negative.update_learning_rate(1)


def test_multipliers_can_be_set_on_the_way():
    """MXNet's set_lr_mult and set_wd_mult; the clock goes on."""
    rule = optim.SGD(lambda t: 1.0 / t, wd=0.5)
    updater, w = optim.get_updater(rule), np.array([1.0])
    updater(0, np.array([1.0]), w)
    np.testing.assert_allclose(w, 1 - (1 + 0.5))
    assert rule.set_lr_mult({0: 0.5}) is rule
    assert rule.set_wd_mult({0: 0.0}) is rule
    updater(0, np.array([1.0]), w)
    np.testing.assert_allclose(w, -0.5 - 0.5 * 0.5)
    with pytest.raises(ValueError, match=r"lr_mult\[0\] must be in \[0, inf\)"):
        rule.set_lr_mult({0: -1})
    assert rule.lr_mult == {0: 0.5}


def test_create_optimizer_is_create():
    made = optim.Optimizer.create_optimizer("adam", learning_rate=0.1)
    assert repr(made) == repr(optim.create("adam", learning_rate=0.1))
