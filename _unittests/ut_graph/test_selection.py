"""Choices of weights: names, patterns, words, what is frozen; and what a training step makes of them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom import TrainingStep, weights
from onnxcustom.exceptions import NoTrainableWeightError, OnnxCustomError, UnknownNameError
from onnxcustom.graph import layers, rename_weights, select_weights
from onnxcustom.graph.trainable.selection import matching

_NET = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 18]>
net (float[N, 2] x) => (float[N, 1] y)
<float[2, 2] dense0_w = {1, -2, 3, 1}, float[2] dense0_b = {1, 2}, float[2] norm_scale = {1, 1},
 float[2] norm_shift = {0, 0}, float[2, 2] dense1_w = {1, 2, -3, 4}, float[2] dense1_b = {1, 2},
 float[2, 1] head = {1, 2}> {
    a0 = MatMul(x, dense0_w)  z0 = Add(a0, dense0_b)  n = LayerNormalization(z0, norm_scale, norm_shift)
    a1 = MatMul(n, dense1_w)  z1 = Add(a1, dense1_b)  h = Tanh(z1)
    y = MatMul(h, head)
}""")
NET = rename_weights(_NET, {n: n.replace("_", ".") for n in weights(_NET)})
DENSE0, NORM, DENSE1, HEAD = (
    ["dense0.w", "dense0.b"],
    ["norm.scale", "norm.shift"],
    ["dense1.w", "dense1.b"],
    ["head"],
)
ALL = DENSE0 + NORM + DENSE1 + HEAD
BIASES = ["dense0.b", "norm.shift", "dense1.b"]


def without(names: list[str]) -> list[str]:
    return [n for n in ALL if n not in names]


@pytest.mark.parametrize(
    ("train", "freeze", "wanted"),
    [
        (None, None, ALL),
        (["head", "dense0.w"], None, ["dense0.w", "head"]),
        ("head", None, HEAD),
        ("dense*", None, DENSE0 + DENSE1),
        (("dense?.w", "head"), None, ["dense0.w", "dense1.w", "head"]),
        ("*[01].b", None, ["dense0.b", "dense1.b"]),
        ("last:1", None, HEAD),
        ("last:2", None, DENSE1 + HEAD),
        ("last:4", None, ALL),
        ("first:2", None, DENSE0 + NORM),
        ("biases", None, BIASES),
        ("normalizations", None, NORM),
        (["biases", "last:1"], None, [*BIASES, "head"]),
        (None, "biases", without(BIASES)),
        (None, ["first:3"], HEAD),
        ("dense*", "dense0*", DENSE1),
        ("dense*", ["head", "biases"], ["dense0.w", "dense1.w"]),
        ({"head"}, set(), HEAD),
        (np.array(["head"]), None, HEAD),
    ],
)
def test_choices(train, freeze, wanted):
    assert select_weights(NET, train, freeze) == wanted
    bare = dict.fromkeys(weights(NET))
    words = [t for s in (train, freeze) for t in ([s] if isinstance(s, str) else s if s is not None else ())]
    if any(":" in w or w in ("biases", "normalizations") for w in words):
        with pytest.raises(UnknownNameError, match="names only"):
            select_weights(bare, train, freeze)
    else:
        assert select_weights(bare, train, freeze) == wanted


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("p[0]", "p[0]", ["p[0]"]),
        ("biases", "biases", ["biases"]),
        ("last:1", "last:1", ["last:1"]),
        ("*", "*", ["*"]),
        ("HEAD", "head", None),
        ("HEAD", "h*", None),
    ],
)
def test_a_name_goes_before_what_else_it_could_mean(name, text, wanted):
    model = rename_weights(NET, {"dense0.w": name, "head": "p0"} if name != "HEAD" else {"head": name})
    if wanted is None:
        with pytest.raises(UnknownNameError):
            select_weights(model, text)
    else:
        assert select_weights(model, text) == wanted


