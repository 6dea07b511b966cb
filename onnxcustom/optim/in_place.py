"""Running the update of a weight in place, through IO binding."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import CallOrderError, InvalidDataError, InvalidParameterError
from onnxcustom.graph.trainable.roles import Role
from onnxcustom.runtime import Binding, Device, create_session, owned_copy, parse_device, to_ortvalue
from onnxcustom.runtime.binding import c_value

from .clock import Clock
from .function import build_update, update_dtype
from .rule import Rule

__all__ = ["InPlaceUpdates", "Target", "shape_dtype"]

_DTYPES: dict[str, np.dtype] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Which weight is updated: its index, and its name and role where they are known."""

    index: int | None = None
    name: str | None = None
    role: Role = "unknown"


# Each element of their output depends only on the elements of their inputs at the same place.
_ELEMENTWISE = frozenset("Add Sub Mul Div Neg Sqrt Where Identity Clip Abs Sign Max".split())
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

    def __init__(self, rule: Rule, dtype: np.dtype, device: Device, opset: int, target: Target) -> None:
        self.rule = rule
        model = build_update(rule, dtype, None, opset, divided=True, **dataclasses.asdict(target))
        names = ["weight", *rule.create_state(np.zeros((), dtype))]
        inputs = {v.name: v for v in model.graph.inputs}
        self.in_place = {
            name: _overwrites(out, inputs[name]) for name, out in zip(names, model.graph.outputs, strict=True)
        }
        self.session = create_session(model, device)
        self.device = device
        high = update_dtype(rule, ir.DataType.from_numpy(dtype)).numpy()
        scalars = {"learning_rate": high, "t": np.dtype(np.float64), "batch_size": dtype}
        scalars.update({f"{name}_value": high for name in rule.scheduled})
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

    def __init__(self, rule: Rule, opset: int = 18, n_tensors: int | None = None) -> None:
        if n_tensors is not None:
            check_number("n_tensors", n_tensors, "[0, inf)", integral=True)
        self.rule = rule
        self.opset = opset
        self.n_tensors = n_tensors
        self.functions: dict[tuple, _Function] = {}
        self._layouts: dict[tuple, dict[str, tuple]] = {}

    def function(self, dtype: np.dtype, device: Any, target: Target = Target()) -> _Function:
        """The compiled update of weights of a dtype on a device, made when it is first needed.

        Weights that are treated alike share it.
        """
        rule = self.rule
        multipliers = rule.multipliers(target.name, target.role, target.index)
        own = target if rule.stochastic else target.role
        key = (dtype, parse_device(device), multipliers, own)
        if key not in self.functions:
            self.functions[key] = _Function(rule, dtype, key[1], self.opset, target)
        return self.functions[key]

    def run(
        self,
        n_bind: int,
        device: Any,
        weight: Any,
        gradient: Any,
        batch_size: float,
        state: Any,
        clock: Clock,
        target: Target | None = None,
    ) -> Any:
        """See :meth:`BaseLearningRate.update_weights`; `target` is what is known beside the index."""
        clock.check_started()
        scalars = {"t": float(clock.t), "batch_size": batch_size}
        scalars.update({k if k == "learning_rate" else f"{k}_value": v for k, v in clock.values.items()})
        check_number("batch_size", batch_size, "(0, inf)")
        self._check_index(n_bind)
        if target is None:
            target = Target(n_bind, (self.rule.param_idx2name or {}).get(n_bind))
            if target.name is None:
                self.rule.check_unnamed(n_bind)
        shape, dtype = shape_dtype("weight", weight)
        states = self._states(state, weight, shape, dtype, clock)
        where = parse_device(device)
        given = {"weight": weight, **states}
        for name, value in given.items():
            if name != "weight" and state is not None:
                self._check_state(name, value, shape, dtype)
            if isinstance(value, np.ndarray) and not value.flags.writeable:
                raise InvalidDataError(f"The {name} is updated in place, but its array is read-only.")
        if isinstance(gradient, np.generic):  # numpy makes these of its 0-d arrays
            gradient = np.asarray(gradient)
        if shape_dtype("gradient", gradient) != (shape, dtype):
            found_shape, found_dtype = shape_dtype("gradient", gradient)
            raise InvalidDataError(
                f"The gradient has shape {found_shape} and dtype {found_dtype}, "
                f"the weight has {shape} and {dtype}."
            )
        values = {name: to_ortvalue(value, where) for name, value in given.items()}
        if self.rule.is_frozen(target.name):
            return self._result(weight, state, values)
        function = self.function(dtype, where, target)
        slopes = to_ortvalue(gradient, where)
        if any(_overlap(slopes, value) for value in values.values()):
            slopes = owned_copy(slopes)  # else it would change while it is read
        function.run(n_bind, values, slopes, scalars)
        for name, value in given.items():
            if isinstance(value, np.ndarray) and not _borrowed(value, where):
                value[...] = values[name].numpy()
        return self._result(weight, state, values)

    @staticmethod
    def _result(weight: Any, state: Any, values: Mapping[str, Any]) -> Any:
        """Weight and state as they were given, or the state that was made of nothing."""
        names = [name for name in values if name != "weight"]
        if not names:
            return weight
        if state is not None:
            return weight, state
        # The arrays they were started from die here: what is handed out has memory of its own.
        made = tuple(owned_copy(values[name]) for name in names)
        return weight, made[0] if len(made) == 1 else made

    def _check_index(self, n_bind: int) -> None:
        try:
            index = operator.index(n_bind)
        except TypeError:
            index = -1
        limit = "inf" if self.n_tensors is None else self.n_tensors
        if index < 0 or (self.n_tensors is not None and index >= self.n_tensors):
            raise InvalidParameterError(f"n_bind is the index of a weight, in [0, {limit}), not {n_bind!r}.")

    def _states(
        self, state: Any, weight: Any, shape: tuple[int, ...], dtype: np.dtype, clock: Clock
    ) -> dict[str, Any]:
        """The state by name."""
        names = tuple(self.layout(shape, dtype))
        kind = type(self.rule).__name__
        if not names and state is not None:
            raise InvalidDataError(f"{kind} keeps no state: velocity must be None.")
        if state is None and names and clock.t > clock.begin + 1:
            raise CallOrderError(
                f"Step {clock.t} of {kind} needs, as velocity, the state {names} that the step before "
                "it returned."
            )
        if state is None:
            # Always on the host: where a state starts may depend on where its weight does.
            return self.rule.create_state(weight if isinstance(weight, np.ndarray) else weight.numpy())
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

    def layout(self, shape: tuple[int, ...], dtype: np.dtype) -> dict[str, tuple]:
        """Shape and dtype of every state of a weight, as the rule itself would start it."""
        if (shape, dtype) not in self._layouts:
            fresh = self.rule.create_state(np.zeros(shape, dtype))
            self._layouts[shape, dtype] = {k: (v.shape, v.dtype) for k, v in fresh.items()}
        return self._layouts[shape, dtype]

    def _check_state(self, name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """A state must be laid out as the rule itself would start it."""
        wanted, found = self.layout(shape, dtype)[name], shape_dtype(f"state {name!r}", value)
        if found != wanted:
            raise InvalidDataError(
                f"The state {name!r} has shape {found[0]} and dtype {found[1]}, "
                f"a weight of shape {shape} needs {wanted[0]} and {wanted[1]}."
            )


def shape_dtype(name: str, value: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a floating-point array or OrtValue.

    Raises
    ------
    TypeError, InvalidDataError
        Something else; the message calls it `name`.
    """
    dtype: Any
    kind: Any
    if isinstance(value, np.ndarray):
        shape, kind = value.shape, value.dtype  # its name takes NumPy long to put together
        dtype = kind.newbyteorder("=") if kind.kind == "f" else None
    else:
        try:
            shape, kind = tuple(value.shape()), value.data_type()
        except (AttributeError, TypeError):
            raise InvalidParameterError(
                f"The {name} must be an OrtValue or an array, not {type(value)}."
            ) from None
        dtype = _DTYPES.get(kind)
    if dtype is None:
        raise InvalidDataError(f"The {name} must be a floating-point tensor, not {kind}.")
    return shape, dtype


def _overlap(a: Any, b: Any) -> bool:
    """Whether two OrtValues share memory."""
    starts = [c_value(v).data_ptr() for v in (a, b)]
    sizes = [math.prod(v.shape()) * _DTYPES[v.data_type()].itemsize for v in (a, b)]
    return starts[0] < starts[1] + sizes[1] and starts[1] < starts[0] + sizes[0]


def _borrowed(array: np.ndarray, device: Device) -> bool:
    """Whether an OrtValue made of the array shares its memory."""
    flags = array.flags
    return device.type == "cpu" and flags.c_contiguous and flags.aligned and array.dtype.isnative
