"""Operators of ``ai.onnx.ml`` whose attributes are tables: onnxruntime's kernels follow them without looking.

Indices lead to what exists, trees end, lengths fit each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["ML_CHECKS", "ngrams_problem"]

# Kernels build trees by recursion.
_DEEPEST_TREE = 5000
_MODES = frozenset("BRANCH_LEQ BRANCH_LT BRANCH_GTE BRANCH_GT BRANCH_EQ BRANCH_NEQ LEAF".split())


def _numbers(node: ir.Node, name: str) -> np.ndarray:
    """An attribute that is a list of numbers; empty if there is none. Newer versions have tensors as well."""
    for key in (name, f"{name}_as_tensor"):
        attribute = node.attributes.get(key)
        if attribute is not None and not attribute.is_ref():
            if attribute.type == ir.AttributeType.TENSOR:
                return attribute.as_tensor().numpy().reshape(-1)
            if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS):
                return np.asarray(attribute.value)
    return np.empty(0, dtype=np.int64)


def _texts(node: ir.Node, name: str) -> Sequence[Any]:
    attribute = node.attributes.get(name)
    return attribute.value if attribute is not None and attribute.type == ir.AttributeType.STRINGS else ()


def _features(node: ir.Node) -> int | None:
    """Columns of the data, if their number is known."""
    value = node.inputs[0] if node.inputs else None
    if value is None or value.shape is None or not len(value.shape):
        return None
    size = value.shape[-1]
    return size if isinstance(size, int) else None


def _labels(node: ir.Node) -> int:
    names = ("classlabels_ints", "classlabels_int64s")
    return max(len(_texts(node, "classlabels_strings")), *(len(_numbers(node, n)) for n in names))


# -- linear models -----------------------------------------------------------------------------------


def _linear_classifier(node: ir.Node) -> str | None:
    coefficients, rows = _numbers(node, "coefficients"), len(_numbers(node, "intercepts"))
    labels, features = _labels(node), _features(node)
    rows = rows or labels
    if not rows or not len(coefficients) or len(coefficients) % rows:
        return f"{len(coefficients)} coefficients are no matrix of {rows} rows"
    if features is not None and len(coefficients) != rows * features:
        return f"{len(coefficients)} coefficients are not {rows} rows of {features}"
    if labels < rows:
        return f"{rows} rows of coefficients have {labels} labels"
    return None


def _linear_regressor(node: ir.Node) -> str | None:
    coefficients, targets = _numbers(node, "coefficients"), node.attributes.get_int("targets", 1)
    intercepts, features = len(_numbers(node, "intercepts")), _features(node)
    if not len(coefficients) or targets < 1 or len(coefficients) % targets or intercepts not in (0, targets):
        return f"{len(coefficients)} coefficients and {intercepts} intercepts do not fit {targets} targets"
    if features is not None and len(coefficients) != targets * features:
        return f"{len(coefficients)} coefficients are not {targets} rows of {features}"
    return None


# -- support vector machines -------------------------------------------------------------------------


def _svm_classifier(node: ir.Node) -> str | None:
    vectors, coefficients = len(_numbers(node, "support_vectors")), len(_numbers(node, "coefficients"))
    counts, rho = _numbers(node, "vectors_per_class"), len(_numbers(node, "rho"))
    labels, features = _labels(node), _features(node)
    probabilities = [len(_numbers(node, name)) for name in ("prob_a", "prob_b")]
    if not labels or (counts < 0).any() or not rho:
        return "labels or rho are missing, or a class has fewer than no vectors"
    pairs, total = labels * (labels - 1) // 2, int(counts.sum()) if len(counts) else 0
    if total:
        if len(counts) != labels or vectors % total or coefficients != (labels - 1) * total:
            return f"{vectors} numbers and {coefficients} coefficients do not fit {counts.tolist()} vectors"
        if rho < pairs or (features is not None and vectors != total * features):
            return f"{rho} constants or {vectors} numbers of vectors are too few"
    elif coefficients % labels or (features is not None and coefficients != labels * features):
        return f"{coefficients} coefficients do not fit {labels} labels"
    if any(n not in (0, pairs) for n in probabilities) or probabilities[0] != probabilities[1]:
        return f"{probabilities} parameters of probabilities do not fit {pairs} pairs of classes"
    return _kernel(node)


def _svm_regressor(node: ir.Node) -> str | None:
    vectors, coefficients = len(_numbers(node, "support_vectors")), len(_numbers(node, "coefficients"))
    count, features = node.attributes.get_int("n_supports", 0), _features(node)
    if not len(_numbers(node, "rho")) or count < 0:
        return "rho is missing, or there are fewer than no vectors"
    if count and (vectors % count or coefficients != count):
        return f"{vectors} numbers of vectors and {coefficients} coefficients do not fit {count} vectors"
    if features is not None and (vectors if count else coefficients) != max(count, 1) * features:
        return f"vectors or coefficients do not have {features} columns"
    return _kernel(node)


def _kernel(node: ir.Node) -> str | None:
    parameters = len(_numbers(node, "kernel_params"))
    return None if parameters in (0, 3) else f"{parameters} parameters of the kernel, not 3"


# -- trees -------------------------------------------------------------------------------------------


def _trees(of: str) -> Callable[[ir.Node], str | None]:
    """A TreeEnsembleClassifier, whose leaves give classes, or Regressor, whose leaves give targets."""

    def check(node: ir.Node) -> str | None:
        ids = {
            name: _numbers(node, f"nodes_{name}")
            for name in ("treeids", "nodeids", "truenodeids", "falsenodeids", "featureids", "values")
        }
        modes = [m.decode() if isinstance(m, bytes) else m for m in _texts(node, "nodes_modes")]
        size = len(modes)
        if not size or any(len(v) != size for v in ids.values()) or not _MODES.issuperset(modes):
            return "tables of nodes differ in length, or a mode does not exist"
        for name in ("missing_value_tracks_true", "hitrates"):
            if len(_numbers(node, f"nodes_{name}")) not in (0, size):
                return f"nodes_{name} differs in length from the other tables of nodes"
        leaf = np.array([mode == "LEAF" for mode in modes])
        features, used = _features(node), ids["featureids"][~leaf]
        if (used < 0).any() or (features is not None and (used >= features).any()):
            return f"a node asks for a feature beyond the {features or 0} that there are"
        pairs = zip(ids["treeids"].tolist(), ids["nodeids"].tolist(), strict=True)
        index = {pair: i for i, pair in enumerate(pairs)}
        if len(index) != size:
            return "two nodes have the same number"
        return _structure(ids, leaf, index) or _outcomes(node, index, leaf)

    def _outcomes(node: ir.Node, index: dict[tuple[int, int], int], leaf: np.ndarray) -> str | None:
        plural = "class" if of == "class" else "target"
        tables = [_numbers(node, f"{plural}_{name}") for name in ("treeids", "nodeids", "ids", "weights")]
        trees, nodes, ids, weights = tables
        count = _labels(node) if of == "class" else node.attributes.get_int("n_targets", 1)
        if len({len(t) for t in tables}) > 1 or not len(weights):
            return "tables of leaves differ in length, or there are none"
        if count < (2 if of == "class" else 1) or (ids < 0).any() or (ids >= count).any():
            return f"a leaf gives number {int(ids.max())} of {count}"
        for tree, number in zip(trees.tolist(), nodes.tolist(), strict=True):
            if (tree, number) not in index or not leaf[index[tree, number]]:
                return f"node {number} of tree {tree} has a weight and is no leaf"
        return _base_values(node, count)

    return check


def _base_values(node: ir.Node, count: int) -> str | None:
    base = len(_numbers(node, "base_values"))
    return None if base in (0, 1, count) else f"{base} base values do not fit {count} outputs"


def _structure(ids: dict[str, np.ndarray], leaf: np.ndarray, index: dict[tuple[int, int], int]) -> str | None:
    """What is wrong with the branches, None if they form trees."""
    parents = np.full(len(leaf), -1)
    children = []
    for i in np.flatnonzero(~leaf).tolist():
        for side in ("truenodeids", "falsenodeids"):
            child = index.get((int(ids["treeids"][i]), int(ids[side][i])))
            if child is None:
                return f"node {ids['nodeids'][i]} of tree {ids['treeids'][i]} has a branch to nowhere"
            children.append((i, child))
    if not children:
        return None
    distinct = np.unique(np.array(children), axis=0)  # both branches of a node may be the same one
    if len(distinct) != len(np.unique(distinct[:, 1])):
        return "a node belongs to two branches"
    parents[distinct[:, 1]] = distinct[:, 0]
    # One step towards the root for all nodes at once: those of a circle never arrive.
    above, steps = parents.copy(), 0
    while (above >= 0).any():
        above = np.where(above >= 0, parents[above], -1)
        steps += 1
        if steps > _DEEPEST_TREE:
            return f"its branches form a circle, or are more than {_DEEPEST_TREE} deep"
    return None


# -- n-grams -------------------------------------------------------------------------------------------


def ngrams_problem(node: ir.Node) -> str | None:
    """What is wrong with a TfIdfVectorizer."""
    counts, indexes = _numbers(node, "ngram_counts"), _numbers(node, "ngram_indexes")
    pool = max(len(_numbers(node, "pool_int64s")), len(_texts(node, "pool_strings")))
    low, high = node.attributes.get_int("min_gram_length", 1), node.attributes.get_int("max_gram_length", 1)
    weights = len(_numbers(node, "weights"))
    if not 1 <= low <= high or not len(counts) or len(counts) < high or not len(indexes):
        return f"n-grams of {low} to {high} do not fit {len(counts)} counts"
    if (np.diff(counts) < 0).any() or counts[0] < 0 or counts[-1] > pool or weights not in (0, len(indexes)):
        return f"counts {counts.tolist()[:10]} do not fit a pool of {pool}"
    starts = [*counts.tolist(), pool]
    total = 0
    for n, (start, end) in enumerate(itertools.pairwise(starts), 1):
        if (end - start) % n:
            return f"{end - start} numbers are no n-grams of {n}"
        total += (end - start) // n
    if total != len(indexes) or len(np.unique(indexes)) != total or indexes.max() >= total:
        return f"{len(indexes)} indexes do not number {total} n-grams"
    return None


ML_CHECKS: dict[str, Callable[[ir.Node], str | None]] = {
    "LinearClassifier": _linear_classifier,
    "LinearRegressor": _linear_regressor,
    "SVMClassifier": _svm_classifier,
    "SVMRegressor": _svm_regressor,
    "TreeEnsembleClassifier": _trees("class"),
    "TreeEnsembleRegressor": _trees("target"),
}
"""By operator, what is wrong with a node, None if nothing is."""
