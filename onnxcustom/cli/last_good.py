"""What ``--nonfinite stop`` writes when a training diverges."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from onnxcustom._warnings import warn_user
from onnxcustom.training.callbacks import EarlyStopping, StopOnNonFinite
from onnxcustom.training.callbacks.early_stopping import Kept, put_back, weights_of

__all__ = ["LastGood"]


class LastGood(StopOnNonFinite):
    """End training when the objective is NaN or infinite, with the weights of the best epoch before.

    Those of the step before are finite, but may be far off: weights grow for many batches until something
    is infinite. The loss of an epoch is measured on the way, so that the weights it began with are good if
    it is low; that of validation data is one of the weights after the epoch. Where an
    :class:`EarlyStopping` has a best epoch, it puts the weights of that one back.

    Attributes
    ----------
    told_ : str
        Which weights are put back, in words; empty unless that happened.
    """

    def on_train_begin(self, trainer: Any) -> None:
        """The weights before training are good as long as there are no others."""
        self._name = "val_loss" if "val_loss" in trainer.run.measures else "loss"
        self._kept = self._now = weights_of(trainer)
        self._epoch: int = 0
        self._lowest: float | None = None
        self.told_ = ""

    def on_epoch_begin(self, trainer: Any) -> None:
        """Keep the weights that the loss of this epoch will be of."""
        self._now = weights_of(trainer)

    def on_epoch_end(self, trainer: Any) -> None:
        """Keep the weights if there are none better."""
        value = trainer.history_[self._name][-1]
        if self._lowest is None or value < self._lowest:
            self._kept = weights_of(trainer) if self._name == "val_loss" else self._now
            self._epoch, self._lowest = trainer.n_iter_, float(value)

    def on_nonfinite(self, trainer: Any, error: Exception) -> bool:
        """Warn and end."""
        stopping = (c for c in trainer.run.callbacks.items if isinstance(c, EarlyStopping))
        best = next((c.best_epoch_ for c in stopping if c.best_epoch_ is not None), None)
        if best is not None:
            self.told_ = f"weights of epoch {best}, the best"
        elif not self._epoch:
            self.told_ = "weights as before training, since no epoch came to its end"
        else:
            place = "after" if self._name == "val_loss" else "at the beginning of"
            self.told_ = f"weights {place} epoch {self._epoch}, whose {self._name} is the lowest"
        what = str(error).replace("; the weights before that step are kept", "")
        warn_user(f"{what} Training ends; what is written are the {self.told_}.", ConvergenceWarning)
        trainer.run.stop("the objective is not finite")
        return True

    def on_train_end(self, trainer: Any) -> None:
        """Put the good weights back, if it came to that."""
        if self.told_:
            put_back(trainer, self._kept)

    def state_dict(self) -> dict[str, Any]:
        """The good weights, and those that the present epoch began with."""
        kept = {"kept": list(self._kept), "now": list(self._now)}
        numbers = {"name": self._name, "epoch": self._epoch, "lowest": self._lowest, "told": self.told_}
        return {**numbers, **copy.deepcopy(kept)}

    def load_state_dict(self, trainer: Any, state: Mapping[str, Any]) -> None:
        """Go on with them, if they are of the same measure."""
        if state["name"] != self._name:
            return
        state = copy.deepcopy(dict(state))
        self._epoch, self._lowest, self.told_ = state["epoch"], state["lowest"], state["told"]
        self._kept, self._now = _three(state["kept"]), _three(state["now"])


def _three(parts: list[dict[str, np.ndarray]]) -> Kept:
    """Weights, statistics and averages; older checkpoints have none of the latter."""
    return tuple(map(dict, [*parts, {}][:3]))
