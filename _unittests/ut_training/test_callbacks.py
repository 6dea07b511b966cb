from __future__ import annotations

import csv
import io
import json
import math
import pickle
import threading

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, get_scorer, log_loss, make_scorer, max_error

from onnxcustom.exceptions import (
    CallOrderError,
    ConvergenceError,
    ConvergenceWarning,
    InvalidDataError,
    UnknownNameError,
)
from onnxcustom.optim import ReduceOnPlateau
from onnxcustom.training import callbacks as all_callbacks
from onnxcustom.training.callbacks import (
    Callback,
    EarlyStopping,
    HistoryFile,
    LearningRate,
    PrintLog,
    ProgressBar,
    Score,
    StopOnNonFinite,
    TimeBudget,
)
from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor

pytest.importorskip("onnxruntime")


def data(n=23, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)).astype(np.float32)
    return X, (X @ [1.0, 2.0, 3.0] + 0.5).astype(np.float32)


@pytest.fixture
def make(mlp_model):
    def made(*callbacks, cls=OnnxRegressor, **options):
        options = {"learning_rate": 0.05, "batch_size": 5, "max_iter": 4, "random_state": 0, **options}
        return cls(mlp_model([3, 4, 1]), callbacks=list(callbacks), **options)

    return made


class Script(Callback):
    """Writes into the history what it is told to, epoch after epoch."""

    def __init__(self, **values):
        self.values = values

    def measures(self, run):
        return list(self.values)

    def on_epoch_end(self, trainer):
        for name, values in self.values.items():
            trainer.record(name, values[trainer.n_iter_ - 1])


# -- the moments -------------------------------------------------------------------------------


def test_every_moment_in_order(make):
    seen = []

    class Spy(Callback):
        def on_train_begin(self, trainer):
            seen.append(("train begin", trainer.n_iter_))

        def on_train_end(self, trainer):
            seen.append(("train end", trainer.n_iter_))

        def on_epoch_begin(self, trainer):
            seen.append(("epoch begin", trainer.n_iter_))

        def on_epoch_end(self, trainer):
            seen.append(("epoch end", trainer.n_iter_))
            assert len(trainer.history_["loss"]) == trainer.n_iter_

        def on_batch_begin(self, trainer, batch):
            seen.append(("batch", batch.rows))

        def on_batch_end(self, trainer, batch, loss):
            seen.append((trainer.run.batches, math.isfinite(loss)))

    X, y = data(8)
    make(Spy(), max_iter=2).fit(X, y)
    batches = [("batch", 5), (1, True), ("batch", 3), (2, True)]
    assert seen == [
        ("train begin", 0),
        *[("epoch begin", 0), *batches, ("epoch end", 1)],
        *[("epoch begin", 1), *batches, ("epoch end", 2)],
        ("train end", 2),
    ]


def test_looking_changes_nothing(make):
    X, y = data()
    plain = make().fit(X, y, X_val=X, y_val=y)
    watched = make(Callback(), Score("r2"), EarlyStopping(restore_best=False), PrintLog(io.StringIO()))
    watched.fit(X, y, X_val=X, y_val=y)
    assert plain.history_["loss"] == watched.history_["loss"]
    for name, array in plain.weights_.items():
        np.testing.assert_array_equal(array, watched.weights_[name])


def test_a_function_is_called_after_every_epoch(make):
    X, y = data()
    epochs = []
    make(lambda trainer: epochs.append(trainer.n_iter_)).fit(X, y)
    assert epochs == [1, 2, 3, 4]
    one = make().set_params(callbacks=lambda trainer: epochs.append("one"))
    one.fit(X, y)
    assert epochs[4:] == ["one"] * 4


def test_errors_of_a_callback_end_training_and_the_others_are_told(make):
    told = []

    class Fails(Callback):
        def on_batch_end(self, trainer, batch, loss):
            raise KeyError("mine")

    class End(Callback):
        def on_train_end(self, trainer):
            told.append(type(trainer.run.error))
            raise OSError("does not hide the first")

    X, y = data()
    with pytest.raises(KeyError, match="mine"):
        make(End(), Fails()).fit(X, y)
    assert told == [KeyError]


def test_an_error_at_the_end_is_raised(make):
    class End(Callback):
        def on_train_end(self, trainer):
            raise OSError("late")

    X, y = data()
    reg = make(End())
    with pytest.raises(OSError, match="late"):
        reg.fit(X, y)
    assert reg.n_iter_ == 4


