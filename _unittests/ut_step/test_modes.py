"""Training modes: statistics against NumPy, masks against their probabilities, both across a pickle."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxcustom import OnnxRegressor, TrainingStep, weights
from onnxcustom.exceptions import InvalidModelError, UnknownNameError
from onnxcustom.graph import prepare, to_proto
from onnxcustom.runtime import create_session
from onnxcustom.step.modes import ModeSettings, set_modes

HEADER = '<ir_version: 8, opset_import: ["": 18]>'
NORMALIZED = (
    HEADER
    + """
g (float[N, 3, 2] x) => (float[N, 3, 2] y) <float[3] s = {1, 2, 3}, float[3] b = {0, 1, 2},
    float[3] mean = {0.5, 0.25, 1}, float[3] var = {1, 2, 3}> {
    y = BatchNormalization <momentum = 0.75, epsilon = 0.01> (x, s, b, mean, var) }"""
)
DROPPED = (
    HEADER
    + """
g (float[N, 4] x) => (float[N, 4] y) <float r = {0.25}> { y = Dropout (x, r) }"""
)
NETWORK = (
    HEADER
    + """
g (float[N, 3] x) => (float[N, 1] y) <float[3] s = {1, 2, 3}, float[3] b = {0, 1, 2},
    float[3] mean = {0.5, 0.25, 1}, float[3] var = {1, 2, 3}, float[3, 1] w = {1, 1, 1}, float r = {0.5}> {
    h = BatchNormalization <momentum = 0.75> (x, s, b, mean, var)  d = Dropout (h, r)  y = MatMul (d, w) }"""
)


def dropped(step: int, seed: int = 0, shape: tuple[int, ...] = (5000, 4)) -> np.ndarray:
    """Ones after Dropout."""
    model = prepare(onnx.parser.parse_model(DROPPED))
    modes = set_modes(model, ModeSettings(dropout="on"), seed)
    session = create_session(to_proto(model))
    feeds = {"x": np.ones(shape, dtype=np.float32), modes.step: np.array(step)}
    return session.run(None, feeds)[0]


def test_batch_statistics() -> None:
    x = np.random.default_rng(0).normal(size=(8, 3, 2)).astype(np.float32)
    model = prepare(onnx.parser.parse_model(NORMALIZED))
    modes = set_modes(model, ModeSettings(batch_norm="update"))
    made = {v.name: v for node in model.graph for v in node.outputs}
    model.graph.outputs.extend(made[name] for name in modes.statistics.values())
    statistics = {"mean": np.array([0.5, 0.25, 1], np.float32), "var": np.array([1, 2, 3], np.float32)}
    y, mean, var = create_session(to_proto(model)).run(None, {"x": x, **statistics})
    batch_mean, batch_var = x.mean(axis=(0, 2)), x.var(axis=(0, 2))
    scale, bias = np.array([1, 2, 3]), np.array([0, 1, 2])
    wanted = (x - batch_mean[:, None]) / np.sqrt(batch_var[:, None] + 0.01) * scale[:, None] + bias[:, None]
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, 0.75 * np.array([0.5, 0.25, 1]) + 0.25 * batch_mean, rtol=1e-5)
    np.testing.assert_allclose(var, 0.75 * np.array([1, 2, 3]) + 0.25 * batch_var, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5000, 4), (1, 4), (0, 4)])
def test_mask_is_a_function_of_seed_and_step(shape: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(dropped(3, seed=1, shape=shape), dropped(3, seed=1, shape=shape))


def test_masks_keep_the_ratio_and_look_independent() -> None:
    masks = [dropped(step, seed) > 0 for step in (1, 2) for seed in (0, 1)]
    n = masks[0].size
    for mask in masks:
        assert abs(mask.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / n)
        for lag in (1, 2, 4, 17):
            flat = mask.ravel().astype(float)
            assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 4 / np.sqrt(n)
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(n)
    kept = dropped(1)
    np.testing.assert_allclose(kept[kept > 0], 1 / 0.75, rtol=1e-6)


def test_off_and_frozen_are_inference() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    proto = onnx.parser.parse_model(NETWORK)
    model = prepare(proto)
    modes = set_modes(model, ModeSettings())
    assert not modes.statistics
    assert modes.step is None
    wanted = create_session(proto).run(None, {"x": x})[0]
    np.testing.assert_allclose(create_session(to_proto(model)).run(None, {"x": x})[0], wanted, rtol=1e-6)


def test_a_node_that_trains_by_itself_is_frozen_unless_asked() -> None:
    text = NORMALIZED.replace("momentum", "training_mode = 1, momentum").replace(
        "y = BatchNormalization", "y, m, v = BatchNormalization"
    )
    model = prepare(onnx.parser.parse_model(text))
    set_modes(model, ModeSettings())
    x = np.random.default_rng(0).normal(size=(8, 3, 2)).astype(np.float32)
    wanted = create_session(onnx.parser.parse_model(NORMALIZED)).run(None, {"x": x})[0]
    np.testing.assert_allclose(create_session(to_proto(model)).run(None, {"x": x})[0], wanted, rtol=1e-6)


def make_step() -> tuple[TrainingStep, np.ndarray, np.ndarray]:
    X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    model = onnx.parser.parse_model(NETWORK)
    return (
        TrainingStep(model, learning_rate=0.01, batch_norm="update", dropout="on", seed=5),
        X,
        X.sum(axis=1),
    )


def test_step_moves_statistics_and_hands_them_out() -> None:
    step, X, y = make_step()
    step.run(X, y)
    found = step.statistics()
    np.testing.assert_allclose(
        found["mean"], 0.75 * np.array([0.5, 0.25, 1]) + 0.25 * X.mean(axis=0), rtol=1e-4
    )
    np.testing.assert_allclose(found["var"], 0.75 * np.array([1, 2, 3]) + 0.25 * X.var(axis=0), rtol=1e-4)
    trained = step.trained_model()
    by_name = {t.name: onnx.numpy_helper.to_array(t) for t in trained.graph.initializer}
    np.testing.assert_array_equal(by_name["mean"], found["mean"])
    np.testing.assert_allclose(
        step.predict(X)["y"], create_session(trained).run(None, {"x": X})[0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(by_name["r"], np.float32(0.5))


def test_a_pickled_step_draws_the_same_masks() -> None:
    step, X, y = make_step()
    step.run(X, y)
    again = pickle.loads(pickle.dumps(step))
    assert [step.run(X, y) for _ in range(3)] == [again.run(X, y) for _ in range(3)]
    for name, array in step.statistics().items():
        np.testing.assert_array_equal(array, again.statistics()[name])


def test_estimator_keeps_statistics_when_it_goes_on_frozen() -> None:
    _, X, y = make_step()
    model = onnx.parser.parse_model(NETWORK)
    reg = OnnxRegressor(
        model,
        batch_norm="update",
        dropout="on",
        learning_rate=0.01,
        max_iter=2,
        random_state=0,
        warm_start=True,
    ).fit(X, y)
    learned = reg.step_.statistics()["mean"]
    reg.set_params(batch_norm="frozen", dropout="off").fit(X, y)
    by_name = {t.name: onnx.numpy_helper.to_array(t) for t in reg.get_trained_onnx().graph.initializer}
    np.testing.assert_array_equal(by_name["mean"], learned)


@pytest.mark.parametrize("setting", [{"batch_norm": "on"}, {"dropout": "yes"}])
def test_unknown_mode(setting: dict[str, str]) -> None:
    with pytest.raises(UnknownNameError, match=r"must be one of"):
        ModeSettings(**setting)


def test_computed_ratio() -> None:
    text = HEADER + "g (float[N] x, float r) => (float[N] y) { y = Dropout (x, r) }"
    with pytest.raises(InvalidModelError, match=r"Dropout .*ratio"):
        set_modes(prepare(onnx.parser.parse_model(text)), ModeSettings(dropout="on"))


@pytest.mark.parametrize("mode", ["frozen", "update"])
def test_scale_and_bias_that_copy_the_statistics(mode):
    """PyTorch's exporter writes equal tensors once: those of a normalization that was never trained."""
    shared, apart = (
        onnx.parser.parse_model(
            f"""<ir_version: 8, opset_import: ["": 17]>
            net (float[N, 2, 3] x) => (float[N, 2, 3] y)
            <float[2] var = {{1, 1}}, float[2] mean = {{0, 0}}> {{
                {nodes}  y = BatchNormalization (x, scale, bias, mean, var) }}"""
        )
        for nodes in (
            "scale = Identity (var)  bias = Identity (mean)",
            "scale = Constant <value = float[2] {1, 1}> ()  bias = Constant <value = float[2] {0, 0}> ()",
        )
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 2, 3)).astype(np.float32)
    steps = [TrainingStep(model, learning_rate=0.1, batch_norm=mode) for model in (shared, apart)]
    for _ in range(3):
        losses = [step.run(x, y) for step in steps]
        assert losses[0] == losses[1]
    assert list(steps[0].weights()) == ["scale", "bias"]
    for name, array in steps[1].weights().items():
        np.testing.assert_array_equal(steps[0].weights()[name], array)
        np.testing.assert_array_equal(weights(steps[0].trained_model())[name], array)


