# ruff: noqa: E501 - a case stays on its line
"""scikit-learn estimators that go on training as ONNX: the same predictions, a lower loss, a true report."""

from __future__ import annotations

import logging
import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    BaggingRegressor,
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    RandomTreesEmbedding,
    StackingClassifier,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    ElasticNet,
    GammaRegressor,
    HuberRegressor,
    Lasso,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    PoissonRegressor,
    QuantileRegressor,
    RANSACRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
    TweedieRegressor,
)
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    StandardScaler,
)
from sklearn.svm import SVC, SVR, LinearSVC, LinearSVR

from onnxcustom import OnnxClassifier, OnnxRegressor, weights
from onnxcustom.exceptions import (
    InvalidDataError,
    InvalidModelError,
    NoTrainableWeightError,
    UnknownNameError,
)
from onnxcustom.objective import (
    AbsoluteLearningLoss,
    HingeLearningLoss,
    HuberLearningLoss,
    PoissonLearningLoss,
    QuantileLearningLoss,
)
from onnxcustom.training.from_sklearn import describe_conversion, from_sklearn

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore:GaussianNB.* each by itself")

ROWS = 120


def data(seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(ROWS, 4)).astype(np.float32)
    z = X @ rng.normal(size=(4, 3)) + 0.3 * rng.normal(size=(ROWS, 3))
    targets = {
        "two": (z[:, 0] > 0).astype(int),
        "three": np.argmax(z, axis=1),
        "words": np.array(["ant", "bee", "cow"])[np.argmax(z, axis=1)],
        "two words": np.array(["no", "yes"])[(z[:, 0] > 0).astype(int)],
        "signs": np.where(z[:, 0] > 0, 1, -1),
        "truth": z[:, 0] > 0,
        "floats": np.where(z[:, 0] > 0, 2.0, 1.0),
        "labels": (z > 0).astype(int),
        "number": z[:, 0],
        "numbers": z[:, :2],
        "counts": np.exp(0.3 * z[:, 0]),
    }
    return X, targets


X, Y = data()
MLP = {"hidden_layer_sizes": (5,), "max_iter": 20, "random_state": 0}

