"""The base of every update rule: its clock, its registry, and everything derived from its formula."""

from __future__ import annotations

import inspect
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np
import onnx

from onnxcustom._parameters import check_number, check_parameters
from onnxcustom._registry import Registry
from onnxcustom._versioning import check_version, stamp_version
from onnxcustom.exceptions import InvalidDataError, UnknownNameError
from onnxcustom.graph.builder import Builder, Var

from .function import InPlaceUpdates, State, build_update_model
from .schedules import Schedule, as_schedule

__all__ = [
    "RULES",
    "SELECTED",
    "BaseLearningRate",
    "State",
    "UnknownOptionError",
    "create",
    "register",
    "rule_names",
]

Rule = TypeVar("Rule", bound="type[BaseLearningRate]")
Self = TypeVar("Self", bound="BaseLearningRate")


class UnknownOptionError(UnknownNameError, TypeError):
    """An update rule was given an option it does not have; the message lists those it has."""


class BaseLearningRate(ABC):
    """Base of every update rule.

    A rule is one pure function, :meth:`update`, written with the graph builder. Its ONNX function,
    the update of weights in place and its part of a training step are derived from it. The
    instance itself holds hyper-parameters, which are frozen, and a clock, which is not: the step
    counted from 1, and the learning rate of that step. Weights and state belong to whoever trains,
    so that one instance can serve several models.

    A rule is usually a dataclass, its hyper-parameters declared with their ranges::

        @register
        @dataclass(repr=False, eq=False)
        class Momentum(BaseLearningRate):
            learning_rate: Any = 0.01
            beta: float = number(0.9, "[0, 1)")
            state = ("m",)

            def update(self, op, w, g, s, lr, t):
                m = self.beta * s.m + g
                return w - lr * m, {"m": m}

    Attributes
    ----------
    state : tuple of str
        Names of the tensors kept for each weight.
    learning_rate : float, Schedule or callable
        Number, schedule or function of the step.
    """

    #: Options under other names, understood by :func:`create` and :meth:`select`.
    aliases: ClassVar[dict[str, str]] = {"lr": "learning_rate"}

    learning_rate: Any
    _schedule: Schedule | None = None
    _value: float | None = None
    _t = 1
    _epoch = 1
    _updates: InPlaceUpdates | None = None

    def __post_init__(self) -> None:
        check_parameters(self)
        self.make_schedule()  # refuses a bad learning rate now rather than at the first step
        self.__dict__["_sealed"] = True

    # -- the formula ---------------------------------------------------------------------------

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the tensors kept for each weight; a class writes ``state = ("m", "v")``."""
        return ()

    @abstractmethod
    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        """Emit the update of one tensor.

        Parameters
        ----------
        op : Builder
            Builder of the graph.
        w, g : Var
            Weight and gradient of the objective, of one shape and dtype. Whatever the gradient has
            to be divided by, it was already.
        s : State
            State of this weight.
        lr : Var
            Learning rate, a scalar of the weight's dtype.
        t : Var
            Step counted from 1, a floating-point scalar.

        Returns
        -------
        tuple of (Var, dict of str to Var)
            The new weight, and the new state under every name of :attr:`state`.
        """

    def init_state(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        """The state of a weight that was never updated: zeros of its shape and dtype.

        Parameters
        ----------
        weight : ndarray
            Initial value of the weight.

        Returns
        -------
        dict of str to ndarray
        """
        return {name: np.zeros(weight.shape, weight.dtype) for name in self.state}

    @property
    def needs_grad(self) -> bool:
        """Whether the rule keeps state from one update to the next, made of past gradients."""
        return bool(self.state)

    # -- the clock -----------------------------------------------------------------------------

    def make_schedule(self) -> Schedule:
        """A new schedule for the hyper-parameters, at its beginning."""
        return as_schedule(self.learning_rate)

    def init_learning_rate(self: Self) -> Self:
        """Set the clock to the first step of the first epoch.

        Returns
        -------
        self
        """
        self._schedule = self.make_schedule()
        self._t = self._epoch = 1
        return self._refresh()

    def update_learning_rate(self: Self, t: int) -> Self:
        """Move on to the learning rate of the next step.

        Parameters
        ----------
        t : int
            Number of updates done; the next step is ``t + 1``.

        Returns
        -------
        self

        Raises
        ------
        RuntimeError
            Before :meth:`init_learning_rate`.
        ValueError
            The schedule gave something that is no learning rate.
        """
        if self._schedule is None:
            raise self._not_started()
        if t < 0:
            raise ValueError(f"t is the number of updates done, it must be in [0, inf), not {t!r}.")
        self._t = int(t) + 1
        return self._refresh()

    def report_epoch(self, loss: float) -> bool:
        """Tell the schedule the mean loss of the epoch that has just ended.

        Parameters
        ----------
        loss : float
            Mean objective over the epoch's rows.

        Returns
        -------
        bool
            True if the schedule sees no use in going on: ``'adaptive'`` says so when the loss has
            stalled at a rate of 1e-6 or less.
        """
        if self._schedule is None:
            raise self._not_started()
        if not math.isfinite(loss):
            raise InvalidDataError(f"The loss of an epoch must be finite, not {loss!r}.")
        self._epoch += 1
        stop = self._schedule.report_epoch(float(loss))
        self._refresh()
        return stop

    def set_learning_rate(self: Self, learning_rate: Any) -> Self:
        """Use another learning rate from the current step on; clock and hyper-parameters stay.

        Parameters
        ----------
        learning_rate : float, Schedule, callable or BaseLearningRate
            A number is constant. Of a rule without state, its schedule is taken.

        Returns
        -------
        self
        """
        chosen = _rate_of(learning_rate)
        schedule = as_schedule(chosen)
        self.__dict__["learning_rate"] = chosen
        if self._schedule is not None:
            self._schedule = schedule
            self._refresh()
        return self

    @property
    def value(self) -> float:
        """Learning rate of the current step.

        Raises
        ------
        RuntimeError
            Before :meth:`init_learning_rate`.
        """
        if self._value is None:
            raise self._not_started()
        return self._value

    @property
    def t(self) -> int:
        """The current step, counted from 1: the one that uses :attr:`value`."""
        return self._t

    def loop(self, n: int = 1000) -> Iterator[float]:
        """Yield the learning rates of the first `n` steps; the clock starts again.

        Examples
        --------
        >>> from onnxcustom.optim import LearningRateSGD
        >>> [round(v, 4) for v in LearningRateSGD(1.0).loop(3)]
        [1.0, 0.8409, 0.7598]
        """
        self.init_learning_rate()
        for t in range(1, n + 1):
            yield self.value
            self.update_learning_rate(t)

    def _refresh(self: Self) -> Self:
        assert self._schedule is not None
        value = self._schedule.value(self._t, self._epoch)
        if type(value) is float and 0.0 <= value < math.inf:  # once a step: the common case is quick
            self._value = value
            return self
        try:
            check_number("learning rate", value, "[0, inf)")
        except (TypeError, ValueError) as exc:
            raise ValueError(
                f"{self._schedule!r} gave {value!r} at step {self._t}; "
                "a learning rate is a number in [0, inf)."
            ) from exc
        self._value = float(value)
        return self

    def _not_started(self) -> RuntimeError:
        return RuntimeError(f"The clock of {type(self).__name__} was not started: call init_learning_rate().")

    # -- running it ----------------------------------------------------------------------------

    def update_model(
        self, dtype: Any = np.float32, shape: tuple[int, ...] | None = None, opset: int = 18
    ) -> onnx.ModelProto:
        """The update of one weight as an ONNX model.

        Parameters
        ----------
        dtype : dtype, default=float32
            Dtype of weight and gradient.
        shape : tuple of int, optional
            Their shape; any by default.
        opset : int, default=18
            Version of the ONNX domain.

        Returns
        -------
        onnx.ModelProto
            Inputs ``weight``, ``gradient``, the state, ``learning_rate``, ``t`` and ``batch_size``,
            by which the gradient is divided; outputs ``new_weight`` and ``new_<state>``.
        """
        return build_update_model(self, np.dtype(dtype), shape, opset)

    def build_onnx_function(self, opset: int, device: Any, n_tensors: int) -> None:
        """Make what :meth:`update_weights` runs.

        Parameters
        ----------
        opset : int
            Version of the ONNX domain.
        device : str or OrtDevice
            Where the weights live.
        n_tensors : int
            How many weights there are.
        """
        self._updates = InPlaceUpdates(self, opset, n_tensors)
        self._updates.function(np.dtype(np.float32), device)

    def update_weights(
        self,
        n_bind: int,
        device: Any,
        statei: Any,
        gradienti: Any,
        batch_size: float,
        velocity: Any = None,
    ) -> Any:
        """Update one weight in place.

        Parameters
        ----------
        n_bind : int
            Index of the weight.
        device : str or OrtDevice
            Where it lives.
        statei : OrtValue or ndarray
            The weight; overwritten.
        gradienti : OrtValue or ndarray
            Gradient summed over the batch, of the weight's shape and dtype.
        batch_size : float
            Number of rows in the batch: the gradient is divided by it.
        velocity : OrtValue, ndarray, or sequence or dict of them, optional
            State, for rules that keep one, in the order or under the names of :attr:`state`;
            overwritten. May be left out at the first step.

        Returns
        -------
        weight, or tuple of (weight, state)
            The objects given, with their new content. State that was not given is an OrtValue, or a
            tuple of them if the rule keeps several.

        Raises
        ------
        RuntimeError
            The clock was not started; state for a rule that keeps none, or none after step 1.
        InvalidDataError
            Tensors that do not fit each other.
        """
        if self._updates is None:
            self._updates = InPlaceUpdates(self)
        return self._updates.run(n_bind, device, statei, gradienti, batch_size, velocity)

    def _call_iobinding(self, sess: Any, bind: Any) -> Any:
        """Run a bound session and return its outputs: the one call to override to watch updates."""
        return bind.run()

    # -- names, copies, pickles ----------------------------------------------------------------

    @staticmethod
    def select(class_name: Any, **kwargs: Any) -> BaseLearningRate:
        """The update rule meant by `class_name`.

        Parameters
        ----------
        class_name : BaseLearningRate, number, str, Schedule or callable
            An instance is returned as it is. A number or a schedule is the learning rate of a
            :class:`~onnxcustom.optim.LearningRateSGD`. A name, in any case, is that of a registered
            rule; ``'SGD'`` means ``LearningRateSGD``.
        **kwargs
            Options of the rule, when it is not an instance.

        Returns
        -------
        BaseLearningRate

        Raises
        ------
        UnknownNameError
            No rule of that name; the message lists all.

        Examples
        --------
        >>> BaseLearningRate.select("nesterov", eta0=0.1).needs_grad
        True
        """
        if isinstance(class_name, BaseLearningRate):
            if kwargs:
                raise UnknownOptionError(
                    f"Options {sorted(kwargs)} come with an instance, which has its own."
                )
            return class_name
        if isinstance(class_name, str):
            table = SELECTED if class_name in SELECTED else RULES
            return _make(table.find(class_name), class_name, kwargs)
        if isinstance(class_name, type) and issubclass(class_name, BaseLearningRate):
            return _make(class_name, class_name.__name__, kwargs)
        sgd = SELECTED.find("SGD")
        if isinstance(class_name, numbers.Real) and not isinstance(class_name, bool):
            return _make(sgd, "sgd", {"eta0": class_name, **kwargs})
        if isinstance(class_name, Schedule) or callable(class_name):
            return _make(sgd, "sgd", {"learning_rate": class_name, **kwargs})
        raise UnknownNameError(
            f"{class_name!r} is no update rule: give an instance, a number, a schedule or one of "
            f"{rule_names()}."
        )

    @classmethod
    def parameter_names(cls) -> list[str]:
        """Names of the hyper-parameters, in the order of the constructor."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Hyper-parameters by name, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in self.parameter_names()}

    def set_params(self: Self, **params: Any) -> Self:
        """Change hyper-parameters, as scikit-learn does between two fits; the clock stops.

        Returns
        -------
        self
        """
        _check_options(type(self), params)
        fresh = type(self)(**{**self.get_params(), **params})
        self.__dict__.clear()
        self.__dict__.update(fresh.__dict__)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name[0] != "_" and "_sealed" in self.__dict__ and name in self.parameter_names():
            raise AttributeError(
                f"{name} of {type(self).__name__} cannot be changed: graphs were made with it. "
                "Use set_params(), or set_learning_rate() in mid-training."
            )
        object.__setattr__(self, name, value)

    def __repr_extended__(self) -> str:
        """What ``repr`` says beside the hyper-parameters."""
        return "" if self._value is None else f", value={self._value!r}"

    def __repr__(self) -> str:
        text = ", ".join(f"{k}={v!r}" for k, v in self.get_params().items())
        return f"{type(self).__name__}({text}{self.__repr_extended__()})"

    def __getstate__(self) -> dict[str, Any]:
        # Sessions cannot be pickled, and a copy makes its own.
        return stamp_version({k: v for k, v in self.__dict__.items() if k != "_updates"})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(check_version(state, self))


