"""Layers that begin to train in the middle of a training."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.graph import Selection

from .base import Callback

if TYPE_CHECKING:
    from ..run import Run, Training

__all__ = ["Unfreeze"]


class Unfreeze(Callback):
    """Train more weights after so many epochs: the last layers first, say, and those before them later.

    What was trained before keeps the state of the optimizer. Weights that join begin with a state of their
    own, as in a training that begins then, and count their steps from there. A fit begins with what
    `weights_to_train` and `freeze` of the estimator say.

    Parameters
    ----------
    at : dict of int to str or list of str
        Epochs done -> weights that are trained from then on, beside those before, in the words of
        `weights_to_train`; None for every weight. ``{2: "last:2"}`` has two epochs without them.

    References
    ----------
    J. Howard, S. Ruder, Universal Language Model Fine-tuning for Text Classification, 2018,
    https://arxiv.org/abs/1801.06146

    Examples
    --------
    >>> Unfreeze({5: "last:2", 10: None})
    Unfreeze(at={5: 'last:2', 10: None})
    """

    def __init__(self, at: Mapping[int, Selection]) -> None:
        self.at = at

    def check(self, run: Run) -> None:
        """Refuse epochs that are none."""
        if not isinstance(self.at, Mapping) or not all(map(_is_epoch, self.at)):
            raise InvalidParameterError(
                "Unfreeze takes a dict from epochs done, integers from 0 on, to weights, such as "
                f"{{2: 'last:2'}}, not {self.at!r}."
            )

    def on_train_begin(self, trainer: Training) -> None:
        """Refuse weights that cannot be trained, before it comes to that."""
        for weights in self.at.values():
            trainer.step_.check_unfreeze(weights)

    def on_epoch_begin(self, trainer: Training) -> None:
        """Let weights join whose time has come."""
        for epoch in sorted(self.at):
            if epoch <= trainer.n_iter_:
                trainer.step_.unfreeze(self.at[epoch])


def _is_epoch(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 0
