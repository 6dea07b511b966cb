"""What happens before a training: everything is found out and checked, and nothing changes."""

from __future__ import annotations

import dataclasses
import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxcustom._warnings import warn_user
from onnxcustom.data import Block, Stream
from onnxcustom.data.naming import naming
from onnxcustom.data.owned import sealed
from onnxcustom.data.sources import UnalignedError
from onnxcustom.exceptions import InvalidParameterError, RowsWarning
from onnxcustom.feed.data_loader import OrtDataLoader
from onnxcustom.feed.grouping import alone
from onnxcustom.feed.held_out import ArrayValidation
from onnxcustom.feed.order import draw_seed
from onnxcustom.feed.splitting import check_fraction, hold_out
from onnxcustom.feed.stream_loader import StreamLoader
from onnxcustom.feed.validation import ungrouped
from onnxcustom.graph import Prepared
from onnxcustom.graph.files.feature_names import read_feature_names
from onnxcustom.step.built import prepared_in
from onnxcustom.step.frozen_rows import check_cache
from onnxcustom.step.training_step import TrainingStep

from .callbacks import Callback, Callbacks, Checkpoint, PrintLog, ProgressBar
from .columns import check_columns, first_columns, in_order
from .frozen_loader import FrozenLoader
from .frozen_stream import FrozenStreamLoader
from .loading import Reading, make_loader, make_validation
from .plan import Begun, Given, Plan
from .results import Results
from .resuming import take_place
from .run import Run

__all__ = ["Beginning"]


