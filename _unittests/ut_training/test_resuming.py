"""A training that is interrupted, by whatever, goes on where it was."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx.parser
import pandas as pd
import pytest

from onnxcustom.exceptions import CheckpointError, ConvergenceError
from onnxcustom.optim import Adam, LearningRateSGD, ReduceOnPlateau, create
from onnxcustom.training.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    LearningRate,
    Score,
    TimeBudget,
)
from onnxcustom.training.checkpoints.checkpoint import CheckpointStore
from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor

pytest.importorskip("onnxruntime")


def data(n=23, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)).astype(np.float32)
    return X, (X @ [1.0, 2.0, 3.0] + 0.5).astype(np.float32)


class Killed(Exception):
    """What stands for a power cut."""


class Kill(Callback):
    """Ends training after so many batches, or in the middle of writing a checkpoint."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_begin(self, trainer):
        self._left = self.batches

    def on_batch_end(self, trainer, batch, loss):
        self._left -= 1
        if self._left == 0:
            raise Killed


class Losses(Callback):
    """A measure that only gets worse."""

    def measures(self, run):
        return ["a_loss"]

    def on_epoch_end(self, trainer):
        trainer.record("a_loss", trainer.n_iter_)


@pytest.fixture
def make(mlp_model, tmp_path):
    def made(*callbacks, cls=OnnxRegressor, saved=True, **options):
        options = {"learning_rate": 0.05, "batch_size": 5, "max_iter": 4, "random_state": 0, **options}
        more = [Checkpoint(tmp_path / "run", batches=1)] if saved else []
        return cls(mlp_model([3, 4, 1]), callbacks=[*callbacks, *more], **options)

    return made


def same(one, other):
    """Everything that training leaves is the same bits."""
    for name, array in one.weights_.items():
        np.testing.assert_array_equal(array, other.weights_[name])
    for weight, states in one.step_.state().items():
        for key, array in states.items():
            np.testing.assert_array_equal(array, other.step_.state()[weight][key])
    for name, values in one.history_.items():
        np.testing.assert_array_equal(values, other.history_[name])
    assert one.n_iter_ == other.n_iter_
    assert one.step_.iteration == other.step_.iteration
    assert one.step_.optimizer.value == other.step_.optimizer.value


# -- the same bits -----------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are made by fork")
@pytest.mark.parametrize("kills", [8, pytest.param(25, marks=pytest.mark.exhaustive)])
def test_killed_at_any_moment(record_property, kills):
    """SIGKILL after random times."""
    script = Path(__file__).with_name("killed_training.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, script, str(kills), "0"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    record_property("kills", found["killed"])
    assert found["killed"] >= kills
    assert found["others"] == []


@pytest.mark.parametrize("batches", [1, 5, 13])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adam"},
        {"optimizer": create("nesterov", learning_rate=0.05, momentum=0.9), "learning_rate": None},
        {"optimizer": create("adam", accumulate=3)},
        {"learning_rate": LearningRateSGD(0.05, learning_rate="adaptive"), "optimizer": None},
        {"learning_rate": ReduceOnPlateau(0.05, patience=0, threshold=0.5)},
        {"shuffle": False},
        {"validation_fraction": 0.3},
        {"random_state": None},
    ],
    ids=lambda o: "-".join(o) or "plain",
)
def test_interrupted_after_a_batch(make, options, batches):
    X, y = data()
    with pytest.raises(Killed):
        make(Kill(batches), **options).fit(X, y)
    resumed = make(**options).fit(X, y)
    assert resumed.n_iter_ == 4
    if options.get("random_state", 0) is not None:
        same(resumed, make(saved=False, **options).fit(X, y))


