"""Linear models and perceptrons as graphs: scores, links, labels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge, RidgeClassifier, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC, LinearSVC

from onnxcustom.graph import class_labels, find_logits, prepare, weights
from onnxcustom.training.from_sklearn.heads import LINKS, build_head, close, evaluate, has_several_labels

pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
Z = X @ RNG.normal(size=(4, 3)) + RNG.normal(size=(60, 3))
THREE, TWO, LABELS = np.argmax(Z, axis=1), (Z[:, 0] > 0).astype(int), (Z > 0).astype(int)


def expected(estimator):
    """What it says of the rows: probabilities, else scores, else numbers."""
    methods = ("predict_proba", "decision_function", "predict")
    found = next(getattr(estimator, m) for m in methods if hasattr(estimator, m))(X)
    return found.reshape(len(found), -1)


def head_of(estimator, rows=X, tolerance=1e-9, **changed):
    wanted = {"expected": expected(estimator), "predicted": estimator.predict(X), **changed}
    return build_head(estimator, rows, **wanted, tolerance=tolerance)


CASES = {
    "sigmoid": (LogisticRegression(), TWO, "sigmoid", 1),
    "softmax": (LogisticRegression(), THREE, "softmax", 3),
    "one against the rest": (SGDClassifier(loss="log_loss", alpha=0.1, random_state=0), THREE, "sigmoid", 3),
    "several labels": (OneVsRestClassifier(LogisticRegression()), LABELS, "sigmoid", 3),
    "scores": (LinearSVC(), THREE, None, None),
    "identity": (Ridge(), Z[:, 0], None, None),
    "exp": (PoissonRegressor(), np.exp(0.1 * Z[:, 0]), None, None),
}


def test_every_link_has_a_case():
    assert set(CASES) == set(LINKS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("link", CASES)
def test_links(link, dtype):
    estimator, y, kind, columns = CASES[link]
    estimator = estimator.fit(X, y)
    head = head_of(estimator, X.astype(dtype), 1e-5)
    assert head.link == link
    onnx.checker.check_model(head.model, full_check=True)
    outputs = evaluate(head.model, X.astype(dtype))
    *_, name = outputs
    atol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(outputs[name].reshape(60, -1), expected(estimator), atol=atol)
    if "label" in outputs:
        np.testing.assert_array_equal(outputs["label"], estimator.predict(X))
    logits = find_logits(prepare(head.model), name)
    assert (logits.kind if logits else None, logits.columns if logits else None) == (kind, columns)


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([3, 7], [3, 7]),
        ([-1, 1], [-1, 1]),
        ([False, True], [0, 1]),
        ([1.0, 2.0], [1, 2]),
        (["b", "a"], ["a", "b"]),
    ],
)
@pytest.mark.parametrize("estimator", [LogisticRegression(), LinearSVC(), RidgeClassifier()])
def test_labels(estimator, labels, wanted):
    y = np.array(labels)[TWO]
    estimator.fit(X, y)
    head = head_of(estimator, X.astype(np.float32), 1e-4)
    assert class_labels(prepare(head.model)).tolist() == wanted
    found = evaluate(head.model, X.astype(np.float32))["label"]
    assert found.tolist() == estimator.predict(X).tolist()


def test_far_away_rows_have_finite_probabilities():
    estimator = SGDClassifier(loss="log_loss", alpha=0.1, random_state=0).fit(X, THREE)
    head = head_of(estimator, X.astype(np.float32), 1e-4)
    estimator.intercept_ -= 1000
    initializers = {t.name: t for t in head.model.graph.initializer}
    initializers["intercept"].CopyFrom(
        onnx.numpy_helper.from_array(estimator.intercept_.astype(np.float32), "intercept")
    )
    assert np.isfinite(evaluate(head.model, X.astype(np.float32))["probabilities"]).all()


def test_sparse_coefficients():
    estimator = SGDClassifier(penalty="l1", alpha=0.1, random_state=0).fit(X, THREE)
    dense = estimator.coef_.copy()
    head = head_of(estimator.sparsify())
    np.testing.assert_array_equal(weights(head.model)["coef"], dense)


def test_models_beside_each_other():
    linear = OneVsRestClassifier(LogisticRegression()).fit(X, THREE)
    assert list(weights(head_of(linear).model)) == ["coef", "intercept"]
    networks = OneVsRestClassifier(MLPClassifier((2,), max_iter=40, tol=1, random_state=0)).fit(X, THREE)
    names = list(weights(head_of(networks).model))
    assert sorted(names) == sorted(
        f"estimators.{k}.{kind}.{i}" for k in range(3) for i in range(2) for kind in ("coefs", "intercepts")
    )


@pytest.mark.parametrize(
    "estimator",
    [
        RandomForestClassifier(2, random_state=0),
        SVC(kernel="linear"),
        SVC(kernel="linear", decision_function_shape="ovo"),
        SGDClassifier(loss="modified_huber", random_state=0),
        OneVsRestClassifier(RandomForestClassifier(2, random_state=0)),
    ],
)
def test_other_models_have_no_head(estimator):
    estimator.fit(X, THREE)
    assert head_of(estimator, tolerance=1e-3) is None


def test_what_is_expected_decides():
    estimator = LogisticRegression().fit(X, THREE)
    assert head_of(estimator) is not None
    assert head_of(estimator, expected=expected(estimator) + 0.01, tolerance=1e-3) is None
    assert head_of(estimator, predicted=np.roll(THREE, 1)) is None
    assert head_of(estimator, X[:, :3]) is None


def test_a_linear_kernel_for_two_classes_is_a_linear_model():
    estimator = SVC(kernel="linear").fit(X, TWO)
    head = head_of(estimator, tolerance=1e-6)
    assert head.link == "scores"
    np.testing.assert_allclose(weights(head.model)["coef"], estimator.coef_)


@pytest.mark.parametrize(
    ("estimator", "y", "several"),
    [
        (RidgeClassifier(), LABELS, True),
        (RidgeClassifier(), THREE, False),
        (OneVsRestClassifier(Ridge()), LABELS, True),
    ],
)
def test_several_labels(estimator, y, several):
    assert has_several_labels(estimator.fit(X, y)) is several


def test_close():
    a = np.array([[1.0, 200.0]])
    assert close(a, a + 0.1, 1e-3)
    assert not close(a, a + 0.3, 1e-3)
    assert not close(a, a.T, 1e-3)
    assert not close(np.array([[np.nan, 200.0]]), a, 1e-3)
