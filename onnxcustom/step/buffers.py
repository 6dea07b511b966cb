"""Tensors that a training step reads and writes, kept twice on the device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.linalg import blas

from onnxcustom.runtime import Device, to_ortvalue

__all__ = ["SUMS", "DoubleBuffer", "Scalar", "block_layout"]

# BLAS adds as many numbers without threads of its own: they would wait for those of onnxruntime, which
# spin, for milliseconds.
_PIECE = 8192
# Bytes between the beginnings of tensors: what vector instructions like.
_ALIGNMENT = 64


def block_layout(sizes: Sequence[int], step: int = 1) -> tuple[list[int], int]:
    """Where tensors begin in a block that they share, and its size, in numbers.

    Parameters
    ----------
    sizes : sequence of int
        Numbers in each tensor.
    step : int, default=1
        They begin at multiples of it.
    """
    offsets = [0, *itertools.accumulate(-(-size // step) * step for size in sizes)]
    return offsets[:-1], offsets[-1]


class DoubleBuffer:
    """Named tensors in two sets: a step reads the front set and writes the back one.

    The tensors of a set and of a dtype that are looked at for NaN share one block of memory, so that this is
    one call; the others have blocks of their own.

    Parameters
    ----------
    arrays : dict of str to ndarray
        Initial values of the front set; they are copied.
    device : Device
        Where the tensors live.
    single : collection of str
        Tensors that are kept once, because they are updated in place.
    packs : mapping of str to sequence of str, optional
        Names for blocks of tensors of one dtype, in an order: the block is a vector in which they lie one
        behind the other.
    shown : collection of str, optional
        Tensors, or packs, that hold NaN or infinity only if others do: nobody looks at them.
    front : callable, optional
        Says which set is the front one, 0 or 1: the first one if it is left out.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        device: Device,
        single: Collection[str] = (),
        packs: Mapping[str, Sequence[str]] | None = None,
        shown: Collection[str] = (),
        front: Callable[[], int] = lambda: 0,
    ) -> None:
        self.device = device
        self._front = front
        twice = {name: array for name, array in arrays.items() if name not in single}
        # Host arrays: what the OrtValues borrow on the CPU.
        # The back one is written before it is read: until then it is memory that nobody has touched.
        self._sets = [_HostSet(twice, packs or {}, shown, fill=front) for front in (True, False)]
        self.names = list(arrays)
        self._single = {name: np.array(arrays[name], order="C") for name in arrays if name in single}
        shared = {name: to_ortvalue(array, device) for name, array in self._single.items()}
        self.values: list[dict[str, Any]] = [
            {**{n: to_ortvalue(a, device) for n, a in (host.arrays | host.packs).items()}, **shared}
            for host in self._sets
        ]

    @property
    def front(self) -> int:
        """Which set is the front one."""
        return self._front()

    def back(self, name: str, shape: Sequence[Any]) -> Any:
        """A back tensor, to write to: in host memory in any `shape` of as many numbers."""
        back = 1 - self.front
        host = self._sets[back].memory(name)
        if self.device.type != "cpu" or host is None or list(shape) == list(host.shape):
            return self.values[back][name]
        known = all(isinstance(size, int) for size in shape) and math.prod(shape) == host.size
        return to_ortvalue(host.reshape(shape), self.device) if known else self.values[back][name]

    def read(self, names: Iterable[str]) -> list[np.ndarray]:
        """Copies of the front tensors."""
        front = self.values[self.front]
        return [np.array(front[name].numpy(), copy=True) for name in names]

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Overwrite front tensors in place; shapes and dtypes are the caller's business."""
        for name, array in arrays.items():
            self.values[self.front][name].update_inplace(np.array(array, order="C"))

    def unfit(self) -> list[str]:
        """Back tensors, on the CPU, that hold NaN or infinity: what was just written."""
        return self._sets[1 - self._front()].unfit()


class _HostSet:
    """Arrays side by side, in blocks by dtype and by whether they are looked at."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        packs: Mapping[str, Sequence[str]],
        shown: Collection[str],
        fill: bool,
    ) -> None:
        self._fill = fill
        placed: dict[str, np.ndarray] = {}
        self.packs = {pack: self._place(arrays, names, placed, dense=True) for pack, names in packs.items()}
        blocks = [block for pack, block in self.packs.items() if pack not in shown]
        groups: dict[tuple[np.dtype, bool], list[str]] = {}
        for name in arrays:
            if name not in placed:
                groups.setdefault((arrays[name].dtype, name in shown), []).append(name)
        for (_, left_out), own in groups.items():
            block = self._place(arrays, own, placed)
            if not left_out:
                blocks.append(block)
        pieces = [block[i : i + _PIECE] for block in blocks for i in range(0, block.size, _PIECE)]
        self._sums = [(SUMS.get(piece.dtype, _half_sum), piece) for piece in pieces]
        self.arrays = {name: placed[name] for name in arrays}

    def _place(
        self,
        arrays: Mapping[str, np.ndarray],
        names: Sequence[str],
        placed: dict[str, np.ndarray],
        dense: bool = False,
    ) -> np.ndarray:
        """Give arrays a block of their own; their new places go into `placed`."""
        dtype = arrays[names[0]].dtype
        sizes = [arrays[name].size for name in names]
        starts, total = block_layout(sizes, 1 if dense else max(1, _ALIGNMENT // dtype.itemsize))
        block = _aligned(total, dtype)
        for name, start in zip(names, starts, strict=True):
            placed[name] = block[start : start + arrays[name].size].reshape(arrays[name].shape)
            if self._fill:
                placed[name][...] = arrays[name]
        return block

    def memory(self, name: str) -> np.ndarray | None:
        """An array, or the block of a pack."""
        return self.arrays.get(name, self.packs.get(name))

    def unfit(self) -> list[str]:
        """Names of the arrays that hold NaN or infinity."""
        for total, piece in self._sums:
            if not math.isfinite(total(piece)):
                return self._where()
        return []

    def _where(self) -> list[str]:
        return [name for name, array in self.arrays.items() if not np.isfinite(array).all()]


def _aligned(size: int, dtype: np.dtype) -> np.ndarray:
    """Zeros that begin at an aligned address."""
    raw = np.zeros(size * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


# Sums of magnitudes: NaN and infinity stay in them, and NumPy's own sums take five times as long to call.
SUMS = {np.dtype(np.float32): blas.sasum, np.dtype(np.float64): blas.dasum}


def _half_sum(piece: np.ndarray) -> float:
    """Finite only if all numbers are; sums of half precision overflow soon."""
    return 0.0 if np.isfinite(piece).all() else math.nan


class Scalar:
    """A number that a graph takes or gives, in host memory, read and written without onnxruntime."""

    def __init__(self, dtype: np.dtype, value: float = 0.0, shape: Sequence[int] = ()) -> None:
        self._array = np.full(tuple(shape), value, dtype=dtype)
        self.ortvalue = to_ortvalue(self._array)

    def __float__(self) -> float:
        return float(self._array)

    def set(self, value: float) -> None:
        """Change the value that the next run reads."""
        self._array[...] = value
