"""What one engine can differentiate in a model, said before it tries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from onnxcustom._text import listed
from onnxcustom.graph import Prepared, find_logits
from onnxcustom.graph.analysis.integers import REMEDY
from onnxcustom.graph.analysis.links import Links
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.tails import decisions
from onnxcustom.graph.trainable.finding import array_of, find_weights

from .analysis import analyse
from .flow import Flow, operands
from .interface import Engine, look_at
from .verdict import Verdict, of_weight

__all__ = ["GradientReport", "LeftOutRow", "OperatorRow", "Row", "WeightRow", "described", "engine_report"]


_SHOWN = 5  # weights named in a warning


@dataclass(frozen=True)
class Row:
    """One node of a report.

    Parameters
    ----------
    node, op_type, domain : str
        The node and its operator.
    opset : int or None
        Version of the operator's domain in the prepared model.
    how : str
        ``'rule'`` or ``'function'``: differentiated; ``'non-differentiable'``: a step function, gradients
        end here; ``'refused'`` or ``'unknown'``: in the way; ``'not needed'``: no gradient comes here.
    reason : str
        Why, and what to do.
    forms : mapping of str to str
        Of a convolution, by which form its ``'forward'`` and its gradients, ``'dX'`` and ``'dW'``, are
        computed on a CPU: what is fastest for its shapes.
    """

    node: str
    op_type: str
    domain: str
    opset: int | None
    how: str
    reason: str = ""
    forms: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OperatorRow:
    """All nodes of an operator that are treated alike.

    Parameters
    ----------
    op_type, domain, opset, how, reason
        As in :class:`Row`.
    nodes : tuple of str
        Their names.
    """

    op_type: str
    domain: str
    opset: int | None
    how: str
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class WeightRow:
    """One weight of a report.

    Parameters
    ----------
    name : str
        As :func:`onnxcustom.weights` calls it.
    shape : tuple of int
        Its dimensions.
    dtype : str
        Its element type, such as ``'float32'``.
    how : str
        ``'trained'``; ``'unused'``: no output that is differentiated depends on it, so its gradient is zero;
        ``'refused'`` or ``'unknown'``: a node in the way cannot be differentiated; ``'non-differentiable'``:
        only step functions lead to the outputs.
    reason : str
        The node in the way, and what to do.
    readers : int
        How many nodes read it; it is one weight all the same.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    how: str
    reason: str = ""
    readers: int = 1

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class LeftOutRow:
    """One constant that training leaves as it is.

    Parameters
    ----------
    name, shape, dtype
        As in :class:`WeightRow`.
    reason : str
        What it is taken for. What is floating-point is trained by whoever names it, unless it holds NaN or
        infinity.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str


class GradientReport:
    """Rows for all nodes of the prepared model, in its order; ``str()`` is a table.

    Parameters
    ----------
    engine : str
        The engine asked.
    rows : list of Row
        One per node.
    problem : str, optional
        Why the engine cannot be used at all.
    weights : sequence of WeightRow
        One per weight, in the order of :func:`onnxcustom.weights`.
    why : str
        Why ``'auto'`` takes this engine; empty if it was asked for by name.
    left_out : sequence of LeftOutRow
        Constants that look like weights and are none.
    warnings : sequence of str
        What about the weights is probably not meant so.
    """

    def __init__(
        self,
        engine: str,
        rows: list[Row],
        problem: str | None = None,
        weights: Sequence[WeightRow] = (),
        why: str = "",
        left_out: Sequence[LeftOutRow] = (),
        warnings: Sequence[str] = (),
    ) -> None:
        self.engine = engine
        self.rows = rows
        self.problem = problem
        self.weights = list(weights)
        self.why = why
        self.left_out = list(left_out)
        self.warnings = list(warnings)

    @property
    def refused(self) -> list[Row]:
        """Rows of the nodes that the engine cannot differentiate."""
        return [row for row in self.rows if row.how in ("refused", "unknown")]

    @property
    def operators(self) -> list[OperatorRow]:
        """The nodes by operator and by how they are differentiated, the most frequent first."""
        groups: dict[tuple[str, str, int | None, str, str], list[str]] = {}
        for row in self.rows:
            key = (row.op_type, row.domain, row.opset, row.how, row.reason)
            groups.setdefault(key, []).append(row.node)
        found = [OperatorRow(*key, nodes=tuple(nodes)) for key, nodes in groups.items()]
        return sorted(found, key=lambda row: (-len(row.nodes), row.domain, row.op_type))

    @property
    def trainable(self) -> bool:
        """Whether the engine can be used here and trains every weight, and there are some."""
        fine = all(weight.how in ("trained", "unused") for weight in self.weights)
        return self.problem is None and bool(self.weights) and fine

    @property
    def untrainable(self) -> str:
        """Why not every weight can be trained; empty if each can."""
        held = [w for w in self.weights if w.how not in ("trained", "unused")]
        if held:
            text = f"{len(held):,} of {len(self.weights):,} weights cannot be trained"
            return f"{text}; the first is {held[0].name!r}: {held[0].reason}"
        if self.weights:
            return ""
        integers = [row for row in self.left_out if row.reason.startswith("quantized")]
        if integers:
            return (
                f"the model is quantized: {len(integers)} of its tensors are integers, which are not "
                f"trained, and no floating-point weight is left; {REMEDY}"
            )
        return "the model holds no floating-point weight"

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"GradientReport(engine={self.engine!r}, {len(self.rows)} nodes, {len(self.refused)} refused)"

    def __str__(self) -> str:
        title = ("node", "operator", "opset", "how", "reason")
        cells = [title] + [
            (
                row.node,
                f"{row.domain}.{row.op_type}" if row.domain else row.op_type,
                str(row.opset),
                row.how,
                row.reason or ", ".join(f"{what}: {form}" for what, form in row.forms.items()),
            )
            for row in self.rows
        ]
        widths = [max(len(line[k]) for line in cells) for k in range(4)]
        lines = []
        for line in cells:
            padded = [text.ljust(width) for text, width in zip(line[:4], widths, strict=True)]
            lines.append("  ".join([*padded, line[4]]).rstrip())
        lines.insert(1, "  ".join("-" * w for w in [*widths, 6]))
        counts = Counter(row.how for row in self.rows)
        lines.append(f"engine {self.engine!r}: " + ", ".join(f"{n} {how}" for how, n in counts.items()))
        if self.problem:
            lines.append(f"The engine is not available: {self.problem}")
        lines += [
            f"{w.name!r} is one weight that {w.readers} nodes read" for w in self.weights if w.readers > 1
        ]
        lines += [f"left out: {row.name!r}, {row.reason}" for row in self.left_out]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines)


def engine_report(model: Prepared, engine: Engine) -> GradientReport:
    """The report of one engine."""
    return report_of(look_at(model, engine), engine)


def report_of(model: ir.Model, engine: Engine) -> GradientReport:
    """The report of a prepared model."""
    graph = model.graph
    targets = _targets(model)
    flow = analyse(model, targets, engine)
    found = find_weights(model)
    weights = found.weights
    depends: set[ir.Value] = {v for v in graph.inputs if is_float(v)}
    depends.update(weights)
    rows = []
    for node in graph:
        read = [*operands(node), *((-1, v) for v in engine.carried(node))]
        edges = [(i, v) for i, v in read if v in depends]
        if edges:
            depends.update(node.outputs)
        verdict = _row_verdict(flow, node, [i for i, v in edges if is_float(v)])
        rows.append(
            Row(
                node.name or "",
                node.op_type,
                node.domain,
                model.opset_imports.get(node.domain),
                verdict.how,
                verdict.reason,
                engine.forms(model, node) if verdict.how == "rule" else {},
            )
        )
    links = Links(graph)
    readers = {v: len({node for node, _ in links.next(v)}) for v in weights}
    held = [replace(_weight_row(flow, v, bool(targets)), readers=readers[v]) for v in weights]
    shared = [v for v in weights if readers[v] > 1]
    return GradientReport(engine.name, rows, engine.unavailable(), held, warnings=_tied(model, shared))


def _tied(model: ir.Model, shared: Sequence[ir.Value]) -> list[str]:
    """A warning where weights that were equal by chance have become one, as PyTorch's exporters do it."""
    if model.producer_name != "pytorch":
        return []
    names = []
    for value in shared:
        array = array_of(value)
        if (array == 0).all() or (array == 1).all():
            names.append(value.name or "")
    if not names:
        return []
    shown = listed(names, _SHOWN)
    return [
        f"several nodes read {shown}, all zeros or all ones: PyTorch's exporter keeps one of equal tensors, "
        "so that weights of a model that was never trained are tied, and training moves them together. "
        "Export with torch.onnx.export(..., dynamo=True, optimize=False), which keeps them apart, or give "
        "each node a copy of its own with onnxcustom.tuning.untie(model)."
    ]


