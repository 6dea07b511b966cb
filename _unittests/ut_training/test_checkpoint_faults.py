"""A folder of checkpoints that cannot be used, that fills up, or that is gone while training runs."""

import errno
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from onnxcustom.exceptions import CheckpointError
from onnxcustom.training.callbacks import Callback, Checkpoint
from onnxcustom.training.checkpoints.checkpoint import CheckpointStore
from onnxcustom.training.checkpoints.folder_lock import LOCK_FILE
from onnxcustom.training.estimators import OnnxRegressor

pytest.importorskip("onnxruntime")


def data():
    X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    return X, (X @ [1.0, 2.0, 3.0]).astype(np.float32)


class AtEpoch(Callback):
    """Does something before the checkpoint after an epoch."""

    def __init__(self, epoch, action):
        self.epoch, self.action = epoch, action

    def on_epoch_end(self, trainer):
        if trainer.n_iter_ == self.epoch:
            self.action()


@pytest.fixture
def make(mlp_model):
    def made(folder, *callbacks, **options):
        options = {"learning_rate": 0.05, "batch_size": 5, "max_iter": 4, "random_state": 0, **options}
        more = [] if folder is None else [Checkpoint(folder)]
        return OnnxRegressor(mlp_model([3, 4, 1]), callbacks=[*callbacks, *more], **options)

    return made


def same(one, other):
    for name, array in one.weights_.items():
        np.testing.assert_array_equal(array, other.weights_[name])


def failing(monkeypatch, function, number, matches, until=10**9):
    """Let a function of the system fail on some paths, the first calls of it at least; count the failures."""
    original, failed = getattr(os, function), []

    def fails(path, *args, **kwargs):
        if matches(str(path)) and len(failed) < until:
            failed.append(str(path))
            raise OSError(number, os.strerror(number), str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, function, fails)
    return failed


# -- no room -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("function", ["open", "mkdir"])
def test_no_room_for_the_folder_or_its_lock(make, monkeypatch, tmp_path, number, function):
    X, y = data()
    alone = make(None).fit(X, y)
    folder = tmp_path / "run"
    failed = failing(monkeypatch, function, number, lambda p: p.startswith(str(folder)))
    with pytest.warns(RuntimeWarning, match="No checkpoint was written"):
        same(make(folder).fit(X, y), alone)
    assert len(failed) == 6  # at the beginning, after each epoch, at the end
    assert not folder.exists() or not CheckpointStore(folder).paths()


def test_room_that_is_made_later(make, monkeypatch, tmp_path):
    X, y = data()
    alone = make(None).fit(X, y)
    failing(monkeypatch, "open", errno.ENOSPC, lambda p: p.endswith(LOCK_FILE), until=2)
    with pytest.warns(RuntimeWarning, match="No checkpoint was written"):
        same(make(tmp_path).fit(X, y), alone)
    monkeypatch.undo()
    assert [p.name for p in CheckpointStore(tmp_path).paths()] == ["00000001", "00000002", "00000003"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(make(tmp_path).fit(X, y), alone)


def test_without_room_a_run_is_resumed_all_the_same(make, monkeypatch, tmp_path):
    X, y = data()
    alone = make(None, max_iter=6).fit(X, y)
    make(tmp_path).fit(X, y)
    seen = []
    failing(monkeypatch, "open", errno.ENOSPC, lambda p: p.endswith(LOCK_FILE))
    with pytest.warns(RuntimeWarning, match="No checkpoint was written"):
        resumed = make(tmp_path, AtEpoch(1, lambda: seen.append(1)), max_iter=6).fit(X, y)
    same(resumed, alone)
    assert not seen


# -- a folder that is of no use ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO, errno.ENAMETOOLONG])
@pytest.mark.parametrize("function", ["open", "mkdir", "stat", "scandir"])
def test_a_folder_that_cannot_be_used_is_an_error_before_training(
    make, monkeypatch, tmp_path, number, function
):
    X, y = data()
    folder = tmp_path / "run"
    if function == "scandir":
        folder.mkdir()
    regressor = make(folder, AtEpoch(1, lambda: pytest.fail("trained")))
    failed = failing(monkeypatch, function, number, lambda p: p.startswith(str(folder)))
    with pytest.raises(CheckpointError, match="run") as caught:
        regressor.fit(X, y)
    assert isinstance(caught.value.__cause__, OSError)
    assert failed
    assert not hasattr(regressor, "step_")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_folder_that_is_read_only(make, tmp_path):
    X, y = data()
    folder = tmp_path / "run"
    folder.mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="cannot be used for checkpoints"):
        make(folder).fit(X, y)


