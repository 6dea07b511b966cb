"""A recipe gives graphs and holds nothing that training changes; a state is what training changes."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.exceptions import UnknownNameError
from onnxcustom.graph import Prepared, prepare, to_proto
from onnxcustom.graph.preparation import prepare as preparation
from onnxcustom.optim import SGD, Adam

from .older_steps import MODEL, OPTIONS, batch, made

onnxruntime = pytest.importorskip("onnxruntime")
WRITTEN = [Path(__file__).with_name(f"older_{what}.pickle") for what in ("steps", "recipes", "births")]


def step_of(**options) -> TrainingStep:
    return TrainingStep(onnx.parser.parse_model(MODEL), **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_pickled_recipe_gives_the_same_graphs(name: str) -> None:
    step = step_of(**OPTIONS[name])
    step.run(*batch())
    copy = pickle.loads(pickle.dumps(step.recipe))
    assert vars(copy).keys() == {field.name for field in dataclasses.fields(copy)}  # nothing that was derived
    for phase in ("update",) if step.optimizer.accumulate == 1 else ("update", "accumulate", "apply"):
        one, other = (to_proto(r.compose(r.weighted, phase).model) for r in (step.recipe, copy))
        assert one == other


def test_recipe_of_a_step_that_trains_stays() -> None:
    """What training changes is in the state: the recipe, and the model in it, are what they were."""
    step = step_of(optimizer="adam", batch_norm="update")
    before = pickle.dumps(step.recipe)
    for _ in range(3):
        step.run(*batch())
    step.set_weights({name: 2 * array for name, array in step.weights().items()})
    step.optimizer.set_learning_rate(0.5)
    assert pickle.dumps(step.recipe) == before


def test_what_a_training_counts_from_is_of_the_state() -> None:
    """A step whose weights joined late, and whose masks have another seed, has the recipe it began with.

    What lies side by side in its state does so in all of its graphs.
    """
    part = step_of(optimizer=Adam(0.01, frozen=["a"]), passes=True)
    joined = step_of(optimizer=Adam(0.01), passes=True)
    recipe = joined.recipe
    assert recipe.graph().packs
    part.run(*batch())
    joined.take_over(part)
    assert pickle.dumps(joined.recipe) == pickle.dumps(recipe)
    origin = joined._state.origin
    plan = joined.recipe.plan(origin)
    assert (dict(origin.born), plan.packs) == ({"a": 1}, (("one", "zero", "b"),))
    for phase in ("update", "apply"):
        packs = joined.recipe.graph(False, phase, origin).packs
        assert next(tuple(names) for _, names in packs.values()) == plan.packs[0]
    tensors, data = joined.state_dict()
    recipe = joined.recipe
    joined.load_state_dict(tensors, {**data, "modes": {**data["modes"], "seed": 7}})
    assert joined.recipe is recipe
    assert pickle.loads(pickle.dumps(joined)).state_dict()[1] == joined.state_dict()[1]
    assert joined.state_dict()[1]["modes"]["seed"] == 7


def test_a_scale_is_that_of_a_normalization_in_every_mode() -> None:
    """Which does not decay; statistics of the batch are spelled out, without an operator that says so."""
    X, y = batch()
    for mode in ("frozen", "update"):
        steps = [step_of(optimizer=SGD(0.01, wd=wd), batch_norm=mode) for wd in (0.0, 0.5)]
        for step in steps:
            step.run(X, y)
        (plain, decayed) = (step.weights() for step in steps)
        changed = {name for name in plain if not np.array_equal(plain[name], decayed[name])}
        assert changed == {"a", "b"}, mode


def test_what_does_not_change_is_derived_once() -> None:
    step = step_of()
    recipe, base, trunk = step.recipe, step.recipe.base, step.recipe.trunk
    other = recipe.replace(recompute=True)
    assert (other.base, other.trunk, other.axes) == (base, trunk, recipe.axes)
    assert other.graph() is not recipe.graph()
    retargeted = recipe.replace(targets=recipe.targets)
    assert retargeted.base is base
    assert retargeted.trunk is not trunk
    moved = recipe.replace(moved={"mean": np.ones(4, np.float32)})
    assert moved.base is not base
    assert (moved.axes, moved.predicted) == (recipe.axes, recipe.predicted)


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: file.stem)
def test_pickles_of_the_versions_before(file: Path) -> None:
    """They go on where they were: to the same bits where they were written, nearly so on other runtimes."""
    X, y = batch()
    for name, (written, weights, statistics, iteration, *_) in pickle.loads(file.read_bytes()).items():
        step = pickle.loads(pickle.dumps(pickle.loads(written)))
        for _ in range(3):
            step.run(X, y)
        assert step.iteration == iteration, name
        for found, wanted in ((step.weights(), weights), (step.statistics(), statistics)):
            assert found.keys() == wanted.keys()
            for key, array in wanted.items():
                np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-6, err_msg=f"{name}: {key}")


@pytest.mark.parametrize("file", WRITTEN[1:], ids=lambda file: file.stem)
def test_checkpoints_of_the_versions_before(file: Path) -> None:
    """What `state_dict` gave goes on as the pickled step does, in a step made with the same arguments."""
    X, y = batch()
    steps = made()
    for name, (written, weights, *_, saved) in pickle.loads(file.read_bytes()).items():
        step = steps[name]
        if name not in ("joined", "left"):
            assert pickle.loads(written).state_dict()[1] == {**saved[1], "penalties_apart": True}, name
        step.load_state_dict(*saved)
        for _ in range(3):
            step.run(X, y)
        for key, array in weights.items():
            np.testing.assert_allclose(
                step.weights()[key], array, rtol=1e-5, atol=1e-6, err_msg=f"{name}: {key}"
            )


# -- from one step to another ------------------------------------------------------------------------

NORM = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3] x) => (float[N, 3] y) <float[3, 3] a = {1, 0, 0, 0, 1, 0, 0, 0, 1}, float[3] one = {1, 2, 1},
  float[3] zero = {0, 1, 0}, float[3] mean = {0, 0, 0}, float[3] var = {1, 1, 1}> {
    h = MatMul(x, a) y = BatchNormalization(h, one, zero, mean, var) }"""


