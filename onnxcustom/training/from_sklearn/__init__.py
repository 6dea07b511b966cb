"""From a fitted scikit-learn estimator or pipeline to an estimator that trains it further as ONNX."""

from .conversion import from_sklearn
from .report import ConversionReport, StepRow, describe_conversion

__all__ = ["ConversionReport", "StepRow", "describe_conversion", "from_sklearn"]