@pytest.mark.parametrize("batches", [7, 16])
def test_callbacks_go_on(make, batches):
    X, y = data()

    def watched():
        return [
            EarlyStopping(patience=1),
            Score("r2", every=2, batches=3),
            LearningRate(ReduceOnPlateau(0.2, factor=0.5, patience=0, threshold=0.3)),
        ]

    options = {"validation_fraction": 0.2, "max_iter": 8}
    alone = make(*watched(), saved=False, **options).fit(X, y)
    with pytest.raises(Killed):
        make(*watched(), Kill(batches), **options).fit(X, y)
    resumed = make(*watched(), **options).fit(X, y)
    same(resumed, alone)
    assert resumed.stop_reason_ == alone.stop_reason_
    one, other = (next(c for c in est.callbacks_ if isinstance(c, Score)) for est in (alone, resumed))
    assert one.records_ == other.records_
    again = make(*watched(), **options).fit(X, y)  # finished: the best weights, at once
    same(again, alone)
    assert again.stop_reason_ == alone.stop_reason_


def test_a_classifier(mlp_model, tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3)).astype(np.float32)
    y = np.array(["no", "yes"])[(X[:, 0] > 0).astype(int)]

    def made(*callbacks, folder=None):
        return OnnxClassifier(
            mlp_model([3, 4, 1], end="Sigmoid"),
            max_iter=3,
            random_state=0,
            class_weight="balanced",
            validation_fraction=0.25,
            callbacks=list(callbacks),
            checkpoint_dir=folder,
            batch_size=4,
        )

    alone = made(Score("accuracy")).fit(X, y)
    with pytest.raises(Killed):
        made(Kill(11), Score("accuracy"), folder=tmp_path / "run").fit(X, y)
    resumed = made(Score("accuracy"), folder=tmp_path / "run").fit(X, y)
    same(resumed, alone)
    assert (resumed.predict(X) == alone.predict(X)).all()
    assert list(resumed.classes_) == ["no", "yes"]


def test_sample_weights_and_frames(make):
    X, y = data()
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    w = np.linspace(1, 2, len(y))
    alone = make(saved=False).fit(frame, y, w)
    with pytest.raises(Killed):
        make(Kill(9)).fit(frame, y, w)
    resumed = make().fit(frame, y, w)
    same(resumed, alone)
    assert list(resumed.feature_names_in_) == ["a", "b", "c"]


def test_a_time_budget_is_resumed(make, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("onnxcustom.training.callbacks.limits.time.monotonic", lambda: now[0])

    class Clock(Callback):
        def on_batch_end(self, trainer, batch, loss):
            now[0] += 1.0

    X, y = data()
    alone = make(saved=False).fit(X, y)
    for steps in (7, 14):
        part = make(Clock(), TimeBudget(7)).fit(X, y)
        assert part.step_.iteration == steps
        assert "budget" in part.stop_reason_
    last = make(Clock(), TimeBudget(7)).fit(X, y)
    assert last.stop_reason_ is None
    same(last, alone)


# -- Ctrl-C ------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c():
    """What Python does of it; a process in the background is started with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_ends_between_two_batches_and_saves(make, tmp_path):
    class Press(Callback):
        def on_batch_begin(self, trainer, batch):
            if trainer.step_.iteration == 7:
                signal.raise_signal(signal.SIGINT)

    X, y = data()
    before = signal.getsignal(signal.SIGINT)
    stopped = make(Press())
    with pytest.raises(KeyboardInterrupt):
        stopped.set_params(callbacks=[Press(), Checkpoint(tmp_path / "run")]).fit(X, y)
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped.step_.iteration == 8  # the batch is finished
    saved = CheckpointStore(tmp_path / "run").latest()
    assert saved.state["position"]["batches"] == 3
    same(make().fit(X, y), make(saved=False).fit(X, y))


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_second_ctrl_c_ends_at_once(make):
    class Press(Callback):
        def on_batch_begin(self, trainer, batch):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    X, y = data()
    with pytest.raises(KeyboardInterrupt):
        make(Press()).fit(X, y)
    same(make().fit(X, y), make(saved=False).fit(X, y))


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_at_any_line_leaves_an_estimator_whole():
    """Weights, statistics, counts and curves are those after some batch, whatever line it was at."""

    class Record(Callback):
        def on_batch_end(self, trainer, batch, loss):
            whole.append(snapshot(trainer))

    def snapshot(reg):
        tensors, state = reg.step_.state_dict()
        counts = [state[n] for n in ("iteration", "pending", "pending_rows")]
        return {n: v.tobytes() for n, v in tensors.items() if "accumulated" not in n}, counts

    X, y = data(33)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> net (float[N,3] x) => (float[N,1] y)
        <float[3] s = {1,1,1}, float[3] b = {0,0,0}, float[3] m = {0,0,0}, float[3] v = {1,1,1},
         float[3,1] w = {1,2,3}> { h = BatchNormalization(x, s, b, m, v) y = MatMul(h, w) }"""
    )
    rule = Adam(learning_rate=0.05, accumulate=2)
    reg = OnnxRegressor(model, optimizer=rule, batch_norm="update", random_state=0).partial_fit(X, y)
    whole = [snapshot(reg)]
    copy.deepcopy(reg).set_params(callbacks=Record()).partial_fit(X, y)
    parts = ("runs.py", "state.py", "buffers.py", "clock.py", "trainer.py", "beginning.py")
    lines, at, pressed = 0, 0, True

    def trace(frame, event, arg):
        nonlocal lines, pressed
        if not frame.f_code.co_filename.endswith(parts):
            return None
        if event == "line":
            lines += 1
            if lines == at:
                pressed = True
                signal.raise_signal(signal.SIGINT)
        return trace

    while pressed:
        at, lines, pressed = at + 41, 0, False
        there = copy.deepcopy(reg)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            there.partial_fit(X, y)
        except KeyboardInterrupt:
            assert pressed
        finally:
            sys.settrace(before)
        assert snapshot(there) in whole
        assert len(there.history_["loss"]) == there.n_iter_
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        there.partial_fit(X, y)  # it does not take itself for one that trains