@pytest.mark.parametrize(
    ("train", "freeze", "error", "message"),
    [
        ("dence*", None, UnknownNameError, r"list of weights names \['dence\*'\].*'dense0.w'.*'last:n'"),
        (["head", "dense1.c"], None, UnknownNameError, r"\['dense1.c'\].*Did you mean 'dense1.w' or"),
        (None, "heads", UnknownNameError, r"freeze names \['heads'\].*Did you mean 'head'"),
        (["head", "head"], None, UnknownNameError, r"repeats \['head'\]"),
        ("last:5", None, UnknownNameError, r"'last:5' asks for more layers than the 4"),
        ("last:0", None, UnknownNameError, r"\['last:0'\]"),
        ("last:-1", None, UnknownNameError, r"\['last:-1'\]"),
        ("Biases", None, UnknownNameError, r"\['Biases'\]"),
        (7, None, UnknownNameError, r"\[7\]"),
        ([["head"]], None, UnknownNameError, r"\['head'\]"),
        (b"head", None, UnknownNameError, r"b'head'"),
        ([None], None, UnknownNameError, r"\[None\]"),
        ([], None, NoTrainableWeightError, r"list of weights is empty; the model has \['dense0.w'"),
        (None, "*", NoTrainableWeightError, r"Every weight is frozen: \['dense0.w'.*freeze='\*'"),
        ("head", ["last:1"], NoTrainableWeightError, r"Every weight is frozen: \['head'\]"),
    ],
)
def test_what_chooses_nothing_is_an_error(train, freeze, error, message):
    with pytest.raises(error, match=message):
        select_weights(NET, train, freeze)


def test_a_model_without_weights():
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    )
    with pytest.raises(NoTrainableWeightError, match="no trainable weight"):
        select_weights(model)


def test_messages_do_not_list_hundreds_of_names():
    with pytest.raises(UnknownNameError) as raised:
        select_weights({f"weight{i}": None for i in range(500)}, "no such")
    assert "(500 in all)" in str(raised.value)
    assert len(str(raised.value)) < 1500


@given(st.lists(st.sampled_from(["*", "?", "[ab]", "a", "b", ".", "[!a]"]), max_size=4).map("".join))
def test_patterns_are_those_of_fnmatch_but_for_names(pattern):
    import fnmatch

    names = ["a", "b", "ab", "a.b", "[ab]", "*"]
    wanted = [pattern] if pattern in names else fnmatch.filter(names, pattern)
    assert matching(pattern, names) == wanted


@given(st.integers(1, 4))
def test_first_and_last_levels_make_up_the_model(n):
    assert n == 4 or select_weights(NET, f"last:{n}", f"first:{4 - n}") == select_weights(NET, f"last:{n}")
    lower = select_weights(NET, f"first:{4 - n}") if n < 4 else []
    assert lower + select_weights(NET, f"last:{n}") == ALL
    assert max(layer.level for layer in layers(NET)) == 4


# -- in a training step --------------------------------------------------------------------------


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 2)).astype(np.float32), rng.normal(size=(8, 1)).astype(np.float32)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("train", "freeze"),
    [("last:2", None), ("biases", None), (None, "biases"), (["dense*"], ["dense0*"]), (["head"], None)],
)
def test_only_what_is_chosen_changes(train, freeze, optimizer):
    X, y = batch()
    step = TrainingStep(NET, optimizer=optimizer, learning_rate=0.1, weights=train, freeze=freeze)
    chosen = select_weights(NET, train, freeze)
    assert sorted(step.weights()) == sorted(chosen)
    assert set(step.state()) <= set(chosen)
    losses = [step.run(X, y) for _ in range(5)]
    assert losses[-1] < losses[0]
    before, after = weights(NET), weights(step.trained_model())
    assert [n for n in ALL if not np.array_equal(before[n], after[n])] == chosen


def test_frozen_in_the_step_is_frozen_in_the_optimizer():
    from onnxcustom.optim import Adam

    X, y = batch()
    steps = [
        TrainingStep(NET, optimizer=Adam(0.1), freeze="dense*"),
        TrainingStep(NET, optimizer=Adam(0.1, frozen=["dense*"])),
    ]
    losses = [[step.run(X, y) for _ in range(4)] for step in steps]
    assert losses[0] == losses[1]
    for name, array in steps[0].weights().items():
        np.testing.assert_array_equal(array, steps[1].weights()[name])


