# ruff: noqa: E501 - a case stays on its line
"""Pipelines in two: what stays in scikit-learn, what becomes a graph, and what is in wrappers."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, MinMaxScaler, OneHotEncoder, StandardScaler

from onnxcustom import OnnxClassifier
from onnxcustom.training.from_sklearn import describe_conversion, from_sklearn
from onnxcustom.training.from_sklearn.steps import first_rows, unwrap

pytest.importorskip("onnxruntime")

ROWS = 120
MLP = {"hidden_layer_sizes": (5,), "max_iter": 20, "random_state": 0}
_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(ROWS, 4)).astype(np.float32)
_Z = X @ _RNG.normal(size=(4, 3)) + 0.3 * _RNG.normal(size=(ROWS, 3))
Y = {"two": (_Z[:, 0] > 0).astype(int), "three": np.argmax(_Z, axis=1)}


def frame():
    rng = np.random.default_rng(3)
    table = pd.DataFrame(
        {
            "age": rng.integers(20, 60, ROWS),
            "income": rng.normal(size=ROWS),
            "city": rng.choice(["Paris", "Rome", "Oslo"], ROWS),
        }
    )
    return table, ((table.age / 40 + table.income + (table.city == "Rome")) > 1.2).to_numpy().astype(int)


def texts():
    rng = np.random.default_rng(4)
    lines = [" ".join(rng.choice(["good", "nice", "bad", "ugly", "film"], 6)) for _ in range(ROWS)]
    return lines, np.array(["fine" if t.count("good") + t.count("nice") > 2 else "poor" for t in lines])


def columns(**options):
    parts = [("n", StandardScaler(), ["age", "income"]), ("c", OneHotEncoder(**options), ["city"])]
    return ColumnTransformer(parts, sparse_threshold=1.0)


def places(result):
    return [(row.kind, row.place, bool(row.trained)) for row in describe_conversion(result).rows]


KEPT = {
    "text": (
        make_pipeline(TfidfVectorizer(), LogisticRegression()),
        texts,
        [("TfidfVectorizer", "scikit-learn", False), ("LogisticRegression", "graph", True)],
        "reads text",
    ),
    "text, the rest is a graph": (
        make_pipeline(CountVectorizer(), TfidfTransformer(), MLPClassifier(**MLP)),
        texts,
        [("CountVectorizer", "scikit-learn", False), ("TfidfTransformer", "graph", False), ("MLPClassifier", "graph", True)],
        "reads text",
    ),
    "columns of several types": (
        make_pipeline(columns(), LogisticRegression()),
        frame,
        [("ColumnTransformer", "scikit-learn", False), ("LogisticRegression", "graph", True)],
        "reads columns of types float64, int64, " + str(frame()[0].city.dtype),  # object before pandas 3
    ),
    "several types, the rest is a graph": (
        make_pipeline(columns(sparse_output=False), StandardScaler(), PCA(3), RidgeClassifier()),
        frame,
        [
            ("ColumnTransformer", "scikit-learn", False),
            ("StandardScaler", "graph", False),
            ("PCA", "graph", False),
            ("RidgeClassifier", "graph", True),
        ],
        "reads columns of types",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_cannot_be_a_graph_stays_in_scikit_learn(name):
    estimator, make, wanted, why = KEPT[name]
    rows, y = make()
    estimator = clone(estimator).fit(rows, y)
    result = from_sklearn(estimator, rows[:20], learning_rate=1e-7, max_iter=1, random_state=0)
    assert isinstance(result, Pipeline)
    assert places(result) == wanted
    assert f"frozen: {why}" in str(describe_conversion(result))
    with pytest.raises(NotFittedError):
        result.predict(rows)
    # Other rows, fewer words and cities: what is frozen stays as it was fitted.
    result.fit(rows[:40], y[:40])
    np.testing.assert_array_equal(result.predict(rows), estimator.predict(rows))
    if hasattr(estimator, "predict_proba"):
        np.testing.assert_allclose(result.predict_proba(rows), estimator.predict_proba(rows), atol=1e-4)


def test_a_pipeline_is_a_scikit_learn_estimator():
    rows, y = frame()
    estimator = make_pipeline(columns(), LogisticRegression(C=1e-3)).fit(rows, y)
    result = from_sklearn(estimator, rows, optimizer="adam", learning_rate=0.05, max_iter=15, random_state=0)
    scores = cross_val_score(result, rows, y, cv=2)
    assert scores.mean() > cross_val_score(estimator, rows, y, cv=2).mean()
    search = GridSearchCV(result, {"logisticregression__learning_rate": [1e-6, 0.05]}, cv=2).fit(rows, y)
    assert search.best_params_ == {"logisticregression__learning_rate": 0.05}
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(rows), search.predict(rows))
    assert str(describe_conversion(clone(result))) == str(describe_conversion(result))


def test_a_column_transformer_of_numbers_is_part_of_the_graph():
    table, y = frame()
    rows = table[["age", "income"]]
    parts = [("s", StandardScaler(), ["income"]), ("m", MinMaxScaler(), "age".split())]
    estimator = make_pipeline(ColumnTransformer(parts), LogisticRegression()).fit(rows, y)
    result = from_sklearn(estimator, rows, learning_rate=1e-7, max_iter=1).fit(rows, y)
    assert isinstance(result, OnnxClassifier)
    assert places(result) == [("ColumnTransformer", "graph", False), ("LogisticRegression", "graph", True)]
    np.testing.assert_allclose(result.predict_proba(rows), estimator.predict_proba(rows), atol=1e-5)


def test_columns_in_another_order_are_found_by_name():
    table, y = frame()
    rows = table[["age", "income"]]
    parts = [("s", StandardScaler(), ["income"]), ("m", MinMaxScaler(), ["age"])]
    estimator = make_pipeline(ColumnTransformer(parts), LogisticRegression()).fit(rows, y)
    turned = rows[["income", "age"]]
    result = from_sklearn(estimator, turned, learning_rate=1e-7, max_iter=1).fit(turned, y)
    for table in (turned, rows):
        np.testing.assert_allclose(result.predict_proba(table), estimator.predict_proba(rows), atol=1e-5)


@pytest.mark.parametrize("make", [np.asarray, pd.DataFrame, scipy.sparse.csr_array, np.ndarray.tolist])
def test_rows_in_any_form(make):
    estimator = LogisticRegression().fit(X, Y["three"])
    result = from_sklearn(estimator, make(X[:5]), learning_rate=1e-7, max_iter=1).fit(X, Y["three"])
    np.testing.assert_allclose(result.predict_proba(X), estimator.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("kind", ["booleans", "nullable", "objects", "polars"])
def test_numbers_of_several_types(kind):
    table = pd.DataFrame({"a": X[:, 0], "b": X[:, 1] > 0, "c": np.arange(ROWS)})
    rows = {
        "booleans": table,
        "nullable": table.convert_dtypes(),
        "objects": table.to_numpy(dtype=object),
    }.get(kind)
    if kind == "polars":
        rows = pytest.importorskip("polars").DataFrame({name: table[name].to_numpy() for name in table})
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, Y["two"])
    result = from_sklearn(estimator, rows[:9], learning_rate=1e-7, max_iter=1).fit(rows, Y["two"])
    assert isinstance(result, OnnxClassifier)
    np.testing.assert_allclose(result.predict_proba(rows), estimator.predict_proba(rows), atol=1e-5)


def test_missing_values_are_filled_in_by_scikit_learn():
    holes = X.copy()
    holes[::5, 1] = np.nan
    estimator = make_pipeline(StandardScaler(), SimpleImputer(), PCA(3), LogisticRegression()).fit(
        holes, Y["two"]
    )
    result = from_sklearn(estimator, holes, learning_rate=1e-7, max_iter=1).fit(holes, Y["two"])
    assert [row.place for row in describe_conversion(result).rows] == ["scikit-learn"] * 2 + ["graph"] * 2
    np.testing.assert_allclose(result.predict_proba(holes), estimator.predict_proba(holes), atol=1e-5)


# -- wrappers ------------------------------------------------------------------------------------


def test_wrappers_are_taken_off():
    inner = make_pipeline(StandardScaler(), LogisticRegression())
    search = GridSearchCV(inner, {"logisticregression__C": [1.0]}, cv=2)
    outer = Pipeline([("a", MinMaxScaler()), ("p", "passthrough"), ("b", search)]).fit(X, Y["two"])
    found = unwrap(FrozenEstimator(outer))
    best = outer[-1].best_estimator_
    assert found.steps == [("a", outer[0]), ("b.standardscaler", best[0]), ("b.logisticregression", best[1])]
    assert found.notes == ["GridSearchCV: its best estimator is taken"]
    assert found.targets is None


def test_targets_are_transformed_outside():
    estimator = make_pipeline(
        StandardScaler(), TransformedTargetRegressor(Ridge(), transformer=MinMaxScaler())
    )
    y = 5 + 100 * _Z[:, 0]
    estimator.fit(X, y)
    assert unwrap(estimator).targets is estimator[-1]
    result = from_sklearn(estimator, X, learning_rate=1e-7, max_iter=1)
    assert isinstance(result, TransformedTargetRegressor)
    # Other targets, the same transformation.
    np.testing.assert_allclose(
        result.fit(X[:50], y[:50]).predict(X), estimator.predict(X), rtol=1e-3, atol=1e-2
    )
    np.testing.assert_allclose(
        pickle.loads(pickle.dumps(clone(result).fit(X, y))).predict(X),
        result.predict(X),
        rtol=1e-3,
        atol=1e-2,
    )


@pytest.mark.parametrize("make", [np.asarray, pd.DataFrame, scipy.sparse.coo_array, np.ndarray.tolist])
def test_first_rows(make):
    rows = first_rows(make(X), 3)
    assert (rows.shape[0] if hasattr(rows, "shape") else len(rows)) == 3
    dense = rows.toarray() if scipy.sparse.issparse(rows) else np.asarray(rows, np.float32)
    np.testing.assert_array_equal(dense, X[:3])


def test_tensors_are_called_after_their_steps():
    estimator = make_pipeline(StandardScaler(), PCA(2), LogisticRegression()).fit(X, Y["three"])
    model = from_sklearn(estimator, X).model
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["X"]
    assert [o.name for o in model.graph.output] == ["label", "probabilities"]
    assert {node.name.split(".")[0] for node in model.graph.node} == set(estimator.named_steps)
    assert model.graph.output[1].type.tensor_type.shape.dim[0].dim_param == "N"


def test_a_step_that_skl2onnx_does_not_know_stays():
    estimator = make_pipeline(
        StandardScaler(), KBinsDiscretizer(3, quantile_method="averaged_inverted_cdf"), LogisticRegression()
    )
    estimator.fit(X, Y["two"])
    result = from_sklearn(estimator, X, learning_rate=1e-7, max_iter=1).fit(X, Y["two"])
    rows = describe_conversion(result).rows
    assert [row.place for row in rows] == ["scikit-learn", "scikit-learn", "graph"]
    assert rows[0].why == "in front of a step that stays in scikit-learn"
    assert rows[1].why.startswith("cannot be converted: ")
    np.testing.assert_allclose(result.predict_proba(X), estimator.predict_proba(X), atol=1e-5)