def test_an_interruption_at_the_end_does_not_keep_the_others_from_ending(make):
    class Interrupted(Callback):
        def on_train_end(self, trainer):
            raise KeyboardInterrupt

    X, y = data()
    values = [1.0, 2.0, 3.0, 4.0]
    reg = make(EarlyStopping("a_loss"), Script(a_loss=values), Interrupted())
    with pytest.raises(KeyboardInterrupt):
        reg.fit(X, y)
    best = make(max_iter=1).fit(X, y)
    for name, array in best.weights_.items():
        np.testing.assert_array_equal(reg.weights_[name], array)


def test_fit_within_fit(make):
    X, y = data()
    reg = make(lambda trainer: trainer.partial_fit(X, y))
    with pytest.raises(CallOrderError, match="is training"):
        reg.fit(X, y)
    assert reg.n_iter_ == 1


def test_an_error_at_the_beginning_leaves_the_fit_before(make):
    told = []

    class Begin(Callback):
        def on_train_begin(self, trainer):
            raise OSError("no")

    class After(Callback):
        def on_train_end(self, trainer):
            told.append("end")

    X, y = data()
    reg = make().fit(X, y)
    before = dict(vars(reg))
    reg.set_params(callbacks=[Begin(), After()])
    with pytest.raises(OSError, match="no"):
        reg.fit(X, y)
    assert told == []
    assert {k: v for k, v in vars(reg).items() if k != "callbacks"} == {
        k: v for k, v in before.items() if k != "callbacks"
    }


def test_run_is_there_during_training_only(make):
    X, y = data()
    runs = []
    reg = make(lambda trainer: runs.append(trainer.run)).fit(X, y)
    assert runs[0] is runs[3]
    with pytest.raises(AttributeError, match="not training"):
        _ = reg.run


def test_the_users_callbacks_stay_as_they_are(make):
    X, y = data()
    stop = EarlyStopping(patience=0)
    reg = make(stop, batch_size=23).fit(X, y)
    assert not hasattr(stop, "best_")
    assert reg.callbacks_[0].best_epoch_ == 4
    assert repr(reg.callbacks_[0]) == repr(stop)
    again = clone(reg)
    assert repr(again.callbacks) == repr(reg.callbacks)


@pytest.mark.parametrize("given", [[3], ["early"], [EarlyStopping], EarlyStopping, [None], 5, {}, iter("a")])
def test_what_is_no_callback(make, given):
    X, y = data()
    reg = make().set_params(callbacks=given)
    with pytest.raises(TypeError, match="callbacks takes"):
        reg.fit(X, y)
    with pytest.raises(NotFittedError):
        reg.predict(X)


def test_every_callback_pickles_before_during_and_after(make, tmp_path):
    class During(Callback):
        def on_epoch_end(self, trainer):
            copies.append(pickle.loads(pickle.dumps(trainer.callbacks_[:-1])))

    copies = []
    X, y = data()
    many = [
        EarlyStopping(),
        Score("r2"),
        HistoryFile(tmp_path / "h.csv"),
        LearningRate(ReduceOnPlateau(0.1)),
        ProgressBar(always=True, file=io.StringIO()),
        PrintLog(io.StringIO()),
        StopOnNonFinite(),
        TimeBudget(100),
    ]
    for callback in (EarlyStopping(), Score("r2"), TimeBudget(1)):
        assert repr(pickle.loads(pickle.dumps(callback))) == repr(callback)
    reg = make(*many, During())
    reg.fit(X, y, X_val=X, y_val=y)
    assert len(copies) == 4
    reg.callbacks_.pop()
    assert len(pickle.loads(pickle.dumps(reg.callbacks_))) == len(many)


def test_every_callback_is_documented():
    for name in all_callbacks.__all__:
        assert getattr(all_callbacks, name).__doc__


