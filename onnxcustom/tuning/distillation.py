"""Distillation: a model learns from what another one computes of the same rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxcustom._parameters import check_parameters, choice, integer, number
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError
from onnxcustom.graph.analysis.classifier import find_logits, hidden_logits
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.traversal import all_names, sort_nodes
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.files.io import to_proto
from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.tuning.changes import Change, Changed, Term
from onnxcustom.tuning.dequantizing import dequantize

from .teaching import both, put_beside, tensor

__all__ = ["Distillation", "Taught", "select_teacher"]


_HIDING = ("QLinearSoftmax", "QLinearSigmoid")


class _Target(Protocol):
    """What is known of an output that is trained: see ``step.targets.Target``."""

    output: str
    value: str
    axis: int
    rows: int | None
    weight: float
    loss: Any


@dataclass(frozen=True, eq=False)
class Distillation(Change):
    r"""A teacher whose outputs a model learns beside its labels.

    The objective becomes

    .. math::

        (1 - \alpha) \, loss + \alpha \, T^2 \sum_c q_c (\log q_c - \log p_c), \quad
        q = softmax(z_{teacher} / T), \; p = softmax(z / T)

    for a loss on the scores z before a Softmax, a mean over tokens or pixels where a row has several: all of
    them, ignored labels and weights of labels are the loss's own. For a
    loss before a Sigmoid it is the divergence of each column's two probabilities, summed; for any other loss
    half the squared difference of both outputs, summed over columns, as ``squared_error``. The teacher's
    weights are not trained and are no part of the trained model.

    Parameters
    ----------
    model : str, path, bytes, onnx.ModelProto or onnx_ir.Model
        The teacher. It reads the same inputs, by name or in the same order, and has the same outputs: of the
        same name, or else those at the same places. Other floating-point numbers are cast.
    temperature : float, default=2.0
        T > 0.
    alpha : float, default=0.5
        Part of the teacher in the objective, in [0, 1].
    match : dict of str to str, optional
        Tensors of the model that is trained -> tensors of the teacher that they are to resemble. Where they
        have other widths, a matrix that is trained beside stands between; the width is the last axis, of
        tensors with four axes the second one.
    match_loss : {'squared', 'cosine'}, default='squared'
        Mean squared difference of these tensors, or 1 minus the cosine of their angle along the width.
    match_weight : float, default=1.0
        Factor of that in the objective.
    seed : int, default=0
        Of the matrices.

    References
    ----------
    G. Hinton, O. Vinyals and J. Dean, Distilling the Knowledge in a Neural Network, arXiv:1503.02531,
    section 2; A. Romero et al., FitNets: Hints for Thin Deep Nets, arXiv:1412.6550, for `match`.
    """

    model: Any
    temperature: float = number(2.0, "(0, inf)")
    alpha: float = number(0.5, "[0, 1]")
    match: Mapping[str, str] | None = None
    match_loss: str = choice("squared", "cosine")
    match_weight: float = number(1.0, "[0, inf)")
    seed: int = integer(0, "[0, inf)")

    def __post_init__(self) -> None:
        check_parameters(self)
        if self.match is not None and not isinstance(self.match, Mapping):
            raise InvalidParameterError(
                "match must be a dict from tensors of the model to tensors of the teacher, not "
                f"{self.match!r}."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "model": Prepared.of(self.model).proto}

    def apply(self, prepared: Prepared, targets: Sequence[_Target] = ()) -> Taught:
        """The model with its teacher beside it, and a loss of each row for every target.

        Raises
        ------
        InvalidModelError, UnknownNameError
            The teacher reads something else, or computes something else.
        """
        student, teacher = both(prepared, _readable(self.model))
        own_outputs = _scores(student)
        names = {target.output: _taught_by(teacher, target, own_outputs) for target in targets}
        kept = dict.fromkeys((*names.values(), *(self.match or {}).values()))
        found = put_beside(student, teacher, {name: name for name in kept})
        op = Builder(student.opset_imports[""], taken=all_names(student.graph))
        terms, outputs = [], []
        for target in targets:
            own = op.wrap(tensor(student, target.value, "model"))
            rows = self._divergence(op, target, own, _as(op, found[names[target.output]], own))
            outputs.append(_named(op, rows, f"{target.output}_distillation"))
            terms.append(Term(str(outputs[-1].name), self.alpha * target.weight))
        rng = np.random.default_rng(self.seed)
        trained: list[str] = []
        for name, other in (self.match or {}).items():
            own = op.wrap(tensor(student, name, "model"))
            rows = self._resemblance(op, own, _as(op, found[other], own), rng, trained)
            outputs.append(_named(op, rows, f"{name}_resemblance"))
            terms.append(Term(str(outputs[-1].name), self.match_weight))
        _extend(student, op, outputs)
        made = Prepared.of(to_proto(student))
        return Taught(self, prepared, made, terms=tuple(terms), share=1 - self.alpha, also=tuple(trained))

    def _divergence(self, op: Builder, target: _Target, own: Var, other: Var) -> Var:
        """One number a row for what a target and its teacher differ in."""
        _check_shapes(target, own, other)
        t, axis = float(self.temperature), target.axis
        if target.loss.on == "output":
            difference = own - other
            return _rows(op, 0.5 * (difference * difference), own.rank, target.rows, None)
        z, q = (v if t == 1 else v / t for v in (own, other))
        if target.loss.on == "softmax":
            log_p, log_q = (op.LogSoftmax(v, axis=axis) for v in (z, q))
            each = op.Exp(log_q) * (log_q - log_p)
        else:
            yes = [-op.Softplus(-v) for v in (z, q)]
            no = [-op.Softplus(v) for v in (z, q)]
            each = op.Exp(yes[1]) * (yes[1] - yes[0]) + op.Exp(no[1]) * (no[1] - no[0])
        return _rows(op, each * (t * t), own.rank, target.rows, axis)

    def _resemblance(
        self, op: Builder, own: Var, other: Var, rng: np.random.Generator, trained: list[str]
    ) -> Var:
        """One number a row for what two tensors differ in; a matrix between them is put among `trained`."""
        if own.rank is None or own.rank < 2 or own.rank != other.rank:
            raise InvalidModelError(
                f"match: {own.value.name!r} of shape {own.shape} and the teacher's {other.value.name!r} of "
                f"shape {other.shape} have to have rows and as many axes as each other."
            )
        rank = own.rank
        axis = 1 if rank == 4 else rank - 1
        widths = [v.shape[axis] if v.shape is not None else None for v in (own, other)]
        if not all(isinstance(w, int) for w in widths):
            raise InvalidModelError(
                f"match: the width of {own.value.name!r} {own.shape} or of the teacher's "
                f"{other.value.name!r} {other.shape} is not known."
            )
        if widths[0] != widths[1]:
            own = self._projected(op, own, widths, axis, rng, trained)
        if self.match_loss == "squared":
            difference = own - other
            return _rows(op, difference * difference, rank, 0, None, mean=True)
        dot, *squares = (
            op.ReduceSum(a * b, [axis], keepdims=1) for a, b in ((own, other), (own, own), (other, other))
        )
        length = op.Sqrt(op.Max(squares[0] * squares[1], 1e-16))
        return _rows(op, 1.0 - dot / length, rank, 0, None, mean=True)

    def _projected(
        self,
        op: Builder,
        own: Var,
        widths: Sequence[Any],
        axis: int,
        rng: np.random.Generator,
        trained: list[str],
    ) -> Var:
        """A tensor with the width of its teacher's, by a matrix that is trained."""
        assert own.dtype is not None
        bound = 1 / np.sqrt(widths[0])
        matrix = rng.uniform(-bound, bound, size=widths).astype(own.dtype.numpy())
        name = op.unique(f"{own.value.name}_projection")
        trained.append(name)
        if axis == 1 and own.rank == 4:
            return op.Conv(own, op.initializer(name, ir.tensor(matrix.T[..., None, None].copy(), name=name)))
        return op.MatMul(own, op.initializer(name, ir.tensor(matrix, name=name)))


