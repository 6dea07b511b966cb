"""Where the numbers of an output come from: probabilities and their logarithms, or anything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.ranges import ANY, JOINS, MOVES, UNARY, Bounds, bounds_of, is_unit
from onnxcustom.graph.analysis.spelled import SLACK, constant, negated
from onnxcustom.graph.analysis.tails import kept

__all__ = ["Held", "origin"]

_REDUCTIONS = frozenset(
    "GlobalAveragePool GlobalMaxPool ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean "
    "ReduceMin ReduceProd ReduceSum ReduceSumSquare".split()
)
_SUMS = frozenset("ReduceL1 ReduceL2 ReduceLogSum ReduceSum ReduceSumSquare".split())
_PLACED = frozenset("Pad Trilu".split())
_FOLLOWED = MOVES | JOINS | UNARY | _REDUCTIONS | _PLACED | {"Exp", "Log"}
# Of onnxruntime, with an activation inside.
_FUSED = frozenset("FusedConv FusedGemm FusedMatMulActivation NhwcFusedConv".split())


@dataclasses.dataclass(frozen=True)
class Held:
    """What a tensor holds.

    Attributes
    ----------
    what : str
        'probabilities', 'logarithms' of such, 'data' (inputs and integers, such as masks), 'constants',
        or 'scores': anything else.
    bounds : tuple of float
        Between which the numbers are.
    kind : str
        Of probabilities: 'softmax', 'sigmoid', or 'unit' for others between 0 and 1.
    source, moved : onnx_ir.Node or None
        The node that makes the probabilities, and the first that changes them.
    sign : int
        -1 for negative logarithms.
    reduced : {'', 'mean', 'sum'}
        Whether an axis is gone.
    weighed : bool
        Whether they are multiplied with data without bounds.
    ratio : bool
        Whether one is divided by another.
    """

    what: str = "scores"
    bounds: Bounds = ANY
    kind: str = ""
    source: ir.Node | None = None
    moved: ir.Node | None = None
    sign: int = 1
    reduced: str = ""
    weighed: bool = False
    ratio: bool = False

    @property
    def live(self) -> bool:
        """Whether these are probabilities, or made of such."""
        return self.what in ("probabilities", "logarithms")


def origin(
    model: ir.Model, output: ir.Value, made_by: Callable[[ir.Node], str | None], trained: Collection[str]
) -> Held:
    """What an output holds.

    Parameters
    ----------
    model, output : onnx_ir.Model, onnx_ir.Value
        A prepared model and one of its outputs.
    made_by : callable
        ``'softmax'`` or ``'sigmoid'`` for a node that is one, ``'log softmax'`` for its logarithm, None for
        others.
    trained : collection of str
        Weights that are trained: what they are multiplied with or added to is a score again.
    """
    walk = _Walk(set(model.graph.inputs), made_by, trained)
    found: dict[ir.Value, Held] = {}
    waiting = [output]
    while waiting:  # no recursion: there may be thousands of nodes
        value = waiting[-1]
        if value in found:
            waiting.pop()
            continue
        operands = walk.operands(value)
        missing = [v for v in operands if v not in found]
        waiting.extend(missing)
        if not missing:
            found[value] = walk.held(value, [found[v] for v in operands])
    return found[output]


class _Walk:
    """One question about one output."""

    def __init__(
        self,
        inputs: Collection[ir.Value],
        made_by: Callable[[ir.Node], str | None],
        trained: Collection[str],
    ) -> None:
        self.inputs, self.made_by, self.trained = inputs, made_by, trained
        self._kinds: dict[ir.Node, str | None] = {}

    def kind(self, node: ir.Node) -> str | None:
        """What makes probabilities, or their logarithms."""
        if node not in self._kinds:
            self._kinds[node] = self.made_by(node) or _other_kind(node, self.trained)
        return self._kinds[node]

    def operands(self, value: ir.Value) -> list[ir.Value]:
        """What has to be known to tell what a value holds."""
        node = value.producer()
        if node is None or self._is_plain(value) or self.kind(node) is not None:
            return []
        if is_op(node, "If", "Loop", "Scan"):
            return _of_bodies(node, list(node.outputs).index(value))
        if (node.op_type, node.domain) in (("ZipMap", "ai.onnx.ml"), ("Normalizer", "ai.onnx.ml")):
            return [v for v in node.inputs[:1] if v is not None]
        if is_op(node, "MatMul", "Gemm"):
            return [v for v in node.inputs[:1] if v is not None and _is_stochastic(node, self.trained)]
        if is_op(node, "DequantizeLinear"):
            below = node.inputs[0] and node.inputs[0].producer()
            return [v for v in below.inputs[:1] if v] if below and is_op(below, "QuantizeLinear") else []
        if not is_op(node, *_FOLLOWED):
            return []
        values = list(node.inputs[:1])
        if is_op(node, *JOINS):
            values = list(node.inputs[1:] if node.op_type == "Where" else node.inputs)
        return [v for v in values if v is not None]

    def _is_plain(self, value: ir.Value) -> bool:
        """Whether a value is a constant, or of a type that no gradient passes."""
        integers = value.dtype is not None and not value.dtype.is_floating_point()
        return integers or constant(value, self.trained) is not None

    def held(self, value: ir.Value, below: Sequence[Held]) -> Held:
        """What a value holds whose operands hold `below`."""
        array, node = constant(value, self.trained), value.producer()
        if array is not None:
            return Held("constants", (float(np.min(array)), float(np.max(array))))
        if value.dtype == ir.DataType.BOOL:
            return Held("data", (0.0, 1.0))
        if node is None or self._is_plain(value):
            return Held("data" if node is not None or value in self.inputs else "scores")
        kind = self.kind(node)
        if kind in ("log softmax", "log sigmoid"):
            return Held("logarithms", (-np.inf, 0.0), kind[4:], node)
        if kind is not None:
            return Held("probabilities", (0.0, 1.0), kind, node)
        return self._made(node, below)

    def _made(self, node: ir.Node, below: Sequence[Held]) -> Held:
        if not below:
            return Held()
        same = kept(node, self.trained)
        live = [f for f in below if f.live]
        if same is not None and len(live) == 1 and live[0].what == "probabilities":
            return live[0]
        bounds = bounds_of(node, [f.bounds for f in below], self.trained)
        made = dataclasses.replace(_follow(node, below, live, self.trained), bounds=bounds)
        unit = is_unit(bounds)
        if made.kind == "unit" and made.what == "probabilities" and not unit:
            return Held("scores", bounds)
        if made.what == "scores" and unit:
            return Held("probabilities", bounds, "unit", node)
        return made


def _follow(node: ir.Node, below: Sequence[Held], live: Sequence[Held], trained: Collection[str]) -> Held:
    """What becomes of probabilities, of logarithms, and of others, in a node."""
    if not live:
        data = all(f.what in ("data", "constants") for f in below) and not is_op(node, "Exp", "Log", *UNARY)
        return Held("data" if data else "scores")
    kinds = {f.kind for f in live}
    first = dataclasses.replace(live[0], kind=next(k for k in ("sigmoid", "unit", "softmax") if k in kinds))
    if any(f.what == "scores" for f in below) or len({f.what for f in live}) > 1:
        return Held()
    if is_op(node, "Log", "Exp"):
        return _through(node, first)
    moved = first.moved or (None if is_op(node, "Identity") else node)
    made = dataclasses.replace(first, moved=moved)
    if is_op(node, *_REDUCTIONS):
        logarithm = first.what == "logarithms" or node.op_type == "ReduceLogSum"
        reduced = "sum" if node.op_type in _SUMS or first.reduced == "sum" else "mean"
        return dataclasses.replace(made, what="logarithms" if logarithm else made.what, reduced=reduced)
    if is_op(node, *JOINS):
        return _joined(node, below, live, made, trained)
    turned = is_op(node, "Neg", "Reciprocal")
    return dataclasses.replace(made, sign=-made.sign) if turned else made


def _through(node: ir.Node, held: Held) -> Held:
    """Of probabilities to logarithms, and back."""
    moved = held.moved or node
    if is_op(node, "Log"):
        plain = held.what == "probabilities" and not held.ratio
        return dataclasses.replace(held, what="logarithms", moved=moved) if plain else Held()
    return dataclasses.replace(held, what="probabilities", moved=moved)


def _joined(
    node: ir.Node, below: Sequence[Held], live: Sequence[Held], made: Held, trained: Collection[str]
) -> Held:
    """Sums, products and the like of probabilities, or of logarithms, with constants and data."""
    logarithms = made.what == "logarithms"
    vague = any(f.what == "data" and not np.isfinite(f.bounds).all() for f in below)
    if vague and (logarithms or not is_op(node, "Mul", "Div", "Where")):
        return Held()
    if len(live) > 1 and is_op(node, "Sub") and logarithms:
        return Held()  # of a quotient, such as log(p / (1 - p)): a score
    if made.kind != "softmax" and _enlarges(node, trained):
        return Held()
    ratio = len(live) > 1 and is_op(node, "Div") and not live[1].reduced and live[1] is not live[0]
    turns = is_op(node, "Sub", "Div") and not below[0].live
    negative = is_op(node, "Mul", "Div") and any(f.what == "constants" and f.bounds[1] < 0 for f in below)
    return dataclasses.replace(
        made,
        sign=-made.sign if turns != negative else made.sign,
        weighed=made.weighed or vague or any(f.weighed for f in live),
        ratio=made.ratio or ratio,
        reduced=made.reduced if not is_op(node, "Div") else live[0].reduced,
    )


def _enlarges(node: ir.Node, trained: Collection[str]) -> bool:
    """Whether a constant makes numbers larger."""
    if not is_op(node, "Mul", "Div"):
        return False
    factors = [a for v in node.inputs if (a := constant(v, trained)) is not None]
    if node.op_type == "Mul":
        return any(float(abs(a).max()) > 1 + SLACK for a in factors)
    return any(float(abs(a).max()) < 1 - SLACK for a in factors)


# -- other makers ----------------------------------------------------------------------------


def _other_kind(node: ir.Node, trained: Collection[str]) -> str | None:
    """Probabilities whose scores are no tensor, or none at all."""
    if node.domain == "com.microsoft":
        inside = node.attributes.get_string("activation", "") if node.op_type in _FUSED else ""
        return {"BiasSoftmax": "softmax", "Sigmoid": "sigmoid", "HardSigmoid": "unit"}.get(
            inside or node.op_type
        )
    if is_op(node, "LogSoftmax"):
        return "log softmax"
    below = negated(node.outputs[0], trained) if len(node.outputs) == 1 else None
    if below is not None and is_op(below.producer(), "Softplus"):
        return "log sigmoid"
    return "unit" if _is_sparsemax(node, trained) else None


def _is_sparsemax(node: ir.Node, trained: Collection[str]) -> bool:
    """Whether a node cuts at 0 what is left of scores above a threshold that their sorted sums say."""
    if not is_op(node, "Relu", "Max", "Clip") or node.inputs[0] is None:
        return False
    cut = next((v for v in node.inputs if v is not None and is_op(v.producer(), "Sub")), None)
    sub = None if cut is None else cut.producer()
    waiting: list[ir.Value | None] = [] if sub is None else [sub.inputs[1]]
    seen: set[ir.Value | None] = set()
    operators: set[str] = set()
    while waiting and len(seen) < 64:
        value = waiting.pop()
        below = None if value is None else value.producer()
        if value in seen or below is None or is_op(below, "MatMul", "Gemm", "Conv"):
            continue
        seen.add(value)
        operators.add(below.op_type)
        waiting.extend(below.inputs)
    return {"CumSum", "TopK"} <= operators


def _is_stochastic(node: ir.Node, trained: Collection[str]) -> bool:
    """Whether a product with a constant sums up classes: its rows are probabilities themselves."""
    array = constant(node.inputs[1], trained)
    if array is None or array.ndim < 2 or len(node.inputs) > 2 or array.min() < 0:
        return False
    if node.attributes.get_float("alpha", 1.0) != 1:
        return False
    turned = is_op(node, "Gemm") and node.attributes.get_int("transB", 0) == 1
    return bool(np.allclose(array.sum(axis=-2 if turned else -1), 1, atol=SLACK))


def _of_bodies(node: ir.Node, index: int) -> list[ir.Value]:
    """What an output of If, Loop or Scan may be."""
    bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    place = index + 1 if node.op_type == "Loop" else index
    found = [body.outputs[place] for body in bodies]
    states = len(node.inputs) - 2 if node.op_type == "Loop" else 0
    start = node.inputs[index + 2] if index < states else None
    return found if start is None else [*found, start]
