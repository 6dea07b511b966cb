"""Nodes that are run alone, on arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import EvaluationError, InvalidModelError
from onnxcustom.runtime import create_session, ort_limits, require_runtime, session_options

__all__ = ["FAILURES", "Trial", "proto_of", "quiet_session", "run_quietly"]

# Constants up to this size are handed over as such: some kernels want to know them beforehand.
_SMALL = 4096
FAILURES = (InvalidModelError, EvaluationError)


class Trial:
    """A session of a few nodes.

    Parameters
    ----------
    nodes : sequence of onnx.NodeProto
        In the order in which they run.
    values : mapping of str to ndarray
        What they read from outside; of those in `constants` the array itself counts, of others its type.
    constants : iterable of str
        Names of what is the same in every run.
    outputs : sequence of str
        What is asked for.
    opsets : mapping of str to int
        Versions of the domains.
    shaped : iterable of str
        Names of what has the same shape in every run.
    free : iterable of str
        Names of what may have another number of dimensions.
    """

    def __init__(
        self,
        nodes: Sequence[onnx.NodeProto],
        values: Mapping[str, np.ndarray],
        constants: Iterable[str],
        outputs: Sequence[str],
        opsets: Mapping[str, int],
        shaped: Iterable[str] = (),
        free: Iterable[str] = (),
    ) -> None:
        fixed = {name for name in constants if name in values and values[name].size <= _SMALL}
        graph = onnx.GraphProto(name="trial", node=nodes)
        for name, array in values.items():
            if name in fixed:
                graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
            else:
                kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                shape: Any = array.shape if name in set(shaped) else [None] * array.ndim
                shape = None if name in set(free) else shape
                graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        imports = [onnx.helper.make_opsetid(d, v) for d, v in opsets.items()]
        model = onnx.helper.make_model(graph, opset_imports=imports)
        model.ir_version = min(ort_limits()[1], 10)
        self._inputs = [info.name for info in graph.input]
        self._session = quiet_session(model)

    def run(self, values: Mapping[str, np.ndarray]) -> list[Any]:
        """The outputs, of arrays by name."""
        return run_quietly(self._session, {name: values[name] for name in self._inputs})


def quiet_session(model: onnx.ModelProto) -> Any:
    """A session of one thread that says nothing of what fails."""
    options = session_options(1, optimize=False)
    options.log_severity_level = 4  # that some do not run is what is to be found out
    return create_session(model, sess_options=options)


def run_quietly(session: Any, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """Run a session that may fail, without a word on standard error.

    Raises
    ------
    EvaluationError
        It did.
    """
    options = require_runtime().RunOptions()
    options.log_severity_level = 4
    try:
        return [_as_array(found) for found in session.run(None, dict(feeds), options)]
    except Exception as exc:  # those of onnxruntime have no base of their own
        raise EvaluationError(" ".join(str(exc).split())) from exc


def _as_array(found: Any) -> Any:
    """What ZipMap gives as the numbers that it was made of."""
    if isinstance(found, list) and found and all(isinstance(row, dict) for row in found):
        return np.array([list(row.values()) for row in found])
    return found


def proto_of(node: ir.Node) -> onnx.NodeProto:
    """A node as a message."""
    return ir.serde.serialize_node(node)
