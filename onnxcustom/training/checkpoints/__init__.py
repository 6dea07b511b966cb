"""Checkpoints: files that survive whatever ends a training."""

from types import ModuleType

from onnxcustom._lazy import import_submodule, submodule_names


def __getattr__(name: str) -> ModuleType:
    return import_submodule(__name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *submodule_names(__path__)})
