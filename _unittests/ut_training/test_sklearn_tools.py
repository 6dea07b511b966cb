"""The estimators inside what scikit-learn builds around estimators."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pandas as pd
import pytest
import sklearn
from scipy.special import expit, softmax
from skl2onnx import to_onnx
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    BaggingRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.exceptions import DataConversionWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    cross_val_predict,
    cross_val_score,
    learning_curve,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from onnxcustom import OnnxClassifier, OnnxRegressor
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.optim import Adam, LearningRateSGD

OPTIONS = {"max_iter": 4, "random_state": 0, "threads": 1}
X = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
Y = X @ np.array([1, 2, -1, 0.5], np.float32)
TWO = (Y > 0).astype(int)
THREE = np.digitize(Y, [-1, 1])


@pytest.fixture
def regressor(mlp_model):
    return OnnxRegressor(mlp_model([4, 6, 1]), learning_rate=0.05, **OPTIONS)


@pytest.fixture
def classifier(mlp_model):
    return OnnxClassifier(mlp_model([4, 6, 1], end="Sigmoid"), learning_rate=0.5, **OPTIONS)


def same(a, b):
    """Whether two fitted estimators have the same bits."""
    return all(np.array_equal(w, b.weights_[n]) for n, w in a.weights_.items())


# -- parameters --------------------------------------------------------------------------------------


def test_grid_over_parameters_of_parameters(regressor):
    regressor.set_params(optimizer=Adam(0.05), learning_rate=None)
    grid = {"optimizer__beta1": [0.0, 0.9], "optimizer__learning_rate": [1e-3, 0.05], "batch_size": [10, 45]}
    search = GridSearchCV(regressor, grid, cv=2, error_score="raise").fit(X, Y)
    assert search.best_params_["optimizer__learning_rate"] == 0.05
    found = search.cv_results_["mean_test_score"]
    assert len(set(found)) == 8  # each of the parameters changes something
    best = search.best_estimator_
    assert best.step_.optimizer.beta1 == search.best_params_["optimizer__beta1"]
    assert regressor.optimizer.beta1 == 0.9


def test_grid_over_optimizers_in_a_pipeline(regressor):
    pipe = make_pipeline(StandardScaler(), regressor)
    grid = {"onnxregressor__optimizer": ["sgd", Adam(), "nag"], "onnxregressor__learning_rate": [1e-6, 0.01]}
    search = GridSearchCV(pipe, grid, cv=2, error_score="raise").fit(X, Y)
    assert search.best_params_["onnxregressor__learning_rate"] == 0.01


@pytest.mark.parametrize("optimizer", ["sgd", LearningRateSGD(0.05), None])
@pytest.mark.parametrize("name", ["constant", "invscaling", "adaptive", "optimal"])
def test_schedules_by_name(regressor, name, optimizer):
    if optimizer == "sgd":
        optimizer = "sgd" if name == "constant" else Adam(0.05)
    found = clone(regressor).set_params(learning_rate=name, optimizer=optimizer).fit(X, Y)
    rate = 0.05 if isinstance(optimizer, (Adam, LearningRateSGD)) else 0.01
    schedule = LearningRateSGD(rate, learning_rate=name)
    given = optimizer if isinstance(optimizer, Adam) else "sgd"
    assert same(found, clone(regressor).set_params(learning_rate=schedule, optimizer=given).fit(X, Y))


def test_a_schedule_by_name_needs_a_number_to_begin_with(regressor):
    regressor.set_params(learning_rate="constant", optimizer=Adam(lambda t: 1 / t))
    with pytest.raises(ValueError, match="begins at the rate of the optimizer"):
        regressor.fit(X, Y)


def test_parameters_are_the_objects_given(regressor):
    params = regressor.get_params()
    assert params["model"] is regressor.model
    with pytest.raises(ValueError, match="no_such"):
        regressor.set_params(no_such=1)


@pytest.mark.parametrize("form", [lambda m: m, lambda m: m.SerializeToString(), ir.from_proto])
def test_clones(mlp_model, form):
    est = OnnxRegressor(form(mlp_model([4, 6, 1])), optimizer=Adam(0.05), **OPTIONS)
    expected = est.fit(X, Y)
    other = clone(est)
    assert not hasattr(other, "step_")
    assert other.optimizer is not est.optimizer
    assert same(other.fit(X, Y), expected)


@pytest.mark.parametrize("form", [lambda m: m, lambda m: m.SerializeToString(), ir.from_proto])
def test_html_is_short(mlp_model, form):
    small = OnnxRegressor(form(mlp_model([4, 6, 1])), optimizer=Adam(0.5))
    large = OnnxRegressor(form(mlp_model([400, 600, 1])), optimizer=Adam(0.5))
    assert abs(len(large._repr_html_()) - len(small._repr_html_())) < 100
    html = large._repr_html_()
    assert html.startswith("<style>")
    assert "OnnxRegressor(model=&lt;model" in html
    assert "optimizer=Adam(learning_rate=0.5" in html
    pipe = make_pipeline(StandardScaler(), large)._repr_html_()
    assert len(pipe) < 2 * len(html)
    if tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 7):  # a table of parameters
        assert '<td class="value">&lt;model' in html
        assert '<td class="value">&lt;model' in pipe


def test_html_of_a_fitted_one(regressor):
    assert "fitted" in regressor.fit(X, Y)._repr_html_()


# -- search, curves, pipelines -----------------------------------------------------------------------


def test_cross_validation(regressor, classifier):
    assert cross_val_score(regressor, X, Y, cv=3, error_score="raise").shape == (3,)
    scores = cross_val_score(classifier, X, TWO, cv=3, scoring="roc_auc", error_score="raise")
    assert scores.min() > 0.8
    proba = cross_val_predict(classifier, X, TWO, cv=2, method="predict_proba")
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-6)
    train_sizes, _, _ = learning_curve(regressor, X, Y, cv=2, train_sizes=[0.5, 1.0], error_score="raise")
    assert train_sizes.tolist() == [22, 45]


def test_set_output_around_it(regressor):
    frame = pd.DataFrame(X, columns=list("abcd"))
    pipe = make_pipeline(StandardScaler(), clone(regressor)).set_output(transform="pandas").fit(frame, Y)
    assert pipe[-1].feature_names_in_.tolist() == list("abcd")
    scaled = StandardScaler().fit_transform(frame)
    assert same(pipe[-1], regressor.fit(scaled, Y))
    framed = pd.DataFrame(scaled, columns=list("abcd"))
    np.testing.assert_array_equal(pipe[-1].predict(framed[list("dcba")]), pipe[-1].predict(framed))
    with pytest.raises(InvalidDataError, match=r"'d' is missing"):
        pipe[-1].predict(framed[list("abc")])


def test_routing_of_sample_weight(regressor):
    weights = np.random.default_rng(1).uniform(size=len(X))
    expected = clone(regressor).fit(X, Y, sample_weight=weights)
    with sklearn.config_context(enable_metadata_routing=True):
        asks = clone(regressor).set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        grid = {"learning_rate": [0.05]}
        search = GridSearchCV(asks, grid, cv=2, error_score="raise").fit(X, Y, sample_weight=weights)
        assert same(search.best_estimator_, expected)
        pipe = make_pipeline(asks).fit(X, Y, sample_weight=weights)
        assert same(pipe[-1], expected)
        refuses = clone(regressor).set_fit_request(sample_weight=False).set_score_request(sample_weight=True)
        search = GridSearchCV(refuses, grid, cv=2, error_score="raise").fit(X, Y, sample_weight=weights)
        assert same(search.best_estimator_, clone(regressor).fit(X, Y))
        silent = GridSearchCV(regressor, grid, cv=2, error_score="raise")
        with pytest.raises(ValueError, match=r"sample_weight.* not explicitly set"):
            silent.fit(X, Y, sample_weight=weights)


def test_routing_of_validation_data(regressor):
    with sklearn.config_context(enable_metadata_routing=True):
        asks = clone(regressor).set_fit_request(X_val=True, y_val=True)
        pipe = make_pipeline(asks).fit(X, Y, X_val=X[:9], y_val=Y[:9])
    assert len(pipe[-1].history_["val_loss"]) == 4


# -- class weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [(0, 1), ("no", "yes")])
@pytest.mark.parametrize("weight", ["balanced", (3.0, 0.5)])
def test_class_weights_are_weights_of_rows(classifier, weight, labels):
    y = np.array(labels)[(Y > 1).astype(int)]
    given = weight if isinstance(weight, str) else dict(zip(labels, weight, strict=True))
    found = clone(classifier).set_params(class_weight=given).fit(X, y)
    rows = compute_sample_weight(given, y)
    assert same(found, clone(classifier).fit(X, y, sample_weight=rows))
    assert not same(found, clone(classifier).fit(X, y))
    more = np.linspace(0.5, 1.5, len(X))
    found = clone(classifier).set_params(class_weight=given).fit(X, y, sample_weight=more)
    assert same(found, clone(classifier).fit(X, y, sample_weight=rows * more))


def test_class_weights_of_three(mlp_model):
    est = OnnxClassifier(mlp_model([4, 3], end="Softmax"), learning_rate=0.1, **OPTIONS)
    found = clone(est).set_params(class_weight="balanced").fit(X, THREE)
    assert same(found, clone(est).fit(X, THREE, sample_weight=compute_sample_weight("balanced", THREE)))


@pytest.mark.parametrize(("weight", "message"), [({5: 1.0}, "5|not in class_weight"), ("heavy", "balanced")])
def test_class_weights_that_are_none(classifier, weight, message):
    with pytest.raises(ValueError, match=message):
        classifier.set_params(class_weight=weight).fit(X, TWO)


def test_balanced_needs_all_rows(classifier):
    balanced = clone(classifier).set_params(class_weight="balanced")
    with pytest.raises(InvalidDataError, match=r"'balanced'.*partial_fit"):
        balanced.partial_fit(X, TWO, classes=[0, 1])
    assert not hasattr(balanced, "step_")
    fitted = balanced.fit(X, TWO)
    with pytest.raises(InvalidDataError, match=r"'balanced'.*partial_fit"):  # as SGDClassifier after fit
        fitted.partial_fit(X, TWO)
    assert fitted.set_params(warm_start=True).fit(X, TWO).n_iter_ == 2 * fitted.max_iter


# -- labels ------------------------------------------------------------------------------------------


@pytest.fixture
def named():
    """Make a classifier whose graph names its classes."""

    def make(labels, y):
        y = np.array(labels)[y]
        fitted = LogisticRegression().fit(X, y)
        model = to_onnx(
            fitted,
            X[:1],
            options={"zipmap": False},
            target_opset={"": 18, "ai.onnx.ml": 3, "com.microsoft": 1},
        )
        return OnnxClassifier(model, learning_rate=0.01, **OPTIONS), y

    return make


ENSEMBLES = {
    "hard voting": lambda e: VotingClassifier([("a", e), ("b", LogisticRegression())]),
    "soft voting": lambda e: VotingClassifier([("a", e), ("b", LogisticRegression())], voting="soft"),
    "bagging": lambda e: BaggingClassifier(e, n_estimators=2, random_state=0),
    "stacking": lambda e: StackingClassifier([("a", e)], cv=2),
}


@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("labels", [("no", "yes"), ("x", "yy", "z"), (5, 7, 10)])
def test_ensembles_of_models_that_name_their_classes(named, ensemble, labels):
    est, y = named(labels, TWO if len(labels) == 2 else THREE)
    with pytest.warns(DataConversionWarning, match="taken for the places of these names"):
        made = ENSEMBLES[ensemble](est).fit(X, y)
    assert made.classes_.tolist() == list(labels)
    # It was trained before: if its columns were taken for others, it could not tell the classes.
    assert made.score(X, y) > 0.9
    assert est.fit(X, y).classes_.tolist() == list(labels)


def test_the_model_of_numbered_labels_keeps_its_names(named):
    est, y = named(("x", "yy", "z"), THREE)
    expected = clone(est).fit(X, y)
    with pytest.warns(DataConversionWarning):
        est.fit(X, THREE)
    assert same(est, expected)
    assert est.classes_.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(np.array(["x", "yy", "z"])[est.predict(X)], expected.predict(X))
    assert est.get_trained_onnx().SerializeToString() == expected.get_trained_onnx().SerializeToString()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est.partial_fit(X[:5], THREE[:5])  # a part of the labels is enough once they are known


@pytest.mark.parametrize(
    ("labels", "y"),
    [
        (("x", "y", "z"), np.where(THREE == 2, 0, THREE)),  # 0 and 1 may be any two of the three
        (("x", "y", "z"), THREE + 1),
        (("z", "x", "y"), THREE),  # the model numbers them in another order than scikit-learn
    ],
)
def test_numbers_that_may_not_be_places_are_refused(labels, y):
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 4] x) => (string[N] label, float[N, 3] p) <float[4, 3] w, int64[1] one = {{-1}}> {{
            z = MatMul (x, w)  p = Softmax <axis = -1> (z)  best = ArgMax <axis = 1, keepdims = 0> (p)
            names = Constant <value_strings = {str(list(labels)).replace("'", '"')}> ()
            label = Gather <axis = 0> (names, best) }}"""
    )
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "w")
    )
    est = OnnxClassifier(model, **OPTIONS)
    assert est.fit(X, np.array(labels)[THREE]).classes_.tolist() == list(labels)
    with pytest.raises(InvalidDataError, match=r"names its classes .*, y holds the integers"):
        clone(est).fit(X, y)


