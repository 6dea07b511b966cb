from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from onnxcustom.data import stream
from onnxcustom.exceptions import CheckpointError, ConvergenceError, OnnxCustomError
from onnxcustom.graph import weights
from onnxcustom.optim import LearningRateSGD, LearningRateSGDNesterov, create
from onnxcustom.step.training_step import TrainingStep
from onnxcustom.training.callbacks import Callback
from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor

pytest.importorskip("onnxruntime")


def data(n=23, columns=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, columns)).astype(np.float32)
    return X, (X @ np.arange(1, columns + 1) + 0.5).astype(np.float32)


def same(one, other):
    """Weights, state, history and clock are the same bits."""
    assert list(one.weights_) == list(other.weights_)
    for name, array in one.weights_.items():
        np.testing.assert_array_equal(array, other.weights_[name])
    for weight, states in one.step_.state().items():
        for key, array in states.items():
            np.testing.assert_array_equal(array, other.step_.state()[weight][key])
    assert one.history_ == other.history_
    assert one.n_iter_ == other.n_iter_
    assert one.step_.iteration == other.step_.iteration
    assert one.step_.optimizer.value == other.step_.optimizer.value


@pytest.fixture
def make(mlp_model):
    def made(cls=OnnxRegressor, **options):
        options = {"learning_rate": 0.05, "batch_size": 5, "max_iter": 4, "random_state": 0, **options}
        return cls(mlp_model([3, 4, 1]), **options)

    return made


# -- what a fit is -----------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_a_fit_is_its_steps(make, weighted):
    """Epoch after epoch, batch after batch, the last one short: run by hand."""
    X, y = data()
    w = np.linspace(0.5, 2, len(y)) if weighted else None
    reg = make(shuffle=False, optimizer="adam").fit(X, y, w, X_val=X[:6], y_val=y[:6])
    step = TrainingStep(reg.model, optimizer="adam", learning_rate=0.05)
    losses, validation = [], []
    for _ in range(4):
        total = 0.0
        for i in range(0, len(X), 5):
            rows = slice(i, i + 5)
            total += len(X[rows]) * step.run(X[rows], y[rows], None if w is None else w[rows])
        losses.append(total / len(X))
        validation.append(step.scores(X[:6], y[:6]).mean(dtype=np.float64))
    assert reg.history_["loss"] == pytest.approx(losses, rel=1e-12)
    assert reg.history_["val_loss"] == pytest.approx(validation, rel=1e-12)
    assert reg.n_iter_ == 4
    for name, array in step.weights().items():
        np.testing.assert_array_equal(reg.weights_[name], array)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", LearningRateSGDNesterov(0.01)])
def test_same_seed_same_bits(make, optimizer):
    X, y = data()
    one, other = (make(optimizer=optimizer, learning_rate=None).fit(X, y) for _ in range(2))
    same(one, other)
    one.fit(X, y)  # again from the model's own weights
    same(one, other)
    third = make(optimizer=optimizer, learning_rate=None, random_state=1).fit(X, y)
    assert third.history_ != one.history_


def test_no_seed_is_another_order_every_time(make):
    X, y = data()
    one, other = (make(random_state=None).fit(X, y) for _ in range(2))
    assert one.history_ != other.history_


def test_every_row_comes_once_an_epoch_in_another_order(make):
    seen = []

    class Spy(OnnxRegressor):
        def train_step(self, batch):
            seen.append(batch.values[0].numpy()[:, 0].copy())
            return super().train_step(batch)

    X, y = data()
    make(Spy, max_iter=3).fit(X, y)
    assert [len(b) for b in seen] == [5, 5, 5, 5, 3] * 3
    epochs = [np.concatenate(seen[i : i + 5]) for i in (0, 5, 10)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.sort(X[:, 0]))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_batches_larger_than_the_data(make, rows):
    X, y = data(rows)
    reg = make(shuffle=False, batch_size=100).fit(X, y)
    assert reg.step_.iteration == 4
    alone = make(shuffle=False, batch_size=rows).fit(X, y)
    same(reg, alone)


# -- the ladder --------------------------------------------------------------------------------


