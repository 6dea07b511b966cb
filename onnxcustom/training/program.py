"""A step graph in a session, bound to the buffers it reads and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.builder import Builder
from onnxcustom.runtime import Binding, Device, create_session, to_ortvalue

from .buffers import DoubleBuffer, Scalar
from .compose import ComposedStep

__all__ = ["Program"]


class Program:
    """A compiled step.

    Parameters
    ----------
    graph : ComposedStep
        The step.
    kept, statistics, accumulated : DoubleBuffer
        Weights and state, running statistics, accumulated gradients: each swaps when its owner says so.
    dtype : dtype
        Of the scalars.
    device : Device
        Where it runs.
    threads : int, optional
        Threads of onnxruntime.
    """

    def __init__(
        self,
        graph: ComposedStep,
        kept: DoubleBuffer,
        statistics: DoubleBuffer,
        accumulated: DoubleBuffer,
        dtype: np.dtype,
        device: Device,
        threads: int | None,
    ) -> None:
        self._graph = graph
        self._buffers = (kept, statistics, accumulated)
        self._device = device
        self._session = create_session(graph.model, device, threads=threads)
        self._rate, self._step, self._loss = Scalar(dtype), Scalar(dtype), Scalar(dtype)
        self._hyper = [(key, Scalar(dtype)) for key in graph.hyper]
        self._share = None if graph.share is None else Scalar(dtype)
        self._batch = graph.batch
        self._finite = np.zeros(len(graph.checked), dtype)
        self._bindings: dict[int, Binding] = {}
        # A session of its own: made now, not at the first step.
        self._tables = _Tables(graph, kept, device) if graph.rows else None
        self._binding()

    def _binding(self) -> Binding:
        """Everything bound, for the present fronts of the buffers."""
        kept, statistics, accumulated = self._buffers
        fronts = kept.front + 2 * statistics.front + 4 * accumulated.front
        binding = self._bindings.get(fronts)
        if binding is None:
            binding = self._bindings[fronts] = self._bind()
        return binding

    def _bind(self) -> Binding:
        graph, binding = self._graph, Binding(self._session, self._device)
        inputs = {i.name for i in self._session.get_inputs()}
        means: dict[str, str | None] = dict(graph.accumulated.values())
        updates: list[Mapping[str, str | None]] = [graph.whole, graph.statistics, means]
        for buffer, pairs in zip(self._buffers, updates, strict=True):
            read, written = buffer.values[buffer.front], buffer.values[1 - buffer.front]
            for old, value in read.items():
                if old in inputs:
                    binding.bind_input(old, value)
            for old, new in pairs.items():
                if new is not None:
                    binding.bind_output(new, written[old])
        binding.bind_input(graph.learning_rate, self._rate.ortvalue)
        binding.bind_input(graph.step, self._step.ortvalue)
        for key, scalar in self._hyper:
            binding.bind_input(graph.hyper[key], scalar.ortvalue)
        if graph.share is not None and self._share is not None:
            binding.bind_input(graph.share, self._share.ortvalue)
        binding.bind_output(graph.loss, self._loss.ortvalue)
        if graph.finite is not None:
            binding.bind_output(graph.finite, to_ortvalue(self._finite))
        for name in self._tables.outputs if self._tables else ():
            binding.bind_output(name)
        return binding

    def run(self, values: Sequence[Any], hyper: Mapping[str, float], step: int, share: float) -> float:
        """Read the front buffers, write the back ones, return the objective.

        Parameters
        ----------
        values : sequence of OrtValue
            The batch.
        hyper : mapping of str to float
            Learning rate, and other hyper-parameters that have a schedule.
        step : int
            Step counted from 1.
        share : float
            Share of this batch's rows in those accumulated.
        """
        self._rate.set(hyper["learning_rate"])
        self._step.set(step)
        for name, scalar in self._hyper:
            scalar.set(hyper[name])
        if self._share is not None:
            self._share.set(share)
        binding = self._binding()
        binding.rebind_inputs(self._batch, values)
        self._values = values  # onnxruntime borrows their memory
        if self._tables:
            self._tables.take(binding.run())
        else:
            binding.execute()
        return float(self._loss)

    def nonfinite(self) -> list[str]:
        """Weights whose gradient or new rows hold NaN or infinity, of the last run, if it looks for them."""
        if not self._graph.checked and not self._tables:
            return []
        found = [w for w, ok in zip(self._graph.checked, np.isfinite(self._finite), strict=True) if not ok]
        return found + (self._tables.nonfinite() if self._tables else [])

    def write_rows(self) -> None:
        """Write the rows of the last run into their tables."""
        if self._tables:
            self._tables.write()


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