CASES = {
    "LogisticRegression, two classes": (LogisticRegression(), "two"),
    "LogisticRegression, three classes": (LogisticRegression(), "three"),
    "LogisticRegression, words": (LogisticRegression(), "words"),
    "LogisticRegression, two words": (LogisticRegression(), "two words"),
    "LogisticRegression, -1 and 1": (LogisticRegression(), "signs"),
    "LogisticRegression, booleans": (LogisticRegression(), "truth"),
    "LogisticRegression, floats": (LogisticRegression(), "floats"),
    "LogisticRegressionCV": (LogisticRegressionCV(Cs=2, cv=2), "three"),
    "SGDClassifier, hinge, two classes": (SGDClassifier(random_state=0), "two"),
    "SGDClassifier, hinge": (SGDClassifier(random_state=0), "three"),
    "SGDClassifier, log_loss, two classes": (SGDClassifier(loss="log_loss", random_state=0), "two"),
    "SGDClassifier, log_loss": (SGDClassifier(loss="log_loss", alpha=0.1, random_state=0), "three"),
    "SGDClassifier, modified_huber": (SGDClassifier(loss="modified_huber", alpha=0.1, random_state=0), "two"),
    "SGDClassifier, sparse": (SGDClassifier(random_state=0, penalty="l1", alpha=0.1), "three"),
    "LinearSVC, two classes": (LinearSVC(), "two words"),
    "LinearSVC": (LinearSVC(), "three"),
    "Perceptron": (Perceptron(), "three"),
    "RidgeClassifier, two classes": (RidgeClassifier(), "two"),
    "RidgeClassifier, two words": (RidgeClassifier(), "two words"),
    "RidgeClassifier": (RidgeClassifier(), "words"),
    "RidgeClassifier, several labels": (RidgeClassifier(), "labels"),
    "LinearDiscriminantAnalysis": (LinearDiscriminantAnalysis(), "three"),
    "MLPClassifier, two classes": (MLPClassifier(**MLP), "two"),
    "MLPClassifier, words": (MLPClassifier(**{**MLP, "hidden_layer_sizes": (5, 4)}, activation="tanh"), "words"),
    "MLPClassifier, several labels": (MLPClassifier(**MLP, activation="logistic"), "labels"),
    "OneVsRestClassifier, two classes": (OneVsRestClassifier(LogisticRegression()), "two"),
    "OneVsRestClassifier": (OneVsRestClassifier(LogisticRegression()), "words"),
    "OneVsRestClassifier, several labels": (OneVsRestClassifier(LogisticRegression()), "labels"),
    "OneVsRestClassifier of LinearSVC": (OneVsRestClassifier(LinearSVC()), "three"),
    "OneVsRestClassifier of LinearSVC, several labels": (OneVsRestClassifier(LinearSVC()), "labels"),
    "OneVsRestClassifier of perceptrons": (OneVsRestClassifier(MLPClassifier(**MLP)), "three"),
    "OneVsRestClassifier of perceptrons, several labels": (OneVsRestClassifier(MLPClassifier(**MLP)), "labels"),
    "MultiOutputClassifier": (MultiOutputClassifier(LogisticRegression()), "labels"),
    "CalibratedClassifierCV": (CalibratedClassifierCV(LogisticRegression(), cv=2), "three"),
    "CalibratedClassifierCV of LinearSVC": (CalibratedClassifierCV(LinearSVC(), cv=2), "two"),
    "VotingClassifier": (
        VotingClassifier([("a", MLPClassifier(**MLP)), ("b", LogisticRegression())], voting="soft"),
        "three",
    ),
    "StackingClassifier": (StackingClassifier([("a", LogisticRegression())], LogisticRegression(), cv=2), "three"),
    "GaussianNB": (GaussianNB(), "three"),
    "LinearRegression": (LinearRegression(), "number"),
    "LinearRegression, several numbers": (LinearRegression(), "numbers"),
    "Ridge without intercept": (Ridge(fit_intercept=False), "number"),
    "Lasso": (Lasso(0.01), "number"),
    "ElasticNet": (ElasticNet(0.01), "number"),
    "SGDRegressor": (SGDRegressor(random_state=0), "number"),
    "SGDRegressor, huber": (SGDRegressor(loss="huber", epsilon=0.3, random_state=0), "number"),
    "LinearSVR": (LinearSVR(), "number"),
    "HuberRegressor": (HuberRegressor(), "number"),
    "QuantileRegressor": (QuantileRegressor(quantile=0.3, alpha=0.01), "number"),
    "RANSACRegressor": (RANSACRegressor(random_state=0), "number"),
    "PoissonRegressor": (PoissonRegressor(), "counts"),
    "GammaRegressor": (GammaRegressor(), "counts"),
    "TweedieRegressor": (TweedieRegressor(), "number"),
    "PLSRegression": (PLSRegression(2), "numbers"),
    "MLPRegressor": (MLPRegressor(**MLP), "number"),
    "MLPRegressor, several numbers": (MLPRegressor(**MLP), "numbers"),
    "MultiOutputRegressor": (MultiOutputRegressor(Ridge()), "numbers"),
    "MultiOutputRegressor of perceptrons": (MultiOutputRegressor(MLPRegressor(**MLP)), "numbers"),
    "VotingRegressor": (VotingRegressor([("a", Ridge()), ("b", MLPRegressor(**MLP))]), "number"),
    "BaggingRegressor": (BaggingRegressor(Ridge(), 2, random_state=0), "number"),
    "TransformedTargetRegressor": (TransformedTargetRegressor(Ridge(), transformer=StandardScaler()), "number"),
    "TransformedTargetRegressor, functions": (
        TransformedTargetRegressor(Ridge(), func=np.log, inverse_func=np.exp),
        "counts",
    ),
    "scaled and projected": (make_pipeline(StandardScaler(), PCA(3), MLPClassifier(**MLP)), "three"),
    "minimum and maximum": (make_pipeline(MinMaxScaler(), Ridge()), "number"),
    "polynomials": (make_pipeline(PolynomialFeatures(2), LinearRegression()), "number"),
    "normalized": (make_pipeline(Normalizer(), LogisticRegression()), "three"),
    "selected": (make_pipeline(SelectKBest(k=2), LogisticRegression()), "three"),
    "singular values": (make_pipeline(TruncatedSVD(2, random_state=0), RidgeClassifier()), "two"),
    "union": (make_pipeline(FeatureUnion([("s", StandardScaler()), ("p", PCA(2))]), LogisticRegression()), "words"),
    "columns by place": (
        make_pipeline(
            ColumnTransformer([("s", StandardScaler(), [0, 2]), ("m", MinMaxScaler(), [1])], remainder="passthrough"),
            LogisticRegression(),
        ),
        "three",
    ),
    "passed through": (Pipeline([("a", "passthrough"), ("b", None), ("c", LogisticRegression())]), "two"),
    "pipelines in a pipeline": (
        Pipeline([
            ("a", make_pipeline(StandardScaler(), PCA(3))),
            ("b", make_pipeline(MinMaxScaler(), RidgeClassifier())),
        ]),
        "two",
    ),
    "GridSearchCV": (
        GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [1.0]}, cv=2),
        "three",
    ),
    "a search in a pipeline": (
        make_pipeline(StandardScaler(), RandomizedSearchCV(Ridge(), {"alpha": [1.0]}, n_iter=1, cv=2)),
        "number",
    ),
    "FrozenEstimator": (make_pipeline(StandardScaler(), FrozenEstimator(LogisticRegression().fit(X, Y["two"]))), "two"),
    "imputed": (make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()), "three"),
    "leaves of trees": (
        make_pipeline(RandomTreesEmbedding(3, max_depth=2, random_state=0), LogisticRegression()),
        "three",
    ),
}  # fmt: skip