# -- early stopping ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "patience", "epochs", "best"),
    [
        ([3, 2, 1, 0.5], 1, 4, 4),  # always better
        ([3, 2, 2, 2], 0, 3, 2),  # one that is no better is one too many
        ([3, 2, 2.5, 1.5, 4, 4, 4], 1, 6, 4),
        ([3, 3, 3, 3, 3, 3], 2, 4, 1),
        ([math.nan, 3, math.nan, 4, math.nan, 5, 1], 1, 6, 2),  # what was not measured does not count
    ],
)
@pytest.mark.parametrize("name", ["some_loss", "score"])
def test_early_stopping(make, values, patience, epochs, best, name):
    X, y = data()
    values = values if name == "some_loss" else [-v for v in values]
    weights = {}

    def keep(trainer):
        weights[trainer.n_iter_] = trainer.weights_

    reg = make(EarlyStopping(name, patience=patience), Script(**{name: values}), keep)
    reg.set_params(max_iter=len(values)).fit(X, y)
    assert reg.n_iter_ == epochs
    assert reg.callbacks_[1].best_epoch_ == best
    assert reg.callbacks_[1].best_ == values[best - 1]
    if epochs < len(values):
        assert reg.stop_reason_.startswith(f"{name} has not improved on")
    else:
        assert reg.stop_reason_ is None
    for key, array in reg.weights_.items():
        np.testing.assert_array_equal(array, weights[best][key])


def test_early_stopping_may_keep_the_last_weights(make):
    X, y = data()
    values = [1.0, 2.0, 3.0, 4.0]
    kept = make(EarlyStopping("a_loss", restore_best=False), Script(a_loss=values)).fit(X, y)
    plain = make().fit(X, y)
    for key, array in kept.weights_.items():
        np.testing.assert_array_equal(array, plain.weights_[key])


def test_min_delta(make):
    X, y = data()
    values = [1.0, 0.95, 0.9, 0.85]
    reg = make(EarlyStopping("a_loss", patience=1, min_delta=0.1), Script(a_loss=values)).fit(X, y)
    assert reg.n_iter_ == 3


@pytest.mark.parametrize(
    ("name", "mode", "best"),
    [
        ("a_loss", None, 1),
        ("neg_log_loss", None, 3),
        ("val_neg_log_loss", None, 3),
        ("rmse", None, 3),
        ("rmse", "min", 1),
        ("a_loss", "max", 3),
    ],
)
def test_what_is_better(make, name, mode, best):
    X, y = data()
    stop = EarlyStopping(name, mode=mode)
    reg = make(stop, Script(**{name: [1.0, 2.0, 3.0]}), max_iter=3).fit(X, y)
    (kept,) = [c for c in reg.callbacks_ if isinstance(c, EarlyStopping)]
    assert kept.best_epoch_ == best


def test_a_measure_of_ones_own_may_be_called_like_the_output(make):
    X, y = data()
    weights = []
    own = {"y_loss": [3.0, 1.0, 2.0, 3.0]}  # measured after an epoch, so of its last weights
    reg = make(EarlyStopping("y_loss"), Script(**own), lambda t: weights.append(t.weights_), batch_size=23)
    reg.fit(X, y)
    for name, array in weights[1].items():
        np.testing.assert_array_equal(reg.weights_[name], array)


def worst(estimator, X, y):
    return float(np.max(np.abs(estimator.predict(X) - y)))


def test_a_function_does_not_say_what_is_better(make):
    X, y = data()
    with pytest.raises(UnknownNameError, match=r"'worst'.*mode='min' or mode='max'"):
        make(Score(worst), EarlyStopping("worst")).fit(X, y)
    reg = make(Score(worst), EarlyStopping("worst", mode="min")).fit(X, y)
    assert worst(reg, X, y) == pytest.approx(min(reg.history_["worst"]))
    # A scorer of scikit-learn does, made of a function too, and so does a name.
    scorer = make_scorer(max_error, greater_is_better=False)
    for score in (Score(scorer, name="x"), Score(worst, name="x_loss")):
        reg = make(score, EarlyStopping(score.name)).fit(X, y)
        assert worst(reg, X, y) == pytest.approx(min(np.abs(reg.history_[score.name])))
    make(Score("r2", name="x"), EarlyStopping("x")).fit(X, y)


def test_a_plateau_of_a_score(make):
    X, y = data()
    with pytest.raises(InvalidDataError, match=r"'r2'.*mode='max'"):
        make(Score("r2"), LearningRate(ReduceOnPlateau(0.1), "r2")).fit(X, y)
    rate = ReduceOnPlateau(0.01, factor=0.5, patience=0, mode="max")
    reg = make(Score("r2"), LearningRate(rate, "r2"), Rates()).fit(X, y)
    assert all(np.diff(reg.history_["r2"]) > 0)
    assert reg.callbacks_[-1].seen == [0.01] * 4


