"""What a training step is made of and what it keeps: read, overwritten, taken over, saved."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx

from onnxcustom._parameters import check_number
from onnxcustom._versioning import check_version, stamp_version
from onnxcustom.exceptions import InvalidDataError, UnknownNameError
from onnxcustom.gradient.interface import Engine
from onnxcustom.graph import Selection, constants, to_proto
from onnxcustom.graph.files.feature_names import read_feature_names, write_feature_names
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.optim import BaseLearningRate
from onnxcustom.runtime import Device, options_from, options_state, require_runtime
from onnxcustom.tuning.changes import trained as trained_by
from onnxcustom.tuning.lora.files import save_adapter
from onnxcustom.tuning.lora.options import Adapted

from .calibrating import rounded_by
from .carrying import placed, taken_over
from .checkpoint import COUNT, export_state, import_state
from .evaluator import Evaluator
from .frozen import Halves
from .frozen_rows import CacheSettings, FrozenRows
from .inference import loadable
from .modes import ModeSettings
from .pickles import as_written_now, read_back, written
from .recipe import Recipe
from .repeated import Repeated
from .runs import Runs
from .state import State
from .targets import Target
from .unfreezing import joining, missing, unfrozen

__all__ = ["StoredStep"]


class StoredStep:
    """A recipe and a state on a device: the part of a :class:`~onnxcustom.TrainingStep` that runs nothing."""

    device: Device
    threads: int | None
    _sess_options: Any
    _optimizer: BaseLearningRate
    _recipe: Recipe
    _state: State
    _runs: Runs
    _last: Runs  # of which the last batch was
    _halves: dict[Any, Halves]
    _known: tuple[Any, FrozenRows | None] | None
    _cache = CacheSettings()
    _evaluator: Evaluator
    _repeated: Repeated | None
    _calibrated: bool

    def _set_up(self, recipe: Recipe, state: State, rule: BaseLearningRate | None = None) -> None:
        """Be these, with no program so far: all in one assignment, which nothing can interrupt."""
        rule = recipe.rule.on(state.clock) if rule is None else rule
        runs = Runs(recipe, state, rule, self.threads, self._sess_options)
        evaluator = Evaluator(recipe, state, self.threads)
        vars(self).update(
            _recipe=recipe,
            _state=state,
            _optimizer=rule,
            _runs=runs,
            _last=runs,
            _evaluator=evaluator,
            _halves={},
            _known=None,
            _repeated=None,
            _calibrated=_is_calibrated(recipe, state),
        )

    def _check_calibrated(self) -> None:
        """Refuse to go on with ranges that nobody has measured.

        Raises
        ------
        InvalidDataError
            Call calibrate() first.
        """
        if not self._calibrated:
            raise InvalidDataError(
                "The ranges of what is rounded to integers are not known yet: call calibrate(X) with some "
                "rows of the data first."
            )

    def _become(self, recipe: Recipe, state: State) -> None:
        """Go on with another recipe or state: programs of the old ones are forgotten."""
        self._optimizer.follow(state.clock)
        if recipe is not self._recipe or state is not self._state:
            self._set_up(recipe, state, self._optimizer)

    # -- what it is made of ----------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """What is trained, on what and how."""
        return self._recipe

    @property
    def optimizer(self) -> BaseLearningRate:
        """The update rule, with the clock of this step."""
        return self._optimizer

    @property
    def targets(self) -> list[Target]:
        """Outputs and their losses."""
        return list(self._recipe.targets)

    @property
    def engine(self) -> Engine:
        """The gradient engine."""
        return self._recipe.engine

    @property
    def modes(self) -> ModeSettings:
        """How BatchNormalization and Dropout behave."""
        return self._recipe.modes

    @property
    def passes(self) -> bool:
        """Whether the graph is rewritten to run faster."""
        return self._recipe.passes

    @property
    def recompute(self) -> bool:
        """Whether cheap activations are computed again."""
        return self._recipe.recompute

    @property
    def iteration(self) -> int:
        """Number of weight updates done; may be set, with the state that belongs to it."""
        return self._state.position.iteration

    @iteration.setter
    def iteration(self, value: int) -> None:
        check_number("iteration", value, COUNT, integral=True)
        self._state.count(iteration=int(value))

    @property
    def skipped(self) -> int:
        """Number of batches left out because a gradient was not finite (``skip_nonfinite``)."""
        return self._state.position.skipped

    @property
    def pending(self) -> int:
        """Number of batches whose gradients were accumulated since the last update."""
        return self._state.position.pending

    @property
    def model(self) -> onnx.ModelProto:
        """The step as one ONNX graph.

        Inputs are the model's own, ``<output>_expected`` for each loss, ``sample_weight`` if
        there is one, the weights, the optimizer's state, ``learning_rate`` and ``step``. Outputs
        are the loss, the new weights and the new state. The metadata entry ``onnxcustom.step``
        says in JSON which is which.
        """
        recipe = self._recipe
        return to_proto(recipe.compose(recipe.weighted, lean=False, origin=self._state.origin).model)

    def batch_axes(self) -> BatchAxes:
        """Where the rows of inputs and outputs are."""
        return self._recipe.axes

    # -- weights and state -----------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the present weights that are trained, by name."""
        return self._state.weights()

    def predicting_weights(self) -> dict[str, np.ndarray]:
        """Copies of the weights that predict: the averages, if they are kept, else :meth:`weights`."""
        return self._state.predicting()

    def averages(self) -> dict[str, np.ndarray]:
        """Copies of the averages of weights, by name; none if none are kept."""
        return self._state.averages()

    def set_averages(self, averages: Mapping[str, np.ndarray]) -> None:
        """Overwrite averages of some or all weights; errors as :meth:`set_weights`."""
        self._state.set_averages(averages)

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """Copies of the optimizer's state: weight name -> state name -> array."""
        return self._state.of_rule()

    def statistics(self) -> dict[str, np.ndarray]:
        """Copies of the running statistics that the step updates, by name."""
        return self._state.running()

    def set_statistics(self, statistics: Mapping[str, np.ndarray]) -> None:
        """Overwrite running statistics; those that this step does not update become part of its model.

        Raises
        ------
        UnknownNameError, InvalidDataError
            A name that the model does not have or that is trained; an array of another shape or dtype, with
            NaN, infinity or a negative variance; nothing is changed.
        """
        _check_named(statistics, "statistics")
        if trained := [name for name in statistics if name in self._recipe.weights]:
            raise UnknownNameError(f"{trained} are trained weights, not statistics: use set_weights().")
        self._become(placed(self._recipe, self._state, statistics), self._state)

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Overwrite some or all weights; averages of them begin there.

        Raises
        ------
        UnknownNameError, InvalidDataError
            A name that is not trained, or an array of another shape or dtype; nothing is changed.
        """
        _check_named(weights, "weights")
        self._state.set_weights(weights)

    def set_state(self, state: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Overwrite the optimizer's state of some or all weights; errors as :meth:`set_weights`."""
        _check_named(state, "states")
        for name, states in state.items():
            _check_named(states, f"states of weight {name!r}")
        self._state.set_of_rule(state, self.optimizer)

    def start_from(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over weights of the model, also of those that are not trained here.

        Parameters
        ----------
        weights : dict of str to ndarray
            Some or all of what :func:`onnxcustom.weights` finds in the model.

        Raises
        ------
        UnknownNameError, InvalidDataError
            A name that the model does not have, or an array that does not fit; nothing is changed.
        """
        _check_named(weights, "weights")
        self._become(placed(self._recipe, self._state, weights), self._state)

    def take_over(self, other: StoredStep) -> None:
        """Go on where another step of this model is.

        That is its weights, its statistics and, if the optimizer is the same, its clock and the state
        of the weights that both train; a weight that joins begins at its own first step. What the other
        one has accumulated goes on as well if both train the same weights and accumulate alike.

        Raises
        ------
        UnknownNameError, InvalidDataError
            The other one is a step of another model, or none; nothing is changed.

        Warns
        -----
        UserWarning
            Batches that the other one has accumulated are left out.
        """
        if not isinstance(other, StoredStep):
            raise InvalidDataError(f"take_over() takes a TrainingStep, not {other!r:.60}.")
        self._become(*taken_over(self._recipe, self._state, other._recipe, other._state))

    def unfreeze(self, weights: Selection = None) -> list[str]:
        """Train some more weights from here on.

        What was trained before goes on with its state; weights that join begin with a state of their own, and
        count their steps from here. Frozen parts that were computed once are forgotten.

        Parameters
        ----------
        weights : str or list of str, optional
            Which, in the words of the constructor's `weights`; None for every weight.

        Returns
        -------
        list of str
            Those that have joined.

        Raises
        ------
        UnknownNameError, DifferentiationError
            A choice that means nothing, or a weight without a gradient; nothing is changed.
        """
        names = missing(self._recipe, weights)
        if names:
            recipe, state = unfrozen(self._recipe, self._state, names)
            self._become(recipe, state)
        return names

    def check_unfreeze(self, weights: Selection = None) -> None:
        """See whether :meth:`unfreeze` would be refused; errors are its own."""
        names = missing(self._recipe, weights)
        if names:
            joining(self._recipe, names).graph(origin=self._state.origin)

    def frozen_weights(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Values that weights have in the model that training began with."""
        return constants(self._recipe.model, names)

    def trained_model(self, merge: bool = True) -> onnx.ModelProto:
        """The user's model with the weights that predict, and with the present statistics.

        Parameters
        ----------
        merge : bool, default=True
            Whether adapters are taken into the weights they stand beside. If not, the model computes what it
            did before, until it is given their factors, which it has for inputs: what
            :meth:`adapter` returns.
        """
        self._check_calibrated()
        recipe, columns = self._recipe, self._recipe.columns
        trained = trained_by(recipe.prepared, recipe.changes, self._tensors(), merge)
        if columns:
            write_feature_names(trained, {**read_feature_names(trained), **columns})
        return loadable(trained)

    def _tensors(self) -> dict[str, np.ndarray]:
        """Everything of the model that may differ from what it was."""
        return {**self._recipe.moved, **self.predicting_weights(), **self.statistics()}

    def adapter(self) -> dict[str, np.ndarray]:
        """Factors of the adapters, by name, alpha/rank taken into the second one of each.

        Raises
        ------
        UnknownNameError
            The step trains no adapters.
        """
        return self._adapted().adapter(self._tensors())

    def save_adapter(self, path: str | os.PathLike[str]) -> None:
        """Write the adapters, alpha/rank taken into B.

        Parameters
        ----------
        path : str or PathLike
            Ends in ``.onnx_adapter``, which onnxruntime's ``LoraAdapter`` reads, or in ``.safetensors``,
            which has rank, alpha and fingerprint of the weights in its metadata.

        Raises
        ------
        UnknownNameError
            The step trains no adapters.
        InvalidParameterError
            Another suffix.
        MissingRuntimeError
            ``.onnx_adapter`` with an onnxruntime before 1.20.
        """
        save_adapter(self._adapted().saved(self._tensors()), path)

    def _adapted(self) -> Adapted:
        for made in self._recipe.changes:
            if isinstance(made, Adapted):
                return made
        raise UnknownNameError("There are no adapters: make the step, or estimator, with lora=8, say.")

    # -- checkpoints -----------------------------------------------------------------------------

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Everything that training goes on from, to the same bits: copies, and what JSON can hold.

        Returns
        -------
        tuple of (dict of str to ndarray, dict)
            Tensors: ``weights/<weight>``, ``state/<weight>/<name>``, ``statistics/<name>``,
            ``accumulated/<weight>``, and ``constants/<name>`` for what :meth:`take_over` has changed
            of the model beside them. State: the optimizer's clock and the counts of the step.
        """
        return export_state(self._recipe, self._state)

    def load_state_dict(self, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Go on where a step that was made with the same arguments was.

        The learning rate and the seed of the masks become what they were there.

        Parameters
        ----------
        tensors, state
            What :meth:`state_dict` returned.

        Raises
        ------
        CheckpointError
            What was saved does not fit this step; the message says what differs, and nothing is
            changed.
        """
        self._become(*import_state(self._recipe, self._state, tensors, state))

    # -- pickling --------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        kept = {
            **written(self._recipe, self._state),
            "cache": tuple(self._cache),
            "device": self.device,
            "threads": self.threads,
            "sess_options": options_state(self._sess_options),
        }
        return stamp_version(kept)

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = check_version(state, self)
        state = as_written_now(state)
        self.device, self.threads = state["device"], state["threads"]
        self._cache = CacheSettings(*state.get("cache", ()))
        self._sess_options = options_from(state["sess_options"], require_runtime().SessionOptions)
        self._set_up(*read_back(state, self.device))

    def __repr__(self) -> str:
        targets = ", ".join(map(str, self.targets))
        axes = {**self.batch_axes().inputs, **{t.output: t.rows for t in self.targets}}
        return (
            f"TrainingStep({targets}, optimizer={self.optimizer!r}, weights={len(self._recipe.weights)}, "
            f"batch_axis={axes}, "
            f"engine={self.engine.name!r}, device={self.device.name!r}, iteration={self.iteration})"
        )


def _is_calibrated(recipe: Recipe, state: State) -> bool:
    """Whether the range of everything that is rounded was measured: until then scales are 0."""
    change = rounded_by(recipe)
    if change is None:
        return True
    tensors = {**recipe.moved, **state.weights()}
    return all(np.any(tensors.get(rounding.scale, 0)) for rounding in change.roundings)


def _check_named(arrays: Any, what: str) -> None:
    """Refuse what is no dict."""
    if not isinstance(arrays, Mapping):
        raise InvalidDataError(f"The {what} must be in a dict, by name, not a {type(arrays).__name__}.")