def fitted(name, rows=X, shuffled=False):
    """The estimator of a case, and the targets; shuffled targets leave it something to learn."""
    estimator, target = CASES[name]
    y = Y[target]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(estimator).fit(rows, y[np.random.default_rng(1).permutation(ROWS)] if shuffled else y), y


def reference(estimator, rows):
    """What an estimator says of rows, of shape (rows, columns)."""
    if not is_classifier(estimator):
        found = estimator.predict(rows)
    elif hasattr(estimator, "predict_proba"):
        found = estimator.predict_proba(rows)
        found = np.stack([p[:, 1] for p in found], axis=1) if isinstance(found, list) else found
    else:
        found = estimator.decision_function(rows)
    return np.asarray(found, np.float64).reshape(len(found), -1)


def onnx_part(result):
    """The estimator with the graph, and what is in front of it."""
    if isinstance(result, TransformedTargetRegressor):
        result = result.regressor
    return (result.steps[-1][1], result[:-1]) if isinstance(result, Pipeline) else (result, None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_the_graph_predicts_what_the_estimator_does(name, dtype):
    rows = X.astype(dtype)
    estimator, _ = fitted(name, rows)
    result = from_sklearn(estimator, rows[:10], dtype=dtype)
    part, front = onnx_part(result)
    given = rows if front is None else front.transform(rows)
    given = (given.toarray() if scipy.sparse.issparse(given) else given).astype(dtype)
    session = onnxruntime.InferenceSession(part.model.SerializeToString(), providers=["CPUExecutionProvider"])
    *labels, scores = session.run(None, {session.get_inputs()[0].name: given})
    assert scores.dtype == dtype
    wanted = reference(getattr(estimator, "regressor_", estimator), rows)
    tolerance = {"rtol": 1e-4, "atol": 2e-5} if dtype == np.float32 else {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(scores.reshape(ROWS, -1), wanted, **tolerance)
    if labels:
        np.testing.assert_array_equal(labels[0], estimator.predict(rows))


@pytest.mark.parametrize("name", CASES)
def test_an_epoch_that_hardly_moves_changes_no_prediction(name):
    estimator, y = fitted(name)
    result = from_sklearn(estimator, X[:10], learning_rate=1e-7, max_iter=1, random_state=0)
    result.fit(X, y)
    if is_classifier(estimator):
        np.testing.assert_array_equal(result.predict(X), estimator.predict(X))
        classes = getattr(estimator, "classes_", np.arange(3))
        assert len(result.classes_) == len(classes)
    else:
        assert result.predict(X).shape == np.shape(estimator.predict(X))
        np.testing.assert_allclose(result.predict(X), estimator.predict(X), rtol=1e-3, atol=1e-3)
    if hasattr(estimator, "predict_proba"):
        found = result.predict_proba(X).reshape(ROWS, -1)
        np.testing.assert_allclose(found, reference(estimator, X), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in CASES if name != "FrozenEstimator"])  # fitted already
def test_training_goes_on(name):
    """Fitted to shuffled targets, there is something to learn from the true ones."""
    estimator, y = fitted(name, shuffled=True)
    result = from_sklearn(
        estimator, X[:10], optimizer="adam", learning_rate=0.05, max_iter=20, random_state=0
    )
    before = estimator.score(X, y)
    result.fit(X, y)
    part = onnx_part(result)[0] if not hasattr(result, "regressor_") else result.regressor_
    losses = (part.steps[-1][1] if isinstance(part, Pipeline) else part).history_["loss"]
    assert losses[-1] < 0.985 * losses[0]
    assert result.score(X, y) > before


def test_the_estimator_is_not_modified():
    estimator, y = fitted("scaled and projected")
    before = pickle.dumps(estimator)
    from_sklearn(estimator, X, learning_rate=0.1, max_iter=1).fit(X, y)
    assert pickle.dumps(estimator) == before


def test_weights_are_those_of_scikit_learn():
    estimator, _ = fitted("LogisticRegression, words")
    found = weights(from_sklearn(estimator, X).model)
    assert list(found) == ["coef", "intercept"]
    np.testing.assert_array_equal(found["coef"], estimator.coef_.astype(np.float32))
    np.testing.assert_array_equal(found["intercept"], estimator.intercept_.astype(np.float32))
    network, _ = fitted("MLPClassifier, words")
    found = weights(from_sklearn(network, X, dtype="float64").model)
    assert list(found) == [f"{kind}.{i}" for i in range(3) for kind in ("coefs", "intercepts")]
    np.testing.assert_array_equal(found["coefs.1"], network.coefs_[1])


def test_the_labels_need_not_all_be_in_the_rows():
    estimator, y = fitted("LogisticRegression, words")
    result = from_sklearn(estimator, X[:1], learning_rate=0.1, max_iter=1).fit(X[y != "bee"], y[y != "bee"])
    assert list(result.classes_) == ["ant", "bee", "cow"]


# -- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("LogisticRegression, words", None),
        ("SGDClassifier, hinge", HingeLearningLoss()),
        ("SGDClassifier, log_loss", None),
        ("LinearSVC", HingeLearningLoss(squared=True)),
        ("Perceptron", HingeLearningLoss()),
        ("RidgeClassifier, several labels", "binary_crossentropy"),
        ("OneVsRestClassifier of LinearSVC, several labels", "binary_crossentropy"),
        ("Ridge without intercept", None),
        ("SGDRegressor, huber", HuberLearningLoss(0.3)),
        ("LinearSVR", AbsoluteLearningLoss()),
        ("QuantileRegressor", QuantileLearningLoss(0.3)),
        ("PoissonRegressor", PoissonLearningLoss(link="identity")),
    ],
)
def test_the_loss_is_the_estimators_own(name, loss):
    estimator, _ = fitted(name)
    result = from_sklearn(estimator, X)
    assert repr(result.loss) == repr(loss)
    usual = "cross-entropy" if is_classifier(estimator) else "squared error"
    assert f", loss {usual if loss is None else loss}\n" in str(describe_conversion(result))
    other = "hinge" if is_classifier(estimator) else "elastic"
    assert from_sklearn(estimator, X, loss=other).loss == other