def test_a_rate_set_beside_a_schedule_of_epochs(make):
    X, y = data()

    class Meddle(Callback):
        def on_epoch_end(self, trainer):
            if trainer.n_iter_ == 2:
                trainer.step_.optimizer.set_learning_rate(0.5)

    for rate in (lambda epoch: 0.1 / epoch, lambda epoch: 0.1):
        with pytest.warns(UserWarning, match=r"set_learning_rate\(0\.5\) has no effect") as caught:
            reg = make(LearningRate(rate), Rates(), Meddle()).fit(X, y)
        assert len(caught) == 1
        assert reg.callbacks_[1].seen == [rate(epoch) for epoch in (1, 2, 3, 4)]
    assert reg.step_.optimizer.value == 0.05  # its own again
    plain = make(Rates(), Meddle()).fit(X, y)
    assert plain.callbacks_[0].seen == [0.05, 0.05, 0.5, 0.5]


class Rates(Callback):
    def on_train_begin(self, trainer):
        self.seen = []

    def on_epoch_end(self, trainer):
        self.seen.append(trainer.step_.optimizer.value)


@pytest.mark.filterwarnings("ignore:EarlyStopping cannot put back")
@pytest.mark.parametrize(("validation", "name"), [(True, "val_loss"), (False, "loss")])
def test_what_is_watched_by_default(make, validation, name):
    X, y = data()
    held = {"X_val": X, "y_val": y} if validation else {}
    reg = make(EarlyStopping(), max_iter=2).fit(X, y, **held)
    assert reg.callbacks_[0].best_ == min(reg.history_[name])


