"""Cases of losses that belong to a task: loss, data, shapes, and the published formula in NumPy.

``test_base.py`` does with them what it does with all losses.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import expit, log_softmax, logsumexp, softmax, xlogy

from onnxcustom.objective import (
    ContrastiveLearningLoss,
    CosineLearningLoss,
    CTCLearningLoss,
    DiceLearningLoss,
    FocalLearningLoss,
    GaussianLearningLoss,
    KLDivergenceLearningLoss,
    LogCoshLearningLoss,
    NLLLearningLoss,
    SmoothL1LearningLoss,
    TripletLearningLoss,
)

__all__ = ["TASK_CASES"]

VALUE_SHAPES = [(5,), (4, 3), (3, 2, 2)]
CLASS_SHAPES = [(5, 3), (3, 4, 2)]
ALPHA = [0.5, 1.0, 2.0, 0.25]


# -- data -------------------------------------------------------------------------------------------------


def values(rng, shape):
    return rng.normal(size=shape) * 2, rng.normal(size=shape) * 2


def bits(rng, shape):
    return rng.integers(0, 2, size=shape).astype(float), rng.normal(size=shape) * 3


def labels(rng, shape):
    return rng.integers(0, shape[1], size=(shape[0], *shape[2:])), rng.normal(size=shape) * 3


def log_probabilities(rng, shape):
    y, z = labels(rng, shape)
    return y, log_softmax(z, axis=1)


def distributions(rng, shape):
    q = softmax(rng.normal(size=shape), axis=1)
    q[0] = 0
    q[0, 0] = 1  # 0 log 0 = 0
    return q, rng.normal(size=shape) * 2


def probabilities(rng, shape):
    return rng.integers(0, 2, size=shape).astype(float), rng.uniform(0.05, 0.95, size=shape)


def moments(rng, shape):
    rows, columns = shape
    half = rng.normal(size=(rows, columns // 2))
    return half + 1, np.concatenate([half, rng.uniform(0.2, 3, size=half.shape)], axis=1)


def pairs(rng, shape):
    return rng.choice([-1, 1], size=shape[0]), rng.normal(size=shape)


def classes(rng, shape):
    return np.arange(shape[0]) * 2 // 5, rng.normal(size=shape)  # one of the classes has a single row


def phrases(rng, shape):
    rows, _, count = shape
    y = rng.integers(1, count, size=(rows, 2))
    y[0, 1] = y[0, 0]  # a repetition needs a blank between
    y[1, 1:] = -1
    y[2] = -1
    return y, rng.normal(size=shape) * 2


def timed_phrases(rng, shape):
    y, z = phrases(rng, shape)
    return np.column_stack([[4, 2, 1], y]), z


def likely_phrases(rng, shape):
    y, z = phrases(rng, shape)
    return y, softmax(z, axis=-1)


# -- formulas ---------------------------------------------------------------------------------------------


def smooth_l1(y, p, beta=0.7):
    d = abs(p - y)
    return np.where(d < beta, d**2 / (2 * beta), d - beta / 2)


def focal(gamma, alpha=None):
    def formula(y, z):
        log_p = np.take_along_axis(log_softmax(z, axis=1), np.expand_dims(y, 1), axis=1)[:, 0]
        weight = 1 if alpha is None else np.asarray(alpha)[y]
        return -weight * (1 - np.exp(log_p)) ** gamma * log_p

    return formula


def binary_focal(y, z, gamma=2, alpha=0.25):
    p = np.where(y == 1, expit(z), expit(-z))
    return -np.where(y == 1, alpha, 1 - alpha) * (1 - p) ** gamma * np.log(p)


def dice(smooth):
    def formula(y, p):
        axes = tuple(range(1, p.ndim))
        size = p.sum(axis=axes) + y.sum(axis=axes) + smooth
        return 1 - (2 * (p * y).sum(axis=axes) + smooth) / size

    return formula


def dice_of_scores(y, z):
    if y.shape != z.shape:
        y = np.moveaxis(np.eye(z.shape[1])[y], -1, 1)
    return dice(1)(y, expit(z))


def divergence(t):
    return lambda q, z: t**2 * (xlogy(q, q) - q * log_softmax(z / t, axis=1))


def gaussian(y, p):
    mean, variance = np.split(p, 2, axis=1)
    return (np.log(variance) + (y - mean) ** 2 / variance) / 2


def cosines(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def cosine_of_pairs(y, p):
    cosine = cosines(p[:, 0], p[:, 1])
    return np.where(y == 1, 1 - cosine, np.maximum(0, cosine - 0.1))


def contrastive(y, x, temperature=0.5):
    scaled = cosines(x[:, None], x[None]) / temperature
    losses = np.zeros(len(y))
    for i, row in enumerate(scaled):
        others = [j for j in range(len(y)) if j != i]
        partners = [j for j in others if y[j] == y[i]]
        if partners:
            losses[i] = -np.mean([row[j] - logsumexp(row[others]) for j in partners])
    return losses


def triplet(mining):
    def formula(y, x, margin=1.5):
        d = np.linalg.norm(x[:, None] - x[None], axis=-1)
        losses = np.zeros(len(y))
        for i in range(len(y)):
            near = [d[i, j] for j in range(len(y)) if y[j] == y[i] and j != i]
            far = [d[i, j] for j in range(len(y)) if y[j] != y[i]]
            if near and far and mining == "hard":
                losses[i] = max(0, max(near) - min(far) + margin)
            elif near and far:
                losses[i] = np.mean([max(0, a - b + margin) for a in near for b in far])
        return losses

    return formula


def ctc(y, p):
    """All paths, one by one."""
    losses = np.zeros(len(y))
    for i, (label, frames) in enumerate(zip(y, p, strict=True)):
        wanted = [c for c in label if c >= 0]
        total = 0.0
        for path in itertools.product(range(p.shape[2]), repeat=p.shape[1]):
            said = [c for c, _ in itertools.groupby(path) if c]
            total += np.prod(frames[range(len(path)), path]) if said == wanted else 0
        losses[i] = -np.log(total) / max(1, len(wanted))
    return losses


def timed_ctc(y, z):
    rows = zip(y[:, 1:], z, y[:, 0], strict=True)
    return np.concatenate([ctc(label[None], softmax(x[None, :n], axis=-1)) for label, x, n in rows])


TASK_CASES = [
    (SmoothL1LearningLoss(0.7), values, VALUE_SHAPES, smooth_l1),
    (SmoothL1LearningLoss(0), values, VALUE_SHAPES[:1], lambda y, p: abs(p - y)),
    (LogCoshLearningLoss(), values, VALUE_SHAPES, lambda y, p: np.log(np.cosh(p - y))),
    (
        NLLLearningLoss(),
        log_probabilities,
        CLASS_SHAPES,
        lambda y, log_p: -np.take_along_axis(log_p, np.expand_dims(y, 1), 1),
    ),
    (FocalLearningLoss(), labels, CLASS_SHAPES, focal(2)),
    (FocalLearningLoss(0.5, ALPHA), labels, CLASS_SHAPES[1:], focal(0.5, ALPHA)),
    (FocalLearningLoss(0), labels, CLASS_SHAPES[:1], focal(0)),
    (FocalLearningLoss(2, 0.25, "sigmoid"), bits, VALUE_SHAPES, binary_focal),
    (DiceLearningLoss(), bits, VALUE_SHAPES, dice_of_scores),
    (DiceLearningLoss(), labels, CLASS_SHAPES, dice_of_scores),
    (DiceLearningLoss(0, from_logits=False), probabilities, VALUE_SHAPES[1:], dice(0)),
    (KLDivergenceLearningLoss(), distributions, CLASS_SHAPES, divergence(1)),
    (KLDivergenceLearningLoss(3), distributions, CLASS_SHAPES[1:], divergence(3)),
    (GaussianLearningLoss(), moments, [(4, 2), (3, 6)], gaussian),
    (CosineLearningLoss(), values, [(5, 4)], lambda y, p: 1 - cosines(y, p)),
    (CosineLearningLoss(0.1), pairs, [(6, 2, 3)], cosine_of_pairs),
    (ContrastiveLearningLoss(0.5), classes, [(6, 4)], contrastive),
    (TripletLearningLoss(1.5), classes, [(6, 4)], triplet("hard")),
    (TripletLearningLoss(1.5, "all"), classes, [(6, 4)], triplet("all")),
    (CTCLearningLoss(), phrases, [(3, 4, 3)], lambda y, z: ctc(y, softmax(z, axis=-1))),
    (CTCLearningLoss(input_lengths=0), timed_phrases, [(3, 4, 3)], timed_ctc),
    (CTCLearningLoss(from_logits=False), likely_phrases, [(3, 4, 3)], ctc),
]
