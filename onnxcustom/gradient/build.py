"""The public function: validate, prepare, let an engine differentiate, name and order the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedOpsetsPass

from onnxcustom._garbage import collected_later
from onnxcustom.exceptions import (
    DifferentiationError,
    InvalidModelError,
    NonDifferentiableError,
    UnknownNameError,
)
from onnxcustom.graph import Prepared, to_proto, trainable_values
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.traversal import all_names, sort_nodes
from onnxcustom.graph.building.builder import Builder
from onnxcustom.graph.files import training_info
from onnxcustom.graph.preparation.guards import GiveBiasesPass
from onnxcustom.graph.preparation.passes import bypass_identities
from onnxcustom.graph.preparation.unused import RemoveUnusedPass
from onnxcustom.graph.trainable.finding import check_finite, find_weights, warn_nonfinite

from .analysis import analyse
from .choice import select_engine
from .flow import Flow
from .host import HERE, Host
from .interface import Engine, form_of, refusal_error
from .names import METADATA_KEY, GradientNames

__all__ = ["checked_names", "gradient_graph", "gradient_model", "tidy"]


def gradient_graph(
    model: object,
    wrt: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    engine: str | Engine = "auto",
    *,
    device: str = "cpu",
    portable: bool = False,
) -> onnx.ModelProto:
    """The graph that computes a model's outputs and gradients.

    Its inputs are the model's inputs, the weights of `wrt`, and ``<output>_grad`` for every
    floating-point output: the gradient of some scalar with respect to that output. Its outputs are
    ``<name>_grad`` for the model's inputs, then for the weights, then the model's own outputs.

    Parameters
    ----------
    model : ModelProto, str, bytes, onnx_ir.Model
        Anything :func:`onnxcustom.graph.load` takes; it is not changed.
    wrt : sequence of str, optional
        The weights to differentiate with respect to, in any order; the result has the order of the list.
        None: all of :func:`onnxcustom.graph.weights`; ``[]``: none.
    inputs : sequence of str, optional
        The inputs to differentiate with respect to. None: every floating-point input whose gradient
        exists and is known to the engine.
    outputs : sequence of str, optional
        The outputs that a gradient comes in from. None: every floating-point one.
    engine : str, default='auto'
        The engine that builds the gradient, or 'auto'.
    device : {'cpu', 'cuda'}, default='cpu'
        Where the graph is going to run: engine ``'onnx'`` takes what is fast there.
    portable : bool, default=False
        Whether it takes only operators that every runtime has, those of browsers and phones among them.

    Returns
    -------
    ModelProto
        Gradients are sums over everything the outputs hold, never means. A gradient of what the outputs
        do not depend on is zero. A name that is taken already gets a number behind it; the names
        are in the metadata under ``'onnxcustom.gradient'``.

    Raises
    ------
    UnknownNameError
        For a weight, input, output or engine that does not exist or is named twice.
    NonDifferentiableError
        If what is asked for is integer, or reaches the outputs through step functions only.
    GradientNotImplementedError
        If the engine has no gradient for a node on the way.
    InvalidModelError
        If the model is not valid, or a weight that is named holds NaN or infinity. Such weights are left
        out otherwise, with a warning.
    MissingRuntimeError
        If the engine's onnxruntime is not installed.

    Notes
    -----
    A batch without rows is the runtime's affair: onnxruntime 1.31 computes zeros, while 1.19 and older have
    kernels that refuse a sum over nothing (Gemm), leave what was in memory for it (MatMul), get its shape
    wrong (ReduceSum), or end the process (Einsum). :class:`~onnxcustom.OrtGradientForwardBackward` gives
    zeros on all of them, without running the graph.

    Examples
    --------
    >>> import onnx
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... g (float[N, 2] x) => (float[N, 1] y) <float[2, 1] w = {1, 2}> { y = MatMul (x, w) }''')
    >>> graph = gradient_graph(model).graph
    >>> [v.name for v in graph.input], [v.name for v in graph.output]
    (['x', 'w', 'y_grad'], ['x_grad', 'w_grad', 'y'])
    """
    host = Host.of(device, portable)
    return to_proto(gradient_model(Prepared.of(model), wrt, inputs, outputs, engine, host))  # type: ignore[arg-type]


@collected_later()
def gradient_model(
    model: Prepared,
    wrt: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    engine: str | Engine = "auto",
    host: Host = HERE,
) -> ir.Model:
    """What :func:`gradient_graph` returns, for who goes on working with it, of a model with its proto."""
    chosen = select_engine(engine, model)
    made = form_of(model, chosen)
    _restore(made, model.proto, wrt or ())
    return differentiate(made, chosen, wrt, inputs, outputs, host)


def _restore(model: ir.Model, original: onnx.ModelProto, names: Iterable[str]) -> None:
    """Bring back initializers that were dropped because nothing reads them, where they are asked for."""
    asked = set(names)
    present = all_names(model.graph)  # an output that is a weight has its name, and the weight another
    for tensor in original.graph.initializer:
        if tensor.name in asked and tensor.name not in present:
            made = ir.from_proto(tensor)
            value = ir.Value(name=tensor.name, type=ir.TensorType(made.dtype), shape=_copy_shape(made.shape))
            value.const_value = made
            model.graph.register_initializer(value)


def differentiate(
    model: ir.Model,
    engine: Engine,
    wrt: Sequence[str] | None,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
    host: Host = HERE,
) -> ir.Model:
    """Turn a prepared model into its gradient graph, in place."""
    engine = engine.on(host)
    training_info.drop(model)
    graph = model.graph
    targets = _targets(graph, outputs)
    flow = analyse(model, targets, engine)
    weights = _weights(model, wrt)
    found = [_source(model, engine, flow, v, "weight", named=True) for v in weights]
    chosen = _inputs(model, engine, flow, inputs)
    sources = chosen + [v for v in found if v is not None]

    names = GradientNames.choose(
        [_name(v) for v in graph.inputs],
        [_name(v) for v in weights],
        [_name(v) for v in graph.outputs],
        [_name(v) for v in targets],
        [_name(v) for v in sources],
        all_names(graph),
        engine.name,
    )
    for value in weights:
        _to_input(graph, value)
    own_outputs = list(graph.outputs)
    seeds = {v: _seed(v, names.seeds[_name(v)]) for v in targets}
    graph.inputs.extend(seeds.values())

    # An output that is a source itself needs no engine: its seed is added at the end.
    reached = {v: s for v, s in seeds.items() if v not in graph.inputs}
    flow = analyse(model, reached, engine)
    live = [v for v in sources if flow.of(v).live]
    gradients = engine.differentiate(model, live, reached, flow) if live and reached else {}
    own_outputs = [v if v in graph.inputs else graph.outputs[k] for k, v in enumerate(own_outputs)]
    _finish(model, names, sources, seeds, gradients, own_outputs)
    engine.finish(model)
    GiveBiasesPass()(model)
    return model


# -- what is asked for -------------------------------------------------------------------------


def _name(value: ir.Value) -> str:
    return value.name or ""


def checked_names(kind: str, asked: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names asked for, none unknown and none twice."""
    if isinstance(asked, (str, bytes)):
        raise UnknownNameError(f"{kind}s must be a list of names, not the text {asked!r}.")
    names, existing = list(asked), list(known)
    unknown = [n for n in names if n not in existing]
    if unknown:
        raise UnknownNameError(
            f"The model has no {kind} {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(map(repr, existing)) or 'none'}."
        )
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UnknownNameError(f"{kind.capitalize()} named twice: {', '.join(map(repr, twice))}.")
    return names


def _targets(graph: ir.Graph, outputs: Sequence[str] | None) -> list[ir.Value]:
    """The outputs that are differentiated."""
    by_name = {_name(v): v for v in graph.outputs}
    if outputs is None:
        targets = [v for v in graph.outputs if _is_float_tensor(v)]
        if not targets:
            raise NonDifferentiableError(
                f"The model has no floating-point output to differentiate; it has {', '.join(by_name)}. "
                "Dictionaries of probabilities (ZipMap) are none: convert with options={'zipmap': False}."
            )
        return targets
    names = checked_names("output", outputs, by_name)
    if not names:
        raise DifferentiationError("The list of outputs is empty: nothing is left to differentiate.")
    for name in names:
        if not _is_float_tensor(by_name[name]):
            raise NonDifferentiableError(
                f"Output {name!r} is {by_name[name].type}, not a floating-point tensor: it has no gradient."
            )
    # Seeds come in the order of the model's outputs, whatever the order of the list.
    return [v for v in graph.outputs if _name(v) in names]


def _is_float_tensor(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and is_float(value, unknown=False)


def _weights(model: ir.Model, wrt: Sequence[str] | None) -> list[ir.Value]:
    """The initializers that become inputs."""
    initializers = model.graph.initializers
    if wrt is None:
        found = find_weights(model)
        warn_nonfinite(found.nonfinite)
        return found.weights
    known = [_name(v) for v in trainable_values(model)]
    # What weights() leaves out because it looks like a constant may be asked for by name.
    extra = [
        n for n, v in initializers.items() if n not in known and is_float(v) and v not in model.graph.inputs
    ]
    names = list(wrt) if not isinstance(wrt, (str, bytes)) else wrt
    if any(n not in known and n not in extra for n in names):
        checked_names("weight", names, known)
    values = [initializers[name] for name in checked_names("weight", names, [*known, *extra])]
    check_finite(v for v in values if _name(v) not in known)
    return values


def _inputs(model: ir.Model, engine: Engine, flow: Flow, inputs: Sequence[str] | None) -> list[ir.Value]:
    """The model's inputs that get a gradient."""
    by_name = {_name(v): v for v in model.graph.inputs}
    if inputs is None:
        found = (_source(model, engine, flow, v, "input", named=False) for v in model.graph.inputs)
        return [v for v in found if v is not None]
    names = checked_names("input", inputs, by_name)
    found = (_source(model, engine, flow, by_name[n], "input", named=True) for n in by_name if n in names)
    return [v for v in found if v is not None]


def _source(
    model: ir.Model, engine: Engine, flow: Flow, value: ir.Value, kind: str, named: bool
) -> ir.Value | None:
    """The value if it can be differentiated; else None, or an error if it was named."""
    what = f"{kind} {value.name!r}"
    if not _is_float_tensor(value):
        if named:
            raise NonDifferentiableError(f"{what} is {value.type}, not a floating-point tensor.".capitalize())
        return None
    reach = flow.of(value)
    obstacle = reach.refusal or (None if reach.live else reach.blocked)
    if obstacle is None:
        return value
    if named:
        raise refusal_error(what, *obstacle, model, engine.name)
    return None


# -- the result --------------------------------------------------------------------------------


def _to_input(graph: ir.Graph, value: ir.Value) -> None:
    """Make an initializer a plain input."""
    tensor = value.const_value
    del graph.initializers[_name(value)]
    if tensor is not None:
        value.dtype = tensor.dtype
        value.shape = _copy_shape(tensor.shape)
        value.const_value = None
    if value not in graph.inputs:
        graph.inputs.append(value)


def _seed(target: ir.Value, name: str) -> ir.Value:
    return ir.Value(name=name, type=target.type, shape=_copy_shape(target.shape))


def _copy_shape(shape: Any) -> ir.Shape | None:
    return None if shape is None else ir.Shape(list(shape))


def _finish(
    model: ir.Model,
    names: GradientNames,
    sources: Sequence[ir.Value],
    seeds: dict[ir.Value, ir.Value],
    gradients: dict[ir.Value, ir.Value],
    own_outputs: Sequence[ir.Value],
) -> None:
    """Complete, name and order the outputs; drop what became unused."""
    graph = model.graph
    op = Builder(
        opset=model.opset_imports[""], prefix="", taken=all_names(graph) | set(names.gradients.values())
    )
    ends = []
    taken = set(own_outputs)
    by_name = {v.name: v for node in graph for v in node.outputs}
    for source in sources:
        parts = [op.wrap(gradients[source])] if source in gradients else []
        if source in seeds:  # the model hands the source itself out
            parts.append(op.wrap(seeds[source]))
        end = _sum(op, source, [p.value for p in parts])
        if end.producer() is None or end in taken:
            end = op.Identity(end).value
        taken.add(end)
        name = names.gradients[_name(source)]
        if name in by_name and by_name[name] is not end:  # one of the engine's own, in between
            by_name[name].name = op.unique(f"{name}_part")
        end.name = name
        end.type = source.type
        end.shape = _copy_shape(source.shape)
        ends.append(end)
    for value in op.initializers:
        graph.register_initializer(value)
    graph.extend(op.nodes)
    graph.outputs.clear()
    graph.outputs.extend([*ends, *own_outputs])
    model.metadata_props[METADATA_KEY] = names.to_json()
    tidy(model)


def _sum(op: Builder, source: ir.Value, parts: Sequence[ir.Value]) -> ir.Value:
    """The gradient of a source from its parts; zeros of its shape if there is none."""
    if len(parts) == 2:
        return op.Add(parts[0], parts[1]).value
    if parts:
        return parts[0]
    if source.dtype is None:
        raise InvalidModelError(f"The type of {source.name!r} is unknown.")
    shape = op.wrap(source).static_shape
    dims = op.Shape(source) if shape is None else op.const(list(shape), ir.DataType.INT64)
    if shape == ():
        dims = op.Shape(source)
    zero = ir.tensor([0.0], dtype=source.dtype)
    return op.ConstantOfShape(dims, value=zero).value


def tidy(model: ir.Model) -> None:
    """Sort the nodes, drop Identity, unused nodes, initializers and opset imports; inputs stay."""
    sort_nodes(model.graph)
    bypass_identities(list(model.graph), rename=True)
    RemoveUnusedPass()(model)
    RemoveUnusedOpsetsPass()(model)
