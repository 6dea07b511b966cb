"""Penalties on weights."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcustom._parameters import Parameters, check_given, check_number
from onnxcustom._phrases import parse_value
from onnxcustom._registry import Registry
from onnxcustom.exceptions import InvalidParameterError, UnknownNameError
from onnxcustom.graph import weight_roles
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.trainable.selection import matching

from .rows import shaped

__all__ = [
    "PENALTIES",
    "BaseLearningPenalty",
    "ElasticLearningPenalty",
    "L1LearningPenalty",
    "L2LearningPenalty",
    "L2StartLearningPenalty",
    "NoLearningPenalty",
    "Penalty",
    "PenaltyTerms",
    "PerWeightLearningPenalty",
    "register_penalty",
    "select_penalties",
]

_SHOWN = 20  # names in a message


class PenaltyTerms(NamedTuple):
    """What a penalty adds to a graph.

    Attributes
    ----------
    value : Var
        A scalar of the weight's dtype.
    gradient : Var
        Of the weight's shape.
    """

    value: Var
    gradient: Var


class Penalty(Parameters, ABC):
    """Base of every penalty: a function of one weight tensor, added to the objective.

    It is part of the loss, once a step and not once a row, and its gradient is scaled by the learning
    rate like that of the loss.

    Parameters
    ----------
    weights : str or list of str, optional
        Names of the weights to penalise, or patterns of :mod:`fnmatch` (``'layer1.*'``); None for all.
    biases : bool, default=True
        Whether biases are penalised too (what is only ever added, see :func:`onnxcustom.graph.weight_roles`).
    """

    def __init__(self, weights: str | Sequence[str] | None = None, biases: bool = True) -> None:
        self.weights = weights
        self.biases = biases

    # -- what a subclass writes ----------------------------------------------------------------

    @abstractmethod
    def build(self, op: Builder, weight: Var) -> PenaltyTerms:
        """Emit the penalty of one weight.

        Parameters
        ----------
        op : Builder
            Where to.
        weight : Var
            Weight, of any shape.

        Returns
        -------
        PenaltyTerms
        """

    def check(self) -> None:
        """Check the parameters.

        Raises
        ------
        ValueError, TypeError
            Naming the parameter.
        """
        for name in ("l1", "l2"):
            check_number(name, getattr(self, name, 0), "[0, inf)")

    def starting_at(self, value: np.ndarray) -> Penalty:
        """The penalty of a weight that starts training at a value: itself, where that does not matter."""
        return self

    # -- choice of weights ---------------------------------------------------------------------

    def resolve(self, names: Iterable[str], biases: Iterable[str] = ()) -> dict[str, Penalty]:
        """The penalty of each weight; weights without one are left out.

        Parameters
        ----------
        names : iterable of str
            Weights being trained.
        biases : iterable of str
            Those of them that are biases.

        Raises
        ------
        UnknownNameError
            A name or pattern that no weight has.
        """
        self.check()
        names = list(names)
        patterns = [self.weights] if isinstance(self.weights, str) else self.weights
        chosen = names if patterns is None else [n for n in names if n in _matching(patterns, names)]
        excluded = set() if self.biases else set(biases)
        return {name: self for name in chosen if name not in excluded}

    # -- values --------------------------------------------------------------------------------

    def penalty_loss(self, device: Any, loss: Any, *weights: Any) -> Any:
        """A loss plus the penalties of weights.

        Parameters
        ----------
        device : str, OrtDevice, Device or None
            Where to compute.
        loss : OrtValue or array
            Loss without penalty, one number.
        *weights : OrtValue or array
            Weights.

        Returns
        -------
        OrtValue
            The sum, of `loss`'s dtype and shape. `loss` is left as it is.
        """

        def total(op: Builder, value: Var, *tensors: Var) -> Var:
            for w in tensors:
                term = self.build(op, w).value
                value = value + (term if term.dtype == value.dtype else op.Cast(term, to=value.dtype))
            return value

        return self._run("penalty_loss", total, device, loss, *weights)

    def update_weights(self, n_bind: Any, device: Any, statei: Any, learning_rate: float = 1.0) -> Any:
        """One step down the penalty alone: w - learning_rate * gradient.

        Training does not use it: there the penalty's gradient joins the loss's.

        Parameters
        ----------
        n_bind : int
            Ignored; older versions kept a binding for each weight.
        device : str, OrtDevice, Device or None
            Where to compute.
        statei : OrtValue or array
            Weight. An OrtValue is changed in place.
        learning_rate : float, default=1
            Factor of the gradient.

        Returns
        -------
        OrtValue
            The new weight.
        """

        def step(op: Builder, w: Var, rate: Var) -> Var:
            return w - op.Cast(rate, to=w.dtype) * self.build(op, w).gradient

        new = self._run("update_weights", step, device, statei, np.array(learning_rate))
        if isinstance(statei, np.ndarray):
            return new
        statei.update_inplace(new.numpy())
        return statei

    def build_onnx_function(self, opset: int | None = None, device: Any = None, n_tensors: int = 1) -> None:
        """Make the graph beforehand, as attribute ``penalty_onnx_``. Nothing needs this."""
        model = self.to_onnx(opset=13 if opset is None else opset)
        self.__dict__["penalty_onnx_"] = model

    def to_onnx(
        self,
        dtype: Any = np.float32,
        rank: int = 2,
        *,
        outputs: Sequence[str] = ("value", "gradient"),
        opset: int = 13,
    ) -> Any:
        """The penalty of one weight as an ONNX model of its own, with input ``weight``."""
        from .standalone import make_model

        self.check()
        op = Builder(opset, taken=["weight", "value", "gradient"])
        number = ir.DataType.from_numpy(np.dtype(dtype))
        w = op.input("weight", number, [f"d{i}" for i in range(rank)])
        terms = self.build(op, w)._asdict()
        model = make_model(op, [w], [(name, terms[name]) for name in outputs], type(self).__name__)
        return ir.to_proto(model)

    def _run(self, name: str, function: Callable[..., Var], device: Any, *inputs: Any) -> Any:
        """Run a function of the builder on values; sessions are kept, one for each dtypes and ranks."""
        from onnxcustom.runtime import create_session, parse_device, run_values, to_ortvalue

        from .standalone import make_model

        where = parse_device(device)
        values = [to_ortvalue(v, where) for v in inputs]
        specs = [(ir.DataType(v.element_type()), len(v.shape())) for v in values]
        key = (where.name, name, tuple(specs))
        sessions = self.__dict__.setdefault("_sessions", {})
        if key not in sessions:
            self.check()
            op = Builder(13, taken=["result"])
            variables = [op.input(f"x{i}", dtype, [None] * rank) for i, (dtype, rank) in enumerate(specs)]
            result = function(op, *variables)
            model = make_model(op, variables, [("result", result)], type(self).__name__)
            sessions[key] = create_session(model, where)
        feeds = {f"x{i}": value for i, value in enumerate(values)}
        return run_values(sessions[key], feeds, ["result"])[0]

    @staticmethod
    def select(class_name: Any = None, **kwargs: Any) -> Penalty:
        """The penalty a user means.

        Parameters
        ----------
        class_name : None, str, Penalty, class or dict
            A registered name, case-insensitive, perhaps with options as in ``"elastic:l1=0.1,l2=0.2"``, or
            ``"l2:0.1"`` for a penalty of one factor; a penalty, returned as it is; None or ``''`` for none;
            a dict from name or pattern of weights to penalty.
        **kwargs
            Parameters of the penalty.

        Raises
        ------
        UnknownNameError
            Listing the names that exist.
        """
        if isinstance(class_name, Penalty):
            return class_name
        if isinstance(class_name, type) and issubclass(class_name, Penalty):
            return class_name(**kwargs)
        if isinstance(class_name, Mapping):
            return PerWeightLearningPenalty(class_name, **kwargs)
        name = "none" if class_name is None or class_name == "" else class_name
        others = ["None", "a penalty", "a dict from weight to penalty"]
        cls, options = PENALTIES.read(_spelled(name), kwargs, others)
        check_given(cls, options, f"penalty={name!r}")
        return cls(**options)


BaseLearningPenalty = Penalty
PENALTIES: Registry[type[Penalty]] = Registry("penalty")


def register_penalty(*names: str) -> Callable[[type], type]:
    """Class decorator: :meth:`Penalty.select` finds the class under `names` and its own name.

    Raises
    ------
    ValueError
        A name that another penalty has.
    """
    return PENALTIES.register(*names)


def _spelled(text: Any) -> Any:
    """``l2:l2=0.01`` for ``l2:0.01``."""
    name, colon, value = text.partition(":") if isinstance(text, str) else ("", "", "")
    if colon and name in PENALTIES and isinstance(parse_value(value), (int, float)):
        factors = [n for n in PENALTIES.find(name)._parameter_names() if n in ("l1", "l2")]
        if len(factors) == 1:
            return f"{name}:{factors[0]}={value}"
    return text


def _matching(patterns: Iterable[str], names: Sequence[str]) -> set[str]:
    """Names that one of the patterns matches; a name itself always matches."""
    found: set[str] = set()
    for pattern in patterns:
        hits = matching(pattern, names)
        if not hits:
            shown = f"{list(names[:_SHOWN])}{' and others' if len(names) > _SHOWN else ''}"
            raise UnknownNameError(f"No weight that may be trained is called {pattern!r}; there are {shown}.")
        found.update(hits)
    return found


@register_penalty("none")
class NoLearningPenalty(Penalty):
    """No penalty."""

    def __init__(self) -> None:
        super().__init__()

    def build(self, op: Builder, weight: Var) -> PenaltyTerms:
        """Zeros."""
        return PenaltyTerms(op.const(0, like=weight), weight - weight)

    def resolve(self, names: Iterable[str], biases: Iterable[str] = ()) -> dict[str, Penalty]:
        """No weight has a penalty."""
        return {}

    def penalty_loss(self, device: Any, loss: Any, *weights: Any) -> Any:
        """The loss."""
        return loss

    def update_weights(self, n_bind: Any, device: Any, statei: Any, learning_rate: float = 1.0) -> Any:
        """The weight."""
        return statei


@register_penalty("l1", "lasso")
class L1LearningPenalty(Penalty):
    r""":math:`l_1 \sum |w|`, gradient :math:`l_1\,sign(w)`, 0 at w = 0.

    Parameters
    ----------
    l1 : float, default=0.5
        Factor, at least 0.
    weights, biases
        Which weights: see :class:`Penalty`.
    """

    def __init__(
        self, l1: float = 0.5, weights: str | Sequence[str] | None = None, biases: bool = True
    ) -> None:
        super().__init__(weights, biases)
        self.l1 = l1

    def build(self, op: Builder, weight: Var) -> PenaltyTerms:
        """Emit the penalty of one weight."""
        # ReduceL1 has no float64 kernel before opset 18 in onnxruntime.
        value = self.l1 * shaped(op.ReduceSum(op.Abs(weight), keepdims=0), [])
        return PenaltyTerms(value, self.l1 * op.Sign(weight))


@register_penalty("l2", "ridge")
class L2LearningPenalty(Penalty):
    r""":math:`l_2 \sum w^2`, gradient :math:`2 l_2 w`. There is no half: l2 is half of scikit-learn's alpha.

    Parameters
    ----------
    l2 : float, default=0.5
        Factor, at least 0.
    weights, biases
        Which weights: see :class:`Penalty`.
    """

    def __init__(
        self, l2: float = 0.5, weights: str | Sequence[str] | None = None, biases: bool = True
    ) -> None:
        super().__init__(weights, biases)
        self.l2 = l2

    def build(self, op: Builder, weight: Var) -> PenaltyTerms:
        """Emit the penalty of one weight."""
        value = self.l2 * shaped(op.ReduceSumSquare(weight, keepdims=0), [])
        return PenaltyTerms(value, (2 * self.l2) * weight)


@register_penalty("l2_sp", "l2sp")
class L2StartLearningPenalty(Penalty):
    r""":math:`l_2 \sum (w - w_0)^2`, gradient :math:`2 l_2 (w - w_0)`: towards the weights it starts from.

    Fine-tuning forgets what a model could do before, the less, the nearer it stays to where it was. The
    starting weights are held by the step a second time.

    Parameters
    ----------
    l2 : float, default=0.01
        Factor, at least 0.
    start : float or ndarray, optional
        :math:`w_0`, for a single weight; by default what each has in the model that a step is made from.
    weights, biases
        Which weights: see :class:`Penalty`.

    References
    ----------
    X. Li, Y. Grandvalet and F. Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks (L2-SP), ICML 2018, equation 3, there with half the factor, https://arxiv.org/abs/1802.01483
    """

    def __init__(
        self,
        l2: float = 0.01,
        start: Any = None,
        weights: str | Sequence[str] | None = None,
        biases: bool = True,
    ) -> None:
        super().__init__(weights, biases)
        self.l2 = l2
        self.start = start

    def starting_at(self, value: np.ndarray) -> Penalty:
        """The penalty of a weight that starts training at a value."""
        if self.start is not None:
            if np.shape(self.start) not in ((), np.shape(value)):
                raise InvalidParameterError(
                    f"start of {type(self).__name__} has shape {np.shape(self.start)}, the weight "
                    f"{np.shape(value)}."
                )
            return self
        made = copy.copy(self)
        made.start = np.array(value)  # a copy of its own: training writes into the other
        return made

    def build(self, op: Builder, weight: Var) -> PenaltyTerms:
        """Emit the penalty of one weight."""
        if self.start is None:
            raise InvalidParameterError(
                f"{type(self).__name__} goes by the weights of the model that a training step is made from: "
                "alone, it needs start=."
            )
        dtype = (weight.dtype or ir.DataType.FLOAT).numpy()
        name = op.unique("start")
        start = ir.Tensor(np.asarray(self.start, dtype=dtype), name=name)
        away = weight - op.wrap(op.initializer(name, start))
        value = self.l2 * shaped(op.ReduceSumSquare(away, keepdims=0), [])
        return PenaltyTerms(value, (2 * self.l2) * away)

    def __repr__(self) -> str:
        if np.ndim(self.start) == 0:
            return super().__repr__()
        shown = copy.copy(self)
        shown.start = f"<array of shape {np.shape(self.start)}>"
        return repr(shown).replace(repr(shown.start), shown.start)


@register_penalty("elastic", "l1l2", "elasticnet")
class ElasticLearningPenalty(Penalty):
    r""":math:`l_1 \sum |w| + l_2 \sum w^2`, gradient :math:`l_1\,sign(w) + 2 l_2 w`.

    Parameters
    ----------
    l1, l2 : float, default=0.5
        Factors, at least 0.
    weights, biases
        Which weights: see :class:`Penalty`.

    Examples
    --------
    >>> import numpy as np
    >>> penalty = ElasticLearningPenalty(l1=0.1, l2=1.0)
    >>> w = np.array([[1.0, -2.0]])
    >>> round(float(penalty.penalty_loss("cpu", np.array(10.0), w).numpy()), 6)
    15.3
    """

    def __init__(
        self,
        l1: float = 0.5,
        l2: float = 0.5,
        weights: str | Sequence[str] | None = None,
        biases: bool = True,
    ) -> None:
        super().__init__(weights, biases)
        self.l1 = l1
        self.l2 = l2

    def build(self, op: Builder, weight: Var) -> PenaltyTerms:
        """Emit the penalty of one weight."""
        if not self.l1:
            return L2LearningPenalty(self.l2).build(op, weight)
        if not self.l2:
            return L1LearningPenalty(self.l1).build(op, weight)
        square = self.l2 * weight
        both = self.l1 * op.Sign(weight) + square
        return PenaltyTerms(shaped(op.ReduceSum(weight * both, keepdims=0), []), both + square)


@register_penalty("per_weight")
class PerWeightLearningPenalty(Penalty):
    """A penalty for each weight.

    Parameters
    ----------
    penalties : dict of str to anything :meth:`Penalty.select` takes
        By name of weight or pattern of :mod:`fnmatch`; a name counts more than a pattern, an earlier
        pattern more than a later one. Weights that none matches have no penalty.

    Examples
    --------
    >>> penalty = PerWeightLearningPenalty({"last": None, "*": L2LearningPenalty(0.1, biases=False)})
    >>> list(penalty.resolve(["first", "bias", "last"], biases=["bias"]))
    ['first']
    """

    def __init__(self, penalties: Mapping[str, Any]) -> None:
        self.penalties = penalties
        super().__init__()

    def check(self) -> None:
        """Check the parameters of all."""
        for penalty in self.penalties.values():
            Penalty.select(penalty).check()

    def build(self, op: Builder, weight: Var) -> PenaltyTerms:
        """Emit the penalty of one weight, chosen by the variable's name."""
        chosen = self._choose([weight.value.name or ""], (), strict=False)
        penalty = next(iter(chosen.values()), None) or NoLearningPenalty()
        return penalty.build(op, weight)

    def resolve(self, names: Iterable[str], biases: Iterable[str] = ()) -> dict[str, Penalty]:
        """The penalty of each weight."""
        self.check()
        return self._choose(list(names), biases, strict=True)

    def _run(self, name: str, function: Callable[..., Var], device: Any, *inputs: Any) -> Any:
        raise UnknownNameError(
            f"{name} takes weights without names, and {type(self).__name__} goes by their names: call it on "
            "the penalties that `resolve` returns."
        )

    def _choose(self, names: list[str], biases: Iterable[str], strict: bool) -> dict[str, Penalty]:
        found: dict[str, Penalty] = {}
        exact = [p for p in self.penalties if p in names]
        done: set[str] = set()
        for pattern in [*exact, *(p for p in self.penalties if p not in exact)]:
            try:
                hits = [n for n in names if n in _matching([pattern], names)]
            except UnknownNameError:
                if strict:
                    raise
                continue
            mine = [n for n in hits if n not in done]
            found.update(Penalty.select(self.penalties[pattern]).resolve(mine, biases) if mine else {})
            done.update(mine)
        return {name: found[name] for name in names if name in found}


def select_penalties(
    penalty: Any,
    model: ir.Model,
    names: Sequence[str] | Mapping[str, np.ndarray],
    later: Iterable[str] = (),
) -> dict[str, Penalty]:
    """The penalty of each weight that has one.

    Parameters
    ----------
    penalty : anything :meth:`Penalty.select` takes
        What the user wants.
    model : onnx_ir.Model
        Prepared model; it says which weights are biases.
    names : sequence of str, or mapping of str to ndarray
        Weights being trained, perhaps with the values that they start at.
    later : iterable of str
        Others that may be trained later, and that the penalty may therefore name.

    Returns
    -------
    dict of str to Penalty
        In the order of `names`.

    Raises
    ------
    UnknownNameError
        A penalty or a weight that does not exist.
    ValueError
        A parameter out of range.
    """
    known = [*dict.fromkeys((*names, *later))]
    resolved = Penalty.select(penalty).resolve(known, _biases(model, known))
    found = {name: resolved[name] for name in names if name in resolved}
    if not isinstance(names, Mapping):
        return found
    return {name: one.starting_at(names[name]) for name, one in found.items()}


def _biases(model: ir.Model, names: Iterable[str]) -> set[str]:
    return {name for name, role in weight_roles(model, names).items() if role == "bias"}
