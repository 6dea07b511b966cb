"""What the graphs are that commands write."""

from __future__ import annotations

from typing import Any

import onnx

from onnxcustom.graph import find_logits

from .models import Model
from .rules import classifies

__all__ = ["describe_graph", "fitting_name"]

# Of long lists the middle is left out: a step's begins with the batch and ends with the learning rate.
_FIRST, _LAST = 8, 5


def describe_graph(model: onnx.ModelProto) -> str:
    """Inputs and outputs of a model, a line each.

    Examples
    --------
    >>> import onnx.parser
    >>> print(describe_graph(onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }''')))
      inputs   x  float[N, 2]
      outputs  y  float[N, 2]
    """
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    inputs = [info for info in graph.input if info.name not in constants]
    wide = max((len(i.name) for i in (*inputs, *graph.output)), default=0)
    return "\n".join([*_lines("inputs", inputs, wide), *_lines("outputs", list(graph.output), wide)])


def _lines(title: str, infos: list[onnx.ValueInfoProto], wide: int) -> list[str]:
    lines = [f"{info.name:{wide}}  {_type(info)}" for info in infos]
    if len(lines) > _FIRST + _LAST + 1:
        lines[_FIRST:-_LAST] = [f"... {len(lines) - _FIRST - _LAST:,} more ..."]
    return [f"  {title if not i else '':7}  {line}" for i, line in enumerate(lines)]


def _type(info: onnx.ValueInfoProto) -> str:
    if not info.type.HasField("tensor_type"):
        return "no tensor"
    tensor = info.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return kind
    sizes = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return f"{kind}[{', '.join(sizes)}]"


def fitting_name(model: Model, output: str | None, loss: Any) -> Any:
    """The loss that was asked for, or the one that fits the end of the model."""
    fits = loss is None or (isinstance(loss, str) and classifies(loss))
    if not fits:
        return loss
    name = output if output is not None else model.score_output
    logits = None if name is None or name not in model.outputs else find_logits(model.prepared, name)
    if logits is not None:
        return logits.loss
    return "squared_error" if loss is None else "softmax_crossentropy"