def test_the_loss_of_huber_is_in_units_of_y():
    estimator, _ = fitted("HuberRegressor")
    assert from_sklearn(estimator, X).loss.delta == pytest.approx(1.35 * estimator.scale_)


@pytest.mark.parametrize(
    ("estimator", "target", "atol"),
    [
        (LogisticRegression(C=1e9, tol=1e-9, max_iter=10_000), "three", 1e-4),
        (LogisticRegression(C=1e9, tol=1e-9, max_iter=10_000), "two", 1e-4),
        (LinearSVC(C=1e4, tol=1e-9, max_iter=100_000, intercept_scaling=100), "two", 1e-3),
        (LinearRegression(), "number", 1e-9),
        (HuberRegressor(alpha=0, tol=1e-9, max_iter=10_000), "number", 1e-4),
        (PoissonRegressor(alpha=0, tol=1e-9, max_iter=10_000), "counts", 1e-6),
    ],
)
def test_the_optimum_of_scikit_learn_is_ours(estimator, target, atol):
    """At the minimum that scikit-learn has found of the same loss, the gradient is zero."""
    X64, y = X.astype(np.float64), Y[target]
    if target in ("two", "three"):  # separable classes have no minimum
        y = np.where(np.arange(ROWS) % 7 == 0, np.roll(y, 1), y)
    estimator = clone(estimator).fit(X64, y)
    options = {"learning_rate": 1.0, "batch_size": ROWS, "shuffle": False, "max_iter": 1, "dtype": np.float64}
    result = from_sklearn(estimator, X64, **options)
    before = weights(result.model)
    for name, array in result.fit(X64, y).weights_.items():
        np.testing.assert_allclose(array, before[name], atol=atol)
    other = from_sklearn(estimator, X64, **{**options, "learning_rate": 0.1}).fit(X64, np.roll(y, 3))
    assert max(np.abs(other.weights_[n] - a).max() for n, a in before.items()) > 20 * atol


