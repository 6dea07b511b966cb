"""Engine ``"ort"``: gradients built by onnxruntime-training, and what keeps it from its faults."""

from .engine import OrtEngine

__all__ = ["OrtEngine"]