def described(value: ir.Value) -> tuple[str, tuple[int, ...], str]:
    """Name, shape and dtype of an initializer."""
    tensor = value.const_value
    assert tensor is not None
    return value.name or "", tuple(int(d) for d in tensor.shape.numpy()), tensor.dtype.numpy().name


def _targets(model: ir.Model) -> list[ir.Value]:
    """What training differentiates: floating-point outputs, scores behind dictionaries (ZipMap) or ArgMax."""
    by_name = {v.name: v for node in model.graph for v in node.outputs}
    found: dict[ir.Value, None] = {}
    for value in model.graph.outputs:
        if isinstance(value.type, ir.TensorType) and value.dtype is not None:
            if is_float(value):
                found[value] = None
        elif (logits := find_logits(model, value.name or "")) is not None and logits.name in by_name:
            found[by_name[logits.name]] = None
    return list(found or dict.fromkeys(decisions(model).values()))


def _weight_row(flow: Flow, value: ir.Value, targets: bool) -> WeightRow:
    name, shape, dtype = described(value)
    if not targets:
        reason = "the model has no floating-point output, and none that holds probabilities."
        return WeightRow(name, shape, dtype, "non-differentiable", reason)
    reach = flow.of(value)
    obstacle = reach.refusal or (None if reach.live else reach.blocked)
    if obstacle is None:
        return WeightRow(name, shape, dtype, "trained" if reach.live else "unused")
    node, verdict = obstacle
    reason = f"node {node.name!r} ({node.op_type}): {of_weight(verdict)}"
    return WeightRow(name, shape, dtype, verdict.how, reason)


def _row_verdict(flow: Flow, node: ir.Node, positions: list[int]) -> Verdict:
    """The gravest verdict on the edges that gradients take."""
    found = [flow.verdicts[node, i] for i in positions if (node, i) in flow.verdicts]
    for how in ("unknown", "refused", "function", "rule", "non-differentiable"):
        for verdict in found:
            if verdict.how == how:
                return verdict
    return Verdict("not needed")