def test_every_rung_can_be_overridden(make):
    calls = []

    class Ladder(OnnxRegressor):
        def fit(self, *args, **kwargs):
            calls.append("fit")
            return super().fit(*args, **kwargs)

        def partial_fit(self, *args, **kwargs):
            calls.append("partial_fit")
            return super().partial_fit(*args, **kwargs)

        def fit_loop(self, *args, **kwargs):
            calls.append("fit_loop")
            return super().fit_loop(*args, **kwargs)

        def run_epoch(self, *args, **kwargs):
            calls.append("run_epoch")
            return super().run_epoch(*args, **kwargs)

        def train_step(self, *args, **kwargs):
            calls.append("train_step")
            return super().train_step(*args, **kwargs)

    X, y = data(10)
    make(Ladder, max_iter=2).fit(X, y)
    epoch = ["run_epoch", "train_step", "train_step"]
    assert calls == ["fit", "partial_fit", "fit_loop", *epoch, *epoch]


class OlderLadder(OnnxRegressor):
    """An override as older programs write it: it knows of numbers of epochs only."""

    def partial_fit(self, X, y=None, sample_weight=None, X_val=None, y_val=None, *, epochs=1):
        self.seen = epochs
        return super().partial_fit(X, y, sample_weight, X_val, y_val, epochs=epochs)


def test_a_plan_is_a_number_that_older_overrides_hand_on(make, tmp_path):
    X, y = data(10)
    options = {"optimizer": create("adam", accumulate=4)}
    net = make(OlderLadder, max_iter=3, checkpoint_dir=tmp_path, **options).fit(X, y)
    same(net, make(max_iter=3, **options).fit(X, y))
    assert net.seen == 3
    assert list(range(net.seen)) == [0, 1, 2]
    assert any(tmp_path.iterdir())  # its checkpoints went down with it
    longer = make(OlderLadder, max_iter=5, checkpoint_dir=tmp_path, **options)
    same(longer.fit(X, y), make(max_iter=5, **options).fit(X, y))


def hidden(estimator):
    """Attributes that are neither parameters nor what a fit leaves."""
    left = set(estimator._results())
    return set(vars(estimator)) - left - set(estimator.get_params())


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize(
    "bad", [{"y": "text"}, {"epochs": 0}, {"X": np.zeros((23, 4))}, {"X_val": np.ones(3)}]
)
def test_nothing_is_left_of_what_fails(make, fitted, bad):
    X, y = data()
    net = make(optimizer="adam")
    before = vars(net.fit(X, y) if fitted else net).copy()
    history, weights = copy.deepcopy(before.get("history_")), fitted and net.weights_
    given = {"X": X, "y": y, "epochs": 2, **bad}
    for call in [net.partial_fit] if "epochs" in bad else [net.fit, net.partial_fit]:
        if call == net.fit:
            given.pop("epochs")
        with pytest.raises(OnnxCustomError):
            call(**given)
        assert vars(net).keys() == before.keys()
        assert all(vars(net)[name] is value for name, value in before.items())
        given["epochs"] = given.get("epochs", 2)
    if fitted:
        assert net.history_ == history
        assert all(np.array_equal(array, weights[name]) for name, array in net.weights_.items())


def test_what_a_rung_needs_comes_as_an_argument(make):
    """While training lasts there is its run, for callbacks; nothing else comes and goes."""
    seen = []

    class Looking(OnnxRegressor):
        def make_step(self, X, y):
            seen.append(hidden(self))
            return super().make_step(X, y)

        def encode(self, y, step):
            seen.append(hidden(self))
            return super().encode(y, step)

        def train_step(self, batch):
            seen.append(hidden(self))
            return super().train_step(batch)

    X, y = data(10)
    net = make(Looking, max_iter=1)
    net.fit(X, y)
    assert seen == [set(), set(), {"_run"}, {"_run"}]
    assert hidden(net) == set()


def test_overrides_of_a_classifier_are_asked(mlp_model):
    calls = []

    class Own(OnnxClassifier):
        def make_step(self, X, y):
            calls.append("make_step")
            return super().make_step(X, y)

        def encode(self, y, step):
            calls.append("encode")
            return super().encode(y, step)

        def weigher(self, X, y):
            calls.append("weigher")
            assert super().weigher(X, y) is None
            return lambda y, given: np.ones(len(y)) if given is None else given

        def sample(self, stream):
            calls.append("sample")
            return super().sample(stream)

    X, y = data(20)
    y = np.where(y > 0, "up", "down")
    options = {"max_iter": 2, "random_state": 0, "learning_rate": 0.1}
    model = mlp_model([3, 4, 1], end="Sigmoid")
    net, plain = Own(model, **options).fit(X, y), OnnxClassifier(model, **options).fit(X, y)
    assert calls == ["make_step", "weigher", "encode"]
    assert net.classes_.tolist() == ["down", "up"]
    same(net.fit(stream((X, y))), OnnxClassifier(model, **options).fit(stream((X, y))))
    assert calls[3:5] == ["sample", "make_step"]
    np.testing.assert_allclose(net.predict_proba(X), plain.predict_proba(X), rtol=1e-5)


