"""The base of every update rule: what is derived from its formula, and the calls that users know."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import numbers
from abc import ABCMeta
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from onnxcustom._parameters import check_parameters
from onnxcustom._versioning import check_version, stamp_version
from onnxcustom.exceptions import InvalidParameterError, UnknownNameError
from onnxcustom.graph.building.builder import Builder

from .in_place import InPlaceUpdates
from .indexed import IndexedCalls
from .options import SharedOptions
from .registry import RULES, SELECTED, UnknownOptionError, create, named_options, resolve_options, rule_names
from .rule import State
from .schedules import Null, Schedule
from .timed import TimedRule, with_clock

__all__ = ["BaseLearningRate", "State", "rate_named"]

Self = TypeVar("Self", bound="BaseLearningRate")


class RuleType(ABCMeta):
    """Classes whose constructor understands options under their other names."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        args, given = named_options(cls, args, kwargs)  # type: ignore[arg-type]
        return super().__call__(*args, **resolve_options(cls, given))  # type: ignore[arg-type]

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of the constructor, for editors and :func:`inspect.signature`."""
        made = inspect.signature(cls.__init__)  # type: ignore[misc]
        return made.replace(
            parameters=list(made.parameters.values())[1:], return_annotation=inspect.Signature.empty
        )


class BaseLearningRate(TimedRule, metaclass=RuleType):
    """Base of every update rule.

    A rule is one pure function, :meth:`update`, written with the graph builder. Its ONNX function,
    the update of weights in place and its part of a training step are derived from it, and what
    rules share (:class:`~onnxcustom.optim.options.SharedOptions`: clipping, rescaling, decay, L1,
    master copies) is put around it by :meth:`apply`. Hyper-parameters are frozen. Weights, state and
    the clock, the step counted from 1 with the learning rate of that step, belong to whoever trains,
    so that one instance can serve several models; :attr:`clock` is that of calls on the rule itself,
    or of the training step whose ``optimizer`` it is.

    A rule is usually a dataclass, its hyper-parameters declared with their ranges::

        @register
        @dataclass(repr=False, eq=False)
        class Momentum(BaseLearningRate):
            learning_rate: Any = 0.01
            beta: float = number(0.9, "[0, 1)", scheduled=True)
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

    _left_by_calls = ("_clock", "_updates", "_indexed", "_kept", "_revision")
    _revision = 0
    _updates: InPlaceUpdates | None = None
    # What updates by index, as :meth:`update` may be called.
    _indexed: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "update" in cls.__dict__:
            cls.update = _formula_or_call(cls.__dict__["update"])  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check_parameters(self)
        for field in dataclasses.fields(self):
            if field.metadata.get("scheduled") and isinstance(getattr(self, field.name), Null):
                object.__setattr__(self, field.name, 0.0)  # not used, so that no state is kept for it
        self.check_options()
        self.make_schedules()  # refuses a bad learning rate now rather than at the first step
        self.__dict__["_sealed"] = True

    @property
    def revision(self) -> int:
        """A number that grows with every :meth:`set_params`: what was compiled before holds no more."""
        return self._revision

    @property
    def indexed(self) -> Any:
        """What :meth:`update` by index remembers, until the clock is set to its beginning."""
        if self._indexed is None:
            kept = self.__dict__.pop("_kept", None)
            self.__dict__["_indexed"] = IndexedCalls(self, kept)
        return self._indexed

    def init_learning_rate(self: Self) -> Self:
        super().init_learning_rate()
        self.__dict__.pop("_indexed", None)
        return self

    def create_state_multi_precision(self, index: Any, weight: Any) -> Any:
        """:meth:`create_state`, which does by ``multi_precision``."""
        return self.create_state(index, weight)

    def update_multi_precision(self, index: Any, weight: Any, grad: Any, state: Any) -> None:
        """``update(index, weight, grad, state)``, which does by ``multi_precision``."""
        self.indexed.update(index, weight, grad, state)

    # -- in mid-training ------------------------------------------------------------------------

    def set_learning_rate(self: Self, learning_rate: Any) -> Self:
        """Use another learning rate from the current step on; clock and hyper-parameters stay.

        It replaces a schedule, where MXNet's has no effect beside one.

        Parameters
        ----------
        learning_rate : float, Schedule, callable or BaseLearningRate
            A number is constant. Of a rule without state, its schedule is taken.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            Something that is no learning rate at this step, or a rule with a state; nothing is changed.
        """
        self.use_rate(_rate_of(learning_rate))
        return self

    def continues(self, other: BaseLearningRate) -> bool:
        """Whether this rule can go on with the clock and the state of another: it keeps the same."""
        mine, others = (type(self), self.state), (type(other), other.state)
        return mine == others and self.multi_precision == other.multi_precision

    # -- running it ----------------------------------------------------------------------------

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
            The clock was not started; no state after step 1.
        InvalidDataError
            Tensors that do not fit each other, state for a rule that keeps none.
        """
        if self._updates is None:
            self._updates = InPlaceUpdates(self)
        return self._updates.run(n_bind, device, statei, gradienti, batch_size, velocity, self.clock)

    # -- names, copies, pickles ----------------------------------------------------------------

    @staticmethod
    def select(class_name: Any, **kwargs: Any) -> BaseLearningRate:
        """The update rule meant by `class_name`.

        Parameters
        ----------
        class_name : BaseLearningRate, number, str, Schedule or callable
            An instance is returned as it is. A number or a schedule is the learning rate of a
            :class:`~onnxcustom.optim.LearningRateSGD`. A name, in any case, is that of a registered
            rule, perhaps with options as in ``"adam:beta1=0.8"``; ``'SGD'`` means ``LearningRateSGD``.
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
            table = SELECTED if class_name.partition(":")[0].strip() in SELECTED else RULES
            rule, options = table.read(class_name, kwargs)
            return rule(**options)
        if isinstance(class_name, type) and issubclass(class_name, BaseLearningRate):
            return class_name(**kwargs)
        sgd = SELECTED.find("SGD")
        if isinstance(class_name, numbers.Real) and not isinstance(class_name, bool):
            return sgd(**{"eta0": class_name, **kwargs})
        if isinstance(class_name, Schedule) or callable(class_name):
            return sgd(**{"learning_rate": class_name, **kwargs})
        raise UnknownNameError(
            f"{class_name!r} is no update rule: give an instance, a number, a schedule or one of "
            f"{rule_names()}."
        )

    @staticmethod
    def create_optimizer(name: str, **kwargs: Any) -> BaseLearningRate:
        """An update rule by name: :func:`onnxcustom.optim.create`."""
        return create(name, **kwargs)

    def set_params(self: Self, **params: Any) -> Self:
        """Change hyper-parameters, as scikit-learn does between two fits; the clock stops.

        Returns
        -------
        self
        """
        params = resolve_options(type(self), params)
        fresh = type(self)(**{**self.get_params(), **params})
        clock, revision = self.clock, self._revision + 1
        clock.stop()
        self.__dict__.clear()
        self.__dict__.update(fresh.__dict__, _clock=clock, _revision=revision)
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
        return f", value={self.value!r}" if self.clock.started else ""

    def __repr__(self) -> str:
        # The shared options are many: those that were left alone say nothing.
        shared = {f.name: f.default for f in dataclasses.fields(SharedOptions)}
        given = {k: v for k, v in self.get_params().items() if k not in shared or _differ(v, shared[k])}
        text = ", ".join(f"{k}={v!r}" for k, v in given.items())
        return f"{type(self).__name__}({text}{self.__repr_extended__()})"

    def __getstate__(self) -> dict[str, Any]:
        # Sessions cannot be pickled, and a copy makes its own.
        state = {k: v for k, v in self.__dict__.items() if k not in ("_updates", "_indexed")}
        if self._indexed is not None:
            state["_kept"] = copy.deepcopy(self._indexed.kept())
        return stamp_version(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(with_clock(self, check_version(state, self)))


def _formula_or_call(formula: Callable[..., Any]) -> Callable[..., Any]:
    """An update as its formula in a graph, or of arrays, by what it is called with."""

    @functools.wraps(formula)
    def update(self: BaseLearningRate, *args: Any, **kwargs: Any) -> Any:
        if "index" in kwargs or (args and not isinstance(args[0], Builder)):
            return self.indexed.update(*args, **kwargs)
        return formula(self, *args, **kwargs)

    return update


def rate_named(name: str) -> BaseLearningRate:
    """The update rule that text given as learning rate names.

    Raises
    ------
    UnknownNameError
        None has that name; a number that is written as text is none.
    """
    try:
        return BaseLearningRate.select(name)
    except UnknownNameError as exc:
        try:
            hint = f"={name!r} is text: give the number {float(name):g}."
        except ValueError:
            hint = f": {exc}"
        raise UnknownNameError(f"learning_rate{hint}") from exc


def _rate_of(learning_rate: Any) -> Any:
    """A learning rate as :func:`as_schedule` takes it, also of a rule or of its name."""
    if isinstance(learning_rate, str):
        learning_rate = rate_named(learning_rate)
    if not isinstance(learning_rate, BaseLearningRate):
        return learning_rate
    if learning_rate.needs_grad:
        raise InvalidParameterError(
            f"{learning_rate!r} is an update rule with a state of its own, not only a learning rate: "
            "give it as optimizer."
        )
    return learning_rate.make_schedule()


def _differ(a: Any, b: Any) -> bool:
    """Whether two options are not equal; arrays and models compare in ways of their own."""
    try:
        return bool(a != b)
    except Exception:
        return True
