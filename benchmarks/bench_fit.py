"""A whole ``fit()`` of 20 epochs against scikit-learn's MLPRegressor and PyTorch eager.

All train the same network from the same weights on the same rows: squared error, SGD with Nesterov momentum,
the same constant learning rate and batch size, rows shuffled every epoch. Building sessions is part of the
time. They run in turns; the table shows medians and, as ratio, how many times as long as ours each took.

    python benchmarks/bench_fit.py --threads 1
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
import warnings
from collections.abc import Callable

EPOCHS = 20
MOMENTUM = 0.9
# rows, columns, hidden units of each layer, batch size, learning rate
CASES = [
    (1000, 10, (10, 10), 10, 1e-3),
    (2000, 100, (100, 100), 32, 1e-3),
    (10000, 100, (200, 200), 200, 1e-3),
    (5000, 784, (1024, 1024), 512, 1e-4),
]


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="processors to use, on Linux [default: all]")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each [default: %(default)s]")
    parser.add_argument("--cases", type=int, nargs="*", help=f"some of 0 ... {len(CASES) - 1} [default: all]")
    return parser.parse_args()


def torch_fit(start, X, y, batch_size: int, learning_rate: float) -> Callable[[], float] | None:
    """The same training as a plain PyTorch loop; None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(processors())
    layers: list[torch.nn.Module] = []
    for coef, intercept in zip(start.coefs_, start.intercepts_, strict=True):
        layer = torch.nn.Linear(*coef.shape)
        layer.weight.data = torch.from_numpy(coef.T.copy())
        layer.bias.data = torch.from_numpy(intercept.copy())
        layers += [layer, torch.nn.ReLU()]
    first = torch.nn.Sequential(*layers[:-1])
    rows, targets = torch.from_numpy(X), torch.from_numpy(y.reshape(-1, 1))

    def fit() -> float:
        network = copy.deepcopy(first)
        optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=MOMENTUM, nesterov=True)
        for _ in range(EPOCHS):
            total = 0.0
            for index in torch.randperm(len(rows)).split(batch_size):
                optimizer.zero_grad()
                loss = ((network(rows[index]) - targets[index]) ** 2).mean() / 2
                loss.backward()
                optimizer.step()
                total += loss.item() * len(index)
        return total / len(rows)

    return fit


def contestants(case: tuple) -> dict[str, Callable[[], float]]:
    """One function for each library that runs a whole fit and returns the last epoch's loss."""
    import numpy as np
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPRegressor

    from onnxcustom import OnnxRegressor
    from onnxcustom.optim import NAG

    rows, columns, hidden, batch_size, learning_rate = case
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, columns)).astype(np.float32)
    y = np.tanh(X[:, :5].sum(axis=1)) + 0.1 * rng.standard_normal(rows).astype(np.float32)
    start = MLPRegressor(
        hidden_layer_sizes=hidden,
        solver="sgd",
        alpha=0,
        learning_rate_init=learning_rate,
        batch_size=batch_size,
        momentum=MOMENTUM,
        tol=0,
        n_iter_no_change=10 * EPOCHS,
        max_iter=EPOCHS,
        warm_start=True,
        random_state=0,
    ).partial_fit(X[:batch_size], y[:batch_size])
    model = to_onnx(start, X[:1])
    optimizer = NAG(learning_rate, momentum=MOMENTUM)

    def ours() -> float:
        net = OnnxRegressor(
            model, optimizer=optimizer, batch_size=batch_size, max_iter=EPOCHS, random_state=0
        )
        return net.fit(X, y).history_["loss"][-1]

    def scikit_learn() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 20 epochs did not converge
            return copy.deepcopy(start).fit(X, y).loss_

    found = {"onnxcustom": ours, "scikit-learn": scikit_learn}
    eager = torch_fit(start, X, y, batch_size, learning_rate)
    return found | ({"PyTorch": eager} if eager else {})


def measure(functions: dict[str, Callable[[], float]], repeat: int) -> dict[str, tuple[float, float]]:
    """Median seconds and last loss of each, run in turns after one warm-up."""
    losses = {name: function() for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeat):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - begin)
    return {name: (statistics.median(times[name]), losses[name]) for name in functions}


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        # Before any library is imported: each sizes its pool by what the process may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    print(f"{EPOCHS} epochs, {processors()} threads, median of {arguments.repeat} runs\n")
    names = ["onnxcustom", "scikit-learn", "PyTorch"]
    heads = "".join(f"{n + ', s':>17}{'ratio':>7}{'loss':>9}" for n in names)
    print(f"{'rows':>6} {'network':<17}{'batch':>6}{heads}")
    for case in [CASES[i] for i in arguments.cases or range(len(CASES))]:
        rows, columns, hidden, batch_size, _ = case
        measured = measure(contestants(case), arguments.repeat)
        line = f"{rows:>6} {'-'.join(map(str, (columns, *hidden, 1))):<17}{batch_size:>6}"
        for name in names:
            if name in measured:
                seconds, loss = measured[name]
                line += f"{seconds:>17.3f}{seconds / measured['onnxcustom'][0]:>7.2f}{loss:>9.4f}"
            else:
                line += f"{'-':>17}{'-':>7}{'-':>9}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
