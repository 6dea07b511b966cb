"""What users get wrong is told with what they wrote, and what they may have meant."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pandas as pd
import pytest
from sklearn.base import is_classifier
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import all_estimators

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.data import stream
from onnxcustom.exceptions import (
    CheckpointError,
    InvalidDataError,
    InvalidModelError,
    NoTrainableWeightError,
    UnknownNameError,
)
from onnxcustom.optim import Adam
from onnxcustom.training.callbacks import Callback
from onnxcustom.training.from_sklearn import from_sklearn
from onnxcustom.training.from_sklearn.heads import trainable_kinds

pytest.importorskip("onnxruntime")

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
LINEAR = f"{HEAD} g (float[N, 2] x) => (float[N, 1] y) <float[2, 1] w = {{1, 2}}> {{ y = MatMul(x, w) }}"
CLASSES = f"""{HEAD} g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {{1, 2, 3, 4}}> {{
    s = MatMul(x, w) y = Softmax(s) }}"""
X, Y = np.ones((8, 2), np.float32), np.ones(8, np.float32)


def regressor(**options):
    return OnnxRegressor(onnx.parser.parse_model(LINEAR), max_iter=1, **options)


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"optimizer": "adm"}, "adam"),
        ({"loss": "squared_eror"}, "squared_error"),
        ({"loss": "Hub"}, "huber"),
    ],
)
def test_names_that_are_nearly_right(options, meant):
    with pytest.raises(UnknownNameError, match=f"Did you mean .*'{meant}'"):
        regressor(**options).fit(X, Y)


def test_names_that_are_like_none_have_no_hint():
    with pytest.raises(UnknownNameError) as caught:
        regressor(optimizer="zzzzzz").fit(X, Y)
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["csv", "frame"])
def test_targets_that_are_nearly_right(suffix, tmp_path):
    frame = pd.DataFrame({"a": Y, "b": Y, "price": Y})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    source = frame if suffix == "frame" else tmp_path / "rows.csv"
    with pytest.raises(InvalidDataError, match=r"'pricee'.*Did you mean 'price'\?"):
        regressor().fit(stream(source, target="pricee"))


class Misspelt(Callback):
    def on_epoch_ended(self, trainer):
        raise AssertionError("called")


class Helped(Callback):
    once = 0

    def one_more(self):
        self.once += 1

    def on_epoch_end(self, trainer):
        self.one_more()


def test_moments_that_nothing_calls():
    net = regressor(callbacks=[Misspelt()])
    with pytest.raises(UnknownNameError, match=r"Misspelt.on_epoch_ended.*Did you mean 'on_epoch_end'"):
        net.fit(X, Y)
    assert not hasattr(net, "weights_")
    assert regressor(callbacks=[Helped()]).fit(X, Y).callbacks_[0].once == 1


def masked(array):
    made = np.ma.masked_array(array, np.zeros(array.shape, bool))
    made[3] = np.ma.masked
    return made


@pytest.mark.parametrize("how", ["fit", "partial_fit", "stream", "labels", "predict", "score"])
@pytest.mark.parametrize("which", ["X", "y", "sample_weight"])
def test_masked_arrays(which, how):
    """numpy.ma keeps a number below the mask, which training would take for a value."""
    data = {"X": X, "y": Y, "sample_weight": Y}
    data[which] = masked(data[which])
    net = regressor()
    if how == "labels":
        data = {**data, "y": data["y"].astype(np.int64)}
        net = OnnxClassifier(onnx.parser.parse_model(CLASSES), max_iter=1)
    elif how in ("predict", "score"):
        net.fit(X, Y)
    calls = {
        "stream": lambda: net.fit(stream(tuple(data.values()))),
        "predict": lambda: net.predict(data["X"]),
        "score": lambda: net.score(**data),
        "partial_fit": lambda: net.partial_fit(**data),
    }
    if how == "predict" and which != "X":
        return
    with pytest.raises(InvalidDataError, match=r"row 3.*masked"):
        calls.get(how, lambda: net.fit(**data))()


def test_an_array_of_numpy_ma_without_mask_is_an_array():
    net = regressor().fit(np.ma.masked_array(X), np.ma.masked_array(Y))
    np.testing.assert_array_equal(net.predict(X), regressor().fit(X, Y).predict(X))


# -- losses that are one number -----------------------------------------------------------------------

MEANS = {
    "a mean": ("loss = ReduceMean<keepdims = 0>(s)", ""),
    "declared by rows": ("loss = ReduceMean<keepdims = 0>(s)", "[N]"),
    "kept dimensions": ("loss = ReduceSum<keepdims = 1>(s)", "[N, 1]"),
    "unsqueezed": (
        "m = ReduceMean<keepdims = 0>(s) i = Constant<value = int64[1] {0}>() loss = Unsqueeze(m, i)",
        "[M]",
    ),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_loss_model_that_is_one_number(name):
    body, shape = MEANS[name]
    loss = onnx.parser.parse_model(
        f"{HEAD} mine (float[N, 1] predicted, float[N, 1] expected) => (float{shape} loss) {{"
        f" d = Sub(predicted, expected) s = Mul(d, d) {body} }}"
    )
    with pytest.raises(InvalidDataError, match=r"loss model 'mine' returned one number.*one for each row"):
        TrainingStep(onnx.parser.parse_model(LINEAR), loss)
    net = regressor(loss=loss)
    with pytest.raises(InvalidDataError, match="one number for the whole batch"):
        net.fit(X, Y)
    assert not hasattr(net, "weights_")


# -- models without weights ---------------------------------------------------------------------------

ROWS = np.random.default_rng(0).normal(size=(40, 3))
LABELS = (ROWS[:, 0] > 0).astype(int)


@pytest.mark.parametrize(
    "kind",
    [
        KNeighborsClassifier,
        DecisionTreeClassifier,
        ExtraTreesClassifier,
        AdaBoostClassifier,
        HistGradientBoostingClassifier,
        RandomForestRegressor,
        KNeighborsRegressor,
        HistGradientBoostingRegressor,
    ],
)
def test_kinds_without_weights_are_told_apart_from_those_with(kind):
    fitted = kind().fit(ROWS, LABELS)
    pattern = "has no weights that a gradient could move.* that have weights"
    with pytest.raises(NoTrainableWeightError, match=f"{kind.__name__} {pattern}") as caught:
        from_sklearn(fitted, ROWS)
    listed = str(caught.value).rpartition(": ")[2].removesuffix(".").split(", ")
    assert listed == trainable_kinds(is_classifier(fitted))
    assert kind.__name__ not in listed
    with pytest.raises(NoTrainableWeightError, match=pattern):
        from_sklearn(make_pipeline(StandardScaler(), kind()).fit(ROWS, LABELS), ROWS)
    with pytest.raises(InvalidModelError, match=r"not as .*from_sklearn\(estimator, X\)"):
        OnnxClassifier(fitted).fit(ROWS, LABELS)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("classifiers", [True, False])
def test_kinds_with_weights_are_trained(classifiers):
    names = trainable_kinds(classifiers)
    assert {"MLPClassifier", "LogisticRegression"} <= set(names) or {"MLPRegressor", "Ridge"} <= set(names)
    known = dict(all_estimators())
    for name in names[:6]:
        from_sklearn(known[name]().fit(ROWS, LABELS if classifiers else np.abs(ROWS[:, 0])), ROWS)


def test_graphs_of_forests():
    skl2onnx = pytest.importorskip("skl2onnx")
    fitted = RandomForestClassifier(3).fit(ROWS, LABELS)
    model = skl2onnx.to_onnx(fitted, ROWS[:1].astype(np.float32), target_opset={"": 18, "ai.onnx.ml": 3})
    with pytest.raises(NoTrainableWeightError, match=r"TreeEnsembleClassifier.*no weights that a gradient"):
        OnnxClassifier(model).fit(ROWS, LABELS)


# -- frames of pandas ---------------------------------------------------------------------------------

UNFIT = {
    "NaN": ([1, 2, np.nan], "row 2: there is NaN"),
    "infinity": ([1, -np.inf, 2], "row 1: there is infinity"),
    "too large": ([1, 1e300, 2], r"row 1: 1e\+300 is too large for float32"),
    "None": (pd.Series([1, None, 2], dtype=object).array, "row 1: there is no value"),
    "NA": (pd.array([1, None, 2], dtype="Int64"), "row 1: there is no value"),
    "NaT": (pd.Series([1, 2, pd.NaT], dtype=object).array, "row 2: there is no value"),
    "text": (pd.Series([1, "x", 2], dtype=object).array, "row 1: 'x' is no number"),
    "digits": (["1", "2", "3"], "row 0: '1' is no number"),
    "string": (pd.array(["u", "v", "w"], dtype="string"), "row 0: 'u' is no number"),
    "category": (pd.Categorical(["u", "v", "w"]), "row 0: 'u' is no number"),
    "dates": (pd.date_range("2020-01-01", periods=3), ": datetime64.* is no type for numbers"),
    "times": (pd.timedelta_range("1D", periods=3), ": timedelta64.* is no type for numbers"),
    "complex": ([1j, 2j, 3j], ": complex128 is no type of numbers"),
    "long integer": (pd.Series([1, 10**400, 2], dtype=object).array, "row 1: an integer is too large"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_frames_of_pandas_say_where_something_is_unfit(kind):
    values, words = UNFIT[kind]
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": values}, index=[7, 8, 9])
    words = rf"column 'b'(, )?{words}"
    net = regressor().fit(pd.DataFrame(X, columns=["a", "b"]), Y)
    for call in (lambda: regressor().fit(frame, Y[:3]), lambda: net.predict(frame)):
        with pytest.raises(InvalidDataError, match=f"Input 'x': {words}"):
            call()
    with pytest.raises(InvalidDataError, match=f"y: {words}"):
        regressor().fit(X[:3], frame["b"])
    with pytest.raises(InvalidDataError, match=f"Input 'x': {words}"):  # of dates alone
        regressor().fit(frame[["b"]].assign(c=frame["b"]), Y[:3])


@pytest.mark.parametrize("kind", ["polars", "pyarrow"])
@pytest.mark.parametrize(("value", "words"), [(np.nan, "there is NaN"), (1e300, "is too large for float32")])
def test_other_frames_say_where_a_number_is_unfit(kind, value, words):
    package = pytest.importorskip(kind, exc_type=ImportError)
    columns = {"a": [1.0, 2.0, 3.0], "b": [1.0, value, 2.0]}
    frame = package.DataFrame(columns) if kind == "polars" else package.table(columns)
    with pytest.raises(InvalidDataError, match=f"Input 'x': column 'b', row 1: .*{words}"):
        regressor().fit(frame, Y[:3])


def test_good_frames_of_pandas_are_not_looked_through(monkeypatch):
    def never(*_):
        raise AssertionError("looked at each value")

    monkeypatch.setattr("onnxcustom.feed.arrays.find_unfit", never)
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [True, False, True]})
    numbers = regressor().fit(frame, Y[:3]).predict(frame)
    kinds = frame.assign(a=frame["a"].astype("Int64"), b=pd.Categorical([1, 0, 1]))
    np.testing.assert_array_equal(regressor().fit(kinds, Y[:3]).predict(kinds), numbers)


def test_dates_in_arrays_are_no_numbers():
    days = np.array([["2020-01-01", "2020-01-02"]] * 3, "M8[D]")
    with pytest.raises(InvalidDataError, match=r"Input 'x': datetime64\[D\] is no type of numbers"):
        regressor().fit(days, Y[:3])


# -- streams where rows are needed at once ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["regressor", "classifier"])
def test_predictions_of_a_stream_are_those_of_its_blocks(kind):
    rows = stream((X, Y if kind == "regressor" else np.arange(8) % 2))
    net = regressor() if kind == "regressor" else OnnxClassifier(onnx.parser.parse_model(CLASSES), max_iter=1)
    net.fit(rows)
    calls = [net.predict, net.score, net.step_.predict, *([net.predict_proba] if kind != "regressor" else [])]
    for call in calls:
        with pytest.raises(InvalidDataError, match=r"a stream gives them block by block.*rows\.blocks\(\)"):
            call(rows)
    found = np.concatenate([net.predict(block.X) for block in rows.blocks()])
    np.testing.assert_array_equal(found, net.predict(X))
    with pytest.raises(InvalidDataError, match="y is None"):
        net.score(X)


# -- R² ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "weights", "words"),
    [
        (np.ones(8), np.ones(7), "X has 8 rows, sample_weight has 7 rows"),
        (np.ones(8), np.ones((8, 2)), "sample_weight wants 1 dimension"),
        (np.ones(8), [1, -1, *[1] * 6], "must not be negative: row 1 has -1"),
        (np.ones(8), [np.nan, *[1] * 7], "contains NaN"),
        (np.ones((1, 8)), None, "wants 1 column, the data has 8"),
        (np.ones(7), None, "X has 8 rows, y has 7 rows"),
    ],
)
def test_scores_refuse_what_fit_refuses(y, weights, words):
    net = regressor().fit(X, Y)
    for call in (net.score, net.fit):
        with pytest.raises(InvalidDataError, match=words):
            call(X, y, weights)


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_weighted_scores_are_those_of_scikit_learn(shape):
    rng = np.random.default_rng(0)
    features, y, weights = rng.normal(size=(8, 2)), rng.normal(size=8), rng.random(8)
    net = regressor().fit(features, y.reshape(shape))
    wanted = r2_score(y, net.predict(features), sample_weight=weights)
    assert net.score(features, y.reshape(shape), weights.reshape(shape)) == pytest.approx(wanted, rel=1e-12)
    assert net.score(features, y.reshape(shape), 2) == pytest.approx(net.score(features, y), rel=1e-12)


# -- parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"loss": "custom"},
            UnknownNameError,
            r"loss='custom' names CustomLoss, .*give CustomLoss\(loss=...\)",
        ),
        ({"penalty": "per_weight"}, UnknownNameError, r"penalty='per_weight' .*'penalties'"),
        ({"learning_rate": "0.1"}, UnknownNameError, "learning_rate='0.1' is text: give the number 0.1"),
        ({"learning_rate": "fast"}, UnknownNameError, "learning_rate: 'fast' is no"),
        ({"checkpoint_dir": 5}, TypeError, r"checkpoint_dir.* must be a path, not 5"),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_parameters_are_named(options, error, words, optimizer):
    with pytest.raises(error, match=words):
        regressor(optimizer=optimizer, **options).fit(X, Y)


@pytest.mark.parametrize("option", [{"beta2": 0.9}, {"wd": 0.1}, {"learning_rate": 0.1}])
def test_another_run_is_told_by_what_differs(option, tmp_path):
    regressor(optimizer=Adam(), checkpoint_dir=tmp_path).fit(X, Y)
    ((name, value),) = option.items()
    old = getattr(Adam(), name)
    with pytest.raises(
        CheckpointError, match=f"'optimizer' was .*'{name}': {old}, .* is .*'{name}': {value}, "
    ):
        regressor(optimizer=Adam(**option), checkpoint_dir=tmp_path).fit(X, Y)