# -- what is trained -----------------------------------------------------------------------------


def test_what_prepares_the_data_is_frozen_unless_it_is_asked_for():
    estimator, y = fitted("scaled and projected")
    result = from_sklearn(estimator, X, learning_rate=0.1, max_iter=2, random_state=0)
    assert result.weights_to_train == ["mlpclassifier.*"]
    before = weights(result.model)
    assert "pca.transform_matrix" in before
    after = weights(result.fit(X, y).get_trained_onnx())
    changed = [n for n in before if not np.array_equal(before[n], after[n])]
    assert changed == [n for n in before if n.startswith("mlpclassifier.")]
    every = from_sklearn(estimator, X, learning_rate=0.1, max_iter=2, weights_to_train="*").fit(X, y)
    assert list(every.weights_) == list(before)
    assert [row.trained for row in describe_conversion(every).rows[1:2]] == [("pca.transform_matrix",)]
    biases = from_sklearn(estimator, X, max_iter=1, freeze="biases").fit(X, y)
    assert list(biases.weights_) == ["mlpclassifier.coefs.0", "mlpclassifier.coefs.1"]
    assert "trained, but not intercepts.0" in str(describe_conversion(biases))


def test_the_report_is_a_table(caplog):
    estimator, y = fitted("scaled and projected")
    with caplog.at_level(logging.INFO, logger="onnxcustom"):
        result = from_sklearn(estimator, X, random_state=0, max_iter=1)
    wanted = """\
Converted from scikit-learn, float32, loss cross-entropy
  step            class           where  weights                                                           numbers  state
  standardscaler  StandardScaler  graph                                                                          0  frozen: prepares the data
  pca             PCA             graph  transform_matrix (4x3)                                                 12  frozen: prepares the data
  mlpclassifier   MLPClassifier   graph  coefs.0 (3x5), intercepts.0 (5), coefs.1 (5x3), intercepts.1 (3)       38  trained"""
    assert wanted in [record.getMessage() for record in caplog.records if record.name == "onnxcustom"]
    assert str(describe_conversion(result)) == wanted
    assert str(describe_conversion(pickle.loads(pickle.dumps(result.fit(X, y))))) == wanted
    trained = OnnxClassifier(result.get_trained_onnx(), weights_to_train=result.weights_to_train)
    assert str(describe_conversion(trained)) == wanted
    row = describe_conversion(result).rows[-1]
    assert row.shapes["mlpclassifier.coefs.0"] == (3, 5)
    assert len(row.trained) == 4


