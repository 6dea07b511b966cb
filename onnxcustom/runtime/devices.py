"""Where things run: the installed onnxruntime, its providers, devices and threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from onnxcustom.exceptions import MissingRuntimeError, ProviderError

__all__ = ["Device", "available_providers", "default_threads", "parse_device", "require_runtime"]

# Execution providers whose tensors live in the memory of a GPU; every other one reads host memory.
_CUDA_PROVIDERS = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider"})


def require_runtime() -> ModuleType:
    """Import onnxruntime.

    Returns
    -------
    module
        The module ``onnxruntime``.

    Raises
    ------
    MissingRuntimeError
        If it is not installed, or is an empty shell left behind by another of its packages.
    """
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingRuntimeError(
            "onnxruntime is not installed (or cannot be loaded). Install it with "
            "'python -m pip install \"onnxcustom[cpu]\"', or the extra 'cuda' for NVIDIA GPUs."
        ) from exc
    if not hasattr(onnxruntime, "InferenceSession"):
        # Uninstalling one of onnxruntime's packages deletes files of another that overlaps it.
        raise MissingRuntimeError(
            "The installed onnxruntime is damaged: it has no InferenceSession. Its packages overwrite "
            "each other: uninstall all of them, then 'python -m pip install \"onnxcustom[cpu]\"'."
        )
    return onnxruntime


def default_threads() -> int:
    """Number of processors this process may use, which a container may limit.

    Returns
    -------
    int
        At least 1.
    """
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on macOS and Windows
        return max(1, os.cpu_count() or 1)


def available_providers() -> list[str]:
    """Execution providers of the installed onnxruntime."""
    return list(require_runtime().get_available_providers())


@dataclass(frozen=True)
class Device:
    """A device that onnxruntime computes on.

    Parameters
    ----------
    type : {'cpu', 'cuda'}, default='cpu'
        Kind of device.
    index : int, default=0
        Which one of its kind.

    Examples
    --------
    >>> Device().name, Device("cuda", 1).name
    ('cpu', 'cuda:1')
    """

    type: str = "cpu"
    index: int = 0

    @property
    def name(self) -> str:
        """The name :func:`parse_device` understands: ``'cpu'`` or ``'cuda:0'``."""
        return self.type if self.type == "cpu" else f"{self.type}:{self.index}"

    @property
    def providers(self) -> list[Any]:
        """Execution providers for an ``InferenceSession``, the preferred one first."""
        if self.type == "cuda":
            return [("CUDAExecutionProvider", {"device_id": str(self.index)}), "CPUExecutionProvider"]
        return ["CPUExecutionProvider"]

    def ort_device(self) -> Any:
        """The device as onnxruntime's C ``OrtDevice``."""
        require_runtime()
        from onnxruntime.capi import _pybind_state as pybind

        kind = pybind.OrtDevice.cuda() if self.type == "cuda" else pybind.OrtDevice.cpu()
        return pybind.OrtDevice(kind, pybind.OrtDevice.default_memory(), self.index)

    def __str__(self) -> str:
        return self.name


def parse_device(spec: Any = None) -> Device:
    """The device that a user's words mean.

    Parameters
    ----------
    spec : None, str, list, Device or OrtDevice, default=None
        ``None`` or ``'cpu'``; ``'cuda'``, ``'cuda:N'``, ``'gpu'``; the name of an execution provider,
        or a list of them as ``InferenceSession`` takes it; a device.

    Returns
    -------
    Device
        Present in the installed onnxruntime.

    Raises
    ------
    ProviderError
        If there is no such device or provider; the message lists those there are.

    Examples
    --------
    >>> parse_device("cpu")
    Device(type='cpu', index=0)
    >>> parse_device(["CPUExecutionProvider"]).name
    'cpu'
    """
    if isinstance(spec, Device):
        device = spec
    elif spec is None:
        device = Device()
    elif isinstance(spec, str):
        device = _from_text(spec)
    elif isinstance(spec, Sequence):
        device = _from_providers(spec)
    else:
        device = _from_ort_device(spec)
    if device.type == "cuda" and not _CUDA_PROVIDERS & set(available_providers()):
        raise _no_provider(spec)
    return device


def _no_provider(spec: Any) -> ProviderError:
    return ProviderError(
        f"{spec!r} is not a device or execution provider of the installed onnxruntime. "
        f"Its providers are {', '.join(available_providers())}; write 'cpu', 'cuda', 'cuda:N' or a list of "
        "providers. A provider for NVIDIA GPUs comes with the extra 'onnxcustom[cuda]'."
    )


def _from_text(spec: str) -> Device:
    kind, _, index = spec.strip().lower().partition(":")
    if kind in ("cpu", "cuda", "gpu") and (not index or index.isdigit()):
        number = int(index or 0)
        if kind == "cpu" and number:
            raise ProviderError(f"There is only one CPU device, 'cpu'; {spec!r} names another.")
        return Device("cpu") if kind == "cpu" else Device("cuda", number)
    if spec in available_providers():
        return Device("cuda" if spec in _CUDA_PROVIDERS else "cpu")
    raise _no_provider(spec)


def _from_providers(spec: Sequence) -> Device:
    """Device of a list of providers: that of the first, which onnxruntime prefers."""
    if not spec:
        raise _no_provider(spec)
    devices = []
    for item in spec:
        name, options = item if isinstance(item, tuple) and len(item) == 2 else (item, {})
        if not isinstance(name, str) or not isinstance(options, dict):
            raise _no_provider(item)
        device = _from_text(name)
        if device.type == "cuda" and "device_id" in options:
            device = Device("cuda", int(options["device_id"]))
        devices.append(device)
    return devices[0]


def _from_ort_device(spec: Any) -> Device:
    """Device of an OrtDevice, of onnxruntime's Python or C kind."""
    getter = getattr(spec, "_get_c_device", None)
    raw = getter() if callable(getter) else spec
    if not (callable(getattr(raw, "device_type", None)) and callable(getattr(raw, "device_id", None))):
        raise _no_provider(spec)
    kind = raw.device_type()
    if kind == type(raw).cpu():
        return Device("cpu")
    if kind == type(raw).cuda():
        return Device("cuda", raw.device_id())
    raise _no_provider(spec)
