"""A loss from any ONNX model, or from a function of the builder."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from onnxcustom.exceptions import (
    InvalidDataError,
    InvalidModelError,
    InvalidParameterError,
    UnknownNameError,
)
from onnxcustom.gradient import ENGINES, gradient_graph
from onnxcustom.graph import prepare, to_ir
from onnxcustom.graph.analysis.row_mixing import find_mixing
from onnxcustom.graph.analysis.traversal import all_names
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.files.io import load_own

from .base import Loss, LossTarget, LossTerms, flat_weight, register_loss
from .classification import label_target
from .rows import match_shape, shaped, sum_rows
from .standalone import make_model

__all__ = ["CustomLoss", "inline"]


@register_loss("custom")
class CustomLoss(Loss):
    """A loss that is an ONNX model, or a function that writes one with the builder.

    Its gradient is that of the gradient engine, unless the function returns it.

    Parameters
    ----------
    loss : ONNX model or callable
        A model (``ModelProto``, bytes, path, ``onnx_ir.Model``) with the inputs `predicted` and
        `expected`, in this order unless they have these names, perhaps a third one with one weight a
        row, and one output (the first counts): the losses, rows first, any further axes are summed.
        Integers expected of another shape than that of `predicted` without axis 1 may have any, rows first;
        predictions then come with their rows first, too, and their other axes in order.
        With the third input they are weighted already.
        Or ``function(op, predicted, expected)``, which returns such losses, or a pair of losses and
        the gradient of their sum with respect to `predicted`. A module's function, not a lambda, if
        it is to be pickled.
    labels : bool, default=False
        Whether a function expects indices of classes, int64 without axis 1, instead of numbers of the
        prediction's dtype and shape. A model's own input says it.
    on : {'output', 'sigmoid', 'softmax'}, default='output'
        What the loss is taken on: see :class:`Loss`.
    engine : str, default='auto'
        Gradient engine.
    target : tuple of (dtype, shape), list or dict of such, optional
        What a function expects, such as ``("int64", ["N", "L"])``: rows first, then numbers or names of
        dimensions, which are other ones where their names are. Predictions then come rows first, too. By
        default numbers of the prediction's dtype and shape, or what `labels` says. Of several outputs,
        ``{("a", "b"): CustomLoss(f, target=...)}``, the function is given a list of predictions.
        Several targets are a list, ``[("float32", ["N", 4]), ("int64", ["N"])]``, or a dict of such by name;
        the function is given a list of them, or a dict. `y` is then a tuple of arrays, or a dict by name;
        those of a list are called ``<output>.0``, ``<output>.1`` ...

    Examples
    --------
    >>> import numpy as np
    >>> def fourth_power(op, predicted, expected):
    ...     d = predicted - expected
    ...     return d * d * d * d, 4 * d * d * d
    >>> loss = CustomLoss(fourth_power)
    >>> value, gradient = loss.loss_gradient("cpu", np.float32([[1]]), np.float32([[3]]))
    >>> float(value.numpy()), gradient.numpy().tolist()
    (16.0, [[32.0]])
    """

    # Pickles of earlier versions don't say.
    expects: Any = None
    # What is expected beside the first of several targets, in a graph that is being made.
    _others: tuple[Var, ...] = ()

    def __init__(
        self,
        loss: Any,
        labels: bool = False,
        on: str = "output",
        engine: str = "auto",
        target: Any = None,
    ) -> None:
        self.loss = loss
        self.labels = labels
        self.on = on
        self.engine = engine
        self.expects = target

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__name__", None) or type(self.loss).__name__
        target = "" if self.expects is None else f", target={self.expects!r}"
        return f"CustomLoss({loss}, labels={self.labels!r}, on={self.on!r}, engine={self.engine!r}{target})"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; `target` is what the constructor was given, not the method."""
        names = [name for name in self._parameter_names() if name != "target"]
        return {**{name: getattr(self, name) for name in names}, "target": self.expects}

    def set_params(self, **params: Any) -> Any:
        """Change parameters; return the object."""
        super().set_params(**{name: value for name, value in params.items() if name != "target"})
        self.expects = params.get("target", self.expects)
        return self

    def of_parts(self, shapes: Sequence[Sequence[int]]) -> Loss:
        """The same loss of several outputs side by side: its function is given them apart."""
        if not self._is_function():
            raise InvalidModelError(
                f"{self!r} is a model with one prediction: a loss of several outputs is a function of the "
                "builder."
            )
        parts = tuple(tuple(shape) for shape in shapes)
        return CustomLoss(_OfParts(self.loss, parts), self.labels, self.on, self.engine, self.expects)

    def _said_targets(self) -> list[LossTarget]:
        """What a function was said to expect, empty if nothing was said."""
        if self.expects is None:
            return []
        if isinstance(self.expects, Mapping):
            pairs = list(self.expects.values())
        else:
            pairs = list(self.expects) if _are_pairs(self.expects) else [self.expects]
        if not pairs or not all(isinstance(name, str) and name for name in self._names()):
            raise InvalidParameterError(
                "target must hold at least one pair of dtype and shape, and a dict names of them, not "
                f"{self.expects!r}."
            )
        return [_said(pair) for pair in pairs]

    def _names(self) -> list[Any]:
        return list(self.expects) if isinstance(self.expects, Mapping) else []

    @property
    def several(self) -> tuple[str, ...] | None:  # type: ignore[override]
        """Names of several targets, empty if they have none; None for one target."""
        return tuple(self._names()) if isinstance(self.expects, Mapping) or _are_pairs(self.expects) else None

    def more_targets(self) -> list[LossTarget]:
        """What the function expects beside its first target."""
        return self._said_targets()[1:]

    def given(self, others: Sequence[Var]) -> Loss:
        """The same loss with what it expects beside its first target."""
        if not others:
            return self
        made = copy.copy(self)
        made.__dict__["_others"] = tuple(others)
        return made

    @property
    def depends_on_columns(self) -> bool:  # type: ignore[override]
        """Labels are told from values by their rank."""
        return self.labels or not self._is_function()

    @property
    def opset(self) -> int:  # type: ignore[override]
        """18, which the rules of engine ``"onnx"`` are written for, or that of the model if it is newer."""
        return 18 if self._is_function() else max(18, self._model().opset_imports.get("", 18))

    def _is_function(self) -> bool:
        return callable(self.loss)

    def check(self) -> None:
        """Check the parameters."""
        if self.on not in ("output", "sigmoid", "softmax"):
            raise UnknownNameError(f"on must be 'output', 'sigmoid' or 'softmax', not {self.on!r}.")
        if self.expects is not None and (self.labels or not self._is_function()):
            raise InvalidParameterError(
                "target says what a function expects: a model says it by its input, labels=True says another."
            )
        self._said_targets()

    def target(
        self, dtype: ir.DataType | None, rank: int | None = None, shape: Sequence | None = None
    ) -> LossTarget:
        """What the function or the model expects."""
        if not self._is_function():
            predicted, expected, _ = _inputs(self._model())
            if expected.dtype is not None:
                dims = _shape(expected)
                kind = "labels" if _are_labels(dims, _shape(predicted)) else "own"
                kind = "values" if expected.dtype.is_floating_point() else kind
                return LossTarget(kind, expected.dtype, dims)
        said = self._said_targets()
        if said:
            return said[0]
        if self.labels:
            return label_target(rank, shape)
        return super().target(dtype, rank, shape)

    def match(self, op: Builder, expected: Var, predicted: Var) -> Var:
        """Labels as int64, values like the prediction; what a model expects, in its dtype."""
        kind = self.target(predicted.dtype, predicted.rank, predicted.shape)
        rank = None if kind.shape is None else len(kind.shape)
        if kind.kind == "values" and rank == predicted.rank and kind.dtype == predicted.dtype:
            return match_shape(op, expected, predicted)
        if expected.dtype != kind.dtype:
            expected = op.Cast(expected, to=kind.dtype)
        said = self.expects is not None
        if not said and rank is not None and expected.rank == rank + 1 and predicted.rank == rank + 1:
            expected = shaped(op.Squeeze(expected, [1]), kind.shape)
        return expected

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        """Losses and gradient, for a function that returns both."""
        losses, gradient = self._called(op, predicted, expected)
        return losses, gradient

    def build(self, op: Builder, predicted: Var, expected: Var, weight: Var | None = None) -> LossTerms:
        """Emit the loss; see :meth:`Loss.build`."""
        self.check()
        if len(self._others) != len(self.more_targets()):
            raise InvalidParameterError(
                f"{self!r} has several targets, which a TrainingStep or an estimator gives it: alone a loss "
                "takes one."
            )
        if not self._is_function():
            matched = self.match(op, expected, predicted)
            model, weighted = self._user_model(op, predicted)
        else:
            pair, shape = self._probe(op, predicted, expected)
            if pair:
                return super().build(op, predicted, expected, weight)
            matched = self.match(op, expected, predicted)
            model, weighted = self._function_model(op, predicted, matched, shape)
        return self._differentiate(op, model, weighted, predicted, matched, weight)

    # -- the scores as a model, and its gradient ---------------------------------------------------

    def _model(self) -> ir.Model:
        """A private copy of the user's model, its functions inlined."""
        if "_proto" not in self.__dict__:
            self.__dict__["_proto"] = load_own(self.loss)
        return to_ir(self.__dict__["_proto"])

    def _sub_builder(
        self, op: Builder, predicted: Var, expected: Var
    ) -> tuple[Builder, Var, Var, CustomLoss]:
        """A builder of its own, prediction and first target there, and the loss with its other targets."""
        sub = Builder(op.opset)
        p = sub.input("predicted", predicted.dtype or ir.DataType.FLOAT, predicted.shape)
        y = sub.input("expected", expected.dtype or ir.DataType.FLOAT, expected.shape)
        others = [sub.input(f"expected_{i}", v.dtype or 7, v.shape) for i, v in enumerate(self._others, 1)]
        return sub, p, y, self.given(others)  # type: ignore[return-value]

    def _probe(
        self, op: Builder, predicted: Var, expected: Var
    ) -> tuple[bool, list[int | str | None] | None]:
        """Call the function on a builder that is thrown away.

        Returns whether it gives the gradient too, and the shape of the losses.
        """
        sub, p, y, inner = self._sub_builder(op, predicted, expected)
        made = inner._called(sub, p, self.match(sub, y, p))
        pair = isinstance(made, tuple) and len(made) == 2 and all(isinstance(v, Var) for v in made)
        if pair or isinstance(made, Var):
            losses = made[0] if pair else made
            shape = _inferred_shape(make_model(sub, [p, y, *inner._others], [("losses", losses)], "loss"))
            self._check_rows(shape, predicted.shape)
            return pair, shape
        raise InvalidModelError(
            f"The loss function {self!r} returned {type(made).__name__}: return the losses, or a pair of "
            "losses and gradient, as variables of the builder."
        )

    def _called(self, op: Builder, predicted: Var, expected: Any) -> Any:
        """What the function makes of the builder and two variables of it."""
        if self.several is not None:
            given = [expected, *self._others]
            expected = dict(zip(self._names(), given, strict=True)) if self._names() else given
        asked = f"The loss function {self!r} is called with (op, predicted, expected)"
        try:
            inspect.signature(self.loss).bind(op, predicted, expected)
        except TypeError as exc:
            raise InvalidModelError(
                f"{asked}: it must take these three, op being the builder of the graph; {exc}."
            ) from exc
        except ValueError:  # a function of compiled code has no signature
            pass
        try:
            return self.loss(op, predicted, expected)
        except (TypeError, AttributeError) as exc:
            if isinstance(exc, AttributeError) and not any(v in str(exc) for v in ("'Var'", "'Builder'")):
                raise
            raise InvalidModelError(
                f"{asked}, no arrays but variables of an ONNX graph: NumPy's functions do not work on them. "
                "Use operators of ONNX, such as op.Abs(x) and op.Exp(x), and Python's own, "
                f"such as + and **. It failed with: {exc}"
            ) from exc

    def _check_rows(self, shape: Sequence | None, predicted: Sequence | None) -> None:
        """Refuse losses that are one number for all rows."""
        if shape is None:
            return
        rows = predicted[0] if predicted else None
        if not shape or (shape[0] == 1 and rows != 1):
            what = f"function {self!r}" if self._is_function() else f"model {self._model().graph.name!r}"
            raise InvalidDataError(
                f"The loss {what} returned one number for the whole batch, shape {list(shape)}: "
                "return one for each row, rows first, not their sum or mean. Weights of rows and the mean "
                "over them are added."
            )

    def _function_model(
        self, op: Builder, predicted: Var, expected: Var, shape: Sequence | None
    ) -> tuple[ir.Model, bool]:
        """A model from prediction and expected values to one score a row."""
        sub, p, y, inner = self._sub_builder(op, predicted, expected)
        made = inner._called(sub, p, y)
        losses = shaped(made[0] if isinstance(made, tuple) else made, shape)
        inputs = [p, y, *inner._others]
        return make_model(sub, inputs, [("scores", sum_rows(sub, losses))], "loss"), False

    def _user_model(self, op: Builder, predicted: Var) -> tuple[ir.Model, bool]:
        """The user's model, ending in one score a row; whether it takes weights."""
        model = prepare(self._model(), opset=op.opset, max_opset=op.opset)
        if model.opset_imports.get("") != op.opset:
            raise InvalidModelError(
                f"The loss model has opset {model.opset_imports.get('')}, the graph it is to join has opset "
                f"{op.opset}, and it cannot be converted."
            )
        p, y, w = _inputs(model)
        if p.dtype is not None and predicted.dtype is not None and p.dtype != predicted.dtype:
            raise InvalidModelError(
                f"Input {p.name!r} of the loss model takes {p.dtype}, but the prediction is of type "
                f"{predicted.dtype}."
            )
        losses = model.graph.outputs[0]
        self._check_rows(_computed_shape(model), predicted.shape)
        tail = Builder(op.opset, prefix="loss_", taken=all_names(model.graph))
        shape = _inferred_shape(model) if losses.shape is None else _shape(losses)
        scores = sum_rows(tail, shaped(tail.wrap(losses), shape))
        if scores.value.producer() is None or scores.value is losses:
            scores = tail.Identity(scores)
        model.graph.extend(tail.nodes)
        for initializer in tail.initializers:
            model.graph.register_initializer(initializer)
        model.graph.inputs[:] = [v for v in (p, y, w) if v is not None]
        scores.value.dtype = scores.value.dtype or predicted.dtype or ir.DataType.FLOAT
        model.graph.outputs[:] = [scores.value]
        return model, w is not None

    def _engine(self, model: ir.Model) -> str:
        """``'auto'`` is an engine that can stay at the opset of the graph it is to join, if there is one."""
        if self.engine != "auto":
            return self.engine
        opset = model.opset_imports.get("", 1)
        fit = [e for e in ENGINES.values() if e.unavailable() is None and e.min_opset(model) <= opset]
        return fit[0].name if fit and len(fit) < len(ENGINES) else "auto"

    def mixes_rows(self, dtype: Any, shape: Sequence | None) -> str | None:
        """The operator that makes the loss of a row depend on other rows; see :meth:`Loss.mixes_rows`."""
        op = Builder(self.opset)
        target = self.target(dtype, None if shape is None else len(shape), shape)
        p, y = op.input("predicted", dtype, shape), op.input("expected", target.dtype, target.shape)
        if not self._is_function():
            return find_mixing(self._user_model(op, p)[0])
        others = [op.input(f"expected_{i}", t.dtype, t.shape) for i, t in enumerate(self.more_targets(), 1)]
        loss: Any = self.given(others)
        _, losses = loss._probe(op, p, y)
        return find_mixing(loss._function_model(op, p, self.match(op, y, p), losses)[0])

    def _differentiate(
        self, op: Builder, model: ir.Model, weighted: bool, predicted: Var, expected: Var, weight: Var | None
    ) -> LossTerms:
        """Join scores and gradient. The seed is the rows' weights: one number a score."""
        name = model.graph.inputs[0].name or ""
        # The graph that it joins may run anywhere.
        made = gradient_graph(model, wrt=[], inputs=[name], engine=self._engine(model), portable=True)
        gradient = to_ir(made)
        if gradient.opset_imports.get("", op.opset) != op.opset:
            raise InvalidModelError(
                f"The gradient of {self!r} needs opset {gradient.opset_imports['']}, the graph it is to join "
                f"has opset {op.opset}: convert the model to the newer one."
            )
        one = ir.tensor(np.ones(1, dtype=(predicted.dtype or ir.DataType.FLOAT).numpy()))
        ones = op.ConstantOfShape(op.Slice(op.Shape(predicted), [0], [1]), value=one)
        flat = ones if weight is None else flat_weight(op, weight, predicted)
        # A model that takes the weights itself has used them in its scores.
        feeds = [predicted, expected, *self._others, flat, *([ones] if weighted else [])]
        slope, scores = inline(op, gradient, feeds)
        scores = shaped(scores, [None] if predicted.shape is None else predicted.shape[:1])
        if weight is not None and not weighted:
            scores = scores * flat
        return LossTerms(scores, shaped(slope, predicted.shape), shaped(op.ReduceSum(scores, keepdims=0), []))


