from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.data.blocks import Block, Key, promoted, recut, row_bytes
from onnxcustom.exceptions import InvalidDataError


def test_parts_of_a_block():
    block = Block.of({"a": np.zeros((2, 3)), "b": np.ones(2)}, np.arange(2), np.ones(2))
    assert list(block.X) == ["a", "b"]
    assert block.y.tolist() == [0, 1]
    assert block.sample_weight.tolist() == [1, 1]
    assert len(block) == 2
    assert repr(block) == (
        "Block(X['a']: float64 (2, 3), X['b']: float64 (2,), y: int64 (2,), sample_weight: float64 (2,))"
    )
    assert (Block.of().X, len(Block.of())) == (None, 0)


def test_rows_of_all_arrays_at_once():
    block = Block.of(np.arange(6).reshape(3, 2), np.arange(3))
    taken = block[np.array([True, False, True])]
    assert taken.X.tolist() == [[0, 1], [4, 5]]
    assert taken.y.tolist() == [0, 2]


def test_bytes_of_a_row():
    assert row_bytes(Block.of(np.zeros((5, 3, 2), np.float32), np.zeros(5, np.int64))) == 24 + 8


@given(
    sizes=st.lists(st.integers(0, 9), max_size=12),
    batch=st.integers(1, 5),
    batches=st.integers(1, 4),
)
def test_every_row_comes_once_in_order_in_blocks_of_one_size(sizes, batch, batches):
    rows = np.arange(sum(sizes))
    starts = np.cumsum([0, *sizes])
    blocks = [
        Block.of(np.stack([rows, rows], 1)[a : a + n], rows[a : a + n])
        for a, n in zip(starts, sizes, strict=False)
    ]
    got = list(recut(blocks, batch * batches, batch))
    assert all(len(block) == batch * batches for block in got[:-1])
    assert sum(map(len, got)) == len(rows)
    assert all(len(block) for block in got)
    if got:
        np.testing.assert_array_equal(np.concatenate([block.y for block in got]), rows)
        np.testing.assert_array_equal(np.concatenate([block.X for block in got])[:, 1], rows)


def test_what_fits_is_passed_on():
    block = Block.of(np.zeros(4))
    assert next(recut([block], 4)) is block


def test_blocks_that_were_given_out_are_not_written_again():
    first, second = recut([Block.of(np.full(3, i)) for i in range(4)], 6)
    assert first.X.tolist() == [0, 0, 0, 1, 1, 1]
    assert second.X.tolist() == [2, 2, 2, 3, 3, 3]


def test_shapes_may_change_between_batches():
    lengths = [(4, 2), (2, 2), (4, 3), (3, 3)]
    got = [block.X.shape for block in recut([Block.of(np.zeros(s)) for s in lengths], 8, 2)]
    assert got == [(6, 2), (7, 3)]


def test_shapes_may_not_change_within_a_batch():
    blocks = [Block.of(np.zeros((3, 2))), Block.of(np.zeros((3, 5)))]
    with pytest.raises(InvalidDataError, match=r"change shape from X \(2,\) to X \(5,\) within a batch"):
        list(recut(blocks, 4, 4))


def test_arrays_that_come_and_go():
    blocks = [Block.of(np.zeros(3), np.zeros(3)), Block.of(np.zeros(3))]
    with pytest.raises(InvalidDataError, match=r"change shape from X .*, y .* to X"):
        list(recut(blocks, 4, 4))


def test_numbers_that_do_not_fit_the_dtype_of_the_first_block_widen_it():
    (block,) = recut([Block.of(np.array([1, 2])), Block.of(np.array([0.5])), Block.of(np.array([2**40]))], 9)
    assert block.X.tolist() == [1, 2, 0.5, 2**40]
    (text,) = recut([Block.of(np.array(["a"])), Block.of(np.array(["long"]))], 9)
    assert text.X.tolist() == ["a", "long"]


def test_numbers_and_text_do_not_mix():
    with pytest.raises(InvalidDataError, match=r"y is int64 in some batches and <U1 in others"):
        promoted(Key("y"), np.dtype(int), np.dtype("U1"))
