from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.data.blocks import Block
from onnxcustom.data.shuffling import Share, Windows, part_order, row_hash, shuffled
from onnxcustom.exceptions import InvalidDataError


def blocks_of(total, size, start=0):
    """Rows start, start + 1, ... total - 1 in blocks."""
    rows = np.arange(total)
    for a in range(start, total, size):
        yield Block.of(np.stack([rows, -rows], 1)[a : a + size], rows[a : a + size])


def rows_of(blocks):
    blocks = list(blocks)
    if not blocks:
        return np.arange(0)
    x, y = np.concatenate([b.X for b in blocks]), np.concatenate([b.y for b in blocks])
    np.testing.assert_array_equal(x, np.stack([y, -y], 1))
    return y


def expected(total, windows):
    """The same order without a buffer: cut and permute."""
    first = total if total <= windows.size else windows.first
    cuts = [0, first, *range(first + windows.size, total, windows.size), total]
    made = [
        np.arange(a, b)[windows.order(i, b - a)]
        for i, (a, b) in enumerate((a, b) for a, b in itertools.pairwise(cuts) if b > a)
    ]
    return np.concatenate(made) if made else np.arange(0)


@given(
    total=st.integers(0, 60),
    size=st.integers(1, 25),
    window=st.integers(1, 70),
    rows=st.integers(1, 30),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_windows_are_permuted_and_skipping_is_as_iterating(total, size, window, rows, seed, epoch, data):
    windows = Windows(seed, epoch, window)
    got = list(shuffled(blocks_of(total, size), windows, rows))
    order = rows_of(got)
    np.testing.assert_array_equal(order, expected(total, windows))
    assert sorted(order) == list(range(total))
    skip = data.draw(st.integers(0, total))
    np.testing.assert_array_equal(
        rows_of(shuffled(blocks_of(total, size), windows, rows, skip)), order[skip:]
    )
    number, dropped = windows.skipped(total, skip)
    assert dropped <= skip
    jumped = shuffled(blocks_of(total, size, dropped), windows, rows, skip - dropped, number)
    np.testing.assert_array_equal(rows_of(jumped), order[skip:])


@given(total=st.integers(1, 50), window=st.integers(1, 20), rows=st.integers(1, 9))
def test_only_the_ends_of_windows_need_copies(total, window, rows):
    """Blocks end at multiples of `rows`, so that cutting them again passes most of them on."""
    sizes = [len(b) for b in shuffled(blocks_of(total, 7), Windows(0, 0, window), rows)]
    assert max(sizes) <= rows
    assert set(range(rows, total, rows)) <= set(np.cumsum(sizes))


def test_whole_windows_are_skipped():
    windows = Windows(3, 1, 10)
    number, dropped = windows.skipped(100, 57)
    assert number == 1 + (57 - windows.first) // 10
    assert dropped == windows.first + (number - 1) * 10 > 47
    assert windows.skipped(None, 57) == windows.skipped(10, 9) == (0, 0)


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return rows_of(shuffled(blocks_of(200, 30), Windows(seed, epoch, 50), 10)).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9


def test_every_order_of_a_window_is_as_likely():
    """Chi-squared over the 24 orders of 4 rows is below its 99.9 % quantile for 23 degrees of freedom."""
    found: dict[tuple, int] = {}
    for epoch in range(2400):
        order = tuple(Windows(0, epoch, 4).order(0, 4))
        found[order] = found.get(order, 0) + 1
    assert len(found) == 24
    assert sum((n - 100) ** 2 / 100 for n in found.values()) < 49.7


def test_the_first_cut_moves():
    firsts = {Windows(0, epoch, 10).first for epoch in range(100)}
    assert firsts == set(range(5, 11))
    assert Windows(0, 0, 1).first == 1


def test_parts_are_permuted():
    orders = [part_order(0, epoch, 20).tolist() for epoch in range(5)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(set(map(tuple, orders))) == 5


def test_memory_is_one_window():
    """Rows that come out make room for as many: a window and a block is read ahead, no more."""
    read = 0

    def counted():
        nonlocal read
        for block in blocks_of(1000, 10):
            read += len(block)
            yield block

    given_out = 0
    for block in shuffled(counted(), Windows(0, 0, 100), 20):
        given_out += len(block)
        assert read <= given_out + 100 + 10


def test_dtypes_widen():
    blocks = [Block.of(np.array([1, 2])), Block.of(np.array([0.5])), Block.of(np.array([3]))]
    got = np.concatenate([b.X for b in shuffled(blocks, Windows(0, 0, 10), 10)])
    assert sorted(got) == [0.5, 1, 2, 3]


def test_text_is_shuffled():
    blocks = [Block.of(np.array(["a", "b"], object)), Block.of(np.array(["c"], object))]
    (got,) = shuffled(blocks, Windows(0, 0, 10), 10)
    assert sorted(got.X) == ["a", "b", "c"]


def test_rows_of_different_shapes():
    blocks = [Block.of(np.zeros((1, 2))), Block.of(np.zeros((1, 3)))]
    with pytest.raises(InvalidDataError, match=r"differ in shape .* some are X \(2,\), others X \(3,\)"):
        list(shuffled(blocks, Windows(0, 0, 10), 10))


# -- splits -----------------------------------------------------------------------------------------


def test_hashes_are_those_of_rows_whatever_the_cuts():
    whole = row_hash(5, 0, 2, 0, 1000)
    parts = [row_hash(5, 0, 2, start, 100) for start in range(0, 1000, 100)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(set(whole.tolist())) == 1000


def test_hash_is_splitmix64():
    """First numbers of SplitMix64 from state 0, as its authors' reference code prints them."""

    def splitmix(state):
        mask = 2**64 - 1
        z = (state + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert splitmix(0) == 0xE220A8397B1DCDAF
    state = 0
    for value in (7, 1, 3):
        state = splitmix(state ^ value)
    step = 0x9E3779B97F4A7C15
    wanted = [splitmix((state + row * step) % 2**64) for row in range(5, 9)]
    assert row_hash(7, 1, 3, 5, 4).tolist() == wanted


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
def test_shares_are_complements_of_about_the_size_asked_for(fraction):
    held = Share(fraction, 3, 0, True)
    mask = held.mask(0, 0, 20_000)
    assert (mask != held._replace(held=False).mask(0, 0, 20_000)).all()
    assert abs(mask.mean() - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / 20_000)


def test_shares_of_another_seed_level_or_file_are_independent():
    base = Share(0.5, 0, 0, True).mask(0, 0, 20_000)
    for other in (Share(0.5, 1, 0, True).mask(0, 0, 20_000), Share(0.5, 0, 1, True).mask(0, 0, 20_000)):
        assert abs((base == other).mean() - 0.5) < 0.015
    assert abs((base == Share(0.5, 0, 0, True).mask(1, 0, 20_000)).mean() - 0.5) < 0.015
