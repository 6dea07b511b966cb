"""The only place that touches onnxruntime: devices, sessions, IO binding, the training builder.

onnxruntime is imported when something of this package is first called, never before, so that
``import onnxcustom`` works without it.
"""

from __future__ import annotations

from .binding import Binding, OrtValues, owned_copy, plain_array, run_values, to_ortvalue, to_vector
from .devices import Device, available_providers, default_threads, parse_device, require_runtime
from .forking import ForkLock
from .sessions import (
    check_providers,
    create_session,
    ends_on_nothing,
    options_from,
    options_state,
    ort_limits,
    output_types,
    session_options,
)
from .training_builder import build_gradient_model, training_available

__all__ = [
    "Binding",
    "Device",
    "ForkLock",
    "OrtValues",
    "available_providers",
    "build_gradient_model",
    "check_providers",
    "create_session",
    "default_threads",
    "ends_on_nothing",
    "options_from",
    "options_state",
    "ort_limits",
    "output_types",
    "owned_copy",
    "parse_device",
    "plain_array",
    "require_runtime",
    "run_values",
    "session_options",
    "to_ortvalue",
    "to_vector",
    "training_available",
]