@dataclasses.dataclass(frozen=True, eq=False)
class Taught(Changed):
    """A model with its teacher beside it; matrices between tensors of both are trained, then left out."""

    @property
    def choices(self) -> Prepared:
        """The model without its teacher: what weights are chosen from."""
        return self.source

    def back(self, tensors: Mapping[str, np.ndarray], merge: bool = True) -> dict[str, np.ndarray]:
        """Tensors of the model itself."""
        return {name: array for name, array in tensors.items() if name not in self.also}


def _scores(model: ir.Model) -> list[str]:
    """Outputs that hold floating-point numbers, in tensors or in dictionaries of classes."""
    outputs = [v for v in model.graph.outputs if v.name]
    return [
        str(v.name)
        for v in outputs
        if is_float(v, unknown=False)
        or not isinstance(v.type, (ir.TensorType, type(None)))
        or find_logits(model, str(v.name)) is not None
    ]


def _readable(model: Any) -> Prepared:
    """A teacher whose scores can be seen: what quantizers made of its last Softmax or Sigmoid hides them."""
    prepared = Prepared.of(model)
    if any(node.op_type in _HIDING for node in prepared.model.graph):
        return Prepared.of(dequantize(prepared.proto, activations="keep"))
    return prepared


def _taught_by(teacher: ir.Model, target: _Target, own: Sequence[str]) -> str:
    """The tensor of the teacher that says what the one of a target should be.

    It is the output of the same name; where there is none, the one at the same place among those that hold
    floating-point numbers.
    """
    floats = _scores(teacher)
    names = [str(v.name) for v in teacher.graph.outputs]
    output = target.output
    if output not in names:
        place = own.index(output) if output in own else 0
        if place and place >= len(floats):
            raise InvalidModelError(
                f"The teacher has no output {output!r}, and {floats} in place of {list(own)}: give outputs "
                "that mean the same the same names."
            )
        output = floats[place] if floats else names[0]
    if target.loss.on != "output":
        logits = find_logits(teacher, output)
        if logits is not None and logits.kind == target.loss.on:
            return logits.name
        if logits is not None:
            raise InvalidModelError(
                f"Output {output!r} of the teacher ends in a {logits.kind.capitalize()}, the loss of "
                f"{target.output!r} is taken before a {target.loss.on.capitalize()}: they say different "
                "things."
            )
        why = hidden_logits(teacher, output, (), target.loss.on)
        if why is not None:
            raise InvalidModelError(
                f"Output {output!r} of the teacher holds probabilities, and the loss of {target.output!r} is "
                f"taken on scores: it {why}. Let the teacher end in its scores, or in a last "
                f"{target.loss.on.capitalize()}."
            )
    if output not in floats:
        raise InvalidModelError(f"Output {output!r} of the teacher holds no floating-point numbers.")
    return output


