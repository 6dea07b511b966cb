"""The labels that a classifier's graph holds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.spelled import is_op
from onnxcustom.graph.analysis.traversal import all_nodes

__all__ = ["class_labels"]


def class_labels(model: ir.Model) -> np.ndarray | None:
    """Read the labels a classifier holds.

    Parameters
    ----------
    model : onnx_ir.Model
        In any form.

    Returns
    -------
    ndarray of shape (n_classes,) or None
        int64 or str, in the order of the columns of probabilities; None if the graph tells none.

    Examples
    --------
    >>> import onnx.parser
    >>> from onnxcustom.graph import to_ir
    >>> class_labels(to_ir(onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 18]>
    ...     g (float[N, 2] x) => (int64[N] label) {
    ...         best = ArgMax <axis = 1, keepdims = 0> (x)
    ...         labels = Constant <value = int64[2] {5, 7}> ()
    ...         label = Gather(labels, best)
    ...     }''')))
    array([5, 7])
    """
    nodes = list(all_nodes(model.graph))
    for readers in ((_zipmap_labels,), (_table_labels,), (_operator_labels,)):
        for node in reversed(nodes):
            for reader in readers:
                labels = reader(node)
                if labels is not None:
                    return labels
    return None


def _zipmap_labels(node: ir.Node) -> np.ndarray | None:
    if (node.op_type, node.domain) != ("ZipMap", "ai.onnx.ml"):
        return None
    return _from_attributes(node, "classlabels_strings", "classlabels_int64s")


def _operator_labels(node: ir.Node) -> np.ndarray | None:
    return _from_attributes(node, "classlabels_strings", "classlabels_ints", "classlabels_int64s")


def _table_labels(node: ir.Node) -> np.ndarray | None:
    """Labels picked from a constant by the position of the best score."""
    index_at = {("Gather", ""): 1, ("ArrayFeatureExtractor", "ai.onnx.ml"): 1}.get(
        (node.op_type, node.domain)
    )
    if index_at is None or not _is_choice(node.inputs[index_at]):
        return None
    table = constant_array(node.inputs[0])
    if table is None or table.size < 2 or table.size != max(table.shape):
        return None
    table = table.reshape(-1)
    if table.dtype.kind in "SO":
        return np.array([t.decode("utf-8") if isinstance(t, bytes) else str(t) for t in table])
    if table.dtype.kind in "iu":
        return table.astype(np.int64)
    if table.dtype.kind == "f" and (table == np.floor(table)).all():
        return table.astype(np.int64)
    return None


def _is_choice(value: ir.Value | None) -> bool:
    """Whether an index is the position of a maximum, or whether a score is above a threshold."""
    for _ in range(6):
        node = None if value is None else value.producer()
        if node is None:
            return False
        if is_op(node, "ArgMax", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
            return True
        if not is_op(node, "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Not"):
            return False
        value = node.inputs[0]
    return False


def _from_attributes(node: ir.Node, strings: str, *ints: str) -> np.ndarray | None:
    """Labels in an attribute of an operator of ``ai.onnx.ml``."""
    if node.domain != "ai.onnx.ml":
        return None
    texts = node.attributes.get_strings(strings, ())
    if texts:
        return np.array([t.decode("utf-8") if isinstance(t, bytes) else t for t in texts])
    for name in ints:
        numbers = node.attributes.get_ints(name, ())
        if numbers:
            return np.array(numbers, dtype=np.int64)
    return None
