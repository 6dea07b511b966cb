"""The base of every loss."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom._parameters import Parameters, check_given
from onnxcustom._registry import Registry
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import to_ir
from onnxcustom.graph.analysis.row_mixing import find_mixing
from onnxcustom.graph.building.builder import Builder, Var

from .rows import match_shape, scale_rows, shaped, sum_rows
from .standalone import loss_model, run_loss

__all__ = ["LOSSES", "BaseLearningLoss", "Loss", "LossTarget", "LossTerms", "register_loss"]


@dataclasses.dataclass(frozen=True)
class LossTerms:
    """What a loss adds to a graph.

    Attributes
    ----------
    scores : Var
        One weighted loss a row, shape [N].
    gradient : Var
        Gradient of the sum of the scores with respect to the prediction, of its shape and dtype.
    loss : Var
        The sum of the scores, a scalar, computed directly: cheaper than to sum `scores` when
        these are not needed themselves.
    """

    scores: Var
    gradient: Var
    loss: Var


@dataclasses.dataclass(frozen=True)
class LossTarget:
    """What the expected values must be.

    Attributes
    ----------
    kind : {'values', 'labels', 'own'}
        Numbers in the prediction's dtype and shape; indices of classes (axis 1 of the prediction); or
        integers of a shape of their own, rows first: the loss knows which axis of the prediction is what.
    dtype : onnx_ir.DataType
        Element type.
    shape : list or None
        Dimensions, None for unknown ones; None for an unknown rank.
    """

    kind: str
    dtype: ir.DataType
    shape: list[int | str | None] | None


class Loss(Parameters, ABC):
    r"""Base of every loss :math:`\sum_i w_i \ell_i` over the rows i of a batch.

    :math:`\ell_i` sums over everything in row i, whatever the rank. A subclass writes
    :meth:`terms`; constructors only store, parameters are checked by :meth:`check` when they are used.

    Attributes
    ----------
    on : {'output', 'sigmoid', 'softmax'}
        What the loss is taken on: the model's output, or what a final Sigmoid or Softmax reads
        (the output itself, if the model does not end in one).

    Examples
    --------
    A loss of one's own is a class:

    >>> import numpy as np
    >>> @register_loss("cauchy")
    ... class Cauchy(Loss):
    ...     def terms(self, op, predicted, expected):
    ...         d = predicted - expected
    ...         square = 1 + d * d
    ...         return op.Log(square), 2 * d / square
    >>> y, p = np.zeros((2, 1), dtype=np.float32), np.ones((2, 1), dtype=np.float32)
    >>> loss, gradient = Loss.select("cauchy").loss_gradient("cpu", y, p)
    >>> round(float(loss.numpy()), 4), gradient.numpy().shape
    (1.3863, (2, 1))
    """

    on: str = "output"
    # Whether what is expected are classes that the prediction has scores of.
    of_classes: bool = False
    # What an infinite value of it may mean, and what to do then.
    if_infinite = ""
    # What it trains, and by what, in place of a label a row: for classifiers to say.
    no_classifier = ""
    # Operators at the end of a model whose results are something else, and the option for those.
    not_behind: Mapping[str, str] = MappingProxyType({})
    # Whether what it is taken on has to be logarithms of probabilities.
    of_logarithms: bool = False
    # Whether every label counts as a row of the objective, where a row has several (tokens, pixels).
    counts_positions: bool = False
    # Whether it may have probabilities of classes in place of labels, in the prediction's shape.
    takes_probabilities: bool = False
    # Whether some labels do not count.
    ignores: bool = False
    # Whether rows have a loss only if there are others with their label in the batch.
    wants_partners: bool = False
    # Number of outputs that it is taken on, side by side, where a model has so many.
    outputs: int = 1
    # Input of the model that the loss reads, beside what is expected.
    reads_input: str | None = None
    # Names of what it expects for one prediction, where that is several tensors; empty if it gives none.
    several: tuple[str, ...] | None = None
    # Axis of the classes in a prediction as users have it, if the loss says it.
    class_axis: int | None = None
    # Whether graphs differ by the number of columns (axis 1) of the prediction.
    depends_on_columns: bool = False
    # Version of ONNX's operators for graphs of the loss alone: the lowest that serves.
    opset: int = 13

    # -- what a subclass writes ----------------------------------------------------------------

    @abstractmethod
    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        """Emit the losses and their derivative.

        Parameters
        ----------
        op : Builder
            Where to.
        predicted : Var
            Prediction, of any rank from 1.
        expected : Var
            What :meth:`match` made of the expected values.

        Returns
        -------
        losses : Var
            Unweighted, rows first; of any rank from 1, columns not summed yet.
        gradient : Var
            Of their sum with respect to the prediction.
        """

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """The expected values as :meth:`terms` wants them: by default, like the prediction."""
        return match_shape(op, expected, predicted)

    def total(self, op: Builder, losses: Var, gradient: Var) -> Var:
        """Sum of all unweighted losses, as a scalar."""
        return shaped(op.ReduceSum(losses, keepdims=0), [])

    def target(
        self, dtype: ir.DataType | None, rank: int | None = None, shape: Sequence | None = None
    ) -> LossTarget:
        """What the expected values must be.

        Parameters
        ----------
        dtype, rank : onnx_ir.DataType, int
            Of the prediction.
        shape : sequence, optional
            The prediction's shape. With it, no node is needed to make the shapes agree.
        """
        dims = _dims(rank, shape)
        return LossTarget("values", ir.DataType(dtype or ir.DataType.FLOAT), dims)

    def check(self) -> None:
        """Check the parameters.

        Raises
        ------
        ValueError, TypeError
            Naming the parameter.
        """

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Check expected values, before any training.

        Parameters
        ----------
        expected : ndarray
            Values or labels.
        columns : int, optional
            Size of axis 1 of the prediction.

        Raises
        ------
        InvalidDataError
            If the loss is not defined for one of them.
        """

    def sure_labels(self, columns: int) -> int | None:
        """Integers from 0 up to this one are labels that count; None if that takes another look."""
        return None

    def count(self, labels: np.ndarray) -> int:
        """Number of labels that count, for a loss that counts them."""
        return labels.size

    def emit_count(self, op: Builder, labels: Var) -> Var:
        """The same in a graph, an integer scalar."""
        return op.Size(labels)

    def of_parts(self, shapes: Sequence[Sequence[int]]) -> Loss:
        """The same loss of several outputs side by side, given what each has in a row."""
        return self

    def with_input(self, op: Builder, expected: Var, given: Var) -> tuple[Loss, Var]:
        """A loss that reads no input of the model, and what it expects, given that input."""
        raise InvalidModelError(f"{type(self).__name__} reads no input of a model.")

    def on_probabilities(self) -> Loss:
        """The same loss taken on probabilities, for a final Sigmoid or Softmax that stays in the graph."""
        return self

    # -- graphs --------------------------------------------------------------------------------

    def more_targets(self) -> list[LossTarget]:
        """What it expects beside :meth:`target`, where that is :attr:`several` tensors."""
        return []

    def given(self, others: Sequence[Var]) -> Loss:
        """The same loss with what it expects beside its first target."""
        return self

    def mixes_rows(self, dtype: Any, shape: Sequence | None) -> str | None:
        """The operator that makes the loss of a row depend on other rows of its batch, None if none is found.

        A loss that wants its rows in any order, as one on all pairs of a batch may, says None itself.

        Parameters
        ----------
        dtype : onnx_ir.DataType
            Of the prediction.
        shape : sequence or None
            Its dimensions, the rows first.
        """
        target = self.target(dtype, None if shape is None else len(shape), shape)
        wanted = (target.dtype, target.shape)
        model = loss_model(self, (dtype, shape), wanted, outputs=["scores"], opset=self.opset)
        return find_mixing(to_ir(model))

    def build(self, op: Builder, predicted: Var, expected: Var, weight: Var | None = None) -> LossTerms:
        """Emit the loss.

        Parameters
        ----------
        op : Builder
            Where to; any opset from 7.
        predicted : Var
            Prediction, shape [N, ...].
        expected : Var
            What :meth:`target` says; also other number types, and [N] for [N, 1] or the reverse.
        weight : Var, optional
            One weight a row, shape [N] (or [N, 1]); or one a label, where a row has several.

        Returns
        -------
        LossTerms
        """
        self.check()
        if predicted.dtype is not None and not predicted.dtype.is_floating_point():
            raise InvalidModelError(
                f"{predicted.value.name!r} is a tensor of {predicted.dtype}: {type(self).__name__} needs "
                "floating-point predictions."
            )
        losses, gradient = self.terms(op, predicted, self.match(op, expected, predicted))
        if weight is not None and predicted.rank is not None and weight.rank == predicted.rank - 1 > 1:
            spread = _by_label(op, weight, predicted)
            rows = sum_rows(op, shaped(losses * spread, losses.shape))
            gradient = shaped(gradient * spread, predicted.shape)
            return LossTerms(rows, gradient, shaped(op.ReduceSum(rows, keepdims=0), []))
        rows = sum_rows(op, losses)
        if weight is None:
            return LossTerms(rows, gradient, self.total(op, losses, gradient))
        weight = flat_weight(op, weight, predicted)
        scores = rows * weight
        return LossTerms(
            scores, scale_rows(op, gradient, weight), shaped(op.ReduceSum(scores, keepdims=0), [])
        )

    def to_onnx(
        self,
        dtype: Any = np.float32,
        rank: int = 2,
        *,
        weighted: bool = False,
        outputs: Sequence[str] = ("loss", "gradient"),
        opset: int | None = None,
    ) -> onnx.ModelProto:
        """The loss as an ONNX model of its own.

        Parameters
        ----------
        dtype, rank : numpy dtype, int
            Of the prediction.
        weighted : bool, default=False
            Whether there is an input ``weight``, one number a row.
        outputs : sequence of {'loss', 'gradient', 'scores'}
            What to compute.
        opset : int, optional
            Version of ONNX's operators, by default the lowest that serves.

        Returns
        -------
        onnx.ModelProto
            With inputs ``expected``, ``predicted`` and perhaps ``weight``.
        """
        number = ir.DataType.from_numpy(np.dtype(dtype))
        target = self.target(number, rank)
        return loss_model(
            self,
            (number, [None] * rank),
            (target.dtype, target.shape),
            (number, [None]) if weighted else None,
            outputs=outputs,
            opset=self.opset if opset is None else opset,
        )

    # -- values --------------------------------------------------------------------------------

    def loss_gradient(
        self, device: Any, expected: Any, predicted: Any, weight: Any = None
    ) -> tuple[Any, Any]:
        r"""Loss and gradient of one batch.

        Parameters
        ----------
        device : str, OrtDevice, Device or None
            Where to compute.
        expected, predicted : OrtValue (of Python or C) or array
            Batch; predictions of shape [N, ...], expected values as for :meth:`build`.
        weight : OrtValue or array of shape [N], optional
            One weight a row.

        Returns
        -------
        loss : OrtValue
            :math:`\sum_i w_i \ell_i`, a scalar. It is not divided by the number of rows.
        gradient : OrtValue
            Its gradient with respect to `predicted`, of the same shape.

        Raises
        ------
        InvalidDataError
            If shapes, dtypes or values do not fit.
        """
        loss, gradient = run_loss(self, device, expected, predicted, weight, ("loss", "gradient"))
        return loss, gradient

    def loss_scores(self, device: Any, expected: Any, predicted: Any, weight: Any = None) -> Any:
        """One weighted loss a row, which sum to the loss; arguments as in :meth:`loss_gradient`.

        Returns
        -------
        OrtValue
            Shape [N].
        """
        return run_loss(self, device, expected, predicted, weight, ("scores",))[0]

    def build_onnx_function(
        self, opset: int | None = None, device: Any = None, weight_name: Any = None
    ) -> None:
        """Make the graphs beforehand, as attributes ``loss_grad_onnx_`` and ``loss_score_onnx_``.

        Nothing needs this: sessions are made for the dtypes and ranks that come.
        """
        weighted = weight_name is not None
        grad = self.to_onnx(weighted=weighted, opset=opset)
        score = self.to_onnx(weighted=weighted, opset=opset, outputs=["scores"])
        self.__dict__.update(loss_grad_onnx_=grad, loss_score_onnx_=score)

    @staticmethod
    def select(class_name: Any, **kwargs: Any) -> Loss:
        """The loss a user means.

        Parameters
        ----------
        class_name : str, Loss, class, ONNX model or callable
            A registered name, case-insensitive, perhaps with options as in ``"huber:delta=2"``; a loss,
            returned as it is; a subclass of
            :class:`Loss`; an ONNX model, a path to one, or a function of the builder, which become a
            :class:`~onnxcustom.objective.CustomLoss`.
        **kwargs
            Parameters of the loss.

        Raises
        ------
        UnknownNameError
            Listing the names that exist.
        """
        if isinstance(class_name, Loss):
            return class_name
        if isinstance(class_name, type) and issubclass(class_name, Loss):
            return class_name(**kwargs)
        if _is_custom(class_name):
            custom: Any = LOSSES.find("CustomLoss")
            return custom(class_name, **kwargs)
        others = ["a loss", "an ONNX model", "a function of the builder"]
        cls, options = LOSSES.read(class_name, kwargs, others)
        check_given(cls, options, f"loss={class_name!r}")
        return cls(**options)