@pytest.mark.parametrize(
    ("callback", "error", "message"),
    [
        (EarlyStopping("val_loss"), UnknownNameError, r"'val_loss'.*\['loss'\].*[Vv]alidation data"),
        (EarlyStopping("accuracy"), UnknownNameError, "'accuracy'"),
        (EarlyStopping(patience=-1), ValueError, "patience"),
        (EarlyStopping(mode="less"), UnknownNameError, "'min', 'max' or None"),
        (Score("neg_log_loss", on="train"), InvalidDataError, "predict_proba"),
        (Score("r2", on="train", name="loss"), UnknownNameError, "'loss' would be measured twice"),
        (LearningRate(lambda epoch: None), TypeError, "the learning rate"),
        (LearningRate(lambda epoch: "a"), TypeError, "the learning rate"),
        (EarlyStopping(min_delta=math.nan), ValueError, "min_delta"),
        (TimeBudget(0), ValueError, "seconds"),
        (Score("nope"), UnknownNameError, "'nope'.*accuracy"),
        (Score(3), TypeError, "3"),
        (Score("r2", on="test"), UnknownNameError, "'validation', 'train' or 'both'"),
        (Score("r2", on="validation"), InvalidDataError, "X_val"),
        (Score("r2", every=0), ValueError, "every"),
        (Score("r2", batches=0), ValueError, "batches"),
        (HistoryFile("h.txt"), InvalidDataError, r"\.csv or \.json"),
        (HistoryFile("no/such/folder/h.csv"), FileNotFoundError, "folder"),
        (LearningRate(0.1), TypeError, "schedule or a function"),
        (LearningRate(ReduceOnPlateau(0.1), "val_loss"), UnknownNameError, "val_loss"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Callback) else None,
)
def test_bad_options_are_refused_before_training(make, callback, error, message):
    X, y = data()
    reg = make(callback)
    before = dict(vars(reg))
    with pytest.raises(error, match=message):
        reg.fit(X, y)
    assert vars(reg) == before


# -- other ends --------------------------------------------------------------------------------


def test_a_time_budget_ends_within_an_epoch(make, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("onnxcustom.training.callbacks.limits.time.monotonic", lambda: now[0])

    class Clock(Callback):
        def on_batch_end(self, trainer, batch, loss):
            now[0] += 1.0

    X, y = data()  # five batches
    reg = make(Clock(), TimeBudget(7)).fit(X, y)
    assert reg.step_.iteration == 7
    assert reg.n_iter_ == len(reg.history_["loss"]) == 1
    assert "time budget of 7 seconds" in reg.stop_reason_


def test_columns_of_validation_data_are_compared(make):
    X, y = data()
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    with pytest.raises(InvalidDataError, match="'d'"):
        make().fit(frame, y, X_val=frame.rename(columns={"b": "d"}), y_val=y)
    turned = make().fit(frame, y, X_val=frame[["b", "a", "c"]], y_val=y)
    assert turned.history_ == make().fit(frame, y, X_val=frame, y_val=y).history_


def test_stopping_at_the_last_batch_ends_the_epoch(make):
    class Stop(Callback):
        def on_batch_end(self, trainer, batch, loss):
            if trainer.step_.iteration == 10:
                trainer.run.stop("enough")

    X, y = data()
    reg = make(Stop()).fit(X, y)
    assert (reg.n_iter_, len(reg.history_["loss"]), reg.stop_reason_) == (2, 2, "enough")


def test_stopping_where_every_batch_was_skipped(make):
    class Skips(OnnxRegressor):
        def train_step(self, batch):
            return math.nan

    class Stop(Callback):
        def on_batch_end(self, trainer, batch, loss):
            trainer.run.stop("enough")

    X, y = data()
    reg = make(Stop(), cls=Skips).fit(X, y)
    assert (reg.n_iter_, reg.stop_reason_) == (0, "enough")


def diverging(y):
    bad = y.copy()
    bad[-1] = 3e38
    return bad


def test_stop_on_nonfinite_keeps_the_last_good_weights(make):
    X, y = data(10)
    options = {"shuffle": False, "max_iter": 3}
    plain = make(**options)
    with pytest.raises(ConvergenceError):
        plain.fit(X, diverging(y))
    reg = make(StopOnNonFinite(), **options)
    with pytest.warns(ConvergenceWarning, match="not finite|infinit|inf|nan"):
        reg.fit(X, diverging(y))
    assert reg.stop_reason_ == "the objective is not finite"
    for name, array in reg.weights_.items():
        np.testing.assert_array_equal(array, plain.weights_[name])
        assert np.isfinite(array).all()


# -- scores ------------------------------------------------------------------------------------


def test_scores_are_those_of_scikit_learn(mlp_model):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3)).astype(np.float32)
    y = np.array(["a", "b"])[(X[:, 0] > 0).astype(int)]
    found = []

    def look(trainer):
        proba = trainer.predict_proba(X[40:])
        found.append((accuracy_score(y[40:], trainer.predict(X[40:])), -log_loss(y[40:], proba)))

    clf = OnnxClassifier(
        mlp_model([3, 4, 1], end="Sigmoid"),
        learning_rate=0.3,
        max_iter=3,
        random_state=0,
        callbacks=[Score("accuracy"), Score("neg_log_loss", on="both"), look],
    ).fit(X[:40], y[:40], X_val=X[40:], y_val=y[40:])
    assert list(clf.history_) == ["loss", "val_loss", "val_accuracy", "neg_log_loss", "val_neg_log_loss"]
    assert clf.history_["val_accuracy"] == [a for a, _ in found]
    assert clf.history_["val_neg_log_loss"] == pytest.approx([s for _, s in found], rel=1e-9)
    assert clf.history_["neg_log_loss"][-1] == pytest.approx(get_scorer("neg_log_loss")(clf, X[:40], y[:40]))


def test_scores_every_so_many_epochs_and_batches(make):
    X, y = data()  # five batches
    score = Score(lambda est, X, y: float(est.step_.iteration), name="steps", every=2, batches=3)
    reg = make(score, max_iter=5).fit(X, y)
    np.testing.assert_array_equal(reg.history_["steps"], [math.nan, 10, math.nan, 20, 25])
    (kept,) = [c for c in reg.callbacks_ if isinstance(c, Score)]
    within = [r["iteration"] for r in kept.records_]
    assert within == [3, 6, 9, 10, 12, 15, 18, 20, 21, 24, 25]
    assert kept.records_[0] == {"epoch": 0, "iteration": 3, "steps": 3.0}


def test_early_stopping_reads_scores_whatever_the_order(make):
    X, y = data()
    score = Score(lambda est, X, y: 1.0, name="flat")
    reg = make(EarlyStopping("flat", mode="max", patience=0), score).fit(X, y)
    assert reg.n_iter_ == 2


def test_a_scorer_that_gives_no_number(make):
    X, y = data()
    with pytest.raises(TypeError, match="no number"):
        make(Score(lambda est, X, y: "good", name="word")).fit(X, y)


# -- learning rate -----------------------------------------------------------------------------


