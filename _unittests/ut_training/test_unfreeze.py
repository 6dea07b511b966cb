"""Weights that begin to train in the middle of a training."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from onnxcustom import TrainingStep
from onnxcustom.exceptions import CheckpointError, InvalidParameterError, UnknownNameError
from onnxcustom.objective import L2LearningPenalty
from onnxcustom.optim import SGD, Adam
from onnxcustom.training.callbacks import Callback, Checkpoint, EarlyStopping, Unfreeze
from onnxcustom.training.estimators import OnnxRegressor
from onnxcustom.tuning import Average

pytest.importorskip("onnxruntime")

AT = {3: "last:2", 6: None}
RULES = {
    "momentum": (SGD(0.05, momentum=0.9), "SGD", {"lr": 0.05, "momentum": 0.9}),
    "adam": (Adam(0.02), "Adam", {"lr": 0.02}),
}


def data(n=24, dtype=np.float32):
    X = np.random.default_rng(0).normal(size=(n, 3)).astype(dtype)
    return X, np.sin(X.sum(axis=1, keepdims=True)).astype(dtype)


@pytest.fixture
def make(mlp_model):
    def made(*callbacks, dtype=np.float32, at=AT, **options):
        defaults = {"optimizer": "adam", "batch_size": 8, "max_iter": 10, "shuffle": False}
        more = [] if at is None else [Unfreeze(at)]
        options = {**defaults, "weights_to_train": "last:1", **options}
        return OnnxRegressor(mlp_model([3, 5, 4, 1], dtype=dtype), callbacks=[*more, *callbacks], **options)

    return made


def same(one, other):
    assert one.weights_.keys() == other.weights_.keys()
    for name, array in one.weights_.items():
        np.testing.assert_array_equal(other.weights_[name], array)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES)
def test_ten_epochs_as_pytorch(make, rule, dtype, cache):
    """Where ``requires_grad`` is toggled, and one optimizer has all parameters from the beginning."""
    torch = pytest.importorskip("torch")
    ours, name, options = RULES[rule]
    X, y = data(dtype=dtype)
    reg = make(optimizer=ours, dtype=dtype, cache_frozen=cache)
    tensors, layers = {}, [torch.nn.Linear(i, o).to(torch.float64) for i, o in ((3, 5), (5, 4), (4, 1))]
    given = TrainingStep(reg.model).weights()
    for k, layer in enumerate(layers):
        tensors |= {f"w{k}": layer.weight, f"b{k}": layer.bias}
    with torch.no_grad():
        for key, tensor in tensors.items():
            tensor.copy_(torch.tensor(given[key].T.astype(np.float64)))
    net = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2])
    optimizer = getattr(torch.optim, name)(net.parameters(), **options)
    for epoch in range(10):
        for k, layer in enumerate(layers):
            layer.requires_grad_(k == 2 or (k == 1 and epoch >= 3) or epoch >= 6)
        for i in range(0, 24, 8):
            optimizer.zero_grad()
            error = net(torch.tensor(X[i : i + 8], dtype=torch.float64)) - torch.tensor(y[i : i + 8])
            (0.5 * error.pow(2).sum() / 8).backward()
            optimizer.step()
    reg.fit(X, y)
    tolerance = 1e-5 if dtype == np.float32 else 1e-10
    for key, array in reg.weights_.items():
        wanted = tensors[key].detach().numpy().T
        np.testing.assert_allclose(array, wanted, rtol=0, atol=tolerance * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("average", [None, Average(decay=0.9)])
@pytest.mark.parametrize("cache", [False, True])
def test_penalties_of_weights_that_join(make, cache, average):
    """State, rates of layers, what is computed once and a penalty for each weight: a loop in PyTorch."""
    torch = pytest.importorskip("torch")
    X, y = data(dtype=np.float64)
    rates, strength = {"last:1": 1.0, "last:2": 0.3, "*": 0.1}, {"w2": 0.1, "w1": 0.2, "b0": 0.3}
    reg = make(
        optimizer=SGD(0.05, momentum=0.9, lr_mult=rates),
        dtype=np.float64,
        cache_frozen=cache,
        average=average,
        penalty={name: L2LearningPenalty(number) for name, number in strength.items()},
    )
    start = TrainingStep(reg.model).weights()
    w = {name: torch.tensor(array, requires_grad=True) for name, array in start.items()}
    factors, means = {"2": 1.0, "1": 0.3, "0": 0.1}, {name: t.detach().clone() for name, t in w.items()}
    groups = [{"params": [t], "lr": 0.05 * factors[name[1]]} for name, t in w.items()]
    optimizer, losses = torch.optim.SGD(groups, momentum=0.9), []
    for epoch in range(10):
        trained = [n for n in w if n[1] == "2" or (n[1] == "1" and epoch >= 3) or epoch >= 6]
        total = 0.0
        for i in range(0, 24, 8):
            optimizer.zero_grad()
            made = torch.tensor(X[i : i + 8])
            for k in range(3):
                made = made @ w[f"w{k}"] + w[f"b{k}"]
                made = torch.tanh(made) if k < 2 else made
            loss = 0.5 * (made - torch.tensor(y[i : i + 8])).pow(2).sum() / 8
            loss = loss + sum(c * w[n].pow(2).sum() for n, c in strength.items() if n in trained)
            loss.backward()
            for name in set(w) - set(trained):
                w[name].grad = None
            optimizer.step()
            total += loss.item() / 3
            decay = 0.9 if epoch or i else 0.0  # of all weights, the frozen ones among them
            means = {name: decay * means[name] + (1 - decay) * w[name].detach() for name in w}
        losses.append(total)
    reg.fit(X, y)
    np.testing.assert_allclose(reg.history_["loss"], losses, rtol=1e-9)
    for name, array in reg.weights_.items():
        wanted = w[name].detach() if average is None else means[name]
        np.testing.assert_allclose(array, wanted.numpy(), rtol=0, atol=1e-10)


def test_a_penalty_of_a_weight_that_never_trains_is_none(make):
    X, y = data()
    plain = make(at=None, penalty={"w2": "l2"}).fit(X, y)
    same(plain, make(at=None, penalty={"w2": "l2", "w0": "l2", "w1": "l1"}).fit(X, y))
    with pytest.raises(UnknownNameError, match="'w7'"):
        make(penalty={"w7": "l2"}).fit(X, y)


def test_rates_of_layers_as_groups_of_pytorch(mlp_model):
    """The first of the texts that means a weight counts."""
    torch = pytest.importorskip("torch")
    rates = {"last:1": 1.0, "last:2": 0.3, "*": 0.1}
    step = TrainingStep(
        mlp_model([3, 5, 4, 1], dtype=np.float64), optimizer=SGD(0.1, momentum=0.9, lr_mult=rates)
    )
    given = {name: torch.tensor(array, requires_grad=True) for name, array in step.weights().items()}
    factors = {"2": 1.0, "1": 0.3, "0": 0.1}
    groups = [{"params": [t], "lr": 0.1 * factors[name[1]]} for name, t in given.items()]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    X, y = data(dtype=np.float64)
    for _ in range(10):
        step.run(X, y)
        optimizer.zero_grad()
        made = torch.tensor(X)
        for k in range(3):
            made = made @ given[f"w{k}"] + given[f"b{k}"]
            made = torch.tanh(made) if k < 2 else made
        (0.5 * (made - torch.tensor(y)).pow(2).sum() / len(X)).backward()
        optimizer.step()
    for name, array in step.weights().items():
        np.testing.assert_allclose(array, given[name].detach().numpy(), rtol=1e-10, atol=1e-12)


SETTINGS = {
    "plain": {},
    "momentum": {"optimizer": SGD(0.1, momentum=0.9)},
    "rates": {"optimizer": Adam(0.05, lr_mult={"first:1": 0.1, "last:1": 2.0}, clip_global_norm=0.5)},
    "penalty": {"penalty": "l2"},
    "shuffled": {"shuffle": True, "random_state": 0},
    "no_passes_needed": {"optimizer": "sgd", "learning_rate": 0.1},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_same_bits_as_by_hand(make, setting):
    """One training for each set of weights, each going on where the one before is."""
    options, (X, y) = SETTINGS[setting], data()
    reg = make(**options).fit(X, y)
    by_hand = make(at=None, max_iter=3, **options).fit(X, y)
    by_hand.set_params(weights_to_train="last:2").partial_fit(X, y, epochs=3)
    by_hand.set_params(weights_to_train=None).partial_fit(X, y, epochs=4)
    same(by_hand, reg)
    assert by_hand.history_ == reg.history_
    for weight, state in by_hand.step_.state().items():
        for name, array in state.items():
            np.testing.assert_array_equal(reg.step_.state()[weight][name], array)


def test_what_is_trained_when(make):
    seen = []
    reg = make(lambda trainer: seen.append([*trainer.step_.weights()])).fit(*data())
    assert seen[2] == ["w2", "b2"]
    assert seen[3] == seen[5] == ["w1", "b1", "w2", "b2"]
    assert seen[6] == [*reg.weights_] == ["w0", "b0", "w1", "b1", "w2", "b2"]
    assert [*reg.fit(*data()).weights_] == seen[6]
    reg.set_params(callbacks=None)
    reg.partial_fit(*data())
    assert [*reg.weights_] == seen[6]
    assert [*reg.fit(*data()).weights_] == ["w2", "b2"]


class Killed(Exception):
    """What stands for a power cut."""


class Kill(Callback):
    """Ends a training at a batch of an epoch."""

    def __init__(self, epoch, batch):
        self.epoch, self.batch = epoch, batch

    def on_batch_end(self, trainer, batch, loss):
        if (trainer.n_iter_, trainer.run.batches) == (self.epoch, self.batch):
            raise Killed


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("place", [(2, 3), (3, 1), (4, 2), (6, 2)])
def test_resumed_across(make, tmp_path, place, cache):
    X, y = data()
    options = {"average": Average(0.9), "shuffle": True, "random_state": 0, "cache_frozen": cache}
    whole = make(**options).fit(X, y)
    with pytest.raises(Killed):
        make(Kill(*place), Checkpoint(tmp_path, batches=1), **options).fit(X, y)
    resumed = make(checkpoint_dir=tmp_path, **options).fit(X, y)
    same(whole, resumed)
    assert whole.history_ == resumed.history_


def test_pickled_across(make):
    X, y = data()
    whole = make().fit(X, y)
    part = pickle.loads(pickle.dumps(make(max_iter=4).fit(X, y)))
    same(whole, part.partial_fit(X, y, epochs=6))


def test_the_frozen_part_is_cut_again(make, caplog):
    X, y = data()
    plain = make().fit(X, y, X_val=X, y_val=y)
    with caplog.at_level("INFO", "onnxcustom"):
        cached = make(cache_frozen=True).fit(X, y, X_val=X, y_val=y)
    assert caplog.text.count("24 rows went through the frozen part") == 2
    assert caplog.text.count("[cache_frozen] The frozen part runs in every step") == 1  # there is none
    for name, array in plain.weights_.items():
        np.testing.assert_allclose(cached.weights_[name], array, rtol=0, atol=1e-6 * np.abs(array).max())
    np.testing.assert_allclose(cached.history_["val_loss"], plain.history_["val_loss"], rtol=1e-5)


def test_a_warm_start_with_nothing_left_frozen(make):
    """The cache that was asked for was possible when training began; it goes on as the fit before did."""
    nets = [make(cache_frozen=cache, warm_start=True).fit(*data()).fit(*data()) for cache in (True, False)]
    assert nets[0].n_iter_ == 20
    for name, array in nets[1].weights_.items():
        np.testing.assert_allclose(nets[0].weights_[name], array, rtol=1e-5, atol=1e-6)


def test_the_best_weights_were_before(make):
    X, y = data()
    seen = []
    keep = seen.append
    stop = EarlyStopping(patience=2)
    reg = make(
        lambda t: keep((t.history_["val_loss"][-1], t.predict(X))), stop, at={2: None}, learning_rate=0.5
    )
    reg.fit(X, y, X_val=X[:8], y_val=y[:8])
    best = min(seen, key=lambda s: s[0])
    assert stop is not reg.callbacks_[-1]
    np.testing.assert_array_equal(reg.predict(X), best[1])


def test_what_is_accumulated_goes_on(mlp_model):
    """A weight that joins had no part in the batches before: PyTorch's gradient of it is of those behind."""
    X, y = data()
    model = mlp_model([3, 5, 1], dtype=np.float64)
    step = TrainingStep(model, optimizer=SGD(1.0, accumulate=2), weights="last:1")
    step.run(X[:8], y[:8])
    before = step.weights()
    assert step.unfreeze("first:1") == ["w0", "b0"]
    assert step.unfreeze(None) == []
    step.run(X[8:16], y[8:16])
    whole = TrainingStep(model, optimizer=SGD(1.0))
    gradients = []
    for part in (slice(8), slice(8, 16)):
        fresh = TrainingStep(model, optimizer=SGD(1.0))
        start = fresh.weights()
        fresh.run(X[part], y[part])
        gradients.append({n: start[n] - a for n, a in fresh.weights().items()})
    first, second = gradients
    for name, array in step.weights().items():
        wanted = second[name] / 2 + (first[name] / 2 if name in before else 0)
        np.testing.assert_allclose(array, whole.weights()[name] - wanted, rtol=1e-10, atol=1e-12)
    assert step.iteration == 1


