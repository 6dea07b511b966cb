"""Forward and backward passes over an ONNX graph, for those who write their own training loop.

Two ordinary inference sessions run the two halves of a gradient graph; what the backward half needs
travels as saved tensors in the instance.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx

from onnxcustom.exceptions import (
    InvalidDataError,
    NoTrainableWeightError,
    OnnxCustomError,
    UnknownNameError,
)
from onnxcustom.gradient.build import checked_names

from .graph_files import save_graphs
from .tensors import check_against, listed, settings

__all__ = ["OrtGradientForwardBackward", "OrtGradientForwardBackwardFunction"]

logger = logging.getLogger("onnxcustom")


class OrtGradientForwardBackward:
    """Forward and backward passes of a model.

    Parameters
    ----------
    onnx_model : ModelProto, str, bytes
        The model, anything :func:`onnxcustom.load` takes.
    weights_to_train : list of str, optional
        Weights to differentiate with respect to, in any order; None: every one that can be trained,
        in graph order.
    input_names, output_names : list of str, optional
        The model's inputs and outputs, all of them, None meaning the same: their order is the
        model's.
    class_name : str, optional
        Name of the class behind :attr:`cls_type_`; made from the model if None.
    sess_options : onnxruntime.SessionOptions, optional
        For all sessions.
    providers : optional
        None or 'cpu', 'cuda', 'cuda:N', 'gpu', a list as ``InferenceSession`` takes it, or an OrtDevice.
    provider_options : list of dict, optional
        As ``InferenceSession`` takes them.
    run_options : onnxruntime.RunOptions, optional
        For all runs.
    graph_builder_config : object, optional
        Kept for old calls; not used.
    device_index : int, default=0
        Which GPU, where `providers` does not say so.
    enable_logging : bool, default=False
        Write what happens to the logger ``onnxcustom``.
    debug : bool, default=False
        Check what comes in more thoroughly: NaN and infinity are logged.
    engine : str, default='auto'
        The gradient engine.

    Attributes
    ----------
    cls_type_ : type
        A subclass of :class:`OrtGradientForwardBackwardFunction` that holds the graphs.
    weights_to_train, input_names, output_names : list of str
        What was found in the model, where nothing was given.

    Raises
    ------
    NoTrainableWeightError
        If the model has no weight (a RuntimeError).
    UnknownNameError
        For names that do not exist or come twice (a ValueError).
    ProviderError
        If a provider is not there (a ValueError and a RuntimeError).
    DifferentiationError
        If an operator has no gradient.

    Examples
    --------
    >>> import numpy as np, onnx
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... g (float[N, 2] x) => (float[N, 1] y) <float[2, 1] w = {1, 2}> { y = MatMul (x, w) }''')
    >>> function = OrtGradientForwardBackward(model, engine="ort").new_instance()
    >>> x, w = np.ones((3, 2), np.float32), np.array([[1], [2]], np.float32)
    >>> function.forward([x, w], training=True)[0].numpy().ravel()
    array([3., 3., 3.], dtype=float32)
    >>> [g.numpy().shape for g in function.backward([np.ones((3, 1), np.float32)])]
    [(3, 2), (2, 1)]
    """

    def __init__(
        self,
        onnx_model: Any,
        weights_to_train: Sequence[str] | None = None,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        class_name: str | None = None,
        sess_options: Any = None,
        providers: Any = None,
        provider_options: Any = None,
        run_options: Any = None,
        graph_builder_config: Any = None,
        device_index: int = 0,
        enable_logging: bool = False,
        debug: bool = False,
        *,
        engine: str = "auto",
    ) -> None:
        self.onnx_model = onnx_model
        self.class_name = class_name
        self.sess_options = sess_options
        self.providers = providers
        self.provider_options = provider_options
        self.run_options = run_options
        self.graph_builder_config = graph_builder_config
        self.device_index = device_index
        self.enable_logging = enable_logging
        self.debug = debug
        self.engine = engine
        self._init_next(weights_to_train, input_names, output_names)

    def _init_next(
        self,
        weights_to_train: Sequence[str] | None,
        input_names: Sequence[str] | None,
        output_names: Sequence[str] | None,
    ) -> None:
        """Check everything, then build."""
        from onnxcustom.graph import load, weights
        from onnxcustom.runtime import check_providers, parse_device

        self._log("init")
        given = self.providers
        device = parse_device(given)
        if device.type == "cuda" and device.index == 0 and self.device_index:
            device = type(device)("cuda", self.device_index)
        self._device = device
        if isinstance(given, (list, tuple)):
            self.providers = check_providers(given)
        else:
            self.providers = device.providers
        self.onnx_model = load(self.onnx_model)
        graph = self.onnx_model.graph
        found = weights(self.onnx_model)
        fixed = {i.name for i in graph.initializer}
        inputs = [i.name for i in graph.input if i.name not in fixed]
        self.input_names: list[str] = _all_of("input", input_names, inputs)
        self.output_names: list[str] = _all_of("output", output_names, [o.name for o in graph.output])
        self.weights_to_train: list[str] = list(found)
        if weights_to_train is not None:
            self.weights_to_train = checked_names("weight", weights_to_train, self._all_weights(found))
        if not self.weights_to_train:
            raise _NothingToTrainError(
                "There is no weight to train: no floating-point initializer of the model is a "
                "differentiable operand, or the list given is empty."
            )
        self._log("weights_to_train=%r", self.weights_to_train)
        self._create_onnx_graphs()

    def _all_weights(self, found: Iterable[str]) -> list[str]:
        names = list(found)
        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
        names += [
            i.name for i in self.onnx_model.graph.initializer if i.data_type in floats and i.name not in names
        ]
        return names

    @staticmethod
    def _select_initializer_names(onnx_model: Any) -> list[str]:
        """All weights that can be trained, in graph order."""
        from onnxcustom.graph import weights

        return list(weights(onnx_model))

    @staticmethod
    def _provider_name_to_device_type(provider_name: Any) -> str:
        """'cpu' or 'cuda'."""
        from onnxcustom.runtime import parse_device

        return parse_device(provider_name).type

    @staticmethod
    def _repr_helper_(obj: Any, indent: int = 0) -> str:
        """An object's public attributes, for messages."""
        rows = [f"{' ' * indent}{type(obj).__name__}("]
        for name in sorted(n for n in dir(obj) if not n.startswith("_")):
            value = getattr(obj, name, None)
            if not callable(value):
                rows.append(f"{' ' * indent}    {name}={value!r}")
        return "\n".join([*rows, f"{' ' * indent})"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def _log(self, message: str, *args: Any) -> None:
        if self.enable_logging:
            logger.info(f"[OrtGradientForwardBackward] {message}", *args)

    # -- graphs --------------------------------------------------------------------------------

    def _create_onnx_graphs(self) -> None:
        """Build the graphs and the class that holds them."""
        from onnxcustom.gradient import gradient_graph, split_gradient

        gradient = gradient_graph(self.onnx_model, wrt=self.weights_to_train, engine=self.engine)
        self._set_class(gradient, split_gradient(gradient))

    def _set_class(self, gradient: onnx.ModelProto, parts: Any) -> None:
        names = parts.names
        self._log("engine=%r, saved=%r", names.engine, parts.saved)
        sources = [*self.input_names, *self.weights_to_train]
        self.cls_type_: type[OrtGradientForwardBackwardFunction] = type(
            self._class_name(),
            (OrtGradientForwardBackwardFunction,),
            {
                "__doc__": f"Forward and backward passes of graph {self.onnx_model.graph.name!r}.",
                "__module__": __name__,
                "_onnx_model": self.onnx_model,
                "_trained_onnx": gradient,
                "_optimized_pre_grad_model": parts.evaluation(),
                "_forward_onnx": parts.forward,
                "_backward_onnx": parts.backward,
                "_split": parts,
                "_input_names": list(self.input_names),
                "_output_names": list(self.output_names),
                "_weights_to_train": list(self.weights_to_train),
                "_grad_input_names": sources,
                "_bw_fetches_names": [names.gradients[n] for n in sources if n in names.gradients],
                "_onx_inp": sources,
                "_onx_out": [names.gradients[n] for n in sources if n in names.gradients],
                "_infos": {i.name: i for i in [*parts.forward.graph.input, *parts.forward.graph.output]},
                "_device": self._device,
                "_run_options": self.run_options,
                "_debug": self.debug,
                "_logger": logger if self.enable_logging else None,
                "_sess": self._session(parts.forward),
                "_sess_backward": self._session(parts.backward),
            },
        )
        # The same graph without saved tensors, for predictions.
        self.cls_type_._sess_eval = self._session(self.cls_type_._optimized_pre_grad_model)

    def _session(self, model: onnx.ModelProto) -> Any:
        from onnxcustom.runtime import create_session

        return create_session(
            model,
            self._device,
            sess_options=self.sess_options,
            providers=self.providers,
            provider_options=self.provider_options,
        )

    def _class_name(self) -> str:
        """The same for the same model, in every process."""
        if self.class_name is not None:
            return self.class_name
        text = re.sub(r"\W+", "_", self.onnx_model.graph.name or "model").strip("_")
        return f"OrtGradientForwardBackwardFunction_{text or 'model'}"

    # -- public --------------------------------------------------------------------------------

    def new_instance(self) -> OrtGradientForwardBackwardFunction:
        """A fresh instance of :attr:`cls_type_`, with a state of its own.

        Returns
        -------
        OrtGradientForwardBackwardFunction
        """
        return self.cls_type_()

    def get_initializer(self, name: str, exc: bool = True) -> np.ndarray | None:
        """An initializer of the model.

        Parameters
        ----------
        name : str
            Name of a weight or of any other initializer.
        exc : bool, default=True
            Raise if there is none of that name; else return None.

        Returns
        -------
        ndarray or None

        Raises
        ------
        RuntimeError
            If there is no such initializer and `exc` is True.
        """
        from onnxcustom.graph import weights

        for tensor in self.onnx_model.graph.initializer:
            if tensor.name == name:
                return onnx.numpy_helper.to_array(tensor)
        found = weights(self.onnx_model)
        if name in found:
            return found[name]
        if exc:
            raise RuntimeError(
                f"The model has no initializer {name!r}; its weights are {', '.join(map(repr, found))}."
            )
        return None

    def save_onnx_graph(
        self, folder: str | os.PathLike | type[bytes], prefix: str | None = None, suffix: str | None = None
    ) -> dict[str, Any]:
        """Write all graphs; see :meth:`OrtGradientForwardBackwardFunction.save_onnx_graph`."""
        graphs = {"onnx_model": self.onnx_model}
        saved = save_graphs(graphs, type(self).__name__, folder, prefix, suffix)
        saved["cls_type_"] = self.cls_type_.save_onnx_graph(folder, prefix, suffix)
        return saved

    # -- copies --------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """All attributes that pickle: sessions are made again from the graphs."""
        state = {k: v for k, v in self.__dict__.items() if k != "cls_type_"}
        state["onnx_model"] = self.onnx_model.SerializeToString()
        state["_gradient"] = self.cls_type_._trained_onnx.SerializeToString()
        for name in ("sess_options", "run_options", "graph_builder_config"):
            state[name] = settings(state[name])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, sessions included."""
        from onnxcustom.gradient import split_gradient
        from onnxcustom.runtime import require_runtime

        state = dict(state)
        gradient = onnx.load_model_from_string(state.pop("_gradient"))
        state["onnx_model"] = onnx.load_model_from_string(state["onnx_model"])
        self.__dict__.update(state)
        ort = require_runtime()
        for name, factory in (("sess_options", ort.SessionOptions), ("run_options", ort.RunOptions)):
            values = state[name]
            if values is not None:
                options = factory()
                for key, value in values.items():
                    setattr(options, key, value)
                setattr(self, name, options)
        self._set_class(gradient, split_gradient(gradient))

    def __deepcopy__(self, memo: dict[int, Any]) -> OrtGradientForwardBackward:
        made = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made


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
    _device: Any
    _run_options: Any
    _debug: bool
    _logger: logging.Logger | None
    _sess: Any
    _sess_eval: Any
    _sess_backward: Any

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None
        self._saved_tensors: list[Any] | None = None

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
            Keep what :meth:`backward` needs.
        forward_outputs_cache : optional
            Kept for old calls; not used.

        Returns
        -------
        sequence of OrtValue
            One per output of the model, in memory of their own.

        Raises
        ------
        InvalidDataError
            If the number of inputs is wrong, or the dtype, rank or shape of one of them.
        """
        from onnxcustom.runtime import OrtValues, owned_copy, run_values

        values = self._checked_inputs(inputs)
        feeds = dict(zip(self._grad_input_names, values, strict=False))
        if not training:
            outputs = run_values(self._sess_eval, feeds, self._output_names, self._run_options)
        else:
            self.save_for_backward(values)
            fetches = [*self._output_names, *self._split.saved]
            found = run_values(self._sess, feeds, fetches, self._run_options)
            # Outputs are kept as well: the backward graph may read them.
            self._saved = {**feeds, **dict(zip(fetches, found, strict=False))}
            self._shapes = [v.shape() for v in found[: len(self._output_names)]]
            outputs = OrtValues(found[: len(self._output_names)])
        for k, name in enumerate(self._output_names):
            if name in feeds:  # onnxruntime hands out the memory of the input itself
                outputs[k] = owned_copy(outputs[k])
        return outputs

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
            The gradients of the model's floating-point inputs, then of the weights.

        Raises
        ------
        RuntimeError
            Without a forward pass with ``training=True`` before.
        NotImplementedError
            If one of the gradients is None.
        InvalidDataError
            If the number of gradients is wrong, or the dtype or shape of one of them.
        """
        from onnxcustom.runtime import run_values

        if self._saved is None:
            raise RuntimeError("Call forward(inputs, training=True) before backward: nothing was saved.")
        seeds = self._checked_gradients(grad_outputs)
        feeds = {name: self._saved[name] for name in self._split.backward_inputs}
        feeds.update(seeds)
        return run_values(self._sess_backward, feeds, self._bw_fetches_names, self._run_options)

    # -- what comes in -------------------------------------------------------------------------

    def _checked_inputs(self, inputs: Any) -> list[Any]:
        values = listed(inputs)
        names = self._grad_input_names
        if len(values) != len(names):
            raise InvalidDataError(
                f"{len(names)} inputs are expected ({', '.join(names)}), not {len(values)}."
            )
        found = [self._value(name, value) for name, value in zip(names, values, strict=False)]
        for name, value in zip(names, found, strict=False):
            check_against(name, value, self._infos[name])
            self._check_finite(name, value)
        return found

    def _checked_gradients(self, grad_outputs: Any) -> dict[str, Any]:
        values = listed(grad_outputs)
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
        for name, value in zip(names, values, strict=False):
            if value is None and name in seeds:
                raise NotImplementedError(f"The gradient of output {name!r} is None; give zeros instead.")
            if name in seeds:
                shape = self._shapes[self._output_names.index(name)]
                found[seeds[name]] = self._fitting(name, self._value(seeds[name], value), shape)
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
        return self._value(name, value.numpy().reshape(shape))

    def _value(self, name: str, value: Any) -> Any:
        """An OrtValue of an array or of whatever else came in."""
        from onnxcustom.runtime import to_ortvalue

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
        self._saved_tensors = listed(inputs)

    @property
    def saved_tensors(self) -> list[Any]:
        """The inputs of the last forward pass with ``training=True``.

        Raises
        ------
        RuntimeError
            If there was none.
        """
        if self._saved_tensors is None:
            raise RuntimeError("No tensors were saved: call forward(inputs, training=True) first.")
        return self._saved_tensors

    @staticmethod
    def device_name(device: Any) -> str:
        """'Cpu' or 'Gpu'."""
        from onnxcustom.runtime import parse_device

        return "Cpu" if parse_device(device).type == "cpu" else "Gpu"

    @staticmethod
    def input_to_ort(tensors: Any, devices: Sequence[Any] | None = None, debug: bool = False) -> Any:
        """An ``OrtValueVector`` of OrtValues or arrays, each on the device at its place in `devices`."""
        from onnxcustom.runtime import parse_device, to_ortvalue, to_vector

        values = listed(tensors)
        places = [parse_device(d) for d in devices] if devices else [parse_device(None)] * len(values)
        if len(places) != len(values):
            raise InvalidDataError(f"{len(values)} tensors came with {len(places)} devices.")
        if debug and any(v is None for v in values):
            raise InvalidDataError("None is not a tensor.")
        made = [to_ortvalue(v, d) for v, d in zip(values, places, strict=False)]
        vector = to_vector(made)
        # The vector borrows the memory of arrays: a copy of each in memory of onnxruntime's own is safe.
        return vector if all(_is_ort(v) for v in values) else _owning(made)

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


class _NothingToTrainError(NoTrainableWeightError, UnknownNameError):
    """A RuntimeError, and a ValueError since the list of names may be at fault."""


# -- helpers -----------------------------------------------------------------------------------


def _is_ort(value: Any) -> bool:
    return hasattr(value, "data_ptr")


def _owning(values: Sequence[Any]) -> Any:
    """An OrtValueVector whose values own their memory."""
    from onnxcustom.runtime import owned_copy, to_vector

    return to_vector([owned_copy(v) for v in values])


def _all_of(kind: str, asked: Sequence[str] | None, existing: list[str]) -> list[str]:
    """The model's own names; a list given must hold all of them."""
    if asked is None:
        return list(existing)
    names = checked_names(kind, asked, existing)
    if set(names) != set(existing):
        missing = [n for n in existing if n not in names]
        raise UnknownNameError(
            f"All {kind}s of the model must be named; {', '.join(map(repr, missing))} is missing."
        )
    return names