PLAIN = HEADER + "g (float[N, 3] x) => (float[N, 1] y) <float[3, 1] w = {1, 1, 1}> { y = MatMul (x, w) }"
BESIDE = NETWORK.replace("(float[N, 1] y)", "(float[N, 1] y, float[N, 3] d)").replace(
    "MatMul (d, w)", "MatMul (x, w)"
)


@pytest.mark.parametrize("text", [PLAIN, BESIDE], ids=["none", "beside what is trained"])
@pytest.mark.parametrize(
    ("setting", "operator"),
    [({"batch_norm": "update"}, "BatchNormalization"), ({"dropout": "on"}, "Dropout")],
)
def test_a_mode_without_its_operator_says_so_once(text, setting, operator):
    model = onnx.parser.parse_model(text)
    ((name, value),) = setting.items()
    wanted = f"^{name}={value!r} does nothing: there is no {operator} .*PRESERVE, do_constant_folding=False"
    x = np.ones((4, 3), np.float32)
    with pytest.warns(UserWarning, match=wanted) as said:
        step = TrainingStep(model, **setting)
    step.run(x, np.zeros(4))  # a warning is an error here
    step.scores(x, np.zeros(4))
    assert [w.filename for w in said] == [__file__]
    with pytest.warns(UserWarning, match=wanted) as said:
        OnnxRegressor(model, max_iter=2, **setting).fit(x, np.zeros(4))
    assert len(said) == 1
    pickle.loads(pickle.dumps(step)).run(x, np.zeros(4))


def test_modes_with_their_operators_say_nothing():
    make_step()
