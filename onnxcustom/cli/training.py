"""One training from the command line: data and model in, an estimator, and what it leaves."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

from onnxcustom._text import count
from onnxcustom.data import Stream
from onnxcustom.data.columns import Plan
from onnxcustom.graph import load, save
from onnxcustom.graph import weights as graph_weights
from onnxcustom.graph.files.feature_names import write_feature_names
from onnxcustom.optim import Warmup
from onnxcustom.training.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    HistoryFile,
    LearningRate,
    PrintLog,
    ProgressBar,
    Score,
    TimeBudget,
)
from onnxcustom.training.checkpoints.checkpoint import CheckpointStore
from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor
from onnxcustom.tuning import Distillation

from .base import command_line, say
from .card import Card, write_card
from .errors import INTERRUPTED
from .last_good import LastGood
from .models import Model, of_file
from .outputs import replacing
from .phrases import parse_outputs, parse_value, split_names
from .rules import classifies, loss_name, make_loss, make_optimizer, make_penalty, make_schedule
from .scores import check_metrics
from .settings import Settings, check_groups, check_results
from .tables import Features, Table, checked_head, features_of, is_large, whole

__all__ = ["run_training"]

_NEVER = 1 << 62


def run_training(settings: Settings) -> int:
    """Train as the settings say; the exit code.

    Raises
    ------
    click.ClickException, OnnxCustomError, OSError
        What is wrong.
    """
    training = Training(settings)
    training.read()
    begin = time.monotonic()
    try:
        with _terminated_as_interrupted():
            training.fit()
    except KeyboardInterrupt:
        training.say_interrupted()
        return INTERRUPTED
    finally:
        if settings.partial_history is not None and training.failed:
            settings.partial_history.unlink(missing_ok=True)
    training.write(time.monotonic() - begin)
    return 0


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, which ends jobs of a cluster, do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Training:
    """A training that was asked for.

    Parameters
    ----------
    settings : Settings
        What was typed.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failed, self.begun = True, 0
        # Options first: what is wrong with them is said before anything is read.
        check_metrics(settings.metrics)
        check_groups(settings)
        self._head = settings.head if settings.head in (None, "auto") else parse_outputs(settings.head)
        loss = None if settings.loss is None else make_loss(settings.loss)
        self._loss_is_of_classes = None if loss is None else classifies(loss)
        self._loss = loss if settings.output_name is None else {settings.output_name: loss or "log_loss"}
        self._penalty = make_penalty(settings.penalty)
        rule = make_optimizer(settings.optimizer)
        rate = make_schedule(settings.schedule, settings.lr, settings.warmup, settings.epochs, rule)
        below = rate.schedule if isinstance(rate, Warmup) else rate
        #: What the schedule starts from.
        self._top = getattr(below, getattr(below, "base_field", ""), below)
        self._plateau = rate if (settings.schedule or "").partition(":")[0].lower() == "plateau" else None
        rate = rate.eta0 if self._plateau is not None else rate
        self._optimizer = make_optimizer(settings.optimizer, rate)
        self._held_out = settings.held_out

    # -- what there is ---------------------------------------------------------------------------------

    def read(self) -> None:
        """Read model and data, and make the estimator."""
        settings = self.settings
        self.model = Model(settings.model, settings.batch_axis)
        self.table = table = Table(settings.data)
        held = settings.validation if self._held_out is None else None
        self._other = None if held is None else Table(held)
        read = [*table.files(), *([] if self._other is None else self._other.files())]
        check_results(settings, read)
        self.target = split_names(settings.target, table.names)
        table.require(self.target, "--target")
        others = list(self.target)
        if settings.sample_weight is not None:
            table.require([settings.sample_weight], "--sample-weight")
            others.append(settings.sample_weight)
        self._pairs = self._of_pairs()
        others += [self._pairs] if isinstance(self._pairs, str) else []
        self.features = features_of(self.model, table, settings.columns, settings.inputs, others)
        rows = table.stream(self._plan(self.features))
        head = checked_head(self.model, table, self.features, rows)
        self.task, self.why = self._choose_task(head.y)
        self._streamed = self._reads_blocks(rows)
        if self._streamed and isinstance(self._pairs, str):
            raise click.UsageError(
                "--pairs COLUMN is for rows in memory: --no-stream keeps them there, and --pairs N is of "
                "rows behind each other in the file."
            )
        self._data = self._arguments(rows)
        self._add_validation()
        self.estimator = self._make()

    def _of_pairs(self) -> int | str | None:
        """A number of rows, or a column of the table."""
        text = self.settings.pairs
        if text is None or (text not in self.table.names and text.isdecimal()):
            return None if text is None else int(text)
        self.table.require([text], "--pairs")
        return text

    def _group(self) -> Any:
        """What says which rows belong together."""
        if not isinstance(self._pairs, str):
            return self._pairs
        rows = self.table.stream(Plan(self._pairs, self.features.names[:1]))
        return np.concatenate([np.asarray(block.y).reshape(-1) for block in rows.blocks()])

    def _plan(self, features: Features) -> Any:
        target: Any = self.target[0] if len(self.target) == 1 else self.target
        return features.plan(target, self.settings.sample_weight)

    def _choose_task(self, y: np.ndarray) -> tuple[str, str]:
        if self.settings.task != "auto":
            return self.settings.task, "as asked for"
        if self._loss_is_of_classes is not None:
            what = "classification" if self._loss_is_of_classes else "regression"
            return what, "the loss is one of " + ("labels" if self._loss_is_of_classes else "numbers")
        if y.dtype.kind in "OUSb":
            return "classification", f"{self.target[0]!r} holds labels"
        task, why = self.model.task
        if task == "classification" and y.dtype.kind == "f" and (y != np.floor(y)).any():
            return "regression", f"{self.target[0]!r} holds fractions"
        return task, why

    def _reads_blocks(self, rows: Stream) -> bool:
        """Whether the file is read in blocks: as asked for, or as file and model need it."""
        axes = self.model.axes
        outputs = (axes.of(str(v.name)) for v in self.model.prepared.graph.outputs)
        if all(axis == 0 for axis in (*axes.inputs.values(), *outputs)):
            return is_large(rows, self.table) if self.settings.stream is None else self.settings.stream
        if self.settings.stream is False:
            raise click.UsageError(
                "--no-stream is for models with the rows first in every input and output; those of this one "
                f"are elsewhere: {axes.inputs}."
            )
        return True

    def _arguments(self, rows: Stream) -> dict[str, Any]:
        """What ``fit`` is given."""
        if self._streamed:
            return {"X": rows}
        X, y, weights = whole(rows, self.model)
        made = {"X": X, "y": y}
        return made if weights is None else {**made, "sample_weight": weights}

    def _add_validation(self) -> None:
        if self._other is None:
            return
        self._other.require([*self.features.names, *self.target], "--validation")
        rows = self._other.stream(
            self.features.plan(self.target[0] if len(self.target) == 1 else self.target, None)
        )
        if self._streamed:
            self._data["X_val"] = rows
            return
        X, y, _ = whole(rows, self.model)
        self._data.update(X_val=X, y_val=y)

    # -- the estimator ---------------------------------------------------------------------------------

    def _make(self) -> Any:
        settings = self.settings
        names = list(graph_weights(self.model.proto)) if settings.weights or settings.freeze else []
        options: dict[str, Any] = {
            "weights_to_train": split_names(settings.weights, names) or None,
            "freeze": split_names(settings.freeze, names) or None,
            "loss": self._loss,
            "penalty": self._penalty,
            "optimizer": self._optimizer,
            "batch_size": settings.batch_size,
            "max_iter": settings.epochs,
            "shuffle": settings.shuffle,
            "random_state": settings.seed,
            "engine": settings.engine,
            "device": settings.device,
            "batch_axis": self.model.batch_axis or None,
            "batch_norm": settings.batch_norm,
            "dropout": settings.dropout,
            "cache_frozen": {"no": False, "yes": True}.get(settings.cache_frozen, settings.cache_frozen),
            "cache_bytes": settings.cache_bytes,
            "cache_dir": settings.cache_dir,
            "average": settings.average,
            "lora": settings.lora,
            "quantize": settings.quantize,
            "teacher": self._teacher(),
            "head": self._head,
            "pairs": self._group(),
            "m_per_class": settings.m_per_class,
            "threads": settings.threads,
            "callbacks": self._callbacks(),
            "validation_fraction": self._held_out,
        }
        if self.task == "regression":
            if settings.class_weight is not None:
                raise click.UsageError("--class-weight is for classification; this is regression.")
            if isinstance(self._loss, dict) and settings.loss is None:
                options["loss"] = dict.fromkeys(self._loss, "squared_error")
            return OnnxRegressor(self._given(), **options)
        return OnnxClassifier(self._given(), class_weight=self._class_weight(), **options)

    def _teacher(self) -> Distillation | None:
        settings = self.settings
        if settings.teacher is None:
            return None
        with of_file(settings.teacher):
            return Distillation(load(settings.teacher), settings.teacher_temperature, settings.teacher_alpha)

    def _given(self) -> Any:
        """The file of the model; the model itself where ``--columns`` says other names than it knows."""
        model = self.model
        if not model.columns or model.columns == self.features.columns:
            return str(self.settings.model)
        made = onnx.ModelProto()
        made.CopyFrom(model.proto)
        write_feature_names(made, self.features.columns)
        return made

    def _class_weight(self) -> Any:
        text = self.settings.class_weight
        if text is None or text == "balanced":
            return text
        made: dict[Any, float] = {}
        y = None if self._streamed else self._data["y"]
        of_text = y is not None and y.dtype.kind in "OUS"
        for part in split_names([text], []):
            label, equals, weight = part.rpartition("=")
            value = parse_value(weight)
            if not equals or isinstance(value, bool) or not isinstance(value, (int, float)):
                raise click.UsageError("--class-weight is balanced, or LABEL=WEIGHT,LABEL=WEIGHT.")
            made[label if of_text else parse_value(label)] = float(value)
        return made

    def _callbacks(self) -> list[Callback]:
        settings = self.settings
        made: list[Callback] = [Score(name) for name in settings.metrics]
        if self._plateau is not None:
            made.append(LearningRate(self._plateau, settings.monitor))
        if settings.early_stopping is not None:  # the epoch that ends it counts here, in patience it doesn't
            made.append(EarlyStopping(settings.monitor, patience=settings.early_stopping - 1))
        if settings.time_budget is not None:
            made.append(TimeBudget(settings.time_budget))
        if settings.nonfinite == "stop":
            made.append(LastGood())
        if settings.checkpoint is not None:
            # By the clock alone: epochs may be as short as a checkpoint takes, or as long as a day.
            every = settings.checkpoint_every
            made.append(Checkpoint(settings.checkpoint, epochs=_NEVER, seconds=every))
        if settings.partial_history is not None:
            made.append(HistoryFile(settings.partial_history))
        if not settings.quiet:
            made.append(_Begin(self))
            made.append(ProgressBar(file=sys.stderr) if sys.stderr.isatty() else PrintLog())
        return made

    # -- training --------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train."""
        with of_file(self.settings.model):
            self.estimator.fit(**self._data)
        self.failed = False

    def describe_data(self) -> str:
        """Which rows, from where, for what."""
        columns = self.features.columns
        parts = [f"{len(names)} -> {name!r}" for name, names in columns.items()]
        where = "read in blocks" if self._streamed else f"{len(_first(self._data['X'])):,} rows in memory"
        targets = ", ".join(map(repr, self.target))
        return f"{self.settings.data}: {where}; columns {'; '.join(parts)}; target {targets}"

    def describe_rate(self, now: float, done: int) -> str:
        """The learning rate, and where it goes."""
        text, (schedule, warmup) = f"learning rate {now:g}", (self.settings.schedule, self.settings.warmup)
        if schedule is None and not warmup:
            return text
        text += " now" if done else " at first"
        if warmup:
            text += f", rising to {self._top:g} over {count(warmup, 'epoch')}"
        if schedule is not None:
            text += f", {'then ' if warmup else ''}by {schedule}"
        return text if warmup or done or now == self._top else f"{text} from {self._top:g}"

    def say_interrupted(self) -> None:
        """Say what is left of a training that was interrupted, and how to go on."""
        folder = self.settings.checkpoint
        if folder is None:
            say("Interrupted. Nothing was saved: --checkpoint FOLDER keeps what is done.", err=True)
            return
        if not CheckpointStore(folder).paths():
            say(f"Interrupted before there was anything to save in {folder}.", err=True)
            return
        done = getattr(self.estimator, "n_iter_", 0)
        say(f"Interrupted after {count(done, 'epoch')}, saved in {folder}. To go on:", err=True)
        say(f"  {command_line()}", err=True)

    # -- results ---------------------------------------------------------------------------------------

    def write(self, seconds: float) -> None:
        """Write model, curves and history, and say what came out."""
        settings, estimator = self.settings, self.estimator
        trained = estimator.get_trained_onnx()
        write_card(trained, self._card())
        write_feature_names(trained, self.features.columns)
        save(trained, settings.trained)
        if not settings.quiet:
            best = next((c for c in estimator.callbacks_ if isinstance(c, EarlyStopping)), None)
            if sys.stderr.isatty() and estimator.stop_reason_ is not None:
                say(f"stopped: {estimator.stop_reason_}")
            say(self._summary(best, seconds))
            say(f"Model: {settings.trained}")
        if settings.plot is not None:
            from onnxcustom.plotting import plot_history

            with replacing(settings.plot) as path:
                plot_history(estimator.history_, path=path)
        if settings.history is not None and settings.partial_history is not None:
            self._finish_history(settings.partial_history, settings.history)
        if settings.quiet:
            return
        others = [str(p) for p in (settings.plot, settings.history) if p is not None]
        if others:
            say(f"Also: {', '.join(others)}")
        if settings.time_budget is not None and settings.checkpoint is not None and self._has_more():
            say(f"To go on: {command_line(*([] if settings.force else ['--force']))}")

    def _finish_history(self, partial: Path, history: Path) -> None:
        if not partial.exists():  # the training was through already
            recorder = next(c for c in self.estimator.callbacks_ if isinstance(c, HistoryFile))
            recorder.write(self.estimator)
        partial.replace(history)

    def _has_more(self) -> bool:
        return any(isinstance(c, TimeBudget) and c.used_up_ for c in self.estimator.callbacks_)

    def _summary(self, best: Any, seconds: float) -> str:
        estimator = self.estimator
        epoch = estimator.n_iter_
        of_best = best is not None and best.best_epoch_ is not None and best.restore_best
        if of_best:
            epoch = best.best_epoch_
        measured = [
            f"{name} {values[epoch - 1]:.5g}"
            for name, values in estimator.history_.items()
            if 0 < epoch <= len(values) and values[epoch - 1] == values[epoch - 1]
        ]
        now = f" ({estimator.n_iter_ - self.begun} of them now)" if self.begun else ""
        text = f"{count(estimator.n_iter_, 'epoch')}{now} in {_duration(seconds)}"
        if of_best and epoch != estimator.n_iter_:
            text += f"; weights of epoch {epoch}, the best"
        good = next((c.told_ for c in estimator.callbacks_ if isinstance(c, LastGood)), "")
        if good and not of_best:
            text += f"; diverged, {good}"
        return f"{text}: {', '.join(measured)}" if measured else text

    def _card(self) -> Card:
        estimator = self.estimator
        target = estimator.step_.targets[0]
        output = target.output
        columns = {name: list(names) for name, names in self.features.columns.items()}
        axes = self.model.batch_axis
        if self.task == "regression":
            return Card("regression", columns, self.target, output, batch_axis=axes)
        return Card(
            "classification",
            columns,
            self.target,
            output,
            estimator.classes_.tolist(),
            estimator.decision.link,
            estimator.decision.multilabel,
            axes,
            # Of one label a row the axis beside that of the rows is the only one.
            target.axis if target.shape is None or len(target.shape) > 2 or target.rows is None else None,
        )


