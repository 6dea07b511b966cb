"""The example that runs every update rule: each reaches the loss that the example documents.

With ``--exhaustive``: it is long, and the documentation runs it for every change.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcustom.optim.registry import RULES

EXAMPLE = Path(__file__).parents[2] / "_doc" / "examples" / "plot_optimizers.py"
pytestmark = pytest.mark.exhaustive
NAMES = [cls.__name__ for cls in RULES.classes()]


@pytest.fixture(scope="module")
def example() -> Iterator[dict[str, Any]]:
    """Everything the example defines, after it has run."""
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("onnxruntime")
    matplotlib.use("Agg")
    yield runpy.run_path(str(EXAMPLE))
    matplotlib.pyplot.close("all")


def test_settings_and_panels_are_of_every_rule(example: dict[str, Any]) -> None:
    assert sorted(example["SETTINGS"]) == sorted(NAMES)
    assert sorted(name for names in example["PANELS"].values() for name in names) == sorted(NAMES)
    assert len(example["plt"].get_fignums()) == 2


@pytest.mark.parametrize("name", NAMES)
def test_loss_on_rosenbrock(example: dict[str, Any], name: str) -> None:
    values = example["valley"][name]
    assert len(values) == example["STEPS"]
    assert values[0] == pytest.approx(24.2)  # at (-1.2, 1), where it is usually started
    if name == "SGLD":
        low, high = example["SAMPLED_LOSS"]
        assert low < np.mean(values[len(values) // 2 :]) < high
    else:
        assert values[-1] < example["ROSENBROCK_LOSS"]


@pytest.mark.parametrize("name", NAMES)
def test_loss_on_digits(example: dict[str, Any], name: str) -> None:
    losses = example["digits"][name]
    assert len(losses) == example["EPOCHS"]
    assert losses[0] > 1
    assert losses[-1] < example["DIGITS_LOSS"]
