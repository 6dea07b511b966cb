"""Options of quantization-aware training, and what they make of a model."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom._parameters import check_parameters, choice, flag, integer, number
from onnxcustom._phrases import parse_phrase
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError
from onnxcustom.graph.analysis.traversal import all_names, sort_nodes
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.files.io import to_proto
from onnxcustom.graph.preparation.passes import InferShapesPass
from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.graph.preparation.sites import own_name
from onnxcustom.graph.trainable.finding import find_weights
from onnxcustom.graph.trainable.left_out import quantized
from onnxcustom.tuning.changes import Change, Changed
from onnxcustom.tuning.dequantizing import dequantize

from .calibration import METHODS, Ranges
from .fake import (
    Bits,
    Learned,
    Rounding,
    cast,
    is_computed,
    names_of,
    observed,
    round_activation,
    round_weight,
)
from .folding import fold_normalizations
from .integers import with_integers
from .kernels import highest_opset
from .sites import Product, excluded, numbers_of, products_of

__all__ = ["Quantization", "Quantized", "select_quantize"]

_TYPES = re.compile(r"(u?)int([2-8])")
_OPSET = 13  # from which QuantizeLinear has one scale for each index of an axis


@dataclass(frozen=True)
class Quantization(Change):
    """Training in the knowledge that weights and what is computed will be integers.

    Weights of Conv, ConvTranspose, Gemm and MatMul, what these read and what they compute are rounded to
    integers and back in the forward pass; gradients go straight through the rounding inside of the range and
    are 0 outside. Normalizations behind them are taken into the weights first. The trained model holds the
    integers, by the scales that were trained with: nothing is calibrated again. Of a model that a quantizer
    has written, integers become weights first, as :func:`onnxcustom.tuning.dequantize` makes them.

    Parameters
    ----------
    weights : {'int8', 'int7', ..., 'int2'}, default='int8'
        Type of the weights, symmetric around 0. Four bits or fewer are stored as INT4 (opset 21, onnxruntime
        1.19), as bytes where the installed onnxruntime does not read that.
    activations : {'uint8', ..., 'uint2', 'int8', ..., 'int2'} or None, default='uint8'
        Type of what is read and computed; None quantizes weights only.
    per_channel : bool, default=True
        Whether each output of a weight has a scale of its own.
    calibration : {'minmax', 'percentile', 'mse'}, default='minmax'
        How the range of what is computed is measured on the first rows of the data: from the least to the
        largest number; without those beyond `percentile`; or with the least squared error.
    learned_scales : bool, default=False
        Whether scales are trained with the weights (LSQ [1]_). If not, those of weights follow the largest
        number there is, and those of what is computed stay as they were measured.
    exclude : str or list of str, default=()
        Products that are left as they are: names or patterns of weights or nodes, ``'first:1'``,
        ``'last:1'``.
    reduce_range : bool, default=False
        Whether eight bits of weights are seven: products of unsigned and signed bytes saturate on x86
        processors without VNNI.
    rows : int, default=512
        Rows that ranges are measured on, at most.
    percentile : float, default=99.99
        For ``calibration='percentile'``.

    References
    ----------
    B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, arXiv:1712.05877, section 3.

    .. [1] S. K. Esser et al., Learned Step Size Quantization, arXiv:1902.08153, section 2.

    Examples
    --------
    >>> Quantization("int4", activations=None)
    Quantization(weights='int4', activations=None, per_channel=True, calibration='minmax', ...)
    """

    weights: str = "int8"
    activations: str | None = "uint8"
    per_channel: bool = flag(True)
    calibration: str = choice(*METHODS)
    learned_scales: bool = flag(False)
    exclude: Any = ()
    reduce_range: bool = flag(False)
    rows: int = integer(512, "[1, inf)")
    percentile: float = number(99.99, "(50, 100]")

    def __post_init__(self) -> None:
        check_parameters(self)
        self._bits("weights", self.weights)
        if self.activations is not None:
            self._bits("activations", self.activations)

    def _bits(self, name: str, given: Any) -> Bits:
        found = _TYPES.fullmatch(given) if isinstance(given, str) else None
        if found is None or (name == "weights" and found[1]):
            words = (
                "'int8' to 'int2'" if name == "weights" else "'uint8' to 'uint2', 'int8' to 'int2' or None"
            )
            raise InvalidParameterError(f"{name} of Quantization must be {words}, not {given!r}.")
        count = int(found[2]) - (name == "weights" and self.reduce_range and int(found[2]) == 8)
        return Bits(count, not found[1])

    @property
    def weight_bits(self) -> Bits:
        """Integers of the weights."""
        return self._bits("weights", self.weights)

    @property
    def activation_bits(self) -> Bits | None:
        """Integers of what is read and computed, if it is rounded."""
        return None if self.activations is None else self._bits("activations", self.activations)

    def _plain(self, prepared: Prepared) -> ir.Model:
        """The model in an opset in which its integers will run."""
        own = prepared.model.opset_imports[""]
        highest = None if self.activations is None else highest_opset()
        if highest is not None and highest < own:
            with contextlib.suppress(InvalidModelError):  # newer operators: then it stays as new
                return prepared.take(opset=_OPSET, max_opset=highest)
        return prepared.take(opset=_OPSET)

    def apply(self, prepared: Prepared, targets: Sequence[Any] = ()) -> Quantized:
        """The model with rounding in it.

        Raises
        ------
        InvalidModelError, UnknownNameError
            There is nothing to quantize; an exclusion that means nothing.
        """
        if any(map(quantized, prepared.model.graph.initializers.values())):
            # Their ranges are measured again; the numbers of weights are those of the scales they have.
            prepared = Prepared.of(dequantize(prepared.proto, activations="remove"))
        plain = self._plain(prepared)
        products = products_of(plain)
        if not products:
            raise InvalidModelError(
                "The model has no product to quantize: no Conv, ConvTranspose, Gemm or MatMul of its data by "
                "a weight of floats."
            )
        left = {str(node.name) for node in excluded(_prepared_as(prepared, plain), products, self.exclude)}
        if left.issuperset(str(product.node.name) for product in products):
            raise InvalidModelError(
                f"exclude={self.exclude!r} leaves none of the {len(products)} products to quantize."
            )
        fold_normalizations(plain)
        InferShapesPass()(plain)
        made = plain.clone()
        rounded = _Rounded(self, made, left)
        rounded.run()
        InferShapesPass()(made)
        final = Prepared.of(to_proto(made))
        names = {own_name(v): str(v.name) for v in final.model.graph.initializers.values()}
        roundings = (dataclasses.replace(r, zero=names[r.zero]) for r in rounded.roundings)
        weights = [str(v.name) for v in find_weights(plain).weights]
        return Quantized(
            self,
            prepared,
            final,
            (*weights, *rounded.scales),
            plain=plain,
            left=frozenset(left),
            roundings=tuple(roundings),
            learned=rounded.learned,
        )


def _prepared_as(prepared: Prepared, model: ir.Model) -> Prepared:
    """A form of a prepared model, as one."""
    return Prepared(model, lambda: prepared.proto)


class _Rounded:
    """Puts rounding into a model.

    Attributes
    ----------
    roundings : list of Rounding
        Tensors that are rounded by a range that is measured.
    scales : list of str
        Scales that are trained.
    learned : dict of str to Learned
        Scales of weights and tensors that are trained, by name of the weight or tensor.
    """

    def __init__(self, options: Quantization, model: ir.Model, left: set[str]) -> None:
        self.options, self.model = options, model
        self.op = Builder(model.opset_imports[""], taken=all_names(model.graph))
        self.products = [p for p in products_of(model) if p.node.name not in left]
        self.roundings: list[Rounding] = []
        self.scales: list[str] = []
        self.learned: dict[str, Learned] = {}
        self._numbers: Mapping[ir.Value, np.ndarray] = {}

    def run(self) -> None:
        """Round weights, then what is computed."""
        if self.options.learned_scales:
            self._numbers = numbers_of(self.model, [p.weight for p in self.products])
        for product in self.products:
            self._weight(product)
        if self.options.activation_bits is not None:
            self._activations(self.options.activation_bits)
        graph = self.model.graph
        graph.extend(self.op.nodes)
        for value in self.op.initializers:
            graph.register_initializer(value)
        sort_nodes(graph)

    def _weight(self, product: Product) -> None:
        op, bits, weight = self.op, self.options.weight_bits, product.weight
        axis = product.channels(self.options.per_channel)

        def rounded() -> Var:
            scale = self._learned_weight(product, axis, bits) if self.options.learned_scales else None
            single = cast(op, op.wrap(weight), ir.DataType.FLOAT)
            return cast(op, round_weight(op, single, axis, bits, scale), weight.dtype)

        made = op.once(("weight", weight, axis), rounded)
        product.node.replace_input_with(product.position, made.value)

    def _learned_weight(self, product: Product, axis: int | None, bits: Bits) -> Var:
        """The scale of a weight as a tensor that is trained, as LSQ begins it."""
        array = self._numbers[product.weight]
        others = tuple(a for a in range(array.ndim) if a != axis)
        size = None if axis is None else array.shape[axis]
        first = 2 * np.abs(array.astype(np.float32)).mean(axis=others) / np.sqrt(bits.high)
        first = np.maximum(first, 1e-8)
        return self._learned(product.key(axis), product.name, first, array.size // (size or 1), bits, size)

    def _learned(self, key: str, tensor: str, first: Any, count: int, bits: Bits, size: int | None) -> Var:
        """A scale that is trained, of what is known by `key`."""
        op = self.op
        factor = float(np.sqrt(1 / np.sqrt(max(1, count) * bits.high)))
        name = op.unique(names_of(tensor)[0])
        array = np.asarray(first / factor, dtype=np.float32).reshape([] if size is None else [size])
        self.scales.append(name)
        self.learned[key] = Learned(name, factor)
        raw = op.wrap(op.initializer(name, ir.tensor(array, name=name)))
        return op.Max(raw * np.float32(factor), 1e-12)

    def _activations(self, bits: Bits) -> None:
        graph = self.model.graph
        rounded = observed(self.products, set(graph.outputs))
        readers = {p.node for p in self.products}
        grids: dict[ir.Value, tuple[Var, Var]] = {}
        for value, source in rounded.items():
            if source not in grids:
                grids[source] = self._grid(source, bits)
            scale, zero = grids[source]
            ours = value is source and is_computed(value, self.products)
            uses = [u for u in value.uses() if ours or u.node in readers]
            learned = self.options.learned_scales
            single = cast(self.op, self.op.wrap(value), ir.DataType.FLOAT)
            single = round_activation(self.op, single, scale, zero, bits, learned)
            made = cast(self.op, single, value.dtype)
            for node, index in uses:
                node.replace_input_with(index, made.value)

    def _grid(self, source: ir.Value, bits: Bits) -> tuple[Var, Var]:
        """Scale and zero point of a tensor, 0 until they are measured."""
        op, tensor = self.op, str(source.name)
        zero_name = op.unique(names_of(tensor)[1])
        zero = op.wrap(op.initializer(zero_name, ir.tensor(np.zeros((), bits.dtype), name=zero_name)))
        if self.options.learned_scales:
            sizes = [d for d in (source.shape or ())[1:] if isinstance(d, int)]
            scale = self._learned(tensor, tensor, np.zeros(()), math.prod(sizes), bits, None)
            scale_name = self.learned[tensor].name
        else:
            scale_name = op.unique(names_of(tensor)[0])
            scale = op.wrap(op.initializer(scale_name, ir.tensor(np.zeros((), np.float32), name=scale_name)))
        self.roundings.append(Rounding(tensor, scale_name, zero_name))
        return scale, zero


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized(Changed):
    """A model with rounding in it.

    Attributes
    ----------
    plain : onnx_ir.Model
        The same without.
    left : frozenset of str
        Nodes that are not quantized.
    roundings : tuple of Rounding
        Tensors that are rounded by a range that is measured.
    learned : mapping of str to Learned
        Scales that are trained, by weight or tensor.
    """

    change: Quantization
    plain: Any = None
    left: frozenset[str] = frozenset()
    roundings: tuple[Rounding, ...] = ()
    learned: Mapping[str, Learned] = dataclasses.field(default_factory=dict)

    @property
    def measured(self) -> tuple[str, ...]:
        """Tensors whose ranges are to be measured."""
        return tuple(rounding.tensor for rounding in self.roundings)

    def calibrated(self, ranges: Ranges) -> dict[str, np.ndarray]:
        """Scales and zero points by the ranges that were seen, under the names that the model has."""
        options, bits = self.change, self.change.activation_bits
        assert bits is not None
        grids = ranges.grids(options.calibration, bits.steps, bits.low, options.percentile)
        made = {}
        for rounding in self.roundings:
            scale, zero = grids[rounding.tensor]
            learned = self.learned.get(rounding.tensor)
            factor = 1.0 if learned is None else learned.factor
            made[rounding.scale] = np.array(scale / factor, dtype=np.float32)
            made[rounding.zero] = zero.astype(bits.dtype)
        return made

    def back(self, tensors: Mapping[str, np.ndarray], merge: bool = True) -> dict[str, np.ndarray]:
        """Weights as they are before they are rounded; those that a normalization was taken into, with it."""
        own = self.source.model.graph.initializers
        return {name: array for name, array in tensors.items() if name in own}

    def finish(
        self, model: onnx.ModelProto, tensors: Mapping[str, np.ndarray], merge: bool = True
    ) -> onnx.ModelProto:
        """The model of integers."""
        return with_integers(self.plain, self.left, self.change, self.roundings, self.learned, tensors, model)


def select_quantize(given: Any) -> Quantization | None:
    """The quantization that is meant by None, ``'int8'``, ``'int4'``, ``'int8:exclude=last'`` or options.

    A type of four bits or fewer by itself is that of the weights only.

    Raises
    ------
    InvalidParameterError
        Something else.
    """
    if given is None or isinstance(given, Quantization):
        return given
    if isinstance(given, str):
        name, options = parse_phrase(given)
        known = {f.name for f in dataclasses.fields(Quantization)} - {"weights"}
        if _TYPES.fullmatch(name) and options.keys() <= known:
            few = int(name[-1]) <= 4
            return Quantization(name, **{**({"activations": None} if few else {}), **options})
    raise InvalidParameterError(
        "quantize must be None, 'int8', 'int4' (with options: 'int8:learned_scales=true') or "
        f"tuning.Quantization, not {given!r}."
    )