class _Begin(Callback):
    """Say what is about to be trained, and where a training goes on."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def on_train_begin(self, trainer: Any) -> None:
        """Print it."""
        training, step = self._training, trainer.step_
        weights = step.weights()
        numbers = sum(w.size for w in weights.values())
        settings = training.settings
        say(f"{settings.model}: {training.task} ({training.why}), loss {loss_name(step.targets[0].loss)}")
        say(training.describe_data())
        say(
            f"{count(len(weights), 'weight')} of {count(numbers, 'number')}; optimizer "
            f"{settings.optimizer}, {training.describe_rate(step.optimizer.value, trainer.n_iter_)}; engine "
            f"{step.engine.name} on {step.device.name}"
        )
        training.begun = trainer.n_iter_
        folder = training.settings.checkpoint
        if trainer.run.stop_reason is not None or trainer.n_iter_ >= trainer.run.epochs:
            why = trainer.run.stop_reason or f"{count(trainer.n_iter_, 'epoch')} are done"
            say(f"The training in {folder} is through: {why}")
        elif trainer.n_iter_ or trainer.run.batches:
            place = f"epoch {trainer.n_iter_ + 1}" + (", within it" if trainer.run.batches else "")
            say(f"Going on from {folder} at {place}")


def _first(X: Any) -> Any:
    return next(iter(X.values())) if isinstance(X, dict) else X


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
