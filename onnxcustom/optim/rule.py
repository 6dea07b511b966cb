"""What an update rule is to everything that works with one: its formula, its state and its options."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.trainable.roles import Role

from .clock import Clock
from .options import SharedOptions
from .schedules import Schedule, as_schedule
from .transforms import Unit, clip, is_zero, once_key, proximal_l1, scalar, shrink

__all__ = ["Rule", "State"]

Self = TypeVar("Self", bound="Rule")


class State(dict):
    """The state of one weight by name, also readable as attributes: ``s.m`` is ``s["m"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no state {name!r}; there are {list(self)}") from None


class Rule(SharedOptions):
    """Formula, state and options of an update rule.

    Every rule is a :class:`~onnxcustom.optim.BaseLearningRate`; this part of it is what graphs, sessions and
    files are made of. It knows no step: that is the business of a :class:`~onnxcustom.optim.clock.Clock`.

    Attributes
    ----------
    learning_rate : float, Schedule or callable
        Number, schedule or function of the step.
    """

    learning_rate: Any

    #: Options under other names.
    aliases: ClassVar[dict[str, str]] = {
        "lr": "learning_rate",
        "weight_decay": "wd",
        "grad_clip": "clip_gradient",
        "grad_scale": "rescale_grad",
        "momentum_scheduler": "momentum",
    }
    #: What is done to the gradient before the formula, in this order. Without ``'decay'`` the
    #: formula itself says what becomes of ``self.wd``.
    order: ClassVar[tuple[str, ...]] = ("rescale", "clip", "decay")

    #: Whether the formula draws random numbers, so that every weight needs a graph of its own.
    stochastic: ClassVar[bool] = False

    #: Whether :meth:`update` reads the learning rate only as a factor of the gradient.
    proportional: ClassVar[bool] = False

    #: Whether ``lazy_update`` makes sense: what happens to a row of a table depends on that row only.
    by_rows: ClassVar[bool] = False

    #: Whether NaN in a gradient may leave no NaN in the weight, as where only signs count.
    swallows_nan: ClassVar[bool] = False

    #: In :meth:`update`, what the weight is to the model.
    role: Role = "unknown"
    #: In :meth:`update`, a number of the weight's own.
    stream: int = 0

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
            Weight and gradient of the objective, of one shape and dtype. What the options shared by
            all rules ask for was done already.
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

        Notes
        -----
        Called as ``update(index, weight, grad, state)``, as MXNet's optimizers are, it updates arrays or
        OrtValues in place: `weight`, and `state`, which ``create_state(index, weight)`` has made. Each index
        counts its own updates, as in an :class:`~onnxcustom.optim.Updater`, from ``init_learning_rate()`` on;
        ``clip_global_norm`` bounds each gradient alone.
        """

    def apply(
        self,
        op: Builder,
        w: Var,
        g: Var,
        s: State,
        lr: Var,
        t: Var,
        *,
        name: str | None = None,
        role: Role = "unknown",
        index: int | None = None,
        values: Mapping[str, Var] | None = None,
        prescaled: bool = False,
    ) -> tuple[Var, dict[str, Var]]:
        """Emit everything that happens to one weight: the shared options, and :meth:`update`.

        It takes what :meth:`update` does, before anything was done to the gradient, what :meth:`multipliers`
        takes, scalars that stand for hyper-parameters with a schedule, and whether the gradient was
        multiplied by the learning rate already, which only a rule that is :attr:`proportional` understands.
        It gives the new weight, and the new state under the names of :meth:`create_state`.
        """
        low = w.dtype
        if "master" in s:
            w, g = s["master"], scalar(op, g, s["master"].dtype)
        lr_mult, wd_mult = self.multipliers(name, role, index)
        rate = scalar(op, lr, w.dtype)
        lr = rate if lr_mult == 1 else op.once(("times", rate.value, lr_mult), lambda: lr_mult * rate)
        hyper: dict[str, Any] = {k: scalar(op, v, w.dtype) for k, v in (values or {}).items()}
        for decay in self.decays:
            hyper[decay] = _times(op, hyper.get(decay, getattr(self, decay)), wd_mult)
        wd, l1 = hyper["wd"], hyper["l1"]
        hyper.update(self._inner_decay(op, wd, lr, prescaled), **_kept_from_zero(self, w))
        view = self.bound(role=role, stream=_stream(name, index), bound_lr_mult=lr_mult, **hyper)

        g = _prepared(view, op, w, g)
        if self.decoupled_weight_decay:
            w = shrink(op, w, lr, wd)
        factor: Any = Unit() if prescaled else lr
        new, state = view.update(op, w, g, s, factor, t)
        if set(state) != set(self.state):
            raise InvalidParameterError(
                f"{type(self).__name__}.update returned state {set(state)}, not {set(self.state)}."
            )
        new = proximal_l1(op, new, lr, l1)
        if "master" in s:
            return op.Cast(new, to=low), {**state, "master": new}
        return new, dict(state)

    def _inner_decay(self, op: Builder, wd: Any, lr: Var, prescaled: bool) -> dict[str, Any]:
        """What the decay is to the formula."""
        if self.decoupled_weight_decay:
            return {"wd": 0.0}
        if prescaled and not is_zero(wd):
            return {"wd": op.once(("times", lr.value, once_key(wd)), lambda: lr * wd)}
        return {}

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

    def create_state(self, index: Any = None, weight: Any = None) -> Any:
        """All that is kept for a weight: :meth:`init_state`, and its master copy if there is one.

        Parameters
        ----------
        index : int or str, optional
            Its index, as in MXNet; may be left out, as in ``create_state(weight)``.
        weight : ndarray or OrtValue
            Initial value of the weight.

        Returns
        -------
        dict of str to ndarray, or with an index None, ndarray or tuple of them
            With an index, what :meth:`update` takes for one. With ``multi_precision`` the state of a float16
            weight is float32, and ``'master'`` is the weight in that precision.
        """
        if index is None or weight is None:
            return self._all_state(_plain(index if weight is None else weight))
        states = tuple(self._all_state(_plain(weight)).values())
        return states if len(states) > 1 else states[0] if states else None

    def _all_state(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        if not (self.multi_precision and weight.dtype == np.float16):
            return self.init_state(weight)
        master = weight.astype(np.float32)
        return {**self.init_state(master), "master": master}

    # -- schedules -----------------------------------------------------------------------------

    def make_schedule(self) -> Schedule:
        """A new schedule for the learning rate, at its beginning."""
        return as_schedule(self.learning_rate)

    def make_schedules(self) -> dict[str, Schedule]:
        """New schedules for everything that has one, at their beginning: the learning rate first."""
        schedules = {"learning_rate": self.make_schedule()}
        schedules.update({name: as_schedule(getattr(self, name), name) for name in self.scheduled})
        return schedules

    @property
    def scheduled(self) -> tuple[str, ...]:
        """Hyper-parameters, beside the learning rate, that have a schedule."""
        fields = dataclasses.fields(self)
        return tuple(
            f.name
            for f in fields
            if f.metadata.get("scheduled") and not isinstance(getattr(self, f.name), numbers.Real)
        )

    def make_clock(self) -> Clock:
        """A clock for who trains by this rule, not started."""
        ranges = {f.name: f.metadata["range"] for f in dataclasses.fields(self) if "range" in f.metadata}
        return Clock(type(self).__name__, ranges, self.begin_num_update)

    # -- what it is ----------------------------------------------------------------------------

    @property
    def needs_grad(self) -> bool:
        """Whether the rule keeps state from one update to the next, made of past gradients."""
        return bool(self.state)

    @property
    def hides_nonfinite(self) -> bool:
        """Whether NaN or infinity in a gradient may leave no trace in the weight."""
        return self.swallows_nan or self.clip_gradient is not None

    @property
    def prescalable(self) -> bool:
        """Whether gradients may come multiplied by the learning rate, for all weights alike."""
        changed = (self.clip_gradient, self.clip_global_norm, self.lr_mult, self.param_dict)
        return self.proportional and self.accumulate == 1 and not any(changed)

    def bound(self: Self, **values: Any) -> Self:
        """A copy to emit graphs with, some hyper-parameters replaced by scalars of a graph.

        :meth:`update` reads them like numbers, so that a formula is written once, whether momentum
        is a number or a schedule.
        """
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__, **values)
        return view

    def _call_iobinding(self, sess: Any, bind: Any) -> Any:
        """Run a bound session and return its outputs: the one call to override to watch updates."""
        return bind.run()

    @classmethod
    def parameter_names(cls) -> list[str]:
        """Names of the hyper-parameters, in the order of the constructor."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]

    @classmethod
    def option_aliases(cls) -> dict[str, str]:
        """Other names of options, those of the base classes included."""
        merged: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            merged.update(vars(base).get("aliases", {}))
        return merged

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Hyper-parameters by name, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in self.parameter_names()}


