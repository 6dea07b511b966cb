"""Whole models against finite differences: gradients as onnxruntime computes them, in the model's own dtype,
differences as onnx's reference evaluator computes them in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_max_pool import MaxPool as ReferenceMaxPool

from onnxcustom import gradient_graph, weights
from onnxcustom.gradient import GradientNames
from onnxcustom.runtime import create_session

__all__ = ["Differentiated", "double", "evaluator"]

FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
Arrays = dict[str, np.ndarray]

# -- float64 ------------------------------------------------------------------------------------


def double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float64 throughout."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _double_graph(made.graph)
    return made


def _double_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _double_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = DOUBLE
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == FLOAT:
                attribute.i = DOUBLE
            if attribute.HasField("t"):
                _double_tensor(attribute.t)
            if attribute.HasField("g"):
                _double_graph(attribute.g)


def _double_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == FLOAT:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _wide(feeds: Mapping[str, np.ndarray]) -> Arrays:
    return {name: v.astype(np.float64) if v.dtype == np.float32 else v for name, v in feeds.items()}


def only(model: onnx.ModelProto, outputs: Iterable[str]) -> onnx.ModelProto:
    """The part of a model that these outputs need."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    needed, kept = set(outputs), []
    ends = [o for o in made.graph.output if o.name in needed]
    for node in reversed(made.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_read(node))
    nodes = kept[::-1]
    inputs = [i for i in made.graph.input if i.name in needed]
    del made.graph.node[:], made.graph.output[:], made.graph.input[:]
    made.graph.node.extend(nodes)
    made.graph.output.extend(ends)
    made.graph.input.extend(inputs)
    return made


def _read(node: onnx.NodeProto) -> set[str]:
    """Names that a node and its subgraphs read."""
    graphs = [a.g for a in node.attribute if a.HasField("g")]
    inner = {name for graph in graphs for n in graph.node for name in _read(n)}
    return {*node.input, *inner, *(o.name for graph in graphs for o in graph.output)}