# -- finished runs -----------------------------------------------------------------------------


def test_a_finished_run_is_not_run_again(make):
    X, y = data()
    first = make().fit(X, y)

    class Never(Callback):
        def on_batch_end(self, trainer, batch, loss):
            raise AssertionError

    same(make(Never()).fit(X, y), first)


def test_more_epochs_go_on_from_a_finished_run(make):
    X, y = data()
    make().fit(X, y)
    same(make(max_iter=6).fit(X, y), make(saved=False, max_iter=6).fit(X, y))
    with pytest.raises(CheckpointError, match=r"6 epochs.*max_iter=4"):
        make().fit(X, y)


def test_fit_twice_returns_the_same(make):
    X, y = data()
    reg = make().fit(X, y)
    weights = reg.weights_
    for name, array in reg.fit(X, y).weights_.items():
        np.testing.assert_array_equal(array, weights[name])


def test_partial_fit_leaves_checkpoints_alone(make, tmp_path):
    X, y = data()
    make().partial_fit(X, y)
    assert not (tmp_path / "run").exists()


# -- another run -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 6}, "parameter 'batch_size' was 5, is 6"),
        ({"learning_rate": 0.1}, "parameter 'learning_rate' was 0.05, is 0.1"),
        ({"optimizer": "adam"}, "parameter 'optimizer' was 'sgd', is 'adam'"),
        ({"random_state": 1}, "parameter 'random_state' was 0, is 1"),
        ({"penalty": "l2"}, "parameter 'penalty' was None, is 'l2'"),
        ({"cls": type("Other", (OnnxRegressor,), {})}, "estimator was OnnxRegressor, is Other"),
    ],
    ids=lambda c: "-".join(c) if isinstance(c, dict) else None,
)
def test_other_parameters_are_named(make, change, named):
    X, y = data()
    make().fit(X, y)
    other = make(**change)
    with pytest.raises(CheckpointError, match="another run") as caught:
        other.fit(X, y)
    assert named in str(caught.value)
    assert str(caught.value).count("was") == 1
    assert not hasattr(other, "step_")