def test_partial_fit_is_an_epoch(make):
    X, y = data()
    whole, parts = make(optimizer="adam").fit(X, y), make(optimizer="adam")
    for _ in range(2):
        assert parts.partial_fit(X, y) is parts
    parts.partial_fit(X, y, epochs=2)
    same(whole, parts)


def test_partial_fit_on_a_stream(make):
    X, y = data(30)
    reg = make(shuffle=False, batch_size=10)
    for i in (0, 10, 20):
        reg.partial_fit(X[i : i + 10], y[i : i + 10])
    whole = make(shuffle=False, batch_size=10, max_iter=1).fit(X, y)
    for name, array in whole.weights_.items():
        np.testing.assert_array_equal(array, reg.weights_[name])
    assert len(reg.history_["loss"]) == reg.n_iter_ == 3


def test_validation_is_not_due_unless_asked_for(make):
    class Seldom(OnnxRegressor):
        def validation_due(self):
            return self.n_iter_ % 2 == 0

    X, y = data()
    reg = make(Seldom).fit(X, y, X_val=X, y_val=y)
    assert len(reg.history_["loss"]) == 4
    assert np.isnan(reg.history_["val_loss"]).tolist() == [True, False, True, False]


# -- warm start --------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["sgd", "adam", LearningRateSGDNesterov(0.01), LearningRateSGD(0.01)])
def test_warm_start_goes_on_bit_for_bit(make, rule):
    X, y = data()
    whole = make(optimizer=rule, learning_rate=None, max_iter=5).fit(X, y)
    parts = make(optimizer=rule, learning_rate=None, max_iter=2, warm_start=True).fit(X, y)
    same(whole, parts.set_params(max_iter=3).fit(X, y))


def test_without_warm_start_everything_begins_again(make):
    X, y = data()
    reg = make(optimizer="adam").fit(X, y)
    first = copy.deepcopy(reg)
    same(first, reg.fit(X, y))


def test_warm_start_with_another_learning_rate_keeps_state_and_clock(make):
    X, y = data()
    reg = make(optimizer="adam", warm_start=True).fit(X, y)
    step, state = reg.step_, copy.deepcopy(reg.step_.state())
    reg.set_params(learning_rate=0.0, max_iter=1).fit(X, y)
    assert reg.step_ is step
    assert step.iteration == 5 * 5
    assert reg.n_iter_ == 5
    for weight, states in state.items():
        assert any(not np.array_equal(a, step.state()[weight][k]) for k, a in states.items())
    assert step.optimizer.value == 0.0
    # By hand: the rate changes, the rest goes on.
    other = make(optimizer="adam", warm_start=True).fit(X, y)
    other.step_.optimizer.set_learning_rate(0.0)
    other.partial_fit(X, y)
    same(reg, other)


def test_warm_start_with_a_rate_set_inside_the_rule(make):
    X, y = data()
    reg = make(optimizer=create("adam", learning_rate=0.1), learning_rate=None, warm_start=True).fit(X, y)
    before = reg.weights_
    reg.set_params(optimizer__learning_rate=0.0).fit(X, y)
    for name, array in before.items():
        np.testing.assert_array_equal(reg.weights_[name], array)


def test_warm_start_with_another_optimizer_keeps_the_weights(make):
    X, y = data()
    reg = make(warm_start=True).fit(X, y)
    before = reg.weights_
    reg.set_params(optimizer="adam", learning_rate=0.0, max_iter=1).fit(X, y)
    for name, array in before.items():
        np.testing.assert_array_equal(reg.weights_[name], array)
    assert reg.step_.state()["w0"]
    assert reg.n_iter_ == 5
    assert len(reg.history_["loss"]) == 5