@pytest.mark.parametrize("opset", [7, 11, 13, 16, 17, 18, 21])
@pytest.mark.parametrize("names", [None, ["w"], ["v"], ["v", "w"]])
def test_weights_of_outputs_that_are_not_trained(opset: int, names: list[str] | None) -> None:
    """Their gradient is zero; converting the model to the opset of the rules must not lose them."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[N, 2] x) => (float[N, 1] y, float[N, 1] z)
        <float[2, 1] w = {{1, 2}}, float[2, 1] v = {{1, 1}}> {{ y = MatMul(x, w) z = MatMul(x, v) }}"""
    )
    X, y = batch()
    step = TrainingStep(model, "squared_error", weights=names, learning_rate=0.1)
    step.run(X[:, :2], y[:, :1])
    found = step.weights()
    gradient = X[:, :2].T @ (X[:, :2] @ np.float32([[1], [2]]) - y[:, :1]) / 8
    wanted = {"w": np.float32([[1], [2]]) - 0.1 * gradient, "v": np.ones((2, 1), np.float32)}
    for name in names or ["w", "v"]:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6)
    assert step.scores(X[:, :2], y[:, :1]).shape == (8,)


def test_statistics_that_were_handed_on_twice() -> None:
    """update -> frozen -> update: the second one goes on from what the first has found."""
    model = onnx.parser.parse_model(NORM)
    X = batch()[0] + 3
    first = TrainingStep(model, batch_norm="update")
    for _ in range(3):
        first.run(X, X)
    between, last = TrainingStep(model), TrainingStep(model, batch_norm="update")
    between.take_over(first)
    last.take_over(between)
    for name, array in first.statistics().items():
        np.testing.assert_array_equal(last.statistics()[name], array)
        assert np.abs(array).max() > 0.1


def test_a_step_that_cannot_be_taken_over_changes_nothing() -> None:
    X = batch()[0]
    other = TrainingStep(onnx.parser.parse_model(NORM.replace("mean", "mu")), batch_norm="update")
    other.run(X, X)
    step = TrainingStep(onnx.parser.parse_model(NORM), optimizer="adam")
    before, clock = step.weights(), step.optimizer.t
    with pytest.raises(UnknownNameError, match="mu"):
        step.take_over(other)
    for name, array in step.weights().items():
        np.testing.assert_array_equal(array, before[name])
    assert (step.optimizer.t, step.iteration) == (clock, 0)


def test_taking_over_what_is_accumulated() -> None:
    """Of heads that count labels and rows: as if one step had gone on."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> g (float[N, T, 3] x) => (float[N, T, 2] p, float[N, 1] q)
        <float[3, 2] w = {1, 0, 0, 1, 1, 1}, float[3, 1] v = {1, 2, 1}, int64[1] one = {1}> {
            p = MatMul(x, w) m = ReduceMean<keepdims = 0>(x, one) q = MatMul(m, v) }"""
    )
    rng = np.random.default_rng(0)
    parts = [
        (
            rng.normal(size=(n, 4, 3)).astype(np.float32),
            rng.integers(0, 2, (n, 4)),
            np.float32(rng.normal(size=(n, 1))),
        )
        for n in (4, 2, 5)
    ]

    def made() -> TrainingStep:
        losses = {"p": "cross_entropy", "q": "squared_error"}
        return TrainingStep(model, losses, Adam(0.1, accumulate=3))

    one, other = made(), made()
    for k, (x, labels, values) in enumerate(parts):
        for step in (one, other):
            step.run(x, {"p": labels, "q": values})
        if k == 1:
            followed = made()
            followed.take_over(other)
            other = followed
    assert one.iteration == other.iteration == 1
    for name, array in one.weights().items():
        np.testing.assert_array_equal(other.weights()[name], array)


