"""A training step whose frozen part is computed once: two halves of its model, and what is between them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import EvaluationError
from onnxcustom.feed.specs import TensorSpec, of_batch, rows_of, some_rows, tensor_specs, with_axis
from onnxcustom.graph import Prepared, to_proto
from onnxcustom.graph.analysis.row_mixing import ROWS, SOMEWHERE
from onnxcustom.graph.trainable.frozen_part import FrozenPart, NoFrozenPartError
from onnxcustom.optim import BaseLearningRate

from .evaluator import Evaluator
from .feeds import feeds_of
from .inference import Forward, runnable
from .modes import ModeSettings, set_modes
from .recipe import Recipe
from .runs import Runs
from .state import State
from .step_graph import ComposedStep

__all__ = ["FrozenInputs", "Halves", "Kept", "NoFrozenPartError"]

# Rows on which it is proven that rows do not mix.
_PROOF = 8


@dataclasses.dataclass(frozen=True)
class Kept:
    """A tensor that the frozen half computes, for all rows of the data.

    Attributes
    ----------
    spec : TensorSpec
        What the trained half takes: a batch of it.
    axis : int or None
        Where the rows are in what is kept; None if all rows have the same.
    like : ndarray
        What it is for some rows.
    """

    spec: TensorSpec
    axis: int | None
    like: np.ndarray

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return 0 if self.axis is None else self.like.nbytes // max(1, self.like.shape[self.axis])

    def shape(self, rows: int) -> tuple[int, ...]:
        """Shape of so many rows."""
        return tuple(rows if i == self.axis else d for i, d in enumerate(self.like.shape))

    def place(self, room: np.ndarray, made: np.ndarray, start: int, stop: int) -> None:
        """Put what the frozen half made of a batch where its rows belong.

        Raises
        ------
        NoFrozenPartError
            It is of another shape.
        """
        if self.spec.each:
            made = made[None]
        if made.shape != self.shape(stop - start):
            raise NoFrozenPartError(
                f"{self.spec.name!r}, which it computes, has the shape {made.shape} for some rows and "
                f"{self.like.shape} for others"
            )
        if self.axis is None:
            room[...] = made
        else:
            room[(slice(None),) * self.axis + (slice(start, stop),)] = made


class Halves:
    """The frozen half of a step, which runs once for a row, and the trained one, which runs as the step does.

    Parameters
    ----------
    recipe : Recipe
        What is trained.
    state : State
        What the trained half reads and writes: that of the step.
    rule : BaseLearningRate
        The rule with the clock of the state.
    settings : tuple of (int or None, SessionOptions or None)
        Threads of onnxruntime, and options of the session that trains.
    arrays : mapping of str to ndarray
        The first rows of the data, by input: on these it is proven that rows do not mix.

    Attributes
    ----------
    recipe : Recipe
        As given.
    kept : list of Kept
        What the frozen half computes.
    specs : list of TensorSpec
        What the trained half takes in place of the model's inputs, in its order: what is kept, and inputs.
    runs : Runs
        What trains it.

    Raises
    ------
    NoFrozenPartError
        There is nothing that could be computed once; why.
    """

    def __init__(
        self,
        recipe: Recipe,
        state: State,
        rule: BaseLearningRate,
        settings: tuple[int | None, Any],
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        self.recipe = recipe
        read = [t.loss.reads_input for t in recipe.targets if t.loss.reads_input is not None]
        if read:
            raise NoFrozenPartError(f"a loss reads the input {read[0]!r} of the model")
        inputs = {spec.name: spec for spec in recipe.inputs}
        shapes = {n: a.shape[1:] if inputs[n].is_each(a) else a.shape for n, a in arrays.items()}
        part = FrozenPart(
            recipe.trunk.model, recipe.weights, recipe.axes.inputs, shapes, _changing(recipe.modes)
        )
        self._frozen = frozen = part.frozen()
        set_modes(frozen, ModeSettings())
        try:
            self._forward = Forward(runnable(Prepared(frozen)), state.device, settings[0])
            proof = _Proof(self._forward, inputs, arrays, recipe.axes.rows())
        except EvaluationError as exc:  # of a kernel that is missing, say, where the step has a way around
            raise NoFrozenPartError(f"onnxruntime does not run it alone: {exc}") from exc
        found = {
            c.name: proof.found(i, c.name, c.axis) for i, c in enumerate(part.computed)
        }  # axis, and what it is for some rows
        axes = {c.name: c.axis for c in part.crossing} | {n: axis for n, (axis, _) in found.items()}
        model = part.trained({n: _shape(like, axis) for n, (axis, like) in found.items()}, axes)
        names = part.names(model)
        self.trained = _half(recipe, model, {names[n]: axis for n, axis in axes.items()})
        origin = state.origin
        _check_layout(recipe.graph(origin=origin), self.trained.graph(origin=origin))
        self.runs = Runs(self.trained, state, rule, *settings)
        self._evaluator = Evaluator(self.trained, state, settings[0])
        values = {n: next(v for v in model.graph.inputs if v.name == own) for n, own in names.items()}
        self.kept = [_kept(values[n], axis, like, proof.single) for n, (axis, like) in found.items()]
        own = {kept.spec.name: kept.spec for kept in self.kept}
        self.specs = [own.get(names[c.name]) or inputs[c.name] for c in part.crossing]

    @property
    def reads(self) -> list[str]:
        """Inputs of the model that the frozen half reads."""
        return list(self._forward.inputs)

    def compute(self, batch: Mapping[str, Any]) -> list[np.ndarray]:
        """What the frozen half makes of a batch, arrays or OrtValues by input: of each of :attr:`kept`."""
        return self._forward.run(batch)

    def scores(self, made: FrozenInputs, y: Any, sample_weight: Any = None) -> list[np.ndarray]:
        """Losses as :meth:`~onnxcustom.step.evaluator.Evaluator.scores` gives them, by the trained half."""
        return self._evaluator.scores(feeds_of(self.trained, made.made, y, sample_weight))

    @property
    def scorable(self) -> bool:
        """Whether :meth:`scores` takes any number of rows."""
        return not any(kept.spec.each for kept in self.kept)

    def fingerprint(self) -> str:
        """What the frozen half is, its weights included."""
        return hashlib.sha256(to_proto(self._frozen).SerializeToString(deterministic=True)).hexdigest()

    def nbytes(self, rows: int) -> int:
        """Bytes of all that is kept of so many rows."""
        return sum(math.prod(kept.shape(rows)) * kept.like.itemsize for kept in self.kept)


class FrozenInputs(dict):
    """Arrays by input of the model, and what its frozen half has made of them.

    Parameters
    ----------
    given : mapping of str to ndarray
        By input of the model.
    halves : Halves
        Which made it.
    made : mapping of str to ndarray
        By input of the trained half.
    """

    def __init__(self, given: Mapping[str, Any], halves: Halves, made: Mapping[str, np.ndarray]) -> None:
        super().__init__(given)
        self.halves, self.made = halves, made


class _Proof:
    """The first rows through the frozen half, together and in parts: rows that do not mix are the same.

    Attributes
    ----------
    single : bool
        Whether the model takes one row at a time.
    """

    def __init__(
        self,
        forward: Forward,
        inputs: Mapping[str, TensorSpec],
        arrays: Mapping[str, np.ndarray],
        fixed: int | None,
    ) -> None:
        self._forward, self._inputs, self._arrays = forward, inputs, arrays
        self.single = fixed == 1
        rows = rows_of(arrays, [inputs[name] for name in arrays])
        self._rows = fixed or min(rows, _PROOF)
        self._whole = self._run(np.arange(self._rows))
        self._parts: list[list[np.ndarray]] = []
        self._cuts: list[int] = []
        if fixed is None and self._rows > 1:
            self._cuts = [1, self._rows - 1]
            self._parts = [self._run(np.arange(1)), self._run(np.arange(1, self._rows))]
        elif fixed is not None and fixed > 1:  # others beside the first half
            self._cuts = [fixed // 2]
            beside = np.arange(rows - 1, -1, -1)[: fixed - fixed // 2]
            self._parts = [self._run(np.resize(np.append(np.arange(fixed // 2), beside), fixed))]

    def _run(self, rows: np.ndarray) -> list[np.ndarray]:
        specs = self._inputs
        part = {n: some_rows(a, specs[n], rows) for n, a in self._arrays.items()}
        return self._forward.run({n: np.asarray(of_batch(a, specs[n]), order="C") for n, a in part.items()})

    def found(self, i: int, name: str, axis: int | None) -> tuple[int | None, np.ndarray]:
        """Where the rows of a result are, and what it is.

        Raises
        ------
        NoFrozenPartError
            It cannot be told, or the rows are not the same in another batch.
        """
        whole, parts = self._whole[i], [part[i] for part in self._parts]
        if self.single:
            return None, whole
        if axis is None:
            if any(not _close(part, whole) for part in parts):
                raise NoFrozenPartError(f"{name!r}, which it computes, is another for every batch")
            return None, whole
        axis = self._axis(name, axis, whole, parts)
        seen = [np.take(p, np.arange(n), axis) for p, n in zip(parts, self._cuts, strict=True)]
        together = np.concatenate(seen, axis) if seen else whole
        alone = np.take(whole, np.arange(sum(self._cuts)), axis) if seen else whole
        if not _close(together, alone):
            raise NoFrozenPartError(
                f"{name!r}, which it computes, mixes rows of the batch: it is another for the first rows of "
                "the data beside other rows"
            )
        return axis, whole

    def _axis(self, name: str, axis: int, whole: np.ndarray, parts: list[np.ndarray]) -> int:
        """Where the rows are: there are as many as in the batch, of whatever size that is."""
        cuts = self._cuts if len(parts) > 1 else [self._rows] * len(parts)
        sizes = list(zip(parts, cuts, strict=True))
        fit = [
            a
            for a, size in enumerate(whole.shape)
            if size == self._rows and all(p.shape == _with(whole.shape, a, n) for p, n in sizes)
        ]
        if axis in fit:
            return axis
        if axis != SOMEWHERE or len(fit) != 1:
            raise NoFrozenPartError(
                f"{name!r}, which it computes, has the shape {whole.shape} for {self._rows} rows: it cannot "
                "be told where the rows are"
            )
        return fit[0]


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two results differ by rounding only."""
    if a.shape != b.shape:
        return False
    if a.dtype.kind != "f" or not a.size:
        return bool(np.array_equal(a, b))
    scale = float(np.max(np.abs(b[np.isfinite(b)]), initial=0.0))
    with np.errstate(invalid="ignore"):
        same = np.isclose(a, b, rtol=0, atol=scale * float(np.sqrt(np.finfo(a.dtype).eps)), equal_nan=True)
    return bool(same.all())


