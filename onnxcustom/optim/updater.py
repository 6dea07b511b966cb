"""Updates of single weights by index, with their state kept: MXNet's updater."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from onnxcustom._versioning import check_version, stamp_version
from onnxcustom.exceptions import ConvergenceError, InvalidDataError, InvalidParameterError
from onnxcustom.graph.trainable.roles import Role, weight_roles
from onnxcustom.runtime import owned_copy, parse_device, to_ortvalue
from onnxcustom.runtime.binding import plain_array

from .clock import Clock
from .in_place import InPlaceUpdates, Target, shape_dtype
from .registry import create
from .serialization import rule_from_dict, rule_to_dict
from .timed import TimedRule
from .updater_file import FORMAT, VERSION, Index, parsed, restored

__all__ = ["Updater", "get_updater"]


@dataclasses.dataclass(frozen=True)
class _Item:
    """One weight of a call."""

    index: Index
    target: Target
    gradient: Any
    weight: Any


def get_updater(optimizer: TimedRule | str) -> Updater:
    """A function ``updater(index, gradient, weight)`` that updates weights and remembers their state.

    Parameters
    ----------
    optimizer : BaseLearningRate or str
        Update rule, or the name of one.

    Returns
    -------
    Updater

    Examples
    --------
    >>> import numpy as np
    >>> updater = get_updater("sgd")
    >>> updater(0, np.array([1.0, -1.0]), np.zeros(2))
    array([-0.01,  0.01])
    """
    return Updater(optimizer)


class Updater:
    """Updates weights in place, by index.

    The state of an index is created when it is first seen. Learning rate and step are those of the
    index's own updates. The rule is used, not copied: its learning rate may be set in between, and
    another rule of its kind may be assigned, say to freeze a weight; states, counts and clock stay.
    ``clip_global_norm`` bounds the norm of the gradients of one call. It knows of no epochs: schedules that
    count them move on when ``updater.optimizer.report_epoch(loss)`` is called.

    An updater can be copied and pickled, and called from several threads, which wait for each other.

    Parameters
    ----------
    optimizer : BaseLearningRate or str
        Update rule, or the name of one.
    device : str, default='cpu'
        Where weights are updated.

    Attributes
    ----------
    optimizer : BaseLearningRate
        The rule.
    states : dict of int or str to dict of str to ndarray or OrtValue
        State by index and name.
    counts : dict of int or str to int
        Updates done, by index.
    skipped : int
        Calls that updated nothing because a gradient was not finite (``skip_nonfinite``).

    Examples
    --------
    >>> import numpy as np
    >>> from onnxcustom.optim import Adam
    >>> updater = Updater(Adam(0.1, frozen=["bias"]))
    >>> weight = np.ones((2, 2), np.float32)
    >>> updater("kernel", np.full((2, 2), 3, np.float32), weight)
    array([[0.9, 0.9],
           [0.9, 0.9]], dtype=float32)
    >>> updater("bias", np.ones(2), np.ones(2))
    array([1., 1.])
    """

    def __init__(self, optimizer: TimedRule | str, device: Any = "cpu") -> None:
        rule = create(optimizer) if isinstance(optimizer, str) else optimizer
        if not isinstance(rule, TimedRule):
            raise InvalidParameterError(f"optimizer must be an update rule or its name, not {optimizer!r}.")
        self.device = parse_device(device)
        self.states: dict[Index, dict[str, Any]] = {}
        self.counts: dict[Index, int] = {}
        self.skipped = 0
        self._means: dict[Index, tuple[int, np.ndarray]] = {}
        self._roles, self._rule = _roles(rule), rule
        self._compile()

    @property
    def optimizer(self) -> TimedRule:
        """The rule; one of the same kind may be assigned, and goes on where this one is."""
        return self._rule

    @optimizer.setter
    def optimizer(self, rule: TimedRule) -> None:
        old = self._rule
        if not isinstance(rule, TimedRule):
            raise InvalidParameterError(f"optimizer must be an update rule, not {rule!r}.")
        if (type(rule), rule.state) != (type(old), old.state) and self.states:
            raise InvalidParameterError(
                f"The weights were updated by {old!r}; {rule!r} cannot go on with their state. Make another "
                "Updater."
            )
        roles = _roles(rule)
        with self._lock:
            if not rule.clock.started and type(rule) is type(old):
                rule.take_clock(old)
            self._roles, self._rule = roles, rule
            self._compile()

    def _compile(self) -> None:
        """Forget what was compiled for options that may have changed."""
        self._lock = getattr(self, "_lock", None) or threading.RLock()
        if not self._rule.clock.started:  # never, or set_params() was called
            self._rule.init_learning_rate()
        self._updates = InPlaceUpdates(self._rule)
        self._revision = self._rule.revision

    def _follow(self) -> None:
        """Take note of what set_params() did to the rule."""
        if self._rule.revision != self._revision or not self._rule.clock.started:
            self._roles = _roles(self._rule)
            self._compile()

    # -- updating ---------------------------------------------------------------------------------

    def __call__(self, index: Any, gradient: Any, weight: Any) -> Any:
        """Update one weight, or several.

        Parameters
        ----------
        index : int, str or list of them
            Which weights: any index, always the same for a weight.
        gradient : ndarray, OrtValue or list of them
            Gradients, of the shape and dtype of the weights.
        weight : ndarray, OrtValue or list of them
            Weights; overwritten.

        Returns
        -------
        `weight`

        Raises
        ------
        InvalidDataError
            A gradient, or the state of the index, does not fit the weight; an index twice; an array
            that is read-only.
        ConvergenceError
            A gradient holds NaN or infinity.
        ValueError
            A schedule gave something else than a number of its range.

        Notes
        -----
        After an error nothing has changed, whichever of several weights is at fault.
        """
        indices, gradients, weights = _listed(index, gradient, weight)
        with self._lock:
            self._follow()
            items = [self._item(i, g, w) for i, g, w in zip(indices, gradients, weights, strict=True)]
            if len({item.index for item in items}) < len(items):
                raise InvalidDataError(f"An index is given twice: {list(indices)}.")
            live = [item for item in items if not self._rule.is_frozen(item.target.name)]
            for item in live:
                self._check(item)
            if self._all_finite(live):
                self._step(live)
        return weight

    def _item(self, index: Any, gradient: Any, weight: Any) -> _Item:
        """A weight, and what is known of it."""
        if isinstance(index, bool) or not isinstance(index, (int, np.integer, str)):
            raise InvalidDataError(f"An index must be an integer or a name, not {index!r}.")
        if isinstance(index, str):
            target = Target(None, index, self._roles.get(index, "unknown"))
        else:
            index = int(index)
            name = (self._rule.param_idx2name or {}).get(index)
            if name is None:
                seen = (n for n in self.counts if isinstance(n, str))
                self._rule.check_unnamed(index, {*self._roles, *seen})
            target = Target(index, name, self._roles.get(name or "", "unknown"))
        if isinstance(gradient, np.generic):  # numpy makes these of its 0-d arrays
            gradient = np.asarray(gradient)
        return _Item(index, target, gradient, weight)

    def _check(self, item: _Item) -> None:
        """Refuse what does not fit, before anything changes."""
        index, found = item.index, shape_dtype("gradient", item.gradient)
        shape, dtype = wanted = shape_dtype("weight", item.weight)
        if found != wanted:
            raise InvalidDataError(
                f"The gradient of {index!r} has shape {found[0]} and dtype {found[1]}, its weight has "
                f"{shape} and {dtype}."
            )
        state = self.states.get(index, {})
        for name, value in {"weight": item.weight, **state}.items():
            if isinstance(value, np.ndarray) and not value.flags.writeable:
                raise InvalidDataError(
                    f"The {name} of {index!r} is updated in place, but its array is read-only."
                )
        if index in self.states:
            layout = self._updates.layout(shape, dtype)
            kept = {n: shape_dtype(n, value) for n, value in state.items()}
            if kept != layout:
                raise InvalidDataError(
                    f"The state of {index!r} does not fit its weight of shape {shape} and dtype "
                    f"{dtype}: it is {kept}, {type(self._rule).__name__} needs {layout}."
                )
        if index in self._means and self._means[index][1].shape != shape:
            raise InvalidDataError(
                f"The gradients of {index!r} accumulated so far have shape "
                f"{self._means[index][1].shape}, its weight has {shape}."
            )

    def _all_finite(self, items: Sequence[_Item]) -> bool:
        for item in items:
            if np.isfinite(_host(item.gradient)).all():
                continue
            if self._rule.skip_nonfinite:
                self.skipped += 1
                return False
            update = self.counts.get(item.index, 0) + 1
            raise ConvergenceError(
                f"The gradient of {item.index!r} holds NaN or infinity at its update {update}; "
                "nothing was updated. Skip such steps with skip_nonfinite=True."
            )
        return True

    def _step(self, items: Sequence[_Item]) -> None:
        """Accumulate the gradients; update the weights that have seen enough of them."""
        means = {item.index: self._mean(item) for item in items}
        due = [item for item in items if means[item.index][0] >= self._rule.accumulate]
        gradients = self._clipped([means[item.index][1] for item in due])
        clocks = [self._clock(item.index) for item in due]
        # From here on nothing is refused.
        self._means.update(means)
        for item, gradient, clock in zip(due, gradients, clocks, strict=True):
            self._update(item, gradient, clock)

    def _mean(self, item: _Item) -> tuple[int, Any]:
        """How many gradients were seen, this one included, and their mean."""
        if item.index not in self._means and self._rule.accumulate == 1:
            return 1, item.gradient
        g = _host(item.gradient)
        precise = np.float64 if g.dtype == np.float64 else np.float32
        seen, mean = self._means.get(item.index, (0, np.zeros(g.shape, precise)))
        return seen + 1, np.asarray(mean + (g - mean) / (seen + 1), precise)

    def _clipped(self, gradients: list[Any]) -> list[Any]:
        """The gradients of this call, scaled where their norm together is too large."""
        limit = self._rule.clip_global_norm
        if limit is None:
            return gradients
        arrays = [_host(g) for g in gradients]
        norm = float(np.sqrt(sum(np.sum(a.astype(np.float64) ** 2) for a in arrays)))
        return [np.asarray(a * (limit / max(norm, limit)), a.dtype) for a in arrays]

    def _clock(self, index: Index) -> Clock:
        """Where the updates of an index are: a copy, so that others may use the rule as well."""
        return self._rule.clock.at(self.counts.get(index, 0))

    def _update(self, item: _Item, gradient: Any, clock: Clock) -> None:
        index = item.index
        state, count = self.states.get(index), self.counts.get(index, 0)
        if state is None:
            state = self._rule.create_state(plain_array(_host(item.weight)))
        if isinstance(gradient, np.ndarray):  # the mean of several may be more precise
            gradient = gradient.astype(shape_dtype("weight", item.weight)[1], copy=False)
        position = max(0, item.target.index or 0)
        self._updates.run(position, self.device, item.weight, gradient, 1, state or None, clock, item.target)
        self.states[index], self.counts[index] = state, count + 1
        self._means.pop(index, None)
        self._rule.clock.go_to(clock)

    # -- states -----------------------------------------------------------------------------------

    def get_states(self, dump_optimizer: bool = False) -> bytes:
        """Everything that is remembered of the weights, as bytes in the safetensors format.

        Parameters
        ----------
        dump_optimizer : bool, default=False
            Also save the rule: its options, schedules and clock, but for `sym` and `param_dict`.

        Returns
        -------
        bytes

        Raises
        ------
        TypeError
            With `dump_optimizer`, an option that is a Python function, or a rule that is not
            registered.
        """
        tensors, entries = {}, []
        with self._lock:
            for k, index in enumerate(dict.fromkeys([*self.states, *self._means])):
                state, (seen, mean) = self.states.get(index), self._means.get(index, (0, None))
                names = None if state is None else list(state)
                entries.append([index, self.counts.get(index, 0), names, seen])
                tensors.update({f"{k}.{name}": _host(value) for name, value in (state or {}).items()})
                if mean is not None:
                    tensors[f"{k}:mean"] = mean
            header = {
                "version": VERSION,
                "rule": type(self._rule).__name__,
                "entries": entries,
                "skipped": self.skipped,
                "optimizer": rule_to_dict(self._rule) if dump_optimizer else None,
            }
        # Not ascontiguousarray, which makes vectors of scalars.
        tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
        # One entry: safetensors writes several in any order.
        return safetensors.numpy.save(tensors, {FORMAT: json.dumps(header)})

    def set_states(self, states: bytes) -> None:
        """Take over what :meth:`get_states` has saved, the rule included if it was.

        The rule that was saved goes on with the `sym` and `param_dict` of the present one.

        Parameters
        ----------
        states : bytes
            What :meth:`get_states` returned.

        Raises
        ------
        CheckpointError
            Something else, states of another rule, or of a newer version; nothing is changed.
        """
        header, tensors = parsed(states)
        saved, rule = header["optimizer"], self._rule
        if saved is not None:
            rule = rule_from_dict(saved, sym=rule.sym, param_dict=rule.param_dict)
        kept, counts, means = restored(rule, header, tensors)
        with self._lock:
            self.states, self.counts, self._means = kept, counts, means
            self.skipped = header["skipped"]
            self._rule = rule
            self._compile()

    def sync_state_context(self, state: dict[str, Any], context: Any) -> dict[str, Any]:
        """A state on another device.

        Parameters
        ----------
        state : dict of str to ndarray or OrtValue
            One of :attr:`states`.
        context : str
            ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.

        Returns
        -------
        dict of str to OrtValue
        """
        device = parse_device(context)
        return {name: owned_copy(to_ortvalue(_host(value), device)) for name, value in state.items()}

    # -- copies, pickles --------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # Neither locks nor sessions nor OrtValues can be pickled; all but the lock are made again.
        with self._lock:
            made = ("_lock", "_updates", "_revision")
            state = {k: v for k, v in self.__dict__.items() if k not in made}
            state["states"] = {
                i: {n: np.array(_host(v)) for n, v in s.items()} for i, s in self.states.items()
            }
            return stamp_version(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(check_version(state, self))
        self._compile()

    def __repr__(self) -> str:
        return f"Updater({self._rule!r}, device={self.device.name!r}, weights={len(self.states)})"


def _listed(*given: Any) -> Any:
    """Indices, gradients and weights as lists of one length."""
    if not isinstance(given[0], (list, tuple)):
        return [[part] for part in given]
    if not all(isinstance(part, (list, tuple)) for part in given):
        raise InvalidDataError("A list of indices needs a list of gradients and one of weights.")
    indices, gradients, weights = given
    if not len(indices) == len(gradients) == len(weights):
        raise InvalidDataError(
            f"There are {len(indices)} indices, {len(gradients)} gradients and {len(weights)} weights."
        )
    return given


def _host(value: Any) -> np.ndarray:
    return np.asarray(value) if isinstance(value, (np.ndarray, np.generic)) else value.numpy()


def _roles(rule: TimedRule) -> dict[str, Role]:
    """What the weights of the rule's model are to it; words of the rule's options are looked up there."""
    if rule.sym is None:
        return {}
    from onnxcustom.graph import Prepared
    from onnxcustom.graph.trainable.selection import Catalog

    model = Prepared.of(rule.sym)
    catalog = Catalog(model)
    rule.bind_words(catalog)
    return weight_roles(model.model, catalog.names)
