"""Steps of scikit-learn that stay as they are in front of a model."""

from __future__ import annotations

from typing import Any

from sklearn.frozen import FrozenEstimator

from onnxcustom.data.frames import is_frame, select_columns, text_names

__all__ = ["FrozenStep"]


class FrozenStep(FrozenEstimator):
    """A fitted step that is not fitted again, and takes the columns of a frame in any order.

    Parameters
    ----------
    estimator : estimator
        Fitted.
    """

    def transform(self, X: Any) -> Any:
        """What the step makes of rows; a frame of other columns is left to it."""
        names = list(getattr(self.estimator, "feature_names_in_", ()))
        found = text_names(X) if is_frame(X) else None
        if found is not None and found != names and sorted(found) == sorted(names):
            X = select_columns(X, names)
        return self.estimator.transform(X)
