"""What an engine can differentiate in a model, said before it tries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxcustom.graph import trainable_values

from .flow import Flow, analyse, operands
from .interface import Engine, Verdict, get_engine, is_float, select_engine

__all__ = ["GradientReport", "Row", "gradient_report"]


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
    """

    node: str
    op_type: str
    domain: str
    opset: int | None
    how: str
    reason: str = ""


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
    """

    def __init__(self, engine: str, rows: list[Row], problem: str | None = None) -> None:
        self.engine = engine
        self.rows = rows
        self.problem = problem

    @property
    def refused(self) -> list[Row]:
        """Rows of the nodes that the engine cannot differentiate."""
        return [row for row in self.rows if row.how in ("refused", "unknown")]

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
                row.reason,
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
        return "\n".join(lines)


def gradient_report(model: object, engine: str | Engine = "auto") -> GradientReport:
    """Say, node by node, how a model would be differentiated.

    Parameters
    ----------
    model : ModelProto, str, bytes, onnx_ir.Model
        Anything :func:`onnxcustom.graph.load` takes. Nothing is built and nothing is run.
    engine : str, default='auto'
        The engine whose answers are wanted.

    Returns
    -------
    GradientReport
        With respect to every floating-point input and every weight.

    Raises
    ------
    UnknownNameError
        If there is no such engine.

    Examples
    --------
    >>> import onnx
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... g (float[N, 2] x) => (float[N, 2] y, int64[N, 1] k) {
    ...     y = Tanh (x)
    ...     k = ArgMax <axis = 1> (y)
    ... }''')
    >>> report = gradient_report(model, engine="ort")
    >>> [(row.op_type, row.how) for row in report]
    [('Tanh', 'rule'), ('ArgMax', 'not needed')]
    >>> report.refused
    []
    """
    if isinstance(engine, Engine):
        chosen = engine
    else:
        chosen = select_engine("auto", model) if engine == "auto" else get_engine(engine)
    from .build import prepared

    return report_of(prepared(model, chosen), chosen)


def report_of(model: ir.Model, engine: Engine) -> GradientReport:
    """The report of a prepared model."""
    graph = model.graph
    flow = analyse(model, [v for v in graph.outputs if is_float(v) and v.dtype is not None], engine)
    depends: set[ir.Value] = {v for v in graph.inputs if is_float(v)}
    depends.update(trainable_values(model))
    rows = []
    for node in graph:
        edges = [(i, v) for i, v in operands(node) if v in depends]
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
            )
        )
    return GradientReport(engine.name, rows, engine.unavailable())


def _row_verdict(flow: Flow, node: ir.Node, positions: list[int]) -> Verdict:
    """The gravest verdict on the edges that gradients take."""
    found = [flow.verdicts[node, i] for i in positions if (node, i) in flow.verdicts]
    for how in ("unknown", "refused", "function", "rule", "non-differentiable"):
        for verdict in found:
            if verdict.how == how:
                return verdict
    return Verdict("not needed")