BaseLearningLoss = Loss
LOSSES: Registry[type[Loss]] = Registry("loss")


def register_loss(*names: str) -> Callable[[type], type]:
    """Class decorator: :meth:`Loss.select` finds the class under `names` and its own name.

    Raises
    ------
    ValueError
        A name that another loss has.
    """
    return LOSSES.register(*names)


def flat_weight(op: Builder, weight: Var, predicted: Var) -> Var:
    """Weights of the rows in the prediction's dtype, shape [N]."""
    if weight.dtype != predicted.dtype:
        weight = op.Cast(weight, to=predicted.dtype)
    rows = [None] if predicted.shape is None else predicted.shape[:1]
    return weight if weight.rank == 1 else shaped(op.Reshape(weight, [-1]), rows)


def _by_label(op: Builder, weight: Var, predicted: Var) -> Var:
    """Weights of labels, as wide as the prediction but for one class on axis 1."""
    if weight.dtype != predicted.dtype:
        weight = op.Cast(weight, to=predicted.dtype)
    assert predicted.shape is not None
    return shaped(op.Unsqueeze(weight, [1]), [predicted.shape[0], 1, *predicted.shape[2:]])


def _dims(rank: int | None, shape: Sequence | None) -> list[int | str | None] | None:
    if shape is not None:
        return list(shape)
    return None if rank is None else [None] * rank


def _is_custom(spec: Any) -> bool:
    if isinstance(spec, (onnx.ModelProto, ir.Model, bytes, PathLike)):
        return True
    if isinstance(spec, str):
        return spec.lower().endswith((".onnx", ".ort"))
    return callable(spec) and not isinstance(spec, type)
