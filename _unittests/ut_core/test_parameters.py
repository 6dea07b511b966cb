from __future__ import annotations

import numpy as np
import pytest

from onnxcustom._parameters import check_count, check_number, is_count


@pytest.mark.parametrize(
    ("value", "interval", "good"),
    [
        (0, "[0, 1)", True),
        (1, "[0, 1)", False),
        (1, "[0, 1]", True),
        (0, "(0, 1]", False),
        (np.float32(0.5), "(0, 1)", True),
        (np.int64(3), "[0, inf)", True),
        (np.inf, "[0, inf)", False),
        (np.nan, "[0, inf)", False),
        (-np.inf, "(-inf, inf)", False),
        (-5.5, "(-inf, inf)", True),
    ],
)
def test_intervals(value, interval, good):
    if good:
        assert check_number("x", value, interval) is None
    else:
        with pytest.raises(ValueError, match="x must be in"):
            check_number("x", value, interval)


@pytest.mark.parametrize("value", ["1", None, True, 1j, [1]])
def test_only_numbers(value):
    with pytest.raises(TypeError, match="x must be a number in \\[0, 1\\]"):
        check_number("x", value, "[0, 1]")


@pytest.mark.parametrize("value", [1.0, True, "1"])
def test_only_integers(value):
    with pytest.raises(TypeError, match="x must be an integer in"):
        check_number("x", value, "[0, 9]", integral=True)


@pytest.mark.parametrize(
    ("value", "least", "fits"),
    [
        (0, 0, True),
        (0, 1, False),
        (np.int64(3), 1, True),
        (np.array(3), 1, True),
        (3.0, 0, False),
        ("3", 0, False),
        (True, 0, False),
        (np.True_, 0, False),
        (None, 0, False),
        (np.array([3, 4]), 0, False),
    ],
)
def test_counts(value, least, fits) -> None:
    assert is_count(value, least) == fits
    if fits:
        assert type(check_count("n", value, least)) is int
    else:
        with pytest.raises(ValueError, match=f"n must be an integer of at least {least}, not"):
            check_count("n", value, least)