def _rate_of(learning_rate: Any) -> Any:
    """A learning rate as :func:`as_schedule` takes it, also of a rule or of its name."""
    if isinstance(learning_rate, str):
        learning_rate = BaseLearningRate.select(learning_rate)
    if not isinstance(learning_rate, BaseLearningRate):
        return learning_rate
    if learning_rate.needs_grad:
        raise ValueError(
            f"{learning_rate!r} is an update rule with a state of its own, not only a learning rate: "
            "give it as optimizer."
        )
    return learning_rate.make_schedule()


# -- registry ----------------------------------------------------------------------------------

RULES: Registry[type[BaseLearningRate]] = Registry("update rule")
#: Names that mean something else to `select` and `learning_rate=` than to `create`.
SELECTED: Registry[type[BaseLearningRate]] = Registry("update rule")


def register(*args: Any, select: tuple[str, ...] = ()) -> Any:
    """Make a rule known to :func:`create` and :meth:`BaseLearningRate.select`.

    Used as ``@register``, or as ``@register("name", ...)`` to give it names beside that of the class.

    Parameters
    ----------
    *args : str
        More names.
    select : tuple of str
        Names it has in :meth:`BaseLearningRate.select` only, before those of any other rule.

    Raises
    ------
    ValueError
        A name that another rule has.
    """
    if len(args) == 1 and isinstance(args[0], type):
        return register()(args[0])

    def add(cls: Rule) -> Rule:
        RULES.register(*args)(cls)
        if select:
            SELECTED.register(*select)(cls)
        return cls

    return add


