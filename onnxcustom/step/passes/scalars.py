"""Arithmetic of scalars taken out of a step graph: Python does it in less time than a node each costs.

What depends on the learning rate, the step and the number of rows alone is computed before the graph
runs, and handed in; what becomes of one scalar that the graph computes, the sum of the losses, afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.preparation.unused import RemoveUnusedPass

__all__ = ["NOTHING", "ScalarPlan", "plan_scalars"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
# Operators as Python writes them.
_TEXT = {
    "Add": "({0} + {1})",
    "Sub": "({0} - {1})",
    "Mul": "({0} * {1})",
    "Div": "({0} / {1})",
    "Pow": "power({0}, {1})",
    "Neg": "(-{0})",
    "Reciprocal": "(1.0 / {0})",
    "Sqrt": "sqrt({0})",
    "Exp": "exp({0})",
    "Log": "log({0})",
    "Cast": "{0}",
    "Min": "least({0}, {1})",
    "Max": "most({0}, {1})",
}


def _least(a: float, b: float) -> float:
    return b if b < a or b != b else a  # NaN stays, whichever it is


def _most(a: float, b: float) -> float:
    return b if b > a or b != b else a


_QUICK: dict[str, Any] = {"power": math.pow, "sqrt": math.sqrt, "exp": math.exp, "log": math.log}
_QUICK |= {"least": _least, "most": _most}
_SAFE: dict[str, Any] = {"power": np.power, "sqrt": np.sqrt, "exp": np.exp, "log": np.log}
_SAFE |= {"least": np.minimum, "most": np.maximum}


class ScalarPlan:
    """What is computed beside a step graph.

    Parameters
    ----------
    texts : mapping of str to str
        Scalar graph input that the graph still reads -> Python expression of its value.
    lines : sequence of (str, str)
        Variables that these expressions use, in order, and their own expressions.
    loss : str
        Expression of the loss, of the number ``raw`` that the graph hands out as such.
    constants : mapping of str to float
        Numbers that the expressions use.

    Attributes
    ----------
    names : tuple of str
        Scalar graph inputs.
    parts : tuple
        What it is made of.
    feeds : callable
        Their values, of hyper-parameters by name, step, share of the rows accumulated, rows of the batch,
        and what the loss of each output is divided by.
    loss : callable
        The loss, of what the graph hands out as such and the same arguments.
    by_step, by_share, by_rows : bool
        Whether their values depend on the step, on the share of the rows accumulated, and on the rows of
        the batch; otherwise on hyper-parameters only.
    reads_rows : bool
        Whether anything depends on the rows of the batch.
    """

    def __init__(
        self,
        texts: Mapping[str, str],
        lines: Mapping[str, str],
        loss: str,
        constants: Mapping[str, float],
    ) -> None:
        self.parts = (dict(texts), dict(lines), loss, dict(constants))
        self.names = tuple(texts)
        values = ", ".join(texts.values())
        feeds = _body(lines, f"({values}{',' if texts else ''})", texts.values())
        finish = _body(lines, loss, [loss])
        self.by_step, self.by_share, self.by_rows = (
            any(_mentions(line, word) for line in feeds) for word in ("step", "share", "rows")
        )
        self.reads_rows = self.by_rows or any(_mentions(line, "rows") for line in finish)
        self.feeds = _function("hyper, step, share, rows, counts", feeds, constants)
        self.loss = _function("raw, hyper, step, share, rows, counts", finish, constants)


def _mentions(text: str, word: str) -> bool:
    """Whether an expression uses a variable."""
    return word in "".join(c if c.isalnum() or c == "_" else " " for c in text).split()


def _body(lines: Mapping[str, str], result: str, ends: Iterable[str]) -> list[str]:
    """Lines of a function: the variables that its result needs, and the result."""
    needed = {v for v in lines if any(_mentions(end, v) for end in ends)}
    for variable in reversed(list(lines)):
        if variable in needed:
            needed |= {v for v in lines if _mentions(lines[variable], v)}
    return [*(f"{v} = {text}" for v, text in lines.items() if v in needed), f"return {result}"]


def _function(arguments: str, body: list[str], constants: Mapping[str, float]) -> Callable[..., Any]:
    """A function of its source. It says NaN and infinity where ONNX does, not ZeroDivisionError.

    Nothing of the source comes from outside: operators are those above, names are our own.
    """
    safe: dict[str, Any] = {"__builtins__": {}, **_SAFE}
    safe |= {key: np.float64(value) for key, value in constants.items()}
    exec("\n    ".join([f"def function({arguments}):", *body]), safe)

    def again(*values: Any) -> Any:
        with np.errstate(all="ignore"):
            result = safe["function"](*map(_as_numpy, values))
        return tuple(map(float, result)) if isinstance(result, tuple) else float(result)

    quick: dict[str, Any] = {"__builtins__": {}, **_QUICK, **constants, "again": again}
    quick["errors"] = (ArithmeticError, ValueError)
    tried = ["try:", *(f"    {line}" for line in body), "except errors:", f"    return again({arguments})"]
    exec("\n    ".join([f"def function({arguments}):", *tried]), quick)
    return quick["function"]


def _as_numpy(argument: Any) -> Any:
    if isinstance(argument, Mapping):
        return {key: np.float64(value) for key, value in argument.items()}
    if isinstance(argument, Sequence):
        return [np.float64(value) for value in argument]
    return np.float64(argument)


class _Hoister:
    """Finds the scalars and writes them as Python."""

    def __init__(self, sources: Mapping[ir.Value, str]) -> None:
        self.constants: dict[str, float] = {}
        self.lines: dict[str, str] = {}
        self._known = dict(sources)
        self._sources = frozenset(sources)
        self.nodes: set[ir.Node] = set()

    def collect(self, graph: ir.Graph) -> None:
        """Every scalar that depends on the sources only."""
        ends = set(graph.outputs)
        for node in graph:
            if _template(node) is None or node.outputs[0] in ends:
                continue
            operands = [self._scalar(v) for v in node.inputs]
            if None in operands or not any(v in self._known for v in node.inputs):
                continue
            name = f"v{len(self.lines)}"
            self.lines[name] = _TEXT[node.op_type].format(*operands)
            self._known[node.outputs[0]] = name
            self.nodes.add(node)

    def _scalar(self, value: ir.Value | None) -> str | None:
        """The text of a source, of what was collected, or of a constant."""
        if value is None:
            return None
        if value in self._known:
            return self._known[value]
        tensor = None if value.is_graph_input() else value.const_value
        if tensor is None or len(tensor.shape) or tensor.dtype not in _FLOATS:
            return None
        name = f"c{len(self.constants)}"
        self.constants[name] = float(tensor.numpy())
        return name

    def tail(self, loss: ir.Value) -> tuple[ir.Value, str] | None:
        """The one scalar that the graph computes the loss from, and the text of the loss."""
        roots: set[ir.Value] = set()

        def text(value: ir.Value | None) -> str:
            known = self._scalar(value)
            if known is not None:
                return known
            node = None if value is None else value.producer()
            template = None if node is None else _template(node)
            if node is None or template is None or any(v is None for v in node.inputs):
                assert value is not None
                roots.add(value)
                return "raw"
            return template.format(*map(text, node.inputs))

        made = text(loss)
        (root,) = roots if len(roots) == 1 else (None,)
        if root is None or root is loss or root.dtype != loss.dtype:
            return None
        if root.producer() is None or root.is_graph_output():
            return None
        return root, made

    def feed(self, graph: ir.Graph) -> dict[str, str]:
        """Make graph inputs of what the other nodes read; their texts."""
        texts: dict[str, str] = {}
        for value, text in self._known.items():
            users = [(user, i) for user, i in value.uses() if user not in self.nodes]
            if not users:
                continue
            if value in self._sources:
                texts[str(value.name)] = text
                continue
            made = ir.Value(name=value.name, type=value.type, shape=ir.Shape([]))
            value.name = f"{value.name}_inside"  # it is about to go
            for user, i in users:
                user.replace_input_with(i, made)
            graph.inputs.append(made)
            texts[str(made.name)] = text
        return texts


def _template(node: ir.Node) -> str | None:
    """How Python writes a node of floating-point arithmetic."""
    if node.domain != "" or node.op_type not in _TEXT or len(node.outputs) != 1:
        return None
    values, text = [*node.inputs, node.outputs[0]], _TEXT[node.op_type]
    if text.count("{") != len(node.inputs):  # the largest of three, say
        return None
    return text if all(v is not None and v.dtype in _FLOATS for v in values) else None


def plan_scalars(model: ir.Model, loss: str, sources: Mapping[str, str], hoist: bool) -> ScalarPlan:
    """Take arithmetic of scalars out of a step graph.

    Parameters
    ----------
    model : onnx_ir.Model
        Step graph, sorted; changed in place. Scalar inputs that it does not read, or no longer, stay.
    loss : str
        Its output that the caller finishes with :meth:`ScalarPlan.loss`.
    sources : mapping of str to str
        Scalar graph input -> what it is: ``step``, ``share``, ``rows``, ``counts[0]`` or
        ``hyper['learning_rate']``.
    hoist : bool
        Whether to do so; otherwise the graph stays as it is.

    Returns
    -------
    ScalarPlan
    """
    graph = model.graph
    inputs = {str(v.name): v for v in graph.inputs}
    hoister = _Hoister({inputs[name]: text for name, text in sources.items()})
    finish = "raw"
    if hoist:
        hoister.collect(graph)
        (end,) = (v for v in graph.outputs if v.name == loss)
        found = hoister.tail(end)
        if found is not None:
            root, finish = found
            graph.outputs[list(graph.outputs).index(end)] = root
            end.name = f"{loss}_finished"
            root.name, root.shape = loss, ir.Shape([])
            RemoveUnusedPass()(model)
    texts = hoister.feed(graph)
    RemoveUnusedPass()(model)
    return ScalarPlan(texts, hoister.lines, finish, hoister.constants)


#: Of a graph that reads no scalar.
NOTHING = ScalarPlan({}, {}, "raw", {})