def test_numbers_that_are_labels_are_labels(named):
    est, y = named((1, 2), TWO)
    assert est.fit(X, y).classes_.tolist() == [1, 2]
    with pytest.raises(InvalidDataError, match=r"labels \[0\], which the model does not have"):
        clone(est).fit(X, TWO)


def test_a_column_of_labels_is_told_about(classifier):
    expected = clone(classifier).fit(X, TWO)
    with pytest.warns(DataConversionWarning, match="column-vector y") as caught:
        classifier.fit(X, TWO[:, None])
    assert same(classifier, expected)
    assert caught[0].filename == __file__


def test_other_classes_at_a_later_call(classifier):
    classifier.partial_fit(X[:20], TWO[:20], classes=[1, 0])
    classifier.partial_fit(X, TWO, classes=[0, 1])
    done = classifier.n_iter_
    for classes in ([0, 2], ["0", "1"], [0, 1, 2]):
        with pytest.raises(InvalidDataError, match="not the same as the labels that the classifier has"):
            classifier.partial_fit(X, TWO, classes=classes)
    assert classifier.n_iter_ == done


def test_classes_of_a_model_that_names_its_own(named):
    est, y = named(("x", "yy", "z"), THREE)
    with pytest.raises(InvalidDataError, match=r"\['x', 'y'\].*\['x', 'yy', 'z'\]"):
        est.partial_fit(X, y, classes=["x", "y"])
    assert est.partial_fit(X, y, classes=["z", "yy", "x"]).classes_.tolist() == ["x", "yy", "z"]


