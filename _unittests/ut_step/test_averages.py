"""Moving averages of weights, as PyTorch takes them."""

from __future__ import annotations

import json
import pickle

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.exceptions import CheckpointError, InvalidParameterError
from onnxcustom.optim import SGD, Adam
from onnxcustom.training.callbacks import Checkpoint, EarlyStopping
from onnxcustom.tuning import Average

InferenceSession = pytest.importorskip("onnxruntime").InferenceSession


def data(n=40, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)).astype(dtype)
    return X, np.sin(X.sum(axis=1, keepdims=True)).astype(dtype)


def batches(X, y, count=10, size=4):
    return [(X[i * size : (i + 1) * size], y[i * size : (i + 1) * size]) for i in range(count)]


RULES = {
    "momentum": (SGD(0.1, momentum=0.9), "SGD", {"lr": 0.1, "momentum": 0.9}),
    "adam": (Adam(0.05), "Adam", {"lr": 0.05}),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("start", [0, 3])
def test_ten_steps_as_pytorch(mlp_model, rule, start, dtype):
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = mlp_model([3, 5, 1], dtype=dtype)
    ours, name, options = RULES[rule]
    step = TrainingStep(model, optimizer=ours, average=Average(decay=0.9, start=start))
    first, second = torch.nn.Linear(3, 5).to(torch.float64), torch.nn.Linear(5, 1).to(torch.float64)
    net = torch.nn.Sequential(first, torch.nn.Tanh(), second)
    tensors = {"w0": first.weight, "b0": first.bias, "w1": second.weight, "b1": second.bias}
    with torch.no_grad():
        for key, array in step.weights().items():
            tensors[key].copy_(torch.tensor(array.T.astype(np.float64)))
    optimizer = getattr(torch.optim, name)(net.parameters(), **options)
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    X, y = data(dtype=dtype)
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    for k, (x, t) in enumerate(batches(X, y)):
        step.run(x, t)
        optimizer.zero_grad()
        (0.5 * (net(torch.tensor(x, dtype=torch.float64)) - torch.tensor(t)).pow(2).sum() / len(x)).backward()
        optimizer.step()
        if k >= start:
            averaged.update_parameters(net)
        seen = averaged.module if k >= start else net
        wanted = {"w0": seen[0].weight, "b0": seen[0].bias, "w1": seen[2].weight, "b1": seen[2].bias}
        for key, array in step.predicting_weights().items():
            expected = wanted[key].detach().numpy().T
            np.testing.assert_allclose(
                array, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max())
            )
            np.testing.assert_allclose(
                step.weights()[key], tensors[key].detach().numpy().T, rtol=0, atol=tolerance * 3
            )
        predicted = seen(torch.tensor(X, dtype=torch.float64)).detach().numpy()
        np.testing.assert_allclose(step.predict(X)["y"], predicted, rtol=0, atol=10 * tolerance)
        np.testing.assert_allclose(
            step.scores(X, y), 0.5 * ((predicted - y) ** 2)[:, 0], rtol=0, atol=10 * tolerance
        )
    trained = InferenceSession(step.trained_model().SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(trained.run(None, {"x": X})[0], predicted, rtol=0, atol=10 * tolerance)


def averaged_by_hand(step, run, decay=0.9, start=0):
    """Averages in NumPy, of the weights that steps give."""
    kept, count = step.weights(), 0
    for one in run:
        one()
        if step.iteration == count:
            continue
        count = step.iteration
        now = step.weights()
        old = kept if count > start + 1 else now
        kept = {n: old[n] + (1 - decay) * (now[n].astype(np.float64) - old[n]) for n in now}
    return kept


@pytest.mark.parametrize("options", [{"passes": False}, {"rule": SGD(0.1, accumulate=2)}, {"penalty": "l2"}])
def test_in_every_kind_of_step(mlp_model, options):
    rule = options.get("rule", SGD(0.1, momentum=0.5))
    options = {k: v for k, v in options.items() if k != "rule"}
    step = TrainingStep(mlp_model([3, 5, 1]), optimizer=rule, average=Average(0.9), **options)
    runs = [lambda x=x, t=t: step.run(x, t) for x, t in batches(*data(n=44), count=11)]
    wanted = averaged_by_hand(step, [*runs, step.apply_accumulated])
    assert step.iteration == -(-11 // rule.accumulate)
    for name, array in step.predicting_weights().items():
        np.testing.assert_allclose(array, wanted[name], rtol=0, atol=1e-6)


def test_what_is_trained_is_what_it_is_without(mlp_model):
    X, y = data()
    steps = [TrainingStep(mlp_model([3, 5, 1]), optimizer="adam", average=a) for a in (None, "ema")]
    for x, t in batches(X, y):
        assert len({step.run(x, t) for step in steps}) == 1
    for name, array in steps[0].weights().items():
        np.testing.assert_array_equal(steps[1].weights()[name], array)
    assert steps[0].averages() == {}
    assert steps[0].state().keys() == steps[1].state().keys()
    assert [*steps[1].state()["w0"]] == ["m", "v"]


def test_half_precision_is_averaged_in_single(mlp_model):
    model = mlp_model([3, 5, 1], dtype=np.float16)
    step = TrainingStep(model, optimizer=SGD(0.1), average=Average(0.999))
    X, y = data(dtype=np.float16)
    wanted = averaged_by_hand(step, [lambda x=x, t=t: step.run(x, t) for x, t in batches(X, y)], 0.999)
    for name, array in step.averages().items():
        assert array.dtype == np.float32
        # onnxruntime hands on weights before they are rounded.
        np.testing.assert_allclose(array, wanted[name], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(step.predicting_weights()[name], array.astype(np.float16))
    assert step.predict(X)["y"].dtype == np.float16


def test_rows_of_a_table_that_no_batch_reads_go_on():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
    g (int64[N, 2] x) => (float[N, 1] y) <float[4, 1] table = {1, 2, 3, 4}> {
        e = Gather(table, x) y = ReduceSum <keepdims = 0> (e, one) }""".replace(
            "<float[4, 1]", "<int64[1] one = {1}, float[4, 1]"
        )
    )
    step = TrainingStep(model, optimizer=SGD(0.1, momentum=0.9, lazy_update=True), average=Average(0.5))
    rows = [np.array([[0, 1]]), np.array([[2, 1]]), np.array([[2, 2]])]
    wanted = averaged_by_hand(
        step, [lambda x=x: step.run(x, np.zeros((1, 1), np.float32)) for x in rows], 0.5
    )
    np.testing.assert_allclose(step.averages()["table"], wanted["table"], rtol=1e-6)


def test_pickles_and_state_dicts_go_on_with_the_same_bits(mlp_model):
    def make():
        return TrainingStep(mlp_model([3, 5, 1]), optimizer="adam", average="ema:decay=0.8,start=2")

    steps, (X, y) = [make()], data()
    for x, t in batches(X, y)[:4]:
        steps[0].run(x, t)
    steps.append(pickle.loads(pickle.dumps(steps[0])))
    steps.append(make())
    tensors, state = steps[0].state_dict()
    steps[-1].load_state_dict(tensors, json.loads(json.dumps(state)))
    steps.append(make())
    steps[-1].take_over(steps[0])
    for x, t in batches(X, y)[4:]:
        for step in steps:
            step.run(x, t)
    for step in steps[1:]:
        for name, array in steps[0].averages().items():
            np.testing.assert_array_equal(step.averages()[name], array)
            np.testing.assert_array_equal(step.weights()[name], steps[0].weights()[name])
    with pytest.raises(CheckpointError, match="average/"):
        TrainingStep(mlp_model([3, 5, 1]), optimizer="adam").load_state_dict(tensors, state)


def test_taken_over_by_another_rule_and_without(mlp_model):
    X, y = data()
    step = TrainingStep(mlp_model([3, 5, 1]), optimizer="adam", average=Average(0.8))
    for x, t in batches(X, y):
        step.run(x, t)
    other = TrainingStep(mlp_model([3, 5, 1]), optimizer="sgd", average=Average(0.5))
    other.take_over(step)
    without = TrainingStep(mlp_model([3, 5, 1]), optimizer="adam")
    without.take_over(step)
    fresh = TrainingStep(mlp_model([3, 5, 1]), optimizer="adam", average="ema")
    fresh.take_over(without)
    for name, array in step.weights().items():
        for made in (other, without, fresh):
            np.testing.assert_array_equal(made.weights()[name], array)
        np.testing.assert_array_equal(other.averages()[name], step.averages()[name])
        np.testing.assert_array_equal(without.predicting_weights()[name], array)
        np.testing.assert_array_equal(fresh.averages()[name], array)
    step.set_weights({"w1": np.zeros((5, 1), np.float32)})
    assert not step.predicting_weights()["w1"].any()


def test_the_graph_that_is_handed_out_averages(mlp_model):
    """Bare onnxruntime, by the description in the metadata."""
    X, y = data()
    step = TrainingStep(mlp_model([3, 5, 1]), optimizer=SGD(0.1), average=Average(0.8, start=1))
    model = step.model
    about = json.loads(next(p.value for p in model.metadata_props if p.key == "onnxcustom.step"))
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {**step.weights()}
    feeds |= {about["state"][n]["average"][0]: array for n, array in step.averages().items()}
    for k, (x, t) in enumerate(batches(X, y)):
        given = {
            "x": x,
            about["expected"]["y"]: t,
            about["learning_rate"]: np.array(0.1, np.float32),
            about["step"]: np.array(k + 1, np.float32),
        }
        wanted = {i.name for i in session.get_inputs()}
        made = session.run(None, {n: v for n, v in {**feeds, **given}.items() if n in wanted})
        made = dict(zip([o.name for o in session.get_outputs()], made, strict=True))
        feeds.update({w: made[new] for w, new in about["weights"].items()})
        feeds.update({old: made[new] for s in about["state"].values() for old, new in s.values()})
        step.run(x, t)
    for name, array in step.averages().items():
        np.testing.assert_allclose(feeds[about["state"][name]["average"][0]], array, rtol=0, atol=1e-6)


def test_running_statistics_are_those_of_training():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] x) => (float[N, 1] y)
    <float[3] s = {1, 1, 1}, float[3] o = {0, 0, 0}, float[3] mean = {0, 0, 0}, float[3] var = {1, 1, 1},
     float[3, 1] w = {1, -1, 2}> { h = BatchNormalization(x, s, o, mean, var) y = MatMul(h, w) }""")
    steps = [TrainingStep(model, batch_norm="update", average=a) for a in (None, "ema")]
    for x, t in batches(*data()):
        for step in steps:
            step.run(x, t)
    for name, array in steps[0].statistics().items():
        np.testing.assert_array_equal(steps[1].statistics()[name], array)
    trained = {t.name: onnx.numpy_helper.to_array(t) for t in steps[1].trained_model().graph.initializer}
    np.testing.assert_array_equal(trained["w"], steps[1].averages()["w"])
    np.testing.assert_array_equal(trained["mean"], steps[1].statistics()["mean"])


# -- estimators -----------------------------------------------------------------------------------------


def make(mlp_model, **options):
    defaults = {
        "learning_rate": 0.05,
        "batch_size": 8,
        "max_iter": 6,
        "random_state": 0,
        "average": Average(0.9),
    }
    return OnnxRegressor(mlp_model([3, 5, 1]), **{**defaults, **options})


def test_validation_prediction_and_trained_model_see_the_average(mlp_model):
    X, y = data()
    reg = make(mlp_model).fit(X, y, X_val=X[:10], y_val=y[:10])
    session = InferenceSession(reg.get_trained_onnx().SerializeToString(), providers=["CPUExecutionProvider"])
    predicted = session.run(None, {"x": X})[0]
    np.testing.assert_allclose(reg.predict(X).reshape(-1, 1), predicted, rtol=0, atol=1e-6)
    loss = 0.5 * np.mean((predicted[:10] - y[:10]) ** 2)
    np.testing.assert_allclose(reg.history_["val_loss"][-1], loss, rtol=1e-5)
    assert any((reg.weights_[n] != reg.step_.weights()[n]).any() for n in reg.weights_)
    plain = make(mlp_model, average=None).fit(X, y)
    for name, array in plain.weights_.items():
        np.testing.assert_array_equal(reg.step_.weights()[name], array)


def test_early_stopping_puts_both_back(mlp_model):
    X, y = data()
    seen = []

    def watch(trainer):
        step = trainer.step_
        seen.append((trainer.history_["val_loss"][-1], step.weights(), step.averages()))

    stop = EarlyStopping(patience=1)
    reg = make(mlp_model, learning_rate=0.5, max_iter=30, callbacks=[watch, stop])
    reg.fit(X, y, X_val=X[:10], y_val=-y[:10])
    assert reg.n_iter_ < 30
    _, weights, averages = min(seen, key=lambda s: s[0])
    for name in weights:
        np.testing.assert_array_equal(reg.step_.weights()[name], weights[name])
        np.testing.assert_array_equal(reg.weights_[name], averages[name])


def test_resumed(mlp_model, tmp_path):
    X, y = data()

    class Killed(Exception):
        pass

    def kill(trainer):
        if trainer.n_iter_ == 3:
            raise Killed

    options = {"optimizer": "adam", "callbacks": [EarlyStopping("loss", restore_best=False)]}
    whole = make(mlp_model, **options).fit(X, y)
    saving = [*options["callbacks"], kill, Checkpoint(tmp_path, batches=2)]
    with pytest.raises(Killed):
        make(mlp_model, **{**options, "callbacks": saving}).fit(X, y)
    resumed = make(mlp_model, **options, checkpoint_dir=tmp_path).fit(X, y)
    for name, array in whole.weights_.items():
        np.testing.assert_array_equal(resumed.weights_[name], array)
        np.testing.assert_array_equal(resumed.step_.weights()[name], whole.step_.weights()[name])


def test_warm_start_pickle_and_classifier(mlp_model):
    X, y = data()
    labels = (y[:, 0] > 0).astype(int)
    clf = OnnxClassifier(
        mlp_model([3, 5, 1], end="Sigmoid"), average="ema:decay=0.5", random_state=0, max_iter=3
    )
    clf.fit(X, labels)
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
    again.partial_fit(X, labels)
    clf.partial_fit(X, labels)
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))


def test_changed_between_fits(mlp_model):
    """Another average goes on with the weights, and the averages that there are."""
    X, y = data()
    reg = make(mlp_model).fit(X, y)
    averages = reg.step_.averages()
    reg.set_params(average=Average(0.99)).partial_fit(X, y)
    assert averages.keys() == reg.step_.averages().keys()
    reg.set_params(average=None).partial_fit(X, y)
    assert reg.step_.averages() == {}


@pytest.mark.parametrize("wrong", ["swa", "ema:rate=1", 0.9, Average])
def test_what_is_no_average(mlp_model, wrong):
    with pytest.raises(InvalidParameterError, match="average must be None, 'ema'"):
        TrainingStep(mlp_model([3, 1]), average=wrong)


@pytest.mark.parametrize("options", [{"decay": 1}, {"decay": -0.1}, {"start": -1}, {"start": 0.5}])
def test_ranges(options):
    with pytest.raises(InvalidParameterError, match=next(iter(options))):
        Average(**options)
