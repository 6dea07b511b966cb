"""Tables of ``ai.onnx.ml``: what scikit-learn gives passes, what leads nowhere does not."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import skl2onnx
from sklearn.base import is_regressor
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier, ExtraTreeRegressor

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import prepare
from onnxcustom.graph.preparation.ml_checks import ML_CHECKS, ngrams_problem

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


# -- node by node --------------------------------------------------------------------------------------

SVC_OF_TWO = {
    "classlabels_ints": [0, 1],
    "vectors_per_class": [1, 1],
    "support_vectors": [1.0] * 4,
    "coefficients": [1.0, -1.0],
    "rho": [0.5],
    "kernel_params": [1.0, 0.0, 3.0],
}
SVC_LINEAR = {"classlabels_ints": [0, 1], "coefficients": [1.0] * 4, "rho": [0.5]}
SVR_OF_TWO = {"n_supports": 2, "support_vectors": [1.0] * 4, "coefficients": [1.0, 2.0], "rho": [0.5]}
NGRAMS = {
    "ngram_counts": [0, 2],
    "ngram_indexes": [0, 1, 2],
    "pool_int64s": [4, 5, 6, 7],
    "min_gram_length": 1,
    "max_gram_length": 2,
}
# A root and two leaves, as TreeEnsembleRegressor has them.
TREE = {
    "nodes_treeids": [0] * 3,
    "nodes_nodeids": [0, 1, 2],
    "nodes_featureids": [0, 0, 0],
    "nodes_values": [0.0] * 3,
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_truenodeids": [1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0],
    "target_treeids": [0, 0],
    "target_nodeids": [1, 2],
    "target_ids": [0, 0],
    "target_weights": [1.0, 2.0],
}
LEAF = {**{k: v[:1] for k, v in TREE.items()}, "nodes_modes": ["LEAF"], "target_nodeids": [0]}
WHOLE = {
    "two classes": ("SVMClassifier", SVC_OF_TWO),
    "a linear machine": ("SVMClassifier", SVC_LINEAR),
    "with probabilities": ("SVMClassifier", {**SVC_OF_TWO, "prob_a": [1.0], "prob_b": [1.0]}),
    "two vectors": ("SVMRegressor", SVR_OF_TWO),
    "no vectors": ("SVMRegressor", {"coefficients": [1.0, 2.0], "rho": [0.5]}),
    "n-grams": ("TfIdfVectorizer", NGRAMS),
    "a tree": ("TreeEnsembleRegressor", TREE),
    "a leaf": ("TreeEnsembleRegressor", LEAF),
    "a tree with tensors": (
        "TreeEnsembleRegressor",
        {**TREE, "nodes_values": [], "nodes_values_as_tensor": np.zeros(3)},
    ),
    "targets": ("LinearRegressor", {"coefficients": [1.0] * 4, "intercepts": [0.0, 1.0], "targets": 2}),
    "labels without intercepts": (
        "LinearClassifier",
        {"coefficients": [1.0] * 4, "classlabels_ints": [1, 2]},
    ),
    "labels that are texts": (
        "LinearClassifier",
        {"coefficients": [1.0] * 4, "intercepts": [0.0, 1.0], "classlabels_strings": ["a", "b"]},
    ),
}
BROKEN = [
    ("two classes", {"classlabels_ints": []}, "labels or rho are missing"),
    ("two classes", {"rho": []}, "labels or rho are missing"),
    ("two classes", {"coefficients": [1.0]}, "do not fit"),
    ("two classes", {"support_vectors": [1.0] * 6}, "are too few"),
    ("two classes", {"prob_a": [1.0]}, "parameters of probabilities"),
    ("two classes", {"prob_a": [1.0, 2.0], "prob_b": [1.0, 2.0]}, "parameters of probabilities"),
    ("two classes", {"kernel_params": [1.0]}, "parameters of the kernel"),
    ("a linear machine", {"coefficients": [1.0] * 3}, "do not fit 2 labels"),
    ("a linear machine", {"coefficients": [1.0] * 6}, "do not fit 2 labels"),
    ("two vectors", {"rho": []}, "rho is missing"),
    ("two vectors", {"n_supports": -1}, "fewer than no vectors"),
    ("two vectors", {"n_supports": 3}, "do not fit 3 vectors"),
    ("two vectors", {"coefficients": [1.0]}, "do not fit 2 vectors"),
    ("two vectors", {"support_vectors": [1.0] * 6}, "do not have 2 columns"),
    ("no vectors", {"coefficients": [1.0]}, "do not have 2 columns"),
    ("n-grams", {"min_gram_length": 0}, "n-grams of 0 to 2"),
    ("n-grams", {"max_gram_length": 3}, "do not fit 2 counts"),
    ("n-grams", {"ngram_indexes": []}, "do not fit"),
    ("n-grams", {"ngram_counts": [2, 0]}, "do not fit a pool"),
    ("n-grams", {"ngram_counts": [0, 9]}, "do not fit a pool of 4"),
    ("n-grams", {"weights": [1.0]}, "do not fit a pool"),
    ("n-grams", {"ngram_counts": [0, 3]}, "are no n-grams of 2"),
    ("n-grams", {"ngram_indexes": [0, 1, 1]}, "do not number 3"),
    ("n-grams", {"ngram_indexes": [0, 1, 3]}, "do not number 3"),
    ("a tree", {"nodes_hitrates": [1.0]}, "nodes_hitrates differs in length"),
    ("a tree", {"base_values": [1.0, 2.0]}, "2 base values do not fit 1"),
    ("a tree", {"target_ids": [0, 1]}, "gives number 1 of 1"),
    ("a tree with tensors", {"nodes_values_as_tensor": np.zeros(2)}, "differ in length"),
    ("targets", {"intercepts": [0.0]}, "do not fit 2 targets"),
    ("targets", {"coefficients": [1.0] * 6}, "are not 2 rows of 2"),
    ("labels without intercepts", {"coefficients": [1.0] * 6}, "are not 2 rows of 2"),
    ("labels that are texts", {"classlabels_strings": ["a"]}, "have 1 labels"),
]


def problem(op_type, attributes, columns=2):
    made = {k: v for k, v in attributes.items() if not isinstance(v, list) or v}
    tensors = {k: onnx.numpy_helper.from_array(v) for k, v in made.items() if isinstance(v, np.ndarray)}
    shape = ir.Shape(["N", columns]) if columns else None
    x = ir.Value(name="x", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.from_proto(
        onnx.helper.make_node(op_type, ["x"], ["y"], domain="ai.onnx.ml", **{**made, **tensors})
    )
    node.replace_input_with(0, x)
    return (ML_CHECKS | {"TfIdfVectorizer": ngrams_problem})[op_type](node)


@pytest.mark.parametrize("columns", [2, None, "K"])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_tables(name, columns):
    assert problem(*WHOLE[name], columns) is None


@pytest.mark.parametrize(("name", "change", "message"), BROKEN)
def test_broken_tables(name, change, message):
    op_type, attributes = WHOLE[name]
    assert message in problem(op_type, {**attributes, **change})


def test_a_circle_beside_a_tree():
    more = {"nodes_nodeids": [0, 1, 2, 3, 4], "nodes_treeids": [0] * 5, "nodes_featureids": [0] * 5}
    modes = ["BRANCH_LEQ", "LEAF", "LEAF", "BRANCH_LEQ", "BRANCH_LEQ"]
    circle = {"nodes_truenodeids": [1, 0, 0, 4, 3], "nodes_falsenodeids": [2, 0, 0, 4, 3]}
    found = problem(
        "TreeEnsembleRegressor", {**TREE, **more, **circle, "nodes_modes": modes, "nodes_values": [0.0] * 5}
    )
    assert "form a circle" in found