def rule_names() -> list[str]:
    """Names of all registered rules."""
    return sorted(RULES.names())


def create(name: str, **kwargs: Any) -> BaseLearningRate:
    """An update rule by name.

    Parameters
    ----------
    name : str
        Name of a registered rule, in any case.
    **kwargs
        Its options; ``lr`` stands for ``learning_rate``.

    Returns
    -------
    BaseLearningRate

    Raises
    ------
    UnknownNameError
        No such rule, or no such option (also a TypeError); the message lists those there are.

    Examples
    --------
    >>> create("Adam", learning_rate=0.1)
    Adam(learning_rate=0.1, beta1=0.9, beta2=0.999, epsilon=1e-08)
    """
    return _make(RULES.find(name), name, kwargs)


def _make(cls: type[BaseLearningRate], name: str, kwargs: dict[str, Any]) -> BaseLearningRate:
    """An instance of a rule, aliases of options understood."""
    options = {cls.aliases.get(k, k): v for k, v in kwargs.items()}
    _check_options(cls, options)
    if len(options) < len(kwargs):
        raise UnknownOptionError(f"{sorted(kwargs)} name one option of {name!r} twice.")
    return cls(**options)


def _check_options(cls: type[BaseLearningRate], options: dict[str, Any]) -> None:
    """Refuse options the rule does not have."""
    known = cls.parameter_names()
    unknown = [k for k in options if k not in known]
    if unknown:
        raise UnknownOptionError(f"{cls.__name__} has no option {unknown}; it has {known}.")
