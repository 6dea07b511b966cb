"""Training: steps, estimators, and the classes of :mod:`onnxcustom.training.ortgradient`.

Modules are imported on first use: ``import onnxcustom`` is enough for ``onnxcustom.training.callbacks``.
"""

from types import ModuleType

from onnxcustom._lazy import import_submodule, submodule_names


def __getattr__(name: str) -> ModuleType:
    return import_submodule(__name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *submodule_names(__path__)})
