"""Inference sessions: made in one place, with our defaults and our errors."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir

from onnxcustom._garbage import collected_later
from onnxcustom.exceptions import EvaluationError, InvalidModelError, InvalidParameterError, ProviderError
from onnxcustom.graph.analysis.operators import normal_domain
from onnxcustom.graph.analysis.traversal import proto_nodes
from onnxcustom.graph.files.conversion import PROTOBUF_LIMIT, represented, to_proto

from .bfloat16 import check_bfloat16
from .devices import Device, available_providers, default_threads, parse_device, require_runtime
from .forking import remade_session
from .nesting import check_nesting
from .optimizers import idle_optimizers

__all__ = [
    "check_providers",
    "create_session",
    "ends_on_nothing",
    "options_from",
    "options_state",
    "ort_limits",
    "output_types",
    "session_options",
]

# From here on a session of graphs within graphs takes the time that their nodes take; 1.29 was not looked at.
_LINEAR = (1, 30)

# From here on an Einsum of no elements has a result; 1.23 ends the process, those between were not looked at.
_EINSUM_OF_NOTHING = (1, 31)


@collected_later()
def create_session(
    model: onnx.ModelProto | bytes | ir.Model,
    device: Any = "cpu",
    *,
    threads: int | None = None,
    sess_options: Any = None,
    providers: Any = None,
    provider_options: Any = None,
    optimize: bool = True,
    memory_pattern: bool = True,
    integers: bool = True,
) -> Any:
    """An ``onnxruntime.InferenceSession`` of a model.

    Parameters
    ----------
    model : ModelProto, bytes or onnx_ir.Model
        Models above 2 GB go through a temporary folder.
    device : optional
        What :func:`~onnxcustom.runtime.parse_device` understands.
    threads : int, optional
        Threads inside one operator, by default as many as this process has processors.
    sess_options : onnxruntime.SessionOptions, optional
        Used as it is, in place of the other settings.
    providers, provider_options : list, optional
        As ``InferenceSession`` takes them, in place of those of `device`.
    optimize : bool, default=True
        Whether onnxruntime may rewrite the graph.
    memory_pattern, integers : bool, default=True
        As for :func:`session_options`.

    Returns
    -------
    onnxruntime.InferenceSession
        In a process that is forked from this one, it is made again when it is used.

    Raises
    ------
    InvalidModelError
        If onnxruntime finds the model invalid.
    EvaluationError
        If it is valid but cannot be run here, for want of a kernel for instance.
    ProviderError
        If the device or a provider is not there.
    """
    ort = require_runtime()
    where = device if isinstance(device, Device) else parse_device(device)
    if providers is None:
        providers, provider_options = where.providers, None
    else:
        providers = check_providers(providers)
    options = sess_options
    if options is None:
        options = session_options(
            threads, optimize=optimize, memory_pattern=memory_pattern, integers=integers
        )
    _check_kernels(model)
    check_bfloat16(model, where)
    if _version(ort) < _LINEAR:
        check_nesting(model, ort.__version__)
    idle = idle_optimizers(model) if optimize else []
    source: Any = serialize(model)

    def make() -> Any:
        return _opened(ort, model if source is None else source, options, providers, provider_options, idle)

    return remade_session(make(), make)


def _check_kernels(model: onnx.ModelProto | bytes | ir.Model) -> None:
    """Refuse what a kernel ends the process on: Attention of com.microsoft reads a bias that is not there."""
    if isinstance(model, bytes):
        return
    nodes: Any = model.graph if isinstance(model, ir.Model) else model.graph.node
    for node in nodes:
        if node.op_type != "Attention" or node.domain != "com.microsoft":
            continue
        inputs = node.inputs if isinstance(node, ir.Node) else node.input
        if len(inputs) < 3 or not (inputs[2] if isinstance(inputs[2], str) else inputs[2] is not None):
            raise EvaluationError(
                f"Node {node.name!r} (com.microsoft.Attention) has no bias, and onnxruntime no kernel for "
                "that: give it one of zeros."
            )


def ends_on_nothing(model: onnx.ModelProto) -> str | None:
    """Name of a node whose kernel in the installed onnxruntime may end the process if there are no rows."""
    if _version(require_runtime()) >= _EINSUM_OF_NOTHING:
        return None
    nodes = (n for n in proto_nodes(model.graph.node) if n.op_type == "Einsum")
    return next((n.name or "Einsum" for n in nodes if not normal_domain(n.domain)), None)


def _opened(
    ort: Any, model: Any, options: Any, providers: Any, provider_options: Any, idle: Sequence[str]
) -> Any:
    """A session of a model: bytes, or what goes through a folder."""
    folder: str | None = None
    try:
        source = model
        if not isinstance(model, bytes):
            folder = tempfile.mkdtemp(prefix="onnxcustom-")
            source = _spill(model, folder)
        if providers == ["CPUExecutionProvider"]:  # nothing to warn of, and filters are shared by threads
            return _session(ort, source, options, providers, provider_options, idle)
        with warnings.catch_warnings():
            # The providers were checked before; what remains is onnxruntime talking about fallbacks.
            warnings.simplefilter("ignore")
            return _session(ort, source, options, providers, provider_options, idle)
    except Exception as exc:
        if type(exc).__module__.startswith("onnxcustom"):
            raise
        raise _session_error(model, exc) from exc
    finally:
        if folder is not None:
            # The session has read the tensors; where the system locks mapped files they stay behind.
            shutil.rmtree(folder, ignore_errors=True)


# Optimizations that fail, by what the message then says: those that put a node in place of others which has
# no kernel for float64, and one that up to 1.19.2 loses its way in a Clip without an upper bound.
_FAILING = {
    "RemoveNode": "ClipQuantRewrite",
    "FusedMatMul": "MatmulTransposeFusion",
    "FusedGemm": "GemmActivationFusion",
    "QuickGelu": "QuickGeluFusion",
}


def _session(
    ort: Any, source: Any, options: Any, providers: Any, provider_options: Any, idle: Sequence[str] = ()
) -> Any:
    arguments = {"sess_options": options, "providers": providers, "provider_options": provider_options}
    # Up to 1.18 this one ends the process on a LayerNormalization without bias, as gradients have it.
    off = [*idle, *(["AttentionFusion"] if _version(ort) < (1, 19) else [])]
    # Up to 1.17 this one takes a time that grows with the square of what reads a constant: minutes for 10,000
    # nodes. What it does changes no number.
    off += ["ConstantSharing"] if _version(ort) < (1, 18) else []
    while True:
        try:
            return ort.InferenceSession(source, disabled_optimizers=off, **arguments)
        except Exception as exc:
            text = str(exc)
            found = [p for n, p in _FAILING.items() if (n in text or p in text) and p not in off]
            if not found:
                raise
            off = [*off, *found]


def _version(ort: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in ort.__version__.split(".")[:2] if n.isdigit())


def check_providers(providers: Any) -> list[Any]:
    """The providers as a list for ``InferenceSession``.

    Raises
    ------
    ProviderError
        If one of them is not in the installed onnxruntime, which itself would only warn.
    """
    known = available_providers()
    result: list[Any] = []
    for item in [providers] if isinstance(providers, str) else list(providers):
        name = item[0] if isinstance(item, tuple) and item else item
        if isinstance(name, str) and name in known:
            result.append(item)
        else:
            result.extend(p for p in parse_device(item).providers if p not in result)
    if not result:
        raise ProviderError(f"The list of providers is empty. Available: {', '.join(known)}.")
    return result


def session_options(
    threads: int | None = None,
    *,
    optimize: bool = True,
    memory_pattern: bool = True,
    integers: bool = True,
) -> Any:
    """Settings of a session as this library makes them.

    Parameters
    ----------
    threads : int, optional
        Threads inside one operator, by default as many as this process has processors. There is one thread
        between operators.
    optimize : bool, default=True
        Whether onnxruntime may rewrite the graph.
    memory_pattern : bool, default=True
        Whether onnxruntime takes the memory of all intermediate results as one block from the second run
        on inputs of the same shapes on. What it held in the first run stays with it, so that a training
        step would take twice the memory of its activations.
    integers : bool, default=True
        Whether kernels of integers may stand for what lies between DequantizeLinear and QuantizeLinear. They
        round otherwise, and some saturate: training goes by what the graph says.

    Returns
    -------
    onnxruntime.SessionOptions
    """
    if threads is not None and threads < 1:
        raise InvalidParameterError(f"threads must be at least 1, not {threads}.")
    ort = require_runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = default_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    # Warnings go to stderr from C++, where nobody can catch them; errors are raised.
    options.log_severity_level = 3
    options.enable_mem_pattern = memory_pattern
    if not integers:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def options_state(options: Any) -> dict[str, Any] | None:
    """The settings of a SessionOptions or RunOptions, as plain values that pickle; None of None.

    Entries of its configuration are not among them: onnxruntime does not list them.
    """
    if options is None:
        return None
    found: dict[str, Any] = {}
    for name in (n for n in dir(options) if not n.startswith("_")):
        value = getattr(options, name)
        if isinstance(value, (bool, int, float, str)):
            found[name] = value
        elif hasattr(type(value), "__members__"):  # an enumeration of onnxruntime: by its name
            found[name] = (value.name,)
    return found


def options_from(state: dict[str, Any] | None, factory: Any) -> Any:
    """Options with the settings of :func:`options_state`; settings this onnxruntime lacks are left out."""
    if state is None:
        return None
    options = factory()
    for name, value in state.items():
        if not hasattr(options, name):
            continue
        if isinstance(value, tuple):
            value = type(getattr(options, name)).__members__[value[0]]
        if value != getattr(options, name):
            setattr(options, name, value)
    return options


def serialize(model: onnx.ModelProto | bytes | ir.Model) -> bytes | None:
    """The bytes of a model, None if it is too large for one protobuf message."""
    if isinstance(model, (bytes, bytearray, memoryview)):
        return bytes(model)
    if isinstance(model, ir.Model):
        tensors = [v.const_value for v in model.graph.initializers.values()]
        if any(isinstance(t, ir.ExternalTensor) for t in tensors):
            return None
        if sum(t.nbytes for t in tensors if t is not None) > PROTOBUF_LIMIT:
            return None
        model = to_proto(model)
    return None if model.ByteSize() > PROTOBUF_LIMIT else model.SerializeToString()


def _spill(model: Any, folder: str) -> str:
    """Write a model with its tensors outside; return its path."""
    path = os.path.join(folder, "model.onnx")
    made = model
    if not isinstance(model, ir.Model):
        made = represented(model, sparse=bool(model.graph.sparse_initializer))
    # Saving replaces tensors by references into the folder: only a shallow copy may lose them.
    before = {name: v.const_value for name, v in made.graph.initializers.items()}
    try:
        ir.save(made, path, external_data="model.data")
    finally:
        for name, tensor in before.items():
            made.graph.initializers[name].const_value = tensor
    return path


def _session_error(model: Any, exc: Exception) -> Exception:
    """Our error for what onnxruntime raised while it loaded a model."""
    name = _graph_name(model)
    kind = type(exc).__name__
    if kind == "NotImplemented":
        return EvaluationError(
            f"onnxruntime has no kernel for an operator of graph {name!r} on this device: {exc}"
        )
    if kind in ("InvalidProtobuf", "InvalidGraph", "Fail", "InvalidArgument", "NoSuchFile", "DecodeError"):
        return InvalidModelError(
            f"onnxruntime {require_runtime().__version__} does not accept graph {name!r}: {exc}. "
            "If onnxruntime.InferenceSession does not open the model by itself, either, another release of "
            "onnxruntime may, or the model has to be exported anew."
        )
    return EvaluationError(f"onnxruntime cannot make a session of graph {name!r}: {exc}")


def _graph_name(model: Any) -> str:
    try:
        if isinstance(model, (bytes, bytearray)):
            return onnx.load_model_from_string(bytes(model)).graph.name
        return model.graph.name or ""
    except Exception:
        return "?"


@functools.lru_cache(maxsize=1)
def ort_limits() -> tuple[int, int]:
    """Newest opset and IR version that the installed onnxruntime reads.

    Found by asking it: a model of one Identity node is loaded, newest version first.

    Returns
    -------
    tuple of (int, int)
        ``(max_opset, max_ir)``, neither beyond what the installed ``onnx`` package knows.
    """
    newest_opset = onnx.defs.onnx_opset_version()
    opset = next((v for v in range(newest_opset, 6, -1) if _loads(v, 4)), 7)
    ir_version = next((v for v in range(int(onnx.IR_VERSION), 3, -1) if _loads(opset, v)), 4)
    return opset, ir_version


def _loads(opset: int, ir_version: int) -> bool:
    ort = require_runtime()
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "probe",
        [info("x", onnx.TensorProto.FLOAT, [1])],
        [info("y", onnx.TensorProto.FLOAT, [1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    model.ir_version = ir_version
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(
            model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception:
        return False
    return True


def output_types(model: onnx.ModelProto | ir.Model) -> dict[str, onnx.TypeProto]:
    """Types of a model's outputs as onnxruntime infers them, also behind operators of its own.

    Parameters
    ----------
    model : ModelProto or onnx_ir.Model
        Its outputs need not have types.

    Returns
    -------
    dict of str to TypeProto
        Of the tensors among them; without a shape where onnxruntime knows none, or no dimensions. Empty
        if it does not load the model.
    """
    try:
        session = create_session(model, threads=1, optimize=False)
    except (InvalidModelError, EvaluationError):
        return {}
    found = {}
    for output in session.get_outputs():
        kind = output.type.removeprefix("tensor(").removesuffix(")")
        if kind in _ELEMENTS:
            shape = [d if isinstance(d, (int, str)) else None for d in output.shape]
            found[output.name] = onnx.helper.make_tensor_type_proto(_ELEMENTS[kind], shape or None)
    return found


# Types of elements by the names that onnxruntime has for them.
_ELEMENTS = {name.lower(): number for name, number in onnx.TensorProto.DataType.items() if number}
