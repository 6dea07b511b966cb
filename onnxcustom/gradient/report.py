"""What can be differentiated in a model, and by which engine."""

from __future__ import annotations

from onnxcustom._text import listed
from onnxcustom.graph import Prepared
from onnxcustom.graph.analysis.integers import REMEDY
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.preparation.sites import own_name
from onnxcustom.graph.trainable.finding import find_weights
from onnxcustom.graph.trainable.left_out import left_out

from .choice import choose_engine
from .engine_report import GradientReport, LeftOutRow, OperatorRow, Row, WeightRow, described, engine_report
from .interface import Engine, get_engine

__all__ = ["GradientReport", "LeftOutRow", "OperatorRow", "Row", "WeightRow", "gradient_report"]

_SHOWN = 5  # names in a warning


def gradient_report(model: object, engine: str | Engine = "auto") -> GradientReport:
    """Say, node by node, how a model would be differentiated.

    Parameters
    ----------
    model : ModelProto, str, bytes, onnx_ir.Model
        Anything :func:`onnxcustom.graph.load` takes, or a :class:`onnxcustom.graph.Prepared`. Nothing is
        built and nothing is run.
    engine : str, default='auto'
        The engine whose answers are wanted.

    Returns
    -------
    GradientReport
        Of every floating-point output, and of the scores behind one that holds dictionaries of
        probabilities; with respect to every floating-point input and every weight.

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
    prepared = Prepared.of(model)  # type: ignore[arg-type]
    if engine == "auto":
        choice = choose_engine(prepared)
        report = choice.report or engine_report(prepared, choice.engine)
        report.why = choice.why
        report.left_out = _left_out(prepared)
        _warn_of_integers(report)
        if not (report.trainable or report.refused):
            report.why = f"the first choice, but {report.untrainable}"
        return report
    report = engine_report(prepared, engine if isinstance(engine, Engine) else get_engine(engine))
    report.left_out = _left_out(prepared)
    _warn_of_integers(report)
    return report


def _warn_of_integers(report: GradientReport) -> None:
    """Say that weights are found, and more of them are integers."""
    integers = [row.name for row in report.left_out if row.reason.startswith("quantized")]
    if integers and report.weights:
        report.warnings.append(
            f"the model is quantized: beside its weights it holds integers, which are not trained, "
            f"{listed(integers, _SHOWN)}; {REMEDY}."
        )


def _left_out(model: Prepared) -> list[LeftOutRow]:
    """What is no weight, under the names of the user's model: an engine's form may have others."""
    made = model.model
    rows = []
    for value, reason in left_out(made, find_weights(made)).items():
        name, shape, dtype = described(value)
        name = name if is_float(value) else own_name(value)
        rows.append(LeftOutRow(name, shape, dtype, reason))
    return rows
