"""One forward and backward at a time, over the graphs of :class:`~onnxcustom.OrtGradientForwardBackward`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from onnxcustom.exceptions import CallOrderError, InvalidDataError, OnnxCustomError
from onnxcustom.graph.analysis.lookups import IndexRange
from onnxcustom.runtime import OrtValues, owned_copy, parse_device, run_values, to_ortvalue, to_vector
from onnxcustom.runtime.tensors import as_list, check_against, check_places

from .graph_files import save_graphs

__all__ = ["OrtGradientForwardBackwardFunction"]


class OrtGradientForwardBackwardFunction:
    """Ancestor of the classes :class:`OrtGradientForwardBackward` makes: one forward and backward at a time.

    The graphs and sessions belong to the class; the tensors between forward and backward belong to the
    instance, so that instances in several threads do not disturb each other.
    """

    # Filled in by OrtGradientForwardBackward.
    _onnx_model: onnx.ModelProto
    _trained_onnx: onnx.ModelProto
    _optimized_pre_grad_model: onnx.ModelProto
    _forward_onnx: onnx.ModelProto
    _backward_onnx: onnx.ModelProto
    _split: Any
    _input_names: list[str]
    _output_names: list[str]
    _weights_to_train: list[str]
    _grad_input_names: list[str]
    _bw_fetches_names: list[str]
    _infos: dict[str, onnx.ValueInfoProto]
    _lookups: dict[str, IndexRange]
    _device: Any
    _run_options: Any
    _ends_on_nothing: str | None
    _debug: bool
    _logger: logging.Logger | None
    _sess: Any
    _sess_eval: Any
    _sess_backward: Any

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None
        self._saved_tensors: list[Any] | None = None
        self._shapes: dict[str, list[int]] = {}

    # -- forward and backward ------------------------------------------------------------------

    def forward(
        self, inputs: Any, training: bool = False, forward_outputs_cache: Any = None
    ) -> Sequence[Any]:
        """Compute the outputs.

        Parameters
        ----------
        inputs : sequence of OrtValue or ndarray, or OrtValueVector
            The model's inputs, then the weights.
        training : bool, default=False
            Keep what :meth:`backward` needs: copies, so that arrays may be filled anew before it. Without,
            nothing is kept, not even of an earlier pass.
        forward_outputs_cache : optional
            Kept for old calls; not used.

        Returns
        -------
        sequence of OrtValue
            One per output of the model, in memory of their own. A dictionary of probabilities
            (``ZipMap``) is one that is no tensor.

        Raises
        ------
        InvalidDataError
            If the number of inputs is wrong, or the dtype, rank or shape of one of them, or an index is
            beyond the table in which it is looked up; if there are no rows and the model has an Einsum, which
            some onnxruntime cannot be given.
        """
        values = self._checked_inputs(inputs)
        feeds = dict(zip(self._grad_input_names, values, strict=True))
        if not training:
            evaluated = run_values(self._sess_eval, feeds, self._output_names, self._run_options)
            self._saved = self._saved_tensors = None  # of an earlier pass, which is not what comes last
            return evaluated
        fetches = [*self._output_names, *self._split.saved]
        found = run_values(self._sess, feeds, fetches, self._run_options)
        # What the caller holds may be other numbers by the time of backward: the next batch, new weights.
        copies = [owned_copy(value) for value in values]
        self.save_for_backward(copies)
        self._saved = {**dict(zip(feeds, copies, strict=True)), **dict(zip(fetches, found, strict=True))}
        for name in set(self._output_names) & set(self._split.backward_inputs):
            self._saved[name] = owned_copy(self._saved[name])
        outputs = found[: len(self._output_names)]
        seeds = self._split.names.seeds  # other outputs need not be tensors
        self._shapes = {n: v.shape() for n, v in zip(self._output_names, outputs, strict=True) if n in seeds}
        return OrtValues(outputs)

    def backward(self, grad_outputs: Any, backward_outputs_cache: Any = None) -> Sequence[Any]:
        """Compute the gradients, summed over the batch, not divided by its size.

        Parameters
        ----------
        grad_outputs : sequence of OrtValue or ndarray, or OrtValueVector
            For every output of the model the gradient of the loss with respect to it, in order; those of
            integer outputs may be left out.
        backward_outputs_cache : optional
            Kept for old calls; not used.

        Returns
        -------
        sequence of OrtValue
            The gradients of the model's floating-point inputs, then of the weights. Zeros for a batch
            without rows.

        Raises
        ------
        RuntimeError
            Without a forward pass with ``training=True`` before.
        NotImplementedError
            If one of the gradients is None.
        InvalidDataError
            If the number of gradients is wrong, or the dtype or shape of one of them.
        """
        if self._saved is None:
            raise CallOrderError("Call forward(inputs, training=True) before backward: nothing was saved.")
        seeds = self._checked_gradients(grad_outputs)
        if all(0 in seed.shape() for seed in seeds.values()):
            return self._zeros()
        feeds = {name: self._saved[name] for name in self._split.backward_inputs}
        feeds.update(seeds)
        return run_values(self._sess_backward, feeds, self._bw_fetches_names, self._run_options)

    def _zeros(self) -> OrtValues:
        """The gradients of a batch without rows: sums over nothing, which some onnxruntime cannot compute."""
        assert self._saved is not None
        sources = {gradient: name for name, gradient in self._split.names.gradients.items()}
        made = []
        for source in (sources[gradient] for gradient in self._bw_fetches_names):
            dtype = onnx.helper.tensor_dtype_to_np_dtype(self._infos[source].type.tensor_type.elem_type)
            zeros = np.zeros(self._saved[source].shape(), dtype)
            made.append(to_ortvalue(zeros, self._device))
        return OrtValues(made)

    # -- what comes in -------------------------------------------------------------------------

    def _checked_inputs(self, inputs: Any) -> list[Any]:
        values = as_list(inputs)
        names = self._grad_input_names
        if len(values) != len(names):
            raise InvalidDataError(
                f"{len(names)} inputs are expected ({', '.join(names)}), not {len(values)}."
            )
        found = [self._value(name, value) for name, value in zip(names, values, strict=True)]
        for name, value in zip(names, found, strict=True):
            check_against(name, value, self._infos[name])
            if name in self._lookups:
                check_places(value.numpy(), self._lookups[name], name)
            self._check_finite(name, value)
        self._check_rows(found)
        return found

    def _check_rows(self, values: Sequence[Any]) -> None:
        """A batch without rows must not reach a kernel that ends the process on it."""
        shapes = [value.shape() for value in values[: len(self._input_names)]]
        if self._ends_on_nothing and any(shapes) and all(0 in shape for shape in shapes if shape):
            raise InvalidDataError(
                f"The batch has no rows, and the installed onnxruntime cannot compute node "
                f"{self._ends_on_nothing!r} (Einsum) of nothing: leave such batches out, or take a newer one."
            )

    def _checked_gradients(self, grad_outputs: Any) -> dict[str, Any]:
        values = as_list(grad_outputs)
        seeds = self._split.names.seeds
        names = self._output_names
        if len(values) == len(seeds) != len(names):
            names = [n for n in names if n in seeds]
        if len(values) != len(names):
            raise InvalidDataError(
                f"{len(names)} gradients are expected, one for each output ({', '.join(names)}), "
                f"not {len(values)}."
            )
        found = {}
        for name, value in zip(names, values, strict=True):
            if value is None and name in seeds:
                raise NotImplementedError(f"The gradient of output {name!r} is None; give zeros instead.")
            if name in seeds:
                value = self._value(seeds[name], value)
                found[seeds[name]] = self._fitting(name, value, self._shapes[name])
        return found

    def _fitting(self, name: str, value: Any, shape: list[int]) -> Any:
        """A gradient in the shape of its output; only a row for a column or a flat one is reshaped."""
        info = self._infos[name]
        check_against(f"{name} (gradient)", value, info, rank=False)
        got = list(value.shape())
        if got == list(shape):
            return value
        same_size = int(np.prod(got)) == int(np.prod(shape))
        flat = len([d for d in got if d != 1]) <= 1
        if not same_size or not (flat or [d for d in got if d != 1] == [d for d in shape if d != 1]):
            raise InvalidDataError(
                f"The gradient of output {name!r} must have the shape of the output, {shape}, not {got}."
            )
        # `value` may be all that keeps the memory alive which the array is a view of.
        return owned_copy(value.numpy().reshape(shape))

    def _value(self, name: str, value: Any) -> Any:
        """An OrtValue of an array or of whatever else came in."""
        if not isinstance(value, np.ndarray) and hasattr(value, "data_ptr"):
            return value
        try:
            return to_ortvalue(value, self._device)
        except OnnxCustomError as exc:
            raise InvalidDataError(f"Input {name!r}: {exc}") from exc

    def _check_finite(self, name: str, value: Any) -> None:
        if self._debug and self._logger is not None:
            array = value.numpy()
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                self._logger.warning("[OrtGradientForwardBackward] input %r holds NaN or infinity", name)

    # -- for autograd functions ----------------------------------------------------------------

    def save_for_backward(self, inputs: Any) -> None:
        """Keep the inputs, for :attr:`saved_tensors`; the list is copied, the tensors are not."""
        self._saved_tensors = as_list(inputs)

    @property
    def saved_tensors(self) -> list[Any]:
        """Copies of the inputs of the last forward pass, if it was one with ``training=True``.

        Raises
        ------
        RuntimeError
            If there was none.
        """
        if self._saved_tensors is None:
            raise CallOrderError("No tensors were saved: call forward(inputs, training=True) first.")
        return self._saved_tensors

    @staticmethod
    def device_name(device: Any) -> str:
        """'Cpu' or 'Gpu'."""
        return "Cpu" if parse_device(device).type == "cpu" else "Gpu"

    @staticmethod
    def input_to_ort(tensors: Any, devices: Sequence[Any] | None = None, debug: bool = False) -> Any:
        """An ``OrtValueVector`` of OrtValues or arrays, each on the device at its place in `devices`."""
        values = as_list(tensors)
        places = [parse_device(d) for d in devices] if devices else [parse_device(None)] * len(values)
        if len(places) != len(values):
            raise InvalidDataError(f"{len(values)} tensors came with {len(places)} devices.")
        if debug and any(v is None for v in values):
            raise InvalidDataError("None is not a tensor.")
        # A vector keeps no array alive: what borrows the memory of one is copied.
        pairs = zip(values, places, strict=True)
        return to_vector(v if hasattr(v, "data_ptr") else owned_copy(to_ortvalue(v, d)) for v, d in pairs)

    @classmethod
    def save_onnx_graph(
        cls, folder: str | os.PathLike | type[bytes], prefix: str | None = None, suffix: str | None = None
    ) -> dict[str, Any]:
        """Write all graphs of the class.

        Parameters
        ----------
        folder : str, path or the type bytes
            An existing folder; ``bytes`` returns the graphs and writes nothing.
        prefix, suffix : str, optional
            Around the class's name in ``<prefix><Class><suffix>.<attribute>.onnx``.

        Returns
        -------
        dict
            Attribute to file name or bytes.

        Raises
        ------
        FileNotFoundError
            If the folder does not exist.
        """
        graphs = {
            "_trained_onnx": cls._trained_onnx,
            "_optimized_pre_grad_model": cls._optimized_pre_grad_model,
            "_forward_onnx": cls._forward_onnx,
            "_backward_onnx": cls._backward_onnx,
        }
        return save_graphs(graphs, cls.__name__, folder, prefix, suffix)
