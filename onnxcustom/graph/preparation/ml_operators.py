"""Linear operators of ``ai.onnx.ml`` written with standard ones, so that they can be trained.

Results equal those of onnxruntime's own kernels, their departures from the specification included:

* a single row of coefficients gets no SOFTMAX, SOFTMAX_ZERO or, before onnxruntime 1.27, LOGISTIC;
  with two labels the scores are then ``[1 - s, s]``;
* labels are taken from the scores before the transform, ``s > 0`` for a single row;
* Normalizer divides by the maximum itself, not by that of absolute values, and leaves a row whose
  divisor is 0 as it is.
"""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.traversal import all_nodes, value_names
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.preparation.sites import NAME_KEY, AttributeSite, origin, pin

__all__ = ["ROLE_KEY", "ConvertLinearOperatorsPass", "is_linear_operator"]

logger = logging.getLogger("onnxcustom")

# Marks the constants of a converted Scaler, which are never weights.
ROLE_KEY = "onnxcustom.role"

_FLOAT = ir.DataType.FLOAT
_CONVERTED = frozenset({"LinearRegressor", "LinearClassifier", "Scaler", "Normalizer"})


def is_linear_operator(node: ir.Node) -> bool:
    """Whether `node` is one of those that :class:`ConvertLinearOperatorsPass` converts."""
    return node.domain == "ai.onnx.ml" and node.op_type in _CONVERTED