def test_numbers_of_a_part_of_the_columns(mlp_model):
    est = OnnxClassifier(mlp_model([4, 3], end="Softmax"), **OPTIONS)
    est.partial_fit(X, TWO, classes=[0, 1]).partial_fit(X, THREE, classes=[0, 1, 2])
    assert est.classes_.tolist() == [0, 1, 2]
    assert OnnxClassifier(est.model, **OPTIONS).fit(X, TWO.astype(float)).classes_.tolist() == [0, 1, 2]


# -- scores ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_scores_and_probabilities(mlp_model, columns):
    est = OnnxClassifier(mlp_model([4, columns]), learning_rate=0.1, **OPTIONS)
    assert not hasattr(est, "decision_function")
    y = THREE if columns == 3 else TWO
    est.fit(X, y)
    scores, proba = est.decision_function(X), est.predict_proba(X)
    if columns == 3:
        np.testing.assert_allclose(proba, softmax(scores, axis=1), rtol=1e-5)
        np.testing.assert_array_equal(est.predict(X), scores.argmax(axis=1))
    else:
        assert scores.shape == (len(X),)
        np.testing.assert_allclose(proba[:, 1], expit(scores), rtol=1e-5)
        np.testing.assert_array_equal(est.predict(X), scores > 0)


def test_hinge_has_scores_only(mlp_model):
    est = OnnxClassifier(mlp_model([4, 1]), loss="hinge", learning_rate=0.5, **OPTIONS)
    fitted = clone(est).fit(X, TWO)
    assert not hasattr(fitted, "predict_proba")
    with pytest.raises(AttributeError, match="predict_proba"):
        fitted.predict_proba(X)
    assert cross_val_score(est, X, TWO, cv=2, scoring="roc_auc", error_score="raise").min() > 0.8
    calibrated = CalibratedClassifierCV(est, cv=2).fit(X, TWO)
    assert calibrated.predict_proba(X).shape == (len(X), 2)