def test_a_rate_by_epoch(make):
    rates = []
    X, y = data()
    reg = make(LearningRate(lambda epoch: 0.1 / epoch), lambda t: rates.append(t.step_.optimizer.value)).fit(
        X, y
    )
    assert rates == [0.1, 0.05, 0.1 / 3, 0.025]
    by_hand = make(max_iter=1, learning_rate=0.1, warm_start=True)
    for epoch in range(1, 5):
        by_hand.set_params(learning_rate=0.1 / epoch).fit(X, y)
    for name, array in reg.weights_.items():
        np.testing.assert_array_equal(array, by_hand.weights_[name])


def test_the_rate_does_not_outlive_the_callback(make):
    X, y = data()
    reg = make(LearningRate(lambda epoch: 1e-9), warm_start=True).fit(X, y)
    assert reg.step_.optimizer.value == 0.05


def test_a_plateau_of_a_measure(make):
    X, y = data()
    rates = []
    watch = LearningRate(ReduceOnPlateau(0.1, factor=0.5, patience=0), "my_loss")
    reg = make(Script(my_loss=[3.0, 3.0, 2.0, 3.0]), watch, lambda t: rates.append(t.step_.optimizer.value))
    reg.fit(X, y)
    assert rates == [0.1, 0.1, 0.05, 0.05]


# -- history -----------------------------------------------------------------------------------


def test_history_has_a_number_an_epoch(make):
    X, y = data()
    reg = make(Score("r2", on="train", every=3), max_iter=4).fit(X, y)
    assert {len(v) for v in reg.history_.values()} == {4}
    assert np.isnan(reg.history_["r2"]).tolist() == [True, True, False, False]
    reg.set_params(warm_start=True, callbacks=None, max_iter=2).fit(X, y, X_val=X, y_val=y)
    assert {len(v) for v in reg.history_.values()} == {6}
    assert np.isnan(reg.history_["val_loss"]).tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("suffix", ["csv", "json", "CSV"])
def test_history_file(make, tmp_path, suffix):
    X, y = data()
    path = tmp_path / f"history.{suffix}"
    reg = make(HistoryFile(path), Score("r2", on="train", every=2)).fit(X, y)
    if suffix == "json":
        found = json.loads(path.read_text())
    else:
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        found = {k: [None if r[k] == "" else float(r[k]) for r in rows] for k in rows[0]}
    assert found["epoch"] == [1, 2, 3, 4]
    assert found["loss"] == reg.history_["loss"]
    assert found["r2"] == [None, reg.history_["r2"][1], None, reg.history_["r2"][3]]
    assert found["learning_rate"] == [0.05] * 4
    assert len(found["seconds"]) == 4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_history_that_is_not_finite_is_valid_json(make, tmp_path):
    X, y = data()
    path = tmp_path / "h.json"
    make(Script(a_loss=[1.0, math.inf, math.nan, 2.0]), HistoryFile(path)).fit(X, y)
    assert json.loads(path.read_text())["a_loss"] == [1.0, None, None, 2.0]


# -- telling -----------------------------------------------------------------------------------


def test_the_bar_shows_loss_scores_and_time_left(make):
    X, y = data()
    stream = io.StringIO()
    make(ProgressBar(always=True, file=stream), Score("r2")).fit(X, y, X_val=X, y_val=y)
    last = stream.getvalue().split("\r")[-1]
    for part in ("epoch 4/4", "100%", "rows/s", "left", "loss ", "val_loss ", "val_r2 "):
        assert part in last, (part, last)


def test_the_bar_is_quiet_where_there_is_no_terminal(make):
    X, y = data()
    stream = io.StringIO()
    make(ProgressBar(file=stream)).fit(X, y)
    assert stream.getvalue() == ""


def test_the_log_says_why_training_ended(make, capsys):
    X, y = data()
    make(PrintLog(), lambda t: t.run.stop("seen enough") if t.n_iter_ == 2 else None).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[-1] == "stopped: seen enough"


def test_callbacks_of_two_threads_do_not_meet(make):
    """One list of callbacks for two estimators."""
    X, y = data()
    shared = [EarlyStopping("loss", patience=1, restore_best=False), Score("r2", on="train")]
    alone = [make(*shared, random_state=i).fit(X, y) for i in range(2)]
    together = [make(*shared, random_state=i) for i in range(2)]
    threads = [threading.Thread(target=reg.fit, args=(X, y)) for reg in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for one, other in zip(alone, together, strict=True):
        assert one.history_ == other.history_
