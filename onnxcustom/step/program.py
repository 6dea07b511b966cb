"""A step graph in a session, bound to the buffers it reads and writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import EvaluationError
from onnxcustom.graph.building.builder import Builder
from onnxcustom.runtime import Binding, Device, create_session, to_ortvalue

from .buffers import DoubleBuffer, Scalar
from .compose import ComposedStep
from .rows import with_rows
from .state import State

__all__ = ["Program", "intermediate_bytes"]

# Intermediate results of so many bytes are laid out once: it saves the allocations of a run, a tenth of
# the time of the smallest models, and costs as much memory again.
_SMALL = 2**20


class Program:
    """A compiled step.

    Parameters
    ----------
    graph : ComposedStep
        The step.
    state : State
        What it reads the front of and writes the back of, on the device that it is on.
    dtype : dtype
        Of the scalars.
    threads : int, optional
        Threads of onnxruntime.
    sess_options : onnxruntime.SessionOptions, optional
        Used as it is.
    """

    def __init__(
        self,
        graph: ComposedStep,
        state: State,
        dtype: np.dtype,
        threads: int | None,
        sess_options: Any = None,
    ) -> None:
        self._graph = graph
        self._clock = state.clock
        self._buffers = (state.kept, state.statistics, state.accumulated)
        self._device = state.device
        self._options = {"threads": threads, "sess_options": sess_options}
        self._session: Any = None
        self._loss = Scalar(dtype)
        self._scalars = _Scalars(graph)
        self._ones = _Ones(graph.ones, dtype) if graph.ones else None
        self._plan = graph.scalars
        self._reads_rows = graph.scalars.reads_rows or self._ones is not None
        self._batch = graph.batch
        self._counted = graph.counted
        self._finite = np.zeros(len(graph.checked), dtype)
        self._heads = np.zeros(len(graph.expected), dtype)
        self._bindings: dict[int, Binding] = {}
        self._worked = False
        # A session of its own: made now, not at the first step.
        self._tables = _Tables(graph, state.kept, state.device) if graph.rows else None

    def _open(self, values: Sequence[Any]) -> None:
        """Make the session, for batches like the first one."""
        graph = self._graph.model
        small = intermediate_bytes(graph, self.rows(values), *(self._counted or (0, 0))) < _SMALL
        self._session = create_session(
            graph, self._device, memory_pattern=small, integers=False, **self._options
        )

    def _binding(self) -> Binding:
        """Everything bound, for the present fronts of the buffers."""
        fronts = self._clock.now.training.fronts
        binding = self._bindings.get(fronts)
        if binding is None:
            binding = self._bindings[fronts] = self._bind()
        return binding

    def _bind(self) -> Binding:
        graph, binding = self._graph, Binding(self._session, self._device)
        inputs = {i.name for i in self._session.get_inputs()}
        means: dict[str, str | None] = dict(graph.accumulated.values())
        updates: list[Mapping[str, str | None]] = [graph.whole, graph.statistics, means]
        shapes = {o.name: o.shape for o in self._session.get_outputs()}
        for buffer, pairs in zip(self._buffers, updates, strict=True):
            for old, value in buffer.values[buffer.front].items():
                if old in inputs:
                    binding.bind_input(old, value)
            for old, new in pairs.items():
                if new is not None:
                    binding.bind_output(new, buffer.back(old, shapes[new]))
        self._scalars.bind(binding)
        binding.bind_output(graph.loss, self._loss.ortvalue)
        if graph.heads is not None:
            binding.bind_output(graph.heads, to_ortvalue(self._heads))
        if graph.finite is not None:
            binding.bind_output(graph.finite, to_ortvalue(self._finite))
        for name in self._tables.outputs if self._tables else ():
            binding.bind_output(name)
        return binding

    def run(
        self,
        values: Sequence[Any],
        hyper: Mapping[str, float],
        step: int,
        share: float,
        counts: Sequence[float] = (),
    ) -> float:
        """Read the front buffers, write the back ones, return the objective.

        Parameters
        ----------
        values : sequence of OrtValue
            The batch; none if the graph takes none.
        hyper : mapping of str to float
            Learning rate, and other hyper-parameters that have a schedule.
        step : int
            Step counted from 1.
        share : float
            Share of this batch's rows in those accumulated.
        counts : sequence of float
            What the loss of every output is divided by, if the graph does not count by itself.
        """
        if self._session is None:
            self._open(values)
        rows = self.rows(values) if self._reads_rows else 0
        self._scalars.set(hyper, step, share, rows, counts)
        binding = self._binding()
        if self._ones is not None:
            self._ones.bind(binding, rows)
        binding.rebind_inputs(self._batch, values)
        self._values = values  # onnxruntime borrows their memory
        try:
            if self._tables:
                self._tables.take(binding.run())
            else:
                binding.execute()
        except EvaluationError as exc:
            raise (exc if self._worked else with_rows(exc, self._shapes(values))) from exc.__cause__
        self._worked = True
        return self._plan.loss(float(self._loss), hyper, step, share, rows, counts)

    def _shapes(self, values: Sequence[Any]) -> dict[str, tuple[list[int], int | None]]:
        """Shapes of a batch's inputs, and the axes of their rows."""
        axes = self._graph.batch_axis
        return {
            name: (list(value.shape()), axes.get(name))
            for name, value in zip(self._graph.inputs, values, strict=False)
        }

    def heads(self) -> dict[str, float]:
        """Loss of every output in the last run, by name, if several are trained."""
        if self._graph.heads is None:
            return {}
        return dict(zip(self._graph.expected, self._heads.tolist(), strict=True))

    def rows(self, values: Sequence[Any]) -> int:
        """Rows of a batch."""
        if self._counted is None:
            return 1
        place, axis = self._counted
        return values[place].shape()[axis]

    def nonfinite(self) -> list[str]:
        """Weights whose gradient or new rows hold NaN or infinity, of the last run, if it looks for them."""
        if not self._graph.checked and not self._tables:
            return []
        found = [w for w, ok in zip(self._graph.checked, np.isfinite(self._finite), strict=True) if not ok]
        return found + (self._tables.nonfinite() if self._tables else [])

    @property
    def write_rows(self) -> Callable[[], None] | None:
        """Writes the rows of the last run into their tables; None if there are none."""
        return None if self._tables is None else self._tables.write