def test_state_dicts_of_weights_that_joined(mlp_model):
    X, y = data()
    step = TrainingStep(mlp_model([3, 5, 1]), optimizer="adam", weights="last:1")
    step.run(X, y)
    step.unfreeze(["b0"])
    step.run(X, y)
    tensors, state = step.state_dict()
    other = TrainingStep(mlp_model([3, 5, 1]), optimizer="adam", weights="last:1")
    other.load_state_dict(tensors, state)
    for one in (step, other):
        one.run(X, y)
    assert [*other.weights()] == ["b0", "w1", "b1"]
    for name, array in step.weights().items():
        np.testing.assert_array_equal(other.weights()[name], array)
    with pytest.raises(CheckpointError, match="'joined' names weights of the model"):
        other.load_state_dict(tensors, {**state, "joined": ["nothing"]})


@pytest.mark.parametrize(
    ("at", "error", "said"),
    [
        ({3: "nothing*"}, UnknownNameError, "nothing"),
        ({-1: None}, InvalidParameterError, "from epochs done"),
        ({1.5: None}, InvalidParameterError, "from epochs done"),
        (["last:1"], InvalidParameterError, "from epochs done"),
    ],
)
def test_refused_before_training(make, at, error, said):
    reg = make(at=at)
    with pytest.raises(error, match=said):
        reg.fit(*data())
    assert not hasattr(reg, "step_")