class Beginning(Results):
    """From parameters and data to a training that can begin.

    Public methods are what a subclass writes or overrides. Private ones of the same names do what these do
    by what is known already: the model, prepared once, and what predictions mean.

    Parameters
    ----------
    batch_size : int
        Rows in a batch; the last one of an epoch may be shorter.
    max_iter : int
        Epochs of :meth:`fit`.
    shuffle : bool
        Whether each epoch takes the rows in another order. By default it does, with a warning if the loss
        of a row depends on other rows of its batch.
    random_state : int, RandomState or None
        Seed of that order.
    warm_start : bool
        Whether :meth:`fit` goes on from the last fit, optimizer state included.
    engine : {'auto', 'ort', 'onnx'}
        Gradient engine.
    device : str
        ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
    verbose : int
        1 shows a progress bar in terminals and notebooks, 2 prints a line an epoch.
    callbacks : Callback, function or list of them
        What looks at the training and may end it, see :mod:`onnxcustom.training.callbacks`.
    checkpoint_dir : str or path
        Folder for checkpoints of :meth:`fit`, one training each. If it holds some of this training, killed
        or finished, ``fit`` goes on from the last one and ends on the same bits as if nothing had happened.
    validation_fraction : float
        Part of the rows, in (0, 1), that is held out as validation data where none is given. Classes keep
        their shares.
    pairs : int or array_like of shape (n,)
        Rows that belong into one batch, for losses that compare them: so many that are behind each other in
        the data, or those that have the same number or name here. Groups have one size, which divides
        `batch_size`.
    m_per_class : int
        Rows of each class in a batch, for ``triplet`` and ``contrastive`` on classes: each epoch brings
        other rows of a class together, so many at a time, and has every row once. It divides `batch_size`.
    cache_frozen : bool or 'auto'
        Whether what lies before the first trained weight is computed once for every row, in place of once an
        epoch. Results differ in rounding only. True is an error where that is not possible; ``'auto'`` goes
        without, and says why to the logger ``onnxcustom``.
    cache_bytes : int
        Bytes that what is computed once may take.
    """

    batch_size: int
    max_iter: int
    warm_start: bool
    verbose: int
    random_state: Any = None
    shuffle: bool | None = None
    callbacks: Any = None
    checkpoint_dir: Any = None
    validation_fraction: float | None = None
    pairs: Any = None
    m_per_class: int | None = None
    cache_frozen: Any = False
    cache_bytes: float = 2**30

    @property
    def shuffles(self) -> bool:
        """Whether each epoch takes the rows in another order: unless :attr:`shuffle` is False."""
        return self.shuffle is None or bool(self.shuffle)

    @abstractmethod
    def make_step(self, X: Any, y: Any) -> TrainingStep:
        """A new training step at the model's own weights, for data as the user gave it."""

    def encode(self, y: Any, step: TrainingStep) -> Any:
        """The expected values as the step wants them."""
        return y

    def weigher(self, X: Any, y: Any) -> Callable[[Any, Any], Any] | None:
        """Makes weights of rows, of expected values and weights as the user gave them; None: the latter.

        `X` and `y` are the data to train on. The same function weighs the validation data.
        """
        return None

    def sample(self, stream: Stream) -> tuple[Any, Any]:
        """Features and expected values to make a step for, of data that is not in memory."""
        try:
            head = stream.head()
        except UnalignedError as exc:  # the model will tell where the rows are
            head = Block(exc.given)
        return head.X, head.y

    def _checkpoint(self) -> Checkpoint | None:
        """Who saves the run: :attr:`checkpoint_dir`, or the one among the callbacks."""
        found = [c for c in Callbacks(self.callbacks).items if isinstance(c, Checkpoint)]
        if self.checkpoint_dir is not None:
            found.append(Checkpoint(self.checkpoint_dir))
        if len(found) > 1:
            raise InvalidParameterError(
                f"A training has one folder for its checkpoints, not those of {found}."
            )
        if found and self.warm_start:
            raise InvalidParameterError(
                "warm_start=True goes on from the last fit, a run with checkpoints from the last of them: "
                "use one of the two."
            )
        return found[0] if found else None

    def _begin(self, given: Given, plan: Plan, classes: Any) -> Begun:
        """Everything of a training, checked, before anything of this estimator changes."""
        data, fitted = given.owned(bool(self.callbacks) or not _is_ours(self)), self.__sklearn_is_fitted__()
        going_on = fitted and self._changed() <= self._live_parameters
        prepared = None if going_on or self._model is None else self._prepared()
        if isinstance(data.X, Stream):
            data = dataclasses.replace(data, X=in_order(data.X, self._known_columns(prepared)))
        with naming(data.names_of):
            if going_on:
                step, meaning = self.step_, self._meaning
            else:
                step, meaning = self._new_step(prepared, data, classes)
            if fitted and not going_on:
                step.take_over(self.step_)
            for stream in data.streams:
                stream.place(step.data_axes())
            columns = {} if fitted else first_columns(self, data.X, step)
            if fitted:
                self._check_features(data.X, step)
            run = self._prepare(step, meaning, columns, data, plan)
        return Begun(step, meaning, columns, run, data.names_of)

    def _prepared(self) -> Prepared:
        """The model, prepared."""
        return prepared_in(getattr(self, "cache_dir", None), self._model)

    def _known_columns(self, prepared: Prepared | None) -> tuple[str, ...] | None:
        """Names of the columns that are trained on, in the model's order, as far as they are known."""
        if self.__sklearn_is_fitted__():
            return self.step_.inputs[0].columns
        names = {} if prepared is None else read_feature_names(prepared.model)
        return next(iter(names.values()), None)

    def _new_step(self, prepared: Prepared | None, data: Given, classes: Any) -> tuple[TrainingStep, Any]:
        """A step, and what its predictions mean."""
        X, y = data.X, data.y
        if isinstance(X, Stream):
            X, y = self._sample(X, prepared)
        if prepared is not None:
            prepared = self._with_head(prepared, dataclasses.replace(data, y=y), X, classes)
        step = self._make_step(prepared, X, y)
        return step, self._meaning_of(prepared, step, dataclasses.replace(data, y=y), X, classes)

    def try_step(self, X: Any, y: Any) -> None:
        """Find out whether a step can be made for data in memory, and what its predictions mean.

        Raises
        ------
        OnnxCustomError
            What :meth:`fit` would say.
        """
        prepared = None if self._model is None else self._prepared()
        self._new_step(prepared, Given(X, y), None)

    def _sample(self, stream: Stream, prepared: Prepared | None) -> tuple[Any, Any]:
        return self.sample(stream)

    def _with_head(self, prepared: Prepared, data: Given, X: Any, classes: Any) -> Prepared:
        """The model, or it with another last layer; `X` are features in memory."""
        return prepared

    def _make_step(self, prepared: Prepared | None, X: Any, y: Any) -> TrainingStep:
        return self.make_step(X, y)

    def _encode(self, y: Any, step: TrainingStep, meaning: Any) -> Any:
        return self._asked(step, meaning, lambda known: known.encode(y, step))

    def _weigher(self, X: Any, y: Any, step: TrainingStep, meaning: Any) -> Callable[[Any, Any], Any] | None:
        return self._asked(step, meaning, lambda known: known.weigher(X, y))

    def _asked(self, step: TrainingStep, meaning: Any, ask: Callable[[Any], Any]) -> Any:
        """What an override says, which may ask what it overrides, of a step in the making.

        It is asked on a copy that has the step and its meaning, as this estimator will once training begins;
        what it sets beside them is this one's.
        """
        if step is vars(self).get("step_") and meaning is self._meaning:
            return ask(self)
        found = {"step_": step, "_meaning": meaning, **self._told_by(meaning)}
        known: Any = object.__new__(type(self))
        known.__dict__.update({**vars(self), **found})
        try:
            return ask(known)
        finally:
            own = {name: value for name, value in vars(known).items() if name not in found}
            self.__dict__.update(own)

    def _told_by(self, meaning: Any) -> dict[str, Any]:
        """Public attributes that the meaning of predictions stands for."""
        return {}

    def _meaning_of(
        self, prepared: Prepared | None, step: TrainingStep, data: Given, X: Any, classes: Any
    ) -> Any:
        """What predictions of a step mean; `X` are features in memory, all of the data or their head."""
        return None

    def _prepare(
        self, step: TrainingStep, meaning: Any, columns: dict[str, Any], data: Given, plan: Plan
    ) -> Run:
        """A training that can begin."""
        data.check_epochs(plan)
        seed = self._seed_for(plan)
        data = self._held_out(step, data, seed)
        weigh = self._weigher(data.X, data.y, step, meaning)
        reading = Reading(step, lambda y: self._encode(y, step, meaning), weigh)
        check_cache(self.cache_frozen, self.cache_bytes)
        loader = make_loader(
            reading, data, self.batch_size, self.shuffles, seed, self.pairs, self.m_per_class
        )
        if isinstance(data.X_val, Stream):
            data = dataclasses.replace(data, X_val=in_order(data.X_val, step.inputs[0].columns))
        if data.X_val is not None and "n_features_in_" in (columns or vars(self)):
            check_columns(self, data.X_val, step, self._takes_arrays(columns), columns)
        validation = make_validation(reading, data)
        if self.shuffle is None and self.pairs is None and self.m_per_class is None:
            _warn_of_mixing(step)
            _warn_of_strangers(step, loader)
        loader = self._frozen_apart(loader, step, plan, validation)
        shown = (sealed(data.X), sealed(data.y), sealed(data.X_val), sealed(data.y_val))
        run = Run(*shown, loader, validation, self._all_callbacks(plan), seed=seed)
        run.sample_weight, run.sample_weight_val = sealed(data.sample_weight), sealed(data.sample_weight_val)
        run.epochs = getattr(self, "n_iter_", 0) + plan
        run.on_the_way = ["loss", *(t.curve for t in step.targets if len(step.targets) > 1)]
        held_out = [] if validation is None else [f"val_{name}" for name in run.on_the_way]
        run.callbacks.prepare(run, run.on_the_way + held_out)
        if plan.resumed is not None:
            take_place(plan.resumed, self, step, run)
        return run

    def _frozen_apart(self, loader: Any, step: TrainingStep, plan: Plan, validation: Any) -> Any:
        """Batches with the frozen part of the model computed once, if that is wanted and possible."""
        if self.cache_frozen is False or (self.cache_frozen == "auto" and plan == 1):
            return loader  # of one epoch nothing is computed twice
        # With weights that joined in the last fit, training goes on as it did there.
        wanted = "auto" if step.recipe.joined else self.cache_frozen
        limit = int(min(self.cache_bytes, sys.maxsize))
        # Who measures otherwise may want the rows, which are not kept of a stream.
        arrays = isinstance(validation, ArrayValidation)
        held_out = validation if arrays or not self._measures_otherwise() else None
        if isinstance(loader, StreamLoader):
            folder = None if plan.resumed is None else plan.resumed.store.folder
            return FrozenStreamLoader(loader, step, wanted, limit, folder, held_out)
        return FrozenLoader(loader, step, wanted, limit, held_out)

    @abstractmethod
    def _measures_otherwise(self) -> bool:
        """Whether a subclass has a validation of its own."""

    def _seed_for(self, plan: Plan) -> int:
        """The seed of the order of rows: that of the training that goes on, else a new one."""
        known = self._seed if plan.saved is None else plan.saved.state["seed"]
        drawn = isinstance(self.random_state, (np.random.RandomState, np.random.Generator))
        if known is None or not drawn:  # what is no seed is refused all the same
            seed = draw_seed(self.random_state)
        return seed if known is None else known

    def _all_callbacks(self, plan: Plan) -> Callbacks:
        """The user's and those that parameters stand for; the checkpoint last, when all have their state."""
        shown: list[Callback] = []
        if self.verbose:
            shown.append(ProgressBar() if self.verbose == 1 else PrintLog())
        callbacks = Callbacks(self.callbacks, *shown)
        others = [c for c in callbacks.items if not isinstance(c, Checkpoint)]
        return Callbacks(others, *([] if plan.resumed is None else [plan.resumed.checkpoint]))

    def _held_out(self, step: TrainingStep, data: Given, seed: int) -> Given:
        """The data, part of them held out for validation if the parameters say so and there are none."""
        fraction = self.validation_fraction
        if fraction is not None:
            check_fraction(fraction)
        if self.pairs is not None and self.m_per_class is not None:
            raise InvalidParameterError("pairs and m_per_class both say which rows make a batch: give one.")
        if fraction is not None and self.pairs is not None and data.X_val is None:
            raise InvalidParameterError(
                "validation_fraction takes rows one by one, and pairs are to stay together: give X_val and "
                "y_val."
            )
        if fraction is None or data.X_val is not None or data.y_val is not None:
            return data
        if isinstance(data.X, Stream):
            kept, held = data.X.split(fraction, seed)
            return Given(kept, None, data.sample_weight, held)
        strata, axes, y = self._strata(data.y), step.data_axes(), ungrouped(data.y, step.expected)
        return Given(*hold_out(data.X, y, data.sample_weight, fraction, seed, strata, axes))

    def _strata(self, y: Any) -> np.ndarray | None:
        """What both parts of the data are to hold in the same shares."""
        return None

    def _adopt(self, begun: Begun, plan: Plan) -> None:
        """Everything was checked: training is about to begin with this step."""
        step = begun.step
        if not self.__sklearn_is_fitted__():
            self.history_, self.n_iter_ = {"loss": []}, 0
        elif step is self.step_:
            self._change(step, self._changed())
        if plan.saved is not None:
            self.n_iter_, self.history_ = plan.saved.state["n_iter"], plan.saved.state["history"]
        self.step_, self._seed, self._meaning = step, begun.run.seed, begun.meaning
        self._made_from = self._as_made()
        for name, value in {**begun.columns, **self._told_by(begun.meaning)}.items():
            setattr(self, name, value)

    def _change(self, step: TrainingStep, parameters: set[str]) -> None:
        """Make a step follow those of :attr:`_live_parameters` that were set since it was made."""