def _changing(modes: ModeSettings) -> dict[str, str]:
    """Operators that are others in every step, and why."""
    found = {}
    if modes.dropout == "on":
        found["Dropout"] = "drops other elements in every step (dropout='on')"
    if modes.batch_norm == "update":
        found["BatchNormalization"] = "normalizes by the statistics of each batch (batch_norm='update')"
    return found


def _shape(like: np.ndarray, axis: int | None) -> ir.Shape:
    return ir.Shape([ROWS if i == axis else d for i, d in enumerate(like.shape)])


def _kept(value: ir.Value, axis: int | None, like: np.ndarray, single: bool) -> Kept:
    (spec,) = tensor_specs([value])
    spec = dataclasses.replace(with_axis(spec, axis, None), each=single)
    return Kept(spec, 0, like[None]) if single else Kept(spec, axis, like)


def _half(recipe: Recipe, model: ir.Model, axes: Mapping[str, int | None]) -> Recipe:
    """The recipe of the trained half: all else is that of the whole."""
    # It stands for no file: nothing is read from one, and nothing is written back into it.
    whole = Prepared(model, onnx.ModelProto())
    return recipe.replace(prepared=whole, moved={}, joins=(), batch_axis=dict(axes))


def _check_layout(whole: ComposedStep, half: ComposedStep) -> None:
    """See that both read and write the same tensors of the state."""
    for name in ("weights", "state", "packs", "statistics", "accumulated", "rows"):
        if getattr(whole, name) != getattr(half, name):
            raise NoFrozenPartError(f"tensors of the step ({name}) would have other names")
