"""What the caller may overwrite between calls is not read again; what is handed out is not overwritten."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.data import stream
from onnxcustom.data.owned import owned
from onnxcustom.exceptions import CallOrderError
from onnxcustom.feed.batch_buffers import Batch
from onnxcustom.optim import Adam, ReduceOnPlateau
from onnxcustom.training import beginning
from onnxcustom.training.callbacks import Callback, EarlyStopping, HistoryFile, LearningRate, Score

from .memory_cases import (
    SUBJECTS,
    Call,
    Subject,
    data_for,
    mlp,
    numbers,
    overwrite,
    same,
    snapshot,
    weighted_rows,
)

pytest.importorskip("onnxruntime")

CASES = [
    pytest.param(subject, maker, name, id=f"{subject.cls.__name__}-{maker}-{name}")
    for subject in SUBJECTS
    for k, maker in enumerate(subject.makers)
    for name in subject.calls
    if k == 0 or not subject.some or name in subject.some
]


def of_table(given: dict[str, Any], maker: str) -> dict[str, Any]:
    """Features that are indices, where the model wants them."""
    if maker in ("table", "lazy") and "X" in given:
        given["X"] = np.arange(12, dtype=np.int64)
    return given


def seen(subject: Subject, maker: str, name: str, overwriting: bool) -> list[Any]:
    """What a call and later ones return, whether or not everything is overwritten in between."""
    call: Call = subject.calls[name]
    thing, given = subject.makers[maker](), of_table(call.given(), maker)
    result = call.make(thing, name, given)
    made = [snapshot(result)]
    if overwriting:
        overwrite(given)
        overwrite(result)
    made.append(subject.probe(thing))
    made.append(snapshot(call.make(thing, name, of_table(call.given(), maker))))
    if not overwriting:
        same(snapshot(result), made[0])  # no later call wrote into it
    return made


@pytest.mark.parametrize(("subject", "maker", "name"), CASES)
def test_nothing_is_borrowed(subject: Subject, maker: str, name: str) -> None:
    same(seen(subject, maker, name, False), seen(subject, maker, name, True))


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.cls.__name__)
def test_every_public_call_is_there(subject: Subject) -> None:
    public = {name for name in dir(subject.cls) if not name.startswith("_")}
    called = {name for name in subject.calls if not name.startswith("__")}
    assert public == called | subject.without_arrays


# -- while it trains -------------------------------------------------------------------------------


class Watcher(Callback):
    """Calls a function at every moment."""

    def __init__(self, function: Callable[[Any, Any], None]) -> None:
        self.function = function

    def on_train_begin(self, trainer: Any) -> None:
        self.function(trainer, None)

    def on_epoch_begin(self, trainer: Any) -> None:
        self.function(trainer, None)

    def on_epoch_end(self, trainer: Any) -> None:
        self.function(trainer, None)

    def on_batch_begin(self, trainer: Any, batch: Any) -> None:
        self.function(trainer, batch)

    def on_batch_end(self, trainer: Any, batch: Any, loss: float) -> None:
        self.function(trainer, batch)


def rows_of_kind(kind: str, labels: bool) -> dict[str, Any]:
    """The same data in several forms."""
    data = data_for(labels, 1, validated=True)
    if kind == "float64":
        data = {name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in data.items()}
    elif kind == "by name":
        data.update(X={"x": data["X"]}, X_val={"x": data["X_val"]})
    elif kind == "lists":
        data = {name: list(a) for name, a in data.items()}
    elif kind in ("pandas", "sparse"):
        package = pytest.importorskip("pandas" if kind == "pandas" else "scipy.sparse")
        make = package.DataFrame if kind == "pandas" else package.csr_array
        data.update(X=make(data["X"]), X_val=make(data["X_val"]))
    elif kind in ("stream", "batches"):
        parts = [tuple(data.pop(n) for n in names) for names in (list(data)[:3], list(data)[3:])]
        data["X"], data["X_val"] = map(stream, parts) if kind == "stream" else map(Reused, parts)
    return data


class Reused:
    """Batches that are all made in the same memory."""

    def __init__(self, arrays: tuple[np.ndarray, ...], size: int = 3) -> None:
        self.arrays, self.size = arrays, size

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        buffers = tuple(np.empty_like(a[: self.size]) for a in self.arrays)
        for start in range(0, len(self.arrays[0]), self.size):
            for buffer, array in zip(buffers, self.arrays, strict=True):
                buffer[...] = array[start : start + self.size]
            yield buffers
            overwrite(buffers)


def everything(data: dict[str, Any]) -> list[Any]:
    """The arrays of data in any form that somebody may write to."""
    found = []
    for part in data.values():
        frame = hasattr(part, "columns")
        found.append([part[c].to_numpy() for c in part.columns] if frame else part)
    return found


@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("cls", [OnnxRegressor, OnnxClassifier])
@pytest.mark.parametrize(
    "kind", ["float32", "float64", "by name", "lists", "pandas", "sparse", "stream", "batches"]
)
def test_overwriting_while_it_trains(kind: str, cls: type, shuffle: bool) -> None:
    def trained(function: Callable[[Any, Any], None], data: dict[str, Any]) -> Any:
        net = cls(
            mlp(), batch_size=5, max_iter=3, random_state=0, shuffle=shuffle, callbacks=Watcher(function)
        )
        net.fit(**data)
        return [snapshot(net.weights_), snapshot(net.history_)]

    data, shown = rows_of_kind(kind, cls is OnnxClassifier), []
    if kind in ("stream", "batches"):
        given: list[Any] = []
    else:
        given = everything(data)

    def poison(trainer: Any, batch: Any) -> None:
        overwrite(given)
        overwrite(trainer.run.X if isinstance(trainer.run.X, np.ndarray) else None)
        overwrite([trainer.weights_, trainer.step_.state(), trainer.checkpoint_state()])
        if batch is not None:
            shown.append((batch.values, snapshot(batch.values)))
            if len(shown) % 2:
                overwrite(batch.values)
                shown.pop()

    same(
        trained(lambda trainer, batch: None, rows_of_kind(kind, cls is OnnxClassifier)), trained(poison, data)
    )
    for values, before in shown:  # what a callback keeps stays what it was
        same(snapshot(values), before)


def test_states_of_callbacks_are_copies(tmp_path: Path) -> None:
    """Those of this library keep weights and numbers; a checkpoint holds them."""

    def trained(name: str, function: Callable[[Any, Any], None]) -> Any:
        watchers = [
            EarlyStopping("val_loss", patience=1),
            Score("r2", on="both"),
            HistoryFile(tmp_path / f"{name}.json"),
            LearningRate(ReduceOnPlateau(0.3, patience=0)),
            Watcher(function),
        ]
        options = {"callbacks": watchers, "checkpoint_dir": tmp_path / name, "learning_rate": 0.5}
        net = OnnxRegressor(mlp(), batch_size=12, max_iter=6, random_state=0, **options)
        net.fit(**data_for(False, 1, validated=True))
        return [snapshot(net.weights_), snapshot(net.history_), net.stop_reason_]

    def poison(trainer: Any, batch: Any) -> None:
        for callback in trainer.callbacks_:
            state = callback.state_dict()
            callback.load_state_dict(trainer, state)
            overwrite([state, callback.state_dict()])
        overwrite(trainer.checkpoint_state())

    plain = trained("plain", lambda trainer, batch: None)
    assert plain[2] is not None
    same(plain, trained("poisoned", poison))


def test_a_batch_that_was_not_looked_at_is_gone() -> None:
    kept: list[Any] = []
    net = OnnxRegressor(mlp(), batch_size=5, callbacks=Watcher(lambda trainer, batch: kept.append(batch)))
    net.fit(**weighted_rows())
    batches = [batch for batch in kept if batch is not None]
    assert [batch.rows for batch in batches[:6]] == [5, 5, 5, 5, 2, 2]
    with pytest.raises(CallOrderError, match=r"read batch\.values in on_batch_begin"):
        _ = batches[0].values


def test_train_step_gets_batches_of_its_own() -> None:
    class Changing(OnnxRegressor):
        def train_step(self, batch: Batch) -> float:
            loss = super().train_step(batch)
            self.kept = [*getattr(self, "kept", []), (batch, snapshot(batch.values))]
            return loss

    class Overwriting(OnnxRegressor):
        def train_step(self, batch: Batch) -> float:
            loss = super().train_step(batch)
            overwrite(batch.values)
            return loss

    nets = [
        cls(mlp(), batch_size=5, max_iter=3, random_state=0) for cls in (Changing, Overwriting, OnnxRegressor)
    ]
    for net in nets:
        net.fit(**weighted_rows())
        same(snapshot(net.weights_), snapshot(nets[0].weights_))
    for batch, before in nets[0].kept:
        same(snapshot(batch.values), before)


def test_what_is_large_is_copied_where_somebody_may_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcustom.data.owned._LARGE", 100)
    shared: dict[str, bool] = {}

    class Looking(OnnxRegressor):
        def run_epoch(self, loader: Any) -> float:
            shared["overridden"] = np.shares_memory(loader.arrays["x"], data["X"])
            return super().run_epoch(loader)

    data = weighted_rows()
    Looking(mlp(), batch_size=5, max_iter=1).fit(**data)
    for name, callbacks in {"watched": [lambda trainer: None], "alone": None}.items():
        net = OnnxRegressor(mlp(), batch_size=5, max_iter=1, callbacks=callbacks)
        taken: list[Any] = []

        def kept(*given: Any, taken: list[Any] = taken, make: Any = beginning.make_loader) -> Any:
            taken.append(make(*given))
            return taken[0]

        with monkeypatch.context() as patch:
            patch.setattr(beginning, "make_loader", kept)
            net.fit(**data)
        shared[name] = np.shares_memory(taken[0].arrays["x"], data["X"])
    assert shared == {"overridden": False, "watched": False, "alone": True}


# -- batches in one memory -------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("options", [{}, {"block_rows": 3}, {"block_rows": 5}, {"shuffle_rows": 0}], ids=str)
def test_batches_made_in_the_same_memory(options: dict[str, int], prefetch: int) -> None:
    arrays = tuple(weighted_rows().values())

    def rows(source: Any, shuffle: bool) -> list[Any]:
        made = stream(source, prefetch=prefetch, **options)
        return [snapshot(block) for block in made.blocks(1, shuffle=shuffle, rows=6, multiple=3)]

    batches = [copy.deepcopy(batch) for batch in Reused(arrays)]
    assert len(batches) == 4
    for shuffle in (False, True):
        expected = rows(batches, shuffle)
        same(rows(Reused(arrays), shuffle), expected)
        same(rows(iter(Reused(arrays)), shuffle), expected)
    once = stream(iter(Reused(arrays)), prefetch=prefetch)
    same(snapshot(once.head(3)), snapshot(stream(batches).head(3)))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_on_one_buffer_is_the_step_on_many(accumulate: int) -> None:
    """As a program would that receives its batches: one set of arrays, filled again and again."""
    one, many = (TrainingStep(mlp(), optimizer=Adam(0.1, accumulate=accumulate)) for _ in range(2))
    X, y = numbers(6, 3), numbers(6, 2)
    for seed in range(10):
        X[...], y[...] = numbers(6, 3, seed=seed), numbers(6, 2, seed=seed + 50)
        losses = one.run(X, y), many.run(X.copy(), y.copy())
        assert losses[0] == losses[1]
        overwrite([X, y])
    same(snapshot(one.state_dict()), snapshot(many.state_dict()))


def test_tensors_of_pytorch_are_copied_without_a_warning() -> None:
    torch = pytest.importorskip("torch")
    given = torch.zeros(3)
    own = owned(given)
    given[:] = 1
    np.testing.assert_array_equal(own, np.zeros(3, np.float32))