def _is_ours(thing: Any) -> bool:
    """Whether an object's class is one of this library."""
    return type(thing).__module__.partition(".")[0] == __name__.partition(".")[0]


def _warn_of_strangers(step: TrainingStep, loader: Any) -> None:
    """Say of losses that compare rows of a class that batches hardly have two of one."""
    for target in step.targets:
        if not target.loss.wants_partners or not isinstance(loader, OrtDataLoader):
            continue
        order = loader.order(0)
        labels = np.asarray(loader.arrays[target.output]).reshape(-1)
        share = alone(labels if order is None else labels[order], loader.batch_size)
        if share > 0.5:
            warn_user(
                f"The loss {target.loss!r} of output {target.output!r} compares rows of the same label, "
                f"and {share:.0%} of the rows are the only one of theirs in their batch: they teach nothing. "
                "m_per_class=2 brings so many rows of a label together, pairs=2 keeps rows that are behind "
                "each other in the data, and a larger batch_size has more of them.",
                RowsWarning,
            )


def _warn_of_mixing(step: TrainingStep) -> None:
    """Say of losses that depend on the order of the rows that nobody has said anything about that."""
    for target in step.targets:
        operator = step.recipe.mixing(target)
        if operator is not None:
            warn_user(
                f"The loss {target.loss!r} of output {target.output!r} mixes rows: by its {operator}, the "
                "loss of a row depends on the other rows of the batch, and each epoch takes the rows in "
                "another order. Say which is meant: pairs=2 keeps so many rows that are behind each other in "
                "one batch, shuffle=False keeps the order of the data, shuffle=True accepts other rows in "
                "every batch.",
                RowsWarning,
            )
