"""Tensors that a training step reads and writes, kept twice on the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from onnxcustom.runtime import Device, to_ortvalue

__all__ = ["DoubleBuffer", "Scalar"]


class DoubleBuffer:
    """Named tensors in two sets: a step reads the front set and writes the back one, then they swap.

    Parameters
    ----------
    arrays : dict of str to ndarray
        Initial values; they are copied.
    device : Device
        Where the tensors live.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], device: Device) -> None:
        self.device = device
        self.front = 0
        # Host arrays: what the OrtValues borrow on the CPU.
        self._arrays = [
            {name: np.array(value, order="C", copy=True) for name, value in arrays.items()} for _ in range(2)
        ]
        self.values: list[dict[str, Any]] = [
            {name: to_ortvalue(value, device) for name, value in arrays_.items()} for arrays_ in self._arrays
        ]

    def swap(self) -> None:
        """What was just written becomes what is read."""
        self.front ^= 1

    def read(self, names: Iterable[str]) -> list[np.ndarray]:
        """Copies of the front tensors."""
        front = self.values[self.front]
        return [np.array(front[name].numpy(), copy=True) for name in names]

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Overwrite front tensors in place; shapes and dtypes are the caller's business."""
        for name, array in arrays.items():
            self.values[self.front][name].update_inplace(np.array(array, order="C"))


class Scalar:
    """A scalar graph input or output in host memory, read and written without onnxruntime."""

    def __init__(self, dtype: np.dtype, value: float = 0.0) -> None:
        self._array = np.array(value, dtype=dtype)
        self.ortvalue = to_ortvalue(self._array)

    def __float__(self) -> float:
        return float(self._array)

    def set(self, value: float) -> None:
        """Change the value that the next run reads."""
        self._array[...] = value