def test_warm_start_freezes_and_thaws(make):
    X, y = data()
    reg = make(weights_to_train=["w1", "b1"], warm_start=True).fit(X, y)
    own = weights(reg.model)
    head = reg.weights_
    np.testing.assert_array_equal(weights(reg.get_trained_onnx())["w0"], own["w0"])
    reg.set_params(weights_to_train=None).fit(X, y)
    body = reg.weights_["w0"]
    assert not np.array_equal(body, own["w0"])
    assert not np.array_equal(reg.weights_["w1"], head["w1"])
    # What is frozen again keeps what it has learned.
    loss = reg.history_["loss"][-1]
    reg.set_params(weights_to_train=["w1", "b1"]).fit(X, y)
    np.testing.assert_array_equal(weights(reg.get_trained_onnx())["w0"], body)
    assert reg.history_["loss"][-1] < loss


def test_warm_start_with_other_data_of_the_same_columns(make):
    X, y = data()
    reg = make(warm_start=True, max_iter=1).fit(X, y)
    reg.fit(X[:7], y[:7])
    assert reg.step_.iteration == 5 + 2


# -- divergence --------------------------------------------------------------------------------


class Poisoned(OnnxRegressor):
    """The data turns bad in epoch 3."""

    def run_epoch(self, loader):
        if self.n_iter_ == 2:
            loader.arrays["x"][3, 0] = np.nan
        return super().run_epoch(loader)


def test_nan_in_epoch_3(make):
    X, y = data()
    good = make(max_iter=2).fit(X, y)
    reg = make(Poisoned, max_iter=5)
    with pytest.raises(ConvergenceError, match=r"^Epoch 3: .*nan.*learning rate 0\.05"):
        reg.fit(X.copy(), y)
    assert reg.n_iter_ == 2
    assert reg.history_ == good.history_
    trained = weights(reg.get_trained_onnx())
    for name, array in reg.weights_.items():
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(trained[name], array)
    assert np.isfinite(reg.predict(X)).all()
    reg.__class__ = OnnxRegressor
    reg.partial_fit(X, y)
    assert len(reg.history_["loss"]) == reg.n_iter_ == 3


def test_weights_that_overflow_in_the_last_batch_of_an_epoch(linear_model):
    """The loss of that batch was finite: the weights tell."""
    X, y = np.full((1, 1), 1e19, np.float32), np.zeros(1, np.float32)
    reg = OnnxRegressor(linear_model(1), learning_rate=1e5, max_iter=3)
    with pytest.raises(ConvergenceError, match="Epoch 1: "):
        reg.fit(X, y)
    assert all(np.isfinite(a).all() for a in reg.weights_.values())
    assert reg.n_iter_ == 0


def test_a_diverging_fit(make):
    X, y = data()
    reg = make(learning_rate=1e12, max_iter=50)
    with pytest.raises(ConvergenceError):
        reg.fit(X * 100, y * 100)
    assert all(np.isfinite(a).all() for a in reg.weights_.values())
    # Another fit begins from the model's own weights.
    reg.set_params(learning_rate=0.05, max_iter=4).fit(X, y)
    same(reg, make().fit(X, y))


# -- copies ------------------------------------------------------------------------------------


def pickled(estimator):
    return pickle.loads(pickle.dumps(estimator))


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy, clone])
def test_copies_before_a_fit(make, copied):
    X, y = data()
    reg = make(optimizer="adam")
    same(copied(reg).fit(X, y), reg.fit(X, y))


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_copies_after_a_fit(make, copied, optimizer):
    X, y = data()
    reg = make(optimizer=optimizer, warm_start=True).fit(X, y)
    other = copied(reg)
    same(reg, other)
    np.testing.assert_array_equal(reg.predict(X), other.predict(X))
    assert reg.get_trained_onnx() == other.get_trained_onnx()
    same(reg.fit(X, y), other.fit(X, y))


def test_a_clone_is_not_fitted(make):
    X, y = data()
    reg = make().fit(X, y)
    other = clone(reg)
    assert not hasattr(other, "weights_")
    with pytest.raises(NotFittedError):
        check_is_fitted(other)
    same(reg, other.fit(X, y))