def intermediate_bytes(model: ir.Model, rows: int, place: int = 0, axis: int = 0) -> float:
    """Bytes of all that the nodes of a graph make; infinite where a size is neither a number nor the rows.

    Parameters
    ----------
    model : onnx_ir.Model
        Step graph.
    rows : int
        Rows of a batch.
    place, axis : int, default=0
        The input that has them, and where: what that dimension stands for.
    """
    shape = model.graph.inputs[place].shape
    size = shape[axis] if shape else 0
    name = None if isinstance(size, int) else size.value
    known = {} if name is None else {name: rows}
    total = 0.0
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None or value.dtype in (None, ir.DataType.STRING):
                return math.inf
            sizes = [d if isinstance(d, int) else known.get(d.value or "", math.inf) for d in value.shape]
            total += value.dtype.itemsize * math.prod(sizes)
    return total


class _Scalars:
    """The scalars that a graph reads, set when they change."""

    def __init__(self, graph: ComposedStep) -> None:
        self._plan = plan = graph.scalars
        inputs = {v.name: v for v in graph.model.graph.inputs}
        self._scalars = {}
        for name in plan.names:
            dtype, shape = inputs[name].dtype, inputs[name].shape
            assert dtype is not None
            assert shape is not None
            self._scalars[name] = Scalar(dtype.numpy(), shape=shape.numpy())
        self._set = [scalar.set for scalar in self._scalars.values()]
        self._hyper: Mapping[str, float] | None = None
        self._rows = -1
        self._counts: Sequence[float] = ()
        self._still = not plan.by_step and not plan.by_share

    def bind(self, binding: Binding) -> None:
        for name, scalar in self._scalars.items():
            binding.bind_input(name, scalar.ortvalue)

    def set(
        self, hyper: Mapping[str, float], step: int, share: float, rows: int, counts: Sequence[float]
    ) -> None:
        """Compute and write them, unless they depend on nothing that is different from the last time."""
        if self._still and hyper is self._hyper and rows == self._rows and counts == self._counts:
            return
        self._hyper = None  # until all are written
        for write, value in zip(self._set, self._plan.feeds(hyper, step, share, rows, counts), strict=True):
            write(value)
        self._rows, self._counts, self._hyper = rows, counts, hyper