def test_the_report_says_what_was_left_behind():
    threshold = TunedThresholdClassifierCV(LogisticRegression(), cv=2).fit(X, Y["two"])
    assert "its threshold is left behind" in str(describe_conversion(from_sklearn(threshold, X)))
    naive, _ = fitted("GaussianNB")
    with pytest.warns(UserWarning, match="no GaussianNB any more. Name in weights_to_train"):
        result = from_sklearn(naive, X)
    assert "each by itself" in str(describe_conversion(result))
    search, _ = fitted("GridSearchCV")
    assert "GridSearchCV: its best estimator is taken" in str(describe_conversion(from_sklearn(search, X)))


@pytest.mark.parametrize("other", [KMeans(2), "model.onnx"])
def test_a_report_on_something_else(other, linear_model):
    with pytest.raises(InvalidModelError, match="nothing that from_sklearn returns"):
        describe_conversion(other)
    with pytest.raises(InvalidModelError, match="not made by from_sklearn"):
        describe_conversion(OnnxRegressor(linear_model()))


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [LogisticRegression(), make_pipeline(StandardScaler(), Ridge()), GridSearchCV(Ridge(), {"alpha": [1]})])  # fmt: skip
def test_an_estimator_that_is_not_fitted(estimator):
    with pytest.raises(NotFittedError):
        from_sklearn(estimator, X)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "estimator",
    [
        RandomForestClassifier(3, random_state=0),
        RandomForestRegressor(3, random_state=0),
        GradientBoostingClassifier(n_estimators=2),
        KNeighborsClassifier(),
        KNeighborsRegressor(),
        SVC(),
        SVR(),
        KernelRidge(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_nothing_to_train(estimator, dtype):
    estimator = estimator.fit(X, Y["three"])
    with pytest.raises(NoTrainableWeightError, match=type(estimator).__name__):
        from_sklearn(estimator, X, dtype=dtype)
    with pytest.raises(NoTrainableWeightError, match=type(estimator).__name__):
        from_sklearn(make_pipeline(StandardScaler(), estimator).fit(X, Y["three"]), X, dtype=dtype)


@pytest.mark.parametrize(
    ("estimator", "target", "message"),
    [
        (KMeans(2, random_state=0), "two", "neither a classifier nor a regressor"),
        (make_pipeline(StandardScaler(), PCA(2)), "two", "PCA is neither"),
        (OneVsOneClassifier(LogisticRegression()), "three", "counts votes"),
        (
            VotingClassifier([("a", LogisticRegression())], voting="hard"),
            "two",
            "neither probabilities nor scores",
        ),
        (MultiOutputClassifier(LogisticRegression()), "pairs", "more than two classes each"),
        # skl2onnx writes another function.
        (
            CalibratedClassifierCV(LogisticRegression(), method="isotonic", cv=2),
            "three",
            "doesn't predict what",
        ),
    ],
)
def test_what_cannot_be_trained_as_one_graph(estimator, target, message):
    y = np.stack([Y["three"], Y["three"]], axis=1) if target == "pairs" else Y[target]
    with pytest.raises(InvalidModelError, match=message):
        from_sklearn(estimator.fit(X, y), X)


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        (X[:0], {}, InvalidDataError, "no rows"),
        (X[:5, :3], {}, InvalidDataError, "standardscaler.*cannot transform X"),
        (X, {"dtype": np.float16}, ValueError, "dtype must be float32 or float64"),
        (X, {"dtype": "integer"}, ValueError, "dtype must be float32 or float64"),
        (X, {"learning_rat": 1}, TypeError, "learning_rat"),
        (
            X,
            {"weights_to_train": "nothing"},
            UnknownNameError,
            "LogisticRegression cannot be trained.*nothing",
        ),
        (X, {"freeze": "*"}, NoTrainableWeightError, "Every weight is frozen"),
    ],
)
def test_bad_arguments(rows, options, error, message):
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y["two"])
    with pytest.raises(error, match=message):
        from_sklearn(estimator, rows, **options)
