"""Writes pickles of rules and updaters by the version of the package that is there: later ones read them.

Each is in mid-training; with it comes the weight after two more updates by `update`. Run it, with the name of
a file, before a change of what a rule consists of, and commit the file with the change.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onnxcustom.optim import Adam, BaseLearningRate, Exp, LearningRateSGD, ReduceOnPlateau, Updater

GRADIENT = np.array([1.0, -0.5])


def update(tool: Any) -> np.ndarray:
    """A weight of ones after two updates."""
    w = np.ones(2)
    for t in range(2):
        if isinstance(tool, Updater):
            tool("w", GRADIENT, w)
            continue
        tool.update_learning_rate(5 + t)
        state = tool.create_state(w) or None
        tool.update_weights(0, "cpu", w, GRADIENT, 1, state)
    return w


def made() -> dict[str, Any]:
    """Rules and updaters in mid-training."""
    plain, never = LearningRateSGD(0.5).init_learning_rate(), Adam(0.1)
    plain.update_learning_rate(4)
    plateau = Adam(ReduceOnPlateau(0.1, patience=0)).init_learning_rate()
    for loss in (1.0, 2.0, 2.0):
        plateau.report_epoch(loss)
    changed = Adam(0.1, beta1=Exp(0.9, 0.9, True)).init_learning_rate().set_learning_rate(0.25)
    indexed = LearningRateSGD(0.5).init_learning_rate()
    w = np.ones(2)
    for _ in range(3):
        indexed.update(0, w, GRADIENT, None)
    updater = Updater(Adam(Exp(0.1, 0.5, True), accumulate=2))
    for _ in range(3):
        updater("w", GRADIENT, w)
    never.init_learning_rate()
    return {
        "plain": plain,
        "plateau": plateau,
        "changed": changed,
        "indexed": indexed,
        "updater": updater,
        "begun": never,
    }


def main(path: Path) -> None:
    """Write the file."""
    found = {}
    for name, tool in made().items():
        written = pickle.dumps(tool)
        rule = tool if isinstance(tool, BaseLearningRate) else tool.optimizer
        found[name] = (written, rule.t, rule.value, update(tool))
    path.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
