"""Options of low-rank adapters, and what they make of a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxcustom._parameters import check_parameters, flag, integer, optional
from onnxcustom._phrases import parse_phrase
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError
from onnxcustom.graph.analysis.traversal import all_names
from onnxcustom.graph.files.io import to_proto
from onnxcustom.graph.preparation.passes import InferShapesPass
from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.graph.preparation.sites import own_name
from onnxcustom.graph.trainable.selection import Catalog, Selection
from onnxcustom.tuning.changes import Change, Changed

from .adapter import Adapter, digests
from .attach import attach, first_factors, names_of
from .merging import merged, record
from .sites import Matrix, targeted

__all__ = ["Adapted", "LoRA", "select_lora"]


@dataclass(frozen=True)
class LoRA(Change):
    r"""Low-rank adapters beside frozen weights.

    A weight :math:`W` of shape (inputs, outputs) stays as it is, and

    .. math::

        x W + \frac{\alpha}{r} \, (x A) B

    is computed in place of :math:`x W`. A, of shape (inputs, r), begins as PyTorch begins a linear layer,
    uniform within :math:`\pm 1 / \sqrt{inputs}` (He's initialization with a slope of :math:`\sqrt 5`, as in
    the authors' code), and B, of shape (r, outputs), as zeros: training begins at the model as it is. Nothing
    else is trained, but what `train` names.

    Parameters
    ----------
    rank : int, default=8
        Columns of A.
    alpha : float, optional
        :math:`\alpha`, by default the rank: nothing is scaled.
    targets : str, int, tuple of int, or list of these, optional
        Beside which weights of MatMul, Gemm and Conv with kernels of one element; by default all of them that
        have as many inputs and outputs as the rank, at least.
        A text is a name or pattern of weights or of nodes, ``'attention'`` (queries, keys, values and the
        projection behind them), ``'last:4'`` or ``'first:4'``; an integer a level of
        :func:`onnxcustom.graph.layers`; a tuple a shape, (inputs, outputs).
    seed : int, default=0
        Of A.
    train : str or list of str, optional
        What is trained beside the adapters, in the words of :func:`onnxcustom.graph.select_weights`:
        ``'biases'``, ``'last:1'``.
    rslora : bool, default=False
        Whether the product is divided by the root of the rank in place of the rank.
    summed : bool, default=False
        Whether :math:`x (W + \frac{\alpha}{r} A B)` is computed, which is the same and takes longer. With
        ``quantize=`` it always is: what is rounded is the sum.

    References
    ----------
    E. J. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685, section 4.1;
    D. Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, arXiv:2312.03732.

    Examples
    --------
    >>> LoRA(4, targets="attention")
    LoRA(rank=4, alpha=None, targets='attention', seed=0, train=None, rslora=False, summed=False)
    """

    rank: int = integer(8, "[1, inf)")
    alpha: float | None = optional("(0, inf)")
    targets: Any = None
    seed: int = integer(0, "[0, inf)")
    train: Selection = None
    rslora: bool = flag(False)
    summed: bool = flag(False)

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied by."""
        alpha = self.rank if self.alpha is None else self.alpha
        return float(alpha / (math.sqrt(self.rank) if self.rslora else self.rank))

    def apply(self, prepared: Prepared, targets: Sequence[Any] = ()) -> Adapted:
        """The model with adapters.

        Raises
        ------
        InvalidModelError, UnknownNameError, InvalidParameterError
            There is nothing to adapt, a target means nothing, or the rank is above that of a matrix.
        """
        matrices = self._matrices(prepared)
        integers = [m.name for m in matrices if m.is_integer] if self.summed else []
        if integers:
            raise InvalidModelError(
                f"Weight {integers[0]!r} is of integers, to which no adapter can be added: leave out "
                "summed=True and quantize, or make floats of the integers by tuning.dequantize."
            )
        rng = np.random.default_rng(self.seed)
        factors: dict[str, np.ndarray] = {}
        for matrix in matrices:
            factors.update(zip(names_of(matrix.name), first_factors(matrix, self.rank, rng), strict=True))
        beside = [] if self.train is None else Catalog(prepared).select(self.train)
        made = prepared.take()
        attach(made, [m.name for m in matrices], factors, self.scale, summed=self.summed)
        InferShapesPass()(made)
        weights = (*beside, *factors)
        return Adapted(self, prepared, Prepared.of(to_proto(made)), weights, matrices=matrices)

    def _matrices(self, prepared: Prepared) -> tuple[Matrix, ...]:
        """Those that get an adapter: of all, the ones that are large enough."""
        found = targeted(prepared, self.targets)
        small = [matrix for matrix in found if self.rank > min(matrix.features)]
        if small and (self.targets is not None or len(small) == len(found)):
            matrix = small[0]
            raise InvalidParameterError(
                f"rank={self.rank} is above that of weight {matrix.name!r}, which has {matrix.features[0]} "
                f"inputs and {matrix.features[1]} outputs: lower the rank, or leave it out of targets and "
                "name it in train."
            )
        return tuple(matrix for matrix in found if matrix not in small)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted(Changed):
    """A model with adapters.

    Attributes
    ----------
    matrices : tuple of Matrix
        Of :attr:`source`, those that have one.
    """

    change: LoRA
    matrices: tuple[Matrix, ...] = ()

    def adapter(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A and B by their names, the scale taken into B."""
        made = {}
        for matrix in self.matrices:
            a, b = names_of(matrix.name)
            made[a] = np.array(tensors[a])
            made[b] = (tensors[b].astype(np.float64) * self.change.scale).astype(tensors[b].dtype)
        return made

    def saved(self, tensors: Mapping[str, np.ndarray]) -> Adapter:
        """The adapter as files hold it, which knows the weights that it was trained beside."""
        made = self.adapter(tensors)
        alpha = self.change.rank if self.change.alpha is None else self.change.alpha
        return Adapter(made, digests(self.source.model, without=tensors), alpha)

    def back(self, tensors: Mapping[str, np.ndarray], merge: bool = True) -> dict[str, np.ndarray]:
        """The weights with their adapters in them, or without; integers stay what they are."""
        if not merge and self.change.summed:
            raise InvalidParameterError(
                "merge=False: the adapters were trained as part of the weights, which are rounded with them "
                "if there is quantize; get_trained_onnx() has them in its weights."
            )
        factors = {name for matrix in self.matrices for name in names_of(matrix.name)}
        left = {name: array for name, array in tensors.items() if name not in factors}
        if not merge:
            return left
        for matrix in self.matrices:
            if matrix.is_integer:
                continue
            a, b = (tensors[name] for name in names_of(matrix.name))
            assert matrix.value.const_value is not None
            old = left.get(matrix.name, matrix.value.const_value.numpy())
            left[matrix.name] = merged(matrix, old, a, b, self.change.scale)
        return left

    def finish(
        self, model: onnx.ModelProto, tensors: Mapping[str, np.ndarray], merge: bool = True
    ) -> onnx.ModelProto:
        """The model; unless they are merged, with adapters as inputs, which change nothing if not given.

        Beside integers adapters stay nodes of the model when they are merged, and have their numbers in it.
        """
        adapter = self.adapter(tensors)
        integers = [m.name for m in self.matrices if m.is_integer]
        if merge:
            if integers:  # which nothing can be added to
                model = _with_adapters(model, integers, adapter)
            record(model, Adapter(adapter), {m.name: m for m in self.matrices})
            return model
        idle = {n: _idle(array, n) for n, array in adapter.items()}
        return _with_adapters(model, [m.name for m in self.matrices], idle, as_inputs=True)


def _with_adapters(
    model: onnx.ModelProto, weights: Sequence[str], factors: Mapping[str, np.ndarray], as_inputs: bool = False
) -> onnx.ModelProto:
    """The user's model with adapters beside some weights; constants are called what they were."""
    own = Prepared.of(model).take()
    attach(own, weights, factors, 1.0, as_inputs)
    taken = all_names(own.graph)
    for value in list(own.graph.initializers.values()):
        name = own_name(value)
        if name not in taken:
            value.name = name
    return to_proto(own)


def _idle(factor: np.ndarray, name: str) -> np.ndarray:
    """A or B of an adapter that changes nothing, of rank 1: of rank 0 older runtimes compute no product."""
    first = name.endswith("_A") ^ (factor.ndim == 2)
    return np.zeros_like(factor[:1] if first else factor[:, :1])


def select_lora(given: Any) -> LoRA | None:
    """The adapters that are meant by None, a rank, ``'lora:rank=4'`` or a :class:`LoRA`.

    Raises
    ------
    InvalidParameterError
        Something else.
    """
    if given is None or isinstance(given, LoRA):
        return given
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        return LoRA(int(given))
    if isinstance(given, str) and given.isdecimal():
        return LoRA(int(given))
    if isinstance(given, str):
        name, options = parse_phrase(given)
        if name == "lora" and options.keys() <= {f.name for f in dataclasses.fields(LoRA)}:
            return LoRA(**options)
    raise InvalidParameterError(
        "lora must be None, a rank, tuning.LoRA or text such as 'lora:rank=8,targets=attention', not "
        f"{given!r}."
    )
