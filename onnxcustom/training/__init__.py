"""Training: steps, estimators, and the classes of :mod:`onnxcustom.training.ortgradient`."""
