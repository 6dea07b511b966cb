"""How a classifier decides: as scikit-learn's does from the same scores."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from onnxcustom.graph.analysis.classifier import Logits
from onnxcustom.graph.analysis.decision import Decision

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("text", [False, True], ids=["numbers", "text"])
def test_against_logistic_regression(classes: int, text: bool) -> None:
    y = np.arange(60) % classes
    fitted = LogisticRegression().fit(X, np.array(["a", "b", "c"])[y] if text else y)
    scores = fitted.decision_function(X).reshape(60, -1)
    decision = Decision("sigmoid" if classes == 2 else "softmax")
    np.testing.assert_array_equal(decision.labels(scores, 1, fitted.classes_), fitted.predict(X))
    np.testing.assert_allclose(decision.probabilities(scores, 1), fitted.predict_proba(X), rtol=1e-10)
    np.testing.assert_allclose(decision.margins(scores, 1), fitted.decision_function(X))
    # The same classes in probabilities, and on another axis.
    p = fitted.predict_proba(X)
    np.testing.assert_array_equal(Decision().labels(p, 1, fitted.classes_), fitted.predict(X))
    deep = np.moveaxis(p.reshape(20, 3, classes), -1, 1)
    labels = Decision().labels(deep, 1, fitted.classes_)
    np.testing.assert_array_equal(labels, fitted.predict(X).reshape(20, 3))


def test_two_columns_of_scores() -> None:
    """A softmax of two columns is a sigmoid of their difference."""
    scores = RNG.normal(size=(60, 2)) * 3
    margin = Decision("softmax").margins(scores, 1)
    one = Decision("sigmoid").probabilities(margin[:, None], 1)
    np.testing.assert_allclose(Decision("softmax").probabilities(scores, 1), one, rtol=1e-10)
    classes = np.array([5, 7])
    expected = Decision("sigmoid").labels(margin[:, None], 1, classes)
    np.testing.assert_array_equal(Decision("softmax").labels(scores, 1, classes), expected)


def test_several_labels_a_row() -> None:
    y = (RNG.normal(size=(60, 3)) + X[:, :3] > 0).astype(int)
    fitted = OneVsRestClassifier(LogisticRegression()).fit(X, y)
    scores, decision = fitted.decision_function(X), Decision("sigmoid", multilabel=True)
    np.testing.assert_array_equal(decision.labels(scores, 1, np.arange(3)), fitted.predict(X))
    np.testing.assert_allclose(decision.probabilities(scores, 1), fitted.predict_proba(X), rtol=1e-10)
    np.testing.assert_array_equal(decision.margins(scores, 1), scores)


def test_scores_have_no_probabilities() -> None:
    assert Decision("scores").probabilities(np.zeros((2, 2)), 1) is None
    assert Decision("scores").labels(np.array([[-0.1], [0.1]]), 1, np.array([3, 4])).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("logits", "wanted"),
    [
        (None, Decision("scores")),
        (Logits("z", "softmax", 3), Decision()),
        (Logits("z", "sigmoid", 1), Decision()),
        (Logits("z", "sigmoid", 3), Decision(multilabel=True)),
        (Logits("z", "sigmoid", 3, normalized=True), Decision()),
    ],
)
def test_by_the_graph(logits: Logits | None, wanted: Decision) -> None:
    assert Decision.of(logits) == wanted