@pytest.mark.parametrize("kind", ["file", "below a file", "null byte", "dangling link", "long name"])
def test_paths_that_are_no_folders(make, tmp_path, kind):
    X, y = data()
    path = tmp_path / "run"
    if kind in ("file", "below a file"):
        path.write_text("x")
    if kind == "dangling link":
        path.symlink_to(tmp_path / "run")
    path = {"below a file": path / "a", "null byte": Path("a\0b"), "long name": tmp_path / ("a" * 300)}.get(
        kind, path
    )
    with pytest.raises(CheckpointError):
        make(path).fit(X, y)


# -- a folder that is gone -----------------------------------------------------------------------------


GONE = {
    "removed": shutil.rmtree,
    "with its parent": lambda folder: shutil.rmtree(folder.parent),
    "moved": lambda folder: folder.rename(folder.parent.parent / "moved"),
    "emptied": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "replaced": lambda folder: (
        folder.rename(folder.parent.parent / "moved"),
        folder.mkdir(),
        (folder / LOCK_FILE).touch(),
    ),
}


@pytest.mark.parametrize("how", GONE)
def test_a_folder_that_is_gone_is_made_again(make, tmp_path, how):
    X, y = data()
    alone = make(None).fit(X, y)
    folder = tmp_path / "runs" / "run"
    with pytest.warns(RuntimeWarning, match="was removed, emptied or replaced during training") as caught:
        same(make(folder, AtEpoch(2, lambda: GONE[how](folder))).fit(X, y), alone)
    assert len(caught) == 1
    assert [p.name for p in CheckpointStore(folder).paths()] == ["00000001", "00000002", "00000003"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(make(folder).fit(X, y), alone)


def test_a_folder_that_is_made_again_is_held(make, tmp_path):
    X, y = data()
    folder, refused = tmp_path / "run", []

    def other():
        with pytest.raises(CheckpointError, match="already trains into"):
            make(folder).fit(X, y)
        refused.append(True)

    callbacks = [AtEpoch(1, lambda: shutil.rmtree(folder)), AtEpoch(3, other)]
    with pytest.warns(RuntimeWarning, match="was removed"):
        make(folder, *callbacks).fit(X, y)
    assert refused == [True]
    with CheckpointStore(folder).lock():  # nobody holds it any more
        pass


def test_a_folder_that_another_run_has_made_meanwhile(make, tmp_path):
    X, y = data()
    alone = make(None).fit(X, y)
    folder, other = tmp_path / "run", CheckpointStore(tmp_path / "run")
    holding = other.lock()

    def take():
        shutil.rmtree(folder)
        holding.__enter__()

    with pytest.warns(RuntimeWarning, match="No checkpoint was written.*already trains into"):
        same(make(folder, AtEpoch(2, take)).fit(X, y), alone)
    holding.__exit__(None, None, None)
    assert not other.paths()


def test_a_folder_that_cannot_be_made_again(make, monkeypatch, tmp_path):
    X, y = data()
    alone = make(None).fit(X, y)
    folder = tmp_path / "run"

    def gone():
        shutil.rmtree(folder)
        failing(monkeypatch, "mkdir", errno.EROFS, lambda p: p == str(folder))

    with pytest.warns(RuntimeWarning, match="No checkpoint was written.*Read-only"):
        same(make(folder, AtEpoch(2, gone)).fit(X, y), alone)
    assert not folder.exists()
