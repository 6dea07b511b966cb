"""Losses against PyTorch's: value, gradient, and the time of a training step.

Value and gradient of every loss of which PyTorch has the formula, or which its functions compose in a
line or two, on the same numbers, summed over the rows. Ours in float64 from PyTorch's in float64, which
may differ by 1e-9; ours and PyTorch's in float32 from PyTorch's in float64. Differences of values are
relative, those of gradients in proportion to the largest number of the gradient.

The step: inputs times one matrix, the loss, gradient and SGD, float32; ours by ``run_batch``, PyTorch's
with zero_grad, forward, backward, optimizer.step and loss.item(), in turns from the same weights; the
losses of the first steps are compared. Below 1 PyTorch took longer. Of labels that may be ignored 30 % are.

    python -m benchmarks.bench_losses --threads 1
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import common
from .common import Contender, Result, cells

PROMISE = 1e-9
RATE = 0.01
INPUTS = 16
STEPS = 5
# Cases of --quick.
QUICK = ("huber:delta=2", "cross_entropy:label_smoothing=0.1", "ctc")


@dataclasses.dataclass
class Case:
    """One loss with its options and its data.

    Attributes
    ----------
    text : str
        What selects it.
    peer : str
        PyTorch's function, or what its functions compose.
    y, p : ndarray
        Expected values, and predictions in float64.
    theirs : callable
        The sum of losses of predictions and expected values, both tensors.
    about : str
        What the data are, if the options do not tell.
    tail : str
        Function at the end of the model whose step is timed.
    count : int, optional
        What the sum is divided by in a step; by default rows.
    """

    text: str
    peer: str
    y: Any
    p: Any
    theirs: Callable[[Any, Any], Any]
    about: str = ""
    tail: str = "Identity"
    count: int | None = None


# -- cases ------------------------------------------------------------------------------------------


def numbers(quick: bool) -> Iterator[Case]:
    """Losses of numbers, every column by itself."""
    import numpy as np

    f = common.imported_torch().nn.functional
    rng = np.random.default_rng(0)
    shape = (6, 3) if quick else (64, 32)
    y, p = rng.normal(size=shape) * 2, rng.normal(size=shape) * 2
    total = {"reduction": "sum"}

    def log_cosh(d: Any) -> Any:
        return (d + f.softplus(-2 * d) - np.log(2)).sum()

    def pinball(d: Any) -> Any:
        return (0.8 * d.clamp(min=0) - 0.2 * d.clamp(max=0)).sum()

    yield Case("square_error", "mse_loss / 2", y, p, lambda p, y: f.mse_loss(p, y, **total) / 2)
    yield Case("absolute_error", "l1_loss", y, p, lambda p, y: f.l1_loss(p, y, **total))
    yield Case(
        "elastic_error:l1_weight=0.3", "l1_loss, mse_loss", y, p,
        lambda p, y: 0.3 * f.l1_loss(p, y, **total) + 0.5 * f.mse_loss(p, y, **total),
    )  # fmt: skip
    yield Case("huber:delta=2", "huber_loss", y, p, lambda p, y: f.huber_loss(p, y, delta=2.0, **total))
    yield Case(
        "smooth_l1:beta=0.5", "smooth_l1_loss", y, p, lambda p, y: f.smooth_l1_loss(p, y, beta=0.5, **total)
    )
    yield Case("log_cosh", "composed", y, p, lambda p, y: log_cosh(p - y))
    yield Case("quantile:quantile=0.8", "composed", y, p, lambda p, y: pinball(y - p))
    counts = rng.poisson(2.0, size=shape).astype(float)
    yield Case("poisson", "poisson_nll_loss", counts, p, lambda p, y: f.poisson_nll_loss(p, y, **total))
    yield Case(
        "poisson:link=identity", "poisson_nll_loss", counts, abs(p) + 0.1,
        lambda p, y: f.poisson_nll_loss(p, y, log_input=False, eps=0.0, **total), tail="Softplus",
    )  # fmt: skip
    half = shape[1] // 2
    moments = np.concatenate([p[:, :half], abs(p[:, half : 2 * half]) + 0.1], axis=1)
    yield Case(
        "gaussian_nll", "gaussian_nll_loss", y[:, :half], moments,
        lambda p, y: f.gaussian_nll_loss(p[:, :half], y, p[:, half:], **total), tail="Softplus",
    )  # fmt: skip


def bits(quick: bool) -> Iterator[Case]:
    """Losses of questions that have two answers."""
    import numpy as np

    torch = common.imported_torch()
    f = torch.nn.functional
    rng = np.random.default_rng(1)
    shape = (6, 3) if quick else (64, 32)
    y, z = rng.integers(0, 2, size=shape).astype(float), rng.normal(size=shape) * 3
    total = {"reduction": "sum"}

    def focal(z: Any, y: Any) -> Any:
        lost = f.binary_cross_entropy_with_logits(z, y, reduction="none")
        return (torch.where(y == 1, 0.25, 0.75) * (1 - torch.exp(-lost)) ** 2 * lost).sum()

    def dice(z: Any, y: Any) -> Any:
        p = torch.sigmoid(z)
        return (1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)).sum()

    logits = "binary_cross_entropy_with_logits"
    with_logits = getattr(f, logits)
    yield Case("binary_crossentropy", logits, y, z, lambda p, y: with_logits(p, y, **total))
    yield Case("log_loss", logits, y, z, lambda p, y: with_logits(p, y, **total))
    yield Case(
        "binary_crossentropy:from_logits=false", "binary_cross_entropy", y,
        rng.uniform(0.05, 0.95, size=shape), lambda p, y: f.binary_cross_entropy(p, y, **total),
        tail="Sigmoid",
    )  # fmt: skip
    one = y[:, :1]
    yield Case("hinge", "composed", one, z[:, :1], lambda p, y: (1 - (2 * y - 1) * p).clamp(min=0).sum())
    yield Case("focal:link=sigmoid,alpha=0.25", "composed", y, z, focal)
    yield Case("dice", "composed", y, z, dice)


def classes(quick: bool) -> Iterator[Case]:
    """Losses of classes."""
    import numpy as np

    torch = common.imported_torch()
    f = torch.nn.functional
    rng = np.random.default_rng(2)
    rows, count, length = (6, 3, 4) if quick else (32, 10, 20)
    weight = np.linspace(0.5, 2, count)
    weighed = "class_weight=" + str(weight.tolist()).replace(" ", "")
    y, z = rng.integers(0, count, size=rows), rng.normal(size=(rows, count)) * 3
    words, said = rng.integers(0, count, size=(rows, length)), rng.normal(size=(rows, count, length)) * 3
    padded = np.where(rng.random(words.shape) < 0.3, -100, words)
    kept = int((padded >= 0).sum())
    q = np.random.default_rng(3).dirichlet(np.ones(count), size=rows)

    def entropy(weights: Any = None, axis: int = 1, **options: Any) -> Callable[[Any, Any], Any]:
        def theirs(z: Any, y: Any) -> Any:
            w = None if weights is None else torch.tensor(weights, dtype=z.dtype)
            return f.cross_entropy(z.movedim(axis, 1), y, weight=w, reduction="sum", **options)

        return theirs

    def likelihood(z: Any, y: Any) -> Any:
        return f.nll_loss(z, y, reduction="sum")

    def focal(z: Any, y: Any) -> Any:
        lost = f.cross_entropy(z, y, reduction="none")
        return ((1 - torch.exp(-lost)) ** 2 * lost).sum()

    def divergence(z: Any, q: Any) -> Any:
        return 9 * f.kl_div((z / 3).log_softmax(1), q, reduction="sum")

    def crammer_singer(z: Any, y: Any) -> Any:
        chosen = f.one_hot(y, count).bool()
        return (1 - z[chosen] + z.masked_fill(chosen, -torch.inf).amax(1)).clamp(min=0).sum()

    name = "cross_entropy"
    yield Case(name, name, y, z, entropy())
    yield Case(f"{name}:label_smoothing=0.1", name, y, z, entropy(label_smoothing=0.1))
    yield Case(f"{name}:{weighed}", name, y, z, entropy(weight))
    both = f"{name}:label_smoothing=0.1,{weighed}"
    yield Case(both, name, padded, said, entropy(weight, label_smoothing=0.1), "(N, C, L), ignored",
               count=kept)  # fmt: skip
    yield Case(name, name, q, z, entropy(), "probabilities")
    yield Case(f"{name}:class_axis=-1", name, padded, said.swapaxes(1, 2).copy(), entropy(axis=-1),
               "(N, L, C), ignored", count=kept)  # fmt: skip
    pixels = rng.integers(0, count, size=(rows, 4, 5))
    yield Case(name, name, pixels, rng.normal(size=(rows, count, 4, 5)), entropy(), "(N, C, H, W)",
               count=pixels.size)  # fmt: skip
    logs = torch.tensor(said).log_softmax(1).numpy()
    yield Case("nll", "nll_loss", padded, logs, likelihood, "(N, C, L), ignored", "LogSoftmax", kept)
    yield Case("hinge", "composed", y, z, crammer_singer, "(N, C)")
    yield Case("focal", "composed", y, z, focal)
    yield Case("kl_divergence:temperature=3", "kl_div", q, z, divergence)


def embeddings(quick: bool) -> Iterator[Case]:
    """Losses of rows that are compared, and of labels that stand nowhere in particular."""
    import numpy as np

    torch = common.imported_torch()
    f = torch.nn.functional
    rng = np.random.default_rng(4)
    rows, width = (6, 4) if quick else (32, 24)
    x, other = rng.normal(size=(rows, width)), rng.normal(size=(rows, width))
    y = np.arange(rows) // 2  # two rows of each, so that each has one partner
    partner = torch.arange(rows) ^ 1

    def cosine(p: Any, y: Any) -> Any:
        return f.cosine_embedding_loss(p, y, torch.ones(rows), reduction="sum")

    def cosine_of_pairs(p: Any, y: Any) -> Any:
        return f.cosine_embedding_loss(p[:, 0], p[:, 1], y, margin=0.1, reduction="sum")

    def contrastive(x: Any, y: Any) -> Any:
        unit = x / x.norm(dim=1, keepdim=True)
        scores = (unit @ unit.T / 0.5).masked_fill(torch.eye(rows, dtype=torch.bool), -torch.inf)
        return f.cross_entropy(scores, partner, reduction="sum")

    def distance(a: Any, b: Any) -> Any:
        return (a - b).norm(dim=-1)

    def triplets(a: Any, near: Any, far: Any) -> Any:
        return f.triplet_margin_with_distance_loss(
            a, near, far, distance_function=distance, margin=1.5, reduction="none"
        )

    def hardest(x: Any, y: Any) -> Any:
        with torch.no_grad():
            d = torch.cdist(x, x)
            same = y[:, None] == y
            near = d.masked_fill(~same, -torch.inf).argmax(1)
            far = d.masked_fill(same, torch.inf).argmin(1)
        return triplets(x, x[near], x[far]).sum()

    anchor, far = (torch.tensor(i) for i in np.nonzero(y[:, None] != y))

    def every(x: Any, y: Any) -> Any:
        return triplets(x[anchor], x[partner[anchor]], x[far]).sum() / (rows - 2)

    name = "cosine_embedding_loss"
    yield Case("cosine", name, other, x, cosine)
    yield Case("cosine:margin=0.1", name, rng.choice([-1, 1], size=rows),
               rng.normal(size=(rows, 2, width)), cosine_of_pairs, "pairs")  # fmt: skip
    yield Case("contrastive:temperature=0.5", "composed", y, x, contrastive)
    name = "triplet_margin_with_distance_loss"
    yield Case("triplet:margin=1.5", name, y, x, hardest)
    yield Case("triplet:margin=1.5,mining=all", name, y, x, every)


def sequences(quick: bool) -> Iterator[Case]:
    """CTC: labels of several lengths, with repetitions, by themselves and with frames of their own number."""
    import numpy as np

    torch = common.imported_torch()
    f = torch.nn.functional
    rng = np.random.default_rng(5)
    rows, frames, count, most = (4, 8, 4, 3) if quick else (8, 50, 20, 12)
    words = rng.integers(1, count, size=(rows, most))
    words[0, 1] = words[0, 0]
    words[np.arange(most) >= rng.integers(1, most + 1, size=rows)[:, None]] = -1
    own = rng.integers(2 * most, frames + 1, size=rows)
    short = own.copy()
    words[1], short[1] = words[0], 1  # more labels than frames

    def ctc(z: Any, y: Any, size: Any = None) -> Any:
        length, zero = (y >= 0).sum(1), size is short
        size = torch.full((rows,), frames) if size is None else torch.tensor(size)
        logs = z.log_softmax(-1).transpose(0, 1)
        found = f.ctc_loss(logs, y.clamp(min=0), size, length, reduction="none", zero_infinity=zero)
        return (found / length.clamp(min=1)).sum()

    z = rng.normal(size=(rows, frames, count)) * 2
    yield Case("ctc", "ctc_loss", words, z, ctc)
    yield Case("ctc:input_lengths=0", "ctc_loss", np.c_[own, words], z, lambda z, y: ctc(z, y[:, 1:], own),
               "frames of their own")  # fmt: skip
    yield Case("ctc:input_lengths=0,zero_infinity=true", "ctc_loss", np.c_[short, words], z,
               lambda z, y: ctc(z, y[:, 1:], short), "a row too short")  # fmt: skip


def cases(quick: bool) -> list[Case]:
    """All, or those of --quick."""
    makers = (numbers, bits, classes, sequences, embeddings)
    found = [case for maker in makers for case in maker(quick)]
    return [c for c in found if not c.about and c.text in QUICK] if quick else found


# -- what is compared -------------------------------------------------------------------------------


def expected(case: Case, dtype: Any) -> Any:
    """Expected values as PyTorch wants them: classes are whole numbers."""
    return case.y.astype(dtype) if case.y.dtype.kind == "f" else case.y


def ours(case: Case, dtype: Any) -> tuple[float, Any]:
    """Value and gradient by the library."""
    from onnxcustom.objective import Loss

    value, gradient = Loss.select(case.text).loss_gradient("cpu", expected(case, dtype), case.p.astype(dtype))
    return float(value.numpy()), gradient.numpy()


def peers(case: Case, dtype: Any) -> tuple[float, Any]:
    """Value and gradient by PyTorch."""
    torch = common.imported_torch()
    p = torch.tensor(case.p.astype(dtype), requires_grad=True)
    value = case.theirs(p, torch.tensor(expected(case, dtype)))
    value.backward()
    return value.item(), p.grad.numpy()


def difference(found: tuple[float, Any], exact: tuple[float, Any]) -> list[float]:
    """Of values, relative, and of gradients, in proportion to the largest number."""
    of_values = abs(found[0] - exact[0]) / abs(exact[0])
    return [of_values, float(abs(found[1] - exact[1]).max() / abs(exact[1]).max())]


def differences(case: Case) -> dict[str, list[float]]:
    """Of value and gradient; an error if it is more than what is promised."""
    import numpy as np

    exact = peers(case, np.float64)
    found = {
        "float64": difference(ours(case, np.float64), exact),
        "float32": difference(ours(case, np.float32), exact),
        "peer": difference(peers(case, np.float32), exact),
    }
    if not max(found["float64"]) <= PROMISE:
        raise AssertionError(f"{case.text}: value and gradient differ by {found['float64']}")
    return found


# -- steps ------------------------------------------------------------------------------------------


def problem(case: Case) -> tuple[Any, Any]:
    """Inputs and the matrix that makes predictions of them."""
    import numpy as np

    rng = np.random.default_rng(6)
    X = rng.normal(size=(*case.p.shape[:-1], INPUTS)).astype(np.float32)
    return X, (rng.normal(size=(INPUTS, case.p.shape[-1])) / INPUTS**0.5).astype(np.float32)


def our_step(case: Case) -> Contender:
    """A training step as ``run_batch``."""
    import numpy as np
    import onnx.numpy_helper
    import onnx.parser

    from onnxcustom import TrainingStep
    from onnxcustom.runtime import to_ortvalue

    X, W = problem(case)
    dims = ["N", *(str(n) for n in case.p.shape[1:-1])]
    attribute = "<axis=1>" if case.tail == "LogSoftmax" else ""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>'
        f"m (float[{', '.join([*dims, str(INPUTS)])}] x) => (float[{', '.join([*dims, str(W.shape[1])])}] y)"
        f"{{ z = MatMul(x, W) y = {case.tail}{attribute}(z) }}"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(W, "W"))
    step = TrainingStep(model, case.text, learning_rate=RATE, threads=common.processors())
    step.run(X, expected(case, np.float32))  # tells probabilities of classes from classes
    values = [to_ortvalue(X), to_ortvalue(expected(case, np.float32))]

    def run() -> list[float]:
        return [step.run_batch(values) for _ in range(STEPS)]

    return Contender(run, STEPS, lambda: step.set_weights({"W": W}))


def torch_step(case: Case) -> Contender:
    """The same by PyTorch."""
    import numpy as np

    torch = common.imported_torch()
    X, first = (torch.from_numpy(a) for a in problem(case))
    y, tail = torch.from_numpy(expected(case, np.float32)), TAILS[case.tail]
    W = first.clone().requires_grad_()
    optimizer = torch.optim.SGD([W], lr=RATE)
    count = case.count or len(case.p)

    def one() -> float:
        optimizer.zero_grad()
        loss = case.theirs(tail(torch, X @ W), y) / count
        loss.backward()
        optimizer.step()
        return loss.item()

    def reset() -> None:
        with torch.no_grad():
            W.copy_(first)

    return Contender(lambda: [one() for _ in range(STEPS)], STEPS, reset)


TAILS: dict[str, Callable[[Any, Any], Any]] = {
    "Identity": lambda torch, z: z,
    "Sigmoid": lambda torch, z: torch.sigmoid(z),
    "Softplus": lambda torch, z: torch.nn.functional.softplus(z),
    "LogSoftmax": lambda torch, z: z.log_softmax(1),
}


def steps(case: Case, seconds: float) -> dict[str, Any]:
    """Microseconds of both and their ratio; an error if they do other things."""
    import numpy as np

    contenders = {"onnxcustom": our_step(case), "torch": torch_step(case)}
    losses: dict[str, Sequence[float]] = {}
    for name, contender in contenders.items():
        contender.reset()
        losses[name] = contender.run()
    if not np.allclose(losses["onnxcustom"], losses["torch"], rtol=1e-3):
        raise AssertionError(f"{case.text}: steps have losses {losses}")
    times = common.measure(contenders, seconds)
    ratio = {k: 1 / v for k, v in common.ratios(times, "torch", "onnxcustom").items()}
    return {
        "microseconds": {n: 1e6 * float(np.median(t)) for n, t in times.items()},
        "ratio": ratio["median"],
    }


# -- table ------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, result: Result) -> None:
    """One line for each loss."""
    if why := common.missing("torch"):
        result.skipped["losses"] = why
        return
    result.say(
        f"largest relative differences from PyTorch in float64; steps with {common.processors()} threads"
    )
    groups = ("float64", "float32", "PyTorch float32", "step")
    result.say(f"{'':<72}{cells(groups, 18)}")
    result.say(f"{'':<72}{cells(('value', 'gradient') * 3, 9)}{cells(('us', 'ours/theirs'), 13)}")
    for case in cases(options.quick):
        found, taken = differences(case), steps(case, options.seconds)
        text = (
            case.text if len(case.text) < 44 else case.text.split("class_weight=")[0] + "class_weight=[...]"
        )
        name = f"{text}  {case.about}".strip()
        result.rows.append({"case": name, "peer": case.peer, "differences": found, **taken})
        texts = [f"{v:.1e}" for kind in found.values() for v in kind]
        times = f"{taken['microseconds']['onnxcustom']:.0f}", f"{taken['ratio']:.2f}"
        result.say(f"{name:<72}{cells(texts, 9)}{cells(times, 13)}  {case.peer}")


if __name__ == "__main__":
    common.main(run, common.parser(__doc__))
