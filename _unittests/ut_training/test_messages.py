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
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import all_estimators

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.data import stream
from onnxcustom.exceptions import (
    InvalidDataError,
    InvalidModelError,
    NoTrainableWeightError,
    UnknownNameError,
)
from onnxcustom.training.callbacks import Callback
from onnxcustom.training.from_sklearn import from_sklearn
from onnxcustom.training.sklearn_heads import trainable_kinds

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