def test_copies_during_a_fit_go_on_bit_for_bit(make):
    kept = []

    class Keeping(OnnxRegressor):
        def run_epoch(self, loader):
            kept.append(pickle.dumps(self.as_regressor()))
            return super().run_epoch(loader)

        def train_step(self, batch):
            if self.step_.iteration == 7:
                kept.append(pickle.dumps(self.as_regressor()))
            return super().train_step(batch)

        def as_regressor(self):  # a local class does not pickle
            other = copy.copy(self)
            other.__class__ = OnnxRegressor
            return other

    X, y = data()
    reg = make(Keeping, optimizer="adam").fit(X, y)
    assert len(kept) == 5
    copies = [pickle.loads(k) for k in kept]
    assert [c.n_iter_ for c in copies] == [0, 1, 1, 2, 3]
    middle = copies.pop(2)
    assert middle.step_.iteration == 7
    assert np.isfinite(middle.predict(X)).all()
    assert list(middle.weights_) == list(reg.weights_)
    for done, other in enumerate(copies):
        same(reg, other.partial_fit(X, y, epochs=4 - done))


def test_a_pickle_of_another_version_is_refused(make, monkeypatch):
    reg = make()
    monkeypatch.setattr("onnxcustom._versioning.PICKLE_FORMAT", 0)
    old = pickle.dumps(reg)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"OnnxRegressor has format 0.*get_trained_onnx"):
        pickle.loads(old)


# -- looks -------------------------------------------------------------------------------------


def test_repr_does_not_print_the_model(make, mlp_model):
    reg = make(penalty="l2")
    assert repr(reg) == (
        "OnnxRegressor(model=<model 'mlp'>, penalty='l2', learning_rate=0.05, batch_size=5, max_iter=4, "
        "random_state=0)"
    )
    data_ = mlp_model([3, 1]).SerializeToString()
    assert repr(OnnxRegressor(data_)) == f"OnnxRegressor(model=<model of {len(data_)} bytes>)"
    assert repr(OnnxRegressor("a.onnx", loss={"y": mlp_model([3, 1])})) == (
        "OnnxRegressor(model='a.onnx', loss={'y': <model 'mlp'>})"
    )
    X, y = data()
    assert len(repr(reg.fit(X, y))) < 200
    assert "ir_version" not in reg._repr_html_()


@pytest.mark.parametrize("terminal", [True, False])
def test_verbose_shows_a_progress_bar_in_terminals(make, terminal, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", stream)
    X, y = data()
    make(verbose=1).fit(X, y, X_val=X, y_val=y)
    shown = stream.getvalue()
    assert ("epoch 4/4" in shown and "val_loss " in shown) is terminal
    assert bool(shown) is terminal


def test_verbose_2_prints_a_line_an_epoch(make, capsys):
    X, y = data()
    make(verbose=2).fit(X, y, X_val=X, y_val=y)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", f"{i}/4"] for i in range(1, 5)]
    assert all("loss" in line and "val_loss" in line for line in lines)


def test_weights_are_copies(make):
    X, y = data()
    reg = make().fit(X, y)
    before = reg.predict(X)
    for array in reg.weights_.values():
        array[...] = 0
    np.testing.assert_array_equal(reg.predict(X), before)


def test_a_failing_user_does_not_break_the_estimator(make):
    class Failing(OnnxRegressor):
        def train_step(self, batch):
            if self.step_.iteration == 6:
                raise KeyboardInterrupt
            return super().train_step(batch)

    X, y = data()
    reg = make(Failing)
    with pytest.raises(KeyboardInterrupt):
        reg.fit(X, y)
    assert reg.n_iter_ == 1
    assert np.isfinite(reg.predict(X)).all()
    assert list(reg.weights_) == ["w0", "b0", "w1", "b1"]


def test_a_rate_set_for_a_training_that_never_began_is_forgotten(make):
    class Unwilling(Callback):
        def on_train_begin(self, trainer):
            raise KeyError("not today")

    X, y = data()
    options = {"optimizer": "adam", "warm_start": True, "max_iter": 2}
    net, twin = make(**options).fit(X, y), make(**options).fit(X, y)
    net.set_params(learning_rate=0.5, callbacks=Unwilling())
    for call in (net.fit, net.partial_fit):
        with pytest.raises(KeyError):
            call(X, y)
    assert net.step_.optimizer.value == twin.step_.optimizer.value
    net.set_params(learning_rate=twin.learning_rate, callbacks=None)
    same(net.fit(X, y), twin.fit(X, y))