def _plain(weight: Any) -> np.ndarray:
    """A weight as an array."""
    return weight.numpy() if hasattr(weight, "update_inplace") else np.asarray(weight)


def _kept_from_zero(rule: Rule, w: Var) -> dict[str, float]:
    """Epsilons that are 0 in the weight's dtype, so that 0 / 0 threatens, as its smallest normal number."""
    assert w.dtype is not None
    limits = np.finfo(w.dtype.numpy())
    found = {name: getattr(rule, name) for name in ("epsilon", "eps") if hasattr(rule, name)}
    return {
        name: float(limits.tiny) for name, value in found.items() if value > 0 == limits.dtype.type(value)
    }


def _prepared(view: Rule, op: Builder, w: Var, g: Var) -> Var:
    """The gradient as the formula takes it: rescaled, clipped, decayed in the rule's own order."""
    for what in view.order:
        if what == "rescale" and view.rescale_grad != 1:
            g = view.rescale_grad * g
        elif what == "clip":
            g = clip(op, g, view.clip_gradient)
        elif what == "decay" and not is_zero(view.wd):
            g = g + view.wd * w
    return g


def _times(op: Builder, value: Any, factor: float) -> Any:
    """A number or scalar times a factor, emitted once for all weights that share it."""
    if factor == 0 or not isinstance(value, Var):
        return 0.0 if factor == 0 else value * factor
    return value if factor == 1 else op.once(("times", value.value, factor), lambda: factor * value)


def _stream(name: str | None, index: int | None) -> int:
    """A number of the weight's own, the same in every process."""
    if name is None:
        return 0 if index is None else index
    number = 0
    for byte in name.encode():
        number = (number * 257 + byte) % 2147483629
    return number