@pytest.mark.parametrize("word", ["first:1", "last:2", "biases", "normalizations"])
@pytest.mark.parametrize("option", ["lr_mult", "wd_mult", "frozen"])
def test_words_in_options_of_the_optimizer(option, word):
    from onnxcustom.optim import Adam

    X, y = batch()
    chosen = select_weights(NET, word)

    def options(texts):
        return {option: list(texts) if option == "frozen" else dict.fromkeys(texts, 3.0)}

    steps = [TrainingStep(NET, optimizer=Adam(0.1, wd=0.1, **options(texts))) for texts in ([word], chosen)]
    steps.append(pickle.loads(pickle.dumps(steps[0])))
    losses = [[step.run(X, y) for _ in range(4)] for step in steps]
    assert losses[0] == losses[1] == losses[2]
    plain = TrainingStep(NET, optimizer=Adam(0.1, wd=0.1))
    assert [plain.run(X, y) for _ in range(4)] != losses[0]
    for name, array in steps[0].weights().items():
        np.testing.assert_array_equal(array, steps[1].weights()[name])
    with pytest.raises(UnknownNameError, match="'last:9' asks for more layers"):
        TrainingStep(NET, optimizer=Adam(**options(["last:9"])))


def test_words_in_options_of_an_updater():
    from onnxcustom.optim import SGD, Updater

    updater = Updater(SGD(0.5, lr_mult={"last:1": 3.0}, sym=NET))
    for name, factor in (("head", 3.0), ("dense0.w", 1.0)):
        w, g = np.ones(weights(NET)[name].shape, np.float32), np.ones(weights(NET)[name].shape, np.float32)
        updater(name, g, w)
        np.testing.assert_allclose(w, 1 - 0.5 * factor)


def test_no_gradient_is_computed_for_what_is_frozen():
    every, last = TrainingStep(NET), TrainingStep(NET, weights="last:1")
    assert len(last.model.graph.node) < len(every.model.graph.node)
    assert {i.name for i in last.model.graph.input} & set(ALL) == {"head"}


def test_a_list_of_names_keeps_its_order():
    assert list(TrainingStep(NET, weights=["head", "dense0.b"]).weights()) == ["head", "dense0.b"]
    assert list(TrainingStep(NET, weights=["head", "dense0*"]).weights()) == ["dense0.w", "dense0.b", "head"]


def test_options_of_the_optimizer_are_about_what_is_trained():
    from onnxcustom.optim import SGD

    with pytest.raises(UnknownNameError, match=r"lr_mult names 'dense0\*'"):
        TrainingStep(NET, optimizer=SGD(lr_mult={"dense0*": 2.0}), freeze="dense0*")


@pytest.mark.parametrize("weights_", ["last:2", ["dense*", "biases"]])
def test_a_step_with_a_choice_pickles_and_copies(weights_):
    X, y = batch()
    step = TrainingStep(NET, optimizer="adam", weights=weights_, freeze="norm*")
    step.run(X, y)
    copies = [pickle.loads(pickle.dumps(step)), copy.deepcopy(step)]
    loss = step.run(X, y)
    for again in copies:
        assert again.run(X, y) == loss
        for name, array in again.weights().items():
            np.testing.assert_array_equal(array, step.weights()[name])


@given(
    st.lists(
        st.sampled_from([*ALL, "dense*", "*.b", "biases", "last:2", "first:1", "nothing", "x*"]), max_size=3
    )
)
def test_the_result_is_a_part_of_the_weights_in_graph_order(texts):
    try:
        chosen = select_weights(NET, texts)
    except OnnxCustomError:
        return
    assert chosen == [n for n in ALL if n in chosen]
    rest = [n for n in ALL if n not in chosen]
    if rest:
        assert select_weights(NET, freeze=texts) == rest
