from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onnxcustom.data.columns import Plan
from onnxcustom.data.sources import ArraySource, FrameSource, IterableSource, Part


def test_parts_of_arrays_are_of_256_kilobytes():
    parts = ArraySource((np.zeros((10_000, 64)), np.zeros(10_000)))
    assert parts.parts()[:2] == [Part(0, 0, 2**18 // 520), Part(0, 2**18 // 520, 2**18 // 520)]
    assert sum(part.rows for part in parts.parts()) == 10_000
    assert [p.rows for p in ArraySource((np.zeros((3, 2**20)),)).parts()] == [1, 1, 1]
    assert ArraySource((np.zeros((0, 2)),)).parts() == []
    assert len(ArraySource((np.zeros((5, 0)),)).parts()) == 1


def test_parts_of_frames_and_batches():
    frame = FrameSource({"x": np.zeros(10_000)}, Plan())
    assert [part.rows for part in frame.parts()] == [4096, 4096, 1808]
    assert IterableSource([], Plan()).parts() == [Part(0, 0, None)]


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (ArraySource((np.zeros((3, 2)),)), "the arrays, row 12"),
        (FrameSource({"x": np.zeros(3)}, Plan()), "the dict, row 12"),
        (IterableSource([], Plan()), "the batches of list, row 2 of those read"),
    ],
)
def test_places_of_rows(source, place):
    assert source.place(Part(0, 10, 5), 2) == place


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_arrays_that_are_mapped_keep_what_was_written_into_them(mode, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(10.0).reshape(5, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    if mode != "r":
        mapped[3] = 7
    source = ArraySource((mapped[1:],))
    (block,) = source.read(source.parts()[0], 10)
    assert block.X.tolist() == [[2, 3], [4, 5], [6, 7] if mode == "r" else [7, 7], [8, 9]]
    assert mapped[3].tolist() == ([6, 7] if mode == "r" else [7, 7])


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_files_that_are_mapped_are_not_kept_in_memory(tmp_path):
    def mapped_kilobytes():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    np.save(tmp_path / "x.npy", np.zeros((2**15, 2**8), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    source = ArraySource((mapped, mapped[:, 0]))
    before, rows = mapped_kilobytes(), 0
    for part in source.parts():
        rows += sum(len(block) for block in source.read(part, 1000))
        assert mapped_kilobytes() < before + 8_000  # of 32,768
    assert rows == 2**15
    assert mapped.sum() == 0
    assert mapped_kilobytes() > before + 24_000  # what it would be
