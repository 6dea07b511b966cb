"""The scores behind the probabilities of a classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import onnx_ir as ir

from onnxcustom.exceptions import UnknownNameError
from onnxcustom.graph.analysis.origins import Held, origin
from onnxcustom.graph.analysis.ranges import is_unit
from onnxcustom.graph.analysis.spelled import (
    equals,
    exponential,
    is_op,
    log_sigmoid_input,
    negated,
    sigmoid_input,
    spelled_log_softmax,
    spelled_softmax,
    tanh_input,
)
from onnxcustom.graph.analysis.tails import (
    TURNS,
    divided_by_row_sum,
    exponential_of_logarithm,
    kept,
    there_and_back,
    unchanged,
)

__all__ = ["Logits", "class_axis", "find_logits", "hidden_logits", "last_operator"]


@dataclasses.dataclass(frozen=True)
class Logits:
    """The raw scores that a final Sigmoid or Softmax turns into probabilities.

    Attributes
    ----------
    name : str
        The value with the scores.
    kind : str
        ``'sigmoid'`` or ``'softmax'``.
    columns : int or None
        Number of scores in a row, None if the graph does not tell. With ``'sigmoid'``, 1 is a binary
        classifier (class 1 if positive).
    axis : int
        Axis of the classes, -1 being the last.
    normalized : bool
        With ``'sigmoid'`` and several columns: rows are divided by their sum afterwards (one class
        against the rest); if not, each column is a question of its own.
    """

    name: str
    kind: str
    columns: int | None = None
    axis: int = -1
    normalized: bool = False

    @property
    def loss(self) -> str:
        """Name of the cross-entropy that is taken on them."""
        return "binary_crossentropy" if self.kind == "sigmoid" else "softmax_crossentropy"

    @property
    def independent(self) -> bool:
        """Whether each column is a question of its own: a sigmoid, not made to sum to 1."""
        return self.kind == "sigmoid" and not self.normalized


# -- scores ----------------------------------------------------------------------------------


def find_logits(model: ir.Model, output_name: str, trained: Collection[str] = ()) -> Logits | None:
    """Find the scores behind an output that holds probabilities.

    Looks through what changes no probability at inference (``Identity``, ``Dropout``, casts to floating
    point, quantization, bounds and sums with numbers below 0.001, products with 1, the exponential of a
    logarithm), ``ZipMap``, division of rows by their sum, ``[1 - p, p]``, reshapes that keep rows, and
    transpositions or reshapes that undo those before. Softmax and sigmoid may be written with ``Exp``,
    ``LogSoftmax`` or ``Tanh``.

    Parameters
    ----------
    model : onnx_ir.Model
        In prepared form (:func:`onnxcustom.graph.prepare`).
    output_name : str
        An output of the model.
    trained : collection of str, default=()
        Weights that training changes: that one of them is 1 now makes it no constant.

    Returns
    -------
    Logits or None
        None if the output is not recognised as probabilities.

    Raises
    ------
    UnknownNameError
        The model has no such output.

    Examples
    --------
    >>> import onnx.parser
    >>> from onnxcustom.graph import prepare
    >>> model = prepare(onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 18]>
    ...     g (float[N, 3] x) => (float[N, 3] p) { z = Identity(x)  p = Softmax(z) }'''))
    >>> find_logits(model, "p")
    Logits(name='x', kind='softmax', columns=3, axis=-1, normalized=False)
    """
    return _find_logits(_output(model, output_name), model.opset_imports.get("", 1), trained)


def _find_logits(output: ir.Value, opset: int, trained: Collection[str]) -> Logits | None:
    """The scores behind a value."""
    value: ir.Value | None = output
    tail = _Tail()
    while value is not None and (node := value.producer()) is not None:
        scores = sigmoid_input(node, trained)
        if scores is not None:
            return tail.sigmoid(scores, output, trained)
        softmax = _softmax_scores(node, opset, trained)
        if softmax is not None:
            return tail.softmax(softmax[0], softmax[1], output)
        value = kept(node, trained) or exponential_of_logarithm(node) or tail.passes(node, trained)
    return None


def class_axis(model: ir.Model, output_name: str) -> int | None:
    """The axis of the classes of an output that is logarithms of a softmax, -1 the last; None of others."""
    value: ir.Value | None = _output(model, output_name)
    opset = model.opset_imports.get("", 1)
    while value is not None and (node := value.producer()) is not None:
        if is_op(node, "LogSoftmax"):
            found = _softmax(node, opset)
            return None if found is None else found.axis
        if (spelled := spelled_log_softmax(node, ())) is not None:
            return spelled[1]
        if is_op(node, "Log") and node.inputs[0] is not None:
            found = _find_logits(node.inputs[0], opset, ())
            return None if found is None or found.kind != "softmax" else found.axis
        value = unchanged(node)
    return None


def last_operator(model: ir.Model, output_name: str) -> ir.Node | None:
    """The standard operator that computes an output, behind what gives its numbers on as they are."""
    value: ir.Value | None = _output(model, output_name)
    while value is not None and (node := value.producer()) is not None:
        below = unchanged(node)
        if below is None:
            return node if is_op(node, node.op_type) else None
        value = below
    return None


def hidden_logits(
    model: ir.Model, output_name: str, trained: Collection[str] = (), link: str | None = None
) -> str | None:
    """Why there is no tensor with the scores behind an output that holds probabilities.

    Parameters
    ----------
    model, output_name, trained
        As for :func:`find_logits`, which has found none.
    link : {'sigmoid', 'softmax'}, optional
        What makes probabilities of the scores that are asked for. Logarithms of probabilities are scores
        of a softmax, and of no sigmoid.

    Returns
    -------
    str or None
        The end of a sentence about the output; None if nothing says that it holds probabilities.
    """
    output = _output(model, output_name)
    held = origin(model, output, lambda node: _maker(node, trained), trained)
    node = held.source
    if node is None or not _are_no_scores(held, link):
        return None
    half = tanh_input(node, ())
    exponent = exponential(node, ()) if half is None else half
    if exponent is not None and sigmoid_input(node, trained) is None:
        written = "Exp" if half is None else "Tanh"
        where = f"comes from a sigmoid written with {written} (node {node.name!r}),"
        if sigmoid_input(node, ()) is not None:
            return f"{where} constants of which are among the weights to train"
        times = -1 if half is None else 2
        return f"{where} whose scores, {exponent.name!r} times {times}, are no tensor of the model"
    return _why_hidden(held, node, model.opset_imports.get("", 1), trained)


def _are_no_scores(held: Held, link: str | None) -> bool:
    """Whether what an output holds cannot be what a link is taken of."""
    if held.what == "logarithms":
        return link == "sigmoid" or (link == "softmax" and held.sign < 0)
    # Features may lie between 0 and 1, and softmax may weigh data: a sum over positions is a score.
    counted = held.kind != "softmax" and held.reduced == "sum" and not is_unit(held.bounds)
    return held.what == "probabilities" and not counted and not (held.weighed and held.reduced)


def _maker(node: ir.Node, trained: Collection[str]) -> str | None:
    """Whether a node makes probabilities, as a 'softmax' or as a 'sigmoid', or their logarithms."""
    if _softmax_node(node) is not None or spelled_softmax(node, trained) is not None:
        return "softmax"
    if spelled_log_softmax(node, trained) is not None:
        return "log softmax"
    sigmoid = sigmoid_input(node, trained) or exponential(node, ()) or tanh_input(node, ())
    return None if sigmoid is None else "sigmoid"


def _softmax_node(node: ir.Node) -> ir.Node | None:
    """The Softmax, or the LogSoftmax that an Exp is taken of."""
    if is_op(node, "Softmax"):
        return node
    value = node.inputs[0] if is_op(node, "Exp") else None
    while value is not None and (below := value.producer()) is not None:
        if is_op(below, "LogSoftmax"):
            return below
        value = unchanged(below)
    return None


def _why_hidden(held: Held, node: ir.Node, opset: int, trained: Collection[str]) -> str:
    scores, moved = node.inputs[0], held.moved
    where = f"node {node.name!r} ({node.op_type}"
    if spelled_softmax(node, ()) is not None:
        where += ", the last of a softmax"
    if is_op(node, "Softmax") and opset < 13:
        axis = node.attributes.get_int("axis", 1)
        together = f"{where} of opset {opset}), which takes all axes from {axis} on together"
        if scores is not None and scores.shape is None and node.outputs[0].shape is None:
            return f"comes from {together}, and nothing says how many there are"
        if scores is not None and _softmax(node, opset) is None:
            return f"comes from {together}, so that no axis is that of the classes"
    if held.kind == "unit":
        where += "), whose numbers lie between 0 and 1 whatever the model is given"
        return f"comes from {where}" + (
            "" if moved is None else f", by way of node {moved.name!r} ({moved.op_type})"
        )
    behind = "" if moved is None else f" and is then changed by node {moved.name!r} ({moved.op_type})"
    taken = _scores_of(node, trained)
    return f"comes from {where}){behind}" + ("" if taken is None else f"; its scores are {taken.name!r}")


def _scores_of(node: ir.Node, trained: Collection[str]) -> ir.Value | None:
    """The scores of a node that makes probabilities, whatever becomes of these."""
    maker = node if is_op(node, "LogSoftmax") else _softmax_node(node)
    if maker is not None:
        return maker.inputs[0]
    spelled = spelled_softmax(node, trained) or spelled_log_softmax(node, trained)
    return sigmoid_input(node, trained) or log_sigmoid_input(node, trained) if spelled is None else spelled[0]


def _output(model: ir.Model, name: str) -> ir.Value:
    value = next((v for v in model.graph.outputs if v.name == name), None)
    if value is None:
        known = [v.name for v in model.graph.outputs]
        raise UnknownNameError(f"The model has no output {name!r}; its outputs are {known}.")
    return value


@dataclasses.dataclass
class _Tail:
    """What stands between probabilities and an output."""

    divided: list[int | None] = dataclasses.field(default_factory=list)  # axes of the sums of rows
    paired: bool = False  # [1 - p, p]
    moves: list[ir.Node] = dataclasses.field(default_factory=list)  # the last one first

    def passes(self, node: ir.Node, trained: Collection[str]) -> ir.Value | None:
        """The operand of a node that changes probabilities in a way that is understood."""
        if is_op(node, *TURNS):
            self.moves.append(node)
            return node.inputs[0]
        quotient = divided_by_row_sum(node, trained)
        if quotient is not None:
            self.divided.append(quotient[1])
            return quotient[0]
        whole = None if self.paired else _complement(node, trained)
        self.paired = self.paired or whole is not None
        return whole

    def sigmoid(self, scores: ir.Value, output: ir.Value, trained: Collection[str]) -> Logits | None:
        """The result for a sigmoid of `scores`."""
        if self.moves:
            back = None if self.divided or self.paired else there_and_back(scores, output, self.moves)
            return None if back is None else Logits(_named(back[0]), "sigmoid", _columns(back[0]))
        if any(axis != -1 for axis in self.divided):
            return None
        mirrored = _mirrored(scores, trained)
        if mirrored is not None and not self.paired:
            return Logits(_named(mirrored), "sigmoid", 1)
        columns = _columns(scores)
        if self.paired:
            return Logits(_named(scores), "sigmoid", 1) if columns in (1, None) else None
        # Dividing a single column by itself leaves ones.
        normalized = bool(self.divided)
        return (
            None
            if normalized and columns == 1
            else Logits(_named(scores), "sigmoid", columns, -1, normalized)
        )

    def softmax(self, scores: ir.Value, found: Logits, output: ir.Value) -> Logits | None:
        """The result for a softmax of `scores`, which `found` tells of."""
        if self.paired or any(axis != found.axis for axis in self.divided):
            return None
        if not self.moves:
            return found
        back = None if self.divided else there_and_back(scores, output, self.moves, found.axis)
        return None if back is None else _on_axis(*back)


def _softmax_scores(node: ir.Node, opset: int, trained: Collection[str]) -> tuple[ir.Value, Logits] | None:
    """What a softmax is taken of, if it is one of one axis."""
    maker = _softmax_node(node)
    if maker is not None and maker.inputs[0] is not None:
        found = _softmax(maker, opset)
        return None if found is None else (maker.inputs[0], found)
    spelled = spelled_softmax(node, trained)
    if spelled is None or spelled[1] is None:
        return None
    return spelled[0], _on_axis(spelled[0], spelled[1])


def _softmax(node: ir.Node, opset: int) -> Logits | None:
    scores = node.inputs[0]
    assert scores is not None
    shape = next((v.shape for v in (scores, node.outputs[0]) if v.shape is not None), None)
    rank = None if shape is None else len(shape)
    axis = node.attributes.get_int("axis", -1 if opset >= 13 else 1)
    if opset < 13 and axis != -1:
        if shape is None or rank is None:
            return None
        # All axes from there on at once: as good as one if the others are of length 1.
        together = range(axis % rank if axis < rank else rank, rank)
        wide = [i for i in together if shape[i] != 1]
        if len(wide) > 1 or not together:
            return None
        axis = wide[0] if wide else together[0]
    if rank is not None and axis % rank == rank - 1:
        axis = -1
    found = _on_axis(scores, axis)
    return (
        found
        if found.columns is not None
        else dataclasses.replace(found, columns=_columns(node.outputs[0], axis))
    )


def _on_axis(scores: ir.Value, axis: int) -> Logits:
    return Logits(_named(scores), "softmax", _columns(scores, axis), axis)


def _complement(node: ir.Node, trained: Collection[str]) -> ir.Value | None:
    """Return p of Concat(1 - p, p)."""
    if not is_op(node, "Concat") or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    rank = None if second is None or second.shape is None else len(second.shape)
    if node.attributes.get_int("axis", 0) not in (-1, 1 if rank is None else rank - 1):
        return None
    sub = None if first is None else first.producer()
    if sub is None or not is_op(sub, "Sub") or sub.inputs[1] is not second:
        return None
    return second if equals(sub.inputs[0], 1, trained) else None


def _mirrored(scores: ir.Value, trained: Collection[str]) -> ir.Value | None:
    """Return z of Concat(-z, z)."""
    node = scores.producer()
    if node is None or not is_op(node, "Concat") or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    return second if second is not None and negated(first, trained) is second else None


# -- small questions -------------------------------------------------------------------------


def _columns(value: ir.Value, axis: int = -1) -> int | None:
    if value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _named(value: ir.Value) -> str:
    assert value.name
    return value.name