@dataclasses.dataclass(frozen=True)
class _OfParts:
    """A function of several predictions as one of them side by side.

    Attributes
    ----------
    function : callable
        Of the builder, a list of predictions, and expected values.
    shapes : tuple of tuple of int
        What each prediction has in a row.
    """

    function: Any
    shapes: tuple[tuple[int, ...], ...]

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, op: Builder, predicted: Var, expected: Any) -> Any:
        rows = [None] if predicted.shape is None else predicted.shape[:1]
        parts, start = [], 0
        for shape in self.shapes:
            stop = start + math.prod(shape)
            part = op.Slice(predicted, [start], [stop], [1])
            part = part if len(shape) == 1 else op.Reshape(part, [-1, *shape])
            parts.append(shaped(part, [*rows, *shape]))
            start = stop
        made = self.function(op, parts, expected)
        if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], (list, tuple)):
            return made[0], op.Concat(*(op.Flatten(g, axis=1) for g in made[1]), axis=1)
        return made


def _are_pairs(target: Any) -> bool:
    """Whether a target is a list of pairs of dtype and shape, in place of one pair."""
    return isinstance(target, (list, tuple)) and bool(target) and isinstance(target[0], (list, tuple))


def _said(pair: Any) -> LossTarget:
    """What a pair of dtype and shape says."""
    try:
        dtype, shape = pair
        number = ir.DataType.from_numpy(np.dtype(dtype))
        dims = list(shape)
    except (TypeError, ValueError) as exc:
        raise InvalidParameterError(
            "target must be a pair of dtype and shape, such as ('int64', ['N', 'L']), or a list or dict of "
            f"such, not {pair!r}."
        ) from exc
    if not dims or not all(d is None or isinstance(d, (int, str)) for d in dims):
        raise InvalidParameterError(
            f"The shape of target must be a list of sizes and names, the rows first, not {shape!r}."
        )
    return LossTarget("own", number, dims)


