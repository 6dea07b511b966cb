"""OrtValues and IO binding."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcustom.exceptions import EvaluationError, InvalidDataError
from onnxcustom.graph.preparation.guards import DIVISION

from .devices import Device, parse_device, require_runtime
from .forking import Remade, remember

__all__ = ["Binding", "OrtValues", "owned_copy", "plain_array", "run_values", "to_ortvalue", "to_vector"]

OrtValueLike = Any  # onnxruntime.OrtValue, its C twin, or an array


def to_ortvalue(value: OrtValueLike, device: Any = None) -> Any:
    """An ``onnxruntime.OrtValue`` of an array, without a copy where that is safe.

    Parameters
    ----------
    value : array_like or OrtValue
        Any strides, byte order and alignment. An OrtValue, of Python or C, is passed through.
    device : optional
        What :func:`parse_device` understands, CPU by default. Ignored for an OrtValue.

    Returns
    -------
    onnxruntime.OrtValue
        It keeps the array alive whose memory it borrows: on the CPU, later changes of a C-contiguous
        array are seen by it. What its ``numpy()`` returns does not: keep the OrtValue, or hand out
        an :func:`owned_copy`.

    Raises
    ------
    InvalidDataError
        If onnxruntime has no tensor type for the array's dtype (strings, objects).

    Examples
    --------
    >>> import numpy as np
    >>> to_ortvalue(np.arange(6.0).reshape(2, 3).T).numpy().shape
    (3, 2)
    """
    ort = require_runtime()
    if isinstance(value, ort.OrtValue):
        return value
    if is_c_ortvalue(value):
        return ort.OrtValue(value)
    array = plain_array(value)
    where = device if isinstance(device, Device) else parse_device(device)
    try:
        return ort.OrtValue.ortvalue_from_numpy(array, where.type, where.index)
    except RuntimeError as exc:
        raise InvalidDataError(
            f"onnxruntime makes no tensor of an array of dtype {array.dtype}: convert it to a "
            "number or a boolean first."
        ) from exc


def plain_array(value: Any) -> np.ndarray:
    """The array in C order, aligned and in the machine's byte order, copied only if it must be.

    onnxruntime reads the bytes of a byte-swapped array as they stand, and returns other numbers.
    """
    array = np.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.require(array, requirements=["C", "A"])


def is_c_ortvalue(value: Any) -> bool:
    """Whether a value is onnxruntime's C ``OrtValue``."""
    return isinstance(value, _c_class())


@functools.lru_cache(maxsize=1)
def _c_class() -> type:
    require_runtime()
    from onnxruntime.capi import _pybind_state

    return _pybind_state.OrtValue


def c_value(value: Any) -> Any:
    """The C ``OrtValue`` inside an OrtValue."""
    return getattr(value, "_ortvalue", value)


def owned_copy(value: OrtValueLike) -> Any:
    """A C OrtValue in memory of its own on the same device, whatever memory the value borrows.

    Examples
    --------
    >>> import numpy as np
    >>> owned_copy(np.array([1.0, 2.0])).numpy()  # nothing else keeps the array alive
    array([1., 2.])
    """
    from onnxruntime.capi import _pybind_state

    held = to_ortvalue(value)
    source = c_value(held)
    array = source.numpy()
    device = parse_device(source.device_name()).ort_device()
    made = _pybind_state.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype.type, device)
    made.update_inplace(array)
    return made


class OrtValues(list):
    """The C OrtValues a run returns: a list, with ``push_back`` like onnxruntime's ``OrtValueVector``.

    The values hold their own memory: a later run does not overwrite them.
    """

    push_back = list.append

    def numpy(self) -> list[np.ndarray]:
        """The values as arrays."""
        return [v.numpy() for v in self]


def to_vector(values: Iterable[Any]) -> Any:
    """A C ``OrtValueVector`` of OrtValues."""
    require_runtime()
    from onnxruntime.capi import _pybind_state

    vector = _pybind_state.OrtValueVector()
    for value in values:
        vector.push_back(c_value(value))
    return vector


def run_values(
    session: Any,
    feeds: Mapping[str, Any],
    outputs: Sequence[str],
    run_options: Any = None,
) -> OrtValues:
    """Run a session on OrtValues, every output in fresh memory. The fastest call there is.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        What to run.
    feeds : dict of str to OrtValue
        Inputs by name, of Python or C.
    outputs : sequence of str
        Names of the outputs wanted.
    run_options : onnxruntime.RunOptions, optional
        Passed on.

    Returns
    -------
    OrtValues
        C OrtValues, in the order of `outputs`, in memory of their own.

    Raises
    ------
    EvaluationError
        If onnxruntime fails; nothing is changed.
    """
    try:
        vector = session._sess.run_with_ort_values(
            {name: c_value(value) for name, value in feeds.items()}, list(outputs), run_options
        )
    except Exception as exc:
        raise run_error(session, exc) from exc
    # onnxruntime hands out the memory of the input itself for an output that is one.
    return OrtValues(owned_copy(vector[i]) if name in feeds else vector[i] for i, name in enumerate(outputs))


# What kernels of Gather say.
_BEYOND = re.compile(
    r"Name:'([^']*)'.*idx=(-?\d+) must be within the inclusive range \[(-?\d+),(-?\d+)\]", re.S
)


