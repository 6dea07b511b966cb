"""What an update rule is to everything that works with one: its formula, its state and its options."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.trainable.roles import Role

from .clock import Clock

__all__ = ["Rule", "State"]

Self = TypeVar("Self", bound="Rule")


class State(dict):
    """The state of one weight by name, also readable as attributes: ``s.m`` is ``s["m"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no state {name!r}; there are {list(self)}") from None


class Rule(Clock):
    """Formula, state and options of an update rule.

    Every rule is a :class:`~onnxcustom.optim.BaseLearningRate`; this part of it is what graphs, sessions and
    files are made of.
    """

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

    @abstractmethod
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
        """Emit everything that happens to one weight; see :meth:`BaseLearningRate.apply`."""

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
