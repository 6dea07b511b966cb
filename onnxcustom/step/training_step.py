"""One training step as one ONNX graph, run through IO binding on double-buffered weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcustom._parameters import check_flag, check_number, own_parameters
from onnxcustom.exceptions import EvaluationError, InvalidDataError
from onnxcustom.feed.specs import rows_of
from onnxcustom.feed.validation import as_targets
from onnxcustom.graph import Selection
from onnxcustom.optim import select_optimizer
from onnxcustom.optim.averaging import select_average
from onnxcustom.runtime import parse_device, to_ortvalue
from onnxcustom.tuning.selection import select_changes

from .built import BuiltSteps, prepared_by
from .counting import Counting
from .fed import FedStep
from .feeds import check_values, settled_by_shapes
from .frozen import Halves, NoFrozenPartError
from .frozen_rows import CacheSettings, FrozenRows, check_cache, refuse
from .modes import ModeSettings
from .plan import Origin
from .recipe import make_recipe
from .repeated import Repeated
from .state import State
from .window import Window

__all__ = ["TrainingStep"]


class TrainingStep(FedStep):
    r"""Forward, loss, penalty, backward and weight update of a model, in one run of one graph.

    The objective of a step is :math:`\frac{1}{n} \sum_i w_i \ell_i + penalty` over the n rows of
    the batch; where a cross-entropy has several labels a row (tokens, pixels), over the n labels.
    Rows are where the symbolic dimension is that most inputs begin with, wherever a tensor has it.
    Weights and optimizer state live on the device in two sets of buffers: a run reads one and writes
    the other, so nothing is copied between steps.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto, onnx_ir.Model or Prepared
        Inference model to train. It is not modified.
    loss : str, BaseLearningLoss, ONNX model, callable, dict or list, default='squared_error'
        Loss of the model's first floating-point output, or a dict from output name to loss; or a list with
        one for each output in order, None for those that are not trained. A key of a dict may be a tuple of
        outputs that one loss is taken on. A model that gives out the place of the largest score alone has
        its loss on the scores.
    optimizer : str or BaseLearningRate, default='sgd'
        Update rule.
    weights : str or list of str, optional
        Weights to train, by default everything :func:`onnxcustom.weights` finds: names, patterns, or
        words such as ``'last:2'`` and ``'biases'`` (:func:`onnxcustom.graph.select_weights`).
    penalty : str, BaseLearningPenalty or dict, optional
        Penalty on every weight, or a dict from weight name to penalty.
    engine : {'auto', 'ort', 'onnx'}, default='auto'
        Gradient engine.
    device : str, default='cpu'
        ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
    learning_rate : float, schedule or BaseLearningRate, optional
        Overrides the optimizer's learning rate; None keeps it.
    loss_weights : dict of str to float, or list of float, optional
        Factors of the losses, by output name or in their order; 1 by default.
    sample_weight : bool, default=False
        Whether :attr:`model` takes one weight per row. :meth:`run` accepts weights either way; the
        weighted graph is built when it first sees some.
    threads : int, optional
        Threads of onnxruntime, by default every processor this process may use.
    batch_norm : {'frozen', 'update'}, default='frozen'
        Whether BatchNormalization goes by the model's own statistics, or by those of the batch,
        towards which the model's move.
    dropout : {'off', 'on'}, default='off'
        Whether Dropout drops, by masks that are a function of (seed, step).
        One behind a Softmax or Sigmoid whose scores the loss is taken on has no part in the loss.
    seed : int, default=0
        Seed of the masks.
    freeze : str or list of str, optional
        What is left out of `weights`, said in the same way. Frozen weights are constants of the graph:
        no gradient is computed for them, nor for what is needed for them alone.
    passes : bool, default=True
        Whether the graph is rewritten to run faster: learning rate and updates go into the products of
        matrices that gradients come from, and small weights are updated together. Results differ in
        rounding only.
    recompute : bool, default=False
        Whether activations that are cheap to compute are computed again where the backward pass needs
        them, rather than kept: less memory, more time.
    batch_axis : dict of str to int or None, optional
        Where the rows of an input or output are, by name, if that is not what the model's dimensions say;
        None for a tensor without rows: such an input is given once a batch, such an output is one row.
    sess_options : onnxruntime.SessionOptions, optional
        Settings of the session that trains, used as they are, in place of `threads` and of those that
        the documentation explains under "Speed and memory". Pickles keep all but entries of its
        configuration, which onnxruntime does not list.
    average : {None, 'ema'} or tuning.Average, optional
        Moving average of the weights, taken after every update: it is what predictions, losses of
        :meth:`scores` and :meth:`trained_model` go by, while training goes on with the weights themselves.
        :class:`onnxcustom.tuning.Average` says how; ``'ema:decay=0.99,start=100'`` does in text.
    lora : None, int, str or tuning.LoRA, optional
        Adapters beside frozen weights, of that rank: they alone are trained, unless `weights` says otherwise.
        :class:`onnxcustom.tuning.LoRA` says how; ``'lora:rank=8,targets=attention'`` does in text.
    quantize : None, str or tuning.Quantization, optional
        Weights and what is computed are rounded to integers in training, ``'int8'`` or ``'int4'``, and the
        trained model holds those. :class:`onnxcustom.tuning.Quantization` says how. Ranges are measured on
        the first batch, unless :meth:`calibrate` was given rows.
    teacher : None, model or tuning.Distillation, optional
        A model of the same outputs that this one learns from, beside the expected values.
        :class:`onnxcustom.tuning.Distillation` says how.
    cache_frozen : bool or 'auto', default=False
        Whether :meth:`run` keeps what lies before the first trained weight for every row, and finds it again
        by the content of the row. True is an error where that is not possible; ``'auto'`` goes without.
    cache_bytes : int, default=2**30
        Bytes that may be kept.
    cache_dir : path, optional
        Folder in which the prepared model and the graphs are kept, so that the next process which trains
        this model in this way neither prepares nor differentiates it. Entries are found by the model with its
        weights, what is trained and how, and the versions of packages; damaged ones are built anew with a
        warning, and 2 GiB of those used last are kept. Several processes may share a folder. Graphs with
        losses or gradient rules of your own are not kept.

    Attributes
    ----------
    iteration : int
        Number of weight updates done.
    skipped : int
        Number of batches left out because a gradient was not finite (``skip_nonfinite``).
    optimizer : BaseLearningRate
        The update rule, with the clock of this step: what is asked or set there is asked or set here.

    Raises
    ------
    InvalidModelError, UnknownNameError, NoTrainableWeightError, DifferentiationError, ProviderError
        Before anything is built: what is wrong, and where.
    ValueError, TypeError
        A learning rate, a factor of a loss, a seed or a number of threads that is none.

    Examples
    --------
    >>> import numpy as np, onnx
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... line (float[N,1] x) => (float[N,1] y) <float[1,1] w = {0}> { y = MatMul(x, w) }''')
    >>> step = TrainingStep(model, "squared_error", "sgd", learning_rate=0.5)
    >>> x = np.array([[1], [-1]], dtype=np.float32)
    >>> step.run(x, 3 * x)
    4.5
    >>> step.weights()
    {'w': array([[1.5]], dtype=float32)}
    """

    def __init__(
        self,
        model: Any,
        loss: Any = "squared_error",
        optimizer: Any = "sgd",
        weights: Selection = None,
        penalty: Any = None,
        engine: str = "auto",
        device: Any = "cpu",
        *,
        learning_rate: Any = None,
        loss_weights: Mapping[str, float] | Sequence[float] | None = None,
        sample_weight: bool = False,
        threads: int | None = None,
        batch_norm: str = "frozen",
        dropout: str = "off",
        seed: int = 0,
        freeze: Selection = None,
        passes: bool = True,
        recompute: bool = False,
        batch_axis: Mapping[str, int | None] | None = None,
        sess_options: Any = None,
        average: Any = None,
        lora: Any = None,
        quantize: Any = None,
        teacher: Any = None,
        cache_frozen: Any = False,
        cache_bytes: float = 2**30,
        cache_dir: Any = None,
    ) -> None:
        if threads is not None:
            check_number("threads", threads, "[1, inf)", integral=True)
        for name, value in {"sample_weight": sample_weight, "passes": passes, "recompute": recompute}.items():
            check_flag(name, value)
        self.device = parse_device(device)
        self.threads = threads
        self._sess_options = sess_options
        built = None if cache_dir is None else BuiltSteps(cache_dir)
        modes, origin = ModeSettings(batch_norm, dropout), Origin(seed=seed)
        recipe, first = make_recipe(
            prepared_by(built, model),
            own_parameters(loss),
            select_optimizer(optimizer, learning_rate).formula(),
            engine,
            weights=weights,
            freeze=freeze,
            penalty=own_parameters(penalty),
            loss_weights=loss_weights,
            batch_axis=batch_axis,
            changes=select_changes(lora, quantize, teacher),
            modes=modes,
            passes=bool(passes),
            recompute=bool(recompute),
            average=select_average(average),
            weighted=bool(sample_weight),
            host=self.device.type == "cpu",
            built=built,
        )
        check_cache(cache_frozen, cache_bytes)
        self._cache = CacheSettings(cache_frozen, cache_bytes)
        self._set_up(recipe, State.begin(recipe, self.device, first, origin))

    # -- training ------------------------------------------------------------------------------

    def run(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Do one step on one batch.

        Parameters
        ----------
        X : array_like of shape (n, ...) or dict of str to array_like
            Batch; a dict when the model has several inputs.
        y : array_like of shape (n, ...) or dict of str to array_like
            Expected values; a dict when there are several losses.
        sample_weight : array_like of shape (n,), optional
            One weight per row; or, where a cross-entropy has several labels a row, one per label.

        Returns
        -------
        float
            The objective before the update.

        Raises
        ------
        InvalidDataError
            The batch does not fit the model.
        ConvergenceError
            The objective is not finite; the weights stay as they were.
        """
        if self._repeated is not None and sample_weight is None:
            batch = self._repeated.values(X, y)
            if batch is not None:
                return self.run_checked(*batch)
        feeds = self.feeds(X, y, sample_weight)
        known = self._frozen_rows(feeds) if self._cache.wanted is not False else None
        if known is None:
            if sample_weight is None and self.device.type == "cpu":
                self._repeated = Repeated.of(self._recipe, X, y, feeds)
            return self.run_checked([to_ortvalue(v, self.device) for v in feeds.values()])
        inputs = {spec.name: feeds.pop(spec.name) for spec in self.inputs}
        values = [*known.values(inputs, self.inputs), *feeds.values()]
        return self.run_half(known.halves, [to_ortvalue(v, self.device) for v in values])

    def _frozen_rows(self, feeds: Mapping[str, np.ndarray]) -> FrozenRows | None:
        """What is known of rows that went through the frozen part; None if there is none."""
        shapes = tuple(feeds[spec.name].shape[1:] for spec in self.inputs)
        if self._known is None or self._known[0] != shapes:
            made = None
            try:
                halves = self.halves({spec.name: feeds[spec.name] for spec in self.inputs})
                made = FrozenRows(halves, self._cache.limit)
            except NoFrozenPartError as exc:
                refuse(self._cache.wanted, exc)
            self._known = shapes, made
        return self._known[1]

    def run_batch(self, values: Sequence[Any], by_rows: bool = False) -> float:
        """Do one step on OrtValues that fit: inputs, expected values, and weights of the rows if any.

        An optimizer that accumulates gradients updates the weights at every so many calls.

        Parameters
        ----------
        values : sequence of OrtValue
            The batch.
        by_rows : bool, default=False
            Whether it is known that each row has one label that counts, so that none have to be counted.

        Raises
        ------
        InvalidDataError
            There are more or fewer values than the step reads, other things than OrtValues, or expected
            values of another number of rows than the inputs have.
        ConvergenceError
            As for :meth:`run`.
        """
        return self.run_checked(values, by_rows, rows_known=False)

    def run_checked(self, values: Sequence[Any], by_rows: bool = False, rows_known: bool = True) -> float:
        """:meth:`run_batch` of values that are known to be of the same rows: a loader has checked them."""
        try:
            self._check_calibrated()
            if not self._recipe.settled:
                self._retarget(settled_by_shapes(self._recipe, [tuple(v.shape()) for v in values]))
            self._last = self._runs
            if not rows_known:
                self._last.check_rows(values)
            return self._last.batch(values, by_rows)
        except (TypeError, AttributeError, KeyError, EvaluationError):
            check_values(values)  # only now: looking costs as much as a small step
            raise

    def halves(self, arrays: Mapping[str, np.ndarray]) -> Halves:
        """The step with its frozen part apart, which need not run again for the same rows.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            The first rows of the data, by input: what :attr:`inputs` want.

        Raises
        ------
        NoFrozenPartError
            There is nothing that could be computed once; why.
        """
        key = tuple((name, array.shape, array.dtype) for name, array in arrays.items())
        if key not in self._halves:
            settings = (self.threads, self._sess_options)
            self._halves = {key: Halves(self._recipe, self._state, self._optimizer, settings, arrays)}
        return self._halves[key]

    def run_half(self, halves: Halves, values: Sequence[Any]) -> float:
        """:meth:`run_batch` of what the frozen half has made of a batch, in place of the model's inputs."""
        self._last = halves.runs
        return self._last.batch(values)

    def announce(self, *expected: Any) -> None:
        """Say of which batches the next update is, where losses of several outputs count differently.

        With an optimizer that accumulates, each loss is then divided by what it counts in all of them: the
        update is that of one batch of all their rows. They have to follow; an update comes with as many as
        ``accumulate`` says, or with :meth:`apply_accumulated` after fewer.

        Parameters
        ----------
        *expected
            Expected values of each batch to come, as :meth:`run` takes them.

        Raises
        ------
        InvalidDataError
            None, more than the optimizer accumulates, or some batches were accumulated before.
        """
        wanted = []
        for y in expected:
            arrays = as_targets(y, self.expected, None)
            wanted.append([*self.counts(arrays, rows_of(arrays, self.expected)).values()])
        self._announce(wanted)

    def announce_batches(self, batches: Sequence[tuple[Sequence[Any], int]]) -> None:
        """:meth:`announce` batches as :meth:`run_batch` takes them, and the rows of each."""
        counting, first = Counting(self._recipe.targets), len(self._recipe.inputs)
        self._announce([counting.of(lambda i, v=v: v[first + i].numpy(), n)[0] for v, n in batches])  # type: ignore[misc]

    @property
    def announced(self) -> int:
        """Number of batches that were announced and are still to come."""
        window = self._state.position.window
        return 0 if window is None else window.batches - window.seen

    def _announce(self, counts: Sequence[Sequence[int]]) -> None:
        """:meth:`announce` what losses count in each batch."""
        accumulate = self._recipe.rule.accumulate
        if not 0 < len(counts) <= accumulate:
            raise InvalidDataError(
                f"{len(counts)} batches are announced, and an update is of 1 to {accumulate}, as accumulate "
                "of the optimizer says."
            )
        if self.pending or self._state.position.window is not None:
            raise InvalidDataError(
                f"{self.pending} batches are accumulated already: call apply_accumulated() or "
                "forget_accumulated() before others are announced."
            )
        self._state.count(window=Window.of(counts))

    def forget_accumulated(self) -> None:
        """Leave out what was accumulated since the last update, and what was announced."""
        self._state.forget_accumulated()

    def apply_accumulated(self) -> bool:
        """Update the weights by what is accumulated, though it is of fewer batches than ``accumulate`` says.

        Returns
        -------
        bool
            Whether there was anything.

        Raises
        ------
        ConvergenceError
            The update is not finite; the weights stay as they were.
        """
        return self._runs.apply()

    @property
    def head_losses(self) -> dict[str, float]:
        """Loss of every output in the last step, by name and without its factor, if several are trained."""
        return self._last.head_losses

    @property
    def head_units(self) -> dict[str, int]:
        """What the loss of every output was a mean over in the last step: rows of the batch, or labels.

        Empty for a single loss that is a mean over the rows.
        """
        return self._last.head_units