def run_error(session: Any, exc: Exception) -> EvaluationError:
    """Our error for what onnxruntime raised while it ran a graph."""
    found = _BEYOND.search(str(exc))
    if found is not None:
        node, index, low, high = found.groups()
        if DIVISION in node:
            return EvaluationError(
                f"{node}: in {session_name(session)} a divisor that is computed, or given, is 0, or the "
                "smallest number is divided by -1."
            )
        return EvaluationError(
            f"Node {node!r} of {session_name(session)} looks up {index} in a table of {int(high) + 1}: "
            f"numbers from {low} to {high} are there. Correct the data that it comes from."
        )
    return EvaluationError(f"onnxruntime failed while it ran {session_name(session)}: {exc}")


def session_name(session: Any) -> str:
    """What to call a session's graph in a message."""
    try:
        return f"graph {session.get_modelmeta().graph_name!r}"
    except Exception:
        return "the graph"


class Binding(Remade):
    """Inputs and outputs bound to one session once, then run many times.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        What to run. A binding belongs to one thread; the session may be shared by many.
    device : optional
        Where outputs without a value are allocated; what :func:`parse_device` understands.

    Examples
    --------
    >>> import numpy as np, onnx
    >>> from onnxcustom.runtime import create_session
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... double_it (float[N] x) => (float[N] y) { y = Add(x, x) }''')
    >>> bound = Binding(create_session(model))
    >>> bound.bind_input("x", np.array([1, 2], dtype=np.float32))
    >>> bound.bind_output("y")
    >>> bound.run()[0].numpy()
    array([2., 4.], dtype=float32)
    """

    _parts = ("_sess", "_binding")

    def __init__(self, session: Any, device: Any = None) -> None:
        require_runtime()
        from onnxruntime.capi import _pybind_state

        self.session = session
        self.device = device if isinstance(device, Device) else parse_device(device)
        self._c_device = self.device.ort_device()
        self._run_options = _pybind_state.RunOptions()
        self._names = {i.name for i in session.get_inputs()}, {o.name for o in session.get_outputs()}
        # onnxruntime borrows the memory of arrays: what is bound must stay alive.
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._open()
        remember(self)

    def _open(self) -> None:
        from onnxruntime.capi import _pybind_state

        self._sess = self.session._sess
        self._binding = _pybind_state.SessionIOBinding(self._sess)

    def _remake(self) -> None:
        self._open()
        for name, value in self._inputs.items():
            self.bind_input(name, value)
        for name, value in self._outputs.items():
            self.bind_output(name, value)

    def bind_input(self, name: str, value: OrtValueLike) -> None:
        """Bind an OrtValue or an array to an input, until something else is bound to it."""
        if name not in self._names[0]:  # onnxruntime's binding would be of no use afterwards
            raise self._unknown("input", name, self._names[0])
        value = to_ortvalue(value, self.device) if isinstance(value, np.ndarray) else value
        try:
            self._binding.bind_ortvalue_input(name, c_value(value))
        except Exception as exc:
            raise run_error(self.session, exc) from exc
        self._inputs[name] = value

    def rebind_inputs(self, names: Sequence[str], values: Sequence[Any]) -> None:
        """Bind other OrtValues to inputs that were bound before; quicker than :meth:`bind_input`.

        Who calls this every few microseconds keeps the values alive while the session runs.
        """
        bind = self._binding.bind_ortvalue_input
        try:
            for name, value in zip(names, values, strict=True):
                bind(name, getattr(value, "_ortvalue", value))
        except Exception as exc:
            raise run_error(self.session, exc) from exc

    def bind_output(self, name: str, value: Any = None) -> None:
        """Bind an output to the memory of an OrtValue, or with None to fresh memory at every run."""
        if name not in self._names[1]:
            raise self._unknown("output", name, self._names[1])
        try:
            if value is None:
                self._binding.bind_output(name, self._c_device)
            else:
                self._binding.bind_ortvalue_output(name, c_value(value))
        except Exception as exc:
            raise run_error(self.session, exc) from exc
        self._outputs[name] = value

    def _unknown(self, kind: str, name: str, known: set[str]) -> EvaluationError:
        return EvaluationError(
            f"There is no {kind} {name!r} in {session_name(self.session)}; "
            f"there are {', '.join(sorted(known))}."
        )

    def run(self, run_options: Any = None) -> OrtValues:
        """Run the session on what is bound.

        Returns
        -------
        OrtValues
            The outputs, in the order they were bound in first.

        Raises
        ------
        EvaluationError
            If onnxruntime fails.
        """
        self.execute(run_options)
        vector = self._binding.get_outputs()
        values = OrtValues(vector[i] for i in range(len(vector)))
        for name, value in self._outputs.items():
            if value is None:
                # Otherwise the next run would write into the memory just returned.
                self._binding.bind_output(name, self._c_device)
        return values

    def execute(self, run_options: Any = None) -> None:
        """Run the session on what is bound, without collecting the outputs: for bound memory only."""
        try:
            self._sess.run_with_iobinding(self._binding, run_options or self._run_options)
        except Exception as exc:
            raise run_error(self.session, exc) from exc
