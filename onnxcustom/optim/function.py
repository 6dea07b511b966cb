"""The update rule of one weight as an ONNX model, and running it in place through IO binding."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.graph.builder import Builder, Var
from onnxcustom.runtime import Binding, Device, create_session, owned_copy, parse_device, to_ortvalue

if TYPE_CHECKING:
    from .base import BaseLearningRate

__all__ = ["InPlaceUpdates", "State", "build_update_model"]

_DTYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
}


class State(dict):
    """The state of one weight by name, also readable as attributes: ``s.m`` is ``s["m"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no state {name!r}; there are {list(self)}") from None


def build_update_model(
    rule: BaseLearningRate, dtype: np.dtype, shape: tuple[int, ...] | None = None, opset: int = 18
) -> onnx.ModelProto:
    """The update of one weight as a model; see :meth:`BaseLearningRate.update_model`."""
    return ir.to_proto(_build(rule, dtype, shape, opset))


def _build(rule: BaseLearningRate, dtype: np.dtype, shape: tuple[int, ...] | None, opset: int) -> ir.Model:
    newest = onnx.defs.onnx_opset_version()
    check_number("opset", opset, f"[7, {newest}]", integral=True)
    kind = ir.DataType.from_numpy(dtype)
    if not kind.is_floating_point():
        raise InvalidDataError(f"Only floating-point weights can be updated, not {dtype}.")
    op = Builder(opset)
    w = op.input("weight", kind, shape)
    g = op.input("gradient", kind, shape)
    states = _state_inputs(op, rule, dtype, shape)
    lr = op.input("learning_rate", kind, [])
    t = op.input("t", ir.DataType.DOUBLE, [])
    rows = op.input("batch_size", kind, [])
    new, new_state = rule.update(op, w, g / rows, State(states), lr, t)
    if set(new_state) != set(rule.state):
        raise ValueError(
            f"{type(rule).__name__}.update returned state {set(new_state)}, not {set(rule.state)}."
        )
    outputs = [_output(op, "weight", new, shape)]
    for name in rule.state:
        outputs.append(_output(op, name, new_state[name], states[name].shape))
    graph = op.graph([w, g, *states.values(), lr, t, rows], outputs, name=f"{type(rule).__name__}_update")
    ir_version = onnx.helper.find_min_ir_version_for(
        [onnx.helper.make_opsetid(d, v) for d, v in op.opset_imports().items()], ignore_unknown=True
    )
    # Before version 4 initializers had to be inputs, too.
    return ir.Model(graph, ir_version=max(4, ir_version), producer_name="onnxcustom")


def _state_inputs(
    op: Builder, rule: BaseLearningRate, dtype: np.dtype, shape: tuple[int, ...] | None
) -> dict[str, Var]:
    """One input for each state, of the dtype that the rule starts it with."""
    like = rule.init_state(np.zeros(shape or (), dtype))
    return {
        name: op.input(
            name, ir.DataType.from_numpy(like[name].dtype), None if shape is None else like[name].shape
        )
        for name in rule.state
    }


def _output(op: Builder, name: str, var: Var, shape: Sequence | None) -> Var:
    """The output of a new value, computed by a node of its own."""
    if var.value.producer() is None or (var.value.name or "").startswith("new_"):
        var = op.Identity(var)
    var.value.name = op.unique(f"new_{name}")
    if shape is not None:
        var.value.shape = ir.Shape(shape)
    return var


# Each element of their output depends only on the elements of their inputs at the same place.
_ELEMENTWISE = frozenset("Add Sub Mul Div Neg Sqrt Where Identity Clip Abs Sign".split())
# Their output may be their input's memory.
_ALIASES = frozenset("Identity Cast Reshape Flatten Squeeze Unsqueeze Dropout".split())


def _overwrites(result: ir.Value, source: ir.Value) -> bool:
    """Whether `result` may be written over `source` while the graph runs.

    Every node that reads the source must run before the one that computes the result; that one may
    read it too if it works element by element.
    """
    producer = result.producer()
    if producer is None:
        return False
    readers = _readers(source)
    if producer in readers and producer.op_type not in _ELEMENTWISE:
        return False
    before: set[ir.Node] = set()
    stack: list[ir.Node] = [producer]
    while stack:
        for value in stack.pop().inputs:
            node = value.producer() if value is not None else None
            if node is not None and node not in before:
                before.add(node)
                stack.append(node)
    return readers <= before | {producer}


def _readers(value: ir.Value) -> set[ir.Node]:
    """Nodes that read the memory of a value, directly or under another name."""
    nodes = {use.node for use in value.uses()}
    for node in list(nodes):
        if node.op_type in _ALIASES:
            nodes |= _readers(node.outputs[0])
    return nodes


class _Function:
    """The update of weights of one dtype on one device, compiled."""

    def __init__(self, rule: BaseLearningRate, dtype: np.dtype, device: Device, opset: int) -> None:
        self.rule = rule
        model = _build(rule, dtype, None, opset)
        names = ["weight", *rule.state]
        inputs = {v.name: v for v in model.graph.inputs}
        self.in_place = {
            name: _overwrites(out, inputs[name]) for name, out in zip(names, model.graph.outputs, strict=True)
        }
        self.session = create_session(model, device)
        self.device = device
        scalars = {"learning_rate": dtype, "t": np.dtype(np.float64), "batch_size": dtype}
        self.scalars = {name: np.zeros((), kind) for name, kind in scalars.items()}
        self.bindings: dict[int, Binding] = {}

    def binding(self, n_bind: int) -> Binding:
        """The binding of the n-th weight."""
        if n_bind not in self.bindings:
            self.bindings[n_bind] = Binding(self.session, self.device)
            for name, array in self.scalars.items():
                # In host memory on every device: written here before each run.
                self.bindings[n_bind].bind_input(name, to_ortvalue(array))
        return self.bindings[n_bind]

    def run(
        self, n_bind: int, tensors: Mapping[str, Any], gradient: Any, scalars: Mapping[str, float]
    ) -> None:
        """Overwrite `tensors`: weight and state."""
        for name, value in scalars.items():
            self.scalars[name][...] = value
        binding = self.binding(n_bind)
        if self.device.type != "cpu":
            for name, array in self.scalars.items():
                binding.bind_input(name, to_ortvalue(array))
        binding.bind_input("gradient", gradient)
        for name, value in tensors.items():
            binding.bind_input(name, value)
            binding.bind_output(f"new_{name}", value if self.in_place[name] else None)
        results = self.rule._call_iobinding(self.session, binding)
        for (name, value), result in zip(tensors.items(), results, strict=True):
            if not self.in_place[name]:
                value.update_inplace(result.numpy())


class InPlaceUpdates:
    """Updates weights of a rule in place, whatever their dtype and device.

    Parameters
    ----------
    rule : BaseLearningRate
        Rule.
    opset : int, default=18
        Version of the ONNX domain.
    n_tensors : int, optional
        Number of weights; any by default.
    """

    def __init__(self, rule: BaseLearningRate, opset: int = 18, n_tensors: int | None = None) -> None:
        if n_tensors is not None:
            check_number("n_tensors", n_tensors, "[0, inf)", integral=True)
        self.rule = rule
        self.opset = opset
        self.n_tensors = n_tensors
        self.functions: dict[tuple[np.dtype, Device], _Function] = {}
        self._layouts: dict[tuple, dict[str, tuple]] = {}

    def function(self, dtype: np.dtype, device: Any) -> _Function:
        """The compiled update of weights of a dtype on a device, made when it is first needed."""
        key = (dtype, parse_device(device))
        if key not in self.functions:
            self.functions[key] = _Function(self.rule, *key, self.opset)
        return self.functions[key]

    def run(self, n_bind: int, device: Any, weight: Any, gradient: Any, batch_size: float, state: Any) -> Any:
        """See :meth:`BaseLearningRate.update_weights`."""
        rule = self.rule
        scalars = {"learning_rate": rule.value, "t": float(rule.t), "batch_size": batch_size}
        check_number("batch_size", batch_size, "(0, inf)")
        self._check_index(n_bind)
        shape, dtype = _shape_dtype("weight", weight)
        states = self._states(state, shape, dtype)
        where = parse_device(device)
        given = {"weight": weight, **states}
        for name, value in given.items():
            if name != "weight" and state is not None:
                self._check_state(name, value, shape, dtype)
            if isinstance(value, np.ndarray) and not value.flags.writeable:
                raise InvalidDataError(f"The {name} is updated in place, but its array is read-only.")
        if isinstance(gradient, np.generic):  # numpy makes these of its 0-d arrays
            gradient = np.asarray(gradient)
        if _shape_dtype("gradient", gradient) != (shape, dtype):
            found_shape, found_dtype = _shape_dtype("gradient", gradient)
            raise InvalidDataError(
                f"The gradient has shape {found_shape} and dtype {found_dtype}, "
                f"the weight has {shape} and {dtype}."
            )
        values = {name: to_ortvalue(value, where) for name, value in given.items()}
        self.function(dtype, where).run(n_bind, values, to_ortvalue(gradient, where), scalars)
        for name, value in given.items():
            if isinstance(value, np.ndarray) and not _borrowed(value, where):
                value[...] = values[name].numpy()
        if not rule.state:
            return weight
        if state is not None:
            return weight, state
        # The arrays they were started from die here: what is handed out has memory of its own.
        made = tuple(owned_copy(values[name]) for name in rule.state)
        return weight, made[0] if len(made) == 1 else made

    def _check_index(self, n_bind: int) -> None:
        try:
            index = operator.index(n_bind)
        except TypeError:
            index = -1
        limit = "inf" if self.n_tensors is None else self.n_tensors
        if index < 0 or (self.n_tensors is not None and index >= self.n_tensors):
            raise ValueError(f"n_bind is the index of a weight, in [0, {limit}), not {n_bind!r}.")

    def _states(self, state: Any, shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
        """The state by name."""
        names = self.rule.state
        kind = type(self.rule).__name__
        if not names and state is not None:
            raise RuntimeError(f"{kind} keeps no state: velocity must be None.")
        if state is None and names and self.rule.t > 1:
            raise RuntimeError(
                f"Step {self.rule.t} of {kind} needs, as velocity, the state {names} that the step before "
                "it returned."
            )
        if state is None:
            return self.rule.init_state(np.zeros(shape, dtype)) if names else {}
        if isinstance(state, Mapping):
            items = dict(state)
        elif isinstance(state, (list, tuple)):
            items = dict(zip(names, state, strict=False)) if len(state) == len(names) else {}
        else:
            items = {names[0]: state} if len(names) == 1 else {}
        if set(items) != set(names):
            raise InvalidDataError(
                f"{kind} keeps the state {names} for each weight; velocity does not hold it."
            )
        return {name: items[name] for name in names}

    def _check_state(self, name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """A state must be laid out as the rule itself would start it."""
        if (shape, dtype) not in self._layouts:
            fresh = self.rule.init_state(np.zeros(shape, dtype))
            self._layouts[shape, dtype] = {k: (v.shape, v.dtype) for k, v in fresh.items()}
        wanted, found = self._layouts[shape, dtype][name], _shape_dtype(f"state {name!r}", value)
        if found != wanted:
            raise InvalidDataError(
                f"The state {name!r} has shape {found[0]} and dtype {found[1]}, "
                f"a weight of shape {shape} needs {wanted[0]} and {wanted[1]}."
            )


def _shape_dtype(name: str, value: Any) -> tuple[tuple[int, ...], np.dtype]:
    dtype: Any
    if isinstance(value, np.ndarray):
        shape, kind = value.shape, value.dtype.name
        dtype = np.dtype(kind) if value.dtype.kind == "f" else None
    else:
        try:
            shape, kind = tuple(value.shape()), value.data_type()
        except (AttributeError, TypeError):
            raise TypeError(f"The {name} must be an OrtValue or an array, not {type(value)}.") from None
        dtype = _DTYPES.get(kind)
    if dtype is None:
        raise InvalidDataError(f"The {name} must be a floating-point tensor, not {kind}.")
    return shape, dtype


def _borrowed(array: np.ndarray, device: Device) -> bool:
    """Whether an OrtValue made of the array shares its memory."""
    flags = array.flags
    return device.type == "cpu" and flags.c_contiguous and flags.aligned and array.dtype.isnative