def _check_shapes(target: _Target, own: Var, other: Var) -> None:
    """Refuse a teacher that computes other numbers."""
    if own.shape is None or other.shape is None:
        return
    pairs = [
        (a, b)
        for a, b in zip(own.shape, other.shape, strict=False)
        if isinstance(a, int) and isinstance(b, int)
    ]
    if len(own.shape) != len(other.shape) or any(a != b for a, b in pairs):
        raise InvalidModelError(
            f"The teacher's {other.value.name!r} has shape {other.shape}, {own.value.name!r}, which output "
            f"{target.output!r} is made of, {own.shape}: a teacher has the outputs of the model it teaches."
        )


def _as(op: Builder, value: ir.Value, like: Var) -> Var:
    return op.wrap(value) if value.dtype == like.dtype else op.Cast(op.wrap(value), to=like.dtype)


def _rows(
    op: Builder, each: Var, rank: int | None, rows: int | None, axis: int | None, mean: bool = False
) -> Var:
    """One number a row, shape [rows]: the sum along `axis`, or of all; a mean over what is left."""
    if rank is None:
        raise InvalidModelError("The teacher's output has an unknown number of axes: nothing is compared.")
    others = [a for a in range(rank) if a != rows]
    if not mean:
        summed = others if axis is None else [axis]
        each = op.ReduceSum(each, summed, keepdims=1) if summed else each
    if others:
        each = op.ReduceMean(each, others, keepdims=0)
    return each if rows is not None else op.Reshape(each, [1])


def _named(op: Builder, rows: Var, name: str) -> ir.Value:
    made = op.Identity(rows).value
    made.name = op.unique(name)
    made.dtype = rows.dtype
    return made


def _extend(model: ir.Model, op: Builder, outputs: Sequence[ir.Value]) -> None:
    graph = model.graph
    graph.extend(op.nodes)
    for value in op.initializers:
        graph.register_initializer(value)
    graph.outputs.extend(outputs)
    sort_nodes(graph)


def select_teacher(given: Any) -> Distillation | None:
    """The distillation that is meant by None, a model, or a :class:`Distillation`."""
    if given is None or isinstance(given, Distillation):
        return given
    return Distillation(given)