class Conv(OpRun):
    """That of the reference evaluator is right, but takes a hundred times as long."""

    op_domain = ""

    def _run(  # type: ignore[no-untyped-def]
        self, x, w, b=None, auto_pad=None, dilations=None, group=1, kernel_shape=None, pads=None, strides=None
    ):
        n = x.ndim - 2
        strides, dilations = strides or [1] * n, dilations or [1] * n
        extent = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            total = [
                max((-(-i // s) - 1) * s + e - i, 0)
                for i, s, e in zip(x.shape[2:], strides, extent, strict=True)
            ]
            small, large = [t // 2 for t in total], [t - t // 2 for t in total]
            pads = [*small, *large] if auto_pad == "SAME_UPPER" else [*large, *small]
        pads = pads or [0] * (2 * n)
        x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)])
        view = sliding_window_view(x, extent, axis=tuple(range(2, n + 2)))
        view = view[(slice(None),) * 2 + tuple(slice(None, None, s) for s in strides + dilations)]
        images, sizes = x.shape[0], view.shape[2 : n + 2]
        order = (1, *range(n + 2, 2 * n + 2), 0, *range(2, n + 2))  # channels, kernel, images, sizes
        columns = view.transpose(order).reshape(group, -1, images * int(np.prod(sizes)))
        y = w.reshape(group, w.shape[0] // group, -1) @ columns
        y = np.moveaxis(y.reshape(w.shape[0], images, *sizes), 0, 1)
        return (np.ascontiguousarray(y if b is None else y + b.reshape(-1, *[1] * n)),)


class MaxPool(ReferenceMaxPool):
    """That of the reference evaluator looks at every window by itself; here plain ones are taken at once."""

    op_domain = ""

    def _run(self, x, kernel_shape=None, pads=None, strides=None, **options):  # type: ignore[no-untyped-def]
        plain = {"auto_pad": ("NOTSET",), "storage_order": (0,), "ceil_mode": (0,)}
        ones = set(options.get("dilations") or [1]) == {1}
        if (
            len(self.output) > 1
            or not ones
            or any(options.get(k) not in (None, *v) for k, v in plain.items())
        ):
            return super()._run(x, kernel_shape=kernel_shape, pads=pads, strides=strides, **options)
        n = x.ndim - 2
        strides, pads = strides or [1] * n, pads or [0] * (2 * n)
        sides = [(0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)]
        view = sliding_window_view(np.pad(x, sides, constant_values=-np.inf), kernel_shape, range(2, n + 2))
        view = view[(slice(None),) * 2 + tuple(slice(None, None, s) for s in strides)]
        return (view.max(axis=tuple(range(-n, 0))),)


class GlobalMaxPool(OpRun):
    """The reference evaluator takes the maximum over the wrong axes unless there are four."""

    op_domain = ""

    def _run(self, x):  # type: ignore[no-untyped-def]
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class Pad(OpRun):
    """The reference evaluator has no negative pads."""

    op_domain = ""

    def _run(self, x, pads, value=None, axes=None, mode="constant"):  # type: ignore[no-untyped-def]
        assert axes is None
        assert mode in (b"constant", "constant")
        sides = np.asarray(pads).reshape(2, x.ndim)
        crop = np.maximum(-sides, 0)
        x = x[tuple(slice(a, n - b) for n, a, b in zip(x.shape, *crop, strict=True))]
        return (np.pad(x, np.maximum(sides, 0).T, constant_values=0 if value is None else value),)


class LRN(OpRun):
    """The reference evaluator sums squares of the first channels only."""

    op_domain = ""

    def _run(self, x, alpha=1e-4, beta=0.75, bias=1.0, size=None):  # type: ignore[no-untyped-def]
        before = (size - 1) // 2
        squares = np.pad(x * x, [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)])
        total = sliding_window_view(squares, size, axis=1).sum(axis=-1)
        return (x / (bias + alpha / size * total) ** beta,)


def evaluator(model: onnx.ModelProto) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    """onnx's reference evaluator, in whatever dtype the model has."""
    reference = ReferenceEvaluator(model, new_ops=[Conv, GlobalMaxPool, LRN, MaxPool, Pad])
    return lambda feeds: reference.run(None, dict(feeds))


# -- a model and its gradient ---------------------------------------------------------------------------


class Differentiated:
    """A model and its gradient graph by engine 'onnx'.

    Parameters
    ----------
    model : ModelProto or str
        The model.
    seed : int
        Of the gradients coming in and of the directions.
    options
        Of ``gradient_graph``.
    """

    def __init__(self, model: Any, seed: int = 0, **options: Any) -> None:
        self.model = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
        self.gradient = gradient_graph(self.model, engine="onnx", **options)
        self.names = GradientNames.of(self.gradient)
        found = weights(self.model)
        self.weights: Arrays = {name: found[name] for name in self.names.weights}
        self.rng = np.random.default_rng(seed)
        self.session = create_session(self.gradient)
        forward = only(self.gradient, self.names.outputs)
        self.float32 = create_session(forward)
        self.float64 = evaluator(double(forward))
        self.inputs = {i.name for i in forward.graph.input}

    def outputs(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """What the gradient graph's forward part gives in float64."""
        given = {name: v for name, v in feeds.items() if name in self.inputs}
        return dict(zip(self.names.outputs, self.float64(_wide(given)), strict=True))

    def seeds(self, values: Mapping[str, np.ndarray]) -> Arrays:
        """A random gradient for every output that takes one."""
        found = {}
        for output, seed in self.names.seeds.items():
            found[seed] = self.rng.normal(size=values[output].shape).astype(np.float32)
        return found

    def gradients(self, feeds: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays]:
        """Gradients and outputs, by onnxruntime."""
        values = self.session.run(None, dict(feeds))
        n = len(self.names.gradients)
        return dict(zip(self.names.gradients, values, strict=False)), dict(
            zip(self.names.outputs, values[n:], strict=True)
        )

    def derivative(
        self, feeds: Mapping[str, np.ndarray], directions: Mapping[str, np.ndarray], step: float
    ) -> float:
        """The derivative of <seeds, outputs> along the directions, by central differences in float64."""
        wide, sides = _wide(feeds), []
        for sign in (1, -1):
            moved = self.outputs(
                {**wide, **{name: wide[name] + sign * step * d for name, d in directions.items()}}
            )
            pairs = ((wide[seed], moved[output]) for output, seed in self.names.seeds.items())
            sides.append(sum(float(np.sum(s * y)) for s, y in pairs))
        return (sides[0] - sides[1]) / (2 * step)

    def check(
        self,
        batch: Mapping[str, np.ndarray],
        groups: Mapping[str, Iterable[str]] | None = None,
        step: float = 1e-8,
        rtol: float = 1e-4,
        largest: float = np.inf,
    ) -> tuple[Arrays, Arrays]:
        """Gradients of one batch against finite differences along random directions.

        Parameters
        ----------
        batch : dict of str to ndarray
            The model's inputs; may give other weights, too.
        groups : dict of str to list of str, optional
            Weights to be moved together, each group on its own; always also all weights at once.
        step : float
            As part of each weight's mean size: small, so that nothing crosses the corner of a Relu.
        rtol : float
            Tolerance, relative to the size of the derivative and of its parts.
        largest : int, optional
            Weights of more elements stay where they are.
        """
        feeds: Arrays = {**self.weights, **batch}
        exact = self.outputs(feeds)
        feeds |= self.seeds(exact)
        gradients, outputs = self.gradients(feeds)
        for name, value in exact.items():
            np.testing.assert_allclose(outputs[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
        for name, gradient in gradients.items():
            assert gradient.shape == feeds[name].shape, name
            assert np.isfinite(gradient).all(), name
        for label, names in {"all": list(gradients), **(groups or {})}.items():
            directions = {
                name: self.rng.normal(size=feeds[name].shape) * max(float(np.abs(feeds[name]).mean()), 1e-3)
                for name in names
                if feeds[name].size <= largest
            }
            parts = [float(np.sum(np.float64(gradients[name]) * d)) for name, d in directions.items()]
            expected, found = self.derivative(feeds, directions, step), sum(parts)
            scale = max(abs(expected), float(np.linalg.norm(parts)), 1e-6)
            assert abs(found - expected) <= rtol * scale, (
                f"{label}: the gradient says {found!r}, finite differences {expected!r}"
            )
        return gradients, outputs