class _Ones:
    """Inputs that are one for each row of the batch."""

    def __init__(self, ranks: Mapping[str, int], dtype: np.dtype) -> None:
        self._ranks, self._dtype = ranks, dtype
        self._bound: dict[Binding, int] = {}

    def bind(self, binding: Binding, rows: int) -> None:
        """Bind them, unless the last batch had as many rows."""
        if self._bound.get(binding) == rows:
            return
        self._bound.pop(binding, None)  # until all are bound
        for name, rank in self._ranks.items():
            binding.bind_input(name, np.ones((1, rows)[2 - rank :], self._dtype))
        self._bound[binding] = rows


class _Tables:
    """Weights and their states that are updated by rows, in place: all of them in one run.

    Attributes
    ----------
    outputs : list of str
        Outputs of the step with indices and new rows, in the order they are taken in.
    """

    def __init__(self, graph: ComposedStep, buffer: DoubleBuffer, device: Device) -> None:
        self._rows: list[Any] = []
        self._weights: dict[str, int] = {}
        self.outputs: list[str] = []
        values = {v.name: v for v in graph.model.graph.inputs}
        writes: list[tuple[str, str, str, ir.DataType]] = []
        for weight, indices in graph.rows.items():
            self._weights[weight] = len(self.outputs) + 1
            self.outputs += [indices, *graph.by_rows[weight].values()]
            for name, rows in graph.by_rows[weight].items():
                dtype = values[name].dtype
                assert dtype is not None
                writes.append((indices, name, rows, dtype))
        model, new = _scatter(writes)
        self._binding = Binding(create_session(model, device, threads=1), device)
        for _, name, _, _ in writes:
            tensor = buffer.values[0][name]
            # One tensor is input and output: onnxruntime then writes the rows and copies nothing.
            self._binding.bind_input(name, tensor)
            self._binding.bind_output(new[name], tensor)

    def take(self, made: list[Any]) -> None:
        """Keep the indices and rows of the outputs of a run: the last ones."""
        self._rows = made[-len(self.outputs) :]

    def nonfinite(self) -> list[str]:
        """Weights whose new rows hold NaN or infinity."""
        if not self._rows:
            return []
        return [w for w, i in self._weights.items() if not np.isfinite(self._rows[i].numpy()).all()]

    def write(self) -> None:
        """Write the rows into the tables and their states."""
        for name, value in zip(self.outputs, self._rows, strict=False):
            self._binding.bind_input(name, value)
        if self._rows:
            self._binding.execute()
        self._rows = []


def _scatter(writes: Sequence[tuple[str, str, str, ir.DataType]]) -> tuple[ir.Model, dict[str, str]]:
    """Write rows of tables, and what the new tables are called.

    Each write is the name of indices, of a table of any shape, and of its rows at these indices, each of
    which is there once, and their dtype.
    """
    op = Builder(18)
    indices = {name: op.input(name, ir.DataType.INT64, [None]) for name, _, _, _ in writes}
    tables = {name: op.input(name, dtype) for _, name, _, dtype in writes}
    rows = {name: op.input(name, dtype) for _, _, name, dtype in writes}
    places = {name: op.Unsqueeze(index, [1]) for name, index in indices.items()}
    results = [op.ScatterND(tables[table], places[index], rows[new]) for index, table, new, _ in writes]
    inputs = [*indices.values(), *tables.values(), *rows.values()]
    made = {table: str(result.value.name) for table, result in zip(tables, results, strict=True)}
    return ir.Model(op.graph(inputs, results, name="write_rows"), ir_version=8), made
