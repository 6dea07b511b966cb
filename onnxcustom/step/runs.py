"""Batch after batch: which program runs on one, and what becomes of the state."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnxcustom.exceptions import CallOrderError, ConvergenceError, InvalidDataError
from onnxcustom.optim import BaseLearningRate

from .compose import Phase, Weighted
from .counting import Counting
from .program import Program
from .recipe import Recipe
from .state import State

__all__ = ["Runs"]


class Runs:
    """Programs of a recipe on a state, made when they are needed, and what is done with them.

    Parameters
    ----------
    recipe : Recipe
        What is trained.
    state : State
        What the programs read and write.
    rule : BaseLearningRate
        The recipe's rule with the clock of the state, as users have it.
    threads : int, optional
        Threads of onnxruntime.
    sess_options : onnxruntime.SessionOptions, optional
        Used as it is.
    """

    def __init__(
        self, recipe: Recipe, state: State, rule: BaseLearningRate, threads: int | None, sess_options: Any
    ) -> None:
        self.recipe, self.state, self.rule = recipe, state, rule
        self._settings = (threads, sess_options)
        self._programs: dict[tuple[Weighted, Phase, bool], Program] = {}
        # The program that ran last on a batch, and what every loss was a mean over.
        self._last: tuple[Program, list[int]] | None = None
        self._heads: dict[str, float] = {}
        self._counting = Counting(recipe.targets)
        self._outputs = [target.output for target in recipe.targets]
        self._several = len(recipe.targets) > 1

    def program(self, weighted: Weighted, phase: Phase, masked: bool = False) -> Program:
        """A graph of the recipe, compiled."""
        key = (weighted, phase, masked)
        found = self._programs.get(key)
        if found is None:
            self._check_options()
            graph = self.recipe.graph(weighted, phase, self.state.origin, masked)
            found = Program(graph, self.state, self.recipe.scalar_dtype, *self._settings)
            self._programs[key] = found
        return found

    # -- a batch ---------------------------------------------------------------------------------

    @functools.cached_property
    def _rowed(self) -> list[tuple[int, int, str]]:
        """Place, axis of the rows and name of the values of a batch that have rows."""
        specs = [*self.recipe.inputs, *self.recipe.expected]
        return [(i, spec.axis, spec.name) for i, spec in enumerate(specs) if spec.axis is not None]

    def check_rows(self, values: Sequence[Any]) -> None:
        """Refuse expected values of one row where there are more: onnxruntime would repeat it in silence.

        Raises
        ------
        InvalidDataError
            Which of the values it is.
        """
        if len(values) < len(self.recipe.inputs) + len(self.recipe.targets):
            return  # the binding says which are missing
        found = [v.shape()[axis : axis + 1] for v, axis in ((values[i], k) for i, k, _ in self._rowed)]
        if any(rows != found[0] for rows in found):
            rows = {name: n[0] if n else "no" for n, (_, _, name) in zip(found, self._rowed, strict=True)}
            raise InvalidDataError(
                "The values of this batch have different numbers of rows: "
                f"{', '.join(f'{name!r} has {n}' for name, n in rows.items())}."
            )

    def batch(self, values: Sequence[Any], by_rows: bool = False) -> float:
        """See :meth:`~onnxcustom.TrainingStep.run_batch`."""
        state, accumulate = self.state, self.recipe.rule.accumulate
        clock, at = self._clock(), state.position
        if at.unwritten is not None:
            state.finish()
        updating = at.pending + 1 >= accumulate
        counts = accumulate > 1 or self._several or (self._counting and not by_rows)
        units, masked = self._units(values, by_rows) if counts else ([], False)
        program = self.program(self._weighting(values), "update" if updating else "accumulate", masked)
        share, divisors = self._divided(units, program.rows(values)) if accumulate > 1 else (1.0, units)
        self._last = program, units
        # A batch without any label that counts has no loss: 0 / 1.
        loss = program.run(values, clock.values, clock.t, share, [n or 1 for n in divisors])
        self._heads = program.heads()
        window = at.window
        if window is not None:
            loss += self._as_counted(units, divisors)
            window = window.taken(units)
        unfit = program.nonfinite() or state.unfit(updating)
        if unfit or not math.isfinite(loss):
            self._refuse(loss, unfit)
            state.count(skipped=at.skipped + 1, window=window)
            return loss
        if updating:
            state.updated(True, program.write_rows)
        else:
            state.accumulated_batch(units, window)
        return loss

    def apply(self) -> bool:
        """See :meth:`~onnxcustom.TrainingStep.apply_accumulated`."""
        state, window = self.state, self.state.position.window
        if not state.position.pending:
            if window is not None:
                state.forget_accumulated()  # all of it was left out
            return False
        if window is not None and window.seen < window.batches:
            raise InvalidDataError(
                f"Of {window.batches} batches that were announced {window.seen} were given: what "
                "their losses are divided by is that of all. Give the others, or call forget_accumulated()."
            )
        state.finish()
        clock = self._clock()
        program = self.program(self.recipe.weighted, "apply")
        program.run([], clock.values, clock.t, 0.0)
        unfit = state.unfit(updating=True)
        if unfit:
            self._refuse(None, unfit)
            state.forget_accumulated(skipped=1)  # left out, as a batch would be
        else:
            state.updated(False, program.write_rows)
        return True

    @property
    def head_losses(self) -> dict[str, float]:
        """Loss of every output in the last batch, by name, if several are trained."""
        return self._heads

    @property
    def head_units(self) -> dict[str, int]:
        """Labels or rows that the loss of every output is a mean over, where they are counted."""
        return {} if self._last is None else dict(zip(self._outputs, self._last[1], strict=False))

    def _clock(self) -> Any:
        """The clock of the state, at the step after those that were done."""
        clock = self.state.clock
        if not clock.is_after(clock.now.training.iteration):
            self._check_options()
            clock.update(self.state.position.iteration)  # a schedule that knows no such step says so
        return clock

    # -- what a batch is -------------------------------------------------------------------------

    def _weighting(self, values: Sequence[Any]) -> Weighted:
        """Whether a batch has weights, and of what."""
        graph = self.recipe.graph()
        more = len(values) - len(graph.inputs) - len(graph.given)
        if not more:
            return False
        if more != 1:
            wanted = [*graph.inputs, *graph.given]
            raise InvalidDataError(
                f"A batch of this step is {len(wanted)} values, {wanted}, and weights of the rows if there "
                f"are some; {len(values)} were given."
            )
        if not any(spec.weighed for spec in self.recipe.expected):
            return True
        rows = 1 if graph.counted is None else values[graph.counted[0]].shape()[graph.counted[1]]
        return True if list(values[-1].shape()) == [rows] else "labels"

    @functools.cached_property
    def _rows_at(self) -> tuple[int, int] | None:
        """Which value of a batch has its rows, and on what axis; None if all of it is one row."""
        return self.recipe.graph().counted

    def _units(self, values: Sequence[Any], by_rows: bool) -> tuple[list[int], bool]:
        """What the loss of every output is divided by, its labels or the rows; whether some are ignored."""
        counted = self._rows_at
        rows = 1 if counted is None else values[counted[0]].shape()[counted[1]]
        if by_rows:
            return [rows] * len(self.recipe.targets), False
        first = len(self.recipe.inputs)
        return self._counting.of(lambda i: values[first + i].numpy(), rows)

    def _divided(self, units: Sequence[int], rows: int) -> tuple[float, Sequence[float]]:
        """Share of a batch in what is accumulated, and what its losses are divided by."""
        at = self.state.position
        if at.window is None:
            return self._share(units, rows), units
        at.window.check(units)
        return 1 / (at.pending + 1), at.window.divisors()

    def _as_counted(self, units: Sequence[int], divisors: Sequence[float]) -> float:
        """What the objective of a batch is more by than with the losses divided otherwise."""
        more = 0.0
        for target, unit, divisor in zip(self.recipe.targets, units, divisors, strict=True):
            fed = self._heads.get(target.output, 0.0)
            self._heads[target.output] = fed * divisor / unit if unit else 0.0
            more += target.weight * (self._heads[target.output] - fed)
        return more

    def _share(self, units: Sequence[int], rows: int) -> float:
        """Share of a batch in what is accumulated: one for all outputs, since their gradients are added.

        Raises
        ------
        InvalidDataError
            A batch with other numbers of labels in a row, where outputs differ in that.
        """
        at, targets = self.state.position, self.recipe.targets
        before = at.pending_units or [0] * len(units)
        if at.pending and at.pending_units is None:  # from an older version, which counted rows alone
            rows = units[0] if len(units) == 1 else rows
            return rows / max(1, at.pending_rows + rows)
        totals = [p + u for p, u in zip(before, units, strict=True)]
        for target, unit, total in zip(targets, units, totals, strict=True):
            if unit * totals[0] != units[0] * total:
                raise InvalidDataError(
                    f"accumulate adds up batches, and the losses of {targets[0].output!r} and "
                    f"{target.output!r} are means over {units[0]} and {unit} labels or rows in this batch, "
                    f"{totals[0] - units[0]} and {total - unit} in those before: no factor of the batch is "
                    "right for both. Say with announce() beforehand what batches an update is of, as fit "
                    "does; pad labels to one length; or use accumulate=1 and larger batches."
                )
        return units[0] / totals[0] if totals[0] else 1.0

    # -- what is not done ------------------------------------------------------------------------

    def _check_options(self) -> None:
        """The options of the optimizer are part of the graphs: they may not change under them."""
        if _options(self.rule) != _options(self.recipe.rule):
            raise CallOrderError(
                f"The options of the optimizer have changed since this step was made: it is now "
                f"{self.rule!r}. Make another TrainingStep with it and let it take_over() this one."
            )

    def _refuse(self, loss: float | None, unfit: Sequence[str]) -> None:
        """Raise an error, unless such steps are left out. Nothing was changed; without a batch no loss."""
        if self.recipe.rule.skip_nonfinite:
            return
        clock = self.state.clock
        weights = [name for name in unfit if name in self.recipe.weights] or unfit
        what = f"the gradient or update of {', '.join(map(repr, weights))} holds NaN or infinity"
        if loss is None:
            what = what[0].upper() + what[1:]
        elif math.isfinite(loss):
            what = f"The objective is {loss:g}, but {what}"
        else:
            what = f"The objective is {loss}"
            reasons = [t.loss.if_infinite for t in self.recipe.targets if t.loss.if_infinite]
            if reasons and math.isinf(loss):
                raise ConvergenceError(
                    f"{what} at step {clock.t}; the weights before that step are kept. {reasons[0]}."
                )
        raise ConvergenceError(
            f"{what} at step {clock.t} (learning rate {clock.values['learning_rate']:g}); the weights before "
            "that step are kept. Lower the learning rate, scale the data, clip the gradient, or skip such "
            "steps with the optimizer's skip_nonfinite=True."
        )


def _options(rule: BaseLearningRate) -> Mapping[str, Any]:
    """The options that graphs are made with: the learning rate is fed to them."""
    return {k: v for k, v in rule.get_params().items() if k not in ("learning_rate", "eta0")}