def test_other_data_and_models_are_named(make, mlp_model):
    X, y = data()
    make().fit(X, y)
    with pytest.raises(CheckpointError, match=r"data 'x' was float32 \(23, 3\).*is float32 \(22, 3\)"):
        make().fit(X[:-1], y[:-1])
    with pytest.raises(CheckpointError, match="data 'y' was"):
        make().fit(X, y + 1)
    with pytest.raises(CheckpointError, match="data 'sample_weight' was nothing, is float32"):
        make().fit(X, y, np.ones(len(y)))
    with pytest.raises(CheckpointError, match="validation 'x' was nothing"):
        make().fit(X, y, X_val=X, y_val=y)
    other = make().set_params(model=mlp_model([3, 4, 1], seed=5))
    with pytest.raises(CheckpointError, match="model was"):
        other.fit(X, y)


def test_callbacks_may_change(make):
    """Those that are new begin anew; nothing but looking was asked of them."""
    X, y = data()
    with pytest.raises(Killed):
        make(Kill(7), Score("r2", on="train")).fit(X, y)
    resumed = make(Score("neg_mean_absolute_error", on="train"), EarlyStopping(restore_best=False)).fit(X, y)
    assert resumed.n_iter_ == 4
    assert np.isfinite(resumed.history_["neg_mean_absolute_error"][-1])


def test_without_what_stopped_it_training_goes_on(make):
    X, y = data()
    stopped = make(EarlyStopping("a_loss", patience=0), Losses(), max_iter=8).fit(X, y)
    assert stopped.n_iter_ == 2
    again = make(EarlyStopping("a_loss", patience=0), Losses(), max_iter=8).fit(X, y)
    assert again.n_iter_ == 2
    assert again.stop_reason_ == stopped.stop_reason_
    same(make(Losses(), max_iter=8).fit(X, y), make(Losses(), saved=False, max_iter=8).fit(X, y))


def test_another_current_folder(make, tmp_path, monkeypatch):
    X, y = data()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    reg = make(lambda trainer: os.chdir(tmp_path / "other"), saved=False, checkpoint_dir="here")
    reg.fit(X, y)
    assert CheckpointStore(tmp_path / "here").latest().state["n_iter"] == 4


def test_warm_start_and_two_folders_are_refused(make, tmp_path):
    X, y = data()
    with pytest.raises(ValueError, match="warm_start"):
        make(warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="one folder"):
        make(checkpoint_dir=tmp_path / "other").fit(X, y)


# -- things that go wrong ----------------------------------------------------------------------


def test_a_torn_checkpoint_gives_way_to_the_one_before(make, tmp_path, caplog):
    X, y = data()
    with pytest.raises(Killed):
        make(Kill(9)).fit(X, y)
    last = CheckpointStore(tmp_path / "run").paths()[-1]
    file = last / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    same(make().fit(X, y), make(saved=False).fit(X, y))
    assert last.name in caplog.text


def test_no_silent_restart(make, tmp_path):
    X, y = data()
    with pytest.raises(Killed):
        make(Kill(9)).fit(X, y)
    for path in CheckpointStore(tmp_path / "run").paths():
        (path / "state.json").write_text("{")
    reg = make()
    with pytest.raises(CheckpointError):
        reg.fit(X, y)
    assert not hasattr(reg, "step_")


@pytest.mark.parametrize("missing", ["seed", "fingerprint", "n_iter", "step", "position", "callbacks"])
def test_a_checkpoint_of_another_program(make, tmp_path, missing):
    """Whole by its checksum, but not what we write."""
    X, y = data()
    make(max_iter=1).fit(X, y)
    store = CheckpointStore(tmp_path / "run")
    saved = store.latest()
    state = {k: v for k, v in saved.state.items() if k != missing}
    store.save(saved.tensors, state)
    reg = make()
    with pytest.raises(CheckpointError, match=missing):
        reg.fit(X, y)


