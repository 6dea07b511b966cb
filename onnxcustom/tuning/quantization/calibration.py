"""Ranges of tensors that were seen, and the steps that integers get for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from onnxcustom.exceptions import InvalidDataError

__all__ = ["METHODS", "Grid", "Ranges", "grid_of"]

#: Scale and zero point of a tensor.
Grid = tuple[np.ndarray, np.ndarray]

# Numbers kept of a tensor, at most, for what looks at more than its ends.
_SAMPLE = 200_000
# Parts of the range that are tried for the least squared error.
_TRIED = np.linspace(0.2, 1.0, 81)


def _minmax(
    sample: np.ndarray, ends: tuple[float, float], steps: int, percentile: float
) -> tuple[float, float]:
    return ends


def _percentile(
    sample: np.ndarray, ends: tuple[float, float], steps: int, percentile: float
) -> tuple[float, float]:
    low, high = np.percentile(sample, [100 - percentile, percentile])
    return float(low), float(high)


def _mse(sample: np.ndarray, ends: tuple[float, float], steps: int, percentile: float) -> tuple[float, float]:
    """The part of the range for which rounding and clipping have the least squared error together."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    best, found = np.inf, ends
    if not (high - low) * _TRIED[0] / steps > 0:  # always 0
        return ends
    for part in _TRIED:
        scale = part * (high - low) / steps
        zero = np.rint(-part * low / scale)
        rounded = (np.clip(np.rint(sample / scale) + zero, 0, steps) - zero) * scale
        error = float(np.mean((rounded - sample) ** 2))
        if error < best:
            best, found = error, (part * low, part * high)
    return found


#: How ends of a range are chosen.
METHODS: Mapping[str, Callable[..., tuple[float, float]]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
}


class Ranges:
    """What was seen of some tensors.

    Parameters
    ----------
    names : iterable of str
        The tensors.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._ends = dict.fromkeys(names, (np.inf, -np.inf))
        self._samples: dict[str, list[np.ndarray]] = {name: [] for name in self._ends}

    def see(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Look at the tensors of some more rows.

        Raises
        ------
        InvalidDataError
            Numbers that are not finite.
        """
        for name, array in arrays.items():
            flat = np.asarray(array, dtype=np.float64).reshape(-1)
            if not flat.size:
                continue
            if not np.isfinite(flat).all():
                raise InvalidDataError(
                    f"Tensor {name!r} holds NaN or infinity for the rows that ranges are measured on: "
                    "there is no range of integers for that. Leave it out with exclude, or clean the data."
                )
            low, high = self._ends[name]
            self._ends[name] = min(low, float(flat.min())), max(high, float(flat.max()))
            kept = self._samples[name]
            room = _SAMPLE - sum(map(len, kept))
            if room > 0:
                kept.append(flat[:: max(1, -(-flat.size // room))])

    def grids(self, method: str, steps: int, low: int, percentile: float) -> dict[str, Grid]:
        """Scale and zero point of each tensor, for integers of so many steps from `low` on.

        Raises
        ------
        InvalidDataError
            Nothing was seen.
        """
        made = {}
        for name, ends in self._ends.items():
            if ends[0] > ends[1]:
                raise InvalidDataError(
                    "There are no rows to measure the ranges of tensors on: quantization needs some."
                )
            sample = np.concatenate(self._samples[name])
            made[name] = grid_of(*METHODS[method](sample, ends, steps, percentile), steps, low)
        return made


def grid_of(bottom: float, top: float, steps: int, low: int) -> Grid:
    """Scale and zero point of integers that reach from `bottom` to `top`, with 0 among what they stand for.

    A tensor that was always 0 has steps of 1.

    Examples
    --------
    >>> grid_of(-1.0, 1.55, 255, 0)
    (array(0.01, dtype=float32), array(100, dtype=uint8))
    """
    bottom, top = min(bottom, 0.0), max(top, 0.0)
    scale = np.float32((top - bottom) / steps)
    if not scale > 0:  # constant, or so small that its steps are no float32
        scale = np.float32(1.0)
    zero = int(np.clip(np.rint(low - bottom / float(scale)), low, low + steps))
    return np.array(scale), np.array(zero, dtype=np.int8 if low < 0 else np.uint8)