def _inputs(model: ir.Model) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Prediction, expected values and perhaps weights, by name or else by position."""
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    if len(inputs) not in (2, 3):
        raise InvalidModelError(
            "A loss model takes a prediction, the expected values and perhaps weights; this one has the "
            f"inputs {[v.name for v in inputs]}."
        )
    if not model.graph.outputs:
        raise InvalidModelError("The loss model has no output.")
    named = {v.name: v for v in inputs}
    if "predicted" in named and "expected" in named:
        rest = [v for v in inputs if v.name not in ("predicted", "expected")]
        return named["predicted"], named["expected"], rest[0] if rest else None
    return inputs[0], inputs[1], inputs[2] if len(inputs) == 3 else None


def _are_labels(expected: Sequence | None, predicted: Sequence | None) -> bool:
    """Whether integers of a loss model have the shape of its predictions without axis 1, by its own word."""
    if expected is None or predicted is None or len(expected) <= 1:
        return True
    pairs = zip(expected[1:], predicted[2:], strict=False)
    return len(expected) == len(predicted) - 1 and all(a == b or None in (a, b) for a, b in pairs)


def _shape(value: ir.Value) -> list[int | str | None] | None:
    return None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]


def _inferred_shape(model: ir.Model) -> list[int | str | None] | None:
    """Shape of the first output; None if its rank cannot be told."""
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    return _shape(ir.from_proto(proto.graph.output[0]))


def _computed_shape(model: ir.Model) -> list[int | str | None] | None:
    """Shape of the first output as it is computed, whatever it is declared as."""
    proto = ir.to_proto(model)
    first = proto.graph.output[0]
    if first.type.tensor_type.HasField("shape"):
        first.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]
    found = onnx.shape_inference.infer_shapes(proto).graph.output[0]
    return _shape(ir.from_proto(found)) if found.type.tensor_type.HasField("shape") else None


def inline(op: Builder, model: ir.Model, feeds: Sequence[Var]) -> list[Var]:
    """Append a model's nodes, its inputs replaced by `feeds`; return its outputs.

    Parameters
    ----------
    op : Builder
        Where to.
    model : onnx_ir.Model
        Consumed: its nodes move.
    feeds : sequence of Var
        One variable for each input.

    Returns
    -------
    list of Var
        One for each output.
    """
    graph = model.graph
    outputs = list(graph.outputs)
    replaced = {}
    for value, var in zip(graph.inputs, feeds, strict=True):
        value.replace_all_uses_with(var.value, replace_graph_outputs=False)
        replaced[value] = var.value
    graph.outputs.clear()
    initializers = list(graph.initializers.values())
    graph.initializers.clear()
    for value in initializers:
        value.name = op.unique(value.name or "const")
        op.initializers.append(value)
    nodes = list(graph)
    for node in RecursiveGraphIterator(graph):
        node.name = op.unique(node.name or f"{node.op_type}_node")
        for value in node.outputs:
            if value.name:
                value.name = op.unique(value.name)
    for node in nodes:
        graph.remove(node)
        op.nodes.append(node)
    op.domains.update({domain: version for domain, version in model.opset_imports.items() if domain})
    return [op.wrap(replaced.get(v, v)) for v in outputs]