def test_what_the_graph_reads_is_no_reason_for_another_one() -> None:
    X = batch()[0]
    step = TrainingStep(onnx.parser.parse_model(NORM), batch_norm="update")
    step.run(X, X)
    recipe = step.recipe
    step.set_statistics(step.statistics())
    step.start_from(step.weights())
    assert step.recipe is recipe


def test_a_step_of_a_prepared_model() -> None:
    X, y = batch()
    step = TrainingStep(Prepared(prepare(onnx.parser.parse_model(MODEL))), learning_rate=0.1)
    other = step_of(learning_rate=0.1)
    assert step.run(X, y) == other.run(X, y)


# -- preparations ------------------------------------------------------------------------------------


@pytest.fixture
def preparations(monkeypatch) -> list[int]:
    """A number that grows with every preparation of a model."""
    count, real = [0], preparation._prepare

    def counting(*args, **kwargs):
        count[0] += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(preparation, "_prepare", counting)
    return count


@pytest.mark.parametrize("Estimator", [OnnxClassifier, OnnxRegressor])
def test_a_fit_prepares_its_model_once(Estimator: type, preparations: list[int]) -> None:
    text = """<ir_version: 8, opset_import: ["": 15]>
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 2] w = {1, 0, 2, 0, 1, 3}> {
            z = MatMul(x, w) y = Softmax(z) }"""
    X, y = batch()
    labels = (y[:, 0] > 0).astype(np.int64)
    Estimator(onnx.parser.parse_model(text), max_iter=2).fit(X, labels if Estimator is OnnxClassifier else y)
    assert preparations == [1]


def test_a_step_and_a_gradient_prepare_once(preparations: list[int]) -> None:
    from onnxcustom import gradient_graph, gradient_report

    X, y = batch()
    model = onnx.parser.parse_model(MODEL)
    for done, use in enumerate(
        (lambda: step_of().run(X, y), lambda: gradient_graph(model), lambda: gradient_report(model)), 1
    ):
        use()
        assert preparations == [done]


def test_tensors_from_elsewhere_need_no_preparation(preparations: list[int]) -> None:
    """Constants, statistics and weights are written into the model that is prepared."""
    X = batch()[0]
    model = onnx.parser.parse_model(NORM)
    first, step = TrainingStep(model, batch_norm="update"), TrainingStep(model, weights=["a"])
    first.run(X, X)
    assert preparations == [2]
    step.take_over(first)
    step.start_from({"one": np.full(3, 2, np.float32), "a": np.ones((3, 3), np.float32)})
    step.set_statistics({"var": np.full(3, 4, np.float32)})
    step.run(X, X)
    assert preparations == [2]
    trained = {t.name: onnx.numpy_helper.to_array(t) for t in step.trained_model().graph.initializer}
    np.testing.assert_array_equal(trained["one"], np.full(3, 2, np.float32))
    np.testing.assert_array_equal(trained["var"], np.full(3, 4, np.float32))
    np.testing.assert_array_equal(trained["mean"], first.statistics()["mean"])
    # As a step of the model that these tensors were written into.
    other = TrainingStep(step.trained_model(), weights=["a"])
    np.testing.assert_array_equal(step.predict(X)["y"], other.predict(X)["y"])
    assert step.run(X, X) == other.run(X, X)


def test_unread_parts_of_a_split_are_written_back() -> None:
    """A Split whose last part has no name: the trained model has as many parts, and runs."""
    nodes = [
        onnx.helper.make_node("Split", ["x"], ["", "part", ""], axis=1, num_outputs=3),
        onnx.helper.make_node("Mul", ["part", "w"], ["y"]),
    ]
    infos = [onnx.helper.make_tensor_value_info(n, 1, ["N", k]) for n, k in (("x", 6), ("y", 2))]
    weight = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    graph = onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    step = TrainingStep(model, learning_rate=0.1)
    X = np.arange(12, dtype=np.float32).reshape(2, 6)
    step.run(X, X[:, :2])
    made = step.trained_model()
    assert len(made.graph.node[0].output) == 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": X})[0], X[:, 2:4] * step.weights()["w"], rtol=1e-6)


def test_weights_are_no_statistics() -> None:
    step = TrainingStep(onnx.parser.parse_model(NORM), batch_norm="update")
    with pytest.raises(UnknownNameError, match="trained weights"):
        step.set_statistics({"one": np.zeros(3, np.float32)})