class ConvertLinearOperatorsPass(ir.passes.InPlacePass):
    """Convert LinearRegressor, LinearClassifier, Scaler and Normalizer.

    Coefficients become initializers ``<node>_coefficients`` of shape (rows, features) and
    ``<node>_intercepts`` of shape (rows,); a node without a name goes by its first output's. Two rows
    that are each other's negative under LOGISTIC, the usual form of a binary logistic regression,
    become one row, since that is what it has of parameters. A form that no kernel computes
    meaningfully (PROBIT on a single row with two labels; rows and labels that do not match)
    is left as it is.

    Parameters
    ----------
    single_row_logistic : bool, default=None
        Whether LOGISTIC applies to a single row with two labels; None asks the version of
        onnxruntime that is installed (False before 1.27, a fault mended there).
    """

    def __init__(self, single_row_logistic: bool | None = None) -> None:
        super().__init__()
        self.single_row_logistic = single_row_logistic

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert in place."""
        nodes = [n for n in all_nodes(model.graph) if is_linear_operator(n)]
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        converter = _Converter(model, self.single_row_logistic)
        converted = [converter.convert(node) for node in nodes]
        for value in converter.op.initializers:
            model.graph.register_initializer(value)
        return ir.passes.PassResult(model, modified=any(converted))


class _Converter:
    """Emits the replacement of one node after the other with one builder."""

    def __init__(self, model: ir.Model, single_row_logistic: bool | None) -> None:
        self.op = Builder(model.opset_imports[""], taken=value_names(model))
        self.single_row_logistic = (
            _runtime_applies_logistic() if single_row_logistic is None else single_row_logistic
        )

    def convert(self, node: ir.Node) -> bool:
        """Replace `node` where it stands; False if it is left alone."""
        self.op.nodes = []
        outputs = getattr(self, f"_{node.op_type}")(node)
        if outputs is None:
            logger.warning("Node %r (%s) is left as it is: it cannot be trained.", node.name, node.op_type)
            return False
        assert node.graph is not None
        old = [v for v in node.outputs if v.name]
        new = [outputs[v.index()].value for v in old]
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], self.op.nodes, old, new)
        return True

    # -- one method for each operator ----------------------------------------------------------

    def _LinearRegressor(self, node: ir.Node) -> Sequence[Var] | None:
        rows = node.attributes.get_int("targets", 1)
        coefficients = node.attributes.get_floats("coefficients", ())
        intercepts = node.attributes.get_floats("intercepts", ())
        if rows < 1 or not coefficients or len(coefficients) % rows or len(intercepts) not in (0, rows):
            return None
        transform = node.attributes.get_string("post_transform", "NONE")
        z = self._linear(node, rows)
        if rows == 1 and transform != "PROBIT":
            return [z]
        return [self._transform(z, transform)]

    def _LinearClassifier(self, node: ir.Node) -> Sequence[Var] | None:
        coefficients = node.attributes.get_floats("coefficients", ())
        labels = _labels(node)
        intercepts = node.attributes.get_floats("intercepts", ())
        transform = node.attributes.get_string("post_transform", "NONE")
        # As onnxruntime counts: the intercepts tell the rows, which may be fewer than labels by one.
        rows = len(intercepts) or (1 if labels is None else len(labels))
        if not coefficients or len(coefficients) % rows:
            return None
        if rows == 1:
            return self._one_row(node, labels, transform)
        if labels is None or len(labels) != rows:
            return None
        if rows == 2 and transform == "LOGISTIC" and _mirrored(coefficients) and _mirrored(intercepts):
            z = self._linear(node, 1, mirrored=True)
            positive = self.op.Cast(z > 0, to=int(ir.DataType.INT64))
            scores = self.op.Sigmoid(self.op.Concat(-z, z, axis=1))
            return [self._label(labels, positive), scores]
        z = self._linear(node, rows)
        best = self.op.ArgMax(z, axis=1, keepdims=0)
        return [self._label(labels, best), self._transform(z, transform)]

    def _one_row(self, node: ir.Node, labels: list | None, transform: str) -> Sequence[Var] | None:
        two = labels is not None and len(labels) == 2
        if two and transform == "PROBIT":
            return None
        z = self._linear(node, 1)
        if transform == "PROBIT":
            scores = self._transform(z, transform)
        elif two and transform == "LOGISTIC" and self.single_row_logistic:
            scores = self.op.Sigmoid(self.op.Concat(-z, z, axis=1))
        else:
            scores = self.op.Concat(1 - z, z, axis=1) if two else z
        if labels is None or not two:
            labels = ["0", "1"] if labels and isinstance(labels[0], str) else [0, 1]
        return [self._label(labels, self.op.Cast(z > 0, to=int(ir.DataType.INT64))), scores]

    def _Scaler(self, node: ir.Node) -> Sequence[Var] | None:
        op = self.op
        x = op.wrap(_input(node))
        double = x.dtype == ir.DataType.DOUBLE
        if not double:
            x = self._float(x)
        for attribute, operator in (("offset", "Sub"), ("scale", "Mul")):
            numbers = node.attributes.get_floats(attribute, ())
            if numbers:
                array = np.array(numbers, dtype=np.float64 if double else np.float32)
                name = op.unique(f"{_base(node)}_{attribute}")
                value = op.initializer(name, ir.tensor(array, name=name))
                value.metadata_props[ROLE_KEY] = "preprocessing"
                x = op.call(operator, x, value)
        return [op.Cast(x, to=int(_FLOAT)) if double or not op.nodes else x]

    def _Normalizer(self, node: ir.Node) -> Sequence[Var] | None:
        op = self.op
        norm = node.attributes.get_string("norm", "MAX")
        if norm not in ("MAX", "L1", "L2"):
            return None
        x = self._float(op.wrap(_input(node)))
        size = x if norm == "MAX" else op.Abs(x) if norm == "L1" else x * x
        total = self._reduce("ReduceMax" if norm == "MAX" else "ReduceSum", size)
        divisor = total + self._is_zero(total)  # before the root, whose slope at 0 is infinite
        return [x / (op.Sqrt(divisor) if norm == "L2" else divisor)]

    # -- parts ---------------------------------------------------------------------------------

    def _float(self, x: Var) -> Var:
        return x if x.dtype == _FLOAT else self.op.Cast(x, to=int(_FLOAT))

    def _is_zero(self, x: Var) -> Var:
        """1 where x is 0, else 0."""
        zero = self.op.Not(self.op.Cast(x, to=int(ir.DataType.BOOL)))
        return self.op.Cast(zero, to=int(_FLOAT))

    def _reduce(self, operator: str, x: Var) -> Var:
        """Reduce along the last axis, which stays."""
        return self.op.call(operator, x, np.array([-1 if self.op.opset >= 11 else 1]), keepdims=1)

    def _linear(self, node: ir.Node, rows: int, mirrored: bool = False) -> Var:
        """Raw scores, of shape (N, rows)."""
        op = self.op
        attributes = node.attributes
        flat = np.array(attributes.get_floats("coefficients"), dtype=np.float32)
        weight = (flat[flat.size // 2 :] if mirrored else flat).reshape(rows, -1)
        x = self._float(op.wrap(_input(node)))
        if x.rank != 2:  # a single row without the axis of rows
            x = op.Reshape(x, np.array([-1, weight.shape[1]], dtype=np.int64))
        w = self._weight(node, "coefficients", weight, mirrored)
        bias = np.array(attributes.get_floats("intercepts", ()), dtype=np.float32)
        if bias.size:
            b = self._weight(node, "intercepts", bias[-rows:] if mirrored else bias, mirrored)
            z = op.Gemm(x, w, b, transB=1)
        else:
            z = op.MatMul(x, op.Transpose(w, perm=[1, 0]))
        z.value.shape = ir.Shape([None if x.shape is None else x.shape[0], rows])
        return z

    def _weight(self, node: ir.Node, attribute: str, array: np.ndarray, mirrored: bool) -> Var:
        given = node.metadata_props.get(NAME_KEY + attribute)
        name = self.op.unique(given or f"{_base(node)}_{attribute}")
        value = self.op.initializer(name, ir.tensor(array, name=name))
        pin(value, AttributeSite(origin(node), attribute, mirrored))
        return self.op.wrap(value)

    def _label(self, labels: list, index: Var) -> Var:
        """The label of each row, of shape (N,); `index` has that shape or (N, 1)."""
        op = self.op
        if isinstance(labels[0], str):
            name = op.unique("labels")
            data = [text.encode("utf-8") for text in labels]
            table = op.wrap(
                op.initializer(name, ir.StringTensor(data, shape=ir.Shape([len(data)]), name=name))
            )
        else:
            table = op.const(np.array(labels, dtype=np.int64))
        if index.rank != 1:
            index = op.Reshape(index, np.array([-1], dtype=np.int64))
        return op.Gather(table, index, axis=0)

    def _transform(self, z: Var, transform: str) -> Var:
        """Apply onnxruntime's post_transform to scores of shape (N, rows)."""
        op = self.op
        if transform == "SOFTMAX":
            return op.Softmax(z, axis=1)
        if transform == "LOGISTIC":
            return op.Sigmoid(z)
        if transform == "SOFTMAX_ZERO":
            return self._softmax_zero(z)
        if transform == "PROBIT":
            return self._probit(z)
        return z

    def _softmax_zero(self, z: Var) -> Var:
        """Softmax over the scores that are not 0; a row of zeros has no value (0 / 0)."""
        op = self.op
        kept = op.Cast(op.Abs(z) > 1e-7, to=int(_FLOAT))
        # Far below every score, yet finite: infinities would make NaN in the gradient.
        p = op.Softmax(z * kept - 1e30 * (1 - kept), axis=1) * kept
        return p / op.Min(self._reduce("ReduceSum", kept), 1.0)

    def _probit(self, p: Var) -> Var:
        """√2 erf⁻¹(2p - 1) by Winitzki's approximation, step for step as onnxruntime computes it."""
        op = self.op
        y = 2 * p - 1
        sign = y / (op.Abs(y) + self._is_zero(y))
        log = self._rounded("Log", (1 - y) * (1 + y))
        v = float(np.float32(2) / (np.float32(np.pi) * np.float32(0.147))) + 0.5 * log
        v2 = float(np.float32(1) / np.float32(0.147)) * log
        return 1.41421356 * (sign * self._rounded("Sqrt", self._rounded("Sqrt", v * v - v2) - v))

    def _rounded(self, operator: str, x: Var) -> Var:
        """A function of float32, correctly rounded.

        Near p = 1/2 the terms of the probit cancel, and one unit in the last place shows; the vectorized
        kernels of onnxruntime may be off by that much, its scalar code is not.
        """
        double = self.op.call(operator, self.op.Cast(x, to=int(ir.DataType.DOUBLE)))
        return self.op.Cast(double, to=int(_FLOAT))


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _base(node: ir.Node) -> str:
    """What the weights of `node` are named after."""
    return node.name or next((v.name for v in node.outputs if v.name), None) or node.op_type


def _labels(node: ir.Node) -> list | None:
    strings = node.attributes.get_strings("classlabels_strings", ())
    if strings:
        return [s.decode("utf-8") if isinstance(s, bytes) else s for s in strings]
    ints = node.attributes.get_ints("classlabels_ints", ())
    return [int(i) for i in ints] or None


def _mirrored(numbers: Sequence[float]) -> bool:
    """Whether the first half of `numbers` is the negative of the second."""
    half = len(numbers) // 2
    return len(numbers) == 2 * half and all(
        a == -b for a, b in zip(numbers[:half], numbers[half:], strict=True)
    )


def _runtime_applies_logistic() -> bool:
    """Whether the onnxruntime at hand transforms a single row (it does since 1.27)."""
    version = getattr(sys.modules.get("onnxruntime"), "__version__", None)
    for name in ("onnxruntime-training-cpu", "onnxruntime-training", "onnxruntime-gpu", "onnxruntime"):
        if version is None:
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    numbers = (version or "1.27").split(".")
    return tuple(int(n) for n in numbers[:2]) >= (1, 27)
