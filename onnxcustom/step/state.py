"""Everything that training changes: tensors on a device, and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from onnxcustom.exceptions import InvalidDataError, UnknownNameError
from onnxcustom.feed.specs import tensor_specs
from onnxcustom.graph import constants
from onnxcustom.optim import BaseLearningRate
from onnxcustom.optim.averaging import AVERAGE
from onnxcustom.optim.clock import Clock
from onnxcustom.runtime import Device, to_ortvalue

from .buffers import DoubleBuffer
from .plan import BEGINNING, Origin
from .recipe import Recipe
from .window import Window

__all__ = ["Arrays", "Position", "State"]

#: Weights and the rule's state, running statistics, accumulated gradients: each by graph input.
Arrays = tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]

# Which set of each buffer is the front one: bits of `Position.fronts`.
_KEPT, _STATISTICS, _ACCUMULATED = 1, 2, 4
_BOTH = _KEPT | _STATISTICS

# What is known of the batches since the last update.
_PENDING = ("pending", "pending_rows", "pending_units", "window")


class Position(NamedTuple):
    """How far training is. Weights, statistics, sums and counts of a step become those of the next as one.

    Attributes
    ----------
    fronts : int
        Which set of each buffer is the front one, a bit for each.
    iteration : int
        Weight updates done.
    skipped : int
        Batches left out because a gradient was not finite.
    pending, pending_rows : int
        Batches accumulated since the last update, and what they are divided by.
    pending_units : list of int or None
        The same for every output, their labels or rows; None if there is nothing, or it is not known.
    window : Window or None
        The batches of which these are, if they were announced.
    unwritten : callable or None
        Writes the rows of tables that the last update has changed, where that is still to be done: it may be
        called again.
    """

    fronts: int = 0
    iteration: int = 0
    skipped: int = 0
    pending: int = 0
    pending_rows: int = 0
    pending_units: list[int] | None = None
    window: Window | None = None
    unwritten: Callable[[], None] | None = None


class State:
    """Weights, the rule's state, running statistics and accumulated gradients, and how far training is.

    It knows no session: a :class:`~onnxcustom.step.program.Program` reads the front set of its buffers
    and writes the back one; whoever ran it says by :meth:`updated` or :meth:`accumulated_batch` that this is
    what counts from now on. That is one assignment: however training is interrupted, it is a state between
    two steps.

    Parameters
    ----------
    recipe : Recipe
        What the tensors are of.
    device : Device
        Where they live.
    arrays : Arrays
        What they are; the third part may be empty for nothing accumulated so far.
    clock : Clock
        The state's own from now on.
    origin : Origin, optional
        What its counts and masks begin with.

    Attributes
    ----------
    kept, statistics, accumulated : DoubleBuffer
        The tensors.
    origin : Origin
        As given: other ones are those of another state.
    clock : Clock
        Step, epoch, and what the schedules of the rule give for them; beside them it holds the position.
    """

    def __init__(
        self, recipe: Recipe, device: Device, arrays: Arrays, clock: Clock, origin: Origin = BEGINNING
    ) -> None:
        graph = recipe.graph(origin=origin)
        self.clock, self.origin = clock, origin
        self.count(**Position()._asdict())
        self.device = device
        self.weight_names = list(recipe.weights)
        self._states = {w: {s: old for s, (old, _) in states.items()} for w, states in graph.state.items()}
        self._averages = {w: s.pop(AVERAGE) for w, s in self._states.items() if AVERAGE in s}
        self._sums = {w: old for w, (old, _) in graph.accumulated.items()}
        in_place = [old for updates in graph.by_rows.values() for old in updates]
        packs = {name: members for name, (_, members) in graph.packs.items()}
        kept, statistics, accumulated = arrays
        self._kept = DoubleBuffer(kept, device, in_place, packs, graph.shown, front=self._front(_KEPT))
        self.statistics = DoubleBuffer(statistics, device, front=self._front(_STATISTICS))
        if not accumulated:
            values = {v.name: v for v in graph.model.graph.inputs}
            specs = tensor_specs(values[old] for old in self._sums.values())
            accumulated = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in specs}  # type: ignore[arg-type]
        self.accumulated = DoubleBuffer(accumulated, device, front=self._front(_ACCUMULATED))

    @classmethod
    def begin(
        cls, recipe: Recipe, device: Device, weights: Mapping[str, np.ndarray], origin: Origin
    ) -> State:
        """The state of training that has not begun."""
        graph = recipe.graph(origin=origin)
        tensors = {**weights}
        for name, states in graph.state.items():
            first = recipe.first_state(weights[name])
            tensors.update({old: first[s] for s, (old, _) in states.items()})
        arrays: Arrays = (tensors, constants(recipe.model, graph.statistics), {})
        return cls(recipe, device, arrays, recipe.rule.begun(), origin)

    # -- how far it is -------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Counts, and which tensors are those that count."""
        return self.clock.now.training

    def count(self, **changes: Any) -> None:
        """Be at another position in some respects, all at once: fields of :class:`Position`."""
        now = self.clock.now
        before = now.training if isinstance(now.training, Position) else Position()
        self.clock.now = now._replace(training=before._replace(**changes))

    def _front(self, bit: int) -> Callable[[], int]:
        clock = self.clock
        return lambda: 1 if clock.now.training.fronts & bit else 0

    @property
    def kept(self) -> DoubleBuffer:
        """Weights, the rule's state."""
        if self.position.unwritten is not None:
            self.finish()
        return self._kept

    # -- as training goes on -------------------------------------------------------------------------

    def unfit(self, updating: bool) -> list[str]:
        """Tensors that a program has written and that hold NaN or infinity."""
        return (self._kept if updating else self.accumulated).unfit()

    def updated(self, running: bool, unwritten: Callable[[], None] | None = None) -> None:
        """What a program has written are the weights and the rule's state from now on.

        Parameters
        ----------
        running : bool
            Whether that is so of running statistics, too.
        unwritten : callable, optional
            Writes rows of tables; called now, or by who reads them first after an interruption.
        """
        clock = self.clock
        at = clock.now.training
        fronts, iteration = at.fronts ^ (_BOTH if running else _KEPT), at.iteration + 1
        clock.advance(iteration, Position(fronts, iteration, at.skipped, 0, 0, None, None, unwritten))
        if unwritten is not None:
            self.finish()

    def finish(self) -> None:
        """Write what is still to be written of the last update."""
        write = self.position.unwritten
        if write is not None:
            write()
            self.count(unwritten=None)

    def accumulated_batch(self, units: Sequence[int], window: Window | None) -> None:
        """What a program has written are the accumulated gradients from now on, `units` more in each."""
        at = self.position
        found = at.pending_units
        if found is not None or not at.pending:
            found = [p + u for p, u in zip(found or [0] * len(units), units, strict=True)]
        self.count(
            fronts=at.fronts ^ (_ACCUMULATED | _STATISTICS),
            pending=at.pending + 1,
            pending_rows=at.pending_rows + units[0],
            pending_units=found,
            window=window,
        )

    def forget_accumulated(self, skipped: int = 0) -> None:
        """Begin to accumulate anew; so many batches more were left out."""
        skipped += self.position.skipped
        self.count(pending=0, pending_rows=0, pending_units=None, window=None, skipped=skipped)

    def front(self) -> dict[str, Any]:
        """OrtValues of what the model itself reads when it predicts, averages of weights if they are kept."""
        kept = self.kept.values[self.kept.front]
        found = {**kept, **self.statistics.values[self.statistics.front]}
        for name, average in self._averages.items():
            same = kept[name].data_type() == kept[average].data_type()
            found[name] = kept[average] if same else to_ortvalue(self._average(name), self.device)
        return found

    def _average(self, name: str) -> np.ndarray:
        """A copy of the average of a weight, in its dtype."""
        weight = self.kept.values[self.kept.front][name]
        return self.kept.read([self._averages[name]])[0].astype(weight.numpy().dtype)

    # -- reading -------------------------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the weights."""
        return _read(self.kept, {name: name for name in self.weight_names})

    def averages(self) -> dict[str, np.ndarray]:
        """Copies of the averages of weights, as they are kept; none if none are."""
        return _read(self.kept, self._averages)

    def predicting(self) -> dict[str, np.ndarray]:
        """Copies of the weights that predict: the averages, if there are some."""
        return {name: self._average(name) for name in self._averages} or self.weights()

    def of_rule(self) -> dict[str, dict[str, np.ndarray]]:
        """Copies of the rule's state: weight -> name -> array."""
        return {w: _read(self.kept, names) for w, names in self._states.items()}

    def running(self) -> dict[str, np.ndarray]:
        """Copies of the running statistics."""
        return _read(self.statistics, {name: name for name in self.statistics.names})

    def sums(self) -> dict[str, np.ndarray]:
        """Copies of the accumulated gradients, by weight."""
        return _read(self.accumulated, self._sums)

    def read(self) -> Arrays:
        """Copies of everything, as :class:`State` takes it."""
        kept, statistics, accumulated = (
            _read(buffer, {name: name for name in buffer.names})
            for buffer in (self.kept, self.statistics, self.accumulated)
        )
        return kept, statistics, accumulated

    # -- writing -------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether a tensor of the model is a weight or a statistic here."""
        return name in self.weight_names or name in self.statistics.names

    def write(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Overwrite some or all weights and statistics, if they fit."""
        weights = {name: array for name, array in tensors.items() if name in self.weight_names}
        running = {name: array for name, array in tensors.items() if name not in weights}
        for what, buffer, arrays in (
            ("weight", self.kept, weights),
            ("statistic", self.statistics, running),
        ):
            for name, present in zip(arrays, buffer.read(arrays), strict=True):
                _check_same_kind(f"{what} {name!r}", arrays[name], present)
        self.kept.write(weights)
        self.statistics.write(running)
        begun = {w: average for w, average in self._averages.items() if w in weights}
        likes = self.kept.read(begun.values())
        self.kept.write(
            {old: weights[w].astype(a.dtype) for (w, old), a in zip(begun.items(), likes, strict=True)}
        )

    def set_averages(self, averages: Mapping[str, np.ndarray]) -> None:
        """Overwrite averages of some or all weights, if they fit; those of other weights are left out."""
        known = {name: array for name, array in averages.items() if name in self._averages}
        present = self.averages()
        for name, array in known.items():
            _check_same_kind(f"average of weight {name!r}", array, present[name])
        self.kept.write({self._averages[name]: array for name, array in known.items()})

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Overwrite some or all weights, if they fit."""
        unknown = [name for name in weights if name not in self.weight_names]
        if unknown:
            raise UnknownNameError(f"{unknown} are not among the trained weights {self.weight_names}.")
        self.write(weights)

    def set_of_rule(self, state: Mapping[str, Mapping[str, np.ndarray]], rule: BaseLearningRate) -> None:
        """Overwrite the rule's state of some or all weights, if it fits."""
        present, arrays = self.of_rule(), {}
        for weight, states in state.items():
            for key, array in states.items():
                if key not in present.get(weight, {}):
                    raise UnknownNameError(
                        f"The optimizer {rule!r} keeps no state {key!r} for weight {weight!r}."
                    )
                _check_same_kind(f"state {key!r} of weight {weight!r}", array, present[weight][key])
                arrays[self._states[weight][key]] = array
        self.kept.write(arrays)

    def go_on_from(self, other: State, accumulated: bool) -> None:
        """Take over counts, and what is accumulated if it means the same here."""
        at = other.position
        self.count(iteration=at.iteration, skipped=at.skipped)
        if accumulated:
            self.accumulated.write({self._sums[w]: array for w, array in other.sums().items()})
            self.count(**{name: getattr(at, name) for name in _PENDING})

    def tensors(self) -> dict[str, tuple[DoubleBuffer, str]]:
        """Every tensor under the name that it has in checkpoints: its buffer, and its name there."""
        named = {f"weights/{name}": (self.kept, name) for name in self.weight_names}
        for w, states in self._states.items():
            named.update({f"state/{w}/{s}": (self.kept, old) for s, old in states.items()})
        named.update({f"average/{w}": (self.kept, old) for w, old in self._averages.items()})
        named.update({f"statistics/{name}": (self.statistics, name) for name in self.statistics.names})
        named.update({f"accumulated/{w}": (self.accumulated, old) for w, old in self._sums.items()})
        return named


def _read(buffer: DoubleBuffer, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    return dict(zip(names, buffer.read(names.values()), strict=True))


def _check_same_kind(what: str, array: Any, present: np.ndarray) -> None:
    try:
        array = np.asarray(array)
    except (TypeError, ValueError) as exc:  # rows of several lengths, say
        raise InvalidDataError(f"The {what} is no array: {exc}") from exc
    if array.shape != present.shape or array.dtype != present.dtype:
        raise InvalidDataError(
            f"The {what} has shape {present.shape} and dtype {present.dtype}, not {array.shape} and "
            f"{array.dtype}."
        )
    if not np.isfinite(array.astype(np.float64)).all():
        raise InvalidDataError(f"The {what} contains NaN or infinity.")