@pytest.mark.parametrize(
    "change",
    [
        {"history": {"loss": 5}},
        {"history": {"loss": ["a"]}},
        {"history": {"loss": [1.0] * 9}},
        {"callbacks": [5]},
        {"callbacks": [{"class": "Checkpoint"}]},
        {"position": {"batches": 99999, "total": 1.0, "rows": 5}},
        {"position": {"batches": "1", "total": 1.0, "rows": 5}},
        {"position": {"batches": 1, "total": None, "rows": 5}},
        {"n_iter": -1},
        {"seed": True},
    ],
    ids=repr,
)
def test_states_that_are_none(make, tmp_path, change):
    X, y = data()
    make(max_iter=1).fit(X, y)
    store = CheckpointStore(tmp_path / "run")
    saved = store.latest()
    store.save(saved.tensors, {**saved.state, **change})
    reg = make()
    before = dict(vars(reg))
    with pytest.raises(CheckpointError):
        reg.fit(X, y)
    assert vars(reg) == before


def test_a_callback_that_cannot_take_its_state(make, tmp_path):
    X, y = data()
    make(EarlyStopping(restore_best=False), max_iter=1).fit(X, y)
    store = CheckpointStore(tmp_path / "run")
    saved = store.latest()
    (entry,) = [c for c in saved.state["callbacks"] if c["class"] == "EarlyStopping"]
    entry["state"] = {"items": []}
    store.save(saved.tensors, saved.state)
    reg = make(EarlyStopping(restore_best=False))
    with pytest.raises(CheckpointError, match="EarlyStopping"):
        reg.fit(X, y)
    assert not hasattr(reg, "step_")


def test_an_interruption_within_a_step_saves_nothing(make, tmp_path):
    """The weights may be ahead of the position: the last whole checkpoint is what there is to go on from."""

    class Torn(OnnxRegressor):
        def train_step(self, batch):
            loss = super().train_step(batch)
            if self.step_.iteration == 8:
                raise KeyboardInterrupt
            return loss

    X, y = data()
    stopped = make(cls=Torn)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(X, y)
    saved = CheckpointStore(tmp_path / "run").latest()
    assert saved.state["position"]["batches"] == 2
    assert saved.state["step"]["iteration"] == 7


def test_a_finished_run_writes_no_more_checkpoints(make, tmp_path):
    X, y = data()
    make().fit(X, y)
    before = CheckpointStore(tmp_path / "run").paths()
    make().fit(X, y)
    assert CheckpointStore(tmp_path / "run").paths() == before


def test_functions_with_other_values_are_other_runs(make):
    def rate(value):
        return lambda t: value / t

    X, y = data()
    make(learning_rate=rate(0.05)).fit(X, y)
    make(learning_rate=rate(0.05)).fit(X, y)
    with pytest.raises(CheckpointError, match="learning_rate"):
        make(learning_rate=rate(0.04)).fit(X, y)


def test_disk_full_does_not_end_training(make, monkeypatch, tmp_path):
    X, y = data()
    alone = make(saved=False).fit(X, y)
    original, calls = CheckpointStore.save, []

    def full(self, tensors, state):
        calls.append(state["n_iter"])
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return original(self, tensors, state)

    monkeypatch.setattr(CheckpointStore, "save", full)
    with pytest.warns(RuntimeWarning, match=r"No checkpoint was written.*No space left"):
        reg = make().fit(X, y)
    same(reg, alone)
    monkeypatch.undo()
    same(make().fit(X, y), alone)


def test_nan_keeps_the_last_good_checkpoint(make, tmp_path):
    X, y = data()
    bad = y.copy()
    bad[-1] = 3e38
    reg = make(shuffle=False)
    with pytest.raises(ConvergenceError):
        reg.fit(X, bad)
    saved = CheckpointStore(tmp_path / "run").latest()
    assert saved.state["position"]["batches"] == 4
    for name, array in reg.weights_.items():
        np.testing.assert_array_equal(saved.tensors[f"step/weights/{name}"], array)


def test_two_trainings_do_not_share_a_folder(make, tmp_path):
    X, y = data()

    class Second(Callback):
        def on_epoch_end(self, trainer):
            with pytest.raises(CheckpointError, match="already trains"):
                make().fit(X, y)

    make(Second(), max_iter=1).fit(X, y)


def test_warnings_are_none_without_trouble(make):
    X, y = data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().fit(X, y)
        make(max_iter=5).fit(X, y)
