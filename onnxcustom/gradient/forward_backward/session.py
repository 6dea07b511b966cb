"""Forward and backward passes over an ONNX graph, for those who write their own training loop.

Two ordinary inference sessions run the two halves of a gradient graph; what the backward half needs
travels as saved tensors in the instance.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom._versioning import check_version, stamp_version
from onnxcustom.exceptions import NoTrainableWeightError, UnknownNameError
from onnxcustom.gradient import split_gradient
from onnxcustom.gradient.build import checked_names, gradient_model
from onnxcustom.gradient.host import Host
from onnxcustom.graph import Prepared, load, to_ir, to_proto, weights
from onnxcustom.graph.analysis.lookups import lookups
from onnxcustom.graph.trainable.selection import Catalog
from onnxcustom.runtime import (
    check_providers,
    create_session,
    ends_on_nothing,
    options_from,
    options_state,
    parse_device,
    require_runtime,
)

from .function import OrtGradientForwardBackwardFunction
from .graph_files import save_graphs

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
        For all sessions. Pickles keep all settings but entries of its configuration, which onnxruntime does
        not list.
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
    >>> function = OrtGradientForwardBackward(model).new_instance()
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
        if weights_to_train is None:
            catalog = Catalog(self.onnx_model)
            catalog.warn()
            if not found:
                raise _NothingToTrainError(catalog.nothing())
        else:
            self.weights_to_train = checked_names("weight", weights_to_train, self._all_weights(found))
        if not self.weights_to_train:
            raise _NothingToTrainError(f"The list of weights is empty; the model has {list(found)}.")
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
        return list(weights(onnx_model))

    @staticmethod
    def _provider_name_to_device_type(provider_name: Any) -> str:
        """'cpu' or 'cuda'."""
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
        self._set_class(
            gradient_model(
                Prepared.of(self.onnx_model),
                wrt=self.weights_to_train,
                engine=self.engine,
                host=Host(self._device.type),
            )
        )

    def _set_class(self, gradient: ir.Model) -> None:
        places = lookups(gradient)
        parts = split_gradient(gradient)
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
                "_trained_onnx": to_proto(gradient),
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
                "_lookups": places,
                "_device": self._device,
                "_run_options": self.run_options,
                "_ends_on_nothing": ends_on_nothing(parts.forward),
                "_debug": self.debug,
                "_logger": logger if self.enable_logging else None,
                "_sess": self._session(parts.forward),
                "_sess_backward": self._session(parts.backward),
            },
        )
        # The same graph without saved tensors, for predictions.
        self.cls_type_._sess_eval = self._session(self.cls_type_._optimized_pre_grad_model)

    def _session(self, model: onnx.ModelProto) -> Any:
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
        for tensor in self.onnx_model.graph.initializer:
            if tensor.name == name:
                return np.array(onnx.numpy_helper.to_array(tensor))  # a copy: its own may be read-only
        found = self._weights
        if name in found:
            return np.array(found[name])
        if exc:
            raise _UnknownInitializerError(
                f"The model has no initializer {name!r}; its weights are {', '.join(map(repr, found))}."
            )
        return None

    @functools.cached_property
    def _weights(self) -> dict[str, np.ndarray]:
        """The model's weights, read once: whoever asks for one asks for all, one after the other."""
        return weights(self.onnx_model)

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
        state = {k: v for k, v in self.__dict__.items() if k not in ("cls_type_", "_weights")}
        state["onnx_model"] = self.onnx_model.SerializeToString()
        state["_gradient"] = self.cls_type_._trained_onnx.SerializeToString()
        for name in ("sess_options", "run_options", "graph_builder_config"):
            state[name] = options_state(state[name])
        return stamp_version(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, sessions included."""
        state = check_version(state, self)
        gradient = onnx.load_model_from_string(state.pop("_gradient"))
        state["onnx_model"] = onnx.load_model_from_string(state["onnx_model"])
        self.__dict__.update(state)
        ort = require_runtime()
        self.sess_options = options_from(self.sess_options, ort.SessionOptions)
        self.run_options = options_from(self.run_options, ort.RunOptions)
        self._set_class(to_ir(gradient, trusted=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> OrtGradientForwardBackward:
        made = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made


class _NothingToTrainError(NoTrainableWeightError, UnknownNameError):
    """A RuntimeError, and a ValueError since the list of names may be at fault."""


class _UnknownInitializerError(UnknownNameError, RuntimeError):
    """A ValueError as of any name, and the RuntimeError that was promised here."""


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
