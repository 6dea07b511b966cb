"""The demo: two scikit-learn models, stopped early, go on training as ONNX models.

Everything is compared on held-out rows with scikit-learn itself, which goes on from the same weights for the
same number of epochs with the same batch size, learning rate and momentum.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_diabetes, load_digits
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error, r2_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from onnxcustom.exceptions import MissingPackageError
from onnxcustom.graph import save
from onnxcustom.optim import NAG
from onnxcustom.plotting import plot_history
from onnxcustom.plotting.style import new_axes
from onnxcustom.plotting.style import save as save_figure
from onnxcustom.runtime import require_runtime
from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor

__all__ = ["Comparison", "run_demo", "train_diabetes", "train_digits"]


@dataclasses.dataclass
class Comparison:
    """What one part of the demo measured on rows that no model was trained on.

    Attributes
    ----------
    title : str
        Data, model and number of epochs.
    measures : tuple of str
        Names of the two measures.
    before, trained, reference : tuple of float
        The measures of the model as scikit-learn left it, after our epochs, after scikit-learn's.
    rows : int
        How many rows that is.
    loss_name : str
        What the curves show: of these rows, too, but for that of training.
    curves : dict of str to dict of str to list of float
        The history of each contender, with an epoch 0 before training; nan where nothing was measured.
    estimator : OnnxClassifier or OnnxRegressor
        The trained estimator.
    """

    title: str
    measures: tuple[str, str]
    before: tuple[float, float]
    trained: tuple[float, float]
    reference: tuple[float, float]
    rows: int
    loss_name: str
    curves: dict[str, dict[str, list[float]]]
    estimator: Any

    def __str__(self) -> str:
        rows = {"before": self.before, "onnxcustom": self.trained, "scikit-learn": self.reference}
        held = f"  on {self.rows} rows held out"
        lines = [self.title, f"{held:26}{self.measures[0]:>10}{self.measures[1]:>10}"]
        lines += [f"  {name:24}{a:10.3f}{b:10.3f}" for name, (a, b) in rows.items()]
        return "\n".join(lines)


def _split(X: np.ndarray, y: np.ndarray, labels: np.ndarray | None = None) -> list[np.ndarray]:
    """Rows to train on and rows to compare on: X, X held out, y, y held out."""
    return train_test_split(X, y, test_size=0.25, stratify=labels, random_state=0)


def _go_on(
    start: Any,
    model: Any,
    data: list[np.ndarray],
    scores: Callable[[Any], tuple[float, float]],
    loss: Callable[[tuple[float, float]], float],
    **words: Any,
) -> Comparison:
    """Train an ONNX model, and the scikit-learn model that it comes from, for as many epochs.

    Parameters
    ----------
    start : estimator
        The model of scikit-learn; it is left as it is.
    model : OnnxClassifier or OnnxRegressor
        It in ONNX.
    data : list of ndarray
        As :func:`_split` returns it.
    scores : callable
        The two measures of an estimator on the rows held out.
    loss : callable
        Makes of these the loss that is drawn.
    **words
        The other attributes of the comparison.
    """
    X, X_held, y, y_held = data
    model.fit(X, y, X_val=X_held, y_val=y_held)
    before, reference = scores(start), copy.deepcopy(start)
    losses = [loss(before)]
    for _ in range(model.max_iter):
        reference.partial_fit(X, y)
        losses.append(loss(scores(reference)))
    epochs, history = list(map(float, range(len(losses)))), model.history_
    ours = {"loss": [np.nan, *history["loss"]], "val_loss": [losses[0], *history["val_loss"]]}
    return Comparison(
        before=before,
        trained=scores(model),
        reference=scores(reference),
        rows=len(y_held),
        curves={
            "onnxcustom": {"epoch": epochs, **ours},
            "scikit-learn": {"epoch": epochs, "val_loss": losses},
        },
        estimator=model,
        **words,
    )


def train_digits(epochs: int = 30, verbose: int = 0) -> Comparison:
    """Classify scikit-learn's handwritten digits.

    Parameters
    ----------
    epochs : int, default=30
        Further epochs after scikit-learn's first two.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    Comparison
        Accuracy and log-loss on 450 held-out rows.
    """
    X, y = load_digits(return_X_y=True)
    data = _split((X / 16).astype(np.float32), y, y)
    start = MLPClassifier(
        (64,), solver="sgd", learning_rate_init=0.01, batch_size=32, alpha=0, random_state=0
    )
    for _ in range(2):
        start.partial_fit(data[0], data[2], classes=np.unique(y))
    model = OnnxClassifier(
        to_onnx(start, data[0][:1], options={"zipmap": False}),
        optimizer=NAG(0.01, momentum=0.9),
        batch_size=32,
        max_iter=epochs,
        random_state=0,
        verbose=verbose,
    )

    def scores(m: Any) -> tuple[float, float]:
        return accuracy_score(data[3], m.predict(data[1])), log_loss(data[3], m.predict_proba(data[1]))

    return _go_on(
        start,
        model,
        data,
        scores,
        lambda found: found[1],
        title=f"Digits: MLPClassifier(64), 2 epochs of scikit-learn, then {epochs} more",
        measures=("accuracy", "log-loss"),
        loss_name="log-loss",
    )


def train_diabetes(epochs: int = 40, verbose: int = 0) -> Comparison:
    """Predict the progression of diabetes one year on, in units of its standard deviation.

    Parameters
    ----------
    epochs : int, default=40
        Further epochs after scikit-learn's first two.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    Comparison
        Coefficient of determination and mean squared error on 111 held-out rows.
    """
    X, y = load_diabetes(return_X_y=True)
    data = _split(
        StandardScaler().fit_transform(X).astype(np.float32), ((y - y.mean()) / y.std()).astype(np.float32)
    )
    start = MLPRegressor(
        hidden_layer_sizes=(16,),
        solver="sgd",
        learning_rate_init=0.0005,
        batch_size=16,
        alpha=0,
        random_state=0,
    )
    for _ in range(2):
        start.partial_fit(data[0], data[2])
    model = OnnxRegressor(
        to_onnx(start, data[0][:1]),
        optimizer=NAG(0.0005, momentum=0.9),
        batch_size=16,
        max_iter=epochs,
        random_state=0,
        verbose=verbose,
    )

    def scores(m: Any) -> tuple[float, float]:
        predicted = np.ravel(m.predict(data[1]))
        return r2_score(data[3], predicted), mean_squared_error(data[3], predicted)

    return _go_on(
        start,
        model,
        data,
        scores,
        lambda found: found[1] / 2,
        title=f"Diabetes: MLPRegressor(16), 2 epochs of scikit-learn, then {epochs} more",
        measures=("R²", "MSE"),
        loss_name="MSE / 2",
    )


def _plot(parts: list[Comparison], path: Path) -> bool:
    """Draw the curves of each part beside each other; False without matplotlib."""
    try:
        panels = new_axes(len(parts), 10, 4.2)
    except MissingPackageError:
        return False
    for axes, part in zip(panels, parts, strict=True):
        plot_history(part.curves, ax=axes, log=True)
        axes.set_title(part.title.split(",")[0], loc="left")
        axes.set_ylabel(part.loss_name)
    save_figure(panels, path)
    return True


def run_demo(output: str | Path = ".", quiet: bool = False) -> list[Comparison]:
    """Run both parts and write the trained model, its training graph and the curves.

    Parameters
    ----------
    output : str or Path, default="."
        Folder for ``digits_trained.onnx``, ``training_step.onnx`` and ``loss.png``, which are overwritten;
        made if missing.
    quiet : bool, default=False
        Print nothing.

    Returns
    -------
    list of Comparison
        Digits, then diabetes.

    Raises
    ------
    MissingRuntimeError
        If no onnxruntime is installed.
    """
    require_runtime()
    echo: Callable[[str], object] = (lambda _: None) if quiet else click.echo
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    # A progress bar is for someone who looks at it: in a log it would be one endless line.
    verbose = int(not quiet and sys.stderr.isatty())
    parts = []
    for train in (train_digits, train_diabetes):
        parts.append(train(verbose=verbose))
        echo(f"{parts[-1]}\n")

    digits = parts[0].estimator
    trained, step, loss = (output / n for n in ("digits_trained.onnx", "training_step.onnx", "loss.png"))
    save(digits.get_trained_onnx(), trained)
    save(digits.step_.model, step)
    echo(f"{trained}: the trained model")
    echo(f"{step}: one training step as an ONNX graph")
    if _plot(parts, loss):
        echo(f"{loss}: the loss after each epoch, on the rows held out (dashed) and in training (solid)")
    else:
        echo(f"{loss}: not drawn, matplotlib is missing (python -m pip install matplotlib)")
    return parts
