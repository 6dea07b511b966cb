"""``python -m onnxcustom inspect``: what of a model can be trained, said before training.

The data is that of :func:`onnxcustom.gradient_report`; here it becomes text of a given width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from onnxcustom._text import count, listed, table, wrap
from onnxcustom.gradient.report import GradientReport, OperatorRow, WeightRow, gradient_report
from onnxcustom.graph import Prepared, class_axis, find_logits, hidden_logits, weights
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.graph.trainable.layers import layers_of
from onnxcustom.step.rows import doubtful_rows, row_lines
from onnxcustom.step.targets import prediction_tensors, where

__all__ = ["describe", "inspect_model", "loss_lines"]

_SHOWN = 3  # nodes named in one line
_PRODUCTS = ("forward", "dX", "dW")


def inspect_model(
    path: Path | str, engine: str = "auto", width: int = 100, worded: Callable[[str], str] = str
) -> tuple[str, bool]:
    """Describe how a model would be trained.

    Parameters
    ----------
    path : Path or str
        The model's file. Nothing is built and nothing is run.
    engine : {'auto', 'onnx', 'ort'}, default='auto'
        The engine whose answers are wanted.
    width : int, default=100
        Columns of the text, 60 at least.
    worded : callable, optional
        Makes of a warning that names parameters what the user can type.

    Returns
    -------
    tuple of (str, bool)
        The text, and whether every weight can be trained.

    Raises
    ------
    InvalidModelError
        If the file holds no valid model.
    """
    prepared = Prepared.of(path)
    report = gradient_report(prepared, engine)
    levels = {name: layer.level for layer in layers_of(prepared.model) for name in layer.weights}
    axes, tensors = BatchAxes(prepared.model), prediction_tensors(prepared.model)
    doubt = doubtful_rows(axes, tensors)
    rows = [*row_lines(axes, tensors), *([] if doubt is None else [f"Warning: {worded(doubt)}"])]
    text = describe(report, width, levels, loss_lines(prepared.model), rows)
    return f"{Path(path).name}\n\n{text}", report.trainable


def loss_lines(model: ir.Model) -> list[str]:
    """The tensor that a loss of each output is taken on, with the loss that its end suggests.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model.

    Returns
    -------
    list of str
        One sentence an output.
    """
    lines, trained = [], set(weights(model))
    for output, value in prediction_tensors(model).items():
        logits = find_logits(model, output, trained)
        if logits is not None:
            lines.append(f"{output}: {logits.loss} {where(output, logits.name, logits.kind.capitalize())}")
        elif (why := hidden_logits(model, output, trained)) is not None:
            lines.append(f"{output}: no loss on scores, since it {why}; others {where(output, value, None)}")
        elif class_axis(model, output) is not None:
            lines.append(f"{output}: softmax_crossentropy {where(output, value, None)}")
        else:
            lines.append(f"{output}: squared_error {where(output, value, None)}")
    return lines


def describe(
    report: GradientReport,
    width: int = 100,
    levels: Mapping[str, int] | None = None,
    losses: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> str:
    """Write a report as tables: operators, weights, losses, rows, what is refused, the engine, the verdict.

    Parameters
    ----------
    report : GradientReport
        Of :func:`onnxcustom.gradient_report`.
    width : int, default=100
        Columns of the text, 60 at least.
    levels : mapping of str to int, optional
        Level of the layer of every weight, as :func:`onnxcustom.graph.layers` counts them.
    losses : sequence of str, default=()
        What :func:`loss_lines` says.
    rows : sequence of str, default=()
        What :func:`onnxcustom.step.rows.row_lines` says.

    Returns
    -------
    str

    Examples
    --------
    >>> import onnx.parser, onnxcustom
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 18]>
    ... g (float[N, 2] x) => (float[N, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> {
    ...     z = MatMul(x, w)
    ...     y = Tanh(z)
    ... }''')
    >>> print(describe(onnxcustom.gradient_report(model)))
    Operators, in the form that is trained
      operator  opset  count  gradient
      --------  -----  -----  --------
      MatMul       18      1  rule
      Tanh         18      1  rule
    <BLANKLINE>
    Weights
      name  shape  dtype    numbers  gradient
      ----  -----  -------  -------  --------
      w     2x3    float32        6  trained
      1 weight, 6 numbers
    <BLANKLINE>
    Engine 'onnx': the first choice, and it covers the model
    Every weight can be trained.
    """
    width = max(width, 60)
    parts = [_operators(report, width), *_forms(report, width), _weights(report, width, levels)]
    if report.left_out:
        parts.append(_left_out(report, width))
    for title, texts in (("Losses, as the outputs suggest them", losses), ("Rows of a batch", rows)):
        if texts:
            parts.append("\n".join([title, *(line for text in texts for line in wrap(text, width, 2))]))
    if report.refused:
        parts.append(_refused(report, width))
    warned = [line for text in report.warnings for line in wrap(f"Warning: {text}", width, 0)]
    parts.append("\n".join([*warned, *_engine(report, width), *_verdict(report, width)]))
    return "\n\n".join(parts)


# -- sections --------------------------------------------------------------------------------------


def _operators(report: GradientReport, width: int) -> str:
    rows = [
        (_operator(row.op_type, row.domain), str(row.opset or ""), str(len(row.nodes)), _how(row))
        for row in report.operators
    ]
    lines = table(("operator", "opset", "count", "gradient"), rows, "<>><", width)
    return "\n".join(["Operators, in the form that is trained", *lines])


def _forms(report: GradientReport, width: int) -> list[str]:
    """The nodes whose operators depend on shapes, those of the same together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in report.rows:
        if row.forms:
            groups.setdefault(tuple(row.forms[what] for what in _PRODUCTS), []).append(row.node)
    rows = [(*forms, str(len(nodes)), listed(nodes, _SHOWN, quoted=False)) for forms, nodes in groups.items()]
    if not rows:
        return []
    lines = table((*_PRODUCTS, "count", "nodes"), rows, "<<<><", width)
    return ["\n".join(["Convolutions, by what is fastest for their shapes", *lines])]


def _how(row: OperatorRow) -> str:
    """How in a word or two; what is refused is explained in a section of its own."""
    if row.how == "not needed":
        return "none comes here"
    explained = row.reason and row.how not in ("refused", "unknown")
    return f"{row.how}: {row.reason}" if explained else row.how


def _weights(report: GradientReport, width: int, levels: Mapping[str, int] | None) -> str:
    if not report.weights:
        return "Weights\n  none"
    layer = {w.name: [] if levels is None else [str(levels.get(w.name, ""))] for w in report.weights}
    rows = [
        [w.name, "x".join(map(str, w.shape)) or "scalar", w.dtype, f"{w.size:,}", *layer[w.name], _trained(w)]
        for w in report.weights
    ]
    more, aligned = ([], "") if levels is None else (["layer"], ">")
    titles, align = ["name", "shape", "dtype", "numbers", *more, "gradient"], f"<<<>{aligned}<"
    lines = table(titles, rows, align, width)
    total = sum(w.size for w in report.weights)
    both = f"  {count(len(report.weights), 'weight')}, {count(total, 'number')}"
    return "\n".join(["Weights", *lines, both])


def _trained(weight: WeightRow) -> str:
    return weight.how if weight.readers == 1 else f"{weight.how}, read by {weight.readers} nodes"


def _left_out(report: GradientReport, width: int) -> str:
    """Constants that are no weights, those of one reason together."""
    groups: dict[str, list[str]] = {}
    for row in report.left_out:
        groups.setdefault(row.reason, []).append(row.name)
    lines = ["Left out, since it is no weight"]
    for reason, names in groups.items():
        lines += wrap(f"{reason}: {listed(names, _SHOWN, quoted=False)}", width, 2)
    return "\n".join(lines)


def _refused(report: GradientReport, width: int) -> str:
    lines = ["Refused"]
    for row in report.operators:
        if row.how in ("refused", "unknown"):
            nodes = listed(row.nodes, _SHOWN)
            lines += wrap(f"{_operator(row.op_type, row.domain)} ({nodes})", width, 2)
            lines += wrap(row.reason, width, 4)
    return "\n".join(lines)


def _engine(report: GradientReport, width: int) -> list[str]:
    why = report.why or "as asked for"
    if report.problem:
        why = f"not available: {report.problem}"
    return wrap(f"Engine {report.engine!r}: {why}", width, 0)


def _verdict(report: GradientReport, width: int) -> list[str]:
    if not report.weights:
        return ["The model holds no weight that could be trained."]
    held = [w for w in report.weights if w.how not in ("trained", "unused")]
    if held:
        text = f"{len(held):,} of {count(len(report.weights), 'weight')} cannot be trained"
        return wrap(f"{text}; the first is {held[0].name!r}: {held[0].reason}", width, 0)
    return [f"Every weight can be trained{' by it, where it is available' if report.problem else ''}."]


# -- text ------------------------------------------------------------------------------------------


def _operator(op_type: str, domain: str) -> str:
    return f"{domain}.{op_type}" if domain else op_type