def test_probabilities_are_no_scores(classifier):
    classifier.fit(X, TWO)
    assert not hasattr(classifier, "decision_function")


# -- what is built out of several --------------------------------------------------------------------


def test_regressors_of_regressors(regressor):
    both = np.stack([Y, -Y], axis=1)
    expected = clone(regressor).fit(X, Y).predict(X)
    np.testing.assert_array_equal(VotingRegressor([("a", regressor)]).fit(X, Y).predict(X), expected)
    np.testing.assert_array_equal(
        MultiOutputRegressor(regressor).fit(X, both).estimators_[0].predict(X), expected
    )
    stacked = StackingRegressor([("a", regressor)], Ridge(), cv=2).fit(X, Y)
    assert stacked.score(X, Y) > 0.5
    bagged = BaggingRegressor(regressor, n_estimators=2, random_state=0).fit(X, Y)
    assert bagged.score(X, Y) > 0.2


def test_classifiers_of_classifiers(classifier):
    both = np.stack([TWO, 1 - TWO], axis=1)
    assert MultiOutputClassifier(classifier).fit(X, both).predict(X).shape == both.shape
    assert OneVsRestClassifier(classifier).fit(X, THREE).score(X, THREE) > 0.5
    # It hands out weights that sum to 1: small steps for a rule that goes by the size of the gradient.
    boosted = AdaBoostClassifier(clone(classifier).set_params(optimizer="adam"), n_estimators=2)
    assert boosted.fit(X, TWO).score(X, TWO) > 0.8
    assert FixedThresholdClassifier(classifier, threshold=0.4).fit(X, TWO).score(X, TWO) > 0.8
    names = np.array(["a", "b"])[TWO]
    voting = VotingClassifier([("a", classifier)], voting="soft").fit(X, names)
    np.testing.assert_array_equal(voting.predict(X), clone(classifier).fit(X, names).predict(X))
