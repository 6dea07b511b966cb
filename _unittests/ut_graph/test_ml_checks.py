"""Tables of ``ai.onnx.ml``: what scikit-learn gives passes, what leads nowhere does not."""

import numpy as np
import onnx
import onnx.parser
import pytest
import skl2onnx
from sklearn.base import is_regressor
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier, ExtraTreeRegressor

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import prepare

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
CLASSES = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)
VERSIONS = {"": 17, "ai.onnx.ml": 3}


def converted(estimator):
    y = X.sum(axis=1) if is_regressor(estimator) else CLASSES
    return skl2onnx.to_onnx(estimator.fit(X, y), X[:1], target_opset=VERSIONS)


ESTIMATORS = [
    RandomForestClassifier(3, max_depth=4, random_state=0),
    RandomForestRegressor(3, max_depth=4, random_state=0),
    GradientBoostingRegressor(n_estimators=3, random_state=0),
    DecisionTreeClassifier(max_depth=1),
    ExtraTreeRegressor(),
    SVC(kernel="rbf"),
    SVC(kernel="poly", probability=False),
    SVR(),
    LinearSVC(),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
@pytest.mark.filterwarnings("ignore")
def test_what_scikit_learn_gives(estimator):
    prepare(converted(estimator))


def node_of(model, op_type):
    return next(n for n in model.graph.node if n.op_type == op_type)


def numbers(node, name):
    attribute = next(a for a in node.attribute if a.name == name)
    return attribute.ints or attribute.floats or attribute.strings


def set_number(name, i, value):
    return lambda node: numbers(node, name).__setitem__(i, value)


def drop(name):
    return lambda node: numbers(node, name).pop()


def labels(count):
    def change(node):
        del numbers(node, "classlabels_int64s")[count:]

    return change


def both(*changes):
    return lambda node: [change(node) for change in changes]


TREES = {
    "feature": (set_number("nodes_featureids", 0, 99), "feature beyond the 4"),
    "negative feature": (set_number("nodes_featureids", 0, -1), "feature beyond"),
    "branch to nowhere": (set_number("nodes_truenodeids", 0, 1000), "branch to nowhere"),
    "circle": (set_number("nodes_truenodeids", 1, 0), "two branches|circle"),
    "two parents": (set_number("nodes_falsenodeids", 0, 2), "two branches|circle"),
    "length": (drop("nodes_values"), "differ in length"),
    "mode": (set_number("nodes_modes", 0, b"BRANCH_MAYBE"), "mode does not exist"),
    "class": (set_number("class_ids", 0, 3), "gives number 3 of 3"),
    "negative class": (set_number("class_ids", 0, -1), "gives number"),
    "leaf that is none": (set_number("class_nodeids", 0, 0), "is no leaf"),
    "leaf of no tree": (set_number("class_treeids", 0, 17), "is no leaf"),
    "one label": (both(labels(1)), "of 1"),
    "twice": (set_number("nodes_nodeids", 1, 0), "same number"),
    "weights": (drop("class_weights"), "differ in length"),
}


@pytest.mark.parametrize("name", TREES)
def test_trees(name):
    change, message = TREES[name]
    model = converted(RandomForestClassifier(3, max_depth=4, random_state=0))
    change(node_of(model, "TreeEnsembleClassifier"))
    with pytest.raises(InvalidModelError, match=message):
        prepare(model)


def test_tree_that_is_too_deep():
    """A kernel builds trees by recursion."""
    depth = 6000
    count = 2 * depth + 1
    ids = list(range(count))
    modes = ["BRANCH_LEQ" if i % 2 == 0 and i < count - 1 else "LEAF" for i in ids]
    zeros = [0] * count
    values = {
        **{"nodes_treeids": zeros, "nodes_nodeids": ids, "nodes_featureids": zeros, "nodes_modes": modes},
        "nodes_values": [0.0] * count,
        "nodes_truenodeids": [min(i + 1, count - 1) for i in ids],
        "nodes_falsenodeids": [min(i + 2, count - 1) for i in ids],
        **{"target_treeids": [0], "target_nodeids": [1], "target_ids": [0], "target_weights": [1.0]},
        "n_targets": 1,
    }
    helper = onnx.helper
    node = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", **values)
    x, y = helper.make_tensor_value_info("x", 1, ["N", 1]), helper.make_tensor_value_info("y", 1, ["N", 1])
    imports = [helper.make_opsetid(d, v) for d, v in VERSIONS.items()]
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=imports, ir_version=8)
    with pytest.raises(InvalidModelError, match="more than 5000 deep"):
        prepare(model)


MACHINES = {
    "vectors": (drop("support_vectors"), "do not fit"),
    "coefficients": (drop("coefficients"), "do not fit"),
    "rho": (drop("rho"), "too few"),
    "counts": (set_number("vectors_per_class", 0, -4), "fewer than no vectors"),
    "more counts": (set_number("vectors_per_class", 0, 10**6), "do not fit"),
    "parameters": (drop("kernel_params"), "parameters of the kernel"),
}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.filterwarnings("ignore")  # of scikit-learn, of what the converter reads
def test_support_vector_machines(name):
    change, message = MACHINES[name]
    model = converted(SVC())
    change(node_of(model, "SVMClassifier"))
    with pytest.raises(InvalidModelError, match=message):
        prepare(model)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            "coefficients = [1.0], intercepts = [0.0, 0.0, 0.0], classlabels_ints = [1, 2, 3]",
            "no matrix of 3",
        ),
        ("intercepts = [0.0, 0.0, 0.0], classlabels_ints = [1, 2, 3]", "no matrix|coefficients"),
        ("coefficients = [1.0, 1.0, 1.0, 1.0], intercepts = [0.0, 0.0], classlabels_ints = [1]", "1 labels"),
        (
            "coefficients = [1.0, 1.0, 1.0], intercepts = [0.0], classlabels_ints = [1, 2]",
            "contradicts|rows of 2",
        ),
    ],
)
def test_linear_classifiers(attributes, message):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>'
        "g (float[N, 2] x) => (int64[N] l, float[N, K] p)"
        f"{{ l, p = ai.onnx.ml.LinearClassifier <{attributes}> (x) }}"
    )
    if "coefficients" not in attributes:
        model.graph.node[0].attribute.append(onnx.helper.make_attribute("coefficients", [1.0]))
        model.graph.node[0].attribute[-1].ClearField("floats")
    with pytest.raises(InvalidModelError, match=message):
        prepare(model)


@pytest.mark.parametrize(
    "attributes", ["targets = 0", "targets = 3", "targets = -1", "intercepts = [1.0, 2.0, 3.0], targets = 2"]
)
def test_linear_regressors(attributes):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]> g (float[N, 2] x) => (float[N, K] y)'
        f"{{ y = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0, 3.0, 4.0], {attributes}> (x) }}"
    )
    with pytest.raises(InvalidModelError, match=r"do not fit|attribute targets"):
        prepare(model)
